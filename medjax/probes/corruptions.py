"""Corruptions of radiographs: eleven kinds, each at five severities, for tests of robustness.

    corrupted = corruptions.apply('motion', 3, image, seed=0, number=17)

Each kind is a fault that films have: too small a dose, a patient who moves, a marker of lead, a strong compression.
Kinds and severities are ours; the idea of a fixed table is that of ImageNet-C (arXiv 1903.12261) and MedMNIST-C
(2406.17536). The value of a severity stands in the table.

An image has grey values from 0 (black) to 1 (white). Lengths are shares of its shorter side. Noise has the grain of an
image whose shorter side is 224 pixels, and `resolution` counts such pixels: so two encoders that read images at
different sizes are shown the same fault, however large the image is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import simplejpeg
from scipy import ndimage

GRAIN = 224  # pixels of the shorter side
SEVERITIES = (1, 2, 3, 4, 5)
_REFLECT = 'mirror'  # what lies beyond the border of an image

Pixels = np.ndarray  # float64 [H,W,C] in [0,1]


class Corruption(NamedTuple):
    """One kind of corruption."""

    meaning: str  # for people; {} stands for the value of a severity
    values: tuple[float, ...]  # by severity, from 1
    function: Callable[[Pixels, float, np.random.Generator], Pixels]


def apply(kind: str, severity: int, image: np.ndarray, seed: int, number: int) -> np.ndarray:
    """The corrupted image, of the shape and type of `image`: uint8 or uint16 [H,W,C].

    Signs, directions, places and noise are drawn from (seed, number, kind). `number` is that of the record, so a record
    gets the same draws at all severities and for all encoders.
    """
    corruption, white = KINDS[kind], np.iinfo(image.dtype).max
    rng = np.random.default_rng([seed, number, list(KINDS).index(kind)])
    corrupted = corruption.function(image / white, corruption.values[severity - 1], rng)
    return np.rint(np.clip(corrupted, 0, 1) * white).astype(image.dtype)


def meaning(kind: str, severity: int) -> str:
    """For people: 'JPEG of quality 25'."""
    return KINDS[kind].meaning.format(f'{KINDS[kind].values[severity - 1]:g}')


def dose(x: Pixels, photons: float, rng: np.random.Generator) -> Pixels:
    """Quantum noise: counts of Poisson, `photons` where the image is white."""
    grain = np.sqrt(np.clip(x, 0, 1) / photons)  # the deviation of a count, as a share of white
    return x + grain * _noise(x, rng)


def noise(x: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    """Electronic noise: normal, of one deviation everywhere."""
    return x + deviation * _noise(x, rng)


def _noise(x: Pixels, rng: np.random.Generator) -> Pixels:
    """Standard normal numbers, one for each pixel of an image of GRAIN pixels, the same in all channels."""
    shape = _grained(x)
    drawn = rng.standard_normal(shape)
    rows, columns = (np.arange(n) * m // n for n, m in zip(x.shape[:2], shape, strict=True))
    return drawn[rows][:, columns, None]


def _grained(x: Pixels, side: float = GRAIN) -> tuple[int, int]:
    """Height and width of the image if its shorter side had `side` pixels; never more than it has."""
    share = min(1.0, side / min(x.shape[:2]))
    return max(1, round(x.shape[0] * share)), max(1, round(x.shape[1] * share))


def blur(x: Pixels, length: float, rng: np.random.Generator) -> Pixels:
    """A Gaussian whose deviation is `length` of the shorter side: unsharp focus or screen."""
    deviation = length * min(x.shape[:2])
    return ndimage.gaussian_filter(x, (deviation, deviation, 0), mode=_REFLECT)


def motion(x: Pixels, length: float, rng: np.random.Generator) -> Pixels:
    """The mean over a straight movement of `length` of the shorter side, in a random direction."""
    angle, pixels = rng.uniform(0, np.pi), length * min(x.shape[:2])
    places = np.linspace(-0.5, 0.5, max(2, int(np.ceil(pixels)) + 1)) * pixels
    moved = [ndimage.shift(x, (t * np.sin(angle), t * np.cos(angle), 0), order=1, mode=_REFLECT) for t in places]
    return np.mean(moved, 0)


def exposure(x: Pixels, change: float, rng: np.random.Generator) -> Pixels:
    """All grey values rise or fall by `change`."""
    return x + rng.choice([-1, 1]) * change


def contrast(x: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """The distance of grey values from their mean shrinks to `share`."""
    return x.mean() + share * (x - x.mean())


def gamma(x: Pixels, doublings: float, rng: np.random.Generator) -> Pixels:
    """x to the power of 2^±doublings: another curve of film or screen."""
    return np.clip(x, 0, 1) ** (2.0 ** (rng.choice([-1, 1]) * doublings))


def rotation(x: Pixels, degrees: float, rng: np.random.Generator) -> Pixels:
    """A turn to the left or to the right; the corners are black."""
    return ndimage.rotate(x, rng.choice([-1, 1]) * degrees, reshape=False, order=1, mode='constant')


def occlusion(x: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    """A black or white square hides `share` of the image: a marker, a plate, a hand."""
    height, width = x.shape[:2]
    side = np.sqrt(share * height * width)
    h, w = min(height, max(1, round(side))), min(width, max(1, round(side)))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    hidden = x.copy()
    hidden[top : top + h, left : left + w] = rng.choice([0.0, 1.0])
    return hidden


def compression(x: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    """JPEG with this quality, of the image with GRAIN pixels, without loss of colour resolution."""
    small = _resized(x, _grained(x))
    pixels = np.ascontiguousarray(np.rint(np.clip(small, 0, 1) * 255).astype(np.uint8))
    space = 'GRAY' if x.shape[2] == 1 else 'RGB'
    data = simplejpeg.encode_jpeg(pixels, quality=int(quality), colorspace=space, colorsubsampling='444')
    return x + _resized(simplejpeg.decode_jpeg(data, space) / 255 - small, x.shape[:2])  # only the loss is added


def resolution(x: Pixels, side: float, rng: np.random.Generator) -> Pixels:
    """The shorter side is reduced to `side` pixels, then enlarged again."""
    return _resized(_resized(x, _grained(x, side)), x.shape[:2])


def _resized(x: Pixels, shape: tuple[int, int]) -> Pixels:
    """The image with another height and width, by pixels' means where it shrinks and linearly where it grows."""
    for axis, n in enumerate(shape):
        old = x.shape[axis]
        if n < old:  # each new pixel is the mean of the old ones under it
            edges = np.arange(n + 1) * old / n
            total = np.insert(np.cumsum(x, axis), 0, 0, axis)
            whole = np.minimum(edges.astype(int), old - 1)
            part = np.moveaxis(np.moveaxis(np.take(x, whole, axis), axis, -1) * (edges - whole), -1, axis)
            x = np.diff(np.take(total, whole, axis) + part, axis=axis) * n / old
        elif n > old:
            places = np.clip((np.arange(n) + 0.5) * old / n - 0.5, 0, old - 1)
            low = np.minimum(places.astype(int), max(0, old - 2))
            share = np.expand_dims(places - low, tuple(i for i in range(x.ndim) if i != axis))
            x = np.take(x, low, axis) * (1 - share) + np.take(x, np.minimum(low + 1, old - 1), axis) * share
    return x


