"""Attention by the fastest kernel that runs here: the plain form of XLA, or a flash kernel of the device.

The plain form writes the scores [S,H,T,T'] to memory several times in each pass. A flash kernel (arXiv 2205.14135)
never writes them. All towers call `attend`; the config key `attention` of a tower chooses the kernel. 'auto' takes
cuDNN's kernel on NVIDIA GPUs, splash attention on TPUs for long sequences, and the plain form elsewhere.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.models import splash
from medjax.models.kernels import plain_only
from medjax.parallel.sharding import platform

CHOICES = ('auto', 'xla', 'cudnn')
MULTIPLE = 8  # cuDNN's kernel takes numbers of tokens that this divides, and head sizes too
LARGEST_HEAD = 128  # numbers of a head, for which cuDNN's kernel has a backward pass on every card
OLDEST = 8.0  # compute capability of the oldest card with cuDNN's kernel: A100


def attend(
    q: Array,
    k: Array,
    v: Array,
    *,
    mask: Array | None = None,
    lengths: Array | None = None,
    causal: bool = False,
    implementation: str = 'auto',
) -> Array:
    """softmax(q k^T / sqrt(E)) v for queries [S,T,H,E] and keys and values [S,T',H,E]: [S,T,H,E].

    mask            bool, which keys a token attends to, [S,1,T or 1,T']; None: all
    lengths         int32 [S], at least 1: only the first `lengths` keys count; None: all
    causal          a token attends to itself and to earlier tokens only
    implementation  'xla', 'cudnn', or 'auto': see `choose`
    """
    kernel = choose(implementation, q.shape, q.dtype, mask)
    if kernel == 'cudnn':
        queries, keys = q.shape[1], k.shape[1]
        q, k, v = to_multiple(q), to_multiple(k), to_multiple(v)
        return flash(q, k, v, queries, keys, lengths, causal)[:, :queries]
    if kernel == 'splash':
        return splash.attend(q, k, v, lengths, causal)
    if platform() == 'cpu' and mask is None and lengths is None and not causal and q.dtype == jnp.float32:
        return _on_cpu(q, k, v)
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, key_value_seq_lengths=lengths, is_causal=causal, implementation='xla'
    )


def _on_cpu(q: Array, k: Array, v: Array) -> Array:
    """The plain form for a CPU: one product for each head, divided by the sum of the softmax at the end.

    q [4,257,12,64] takes 9.5 ms on two cores, jax.nn.dot_product_attention 14.6.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scores = jnp.einsum('shqe,shke->shqk', q * q.shape[-1] ** -0.5, k)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    return jnp.swapaxes(jnp.einsum('shqk,shke->shqe', weights, v) / weights.sum(-1, keepdims=True), 1, 2)


def flash(
    q: Array,
    k: Array,
    v: Array,
    queries: int,
    keys: int,
    lengths: Array | None,
    causal: bool,
    implementation: Any = 'cudnn',
) -> Array:
    """Attention by cuDNN's flash kernel for arrays that `to_multiple` filled up with tokens that do not count.

    The first `queries` tokens of q and the first `keys` tokens of k and v count; `lengths` as in `attend`. The result
    has as many tokens as q. Its other tokens are 0, and so are the gradients of the tokens that do not count.
    """
    counts: dict[str, Array] = {}
    if lengths is not None or k.shape[1] != keys or q.shape[1] != queries:
        counts['query_seq_lengths'] = jnp.full((len(q),), queries, jnp.int32)
        counts['key_value_seq_lengths'] = jnp.full((len(q),), keys, jnp.int32) if lengths is None else lengths
    return jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=implementation, **counts)


def choose(implementation: str, queries: tuple[int, ...], dtype: Any, mask: Array | None) -> str:
    """The kernel for queries of a shape [S,T,H,E]: 'cudnn', 'splash' or 'xla'.

    A UserError for 'cudnn' with a mask of single keys or heads of a size that it does not take.
    """
    if implementation == 'xla' or plain_only():
        return 'xla'
    _, tokens, _, size = queries
    head_fits = size % MULTIPLE == 0 and size <= LARGEST_HEAD
    if implementation == 'cudnn':
        if mask is not None:
            raise UserError("attention='cudnn' takes no mask of single keys; attention='auto' does")
        if not head_fits:
            raise UserError(
                f"attention='cudnn': heads have {MULTIPLE}, {2 * MULTIPLE}, … {LARGEST_HEAD} numbers, not {size}; "
                "attention='auto' runs anywhere"
            )
        return 'cudnn'
    if mask is not None:
        return 'xla'
    if platform() == 'tpu':
        return 'splash' if splash.fits(queries) else 'xla'
    fits = head_fits and tokens >= MULTIPLE  # a single query has few scores
    return 'cudnn' if fits and dtype == jnp.bfloat16 and platform() == 'gpu' and _card() >= OLDEST else 'xla'


def to_multiple(x: Array) -> Array:
    """[S,T,…] with zeros after its tokens, so that MULTIPLE divides their number.

    cuDNN's kernel refuses odd numbers of tokens, and a view with a CLS token has an odd number.
    """
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % MULTIPLE), *[(0, 0)] * (x.ndim - 2)))


def _card() -> float:
    """The compute capability of the GPU of this machine; infinite where programs are compiled for another machine."""
    device = jax.local_devices()[0]
    if device.platform != 'gpu':
        return float('inf')
    try:
        return float(device.compute_capability)
    except ValueError:  # the name of an AMD card
        return 0.0


def check(tower: str, attention: str, dtype: str) -> None:
    """A UserError if `attention` cannot run here; `attention` is one of CHOICES."""
    if attention != 'cudnn':
        return
    if platform() != 'gpu' or dtype != 'bfloat16':
        raise UserError(
            f"{tower}: attention='cudnn' needs an NVIDIA GPU and dtype='bfloat16'; attention='auto' runs anywhere"
        )
    if _card() < OLDEST:
        raise UserError(
            f"{tower}: attention='cudnn' needs a card of compute capability {OLDEST} (A100) or newer, and this one has "
            f"{jax.local_devices()[0].compute_capability}; attention='auto' runs anywhere"
        )
