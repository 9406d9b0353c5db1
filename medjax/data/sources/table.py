"""A folder with metadata.csv and the images that it names: PNG, JPEG (8 or 16 bit), DICOM.

Recognised columns: image (required), patient_id, study_id, split, text, age, sex, view, mask, license.
Labels: the named columns; by default those that hold only 0, 1, -1 (uncertain) or nothing. A DICOM file of several
frames gives a record for each, and what the table does not say of age, sex and view is taken from its header. Ages
above 90 are told as 90, those that nobody reaches are left out; sexes are told as M and F where the word is known.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping

from medjax.data.images import dicom
from medjax.data.releases import coding, folders, tables
from medjax.data.releases.tables import Line, Table
from medjax.data.types import BLANK, Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError, suggest

RECOGNISED = ('image', 'patient_id', 'study_id', 'split', 'text', 'age', 'sex', 'view', 'mask', 'license')
MOST_VALUES = 100  # a text column with more values than this is no label
LAYOUT = (
    'the folder that holds metadata.csv and its images; the table has a line for each image, at least the column image'
)

Label = Callable[[Mapping[str, str]], int]  # cells -> 1, 0, -1 or -2


def arguments(parser: argparse.ArgumentParser) -> None:
    folders.arguments(parser, 'holds metadata.csv and its images')
    parser.add_argument('--labels', help='columns, separated by commas; a text column gives one label per value')
    parser.add_argument('--namespace', help="tables with one namespace share their patients' ids (default: DIR's name)")


def source(folder: str, labels: str | None = None, size: int | None = None, namespace: str | None = None) -> Source:
    """The table as a source; lines that cannot be used are set aside with a reason, `UserError` where none can be."""
    root = folders.release_folder(folder, 'metadata.csv', layout=LAYOUT)
    table = tables.read_table(root / 'metadata.csv', ['image'], lower=RECOGNISED)
    lines, files, unusable = _usable(root, table)
    names, label_of = _labels(lines, table.columns, labels)
    pictures = [picture for n, file in enumerate(files) for picture in _pictures(n, file)]
    entries = [
        _entry(table.where(lines[n]), lines[n].cells, frame, _stamp(root, files[n], lines[n].cells))
        for n, frame in pictures
    ]

    def label(i: int) -> list[int]:
        return [of(lines[pictures[i][0]].cells) for of in label_of]

    def load(i: int) -> Example:
        n, frame = pictures[i]
        cells, data = lines[n].cells, folders.content(files[n])
        mask, note = _mask(root, cells.get('mask', '')) if frame is None else (None, '')
        if frame is not None and cells.get('mask'):
            note = 'the mask is left out: it cannot be told which of the frames it belongs to'
        age, sex = coding.age(cells.get('age', '')), _sex(cells.get('sex', ''))
        told = coding.known(sex=sex, view=cells.get('view'), license=cells.get('license'), age=age)
        facts = (dicom.attributes(data) if dicom.looks_like(data) else {}) | told
        return Example(
            image=data,
            frame=frame or 0,
            role=coding.role(str(facts.get('view', ''))),
            text={'report': cells['text']} if cells.get('text') else {},
            attributes=facts,
            mask=mask,
            note=note,
        )

    space = namespace or root.name
    licenses = sorted({line.cells['license'] for line in lines if line.cells.get('license')})
    return Source(
        name=root.name, version='1', namespace=space, labels=names, license='; '.join(licenses), size=size,
        entries=entries, label=label, load=load, dropped=[*table.dropped, *unusable],
        notes=_notes(table.columns, lines, names),
    )  # fmt: skip


def _usable(root: pathlib.Path, table: Table) -> tuple[list[Line], list[pathlib.Path], list[Drop]]:
    """The lines whose image may be opened, their files, and the others with a reason."""
    lines = table.lines
    split_given = any(line.cells.get('split') for line in lines)
    if wrong := {s for line in lines if (s := line.cells.get('split', '')) and s.lower() not in folders.SPLITS}:
        raise UserError(
            f'metadata.csv: the column split holds {", ".join(map(repr, sorted(wrong)[:3]))}; use train, val or test'
        )
    usable, files, dropped = [], [], []
    first: dict[pathlib.Path, Line] = {}
    for line in lines:
        cell = line.cells['image']
        try:
            file = folders.inside(root, cell)
            if file in first:
                same = 'again' if line.cells == first[file].cells else 'again with other values'
                raise Unreadable(f'the image of line {first[file].number} {same}')
            if split_given and not line.cells['split']:
                raise Unreadable('the split is blank although other lines have one')
        except Unreadable as error:
            dropped.append(Drop(cell, table.where(line), str(error)))
            continue
        first[file] = line
        usable.append(line)
        files.append(file)
    return usable, files, dropped


def _pictures(n: int, file: pathlib.Path) -> list[tuple[int, int | None]]:
    """(line, None) for a file of one picture; (line, frame) for each frame of a DICOM file of several."""
    count = folders.frames(file)
    return [(n, frame) for frame in range(count)] if count > 1 else [(n, None)]


def _entry(where: str, cells: Mapping[str, str], frame: int | None, stamp: str) -> Entry:
    """Ids as they are; a study number means something only within its patient; blanks stand alone."""
    image, patient = cells['image'], cells.get('patient_id') or None
    study = f'{patient or ""}/{cells["study_id"]}' if cells.get('study_id') else f'image/{image}'
    which = '' if frame is None else f' frame {frame + 1}'
    split = folders.SPLITS.get(cells.get('split', '').lower())
    return Entry(image + which, patient, study, split, where + which, stamp=stamp)


def _stamp(root: pathlib.Path, file: pathlib.Path, cells: Mapping[str, str]) -> str:
    """Of the image and of its mask."""
    try:
        return folders.stamp(file, folders.inside(root, cells['mask'])) if cells.get('mask') else folders.stamp(file)
    except Unreadable:  # the mask is left out
        return folders.stamp(file)


def _labels(lines: list[Line], columns: list[str], named: str | None) -> tuple[tuple[str, ...], list[Label]]:
    """Names of the labels and, for each, the function from a line's cells to 1, 0, -1 or -2."""
    values = {name: Counter(line.cells[name] for line in lines if line.cells[name]) for name in columns}
    number = {name for name in columns if values[name] and all(coding.label(cell) is not None for cell in values[name])}
    if named is None:
        chosen = [name for name in columns if name in number and name not in RECOGNISED]
    else:
        chosen = list(dict.fromkeys(_column(name) for name in named.split(',') if name.strip()))
    names: list[str] = []
    functions: list[Label] = []
    for column in chosen:
        if column not in columns:
            raise UserError(f'--labels: metadata.csv has no column {column!r}{suggest(column, columns)}')
        if not values[column]:
            raise UserError(f'--labels: the column {column!r} is empty')
        if column in number:
            names.append(column)
            functions.append(functools.partial(_given, column))
            continue
        if len(values[column]) > MOST_VALUES:
            raise UserError(
                f'--labels: the column {column!r} has {len(values[column])} different values; '
                f'a label column holds 0, 1, -1, or at most {MOST_VALUES} names'
            )
        for value in sorted(values[column]):
            names.append(f'{column}={value}' if value in names or value in chosen else value)
            functions.append(functools.partial(_is, column, value))
    return tuple(names), functions


