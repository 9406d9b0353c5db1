"""Parameters in the names of the original classes, through the tables of medjax.weights, for tests that compare."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.weights import export, load, names
from medjax.weights.families import dino_head, vit


def tree(state: Mapping[str, Any], module: str = 'towers/image', heads: int | None = None) -> dict[str, Any]:
    """The parameters of a module from a dict of arrays by name."""
    return export.unflatten(load.of_state(state).flat(module, heads))


def backbone(state: Mapping[str, Any], heads: int | None = None) -> dict[str, Any]:
    return tree(state, 'towers/image', heads)


def head(state: Mapping[str, Any]) -> dict[str, Any]:
    return tree(state, 'heads/dino')


def written(table: names.Table, params: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in names.write(table, export.flatten(params))}


def to_meta(params: dict[str, Any]) -> dict[str, np.ndarray]:
    return written(vit.META_DINOV2, params)


def head_to_meta(params: dict[str, Any]) -> dict[str, np.ndarray]:
    return written(dino_head.table(''), params)
