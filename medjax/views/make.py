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
from medjax.views import cutmix, geometry
from medjax.views.colour import normalise, to_unit
from medjax.views.kinds import Draws, Kind
from medjax.views.kinds.crop import UNDER, Crop
from medjax.views.masks import Drawn, Generator, MaskContext, Texts, positions


def build(
    views: Mapping[str, Kind],
    masks: Mapping[str, Mapping[str, Any]],
    image: Mapping[str, Any],
    grids: Mapping[str, tuple[int, int]],
    rows_per_group: int,
    tokens: Mapping[str, int | None] | None = None,
) -> MakeViews:
    """The function from batches to views and masks that a config describes.

    `views` are those of `kinds`. `masks` is a section of the config. `image` has channels (1 or 3), mean and std.
    `grids` gives the rows and columns of patches of every masked view of images. `tokens` are the special tokens of the
    tokenizer, which masks of texts need.
    """
    if image['channels'] not in (1, 3):
        raise UserError(f'image.channels: 1 or 3, not {image["channels"]!r}')
    for name, kind in views.items():
        if isinstance(kind, Crop) and kind.cutmix and rows_per_group < 2:
            raise UserError(f'views.{name}.cutmix: rows are mixed inside of groups; set rows_per_group to 2 or more')
    generators: dict[str, Generator] = {}
    for name, cfg in masks.items():
        view, _, own = name.partition('~')
        if view not in views or not own:
            raise UserError(
                f'masks.{name}: a mask is called view~mask; there is no view {view!r}{suggest(view, views)}'
            )
        kind = views[view]
        if kind.sees == 'image' and view not in grids:
            raise UserError(f'masks.{name}: no feature shows the view {view!r} to a tower, so it has no patches')
        context = MaskContext(
            f'masks.{name}', kind.sees, kind.count, rows_per_group, grids.get(view), kind.length, tokens
        )
        generators[name] = plugins.make(cfg, 'mask', 'medjax.views.masks', f'masks.{name}', context=context)
    order = _boxes_first(views)
    return MakeViews(_on_top(views), order, _masks_in_order(generators, views), image, rows_per_group)


def kinds(views: Mapping[str, Mapping[str, Any]]) -> dict[str, Kind]:
    """The views of a config by name."""
    return {
        name: plugins.make(cfg, 'view', 'medjax.views.kinds', f'views.{name}', where=f'views.{name}', name=name)
        for name, cfg in views.items()
    }


@dataclasses.dataclass(frozen=True, eq=False)
class MakeViews:
    """(batch, key, step) -> views by name, masks by 'view~mask'."""

    kinds: dict[str, Kind]
    order: tuple[str, ...]  # names of the views; a view that takes boxes comes after the view that has them
    generators: dict[str, Generator]  # by 'view~mask'; a mask comes after those that it must see
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
                theirs = draws[kind.boxes]
                draws[name] |= {field: theirs[field] for field in ('boxes', 'flip')}
                draws[name] |= {UNDER: theirs} if kind.on_top else {}
            views[name] = kind.show(rows, draws[name], self.image)
            if isinstance(kind, Crop) and kind.cutmix:
                own = _keys(jax.random.fold_in(key, step), [f'{name}/cutmix'])[f'{name}/cutmix']
                views[name] = cutmix.mix(views[name], _keys_for(own, rows['row']), kind.cutmix, self.rows_per_group)
        drawn: dict[str, Drawn] = {}
        for name in self.generators:
            drawn[name] = self.drawn(name, views[name.partition('~')[0]], keys[name], drawn)
        masks = {name: self.mask(name, one) for name, one in drawn.items()}
        return {name: views[name] for name in self.kinds}, masks

    def drawn(self, name: str, view: View, key: Array, before: Mapping[str, Drawn]) -> Drawn:
        """The mask 'view~mask' of a view: drawn anew for each row or group of rows, then with rows [B,V,…] in front."""
        if view.row.shape[0] % self.rows_per_group:
            raise UserError(f'rows_per_group: {self.rows_per_group} does not divide {view.row.shape[0]} rows of {name}')
        generator = self.generators[name]
        rows = 1 if generator.per == 'row' else self.rows_per_group  # of a unit
        units = view.row[::rows] // rows  # numbers of rows or groups
        texts = None if view.valid is None else Texts(view.x, view.valid)
        inputs = jax.tree.map(lambda x: x.reshape(-1, rows * x.shape[1], *x.shape[2:]), texts)
        others = tuple(_of_units(before[other], rows) for other in generator.after)
        one = jax.vmap(generator.draw)(_keys_for(key, units), inputs, others)
        return _of_rows(one, rows, generator.context.per_row)

    def mask(self, name: str, drawn: Drawn) -> Mask:
        """The mask with the positions of its targets in each group."""
        generator = self.generators[name]
        bits = drawn.bits
        groups = len(bits) // self.rows_per_group
        sets = bits[None] if drawn.targets is None else jnp.moveaxis(drawn.targets, 1, 0)  # [K,B,V,N]
        sets = sets.reshape(len(sets), groups, -1, bits.shape[-1])
        by_set = [positions(one, generator.most, generator.crop_room) for one in sets]
        index, weight = (jnp.stack(x, axis=1) for x in zip(*by_set, strict=True))
        return Mask(
            bits, index, weight, drawn.kept, drawn.length, drawn.fill, generator.mode, generator.crop_room,
            generator.own_sets,
        )  # fmt: skip


