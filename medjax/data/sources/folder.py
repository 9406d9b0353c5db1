"""A folder of images by class: DIR/<class>/**/image, or DIR/<split>/<class>/**/image.

The first folder below DIR (or below the split's) is the class; --levels 2 takes the one below it too, and then an
image in benign/adenosis/ is positive for `benign` and for `benign/adenosis`. Names are lowered, blanks become '_', so
that train/Normal and test/NORMAL are one class. There is one label for each class: 1 where the image lies in it, 0
where it lies in another one, blank where the tree does not say (an image that lies in no class, or in `benign` itself
beside benign/adenosis/). A folder without classes is a set without labels.

Splits: given where the first folders are called train, val, test or alike (training, testing, valid, validation);
then all images must lie in such folders. Else they are drawn.

Patients: nobody knows them from a folder, unless --patient says how file names tell: a regular expression with one
group, searched in the path relative to DIR. Without it people can be in two of the drawn splits.

Images: PNG, JPEG (8 or 16 bit), and DICOM files, of which each frame is a record. Other files are set aside.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Callable

from medjax.data.images import dicom
from medjax.data.releases import coding, folders
from medjax.data.types import BLANK, NEGATIVE, POSITIVE, Drop, Entry, Example, Source
from medjax.errors import UserError

LICENSE = ''
LAYOUT = 'a folder with a folder of images for each class, perhaps below train, val and test'

Picture = tuple[int, str, tuple[str, ...], str | None, int | None]  # number, path, class, split, frame


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)
    parser.add_argument('--levels', type=int, default=1, help='how many levels of folders are classes (default: 1)')
    parser.add_argument('--patient', metavar='REGEX', help="finds the patient in an image's path; with one group")
    parser.add_argument('--namespace', help="sets with one namespace share their patients' ids (default: DIR's name)")


def source(
    folder: str, levels: int = 1, patient: str | None = None, size: int | None = None, namespace: str | None = None
) -> Source:
    """The tree as a source; UserError where no file of it is an image, or only some lie in folders of splits."""
    root = folders.release_folder(folder, layout=LAYOUT)
    if levels < 1:
        raise UserError(f'--levels {levels}: at least one level of folders is the class')
    patient_of = _patient(patient)
    found, dropped, notes = folders.tree(root)
    images = []
    for number, path in found:
        if problem := _no_image(root / path):
            dropped.append(Drop(path, f'file {number}', problem))
        else:
            images.append((number, path))
    if not images:
        raise UserError(f'{root}: none of its {len(found)} files is a PNG, JPEG or DICOM file; give {LAYOUT}')
    splits = _splits(root, images)
    pictures = [
        (number, path, classes, split, frame)
        for (number, path), split in zip(images, splits, strict=True)
        for classes in [_classes(path, levels, below=split is not None)]
        for frame in _frames(root / path)
    ]
    classes = sorted({found[: n + 1] for _, _, found, _, _ in pictures for n in range(len(found))})

    def label(i: int) -> list[int]:
        own = pictures[i][2]
        return [
            POSITIVE if own[: len(name)] == name else BLANK if name[: len(own)] == own else NEGATIVE for name in classes
        ]

    def load(i: int) -> Example:
        _, path, _, _, frame = pictures[i]
        data = folders.content(root / path)
        facts = dicom.attributes(data) if dicom.looks_like(data) else {}
        return Example(data, frame=frame or 0, role=coding.role(str(facts.get('view', ''))), attributes=facts)

    entries = [_entry(root, picture, patient_of) for picture in pictures]
    return Source(
        name=root.name, version='1', namespace=namespace or root.name, license=LICENSE, size=size,
        labels=tuple('/'.join(name) for name in classes), entries=entries, label=label, load=load,
        dropped=dropped, notes=[*notes, *_notes(pictures, entries, patient)],
    )  # fmt: skip


def _no_image(file: pathlib.Path) -> str:
    """Why a file is no image, told by its name or, where that says nothing, by how it begins; '' where it is one."""
    if file.suffix.lower() in folders.SUFFIXES:
        return ''
    try:
        with file.open('rb') as opened:
            head = opened.read(132)
    except OSError as error:
        return f'cannot be opened: {error.strerror}'
    if head[:3] == b'\xff\xd8\xff' or head[:8] == b'\x89PNG\r\n\x1a\n' or dicom.looks_like(head):
        return ''
    kind = file.suffix.lower()
    return f'a {kind} file; images are PNG, JPEG or DICOM' if re.fullmatch(r'\.[a-z]{1,5}', kind) else 'no image'


def _splits(root: pathlib.Path, images: list[tuple[int, str]]) -> list[str | None]:
    """The split of each image where the first folders are called so, else None for all."""
    splits = [folders.SPLITS.get(path.split('/')[0].lower()) if '/' in path else None for _, path in images]
    folders.all_or_none(root, splits, 'images')
    return splits


def _classes(path: str, levels: int, below: bool) -> tuple[str, ...]:
    folders = path.split('/')[:-1][int(below) :]
    return tuple('_'.join(folder.lower().split()) for folder in folders[:levels])


def _frames(file: pathlib.Path) -> list[int | None]:
    count = folders.frames(file)
    return [None] if count == 1 else list(range(count))


def _patient(pattern: str | None) -> Callable[[str], str | None]:
    if pattern is None:
        return lambda path: None
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f'--patient {pattern}: no regular expression ({error})') from None
    if compiled.groups != 1:
        raise UserError(
            f'--patient {pattern}: it has {compiled.groups} groups; put one around the patient, as in (person\\d+)_'
        )
    return lambda path: (found[1] or None) if (found := compiled.search(path)) else None


def _entry(root: pathlib.Path, picture: Picture, patient_of: Callable[[str], str | None]) -> Entry:
    number, path, _, split, frame = picture
    which = '' if frame is None else f' frame {frame + 1}'
    return Entry(
        path + which,
        patient_of(path),
        f'image/{path}',
        split,
        f'file {number}{which}',
        stamp=folders.stamp(root / path),
    )


def _notes(pictures: list[Picture], entries: list[Entry], pattern: str | None) -> list[str]:
    notes = []
    if outside := sum(not picture[2] for picture in pictures):
        notes.append(f'{outside} images lie in no class: all their labels are blank')
    unknown = sum(entry.patient is None for entry in entries)
    if unknown and pattern is None:
        notes.append('a folder names no patients, so people may be in two splits; --patient REGEX finds them in names')
    elif unknown:
        notes.append(f'--patient {pattern} finds nobody in the names of {unknown} images')
    return notes
