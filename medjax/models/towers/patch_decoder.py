"""A light convolutional decoder: it draws each patch of an encoder as several cells, with the help of its neighbours.

Segmentation needs features finer than patches. The decoder normalises the patches of the last block, projects them to a
few channels, mixes neighbours by residual convolutions of 3 x 3 patches, and cuts each patch into `factor` x `factor`
cells (sub-pixel convolution, arXiv 1609.05158). It is the decoder of the probe `segmentation_decoder`, with a norm and
without the last layer. A head after `cells` gives the outputs, so a term may decide their number.

    towers=dict(image=dict(tower='vit', …), decoder=dict(tower='patch_decoder', reads=['image'], factor=4))
    heads=dict(classifier=dict(head='linear', bias=True))
    feature: student/decoder/crop/cells>classifier
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from medjax.errors import UserError
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import LayerNorm, Linear, parameter, zeros
from medjax.types import ApplyOptions, Input, Tower, Tree, is_whole

kernel_init = jax.nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')  # arXiv 1502.01852


def build(
    reads: tuple[Tower | None, ...],
    width: int = 64,
    depth: int = 2,
    factor: int = 4,
    dtype: str = 'float32',
) -> Tower:
    """The tower `patch_decoder` of a config. Its outputs are cells [B,V,h f,w f,D] and cls [B,V,D], their mean.

    reads   one tower of images with patches, the encoder: h rows and w columns of them
    width   D, the channels of a cell, and those of the convolutions
    depth   residual convolutions
    factor  f, the cells along each side of a patch; at most one for each pixel
    dtype   of activations
    """
    encoder = reads[0] if len(reads) == 1 else None
    if encoder is None or encoder.sees != 'image' or encoder.reads:
        raise UserError("patch_decoder: it reads one tower of images, the encoder: reads=['image']")
    for name, value, least in (('width', width, 1), ('depth', depth, 0), ('factor', factor, 1)):
        if not is_whole(value) or value < least:
            raise UserError(f'patch_decoder: {name}={value!r}: must be a whole number of at least {least}')
    module = PatchDecoder(width, depth, factor, jnp.dtype(dtype))
    example = (np.zeros((1, 2, 2, encoder.width), np.float32),)
    return PatchDecoderTower(
        width=width, axes=logical_axes(module, example), module=module, example=example, encoder=encoder
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PatchDecoderTower(FlaxTower):
    """A tower over an encoder of images around the flax module `PatchDecoder`."""

    module: PatchDecoder
    encoder: Tower

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        (encoded,) = inputs
        assert encoded is not None and encoded.outputs is not None
        if 'patches' not in encoded.outputs:
            raise UserError('patch_decoder: the encoder has no feature for each patch')
        patches, size = encoded.outputs['patches'], encoded.view.image.shape[2:4]
        b, v, n, _ = patches.shape
        h, w = self.encoder.grid(size)
        if n != h * w:
            raise UserError(
                f'patch_decoder: the encoder gives {n} patches of {h} x {w}; show it the view without a mask that '
                'drops patches'
            )
        side = min(size[0] // h, size[1] // w)
        if self.module.factor > side:
            raise UserError(
                f'patch_decoder: factor={self.module.factor} makes cells smaller than a pixel of the view: a patch has '
                f'{side} px, so factor can be {side} at most'
            )
        cells: Any = self.module.apply({'params': params}, patches.reshape(b * v, h, w, -1))
        cells = cells.reshape(b, v, *cells.shape[1:])
        return dict(cls=cells.mean((2, 3)), cells=cells)


class PatchDecoder(nn.Module):
    """Patches [S,h,w,D'] -> cells [S,h f,w f,D], in float32."""

    width: int
    depth: int
    factor: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d, f = self.width, self.factor
        x = LayerNorm(name='norm')(x)
        x = Linear((x.shape[-1], d), ('embed', None), dtype=self.dtype, init=kernel_init, name='project')(x)
        x = x.astype(jnp.float32)
        for i in range(self.depth):
            kernel = parameter(self, f'kernel{i}', kernel_init, (3, 3, d, d), (None, None, None, 'embed'))
            bias = parameter(self, f'bias{i}', zeros, (d,), ('embed',))
            x = x + convolved(jax.nn.gelu(x).astype(self.dtype), kernel) + bias
        x = jax.nn.gelu(x)
        x = Linear((d, f * f * d), ('embed', None), dtype=self.dtype, init=kernel_init, name='cells')(x)
        s, h, w, _ = x.shape
        x = x.reshape(s, h, w, f, f, d).swapaxes(2, 3).reshape(s, h * f, w * f, d)
        return jax.nn.gelu(x.astype(jnp.float32))


def convolved(x: Array, kernel: Array) -> Array:
    """x [S,h,w,C] by a kernel [3,3,C,D] with zeros around, as one product of matrices: float32 [S,h,w,D]."""
    _, h, w, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    around = jnp.concatenate([x[:, i : i + h, j : j + w] for i in range(3) for j in range(3)], -1)
    flat = kernel.reshape(math.prod(kernel.shape[:3]), -1).astype(x.dtype)
    return jnp.matmul(around, flat, preferred_element_type=jnp.float32)
