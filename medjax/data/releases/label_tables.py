"""Reads a table of labels that comes beside images: `--labels FILE.csv` of an export.

A line describes an image, a series, a study, an order, a patient or a file, by the column that names it. The finest one
that the table has is used. Several lines with one key are joined: blank cells are ignored, and values that disagree are
conflicting. The table may also give splits (column split) and reports (column text).
"""

from __future__ import annotations

import functools
import pathlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from medjax.data.releases import coding, column_names, label_columns, people, table_fields, tables, words
from medjax.data.releases.named_files import Finder
from medjax.data.releases.tables import Line, Table
from medjax.data.types import CONFLICTING, ColumnUse, Unreadable
from medjax.errors import UserError, suggest

# What a line may describe, the finest first -> (its name, names of the column without blanks and signs)
KEYS = {
    'instance': ('SOPInstanceUID', 'sopinstanceuid sopuid instanceuid sopinstance imageuid imageid image'),
    'file': (
        'file',
        'file filename filepath fullpath relativepath relpath path image img imagepath imgpath imagefile imagefilename '
        'imagefilepath imagename imageid imageindex dicompath dicomfile dicomfilename dicomfilepath dicom dicomid dcm '
        'dcmfile dcmpath pngpath jpgpath slicepath datei dateiname dateipfad fichier archivo',
    ),
    'series': ('SeriesInstanceUID', 'seriesinstanceuid seriesuid seriesid series'),
    'study': ('StudyInstanceUID', 'studyinstanceuid studyuid studyid study examid'),
    'accession': ('AccessionNumber', 'accessionnumber accession accessionno accno accanon'),
    'patient': ('PatientID', column_names.NAMES['patient_id']),
}


class Described(NamedTuple):
    """What a table says of each picture."""

    labels: tuple[str, ...]  # names
    codes: list[list[int] | None]  # of each picture; None: the table has no line for it
    splits: list[str | None]  # of each picture; None for all: the table has no splits
    conflicting: list[bool]  # whether the lines of a picture name several splits
    texts: list[str]  # of each picture; '' without one
    columns: list[ColumnUse]
    notes: list[str]


class _Key(NamedTuple):
    """The column that says what a line describes, and what each picture has there."""

    kind: str
    column: str
    lines: dict[str, list[Line]]  # value in the headers -> lines
    rewritten: int  # values that the headers write in another way: without zeros at the start, in other case


def read(
    path: pathlib.Path, finder: Finder, ids: Mapping[str, Sequence[str]], named: str | None, is_drawn: bool = False
) -> Described:
    """Reads the table for pictures. ids: kind of key -> the id of each picture, '' if it has none; and 'copied' -> the
    SOPInstanceUIDs of several files.

    finder: finds the files that cells name; their ids are paths below its folder. named: columns that are labels, from
    --label-columns. is_drawn: the splits of the table are not used. UserError if no column names a picture, if no
    picture is in the table, or if the table gives neither a label, a split nor a text.
    """
    if not path.is_file():
        raise UserError(f'--labels {path}: there is no such file; give a CSV file')
    table = tables.read_table(path)
    key = _key(path, table, finder, ids)
    split = _split_column(table, is_drawn)
    text = next((column for column in table.columns if column.lower() == 'text'), '')
    taken = [column for column in (key.column, split, text) if column]
    lines = [line for group in key.lines.values() for line in group]
    choice = None if named is None else [name.strip() for name in named.split(',') if name.strip()]
    labels, unused = label_columns.choose(lines, table.columns, taken, choice, '--label-columns')
    uses_split = '' if is_drawn else split
    if not labels and not uses_split and not text:
        raise UserError(
            f'--labels {path}: no column holds only 0, 1, -1 (uncertain) or nothing; '
            f'name columns with --label-columns, which makes a label of each value of a text'
        )

    found = [key.lines.get(id, []) for id in ids[key.kind]]
    meanings = words.split_meanings({line.cells[split] for line in lines} if split else set())
    splits = [{meanings[line.cells[split]] for line in group} - {None} if uses_split else set() for group in found]
    uses = [
        ColumnUse(key.column, KEYS[key.kind][0], len(lines), len(table.lines) - len(lines), why=_spelling_remark(key)),
        *_other_uses(lines, uses_split, text, meanings),
        *([ColumnUse(split, '', len(lines), 0, why='--split drawn draws other splits')] if split and is_drawn else []),
        *(label.use for label in labels),
        *(_key_remark(use, key) for use in unused),
    ]
    notes = _notes(path, table, key, found, ids)
    codes = [_codes(labels, group) if group else None for group in found]
    if conflicts := sum(CONFLICTING in (code or ()) for code in codes):
        notes.append(
            f'{conflicts} images have lines in {path.name} that disagree in a label, so it is conflicting; a finer key '
            'than the one used may tell the lines apart'
        )
    return Described(
        tuple(name for label in labels for name in label.names),
        codes,
        [next(iter(names)) if len(names) == 1 else None for names in splits],
        [len(names) > 1 for names in splits],
        ['\n\n'.join(dict.fromkeys(_text(line, text) for line in group)).strip() if text else '' for group in found],
        sorted(uses, key=lambda use: table.columns.index(use.column)),
        notes,
    )


