"""VinDr-CXR 1.0.0 of PhysioNet: 18,000 frontal DICOM films, each train film read by three radiologists.

    DIR/train/<image_id>.dicom, DIR/test/<image_id>.dicom
    DIR/annotations/image_labels_train.csv    image_id, rad_id, 28 findings and diagnoses as 0/1: a line a reader
    DIR/annotations/image_labels_test.csv     image_id, the same: a line an image, by consensus

Traps: 45,000 lines for 15,000 train images; 'Other diseases' in train is 'Other disease' in test; films with inverted
greys (MONOCHROME1), which are turned; no patient is named in any table, so splits know no people.

Labels: what all readers of an image say, else conflicting; consensus for test; blank where a table lacks the column.
The boxes of annotations_*.csv are of 22 kinds and do not fit the one mask of a record; they are left out.

Splits: `official` train 15,000 / test 3,000; or `benchx` 12,000 / 3,000 / 3,000, lists of yangzhou12/BenchX to be put
at DIR/benchx/{train,val,test}.txt.

Checked: image ids of both splits (BenchX's lists and the Kaggle table in mlmed/torchxrayvision: 15,000 images, three
readers each); that the column differs between the tables and the file extension (loaders of several public
repositories). Recalled, not checked: that all films are PA, on which the role 'frontal' rests; the licence.
"""

from __future__ import annotations

import argparse
import pathlib
from collections import defaultdict

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

LICENSE = 'PhysioNet credentialed 1.5.0'
LAYOUT = 'the folder that holds train/, test/ and annotations/ of VinDr-CXR 1.0.0'
SPLITS = ('official', 'benchx')
TABLES = {split: f'annotations/image_labels_{split}.csv' for split in ('train', 'test')}
NO_LABEL = ('image_id', 'rad_id')


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'official') -> Source:
    root = folders.release_folder(folder, '|'.join(TABLES.values()), layout=LAYOUT)
    benchx = published_splits.read_split(root, 'benchx', 'from yangzhou12/BenchX') if split == 'benchx' else {}
    files = folders.paths(root, '.dicom', '.dcm')
    notes, dropped, entries = [], [], []
    told: dict[str, dict[str, int]] = {}
    names: dict[str, None] = {}  # in the tables' order
    tabled: dict[str, str] = {}  # image -> split, as the tables have it
    place: dict[str, str] = {}
    for part, name in TABLES.items():
        if not (root / name).is_file():
            notes.append(f'{name} is missing: no {part} image is in the data set')
            continue
        votes, first, wrong = _read(root / name)
        dropped += wrong
        for image, said in votes.items():
            file = f'{part}/{image}.dicom'
            try:
                stamp = folders.stamp(folders.inside(root, file if image else ''))
                if image in told:
                    raise Unreadable('the image is in both tables')
                if benchx and image not in benchx:
                    raise Unreadable('in no list of the split benchx')
            except Unreadable as error:
                dropped.append(Drop(image, first[image], str(error)))
                continue
            place[image] = file
            told[image] = {label: coding.fuse(values) for label, values in said.items()}
            names |= dict.fromkeys(told[image])
            entries.append(Entry(image, None, f'image/{image}', benchx.get(image, part), first[image], stamp=stamp))
        used = {f'{part}/{image}.dicom' for image in votes}
        notes += folders.not_named([name for name in files if name.startswith(f'{part}/')], used, name)
        tabled |= dict.fromkeys(votes, part)
    if not entries:
        raise UserError(f'{root}: none of the images that the tables name is there; give {LAYOUT}')
    differ = published_splits.differences(f'vindr_cxr/{split}', (benchx or tabled).items()) if split in SPLITS else []
    notes += differ

    def load(i: int) -> Example:
        data = folders.content(folders.inside(root, place[entries[i].image]))
        return Example(data, 'frontal', attributes=dicom.attributes(data))

    notes += [
        'no patients are named: where splits are drawn, near-duplicates stay together; people may still be in two',
        'boxes are left out: a record holds one mask',
    ]
    return Source(
        name='vindr_cxr', version='1', namespace='vindr_cxr', labels=tuple(names), license=LICENSE, size=size,
        entries=entries, label=lambda i: [told[entries[i].image].get(name, BLANK) for name in names],
        load=load, dropped=dropped, notes=notes,
        splits=published_splits.named(f'vindr_cxr/{split}', differ) if split in SPLITS else '',
    )  # fmt: skip


def _read(path: pathlib.Path) -> tuple[dict[str, dict[str, list[int]]], dict[str, str], list[Drop]]:
    """image -> label -> what each reader says; image -> its first line; and cells that hold neither 0 nor 1."""
    table = tables.read_table(path, ['image_id'])
    names = {column: _name(column) for column in table.columns if column not in NO_LABEL}
    votes: defaultdict[str, dict[str, list[int]]] = defaultdict(lambda: {name: [] for name in names.values()})
    first: dict[str, str] = {}
    dropped = list(table.dropped)
    for line in table.lines:
        image = line.cells['image_id']
        first.setdefault(image, table.where(line))
        for column, name in names.items():
            value = coding.label(line.cells[column])
            if value is None and line.cells[column]:
                dropped.append(Drop(image, table.where(line), f'{column} is neither 0 nor 1 and left blank', 'detail'))
            votes[image][name].append(BLANK if value is None else value)
    return votes, first, dropped


def _name(column: str) -> str:
    """'Nodule/Mass' -> 'nodule_mass'; the tables disagree on the plural of one."""
    name = column.lower().replace('/', '_').replace(' ', '_')
    return 'other_diseases' if name == 'other_disease' else name
