"""Projection heads, as pure functions over nested dicts."""

from __future__ import annotations

from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.models.layers import uniform_fan_in, weight_init
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
