"""A folder with metadata.csv and the images that it names: PNG, JPEG (8 or 16 bit), DICOM.

    DIR/metadata.csv     image,patient_id,split,text,age,sex,view,effusion,nodule
    DIR/…                the images, at the paths that the column image names

Recognised columns: image (required), patient_id, study_id, split, text, age, sex, view, mask, license. A DICOM file
with several frames gives a record for each. Age, sex and view come from its header if the table does not have them.
Ages above 90 are stored as 90, and impossible ones are left out. Words for male and female are stored as M and F.

Splits: the column split (train, val or test). Without it they are drawn per patient.
Labels: the columns that --labels names. By default, the columns that hold only 0, 1, -1 (uncertain) or nothing.
Patients: the column patient_id. Without it, near-duplicates stay together where splits are drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, tables
from medjax.data.releases.tables import Line, Table
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError, suggest

RECOGNISED = ('image', 'patient_id', 'study_id', 'split', 'text', 'age', 'sex', 'view', 'mask', 'license')
MOST_VALUES = 100  # a text column with more values cannot be a label
LAYOUT = (
    'the folder that holds metadata.csv and its images; the table has a line for each image, at least the column image'
)

Label = Callable[[Mapping[str, str]], int]  # cells -> 1, 0, -1 or -2


class Picture(NamedTuple):
    """One picture: the file of a line, or a frame of it."""

    line: Line
    file: pathlib.Path
    frame: int | None  # None for a file with one picture


@dataclasses.dataclass(frozen=True)
class Release:
    """The pictures, in the order of the entries."""

    root: pathlib.Path
    pictures: list[Picture]
    functions: list[Label]  # one for each label

    def label(self, i: int) -> list[int]:
        """The code of each label of picture i."""
        cells = self.pictures[i].line.cells
        return [function(cells) for function in self.functions]

    def load(self, i: int) -> Example:
        """Reads picture i, its mask and its text. Raises Unreadable."""
        line, file, frame = self.pictures[i]
        cells, data = line.cells, folders.read_bytes(file)
        mask, note = _mask(self.root, cells.get('mask', '')) if frame is None else (None, '')
        if frame is not None and cells.get('mask'):
            note = 'the mask is left out: the table does not say which of the frames it belongs to'
        age, sex = coding.age(cells.get('age', '')), _sex(cells.get('sex', ''))
        attributes = dicom.attributes(data) if dicom.looks_like(data) else {}
        attributes |= coding.filled(sex=sex, view=cells.get('view'), license=cells.get('license'), age=age)
        return Example(
            image=data,
            frame=frame or 0,
            role=coding.role(str(attributes.get('view', ''))),
            text={'report': cells['text']} if cells.get('text') else {},
            attributes=attributes,
            mask=mask,
            note=note,
        )


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds DIR, --size, --labels and --namespace."""
    folders.add_arguments(parser, LAYOUT)
    parser.add_argument(
        '--labels', metavar='A,B', help='columns that are labels; a text column gives one label for each of its values'
    )
    parser.add_argument(
        '--namespace', help="data sets with the same namespace share their patients (default: DIR's name)"
    )


def source(folder: str, labels: str | None = None, size: int | None = None, namespace: str | None = None) -> Source:
    """The source of the table in `folder`. A line that cannot be used becomes a drop with its reason.

    UserError if the table is missing, has no column image, or has an unknown split.
    """
    root = folders.release_folder(folder, 'metadata.csv', layout=LAYOUT)
    table = tables.read_table(root / 'metadata.csv', ['image'], lower=RECOGNISED)
    lines, files, unusable = _usable(root, table)
    names, functions = _labels(lines, table.columns, labels)
    pictures = [picture for line, file in zip(lines, files, strict=True) for picture in _pictures(line, file)]
    entries = [_entry(root, table.where(picture.line), picture) for picture in pictures]

    licenses = sorted({line.cells['license'] for line in lines if line.cells.get('license')})
    release = Release(root, pictures, functions)
    return Source(
        name=root.name, version='1', namespace=namespace or root.name, labels=names, license='; '.join(licenses),
        size=size, entries=entries, label=release.label, load=release.load, dropped=[*table.dropped, *unusable],
        notes=_notes(table.columns, lines, names), draw_namespace=namespace or '',
    )  # fmt: skip


def _usable(root: pathlib.Path, table: Table) -> tuple[list[Line], list[pathlib.Path], list[Drop]]:
    """The lines whose image is there, their files, and a drop for each other line."""
    lines = table.lines
    splits = {line.cells.get('split', '') for line in lines} - {''}
    if unknown := [split for split in sorted(splits) if split.lower() not in folders.SPLIT_SPELLINGS]:
        raise UserError(
            f'metadata.csv: the column split holds {", ".join(map(repr, unknown[:3]))}; use train, val or test'
        )
    usable, files, dropped = [], [], []
    first: dict[pathlib.Path, Line] = {}
    for line in lines:
        cell = line.cells['image']
        try:
            file = folders.inside(root, cell)
            if file in first:
                values = '' if line.cells == first[file].cells else ' with other values'
                raise Unreadable(f'repeats the image of line {first[file].number}{values}')
            if splits and not line.cells['split']:
                raise Unreadable('the split is blank although other lines have one')
        except Unreadable as error:
            dropped.append(Drop(cell, table.where(line), str(error)))
            continue
        first[file] = line
        usable.append(line)
        files.append(file)
    return usable, files, dropped


