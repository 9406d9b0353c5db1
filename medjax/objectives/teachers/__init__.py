"""Teachers: networks that gradients do not reach. One module a rule, named in the config.

`rule='ema'` in `teachers` of a config is the module `medjax.objectives.teachers.ema`; a name with a dot is the user's
own. Its `build(of, context, **config)` returns a `Teacher`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax import Array

from medjax.errors import UserError, suggest
from medjax.types import Metrics, Tree


class TeacherContext(NamedTuple):
    """The facts of a recipe that a rule may use."""

    where: str  # the config path that messages name, 'teachers.teacher'
    total_steps: int
    modules: tuple[str, ...]  # the towers and heads of the recipe: 'towers/image', 'heads/dino'

    def check(self, of: Sequence[str]) -> tuple[str, ...]:
        """`of` as a tuple; a UserError where the recipe has no such tower or head."""
        for path in of:
            if path not in self.modules:
                raise UserError(f'{self.where}.of: there is no {path!r}{suggest(path, self.modules)}')
        return tuple(of)


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
    """A network with parameters of its own for some towers and heads of the recipe."""

    of: tuple[str, ...]  # 'towers/image', 'heads/dino'

    def follow(self, teacher: Tree, student: Tree, step: Array) -> Tree:
        """The teacher's arrays after step `step`. Called for parameters and for running statistics."""
        raise NotImplementedError

    def metrics(self, step: Array) -> Metrics:
        """Numbers to log, such as the momentum."""
        return {}

    def held(self, stats: Mapping[str, Any]) -> Tree:
        """The statistics of those towers that this teacher holds."""
        return {name: tree for name, tree in stats.items() if f'towers/{name}' in self.of}
