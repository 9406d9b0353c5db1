"""Reads the tables, lists and JSON files of a release, and says in a sentence what is wrong in them and where."""

from __future__ import annotations

import contextlib
import contextvars
import csv
import gzip
import io
import itertools
import json
import pathlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from medjax.data.releases.folders import stamp
from medjax.data.types import Drop, Unreadable
from medjax.errors import UserError, suggest

LONGEST_LINE = 64 << 20  # bytes of one line of JSON
INVISIBLE = '\u200b\u200c\u200d\u200e\u200f\u2060\ufeff'  # blanks without width, marks of direction and of byte order


class Line(NamedTuple):
    """One line of a table."""

    number: int  # the number that an editor shows
    cells: Mapping[str, str]  # column -> cell, without blanks around it


class Table(NamedTuple):
    """A table that was read."""

    path: pathlib.Path
    columns: list[str]  # without blanks around the names: a release has ' EncodedPixels'
    lines: list[Line]
    dropped: list[Drop]  # lines with too many or too few cells
    twice: frozenset[str] = frozenset()  # columns that the file has twice, with equal cells

    def where(self, line: Line) -> str:
        """The name of a line for the list of drops: 'metadata.csv line 17'."""
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
    where: str  # the first line, for the list of drops
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
    after a stop compares the recorded stamps, and starts anew if a table has changed. The functions of this module
    record what they read by themselves, so a source, or a user's own source, needs no extra argument for this.
    """
    reads: list[str] = []
    token = _reads.set(reads)
    try:
        yield reads
    finally:
        _reads.reset(token)


def record_read(path: pathlib.Path) -> None:
    """Adds a file to `recorded_reads`. A source calls this for a table that it opens without this module."""
    if (reads := _reads.get()) is not None:
        reads.append(f'{path.name} {stamp(path)}')


def read_table(path: pathlib.Path, columns: Sequence[str] = (), lower: Sequence[str] = ()) -> Table:
    """Reads a CSV file, which may be gzipped.

    Encoding: UTF-8, or UTF-16 and UTF-32 with a byte order mark. Separator: comma, semicolon, tab or bar, or what a
    first line 'sep=;' of a spreadsheet names. Empty lines are skipped, and so is a separator at the end of every line.
    Of a cell, what keeps a text from becoming a number in a spreadsheet is left out: ="0017" and '0017 are 0017.
    A quoted cell may have line breaks and doubled quotes. UserError if one of `columns` is missing. Column names that
    equal one of `lower` in any case are lowered. A column that is there twice, as a join leaves it, is read once.
    UserError if the two differ.
    """
    header, lines = _split_lines(path)
    names = [name.lower() if name.lower() in lower else name for name in map(_cell, header)]
    filled = [cells for _, cells in lines if any(cell.strip() for cell in cells)]
    if filled and all(len(cells) == len(names) + 1 and not cells[-1].strip() for cells in filled):
        lines = [(number, cells[: len(names)]) for number, cells in lines]
    for name in columns:
        if name not in names:
            raise UserError(f'{path}: the column {name} is missing{suggest(name, names)}')
    first = {name: at for at, name in reversed(list(enumerate(names)))}
    table = Table(
        path, list(dict.fromkeys(names)), [], [], frozenset(name for name, n in Counter(names).items() if n > 1)
    )
    for number, cells in lines:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            reason = f'{len(cells)} cells where the header has {len(names)}'
            table.dropped.append(Drop('', f'{path.name} line {number}', reason))
            continue
        for name, cell in zip(names, cells, strict=True) if table.twice else ():
            if _cell(cell) != _cell(cells[first[name]]):
                raise UserError(
                    f'{path}: the column {name!r} is there twice, and line {number} differs; '
                    'give each column its own name, or delete one'
                )
        table.lines.append(Line(number, {name: _cell(cells[at]) for name, at in first.items()}))
    return table


def _cell(cell: str) -> str:
    """A cell without blanks and invisible characters at its ends, and without a spreadsheet's marks of a text."""
    cell = cell.strip()
    if not cell.isascii():
        cell = cell.strip(INVISIBLE).strip()
    if cell[:2] == '="' and cell[-1:] == '"' and len(cell) > 3:
        return cell[2:-1].strip()
    return cell[1:] if cell[:1] == "'" and re.fullmatch(r"'[\w+-][^\s']*", cell) else cell


def read_list(path: pathlib.Path) -> list[str]:
    """Reads the lines of a text file, such as a list of a split. Blanks around lines and empty lines are left out."""
    return [line for _, line in numbered_lines(path)]


