"""The layers of a transformer as einsums with named axes, and drop path over subsets.

Every parameter is created through `parameter`, which attaches one logical axis name (or None) to each dimension;
`medjax.parallel.sharding` maps the names to mesh axes. Parameters are float32; activations have the layer's `dtype`;
statistics of norms and softmax are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from medjax.errors import UserError, suggest
from medjax.parallel.sharding import constrain_rows

Names = tuple[str | None, ...]
weight_init = jax.nn.initializers.normal(0.02)  # torch's trunc_normal_(std=.02) cuts at +-2: at 100 sigma, so nowhere
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones

SIZES = {  # width, depth, heads, FFN; a hidden layer of the FFN is `mlp_ratio` times as wide
    'Ti': dict(width=192, depth=12, heads=3, ffn='mlp', mlp_ratio=4.0),
    'S': dict(width=384, depth=12, heads=6, ffn='mlp', mlp_ratio=4.0),
    'B': dict(width=768, depth=12, heads=12, ffn='mlp', mlp_ratio=4.0),
    'L': dict(width=1024, depth=24, heads=16, ffn='mlp', mlp_ratio=4.0),
    'So400m': dict(width=1152, depth=27, heads=16, ffn='mlp', mlp_ratio=4304 / 1152),  # arXiv 2305.13035, SigLIP
    'g': dict(width=1536, depth=40, heads=24, ffn='swiglu', mlp_ratio=4.0),
}
REMAT = {  # what the backward pass of a block finds stored; it computes the rest again
    'products': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with weights, no attention scores
    'blocks': jax.checkpoint_policies.nothing_saveable,  # the block's input alone: least memory, a third more FLOPs
    'none': jax.checkpoint_policies.everything_saveable,
}
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'gelu': lambda x: jax.nn.gelu(x, approximate=False),  # x Phi(x)
    'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),  # SigLIP
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
    'relu': jax.nn.relu,
}


def sizes(tower: str, size: str, where: str, given: dict[str, Any]) -> dict[str, Any]:
    """Those of SIZES, replaced by what is `given` and not None: width, depth, heads, ffn, mlp_ratio; checked."""
    if size not in SIZES:
        raise UserError(f'{tower}: {where}; sizes: {", ".join(SIZES)}')
    found: dict[str, Any] = SIZES[size] | {name: value for name, value in given.items() if value is not None}
    for name in ('width', 'depth', 'heads'):
        if not isinstance(found[name], int) or found[name] < 1:
            raise UserError(f'{tower}: {name}={found[name]!r}: must be a whole number of at least 1')
    if found['width'] % found['heads']:
        raise UserError(f'{tower}: width {found["width"]} is not divisible by {found["heads"]} heads')
    return found


def check_compute(tower: str, attention: str, remat: str, dtype: str) -> None:
    """What towers of blocks are told about how to compute."""
    check_choice(tower, 'attention', attention, ('xla', 'cudnn'))
    check_choice(tower, 'remat', remat, REMAT)
    check_choice(tower, 'dtype', dtype, ('float32', 'bfloat16'))
    if attention == 'cudnn' and (jax.default_backend() != 'gpu' or dtype != 'bfloat16'):
        raise UserError(f"{tower}: attention='cudnn' needs a GPU and dtype='bfloat16'; attention='xla' runs anywhere")


def check_choice(tower: str, name: str, value: str, known: Iterable[str]) -> None:
    """A UserError that suggests what is known."""
    if value not in known:
        raise UserError(f'{tower}: unknown {name} {value!r}{suggest(value, known)}')


def uniform_fan_in(fan_in: int) -> Callable[..., Array]:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's own start for Conv2d and Linear, weights and biases."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: Names) -> Any:
    """A float32 parameter of `module` whose dimensions have the logical names `axes`."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


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

    lengths         int32 [S], at least 1: only so many first tokens are looked at; None: all
    causal          a token looks at itself and those before it
    implementation  'xla' runs anywhere; 'cudnn' is the flash kernel of NVIDIA GPUs, for bfloat16 only
    """

    heads: int
    bias: bool = True
    implementation: str = 'xla'
    causal: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        d, h = x.shape[-1], self.heads
        qkv = Linear((d, 3, h, d // h), ('embed', None, 'heads', None), bias=self.bias, dtype=self.dtype, name='qkv')(x)
        q, k, v = (qkv[..., i, :, :] for i in range(3))
        how: dict[str, Any] = dict(implementation=self.implementation, is_causal=self.causal)
        y = jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, **how)
        return Linear((h, d // h, d), ('heads', None, 'embed'), inputs=2, dtype=self.dtype, name='out')(y)


class Mlp(nn.Module):
    """fc2(activation(fc1 x)), see ACTIVATIONS."""

    hidden: int
    dtype: Any = jnp.float32
    activation: str = 'gelu'

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d = x.shape[-1]
        x = Linear((d, self.hidden), ('embed', 'mlp'), dtype=self.dtype, name='fc1')(x)
        x = ACTIVATIONS[self.activation](x)
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
    """A transformer block: x += gamma1 attn(norm1 x), then x += gamma2 ffn(norm2 x), gamma being LayerScale.

    post_norm   as in BERT: x = norm1(x + attn x), then x = norm2(x + ffn x)
    lengths     int32 [S] or None, see Attention; not together with `kept`, the sequences of drop path
    """

    heads: int
    hidden: int
    ffn: str = 'mlp'
    qkv_bias: bool = True
    layerscale: float | None = 1e-5
    attention: str = 'xla'
    causal: bool = False
    post_norm: bool = False
    activation: str = 'gelu'
    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, kept: Array | None = None, lengths: Array | None = None) -> Array:
        norm1, norm2 = (LayerNorm(self.eps, self.dtype, name=name) for name in ('norm1', 'norm2'))
        attention = Attention(self.heads, self.qkv_bias, self.attention, self.causal, self.dtype, name='attn')
        if self.ffn == 'swiglu':
            ffn: nn.Module = SwiGlu(self.hidden, self.dtype, name='mlp')
        else:
            ffn = Mlp(self.hidden, self.dtype, self.activation, name='mlp')

        def scale(name: str, y: Array) -> Array:
            if self.layerscale is None:
                return y
            start = jax.nn.initializers.constant(self.layerscale)
            # float32: 1e-5 + updates in bf16 is coarse
            return y * parameter(self, name, start, y.shape[-1:], ('embed',))

        def branch(x: Array, norm: nn.Module, residual: Callable[[Array], Array], kept: Array | None) -> Array:
            if self.post_norm:
                return norm(add_residual(x, residual, kept))
            return add_residual(x, lambda s: residual(norm(s)), kept)

        first, second = (None, None) if kept is None else (kept[0], kept[1])
        x = constrain_rows(x)
        x = branch(x, norm1, lambda s: scale('gamma1', attention(s, lengths)), first)
        return branch(x, norm2, lambda s: scale('gamma2', ffn(s)), second)


def scan_blocks(
    x: Array, depth: int, remat: str, layers: int, kept: Array | None = None, lengths: Array | None = None, **block: Any
) -> Array:
    """x [S,T,D] through `depth` Blocks -> the tokens after each of the last `layers` of them, [layers,S,T,D].

    The blocks are one scanned, rematerialised module called 'blocks' of the module in whose __call__ this stands;
    their parameters are stacked. `block` is what a Block takes, `remat` a key of REMAT.
    """
    # prevent_cse is for code outside of a scan, where the compiler could merge both passes
    blocks = nn.remat(Block, prevent_cse=False, policy=REMAT[remat])(**block, name='blocks')

    def one(block: nn.Module, last: Array, kept: Array | None, lengths: Array | None) -> tuple[Array, None]:
        return jnp.concatenate([last[1:], block(last[-1], kept, lengths)[None]]), None

    scan = nn.scan(
        one,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, nn.broadcast),
        length=depth,
        metadata_params={nn.PARTITION_NAME: None},
    )
    return scan(blocks, jnp.broadcast_to(x, (layers, *x.shape)), kept, lengths)[0]


class Pool(nn.Module):
    """One feature of a sequence, [S,T,D] -> [S,D], over its first `lengths` tokens (int32 [S], at least 1; None: all).

    how  'cls' the first token; 'last' the last one; 'mean', 'max' over tokens; 'attention' SigLIP's (arXiv 2303.15343):
         y = attention of a learned query `probe` over the tokens, then y + mlp(norm y)
    """

    how: str
    heads: int = 1
    hidden: int = 1
    activation: str = 'gelu'
    eps: float = 1e-6
    attention: str = 'xla'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        if self.how == 'cls':
            return x[:, 0]
        if self.how == 'attention':
            return self.attend(x, lengths)
        s, t, _ = x.shape
        lengths = jnp.full((s,), t, jnp.int32) if lengths is None else lengths
        number = jnp.arange(t)
        # a sum over one token, not a gather: rows stay where they are
        chosen = (number == lengths[:, None] - 1) if self.how == 'last' else (number < lengths[:, None])
        if self.how == 'max':
            return jnp.where(chosen[..., None], x, -jnp.inf).max(1)
        total = jnp.where(chosen[..., None], x, 0).sum(1)
        return total if self.how == 'last' else total / lengths[:, None]

    def attend(self, x: Array, lengths: Array | None) -> Array:
        s, d, h = x.shape[0], x.shape[-1], self.heads
        probe = parameter(self, 'probe', weight_init, (d,), ('embed',))
        q = Linear((d, h, d // h), ('embed', 'heads', None), dtype=self.dtype, name='q')(probe)
        kv = Linear((d, 2, h, d // h), ('embed', None, 'heads', None), dtype=self.dtype, name='kv')(x)
        q = jnp.broadcast_to(q, (s, 1, *q.shape))
        y = jax.nn.dot_product_attention(
            q, kv[..., 0, :, :], kv[..., 1, :, :], key_value_seq_lengths=lengths, implementation=self.attention
        )
        y = Linear((h, d // h, d), ('heads', None, 'embed'), inputs=2, dtype=self.dtype, name='out')(y)[:, 0]
        z = LayerNorm(self.eps, self.dtype, name='norm')(y)
        return (y + Mlp(self.hidden, self.dtype, self.activation, name='mlp')(z)).astype(jnp.float32)


POOLS = ('cls', 'last', 'mean', 'max', 'attention')
