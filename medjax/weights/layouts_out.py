"""What an export becomes in the files of other systems: config.json, preprocessor_config.json, arrays by name.

A folder that is written here is read again by `medjax.weights.load` as the same towers: config.json holds, under the
key `medjax`, the sections of the export.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from medjax.errors import UserError
from medjax.models import build
from medjax.models.towers.resnet import ResnetTower
from medjax.models.towers.text import TextTower
from medjax.models.towers.vit import VitTower, sincos_positions
from medjax.types import Tower
from medjax.weights import names
from medjax.weights.base import ExportWeights
from medjax.weights.names import Flat, Table

# The keys of meta.json that the files of other systems have no place for.
KEPT = (
    'step',
    'network',
    'encoder',
    'pairs',
    'classifiers',
    'image',
    'size',
    'config_fingerprint',
    'seen',
    'medjax',
    'origin',
    'name',
    'end_token',
)


@dataclasses.dataclass(frozen=True)
class Module:
    """A tower or a head of an export, ready to be written in other names."""

    name: str  # 'image', 'text', …
    section: Mapping[str, Any]
    params: Flat
    tower: Any  # None for a head, and for a tower over towers


def modules(weights: ExportWeights, kind: str) -> dict[str, Module]:
    """The towers ('towers') or heads ('heads') of an export by name. A parameter is read when it is asked for."""
    found = {}
    for module in weights.modules:
        of, name = module.split('/')
        if of == kind:
            section = weights.section(module)
            tower = None
            if kind == 'towers' and 'reads' not in section:
                tower = build.tower(section, weights.meta['image']['channels'], module)
            found[name] = Module(name, section, LazyParams(weights, module), tower)
    return found


class LazyParams(Mapping[str, np.ndarray]):
    """The parameters of a module of an export by path, each read when it is asked for."""

    def __init__(self, weights: ExportWeights, module: str):
        self.stored, self.at = weights.stored, f'{module}/'
        self.paths = [name[len(self.at) :] for name in weights.stored if name.startswith(self.at)]

    def __getitem__(self, path: str) -> np.ndarray:
        return self.stored[self.at + path]

    def __iter__(self) -> Any:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __contains__(self, path: object) -> bool:
        return path in self.paths


@dataclasses.dataclass(frozen=True)
class Changed(Mapping[str, np.ndarray]):
    """Parameters of which some are replaced or left out."""

    params: Mapping[str, np.ndarray]
    new: Mapping[str, np.ndarray]
    without: tuple[str, ...] = ()

    def __getitem__(self, path: str) -> np.ndarray:
        return self.new[path] if path in self.new else self.params[path]

    def __iter__(self) -> Any:
        return iter(dict.fromkeys([*(p for p in self.params if p not in self.without), *self.new]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, path: object) -> bool:
        return path in self.new or (path in self.params and path not in self.without)


def arrays(table: Table, params: Mapping[str, np.ndarray], prefix: str = '') -> dict[str, np.ndarray]:
    """The arrays of a file: one parameter is in memory twice at a time, the others once."""
    written = {}
    for name, array in names.write(table, params):
        written[prefix + name] = np.array(array, np.float32, order='C')
    return written


def with_fixed_positions(params: Mapping[str, np.ndarray], tower: VitTower) -> Mapping[str, np.ndarray]:
    """Parameters with a table of positions, for classes that know no fixed sines and cosines."""
    if tower.module.family.positions != 'sincos':
        return params
    height, width = tower.module.native
    table = dict(pos_grid=sincos_positions((height, width), tower.width).reshape(height, width, -1))
    return Changed(params, table | (dict(pos_cls=np.zeros(tower.width, np.float32)) if tower.module.family.cls else {}))


def with_unit_layerscale(params: Mapping[str, np.ndarray], tower: VitTower) -> Mapping[str, np.ndarray]:
    """Parameters with a LayerScale, 1 where the tower has none, for classes that always have one."""
    if tower.module.family.layerscale is not None:
        return params
    ones = np.ones((tower.module.depth, tower.width), np.float32)
    return Changed(params, {'blocks/gamma1': ones, 'blocks/gamma2': ones})


def without_mask_token(params: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """Parameters without the mask token, for classes that have none. It plays no part where nothing is masked."""
    return Changed(params, {}, ('mask_token',))


def about(weights: ExportWeights) -> dict[str, Any]:
    """The entry `medjax` of config.json."""
    meta = weights.meta
    sections = {
        kind: {name: dict(m.section) for name, m in modules(weights, kind).items()} for kind in ('towers', 'heads')
    }
    kept = {key: meta[key] for key in KEPT if key in meta} | sections
    if tokenizer := meta.get('tokenizer'):
        kept['tokenizer'] = dict(tokenizer, file=tokenizer_name(tokenizer['file']))
    return kept


def image_size(tower: VitTower) -> int | list[int]:
    """The image side whose grid the position embeddings of a ViT have; [height, width] if the sides differ."""
    height, width = (side * tower.module.patch for side in tower.module.native)
    return height if height == width else [height, width]


def write(folder: Path, config: Mapping[str, Any], state: Mapping[str, np.ndarray]) -> None:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.json').write_text(json.dumps(config, indent=1))
    save_file(dict(state), folder / 'model.safetensors', metadata=dict(format='pt'))


def preprocessor(weights: ExportWeights) -> tuple[dict[str, Any], list[str]]:
    """preprocessor_config.json for images of the export, and notes on what it cannot say."""
    image, size = weights.meta['image'], int(weights.meta['size'])
    channels, fit, zoom = image['channels'], image.get('fit', 'crop'), image.get('zoom', 1)
    notes = []
    config: dict[str, Any] = dict(
        do_resize=True,
        do_rescale=True,
        rescale_factor=1 / 255,
        do_normalize=True,
        image_mean=per_channel(image['mean'], channels),
        image_std=per_channel(image['std'], channels),
        resample=3,  # bicubic
    )
    if fit == 'crop':
        side = round(size * zoom)
        config |= dict(image_processor_type='BitImageProcessor', do_convert_rgb=channels == 3, do_center_crop=True)
        config |= dict(size=dict(shortest_edge=side), crop_size=dict(height=size, width=size))
    else:
        config |= dict(image_processor_type='ViTImageProcessor', size=dict(height=size, width=size))
        if fit == 'pad':
            notes.append('preprocessor_config.json stretches images, since it cannot say that they are padded')
    return config, notes


def per_channel(value: Any, channels: int) -> list[float]:
    levels = [float(x) for x in np.atleast_1d(value)]
    return levels * channels if len(levels) == 1 else levels


def copy_tokenizer(weights: ExportWeights, folder: Path) -> None:
    """The file of the tokenizer, if the export has one."""
    tokenizer = weights.meta.get('tokenizer')
    if tokenizer:
        source = weights.path / tokenizer['file']
        if not source.is_file():
            raise UserError(
                f'{weights.path} lacks its tokenizer {tokenizer["file"]}; copy the whole folder of the export'
            )
        shutil.copy(source, folder / tokenizer_name(tokenizer['file']))


def tokenizer_name(file: str) -> str:
    """The name under which other systems look for the file of a tokenizer."""
    return 'tokenizer.json' if file.endswith('.json') else 'vocab.txt'


def refuse(module: Module, to: str, why: str) -> UserError:
    kind = module.section.get('tower', module.section.get('head'))
    return UserError(f'the {kind} {module.name!r} cannot be written for {to}: {why}')


def kinds(tower: Tower | None) -> str:
    """'vit', 'text', 'resnet', or '' for a tower that other systems do not know."""
    for kind, name in ((VitTower, 'vit'), (TextTower, 'text'), (ResnetTower, 'resnet')):
        if isinstance(tower, kind):
            return name
    return ''


def first(values: Iterable[Any]) -> Any:
    return next(iter(values), None)
