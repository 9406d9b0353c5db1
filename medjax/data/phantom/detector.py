"""From line integrals to a stored picture: pose, Beer-Lambert, scatter, noise, blur, and what the site makes of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medjax.data.phantom.projection import Camera


class Site(NamedTuple):
    """A detector and the processing behind it."""

    photons: float  # per cm² of an open field
    blur: float  # standard deviation in cm
    scatter: float  # share of the broad haze
    film: bool  # a sigmoid in the logarithm, as film has it, or the logarithm in a window


SITES = {
    'alder': Site(photons=1.5e6, blur=0.06, scatter=0.04, film=False),
    'birch': Site(photons=5e5, blur=0.11, scatter=0.07, film=True),
}
PROJECTIONS = {  # directions u, v, w in the world (x left, y down, z back); a frontal picture faces the viewer
    'PA': ((1, 0, 0), (0, 1, 0), (0, 0, -1)),
    'AP': ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    'lateral': ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
}


class Pose(NamedTuple):
    projection: str  # a name in PROJECTIONS
    angles: tuple[float, float, float]  # radians: about the body's axis, in the picture, forward
    shift: tuple[float, float]  # cm, in the picture
    field: float  # cm across the picture, at the isocentre
    distance: float  # cm from the source to the isocentre


SPREAD = {  # of patients before the detector: cm that they stand or lie off centre, and the angles' deviations
    'PA': (5.5, (0.12, 0.035, 0.08)),
    'AP': (7.0, (0.15, 0.07, 0.10)),  # in bed
    'lateral': (5.5, (0.12, 0.035, 0.08)),
}


class Exposure(NamedTuple):
    amount: float  # of photons, relative
    level: float  # line integral that is shown as middle grey, above the mean in the middle of the picture
    width: float  # range of line integrals from black to white


def draw_pose(rng: np.random.Generator, projection: str, chest: float) -> Pose:
    """`chest`: the scale of the body, to which the field is set.

    The spreads give two frontal pictures of 64 px the mean correlation that two real ones have (BUILD_NOTES.md).
    """
    reach, angles = SPREAD[projection]
    turn, roll, tip = rng.normal(0, angles)
    shift = rng.uniform(-reach, reach, 2)
    distance = dict(PA=165.0, AP=100.0, lateral=160.0)[projection]
    return Pose(projection, (turn, roll, tip), (shift[0], shift[1] + 2.5), chest * rng.uniform(29, 50), distance)


def draw_exposure(rng: np.random.Generator, site: Site) -> Exposure:
    return Exposure(
        float(np.exp(rng.normal(0, 0.35))),
        rng.normal(0.1, 0.25),
        np.exp(rng.normal(0, 0.14)) * (4.6 if site.film else 4.4),
    )


def camera(pose: Pose, size: int) -> Camera:
    """Pixels are squares of field / size; the isocentre is the origin."""
    turn, roll, tip = pose.angles
    (ct, cr, cp), (st, sr, sp) = np.cos(pose.angles), np.sin(pose.angles)
    about_body = np.array([[ct, 0, st], [0, 1, 0], [-st, 0, ct]])
    in_picture = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    forward = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    axes = in_picture @ forward @ np.array(PROJECTIONS[pose.projection], float) @ about_body
    grid = ((np.arange(size) + 0.5) / size - 0.5) * pose.field
    u, v = ((grid + shift) / pose.distance for shift in pose.shift)
    return Camera(-pose.distance * axes[2], axes, pose.distance, u.astype(np.float32), v.astype(np.float32))


def transmit(path: np.ndarray) -> np.ndarray:
    """Beer-Lambert: the share exp(-∫ mu dl) of the photons that arrives."""
    return np.exp(-path)


def expose(path: np.ndarray, site: Site, exposure: Exposure, pixel: float, rng: np.random.Generator) -> np.ndarray:
    """-> brightness in [0,1], float32 [H,W], dense tissue bright. `pixel` is the side of a pixel in cm.

    Photons arrive with the haze of scatter, with a normal approximation of Poisson noise, and are blurred.
    """
    direct = transmit(path)
    arrived = direct + np.float32(site.scatter) * _haze(direct)
    photons = site.photons * exposure.amount * pixel**2
    noise = rng.standard_normal(path.shape, np.float32)
    seen = _blur(arrived + np.sqrt(arrived / np.float32(photons)) * noise, site.blur / pixel)
    density = -np.log(np.maximum(seen, np.float32(1e-4)))
    quarter = len(density) // 4
    level = density[quarter:-quarter, quarter:-quarter].mean() + np.float32(
        exposure.level
    )  # as automatic exposure does
    x = (density - level) / np.float32(exposure.width)  # -1/2 black, 1/2 white
    return 1 / (1 + np.exp(-5 * x)) if site.film else np.clip(x + np.float32(0.5), 0, 1)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian, `sigma` in pixels, edges repeated."""
    if sigma < 0.2:
        return image
    reach = int(np.ceil(2.5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    h, w = image.shape
    wide = np.pad(image, reach, mode='edge')
    rows = np.add.reduce([k * wide[i : i + h] for i, k in enumerate(kernel)])
    return np.add.reduce([k * rows[:, i : i + w] for i, k in enumerate(kernel)])


def _haze(image: np.ndarray) -> np.ndarray:
    """A very broad blur, a sixth of the picture: pooled to 16 x 16, blurred, linear in between."""
    pool, spread = _haze_matrices(image.shape[0])
    coarse = pool @ image @ pool.T
    return spread @ coarse @ spread.T


def _haze_matrices(size: int) -> tuple[np.ndarray, np.ndarray]:
    """[16,size] means over cells and [size,16] Gaussian weights of the cells at each pixel."""
    at = (np.arange(size) + 0.5) / size * 16
    pool = (np.floor(at)[None] == np.arange(16)[:, None]).astype(np.float32)
    spread = np.exp(-0.5 * ((at[:, None] - np.arange(16) - 0.5) / 2.7) ** 2).astype(np.float32)
    return pool / pool.sum(1, keepdims=True), spread / spread.sum(1, keepdims=True)
