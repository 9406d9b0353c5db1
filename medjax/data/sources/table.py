"""A folder with metadata.csv and the images that it names: PNG, JPEG (8 or 16 bit), DICOM.

Recognised columns: image (required), patient_id, study_id, split, text, age, sex, view, mask, license.
Labels: the named columns; by default those that hold only 0, 1, -1 (uncertain) or nothing. A DICOM file of several
frames gives a record for each, and what the table does not say of age, sex and view is taken from its header.
"""

from __future__ import annotations

import argparse
import csv
import functools
import io
import math
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from medjax.data import dicom
from medjax.data.sources import Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError, suggest

RECOGNISED = ('image', 'patient_id', 'study_id', 'split', 'text', 'age', 'sex', 'view', 'mask', 'license')
SPLITS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val', 'test': 'test'}
MOST_VALUES = 100  # a text column with more values than this is no label
ROLES = dict.fromkeys(('pa', 'ap', 'frontal'), 'frontal') | dict.fromkeys(('l', 'll', 'rl', 'lateral'), 'lateral')


class Line(NamedTuple):
    number: int  # in the file, as an editor shows it
    cells: Mapping[str, str]  # column -> stripped cell


Label = Callable[[Mapping[str, str]], int]  # cells -> 1, 0, -1 or -2


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('folder', metavar='DIR', help='holds metadata.csv and its images')
    parser.add_argument('--labels', help='columns, separated by commas; a text column gives one label per value')
    parser.add_argument('--size', type=int, help='bound of the longer side in pixels; never enlarges')
    parser.add_argument('--namespace', help="tables with one namespace share their patients' ids (default: DIR's name)")


def source(folder: str, labels: str | None = None, size: int | None = None, namespace: str | None = None) -> Source:
    """The table as a source; lines that cannot be used are set aside with a reason, `UserError` where none can be."""
    if size is not None and size < 1:
        raise UserError(f'--size {size}: the longer side must have at least one pixel')
    root = pathlib.Path(folder).expanduser().resolve()
    columns, lines, dropped = _lines(root)
    lines, files, more = _usable(root, lines)
    dropped += more
    names, label_of = _labels(lines, columns, labels)
    pictures = [picture for n, file in enumerate(files) for picture in _pictures(n, file)]
    entries = [_entry(lines[n], frame) for n, frame in pictures]

    def load(i: int) -> Example:
        n, frame = pictures[i]
        cells, data = lines[n].cells, _bytes(files[n])
        mask, note = _mask(root, cells.get('mask', '')) if frame is None else (None, '')
        if frame is not None and cells.get('mask'):
            note = 'the mask is left out: it cannot be told which of the frames it belongs to'
        told = {name: cells.get(name, '') for name in ('sex', 'view', 'license')} | {'age': _age(cells.get('age', ''))}
        told = {name: fact for name, fact in told.items() if fact not in ('', None)}
        facts = (dicom.facts(data) if dicom.looks_like(data) else {}) | told
        view = str(facts.get('view', ''))
        return Example(
            image=data,
            frame=frame or 0,
            label=[of(cells) for of in label_of],
            role=ROLES.get(view.lower().split(' ')[0], 'image'),  # 'AP Supine' is frontal
            text={'report': cells['text']} if cells.get('text') else {},
            info=facts,
            mask=mask,
            note=note,
        )

    space = namespace or root.name
    licenses = sorted({line.cells['license'] for line in lines if line.cells.get('license')})
    return Source(
        name=root.name, version='1', namespace=space, labels=names, license='; '.join(licenses), entries=entries,
        load=load, dropped=dropped, notes=_notes(columns, lines, names), size=size,
    )  # fmt: skip


def _lines(root: pathlib.Path) -> tuple[list[str], list[Line], list[Drop]]:
    """Columns, lines and malformed lines of metadata.csv: UTF-8 or UTF-16, with or without BOM; , ; tab or |."""
    path = root / 'metadata.csv'
    if not root.is_dir():
        raise UserError(f'{root} is not a folder; give the folder that holds metadata.csv and its images')
    if not path.is_file():
        raise UserError(f'{path} does not exist; a table has a line for each image, with at least the column image')
    data = path.read_bytes()
    try:
        text = data.decode('utf-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        raise UserError(f'{path}, line {line}: not UTF-8; save the table as UTF-8') from None
    head = text.split('\n', 1)[0]
    delimiter = max(',;\t|', key=head.count)
    csv.field_size_limit(2**30)  # a long report is no error
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter)
    try:
        columns = [_column(cell) for cell in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num}: {error}') from None
    if 'image' not in columns:
        raise UserError(f'{path}: the column image is missing{suggest("image", columns)}')
    if double := [name for name, n in Counter(columns).items() if n > 1]:
        raise UserError(f'{path}: the column {double[0]!r} is there twice; give each column its own name')
    lines, dropped = [], []
    for number, row in rows:
        if not any(cell.strip() for cell in row):
            continue  # an empty line
        if len(row) != len(columns):
            reason = f'{len(row)} cells where the header has {len(columns)}'
            dropped.append(Drop('', _where(number), reason))
            continue
        lines.append(Line(number, {name: cell.strip() for name, cell in zip(columns, row, strict=True)}))
    return columns, lines, dropped


