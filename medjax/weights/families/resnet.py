"""ResNets in the names of torchvision, which are timm's too, and of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medjax.errors import UserError
from medjax.models.towers.resnet import SIZES
from medjax.weights.arrays import Arrays
from medjax.weights.layout import Layout, Sizes, axes, layers
from medjax.weights.names import Line, Table

STAGES = 4


def conv_norm(path: str, conv: str, norm: str, first: int = 0) -> Table:
    """A convolution without bias, its batch norm, and the running statistics of the batch norm."""
    return (
        Line(f'{path}/kernel', (f'{conv}.weight',), 'o i p q -> p q i o', first),
        Line(f'{path}/norm/scale', (f'{norm}.weight',), 'c -> c', first),
        Line(f'{path}/norm/bias', (f'{norm}.bias',), 'c -> c', first),
        Line(f'stats/{path}/norm/mean', (f'{norm}.running_mean',), 'c -> c', first),
        Line(f'stats/{path}/norm/variance', (f'{norm}.running_var',), 'c -> c', first),
    )


def hugging_face() -> Table:
    """The stem and four stages. Blocks of ResNet-18 and 34 have no third convolution."""

    def one(path: str, name: str, first: int = 0) -> Table:
        return conv_norm(path, f'{name}.convolution', f'{name}.normalization', first)

    table = one('stem', 'embedder.embedder')
    for stage in range(STAGES):
        path, blocks = f'stage{stage + 1}', f'encoder.stages.{stage}.layers'
        table += one(f'{path}/first/shortcut', f'{blocks}.0.shortcut')
        for i in range(3):
            table += one(f'{path}/first/conv{i + 1}', f'{blocks}.0.layer.{i}')
            table += one(f'{path}/rest/conv{i + 1}', f'{blocks}.{{}}.layer.{i}', first=1)
    return table


def torchvision() -> Table:
    table = conv_norm('stem', 'conv1', 'bn1')
    for stage in range(1, STAGES + 1):
        path, blocks = f'stage{stage}', f'layer{stage}'
        table += conv_norm(f'{path}/first/shortcut', f'{blocks}.0.downsample.0', f'{blocks}.0.downsample.1')
        for i in (1, 2, 3):
            table += conv_norm(f'{path}/first/conv{i}', f'{blocks}.0.conv{i}', f'{blocks}.0.bn{i}')
            table += conv_norm(f'{path}/rest/conv{i}', f'{blocks}.{{}}.conv{i}', f'{blocks}.{{}}.bn{i}', first=1)
    return table


def sizes(table: Table, arrays: Arrays) -> Sizes:
    stem = axes(table, arrays, 'stem/kernel')
    if stem is None:
        raise UserError('there is no stem')
    depths = []
    for stage in range(1, STAGES + 1):
        if axes(table, arrays, f'stage{stage}/first/conv1/kernel'):
            depths.append(1 + layers(table, arrays, f'stage{stage}/rest/conv1/kernel'))
    bottleneck = axes(table, arrays, 'stage1/first/conv3/kernel') is not None
    return dict(stem=stem['o'], channels=stem['i'], depths=tuple(depths), bottleneck=bottleneck)


def describe(found: Sizes, config: Mapping[str, Any]) -> dict[str, Any]:
    fitting = [name for name, (_, expansion) in SIZES.items() if (expansion > 1) == found['bottleneck']]
    same = [name for name in fitting if SIZES[name][0] == found['depths']]
    cfg: dict[str, Any] = dict(tower='resnet', variant=(same or fitting)[0])
    cfg |= {} if same else dict(depths=list(found['depths']))
    return cfg | ({} if found['stem'] == 64 else dict(stem=found['stem']))


LAYOUTS = (
    Layout(title="a ResNet in Hugging Face's names", module='towers/image', table=hugging_face(), config='image',
           signs=('embedder.embedder.convolution.weight',), left_out=r'classifier\.',
           types=('resnet',), sizes=sizes, describe=describe),
    Layout(title="a ResNet in torchvision's and timm's names", module='towers/image', table=torchvision(),
           signs=('conv1.weight', 'bn1.running_mean', 'layer1.0.conv1.weight'), left_out=r'fc\.', config='image',
           sizes=sizes, describe=describe),
)  # fmt: skip
