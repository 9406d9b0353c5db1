"""A user's tower over towers in a file of its own: the sum of the CLS features of its inputs, each after one matrix."""

from __future__ import annotations

import dataclasses

import jax

from medjax.types import Tower


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SumTower(Tower):
    given: tuple[int, ...]  # the width of each input

    def init(self, key):
        keys = jax.random.split(key, len(self.given))
        return {
            str(i): jax.random.normal(k, (d, self.width)) / d**0.5 for i, (k, d) in enumerate(zip(keys, self.given))
        }

    def encode(self, params, inputs, options):
        features = [
            self.read(x) @ params[str(i)] for i, x in enumerate(inputs) if x is not None
        ]  # absent inputs add nothing
        return {'cls': sum(features)}

    def read(self, x):
        """The CLS feature of one input; of a view itself the mean of its pixels."""
        return x.outputs['cls'] if x.outputs is not None else x.view.image.mean((2, 3, 4), keepdims=True)[..., 0, 0]


def build(reads, width: int = 16, dtype: str = 'float32') -> Tower:
    given = tuple(1 if tower is None else tower.width for tower in reads)
    return SumTower(width=width, axes={str(i): (None, 'embed') for i in range(len(given))}, given=given)
