"""Tables, lists and JSON files of a release, read with sentences for what is wrong in them."""

from __future__ import annotations

import contextlib
import contextvars
import csv
import gzip
import io
import itertools
import json
import pathlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from medjax.data.releases.folders import stamp
from medjax.data.types import Drop, Unreadable
from medjax.errors import UserError, suggest

LONGEST = 64 << 20  # bytes of a line of JSON


class Line(NamedTuple):
    number: int  # in the file, as an editor shows it
    cells: Mapping[str, str]  # column -> stripped cell


class Table(NamedTuple):
    path: pathlib.Path
    columns: list[str]  # stripped of blanks: releases have ' EncodedPixels'
    lines: list[Line]
    dropped: list[Drop]  # lines with too many or too few cells

    def where(self, line: Line) -> str:
        """The name of a line in the list of drops: 'metadata.csv line 17'."""
        return f'{self.path.name} line {line.number}'

    def by(self, key: str | Callable[[Line], str]) -> dict[str, list[Line]]:
        """Cell -> its lines, in the order of the table. `key` is a column, or a function of a line."""
        lines: dict[str, list[Line]] = {}
        for line in self.lines:
            lines.setdefault(line.cells[key] if isinstance(key, str) else key(line), []).append(line)
        return lines


class ImageLines(NamedTuple):
    """All lines of a table that describe one image, and the image's file."""

    image: str
    file: str  # relative to the folder of the release
    where: str  # the first line, as the list of drops calls it
    lines: list[Line]

    @property
    def cells(self) -> Mapping[str, str]:
        """The cells of the first line."""
        return self.lines[0].cells

    @property
    def shared_cells(self) -> dict[str, str]:
        """Column -> cell, for the columns in which all lines agree."""
        return {name: cell for name, cell in self.cells.items() if all(line.cells[name] == cell for line in self.lines)}


def by_image(
    table: Table, key: str | Callable[[Line], str], files: Mapping[str, str], patient: str | None = None
) -> tuple[list[ImageLines], list[Drop]]:
    """Joins the lines that describe the same image; releases give an image several lines.

    `key` names the image: a column, or a function of a line. `files` maps an image to its file. An image without a
    file is a drop, and so is an image whose lines differ in the column `patient`. Every image that the table names is
    in one of the two lists.
    """
    images, dropped = [], []
    for image, lines in table.by(key).items():
        where = table.where(lines[0])
        if image not in files:
            dropped.append(Drop(image, where, 'there is no such file' if image else 'no file is named'))
        elif patient and len({line.cells[patient] for line in lines}) > 1:
            dropped.append(Drop(image, where, 'its lines name several patients'))
        else:
            images.append(ImageLines(image, files[image], where, lines))
    return images, dropped


_reads: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar('reads', default=None)


@contextlib.contextmanager
def recorded_reads() -> Iterator[list[str]]:
    """Records the tables and lists that are read within the block: 'name stamp' of each, in the order of reading.

    Labels and texts come from these files, but the stamp of an entry is that of its image alone. A build that goes on
    after a stop compares the recorded stamps, and starts anew if a table has changed. Every function of this module
    that reads a file records it, so that sources, a user's own too, need no extra argument for this.
    """
    reads: list[str] = []
    token = _reads.set(reads)
    try:
        yield reads
    finally:
        _reads.reset(token)


def record_read(path: pathlib.Path) -> None:
    """Tells `recorded_reads` that a file is read. Sources call this for a file that they open themselves."""
    if (reads := _reads.get()) is not None:
        reads.append(f'{path.name} {stamp(path)}')


def read_table(path: pathlib.Path, columns: Sequence[str] = (), lower: Sequence[str] = ()) -> Table:
    """A CSV file, perhaps gzipped: UTF-8, or UTF-16 with its BOM; , ; tab or |. Empty lines are skipped. A quoted cell
    may have line breaks, and quotes that are doubled.

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
    return [line for _, line in numbered(path)]


def numbered(path: pathlib.Path) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers, stripped, without empty ones."""
    return [(n, line) for n, raw in enumerate(_text(path).split('\n'), 1) if (line := raw.strip())]


def json_lines(path: pathlib.Path) -> Iterator[tuple[int, int, dict[str, Any] | str]]:
    """(number, where it begins in bytes, object or why it is none) of each line of a .jsonl file.

    Such files have millions of lines with long texts: keep of an object what you need, and read the rest again with
    `json_line`. UserError where not one line is an object, or one is too long for such a file.
    """
    record_read(path)
    at, good = 0, 0
    try:
        with path.open('rb') as file:
            for number in itertools.count(1):
                raw = file.readline(LONGEST)
                if not raw:
                    break
                if len(raw) == LONGEST:
                    raise UserError(f'{path}, line {number}: longer than {LONGEST >> 20} MB; give one object a line')
                if raw.strip():
                    try:
                        yield number, at, _object(raw)
                        good += 1
                    except Unreadable as error:
                        yield number, at, str(error)
                at += len(raw)
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    if not good:
        raise UserError(f'{path}: no line of it is a JSON object; give JSON lines, one object on each')


def json_line(path: pathlib.Path, at: int) -> dict[str, Any]:
    """The object on the line that begins at byte `at`."""
    try:
        with path.open('rb') as file:
            file.seek(at)
            return _object(file.readline())
    except OSError as error:
        raise Unreadable(f'{path.name} cannot be read again: {error.strerror}') from None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode('utf-8-sig'))
    except (ValueError, RecursionError):
        raise Unreadable('the line is no JSON') from None
    if not isinstance(value, dict):
        raise Unreadable('the line is no JSON object')
    return value


def _rows(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    text = _text(path)
    head = text.split('\n', 1)[0]
    csv.field_size_limit(2**30)  # a long report is no error
    delimiter = max(',;\t|', key=head.count)
    # strict: a quote that is never closed would swallow all lines below it as one cell
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    names: list[str] = []
    rows: list[tuple[int, list[str]]] = []
    begins = 1  # the line that the row begins in; it ends in reader.line_num
    try:
        names = next(reader, [])
        begins = reader.line_num + 1
        for row in reader:
            rows.append((reader.line_num, row))
            begins = reader.line_num + 1
    except csv.Error as error:
        if 'unexpected end' in str(error):
            why = 'a quote opens there and is never closed; close it, or double each quote within a cell'
        elif 'expected after' in str(error):
            why = f'something other than {delimiter!r} follows a closed quote; double each quote within a cell'
        else:
            why = str(error)
        raise UserError(f'{path}, line {begins}: {why}') from None
    return names, rows


def _text(path: pathlib.Path) -> str:
    record_read(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == '.gz' else data
        if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
            return data.decode('utf-16')
        zeros = sorted(data[start:4096:2].count(0) for start in (0, 1))  # UTF-16 has one in each Latin letter
        if zeros[0] == 0 and 4 * zeros[1] > len(data[:4096]):
            raise UserError(f'{path} looks like UTF-16 without a byte order mark; save it as UTF-8')
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        raise UserError(f'{path}, line {line}: not UTF-8; save the table as UTF-8') from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{path} cannot be read: {error.__class__.__name__}: {error}') from None


def read_json(path: pathlib.Path) -> Any:
    """The content of a JSON file; UserError where it is none."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else 'nested too deeply'
        raise UserError(f'{path} is no JSON file that can be read ({reason}); copy it again') from None
