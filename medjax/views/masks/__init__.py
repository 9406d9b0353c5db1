"""Masks: which tokens of a view are masked. One module a kind, named in the config.

`mask='blocks'` in `masks` of a config is the module `medjax.views.masks.blocks`; a name with a dot is the user's own.
Its `build(grid, crops, where, **config)` returns a `Generator`.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.types import Mask


@dataclasses.dataclass(frozen=True, eq=False)
class Generator:
    """Draws the masks of one group of rows."""

    grid: tuple[int, int]  # rows and columns of patches of a crop
    crops: int  # of a group

    @property
    def masked(self) -> int:
        """The number of masked patches of a group, the same in every draw."""
        raise NotImplementedError

    def draw(self, key: Array) -> Array:
        """bits bool [crops,N]."""
        raise NotImplementedError


def from_bits(bits: Array, groups: int, most: int) -> Mask:
    """The mask of given bits [B,V,N], with positions and weights of at most `most` masked tokens in each group.

    index [G,1,most] ascends. The weight of a token is 1 / (masked tokens of its crop), and 0 for padding where a group
    has fewer than `most`. UserError if `most` is too small, as far as the bits are values and not tracers.
    """
    rows = bits.reshape(groups, -1, bits.shape[-1])  # crops of a group
    if not isinstance(bits, jax.core.Tracer) and (largest := int(np.asarray(rows).sum((1, 2)).max())) > most:
        raise UserError(f'mask: a group has {largest} masked tokens, room is for {most}; give at least {largest}')
    per_crop = 1.0 / jnp.maximum(rows.sum(axis=-1, dtype=jnp.float32), 1.0)
    flat = rows.reshape(groups, -1)
    index = jax.vmap(lambda b: jnp.nonzero(b, size=most, fill_value=0)[0])(flat).astype(jnp.int32)
    filled = jnp.arange(most) < flat.sum(axis=-1, keepdims=True)
    weight = jnp.where(filled, jnp.take_along_axis(per_crop, index // bits.shape[-1], axis=1), 0.0)
    return Mask(bits, index[:, None], weight[:, None])
