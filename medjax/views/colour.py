"""Grey values and colours of images: float32 [...,C] in [0,1] with one or three channels."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError

LUMINANCE = (0.299, 0.587, 0.114)


def to_unit(image: Array, channels: int) -> Array:
    """uint8 or uint16 [...,C] -> float32 in [0,1]. With channels=1 a colour image becomes its luminance."""
    x = image.astype(jnp.float32) / jnp.iinfo(image.dtype).max
    return luminance(x) if channels == 1 else x


def normalise(x: Array, channels: int, mean: float | Sequence[float], std: float | Sequence[float]) -> Array:
    """[...,c] in [0,1] -> (x - mean) / std as [...,channels]. With channels=3 a grey image is repeated."""
    x = jnp.broadcast_to(x, (*x.shape[:-1], channels))
    return (x - jnp.asarray(mean)) / jnp.asarray(std)


def luminance(x: Array) -> Array:
    """[...,C] -> [...,1]: .299 R + .587 G + .114 B for three channels, x itself for one."""
    if x.shape[-1] == 1:
        return x
    red, green, blue = jnp.split(x, 3, axis=-1)
    return LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue


def brightness(x: Array, factor: Array) -> Array:
    """[...,C] in [0,1] times a factor, clipped; as PIL."""
    return jnp.clip(factor * x, 0.0, 1.0)


def contrast(x: Array, factor: Array, shift: Array | float = 0.0) -> Array:
    """One picture [H,W,C] in [0,1] with its distance from its mean grey times a factor, then shifted and clipped."""
    mean = luminance(x).mean()
    return jnp.clip(mean + factor * (x - mean) + shift, 0.0, 1.0)


def gamma(x: Array, exponent: Array) -> Array:
    """[...,C] in [0,1] to the power of `exponent`.

    exp(g ln x) with a floor far below one grey value of 16 bits: pow(0, g) costs more and has bad derivatives.
    """
    return jnp.exp(exponent * jnp.log(jnp.maximum(x, 1e-7)))


def per_crop(value: float | Sequence[float], count: int, where: str) -> np.ndarray:
    """A share for each crop of a view, float32 [count], from one number for all crops or from one for each."""
    values = np.asarray(value, np.float32)
    if values.shape not in ((), (count,)) or not ((values >= 0) & (values <= 1)).all():
        raise UserError(f'{where}: one share in 0..1, or one for each of the {count} crops, not {value}')
    return np.broadcast_to(values, (count,))
