"""Rotary positions of patches: attention turns the queries and keys of a patch by angles that its place gives.

RoPE: arXiv 2104.09864. Two axes, places from -1 to 1 and their random changes in training: DINOv3, arXiv 2508.10104.
"""

from __future__ import annotations

import math
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.types import is_number


class Rotary(NamedTuple):
    """The options of rotary positions. None: no random change of that kind."""

    base: float = 100.0  # of the rates at which angles grow with the place, see `turns`
    shift: float | None = None  # each axis is shifted by a number from -shift to shift
    jitter: float | None = None  # each axis is multiplied by a number from 1/jitter to jitter, log-uniform
    rescale: float | None = None  # both axes are multiplied by one number from 1/rescale to rescale, log-uniform

    @property
    def changes(self) -> bool:
        """Whether there are random changes in training."""
        return (self.shift, self.jitter, self.rescale) != (None, None, None)


class Change(NamedTuple):
    """The random changes of places in G groups: a place c becomes factor (c + shift)."""

    factor: Array  # float32 [G,2]: of the vertical and of the horizontal axis
    shift: Array  # float32 [G,2]


def check(tower: str, rotary: Rotary, used: bool, size: int) -> None:
    """A UserError if an option is wrong, or given to a tower without rotary positions; `size` is that of a head."""
    changed = [name for name, value in rotary._asdict().items() if value != Rotary._field_defaults[name]]
    if not used and changed:
        raise UserError(
            f"{tower}: rope_{changed[0]}={getattr(rotary, changed[0])!r}: this is an option of positions='rope'"
        )
    if used and size % 4:
        raise UserError(f"{tower}: positions='rope' needs heads of 4, 8, 12, … numbers (width / heads), not {size}")
    for name, least in dict(shift=0, jitter=1, rescale=1).items():
        value: Any = getattr(rotary, name)
        if value is not None and not (is_number(value) and least <= value < math.inf):
            raise UserError(f'{tower}: rope_{name}={value!r}: must be None or a number of at least {least}')
    if not is_number(rotary.base) or not 0 < rotary.base < math.inf:
        raise UserError(f'{tower}: rope_base={rotary.base!r}: must be a number above 0')


def draw_change(key: Array, groups: Array, rotary: Rotary) -> Change:
    """Draws the change of places in each group. `groups` uint32 [G] are global group numbers.

    A draw depends on `key` and the number of its own group only, as in `drop_path.draw_kept`, and is independent of the
    draws there.
    """
    key = jax.random.fold_in(key, zlib.crc32(b'rotary'))
    draw = jax.vmap(lambda group: jax.random.uniform(jax.random.fold_in(key, group), (5,), minval=-1, maxval=1))(groups)
    logs = draw[:, 2:4] * math.log(rotary.jitter or 1) + draw[:, 4:] * math.log(rotary.rescale or 1)
    return Change(jnp.exp(logs), draw[:, :2] * (rotary.shift or 0))


def turns(
    patches: Array, grid: tuple[int, int], prefix: int, size: int, rotary: Rotary, change: Change | None = None
) -> Array:
    """The cosines and sines of the angles of tokens, float32 [R,T,2,size/2]: `prefix` tokens without angles, patches.

    patches  int32 [R,N]: the numbers of patches in the grid, row by row; T = prefix + N. R = 1: those of all sequences
    grid     rows and columns of patches. The centres of patches lie from -1 to 1 on each axis
    size     numbers of a head. There are size/4 rates 2 pi / base^(4i/size), and an angle is a place times a rate:
             first those of the vertical axis, then those of the horizontal axis
    change   of G groups. G must divide R, and where R is 1 the result has R = G
    """
    places = 2 * (jnp.stack(jnp.divmod(patches, grid[1]), -1) + 0.5) / np.float32(grid) - 1
    if change is not None:
        rows = max(len(patches) // len(change.factor), 1)
        factor, shift = (jnp.repeat(x, rows, axis=0)[:, None] for x in change)
        places = factor * (places + shift)
    rates = np.float32(2 * np.pi * rotary.base ** -(np.arange(size // 4) * 4 / size))
    angles = (places[..., None] * rates).reshape(*places.shape[:2], size // 2)
    angles = jnp.pad(angles, ((0, 0), (prefix, 0), (0, 0)))
    return jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=2)


def rotate(x: Array, turns: Array) -> Array:
    """x [S,T,H,E] turned by [R,T,2,E/2]: the numbers i and i + E/2 of a head are a pair. R divides S.

    Each of the R rows of `turns` holds for the same number of consecutive sequences. Computed in float32.
    """
    pairs = x.astype(jnp.float32).reshape(len(turns), -1, *x.shape[1:])
    a, b = jnp.split(pairs, 2, axis=-1)
    cos, sin = (turns[:, None, :, i, None] for i in (0, 1))
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype).reshape(x.shape)
