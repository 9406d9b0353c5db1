"""The layers of a transformer as einsums with named axes, and drop path over subsets.

Every parameter is created through `parameter`, which attaches one logical axis name (or None) to each dimension;
`medjax.parallel.sharding` maps the names to mesh axes. Parameters are float32; activations have the layer's `dtype`;
statistics of norms and softmax are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from medjax.parallel.sharding import constrain_rows

Names = tuple[str | None, ...]
weight_init = jax.nn.initializers.normal(0.02)  # torch's trunc_normal_(std=.02) cuts at +-2: at 100 sigma, so nowhere
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones


def uniform_fan_in(fan_in: int) -> Callable[..., Array]:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's own start for Conv2d and Linear, weights and biases."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: Names) -> Any:
    """A float32 parameter of `module` whose dimensions have the logical names `axes`."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


def unbox(variables: Any) -> Any:
    """What `Module.init` gives -> its params as nested dicts of arrays."""
    return nn.meta.unbox(variables['params'])


def logical_axes(init: Callable[[Array], Any]) -> Any:
    """The tree of logical names of the params that `init(key)`, a `Module.init`, would make."""
    boxed = jax.eval_shape(init, jax.random.key(0))['params']
    return jax.tree.map(lambda box: tuple(box.names), boxed, is_leaf=lambda leaf: isinstance(leaf, nn.Partitioned))


class Linear(nn.Module):
    """y = x W + b, contracting the last `inputs` dimensions of x with the first of W [*in, *out]."""

    shape: tuple[int, ...]
    axes: Names
    inputs: int = 1
    bias: bool = True
    dtype: Any = jnp.float32
    init: Callable = weight_init

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = parameter(self, 'kernel', self.init, self.shape, self.axes)
        y = jnp.tensordot(x.astype(self.dtype), kernel.astype(self.dtype), axes=self.inputs)
        if self.bias:
            y += parameter(self, 'bias', zeros, self.shape[self.inputs :], self.axes[self.inputs :]).astype(self.dtype)
        return y


class LayerNorm(nn.Module):
    """scale (x - mean) / sqrt(variance + eps) + bias over the last axis, in float32 whatever comes in and goes out."""

    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = parameter(self, 'scale', ones, x.shape[-1:], ('embed',))
        bias = parameter(self, 'bias', zeros, x.shape[-1:], ('embed',))
        x = x.astype(jnp.float32)
        x -= x.mean(-1, keepdims=True)
        x *= jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (x * scale + bias).astype(self.dtype)


class Attention(nn.Module):
    """Self-attention, softmax(q k^T / sqrt(head size)) v over each sequence: [S,T,D] -> [S,T,D].

    `implementation` 'xla' runs anywhere; 'cudnn' is the flash kernel of NVIDIA GPUs, for bfloat16 only.
    """

    heads: int
    bias: bool = True
    implementation: str = 'xla'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d, h = x.shape[-1], self.heads
        qkv = Linear((d, 3, h, d // h), ('embed', None, 'heads', None), bias=self.bias, dtype=self.dtype, name='qkv')(x)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        y = jax.nn.dot_product_attention(q, k, v, implementation=self.implementation)
        return Linear((h, d // h, d), ('heads', None, 'embed'), inputs=2, dtype=self.dtype, name='out')(y)


class Mlp(nn.Module):
    """fc2(gelu(fc1 x)), with the exact (erf) GELU."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d = x.shape[-1]
        x = Linear((d, self.hidden), ('embed', 'mlp'), dtype=self.dtype, name='fc1')(x)
        x = jax.nn.gelu(x, approximate=False)
        return Linear((self.hidden, d), ('mlp', 'embed'), dtype=self.dtype, name='fc2')(x)


class SwiGlu(nn.Module):
    """w3(silu(gate) * value) where (gate, value) = w12 x, the gate first (arXiv 2002.05202, as DINOv2 packs it)."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d = x.shape[-1]
        x = Linear((d, 2 * self.hidden), ('embed', 'mlp'), dtype=self.dtype, name='w12')(x)
        gate, value = jnp.split(x, 2, axis=-1)
        return Linear((self.hidden, d), ('mlp', 'embed'), dtype=self.dtype, name='w3')(jax.nn.silu(gate) * value)


def kept_count(sequences: int, rate: float) -> int:
    """How many of a group's sequences a residual branch is computed for."""
    return max(int(sequences * (1 - rate)), 1)


def draw_kept(key: Array, groups: Array, sequences: int, depth: int, rate: float) -> Array:
    """Which sequences each layer keeps: int32 [depth,2,G,kept], the 2 being attention and FFN.

    The draw of a group depends on `key` and the group's global number (`groups`, uint32 [G]) alone: not on the other
    groups, the mesh or the micro-batch.
    """

    def one(group: Array) -> Array:
        order = jnp.argsort(jax.random.uniform(jax.random.fold_in(key, group), (depth, 2, sequences)))
        return order[..., : kept_count(sequences, rate)]

    return jnp.moveaxis(jax.vmap(one)(groups), 0, 2)


def add_residual(x: Array, residual: Callable[[Array], Array], kept: Array | None) -> Array:
    """x + residual(x), or drop path over subsets (DINOv2, arXiv 2304.07193): x [S,T,D], kept int [G,k] or None.

    The sequences are G groups of n = S/G; `residual` is computed for the sequences kept[g] of each group only, and
    added back times n/k. Gathering inside a group moves nothing between devices, and fewer sequences are computed.
    """
    if kept is None:
        return (x + residual(x)).astype(x.dtype)
    groups, k = kept.shape
    rows = constrain_rows(x.reshape(groups, -1, *x.shape[1:]))
    n = rows.shape[1]
    subset = jax.vmap(lambda r, i: jnp.take(r, i, axis=0, unique_indices=True, mode='clip'))(rows, kept)
    subset = constrain_rows(subset.reshape(groups * k, *x.shape[1:]))
    y = (residual(subset) * (n / k)).astype(x.dtype).reshape(groups, k, *x.shape[1:])
    rows = jax.vmap(lambda r, i, u: r.at[i].add(u, unique_indices=True, mode='promise_in_bounds'))(rows, kept, y)
    return rows.reshape(x.shape)


class Block(nn.Module):
    """A pre-norm transformer block with LayerScale: x += gamma1 attn(norm1 x), then x += gamma2 ffn(norm2 x)."""

    heads: int
    hidden: int
    ffn: str = 'mlp'
    qkv_bias: bool = True
    layerscale: float | None = 1e-5
    attention: str = 'xla'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, kept: Array | None = None) -> Array:
        norm1, norm2 = LayerNorm(dtype=self.dtype, name='norm1'), LayerNorm(dtype=self.dtype, name='norm2')
        attention = Attention(self.heads, self.qkv_bias, self.attention, self.dtype, name='attn')
        ffn = {'mlp': Mlp, 'swiglu': SwiGlu}[self.ffn](self.hidden, self.dtype, name='mlp')

        def scale(name: str, y: Array) -> Array:
            if self.layerscale is None:
                return y
            start = jax.nn.initializers.constant(self.layerscale)
            return y * parameter(
                self, name, start, y.shape[-1:], ('embed',)
            )  # float32: 1e-5 + updates in bf16 is coarse

        x = constrain_rows(x)
        x = add_residual(x, lambda s: scale('gamma1', attention(norm1(s))), None if kept is None else kept[0])
        return add_residual(x, lambda s: scale('gamma2', ffn(norm2(s))), None if kept is None else kept[1])
