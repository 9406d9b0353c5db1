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
from medjax.models.convolution import ConvNorm, Places, places_of
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import REMAT, check_choice
from medjax.parallel.sharding import constrain_rows
from medjax.types import ApplyOptions, Input, Tower, Tree

SIZES = {  # the number of blocks in each stage, and the width of a block's output / that of its 3 x 3 convolution
    '18': ((2, 2, 2, 2), 1),
    '34': ((3, 4, 6, 3), 1),
    '50': ((3, 4, 6, 3), 4),
    '101': ((3, 4, 23, 3), 4),
}


def build(
    channels: int,
    variant: str = '50',
    stem: int = 64,
    depths: Sequence[int] | None = None,
    widths: Sequence[int] | None = None,
    norm: str = 'batch',
    remat: str = 'none',
    dtype: str = 'float32',
) -> Tower:
    """A ResNet tower for images of `channels` channels and of any size.

    variant  '18', '34', '50' or '101'
    stem     channels after the first convolution
    depths   the number of blocks in each stage; replaces the value of the variant
    widths   channels of the 3 x 3 convolutions in each stage; None: `stem` in the first stage, and in every later one
             twice those of the stage before
    norm     'batch': in training, mean and variance come from the global batch without absent rows, and update the
             running statistics r <- .9 r + .1 batch (with the unbiased variance) once in each pass, in the order of the
             passes. Outside of training the running statistics are used.
             'frozen': the running statistics are always used and never change
    remat    what is stored for the backward pass: 'blocks' (the inputs of blocks) or 'none' (nothing is computed twice)
    dtype    type of the activations; parameters, statistics and outputs are float32

    The patches are the pixels of the last feature map, row by row; with four stages a side of n pixels has
    ceil(n / 32). `cls` is their mean. `last<n>/cls` counts blocks of the last stage only. If it has fewer blocks,
    the output of its first block fills the missing places.

    A mask of mode 'zero' masks cells of this last map: see `medjax.models.convolution`. `cls` is then the mean of the
    cells that it leaves.
    """
    if variant not in SIZES:
        raise UserError(f'resnet: unknown variant {variant!r}; sizes: {", ".join(SIZES)}')
    check_choice('resnet', 'norm', norm, ('batch', 'frozen'))
    check_choice('resnet', 'remat', remat, ('blocks', 'none'))
    check_choice('resnet', 'dtype', dtype, ('float32', 'bfloat16'))
    blocks, expansion = SIZES[variant]
    depths = tuple(depths or blocks)
    if not all(isinstance(n, int) and n > 0 for n in (stem, *depths, *(widths or ()))):
        raise UserError(
            f'resnet: stem={stem!r}, depths={depths!r} and widths={widths!r} must be whole numbers of at least 1'
        )
    widths = tuple(widths or (stem * 2**i for i in range(len(depths))))
    if len(widths) != len(depths):
        raise UserError(f'resnet: widths={widths!r}: there are {len(depths)} stages, and each has one width')
    module = Resnet(channels, stem, depths, widths, expansion, remat, jnp.dtype(dtype))
    side = module.stride
    example = (np.zeros((1, side, side, channels), np.float32), Places(np.ones(1, np.float32)), 1)
    return ResnetTower(
        width=widths[-1] * expansion,
        axes=logical_axes(module, example),
        batch_statistics=norm == 'batch',
        blocks=depths[-1],  # of the last stage
        module=module,
        example=example,
        widths={f'levels/{i}': width * expansion for i, width in enumerate(widths, 1)},
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ResnetTower(FlaxTower):
    """A tower of images around the flax module `Resnet`."""

    module: Resnet

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        ((view, mask, _),) = inputs
        b, v = view.present.shape
        places = places_of('resnet', view, mask, self.module.stride)
        images = view.image.reshape(b * v, *view.image.shape[2:])
        update = options.train and self.batch_statistics
        variables = dict(params={name: p for name, p in params.items() if name != 'stats'}, stats=params['stats'])
        (maps, levels), updated = self.module.clone(train=update).apply(
            variables, images, places, options.layers, mutable=['stats'] if update else ()
        )
        maps = maps.astype(jnp.float32).reshape(options.layers, b, v, -1, maps.shape[-1])
        patches = jnp.moveaxis(maps, 0, 2)  # [B,V,layers,N,D]
        cls = patches.mean(3) if places.active is None else patches.sum(3) / places.cells.reshape(b, v, 1, 1)
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


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + convolutions(x)): 1 x 1, 3 x 3 and 1 x 1 if `expansion` > 1, otherwise 3 x 3 twice."""

    out: int
    expansion: int
    stride: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: Array, places: Places) -> Array:
        def conv(name: str, out: int, size: int, stride: int = 1) -> ConvNorm:
            return ConvNorm(out, size, stride, self.train, self.dtype, name=name)

        x = constrain_rows(x)
        inner = self.out // self.expansion
        if self.expansion > 1:
            y = jax.nn.relu(conv('conv1', inner, 1)(x, places))
            y = jax.nn.relu(conv('conv2', inner, 3, self.stride)(y, places))
            y = conv('conv3', self.out, 1)(y, places)
        else:
            y = jax.nn.relu(conv('conv1', self.out, 3, self.stride)(x, places))
            y = conv('conv2', self.out, 3)(y, places)
        if x.shape[-1] != self.out or self.stride > 1:
            x = conv('shortcut', self.out, 1, self.stride)(x, places)
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
    def __call__(self, x: Array, places: Places, layers: int) -> Array:
        block = nn.remat(ResidualBlock, prevent_cse=False, policy=REMAT[self.remat])
        x = block(self.out, self.expansion, self.stride, self.train, self.dtype, name='first')(x, places)
        last = jnp.broadcast_to(x, (layers, *x.shape))
        if self.depth == 1:
            return last

        def step(block: nn.Module, last: Array, places: Places) -> tuple[Array, None]:
            return jnp.concatenate([last[1:], block(last[-1], places)[None]]), None

        scan = nn.scan(
            step,
            variable_axes={'params': 0, 'stats': 0},
            split_rngs={'params': True},
            in_axes=nn.broadcast,
            length=self.depth - 1,
            metadata_params={nn.PARTITION_NAME: None},
        )
        return scan(block(self.out, self.expansion, 1, self.train, self.dtype, name='rest'), last, places)[0]


class Resnet(nn.Module):
    """Images [S,H,W,C] -> the feature maps of the last `layers` blocks, [layers,S,h,w,D], and those of every stage."""

    channels: int
    stem: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    expansion: int
    remat: str
    dtype: Any
    train: bool = False

    @property
    def stride(self) -> int:
        """Image pixels for each step in the last feature map: 4 after the stem, doubled by each stage but the first."""
        return 4 * 2 ** (len(self.depths) - 1)

    @nn.compact
    def __call__(self, images: Array, places: Places, layers: int) -> tuple[Array, list[Array]]:
        levels = []
        images = places.keep(constrain_rows(images))
        x = ConvNorm(self.stem, 7, 2, self.train, self.dtype, name='stem')(images, places)
        x = places.keep(nn.max_pool(jax.nn.relu(x), (3, 3), (2, 2), padding=((1, 1), (1, 1))))
        for i, depth in enumerate(self.depths):
            out, stride = self.widths[i] * self.expansion, 1 if i == 0 else 2
            stage = Stage(out, depth, self.expansion, stride, self.remat, self.train, self.dtype, name=f'stage{i + 1}')
            maps = stage(x, places, layers if i == len(self.depths) - 1 else 1)
            x = maps[-1]
            levels.append(x)
        return maps, levels
