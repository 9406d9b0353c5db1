"""The square that an encoder sees of an image, made on the host.

`make.evaluation_view` computes the same on the device, for records: they lie on canvases of one size. Files have any
size. If they went to the device as they are, each size of a canvas would be compiled anew, and one large image would
make the whole batch large. So the threads that decode files also make their squares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.views import geometry
from medjax.views.colour import LUMINANCE

ROWS = 8  # output pixels of one matrix product


def square(pixels: np.ndarray, size: int, image: Mapping[str, Any]) -> np.ndarray:
    """uint8 or uint16 [H,W,1|3] -> float32 [size,size,channels] in [0,1], not yet normalised.

    `image` has channels and perhaps fit and zoom, see `make.evaluation_view`. The two differ by less than 1e-5.
    """
    height, width = pixels.shape[:2]
    extent = np.array([height, width])
    box = geometry.seen_box(extent, image.get('fit', 'crop'), float(image.get('zoom', 1.0)), np)
    x = _resampled(pixels.reshape(height, -1), box[0], box[2], size)  # [size,W*C]
    across = np.ascontiguousarray(x.reshape(size, width, -1).swapaxes(0, 1)).reshape(width, -1)
    x = _resampled(across, box[1], box[3], size).reshape(size, size, -1).swapaxes(0, 1)
    x /= np.iinfo(pixels.dtype).max
    if image['channels'] == 1 and x.shape[2] == 3:
        x = (x @ np.array(LUMINANCE, np.float32))[..., None]
    x = np.clip(x, 0.0, 1.0)
    return np.ascontiguousarray(np.broadcast_to(x, (size, size, image['channels'])))


def _resampled(x: np.ndarray, start: float, length: float, size: int) -> np.ndarray:
    """The piece [start, start + length) of the first axis: [n,m] -> float32 [size,m].

    The weights are those of `geometry.axis_weights`. Output pixels whose centre lies beside the image are 0. An output
    pixel reads few input pixels, so the matrix is a narrow band. ROWS output pixels are one small dense product.
    """
    n, scale = len(x), length / size
    centre = start + (np.arange(size) + 0.5) * scale
    reach = 2 * max(scale, 1.0)
    low = np.clip(np.floor(centre - reach).astype(int), 0, n)
    high = np.clip(np.ceil(centre + reach).astype(int) + 1, 0, n)
    shown = (centre >= 0) & (centre < n)
    out = np.zeros((size, x.shape[1]), np.float32)
    for i in range(0, size, ROWS):
        rows = slice(i, min(i + ROWS, size))
        first, last = low[rows].min(), high[rows].max()
        if not shown[rows].any():
            continue
        j = np.arange(first, last)
        weights = geometry.cubic((j + 0.5 - centre[rows, None]) / max(scale, 1.0), np) * shown[rows, None]
        weights = weights / np.where(shown[rows], weights.sum(1), 1.0)[:, None]
        out[rows] = weights.astype(np.float32) @ x[first:last].astype(np.float32, copy=False)
    return out
