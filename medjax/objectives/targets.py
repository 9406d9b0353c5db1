"""How a teacher's logits become targets: centring by a running mean, or Sinkhorn; shared by the distillation terms."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives import numerics
from medjax.objectives.features import Feature
from medjax.objectives.schedules import schedule
from medjax.objectives.terms import Context
from medjax.types import Tree


class Targets(NamedTuple):
    """The options of a distillation term that make softmax(teacher / temperature + potential) of its logits.

    'sinkhorn': the potential balances this batch (DINOv2's long recipe). 'centre': it is -c / temperature with the
    running mean c <- m c + (1 - m) mean(logits) of the teacher's logits (DINO, 2104.14294). The original applies
    that update at the start of the next step, which is the same as at the end of this one.
    """

    centring: str
    temperature: Any  # step -> float
    momentum: float
    prototypes: int  # K
    iterations: int

    def potential(self, aux: Tree, logits: numerics.Logits, z: Array, weight: Array, step: Array) -> Array:
        """[K], for bottlenecks z [R,d] of which those with weight 0 do not count."""
        if self.centring == 'sinkhorn':
            return numerics.sinkhorn(logits, z, weight, self.temperature(step), self.prototypes, self.iterations)
        return -aux['centre'] / self.temperature(step)

    def init(self, key: Array) -> tuple[Tree, Tree]:
        return {}, ({} if self.centring == 'sinkhorn' else {'centre': jnp.zeros(self.prototypes, jnp.float32)})

    @property
    def axes(self) -> tuple[Tree, Tree]:
        return {}, ({} if self.centring == 'sinkhorn' else {'centre': (None,)})

    def update(self, aux: Tree, carry: tuple[Array, Array], step: Array) -> Tree:
        """carry: the batch's mean logits [K] and how many rows they are the mean of (none leaves the centre alone)."""
        if self.centring == 'sinkhorn':
            return aux
        mean, rows = carry
        moved = self.momentum * aux['centre'] + (1 - self.momentum) * mean
        return {'centre': jnp.where(rows > 0, moved, aux['centre'])}

    @property
    def moves(self) -> int:
        """Elements reduced over devices: maxima and sums of Sinkhorn, the gauges' sums, the centre's mean."""
        return self.prototypes * (2 * self.iterations + 4) + 64


def targets(
    context: Context,
    teacher: Feature,
    centring: str,
    temperature: Any,
    momentum: float,
    iterations: int,
) -> Targets:
    if centring not in ('sinkhorn', 'centre'):
        raise UserError(f"{context.where}.centring: 'sinkhorn' or 'centre', got {centring!r}")
    return Targets(
        centring,
        schedule(temperature, context.total_steps, f'{context.where}.teacher_temperature'),
        momentum,
        count_of(context, teacher),
        iterations,
    )


def count_of(context: Context, feature: Feature) -> int:
    """K of the feature's head; a term that compares prototypes needs one."""
    head = context.heads.get(feature.head or '')
    if head is None or not head.prototype_count:
        raise UserError(
            f'{context.where}: {feature.name!r} must end in the name of a head with prototypes, like ">dino"'
        )
    return head.prototype_count


def gauges(sums: numerics.Distilled, teacher_weight: Array, count: int, seen: Array) -> dict[str, Array]:
    """Teacher entropy (mean, nats) with its maximum ln K, and how many prototypes the student uses: exp(entropy of its
    mean probabilities), 1 where it says one prototype of all, up to K where it says the mean of all; beside it how many
    there would be if each row had one prototype of its own."""
    return {
        'entropy': sums.entropy / jnp.maximum(teacher_weight.sum(), 1e-30),
        'entropy_max': jnp.log(float(count)),
        'prototypes': numerics.perplexity(sums.student),
        'prototypes_max': jnp.clip(seen, 1.0, count),
    }
