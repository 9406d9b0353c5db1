"""Reads the fields of a table that somebody made: patient, study, split, age, sex …, in the forms that people use.

Cells that say nothing become '', splits become train, val and test, numbers of people get one spelling. `uses` says
what became of each column, with counts and without an id.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from medjax.data.images import dicom
from medjax.data.releases import coding, column_names, people, words
from medjax.data.releases.label_columns import blank_words
from medjax.data.releases.tables import Line, Table
from medjax.data.types import ColumnUse
from medjax.errors import UserError

LISTED = 3  # lines that a message names
_VIEWS = dicom.ATTRIBUTES['view'][1]


class Fields(NamedTuple):
    """A table whose columns have the names of their fields."""

    columns: list[str]  # 'patient_id' for the column 'MRN'; other names as they are
    lines: list[Line]  # with these columns, and cells in one form
    raw: dict[int, Line]  # number of a line -> the line as it is in the file
    column_of: dict[str, str]  # field -> name of its column in the file
    names: dict[str, str]  # name of a column here -> its name in the file, where they differ


def read(table: Table, image: str = 'image', is_drawn: bool = False) -> Fields:
    """Reads a table. image: the column that names the images. is_drawn: the splits of the table will not be used.

    UserError if its column split holds something else than splits, unless splits are drawn.
    """
    column_of = {'image': image} | column_names.fields(
        table.columns,
        lambda column: any(not words.is_blank(line.cells[column]) for line in table.lines),
        lambda field, column: _can_hold(table, field, column),
    )
    spellings = {
        field: people.spellings(line.cells[column_of[field]] for line in table.lines)
        for field in ('patient_id', 'study_id')
        if field in column_of
    }
    meanings = _splits(table, column_of['split'], is_drawn) if 'split' in column_of else {}
    name_of = {column: field for field, column in column_of.items()}
    # an empty column `sex` beside a filled one of another name
    name_of |= {field: f'{field} (empty)' for field, column in column_of.items() if column != field in table.columns}
    lines = []
    for line in table.lines:
        cells = {name_of.get(column, column): cell for column, cell in line.cells.items()}
        for field in column_of.keys() - {'image', 'mask'}:
            cell = '' if words.is_blank(cells[field]) else cells[field]
            cells[field] = spellings.get(field, {}).get(cell, cell)
        if 'split' in column_of:
            cells['split'] = meanings.get(cells['split'], '')
        lines.append(Line(line.number, cells))
    columns = [name_of.get(column, column) for column in table.columns]
    names = {name: column for column, name in name_of.items()}
    return Fields(columns, lines, {line.number: line for line in table.lines}, column_of, names)


def people_of(lines: Sequence[Line]) -> people.People:
    """The people of the lines of a table. The study of a line without one is the line itself."""
    studies = None
    if any(line.cells.get('study_id') for line in lines):
        studies = [line.cells['study_id'] or f'line {line.number}' for line in lines]
    splits = [line.cells.get('split') or None for line in lines]
    return people.people([line.cells.get('patient_id', '') for line in lines], studies, splits if any(splits) else None)


def uses(fields: Fields, lines: Sequence[Line], persons: people.People, is_drawn: bool = False) -> list[ColumnUse]:
    """What became of the columns that are fields. lines: those whose image is used. persons: `people_of` them."""
    result = []
    for field, column in fields.column_of.items():
        cells = Counter(fields.raw[line.number].cells[column] for line in lines)
        blank = Counter({cell: n for cell, n in cells.items() if words.is_blank(cell)})
        filled = Counter({cell: n for cell, n in cells.items() if cell not in blank})
        use = ColumnUse(column, field, filled.total(), blank.total(), blank_words(blank))
        if field == 'patient_id':
            unknown = persons.blank + persons.shared
            use = use._replace(cells=len(lines) - unknown, blank=unknown, why='; '.join(_remarks(filled)))
        elif field == 'study_id':
            use = use._replace(why='; '.join(_remarks(filled)))
        elif field == 'split' and is_drawn:
            use = use._replace(use='', why='--split drawn draws other splits')
        elif field == 'split':
            meanings = words.split_meanings(set(filled))
            read_as = {cell: (meanings[cell], n) for cell, n in filled.items() if cell.lower() != meanings[cell]}
            use = use._replace(words=blank_words(blank) | read_as)
        elif field == 'age':
            use = _without_unread(use, sum(n for cell, n in filled.items() if coding.age(cell) is None), 'age')
        elif field == 'sex':
            use = _sex_use(use, filled)
        elif field == 'view':
            use = _without_unread(use, sum(n for cell, n in filled.items() if not view(cell)), 'view')
        result.append(use)
    return result


def sex(cell: str) -> str | None:
    """'M' or 'F' if the cell means so, or its word for another sex ('O', 'divers'); None for any other cell."""
    return words.sex(cell) or (cell if words.is_other_sex(cell) else None)


def view(cell: str) -> str:
    """The cell if all its words name a view as in DICOM ('PA', 'AP supine', 'R-MLO'), else ''. Others may be names."""
    found = re.findall(r'[^\W_]+', cell.upper())
    return cell if found and all(word in _VIEWS or word[1:] in ('CC', 'MLO', 'ML', 'LM') for word in found) else ''


def _can_hold(table: Table, field: str, column: str) -> bool:
    """Whether a column with another name can hold a field, by its cells."""
    cells = {line.cells[column] for line in table.lines if not words.is_blank(line.cells[column])}
    if field == 'split':
        return words.are_splits([line.cells[column] for line in table.lines])
    if field == 'age':
        return any(coding.age(cell) is not None for cell in cells)
    return bool(cells) and field != 'image'


def _splits(table: Table, column: str, is_drawn: bool) -> dict[str, str]:
    """Cell -> 'train', 'val' or 'test'. is_drawn: cells that are no split are left out, not an error."""
    if not is_drawn:
        check_splits(table.path.name, table, column)
    cells = {line.cells[column] for line in table.lines if not words.is_blank(line.cells[column])}
    return {cell: meaning for cell, meaning in words.split_meanings(cells).items() if meaning}


def check_splits(name: str, table: Table, column: str) -> None:
    """UserError if a cell of a column of splits is no split. name: of the table, for the message.

    The message quotes only cells that are nearly a word for a split. Others may be names of people.
    """
    meanings = words.split_meanings({line.cells[column] for line in table.lines})
    unread = [line for line in table.lines if not words.is_blank(cell := line.cells[column]) and not meanings[cell]]
    if not unread:
        return
    found = []
    for line in unread[:LISTED]:
        cell = line.cells[column]
        near = words.near_split(cell)
        if words.split(cell) == 'dev':
            found.append(f"line {line.number} holds {cell!r}, and 'dev' beside train is val, unless there is val too")
        else:
            found.append(
                f'line {line.number} holds {cell!r}; did you mean {near!r}?' if near else f'line {line.number} does not'
            )
    more = f' (and {len(unread) - LISTED} more lines)' if len(unread) > LISTED else ''
    raise UserError(
        f'{name}: the column {column} must hold train, val or test: {", ".join(found)}{more}; use train, val or test'
    )


def _remarks(filled: Counter[str]) -> list[str]:
    """Remarks on ids that programs have changed."""
    cut = sum(n for cell, n in filled.items() if people.is_shortened(cell))
    long = {cell: n for cell, n in filled.items() if re.fullmatch(r'\d{16,}', cell)}
    if len(long) > 1 and not any(cell[15:].strip('0') for cell in long):  # a spreadsheet keeps 15 digits
        cut += sum(long.values())
    dates = sum(n for cell, n in filled.items() if people.is_date(cell))
    remarks = people.remarks(filled, 'cell')
    if cut:
        remarks.append(
            f'{cut} cells have lost digits in a spreadsheet (1.2E+12, or zeros after 15 digits): '
            'different ids may be one now. Write the column as text'
        )
    if dates:
        remarks.append(f'{dates} cells look like dates, which a spreadsheet makes of ids such as 3-12')
    return remarks


def _without_unread(use: ColumnUse, unread: int, what: str) -> ColumnUse:
    """The use of a column in which `unread` cells hold no `what`."""
    if not unread:
        return use
    why = f'{unread} cell{"s hold" if unread > 1 else " holds"} no {what}, left blank'
    return use._replace(cells=use.cells - unread, blank=use.blank + unread, why=why)


def _sex_use(use: ColumnUse, filled: Counter[str]) -> ColumnUse:
    read_as = {
        cell: (meaning, n)
        for cell, n in filled.items()
        if (meaning := words.sex(cell)) and cell.upper() != meaning and cell.lower() not in ('male', 'female')
    }
    use = _without_unread(use, sum(n for cell, n in filled.items() if sex(cell) is None), 'sex')
    if numbers := sorted(cell for cell in filled if re.fullmatch(r'\d(\.0)?', cell)):
        use = use._replace(why=f'{use.why}: {" and ".join(numbers[:3])} do not say who is male; write M and F')
    return use._replace(words={**use.words, **read_as})
