"""Fits the arrays of weights to a configuration, and checks their names and shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from medjax.errors import UserError, suggest
from medjax.models.towers.vit import resize_grid
from medjax.weights import export

Params = dict[str, Any]
State = Mapping[str, np.ndarray]  # the arrays of a file by name


def fit(params: Params, wanted: Params, antialias: bool, offset: float) -> Params:
    """The parameters of a tower for another grid of positions, another number of image channels or a shorter context.

    `wanted` is the tree of shapes of the configuration. `antialias` and `offset` are explained at `vit.cubic_weights`.
    Other arrays stay as they are; `check_like` finds those that do not fit.
    """
    flat, shapes = export.flatten(params), export.flatten(wanted, shapes=True)
    for name, shape in shapes.items():
        array = flat.get(name)
        if array is None or array.shape == shape or array.ndim != len(shape):
            continue
        if name == 'pos_grid' and array.shape[2] == shape[2]:
            flat[name] = np.asarray(resize_grid(array, shape[:2], antialias, offset))
        elif name in ('patch_embed/kernel', 'stem/kernel'):
            flat[name] = adapt_channels(array, shape[2])
        elif name == 'positions' and len(array) > shape[0]:
            flat[name] = array[: shape[0]]
    return export.unflatten(flat)


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution [h,w,C,D] for another number of image channels.

    From n channels to one it sums over the channels. From one channel to n it divides the kernel evenly. Both give the
    same result as before for a grey image that is repeated over the channels.
    """
    if kernel.shape[2] == channels:
        return kernel
    if 1 not in (kernel.shape[2], channels):
        raise UserError(f'weights for images of {kernel.shape[2]} channels cannot be changed to {channels}, only to 1')
    grey = kernel.sum(2, keepdims=True)
    return np.repeat(grey, channels, axis=2) / np.float32(channels)


def check_like(params: Params, wanted: Params, where: str) -> None:
    """A UserError that names the first array that is missing from `params`, is not in `wanted` or has another shape."""
    shapes, wanted_shapes = export.flatten(params, shapes=True), export.flatten(wanted, shapes=True)
    for name, shape in wanted_shapes.items():
        if name not in shapes:
            raise UserError(f'{where}: {name} is missing from the weights')
        if shapes[name] != shape:
            raise UserError(f'{where}: {name} has shape {shapes[name]} in the weights, {shape} in this configuration')
    for name in shapes:
        if name not in wanted_shapes:
            raise UserError(
                f'{where}: the weights have {name}, this configuration does not{suggest(name, wanted_shapes)}'
            )


def from_torch(name: str, array: np.ndarray, pattern: str, **sizes: int) -> np.ndarray:
    """An array of torch in our order of axes; `pattern` is one of einops. UserError if the shape does not fit."""
    try:
        return rearrange(array, pattern, **sizes)
    except Exception as error:  # einops has no error class of its own for a shape that does not fit
        raise UserError(f'{name} has shape {np.shape(array)}, which does not fit {pattern!r} with {sizes}') from error


def to_torch(array: np.ndarray, pattern: str) -> np.ndarray:
    """The inverse of `from_torch`, for the same pattern."""
    torch, ours = pattern.split(' -> ')
    return rearrange(array, f'{ours} -> {torch}')


def set_path(tree: Params, path: str, value: np.ndarray) -> None:
    """Sets the array at the path 'a/b/c' of nested dicts."""
    *parents, last = path.split('/')
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value
