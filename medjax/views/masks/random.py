"""Random masks of exact size: each crop loses the same number of patches, drawn without replacement.

Masked autoencoders (MAE, arXiv 2111.06377) drop three quarters of the patches, so that the encoder reads the others
alone. SimMIM (2111.09886) replaces them by a mask token. SparK (2301.03580) sets them to zero in every layer of a
convolutional tower.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.views.masks import Drawn, Generator, MaskContext, Texts, share as checked_share


def build(context: MaskContext, share: float = 0.75, mode: str = 'drop', after: Sequence[str] = ()) -> Generator:
    """The mask `random` of a config.

    share  of the patches of a crop that are masked. int(N (1 - share)) of N patches stay, as in the original of MAE: of
           100 patches .9 leaves 9, because 1 - .9 is a little less than .1. With the mode 'zero' the number is rounded,
           halves to even, as in the original of SparK: of 49 patches .6 leaves 20
    mode   'drop': the tower reads only the patches that stay. 'replace': the mask token stands in the other places.
           'zero': the others are 0 in every layer, which is for convolutional towers
    after  masks, as 'view~mask', whose patches stay as far as there is room: no more than stay in all
    """
    rows, columns = context.image_grid()
    patches = rows * columns
    if mode not in MODES:
        raise UserError(f"{context.where}.mode={mode!r}: must be 'drop', 'replace' or 'zero'")
    stay = patches * (1 - checked_share(share, f'{context.where}.share'))
    kept = round(stay) if mode == 'zero' else int(stay)
    if kept < 1:
        raise UserError(f'{context.where}.share={share}: {kept} of {patches} patches would stay; at least one must')
    if kept == patches:
        raise UserError(f'{context.where}.share={share}: all {patches} patches would stay; at least one must be masked')
    return MODES[mode](context=context, after=after, patches=patches, kept=kept)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Replace(Generator):
    """Random patches are masked."""

    per = 'row'

    patches: int  # N
    kept: int  # patches of a crop that stay

    @property
    def most(self) -> int:
        return self.context.crops * (self.patches - self.kept)

    def draw(self, key: Array, texts: Texts | None, others: tuple[Drawn, ...]) -> Drawn:
        u = jax.random.uniform(key, (self.context.per_row, self.patches))
        for other in others:
            u = jnp.where(other.bits, -1.0, u)  # these stay, being first in the order
        return self.of_order(jnp.argsort(u))

    def of_order(self, order: Array) -> Drawn:
        """The mask that keeps the first patches of an order, int32 [n,N]."""
        rank = jnp.argsort(order)
        return Drawn(rank >= self.kept)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Drop(Replace):
    """Random patches are masked, and towers read the others alone."""

    mode = 'drop'

    def of_order(self, order: Array) -> Drawn:
        kept = jnp.sort(order[:, : self.kept])
        return super().of_order(order)._replace(kept=kept[:, None].astype(jnp.int32))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Zero(Replace):
    """Random patches are 0 in every layer of a convolutional tower."""

    mode = 'zero'


MODES = {'drop': Drop, 'replace': Replace, 'zero': Zero}
