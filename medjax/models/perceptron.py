"""A perceptron without prototypes: the class behind the heads `linear` and `mlp`."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.models.layers import ACTIVATIONS, Moments, batch_norm, weight_init
from medjax.types import Head, Tree


def perceptron(
    widths: tuple[int, ...],
    activation: str = 'relu',
    norm: bool = False,
    bias: bool = True,
    dtype: str = 'float32',
    batch_norm: bool = False,
) -> Head:
    """Linear layers of these widths. All but the last have an activation, with a LayerNorm after it if `norm`.

    With `batch_norm`, a BatchNorm stands before each activation.
    """
    for size in widths:
        if not isinstance(size, int) or size < 1:
            raise UserError(f'widths of a head are whole numbers of at least 1, got {size!r}')
    names = [('embed', 'hidden')[i % 2] for i in range(len(widths))]
    axes: Tree = {f'fc{i}': dict(kernel=pair) for i, pair in enumerate(pairwise(names), 1)}
    for i, name in enumerate(names[1:], 1):
        if bias:
            axes[f'fc{i}']['bias'] = (name,)
        if norm and i < len(widths) - 1:
            axes[f'norm{i}'] = dict(scale=(name,), bias=(name,))
    if batch_norm:
        layers = range(1, len(widths) - 1)
        axes |= {f'batch_norm{i}': dict(scale=(names[i],), bias=(names[i],)) for i in layers}
        axes['stats'] = {f'batch_norm{i}': dict(mean=(None,), variance=(None,)) for i in layers}
    return Perceptron(
        axes=axes, batch_statistics=batch_norm, widths=widths, activation=activation, norm=norm, bias=bias, dtype=dtype
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Perceptron(Head):
    """Layers fc1, batch_norm1, norm1, fc2, … The factors of products have `dtype`; sums, norms and results are float32.

    With `batch_statistics` the batch norms are there.
    """

    widths: tuple[int, ...]
    activation: str
    norm: bool
    bias: bool
    dtype: str

    def init(self, key: Array) -> Tree:
        params: Tree = {}
        for i, shape in enumerate(pairwise(self.widths), 1):
            params[f'fc{i}'] = dict(kernel=weight_init(jax.random.fold_in(key, i), shape))
            if self.bias:
                params[f'fc{i}']['bias'] = jnp.zeros(shape[1])
            if self.norm and i < len(self.widths) - 1:
                params[f'norm{i}'] = dict(scale=jnp.ones(shape[1]), bias=jnp.zeros(shape[1]))
        if self.batch_statistics:
            hidden = {f'batch_norm{i}': size for i, size in enumerate(self.widths[1:-1], 1)}
            params |= {name: dict(scale=jnp.ones(n), bias=jnp.zeros(n)) for name, n in hidden.items()}
            params['stats'] = {name: dict(mean=jnp.zeros(n), variance=jnp.ones(n)) for name, n in hidden.items()}
        return params

    def apply(self, params: Tree, x: Array, *, present: Array | None = None, train: bool = False) -> Any:
        last, stats = len(self.widths) - 1, {}
        weight = None
        if train and self.batch_statistics:
            weight = jnp.ones(x.shape[:-1]) if present is None else present.astype(jnp.float32)
        for i in range(1, last + 1):
            layer = params[f'fc{i}']
            x = jnp.matmul(x.astype(self.dtype), layer['kernel'].astype(self.dtype), preferred_element_type=jnp.float32)
            if self.bias:
                x += layer['bias']
            if i < last:
                if self.batch_statistics:
                    name = f'batch_norm{i}'
                    x, moved = batch_norm(x, weight, Moments(**params['stats'][name]))
                    x = x * params[name]['scale'] + params[name]['bias']
                    stats[name] = moved._asdict()
                x = ACTIVATIONS[self.activation](x)
                if self.norm:
                    x -= x.mean(-1, keepdims=True)
                    x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-12)
                    x = x * params[f'norm{i}']['scale'] + params[f'norm{i}']['bias']
        return x if weight is None else (x, stats)
