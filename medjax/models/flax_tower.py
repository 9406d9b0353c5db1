"""The base of towers that are built around a flax module."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
from flax import linen as nn
from jax import Array

from medjax.types import Tower, Tree

Example = tuple[Any, ...]
"""The arguments of a module for one small input. Only the shapes of arrays matter: flax makes parameters from them."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FlaxTower(Tower):
    """A tower whose parameters belong to a flax module. A subclass adds `encode`, which applies the module."""

    module: nn.Module
    example: Example

    def init(self, key: Array) -> Tree:
        return _init(self, key)


@functools.partial(jax.jit, static_argnums=0)  # the compiler drops what the module computes and keeps the parameters
def _init(tower: FlaxTower, key: Array) -> Tree:
    variables = tower.module.init(key, *tower.example)
    stats = {'stats': variables['stats']} if 'stats' in variables else {}
    return nn.meta.unbox(variables['params']) | stats


def logical_axes(module: nn.Module, example: Example) -> Tree:
    """The logical axis names of the module's parameters; batch-norm statistics have none."""
    variables = jax.eval_shape(lambda key: module.init(key, *example), jax.random.key(0))
    axes = jax.tree.map(
        lambda box: tuple(box.names), variables['params'], is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )
    if 'stats' in variables:
        axes['stats'] = jax.tree.map(lambda x: (None,) * x.ndim, variables['stats'])
    return axes