def _key(path: pathlib.Path, table: Table, finder: Finder, ids: Mapping[str, Sequence[str]]) -> _Key:
    """The finest key of which a value is in the pictures. UserError if there is none."""
    tried: list[str] = []
    doubtful, copied = set(ids.get('copied', ())), False
    for kind, (name, _) in KEYS.items():
        for column in table.columns:
            if _is_key(column, kind):
                by_file = functools.partial(_file, finder, column)
                groups = table.by(by_file if kind == 'file' else column)
                lines, rewritten = _matched(groups, ids[kind])
                if lines:
                    return _Key(kind, column, lines, rewritten)
                tried.append(name)
                copied |= kind == 'instance' and any(line.cells[column] in doubtful for line in table.lines)
    if not tried:
        names = [name for name, _ in KEYS.values()]
        raise UserError(
            f'--labels {path}: none of its columns is {", ".join(names)}; one of them must say which image a line is '
            f'for{_near_key(table, finder, ids) or suggest("SOPInstanceUID", table.columns)}'
        )
    if copied:
        raise UserError(
            f'--labels {path}: one SOPInstanceUID belongs to several files, so its lines do not say which of them they '
            'describe; give a column file'
        )
    shortened = any(people.is_shortened(cell) for line in table.lines for cell in line.cells.values())
    raise UserError(
        f'--labels {path}: no {" or ".join(dict.fromkeys(tried))} of it is in a header of these files; a spreadsheet '
        f'{"has shortened numbers to 1.2E+12" if shortened else "may have changed it (leading zeros, long numbers)"}, '
        'or the export has new ids'
    )


def _is_key(column: str, kind: str) -> bool:
    """Whether the name of a column is that of a key."""
    return column_names.plain(column) in KEYS[kind][1].split() or (
        kind == 'patient' and column_names.is_name(column, 'patient_id')
    )


def _near_key(table: Table, finder: Finder, ids: Mapping[str, Sequence[str]]) -> str:
    """The advice to rename a column whose cells are in the headers; '' without one."""
    for kind, (name, _) in KEYS.items():
        for column in table.columns:
            groups = table.by(functools.partial(_file, finder, column) if kind == 'file' else column)
            found = {line.number for group in _matched(groups, ids[kind])[0].values() for line in group}
            if 2 * len(found) > len(table.lines) and len(groups) > 2:  # 0 and 1 may be ids too
                return f'; {column!r} seems to hold {name}: then rename it to {name}'
    return ''


def _file(finder: Finder, column: str, line: Line) -> str:
    """The path of the file that a cell means; '' if there is none."""
    try:
        return finder.find(line.cells[column]).file.relative_to(finder.root).as_posix()
    except (Unreadable, ValueError):
        return ''


