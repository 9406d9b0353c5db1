"""Crops as matrix products, against PIL's and torch's antialiased resizing and torch's convolution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from programs import run

from medjax.views import geometry

crop = jax.jit(geometry.crop, static_argnames='size')
NEVER, NONE = np.bool_(False), np.float32(0)


def picture(height, width, channels=1, seed=0):
    return np.random.default_rng(seed).random((height, width, channels), np.float32)


@pytest.mark.parametrize(
    'box',
    [(0, 0, 45, 60), (3, 10, 32, 32), (0.3, 7.8, 20.4, 11.7), (20.5, 30.25, 24.5, 29.75), (40, 55, 5, 5)],
    ids=str,
)
@pytest.mark.parametrize('size', [(16, 16), (32, 20), (98, 98)], ids=str)
def test_crop_and_resize_equal_pil_bicubic(box, size):
    """Also with the picture on a larger canvas whose rest holds nonsense."""
    image = picture(45, 60)
    top, left, height, width = box
    reference = Image.fromarray(image[..., 0]).resize(
        size[::-1], Image.Resampling.BICUBIC, box=(left, top, left + width, top + height)
    )
    canvas = np.full((64, 64, 1), 1e3, np.float32)
    canvas[:45, :60] = image
    got = crop(canvas, np.array([45, 60]), np.array(box, np.float32), size, NEVER, NONE)
    np.testing.assert_allclose(got[..., 0], np.asarray(reference), atol=2e-5)


@pytest.mark.parametrize('size', [(14, 14), (56, 42), (80, 100)], ids=str)
def test_whole_resize_equals_torch_antialiased_bicubic(size):
    torch = pytest.importorskip('torch')
    image = picture(56, 64, channels=3)
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    reference = torch.nn.functional.interpolate(x, size, mode='bicubic', antialias=True)[0].permute(1, 2, 0)
    got = crop(image, np.array([56, 64]), np.array([0, 0, 56, 64], np.float32), size, NEVER, NONE)
    np.testing.assert_allclose(got, reference.numpy(), atol=2e-5)


@pytest.mark.parametrize('sigma', [0.1, 0.7, 2.0])
def test_blur_equals_torch_convolution_of_the_resized_crop(sigma):
    torch = pytest.importorskip('torch')
    image, extent, box = picture(50, 50), np.array([50, 50]), np.array([4, 8, 30, 40], np.float32)
    t = torch.arange(-4.0, 5.0)
    taps = torch.exp(-0.5 * (t / sigma) ** 2)
    kernel = torch.outer(taps, taps) / taps.sum() ** 2
    sharp = torch.from_numpy(np.array(crop(image, extent, box, (24, 32), NEVER, NONE)))[..., 0]
    padded = torch.nn.functional.pad(sharp[None, None], (4, 4, 4, 4), mode='reflect')
    reference = torch.nn.functional.conv2d(padded, kernel[None, None])[0, 0]
    got = crop(image, extent, box, (24, 32), NEVER, np.float32(sigma))[..., 0]
    np.testing.assert_allclose(got, reference.numpy(), atol=2e-5)


def test_flip_mirrors_left_and_right_of_the_same_crop():
    image, extent, box = picture(40, 48), np.array([40, 48]), np.array([3, 5.5, 20, 30], np.float32)
    plain = crop(image, extent, box, (24, 16), NEVER, np.float32(1.5))
    mirrored = crop(image, extent, box, (24, 16), np.bool_(True), np.float32(1.5))
    np.testing.assert_allclose(mirrored, plain[:, ::-1], atol=1e-5)


def test_no_weight_beyond_the_picture():
    """The weights of every output pixel lie on the picture's own pixels and have a sum, wherever the box lies."""
    weights = jax.jit(lambda *args: geometry.axis_weights(*args, 16, 64))
    for start, length, extent in [(0, 30, 30), (25, 5, 30), (12.3, 17.7, 30), (0, 1, 1)]:
        args = np.float32(start), np.float32(length), np.int32(extent), np.arange(16)
        matrix = np.array(weights(*args))
        assert not matrix[:, extent:].any()
        assert matrix.sum(1).min() > 0.5


