"""Predicted tokens of one crop differ from each other (the variance term of CheXWorld's code, arXiv 2504.13820).

A predictor could give the same features at all targets of a crop. For the predictions z [M,D] at the M targets of one
set, the deviation of dimension j is s_j = sqrt(variance_m z_mj + 1e-4), with M - 1. Its mean is taken over all crops of
a row, all contexts and all features of the term:

    loss = mean over rows, sets and j of  max(0, floor - mean s_j)

Sets of fewer than two targets do not count. There is no `start`, because the term predicts nothing: predictions can
differ and be wrong. The metric `deviation` is the mean s_j; equal predictions have .01. VICReg's variance (the term
`vicreg`) runs over the rows of the batch instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives.crops import feature_names
from medjax.objectives.features import Feature
from medjax.objectives.schedules import POSITIVE, number
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.objectives.trees import weight_at_mask

EPS = 1e-4  # of the variance


def build(context: TermContext, of: str | Sequence[str], floor: float = 1.0) -> Term:
    """The term `token_deviation` of a config.

    of     one or more features at one mask, as student/predictor/crop~block/patches@block
    floor  the deviation that is wanted
    """
    features = tuple(context.feature(name, 'of', per_row=True) for name in feature_names(context, of, 'of'))
    if not features or any(not f.at or f.at_mask != features[0].at_mask for f in features):
        raise UserError(f'{context.where}.of: its features must be tokens at one mask, as …/patches@block')
    return TokenDeviation(context, features, float(number(floor, f'{context.where}.floor', POSITIVE)))


@dataclasses.dataclass(frozen=True, eq=False)
class TokenDeviation(Term):
    """The term `token_deviation`; see the top of this file."""

    of: tuple[Feature, ...]
    floor: float

    def per_row(self, x: TermInputs) -> dict[str, Array]:
        """Sums over the rows and sets of each group: the hinge, the mean deviation, the number of rows and sets."""
        parts = [self.deviations(x, feature) for feature in self.of]
        total, count = (sum(values) for values in zip(*parts, strict=True))
        mean = total / jnp.maximum(count, 1)[..., None]
        there = count > 0  # bool [G,K,rows]

        def sum_of(values: Array) -> Array:
            return jnp.where(there, values, 0).sum((1, 2))

        hinge = jnp.maximum(0.0, self.floor - mean).mean(-1)
        return dict(hinge=sum_of(hinge), deviation=sum_of(mean.mean(-1)), count=sum_of(jnp.ones(there.shape)))

    def deviations(self, x: TermInputs, feature: Feature) -> tuple[Array, Array]:
        """The sum of the deviations of a row's predictions in each set, [G,K,rows,D], and their number, [G,K,rows]."""
        mask, z = x.masks[feature.at_mask], x.features[feature.name].astype(jnp.float32)
        groups, k, m = mask.index.shape
        if not mask.crop_room or z.ndim != 4 or z.shape[:2] != (groups, k):
            raise UserError(
                f'{self.context.where}.of: {feature.name!r} must have targets of its own in each crop; give the view a '
                "mask such as dict(mask='multiblock')"
            )
        b, v, _ = mask.bits.shape
        here = x.present(feature).reshape(b, v, -1).all(-1)
        weight = weight_at_mask(here, mask) > 0
        weight = weight.reshape(groups, k, b // groups, v, 1, mask.crop_room)
        z = z.reshape(groups, k, b // groups, v, z.shape[2] // m, mask.crop_room, z.shape[-1])
        there = jnp.broadcast_to(weight, z.shape[:-1]).astype(jnp.float32)[..., None]
        count = there.sum(-2)  # [G,K,rows,V,C,1]
        mean = (there * z).sum(-2) / jnp.maximum(count, 1)
        variance = (there * jnp.square(z - mean[..., None, :])).sum(-2) / jnp.maximum(count - 1, 1)
        counts = count > 1
        deviation = jnp.where(counts, jnp.sqrt(variance + EPS), 0)
        return deviation.sum((3, 4)), counts[..., 0].sum((3, 4))

    def loss(self, x: TermInputs) -> TermOutput:
        sums = {name: value.sum() for name, value in x.per_row.items()}
        count = jnp.maximum(sums['count'], 1)
        metrics = dict(rows=sums['count'], deviation=sums['deviation'] / count)
        return TermOutput(sums['hinge'] / count, metrics)
