"""COVIDx 1 to 9B and CXR-2 to CXR-4: chest films gathered from other sets, one list of train and test a version.

    DIR/train_COVIDx9A.txt, test_COVIDx9A.txt, also in DIR/labels/    lines: patient file class source
    DIR/train.txt, val.txt, test.txt    the same in the Kaggle copies (CXR-4 has val.txt)
    DIR/train/, val/, test/    the films, also in DIR/data/ or all in one folder

Traps: class goes with source (in 9B 14,132 of 16,690 positives are Stony Brook's, 13,788 of 14,192 negatives RSNA's,
which are NIH's), so a model can tell the class by the hospital: the build prints the table. Versions differ by
thousands of films under one name. Lists 1 and 2 have no source; 7A to 8B have blanks in patients ('COVID 1'); list 1
repeats 3,079 lines; 9A and 9B write 'rnsa' too; a patient of 6 and 7B is in train and in test: kept in test alone.

Labels: covid19, pneumonia (of another cause), normal are the classes of the A lists and of 1 to 5, one of them 1; the B
lists and 6 say positive or negative of covid19 alone, the others are blank. Lines that disagree give conflicting.

Splits: `given` is the one list in the folder, or `--split 9A` names it. Lists up to 9B have no val. RSNA's films have
their image of RSNA as origin, or that of NIH, by way of RSNA's, where the challenge's mapping (see rsna_pneumonia) is
in DIR.

Checked: all twelve lists (lindawangg/COVID-Net, labels/: counts, digests, patients in two parts, sources, blanks); the
counts of CXR-4 (yangzhou12/BenchX, whose lists lost the first line of each). Recalled, not checked: the folders; that
CXR-2 is list 9B (COVID-Net's docs say compatible); the licence, which differs by source.
"""

from __future__ import annotations

import argparse
import pathlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.sources.rsna_pneumonia import nih_origins
from medjax.data.types import BLANK, SPLIT_NAMES, Drop, Entry, Example, Origin, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'of each source; Kaggle copies say non-commercial'
LAYOUT = (
    'the folder that holds the lists of COVIDx (train_COVIDx9A.txt and test_COVIDx9A.txt, or train.txt and test.txt)'
)
LABELS = ('covid19', 'pneumonia', 'normal')
CLASSES = {  # class of a list -> values of LABELS
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
    where: str
    split: str
    patient: str
    file: str
    kind: str  # the class, lower case
    source: str  # lower case, '' in the oldest lists


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'given') -> Source:
    root = folders.release_folder(folder, layout=LAYOUT)
    files = folders.files(root, '.png', '.jpg', '.jpeg')
    lines, dropped = _lines(_lists(root, split if split in VERSIONS else ''))
    parts: dict[str, str] = {}
    for line in lines:
        parts.setdefault(line.file, line.split)
    name, notes = _version(parts, split)

    places: defaultdict[str, list[str]] = defaultdict(list)
    for path in files:
        places[path.rsplit('/', 1)[-1]].append(path)
    origins = nih_origins(root)
    entries: list[Entry] = []
    told: dict[str, list[int]] = {}
    place: dict[str, str] = {}
    for line in lines:
        if line.file in told and line.split == parts[line.file]:  # list 1 repeats lines
            told[line.file] = [coding.fuse(pair) for pair in zip(told[line.file], CLASSES[line.kind], strict=True)]
            continue
        try:
            if line.split != parts[line.file]:
                raise Unreadable(f'the film is in {parts[line.file]} too')
            place[line.file] = _place(root, places[line.file], line)
        except Unreadable as error:
            dropped.append(Drop(line.file, line.where, str(error)))
            continue
        told[line.file] = list(CLASSES[line.kind])
        entries.append(_entry(line, origins, folders.stamp(root / place[line.file])))
    if not entries:
        raise UserError(f'{root}: none of the {len(parts)} films of the lists is there; give {LAYOUT}')
    entries, apart = published_splits.keep_apart(entries) if split != 'drawn' else (entries, [])
    sources = {line.file: line.source for line in lines}

    def load(i: int) -> Example:
        file = entries[i].image
        data = folders.content(folders.inside(root, place[file]))
        return Example(data, attributes=coding.known(site=_site(sources[file])))

    notes += [_table(lines), *folders.not_named(files, {path for file in parts for path in places[file]}, 'the lists')]
    if rsna := sum(entry.origin is not None for entry in entries):
        notes.append(f'{rsna} films are from the RSNA challenge, which took them from NIH ChestX-ray14')
    return Source(
        name='covidx', version='1', namespace='covidx', labels=LABELS, license=LICENSE, size=size,
        entries=entries, label=lambda i: told[entries[i].image], load=load, dropped=[*dropped, *apart], notes=notes,
        splits=name,
    )  # fmt: skip


