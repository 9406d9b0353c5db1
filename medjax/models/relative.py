"""Codes of where a crop lies relative to another crop of its image, and of how it was changed.

A world model (CheXWorld, arXiv 2504.13820) predicts one crop from another. It reads each target's position as it would
be counted in the crop of the context: fractions of a cell, negative numbers and numbers beyond the grid are all right.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

BANDS, HIGHEST = 32, 64.0  # of `fourier`


class Affine(NamedTuple):
    """From fractions y of the height and x of the width of one crop to those of another crop.

    y becomes row_offset + row_scale y, and x becomes column_offset + column_scale x. The scale of columns is negative
    if one of the two crops is mirrored."""

    row_scale: Array
    row_offset: Array
    column_scale: Array
    column_offset: Array


def between(context_box: Array, context_flip: Array, target_box: Array, target_flip: Array) -> Affine:
    """The map from the crop of the targets to the crop of the context; arrays like the flips.

    Boxes [...,4] are (top, left, height, width) in pixels of the image, and flips bool [...] mirror left and right.
    """

    def axis(start: int, context_sign: Array, target_sign: Array) -> tuple[Array, Array]:
        """The image coordinate of the fraction f of a crop is centre + sign (f - 1/2) length."""
        length, other = context_box[..., start + 2], target_box[..., start + 2]
        centre, other_centre = context_box[..., start] + length / 2, target_box[..., start] + other / 2
        scale = context_sign * target_sign * other / length
        return scale, 0.5 + context_sign * (other_centre - centre) / length - 0.5 * scale

    one = jnp.ones(())
    signs = (1.0 - 2.0 * flip for flip in (context_flip, target_flip))
    return Affine(*jnp.broadcast_arrays(*axis(0, one, one), *axis(1, *signs)))


def code(patches: Array, affine: Affine, grid: tuple[int, int], width: int) -> Array:
    """Sines and cosines of where patches lie in the crop of the context, float32 [S,…,width].

    `patches` int32 [S,…] are numbers in the grid of their own crop, and `affine` [S] leads to the crop of the context.
    The first half of the code is that of the row and the second that of the column, each as [sines, cosines]. With
    equal crops it is `sincos_positions` with its halves swapped.
    """
    s = (len(patches), *[1] * (patches.ndim - 1))
    row_scale, row_offset, column_scale, column_offset = (x.reshape(s) for x in affine)
    rows = (patches // grid[1] + 0.5) * row_scale + row_offset * grid[0] - 0.5
    columns = (patches % grid[1] + 0.5) * column_scale + column_offset * grid[1] - 0.5
    return jnp.concatenate([waves(rows, width), waves(columns, width)], axis=-1)


def scale_code(affine: Affine, width: int) -> Array:
    """Sines and cosines of 10 times the logarithm of both scales, float32 [S,width]; rows first."""
    logs = (10 * jnp.log(jnp.abs(x)) for x in (affine.row_scale, affine.column_scale))
    return jnp.concatenate([waves(x, width) for x in logs], axis=-1)


def waves(x: Array, width: int) -> Array:
    """[...] -> [...,width/2]: sines and then cosines of x / 10,000^(4 i / width)."""
    rates = 1.0 / 10_000 ** (jnp.arange(width // 4) / (width / 4))
    angles = x[..., None] * rates
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def fourier(x: Array) -> Array:
    """The Fourier code of numbers [...,P]: float32 [...,P,65], the sines and cosines of f pi x for 32 f, and x."""
    angles = x[..., None] * jnp.linspace(1.0, HIGHEST, BANDS) * jnp.pi
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles), x[..., None]], axis=-1)
