"""The square that an encoder sees of an image, made on the host.

`make.evaluation_view` computes the same on the device, for records: they lie on canvases of one size. Files have any
size. If they went to the device as they are, each size of a canvas would be compiled anew, and one large image would
make the whole batch large. So the threads that decode files also make their squares.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse

from medjax.views import geometry
from medjax.views.colour import LUMINANCE


def square(pixels: np.ndarray, size: int, image: Mapping[str, Any]) -> np.ndarray:
    """uint8 or uint16 [H,W,1|3] -> float32 [size,size,channels] in [0,1], not yet normalised.

    `image` has channels and perhaps fit and zoom, see `make.evaluation_view`. The two differ by less than 1e-5.
    """
    height, width = pixels.shape[:2]
    extent = np.array([height, width])
    box = geometry.seen_box(extent, image.get('fit', 'crop'), float(image.get('zoom', 1.0)), np)
    down = _matrix(height, float(box[0]), float(box[2]), size)
    along = _matrix(width, float(box[1]), float(box[3]), size)
    x = down @ pixels.reshape(height, -1).astype(np.float32)  # [size,W*C]
    across = np.ascontiguousarray(x.reshape(size, width, -1).swapaxes(0, 1)).reshape(width, -1)
    x = (along @ across).reshape(size, size, -1).swapaxes(0, 1)
    x /= np.iinfo(pixels.dtype).max
    if image['channels'] == 1 and x.shape[2] == 3:
        x = (x @ np.array(LUMINANCE, np.float32))[..., None]
    x = np.clip(x, 0.0, 1.0)
    return np.ascontiguousarray(np.broadcast_to(x, (size, size, image['channels'])))


@functools.lru_cache(maxsize=64)  # files of one data set often have one size
def _matrix(n: int, start: float, length: float, size: int) -> scipy.sparse.csr_array:
    """The weights [size,n] that resample the piece [start, start + length) of n pixels, as `geometry.axis_weights`.

    Output pixels whose centre lies beside the image are 0. An output pixel reads few input pixels, so most weights are
    0 and are not stored.
    """
    scale = length / size
    centre = start + (np.arange(size) + 0.5) * scale
    reach = 2 * max(scale, 1.0)
    j = np.floor(centre - reach)[:, None] + np.arange(int(2 * reach) + 3)
    weights = geometry.cubic((j + 0.5 - centre[:, None]) / max(scale, 1.0), np)
    weights *= (j >= 0) & (j < n) & ((centre >= 0) & (centre < n))[:, None]
    total = weights.sum(1, keepdims=True)
    weights /= np.where(total == 0, 1.0, total)
    row, column = np.nonzero(weights)
    entries = weights[row, column].astype(np.float32)
    return scipy.sparse.csr_array((entries, (row, j[row, column].astype(int))), shape=(size, n))
