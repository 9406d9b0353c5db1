"""Converts the cells of a table to what a record stores: label codes, ages, sexes, roles. All sources share it."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from medjax.data.images.dicom import IMPOSSIBLE, OLDEST
from medjax.data.text.language import fold
from medjax.data.types import BLANK, CONFLICTING

CHEXPERT_LABELS = (  # the labels of the CheXpert and NegBio labelers, as their tables name them
    'No Finding', 'Enlarged Cardiomediastinum', 'Cardiomegaly', 'Lung Opacity', 'Lung Lesion', 'Edema', 'Consolidation',
    'Pneumonia', 'Atelectasis', 'Pneumothorax', 'Pleural Effusion', 'Pleural Other', 'Fracture', 'Support Devices',
)  # fmt: skip
ROLES = dict.fromkeys(('pa', 'ap', 'frontal'), 'frontal') | dict.fromkeys(('l', 'll', 'rl', 'lateral'), 'lateral')


_AGE = re.compile(
    r'(?P<above>[>≥] ?=? ?)?(?P<number>\d{1,5}(?:[.,]\d*)?|[.,]\d+)'
    r'(?P<plus> ?\+)? ?-?(?P<unit>[a-z./]+)?([ -]old| alt)?'
)


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# How many are a year -> their words in English, German, French, Spanish, Portuguese, Italian, Dutch, without accents
_UNITS = {
    1: _word_set('y yr yrs year years yo y.o y/o a j jahr jahre an ans ano anos anni anno jaar') | {''},
    12: _word_set('m mo mon mos mth mths month months monat monate mois mes meses mese mesi maand maanden'),
    52.18: _word_set('w wk wks week weeks wo woche wochen semaine semaines semana semanas settimane weken'),
    365.25: _word_set('d day days tag tage t jour jours dia dias giorni dag dagen'),
}


@functools.lru_cache(1024)  # tables have millions of cells and few different values
def label_code(cell: str) -> int | None:
    """The code 0, 1 or -1 of a cell, which may also be written as '1.0'; None for any other cell."""
    match = re.fullmatch(r'(-?1|-?0)(\.0*)?', cell)
    return int(match[1]) if match else None


def label_codes(cells: Mapping[str, str], columns: Sequence[str]) -> tuple[list[int], list[str]]:
    """The label codes of a line, and the columns with an invalid cell.

    A blank cell is BLANK. An invalid cell (neither 1, 0, -1 nor blank) is BLANK too.
    """
    codes = [label_code(cells[name]) for name in columns]
    invalid = [name for name, code in zip(columns, codes, strict=True) if code is None and cells[name]]
    return [BLANK if code is None else code for code in codes], invalid


def combine(codes: Iterable[int]) -> int:
    """One label code from several lines or readers: the code on which all agree, else CONFLICTING.

    BLANK codes are ignored; the result is BLANK if there are no others. Uncertain (-1) and positive (1) disagree.
    """
    different = {code for code in codes if code != BLANK}
    if len(different) > 1:
        return CONFLICTING
    return different.pop() if different else BLANK


def combine_lines(lines: Sequence[Sequence[int]]) -> list[int]:
    """The label codes of an image that has several lines: `combine` for each label."""
    if len(lines) == 1:
        return list(lines[0])
    return [combine(codes) for codes in zip(*lines, strict=True)]


def age(cell: str) -> float | None:
    """An age in years from '61', '61.5', '61,5', DICOM's '061Y' and '018M', '6 months', '45 ans'; None for other cells.

    Ages above 90 become 90, since few people are so old; so do '90+' and '>89'. Impossible ages (above 120 years) are
    None.
    """
    match = _AGE.fullmatch(fold(cell))
    if not match:
        return None
    parts = next((n for n, words in _UNITS.items() if (match['unit'] or '').rstrip('.') in words), None)
    if parts is None:
        return None
    years = float(match['number'].replace(',', '.')) / parts
    if match['above'] or match['plus']:  # '>50' is no age
        return OLDEST if OLDEST - 1 <= years <= IMPOSSIBLE else None
    return min(years, OLDEST) if years <= IMPOSSIBLE else None


def sex(cell: str) -> str | None:
    """'M' or 'F' from 'm', 'Male', 'F', 'female', …; None for any other cell."""
    return {'m': 'M', 'male': 'M', 'f': 'F', 'female': 'F'}.get(cell.lower())


def role(view: str) -> str:
    """'frontal' or 'lateral' from a view such as 'PA', 'AP Supine' or 'AP_horizontal', else 'image'.

    The first word that names a projection decides.
    """
    text = view.lower().replace('_', ' ')
    text = text.replace('lateral decubitus', 'decubitus')  # a frontal film of a patient who lies on one side
    return next((ROLES[word] for word in text.split() if word in ROLES), 'image')


def label_name(finding: str) -> str:
    """'Pleural Effusion' -> 'pleural_effusion', so that a finding has one name in all data sets."""
    return re.sub(r'[^a-z0-9]+', '_', finding.lower()).strip('_')


def filled(**values: str | float | None) -> dict[str, str | float]:
    """The values that are neither None nor ''."""
    return {name: value for name, value in values.items() if value not in (None, '')}
