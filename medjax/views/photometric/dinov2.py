"""DINOv2's colour jitter, grey-scale and solarising (arXiv 2304.07193 and its code)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from medjax.views import colour
from medjax.views.colour import luminance, per_crop
from medjax.views.geometry import between
from medjax.views.photometric import Photometric


def build(
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    jitter: float = 0.8,
    grey: float = 0.2,
    solarise: float | Sequence[float] = 0.0,
) -> Photometric:
    """The changes are drawn for each crop.

    jitter    share of the crops that are scaled by 1 +- brightness, blended with their mean grey by 1 +- contrast, with
              their own grey by 1 +- saturation, and turned by +-hue of a circle
    grey      share of the crops that lose their colour
    solarise  share of the crops that are inverted above 128/255: one number, or one for each crop of the view (DINOv2
              has (0, .2) on its two global crops)

    The four jitters have a fixed order and the original a random one; they commute but for clipping. On one channel
    saturation, hue and grey-scale do nothing.

    DINOv2's blur is not what its code names: the code hands 1 - p to a wrapper that expects p. The published models saw
    (0, .9) of the global crops and .5 of the local crops blurred, not (1, .1) and .5. Give these to `blur` of the view.
    """
    return Dinov2(brightness, contrast, saturation, hue, jitter, grey, solarise)


@dataclasses.dataclass(frozen=True, eq=False)
class Dinov2(Photometric):
    brightness: float
    contrast: float
    saturation: float
    hue: float
    jitter: float
    grey: float
    solarise: float | Sequence[float]

    @property
    def numbers(self) -> int:
        return 7

    def draw(self, u: Array) -> dict[str, Array]:
        u = u.T
        on = u[4] < self.jitter
        return dict(
            brightness=jnp.where(on, between(u[0], (1 - self.brightness, 1 + self.brightness)), 1.0),
            contrast=jnp.where(on, between(u[1], (1 - self.contrast, 1 + self.contrast)), 1.0),
            saturation=jnp.where(on, between(u[2], (1 - self.saturation, 1 + self.saturation)), 1.0),
            hue=jnp.where(on, between(u[3], (-self.hue, self.hue)), 0.0),
            grey=u[5] < self.grey,
            solarise=u[6] < per_crop(self.solarise, u.shape[1], 'solarise'),
        )

    def apply(self, x: Array, p: dict[str, Array]) -> Array:
        x = colour.contrast(colour.brightness(x, p['brightness']), p['contrast'])
        if x.shape[-1] == 3:
            own_grey = luminance(x)
            x = jnp.clip(own_grey + p['saturation'] * (x - own_grey), 0.0, 1.0)
            x = turn_hue(x, p['hue'])
            x = jnp.where(p['grey'], luminance(x), x)
        return jnp.where(p['solarise'] & (x >= 128 / 255), 1.0 - x, x)


def turn_hue(x: Array, turn: Array) -> Array:
    """Adds `turn` (1 is the whole circle) to the hue of [...,3]; value and saturation in the HSV sense stay."""
    red, green, blue = jnp.split(x, 3, axis=-1)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    chroma = value - jnp.minimum(jnp.minimum(red, green), blue)
    sector = jnp.where(
        value == red, green - blue, jnp.where(value == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    )
    hue = sector / jnp.where(chroma > 0, chroma, 1.0) + 6 * turn  # in sixths of the circle
    # a channel is value - chroma clip(min(k, 4 - k), 0, 1), k = (n + hue) mod 6 with n = 5, 3, 1 for red, green, blue
    k = jnp.concatenate([5 + hue, 3 + hue, 1 + hue], axis=-1)
    k = k - 6 * jnp.floor(k / 6)
    return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0.0, 1.0)
