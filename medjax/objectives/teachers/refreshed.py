"""A teacher that takes over the parameters of another network every n steps, and stays the same in between.

The network is another teacher, or the student. An example is the target network of arXiv 1312.5602.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError, suggest
from medjax.objectives.teachers import Teacher, TeacherContext
from medjax.types import Tree, is_whole


def build(of: Sequence[str], context: TeacherContext, every: int, source: str = 'student') -> Teacher:
    """The rule `refreshed` of a config.

    of      the towers and heads that the teacher holds
    every   steps between two copies; the first copy is after step `every`
    source  the network that is copied: 'student', or the name of another teacher that holds the same modules
    """
    if not is_whole(every) or every < 1:
        raise UserError(f'{context.where}.every={every!r}: must be a whole number of steps of at least 1')
    networks = ('student', *(name for name in context.teachers if context.where != f'teachers.{name}'))
    if source not in networks:
        raise UserError(f'{context.where}.source: there is no other network {source!r}{suggest(source, networks)}')
    return Refreshed(of=context.check(of), source=source, every=every)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Refreshed(Teacher):
    every: int

    def follow(self, teacher: Tree, source: Tree, step: Array) -> Tree:
        now = (step + 1) % self.every == 0
        return jax.tree.map(lambda t, s: jnp.where(now, s, t), teacher, source)
