"""Exports: what a run gives to everybody else, RUN/exports/<step>/{meta.json, weights.safetensors}. No orbax, no flax.

meta.json says what the arrays are: step, copy, the configs of towers and heads, the preprocessing of images. With a
text tower the file of its tokenizer lies beside it, and meta's `tokenizer` says how it is used.
An export appears whole or not at all: it is written into a hidden folder beside it, then renamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from medjax import files
from medjax.errors import UserError

FORMAT = 1


def save(folder: str | Path, params: Any, meta: dict[str, Any], others: Mapping[str, bytes] | None = None) -> Path:
    """Writes the export `folder`: nested dicts of arrays, their meta, other files by name. Replaces what is there."""
    folder = Path(folder)
    arrays = {name: np.ascontiguousarray(array) for name, array in flatten(params).items()}
    with files.whole_folder(folder) as hidden:
        save_file(arrays, hidden / 'weights.safetensors')
        (hidden / 'meta.json').write_text(json.dumps(dict(format=FORMAT) | meta, indent=1))
        for name, content in (others or {}).items():
            (hidden / name).write_bytes(content)
    return folder


def load(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """The export in `folder` -> (params as nested dicts of numpy arrays, meta)."""
    meta = read_meta(folder)
    return unflatten(read_safetensors(Path(folder) / 'weights.safetensors')), meta


def read_meta(folder: str | Path) -> dict[str, Any]:
    """meta.json of an export."""
    path = Path(folder) / 'meta.json'
    try:
        meta = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f'{folder} is no export: it has no meta.json') from None
    except ValueError:
        raise UserError(f'{path} is no JSON') from None
    if meta.get('format') != FORMAT:
        raise UserError(f'{path}: format {meta.get("format")!r} is not known to this version, which reads {FORMAT}')
    return meta


def steps(run: str | Path) -> list[int]:
    """The steps that a run has exports of, sorted; none where there is no export yet."""
    folder = Path(run) / 'exports'
    return sorted(int(p.parent.name) for p in folder.glob('*/meta.json') if p.parent.name.isdecimal())


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file by name."""
    if not Path(path).is_file():
        raise UserError(f'{path}: there is no such file')
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f'{path} is no whole safetensors file: {error}') from None


def flatten(tree: Any, shapes: bool = False, prefix: str = '') -> dict[str, Any]:
    """Nested dicts -> {'towers/image/cls': array} (or its shape)."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, shapes, f'{prefix}{key}/')
        else:
            flat[prefix + key] = tuple(value.shape) if shapes else np.asarray(value)
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split('/')
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return tree
