"""Unit vectors, whose products are cosines, and the nearest of them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

CHUNK_ELEMENTS = 1 << 24  # cosines in memory at once


def unit(x: np.ndarray) -> np.ndarray:
    """L2-normalises along the last axis, in float32. A vector of zeros stays zero."""
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest(queries: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """int [n,k]: for each query the numbers of the k candidates with the greatest cosine, the greatest first.

    Args: unit vectors [n,d] and [m,d]. Of equal candidates the first comes first.
    """
    chunk = max(1, min(len(queries), CHUNK_ELEMENTS // len(candidates)))
    with jax.default_matmul_precision('highest'):
        return np.asarray(nearest_in_chunks(jnp.asarray(queries), jnp.asarray(candidates), k, chunk))


@functools.partial(jax.jit, static_argnums=(2, 3))
def nearest_in_chunks(queries: jax.Array, candidates: jax.Array, k: int, chunk: int) -> jax.Array:
    return jax.lax.map(lambda query: jax.lax.top_k(candidates @ query, k)[1], queries, batch_size=chunk)