def _given(column: str, cells: Mapping[str, str]) -> int:
    number = coding.label(cells[column])
    return BLANK if number is None else number


def _is(column: str, value: str, cells: Mapping[str, str]) -> int:
    return int(cells[column] == value) if cells[column] else BLANK


def _sex(cell: str) -> str | None:
    """'M' or 'F' for words that mean so, other words ('O', 'unknown') as they are; no numbers and no sentences."""
    return coding.sex(cell) or (cell if re.fullmatch(r'[^\W\d_]{1,12}', cell) else None)


def _mask(root: pathlib.Path, cell: str) -> tuple[bytes | None, str]:
    """The file of the mask that a line names and '', or None and why it is left out."""
    try:
        return (folders.content(folders.inside(root, cell)) if cell else None), ''
    except Unreadable as error:
        return None, f'the mask is left out: {error}'


def _notes(columns: list[str], lines: list[Line], labels: tuple[str, ...]) -> list[str]:
    without = sum(not line.cells.get('patient_id') for line in lines)
    notes = []
    if without:
        where = f'{without} lines have no patient_id' if 'patient_id' in columns else 'there is no column patient_id'
        notes.append(f'{where}: where splits are drawn, near-duplicates stay together; people may still be in two')
    if not labels:
        notes.append('no labels: no column holds only 0, 1, -1 or nothing; name some with --labels to probe')
    return notes


def _column(cell: str) -> str:
    name = cell.strip()
    return name.lower() if name.lower() in RECOGNISED else name
