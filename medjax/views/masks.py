"""Block masks of exact count for masked-image terms, and masks from given bits.

DINOv2 masks half of the crops of a batch and draws rectangles until about the wanted number of patches is covered;
totals differ from batch to batch, so it pads. Here every count is hit exactly and the total of a group of rows is a
constant, so that shapes are static and nothing is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.types import Mask
from medjax.views.geometry import between

TRIES = 64  # rectangles tried for a crop; 32 already give the original's statistics on 7 x 7 to 37 x 37 patches
GIVE_UP = 10  # tries in a row without a new patch after which the original stops


class Blocks(NamedTuple):
    """A generator of the masks of one group of rows."""

    draw: Callable[[Array], Array]  # key -> bits bool [crops,N]
    masked: int  # masked patches of a group, always


def blocks(
    grid: tuple[int, int],
    crops: int,
    share: float = 0.5,
    ratio: Sequence[float] = (0.1, 0.5),
    min_patches: int = 4,
    aspect: float = 0.3,
    name: str = 'blocks',
) -> Blocks:
    """iBOT's and DINOv2's block masks (arXiv 2111.07832, 2304.07193) for groups of `crops` crops of grid h x w.

    n = int(share crops) crops of a group, drawn by chance, are masked. Crop i of them covers a share of its patches
    that lies in the i-th of n equal bins of `ratio`: the middle of the bin plus or minus d patches, d uniform over
    the bin and opposite for two bins paired by chance (of an odd n one bin, by chance, keeps its middle), so the
    total is constant. Rectangles follow the original: area uniform from `min_patches` to what is missing, height /
    width log-uniform in aspect..1/aspect, at most h//2 w new patches each. After 64 tries, or ten in a row that add
    nothing, missing patches are taken by chance, those beside a block first.
    """
    n, patches = int(share * crops), grid[0] * grid[1]
    if np.shape(ratio) != (2,) or not 0 <= ratio[0] < ratio[1] <= 1:
        raise UserError(f'{name}.ratio: two shares, 0 <= low < high <= 1, not {ratio}')
    if not 1 <= n <= crops:
        raise UserError(
            f'{name}.share: int({share} x {crops} crops of a group) masks {n} crops; '
            'give a share in 0..1 that masks at least one, or larger rows_per_group'
        )
    edges = np.linspace(ratio[0], ratio[1], n + 1) * patches
    middle = np.floor((edges[:-1] + edges[1:]) / 2 + 1e-6).astype(np.int32)
    reach = int((edges[1] - edges[0]) / 2 + 1e-6)

    def draw(key: Array) -> Array:
        # one call for all numbers of a group: each call costs half a second of compilation on a CPU
        u = jax.random.uniform(key, (crops, 3 + 4 * TRIES + patches))
        u_crop, u_pair, u_spread, u_tries, u_fill = jnp.split(u, [1, 2, 3, 3 + 4 * TRIES], axis=1)
        d = jnp.floor(u_spread[: n // 2, 0] * (2 * reach + 1)).astype(jnp.int32) - reach
        spread = shuffled(u_pair[:n, 0], jnp.concatenate([d, -d, jnp.zeros(n % 2, d.dtype)]))
        masked = jax.vmap(one_crop)(u_tries[:n], u_fill[:n], jnp.asarray(middle) + spread)
        return shuffled(u_crop[:, 0], jnp.concatenate([masked, jnp.zeros((crops - n, patches), bool)]))

    def one_crop(u_tries: Array, u_fill: Array, count: Array) -> Array:
        bits = rectangles(u_tries.reshape(TRIES, 4), count, grid, min_patches, aspect)
        return fill(u_fill.reshape(grid), bits, count).reshape(-1)

    return Blocks(draw, int(middle.sum()))


def rectangles(u: Array, count: Array, grid: tuple[int, int], min_patches: int, aspect: float) -> Array:
    """Rectangles that together cover at most `count` cells, bool [h,w], from u uniform [tries,4]. The number of tries
    is fixed, so that the loop has no condition which devices would have to agree on."""
    height, width = grid
    most = height // 2 * width  # the original's floor chain: 128 of 16 x 16, 666 of 37 x 37, 21 of 7 x 7
    row, column = jnp.arange(height)[:, None], jnp.arange(width)

    def one_try(state: tuple[Array, Array, Array], u: Array) -> tuple[tuple[Array, Array, Array], None]:
        bits, missing, failures = state
        most_now = jnp.minimum(missing, most)
        area = between(u[0], (min_patches, most_now))
        root_ratio = jnp.exp(0.5 * between(u[1], (np.log(aspect), -np.log(aspect))))
        h = jnp.round(jnp.sqrt(area) * root_ratio).astype(jnp.int32)
        w = jnp.round(jnp.sqrt(area) / root_ratio).astype(jnp.int32)
        top = jnp.floor(u[2] * (height - h + 1))
        left = jnp.floor(u[3] * (width - w + 1))
        rectangle = (row >= top) & (row < top + h) & (column >= left) & (column < left + w)
        new = (rectangle & ~bits).sum(dtype=jnp.int32)
        take = (h < height) & (w < width) & (new > 0) & (new <= most_now) & (failures < GIVE_UP)
        failures = jnp.where(take, 0, failures + 1)
        return (bits | (rectangle & take), missing - jnp.where(take, new, 0), failures), None

    start = jnp.zeros(grid, bool), jnp.asarray(count, jnp.int32), jnp.zeros((), jnp.int32)
    return jax.lax.scan(one_try, start, u)[0][0]


def fill(u: Array, bits: Array, count: Array) -> Array:
    """Sets cells of bool [h,w], by chance (u uniform [h,w]) and neighbours of set ones first, until `count` are set."""
    padded = jnp.pad(bits, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    order = u + beside + 2 * bits
    rank = jnp.argsort(jnp.argsort(-order.reshape(-1)))
    return (rank < count).reshape(bits.shape)


def shuffled(u: Array, x: Array) -> Array:
    """`x` in a random order along its first axis, from u uniform [n]."""
    return x[jnp.argsort(u)]


def from_bits(bits: Array, groups: int, most: int) -> Mask:
    """Mask of given bits [B,V,N]: positions and weights of at most `most` masked tokens in each of `groups` groups.

    index [G,1,most] ascends; the weight is 1 / (masked tokens of the crop), and 0 where a group has fewer than
    `most`. Given bits that are values, not tracers, raises UserError where `most` cannot hold them.
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
