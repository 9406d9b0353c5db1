"""Weights to start from: an export of ours, or a .safetensors file in DINOv2's or Hugging Face's names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medjax.errors import UserError, suggest
from medjax.weights import dinov2, export, huggingface
from medjax.weights.fit import Params, State, check_like, fit


class Weights(NamedTuple):
    modules: tuple[str, ...]  # what there is: 'towers/image', 'heads/dino', …
    read: Callable[[str, Params], Params]
    """(part, tree of the shapes that a configuration wants) -> params of these shapes. Position embeddings are resized,
    image channels and context adapted; all else must fit, or it is a UserError that names the array."""


def load(path: str | Path) -> Weights:
    """Opens the export folder or file `path`."""
    path = Path(path)
    found = _of_export(path) if path.is_dir() else _of_file(path)

    def read(part: str, wanted: Params) -> Params:
        if part not in found.modules:
            raise UserError(f'{path} has no {part!r}{suggest(part, found.modules)}')
        try:
            params = found.read(part, wanted)
        except UserError as error:
            raise UserError(f'{part} of {path}: {error}') from None
        check_like(params, wanted, f'{part} of {path}')
        return params

    return Weights(found.modules, read)


def _of_export(path: Path) -> Weights:
    tree, meta = export.load(path)
    parts = {f'{kind}/{name}': params for kind, group in tree.items() for name, params in group.items()}

    def read(part: str, wanted: Params) -> Params:
        family = meta.get(part.split('/')[0], {}).get(part.split('/')[1], {}).get('family', 'dinov2')
        antialias = 'registers' in parts[part]
        return fit(parts[part], wanted, antialias, 0.0 if antialias or family != 'dinov2' else 0.1)

    return Weights(tuple(parts), read)


def _of_file(path: Path) -> Weights:
    if path.suffix in ('.pth', '.pt', '.bin', '.ckpt', '.pkl'):
        raise UserError(
            f'{path} is a pickle, which can run code when it is opened, so it is not read; save it as safetensors, '
            'with safetensors.torch.save_file(state_dict, "weights.safetensors"), or take the .safetensors file'
        )
    state = export.read_safetensors(path)
    names = huggingface.plain(state)
    if parts := huggingface.parts(names):
        return Weights(
            tuple(parts),
            lambda part, wanted: fit(huggingface.read(names, parts[part], wanted), wanted, antialias=False, offset=0.0),
        )
    return _of_dinov2(state)


def _of_dinov2(state: State) -> Weights:
    """Names under 'backbone.' (or under nothing) are towers/image; those under 'dino_head.' and 'ibot_head.', or a head
    alone, are heads/dino and heads/ibot."""
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, array in state.items():
        part = re.match(r'(backbone|dino_head|ibot_head)\.', name)
        arrays.setdefault(part[1] if part else '', {})[name[part.end() :] if part else name] = array
    if '' in arrays:
        alone = arrays.pop('')
        arrays['backbone' if any('cls_token' in name for name in alone) else 'dino_head'] = alone
    ours = dict(backbone='towers/image', dino_head='heads/dino', ibot_head='heads/ibot')
    parts = {ours[name]: part for name, part in arrays.items()}

    def read(part: str, wanted: Params) -> Params:
        if part != 'towers/image':
            return dinov2.head(parts[part])
        qkv = wanted.get('blocks', {}).get('attn', {}).get('qkv')
        params = dinov2.backbone(parts[part], heads=qkv['kernel'].shape[3] if qkv else None)
        antialias = 'registers' in params
        return fit(params, wanted, antialias, 0.0 if antialias else 0.1)

    return Weights(tuple(parts), read)
