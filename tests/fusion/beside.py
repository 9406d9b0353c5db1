"""A mask of contexts beside another mask's targets, as in joint-embedding prediction (arXiv 2301.08243)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from medjax.views.masks import Drawn, Generator, MaskContext, Texts


def build(context: MaskContext, after: Sequence[str] = (), contexts: int = 2, most: int = 6) -> Generator:
    """The mask `fusion.beside` of a config.

    after     masks whose tokens are in no context
    contexts  K, random contexts of each crop
    most      M', room for the tokens of a context
    """
    rows, columns = context.image_grid()
    return Beside(context=context, after=tuple(after), tokens=rows * columns, contexts=contexts, room=most)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Beside(Generator):
    per = 'row'
    mode = 'drop'

    tokens: int
    contexts: int
    room: int

    @property
    def most(self) -> int:
        return self.context.crops * self.tokens

    def draw(self, key: Array, texts: Texts | None, others: tuple[Drawn, ...]) -> Drawn:
        u = jax.random.uniform(key, (self.context.per_row, self.contexts, self.tokens))
        free = jnp.ones((self.context.per_row, 1, self.tokens), bool)
        for other in others:
            free &= ~other.bits[:, None]
        order = jnp.argsort(jnp.where(free, u, 2.0))[..., : self.room].astype(jnp.int32)
        length = jnp.minimum(free.sum(-1), self.room) * jnp.ones((1, self.contexts), jnp.int32)
        seen = (order[..., None] == jnp.arange(self.tokens)) & (jnp.arange(self.room) < length[..., None])[..., None]
        return Drawn(~seen.any((1, 2)), kept=order, length=length.astype(jnp.int32))
