"""Converts the cells of a table to what a record stores: label codes, ages, sexes, roles. All sources share it."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from medjax.data.images.dicom import IMPOSSIBLE, OLDEST
from medjax.data.types import BLANK, CONFLICTING

CHEXPERT_LABELS = (  # the labels of the CheXpert and NegBio labelers, as their tables name them
    'No Finding', 'Enlarged Cardiomediastinum', 'Cardiomegaly', 'Lung Opacity', 'Lung Lesion', 'Edema', 'Consolidation',
    'Pneumonia', 'Atelectasis', 'Pneumothorax', 'Pleural Effusion', 'Pleural Other', 'Fracture', 'Support Devices',
)  # fmt: skip
ROLES = dict.fromkeys(('pa', 'ap', 'frontal'), 'frontal') | dict.fromkeys(('l', 'll', 'rl', 'lateral'), 'lateral')


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
    """An age in years from '61', '61.5' or DICOM's '061Y'; None if the cell holds no age.

    Ages above 90 become 90, since few people are so old. Impossible ages (above 120 years) are None.
    """
    try:
        years = float(cell[:-1] if cell[-1:].upper() == 'Y' else cell)
    except ValueError:
        return None
    return min(years, OLDEST) if math.isfinite(years) and 0 <= years <= IMPOSSIBLE else None


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
