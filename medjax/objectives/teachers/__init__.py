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
    teachers: tuple[str, ...] = ()  # the names of all teachers

    def check(self, of: Sequence[str]) -> tuple[str, ...]:
        """`of` as a tuple; a UserError where the recipe has no such tower or head."""
        for path in of:
            if path not in self.modules:
                raise UserError(f'{self.where}.of: there is no {path!r}{suggest(path, self.modules)}')
        return tuple(of)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A network with parameters of its own for some towers and heads of the recipe.

    A tower that only teachers without a source hold is no part of the student, and has no moments.
    """

    of: tuple[str, ...]  # 'towers/image', 'heads/dino'
    source: str | None = 'student'  # the network that it follows; None: none, its parameters stay as they start
    init_from: Mapping[str, Any] | None = None  # weights that it starts from, for this teacher alone

    def follow(self, teacher: Tree, source: Tree, step: Array) -> Tree:
        """The teacher's arrays after step `step`. Called for parameters and for running statistics.

        `source` holds those of the network that it follows, after that step. A teacher without a source is not asked.
        """
        raise NotImplementedError

    def metrics(self, step: Array) -> Metrics:
        """Numbers to log, such as the momentum."""
        return {}
