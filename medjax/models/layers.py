"""The layers of a transformer, with logical names for the axes of parameters.

Every parameter is created by `parameter`, which gives each of its axes a logical name or None;
`medjax.parallel.sharding` maps the names to axes of the mesh. Parameters are float32. Activations have the `dtype` of
the layer. Norms and softmax compute in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from medjax.errors import UserError, suggest
from medjax.models import attention as attention_kernels
from medjax.models.drop_path import add_residual
from medjax.models.kernels import STORED, plain_only
from medjax.models.lora import PARAMETER as LORA, Lora, LowRank
from medjax.models.prompts import renewed
from medjax.models.rotary import rotate
from medjax.parallel.sharding import Names, constrain_rows
from medjax.types import is_number

# torch's trunc_normal_(std=.02) cuts at +-2, which is 100 standard deviations: in effect it does not cut.
weight_init = jax.nn.initializers.normal(0.02)
zeros = jax.nn.initializers.zeros
ones = jax.nn.initializers.ones
BATCH_NORM_EPS, MOMENTUM = 1e-5, 0.1  # as in torch

SIZES = {  # the hidden layer of the FFN is `mlp_ratio` times as wide as the tower
    'Ti': dict(width=192, depth=12, heads=3, ffn='mlp', mlp_ratio=4.0),
    'S': dict(width=384, depth=12, heads=6, ffn='mlp', mlp_ratio=4.0),
    'B': dict(width=768, depth=12, heads=12, ffn='mlp', mlp_ratio=4.0),
    'L': dict(width=1024, depth=24, heads=16, ffn='mlp', mlp_ratio=4.0),
    'So400m': dict(width=1152, depth=27, heads=16, ffn='mlp', mlp_ratio=4304 / 1152),  # arXiv 2305.13035, SigLIP
    'g': dict(width=1536, depth=40, heads=24, ffn='swiglu', mlp_ratio=4.0),
}


_is_stored = jax.checkpoint_policies.save_only_these_names(STORED)


def _products_and_flash(primitive: Any, *args: Any, **params: Any) -> bool:
    """Whether a block stores the results of a primitive: a linear map with its bias, or a flash kernel."""
    return primitive.name.startswith('dot_product_attention_fwd') or _is_stored(primitive, *args, **params)


REMAT = {  # what a block stores for the backward pass, which computes everything else a second time
    'products': _products_and_flash,  # linear maps and what a flash kernel gives, but no attention scores
    'blocks': jax.checkpoint_policies.nothing_saveable,  # only the input of the block: least memory, a third more FLOPs
    'none': jax.checkpoint_policies.everything_saveable,  # everything: nothing is computed twice
}


def _plain_gelu(x: Array) -> Array:
    z = x.astype(jnp.float32)
    return (0.5 * z * (1 + jax.lax.erf(z * math.sqrt(0.5)))).astype(x.dtype)


@jax.custom_vjp
def _gelu(x: Array) -> Array:
    return _plain_gelu(x)


def _gelu_backward(x: Array, g: Array) -> tuple[Array]:
    z = x.astype(jnp.float32)
    slope = 0.5 + 0.5 * jax.lax.erf(z * math.sqrt(0.5)) + z * jnp.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return ((g * slope).astype(x.dtype),)


_gelu.defvjp(lambda x: (_gelu(x), x), _gelu_backward)


def gelu(x: Array) -> Array:
    """x Phi(x), with Phi the distribution function of the normal distribution (arXiv 1606.08415).

    Phi(x) is (1 + erf(x / sqrt 2)) / 2, in float32. `jax.nn.gelu` takes erfc, which computes two polynomials for each
    number. On an NVIDIA H200 a pass over a hidden layer takes 201 us with erfc, and 105 us with erf.
    The derivative is written out and needs x alone. The one that jax makes would keep the error function of the value:
    a GPU would write it to memory and read it twice.
    """
    return _plain_gelu(x) if plain_only() else _gelu(x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    'gelu': gelu,
    'gelu_tanh': lambda x: jax.nn.gelu(x, approximate=True),  # SigLIP
    'quick_gelu': lambda x: x * jax.nn.sigmoid(1.702 * x),  # OpenAI's CLIP
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
}


def sizes(tower: str, size: str, where: str, replace: dict[str, Any]) -> dict[str, Any]:
    """The values of a size in SIZES: width, depth, heads, ffn, mlp_ratio; values in `replace` that are not None win.

    `tower` and `where` are for the message if there is no such size.
    """
    if size not in SIZES:
        raise UserError(f'{tower}: {where}; sizes: {", ".join(SIZES)}')
    values: dict[str, Any] = SIZES[size] | {name: value for name, value in replace.items() if value is not None}
    for name in ('width', 'depth', 'heads'):
        if not isinstance(values[name], int) or values[name] < 1:
            raise UserError(f'{tower}: {name}={values[name]!r}: must be a whole number of at least 1')
    check_ratio(tower, values['mlp_ratio'])
    if values['width'] % values['heads']:
        raise UserError(f'{tower}: width {values["width"]} is not divisible by {values["heads"]} heads')
    return values


def check_ratio(tower: str, mlp_ratio: Any) -> None:
    """A UserError if the hidden layer of an FFN would have no width."""
    if not is_number(mlp_ratio) or mlp_ratio <= 0:
        raise UserError(f'{tower}: mlp_ratio={mlp_ratio!r}: must be a number above 0')


def check_eps(tower: str, eps: Any) -> float:
    """The option `eps` of the norms; a UserError if it is no number above 0."""
    if not is_number(eps) or not 0 < eps < math.inf:
        raise UserError(f'{tower}: eps={eps!r}: must be a number above 0')
    return eps


def check_compute(tower: str, attention: str, remat: str, dtype: str) -> None:
    """Checks the options of a transformer that change time, memory or rounding only."""
    check_choice(tower, 'attention', attention, attention_kernels.CHOICES)
    check_choice(tower, 'remat', remat, REMAT)
    check_choice(tower, 'dtype', dtype, ('float32', 'bfloat16'))
    attention_kernels.check(tower, attention, dtype)


def check_choice(tower: str, name: str, value: str, choices: Iterable[str]) -> None:
    """A UserError that suggests the nearest choice if `value` is not among the choices."""
    if value not in choices:
        raise UserError(f'{tower}: unknown {name} {value!r}{suggest(value, choices)}')


def uniform_fan_in(fan_in: int) -> Callable[..., Array]:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)): torch's default initializer for weights and biases of Conv2d and Linear."""
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def xavier(inputs: int) -> Callable[..., Array]:
    """Uniform in +-sqrt(6 / (fan in + fan out)) for weights [*in, *out] with `inputs` axes in front (Glorot, 2010)."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        bound = math.sqrt(6 / (math.prod(shape[:inputs]) + math.prod(shape[inputs:])))
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# How the weights of products start: 'normal' is DINOv2's and BERT's, 'xavier' that of masked autoencoders.
STARTS: dict[str, Callable] = {'normal': weight_init, 'xavier': xavier}


def parameter(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...], axes: Names) -> Any:
    """A float32 parameter of `module`; `axes` are the logical names of its axes."""
    return module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)


class Linear(nn.Module):
    """y = x W + b with W [*in, *out]; the product sums over the last `inputs` axes of x and the first `inputs` of W."""

    shape: tuple[int, ...]
    axes: Names
    inputs: int = 1
    bias: bool = True
    dtype: Any = jnp.float32
    init: Callable = weight_init
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = xavier(self.inputs) if self.init is xavier else self.init
        kernel = parameter(self, 'kernel', init, self.shape, self.axes)
        out = self.shape[self.inputs :]
        y = jnp.tensordot(
            x.astype(self.dtype), kernel.astype(self.dtype).reshape(*self.shape[: self.inputs], -1), axes=self.inputs
        )
        if self.bias:
            y += parameter(self, 'bias', zeros, out, self.axes[self.inputs :]).astype(self.dtype).reshape(-1)
        if self.lora is not None:
            y += LowRank(self.lora, self.shape, self.axes, self.inputs, self.dtype, name=LORA)(x)
        return checkpoint_name(y, STORED).reshape(*y.shape[:-1], *out)


class Linears(nn.Module):
    """Several linear maps of one input, y_i = x W_i + b_i, with W [in,n,*out] and b [n,*out]: the results, one by one.

    Attention reads queries, keys and values apart. Each is a product of its own, because slices of one product would
    be copied. The maps with the numbers `no_bias` have no bias, and the array b has no rows for them.
    """

    shape: tuple[int, ...]
    axes: Names
    bias: bool = True
    no_bias: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    init: Callable = weight_init
    lora: tuple[tuple[str, Lora | None], ...] = ()  # of the maps, with their names

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        init = xavier(inputs=1) if self.init is xavier else self.init
        x, kernel = x.astype(self.dtype), parameter(self, 'kernel', init, self.shape, self.axes).astype(self.dtype)
        y = [jnp.tensordot(x, kernel[:, i].reshape(len(kernel), -1), axes=1) for i in range(self.shape[1])]
        if self.bias:
            biased = [i for i in range(len(y)) if i not in self.no_bias]
            shape = (len(biased), *self.shape[2:])
            bias = parameter(self, 'bias', zeros, shape, self.axes[1:]).astype(self.dtype)
            for row, i in enumerate(biased):
                y[i] += bias[row].reshape(-1)
        for i, (name, lora) in enumerate(self.lora):
            if lora is not None:
                shape, axes = (self.shape[0], *self.shape[2:]), (self.axes[0], *self.axes[2:])
                y[i] += LowRank(lora, shape, axes, 1, self.dtype, name=f'{LORA}_{name}')(x)
        return [checkpoint_name(one, STORED).reshape(*one.shape[:-1], *self.shape[2:]) for one in y]


class LayerNorm(nn.Module):
    """scale (x - mean) / sqrt(variance + eps) + bias over the last axis, in float32; the result has `dtype`."""

    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        scale = parameter(self, 'scale', ones, x.shape[-1:], ('embed',))
        bias = parameter(self, 'bias', zeros, x.shape[-1:], ('embed',))
        return (_plain_norm if plain_only() else _norm)(self.eps, self.dtype, x, scale, bias)


def standardised(x: Array, eps: float = 1e-5) -> Array:
    """(x - mean) / sqrt(variance + eps) over the last axis, in float32: a layer norm without parameters."""
    x = x.astype(jnp.float32)
    x -= x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + eps)


def _plain_norm(eps: float, dtype: Any, x: Array, scale: Array, bias: Array) -> Array:
    return (standardised(x, eps) * scale + bias).astype(dtype)


_norm = jax.custom_vjp(_plain_norm, nondiff_argnums=(0, 1))


def _norm_forward(eps: float, dtype: Any, x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
    return _plain_norm(eps, dtype, x, scale, bias), (x, scale)


def _norm_backward(eps: float, dtype: Any, stored: tuple[Array, Array], g: Array) -> tuple[Array, Array, Array]:
    """The gradients by x, scale and bias.

    The barriers end a kernel of a GPU after the sums over rows, whose results are small. Without them, other kernels
    compute these sums again. On an NVIDIA H200 x [21584,768] takes 134 us without, 99 us with them.
    """
    x, scale = stored
    g, z = g.astype(jnp.float32), x.astype(jnp.float32)
    mean = z.mean(-1, keepdims=True)
    rate = jax.lax.rsqrt(jnp.square(z - mean).mean(-1, keepdims=True) + eps)
    mean, rate = jax.lax.optimization_barrier((mean, rate))
    z = (z - mean) * rate
    gs = g * scale
    a, b = jax.lax.optimization_barrier((gs.mean(-1, keepdims=True), (gs * z).mean(-1, keepdims=True)))
    rows = tuple(range(x.ndim - 1))
    return (rate * (gs - a - z * b)).astype(x.dtype), (g * z).sum(rows), g.sum(rows)


_norm.defvjp(_norm_forward, _norm_backward)


class Moments(NamedTuple):
    """Mean and variance of each channel, [C]: the running statistics of a batch norm, stored under 'stats'."""

    mean: Array
    variance: Array


def batch_norm(x: Array, weight: Array | None, running: Moments) -> tuple[Array, Moments]:
    """(x - mean) / sqrt(variance + 1e-5) for each channel of x [S,…,C], and the new running statistics; float32.

    With `weight`, mean and variance are those of the batch: `weight` is 1 where x counts and 0 elsewhere, and its axes
    are the first axes of x. They move the running statistics, r <- .9 r + .1 batch, with the unbiased variance. Without
    `weight`, and if nothing counts, mean and variance are the running statistics, which stay as they are.
    """
    x = x.astype(jnp.float32)
    m, v = running
    if weight is not None:
        if math.prod(x.shape[:-1]) < 2:
            raise UserError(
                'a batch norm gets one value of each channel, and one value has no variance; give more rows '
                '(batch_size); a head also takes batch_norm=False'
            )
        axes = tuple(range(x.ndim - 1))
        w = weight.reshape(*weight.shape, *[1] * (x.ndim - weight.ndim))
        n = weight.sum() * math.prod(x.shape[weight.ndim : -1])
        # one sum for each channel: devices exchange arrays of the shape of the parameters and nothing larger
        mean = (w * x).sum(axes) / jnp.maximum(n, 1)
        variance = (w * jnp.square(x - mean)).sum(axes) / jnp.maximum(n, 1)
        unbiased = variance * n / jnp.maximum(n - 1, 1)
        move = jnp.where(n > 0, MOMENTUM, 0.0)
        running = jax.lax.stop_gradient(Moments((1 - move) * m + move * mean, (1 - move) * v + move * unbiased))
        m, v = jnp.where(n > 0, mean, m), jnp.where(n > 0, variance, v)
    return (x - m) * jax.lax.rsqrt(v + BATCH_NORM_EPS), running


class Attention(nn.Module):
    """Attention, softmax(q k^T / sqrt(head size)) v: [S,T,D] -> [S,T,D].

    Without `context`, tokens attend to the tokens of their own sequence. With `context` [S,T',D'] they attend to its
    tokens instead (cross-attention), and the parameters are 'q' and 'kv' in place of 'qkv'. Without `key_bias` the keys
    of a sequence's own tokens have no bias: the parameter 'qkv/bias' is [2,h,E], of queries and values, not [3,h,E].

    lengths         int32 [S], at least 1: only the first `lengths` keys of a sequence are attended to; None: all
    mask            bool, which keys are attended to: [S,keys], or [S,T,keys] for each token; None: all. A mask that
                    keeps the first keys alone is better given as `lengths`, which the flash kernel takes
    turns           float32 [R,T,2,E/2], the angles of tokens for queries and keys, see `rotary.turns`; None: none
    causal          a token attends to itself and to earlier tokens only
    implementation  'auto', 'xla' or 'cudnn', see `medjax.models.attention`
    start           the initializer of the products, a key of STARTS
    lora            matrices that are added to the products of a sequence's own tokens, see `medjax.models.lora`
    """

    heads: int
    bias: bool = True
    implementation: str = 'auto'
    causal: bool = False
    dtype: Any = jnp.float32
    start: str = 'normal'
    key_bias: bool = True
    lora: Lora | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        context: Array | None = None,
        lengths: Array | None = None,
        mask: Array | None = None,
        turns: Array | None = None,
    ) -> Array:
        d, h, queries = x.shape[-1], self.heads, x.shape[1]
        keys = queries if context is None else context.shape[1]
        options: dict[str, Any] = dict(bias=self.bias, dtype=self.dtype, init=STARTS[self.start])
        axes = ('embed', None, 'heads', None)
        shape = (len(x), queries, h, d // h)
        flash = attention_kernels.choose(self.implementation, shape, self.dtype, mask) == 'cudnn'
        if flash:  # filled up before the products, whose results the kernel then reads as they are
            x = attention_kernels.to_multiple(x)
            context = None if context is None else attention_kernels.to_multiple(context)
            turns = None if turns is None else attention_kernels.to_multiple(turns)
        if context is None:
            no_bias = () if self.key_bias else (1,)
            lora = () if self.lora is None else tuple((name, self.lora.at(name)) for name in 'qkv')
            q, k, v = Linears((d, 3, h, d // h), axes, **options, no_bias=no_bias, lora=lora, name='qkv')(x)
        else:
            q = Linear((d, h, d // h), ('embed', 'heads', None), **options, name='q')(x)
            k, v = Linears((context.shape[-1], 2, h, d // h), axes, **options, name='kv')(context)
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        if flash:
            y = attention_kernels.flash(q, k, v, queries, keys, lengths, self.causal)
        else:
            if mask is not None:
                mask = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
            y = attention_kernels.attend(
                q, k, v, mask=mask, lengths=lengths, causal=self.causal, implementation=self.implementation
            )
        lora_out = None if self.lora is None else self.lora.at('out')
        return Linear(
            (h, d // h, d), ('heads', None, 'embed'), inputs=2, dtype=self.dtype, init=STARTS[self.start],
            lora=lora_out, name='out',
        )(y)[:, :queries]  # fmt: skip


def cls_attention(
    block: Any, tokens: Array, lengths: Array | None, eps: float, dtype: Any, turns: Array | None = None
) -> Array:
    """The attention of the first token, the mean over heads: tokens [...,T,D] before a block -> [...,T], float32.

    `block` holds the parameters of one Block with norms before its branches. `lengths` and `turns` as in `Attention`,
    for all the sequences in their order.
    """
    norm, qkv = block['norm1'], block['attn']['qkv']
    x = LayerNorm(eps, dtype).apply({'params': norm}, tokens)
    kernel = qkv['kernel'].astype(dtype)
    bias = qkv['bias'].astype(dtype) if 'bias' in qkv else jnp.zeros(kernel.shape[1:], dtype)
    q = jnp.einsum('...d,dhe->...he', x[..., 0, :], kernel[:, 0]) + bias[0]
    k = jnp.einsum('...td,dhe->...the', x, kernel[:, 1])
    if len(bias) == 3:  # not only of queries and values
        k += bias[1]
    if turns is not None:  # the first token has no angle
        k = rotate(k.reshape(-1, *k.shape[-3:]), turns).reshape(k.shape)
    scores = jnp.einsum('...he,...the->...ht', q, k).astype(jnp.float32) * q.shape[-1] ** -0.5
    if lengths is not None:
        inside = jnp.arange(tokens.shape[-2]) < lengths.reshape(*tokens.shape[:-2], 1)
        scores = jnp.where(inside[..., None, :], scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1).mean(-2)


class Mlp(nn.Module):
    """fc2(activation(fc1 x)); `activation` is a key of ACTIVATIONS."""

    hidden: int
    dtype: Any = jnp.float32
    activation: str = 'gelu'
    start: str = 'normal'
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d = x.shape[-1]
        options: dict[str, Any] = dict(dtype=self.dtype, init=STARTS[self.start], lora=self.lora)
        x = Linear((d, self.hidden), ('embed', 'mlp'), **options, name='fc1')(x)
        x = ACTIVATIONS[self.activation](x)
        return Linear((self.hidden, d), ('mlp', 'embed'), **options, name='fc2')(x)


class SwiGlu(nn.Module):
    """w3(silu(gate) * value) with (gate, value) = w12 x (arXiv 2002.05202); DINOv2 stores the gate first."""

    hidden: int
    dtype: Any = jnp.float32
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d, options = x.shape[-1], dict(dtype=self.dtype, lora=self.lora)
        x = Linear((d, 2 * self.hidden), ('embed', 'mlp'), **options, name='w12')(x)
        gate, value = jnp.split(x, 2, axis=-1)
        return Linear((self.hidden, d), ('mlp', 'embed'), **options, name='w3')(jax.nn.silu(gate) * value)


class Block(nn.Module):
    """A transformer block: x += gamma1 attn(norm1 x), then x += gamma2 ffn(norm2 x); gamma is LayerScale.

    With `post_norm`, as in BERT: x = norm1(x + attn x), then x = norm2(x + ffn x). With `cross`, attention to a context
    stands between the two, with norm and LayerScale of its own. A call takes `kept` int [2,G,k], one layer of
    `draw_kept`, and the inputs of attention: `lengths` and `mask` of the sequence and of the context, and `turns`
    of the sequence, see `Attention`. With `kept`, `turns` has one row for all sequences, or G rows, or S rows.
    `prompts` are the parameters of `medjax.models.prompts`, which renew the tokens from number `first_prompt` on.
    """

    heads: int
    hidden: int
    ffn: str = 'mlp'
    qkv_bias: bool = True
    layerscale: float | None = 1e-5
    attention: str = 'auto'
    causal: bool = False
    post_norm: bool = False
    activation: str = 'gelu'
    eps: float = 1e-6
    dtype: Any = jnp.float32
    start: str = 'normal'
    cross: bool = False
    key_bias: bool = True
    lora: Lora | None = None
    first_prompt: int = 0

    @nn.compact
    def __call__(
        self,
        x: Array,
        kept: Array | None = None,
        lengths: Array | None = None,
        mask: Array | None = None,
        context: Array | None = None,
        context_lengths: Array | None = None,
        context_mask: Array | None = None,
        turns: Array | None = None,
        prompts: Mapping[str, Array] | None = None,
    ) -> Array:
        norm1, norm2 = (LayerNorm(self.eps, self.dtype, name=name) for name in ('norm1', 'norm2'))
        options = (self.heads, self.qkv_bias, self.attention)
        attention = Attention(*options, self.causal, self.dtype, self.start, self.key_bias, self.lora, name='attn')
        lora = None if self.lora is None else self.lora.at('mlp')
        if self.ffn == 'swiglu':
            ffn: nn.Module = SwiGlu(self.hidden, self.dtype, lora, name='mlp')
        else:
            ffn = Mlp(self.hidden, self.dtype, self.activation, self.start, lora, name='mlp')

        def scale(name: str, y: Array) -> Array:
            if self.layerscale is None:
                return y
            start = jax.nn.initializers.constant(self.layerscale)
            # in float32, because 1e-5 plus small updates is too coarse in bfloat16
            return y * parameter(self, name, start, y.shape[-1:], ('embed',))

        def branch(x: Array, norm: nn.Module, residual: Callable, kept: Array | None, *others: Array | None) -> Array:
            if self.post_norm:
                return norm(add_residual(x, residual, kept, *others))
            return add_residual(x, lambda s, *others: residual(norm(s), *others), kept, *others)

        def attend(s: Array, lengths: Array | None, mask: Array | None, own: Array | None) -> Array:
            return scale('gamma1', attention(s, None, lengths, mask, turns if own is None else own))

        first, second = (None, None) if kept is None else (kept[0], kept[1])
        # angles of each sequence go with the sequences that drop path keeps; those of a group hold for any of them
        own = turns if turns is not None and len(turns) == len(x) else None
        x = constrain_rows(x)
        if prompts is not None:
            x = renewed(x, prompts, self.first_prompt, lengths)
        x = branch(x, norm1, attend, first, lengths, mask, own)
        if self.cross:
            norm3 = LayerNorm(self.eps, self.dtype, name='norm_cross')
            cross = Attention(*options, False, self.dtype, self.start, name='cross')
            inputs = (context, context_lengths, context_mask)
            x = branch(x, norm3, lambda s, *a: scale('gamma_cross', cross(s, *a)), first, *inputs)
        return branch(x, norm2, lambda s: scale('gamma2', ffn(s)), second)


def scan_blocks(
    x: Array,
    depth: int,
    remat: str,
    layers: int,
    kept: Array | None = None,
    inputs: Mapping[str, Array | None] | None = None,
    unroll: int = 1,
    **block: Any,
) -> Array:
    """x [S,T,D] through `depth` Blocks -> the tokens after each of the last `layers` blocks, [layers,S,T,D].

    To be called inside the `__call__` of a flax module, which gets one child 'blocks': a scanned Block with stacked
    parameters. `remat` is a key of REMAT. `inputs` are the inputs of attention by name (lengths, mask, turns, context,
    context_lengths, context_mask) and `prompts`, equal for all blocks; with a context the blocks have cross-attention.
    `unroll` is the number of blocks in one turn of the loop. `block` holds the fields of Block.
    """
    given = dict(inputs or {})
    block = dict(cross=given.get('context') is not None) | block
    # prevent_cse is needed outside of a loop only, where the compiler could merge the forward and backward pass
    blocks = nn.remat(Block, prevent_cse=unroll >= depth, policy=REMAT[remat])(**block, name='blocks')

    def step(block: nn.Module, last: Array, kept: Array | None, given: dict) -> tuple[Array, None]:
        return jnp.concatenate([last[1:], block(last[-1], kept, **given)[None]]), None

    scan = nn.scan(
        step,
        variable_axes={'params': 0},
        split_rngs={'params': True},
        in_axes=(0, nn.broadcast),
        length=depth,
        unroll=min(unroll, depth),
        metadata_params={nn.PARTITION_NAME: None},
    )
    return scan(blocks, jnp.broadcast_to(x, (layers, *x.shape)), kept, given)[0]


class Pool(nn.Module):
    """One feature for each sequence, [S,T,D] -> [S,D]. A call takes `lengths` as in Attention.

    kind  'cls' is the first token, 'last' the last one; 'mean' and 'max' run over the tokens; 'attention' is SigLIP's
          (arXiv 2303.15343): y = attention of a learned query `probe` over the tokens, then y + mlp(norm y)
    """

    kind: str
    heads: int = 1
    hidden: int = 1
    activation: str = 'gelu'
    eps: float = 1e-6
    attention: str = 'auto'
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, lengths: Array | None = None) -> Array:
        if self.kind == 'cls':
            return x[:, 0]
        if self.kind == 'attention':
            return self.attend(x, lengths)
        s, t, _ = x.shape
        lengths = jnp.full((s,), t, jnp.int32) if lengths is None else lengths
        number = jnp.arange(t)
        # 'last' is a sum over one token and no gather, so that rows stay on their device
        chosen = (number == lengths[:, None] - 1) if self.kind == 'last' else (number < lengths[:, None])
        if self.kind == 'max':
            return jnp.where(chosen[..., None], x, -jnp.inf).max(1)
        total = jnp.where(chosen[..., None], x, 0).sum(1)
        return total if self.kind == 'last' else total / lengths[:, None]

    def attend(self, x: Array, lengths: Array | None) -> Array:
        s, d, h = x.shape[0], x.shape[-1], self.heads
        probe = parameter(self, 'probe', weight_init, (d,), ('embed',))
        q = Linear((d, h, d // h), ('embed', 'heads', None), dtype=self.dtype, name='q')(probe)
        kv = Linear((d, 2, h, d // h), ('embed', None, 'heads', None), dtype=self.dtype, name='kv')(x)
        q = jnp.broadcast_to(q, (s, 1, *q.shape))
        y = attention_kernels.attend(
            q, kv[..., 0, :, :], kv[..., 1, :, :], lengths=lengths, implementation=self.attention
        )
        y = Linear((h, d // h, d), ('heads', None, 'embed'), inputs=2, dtype=self.dtype, name='out')(y)[:, 0]
        z = LayerNorm(self.eps, self.dtype, name='norm')(y)
        return (y + Mlp(self.hidden, self.dtype, self.activation, name='mlp')(z)).astype(jnp.float32)


POOLS = ('cls', 'last', 'mean', 'max', 'attention')
