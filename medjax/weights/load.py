"""Weights to start from or to use: an export, a published folder, or a file of one of the known families.

    weights = load.open('dinov2-base/')
    weights.modules                                  # ('towers/image',)
    weights.section('towers/image')                  # dict(tower='vit', variant='B/14', native_size=518, …)
    weights.read('towers/image', wanted, tower)      # the parameters, fitted to the tower of a recipe

A file is recognised by the names in it, see `medjax.weights.families`. Nothing in a file is executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medjax.errors import UserError
from medjax.weights import arrays, export, published
from medjax.weights.base import ExportWeights, Weights
from medjax.weights.fit import Params
from medjax.weights.opening import read_files
from medjax.weights.public import PublishedWeights
from medjax.weights.published import Facts
from medjax.weights.recognise import recognise, renamed


def open(path: str | Path) -> Weights:
    """Opens an export, a run (its newest export), a published folder or a file."""
    if not str(path):
        raise UserError('weights: an empty name, perhaps from a variable that is not set')
    path = Path(path)
    if path.is_dir():
        if (path / 'meta.json').is_file():
            return ExportWeights.of(path)
        if (path / 'exports').is_dir():
            steps = export.steps(path)
            if not steps:
                raise UserError(f'{path} is a run without exports; it writes the first one after `export.every` steps')
            return ExportWeights.of(path / 'exports' / str(steps[-1]))
        return read_files(path, published.weight_files(path))
    if not path.exists():
        raise UserError(f'{path}: there is no such file or folder')
    if path.name == 'weights.safetensors' and (path.parent / 'meta.json').is_file():
        return ExportWeights.of(path.parent)
    return read_files(path, [path])


def of_state(state: Mapping[str, Any], name: str = 'the weights') -> PublishedWeights:
    """The weights in a dict of arrays, such as the state_dict of a torch module as numpy arrays."""
    found, notes, left = recognise(renamed(arrays.of_dict(state)), name)
    return PublishedWeights(Path(name), tuple(notes), found, Facts(), left=tuple(left))


def as_export(path: str | Path) -> tuple[Params, dict[str, Any]]:
    """Any weights as an export: all parameters as nested dicts, and the keys of an export's meta.json.

    For a published folder or file `step` is None, `name` is its name, and `origin` says what it is.
    """
    return open(path).as_export()
