"""ConvNeXt (arXiv 2201.03545): depthwise convolutions of 7 x 7, layer norms, and a product of four times the width.

Blocks are scanned. No row depends on another, so micro-batches are allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from medjax.errors import UserError
from medjax.models.convolution import Places, convolved, places_of
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import REMAT, LayerNorm, Mlp, check_choice, parameter, weight_init, zeros
from medjax.parallel.sharding import constrain_rows
from medjax.types import ApplyOptions, Input, Tower, Tree

SIZES = {  # the number of blocks in each stage, and the channels of the first one
    'T': ((3, 3, 9, 3), 96),
    'S': ((3, 3, 27, 3), 96),
    'B': ((3, 3, 27, 3), 128),
    'L': ((3, 3, 27, 3), 192),
    'XL': ((3, 3, 27, 3), 256),
}
LAYERSCALE = 1e-6  # at the start


def build(
    channels: int,
    variant: str = 'T',
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    remat: str = 'none',
    dtype: str = 'float32',
) -> Tower:
    """A ConvNeXt tower for images of `channels` channels and of any size.

    variant  'T', 'S', 'B', 'L' or 'XL'
    depths   the number of blocks in each stage; replaces the value of the variant
    widths   channels of each stage; None: every stage has twice those of the stage before
    remat    what is stored for the backward pass: 'blocks' (the inputs of blocks) or 'none' (nothing is computed twice)
    dtype    type of the activations; parameters and outputs are float32

    The patches are the pixels of the last feature map after the final norm, row by row; with four stages a side of n
    pixels has n // 32. `cls` is the final norm of their mean before it, as in the original. `last<n>/…` counts blocks
    of the last stage only; if it has fewer blocks, the output of its first block fills the missing places.

    A mask of mode 'zero' masks cells of the last map: see `medjax.models.convolution`. `cls` then comes from the mean
    of the cells that it leaves.
    """
    if variant not in SIZES:
        raise UserError(f'convnext: unknown variant {variant!r}; sizes: {", ".join(SIZES)}')
    check_choice('convnext', 'remat', remat, ('blocks', 'none'))
    check_choice('convnext', 'dtype', dtype, ('float32', 'bfloat16'))
    blocks, width = SIZES[variant]
    depths = tuple(depths or blocks)
    widths = tuple(widths or (width * 2**i for i in range(len(depths))))
    if not all(isinstance(n, int) and n > 0 for n in (*depths, *widths)):
        raise UserError(f'convnext: depths={depths!r} and widths={widths!r} must be whole numbers of at least 1')
    if len(widths) != len(depths):
        raise UserError(f'convnext: widths={widths!r}: there are {len(depths)} stages, and each has one width')
    module = ConvNeXt(channels, depths, widths, remat, jnp.dtype(dtype))
    side = module.stride
    example = (np.zeros((1, side, side, channels), np.float32), Places(np.ones(1, np.float32)), 1)
    return ConvNeXtTower(
        width=widths[-1],
        axes=logical_axes(module, example),
        blocks=depths[-1],  # of the last stage
        module=module,
        example=example,
        widths={f'levels/{i}': width for i, width in enumerate(widths, 1)},
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ConvNeXtTower(FlaxTower):
    """A tower of images around the flax module `ConvNeXt`."""

    module: ConvNeXt

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        ((view, mask, _),) = inputs
        b, v = view.present.shape
        height, width = view.image.shape[2:4]
        if 0 in self.grid((height, width)):
            stride = self.module.stride
            raise UserError(
                f'convnext: {height} x {width} px are too few; an image needs {stride} x {stride} px at least'
            )
        places = places_of('convnext', view, mask, self.module.stride)
        images = view.image.reshape(b * v, *view.image.shape[2:])
        outputs: Any = self.module.apply({'params': params}, images, places, options.layers)
        cls, patches, levels = outputs
        cls = jnp.moveaxis(cls.reshape(options.layers, b, v, -1), 0, 2)
        patches = jnp.moveaxis(patches.reshape(options.layers, b, v, -1, patches.shape[-1]), 0, 2)  # [B,V,layers,N,D]
        found = dict(cls=cls[:, :, -1], patches=patches[:, :, -1]) | options.last(cls=cls, patches=patches)
        return found | {
            name: level.astype(jnp.float32).reshape(b, v, *level.shape[1:])
            for i, level in enumerate(levels, 1)
            if (name := f'levels/{i}') in options.want
        }

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        stride = self.module.stride
        return size[0] // stride, size[1] // stride


class ConvNeXt(nn.Module):
    """Images [S,H,W,C] -> cls [layers,S,D] and maps [layers,S,h,w,D] of the last blocks, and the map of every stage."""

    channels: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    remat: str
    dtype: Any

    @property
    def stride(self) -> int:
        """Image pixels for each step in the last feature map: 4 after the stem, doubled by each stage but the first."""
        return 4 * 2 ** (len(self.depths) - 1)

    @nn.compact
    def __call__(self, images: Array, places: Places, layers: int) -> tuple[Array, Array, list[Array]]:
        levels: list[Array] = []
        x = places.keep(constrain_rows(images))
        for i, (depth, width) in enumerate(zip(self.depths, self.widths, strict=True)):
            if i == 0:
                x = Smaller(width, 4, False, self.dtype, name='stem')(x, places)
            stage = Stage(width, depth, i > 0, self.remat, self.dtype, name=f'stage{i + 1}')
            maps = stage(x, places, layers if i == len(self.depths) - 1 else 1)
            x = maps[-1]
            levels.append(x)
        maps = maps.astype(jnp.float32)
        mean = maps.mean((2, 3)) if places.active is None else maps.sum((2, 3)) / places.cells[:, None]
        norm = LayerNorm(1e-6, name='norm')
        return norm(mean), norm(maps), levels


class Smaller(nn.Module):
    """A smaller map, by a convolution whose kernel is as large as its stride: [S,H,W,C] -> [S,H/size,W/size,out].

    A layer norm stands after it, or before it with `norm_first`.
    """

    out: int
    size: int
    norm_first: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, places: Places) -> Array:
        norm = LayerNorm(1e-6, self.dtype, name='norm')
        if self.norm_first:
            x = places.keep(norm(x))
        shape = (self.size, self.size, x.shape[-1], self.out)
        kernel = parameter(self, 'kernel', weight_init, shape, (None, None, None, 'embed'))
        bias = parameter(self, 'bias', zeros, (self.out,), ('embed',))
        x = convolved(x, kernel, self.dtype, 0, self.size) + bias.astype(self.dtype)
        return places.keep(x if self.norm_first else norm(x))


class ConvNeXtBlock(nn.Module):
    """x + gamma mlp(norm(depthwise convolution of x)), [S,H,W,C]."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array, places: Places) -> Array:
        x = constrain_rows(x)
        c = x.shape[-1]
        kernel = parameter(self, 'kernel', weight_init, (7, 7, 1, c), (None, None, None, 'embed'))
        bias = parameter(self, 'bias', zeros, (c,), ('embed',))
        y = convolved(x, kernel, self.dtype, 3, groups=c) + bias.astype(self.dtype)
        y = LayerNorm(1e-6, self.dtype, name='norm')(y)
        y = Mlp(4 * c, self.dtype, name='mlp')(y)
        # in float32, because 1e-6 plus small updates is too coarse in bfloat16
        y = y * parameter(self, 'gamma1', jax.nn.initializers.constant(LAYERSCALE), (c,), ('embed',))
        return x + places.keep(y).astype(x.dtype)


class Stage(nn.Module):
    """Scanned blocks -> the feature maps after the last `layers` blocks, [layers,S,H,W,width].

    With `halves`, in all stages but the first, the sides of the map are halved first.
    """

    width: int
    depth: int
    halves: bool
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, places: Places, layers: int) -> Array:
        if self.halves:
            x = Smaller(self.width, 2, True, self.dtype, name='smaller')(x, places)
        block = nn.remat(ConvNeXtBlock, prevent_cse=False, policy=REMAT[self.remat])

        def step(block: nn.Module, last: Array, places: Places) -> tuple[Array, None]:
            return jnp.concatenate([last[1:], block(last[-1], places)[None]]), None

        scan = nn.scan(
            step,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            in_axes=nn.broadcast,
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: None},
        )
        return scan(block(self.dtype, name='blocks'), jnp.broadcast_to(x, (layers, *x.shape)), places)[0]
