r"""A folder of images by class: DIR/<class>/**/image, or DIR/<split>/<class>/**/image.

    DIR/Normal/IM-0115.jpeg, DIR/Pneumonia/person3/x.png
    DIR/train/NORMAL/IM-0115.jpeg, DIR/test/Normal/IM-0001.dcm

Images: PNG, JPEG (8 or 16 bit), and DICOM files, of which each frame is a record. Other files are set aside.

Splits: train, val and test, if the first folders below DIR are named so (or training, valid, tune, holdout, …). Then
all images must be in such folders. Otherwise they are drawn. One folder around them (chest_xray/train) is passed over,
and a folder that holds the same files once more (Kaggle's chest_xray/chest_xray) is set aside.
Labels: one for each class. The first folder below DIR, or below the split's folder, is the class. Names are lowered and
blanks become '_', so that train/Normal and test/NORMAL are one class. A label is 1 if the image is in the class, 0 if
it is in another class, and blank if the tree does not say. A folder without classes is a data set without labels.
--levels 2 takes the next level of folders too: an image in benign/adenosis/ is positive for `benign` and for
`benign/adenosis`, and an image in benign/ itself is blank for `benign/adenosis`.
Patients: a folder does not name them. --patient can find them in file names: it is a regular expression with one group,
and is searched in the path relative to DIR. Without it, a person can be in two of the drawn splits. The children of
Kaggle's chest_xray are found by --patient '(person\d+|IM-\d+)'. Some are in two of its splits, so add --split drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import filecmp
import pathlib
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, people, words
from medjax.data.types import BLANK, NEGATIVE, POSITIVE, Drop, Entry, Example, Source
from medjax.errors import UserError

LICENSE = ''
LAYOUT = 'a folder with a folder of images for each class, perhaps below train, val and test'


class Picture(NamedTuple):
    """One picture: a file, or a frame of a DICOM file."""

    number: int  # of the file, for drops
    path: str
    classes: tuple[str, ...]  # ('benign', 'adenosis')
    split: str | None
    frame: int | None  # None for a file with one picture


@dataclasses.dataclass(frozen=True)
class Release:
    """The pictures, in the order of the entries."""

    root: pathlib.Path
    pictures: list[Picture]
    classes: list[tuple[str, ...]]  # of all pictures; each one is a label

    def label(self, i: int) -> list[int]:
        """The code of each label of picture i."""
        return [_label(self.pictures[i].classes, names) for names in self.classes]

    def load(self, i: int) -> Example:
        """Reads picture i. Raises Unreadable."""
        picture = self.pictures[i]
        data = folders.read_bytes(self.root / picture.path)
        attributes = dicom.attributes(data) if dicom.looks_like(data) else {}
        role = coding.role(str(attributes.get('view', '')))
        return Example(data, role, attributes=attributes, frame=picture.frame or 0)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR, --size, --levels, --patient and --namespace."""
    folders.add_arguments(parser, LAYOUT)
    parser.add_argument(
        '--levels', type=int, default=1, help='number of levels of folders that are classes (default: 1)'
    )
    parser.add_argument(
        '--patient', metavar='REGEX', help=r"finds the patient in an image's path; with one group, as in (person\d+)_"
    )
    parser.add_argument(
        '--namespace', help="data sets with the same namespace share their patients (default: DIR's name)"
    )


def source(
    folder: str, levels: int = 1, patient: str | None = None, size: int | None = None, namespace: str | None = None
) -> Source:
    """The source of the tree in `folder`. UserError if it has no image, or if only some are in folders of splits."""
    root = folders.release_folder(folder, layout=LAYOUT)
    if levels < 1:
        raise UserError(f'--levels {levels}: at least one level of folders is the class')
    patient_of = _patient_finder(patient)
    files, dropped, notes = folders.numbered_files(root)
    images = []
    for number, path in files:
        if problem := _problem(root / path):
            dropped.append(Drop(path, f'file {number}', problem))
        else:
            images.append((number, path))
    prefix = _wrapper([path for _, path in images])
    images, copies = _without_copies(root, images, prefix)
    dropped += copies
    if not images:
        raise UserError(f'{root}: none of its {len(files)} files is a PNG, JPEG or DICOM file; give {LAYOUT}')
    splits = _splits(root, images, prefix)
    pictures = [
        Picture(number, path, _classes(path[len(prefix) :], levels, below_split=split is not None), split, frame)
        for (number, path), split in zip(images, splits, strict=True)
        for frame in _frames(root / path)
    ]
    classes = sorted({picture.classes[: n + 1] for picture in pictures for n in range(len(picture.classes))})

    entries = [_entry(root, picture, patient_of, picture.path[len(prefix) :]) for picture in pictures]
    release = Release(root, pictures, classes)
    return Source(
        name=root.name, version='1', namespace=namespace or root.name, license=LICENSE, size=size,
        labels=tuple('/'.join(names) for names in classes), entries=entries,
        label=release.label, load=release.load, dropped=dropped, draw_namespace=namespace or '',
        notes=[*notes, *_notes(pictures, entries, patient)],
    )  # fmt: skip


