"""Masks: which tokens of a view are masked. One module a kind, named in the config.

`mask='blocks'` in `masks` of a config is the module `medjax.views.masks.blocks`; a name with a dot is the user's own.
Its `build(context, **config)` returns a `Generator`. See docs/add_a_mask.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.types import Mask, is_number


class MaskContext(NamedTuple):
    """The facts of a recipe that a mask may use when it is built."""

    where: str  # the config path that messages name, 'masks.global~block'
    sees: str  # 'image' or 'text': the kind of the masked view
    per_row: int  # V, crops or texts of each row
    rows_per_group: int
    grid: tuple[int, int] | None = None  # images: rows and columns of patches of a crop
    length: int = 0  # texts: T, tokens of a text
    tokens: Mapping[str, int | None] | None = (
        None  # texts: vocabulary, pad, first, last, mask, unknown of the tokenizer
    )

    @property
    def crops(self) -> int:
        """The crops of a group of rows."""
        return self.per_row * self.rows_per_group

    def image_grid(self) -> tuple[int, int]:
        """The grid of patches; a UserError for a view of texts."""
        if self.grid is None:
            raise UserError(f'{self.where}: this mask is for images, and the view shows {self.sees}s')
        return self.grid


class Texts(NamedTuple):
    """The texts of one unit (a row, or a group of rows), n of them."""

    x: Array  # int32 [n,T], token ids
    valid: Array  # bool [n,T]


class Drawn(NamedTuple):
    """The mask of one unit: n crops or texts of a row, or of a group of rows."""

    bits: Array  # bool [n,N]
    kept: Array | None = None  # int32 [n,K,M'], see `Mask`
    length: Array | None = None  # int32 [n,K]
    fill: Array | None = None  # int32 [n,N]
    targets: Array | None = None  # bool [K,n,N]: sets of targets for `Mask.index`; None: the masked tokens are one set


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Generator:
    """Draws masks. A key belongs to a row or a group, and never to a position in the batch."""

    per: ClassVar[Literal['row', 'group']] = 'group'  # the unit of one draw
    mode: ClassVar[Literal['replace', 'drop', 'zero']] = 'replace'  # see `Mask`

    context: MaskContext
    after: Sequence[str] = ()  # masks that this one must see, as 'view~mask'; `draw` gets them as `others`

    @property
    def most(self) -> int:
        """M, room for the targets of a group in each of the K sets: the largest number that a draw can have."""
        if not self.crop_room:
            raise NotImplementedError
        return self.context.crops * self.crop_room

    @property
    def crop_room(self) -> int:
        """Room for the targets of one crop in each set, if every crop has its own, as predictors need; else 0."""
        return 0

    @property
    def own_sets(self) -> bool:
        """Whether each context has sets of targets of its own, see `Mask`."""
        return False

    def draw(self, key: Array, texts: Texts | None, others: tuple[Drawn, ...]) -> Drawn:
        """The mask of one unit. `texts` are its texts, for views of texts; `others` are its masks in `after`."""
        raise NotImplementedError


def from_bits(bits: Array, groups: int, most: int) -> Mask:
    """The mask of given bits [B,V,N], with positions and weights of at most `most` masked tokens in each group.

    index [G,1,most] ascends. The weight of a token is 1 / (masked tokens of its crop), and 0 for padding where a group
    has fewer than `most`. UserError if `most` is too small, as far as the bits are values and not tracers.
    """
    rows = bits.reshape(groups, -1, bits.shape[-1])  # crops of a group
    if not isinstance(bits, jax.core.Tracer) and (largest := int(np.asarray(rows).sum((1, 2)).max())) > most:
        raise UserError(f'mask: a group has {largest} masked tokens, room is for {most}; give at least {largest}')
    index, weight = positions(rows, most)
    return Mask(bits, index[:, None], weight[:, None])


def positions(bits: Array, most: int, crop_room: int = 0) -> tuple[Array, Array]:
    """Positions and weights [G,most] of the set tokens of groups, bool [G,crops,N]; see `Mask`."""
    if crop_room:
        groups, crops, n = bits.shape
        index, weight = positions(bits.reshape(groups * crops, 1, n), crop_room)
        first = n * jnp.arange(crops, dtype=jnp.int32)  # token of each crop
        index = index.reshape(groups, crops, crop_room) + first[:, None]
        return index.reshape(groups, -1), weight.reshape(groups, -1)
    per_crop = 1.0 / jnp.maximum(bits.sum(axis=-1, dtype=jnp.float32), 1.0)
    flat = bits.reshape(len(bits), -1)
    index = jax.vmap(lambda b: jnp.nonzero(b, size=most, fill_value=0)[0])(flat).astype(jnp.int32)
    filled = jnp.arange(most) < flat.sum(axis=-1, keepdims=True)
    return index, jnp.where(filled, jnp.take_along_axis(per_crop, index // bits.shape[-1], axis=1), 0.0)


def share(value: float, where: str) -> float:
    """A share between 0 and 1, both excluded; a UserError for anything else."""
    if not is_number(value) or not 0 < value < 1:
        raise UserError(f'{where}={value!r}: must be a share between 0 and 1')
    return float(value)
