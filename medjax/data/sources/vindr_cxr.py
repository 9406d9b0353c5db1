"""VinDr-CXR 1.0.0 of PhysioNet: 18,000 frontal DICOM films; three radiologists read each film of train.

    DIR/train/<image_id>.dicom, DIR/test/<image_id>.dicom
    DIR/annotations/image_labels_train.csv    image_id, rad_id, 28 findings and diagnoses as 0/1: one reader a line
    DIR/annotations/image_labels_test.csv     image_id, the same 28: one image a line, by consensus

or as Kaggle's competition has it (vinbigdata-chest-xray-abnormalities-detection), also with PNG or JPEG files:

    DIR/train.csv        image_id, class_name, class_id, rad_id, x_min, …: one box a line, or 'No finding'
    DIR/train/, DIR/test/    perhaps with folders inside

Splits: `official` is train 15,000 / test 3,000. `benchx` is 12,000 / 3,000 / 3,000, from lists of yangzhou12/BenchX
that you put at DIR/benchx/train.txt, val.txt and test.txt.
Labels: in train, the code on which all readers of an image agree, else conflicting; in test, the consensus. A label is
blank if its table lacks the column. In Kaggle's table, a reader who drew no box of a finding saw none; test images have
no labels there: all are blank. The boxes of annotations_*.csv are of 22 kinds and do not fit the one mask of a
record, so they are left out.
Patients: no table names them. So people may be in two splits.
Traps: train has 45,000 lines for 15,000 images. 'Other diseases' in train is 'Other disease' in test. Films with
inverted greys (MONOCHROME1) are inverted back.

Checked: the image ids of both splits (BenchX's lists, and the Kaggle table in mlmed/torchxrayvision: 15,000 images with
three readers each); that the column differs between the tables, and the suffix of the files (loaders of several public
repositories).
Recalled, not checked: that all films are PA, on which the role 'frontal' rests.
Licence (recalled): PhysioNet credentialed 1.5.0.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, published_splits, tables
from medjax.data.releases.tables import Line, Table
from medjax.data.types import BLANK, Drop, Entry, Example, Source
from medjax.errors import UserError

LICENSE = 'PhysioNet credentialed 1.5.0'
LAYOUT = (
    "the folder that holds train/, test/ and annotations/ of VinDr-CXR 1.0.0, or Kaggle's train/, test/ and train.csv"
)
SPLITS = ('official', 'benchx')
TABLES = {split: f'annotations/image_labels_{split}.csv' for split in ('train', 'test')}
NO_LABEL = ('image_id', 'rad_id')
KAGGLE_TABLE = 'train.csv'
SUFFIXES = ('.dicom', '.dcm', '.png', '.jpg', '.jpeg')


class Film(NamedTuple):
    """An image that a table names and whose file is there."""

    entry: Entry
    labels: dict[str, int]
    file: str


@dataclasses.dataclass(frozen=True)
class Release:
    """The usable images, in the order of the entries."""

    root: pathlib.Path
    films: list[Film]
    names: tuple[str, ...]  # of the labels, in the order of the tables

    def label(self, i: int) -> list[int]:
        """The code of each label of image i."""
        labels = self.films[i].labels
        return [labels.get(name, BLANK) for name in self.names]

    def load(self, i: int) -> Example:
        """Reads image i. Raises Unreadable."""
        data = folders.read_bytes(folders.inside(self.root, self.films[i].file))
        return Example(data, 'frontal', attributes=dicom.attributes(data) if dicom.looks_like(data) else {})


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR and --size."""
    folders.add_arguments(parser, LAYOUT)


def source(folder: str, size: int | None = None, split: str = 'official') -> Source:
    """The source of the release in `folder`. UserError if both tables, a list of `split` or all images are missing."""
    root = folders.release_folder(folder, '|'.join([*TABLES.values(), KAGGLE_TABLE]), layout=LAYOUT)
    benchx = published_splits.read_lists(root, 'benchx', 'from yangzhou12/BenchX') if split == 'benchx' else {}
    stamps = folders.files(root, *SUFFIXES)
    films: dict[str, Film] = {}
    table_split: dict[str, str] = {}  # image -> the split of its table
    notes: list[str] = []
    dropped: list[Drop] = []
    for name, path in TABLES.items():
        table = _table(root, name, stamps)
        if table is None:
            notes.append(f'{path} is missing: no {name} image is in the data set')
            continue
        table_split |= dict.fromkeys(table.by('image_id'), name)
        unusable, unlisted = _read_table(table, name, stamps, benchx, films)
        dropped += unusable
        notes += unlisted
    if not films:
        raise UserError(f'{root}: none of the images that the tables name is there; give {LAYOUT}')
    list_name = ''
    if split in SPLITS:
        differences = published_splits.differences(f'vindr_cxr/{split}', (benchx or table_split).items())
        list_name = published_splits.list_name(f'vindr_cxr/{split}', differences)
        notes += differences
    notes += [
        'no patients are named: where splits are drawn, near-duplicates stay together; people may still be in two',
        'boxes are left out: a record holds one mask',
    ]
    names = dict.fromkeys(name for film in films.values() for name in film.labels)
    release = Release(root, list(films.values()), tuple(names))
    return Source(
        name='vindr_cxr', version='1', namespace='vindr_cxr', labels=release.names, license=LICENSE, size=size,
        entries=[film.entry for film in release.films], label=release.label, load=release.load, dropped=dropped,
        notes=notes, splits=list_name,
    )  # fmt: skip


