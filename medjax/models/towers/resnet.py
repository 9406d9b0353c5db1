"""ResNet (arXiv 1512.03385) of version 1.5: the 3 x 3 convolution of a block has the stride.

Blocks are scanned. The running statistics of batch norms are not trained; they are stored under 'stats'.
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
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import REMAT, Moments, batch_norm, check_choice, ones, parameter, zeros
from medjax.parallel.sharding import constrain_rows
from medjax.types import ApplyOptions, Input, Tower, Tree

SIZES = {  # the number of blocks in each stage, and the width of a block's output / that of its 3 x 3 convolution
    '18': ((2, 2, 2, 2), 1),
    '34': ((3, 4, 6, 3), 1),
    '50': ((3, 4, 6, 3), 4),
    '101': ((3, 4, 23, 3), 4),
}
kernel_init = jax.nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')  # arXiv 1502.01852


def build(
    channels: int,
    variant: str = '50',
    stem: int = 64,
    depths: Sequence[int] | None = None,
    norm: str = 'batch',
    remat: str = 'none',
    dtype: str = 'float32',
) -> Tower:
    """A ResNet tower for images of `channels` channels and of any size.

    variant  '18', '34', '50' or '101'
    stem     channels after the first convolution; every stage after the first has twice the channels of the one before
    depths   the number of blocks in each stage; replaces the value of the variant
    norm     'batch': in training, mean and variance come from the global batch without absent rows, and update the
             running statistics r <- .9 r + .1 batch (with the unbiased variance) once in each pass, in the order of the
             passes. Outside of training the running statistics are used.
             'frozen': the running statistics are always used and never change
    remat    what is stored for the backward pass: 'blocks' (the inputs of blocks) or 'none' (nothing is computed twice)
    dtype    type of the activations; parameters, statistics and outputs are float32

    The patches are the pixels of the last feature map, row by row; with four stages a side of n pixels has
    ceil(n / 32). `cls` is their mean. `last<n>/cls` counts blocks of the last stage only. If it has fewer blocks,
    the output of its first block fills the missing places.
    """
    if variant not in SIZES:
        raise UserError(f'resnet: unknown variant {variant!r}; sizes: {", ".join(SIZES)}')
    check_choice('resnet', 'norm', norm, ('batch', 'frozen'))
    check_choice('resnet', 'remat', remat, ('blocks', 'none'))
    check_choice('resnet', 'dtype', dtype, ('float32', 'bfloat16'))
    blocks, expansion = SIZES[variant]
    depths = tuple(depths or blocks)
    if not all(isinstance(n, int) and n > 0 for n in (stem, *depths)):
        raise UserError(f'resnet: stem={stem!r} and depths={depths!r} must be whole numbers of at least 1')
    module = Resnet(channels, stem, depths, expansion, remat, jnp.dtype(dtype))
    side = module.stride
    example = (np.zeros((1, side, side, channels), np.float32), np.ones(1, np.float32), 1)
    return ResnetTower(
        width=stem * 2 ** (len(depths) - 1) * expansion,
        axes=logical_axes(module, example),
        batch_statistics=norm == 'batch',
        blocks=depths[-1],  # of the last stage
        module=module,
        example=example,
        widths={f'levels/{i}': stem * 2 ** (i - 1) * expansion for i in range(1, len(depths) + 1)},
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ResnetTower(FlaxTower):
    """A tower of images around the flax module `Resnet`."""

    module: Resnet

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        ((view, mask, _),) = inputs
        if mask is not None:
            raise UserError('resnet: this tower takes no masks')
        b, v = view.present.shape
        images = view.image.reshape(b * v, *view.image.shape[2:])
        weight = view.present.reshape(-1).astype(jnp.float32)
        update = options.train and self.batch_statistics
        variables = dict(params={name: p for name, p in params.items() if name != 'stats'}, stats=params['stats'])
        (maps, levels), updated = self.module.clone(train=update).apply(
            variables, images, weight, options.layers, mutable=['stats'] if update else ()
        )
        maps = maps.astype(jnp.float32).reshape(options.layers, b, v, -1, maps.shape[-1])
        patches = jnp.moveaxis(maps, 0, 2)  # [B,V,layers,N,D]
        cls = patches.mean(3)
        outputs = dict(cls=cls[:, :, -1], patches=patches[:, :, -1]) | options.last(cls=cls, patches=patches)
        outputs |= {
            name: level.astype(jnp.float32).reshape(b, v, *level.shape[1:])
            for i, level in enumerate(levels, 1)
            if (name := f'levels/{i}') in options.want
        }
        return outputs | (dict(stats=updated['stats']) if update else {})

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        stride = self.module.stride
        return -(-size[0] // stride), -(-size[1] // stride)


class BatchNorm(nn.Module):
    """scale (x - mean) / sqrt(variance + eps) + bias for each channel of x [S,H,W,C], computed in float32.

    In training, mean and variance are weighted over images and pixels: `weight` [S] is 1 for a present image and 0 for
    an absent one. Outside of training, and if no image is present, they are the running statistics.
    """

    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, weight: Array) -> Array:
        c = x.shape[-1]
        scale = parameter(self, 'scale', ones, (c,), ('embed',))
        bias = parameter(self, 'bias', zeros, (c,), ('embed',))
        mean = self.variable('stats', 'mean', lambda: jnp.zeros(c))
        variance = self.variable('stats', 'variance', lambda: jnp.ones(c))
        y, moved = batch_norm(x, weight if self.train else None, Moments(mean.value, variance.value))
        if self.train:
            mean.value, variance.value = moved
        return (y * scale + bias).astype(self.dtype)


class ConvNorm(nn.Module):
    """A convolution without bias, padded by half its kernel, and a batch norm: [S,H,W,C] -> [S,H',W',out]."""

    out: int
    size: int
    stride: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, weight: Array) -> Array:
        shape = (self.size, self.size, x.shape[-1], self.out)
        kernel = parameter(self, 'kernel', kernel_init, shape, (None, None, None, 'embed'))
        half = self.size // 2
        x = jax.lax.conv_general_dilated(
            x.astype(self.dtype), kernel.astype(self.dtype), (self.stride,) * 2, [(half, half)] * 2,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )  # fmt: skip
        return BatchNorm(self.train, self.dtype, name='norm')(x, weight)


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + convolutions(x)): 1 x 1, 3 x 3 and 1 x 1 if `expansion` > 1, otherwise 3 x 3 twice."""

    out: int
    expansion: int
    stride: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, weight: Array) -> Array:
        def conv(name: str, out: int, size: int, stride: int = 1) -> ConvNorm:
            return ConvNorm(out, size, stride, self.train, self.dtype, name=name)

        x = constrain_rows(x)
        inner = self.out // self.expansion
        if self.expansion > 1:
            y = jax.nn.relu(conv('conv1', inner, 1)(x, weight))
            y = jax.nn.relu(conv('conv2', inner, 3, self.stride)(y, weight))
            y = conv('conv3', self.out, 1)(y, weight)
        else:
            y = jax.nn.relu(conv('conv1', self.out, 3, self.stride)(x, weight))
            y = conv('conv2', self.out, 3)(y, weight)
        if x.shape[-1] != self.out or self.stride > 1:
            x = conv('shortcut', self.out, 1, self.stride)(x, weight)
        return jax.nn.relu(x + y)


