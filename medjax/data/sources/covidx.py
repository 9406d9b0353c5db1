"""COVIDx 1 to 9B and CXR-2 to CXR-4: chest radiographs of several other data sets; each version has its own lists.

    DIR/train_COVIDx9A.txt, test_COVIDx9A.txt     also in DIR/labels/; a line: patient file class source
    DIR/train.txt, val.txt, test.txt              the same in the Kaggle copies (CXR-4 has val.txt)
    DIR/train/, val/, test/                       the films; also in DIR/data/, or all in one folder

Splits: `given` is the only list in the folder. `--split 9A` names a list if there are several. Lists up to 9B have no
val. A film in train and in test stays in train. A patient in train and in test stays in test.
Labels: covid19, pneumonia (of another cause), normal. In the lists 1 to 5 and the A lists these are the classes: one of
them is 1. The B lists and list 6 are positive or negative for covid19, and the other two labels are blank. Lines of one
film that disagree give conflicting.
Patients: as in the lists, with the name of the source before them, because they are numbers within a source.
Origins: a film of RSNA has the image of RSNA as its origin. If the mapping of the challenge is in DIR (see
rsna_pneumonia), its origin is the image of NIH, and `via` names the image of RSNA.
Traps:
- The class depends on the source. In 9B, 14,132 of 16,690 positive films are Stony Brook's, and 13,788 of 14,192
  negative ones are RSNA's, which are NIH's. So a model can tell the class by the hospital. The build prints the table.
- Versions under one name differ by thousands of films.
- Lists 1 and 2 have no source. Lists 7A to 8B have blanks in patients ('COVID 1'). List 1 repeats 3,079 lines. Lists 9A
  and 9B write 'rnsa' too. A patient of 6 and 7B is in train and in test.

Checked: all twelve lists of lindawangg/COVID-Net, labels/ (counts, digests, patients in two splits, sources, blanks);
the counts of CXR-4 (yangzhou12/BenchX, where each list has lost its first line).
Recalled, not checked: the folders; that CXR-2 is list 9B (the docs of COVID-Net say compatible).
Licence (recalled): it differs by source.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.films import FilmRelease
from medjax.data.sources.rsna_pneumonia import nih_origins
from medjax.data.types import BLANK, SPLIT_NAMES, Drop, Entry, Example, Origin, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'of each source; Kaggle copies say non-commercial'
LAYOUT = (
    'the folder that holds the lists of COVIDx (train_COVIDx9A.txt and test_COVIDx9A.txt, or train.txt and test.txt)'
)
LABELS = ('covid19', 'pneumonia', 'normal')
CLASSES = {  # class in a list -> codes of LABELS
    'covid-19': (1, 0, 0),
    'pneumonia': (0, 1, 0),
    'normal': (0, 0, 1),
    'positive': (1, BLANK, BLANK),
    'negative': (0, BLANK, BLANK),
}
VERSIONS = tuple(name.removeprefix('covidx/') for name in published_splits.LISTS if name.startswith('covidx/'))
SPLITS = ('given', *VERSIONS)
RSNA = ('rsna', 'rnsa')


class Line(NamedTuple):
    """One line of a list."""

    where: str
    split: str
    patient: str
    file: str
    category: str  # the class, in lower case
    source: str  # in lower case; '' in the oldest lists


class Film(NamedTuple):
    """A film that a list names and whose file is there."""

    entry: Entry
    labels: list[int]
    site: str
    file: str


@dataclasses.dataclass(frozen=True)
class Release(FilmRelease):
    """The usable films, in the order of the entries."""

    films: list[Film]

    def load(self, i: int) -> Example:
        """Reads film i. Raises Unreadable."""
        film = self.films[i]
        data = folders.read_bytes(folders.inside(self.root, film.file))
        return Example(data, attributes=coding.filled(site=film.site))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'given') -> Source:
    """The source of the lists in `folder`. UserError if there is no list, or several, or if all films are missing."""
    root = folders.release_folder(folder, layout=LAYOUT)
    stamps = folders.files(root, '.png', '.jpg', '.jpeg')
    lines, dropped = _lines(_lists(root, split if split in VERSIONS else ''))
    split_of: dict[str, str] = {}
    for line in lines:
        split_of.setdefault(line.file, line.split)
    list_name, notes = _list_name(split_of, split)

    paths_of: defaultdict[str, list[str]] = defaultdict(list)  # file name -> where files of this name lie
    for path in stamps:
        paths_of[path.rsplit('/', 1)[-1]].append(path)
    films, unusable = _films(root, lines, split_of, paths_of)
    dropped += unusable
    if not films:
        raise UserError(f'{root}: none of the {len(split_of)} films of the lists is there; give {LAYOUT}')
    entries = [film.entry for film in films.values()]
    if split != 'drawn':
        entries, apart = published_splits.keep_patients_apart(entries)
        dropped += apart
    listed = {path for file in split_of for path in paths_of[file]}
    notes += [_classes_by_source(lines), *folders.unlisted_notes(stamps, listed, 'the lists')]
    if rsna := sum(entry.origin is not None for entry in entries):
        notes.append(f'{rsna} films are from the RSNA challenge, which took them from NIH ChestX-ray14')
    release = Release(root, [films[entry.image] for entry in entries])
    return Source(
        name='covidx', version='1', namespace='covidx', labels=LABELS, license=LICENSE, size=size,
        entries=entries, label=release.label, load=release.load, dropped=dropped, notes=notes, splits=list_name,
    )  # fmt: skip


def _lists(root: pathlib.Path, version: str) -> dict[str, pathlib.Path]:
    """Split -> its list, of the version or, for version '', of the only lists in the folder."""
    by_ending: dict[str, dict[str, pathlib.Path]] = {}  # '_COVIDx9A' of train_COVIDx9A.txt -> split -> list
    for folder in (root, root / 'labels'):
        for split in SPLIT_NAMES:
            for path in sorted(folder.glob(f'{split}*.txt')):
                by_ending.setdefault(path.stem.removeprefix(split), {}).setdefault(split, path)
    by_ending = {ending: lists for ending, lists in by_ending.items() if {'train', 'test'} <= lists.keys()}
    if version:
        wanted = '' if version == 'cxr-4' else f'_COVIDx{version.removeprefix("1")}'
        by_ending = {ending: lists for ending, lists in by_ending.items() if ending == wanted}
    if len(by_ending) == 1:
        return next(iter(by_ending.values()))
    if by_ending:
        raise UserError(
            f'{root} has the lists {", ".join("train" + ending + ".txt" for ending in sorted(by_ending))}; say which '
            f'with --split, one of {", ".join(VERSIONS)}'
        )
    raise UserError(
        f'{root} has no list train*.txt and test*.txt{f" of version {version}" * bool(version)}; give {LAYOUT}'
    )


def _lines(lists: dict[str, pathlib.Path]) -> tuple[list[Line], list[Drop]]:
    """The lines of the lists. They are read from the right, since a patient may have blanks in its name."""
    lines, dropped = [], []
    for split, path in lists.items():
        for number, text in tables.numbered_lines(path):
            cells, where = text.split(), f'{path.name} line {number}'
            has_source = len(cells) > 3 and cells[-2].lower() in CLASSES
            *patient, file, category = cells[:-1] if has_source else cells if len(cells) > 2 else ['', '', '']
            category = category.lower()
            if category not in CLASSES or not patient:
                dropped.append(Drop('', where, 'not: patient, file, class and source'))
                continue
            lines.append(Line(where, split, ' '.join(patient), file, category, cells[-1].lower() if has_source else ''))
    return lines, dropped


def _films(
    root: pathlib.Path, lines: list[Line], split_of: Mapping[str, str], paths_of: Mapping[str, list[str]]
) -> tuple[dict[str, Film], list[Drop]]:
    """File name -> film, and a drop for each line whose film cannot be used.

    split_of: file name -> split of its first line. paths_of: file name -> where files of this name lie.
    """
    origins = nih_origins(root)
    sites = {line.file: _site(line.source) for line in lines}
    films: dict[str, Film] = {}
    dropped: list[Drop] = []
    for line in lines:
        codes = list(CLASSES[line.category])
        film = films.get(line.file)
        if film and line.split == split_of[line.file]:  # list 1 repeats lines
            films[line.file] = film._replace(labels=coding.combine_lines([film.labels, codes]))
            continue
        try:
            if line.split != split_of[line.file]:
                raise Unreadable(f'the film is in {split_of[line.file]} too')
            path = _path(root, paths_of.get(line.file, []), line)
        except Unreadable as error:
            dropped.append(Drop(line.file, line.where, str(error)))
            continue
        entry = _entry(line, origins, folders.stamp(root / path))
        films[line.file] = Film(entry, codes, sites[line.file], path)
    return films, dropped


def _path(root: pathlib.Path, paths: Sequence[str], line: Line) -> str:
    """The path of a film: in the folder of its split or, if only one file has its name, anywhere."""
    candidates = [path for path in paths if f'/{path}'.split('/')[-2] == line.split] or paths
    if len(candidates) > 1:
        raise Unreadable('several files have this name')
    path = candidates[0] if candidates else line.file
    folders.inside(root, path)
    return path


def _entry(line: Line, origins: dict[str, Origin], stamp: str) -> Entry:
    """The entry of a film. Its patient is named with the source, since patients are numbers within a source."""
    patient = f'{_site(line.source)}/{line.patient}'
    origin = None
    if line.source in RSNA:
        image = pathlib.PurePosixPath(line.file).stem
        if image in origins:
            origin = origins[image]._replace(via=('rsna_pneumonia', image))
        else:  # RSNA's own entries name no patient, so their study stands for the patient, as in `patient_of`
            origin = Origin('rsna_pneumonia', image, f'study/image/{image}')
    return Entry(line.file, patient, f'{patient}/{line.file}', line.split, line.where, origin, stamp)


def _site(source: str) -> str:
    return 'rsna' if source in RSNA else source


def _list_name(split_of: dict[str, str], split: str) -> tuple[str, list[str]]:
    """The name of the published list that equals image -> split, '' if none does; and a note that says so."""
    if split in VERSIONS:
        differences = published_splits.differences(f'covidx/{split}', split_of.items())
        name = published_splits.list_name(f'covidx/{split}', differences)
        return name, differences or [f'the list is COVIDx {split} as published']
    digest = published_splits.digest(split_of.items())
    same = [version for version in VERSIONS if published_splits.LISTS[f'covidx/{version}'].digest == digest]
    near = [version for version in VERSIONS if not published_splits.differences(f'covidx/{version}', split_of.items())]
    if version := next(iter(same + near), ''):
        return f'covidx/{version}', [f'the list is COVIDx {version} as published']
    counts = ', '.join(f'{name} {n}' for name, n in Counter(split_of.values()).items())
    return '', [f'the list ({counts}) is not one of the published lists']


def _classes_by_source(lines: list[Line]) -> str:
    """A note with the number of lines of each class and source."""
    counts = Counter((line.category, _site(line.source) or 'no source') for line in lines)
    sites = {
        category: ', '.join(f'{site} {n}' for (other, site), n in counts.most_common() if other == category)
        for category in dict.fromkeys(line.category for line in lines)
    }
    table = '; '.join(f'{category}: {numbers}' for category, numbers in sites.items())
    return f'the class depends on the source, so a model can tell the class by the hospital. {table}'