KINDS: Mapping[str, Corruption] = dict(
    dose=Corruption('{} photons for a white pixel', (500, 200, 80, 30, 12), dose),
    noise=Corruption('normal noise with deviation {} of white', (0.02, 0.05, 0.1, 0.15, 0.25), noise),
    blur=Corruption('Gaussian with deviation {} of the shorter side', (0.004, 0.008, 0.012, 0.02, 0.03), blur),
    motion=Corruption('movement by {} of the shorter side', (0.01, 0.02, 0.04, 0.06, 0.09), motion),
    exposure=Corruption('grey values ±{} of white', (0.05, 0.1, 0.2, 0.3, 0.4), exposure),
    contrast=Corruption('contrast reduced to {}', (0.8, 0.6, 0.45, 0.3, 0.2), contrast),
    gamma=Corruption('power 2^±{}', (0.25, 0.5, 0.75, 1.0, 1.5), gamma),
    rotation=Corruption('turned by ±{} degrees', (2, 5, 10, 20, 30), rotation),
    occlusion=Corruption('{} of the area hidden by a square', (0.01, 0.03, 0.06, 0.12, 0.25), occlusion),
    compression=Corruption('JPEG of quality {}', (50, 25, 15, 8, 4), compression),
    resolution=Corruption('reduced to {} pixels', (128, 96, 64, 48, 32), resolution),
)
