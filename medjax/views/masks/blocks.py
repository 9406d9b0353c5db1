"""Block masks of exact size (iBOT, arXiv 2111.07832; DINOv2, 2304.07193).

DINOv2 masks half of the crops of a batch, and draws rectangles until about the wanted number of patches is covered.
Its totals differ from batch to batch, so it pads. Here every number is met exactly and the total of a group of rows is
a constant, so that shapes are static and nothing is padded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.types import is_number, is_whole
from medjax.views.geometry import between
from medjax.views.masks import Drawn, Generator, MaskContext, Texts

TRIES = 64  # rectangles tried for a crop; 32 already give the original's statistics on 7 x 7 to 37 x 37 patches
GIVE_UP = 10  # the original stops after so many tries in a row without a new patch


def build(
    context: MaskContext,
    share: float = 0.5,
    ratio: Sequence[float] = (0.1, 0.5),
    min_patches: int = 4,
    aspect: float = 0.3,
    max_patches: int | None = None,
) -> Generator:
    """The mask `blocks` of a config, for the crops of a group of rows.

    share        share of the crops that are masked: n = int(share * crops) of a group, drawn at random
    ratio        smallest and largest share of a crop's patches that are masked; equal shares give every masked crop the
                 same number
    min_patches  smallest area of a rectangle
    aspect       smallest height / width of a rectangle; the largest is 1 / aspect
    max_patches  largest number of new patches of a rectangle. None: h//2 * w of h x w patches, as in DINOv2. BEiT
                 (arXiv 2106.08254) and data2vec have all patches

    The n masked crops of a group get n different sizes, one from each of n equal bins of `ratio`. A size is the middle
    of its bin plus or minus d patches. Two bins that are paired at random get opposite d, so the total is a constant;
    with an odd n one random bin keeps its middle. Rectangles follow the original: area uniform from `min_patches` to
    the number of patches that are still missing, height / width log-uniform, at most `max_patches` new ones each. After
    64 tries, or ten tries in a row without a new patch, single patches are added at random, those beside a block first.
    """
    grid, crops, where = context.image_grid(), context.crops, context.where
    patches = grid[0] * grid[1]
    if np.shape(ratio) != (2,) or not all(map(is_number, ratio)) or not 0 <= ratio[0] <= ratio[1] <= 1:
        raise UserError(f'{where}.ratio: two shares, 0 <= low <= high <= 1, not {ratio}')
    if max_patches is not None and (not is_whole(max_patches) or max_patches < 1):
        raise UserError(f'{where}.max_patches={max_patches!r}: must be a whole number of patches, at least 1, or None')
    if not is_whole(min_patches) or not 1 <= min_patches <= patches:
        raise UserError(
            f'{where}.min_patches={min_patches!r}: must be a whole number from 1 to {patches}, the patches of a crop'
        )
    if not is_number(aspect) or not 0 < aspect <= 1:
        raise UserError(f'{where}.aspect={aspect!r}: must be a number above 0 and at most 1')
    n = int(share * crops) if is_number(share) and math.isfinite(share) else -1
    if not 1 <= n <= crops:
        raise UserError(
            f'{where}.share: int({share} x {crops} crops of a group) masks {n} crops; '
            'give a share in 0..1 that masks at least one, or larger rows_per_group'
        )
    edges = np.linspace(ratio[0], ratio[1], n + 1) * patches
    middles = np.floor((edges[:-1] + edges[1:]) / 2 + 1e-6).astype(int)
    reach = int((edges[1] - edges[0]) / 2 + 1e-6)
    if not middles.any():
        raise UserError(
            f'{where}.ratio: {ratio} masks no patch of {grid[0]} x {grid[1]}; give larger shares, or crops with more '
            'patches'
        )
    return Blocks(
        context=context,
        grid=grid,
        middles=tuple(middles.tolist()),
        reach=reach,
        min_patches=min_patches,
        aspect=aspect,
        max_patches=grid[0] // 2 * grid[1] if max_patches is None else max_patches,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Blocks(Generator):
    """The mask `blocks`; see `build`."""

    grid: tuple[int, int]
    middles: tuple[int, ...]  # of the bins, patches; one for each masked crop
    reach: int  # how far a size may be from the middle of its bin, patches
    min_patches: int
    aspect: float
    max_patches: int

    @property
    def most(self) -> int:
        return sum(self.middles)

    def draw(self, key: Array, texts: Texts | None, others: tuple[Drawn, ...]) -> Drawn:
        crops = self.context.crops
        n, patches = len(self.middles), self.grid[0] * self.grid[1]
        # one call for all numbers of a group: each call costs half a second of compilation on a CPU
        u = jax.random.uniform(key, (crops, 3 + 4 * TRIES + patches))
        u_crop, u_pair, u_spread, u_tries, u_fill = jnp.split(u, [1, 2, 3, 3 + 4 * TRIES], axis=1)
        d = jnp.floor(u_spread[: n // 2, 0] * (2 * self.reach + 1)).astype(jnp.int32) - self.reach
        spread = shuffled(u_pair[:n, 0], jnp.concatenate([d, -d, jnp.zeros(n % 2, d.dtype)]))
        sizes = jnp.asarray(self.middles, jnp.int32) + spread
        masked = jax.vmap(self.one_crop)(u_tries[:n], u_fill[:n], sizes)
        return Drawn(shuffled(u_crop[:, 0], jnp.concatenate([masked, jnp.zeros((crops - n, patches), bool)])))

    def one_crop(self, u_tries: Array, u_fill: Array, size: Array) -> Array:
        """Exactly `size` masked patches of one crop, bool [N]."""
        u = u_tries.reshape(TRIES, 4)
        bits = rectangles(u, size, self.grid, self.min_patches, self.aspect, self.max_patches)
        return fill(u_fill.reshape(self.grid), bits, size).reshape(-1)


def rectangles(
    u: Array, count: Array, grid: tuple[int, int], min_patches: int, aspect: float, max_patches: int
) -> Array:
    """Rectangles that together cover at most `count` cells, bool [h,w], from u uniform [tries,4].

    The number of tries is fixed, so that the loop has no condition that devices would have to agree on.
    """
    height, width = grid
    row, column = jnp.arange(height)[:, None], jnp.arange(width)

    def one_try(state: tuple[Array, Array, Array], u: Array) -> tuple[tuple[Array, Array, Array], None]:
        bits, missing, failures = state
        most_now = jnp.minimum(missing, max_patches)
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
    """Sets more cells of bool [h,w] until `count` are set, at random (u uniform [h,w]), beside set cells first."""
    padded = jnp.pad(bits, 1)
    beside = padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    order = u + beside + 2 * bits
    rank = jnp.argsort(jnp.argsort(-order.reshape(-1)))
    return (rank < count).reshape(bits.shape)


def shuffled(u: Array, x: Array) -> Array:
    """`x` in a random order along its first axis, from u uniform [n]."""
    return x[jnp.argsort(u)]
