"""Weights to start from: an export, or a .safetensors file in the names of DINOv2, MAE or Hugging Face."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.errors import UserError, suggest
from medjax.models.towers.vit import position_resizing
from medjax.weights import dinov2, export, huggingface, mae
from medjax.weights.fit import Params, State, check_like, fit

PREFIX = r'(backbone|dino_head|ibot_head)\.'  # of the names in a training checkpoint of DINOv2


def load(path: str | Path) -> Weights:
    """Opens an export folder or a .safetensors file."""
    path = Path(path)
    if path.is_dir():
        tree, meta = export.load(path)
        modules = {f'{kind}/{name}': params for kind, group in tree.items() for name, params in group.items()}
        return ExportWeights(path, modules, meta)
    if path.suffix in ('.pth', '.pt', '.bin', '.ckpt', '.pkl'):
        raise UserError(
            f'{path} is a pickle, which can run code when it is opened, so it is not read; save it as safetensors, '
            'with safetensors.torch.save_file(state_dict, "weights.safetensors"), or take the .safetensors file'
        )
    state = export.read_safetensors(path)
    canonical = huggingface.canonical(state)
    if tables := huggingface.modules(canonical):
        return HuggingFaceWeights(path, tables, canonical)
    if mae.is_mae(state):
        return MaeWeights(path, {'towers/image': 'blocks', 'towers/decoder': 'decoder_blocks'}, state)
    return Dinov2Weights(path, split_dinov2(state))


@dataclasses.dataclass(frozen=True)
class Weights:
    """The modules of an export or a file. A module is a tower or a head: 'towers/image', 'heads/dino', …"""

    path: Path
    contents: Mapping[str, Any]  # by module

    @property
    def modules(self) -> tuple[str, ...]:
        return tuple(self.contents)

    def read(self, module: str, wanted: Params) -> Params:
        """The parameters of a module, in the shapes of the tree `wanted`.

        Position embeddings are resized, and image channels and the context are adapted. Every other array must fit. If
        one does not, a UserError names it.
        """
        if module not in self.contents:
            raise UserError(f'{self.path} has no {module!r}{suggest(module, self.contents)}')
        try:
            params = self.convert(module, wanted)
        except UserError as error:
            raise UserError(f'{module} of {self.path}: {error}') from None
        check_like(params, wanted, f'{module} of {self.path}')
        return params

    def convert(self, module: str, wanted: Params) -> Params:
        """The parameters of a module in our names, fitted to `wanted` where that is possible."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class ExportWeights(Weights):
    """An export: module -> parameters."""

    meta: dict[str, Any]

    def convert(self, module: str, wanted: Params) -> Params:
        kind, name = module.split('/')
        cfg, params = self.meta.get(kind, {}).get(name, {}), self.contents[module]
        antialias, offset = position_resizing(cfg.get('family', 'dinov2'), 'registers' in params, cfg.get('antialias'))
        given = cfg.get('offset')
        return fit(params, wanted, antialias, offset if given is None else given)


@dataclasses.dataclass(frozen=True)
class HuggingFaceWeights(Weights):
    """A file in Hugging Face's names: module -> huggingface.Module."""

    state: State

    def convert(self, module: str, wanted: Params) -> Params:
        params = huggingface.convert(self.state, self.contents[module], wanted)
        return fit(params, wanted, *position_resizing('vit', registers=False))  # CLIP and SigLIP resize like ViT


@dataclasses.dataclass(frozen=True)
class MaeWeights(Weights):
    """A file in the names of MAE, with encoder and decoder: module -> names of its blocks."""

    state: State

    def convert(self, module: str, wanted: Params) -> Params:
        qkv = wanted.get('blocks', {}).get('attn', {}).get('qkv')
        if qkv is None:
            raise UserError('these are the weights of a ViT, and this tower has no attention blocks')
        heads = qkv['kernel'].shape[3]
        params = (mae.encoder if module == 'towers/image' else mae.decoder)(self.state, heads)
        return fit(params, wanted, *position_resizing('vit', registers=False))


@dataclasses.dataclass(frozen=True)
class Dinov2Weights(Weights):
    """A file in the names of DINOv2: module -> arrays by name."""

    def convert(self, module: str, wanted: Params) -> Params:
        if module != 'towers/image':
            return dinov2.head(self.contents[module])
        qkv = wanted.get('blocks', {}).get('attn', {}).get('qkv')
        params = dinov2.backbone(self.contents[module], heads=qkv['kernel'].shape[3] if qkv else None)
        return fit(params, wanted, *position_resizing('dinov2', 'registers' in params))


def split_dinov2(state: State) -> dict[str, dict[str, np.ndarray]]:
    """The arrays of a DINOv2 file by module.

    Names with the prefix 'backbone.' belong to towers/image, those with 'dino_head.' and 'ibot_head.' to heads/dino and
    heads/ibot. Names without a prefix are a backbone if there is a CLS token among them, otherwise a DINO head.
    """
    modules = dict(backbone='towers/image', dino_head='heads/dino', ibot_head='heads/ibot')
    bare = [name for name in state if not re.match(PREFIX, name)]
    bare_module = modules['backbone' if any('cls_token' in name for name in bare) else 'dino_head']
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, array in state.items():
        match = re.match(PREFIX, name)
        module = modules[match[1]] if match else bare_module
        arrays.setdefault(module, {})[name[match.end() :] if match else name] = array
    return arrays
