"""Cells of a table in the words of records: labels, ages, sexes, views; the same for every source."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

from medjax.data.images.dicom import IMPOSSIBLE, OLDEST
from medjax.data.types import BLANK, CONFLICTING

CHEXPERT = (  # the labels of CheXpert's and NegBio's labelers, as their tables name them
    'No Finding', 'Enlarged Cardiomediastinum', 'Cardiomegaly', 'Lung Opacity', 'Lung Lesion', 'Edema', 'Consolidation',
    'Pneumonia', 'Atelectasis', 'Pneumothorax', 'Pleural Effusion', 'Pleural Other', 'Fracture', 'Support Devices',
)  # fmt: skip
ROLES = dict.fromkeys(('pa', 'ap', 'frontal'), 'frontal') | dict.fromkeys(('l', 'll', 'rl', 'lateral'), 'lateral')


@functools.lru_cache(1024)  # tables have millions of cells and a handful of values
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


def age(cell: str) -> float | None:
    """`years`, where ages above 90 are told as 90, since so few people have them, and impossible ones are left out."""
    value = years(cell)
    return None if value is None or value > IMPOSSIBLE else min(value, OLDEST)


def sex(cell: str) -> str | None:
    return {'m': 'M', 'male': 'M', 'f': 'F', 'female': 'F'}.get(cell.lower())


def role(view: str) -> str:
    """'frontal' or 'lateral' by the first word of a view that tells: 'AP Supine', 'AP_horizontal'; else 'image'."""
    words = view.lower().replace('_', ' ').replace('lateral decubitus', 'decubitus').split()  # frontal, of one who lies
    return next((ROLES[word] for word in words if word in ROLES), 'image')


def label_name(finding: str) -> str:
    """'Pleural Effusion' -> 'pleural_effusion', so that a finding has one name in all data sets."""
    return re.sub(r'[^a-z0-9]+', '_', finding.lower()).strip('_')


def codes(cells: Mapping[str, str], columns: Sequence[str]) -> tuple[list[int], list[str]]:
    """The labels of a line, blank -2, and the columns whose cell is neither 1, 0, -1 nor blank: they count as blank."""
    labels = [label(cells[name]) for name in columns]
    wrong = [name for name, found in zip(columns, labels, strict=True) if found is None and cells[name]]
    return [BLANK if found is None else found for found in labels], wrong


def fuse(values: Iterable[int]) -> int:
    """The label of one image from several lines or readers: what all say that say anything, else CONFLICTING.

    Blanks have no voice; BLANK where nobody has one. Uncertain against positive is a disagreement too.
    """
    said = {value for value in values if value != BLANK}
    return CONFLICTING if len(said) > 1 else said.pop() if said else BLANK


def join(lines: Sequence[Sequence[int]]) -> list[int]:
    """The labels of an image of which several lines speak: a blank gives way; where others differ: CONFLICTING."""
    if len(lines) == 1:
        return list(lines[0])
    return [fuse(values) for values in zip(*lines, strict=True)]


def known(**facts: str | float | None) -> dict[str, str | float]:
    """The facts that are known: None and '' left out."""
    return {name: fact for name, fact in facts.items() if fact not in (None, '')}