@functools.partial(jax.jit, static_argnames='size')
def version_1(image, extent, box, size, flip, sigma):
    """A crop as medjax 0.1 made it: one normalised matrix an axis, a sum of nine shifted slices."""

    def matrix(start, length, extent, flip, size, canvas):
        i = jnp.pad(jnp.arange(size), 4, mode='reflect')
        i = jnp.where(flip, size - 1 - i, i)
        scale = length / size
        x = start + (i + 0.5) * scale
        weights = geometry.cubic((jnp.arange(canvas) + 0.5 - x[:, None]) / jnp.maximum(scale, 1.0))
        weights = jnp.where(jnp.arange(canvas) < extent, weights, 0.0)
        weights = weights / weights.sum(axis=1, keepdims=True)
        t = np.arange(9) - 4
        taps = jnp.where(sigma > 0, jnp.exp(-0.5 * (t / jnp.where(sigma > 0, sigma, 1.0)) ** 2), t == 0)
        return sum((taps[k] / taps.sum() * weights[k : k + size] for k in range(9)), jnp.zeros(()))

    down = matrix(box[0], box[2], extent[0], NEVER, size[0], image.shape[0])
    across = matrix(box[1], box[3], extent[1], flip, size[1], image.shape[1])
    rows = jnp.einsum('ih,hwc->iwc', down, image, precision='highest')
    return jnp.einsum('iwc,jw->ijc', rows, across, precision='highest')


@pytest.mark.parametrize('size', [(224, 224), (98, 60), (5, 6)], ids=str)
def test_crops_are_those_of_version_1(size):
    image, extent, rng = picture(256, 240, 3), np.array([250, 231]), np.random.default_rng(2)
    for sigma in (0, 0.1, 1.3, 2):
        length = rng.uniform(40, 200, 2)
        box = np.array([*rng.uniform(0, extent - length), *length], np.float32)
        flip = np.bool_(rng.random() < 0.5)
        expected = version_1(image, extent, box, size, flip, np.float32(sigma))
        for given in [np.float32(sigma)] + [None] * (sigma == 0):
            got = crop(image, extent, box, size, flip, given)
            assert np.abs(got - expected).max() <= 1e-6


def reference_box(rng, height, width, area, aspect):
    """torchvision's RandomResizedCrop.get_params, in other words and without rounding."""
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = np.exp(rng.uniform(*np.log(aspect)))
        w, h = np.sqrt(target * ratio), np.sqrt(target / ratio)
        if w <= width and h <= height:
            return rng.uniform(0, height - h), rng.uniform(0, width - w), h, w
    ratio = np.clip(width / height, *aspect)
    w, h = min(width, height * ratio), min(height, width / ratio)
    return (height - h) / 2, (width - w) / 2, h, w


@pytest.mark.parametrize('extent', [(64, 64), (40, 90), (20, 200)], ids=str)
@pytest.mark.parametrize('area', [(0.32, 1.0), (0.05, 0.32)], ids=str)
def test_boxes_are_distributed_as_torchvisions_and_lie_in_the_picture(extent, area):
    n, aspect = 4000, (3 / 4, 4 / 3)
    u = jax.random.uniform(jax.random.key(0), (n, geometry.TRIES, 4))
    boxes = np.array(run(jax.vmap(lambda u: geometry.random_box(u, jnp.array(extent), area, aspect)), u))
    top, left, height, width = boxes.T
    assert boxes.min() > -1e-4
    assert (top + height).max() < extent[0] + 1e-3
    assert (left + width).max() < extent[1] + 1e-3

    rng = np.random.default_rng(1)
    reference = np.array([reference_box(rng, *extent, area, aspect) for _ in range(n)])
    spread = reference.std(0) + 1e-3 * np.max(extent)
    assert (np.abs(boxes.mean(0) - reference.mean(0)) < 5 * spread / np.sqrt(n / 2)).all()
    np.testing.assert_allclose(boxes.std(0), reference.std(0), rtol=0.06, atol=1e-3 * np.max(extent))
