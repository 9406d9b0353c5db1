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
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.tables import Line, Table
from medjax.data.types import BLANK, Drop, Entry, Example, Source
from medjax.errors import UserError

LICENSE = 'PhysioNet credentialed 1.5.0'
LAYOUT = 'the folder that holds train/, test/ and annotations/ of VinDr-CXR 1.0.0'
SPLITS = ('official', 'benchx')
TABLES = {split: f'annotations/image_labels_{split}.csv' for split in ('train', 'test')}
NO_LABEL = ('image_id', 'rad_id')


class Film(NamedTuple):
    """An image of a table whose file is there."""

    entry: Entry
    labels: dict[str, int]
    file: str


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'official') -> Source:
    root = folders.release_folder(folder, '|'.join(TABLES.values()), layout=LAYOUT)
    benchx = published_splits.read_split(root, 'benchx', 'from yangzhou12/BenchX') if split == 'benchx' else {}
    stamps = folders.files(root, '.dicom', '.dcm')
    notes: list[str] = []
    dropped: list[Drop] = []
    films: dict[str, Film] = {}
    names: dict[str, None] = {}  # in the tables' order
    tabled: dict[str, str] = {}  # image -> split, as the tables have it
    for part, name in TABLES.items():
        if not (root / name).is_file():
            notes.append(f'{name} is missing: no {part} image is in the data set')
            continue
        table = tables.read_table(root / name, ['image_id'])
        files = {
            path.removeprefix(f'{part}/').removesuffix('.dicom'): path for path in stamps if path.startswith(f'{part}/')
        }
        images, unusable = tables.by_image(table, 'image_id', files)
        dropped += [*table.dropped, *unusable]
        for image, path, where, lines in images:
            if image in films:
                dropped.append(Drop(image, where, 'the image is in both tables'))
                continue
            if benchx and image not in benchx:
                dropped.append(Drop(image, where, 'in no list of the split benchx'))
                continue
            labels, wrong = _labels(table, image, lines)
            dropped += wrong
            names |= dict.fromkeys(labels)
            entry = Entry(image, None, f'image/{image}', benchx.get(image, part), where, stamp=stamps[path])
            films[image] = Film(entry, labels, path)
        notes += folders.not_named(files.values(), {image.file for image in images}, name)
        tabled |= dict.fromkeys(table.by('image_id'), part)
    if not films:
        raise UserError(f'{root}: none of the images that the tables name is there; give {LAYOUT}')
    differ = published_splits.differences(f'vindr_cxr/{split}', (benchx or tabled).items()) if split in SPLITS else []
    notes += differ
    in_order = list(films.values())

    def load(i: int) -> Example:
        data = folders.content(folders.inside(root, in_order[i].file))
        return Example(data, 'frontal', info=dicom.facts(data))

    notes += [
        'no patients are named: where splits are drawn, near-duplicates stay together; people may still be in two',
        'boxes are left out: a record holds one mask',
    ]
    return Source(
        name='vindr_cxr', version='1', namespace='vindr_cxr', labels=tuple(names), license=LICENSE, size=size,
        entries=[film.entry for film in in_order],
        label=lambda i: [in_order[i].labels.get(name, BLANK) for name in names],
        load=load, dropped=dropped, notes=notes,
        splits=published_splits.named(f'vindr_cxr/{split}', differ) if split in SPLITS else '',
    )  # fmt: skip


def _labels(table: Table, image: str, lines: list[Line]) -> tuple[dict[str, int], list[Drop]]:
    """The labels on which all readers of an image agree, and a drop for each cell that holds neither 0 nor 1."""
    labels, dropped = {}, []
    for column in table.columns:
        if column in NO_LABEL:
            continue
        readings = [coding.label(line.cells[column]) for line in lines]
        labels[_name(column)] = coding.fuse(BLANK if reading is None else reading for reading in readings)
        for line, reading in zip(lines, readings, strict=True):
            if reading is None and line.cells[column]:
                reason = f'{column} is neither 0 nor 1 and left blank'
                dropped.append(Drop(image, table.where(line), reason, 'part'))
    return labels, dropped


def _name(column: str) -> str:
    """'Nodule/Mass' -> 'nodule_mass'; the tables disagree on the plural of one."""
    name = column.lower().replace('/', '_').replace(' ', '_')
    return 'other_diseases' if name == 'other_disease' else name
