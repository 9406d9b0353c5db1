"""How a term reads labels that are uncertain, blank or conflicting.

    policy=dict(uncertain='positive')                                        U-Ones of CheXpert (arXiv 1901.07031)
    policy=dict(uncertain='negative', blank='negative')                      U-Zeros; not mentioned is absent
    policy=dict(uncertain=[.55, .85])                                        U-Ones with smoothing (arXiv 1911.06475)
    policy=dict(uncertain={'edema': 'positive', '*': 'ignore'})              one value a label; '*': all other labels

A value is 'ignore' (the label does not count), 'negative', 'positive', a probability from 0 to 1, or two of them: the
target is then drawn uniformly between them, anew in each step and row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.data.types import CODES, NEGATIVE, POSITIVE
from medjax.errors import UserError, suggest
from medjax.types import is_number

OTHERS = '*'
VALUES: dict[str, tuple[float, float] | None] = dict(ignore=None, negative=(0.0, 0.0), positive=(1.0, 1.0))


class LabelPolicy(NamedTuple):
    """The range of targets of L labels, for each code of a label: [low, high]. A code without a range is unknown."""

    codes: tuple[int, ...]  # C codes that have a target for some label
    low: np.ndarray  # float32 [C,L]
    high: np.ndarray  # float32 [C,L]
    known: np.ndarray  # bool [C,L]

    @property
    def draws(self) -> bool:
        """Whether some target is drawn."""
        return bool((self.low < self.high).any())

    def targets(self, codes: Array, u: Array | float) -> tuple[Array, Array]:
        """Codes [B,L] -> targets float32 [B,L] from 0 to 1, and bool [B,L]: which are known. `u` [B,L] in [0,1)."""
        value, known = jnp.zeros(codes.shape, jnp.float32), jnp.zeros(codes.shape, bool)
        for code, low, high, is_known in zip(*self, strict=True):
            here = (codes == code) & is_known
            value, known = jnp.where(here, low + (high - low) * u, value), known | here
        return value, known


def label_policy(
    uncertain: str | float | Sequence[float] | Mapping[str, Any] = 'ignore',
    blank: str | float | Sequence[float] | Mapping[str, Any] = 'ignore',
    conflicting: str | float | Sequence[float] | Mapping[str, Any] = 'ignore',
    *,
    labels: Sequence[str],
    where: str,
) -> LabelPolicy:
    """The policy that a config gives for these labels; see the top of this file. UserError by key."""
    given = dict(uncertain=uncertain, blank=blank, conflicting=conflicting)
    ranges = {POSITIVE: [(1.0, 1.0)] * len(labels), NEGATIVE: [(0.0, 0.0)] * len(labels)} | {
        CODES[name]: _by_label(value, labels, f'{where}.{name}') for name, value in given.items()
    }
    used = tuple(code for code, of_labels in ranges.items() if any(of_labels))
    low, high = (
        np.array([[one[i] if one else 0 for one in ranges[code]] for code in used], np.float32) for i in (0, 1)
    )
    return LabelPolicy(used, low, high, np.array([[one is not None for one in ranges[code]] for code in used]))


def _by_label(value: Any, labels: Sequence[str], where: str) -> list[tuple[float, float] | None]:
    """The range of each label."""
    if not isinstance(value, Mapping):
        return [_range(value, where)] * len(labels)
    for name in value:
        if name not in (*labels, OTHERS):
            raise UserError(f'{where}: the term predicts no label {name!r}{suggest(name, labels)}')
    others = value.get(OTHERS, 'ignore')
    return [_range(value.get(label, others), f'{where}.{label}') for label in labels]


def _range(value: Any, where: str) -> tuple[float, float] | None:
    if isinstance(value, str) and value in VALUES:
        return VALUES[value]
    limits = (value, value) if is_number(value) else tuple(value) if isinstance(value, (list, tuple)) else ()
    if len(limits) != 2 or not all(map(is_number, limits)) or not 0 <= limits[0] <= limits[1] <= 1:
        raise UserError(
            f"{where}={value!r}: must be 'ignore', 'negative', 'positive', a probability from 0 to 1, or two of them "
            'for a target that is drawn between them'
        )
    return float(limits[0]), float(limits[1])