class Stage(nn.Module):
    """A first block with the stride, then scanned blocks -> the feature maps after the last `layers` blocks."""

    out: int
    depth: int
    expansion: int
    stride: int
    remat: str
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, weight: Array, layers: int) -> Array:
        block = nn.remat(ResidualBlock, prevent_cse=False, policy=REMAT[self.remat])
        x = block(self.out, self.expansion, self.stride, self.train, self.dtype, name='first')(x, weight)
        last = jnp.broadcast_to(x, (layers, *x.shape))
        if self.depth == 1:
            return last

        def step(block: nn.Module, last: Array, weight: Array) -> tuple[Array, None]:
            return jnp.concatenate([last[1:], block(last[-1], weight)[None]]), None

        scan = nn.scan(
            step,
            variable_axes={'params': 0, 'stats': 0},
            split_rngs={'params': True},
            in_axes=nn.broadcast,
            length=self.depth - 1,
            metadata_params={nn.PARTITION_NAME: None},
        )
        return scan(block(self.out, self.expansion, 1, self.train, self.dtype, name='rest'), last, weight)[0]


class Resnet(nn.Module):
    """Images [S,H,W,C] -> the feature maps of the last `layers` blocks, [layers,S,h,w,D], and those of every stage."""

    channels: int
    stem: int
    depths: tuple[int, ...]
    expansion: int
    remat: str
    dtype: Any
    train: bool = False

    @property
    def stride(self) -> int:
        """Image pixels for each step in the last feature map: 4 after the stem, doubled by each stage but the first."""
        return 4 * 2 ** (len(self.depths) - 1)

    @nn.compact
    def __call__(self, images: Array, weight: Array, layers: int) -> tuple[Array, list[Array]]:
        levels = []
        x = ConvNorm(self.stem, 7, 2, self.train, self.dtype, name='stem')(constrain_rows(images), weight)
        x = nn.max_pool(jax.nn.relu(x), (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for i, depth in enumerate(self.depths):
            out, stride = self.stem * 2**i * self.expansion, 1 if i == 0 else 2
            stage = Stage(out, depth, self.expansion, stride, self.remat, self.train, self.dtype, name=f'stage{i + 1}')
            maps = stage(x, weight, layers if i == len(self.depths) - 1 else 1)
            x = maps[-1]
            levels.append(x)
        return maps, levels