def _matched(lines: Mapping[str, list[Line]], ids: Sequence[str]) -> tuple[dict[str, list[Line]], int]:
    """Id of a picture -> its lines; and how many ids were matched although they are written in another way."""
    present = {id for id in ids if id and not words.is_nobody(id)}
    by_key: dict[str, list[str]] = defaultdict(list)
    for id in present:
        by_key[people.key(id)].append(id)
    matched: dict[str, list[Line]] = defaultdict(list)
    rewritten = set()
    for value, group in lines.items():
        same = by_key.get(people.key(value), [])
        if value in present:
            matched[value] += group
        elif len(same) == 1:
            matched[same[0]] += group
            rewritten.add(same[0])
    return dict(matched), len(rewritten)


def _split_column(table: Table, is_drawn: bool) -> str:
    """The column of the split; '' without one. UserError if a cell of it is no split, unless splits are drawn."""
    names = column_names.NAMES['split'].split()
    for column in sorted(table.columns, key=lambda column: column.lower() != 'split'):
        if column_names.plain(column) in names:
            cells = [line.cells[column] for line in table.lines]
            is_exact = column.lower() == 'split' and not all(map(words.is_blank, cells))
            if is_exact or words.are_splits(cells):
                if not is_drawn:
                    table_fields.check_splits(f'--labels {table.path.name}', table, column)
                return column
    return ''


def _codes(labels: Sequence[label_columns.LabelColumn], lines: Sequence[Line]) -> list[int]:
    return coding.combine_lines(
        [[code for label in labels for code in label.codes(line.cells[label.column])] for line in lines]
    )


def _text(line: Line, column: str) -> str:
    return '' if words.is_blank(line.cells[column]) else line.cells[column]


def _other_uses(lines: Sequence[Line], split: str, text: str, meanings: Mapping[str, str | None]) -> list[ColumnUse]:
    result = []
    for column, name in ((split, 'split'), (text, 'text')):
        if column:
            blank = sum(words.is_blank(line.cells[column]) for line in lines)
            result.append(ColumnUse(column, name, len(lines) - blank, blank))
    if split:
        counts: dict[str, int] = defaultdict(int)
        for line in lines:
            counts[line.cells[split]] += 1
        read = {
            cell: (str(meanings[cell]), n) for cell, n in counts.items() if meanings[cell] not in (None, cell.lower())
        }
        result[0] = result[0]._replace(words=read)
    return result


def _spelling_remark(key: _Key) -> str:
    if not key.rewritten:
        return ''
    differ = 'value differs' if key.rewritten == 1 else 'values differ'
    return f'{key.rewritten} {differ} from the headers in zeros at the start, ".0", case or accents, and count as equal'


def _key_remark(use: ColumnUse, key: _Key) -> ColumnUse:
    """The use of a column that is not used, with the reason if it could be the key."""
    if any(_is_key(use.column, kind) for kind in KEYS):
        return use._replace(why=f'{KEYS[key.kind][0]} says which image a line is for')
    return use


def _notes(
    path: pathlib.Path, table: Table, key: _Key, found: Sequence[Sequence[Line]], ids: Mapping[str, Sequence[str]]
) -> list[str]:
    notes = []
    copied = set(ids.get('copied', ())) if key.kind == 'instance' else set()
    if n := sum(line.cells[key.column] in copied for line in table.lines):
        lines = f'{n} line{"s" * (n > 1)} of {path.name}'
        notes.append(f'{lines}: one SOPInstanceUID belongs to several files, so these files get no label')
    if without := sum(not group for group in found):
        notes.append(f'{without} images have no line in {path.name}: their labels are blank')
    used = {line.number for group in key.lines.values() for line in group}
    if unused := len({line.cells[key.column] for line in table.lines if line.number not in used}):
        notes.append(f'{unused} values of {KEYS[key.kind][0]} in {path.name} are in no file')
    if table.dropped:
        notes.append(f'{len(table.dropped)} lines of {path.name} have too few or too many cells and are left out')
    return notes
