"""Crops of an image have near embeddings, and the embeddings of the batch are normal (LeJEPA, arXiv 2511.08544).

There is no teacher and no stopped gradient. For embeddings z [B,V,D] of N rows, of which the first G crops are global,

    loss = (1 - share) prediction + share mean_v SIGReg(z_v)
    prediction = mean_{b, v, d} ( z_bvd - mean_{g <= G} z_bgd )^2

SIGReg compares the embeddings along random directions a with the normal distribution, by the test of Epps and Pulley:

    SIGReg(z) = mean_a  N integral_{-3}^{3} | 1/N sum_b exp(i t a.z_b) - exp(-t^2 / 2) |^2 exp(-t^2 / 2) dt

The integral is a sum over 17 points from 0 to 3 by the trapezoidal rule, twice, because the integrand is even. The
directions are drawn anew in each step, the same on all devices. The means run over all rows of the batch on all
devices, and under micro-batches over the whole batch too. Images count if all their crops are present. `start` is the
loss of embeddings that are all 0.

Compared with rbalestr-lab/lejepa, MINIMAL.md and lejepa/univariate/epps_pulley.py. The paper's listing has 17 points
from -5 to 5 instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.objectives.crops import crop_features, embeddings, feature_names, shape_of
from medjax.objectives.features import Feature
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.types import is_number, is_whole

POINTS, LAST = 17, 3.0


def build(
    context: TermContext,
    of: str | Sequence[str],
    others: str | Sequence[str] = (),
    share: float = 0.05,
    directions: int = 1024,
) -> Term:
    """The term `lejepa` of a config.

    of          one or more features [B,V,D] of global crops
    others      features of local crops, which the mean of the global ones predicts too
    share       lambda, the share of SIGReg in the loss
    directions  number of random directions of a step
    """
    if not is_number(share) or not 0 <= share <= 1:
        raise UserError(f'{context.where}.share={share!r}: must be a number from 0 to 1')
    if not is_whole(directions) or directions < 1:
        raise UserError(f'{context.where}.directions={directions!r}: must be a whole number of at least 1')
    first = feature_names(context, of, 'of')
    features = crop_features(context, [*first, *feature_names(context, others, 'others')])
    return Lejepa(context, features, len(first), share, directions)


@dataclasses.dataclass(frozen=True, eq=False)
class Lejepa(Term):
    """The term `lejepa`; see the top of this file."""

    of: tuple[Feature, ...]
    global_features: int  # the first of them
    share: float
    directions: int

    @property
    def least_rows(self) -> int:
        return 2

    def loss(self, x: TermInputs) -> TermOutput:
        z, here = embeddings(x, self.of)
        n, (v, d) = jnp.maximum(here.sum(), 1).astype(jnp.float32), z.shape[1:]
        global_crops = sum(x.features[f.name].shape[1] for f in self.of[: self.global_features])
        centre = z[:, :global_crops].mean(1, keepdims=True)
        prediction = jnp.where(here[:, None, None], jnp.square(z - centre), 0.0).sum() / (n * v * d)
        a = jax.random.normal(x.key, (d, self.directions))
        normal = sigreg(z, a / jnp.linalg.norm(a, axis=0), here)
        t, phi, weight = quadrature()
        zero = n * (np.square(1 - phi) * weight).sum()
        metrics = {'rows': here.sum(), 'prediction': prediction, 'sigreg': normal}
        loss = (1 - self.share) * prediction + self.share * normal
        return TermOutput(loss, metrics, self.share * zero * here.any())

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        v, _ = shape_of(shapes, self.of)
        return 2 * POINTS * v * self.directions + 64  # cosines and sines at each point


def quadrature() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The points t, the normal distribution's characteristic function there, and the weight of each point."""
    t = np.linspace(0, LAST, POINTS)
    phi = np.exp(-(t**2) / 2)
    step = np.full(POINTS, 2 * LAST / (POINTS - 1))
    step[[0, -1]] /= 2
    return t.astype(np.float32), phi.astype(np.float32), (step * phi).astype(np.float32)


def sigreg(z: Array, directions: Array, here: Array) -> Array:
    """The mean statistic of Epps and Pulley of z [B,V,D] along unit directions [D,A], over the V crops.

    Only rows that are `here` [B] count.
    """
    projected = jnp.einsum('bvd,da->bva', z, directions, precision='highest')
    w = here[:, None, None].astype(jnp.float32)
    n = jnp.maximum(w.sum(), 1)

    @jax.checkpoint  # keeps the projections and not their cosines at all points
    def at_point(point: tuple[Array, Array, Array]) -> Array:
        t, phi, weight = point
        real, imaginary = ((w * f(t * projected)).sum(0) / n for f in (jnp.cos, jnp.sin))
        return weight * (jnp.square(real - phi) + jnp.square(imaginary))

    statistic = n * jax.lax.map(at_point, tuple(map(jnp.asarray, quadrature()))).sum(0)  # [V,A]
    return statistic.mean() * here.any()
