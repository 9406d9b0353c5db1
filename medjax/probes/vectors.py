"""Unit vectors: the cosine of two features is the product of their unit vectors."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

COSINES = 1 << 24  # in memory at once


def unit(x: np.ndarray) -> np.ndarray:
    """L2-normalises along the last axis, in float32. A vector of zeros stays zero."""
    x = x.astype(np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def nearest(queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k candidates with the greatest cosine to each query: cosines float32 [n,k] and numbers int32 [n,k].

    The greatest comes first, and of equal candidates the first. Args: unit vectors [n,d] and [m,d].
    """
    rows = block_rows(len(queries), len(candidates))
    on_device, found = jnp.asarray(candidates.T), []  # [d,m] in memory: XLA multiplies by it faster on a CPU
    with jax.default_matmul_precision('highest'):
        for start in range(0, len(queries), rows):
            block = queries[start : start + rows]
            filled = np.pad(block, ((0, rows - len(block)), (0, 0)))  # all blocks have one shape, so one program
            found.append([np.asarray(x)[: len(block)] for x in nearest_of_block(filled, on_device, k)])
    return np.concatenate([cosines for cosines, _ in found]), np.concatenate([numbers for _, numbers in found])


def block_rows(queries: int, candidates: int) -> int:
    """Queries of a block: as many in each as can be."""
    most = max(1, COSINES // candidates)
    return -(-queries // -(-queries // most))


@functools.partial(jax.jit, static_argnums=2)
def nearest_of_block(queries: jax.Array, candidates: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    return jax.lax.top_k(queries @ candidates, k)
