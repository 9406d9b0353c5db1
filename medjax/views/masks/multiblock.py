"""Multi-block masks: several blocks of a crop are targets, and a large block without them is the context.

I-JEPA, arXiv 2301.08243, and CheXWorld, 2504.13820. An encoder reads the context alone, and a predictor predicts
features at the targets.

The originals cut the contexts of a batch to the shortest of them. Here shapes are static: a context has room for
`longest` patches, and its own length says how many count. Every target block is a set of positions of its own. With
`merge` the blocks of a context are one set, which has room for `longest_set` patches.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.types import is_number, is_whole
from medjax.views.masks import Drawn, Generator, MaskContext, Texts

TRIES = 20  # places tried for a context before it may overlap one target more, as in the original
STEPS = 1_024  # the random number behind a block's size has so many values, so that all sizes are known beforehand
STEPS_OF_TWO = 128  # each of two random numbers behind a block's size


class Family(NamedTuple):
    """The rules in which the blocks of the originals differ."""

    two_numbers: bool  # area and aspect have a random number each, and the aspect is log-uniform; or one decides both
    to_border: bool  # blocks may be as large as the grid and reach all borders; or one row and one column are free
    own_targets: bool  # each context has targets of its own, and may see those of the others; or all share them


FAMILIES = {'ijepa': Family(False, False, False), 'chexworld': Family(True, True, True)}


def build(
    context: MaskContext,
    targets: int = 4,
    contexts: int = 1,
    target_area: Sequence[float] = (0.15, 0.2),
    target_aspect: Sequence[float] = (0.75, 1.5),
    context_area: Sequence[float] = (0.85, 1.0),
    min_keep: int = 10,
    overlap: bool = False,
    longest: int | None = None,
    family: str = 'ijepa',
    merge: bool = False,
    longest_set: int | None = None,
) -> Generator:
    """The mask `multiblock` of a config, for the crops of a group of rows.

    targets, contexts      blocks of each kind in a crop; in the family 'chexworld' `targets` for each context
    target_area            smallest and largest share of a crop's patches in a target block
    target_aspect          smallest and largest height / width of a target block
    context_area           the same as target_area, for the block of a context, which is a square
    min_keep               a block has more patches than this, and so has a context after the targets have left it
    overlap                whether contexts keep the patches of targets
    longest                the most patches of a context; a longer one loses its last patches, row by row, as in the
                           original. None: no limit. A smaller number is faster
    family                 'ijepa' or 'chexworld', see below
    merge                  whether the target blocks of a context are one set of targets, in which no patch is there
                           twice; else each block is a set
    longest_set            the most patches of a merged set, as `longest`

    As in the original of I-JEPA: one random number decides area and aspect of the targets of a group, another one the
    area of its contexts. A block is cut so that it is at least one row and one column smaller than the grid. Its top
    left corner is drawn so that the last row and the last column of patches are never used. If 20 places leave too few
    patches of a context, it may overlap the last target, after 20 more the last two, and so on.

    As in the original of CheXWorld: two random numbers decide area and aspect of the targets, and the aspect is
    log-uniform. Blocks may be as large as the grid and reach all borders. Each context has targets of its own.
    """
    grid, where = context.image_grid(), context.where
    if family not in FAMILIES:
        raise UserError(f'{where}.family={family!r}: must be one of {", ".join(FAMILIES)}')
    rules = FAMILIES[family]
    for name, value in dict(targets=targets, contexts=contexts).items():
        if not is_whole(value) or value < 1:
            raise UserError(f'{where}.{name}={value!r}: must be a whole number of blocks, at least 1')
    for name, value in dict(overlap=overlap, merge=merge).items():
        if not isinstance(value, bool):
            raise UserError(f'{where}.{name}={value!r}: must be True or False')
    if not is_whole(min_keep) or min_keep < 0:
        raise UserError(f'{where}.min_keep={min_keep!r}: must be a whole number of patches, at least 0')
    sizes = {
        'target_area': block_sizes(grid, target_area, target_aspect, where, 'target', rules),
        'context_area': block_sizes(grid, context_area, (1, 1), where, 'context', rules),
    }
    shown = f'{grid[0]} x {grid[1]} patches'
    for name, found in sizes.items():
        height, width = found[found.prod(1).argmin()]
        if height * width <= min_keep:
            raise UserError(
                f'{where}.{name}: its smallest block has {height} x {width} of {shown}, and a block must have more '
                f'than min_keep={min_keep}; raise {name}, or lower min_keep'
            )
    free = 0 if rules.to_border else 1
    left = (grid[0] - free) * (grid[1] - free) - sizes['target_area'].prod(1).max()
    if not overlap and left <= min_keep:
        raise UserError(
            f'{where}.target_area: its largest block leaves {left} of {shown} for a context, which must have more '
            f'than min_keep={min_keep}; lower target_area or min_keep, or set overlap=True'
        )
    for name, value in dict(longest=longest, longest_set=longest_set).items():
        if value is not None and (not is_whole(value) or value <= min_keep):
            raise UserError(f'{where}.{name}={value!r}: must be a whole number of patches above min_keep={min_keep}')
    if longest_set is not None and not merge:
        raise UserError(f'{where}.longest_set={longest_set}: only sets of several blocks have it; set merge=True')
    most, largest = (int(sizes[name].prod(1).max()) for name in ('context_area', 'target_area'))
    union = min(largest * targets, (grid[0] - free) * (grid[1] - free))
    return MultiBlock(
        context=context,
        grid=grid,
        family=rules,
        merge=merge,
        longest_set=min(longest_set or union, union) if merge else largest,
        targets=targets,
        contexts=contexts,
        target_sizes=sizes['target_area'],
        context_sizes=sizes['context_area'],
        min_keep=min_keep,
        overlap=overlap,
        longest=min(longest or most, most),
    )


def block_sizes(
    grid: tuple[int, int], area: Sequence[float], aspect: Sequence[float], where: str, kind: str, rules: Family
) -> np.ndarray:
    """Height and width of a block for each value of the random numbers that decide them: int [values,2]."""
    for name, pair, most in (('area', area, 1), ('aspect', aspect, np.inf)):
        if np.shape(pair) != (2,) or not all(map(is_number, pair)) or not 0 < pair[0] <= pair[1] < np.inf:
            raise UserError(f'{where}.{kind}_{name}={pair!r}: must be two numbers, 0 < low <= high')
        if pair[1] > most:
            raise UserError(
                f'{where}.{kind}_{name}={pair!r}: a block of {pair[1]:g} times the crop is larger than its grid of '
                f'{grid[0]} x {grid[1]} patches; the largest {name} is 1'
            )
    if rules.two_numbers:
        u = (np.arange(STEPS_OF_TWO) + 0.5) / STEPS_OF_TWO
        of_area, of_aspect = (x.reshape(-1) for x in np.meshgrid(u, u))
        ratio = aspect[0] * (aspect[1] / aspect[0]) ** of_aspect
    else:
        of_area = (np.arange(STEPS) + 0.5) / STEPS
        ratio = aspect[0] + of_area * (aspect[1] - aspect[0])
    count = np.floor(grid[0] * grid[1] * (area[0] + of_area * (area[1] - area[0])))
    sizes = np.round(np.sqrt(np.stack([count * ratio, count / ratio], axis=1))).astype(int)
    if kind == 'target' and (larger := sizes[(sizes > grid).any(1)]).size:
        height, width = larger[0]
        raise UserError(
            f'{where}.target_area: a block would have {height} x {width} patches, and the grid has {grid[0]} x '
            f'{grid[1]}; lower target_area, or narrow target_aspect'
        )
    return np.minimum(sizes, grid if rules.to_border else np.array(grid) - 1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MultiBlock(Generator):
    """The mask `multiblock`; see `build`."""

    mode = 'drop'

    grid: tuple[int, int]
    family: Family
    targets: int
    contexts: int
    target_sizes: np.ndarray  # int [values,2], see `block_sizes`
    context_sizes: np.ndarray
    min_keep: int
    overlap: bool
    merge: bool
    longest: int  # patches of a context
    longest_set: int  # patches of a set of targets

    @property
    def crop_room(self) -> int:
        return self.longest_set

    @property
    def own_sets(self) -> bool:
        return self.family.own_targets

    def draw(self, key: Array, texts: Texts | None, others: tuple[Drawn, ...]) -> Drawn:
        targets, contexts = self.blocks(key)
        if self.merge:
            targets = targets.any(2, keepdims=True)
            targets &= jnp.cumsum(targets, axis=-1) <= self.longest_set
        targets = targets.reshape(len(targets), -1, targets.shape[-1])
        length = contexts.sum(-1)

        def first_patches(bits: Array) -> Array:
            return jnp.nonzero(bits, size=self.longest, fill_value=0)[0].astype(jnp.int32)

        kept = jax.vmap(jax.vmap(first_patches))(contexts)
        length = jnp.minimum(length, self.longest).astype(jnp.int32)
        return Drawn(targets.any(1), kept, length, targets=jnp.moveaxis(targets, 1, 0))

    def blocks(self, key: Array) -> tuple[Array, Array]:
        """The blocks of a group, before they are merged or cut.

        They are the targets bool [crops,contexts or 1,targets,N], and the contexts without them [crops,contexts,N].
        """
        tries = TRIES * (1 if self.overlap else self.targets + 1)
        owners = self.contexts if self.own_sets else 1
        size_key, key = jax.random.split(key)
        number = jax.random.randint(size_key, (2,), 0, len(self.target_sizes))
        target_size = jnp.asarray(self.target_sizes)[number[0]]
        context_size = jnp.asarray(self.context_sizes)[number[1]]
        count = owners * self.targets
        u = jax.random.uniform(key, (self.context.crops, count + self.contexts * tries, 2))
        targets = block(u[:, :count], target_size, self.grid, self.family.to_border)
        targets = targets.reshape(len(u), owners, self.targets, -1)
        tried = block(u[:, count:], context_size, self.grid, self.family.to_border)
        tried = tried.reshape(len(u), self.contexts, tries, -1)
        if not self.overlap:  # the first tries stay clear of all targets, the last ones of none
            clear = [~targets[:, :, :n].any(2) for n in range(self.targets, -1, -1)]
            tried &= jnp.repeat(jnp.stack(clear, axis=2), TRIES, axis=2)
        chosen = jnp.argmax(tried.sum(-1) > self.min_keep, axis=-1)
        return targets, jnp.take_along_axis(tried, chosen[..., None, None], axis=2)[:, :, 0]


def block(u: Array, size: Array, grid: tuple[int, int], to_border: bool = False) -> Array:
    """Blocks of one size, bool [...,N], at places from u uniform [...,2]; in the last row and column if `to_border`."""
    places = jnp.asarray(grid) - size + int(to_border)
    (top, left), (height, width) = jnp.moveaxis(jnp.floor(u * places), -1, 0), size
    row, column = jnp.arange(grid[0]), jnp.arange(grid[1])
    rows = (row >= top[..., None]) & (row < top[..., None] + height)
    columns = (column >= left[..., None]) & (column < left[..., None] + width)
    return (rows[..., :, None] & columns[..., None, :]).reshape(*u.shape[:-1], -1)
