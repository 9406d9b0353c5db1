"""Exports: what a run gives to everybody else, RUN/exports/<step>/{meta.json, weights.safetensors}.

meta.json describes the arrays: step, network, the configs of towers and heads, the preprocessing of images. An export
with a text tower also holds the file of its tokenizer, and `tokenizer` in meta.json says how to use it. An export
appears whole or not at all. To read one, neither orbax nor flax is needed.
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
from medjax.types import is_whole

FORMAT = 2
BEST = 'best.json'  # in RUN, by `medjax probe --best`


def save(folder: str | Path, params: Any, meta: dict[str, Any], others: Mapping[str, bytes] | None = None) -> Path:
    """Writes an export, in place of the one that is there: nested dicts of arrays, their meta, other files by name."""
    folder = Path(folder)
    arrays = {name: np.ascontiguousarray(array) for name, array in flatten(params).items()}
    with files.whole_folder(folder) as hidden:
        save_file(arrays, hidden / 'weights.safetensors')
        (hidden / 'meta.json').write_text(json.dumps(meta | dict(format=FORMAT), indent=1))
        for name, content in (others or {}).items():
            (hidden / name).write_bytes(content)
    return folder


def load(folder: str | Path) -> tuple[Any, dict[str, Any]]:
    """The export in `folder`: parameters as nested dicts of numpy arrays, and meta."""
    meta = read_meta(folder)
    return unflatten(read_safetensors(Path(folder) / 'weights.safetensors')), meta


def read_meta(folder: str | Path) -> dict[str, Any]:
    """meta.json of an export, with the keys of the present format."""
    path = Path(folder) / 'meta.json'
    try:
        meta = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f'{folder} is no export: it has no meta.json') from None
    except ValueError:
        raise UserError(f'{path} is no JSON') from None
    if not isinstance(meta, dict):
        raise UserError(f'{path} is no JSON object')
    if meta.get('format') == 1:
        return from_format_1(meta)
    if meta.get('format') != FORMAT:
        raise UserError(
            f'{path}: the export has format {meta.get("format")!r}, and this version of medjax reads 1 and {FORMAT}; '
            'use the version that wrote it, or a newer one'
        )
    return meta


def from_format_1(meta: Mapping[str, Any]) -> dict[str, Any]:
    """Meta of format 1 with the keys of format 2.

    `copy` became `network`. The key `layout` of the towers vit and text became `family`, and so did the value 'layout'
    of `layerscale`. Nothing else changed, and the arrays are the same.
    """

    def tower(cfg: Mapping[str, Any]) -> dict[str, Any]:
        if cfg.get('tower') not in ('vit', 'text'):
            return dict(cfg)  # a user's own tower may have a `layout` of another kind
        cfg = {'family' if key == 'layout' else key: value for key, value in cfg.items()}
        return cfg | (dict(layerscale='family') if cfg.get('layerscale') == 'layout' else {})

    renamed = {'network' if key == 'copy' else key: value for key, value in meta.items()}
    towers = {name: tower(cfg) for name, cfg in meta.get('towers', {}).items()}
    return renamed | dict(format=FORMAT, towers=towers)


def steps(run: str | Path) -> list[int]:
    """The steps at which a run wrote exports, sorted."""
    folder = Path(run) / 'exports'
    return sorted(int(p.parent.name) for p in folder.glob('*/meta.json') if p.parent.name.isdecimal())


def read_best(run: str | Path) -> dict[str, Any]:
    """The content of RUN/best.json, which names the best export as `step`; {} if there is none.

    UserError if the file is damaged.
    """
    try:
        content = json.loads((Path(run) / BEST).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise damaged_best(run) from None
    if not isinstance(content, dict) or not is_whole(content.get('step')):
        raise damaged_best(run)
    return content


def damaged_best(run: str | Path) -> UserError:
    return UserError(f'{Path(run) / BEST} is damaged; delete it, or choose again with `medjax probe --best`')


def delete_old(run: str | Path, newest: int, keep: int) -> None:
    """Deletes the exports before the last `keep` up to step `newest`, but for step 0 and the one in best.json.

    Later exports, of a run that was continued from an earlier checkpoint, stay. UserError if best.json is damaged, and
    an OSError where the folder cannot be changed.
    """
    folder = Path(run) / 'exports'
    kept = (0, read_best(run).get('step'))
    for step in [step for step in steps(run) if step <= newest][:-keep]:
        if step not in kept:
            files.remove_folder(folder / str(step))
    files.sweep_below(folder)  # what a process left that was killed while it deleted


def read_safetensors(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a .safetensors file by name."""
    if not Path(path).is_file():
        raise UserError(f'{path}: there is no such file')
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f'{path} is no whole safetensors file: {error}') from None


def flatten(tree: Any, shapes: bool = False, prefix: str = '') -> dict[str, Any]:
    """Nested dicts of arrays -> {'towers/image/cls': array}, or the shape in place of the array."""
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
