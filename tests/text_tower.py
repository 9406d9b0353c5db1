"""A user's tower in a file of its own: the mean of a text's token embeddings, then one matrix."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from medjax.types import Tower


class MeanTower(Tower):
    sees = 'text'

    def init(self, key):
        one, two = jax.random.split(key)
        return {
            'embedding': jax.random.normal(one, (self.vocabulary, self.width)),
            'kernel': jax.random.normal(two, (self.width, self.width)) / self.width**0.5,
        }

    def encode(self, params, inputs, options):
        ((view, _, _),) = inputs
        tokens = params['embedding'][view.x] * view.valid[..., None]
        mean = tokens.sum(2) / jnp.maximum(view.valid.sum(2), 1)[..., None]
        return {'cls': mean @ params['kernel'], 'tokens': tokens}


def build(
    width: int = 16, vocabulary: int = 400, context: int = 32, channels: int = 1, dtype: str = 'float32'
) -> Tower:
    axes = {'embedding': (None, None), 'kernel': (None, None)}
    return MeanTower(width=width, axes=axes, vocabulary=vocabulary, context=context)
