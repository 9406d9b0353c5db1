"""The box of a crop, and the matrices for each axis that cut, resize, flip and blur it.

Cropping, antialiased resizing, flipping and Gaussian blur are all linear along each axis, so a crop is
`By Wy @ image @ Wx^T Bx^T` with weights Wy [height out, height in] and Wx [width out, width in], and blurs By and Bx:
matrix products that run on tensor cores, without a gather, and with static shapes for any crop. Lengths are in image
pixels, pixel j covers [j, j+1), a box is (top, left, height, width).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

TRIES = 10  # boxes drawn before the centred fallback, as in torchvision
BLUR_TAPS = 9  # the blur kernel of DINOv2


def random_box(u: Array, extent: Array, area: tuple[float, float], aspect: tuple[float, float]) -> Array:
    """The box float32 [4] of a random-resized crop inside an image of `extent` [2] (height, width).

    u [TRIES,4] is uniform in [0,1). The share of the image's area is uniform in `area`, width / height is log-uniform
    in `aspect`. The first of ten draws that fits is placed uniformly. If none fits, the box is the largest centred one
    with an allowed aspect. This is the distribution of torchvision's RandomResizedCrop, without its rounding to whole
    pixels.
    """
    full_height, full_width = extent[0].astype(jnp.float32), extent[1].astype(jnp.float32)
    root_area = jnp.sqrt(between(u[:, 0], area) * full_height * full_width)
    root_ratio = jnp.exp(0.5 * between(u[:, 1], (jnp.log(aspect[0]), jnp.log(aspect[1]))))
    height, width = root_area / root_ratio, root_area * root_ratio
    fits = (height <= full_height) & (width <= full_width)
    top, left = u[:, 2] * (full_height - height), u[:, 3] * (full_width - width)
    drawn = jnp.stack([top, left, height, width])[:, jnp.argmax(fits)]

    height = jnp.minimum(full_height, full_width / aspect[0])
    width = jnp.minimum(full_width, full_height * aspect[1])
    centred = jnp.stack([(full_height - height) / 2, (full_width - width) / 2, height, width])
    return jnp.where(fits.any(), drawn, centred)


def placed(size: Array, extent: Array, u: Array) -> Array:
    """Boxes [n,4] of one size [2] at places from u [n,2], uniform in [0,1), inside an image of `extent` [2]."""
    corners = u * (extent - size)
    return jnp.concatenate([corners, jnp.broadcast_to(size, corners.shape)], axis=1)


def seen_box(extent: Any, fit: str, zoom: float = 1.0, xp: Any = jnp) -> Any:
    """The box float32 [4] that an encoder sees of an image of `extent` [2] (height, width).

    fit   'crop': the centre square. 'pad': the square around the whole image, which lies partly beside it. 'stretch':
          the whole image, whose height and width are resized each for itself
    zoom  the encoder sees the centre of this box, 1 / zoom of its height and width
    xp    jax.numpy, or numpy for a result of numpy
    """
    height, width = extent[0].astype(xp.float32), extent[1].astype(xp.float32)
    if fit == 'stretch':
        tall, wide = height, width
    else:
        tall = wide = (xp.minimum if fit == 'crop' else xp.maximum)(height, width)
    if zoom != 1:
        tall, wide = tall / zoom, wide / zoom
    return xp.stack([(height - tall) / 2, (width - wide) / 2, tall, wide])


def crop(image: Array, extent: Array, box: Array, size: tuple[int, int], flip: Array, sigma: Array | None) -> Array:
    """Cuts `box` [4] out of one image [H,W,C] and resizes it to `size`: float32 [h,w,C], which may overshoot.

    `extent` [2] is the height and width of the image on its canvas; nothing outside is read. `flip` (bool) mirrors left
    and right; `sigma` is the standard deviation of a Gaussian blur in output pixels, 0 or None for none.

    The image is multiplied by the weights first and divided by their sums afterwards. A matrix whose rows are summed,
    divided and sliced before the product is one fusion for XLA:GPU, which compiles for minutes.
    """
    height, width = size
    i, j = jnp.arange(height), jnp.arange(width)
    down = axis_weights(box[0], box[2], extent[0], i, height, image.shape[0])
    across = axis_weights(box[1], box[3], extent[1], jnp.where(flip, width - 1 - j, j), width, image.shape[1])
    x = _product('ih,hwc->iwc', down, image) / down.sum(1)[:, None, None]
    x = _product('jw,iwc->ijc', across, x) / across.sum(1)[:, None]
    if sigma is None:
        return x
    x = _product('pi,ijc->pjc', blur_matrix(sigma, height), x)
    return _product('qj,pjc->pqc', blur_matrix(sigma, width), x)


def padded(image: Array, extent: Array, size: int, zoom: float = 1.0) -> Array:
    """The whole image [H,W,C] in the middle of a black square: float32 [size,size,C], which may overshoot.

    Its longer side is resized to `size` times `zoom`, and the centre is kept. `extent` [2] is the height and width of
    the image on its canvas.
    """
    box, i = seen_box(extent, 'pad', zoom), jnp.arange(size)

    def axis(start: Array, side: Array, length: Array, canvas: int) -> tuple[Array, Array]:
        """The weights of an axis [size,canvas], and which output pixels lie on the image [size]."""
        centre = start + (i + 0.5) * side / size
        return axis_weights(start, side, length, i, size, canvas), (centre >= 0) & (centre < length)

    down, shown_down = axis(box[0], box[2], extent[0], image.shape[0])
    across, shown_across = axis(box[1], box[3], extent[1], image.shape[1])
    x = _product('ih,hwc->iwc', down, image) / jnp.where(shown_down, down.sum(1), 1.0)[:, None, None]
    x = _product('jw,iwc->ijc', across, x) / jnp.where(shown_across, across.sum(1), 1.0)[:, None]
    return jnp.where((shown_down[:, None] & shown_across)[..., None], x, 0.0)


def covered(planes: Array, extent: Array, box: Array, cells: tuple[int, int], flip: Array) -> tuple[Array, Array]:
    """The share of each cell of a crop that structures cover, float32 [K,h,w], and that lies on the image, [h,w].

    `planes` bool [K,H,W] are the structures of one image, which has the `extent` [2] on its canvas. `box` is cut into
    `cells` (h, w) of equal size, and `flip` mirrors them, as in `crop`. A cell beside the image has the shares 0.
    """
    i, j = jnp.arange(cells[0]), jnp.arange(cells[1])
    down = _cover(box[0], box[2], extent[0], i, cells[0], planes.shape[1])
    across = _cover(box[1], box[3], extent[1], jnp.where(flip, cells[1] - 1 - j, j), cells[1], planes.shape[2])
    on_image = down.sum(1)[:, None] * across.sum(1)
    shown = _product('jw,kiw->kij', across, _product('ih,khw->kiw', down, planes.astype(jnp.float32)))
    return shown / jnp.where(on_image > 0, on_image, 1.0), on_image


def _cover(start: Array, length: Array, extent: Array, i: Array, cells: int, canvas: int) -> Array:
    """float32 [len(i),canvas]: the share of each cell `i` of an axis that each pixel covers, 0 beyond `extent`."""
    j, size = jnp.arange(canvas), length / cells
    low = (start + i * size)[:, None]
    overlap = jnp.minimum(low + size, j + 1) - jnp.maximum(low, j)
    return jnp.where(j < extent, jnp.maximum(overlap, 0.0) / size, 0.0)


def _product(form: str, matrix: Array, x: Array) -> Array:
    # HIGHEST, because the default of accelerators (bf16 or TF32 passes) keeps 8 to 10 bits of a grey value, less than
    # a radiograph has. For grey images of 256 px the products have .4 GFLOP an image, where a ViT-B step has 448.
    return jnp.einsum(form, matrix, x, precision='highest')


def axis_weights(start: Array, length: Array, extent: Array, i: Array, size: int, canvas: int) -> Array:
    """The weights float32 [len(i),canvas] with which output pixels `i` read an axis; rows do not sum to 1.

    The piece [start, start + length) of the axis is resampled to `size` pixels. Row i holds k((j + .5 - x_i) / s) over
    pixels j: x_i = start + (i + .5) length / size is where output pixel i looks, s = max(length / size, 1) widens the
    kernel when it shrinks (antialias), and k is the cubic kernel with a = -.5 (what PIL and torch use for antialiased
    bicubic resizing). Pixels at or beyond `extent` get no weight.
    """
    j, scale = jnp.arange(canvas), length / size
    x = start + (i + 0.5) * scale
    weights = cubic((j + 0.5 - x[:, None]) / jnp.maximum(scale, 1.0))
    return jnp.where(j < extent, weights, 0.0)


def blur_matrix(sigma: Array, size: int) -> Array:
    """The matrix float32 [size,size] of a Gaussian of nine taps over an axis, reflected at both ends.

    Taps are exp(-d^2 / 2 sigma^2), divided by their sum; the identity where sigma is 0. Every element is a formula of
    its row and column, without padding and slices, so that it compiles fast on GPUs. `size` is at least 5.
    """
    half = BLUR_TAPS // 2

    def tap(d: Array) -> Array:
        taps = jnp.where(sigma > 0, jnp.exp(-0.5 * (d / jnp.where(sigma > 0, sigma, 1.0)) ** 2), d == 0)
        return jnp.where(jnp.abs(d) <= half, taps, 0.0)

    i, p = jnp.arange(size)[:, None], jnp.arange(size)
    # pixel p is also what lies beyond the ends, at -p and at 2 (size - 1) - p
    low = jnp.where(p > 0, tap(i + p), 0.0)
    high = jnp.where(p < size - 1, tap(2 * (size - 1) - i - p), 0.0)
    return (tap(i - p) + low + high) / tap(jnp.arange(-half, half + 1)).sum()


def cubic(x: Any, xp: Any = jnp) -> Any:
    """Keys' cubic convolution kernel, a = -.5; zero beyond 2. `xp` is jax.numpy or numpy."""
    x = xp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return xp.where(x < 1, near, xp.where(x < 2, far, 0.0))


def between(u: Array, limits: tuple) -> Array:
    """A number between the two limits, from u in [0,1)."""
    return limits[0] + u * (limits[1] - limits[0])
