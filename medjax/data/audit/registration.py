"""Registration: aligns one picture with another (scale and shift of each axis), matches their grey values, compares.

Pictures are float32 [m,S,S], m of them at once. A placement [m,4] holds scale and shift downwards, then scale and
shift across. A coordinate x in [-1,1], from edge to edge of the output, reads the picture at scale * x + shift. For
example, a scale of 0.9 with a shift of 0 reads the middle of the picture without a margin of 5 % at each edge.
"""

from __future__ import annotations

import functools

import numpy as np


def to_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resizes pixels [H,W,C] to float32 [side,side] with antialiasing; the channels are averaged."""
    from PIL import Image

    grey = pixels[..., 0].astype(np.float32) if pixels.shape[2] == 1 else pixels.mean(2, dtype=np.float32)
    return np.asarray(Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC))


def align(image: np.ndarray, target: np.ndarray, placement: np.ndarray, steps: int) -> np.ndarray:
    """Warps each image so that its details fit those of its target, and returns the best result of all steps.

    It begins with `placement` and makes Gauss-Newton steps of the inverse compositional kind: the step is computed on
    the target, whose slopes stay the same, and its inverse is applied to the image.
    """
    target_details = band_pass(target)
    side = target.shape[-1]
    grid = ((np.arange(side) + 0.5) * (2 / side) - 1).astype(np.float32)
    down, across = np.gradient(target_details, 2 / side, axis=(1, 2))
    slopes = np.stack([down * grid[:, None], down, across * grid, across], 1).reshape(len(target), 4, -1)
    normal_matrix = slopes @ slopes.swapaxes(1, 2)
    normal_matrix += 1e-3 * np.trace(normal_matrix, axis1=1, axis2=2)[:, None, None] * np.eye(4, dtype=np.float32)
    best_fit, best_image = np.full(len(target), -2, np.float32), np.zeros_like(target)
    for step in range(steps + 1):
        warped = warp(image, placement)
        details = band_pass(warped)
        fit = (details * target_details).mean((1, 2))
        best_image = np.where((fit > best_fit)[:, None, None], warped, best_image)
        best_fit = np.maximum(best_fit, fit)
        if step < steps:
            residual = (details - target_details).reshape(len(target), -1, 1)
            change = np.linalg.solve(normal_matrix, slopes @ residual)[..., 0]
            change = np.clip(change, -0.06, 0.06)  # in units of half a side: the slopes hold only nearby
            # image(placement(x)) = target(x + change(x)), so the new placement is placement((x + change(x))^-1)
            scale = placement[:, ::2] / (1 + change[:, ::2])
            shift = placement[:, 1::2] - scale * change[:, 1::2]
            scale = np.clip(scale, 0.8, 1.02)
            max_shift = np.maximum(1 - scale, 0) + 0.03  # a crop lies within; more freedom makes different chests fit
            placement = np.stack([scale, np.clip(shift, -max_shift, max_shift)], 2).reshape(-1, 4)
    return best_image


def details_correlation(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """float32 [m]: correlation of the details, without the 4 of 8 x 8 blocks that differ most (a marker, perhaps)."""
    a, b = band_pass(image), band_pass(target)

    def block_sums(values: np.ndarray) -> np.ndarray:
        return values.reshape(len(values), 8, values.shape[1] // 8, 8, -1).sum((2, 4)).reshape(len(values), 64)

    kept = np.argsort(block_sums((a - b) ** 2), axis=1)[:, :60]
    ab, aa, bb = (np.take_along_axis(block_sums(product), kept, 1).sum(1) for product in (a * b, a * a, b * b))
    return ab / np.sqrt(aa * bb + 1e-9)


def match_grey_values(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Applies to each image the cubic polynomial of its grey values that brings it nearest to its target.

    Grey values lie in [-1,1].
    """
    values = image.reshape(len(image), -1)
    powers = values[:, None] ** np.arange(4, dtype=np.float32)[:, None]
    normal_matrix = powers @ powers.swapaxes(1, 2)
    normal_matrix += 1e-5 * np.trace(normal_matrix, axis1=1, axis2=2)[:, None, None] * np.eye(4, dtype=np.float32)
    coefficients = np.linalg.solve(normal_matrix, powers @ target.reshape(len(target), -1, 1))
    return (powers * coefficients).sum(1).reshape(image.shape)


def band_pass(images: np.ndarray) -> np.ndarray:
    """The details of 1 to 4 pixels, with mean 0 and deviation 1.

    Their strength is made equal everywhere, so that a bright marker does not outweigh the rest.
    """
    details = blur(images, 1.0)
    details -= blur(details, 4.0)
    strength = blur(details * details, 4.0)
    np.sqrt(np.maximum(strength, 0, out=strength), out=strength)
    strength += 0.3 * strength.mean((-2, -1), keepdims=True)
    strength += 1e-6
    details /= strength
    details -= details.mean((-2, -1), keepdims=True)
    details /= details.std((-2, -1), keepdims=True) + 1e-6
    return details


def warp(images: np.ndarray, placement: np.ndarray) -> np.ndarray:
    """Reads the images at their placements [m,4]."""
    side = images.shape[-1]
    return sampling_matrix(placement[:, :2], side) @ images @ sampling_matrix(placement[:, 2:], side).swapaxes(1, 2)


def sampling_matrix(placement: np.ndarray, side: int) -> np.ndarray:
    """float32 [m,side,side]: linear interpolation along one axis, for its scales and shifts [m,2].

    Positions beyond an edge read the value at the edge.
    """
    grid = (np.arange(side, dtype=np.float32) + 0.5) * (2 / side) - 1
    at = np.clip((placement[:, :1] * grid + placement[:, 1:] + 1) * (side / 2) - 0.5, 0, side - 1)
    return np.maximum(1 - np.abs(at[..., None] - np.arange(side, dtype=np.float32)), 0)


def blur(images: np.ndarray, deviation: float) -> np.ndarray:
    """Blurs [...,S,S] along both axes with a Gaussian of `deviation` pixels."""
    matrix = blur_matrix(images.shape[-1], deviation)
    return matrix @ images @ matrix.T


@functools.cache
def blur_matrix(side: int, deviation: float) -> np.ndarray:
    """float32 [side,side]: a Gaussian of `deviation` pixels along one axis; each row sums to one, at the edges too."""
    at = np.arange(side)
    weights = np.exp(-0.5 * ((at[:, None] - at) / deviation) ** 2)
    weights[weights < 1e-20] = 0.0  # float32 holds smaller ones as subnormal numbers, and products of them take ages
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
