"""A teacher that is an exponential moving average of the student (Mean Teacher, arXiv 1703.01780).

After every optimizer step t <- m t + (1 - m) s, with m = momentum(step).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax import Array

from medjax.objectives.schedules import SHARE, Schedule, schedule
from medjax.objectives.teachers import Teacher, TeacherContext
from medjax.types import Metrics, Tree


def build(of: Sequence[str], context: TeacherContext, momentum: Any) -> Teacher:
    """`of`: the towers and heads that the teacher holds, as ['towers/image', 'heads/dino']; `momentum`: a schedule."""
    decay = schedule(momentum, context.total_steps, f'{context.where}.momentum', SHARE)
    return Ema(of=context.check(of), momentum=decay)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Ema(Teacher):
    momentum: Schedule

    def follow(self, teacher: Tree, source: Tree, step: Array) -> Tree:
        m = self.momentum(step)
        return jax.tree.map(lambda t, s: m * t + (1 - m) * s, teacher, source)

    def metrics(self, step: Array) -> Metrics:
        return {'momentum': self.momentum(step)}
