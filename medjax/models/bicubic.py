"""Grids of vectors resized as torch's bicubic mode does: position embeddings, and patches of a teacher."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array


def cubic_weights(size: int, out: int, antialias: bool, offset: float) -> np.ndarray:
    """The matrix [out,size] that interpolates `size` samples to `out` samples as torch's bicubic mode does; float32.

    Output i lies at position (i + .5) * size / (out + offset) - .5 of the source. Each row sums to 1. Without
    antialiasing a row has four taps of the cubic kernel with a = -.75, and taps outside of the source use its border.
    With antialiasing a = -.5, the kernel is widened by `scale` if `out` is smaller than `size`, and taps outside of the
    source are left out before the row is normalised. The first DINO code had the offset .1, and models that were
    trained with that code need the same offset.
    """
    scale = size / (out + offset)
    source = (np.arange(out) + 0.5) * scale - 0.5
    if not antialias:
        taps = np.floor(source)[:, None] + np.arange(-1, 3)
        weights = cubic_kernel(source[:, None] - taps, a=-0.75)
        matrix = np.zeros((out, size))
        np.add.at(matrix, (np.arange(out)[:, None], np.clip(taps, 0, size - 1).astype(int)), weights)
    else:
        matrix = cubic_kernel((source[:, None] - np.arange(size)) / max(scale, 1.0), a=-0.5)
        matrix /= matrix.sum(1, keepdims=True)
    return matrix.astype(np.float32)


# views/geometry.py has the same kernel for crops. Neither can replace the other: crops differ from row to row, so their
# kernel is computed by jax in float32 with a = -.5. This one is computed by numpy in float64 while jax traces.
def cubic_kernel(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel with the parameter a; zero from distance 2 on."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))


def resize_grid(grid: Array, shape: tuple[int, int], antialias: bool, offset: float) -> Array:
    """A grid of vectors [...,h0,w0,D] resized to the grid `shape`: [...,h,w,D]. The same shape changes nothing."""
    if grid.shape[-3:-1] == shape:
        return grid
    rows, columns = (cubic_weights(n, m, antialias, offset) for n, m in zip(grid.shape[-3:-1], shape, strict=True))
    return jnp.einsum('yh,xw,...hwd->...yxd', rows, columns, grid, precision='highest')
