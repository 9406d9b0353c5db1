"""What sources share: a folder as it was released is checked, its tables are read, its files are found.

Nothing outside the folder is opened, whatever a table or a link says.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import math
import os
import pathlib
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medjax.data import headers
from medjax.data.sources import Drop, Unreadable
from medjax.errors import UserError, suggest

SPLITS = {'train': 'train', 'val': 'val', 'valid': 'val', 'validate': 'val', 'validation': 'val', 'test': 'test'}
ROLES = dict.fromkeys(('pa', 'ap', 'frontal'), 'frontal') | dict.fromkeys(('l', 'll', 'rl', 'lateral'), 'lateral')


class Line(NamedTuple):
    number: int  # in the file, as an editor shows it
    cells: Mapping[str, str]  # column -> stripped cell


class Table(NamedTuple):
    path: pathlib.Path
    columns: list[str]  # stripped of blanks: releases have ' EncodedPixels'
    lines: list[Line]
    dropped: list[Drop]  # lines with too many or too few cells

    def where(self, line: Line) -> str:
        return f'{self.path.name} line {line.number}'


def arguments(parser: argparse.ArgumentParser, holds: str) -> None:
    """What every source that is a folder takes: the folder and a bound of the size."""
    parser.add_argument('folder', metavar='DIR', help=holds)
    parser.add_argument('--size', type=int, help='bound of the longer side in pixels; never enlarges')


def folder(path: str, *needed: str, layout: str) -> pathlib.Path:
    """The folder of a release, resolved. UserError where it or something `needed` in it is missing; `layout` says in
    words how it looks. A needed name with '|' means one of several."""
    root = pathlib.Path(path).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f'{root} is not a folder; give {layout}')
    for names in needed:
        if not any((root / name).exists() for name in names.split('|')):
            raise UserError(f'{root}: {" or ".join(names.split("|"))} is missing; give {layout}')
    return root


def read_table(path: pathlib.Path, columns: Sequence[str] = (), lower: Sequence[str] = ()) -> Table:
    """A CSV file, perhaps gzipped: UTF-8 or UTF-16, with or without BOM; , ; tab or |. Empty lines are skipped.

    `columns` must be there, or UserError says what is. Names that are in `lower` in any case are lowered.
    """
    head, rows = _rows(path)
    names = [cell.strip().lower() if cell.strip().lower() in lower else cell.strip() for cell in head]
    for name in columns:
        if name not in names:
            raise UserError(f'{path}: the column {name} is missing{suggest(name, names)}')
    if double := [name for name, n in Counter(names).items() if n > 1]:
        raise UserError(f'{path}: the column {double[0]!r} is there twice; give each column its own name')
    table = Table(path, names, [], [])
    for number, row in rows:
        if not any(cell.strip() for cell in row):
            continue  # an empty line
        if len(row) != len(names):
            reason = f'{len(row)} cells where the header has {len(names)}'
            table.dropped.append(Drop('', f'{path.name} line {number}', reason))
            continue
        table.lines.append(Line(number, {name: cell.strip() for name, cell in zip(names, row, strict=True)}))
    return table


def read_list(path: pathlib.Path) -> list[str]:
    """The lines of a text file, stripped, without empty ones: split lists are such files."""
    return [line for raw in _text(path).splitlines() if (line := raw.strip())]


def _rows(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    text = _text(path)
    head = text.split('\n', 1)[0]
    csv.field_size_limit(2**30)  # a long report is no error
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=max(',;\t|', key=head.count))
    try:
        return next(reader, []), [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise UserError(f'{path}, line {reader.line_num}: {error}') from None


def _text(path: pathlib.Path) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == '.gz' else data
        return data.decode('utf-16' if data[:2] in (b'\xff\xfe', b'\xfe\xff') else 'utf-8-sig')
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        raise UserError(f'{path}, line {line}: not UTF-8; save the table as UTF-8') from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{path} cannot be read: {error.__class__.__name__}: {error}') from None


def inside(root: pathlib.Path, name: str) -> pathlib.Path:
    """The file that a cell names, or Unreadable where it is blank, missing or not inside the folder `root`."""
    name = name.replace('\\', '/')
    if not name:
        raise Unreadable('no file is named')
    if '\0' in name:
        raise Unreadable('the path has a zero byte')
    if pathlib.PurePosixPath(name).is_absolute() or pathlib.PureWindowsPath(name).drive:
        raise Unreadable('the path is absolute; paths are relative to the folder')
    if '..' in name.split('/'):
        raise Unreadable("the path leaves the folder ('..')")
    try:
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            raise Unreadable('the path leaves the folder (a symbolic link)')
        if not file.is_file():
            raise Unreadable('there is no such file')
    except (OSError, RuntimeError):  # too long, no permission, links in a circle
        raise Unreadable('the path cannot be followed') from None
    return file


def content(file: pathlib.Path) -> bytes:
    """The bytes of an image file. Raises Unreadable."""
    try:
        if (size := file.stat().st_size) > headers.MOST_BYTES:
            raise Unreadable(f'a file of {size / 2**30:.1f} GB; at most {headers.MOST_BYTES >> 30} GB can be read')
        return file.read_bytes()
    except OSError as error:
        raise Unreadable(f'cannot be opened: {error.strerror}') from None


def stamp(file: pathlib.Path) -> str:
    """Size and time of change, for `Entry.stamp`; '' where that cannot be told."""
    try:
        facts = os.stat(file)
    except OSError:
        return ''
    return f'{facts.st_size} {facts.st_mtime_ns}'


def label(cell: str) -> int | None:
    """0, 1 or -1, also written as 1.0; None for anything else."""
    match = re.fullmatch(r'(-?1|-?0)(\.0*)?', cell)
    return int(match[1]) if match else None


def years(cell: str) -> float | None:
    """An age in years from '61', '61.5' or DICOM's '061Y'; None where it is none of these."""
    try:
        age = float(cell[:-1] if cell[-1:].upper() == 'Y' else cell)
    except ValueError:
        return None
    return age if math.isfinite(age) and age >= 0 else None


def known(**facts: str | float | None) -> dict[str, str | float]:
    """The facts that are known: None and '' left out."""
    return {name: fact for name, fact in facts.items() if fact not in (None, '')}