def _pictures(line: Line, file: pathlib.Path) -> list[Picture]:
    """The pictures in a file: one, or each frame of a DICOM file."""
    count = folders.frame_count(file)
    return [Picture(line, file, frame) for frame in (range(count) if count > 1 else [None])]


def _entry(root: pathlib.Path, where: str, picture: Picture) -> Entry:
    """The entry of a picture. A study_id is a number within a patient; a record without one is a study of its own."""
    cells = picture.line.cells
    image, patient = cells['image'], cells.get('patient_id') or None
    study = f'{patient or ""}/{cells["study_id"]}' if cells.get('study_id') else f'image/{image}'
    suffix = '' if picture.frame is None else f' frame {picture.frame + 1}'
    split = folders.SPLIT_SPELLINGS.get(cells.get('split', '').lower())
    stamp = _stamp(root, picture.file, cells.get('mask', ''))
    return Entry(image + suffix, patient, study, split, where + suffix, stamp=stamp)


def _stamp(root: pathlib.Path, file: pathlib.Path, mask: str) -> str:
    """The stamp of an image and of its mask, if the mask can be used."""
    try:
        return folders.stamp(file, folders.inside(root, mask)) if mask else folders.stamp(file)
    except Unreadable:
        return folders.stamp(file)


def _labels(lines: list[Line], columns: list[str], named: str | None) -> tuple[tuple[str, ...], list[Label]]:
    """The names of the labels and, for each, the function from a line's cells to its code. `named`: --labels."""
    values = {name: Counter(line.cells[name] for line in lines if line.cells[name]) for name in columns}
    coded = {
        name for name in columns if values[name] and all(coding.label_code(cell) is not None for cell in values[name])
    }
    if named is None:
        chosen = [name for name in columns if name in coded and name not in RECOGNISED]
    else:
        chosen = list(dict.fromkeys(_column(name) for name in named.split(',') if name.strip()))
    names: list[str] = []
    functions: list[Label] = []
    for column in chosen:
        if column not in columns:
            raise UserError(f'--labels: metadata.csv has no column {column!r}{suggest(column, columns)}')
        if not values[column]:
            raise UserError(f'--labels: the column {column!r} is empty')
        if column in coded:
            names.append(column)
            functions.append(functools.partial(_code, column))
            continue
        if len(values[column]) > MOST_VALUES:
            raise UserError(
                f'--labels: the column {column!r} has {len(values[column])} different values; '
                f'a label column holds 0, 1, -1, or at most {MOST_VALUES} names'
            )
        for value in sorted(values[column]):
            names.append(f'{column}={value}' if value in names or value in chosen else value)
            functions.append(functools.partial(_equals, column, value))
    return tuple(names), functions


def _code(column: str, cells: Mapping[str, str]) -> int:
    code = coding.label_code(cells[column])
    return BLANK if code is None else code


def _equals(column: str, value: str, cells: Mapping[str, str]) -> int:
    return int(cells[column] == value) if cells[column] else BLANK


def _sex(cell: str) -> str | None:
    """'M' or 'F' if the cell means so. Other single words ('O', 'unknown') stay; numbers and sentences become None."""
    return coding.sex(cell) or (cell if re.fullmatch(r'[^\W\d_]{1,12}', cell) else None)


def _mask(root: pathlib.Path, cell: str) -> tuple[bytes | None, str]:
    """The content of the mask that a line names and '', or None and the reason why the mask is left out."""
    try:
        return (folders.read_bytes(folders.inside(root, cell)) if cell else None), ''
    except Unreadable as error:
        return None, f'the mask is left out: {error}'


def _notes(columns: list[str], lines: list[Line], labels: tuple[str, ...]) -> list[str]:
    """Notes on lines without a patient, and on a table without labels."""
    without = sum(not line.cells.get('patient_id') for line in lines)
    notes = []
    if without:
        where = f'{without} lines have no patient_id' if 'patient_id' in columns else 'there is no column patient_id'
        notes.append(f'{where}: where splits are drawn, near-duplicates stay together; people may still be in two')
    if not labels:
        notes.append('no labels: no column holds only 0, 1, -1 or nothing; name some with --labels to probe')
    return notes


def _column(name: str) -> str:
    """The name of a column in --labels, in lower case if it is a recognised one, as `read_table` does."""
    name = name.strip()
    return name.lower() if name.lower() in RECOGNISED else name
