"""A user's tower without parameters: its features are the pixels that it is given."""

from __future__ import annotations

from medjax.types import Tower


class GivenTower(Tower):
    def init(self, key):
        return {}

    def encode(self, params, inputs, options):
        (x,) = inputs
        return {'cls': x.view.x.reshape(*x.view.x.shape[:2], -1)}

    def grid(self, size):
        return 1, 1


def build(width: int, channels: int = 1, dtype: str = 'float32') -> Tower:
    return GivenTower(width=width, axes={})
