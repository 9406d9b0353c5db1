"""The smallest text tower, for tests: the mean of the embeddings of the tokens, times one matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medjax.types import Tower


def build(
    width: int = 16, vocabulary: int = 400, context: int = 32, channels: int = 1, dtype: str = 'float32'
) -> Tower:
    def init(key):
        embedding_key, kernel_key = jax.random.split(key)
        return {
            'embedding': jax.random.normal(embedding_key, (vocabulary, width)),
            'kernel': jax.random.normal(kernel_key, (width, width)) / width**0.5,
        }

    def apply(params, view, mask=None, *, train=False, key=None, rows_per_group=1, layers=1):
        tokens = params['embedding'][view.x] * view.valid[..., None]
        mean = tokens.sum(2) / jnp.maximum(view.valid.sum(2), 1)[..., None]
        return {'cls': mean @ params['kernel'], 'tokens': tokens}

    axes = {'embedding': (None, None), 'kernel': (None, None)}
    return Tower(init, axes, apply, width, vocabulary=vocabulary, context=context)