def _of_units(drawn: Drawn, rows: int) -> Drawn:
    """A mask of rows [B,V,…] as one of units of `rows` rows [units,n,…], as `Generator.draw` gets it."""

    def together(x: Array) -> Array:
        return x.reshape(-1, rows * x.shape[1], *x.shape[2:])

    targets = drawn.targets
    if targets is not None:  # [B,K,V,N] -> [units,K,n,N]
        _, k, v, n = targets.shape
        targets = targets.reshape(-1, rows, k, v, n).swapaxes(1, 2).reshape(-1, k, rows * v, n)
    return jax.tree.map(together, drawn._replace(targets=None))._replace(targets=targets)


def _of_rows(drawn: Drawn, rows: int, count: int) -> Drawn:
    """The inverse of `_of_units`; `count` is V."""
    targets = drawn.targets
    if targets is not None:
        units, k, _, n = targets.shape
        targets = targets.reshape(units, k, rows, count, n).swapaxes(1, 2).reshape(-1, k, count, n)
    split = jax.tree.map(lambda x: x.reshape(-1, count, *x.shape[2:]), drawn._replace(targets=None))
    return split._replace(targets=targets)


def _masks_in_order(generators: Mapping[str, Generator], views: Mapping[str, Kind]) -> dict[str, Generator]:
    """The masks in an order in which each comes after those that it must see."""
    for name, generator in generators.items():
        for other in plugins.text_list(generator.after, f'masks.{name}.after', 'crop~context'):
            if other not in generators:
                raise UserError(f'masks.{name}.after: there is no mask {other!r}{suggest(other, generators)}')
            a, b = (views[mask.partition('~')[0]] for mask in (name, other))
            grids = [(g.context.grid, g.context.length) for g in (generator, generators[other])]
            if (a.part, a.count) == (b.part, b.count) and grids[0] != grids[1]:
                raise UserError(
                    f'masks.{name}.after: {other!r} masks a view with another grid of patches or number of tokens; '
                    'both must be equal'
                )
            if (a.part, a.count) != (b.part, b.count):
                raise UserError(
                    f'masks.{name}.after: {a.count} crops of {a.part} cannot follow {other!r} on {b.count} of {b.part}'
                )
    before = {name: generator.after for name, generator in generators.items()}
    order = plugins.in_order(before, 'masks.{}.after', 'masks wait for each other in a circle')
    return {name: generators[name] for name in order}


def _on_top(views: Mapping[str, Kind]) -> dict[str, Kind]:
    """The views, where those with `on_top` know the changes that come first."""
    return {
        name: dataclasses.replace(kind, under=views[kind.boxes].photometric)  # type: ignore[attr-defined]
        if isinstance(kind, Crop) and kind.on_top and kind.boxes
        else kind
        for name, kind in views.items()
    }


def evaluation_view(images: Array, extent: Array, size: int, image: Mapping[str, Any]) -> Array:
    """A square of each image, `size` pixels wide; normalised float32 [B,size,size,C].

    `images` uint8 or uint16 [B,H,W,C] lie top-left on their canvas, `extent` [B,2] is their height and width. `image`
    has channels, mean, std and perhaps fit and zoom:

    fit   'crop' (the default) shows the centre square, its shorter side resized to `size`. 'pad' shows the whole image,
          its longer side resized to `size`, with black beside it. 'stretch' resizes height and width to `size`
    zoom  the image is resized to `size` times zoom (1 by default), and the centre is kept; 256/224 is usual

    The crop is RAD-DINO's inference (arXiv 2401.10815), without rounding the longer side to whole pixels.
    `host_view.square` computes the same on the host.
    """
    image = dict(image)
    fit, zoom = image.pop('fit', 'crop'), float(image.pop('zoom', 1.0))
    never = jnp.zeros((), bool)

    def one(picture: Array, extent: Array) -> Array:
        if fit == 'pad':
            return geometry.padded(picture, extent, size, zoom)
        return geometry.crop(picture, extent, geometry.seen_box(extent, fit, zoom), (size, size), never, None)

    x = jax.vmap(one)(to_unit(images, image['channels']), extent)
    return normalise(jnp.clip(x, 0.0, 1.0), **image)


def _keys(key: Array, names: Sequence[str]) -> dict[str, Array]:
    """A key for each view and mask. It depends on the name and not on what else the config holds."""
    numbers = jnp.asarray([zlib.crc32(name.encode()) for name in names], jnp.uint32)
    return dict(zip(names, _keys_for(key, numbers), strict=True))


def _keys_for(key: Array, numbers: Array) -> Array:
    """A key for each of several numbers (of rows or groups): [n]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


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
        if view.on_top and (any(other.blur) or any(other.noise)):
            raise UserError(
                f'views.{name}.on_top: {view.boxes!r} has blur or noise, which is not in these crops; give it to '
                f'{name!r} alone'
            )
    return tuple(sorted(kinds, key=lambda name: name in crops and crops[name].boxes is not None))
