"""Fits the arrays of weights to a configuration, and checks their names and shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.models.bicubic import resize_grid
from medjax.models.towers.vit import VitTower
from medjax.types import Tower
from medjax.weights import export
from medjax.weights.names import Flat

Params = dict[str, Any]


def fit(flat: Flat, wanted: Params, tower: Tower | None = None) -> Params:
    """The parameters of a tower for another grid of positions, another number of image channels or a shorter context.

    `wanted` is the tree of shapes of the configuration. A ViT resizes position embeddings with its own options
    `antialias` and `offset`, as it does for images of another size. Other arrays stay as they are; `check_like` finds
    those that do not fit.
    """
    shapes = export.flatten(wanted, shapes=True)
    if 'pos_grid' in flat and not any(name in shapes for name in ('pos_grid', 'positions')):
        flat = _without_fixed_positions(flat)
    fitted = dict(flat)
    for name, shape in shapes.items():
        array = flat.get(name)
        if array is None or array.shape == shape or array.ndim != len(shape):
            continue
        if name == 'pos_grid' and array.shape[2] == shape[2] and isinstance(tower, VitTower):
            rule = tower.module.antialias, tower.module.family.offset
            fitted[name] = np.asarray(resize_grid(array, shape[:2], *rule))
        elif name in ('patch_embed/kernel', 'stem/kernel'):
            fitted[name] = adapt_channels(array, shape[2])
        elif name == 'positions' and len(array) > shape[0]:
            fitted[name] = array[: shape[0]]
    return export.unflatten(fitted)


def _without_fixed_positions(flat: Flat) -> Flat:
    """Without a table of positions that holds the fixed sines and cosines of a tower with positions='sincos'."""
    from medjax.weights.families.vit import is_sincos

    grid, cls = flat['pos_grid'], flat.get('pos_cls')
    if not is_sincos(grid, cls):
        return flat
    return {name: array for name, array in flat.items() if name not in ('pos_grid', 'pos_cls')}


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution [h,w,C,D] for another number of image channels.

    The sum over the channels is divided evenly among the new ones. For a grey image that is repeated over the channels
    the result is the same as before.
    """
    if kernel.shape[2] == channels:
        return kernel
    grey = kernel.sum(2, keepdims=True)
    return np.repeat(grey, channels, axis=2) / np.float32(channels)


def check_like(params: Params, wanted: Params, where: str, here: str = 'this configuration') -> None:
    """A UserError that names all arrays that are missing, are not in `wanted` or have another shape.

    `here` is a name for what `wanted` belongs to.
    """
    shapes, wanted_shapes = export.flatten(params, shapes=True), export.flatten(wanted, shapes=True)
    missing = [name for name in wanted_shapes if name not in shapes]
    left = [name for name in shapes if name not in wanted_shapes]
    differ = {name: (shapes[name], shape) for name, shape in wanted_shapes.items() if shapes.get(name, shape) != shape}
    # a stack of another depth: one sentence for all of its arrays
    depths = {(a[0], b[0]) for name, (a, b) in differ.items() if name.startswith('blocks/') and a[1:] == b[1:]}
    other = [f'blocks/*, {a} layers in the weights, {b} in {here}' for a, b in sorted(depths)]
    other += [
        f'{name} {a} in the weights, {b} in {here}'
        for name, (a, b) in differ.items()
        if not (name.startswith('blocks/') and a[1:] == b[1:])
    ]
    problems = [
        f'{title}: {", ".join(names)}'
        for title, names in (
            ('missing from the weights', missing),
            (f'not in {here}', left),
            ('of another shape', other),
        )
        if names
    ]
    if problems:
        raise UserError(f'{where} does not fit: {"; ".join(problems)}')
