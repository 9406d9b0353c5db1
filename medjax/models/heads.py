"""Projection heads, as pure functions over nested dicts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError, suggest
from medjax.models.layers import ACTIVATIONS, uniform_fan_in, weight_init
from medjax.types import Head, Tree


def dino_head(
    width: int,
    prototypes: int,
    hidden: int = 2048,
    bottleneck: int = 256,
    layers: int = 3,
    bias: bool = True,
    dtype: str = 'float32',
) -> Head:
    """The head of DINO and iBOT (arXiv 2104.14294, 2111.07832, 2304.07193).

    apply: z = mlp(x) / max(|mlp(x)|, 1e-12), an MLP of `layers` linear layers with exact GELU between; float32 [...,d].
    prototypes: logits_k = gain_k <z, direction_k / |direction_k|>, float32 [...,K]. DINO v1 kept the gain at 1.
    `dtype` is that of the factors of products; sums, norms and results are float32.
    """
    for name, size in dict(prototypes=prototypes, hidden=hidden, bottleneck=bottleneck, layers=layers).items():
        if size < 1:
            raise UserError(f'dino_head: {name} must be at least 1, got {size}')
    widths = [width, *[hidden] * (layers - 1), bottleneck]
    # column and row parallel layers in turn, as a pair needs one exchange between the shards of the tensor axis
    names = [*(('embed', 'hidden')[i % 2] for i in range(layers)), 'bottleneck']

    def init(key: Array) -> Tree:
        keys = jax.random.split(key, layers + 1)
        params = {}
        for i, shape in enumerate(pairwise(widths)):
            params[f'mlp_{i}'] = dict(kernel=weight_init(keys[i], shape))
            if bias:
                params[f'mlp_{i}']['bias'] = jnp.zeros(shape[1])
        direction = uniform_fan_in(bottleneck)(keys[-1], (bottleneck, prototypes))
        return params | dict(prototypes=dict(direction=direction, gain=jnp.ones(prototypes)))

    axes: Tree = {f'mlp_{i}': dict(kernel=(names[i], names[i + 1])) for i in range(layers)}
    if bias:
        for i in range(layers):
            axes[f'mlp_{i}']['bias'] = (names[i + 1],)
    axes['prototypes'] = dict(direction=('bottleneck', 'prototypes'), gain=('prototypes',))

    def apply(params: Tree, x: Array) -> Array:
        for i in range(layers):
            layer = params[f'mlp_{i}']
            x = x.astype(dtype) @ layer['kernel'].astype(dtype)
            if bias:
                x += layer['bias'].astype(dtype)
            if i < layers - 1:
                x = jax.nn.gelu(x, approximate=False)
        x = x.astype(jnp.float32)
        # the squared norm is bounded, not the norm, whose gradient at 0 is not a number
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))

    def logits(params: Tree, z: Array) -> Array:
        direction = params['prototypes']['direction']
        products = jnp.matmul(z.astype(dtype), direction.astype(dtype), preferred_element_type=jnp.float32)
        return products * (params['prototypes']['gain'] * jax.lax.rsqrt(jnp.square(direction).sum(0)))

    return Head(init=init, axes=axes, apply=apply, prototypes=logits, prototype_count=prototypes)


def linear(width: int, out: int, bias: bool = False, dtype: str = 'float32') -> Head:
    """z = x W (+ b): the projection of CLIP (arXiv 2103.00020), with a bias SigLIP's of texts; float32 [...,out]."""
    return perceptron([width, out], 'relu', False, bias, dtype)


def mlp(
    width: int,
    out: int,
    hidden: int | None = None,
    activation: str = 'relu',
    norm: bool = False,
    bias: bool = True,
    dtype: str = 'float32',
) -> Head:
    """z = fc2(norm(activation(fc1 x))): ConVIRT's projection (arXiv 2010.00747); float32 [...,out].

    hidden      width of the layer between; None: as wide as z, which is CXR-BERT's
    activation  see layers.ACTIVATIONS; CXR-BERT (arXiv 2204.09817) has 'gelu' and norm=True, a LayerNorm of eps 1e-12
    """
    if activation not in ACTIVATIONS:
        raise UserError(f'mlp: unknown activation {activation!r}{suggest(activation, ACTIVATIONS)}')
    return perceptron([width, out if hidden is None else hidden, out], activation, norm, bias, dtype)


def perceptron(widths: Sequence[int], activation: str, norm: bool, bias: bool, dtype: str) -> Head:
    """Linear layers fc1, fc2, … of these widths; after all but the last one an activation and, if asked for, a norm."""
    for size in widths:
        if not isinstance(size, int) or size < 1:
            raise UserError(f'widths of a head are whole numbers of at least 1, got {size!r}')
    last = len(widths) - 1
    names = [('embed', 'hidden')[i % 2] for i in range(last + 1)]

    def init(key: Array) -> Tree:
        params: Tree = {}
        for i, shape in enumerate(pairwise(widths), 1):
            params[f'fc{i}'] = dict(kernel=weight_init(jax.random.fold_in(key, i), shape))
            if bias:
                params[f'fc{i}']['bias'] = jnp.zeros(shape[1])
            if norm and i < last:
                params[f'norm{i}'] = dict(scale=jnp.ones(shape[1]), bias=jnp.zeros(shape[1]))
        return params

    axes: Tree = {f'fc{i}': dict(kernel=(names[i - 1], names[i])) for i in range(1, last + 1)}
    for i in range(1, last + 1):
        if bias:
            axes[f'fc{i}']['bias'] = (names[i],)
        if norm and i < last:
            axes[f'norm{i}'] = dict(scale=(names[i],), bias=(names[i],))

    def apply(params: Tree, x: Array) -> Array:
        for i in range(1, last + 1):
            layer = params[f'fc{i}']
            x = jnp.matmul(x.astype(dtype), layer['kernel'].astype(dtype), preferred_element_type=jnp.float32)
            if bias:
                x += layer['bias']
            if i < last:
                x = ACTIVATIONS[activation](x)
            if norm and i < last:
                x -= x.mean(-1, keepdims=True)
                x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-12)
                x = x * params[f'norm{i}']['scale'] + params[f'norm{i}']['bias']
        return x

    return Head(init=init, axes=axes, apply=apply, prototypes=None, prototype_count=0)
