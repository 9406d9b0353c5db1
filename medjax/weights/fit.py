"""Arrays of public weights -> those that a configuration wants: reshaped, resized, and compared by name and shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from einops import rearrange

from medjax.errors import UserError, suggest
from medjax.models.towers.vit import resize_grid
from medjax.weights import export

Params = dict[str, Any]
State = Mapping[str, np.ndarray]  # a file's arrays by their names


def fit(params: Params, wanted: Params, antialias: bool, offset: float) -> Params:
    """`params` of a tower for another grid of position embeddings, other image channels, a shorter context.

    `wanted` is the tree of the configuration's shapes. `antialias` and `offset` are those of `vit.cubic_weights`. What
    cannot be made to fit stays as it is, for `check_like` to tell.
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
    """A first convolution [h,w,C,D] for another number of channels, exact for grey images repeated over the channels:
    3 -> 1 sums over them, 1 -> n shares the kernel out."""
    if kernel.shape[2] == channels:
        return kernel
    if 1 not in (kernel.shape[2], channels):
        raise UserError(f'weights for images of {kernel.shape[2]} channels cannot be changed to {channels}, only to 1')
    grey = kernel.sum(2, keepdims=True)
    return np.repeat(grey, channels, axis=2) / np.float32(channels)


def check_like(params: Params, wanted: Params, where: str) -> None:
    """A UserError that names the first array of `params` that is missing, extra or of another shape than `wanted`'s."""
    have, want = export.flatten(params, shapes=True), export.flatten(wanted, shapes=True)
    for name in want:
        if name not in have:
            raise UserError(f'{where}: {name} is missing from the weights')
        if have[name] != want[name]:
            raise UserError(
                f'{where}: {name} has shape {have[name]} in the weights, {want[name]} in this configuration'
            )
    for name in have:
        if name not in want:
            raise UserError(f'{where}: the weights have {name}, this configuration does not{suggest(name, want)}')


def turn(name: str, array: np.ndarray, pattern: str, **sizes: int) -> np.ndarray:
    """einops' rearrange, with a sentence where the shape does not fit."""
    try:
        return rearrange(array, pattern, **sizes)
    except Exception as error:  # einops has no error class of its own for a shape that does not fit
        raise UserError(f'{name} has shape {np.shape(array)}, which does not fit {pattern!r} with {sizes}') from error


def back(array: np.ndarray, pattern: str) -> np.ndarray:
    """The inverse of `turn`."""
    torch, ours = pattern.split(' -> ')
    return rearrange(array, f'{ours} -> {torch}')


def put(tree: Params, path: str, value: np.ndarray) -> None:
    """Sets the array at 'a/b/c' of nested dicts."""
    *parents, last = path.split('/')
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value
