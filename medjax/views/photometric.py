"""Random changes of grey values and colours: the sets that a view can name.

A set is two pure functions, `draw` and `apply`. Parameters are drawn apart from being used, so that they travel in the
view's meta. Images are float32 [H,W,C] in [0,1] with one or three channels. Blur is not here: it is part of the
crop's matrix (geometry.py), which for these sets means before and not after them; grey-value changes and blur
commute but for the clipping to [0,1] and for gamma. How often DINOv2 blurs is not what its code names: that hands 1 - p
to a wrapper that expects p, so the published models saw (0, .9) of the global crops and .5 of the local ones blurred,
not (1, .1) and .5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError, suggest
from medjax.plugins import call
from medjax.views.geometry import between

LUMINANCE = (0.299, 0.587, 0.114)


class Photometric(NamedTuple):
    numbers: int  # n
    draw: Callable[[Array], dict[str, Array]]  # u uniform [V,n] -> parameters of V crops, each [V]
    apply: Callable[[Array, dict[str, Array]], Array]  # ([H,W,C], one crop's parameters) -> [H,W,C]


def radiograph(brightness: float = 0.1, contrast: float = 0.25, gamma: float = 0.25, share: float = 0.8) -> Photometric:
    """Exposure and display as they differ between radiographs: x <- clip(m + c (x - m) + b)^g, m the crop's mean.

    b is uniform in +-brightness, c in 1 +- contrast, ln g in +-gamma; a `share` of the crops is changed. No colour,
    no solarising: both destroy what grey values mean on a radiograph.
    """

    def draw(u: Array) -> dict[str, Array]:
        u = u.T
        on = u[3] < share
        return dict(
            brightness=jnp.where(on, between(u[0], (-brightness, brightness)), 0.0),
            contrast=jnp.where(on, between(u[1], (1 - contrast, 1 + contrast)), 1.0),
            gamma=jnp.where(on, jnp.exp(between(u[2], (-gamma, gamma))), 1.0),
        )

    def apply(x: Array, p: dict[str, Array]) -> Array:
        mean = luminance(x).mean()
        x = jnp.clip(mean + p['contrast'] * (x - mean) + p['brightness'], 0.0, 1.0)
        # exp(g ln x) with a floor far below one grey value of 16 bits: pow(0, g) costs more and has bad derivatives
        return jnp.exp(p['gamma'] * jnp.log(jnp.maximum(x, 1e-7)))

    return Photometric(4, draw, apply)


def dinov2(
    brightness: float = 0.4,
    contrast: float = 0.4,
    saturation: float = 0.2,
    hue: float = 0.1,
    jitter: float = 0.8,
    grey: float = 0.2,
    solarise: float | Sequence[float] = 0.0,
) -> Photometric:
    """DINOv2's colour jitter, grey-scale and solarising (arXiv 2304.07193 and its code), drawn for each crop.

    A share `jitter` of the crops is scaled by 1 +- brightness, blended with its mean grey by 1 +- contrast, with its
    own grey by 1 +- saturation, and turned by +-hue of a circle; a share `grey` loses its colour; a share `solarise`
    (one number, or one for each crop of the view: DINOv2 has (0, .2) on its two globals) is inverted above 128/255.
    The four jitters come in this order, not in a random one: they commute but for clipping. On one channel
    saturation, hue and grey-scale do nothing.
    """

    def draw(u: Array) -> dict[str, Array]:
        u = u.T
        on = u[4] < jitter
        return dict(
            brightness=jnp.where(on, between(u[0], (1 - brightness, 1 + brightness)), 1.0),
            contrast=jnp.where(on, between(u[1], (1 - contrast, 1 + contrast)), 1.0),
            saturation=jnp.where(on, between(u[2], (1 - saturation, 1 + saturation)), 1.0),
            hue=jnp.where(on, between(u[3], (-hue, hue)), 0.0),
            grey=u[5] < grey,
            solarise=u[6] < per_crop(solarise, u.shape[1], 'solarise'),
        )

    def apply(x: Array, p: dict[str, Array]) -> Array:
        x = jnp.clip(p['brightness'] * x, 0.0, 1.0)
        mean = luminance(x).mean()
        x = jnp.clip(mean + p['contrast'] * (x - mean), 0.0, 1.0)
        if x.shape[-1] == 3:
            own_grey = luminance(x)
            x = jnp.clip(own_grey + p['saturation'] * (x - own_grey), 0.0, 1.0)
            x = turn_hue(x, p['hue'])
            x = jnp.where(p['grey'], luminance(x), x)
        return jnp.where(p['solarise'] & (x >= 128 / 255), 1.0 - x, x)

    return Photometric(7, draw, apply)


def nothing() -> Photometric:
    """Leaves the grey values alone."""
    return Photometric(0, lambda u: {}, lambda x, p: x)


SETS: dict[str, Callable[..., Photometric]] = {'radiograph': radiograph, 'dinov2': dinov2}


def find_set(cfg: str | Mapping[str, Any] | None, where: str) -> Photometric:
    """The set that a view names: 'radiograph', dict(set='radiograph', gamma=.1) with its parameters, or None."""
    if cfg is None:
        return nothing()
    given = dict(cfg) if isinstance(cfg, Mapping) else {'set': cfg}
    name = given.pop('set', None)
    if name not in SETS:
        raise UserError(f'{where}: there is no photometric set {name!r}{suggest(str(name), SETS)}')
    return call(SETS[name], given, where)


def per_crop(value: float | Sequence[float], count: int, where: str) -> np.ndarray:
    """A share given as one number for all crops of a view, or as one for each: float32 [count]."""
    values = np.asarray(value, np.float32)
    if values.shape not in ((), (count,)) or not ((values >= 0) & (values <= 1)).all():
        raise UserError(f'{where}: one share in 0..1, or one for each of the {count} crops, not {value}')
    return np.broadcast_to(values, (count,))


def luminance(x: Array) -> Array:
    """[...,C] -> [...,1]: .299 R + .587 G + .114 B of three channels, the value itself of one."""
    if x.shape[-1] == 1:
        return x
    red, green, blue = jnp.split(x, 3, axis=-1)
    return LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue


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
