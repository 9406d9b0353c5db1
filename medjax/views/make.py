"""From a batch to what the towers see: `build` reads the views and masks of a config and returns make_views.

This is the only place where chance touches pixels. Every draw is made from a key folded with the step, the name of
the view and the row's GLOBAL number (of masks: the number of its group), never with a position, so the views of a row
are the same on any mesh, number of hosts or split into micro-batches.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax import plugins
from medjax.errors import UserError, suggest
from medjax.types import Batch, MakeViews, Masks, View, Views
from medjax.views import geometry
from medjax.views.masks import Blocks, blocks, from_bits
from medjax.views.photometric import find_set, luminance, per_crop

Draws = dict[str, Array]


class Crops(NamedTuple):
    """One image view of a config: V crops of each row of a part."""

    part: str
    number: int  # V
    boxes: str | None  # the view whose boxes and flips these crops share
    draw: Callable[[Array, Array], Draws]  # key, extent [2] of one row -> boxes [V,4] and the rest, each [V]
    show: Callable[[Array, Array, Draws], Array]  # picture [H,W,C] in [0,1], extent, draws -> [V,h,w,C] in [0,1]


def crop(
    part: str,
    size: int | Sequence[int],
    count: int = 1,
    area: Sequence[float] = (0.32, 1.0),
    aspect: Sequence[float] = (3 / 4, 4 / 3),
    flip: float = 0.0,
    blur: float | Sequence[float] = 0.0,
    sigma: Sequence[float] = (0.1, 2.0),
    photometric: str | Mapping[str, Any] | None = 'radiograph',
    boxes: str | None = None,
    name: str = 'crop',
) -> Crops:
    """`count` random-resized crops of each picture of `part`, of `size` pixels (one number, or height and width).

    `area`: share of the picture's area; `aspect`: width / height. `flip`: share mirrored left-right, 0 unless asked
    for, because a mirrored radiograph has its heart on the wrong side. `blur`: share blurred, one number or one for
    each crop, with a Gaussian of `sigma` output pixels, uniform between two limits. `photometric`: 'radiograph',
    'dinov2', a dict(set=…, …) with the set's own keys, or None. `boxes`: take boxes and flips from another view, crop
    by crop (the same part of the picture at another size); area, aspect and flip then have no effect.
    """
    height, width = _size(size, f'{name}.size')
    area, aspect = _limits(area, f'{name}.area', most=1.0), _limits(aspect, f'{name}.aspect')
    sigma = _limits(sigma, f'{name}.sigma')
    if count < 1:
        raise UserError(f'{name}.count: at least one crop, not {count}')
    flip_share, blur_share = per_crop(flip, count, f'{name}.flip'), per_crop(blur, count, f'{name}.blur')
    grey_values = find_set(photometric, f'{name}.photometric')

    def draw(key: Array, extent: Array) -> Draws:
        # one call for all numbers of a row: each call costs half a second of compilation on a CPU
        u = jax.random.uniform(key, (count, 4 * geometry.TRIES + 3 + grey_values.numbers))
        u_box, u_rest, u_grey = jnp.split(u, [4 * geometry.TRIES, 4 * geometry.TRIES + 3], axis=1)
        u_box = u_box.reshape(count, geometry.TRIES, 4)
        return dict(
            boxes=jax.vmap(lambda u: geometry.random_box(u, extent, area, aspect))(u_box),
            flip=u_rest[:, 0] < flip_share,
            blur=jnp.where(u_rest[:, 1] < blur_share, geometry.between(u_rest[:, 2], sigma), 0.0),
            **grey_values.draw(u_grey),
        )

    def show(picture: Array, extent: Array, draws: Draws) -> Array:
        def one(p: Draws) -> Array:
            x = geometry.crop(picture, extent, p['boxes'], (height, width), p['flip'], p['blur'])
            return grey_values.apply(jnp.clip(x, 0.0, 1.0), p)

        return jax.vmap(one)(draws)

    return Crops(part, count, boxes, draw, show)


def build(
    views: Mapping[str, Mapping[str, Any]],
    masks: Mapping[str, Mapping[str, Any]],
    image: Mapping[str, Any],
    grids: Mapping[str, tuple[int, int]],
    rows_per_group: int,
) -> MakeViews:
    """make_views(batch, key, step) -> views by name, masks by 'view~mask' (types.py), of the config's two dicts.

    `image` has channels (1 or 3), mean and std: x = (grey value in [0,1] - mean) / std, a grey picture repeated on
    three channels, a coloured one shown by its luminance on one. `grids` gives the patch rows and columns of every
    masked view. A view's meta holds its draws, and the labels and keys of its rows.
    """
    if image['channels'] not in (1, 3):
        raise UserError(f'image.channels: 1 or 3, not {image["channels"]!r}')
    made_by = {name: _view(name, cfg, f'views.{name}') for name, cfg in views.items()}
    crops = {name: view for name, view in made_by.items() if isinstance(view, Crops)}
    order = _boxes_first(crops)
    generators = {name: _mask(name, cfg, crops, grids, rows_per_group) for name, cfg in masks.items()}

    def make_views(batch: Batch, key: Array, step: Array) -> tuple[Views, Masks]:
        keys = _keys(jax.random.fold_in(key, step), [*order, *generators])
        draws: dict[str, Draws] = {}
        seen: Views = {}
        for name in order:
            view = crops[name]
            rows = batch[view.part]
            extent = jnp.maximum(rows['image/extent'][:, 0], 1)  # an absent picture has extent 0; its crops stay finite
            draws[name] = jax.vmap(view.draw)(_each(keys[name], rows['row']), extent)
            if view.boxes:
                draws[name] |= {field: draws[view.boxes][field] for field in ('boxes', 'flip')}
            picture = to_unit(rows['image'][:, 0], image['channels'])
            x = jax.vmap(view.show)(picture, extent, draws[name])
            present = jnp.repeat(rows['image/present'][:, :1], view.number, axis=1)
            seen[name] = View(normalise(x, **image), rows['row'], present, None, {**draws[name], **_facts(rows)})
        for name, view in made_by.items():
            if not isinstance(view, Crops):
                seen[name] = view(batch)

        made: Masks = {}
        for name, generator in generators.items():
            masked = seen[name.split('~')[0]]
            if masked.row.shape[0] % rows_per_group:
                raise UserError(
                    f'rows_per_group: {rows_per_group} does not divide {masked.row.shape[0]} rows of {name}'
                )
            group = masked.row[::rows_per_group] // rows_per_group
            drawn = jax.vmap(generator.draw)(_each(keys[name], group)).reshape(*masked.present.shape, -1)
            made[name] = from_bits(drawn, len(group), generator.masked)
        return {name: seen[name] for name in views}, made

    return make_views


def whole(images: Array, extent: Array, size: int, image: Mapping[str, Any]) -> Array:
    """For evaluation: the shorter side resized to `size`, then the centre square; normalised float32 [B,size,size,C].

    `images` uint8 or uint16 [B,H,W,C] with the pictures top-left on their canvas, `extent` [B,2] their sizes.
    (RAD-DINO's inference, arXiv 2401.10815, without rounding the longer side to whole pixels.)
    """
    never, none = jnp.zeros((), bool), jnp.zeros(())

    def one(picture: Array, extent: Array) -> Array:
        return geometry.crop(picture, extent, geometry.centre_square(extent), (size, size), never, none)

    x = jax.vmap(one)(to_unit(images, image['channels']), extent)
    return normalise(jnp.clip(x, 0.0, 1.0), **image)


def to_unit(image: Array, channels: int) -> Array:
    """uint8 or uint16 [...,C] -> float32 in [0,1]; a coloured picture as luminance where one channel is wanted."""
    x = image.astype(jnp.float32) / jnp.iinfo(image.dtype).max
    return luminance(x) if channels == 1 else x


def normalise(x: Array, channels: int, mean: float | Sequence[float], std: float | Sequence[float]) -> Array:
    """[...,c] in [0,1] -> (x - mean) / std as [...,channels]; grey is repeated where three channels are wanted."""
    x = jnp.broadcast_to(x, (*x.shape[:-1], channels))
    return (x - jnp.asarray(mean)) / jnp.asarray(std)


def _keys(key: Array, names: Sequence[str]) -> dict[str, Array]:
    """A key for each view and mask, which depends on its name and not on what else the config holds."""
    return dict(zip(names, _each(key, jnp.asarray([zlib.crc32(n.encode()) for n in names], jnp.uint32)), strict=True))


def _each(key: Array, numbers: Array) -> Array:
    """A key for each of several numbers (rows, groups): [n]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


def text(name: str, part: str) -> Callable[[Batch], View]:
    """The texts that the stream chose for the view `name` of `part`, as tokens; absent where the length is 0."""

    def view(batch: Batch) -> View:
        rows = batch[part]
        x, length = rows[f'text/{name}'], rows[f'text/{name}/length']
        valid = jnp.arange(x.shape[2]) < length[..., None]
        return View(x, rows['row'], length > 0, valid, {'length': length, **_facts(rows)})

    return view


def _facts(rows: Mapping[str, Array]) -> dict[str, Array]:
    """What terms may read of the rows, whatever the view."""
    return {field: rows[field] for field in rows if field == 'label' or field.startswith('key/')}


def _view(name: str, cfg: Mapping[str, Any], where: str) -> Crops | Callable[[Batch], View]:
    given = dict(cfg)
    kind = given.pop('view', None)
    if kind == 'text':
        return text(name, given['part'])  # the other keys are the stream's, which checks them
    if kind != 'crop':
        raise UserError(f'{where}.view: there is no view {kind!r}{suggest(str(kind), ["crop", "text"])}')
    return plugins.call(crop, given, where, name=where)


def _mask(
    name: str,
    cfg: Mapping[str, Any],
    crops: Mapping[str, Crops],
    grids: Mapping[str, tuple[int, int]],
    rows_per_group: int,
) -> Blocks:
    where, given = f'masks.{name}', dict(cfg)
    view, _, own = name.partition('~')
    if view not in crops or not own:
        raise UserError(
            f'{where}: a mask is called view~mask; there is no view of images {view!r}{suggest(view, crops)}'
        )
    if (kind := given.pop('mask', None)) != 'blocks':
        raise UserError(f'{where}.mask: there is no mask {kind!r}{suggest(str(kind), ["blocks"])}')
    total = crops[view].number * rows_per_group
    return plugins.call(blocks, given, where, grid=grids[view], crops=total, name=where)


def _size(size: int | Sequence[int], where: str) -> tuple[int, int]:
    least = geometry.BLUR_TAPS // 2 + 1  # the blur reflects that many pixels
    if np.shape(size) not in ((), (2,)) or np.asarray(size).dtype.kind != 'i' or np.min(size) < least:
        raise UserError(f'{where}: a whole number of pixels, at least {least}, or height and width; not {size!r}')
    height, width = np.broadcast_to(size, 2).tolist()
    return height, width


def _limits(limits: Sequence[float], where: str, most: float = np.inf) -> tuple[float, float]:
    if np.shape(limits) != (2,) or not 0 < limits[0] <= limits[1] <= most:
        raise UserError(
            f'{where}: two numbers, 0 < low <= high' + f' <= {most:g}' * (most < np.inf) + f', not {limits}'
        )
    return float(limits[0]), float(limits[1])


def _boxes_first(crops: Mapping[str, Crops]) -> list[str]:
    """The views in an order in which every view comes after the one whose boxes it takes."""
    for name, view in crops.items():
        other = crops.get(view.boxes or name)
        if other is None:
            raise UserError(f'views.{name}.boxes: there is no view {view.boxes!r}{suggest(str(view.boxes), crops)}')
        if other.boxes and view.boxes:
            raise UserError(f'views.{name}.boxes: {view.boxes!r} has no boxes of its own; name {other.boxes!r}')
        if (other.part, other.number) != (view.part, view.number):
            raise UserError(
                f'views.{name}.boxes: {view.number} crops of {view.part} cannot take the boxes of '
                f'{other.number} crops of {other.part}; part and count must be equal'
            )
    return sorted(crops, key=lambda name: crops[name].boxes is not None)
