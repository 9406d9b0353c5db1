"""Two crops of an image agree in each dimension, and dimensions do not repeat each other (Barlow Twins, 2103.03230).

Each dimension of each crop is normalised over the rows of the batch: z^ = (z - mean) / sqrt(variance + 1e-5). With the
cross-correlation of the crops v and w

    c_ij = mean_b  z^_bvi z^_bwj,      loss = mean_{v < w} ( sum_i (c_ii - 1)^2  +  off_diagonal sum_{i != j} c_ij^2 )

The means run over all rows of the batch on all devices, and under micro-batches over the whole batch too. Images count
if all their crops are present. `start` is D, the loss of embeddings that say nothing of the image. Compared with
facebookresearch/barlowtwins, main.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives.crops import crop_features, embeddings, feature_names, shape_of
from medjax.objectives.features import Feature
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.types import is_number

EPS = 1e-5  # of the variance, as in torch's BatchNorm


def build(context: TermContext, of: str | Sequence[str], off_diagonal: float = 0.0051) -> Term:
    """The term `cross_correlation` of a config.

    of            one or more features [B,V,D], with two crops or more together. Barlow Twins reads each crop as a view
                  of its own, so that each has its own statistics in towers and heads with a BatchNorm
    off_diagonal  the weight of the correlations between different dimensions
    """
    if not is_number(off_diagonal) or off_diagonal < 0:
        raise UserError(f'{context.where}.off_diagonal={off_diagonal!r}: must be a number of at least 0')
    return CrossCorrelation(context, crop_features(context, feature_names(context, of, 'of')), off_diagonal)


@dataclasses.dataclass(frozen=True, eq=False)
class CrossCorrelation(Term):
    """The term `cross_correlation`; see the top of this file."""

    of: tuple[Feature, ...]
    off_diagonal: float

    @property
    def least_rows(self) -> int:
        return 2

    def loss(self, x: TermInputs) -> TermOutput:
        z, here = embeddings(x, self.of)
        z = normalised(z, here)
        d, n = z.shape[-1], jnp.maximum(here.sum(), 1)
        agree, repeat = [], []
        for v, w in combinations(range(z.shape[1]), 2):
            c = jnp.einsum('bi,bj->ij', z[:, v], z[:, w], precision='highest') / n
            diagonal = jnp.diagonal(c)
            agree.append(jnp.square(diagonal - 1).sum())
            repeat.append(jnp.square(c).sum() - jnp.square(diagonal).sum())
        agree, repeat = (sum(values) / len(values) for values in (agree, repeat))
        any_rows = here.any()
        metrics = {'rows': here.sum(), 'agree': agree * any_rows, 'repeat': repeat * any_rows}
        loss = (agree + self.off_diagonal * repeat) * any_rows
        return TermOutput(loss, metrics, jnp.float32(d) * any_rows)

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        v, d = shape_of(shapes, self.of)
        return v * (v - 1) // 2 * d * d + 6 * v * d + 64  # the matrices; means, variances and their gradients


def normalised(z: Array, here: Array) -> Array:
    """z [B,V,D] with mean 0 and variance 1 over the rows that are `here` [B]; other rows are 0."""
    w = here[:, None, None].astype(jnp.float32)
    n = jnp.maximum(w.sum(), 1)
    z = (z - (w * z).sum(0) / n) * w
    return z * jax.lax.rsqrt(jnp.square(z).sum(0) / n + EPS)
