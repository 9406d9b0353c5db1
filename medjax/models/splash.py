"""Splash attention, the flash kernel for TPUs that comes with jax, for rows that are split over devices.

The kernel works on blocks of 128 tokens and on heads of 128 numbers, so that short sequences are mostly padding: 257
tokens become 384. One block holds all keys of up to 4,096 tokens, so they are read once. By the compiler's count of
bytes for a TPU v5p, forward and backward pass, 12 heads of 64: 257 tokens 4.76 GB plain and 4.77 GB with this kernel
(80 sequences), 512 tokens 9.5 and 5.4, 577 tokens 13.4 and 7.5; 1,370 tokens 32.9 and 8.6 (40 sequences). So it is used
from 512 tokens on. It was compiled for TPUs and never timed on one.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from medjax.models.kernels import STORED
from medjax.parallel.sharding import per_device, row_shards, shards

FEWEST = 512  # tokens
LANES = 128  # tokens of the smallest block, and numbers of a head
LARGEST_BLOCK = 512  # tokens of a block of queries
LARGEST_KEYS = 4096  # tokens of the block of all keys
LARGEST_SCORES = 2**19  # scores that a device computes at once: 2 MiB of its memory on the chip


def fits(queries: tuple[int, ...]) -> bool:
    """Whether the kernel is worth it for queries of a shape [S,T,H,E], and each device has whole rows and heads."""
    sequences, tokens, heads, size = queries
    whole = sequences % row_shards() == 0 and heads % shards('heads') == 0
    return tokens >= FEWEST and size <= LANES and whole


def attend(q: Array, k: Array, v: Array, lengths: Array | None, causal: bool, interpret: bool = False) -> Array:
    """softmax(q k^T / sqrt(E)) v for q [S,T,H,E] and k, v [S,T',H,E]: [S,T,H,E]; `lengths` as in `attention.attend`.

    `interpret` runs the kernel on a CPU, slowly, for tests.
    """
    # here, because only TPUs need it and its place in jax may change
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    s, queries, _, size = q.shape
    keys = k.shape[1]
    lengths = jnp.full((s,), keys, jnp.int32) if lengths is None else lengths
    q = q * size**-0.5

    def local(q: Array, k: Array, v: Array, lengths: Array) -> Array:
        """Attention of the rows and heads of one device."""
        q, k, v = _to_blocks(q), _to_blocks(k), _to_blocks(v)
        kernel = _kernel(q.shape[1], q.shape[2], k.shape[2], causal, interpret)
        # tokens of one segment attend to each other: the keys that count are 0, the others 1
        counted = jnp.zeros((len(q), q.shape[2]), jnp.int32)
        others = (jnp.arange(k.shape[2]) >= lengths[:, None]).astype(jnp.int32)
        return jax.vmap(kernel)(q, k, v, SegmentIds(counted, others))

    given = ('rows', None, 'heads', None)
    run = per_device(local, (given, given, given, ('rows',)), ('rows', 'heads', None, None))
    return run(q, k, v, lengths).swapaxes(1, 2)[:, :queries, :, :size]


def _kernel(heads: int, queries: int, keys: int, causal: bool, interpret: bool) -> Callable[..., Array]:
    from jax.experimental.pallas.ops.tpu import splash_attention as kernels

    one = kernels.CausalMask((queries, keys)) if causal else kernels.FullMask((queries, keys))
    of_queries, of_keys = _block(queries, LARGEST_BLOCK), _block(keys, LARGEST_KEYS)
    at_once = _block(of_keys, LARGEST_SCORES // of_queries)
    sizes = kernels.BlockSizes(
        block_q=of_queries, block_kv=of_keys, block_kv_compute=at_once,
        block_q_dkv=of_queries, block_kv_dkv=of_keys, block_kv_dkv_compute=at_once,
        block_q_dq=of_queries, block_kv_dq=of_keys,
    )  # fmt: skip
    return kernels.make_splash_mha(
        kernels.MultiHeadMask([one] * heads),
        block_sizes=sizes,
        head_shards=1,
        q_seq_shards=1,
        residual_checkpoint_name=STORED,
        interpret=interpret,
    )


def _block(tokens: int, most: int) -> int:
    """The largest block of at most `most` tokens that divides the tokens, a multiple of LANES as they are."""
    return next(size for size in range(most // LANES * LANES, 0, -LANES) if tokens % size == 0)


def _to_blocks(x: Array) -> Array:
    """[S,T,H,E] -> [S,H,T',E'] with zeros after its tokens and numbers, in whole blocks."""
    _, tokens, _, size = x.shape
    return jnp.pad(x, ((0, 0), (0, -tokens % LANES), (0, 0), (0, -size % LANES))).swapaxes(1, 2)
