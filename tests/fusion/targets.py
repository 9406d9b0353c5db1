"""Masks with several sets of targets: K blocks of two columns of patches, drawn for each row or for each group."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from medjax.views.masks import Drawn, Generator, MaskContext, Texts


def build(context: MaskContext, per: str = 'row', sets: int = 3) -> Generator:
    """The mask `fusion.targets` of a config: `sets` sets of targets for each 'row' or 'group'."""
    rows, columns = context.image_grid()
    return {'row': Targets, 'group': OfGroup}[per](context=context, rows=rows, columns=columns, sets=sets)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Targets(Generator):
    per = 'row'

    rows: int
    columns: int
    sets: int

    @property
    def most(self) -> int:
        return self.context.crops * self.rows * 2

    def draw(self, key: Array, texts: Texts | None, others: tuple[Drawn, ...]) -> Drawn:
        n = self.context.per_row if self.per == 'row' else self.context.crops
        left = jax.random.randint(key, (self.sets, n, 1), 0, self.columns - 1)
        column = jnp.arange(self.rows * self.columns) % self.columns
        targets = (column == left) | (column == left + 1)
        targets &= (jnp.arange(n)[:, None] + jnp.arange(self.sets)[:, None, None]) % 3 != 0  # some crops have none
        return Drawn(targets.any(0), targets=targets)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OfGroup(Targets):
    per = 'group'
