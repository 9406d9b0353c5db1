"""The memory of a chip by what it holds, from shapes and shardings alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax

from medjax.types import TrainState

PARTS = ('parameters', 'moments', 'teachers', 'other state')


def state_bytes(state: TrainState, shardings: TrainState | None = None) -> dict[str, int]:
    """Bytes of a state by part: on one chip under these shardings, or of the whole state without them.

    `state` has arrays or their shapes. All chips hold equally much, because an axis is split evenly or not at all.
    """
    sizes = jax.tree.map(_bytes, state) if shardings is None else jax.tree.map(_bytes, state, shardings)
    found = dict(parameters=_sum(sizes.params), moments=_sum(sizes.opt), teachers=_sum(sizes.aux.get('teachers', {})))
    return {**found, 'other state': _sum(sizes) - sum(found.values())}


def batch_bytes(batch: Any, sharding: Any) -> int:
    """Bytes of the batch on one chip."""
    return _sum(jax.tree.map(lambda x: _bytes(x, sharding), batch))


def by_part(facts_state: Mapping[str, int], batch: int, peak: int, arguments: int) -> dict[str, int]:
    """What a chip holds at the worst moment of a step: the state, the batch, and what the step itself makes.

    peak, arguments   of the compiled program. On a TPU arrays are filled up to whole tiles, so that its arguments are
                      more than state and batch.
    """
    filling = max(arguments - sum(facts_state.values()) - batch, 0)
    parts = {**facts_state, 'batch': batch, 'filling of tiles': filling}
    return {**parts, 'activations and temporaries': max(peak - sum(parts.values()), 0)}


def _sum(tree: Any) -> int:
    return sum(jax.tree.leaves(tree))


def _bytes(x: Any, sharding: Any = None) -> int:
    """Of an array on one chip. A random key has the bytes of its numbers."""
    shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
    return math.prod(shape) * x.dtype.itemsize
