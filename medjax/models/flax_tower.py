"""The base of towers that are built around a flax module."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
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
        return _init(_Network.of(self.module, self.example), key)


def logical_axes(module: nn.Module, example: Example) -> Tree:
    """The logical axis names of the module's parameters; batch-norm statistics have none."""
    return copy.deepcopy(_axes(_Network.of(module, example)))


@dataclasses.dataclass(frozen=True)
class _Network:
    """A module and the shapes of its example. Within a process, equal ones are traced and compiled once.

    Configs build the same tower again and again: to check, to rehearse, to train, to read an export.
    """

    module: nn.Module
    structure: Any  # of the example
    leaves: tuple[Any, ...]  # of the example; an array is there as its shape and dtype

    @classmethod
    def of(cls, module: nn.Module, example: Example) -> _Network:
        leaves, structure = jax.tree.flatten(example)
        shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) if hasattr(x, 'shape') else x for x in leaves]
        return cls(module, structure, tuple(shapes))

    def __hash__(self) -> int:
        try:
            return hash((self.module, self.structure, self.leaves))
        except TypeError:  # a field of the module is a list: only this very module is known again
            return id(self.module)

    def variables(self, key: Array) -> Tree:
        arrays = [np.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x for x in self.leaves]
        return self.module.init(key, *jax.tree.unflatten(self.structure, arrays))


@functools.partial(jax.jit, static_argnums=0)  # the compiler drops what the module computes and keeps the parameters
def _init(network: _Network, key: Array) -> Tree:
    variables = network.variables(key)
    stats = {'stats': variables['stats']} if 'stats' in variables else {}
    return nn.meta.unbox(variables['params']) | stats


@functools.lru_cache(maxsize=256)
def _axes(network: _Network) -> Tree:
    variables = jax.eval_shape(network.variables, jax.random.key(0))
    axes = jax.tree.map(
        lambda box: tuple(box.names), variables['params'], is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned)
    )
    if 'stats' in variables:
        axes['stats'] = jax.tree.map(lambda x: (None,) * x.ndim, variables['stats'])
    return axes
