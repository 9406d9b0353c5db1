"""Masked crops predict a teacher's assignment of another crop to prototypes (MSN, arXiv 2204.07141).

With unit embeddings z_bs of S anchors and t_b of the target, and K unit prototypes:

    p_bs = softmax( z_bs . prototypes / temperature )
    q_b  = Sinkhorn( softmax( t_b . prototypes / (temperature sharpening) ) )     without gradient, over the batch
    loss = mean_bs  CE( q_b, p_bs )  +  me_max ( ln K - H( mean_bs p_bs ) )

Anchors are crops that the student sees masked or small. The target is one crop, which a teacher sees whole. H is the
entropy. Its maximum keeps the mean prediction from falling on a few prototypes. Sinkhorn does the same for the targets;
`iterations=0` leaves it out. It begins with rows that sum to 1, in `swav` with exp(scores).

The prototypes are parameters of this term, [d,K]. The targets are made with the same ones, and not with a teacher's.

`start` is ln K where Sinkhorn balances the targets. Without it there is none, because no formula gives it. Compared
with loops that follow facebookresearch/msn, src/losses.py: tests/objectives/test_msn.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.models.layers import uniform_fan_in
from medjax.objectives import numerics
from medjax.objectives.crops import EXAMPLE, crop_features, feature_names
from medjax.objectives.features import Feature
from medjax.objectives.schedules import NOT_NEGATIVE, POSITIVE, Range, number
from medjax.objectives.targets import gauges
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.types import Tree, is_whole


def build(
    context: TermContext,
    of: str | Sequence[str],
    target: str,
    prototypes: int = 1024,
    temperature: float = 0.1,
    sharpening: float = 0.25,
    me_max: float = 1.0,
    iterations: int = 3,
) -> Term:
    """The term `msn` of a config.

    of           one or more features [B,S,d] of the anchors
    target       a feature [B,1,d] of a teacher, of one other crop
    prototypes   K
    temperature  of the cosines
    sharpening   the temperature of the targets as a share of `temperature`
    me_max       weight of the entropy of the mean prediction
    iterations   of Sinkhorn; 0: the targets are not balanced
    """
    where = context.where
    number(temperature, f'{where}.temperature', POSITIVE)
    number(sharpening, f'{where}.sharpening', Range('above 0, at most 1', lambda x: 0 < x <= 1))
    number(me_max, f'{where}.me_max', NOT_NEGATIVE)
    for name, count, least in (('prototypes', prototypes, 2), ('iterations', iterations, 0)):
        if not is_whole(count) or count < least:
            raise UserError(f'{where}.{name}={count!r}: must be a whole number of at least {least}')
    if not isinstance(target, str):
        raise UserError(
            f"{where}.target={target!r}: must be the name of one feature, 'teacher/image/crop/cls>projector'"
        )
    names = feature_names(context, of, 'of')
    if not names:
        raise UserError(f'{where}.of: no feature is named; name one of crops, such as {EXAMPLE!r}')
    *anchors, of_target = crop_features(context, [*names, target])
    if (crops := context.crops.get(of_target.view, 1)) != 1:
        raise UserError(
            f'{where}.target: {target!r} has {crops} crops, and the term has one target; give it a view of one'
        )
    return Msn(context, tuple(anchors), of_target, prototypes, temperature, sharpening, me_max, iterations)


@dataclasses.dataclass(frozen=True, eq=False)
class Msn(Term):
    """The term `msn`; see the top of this file."""

    of: tuple[Feature, ...]
    target: Feature
    prototypes: int
    temperature: float
    sharpening: float
    me_max: float
    iterations: int

    def loss(self, x: TermInputs) -> TermOutput:
        anchors = numerics.unit(jnp.concatenate([x.feature(f, 'BVD') for f in self.of], axis=1))
        target = numerics.unit(x.feature(self.target, 'BVD'))
        here = jnp.concatenate([x.present(f) for f in self.of], axis=1)
        target_here = x.present(self.target).astype(jnp.float32)  # [B,1]
        counts = here[:, :, None] * target_here[:, None, :]  # [B,S,1]
        total = jnp.maximum(counts.sum(), 1)

        prototypes = numerics.unit(x.params['prototypes'].T).T

        def scores(z: Array) -> Array:
            return jnp.matmul(z, prototypes, precision='highest')

        def sharpened(z: Array) -> Array:
            """The logarithms of the targets before Sinkhorn."""
            return jax.nn.log_softmax(scores(z) / (self.temperature * self.sharpening))

        potential = jnp.zeros(self.prototypes)
        if self.iterations:
            rows = target[:, 0], target_here[:, 0]
            potential = numerics.sinkhorn_potential(sharpened, *rows, 1.0, self.prototypes, self.iterations)
        sums = numerics.distill(
            numerics.Softmax(scores, anchors, self.temperature),
            numerics.Softmax(sharpened, target, 1.0),
            counts / total, target_here, potential, self.prototypes, student_gradient=True,
        )  # fmt: skip

        any_rows = counts.sum() > 0
        uniform = jnp.log(float(self.prototypes))
        mean = sums.student / total
        missing = (uniform + jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-38)))) * any_rows
        metrics = {
            'rows': jnp.any(counts > 0, axis=(1, 2)).sum(),
            'me_max': missing,
            **gauges(sums, target_here, self.prototypes, counts.sum()),
        }
        start = uniform * any_rows if self.iterations else None
        return TermOutput(sums.loss.sum() + self.me_max * missing, metrics, start)

    def init(self, key: Array) -> tuple[Tree, Tree]:
        width = self.context.width(self.target.name)
        return {'prototypes': uniform_fan_in(width)(key, (width, self.prototypes))}, {}

    @property
    def axes(self) -> tuple[Tree, Tree]:
        return {'prototypes': ('bottleneck', 'prototypes')}, {}

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return self.prototypes * (2 * self.iterations + 6) + 4 * sum(shapes[f.name][1] for f in self.of) + 64
