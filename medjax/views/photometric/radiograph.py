"""Exposure and display, as they differ between radiographs."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from medjax.views.colour import luminance
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
        mean = luminance(x).mean()
        x = jnp.clip(mean + p['contrast'] * (x - mean) + p['brightness'], 0.0, 1.0)
        # exp(g ln x) with a floor far below one grey value of 16 bits: pow(0, g) costs more and has bad derivatives
        return jnp.exp(p['gamma'] * jnp.log(jnp.maximum(x, 1e-7)))
