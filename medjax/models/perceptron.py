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
    last_batch_norm: bool = False,
) -> Head:
    """Linear layers of these widths. All but the last have an activation, with a LayerNorm after it if `norm`.

    With `batch_norm`, a BatchNorm stands before each activation. With `last_batch_norm`, one without scale and bias
    stands after the last layer.
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
    hidden, last = range(1, len(widths) - 1), len(widths) - 1
    normalised = (*(hidden if batch_norm else ()), *([last] if last_batch_norm else ()))
    axes |= {f'batch_norm{i}': dict(scale=(names[i],), bias=(names[i],)) for i in normalised if i != last}
    if normalised:
        axes['stats'] = {f'batch_norm{i}': dict(mean=(None,), variance=(None,)) for i in normalised}
    return Perceptron(
        axes=axes, batch_statistics=bool(normalised), widths=widths, activation=activation, norm=norm, bias=bias,
        normalised=normalised, dtype=dtype,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Perceptron(Head):
    """Layers fc1, batch_norm1, norm1, fc2, … The factors of products have `dtype`; sums, norms and results are float32.

    `normalised` are the layers that a BatchNorm follows; that of the last layer has no scale and no bias.
    """

    widths: tuple[int, ...]
    activation: str
    norm: bool
    bias: bool
    normalised: tuple[int, ...]
    dtype: str

    def init(self, key: Array) -> Tree:
        params: Tree = {}
        for i, shape in enumerate(pairwise(self.widths), 1):
            params[f'fc{i}'] = dict(kernel=weight_init(jax.random.fold_in(key, i), shape))
            if self.bias:
                params[f'fc{i}']['bias'] = jnp.zeros(shape[1])
            if self.norm and i < len(self.widths) - 1:
                params[f'norm{i}'] = dict(scale=jnp.ones(shape[1]), bias=jnp.zeros(shape[1]))
        for i in self.normalised:
            n, name = self.widths[i], f'batch_norm{i}'
            params.setdefault('stats', {})[name] = dict(mean=jnp.zeros(n), variance=jnp.ones(n))
            if i < len(self.widths) - 1:
                params[name] = dict(scale=jnp.ones(n), bias=jnp.zeros(n))
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
            if i in self.normalised:
                name = f'batch_norm{i}'
                x, moved = batch_norm(x, weight, Moments(**params['stats'][name]))
                if i < last:
                    x = x * params[name]['scale'] + params[name]['bias']
                stats[name] = moved._asdict()
            if i < last:
                x = ACTIVATIONS[self.activation](x)
                if self.norm:
                    x -= x.mean(-1, keepdims=True)
                    x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-12)
                    x = x * params[f'norm{i}']['scale'] + params[f'norm{i}']['bias']
        return x if weight is None else (x, stats)
