"""Targets from a teacher's logits, and the base of the two distillation terms.

A target is softmax(teacher logits / temperature + potential). The potential comes from centring by a running mean, or
from Sinkhorn.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives import numerics
from medjax.objectives.features import Feature
from medjax.objectives.schedules import POSITIVE, SHARE, number, schedule
from medjax.objectives.terms import Term, TermContext, TermInputs
from medjax.types import Metrics, Tree, is_whole

TARGET_MOMENTUM = 0.99  # of the mean target, which health needs


class Targets(NamedTuple):
    """The options that turn a teacher's logits into targets.

    'sinkhorn': the potential balances the prototypes over this batch (DINOv2's long recipe, arXiv 2304.07193).
    'centre': the potential is -c / temperature, where c <- m c + (1 - m) mean(logits) is a running mean of the
    teacher's logits (DINO, arXiv 2104.14294). The original applies that update at the start of the next step, which
    gives the same numbers as at the end of this one.
    """

    centring: str
    temperature: Any  # step -> float
    momentum: float  # m
    prototypes: int  # K
    iterations: int  # of Sinkhorn

    def potential(self, state: Tree, logits: numerics.Logits, z: Array, weight: Array, step: Array) -> Array:
        """[K], for bottlenecks z [R,d]. Rows with weight 0 do not count."""
        if self.centring == 'sinkhorn':
            return numerics.sinkhorn_potential(
                logits, z, weight, self.temperature(step), self.prototypes, self.iterations
            )
        return -state['centre'] / self.temperature(step)

    def first_state(self) -> Tree:
        """The state of a term: the centre, and the mean target over past batches. Sinkhorn needs none."""
        if self.centring == 'sinkhorn':
            return {}
        k = self.prototypes
        return {'centre': jnp.zeros(k, jnp.float32), 'target': jnp.full(k, 1 / k, jnp.float32)}

    def follow(self, state: Tree, logits: Array, target: Array, rows: Array) -> Tree:
        """The state after a batch with mean logits and mean target [K] over `rows` rows; without rows it stays."""
        if self.centring == 'sinkhorn':
            return state
        moved = {
            'centre': self.momentum * state['centre'] + (1 - self.momentum) * logits,
            'target': TARGET_MOMENTUM * state['target'] + (1 - TARGET_MOMENTUM) * target,
        }
        return {name: jnp.where(rows > 0, x, state[name]) for name, x in moved.items()}

    def start(self, state: Tree, target: Array) -> Array:
        """The cross-entropy of the batch's mean target [K] and the best constant answer.

        That answer is the mean target. It is taken over past batches, because a batch has fewer rows than prototypes:
        its own mean would be as sharp as its targets. Where targets move fast, past batches may say less than the
        uniform answer, whose cross-entropy is ln K. Sinkhorn balances the targets, so there it is ln K.
        """
        uniform = jnp.log(float(self.prototypes))
        if self.centring == 'sinkhorn':
            return uniform
        answer = (state['target'] + 1e-4 / self.prototypes) / (1 + 1e-4)  # a target that never came is still possible
        return jnp.minimum(-jnp.sum(target * jnp.log(answer)), uniform)


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation(Term):
    """The base of terms in which a student predicts a teacher over the prototypes of a head."""

    students: tuple[Feature, ...]  # all through one head
    teacher: Feature
    targets: Targets
    student_temperature: float

    def teacher_logits(self, x: TermInputs) -> numerics.Logits:
        """z [...,d] -> logits [...,K] of the teacher's head."""
        return x.prototypes(self.teacher.head, self.teacher.network)

    def student_logits(self, x: TermInputs) -> numerics.Logits:
        return x.prototypes(self.students[0].head, self.students[0].network)

    def init(self, key: Array) -> tuple[Tree, Tree]:
        return {}, self.targets.first_state()

    @property
    def axes(self) -> tuple[Tree, Tree]:
        return {}, dict.fromkeys(jax.eval_shape(self.targets.first_state), (None,))  # also where no device is

    def update(self, state: Tree, carry: tuple[Array, Array, Array], step: Array) -> Tree:
        """carry: the batch's mean teacher logits and mean target [K], and over how many rows."""
        return self.targets.follow(state, *carry)

    def elements_of_targets(self) -> int:
        """Elements reduced over devices: maxima and sums of Sinkhorn, sums of the gauges, mean logits and targets."""
        return self.targets.prototypes * (2 * self.targets.iterations + 5) + 64


def targets(
    context: TermContext, teacher: Feature, centring: str, temperature: Any, momentum: float, iterations: int
) -> Targets:
    """The options of a distillation term, checked."""
    if centring not in ('sinkhorn', 'centre'):
        raise UserError(f"{context.where}.centring: 'sinkhorn' or 'centre', got {centring!r}")
    if not is_whole(iterations) or iterations < 1:
        raise UserError(f'{context.where}.iterations={iterations!r}: must be a whole number of at least 1')
    return Targets(
        centring,
        schedule(temperature, context.total_steps, f'{context.where}.teacher_temperature', POSITIVE),
        number(momentum, f'{context.where}.momentum', SHARE),
        prototypes_of(context, teacher),
        iterations,
    )


def prototypes_of(context: TermContext, feature: Feature) -> int:
    """K, the number of prototypes of the feature's head; UserError where the head has none."""
    head = context.heads.get(feature.head or '')
    if head is None or not head.prototype_count:
        raise UserError(
            f'{context.where}: {feature.name!r} must end in the name of a head with prototypes, like ">dino"'
        )
    return head.prototype_count


def gauges(sums: numerics.Distilled, teacher_weight: Array, count: int, rows: Array) -> Metrics:
    """Metrics: the sharpness of the targets, and the number of prototypes that the student uses.

    entropy: mean entropy of the targets in nats; entropy_max: its maximum ln K. prototypes: exp(entropy of the
    student's mean probabilities), from 1 (one prototype for all rows) to K; prototypes_max: the most that `rows` rows
    with one prototype each could use.
    """
    return {
        'entropy': sums.entropy / jnp.maximum(teacher_weight.sum(), 1e-30),
        'entropy_max': jnp.log(float(count)),
        'prototypes': numerics.perplexity(sums.student),
        'prototypes_max': jnp.clip(rows, 1.0, count),
    }