def _lists(root: pathlib.Path, version: str) -> dict[str, pathlib.Path]:
    """split -> its list: of that version, or the only ones there are."""
    there: dict[str, dict[str, pathlib.Path]] = {}  # what follows train, val, test in the name -> split -> file
    for place in (root, root / 'labels'):
        for part in SPLIT_NAMES:
            for path in sorted(place.glob(f'{part}*.txt')):
                there.setdefault(path.stem.removeprefix(part), {}).setdefault(part, path)
    there = {ending: lists for ending, lists in there.items() if {'train', 'test'} <= lists.keys()}
    if version and version != 'cxr-4':
        there = {ending: lists for ending, lists in there.items() if ending == f'_COVIDx{version.removeprefix("1")}'}
    elif version:
        there = {ending: lists for ending, lists in there.items() if ending == ''}
    if len(there) == 1:
        return next(iter(there.values()))
    if there:
        raise UserError(
            f'{root} has the lists {", ".join("train" + ending + ".txt" for ending in sorted(there))}; say which with '
            f'--split, one of {", ".join(VERSIONS)}'
        )
    raise UserError(
        f'{root} has no list train*.txt and test*.txt{f" of version {version}" * bool(version)}; give {LAYOUT}'
    )


def _lines(lists: dict[str, pathlib.Path]) -> tuple[list[Line], list[Drop]]:
    """The lines of the lists, read from the right, since patients may have blanks in them."""
    lines, dropped = [], []
    for split, path in lists.items():
        for number, text in tables.numbered(path):
            words, where = text.split(), f'{path.name} line {number}'
            has_source = len(words) > 3 and words[-2].lower() in CLASSES
            *patient, file, kind = words[:-1] if has_source else words if len(words) > 2 else ['', '', '']
            if kind.lower() not in CLASSES or not patient:
                dropped.append(Drop('', where, 'not: patient, file, class and source'))
                continue
            kind = kind.lower()
            lines.append(Line(where, split, ' '.join(patient), file, kind, words[-1].lower() if has_source else ''))
    return lines, dropped


def _place(root: pathlib.Path, places: Sequence[str], line: Line) -> str:
    """Where a film lies: in the folder of its split, or wherever its name is once."""
    mine = [name for name in places if f'/{name}'.split('/')[-2] == line.split] or places
    if len(mine) > 1:
        raise Unreadable('several files have this name')
    name = mine[0] if mine else line.file
    folders.inside(root, name)
    return name


def _entry(line: Line, origins: dict[str, Origin], stamp: str) -> Entry:
    """Patients are numbers within their source, so they are named with it."""
    patient = f'{_site(line.source)}/{line.patient}'
    origin = None
    if line.source in RSNA:
        image = pathlib.PurePosixPath(line.file).stem
        if image in origins:
            origin = origins[image]._replace(via=('rsna_pneumonia', image))
        else:  # the patient as data.splits has it of RSNA's own entries, which name none
            origin = Origin('rsna_pneumonia', image, f'study/image/{image}')
    return Entry(line.file, patient, f'{patient}/{line.file}', line.split, line.where, origin, stamp)


def _site(source: str) -> str:
    return 'rsna' if source in RSNA else source


def _version(parts: dict[str, str], split: str) -> tuple[str, list[str]]:
    """The name of the published list that this is, and what is to be said of it."""
    if split in VERSIONS:
        differ = published_splits.differences(f'covidx/{split}', parts.items())
        return published_splits.named(f'covidx/{split}', differ), differ or [f'the list is COVIDx {split} as published']
    digest = published_splits.digest(parts.items())
    same = [version for version in VERSIONS if published_splits.LISTS[f'covidx/{version}'].digest == digest]
    near = [version for version in VERSIONS if not published_splits.differences(f'covidx/{version}', parts.items())]
    if version := next(iter(same + near), ''):
        return f'covidx/{version}', [f'the list is COVIDx {version} as published']
    counts = Counter(parts.values())
    return '', [
        f'the list ({", ".join(f"{name} {n}" for name, n in counts.items())}) is no published one that is known'
    ]


def _table(lines: list[Line]) -> str:
    """Class by source in one sentence."""
    counts = Counter((line.kind, _site(line.source) or 'no source') for line in lines)
    kinds = {
        kind: ', '.join(f'{site} {n}' for (other, site), n in counts.most_common() if other == kind)
        for kind in dict.fromkeys(line.kind for line in lines)
    }
    table = '; '.join(f'{kind}: {sites}' for kind, sites in kinds.items())
    return f'class goes with source, so a model can tell the class by the hospital. {table}'
