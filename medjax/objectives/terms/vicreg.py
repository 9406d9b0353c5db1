"""Crops of an image have near embeddings, dimensions vary, and they do not repeat each other (VICReg, 2105.04906).

For embeddings z [B,V,D] of N rows, with the deviation s_vi = sqrt(variance_b z_bvi + 1e-4) and the covariance C_v of
crop v, both with N - 1:

    loss = invariance  mean_{v < w, b, i} (z_bvi - z_bwi)^2
         + variance    mean_{v, i} max(0, 1 - s_vi)
         + covariance  2 mean_v  1/D sum_{i != j} (C_v)_ij^2

With two crops this is the original: its variance is the mean of the two crops, and its covariance their sum. The
statistics run over all rows of the batch on all devices, and under micro-batches over the whole batch too. Images count
if all their crops are present. `start` is .99 `variance`, the loss of equal embeddings. Compared with
facebookresearch/vicreg, main_vicreg.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations

import jax
import jax.numpy as jnp

from medjax.errors import UserError
from medjax.objectives.crops import crop_features, embeddings, feature_names, shape_of
from medjax.objectives.features import Feature
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.types import is_number

EPS = 1e-4  # of the variance


def build(
    context: TermContext,
    of: str | Sequence[str],
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Term:
    """The term `vicreg` of a config.

    of      one or more features [B,V,D], with two crops or more together. VICReg reads each crop as a view of its own,
            so that each has its own statistics in towers and heads with a BatchNorm
    invariance, variance, covariance  the weights of the three parts
    """
    for name, value in dict(invariance=invariance, variance=variance, covariance=covariance).items():
        if not is_number(value) or value < 0:
            raise UserError(f'{context.where}.{name}={value!r}: must be a number of at least 0')
    return Vicreg(context, crop_features(context, feature_names(context, of, 'of')), invariance, variance, covariance)


@dataclasses.dataclass(frozen=True, eq=False)
class Vicreg(Term):
    """The term `vicreg`; see the top of this file."""

    of: tuple[Feature, ...]
    invariance: float
    variance: float
    covariance: float

    @property
    def least_rows(self) -> int:
        return 2

    def loss(self, x: TermInputs) -> TermOutput:
        z, here = embeddings(x, self.of)
        w = here[:, None, None].astype(jnp.float32)
        n, (v, d) = w.sum(), z.shape[1:]
        pairs = list(combinations(range(v), 2))
        apart = sum((jnp.square(z[:, a] - z[:, b]) * w[:, 0]).sum() for a, b in pairs)
        near = apart / (jnp.maximum(n, 1) * d * len(pairs))
        z = (z - (w * z).sum(0) / jnp.maximum(n, 1)) * w
        less_one = jnp.maximum(n - 1, 1)
        deviation = jnp.sqrt(jnp.square(z).sum(0) / less_one + EPS)  # [V,D]
        spread = jax.nn.relu(1 - deviation).mean()
        repeat = 0.0
        for i in range(v):
            c = jnp.einsum('bi,bj->ij', z[:, i], z[:, i], precision='highest') / less_one
            repeat += 2 / (v * d) * (jnp.square(c).sum() - jnp.square(jnp.diagonal(c)).sum())
        some = n > 0
        metrics = {'rows': n, 'invariance': near, 'variance': spread * some, 'covariance': repeat}
        loss = (self.invariance * near + self.variance * spread + self.covariance * repeat) * some
        return TermOutput(loss, metrics, self.variance * (1 - EPS**0.5) * some)

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        v, d = shape_of(shapes, self.of)
        return v * d * d + 6 * v * d + 64  # the covariances; means, deviations and their gradients