def _table(root: pathlib.Path, split: str, stamps: Mapping[str, str]) -> Table | None:
    """The table of a split, in the form of PhysioNet; None if it is missing.

    Kaggle's table becomes one line for each image and reader, with a column of 0 and 1 for each class. Its test images
    have no table: their table here has no labels.
    """
    if (root / TABLES[split]).is_file():
        return tables.read_table(root / TABLES[split], ['image_id'])
    path = root / KAGGLE_TABLE
    if not path.is_file() or any((root / table).is_file() for table in TABLES.values()):
        return None
    if split == 'test':
        images = [_image(file, split) for file in stamps if file.startswith(f'{split}/')]
        lines = [Line(number, {'image_id': image}) for number, image in enumerate(images, 1)]
        return Table(root / 'test', ['image_id'], lines, []) if images else None
    boxes = tables.read_table(path, ['image_id', 'class_name', 'rad_id'])
    classes = sorted({line.cells['class_name'] for line in boxes.lines} - {''}, key=str.casefold)
    lines = []
    readers = boxes.by(lambda line: f'{line.cells["image_id"]}/{line.cells["rad_id"]}')
    for group in readers.values():
        found = {line.cells['class_name'] for line in group}
        cells = {name: group[0].cells[name] for name in NO_LABEL} | {name: str(int(name in found)) for name in classes}
        lines.append(Line(group[0].number, cells))
    return Table(path, [*NO_LABEL, *classes], lines, boxes.dropped)


def _image(file: str, split: str) -> str:
    """'train/0a1b.dicom' and 'train/train/0a1b.dicom' -> '0a1b'"""
    name = file.removeprefix(f'{split}/').rpartition('/')[2]
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def _read_table(
    table: Table, split: str, stamps: Mapping[str, str], benchx: Mapping[str, str], films: dict[str, Film]
) -> tuple[list[Drop], list[str]]:
    """Adds the images of the table of a split to `films`. Returns drops, and notes on files that it does not list.

    stamps: file -> stamp. benchx: image -> split in the lists of BenchX; {} for other splits.
    """
    present = [file for file in stamps if file.startswith(f'{split}/')]
    files = {_image(file, split): file for file in present}
    images, unusable = tables.by_image(table, 'image_id', files)
    dropped = [*table.dropped, *unusable]
    for image, file, where, lines in images:
        if image in films:
            dropped.append(Drop(image, where, 'the image is in both tables'))
            continue
        if benchx and image not in benchx:
            dropped.append(Drop(image, where, 'not in the lists of the split benchx'))
            continue
        labels, invalid = _labels(table, image, lines)
        dropped += invalid
        entry = Entry(image, None, f'image/{image}', benchx.get(image, split), where, stamp=stamps[file])
        films[image] = Film(entry, labels, file)
    return dropped, folders.unlisted_notes(present, {image.file for image in images}, _name(table))


def _name(table: Table) -> str:
    return next((name for name in TABLES.values() if name.rpartition('/')[2] == table.path.name), table.path.name)


def _labels(table: Table, image: str, lines: list[Line]) -> tuple[dict[str, int], list[Drop]]:
    """The labels on which all readers of an image agree, and a drop for each cell that holds neither 0 nor 1."""
    labels, dropped = {}, []
    for column in table.columns:
        if column in NO_LABEL:
            continue
        codes = [coding.label_code(line.cells[column]) for line in lines]
        labels[_label_name(column)] = coding.combine(BLANK if code is None else code for code in codes)
        for line, code in zip(lines, codes, strict=True):
            if code is None and line.cells[column]:
                reason = f'{column} is neither 0 nor 1 and left blank'
                dropped.append(Drop(image, table.where(line), reason, 'detail'))
    return labels, dropped


def _label_name(column: str) -> str:
    """'Nodule/Mass' -> 'nodule_mass'; the two tables differ in the plural of 'Other disease'."""
    name = column.lower().replace('/', '_').replace(' ', '_')
    return 'other_diseases' if name == 'other_disease' else name
