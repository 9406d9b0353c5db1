"""Masked words of texts, as BERT masks them (arXiv 1810.04805).

Of the masked tokens 80 % become the mask token, 10 % a random token, and 10 % stay as they are. Padding and the first
and last token of a text are never masked.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.types import is_number
from medjax.views.masks import Drawn, Generator, MaskContext, Texts, share as checked_share


def build(context: MaskContext, share: float = 0.15, masked: float = 0.8, random: float = 0.1) -> Generator:
    """The mask `words` of a config.

    share   probability that a token is masked
    masked  share of the masked tokens that become the mask token
    random  share of the masked tokens that become a random token; the others stay as they are
    """
    checked_share(share, f'{context.where}.share')
    if context.sees != 'text':
        raise UserError(f'{context.where}: this mask is for texts, and the view shows {context.sees}s')
    shares = masked, random
    if not all(is_number(x) and 0 <= x <= 1 for x in shares) or sum(shares) > 1:
        raise UserError(f'{context.where}: masked={masked!r} and random={random!r} are shares with a sum of at most 1')
    tokens = context.tokens or {}
    if tokens and tokens.get('mask') is None:
        raise UserError(
            f'{context.where}: the tokenizer has no mask token. `medjax tokenizer` makes one that has; for a file of '
            "your own, add the token '[MASK]'"
        )
    return Words(context=context, share=share, masked=masked, random=random)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Words(Generator):
    """The mask `words`; see `build`."""

    per = 'row'

    share: float
    masked: float
    random: float

    @property
    def most(self) -> int:
        return self.context.crops * self.context.length

    def draw(self, key: Array, texts: Texts | None, others: tuple[Drawn, ...]) -> Drawn:
        tokens = self.context.tokens
        if texts is None or tokens is None:
            raise UserError(f'{self.context.where}: needs texts and their tokenizer')
        u = jax.random.uniform(key, (3, *texts.x.shape))
        free = texts.valid
        for special in ('first', 'last', 'pad'):
            if tokens[special] is not None:
                free &= texts.x != tokens[special]
        bits = free & (u[0] < self.share)
        chosen = jnp.floor(u[2] * tokens['vocabulary']).astype(texts.x.dtype)
        fill = jnp.where(u[1] < self.masked, tokens['mask'], chosen)
        return Drawn(bits, fill=jnp.where(u[1] < self.masked + self.random, fill, texts.x))
