"""From a batch to what the towers see: the views and masks of a config.

Randomness touches pixels here and nowhere else. Every draw is made from a key that is folded with the step, the name of
the view and the GLOBAL number of the row (for masks: the number of the group), never with a position. So the views of a
row are the same on any mesh, with any number of hosts, and in any split into micro-batches.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax import plugins
from medjax.errors import UserError, suggest
from medjax.types import Batch, Mask, Masks, View, Views
from medjax.views import geometry
from medjax.views.colour import normalise, to_unit
from medjax.views.kinds import Draws, Kind
from medjax.views.kinds.crop import Crop
from medjax.views.masks import Generator, from_bits


def build(
    views: Mapping[str, Mapping[str, Any]],
    masks: Mapping[str, Mapping[str, Any]],
    image: Mapping[str, Any],
    grids: Mapping[str, tuple[int, int]],
    rows_per_group: int,
) -> MakeViews:
    """The function from batches to views and masks that a config describes.

    `views` and `masks` are sections of the config. `image` has channels (1 or 3), mean and std. `grids` gives the rows
    and columns of patches of every masked view.
    """
    if image['channels'] not in (1, 3):
        raise UserError(f'image.channels: 1 or 3, not {image["channels"]!r}')
    kinds = {
        name: plugins.make(cfg, 'view', 'medjax.views.kinds', f'views.{name}', where=f'views.{name}', name=name)
        for name, cfg in views.items()
    }
    generators = {name: _generator(name, cfg, kinds, grids, rows_per_group) for name, cfg in masks.items()}
    return MakeViews(kinds, _boxes_first(kinds), generators, image, rows_per_group)


@dataclasses.dataclass(frozen=True, eq=False)
class MakeViews:
    """(batch, key, step) -> views by name, masks by 'view~mask'."""

    kinds: dict[str, Kind]
    order: tuple[str, ...]  # names of the views; a view that takes boxes comes after the view that has them
    generators: dict[str, Generator]  # by 'view~mask'
    image: Mapping[str, Any]
    rows_per_group: int

    def __call__(self, batch: Batch, key: Array, step: Array) -> tuple[Views, Masks]:
        keys = _keys(jax.random.fold_in(key, step), [*self.order, *self.generators])
        draws: dict[str, Draws] = {}
        views: Views = {}
        for name in self.order:
            kind = self.kinds[name]
            rows = batch[kind.part]
            draws[name] = kind.draw(_keys_for(keys[name], rows['row']), rows)
            if isinstance(kind, Crop) and kind.boxes:
                draws[name] |= {field: draws[kind.boxes][field] for field in ('boxes', 'flip')}
            views[name] = kind.show(rows, draws[name], self.image)
        masks = {name: self.mask(name, views[name.partition('~')[0]], keys[name]) for name in self.generators}
        return {name: views[name] for name in self.kinds}, masks

    def mask(self, name: str, view: View, key: Array) -> Mask:
        """The mask 'view~mask' of a view, drawn anew for each group of rows."""
        if view.row.shape[0] % self.rows_per_group:
            raise UserError(f'rows_per_group: {self.rows_per_group} does not divide {view.row.shape[0]} rows of {name}')
        generator = self.generators[name]
        groups = view.row[:: self.rows_per_group] // self.rows_per_group
        bits = jax.vmap(generator.draw)(_keys_for(key, groups)).reshape(*view.present.shape, -1)
        return from_bits(bits, len(groups), generator.masked)


def evaluation_view(images: Array, extent: Array, size: int, image: Mapping[str, Any]) -> Array:
    """The centre square of each image, the shorter side resized to `size`; normalised float32 [B,size,size,C].

    `images` uint8 or uint16 [B,H,W,C] lie top-left on their canvas, `extent` [B,2] is their height and width.
    This is RAD-DINO's inference (arXiv 2401.10815), without rounding the longer side to whole pixels.
    """
    never, none = jnp.zeros((), bool), jnp.zeros(())

    def one(picture: Array, extent: Array) -> Array:
        return geometry.crop(picture, extent, geometry.centre_square(extent), (size, size), never, none)

    x = jax.vmap(one)(to_unit(images, image['channels']), extent)
    return normalise(jnp.clip(x, 0.0, 1.0), **image)


def _keys(key: Array, names: Sequence[str]) -> dict[str, Array]:
    """A key for each view and mask. It depends on the name and not on what else the config holds."""
    numbers = jnp.asarray([zlib.crc32(name.encode()) for name in names], jnp.uint32)
    return dict(zip(names, _keys_for(key, numbers), strict=True))


def _keys_for(key: Array, numbers: Array) -> Array:
    """A key for each of several numbers (of rows or groups): [n]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def _generator(
    name: str,
    cfg: Mapping[str, Any],
    kinds: Mapping[str, Kind],
    grids: Mapping[str, tuple[int, int]],
    rows_per_group: int,
) -> Generator:
    where = f'masks.{name}'
    view, _, own = name.partition('~')
    crops = {name: kind for name, kind in kinds.items() if isinstance(kind, Crop)}
    if view not in crops or not own:
        raise UserError(
            f'{where}: a mask is called view~mask; there is no view of images {view!r}{suggest(view, crops)}'
        )
    total = crops[view].count * rows_per_group
    return plugins.make(cfg, 'mask', 'medjax.views.masks', where, grid=grids[view], crops=total, where=where)


def _boxes_first(kinds: Mapping[str, Kind]) -> tuple[str, ...]:
    """The names in an order in which a view comes after the view whose boxes it takes."""
    crops = {name: kind for name, kind in kinds.items() if isinstance(kind, Crop)}
    for name, view in crops.items():
        other = crops.get(view.boxes or name)
        if other is None:
            raise UserError(f'views.{name}.boxes: there is no view {view.boxes!r}{suggest(str(view.boxes), crops)}')
        if other.boxes and view.boxes:
            raise UserError(f'views.{name}.boxes: {view.boxes!r} has no boxes of its own; name {other.boxes!r}')
        if (other.part, other.count) != (view.part, view.count):
            raise UserError(
                f'views.{name}.boxes: {view.count} crops of {view.part} cannot take the boxes of '
                f'{other.count} crops of {other.part}; part and count must be equal'
            )
    return tuple(sorted(kinds, key=lambda name: name in crops and crops[name].boxes is not None))