def _usable(root: pathlib.Path, lines: list[Line]) -> tuple[list[Line], list[pathlib.Path], list[Drop]]:
    """The lines whose image may be opened, their files, and the others with a reason."""
    split_given = any(line.cells.get('split') for line in lines)
    if wrong := {s for line in lines if (s := line.cells.get('split', '')) and s.lower() not in SPLITS}:
        raise UserError(
            f'metadata.csv: the column split holds {", ".join(map(repr, sorted(wrong)[:3]))}; use train, val or test'
        )
    usable, files, dropped = [], [], []
    first: dict[pathlib.Path, Line] = {}
    for line in lines:
        cell = line.cells['image'].replace('\\', '/')
        try:
            file = _inside(root, cell)
            if file in first:
                same = 'again' if line.cells == first[file].cells else 'again with other values'
                raise Unreadable(f'the image of line {first[file].number} {same}')
            if split_given and not line.cells['split']:
                raise Unreadable('the split is blank although other lines have one')
        except Unreadable as error:
            dropped.append(Drop(cell, _where(line.number), str(error)))
            continue
        first[file] = line
        usable.append(line)
        files.append(file)
    return usable, files, dropped


def _inside(root: pathlib.Path, cell: str) -> pathlib.Path:
    """The file that a cell names, or Unreadable where it is blank, missing or not inside the folder."""
    if not cell:
        raise Unreadable('no file is named')
    if '\0' in cell:
        raise Unreadable('the path has a zero byte')
    if pathlib.PurePosixPath(cell).is_absolute() or pathlib.PureWindowsPath(cell).drive:
        raise Unreadable('the path is absolute; paths are relative to the folder')
    if '..' in cell.split('/'):
        raise Unreadable("the path leaves the folder ('..')")
    try:
        file = (root / cell).resolve()
        if not file.is_relative_to(root):
            raise Unreadable('the path leaves the folder (a symbolic link)')
        if not file.is_file():
            raise Unreadable('there is no such file')
    except (OSError, RuntimeError):  # too long, no permission, links in a circle
        raise Unreadable('the path cannot be followed') from None
    return file


def _pictures(n: int, file: pathlib.Path) -> list[tuple[int, int | None]]:
    """(line, None) for a file of one picture; (line, frame) for each frame of a DICOM file of several."""
    if file.suffix.lower() in ('.png', '.jpg', '.jpeg'):
        return [(n, None)]
    try:
        with file.open('rb') as opened:
            count = dicom.frames(opened.read()) if dicom.looks_like(opened.read(132)) and not opened.seek(0) else 1
    except OSError:  # told when it is loaded
        count = 1
    return [(n, frame) for frame in range(count)] if count > 1 else [(n, None)]


def _entry(line: Line, frame: int | None) -> Entry:
    """Ids as they are; a study number means something only within its patient; blanks stand alone."""
    cells = line.cells
    image = cells['image']
    patient = cells.get('patient_id') or f'image/{image}'
    study = f'{patient}/{cells["study_id"]}' if cells.get('study_id') else f'image/{image}'
    which = '' if frame is None else f' frame {frame + 1}'
    return Entry(image + which, patient, study, SPLITS.get(cells.get('split', '').lower()), _where(line.number) + which)


def _labels(lines: list[Line], columns: list[str], named: str | None) -> tuple[tuple[str, ...], list[Label]]:
    """Names of the labels and, for each, the function from a line's cells to 1, 0, -1 or -2."""
    values = {name: Counter(line.cells[name] for line in lines if line.cells[name]) for name in columns}
    number = {name for name in columns if values[name] and all(_number(cell) is not None for cell in values[name])}
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
    number = _number(cells[column])
    return -2 if number is None else number


def _is(column: str, value: str, cells: Mapping[str, str]) -> int:
    return int(cells[column] == value) if cells[column] else -2


def _mask(root: pathlib.Path, cell: str) -> tuple[bytes | None, str]:
    """The file of the mask that a line names and '', or None and why it is left out."""
    try:
        return (_bytes(_inside(root, cell.replace('\\', '/'))) if cell else None), ''
    except Unreadable as error:
        return None, f'the mask is left out: {error}'


def _bytes(file: pathlib.Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Unreadable(f'cannot be opened: {error.strerror}') from None


def _notes(columns: list[str], lines: list[Line], labels: tuple[str, ...]) -> list[str]:
    without = sum(not line.cells.get('patient_id') for line in lines)
    notes = []
    if without:
        where = f'{without} lines have no patient_id' if 'patient_id' in columns else 'there is no column patient_id'
        notes.append(f'{where}: each such image counts as a patient of its own, so splits may share people')
    if not labels:
        notes.append('no labels: no column holds only 0, 1, -1 or nothing; name some with --labels to probe')
    return notes


def _column(cell: str) -> str:
    name = cell.strip()
    return name.lower() if name.lower() in RECOGNISED else name


def _number(cell: str) -> int | None:
    """0, 1 or -1, also written as 1.0; None for anything else."""
    match = re.fullmatch(r'(-?1|-?0)(\.0*)?', cell)
    return int(match[1]) if match else None


def _age(cell: str) -> float | None:
    """Years from '61', '61.5' or DICOM's '061Y'; None where it is none of these."""
    try:
        years = float(cell[:-1] if cell[-1:].upper() == 'Y' else cell)
    except ValueError:
        return None
    return years if math.isfinite(years) and years >= 0 else None


def _where(number: int) -> str:
    return f'metadata.csv line {number}'
