"""KoLeo: spreads features apart by the Kozachenko-Leonenko estimate of entropy (arXiv 1806.03198, 2304.07193).

For each view v, with x the L2-normalised features of the rows:

    loss = sum_v  - mean_b ln( || x_b - x_nn(b) + 1e-8 ||_2 + 1e-8 ),   nn(b) = argmax over other rows of x_b . x_j

Neighbours are looked up within one view, so two views of one image are never neighbours. The offset 1e-8 is added to
every element, as torch's pairwise distance does; without it duplicates give NaN gradients. A row that is alone is its
own neighbour. The term computes in float32, since in float16 the offsets vanish and duplicates give inf.

The plain formula is `medjax.objectives.formulas.koleo`; this term is its sum over the views where all rows are present
and within='batch'. The `weight` of the config entry acts in `Objective.loss` (medjax/objectives/compose.py), not here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives.features import Feature
from medjax.objectives.numerics import unit
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.parallel.sharding import everywhere

EPS = 1e-8


def build(context: TermContext, of: str, within: str = 'batch') -> Term:
    """The term `koleo` of a config.

    of      a feature [B,V,D]
    within  'batch' looks for neighbours among all rows, 'group' among the rows of a group. The original looks among the
            rows of one GPU: 'group' equals it if rows_per_group is the original's batch per GPU.
    """
    if within not in ('batch', 'group'):
        raise UserError(f"{context.where}.within={within!r}: must be 'batch' or 'group'")
    return Koleo(context, context.feature(of, 'of'), within)


@dataclasses.dataclass(frozen=True, eq=False)
class Koleo(Term):
    """The term `koleo`: the loss of KoLeo."""

    of: Feature
    within: str

    @property
    def least_rows(self) -> int:
        return 2  # a row that is alone has no neighbour

    def loss(self, x: TermInputs) -> TermOutput:
        features = x.feature(self.of, 'BVD').astype(jnp.float32)
        present = x.present(self.of)
        size = len(features) if self.within == 'batch' else self.context.rows_per_group
        groups = features.reshape(-1, size, *features.shape[1:]).transpose(0, 2, 1, 3)  # [G,V,size,D]
        here = present.reshape(-1, size, present.shape[1]).transpose(0, 2, 1)  # [G,V,size]
        # to look for neighbours among all rows, every device holds one copy of them
        distance = nearest_distance(groups, everywhere(groups) if self.within == 'batch' else groups, here)
        counts = jnp.maximum(present.sum(0), 1)  # [V]
        total = -jnp.sum(jnp.where(here, jnp.log(distance + EPS), 0.0), axis=(0, 2)) / counts
        return TermOutput(total.sum(), {'rows': present.any(1).sum()})

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        _, v, d = shapes[self.of.name]
        scalars = 8 * v
        return scalars if self.within == 'group' else 2 * rows * v * d + scalars  # rows out, their gradient back


def nearest_distance(x: Array, others: Array, present: Array) -> Array:
    """|| x_b - x_nn(b) + 1e-8 ||_2 of the L2-normalised rows; x [...,B,D], present bool [...,B] -> [...,B].

    Neighbours come from `others`, which has the values of x but may lie on other devices.
    """
    x, others = unit(x, EPS), unit(others, EPS)
    dots = jnp.einsum('...id,...jd->...ij', *jax.lax.stop_gradient((x, others)), precision='highest')
    itself = jnp.eye(x.shape[-2], dtype=bool)
    dots = jnp.where(itself | ~present[..., None, :], -1.0 - itself, dots)
    dots = jnp.where(itself & (present.sum(-1)[..., None, None] <= 1), 1.0, dots)  # a row that is alone
    nearest = jnp.argmax(dots, axis=-1)
    neighbour = jnp.take_along_axis(others, nearest[..., None], axis=-2)
    return jnp.sqrt(jnp.sum((x - neighbour + EPS) ** 2, axis=-1))