def numbered_lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """`read_list` with the number of each line: (number, line)."""
    return [(n, line) for n, raw in enumerate(_text(path).split('\n'), 1) if (line := raw.strip())]


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file. UserError if it is not one."""
    try:
        return json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else 'nested too deeply'
        raise UserError(f'{path} cannot be read as a JSON file ({reason}); copy it again') from None


def read_json_lines(path: pathlib.Path) -> Iterator[tuple[int, int, dict[str, Any] | str]]:
    """Reads a .jsonl file: (number of the line, its first byte, its object or the reason why it has none).

    Such files have millions of lines with long texts. Keep only what you need of an object, and read its texts later
    with `read_json_line`. UserError if no line is an object, or if a line is over 64 MB long.
    """
    record_read(path)
    start, objects = 0, 0
    try:
        with path.open('rb') as file:
            for number in itertools.count(1):
                raw = file.readline(LONGEST_LINE)
                if not raw:
                    break
                if len(raw) == LONGEST_LINE:
                    raise UserError(
                        f'{path}, line {number}: longer than {LONGEST_LINE >> 20} MB; give one object a line'
                    )
                if raw.strip():
                    try:
                        yield number, start, _object(raw)
                        objects += 1
                    except Unreadable as error:
                        yield number, start, str(error)
                start += len(raw)
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error.strerror}') from None
    if not objects:
        raise UserError(f'{path}: no line of it is a JSON object; give JSON lines, one object on each')


def read_json_line(path: pathlib.Path, start: int) -> dict[str, Any]:
    """Reads the object on the line whose first byte is `start`."""
    try:
        with path.open('rb') as file:
            file.seek(start)
            return _object(file.readline())
    except OSError as error:
        raise Unreadable(f'{path.name} cannot be read again: {error.strerror}') from None


def _object(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode('utf-8-sig'))
    except (ValueError, RecursionError):
        raise Unreadable('the line is not JSON') from None
    if not isinstance(value, dict):
        raise Unreadable('the line is not a JSON object')
    return value


def _split_lines(path: pathlib.Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The cells of a table's header, and (number of the last line, cells) for each line below it."""
    text = _text(path)
    above, named = re.match(r'(?:[ \t]*\r?\n)*(?:"?sep=(.)"?[ \t]*\r?(?:\n|$))?(?:[ \t]*\r?\n)*', text), None
    skipped = 0
    if above and above.end():
        text, skipped, named = text[above.end() :], above[0].count('\n'), above[1]
    first = text.split('\n', 1)[0]
    csv.field_size_limit(2**30)  # reports may be long
    delimiter = named or max(',;\t|', key=first.count)
    # strict: without it, a quote that is never closed takes all lines below it into one cell
    reader = csv.reader(io.StringIO(text, newline=''), delimiter=delimiter, strict=True)
    header: list[str] = []
    lines: list[tuple[int, list[str]]] = []
    start = 1  # first line of the cells that are read now; the last one is reader.line_num
    try:
        header = next(reader, [])
        start = reader.line_num + 1
        for cells in reader:
            lines.append((skipped + reader.line_num, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        if 'unexpected end' in str(error):
            reason = 'a quote opens there and is never closed; close it, or double each quote within a cell'
        elif 'expected after' in str(error):
            reason = f'something other than {delimiter!r} follows a closed quote; double each quote within a cell'
        else:
            reason = str(error)
        raise UserError(f'{path}, line {skipped + start}: {reason}') from None
    return header, lines


def _text(path: pathlib.Path) -> str:
    """The text of a file, which may be gzipped. UserError if it cannot be read or decoded."""
    record_read(path)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == '.gz' else data
        if data[:4] in (b'\xff\xfe\0\0', b'\0\0\xfe\xff'):
            return data.decode('utf-32')
        if data[:2] in (b'\xff\xfe', b'\xfe\xff'):
            return data.decode('utf-16')
        zeros = sorted(data[start:4096:2].count(0) for start in (0, 1))  # UTF-16 has one zero in each Latin letter
        if zeros[0] == 0 and 4 * zeros[1] > len(data[:4096]):
            raise UserError(f'{path} looks like UTF-16 without a byte order mark; save it as UTF-8')
        return data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b'\n') + 1
        raise UserError(
            f'{path}, line {line}: not UTF-8. Spreadsheets on Windows often write Windows-1252. Save it as '
            f'"CSV UTF-8", or convert it: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8.csv'
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f'{path} cannot be read: {error.__class__.__name__}: {error}') from None
