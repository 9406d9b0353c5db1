"""A U-shaped decoder of pixels over the feature maps of a convolutional tower (SparK, arXiv 2301.03580).

It reads the maps after every stage of a tower that saw the view under a mask of mode 'zero'. In each map it puts a
learned token in the masked places. From the deepest map on, it doubles the sides, adds the next map, and so on up to
the pixels of the image.

    towers=dict(image=dict(tower='resnet', …), decoder=dict(tower='unet_decoder', reads=['image']))
    masks={'crop~random': dict(mask='random', mode='zero', share=.6)}
    feature: student/decoder/crop~random/pixels
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax import Array

from medjax.errors import UserError
from medjax.models.convolution import BatchNorm, ConvNorm, Places, convolved, kernel_init, places_of
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import LayerNorm, check_choice, parameter, weight_init, zeros
from medjax.parallel.sharding import constrain_rows
from medjax.types import ApplyOptions, Input, Tower, Tree, is_whole

projection_init = jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')  # of convolutions in torch


def build(
    channels: int,
    reads: tuple[Tower | None, ...],
    width: int = 512,
    norm: str = 'batch',
    dtype: str = 'float32',
) -> Tower:
    """The tower `unet_decoder` of a config. Its outputs are pixels [B,V,N,p p C], patches [B,V,N,D] and cls [B,V,D].

    reads  one convolutional tower, the encoder; the side p of a cell is its stride, 32 px with four stages
    width  D, the channels at the deepest map; every doubling of the sides halves them
    norm   of the encoder's maps before the tokens are put in: 'batch' over the places that the mask leaves, as SparK
           does for ResNets, or 'layer' for each place, as for ConvNeXt
    dtype  type of the activations; parameters, statistics and outputs are float32

    The numbers of a cell in `pixels` are ordered as (row in the cell, column in the cell, channel). `patches` is the
    deepest map with the tokens put in and the width changed to D, and `cls` is its mean.
    """
    encoder = reads[0] if len(reads) == 1 else None
    levels = tuple(name for name in encoder.widths if name.startswith('levels/')) if encoder is not None else ()
    if encoder is None or not levels:
        raise UserError("unet_decoder: it reads one convolutional tower, such as a ResNet: reads=['image']")
    doublings = len(levels) + 1  # the finest map has a quarter of the image's sides
    if not is_whole(width) or width < 2**doublings or width % 2**doublings:
        raise UserError(
            f'unet_decoder: width={width!r}: it is halved {doublings} times on the way to the pixels, so it must be a '
            f'multiple of {2**doublings}'
        )
    check_choice('unet_decoder', 'norm', norm, ('batch', 'layer'))
    check_choice('unet_decoder', 'dtype', dtype, ('float32', 'bfloat16'))
    module = UnetDecoder(width=width, out=channels, norm=norm, dtype=jnp.dtype(dtype))
    sides = [2 ** (len(levels) - 1 - i) for i in range(len(levels))]
    maps = [np.zeros((1, side, side, encoder.widths[level]), np.float32) for side, level in zip(sides, levels)]
    example = (maps, Places(np.ones(1, np.float32), np.ones((1, 1, 1), np.float32)))
    return UnetDecoderTower(
        width=width,
        axes=logical_axes(module, example),
        widths=dict(pixels=channels * 4**doublings),
        wants=levels,
        batch_statistics=True,
        module=module,
        example=example,
        stride=2**doublings,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class UnetDecoderTower(FlaxTower):
    """A tower over a convolutional tower around the flax module `UnetDecoder`."""

    module: UnetDecoder
    stride: int  # side of a cell in pixels

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        ((view, mask, encoded),) = inputs
        if mask is None or encoded is None:
            raise UserError(
                'unet_decoder: the encoder sees the whole view, so nothing is left to fill in; give the view a mask of '
                "mode 'zero', such as crop~random with dict(mask='random', mode='zero')"
            )
        b, v = view.present.shape
        places = places_of('unet_decoder', view, mask, self.stride)
        maps = [encoded[level].reshape(b * v, *encoded[level].shape[2:]) for level in self.wants]
        variables = dict(params={name: p for name, p in params.items() if name != 'stats'}, stats=params['stats'])
        (deepest, image), updated = self.module.clone(train=options.train).apply(
            variables, maps, places, mutable=['stats'] if options.train else ()
        )
        patches = rearrange(deepest.astype(jnp.float32), '(b v) h w d -> b v (h w) d', b=b)
        pixels = rearrange(
            image.astype(jnp.float32), '(b v) (h p) (w q) c -> b v (h w) (p q c)', b=b, p=self.stride, q=self.stride
        )
        outputs = dict(cls=patches.mean(2), patches=patches, pixels=pixels)
        return outputs | (dict(stats=updated['stats']) if options.train else {})


class UnetDecoder(nn.Module):
    """Feature maps, the finest first -> the deepest one [S,h,w,width] with its masked places filled, and the image."""

    width: int
    out: int  # channels of the image
    norm: str
    dtype: Any
    train: bool = False

    @nn.compact
    def __call__(self, maps: list[Array], places: Places) -> tuple[Array, Array]:
        everywhere = Places(places.present)
        x = deepest = jnp.zeros((), self.dtype)
        for i in range(len(maps) + 1):  # from the deepest map on
            width = self.width // 2**i
            if i < len(maps):
                filled = Filled(width, 3 if i else 1, self.norm, self.train, self.dtype, name=f'filled{i + 1}')
                x = x + filled(constrain_rows(maps[-1 - i]), places)
            deepest = x if i == 0 else deepest
            x = Doubled(width // 2, self.train, self.dtype, name=f'doubled{i + 1}')(x, everywhere)
        return deepest, Convolution(self.out, 1, kernel_init, self.dtype, name='pixels')(x)


class Filled(nn.Module):
    """A norm, a learned token in the masked places, and a convolution to `out` channels: [S,H,W,C] -> [S,H,W,out].

    There is no convolution where one of 1 x 1 would keep the number of channels.
    """

    out: int
    size: int
    norm: str
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, places: Places) -> Array:
        token = parameter(self, 'mask_token', weight_init, x.shape[-1:], ('embed',))
        if self.norm == 'batch':
            x = BatchNorm(self.train, self.dtype, name='norm')(x, places)
        else:
            x = LayerNorm(1e-6, self.dtype, name='norm')(x)
        x = jnp.where(places.scaled(x)[..., None] > 0, x, token.astype(self.dtype))
        if self.size == 1 and x.shape[-1] == self.out:
            return x
        return Convolution(self.out, self.size, projection_init, self.dtype, name='projection')(x)


class Doubled(nn.Module):
    """A feature map of twice the sides, by a transposed convolution and two convolutions: [S,2H,2W,out]."""

    out: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, places: Places) -> Array:
        c = x.shape[-1]
        x = Convolution(c, 4, kernel_init, self.dtype, 2, name='double')(x)
        x = jax.nn.relu6(ConvNorm(c, 3, 1, self.train, self.dtype, name='conv1')(x, places))
        return ConvNorm(self.out, 3, 1, self.train, self.dtype, name='conv2')(x, places)


class Convolution(nn.Module):
    """A convolution with bias that keeps the sides, or a transposed one that multiplies them by `times`."""

    out: int
    size: int
    start: jax.nn.initializers.Initializer
    dtype: Any
    times: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.out)
        kernel = parameter(self, 'kernel', self.start, shape, (None, None, None, 'embed'))
        bias = parameter(self, 'bias', zeros, (self.out,), ('embed',))
        x = convolved(x, kernel, self.dtype, self.size // 2, times=self.times)
        return x + bias.astype(self.dtype)
