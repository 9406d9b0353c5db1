"""Brightness, contrast and gamma as factors, as world models of images draw them (arXiv 2403.00504, 2504.13820)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.types import is_number
from medjax.views import colour
from medjax.views.geometry import between
from medjax.views.photometric import Photometric


def build(
    brightness: float = 0.4, contrast: float = 0.4, gamma: float = 2.0, share: float = 0.8, per: str = 'crop'
) -> Photometric:
    """x <- clip(b x), then x <- clip(m + c (x - m)) with m the mean of the crop, then x <- x^g.

    b is uniform in 1 +- brightness, c uniform in 1 +- contrast, ln g uniform in +-ln(gamma). A `share` of the crops is
    changed. per='row' draws the three numbers once for all crops of an image.

    CheXWorld has the defaults, and gamma=1, per='row' for the changes that the targets have too.
    """
    for name, value, least in (('brightness', brightness, 0), ('contrast', contrast, 0), ('gamma', gamma, 1)):
        if not is_number(value) or value < least or (name != 'gamma' and value > 1):
            limits = 'of at least 1' if name == 'gamma' else 'from 0 to 1'
            raise UserError(f'photometric.{name}={value!r}: must be a number {limits}')
    if not is_number(share) or not 0 <= share <= 1:
        raise UserError(f'photometric.share={share!r}: must be a share of the crops, from 0 to 1')
    if per not in ('crop', 'row'):
        raise UserError(f"photometric.per={per!r}: must be 'crop' or 'row'")
    return Exposure(brightness, contrast, gamma, share, per)


@dataclasses.dataclass(frozen=True, eq=False)
class Exposure(Photometric):
    brightness: float
    contrast: float
    gamma: float
    share: float
    per: str

    @property
    def numbers(self) -> int:
        return 4

    def draw(self, u: Array) -> dict[str, Array]:
        u = jnp.broadcast_to(u[:1], u.shape).T if self.per == 'row' else u.T
        on, log_gamma = u[3] < self.share, jnp.log(self.gamma)
        return dict(
            brightness=jnp.where(on, between(u[0], (1 - self.brightness, 1 + self.brightness)), 1.0),
            contrast=jnp.where(on, between(u[1], (1 - self.contrast, 1 + self.contrast)), 1.0),
            gamma=jnp.where(on, jnp.exp(between(u[2], (-log_gamma, log_gamma))), 1.0),
        )

    def apply(self, x: Array, p: dict[str, Array]) -> Array:
        x = colour.contrast(colour.brightness(x, p['brightness']), p['contrast'])
        return x if self.gamma == 1 else colour.gamma(x, p['gamma'])