def _problem(file: pathlib.Path) -> str:
    """The reason why a file is not an image, by its suffix or its first bytes; '' if it is one."""
    if file.suffix.lower() in folders.PICTURE_SUFFIXES:
        return ''
    try:
        with file.open('rb') as opened:
            start = opened.read(132)
    except OSError as error:
        return f'cannot be opened: {error.strerror}'
    if start[:3] == b'\xff\xd8\xff' or start[:8] == b'\x89PNG\r\n\x1a\n' or dicom.looks_like(start):
        return ''
    suffix = file.suffix.lower()
    if re.fullmatch(r'\.[a-z]{1,5}', suffix):
        return f'a {suffix} file; images are PNG, JPEG or DICOM'
    return 'not an image'


def _wrapper(paths: list[str]) -> str:
    """The folders around the folders of splits: 'chest_xray/' for chest_xray/train and chest_xray/test; else ''.

    An archive is often unpacked into a folder of its own.
    """
    prefix = ''
    while paths and len(names := {path[len(prefix) :].split('/')[0] for path in paths}) == 1:
        (name,) = names
        if any(path == prefix + name for path in paths) or words.split(name):
            return ''
        prefix += f'{name}/'
    firsts = {path[len(prefix) :].split('/')[0] for path in paths}
    return prefix if any(words.split(name) for name in firsts) else ''


def _without_copies(
    root: pathlib.Path, images: list[tuple[int, str]], prefix: str
) -> tuple[list[tuple[int, str]], list[Drop]]:
    """The images without a folder that holds all of them once more, as Kaggle's chest_xray/chest_xray does."""
    number_of = {path: number for number, path in images}
    below: dict[str, list[str]] = defaultdict(list)
    for path in number_of:
        first, _, rest = path[len(prefix) :].partition('/')
        if rest and words.split(first) is None:
            below[first].append(rest)
    copies = {
        f'{prefix}{first}/{rest}': number_of[prefix + rest]
        for first, paths in below.items()
        if all(prefix + rest in number_of for rest in paths)
        and all(filecmp.cmp(root / prefix / first / rest, root / prefix / rest, shallow=False) for rest in paths)
        for rest in paths
    }
    dropped = [Drop(path, f'file {number_of[path]}', f'repeats file {number}') for path, number in copies.items()]
    return [(number, path) for number, path in images if path not in copies], dropped


def _splits(root: pathlib.Path, images: list[tuple[int, str]], prefix: str) -> list[str | None]:
    """The split of each image, if the first folders are named after splits, else None for all."""
    firsts = [path[len(prefix) :].split('/')[0] if '/' in path[len(prefix) :] else '' for _, path in images]
    meanings = words.split_meanings(set(firsts))
    splits = [meanings[first] for first in firsts]
    folders.check_splits(root, splits, 'images')
    return splits


def _classes(path: str, levels: int, below_split: bool) -> tuple[str, ...]:
    """The classes of a path: ('benign', 'adenosis') for 'train/Benign/adenosis/x.png' and 2 levels."""
    names = path.split('/')[:-1][int(below_split) :]
    return tuple('_'.join(name.lower().split()) for name in names[:levels])


def _label(image: tuple[str, ...], label: tuple[str, ...]) -> int:
    """The code of a label for an image, both as tuples of classes."""
    if image[: len(label)] == label:
        return POSITIVE
    return BLANK if label[: len(image)] == image else NEGATIVE


def _frames(file: pathlib.Path) -> list[int | None]:
    count = folders.frame_count(file)
    return [None] if count == 1 else list(range(count))


def _patient_finder(pattern: str | None) -> Callable[[str], str | None]:
    """The function from a path to its patient that --patient means. UserError if the pattern is invalid."""
    if pattern is None:
        return lambda path: None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f'--patient {pattern}: not a regular expression ({error})') from None
    if compiled.groups != 1:
        raise UserError(
            f'--patient {pattern}: it has {compiled.groups} groups; put one around the patient, as in (person\\d+)_'
        )
    return lambda path: (match[1] or None) if (match := compiled.search(path)) else None


def _entry(root: pathlib.Path, picture: Picture, patient_of: Callable[[str], str | None], image: str) -> Entry:
    """The entry of a picture. image: its path below the folders of splits, which does not depend on what is around."""
    suffix = '' if picture.frame is None else f' frame {picture.frame + 1}'
    return Entry(
        image + suffix, patient_of(picture.path), f'image/{image}', picture.split,
        f'file {picture.number}{suffix}', stamp=folders.stamp(root / picture.path),
    )  # fmt: skip


def _notes(pictures: list[Picture], entries: list[Entry], pattern: str | None) -> list[str]:
    """Notes on images without a class and on unknown patients."""
    notes = []
    if outside := sum(not picture.classes for picture in pictures):
        notes.append(f'{outside} images lie in no class: all their labels are blank')
    unknown = sum(entry.patient is None for entry in entries)
    if unknown and pattern is None:
        notes.append('a folder names no patients, so people may be in two splits; --patient REGEX finds them in names')
    elif unknown:
        notes.append(f'--patient {pattern} finds nobody in the names of {unknown} images')
    (most, n), *_ = Counter(entry.patient for entry in entries).most_common(1)
    if most is not None and n >= max(people.NEARLY_ALL * len(entries), people.MOST_STUDIES):
        notes.append(
            f'--patient {pattern} finds one patient in {n} of {len(entries)} images: is the group around the id?'
        )
    return notes
