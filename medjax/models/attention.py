"""Attention by the fastest kernel that runs here: the plain form of XLA, or the flash kernel of NVIDIA GPUs.

The plain form writes the scores [S,H,T,T'] to memory several times in each pass. The flash kernel (arXiv 2205.14135)
never writes them. All towers call `attend`; the config key `attention` of a tower chooses the kernel.

On TPUs 'auto' is the plain form.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.models.kernels import plain_only
from medjax.parallel.sharding import platform

CHOICES = ('auto', 'xla', 'cudnn')
MULTIPLE = 8  # the flash kernel takes numbers of tokens that this divides, and head sizes too
LARGEST_HEAD = 128  # numbers of a head, for which the flash kernel has a backward pass on every card
OLDEST = 8.0  # compute capability of the oldest card with the flash kernel: A100


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
    implementation  'xla', 'cudnn', or 'auto': 'cudnn' wherever it runs, else 'xla'
    """
    if implementation == 'auto':
        implementation = 'cudnn' if _flash_runs(q, mask) else 'xla'
    if implementation == 'xla' or plain_only():
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, key_value_seq_lengths=lengths, is_causal=causal, implementation='xla'
        )
    if mask is not None:
        raise UserError("attention='cudnn' takes no mask of single keys; attention='auto' does")
    return padded(q, k, v, lengths, causal, implementation)


def padded(q: Array, k: Array, v: Array, lengths: Array | None, causal: bool, implementation: Any) -> Array:
    """`attend` with the numbers of tokens padded to a multiple of 8; lengths keep the padding out.

    A view with a CLS token has an odd number of tokens, which the flash kernel refuses.
    """
    s, queries, keys = len(q), q.shape[1], k.shape[1]
    q, k, v = _to_multiple(q), _to_multiple(k), _to_multiple(v)
    counts: dict[str, Array] = {}
    if lengths is not None or k.shape[1] != keys or q.shape[1] != queries:
        counts['query_seq_lengths'] = jnp.full((s,), queries, jnp.int32)
        counts['key_value_seq_lengths'] = jnp.full((s,), keys, jnp.int32) if lengths is None else lengths
    y = jax.nn.dot_product_attention(q, k, v, is_causal=causal, implementation=implementation, **counts)
    return y[:, :queries]


def _to_multiple(x: Array) -> Array:
    """[S,T,H,E] with zeros after its tokens, so that MULTIPLE divides their number."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % MULTIPLE), (0, 0), (0, 0)))


def _flash_runs(q: Array, mask: Array | None) -> bool:
    """Whether the flash kernel takes these queries here, and is worth it: a single query has few scores."""
    _, tokens, _, size = q.shape
    fits = size % MULTIPLE == 0 and size <= LARGEST_HEAD and tokens >= MULTIPLE
    return fits and q.dtype == jnp.bfloat16 and mask is None and platform() == 'gpu' and _card() >= OLDEST


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
