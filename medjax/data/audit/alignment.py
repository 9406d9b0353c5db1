"""One picture laid upon another: by scale and shift of either axis and by a curve of grey values, then compared.

Pictures are float32 [m,S,S]; a place [m,4] is scale and shift down, scale and shift across: x in [-1,1] over the side
is looked up at scale * x + shift.
"""

from __future__ import annotations

import functools

import numpy as np


def squeezed(pixels: np.ndarray, side: int) -> np.ndarray:
    """float32 [side,side], the mean of the channels, antialiased."""
    from PIL import Image

    grey = pixels[..., 0].astype(np.float32) if pixels.shape[2] == 1 else pixels.mean(2, dtype=np.float32)
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC))


def laid(image: np.ndarray, target: np.ndarray, place: np.ndarray, steps: int) -> np.ndarray:
    """The images warped so that their bands fit those of the targets, from places [m,4] on; the best of all steps."""
    upon = band(target)
    side = target.shape[-1]
    grid = ((np.arange(side) + 0.5) * (2 / side) - 1).astype(np.float32)
    down, across = np.gradient(upon, 2 / side, axis=(1, 2))
    slopes = np.stack([down * grid[:, None], down, across * grid, across], 1).reshape(len(upon), 4, -1)
    square = slopes @ slopes.swapaxes(1, 2)
    square += 1e-3 * np.trace(square, axis1=1, axis2=2)[:, None, None] * np.eye(4, dtype=np.float32)
    best, found = np.full(len(upon), -2, np.float32), np.zeros_like(target)
    for step in range(steps + 1):
        moved = warped(image, place)
        details = band(moved)
        fit = (details * upon).mean((1, 2))
        found = np.where((fit > best)[:, None, None], moved, found)
        best = np.maximum(best, fit)
        if step < steps:
            change = np.linalg.solve(square, slopes @ (details - upon).reshape(len(upon), -1, 1))[..., 0]
            change = np.clip(change, -0.06, 0.06)  # of half a side: no step leaves where the slopes hold
            # image(place(x)) = target(x + change(x)): place becomes place after the inverse of x + change(x)
            scale = place[:, ::2] / (1 + change[:, ::2])
            shift = place[:, 1::2] - scale * change[:, 1::2]
            scale = np.clip(scale, 0.8, 1.02)
            free = np.maximum(1 - scale, 0) + 0.03  # a crop lies within: with more freedom different chests fit
            place = np.stack([scale, np.clip(shift, -free, free)], 2).reshape(-1, 4)
    return found


def agreement(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float32 [m]: correlation of the bands without the 4 of 8 x 8 blocks that differ most."""
    a, b = band(image), band(target)

    def blocks(values: np.ndarray) -> np.ndarray:
        return values.reshape(len(values), 8, values.shape[1] // 8, 8, -1).sum((2, 4)).reshape(len(values), 64)

    kept = np.argsort(blocks((a - b) ** 2), axis=1)[:, :60]
    ab, aa, bb = (np.take_along_axis(blocks(product), kept, 1).sum(1) for product in (a * b, a * a, b * b))
    return ab / np.sqrt(aa * bb + 1e-9)


def curved(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The images after the cubic of their values, in [-1,1], that is nearest to the targets."""
    values = image.reshape(len(image), -1)
    powers = values[:, None] ** np.arange(4, dtype=np.float32)[:, None]
    square = powers @ powers.swapaxes(1, 2)
    square += 1e-5 * np.trace(square, axis1=1, axis2=2)[:, None, None] * np.eye(4, dtype=np.float32)
    curve = np.linalg.solve(square, powers @ target.reshape(len(target), -1, 1))
    return (powers * curve).sum(1).reshape(image.shape)


def band(images: np.ndarray) -> np.ndarray:
    """Details of 1 to 4 pixels, of one strength everywhere, so that a marker does not outweigh; mean 0, deviation 1."""
    fine, coarse = blur(images.shape[-1], 1.0), blur(images.shape[-1], 4.0)
    smooth = fine @ images @ fine.T
    details = smooth - coarse @ smooth @ coarse.T
    strength = np.sqrt(np.maximum(coarse @ (details * details) @ coarse.T, 0))
    details /= strength + 0.3 * strength.mean((1, 2), keepdims=True) + 1e-6
    details -= details.mean((1, 2), keepdims=True)
    return details / (details.std((1, 2), keepdims=True) + 1e-6)


def warped(images: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The images at scale * x + shift of each axis, x in [-1,1] over the side; places [m,4]."""
    side = images.shape[-1]
    return sampling(places[:, :2], side) @ images @ sampling(places[:, 2:], side).swapaxes(1, 2)


def sampling(place: np.ndarray, side: int) -> np.ndarray:
    """[m,2] -> float32 [m,side,side]: linear interpolation at scale * x + shift; beyond the edge is the edge."""
    grid = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    at = np.clip((place[:, :1] * grid + place[:, 1:] + 1) * (side / 2) - 0.5, 0, side - 1)
    return np.maximum(1 - np.abs(at[..., None] - np.arange(side, dtype=np.float32)), 0)


@functools.cache
def blur(side: int, deviation: float) -> np.ndarray:
    """float32 [side,side]: a Gaussian of `deviation` pixels along an axis, of mass one at the edges too."""
    at = np.arange(side)
    weights = np.exp(-0.5 * ((at[:, None] - at) / deviation) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
