"""Pieces of convolutional towers: convolutions and batch norms of feature maps, with or without a mask.

Under a mask of mode 'zero' a tower never sees the masked cells (SparK, arXiv 2301.03580): the image and the output of
every convolution and pool are 0 there, and batch norms count the other places alone. The convolutions run over the
whole map, because dense ones are faster than sparse ones on all accelerators; a mask saves no FLOPs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from medjax.errors import UserError
from medjax.models.layers import Moments, batch_norm, ones, parameter, zeros
from medjax.types import Mask, View

kernel_init = jax.nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # arXiv 1502.01852


class Places(NamedTuple):
    """The places of feature maps that count: those of present images, and of them the cells that a mask leaves."""

    present: Array  # float32 [S]: 1 for a present image and 0 for an absent one
    active: Array | None = None  # float32 [S,h,w]: 1 for a cell that the mask leaves, 0 for a masked one; None: no mask

    @property
    def cells(self) -> Array:
        """The number of cells that the mask leaves in each image, at least 1: [S]."""
        assert self.active is not None
        return jnp.maximum(self.active.sum((1, 2)), 1)

    def scaled(self, x: Array) -> Array:
        """`active` at the scale of the feature map x [S,H,W,C]: [S,H,W]."""
        assert self.active is not None
        _, h, w = self.active.shape
        return self.active.repeat(x.shape[1] // h, axis=1).repeat(x.shape[2] // w, axis=2)

    def keep(self, x: Array) -> Array:
        """The feature map x with 0 in the masked places; x itself without a mask."""
        return x if self.active is None else x * self.scaled(x)[..., None].astype(x.dtype)

    def weight(self, x: Array) -> Array:
        """1 for what counts in a batch norm of x and 0 for all else: [S], or [S,H,W] under a mask."""
        return self.present if self.active is None else self.present[:, None, None] * self.scaled(x)


def places_of(tower: str, view: View, mask: Mask | None, stride: int) -> Places:
    """The places that count in a view of images: its crops are S = B V images, a cell has `stride` x `stride` pixels.

    UserError for a mask of another mode than 'zero', and for images that are not made of whole cells.
    """
    present = view.present.reshape(-1).astype(jnp.float32)
    if mask is None:
        return Places(present)
    if mask.mode != 'zero':
        raise UserError(
            f"{tower}: of all masks it takes those of mode 'zero' alone, such as dict(mask='random', mode='zero'); "
            f'this one has the mode {mask.mode!r}'
        )
    height, width = view.image.shape[2:4]
    if height % stride or width % stride:
        raise UserError(
            f'{tower}: under a mask the sides of an image must be multiples of {stride}, the pixels of a cell, and '
            f'this view has {height} x {width} px'
        )
    return Places(present, (~mask.bits).reshape(len(present), height // stride, width // stride).astype(jnp.float32))


class BatchNorm(nn.Module):
    """scale (x - mean) / sqrt(variance + eps) + bias for each channel of x [S,H,W,C], computed in float32.

    In training, mean and variance are those of the places that count. Outside of training, and if no place counts, they
    are the running statistics. Masked places of the result are 0.
    """

    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, places: Places) -> Array:
        c = x.shape[-1]
        scale = parameter(self, 'scale', ones, (c,), ('embed',))
        bias = parameter(self, 'bias', zeros, (c,), ('embed',))
        mean = self.variable('stats', 'mean', lambda: jnp.zeros(c))
        variance = self.variable('stats', 'variance', lambda: jnp.ones(c))
        y, moved = batch_norm(x, places.weight(x) if self.train else None, Moments(mean.value, variance.value))
        if self.train:
            mean.value, variance.value = moved
        return places.keep((y * scale + bias).astype(self.dtype))


class ConvNorm(nn.Module):
    """A convolution without bias, padded by half its kernel, and a batch norm: [S,H,W,C] -> [S,H',W',out]."""

    out: int
    size: int
    stride: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, places: Places) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.out)
        kernel = parameter(self, 'kernel', kernel_init, shape, (None, None, None, 'embed'))
        x = convolved(x, kernel, self.dtype, self.size // 2, self.stride)
        return BatchNorm(self.train, self.dtype, name='norm')(places.keep(x), places)


def convolved(
    x: Array, kernel: Array, dtype: Any, around: int, stride: int = 1, groups: int = 1, times: int = 1
) -> Array:
    """x [S,H,W,C] by a kernel [h,w,C / groups,D], with `around` zeros around it; the factors have `dtype`.

    `times` puts zeros between the pixels of x, so that its sides become so many times longer: a transposed convolution.
    """
    return jax.lax.conv_general_dilated(
        x.astype(dtype), kernel.astype(dtype), (stride, stride), [(around, around)] * 2, lhs_dilation=(times, times),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), feature_group_count=groups,
    )  # fmt: skip
