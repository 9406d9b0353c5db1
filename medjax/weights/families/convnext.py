"""ConvNeXts in the names of torchvision, of timm, and of the original, which SparK has too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medjax.models.towers.convnext import SIZES
from medjax.weights.arrays import Arrays
from medjax.weights.layout import Layout, Sizes, axes, layers
from medjax.weights.names import Line, Table

STAGES = 4


def pair(path: str, name: str, weight: str, pattern: str) -> Table:
    """A weight and its bias."""
    return (Line(f'{path}/{weight}', (f'{name}.weight',), pattern), Line(f'{path}/bias', (f'{name}.bias',), 'o -> o'))


def smaller(path: str, conv: str, norm: str) -> Table:
    return (
        *pair(path, conv, 'kernel', 'o i p q -> p q i o'),
        *pair(f'{path}/norm', norm, 'scale', 'o -> o'),
    )


def block(path: str, name: str, depthwise: str, norm: str, first: str, second: str, gamma: str, shape: str) -> Table:
    """A block; `gamma` is the name of its scale of layers, and `shape` the pattern of that array."""
    return (
        *pair(path, f'{name}.{depthwise}', 'kernel', 'o i p q -> p q i o'),
        *pair(f'{path}/norm', f'{name}.{norm}', 'scale', 'o -> o'),
        *pair(f'{path}/mlp/fc1', f'{name}.{first}', 'kernel', 'o i -> i o'),
        *pair(f'{path}/mlp/fc2', f'{name}.{second}', 'kernel', 'o i -> i o'),
        Line(f'{path}/gamma1', (f'{name}.{gamma}',), shape),
    )


def torchvision() -> Table:
    table = smaller('stem', 'features.0.0', 'features.0.1')
    for i in range(STAGES):
        path, name = f'stage{i + 1}', f'features.{2 * i + 1}.{{}}'
        if i:
            table += smaller(f'{path}/smaller', f'features.{2 * i}.1', f'features.{2 * i}.0')
        table += block(f'{path}/blocks', name, 'block.0', 'block.2', 'block.3', 'block.5', 'layer_scale', 'c 1 1 -> c')
    return table + pair('norm', 'classifier.0', 'scale', 'o -> o')


def timm() -> Table:
    table = smaller('stem', 'stem.0', 'stem.1')
    for i in range(STAGES):
        path, name = f'stage{i + 1}', f'stages.{i}'
        if i:
            table += smaller(f'{path}/smaller', f'{name}.downsample.1', f'{name}.downsample.0')
        names = ('conv_dw', 'norm', 'mlp.fc1', 'mlp.fc2', 'gamma')
        table += block(f'{path}/blocks', f'{name}.blocks.{{}}', *names, 'c -> c')
    return table + pair('norm', 'head.norm', 'scale', 'o -> o')


def original() -> Table:
    table = smaller('stem', 'downsample_layers.0.0', 'downsample_layers.0.1')
    for i in range(STAGES):
        path, name = f'stage{i + 1}', f'downsample_layers.{i}'
        if i:
            table += smaller(f'{path}/smaller', f'{name}.1', f'{name}.0')
        names = ('dwconv', 'norm', 'pwconv1', 'pwconv2', 'gamma')
        table += block(f'{path}/blocks', f'stages.{i}.{{}}', *names, 'c -> c')
    return table + pair('norm', 'norm', 'scale', 'o -> o')


def sizes(table: Table, arrays: Arrays) -> Sizes:
    stem = axes(table, arrays, 'stem/kernel') or {}
    later = [axes(table, arrays, f'stage{i}/smaller/kernel') or {} for i in range(2, STAGES + 1)]
    depths = [layers(table, arrays, f'stage{i}/blocks/kernel') for i in range(1, STAGES + 1)]
    return dict(channels=stem.get('i'), widths=tuple(x.get('o') for x in (stem, *later)), depths=tuple(depths))


def describe(found: Sizes, config: Mapping[str, Any]) -> dict[str, Any]:
    for name, (depths, width) in SIZES.items():
        if found['depths'] == depths and found['widths'] == tuple(width * 2**i for i in range(STAGES)):
            return dict(tower='convnext', variant=name)
    return dict(tower='convnext', depths=list(found['depths']), widths=list(found['widths']))


LAYOUTS = (
    Layout(title="a ConvNeXt in torchvision's names", module='towers/image', table=torchvision(), config='image',
           signs=('features.0.0.weight', 'features.1.0.block.0.weight', 'features.1.0.layer_scale'),
           left_out=r'classifier\.2\.', sizes=sizes, describe=describe),
    Layout(title="a ConvNeXt in timm's names", module='towers/image', table=timm(), config='image',
           signs=('stem.0.weight', 'stages.0.blocks.0.conv_dw.weight', 'stages.0.blocks.0.gamma'),
           left_out=r'head\.fc\.', sizes=sizes, describe=describe),
    Layout(title="a ConvNeXt in the original's names", module='towers/image', table=original(), config='image',
           signs=('downsample_layers.0.0.weight', 'stages.0.0.dwconv.weight', 'stages.0.0.gamma'),
           left_out=r'head\.', sizes=sizes, describe=describe),
)  # fmt: skip
