"""Exposure and display, as they differ between radiographs."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from medjax.views import colour
from medjax.views.geometry import between
from medjax.views.photometric import Photometric


def build(brightness: float = 0.1, contrast: float = 0.25, gamma: float = 0.25, share: float = 0.8) -> Photometric:
    """x <- clip(m + c (x - m) + b)^g, with m the mean of the crop, for a `share` of the crops.

    b is uniform in +-brightness, c uniform in 1 +- contrast, ln g uniform in +-gamma. No colour, no solarising: both
    destroy what grey values mean on a radiograph.
    """
    return Radiograph(brightness, contrast, gamma, share)


@dataclasses.dataclass(frozen=True, eq=False)
class Radiograph(Photometric):
    brightness: float
    contrast: float
    gamma: float
    share: float

    @property
    def numbers(self) -> int:
        return 4

    def draw(self, u: Array) -> dict[str, Array]:
        u = u.T
        on = u[3] < self.share
        return dict(
            brightness=jnp.where(on, between(u[0], (-self.brightness, self.brightness)), 0.0),
            contrast=jnp.where(on, between(u[1], (1 - self.contrast, 1 + self.contrast)), 1.0),
            gamma=jnp.where(on, jnp.exp(between(u[2], (-self.gamma, self.gamma))), 1.0),
        )

    def apply(self, x: Array, p: dict[str, Array]) -> Array:
        return colour.gamma(colour.contrast(x, p['contrast'], p['brightness']), p['gamma'])
