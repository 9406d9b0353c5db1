"""The order of a part: element number -> which record of which source. Every batch is composed alike.

A batch of B rows from sources of weights w_s has B w_s / sum w rows of source s; where that is not whole, the next
lower or the next higher number, in turn, so that after any number of batches every source has been given its share to
within a row or so. Each source goes through its records in epochs of its own, every one a new permutation. All of it is
arithmetic on the element's number: no order is kept, and any host computes any element.

(grain's own mix was tried: of 60 random mixtures of whole shares, 13 gave some batch one row more of a source and
one row less of another.)
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import numpy as np

from medjax.errors import UserError

PERIOD = 10_000  # batches at most after which the compositions repeat


class Order:
    """order[e] -> (source number, record number, epoch of the source) of element e = step * rows + row."""

    def __init__(self, rows: int, lengths: Mapping[str, int], weights: Mapping[str, float], seed: int, part: str):
        import grain

        self.rows, self.lengths = rows, tuple(lengths.values())
        self.compositions = compositions(rows, weights, f'data.{part}.sources')
        self.before = np.concatenate([np.zeros_like(self.compositions[:1]), self.compositions.cumsum(0)])
        self.shuffled: list[Any] = [
            grain.MapDataset.range(length).shuffle(seed=_seed(seed, part, source)).repeat()
            for source, length in lengths.items()
        ]

    def __getitem__(self, element: int) -> tuple[int, int, int]:
        step, row = divmod(element, self.rows)
        period, at = divmod(step, len(self.compositions))
        sources, ranks = _layout(tuple(self.compositions[at].tolist()))
        source = int(sources[row])
        n = period * int(self.before[-1, source]) + int(self.before[at, source]) + int(ranks[row])
        return source, int(self.shuffled[source][n]), n // self.lengths[source]


def compositions(rows: int, weights: Mapping[str, float], where: str) -> np.ndarray:
    """How many rows of each source batch t has, [t mod period, source]; a UserError names `where`.

    Whole parts are given to every batch. What is left of it is dealt by earliest deadline: of the sources whose next
    row is due to begin, those first whose next row is due to end first (Pfair scheduling, Baruah et al. 1996).
    """
    exact = [Fraction(str(float(weight))) for weight in weights.values()]
    quotas = [rows * weight / sum(exact) for weight in exact]
    near = [quota.limit_denominator(PERIOD) for quota in quotas]  # 1/3 is no decimal number
    if sum(near) == rows:
        quotas = near
    period = min(math.lcm(*(quota.denominator for quota in quotas)), PERIOD)
    whole = [int(quota) for quota in quotas]
    rest = [(quota - n) * period for quota, n in zip(quotas, whole, strict=True)]
    share = [int(x) for x in rest]  # rows in a period, beside the whole ones
    left = (rows - sum(whole)) * period - sum(share)
    for s in sorted(range(len(rest)), key=lambda s: share[s] - rest[s])[:left]:
        share[s] += 1
    for name, n, k in zip(weights, whole, share, strict=True):
        if not n and not k:
            raise UserError(
                f'{where}.{name}: the weight {weights[name]!r} gives it less than one row in {PERIOD:,} batches of '
                f'{rows} rows; leave it out or give it more'
            )
    table, given = np.tile(np.array(whole), (period, 1)), [0] * len(share)
    for t in range(period):
        early = {s: given[s] * period >= (t + 1) * k for s, k in enumerate(share) if k}
        due = sorted(early, key=lambda s: (early[s], -((given[s] + 1) * -period // share[s]), s))
        for s in due[: rows - sum(whole)]:
            table[t, s] += 1
            given[s] += 1
    return table


@functools.lru_cache(maxsize=256)
def _layout(composition: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The source of every row, spread evenly over the batch, and how many rows of that source stand before it."""
    sources = np.repeat(np.arange(len(composition)), composition)
    ranks = np.concatenate([np.arange(n) for n in composition])
    order = np.argsort((ranks + 0.5) / np.asarray(composition)[sources], kind='stable')
    return sources[order], ranks[order]


def _seed(seed: int, part: str, source: str) -> int:
    digest = hashlib.sha256(f'{seed}:{part}:{source}'.encode()).digest()
    return int.from_bytes(digest[:4], 'big')
