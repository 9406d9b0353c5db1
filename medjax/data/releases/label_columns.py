"""Decides which columns of a table are labels, and reads their cells.

A column of yes and no (0, 1, -1, True, ja, negative …) is one label. A column of names (benign, BI-RADS 2) gives one
label for each name. A guess never fails without a word: see `LabelColumn.use` and `unused`.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from medjax.data.releases import column_names, words
from medjax.data.releases.tables import Line
from medjax.data.text.language import fold
from medjax.data.types import BLANK, ColumnUse
from medjax.errors import UserError, suggest

MOST_VALUES = 100  # a text column with more values cannot be a label
FEW = 0.05  # share of the cells that may be typing errors in a column of yes and no
LISTED = 5  # lines that are named
# A category in a column of BI-RADS or its like: 'Kategorie 3', 'ACR 2', '4 a', 'IV', '2 - benign'
_CATEGORY = re.compile(
    r'(?:(?:acr|bi-? ?rads|(?:lung|li|pi|ti)-? ?rads|category|kategorie|categorie|categoria|cat|klasse|class|classe'
    r'|score|grade|grad|final|assessment|stufe)\b[ :._-]*)*'
    r'(?:(?P<digit>[0-6])|(?P<roman>iv|vi|v|i{1,3}))(?:[ ._-]?(?P<letter>[abcx]))?(?:\.0+)?(?P<rest>[ ]*[-–:;,(].*)?'
)
_ROMAN = {'i': '1', 'ii': '2', 'iii': '3', 'iv': '4', 'v': '5', 'vi': '6'}
_RADS = re.compile(r'^(?:acr[ -]?)?(?:bi|lung|li|pi|ti)[ -]?rads[ :_-]*(?:category|cat\.?|score)?[ :_-]*(?=\w)')
# A list of JSON or Python; its items may have commas if they are quoted
_LIST = re.compile(r'\s*[\[({](.*)[\])}]\s*', re.DOTALL)
_ITEM = re.compile(r'"[^"]*"|\'[^\']*\'|[^,"\']+')
MOST_GRADES = 0.8  # share of 0, 1 and -1 in a column of grades
MOST_SUGGESTED = 20  # values of a column for which labels are suggested


@dataclasses.dataclass(frozen=True)
class LabelColumn:
    """A column that gives one label, or one for each of its values."""

    column: str
    values: tuple[str, ...]  # by `_value`, in the order of the labels; (): a column of yes and no
    names: tuple[str, ...]  # of the labels
    letters: frozenset[str]  # single letters that mean yes or no in this column
    use: ColumnUse

    def codes(self, cell: str) -> list[int]:
        """The code of each label."""
        if words.is_blank(cell):
            return [BLANK] * len(self.names)
        if self.values:
            found = {_value(name, self.column) for name in _names(cell)}
            return [int(value in found) for value in self.values]
        code = _code(cell, self.letters)
        return [BLANK if code is None else code]


@dataclasses.dataclass(frozen=True)
class _Cells:
    """The cells of a column."""

    column: str
    counts: Counter[str]  # of cells that are not blank
    blank: Counter[str]  # of blank cells
    letters: frozenset[str]
    unread: tuple[int, ...]  # numbers of the lines whose cell is neither yes, no, uncertain nor blank
    lines: Mapping[str, int]  # cell -> the first line that has it, for these cells

    @property
    def filled(self) -> int:
        return self.counts.total()

    @property
    def values(self) -> int:
        return len({_value(name, self.column) for cell in self.counts for name in _names(cell)})

    @property
    def known(self) -> int:
        """The number of cells that are yes, no or uncertain."""
        return self.filled - len(self.unread)

    @property
    def is_nearly_yes_no(self) -> bool:
        """Whether most cells are yes and no. Of numbers more, because 0 and 1 are also grades."""
        numbers = all(_is_number(cell) for cell in self.counts)
        return 0 < self.known < self.filled and self.known > (MOST_GRADES if numbers else 0.5) * self.filled

    @property
    def is_yes_no(self) -> bool:
        """Whether the column holds yes and no, perhaps with a few typing errors."""
        if _is_rads(self.column):  # BI-RADS 0 and 1 are categories
            return False
        if not self.unread:
            return self.known > 0
        # a number that is there several times is a grade
        grade = any(_is_number(cell) and self.counts[cell] > 1 for cell in self.lines)
        return not grade and self.known >= 4 and len(self.unread) <= max(1, FEW * self.filled)


def choose(
    lines: Sequence[Line], columns: Sequence[str], taken: Collection[str], named: Sequence[str] | None, option: str
) -> tuple[list[LabelColumn], list[ColumnUse]]:
    """The label columns of a table, and what became of its other columns.

    taken: columns that are used for something else. named: the columns that the user names with `option`; None: the
    columns of yes and no whose names are not those of other things. UserError if a named column is missing or empty, or
    has too many values.
    """
    read = [column for column in columns if column not in taken or column in (named or ())]
    cells = {column: _cells(column, lines) for column in read}
    if named is not None:
        for column in named:
            _check_named(column, columns, cells, option)
        chosen = list(dict.fromkeys(named))
    else:
        free = [column for column in columns if column not in taken]
        chosen = [c for c in free if cells[c].is_yes_no and not column_names.is_no_finding(c)]
    labels: list[LabelColumn] = []
    names: list[str] = []
    for column in chosen:
        label = _yes_no(cells[column]) if cells[column].is_yes_no else _categories(cells[column], [*names, *chosen])
        labels.append(label)
        names += label.names
    others = [column for column in columns if column not in chosen and column not in taken]
    return labels, [_unused(cells[column], option, named is not None) for column in others]


def _check_named(column: str, columns: Sequence[str], cells: Mapping[str, _Cells], option: str) -> None:
    if column not in columns:
        raise UserError(f'{option}: the table has no column {column!r}{suggest(column, columns)}')
    if not cells[column].filled:
        raise UserError(f'{option}: the column {column!r} is empty')
    if not cells[column].is_yes_no and cells[column].values > MOST_VALUES:
        raise UserError(
            f'{option}: the column {column!r} has {cells[column].values} different values; '
            f'a label column holds 0, 1, -1, or at most {MOST_VALUES} names'
        )


def _cells(column: str, lines: Sequence[Line]) -> _Cells:
    counts = Counter(line.cells[column] for line in lines)
    blank = Counter({cell: n for cell, n in counts.items() if words.is_blank(cell)})
    counts = Counter({cell: n for cell, n in counts.items() if cell not in blank})
    single = {cell.lower() for cell in counts if len(cell) == 1}
    letters = frozenset('yn').union(*(pair for pair in words.PAIRS if pair <= single))
    strange = {cell for cell in counts if _code(cell, letters) is None}
    unread = tuple(line.number for line in lines if line.cells[column] in strange) if strange else ()
    first: dict[str, int] = {}
    for line in lines if strange else ():
        if line.cells[column] in strange:
            first.setdefault(line.cells[column], line.number)
    return _Cells(column, counts, blank, letters, unread, first)


def _code(cell: str, letters: frozenset[str]) -> int | None:
    if len(cell) == 1 and cell.isalpha() and cell.lower() not in letters:
        return None
    return words.code(cell)


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r'[+-]?\d+([.,]\d+)?(e[+-]?\d{1,2})?', cell, re.IGNORECASE))


def _is_rads(column: str) -> bool:
    return 'rads' in column_names.plain(column)


def _lines(numbers: Sequence[int]) -> str:
    """'line 7', 'lines 7, 9', or the first of many."""
    listed = ', '.join(map(str, numbers[:LISTED])) + (', …' if len(numbers) > LISTED else '')
    return f'line{"s" * (len(numbers) > 1)} {listed}'


def _yes_no(cells: _Cells) -> LabelColumn:
    read: dict[str, tuple[str, int]] = {}
    for cell, n in cells.counts.items():
        if (code := _code(cell, cells.letters)) is not None and not _is_number(cell):
            read[cell] = (str(code), n)
    why = ''
    if n := len(cells.unread):
        why = f'{_count(n)} neither yes nor no and left blank: {_lines(cells.unread)}'
    use = ColumnUse(
        cells.column, 'label', cells.filled - len(cells.unread), cells.blank.total() + len(cells.unread),
        read | blank_words(cells.blank), why,
    )  # fmt: skip
    return LabelColumn(cells.column, (), (cells.column,), cells.letters, use)


def _names(cell: str) -> list[str]:
    """The names in a cell: 'Effusion|Mass' has two, and so has the list ["Effusion", "Mass"]."""
    if match := _LIST.fullmatch(cell):
        return [name for name in (part.strip(' \t\n"\'') for part in _ITEM.findall(match[1])) if name]
    return [name.strip() for name in cell.split('|') if name.strip()]


def _value(cell: str, column: str) -> str:
    """A value without its writing: 'Benign' -> 'benign', '4.0' -> '4', 'BI-RADS 4A' and 'birads: 4a' -> '4a'.

    In a column of RADS also 'Kategorie 3' -> '3' and 'IV' -> '4'.
    """
    if _is_rads(column) and (match := _CATEGORY.fullmatch(fold(cell))):
        return (match['digit'] or _ROMAN[match['roman']]) + (match['letter'] or '')
    return re.sub(r'^(-?\d+)[.,]0+$', r'\1', _RADS.sub('', fold(cell)))


def _is_joined(name: str, others: Collection[str]) -> bool:
    """Whether a value seems to be several ones: 'Effusion, Mass' beside 'Mass'."""
    parts = [part.strip() for part in re.split('[,;/+]', name)]
    known = {fold(other) for other in others}
    return len(parts) > 1 and any(fold(part) in known for part in parts if part)


def _one_line(text: str) -> str:
    return ' '.join(text.split())


def _categories(cells: _Cells, taken: Collection[str]) -> LabelColumn:
    """One label for each value. Other writings of a value are joined with it; the most frequent one names the label."""
    spelled: dict[str, str] = {}
    written: Counter[str] = Counter()
    for cell, n in cells.counts.items():
        written.update(dict.fromkeys(map(_one_line, _names(cell)), n))
    for name, _ in sorted(written.items(), key=lambda item: (-item[1], item[0])):
        value = _value(name, cells.column)
        is_category = _is_rads(cells.column) and re.fullmatch('[0-6][abcx]?', value)
        spelled.setdefault(value, value.upper() if is_category else name)
    values = sorted(spelled, key=spelled.__getitem__)
    # 'no', 'A' and '2' alone say nothing
    vague = any(len(name) == 1 or _is_number(name) or words.code(name) is not None for name in spelled.values())
    names: list[str] = []
    for value in values:
        name = spelled[value]
        vague_or_twice = vague or _is_rads(cells.column) or name in taken or name in names
        names.append(f'{cells.column}={name}' if vague_or_twice else name)
    remarks = []
    if cells.is_nearly_yes_no and not _is_rads(cells.column):
        are = 'is' if len(cells.unread) == 1 else 'are'
        remarks.append(
            f'{_lines(cells.unread)} {are} neither yes nor no; each value became a label. If the column says yes and '
            f'no, correct {"it" if are == "is" else "them"}'
        )
    if others := len(written) - len(values):
        what = 's are other writings' if others > 1 else ' is another writing'
        remarks.append(f'{others} value{what} of one, and joined with it')
    if several := sum(n for cell, n in cells.counts.items() if len(_names(cell)) > 1):
        remarks.append(f'{several} cells hold several names, divided at the bar or as a list')
    if joined := [name for name in written if _is_joined(name, written)]:
        remarks.append(
            f'{len(joined)} value{"s hold" if len(joined) > 1 else " holds"} a comma, a semicolon or a slash between '
            'other values; if these are several names, write a bar between them'
        )
    use = ColumnUse(
        cells.column, f'{len(values)} labels', cells.filled, cells.blank.total(), blank_words(cells.blank),
        '; '.join(remarks),
    )  # fmt: skip
    return LabelColumn(cells.column, tuple(values), tuple(names), frozenset(), use)


def blank_words(blank: Counter[str]) -> dict[str, tuple[str, int]]:
    """The words that were taken for blank: word -> ('blank', number of cells)."""
    return {word: ('blank', n) for word, n in blank.items() if word}


def _unused(cells: _Cells, option: str, others_named: bool) -> ColumnUse:
    """The reason why a column is not used, and what would use it. others_named: `option` names other columns."""
    column = cells.column
    few = cells.values <= MOST_SUGGESTED
    values = (
        ('one value' if cells.values == 1 else f'{cells.values} values') if few else f'over {MOST_SUGGESTED} values'
    )
    as_labels = f'; {option} {shlex.quote(column)} makes a label of each value' if few and cells.values > 1 else ''
    if not cells.filled:
        why = 'empty'
    elif cells.is_yes_no:
        why = (
            f'no label, because {option} names others'
            if others_named
            else f'no label, because its name is not that of a finding; {option} {shlex.quote(column)} makes it a label'
        )
    elif cells.is_nearly_yes_no and not _is_rads(column):
        why = f'{_count(len(cells.unread))} neither yes, no nor blank, too many for a label: {_lines(cells.unread)}'
        why += as_labels
    else:
        kind = 'numbers' if all(_is_number(cell) for cell in cells.counts) else 'text'
        why = f'{kind}, {values}{as_labels}'
    if cells.filled and (field := column_names.looks_like(column)):
        why += f'; if it holds {column_names.HOLDS[field]}, rename it to {field}'
    return ColumnUse(column, '', cells.filled, cells.blank.total(), {}, why)


def _count(n: int) -> str:
    return f'{n} cell is' if n == 1 else f'{n} cells are'
