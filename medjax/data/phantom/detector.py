"""The X-ray detector: draws pose and exposure, and turns line integrals of attenuation into the brightness of an image.

The image depends on Beer-Lambert's law, scattered photons, noise, blur, and the processing of the site (hospital).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medjax.data.phantom.projection import Camera


class Site(NamedTuple):
    """The detector of a hospital and its image processing."""

    photons: float  # per cm² where nothing is in the beam
    blur: float  # standard deviation in cm
    scatter: float  # strength of the scattered photons, which form a broad haze
    film: bool  # film has a sigmoid curve of the logarithm; digital detectors show the logarithm in a window


SITES = {
    'alder': Site(photons=1.5e6, blur=0.06, scatter=0.04, film=False),
    'birch': Site(photons=5e5, blur=0.11, scatter=0.07, film=True),
}
# Directions of the image in the world (x left, y down, z back): u along a row, v along a column, w along the beam.
# PA: the beam enters at the back; AP: at the front; lateral: at the side. Frontal images (PA, AP) show the patient from
# the front.
PROJECTIONS = {
    'PA': ((1, 0, 0), (0, 1, 0), (0, 0, -1)),
    'AP': ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    'lateral': ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
}


class Pose(NamedTuple):
    """The position of the patient in front of the detector. The isocentre is the origin of the world, in the chest."""

    projection: str  # a name in PROJECTIONS
    angles: tuple[float, float, float]  # radians: about the body's axis, within the image, forwards
    shift: tuple[float, float]  # cm, within the image
    field: float  # cm from edge to edge of the image, at the isocentre
    distance: float  # cm from the X-ray source to the isocentre


# How far patients stand or lie off the centre, in cm, and the deviations of the three angles.
SPREAD = {
    'PA': (5.5, (0.12, 0.035, 0.08)),
    'AP': (7.0, (0.15, 0.07, 0.10)),  # in bed
    'lateral': (5.5, (0.12, 0.035, 0.08)),
}


class Exposure(NamedTuple):
    """The exposure of one image: its photons and its grey scale."""

    amount: float  # of photons, relative to the site's number
    level: float  # the line integral of middle grey, minus the mean of the middle of the image
    width: float  # range of line integrals from black to white


def draw_pose(rng: np.random.Generator, projection: str, chest: float) -> Pose:
    """Draws a pose. The field grows with `chest`, the scale of the body's height.

    With these spreads, two frontal phantom images of 64 px have the same mean correlation as two real ones
    (BUILD_NOTES.md).
    """
    max_shift, angle_deviations = SPREAD[projection]
    turn, roll, tip = rng.normal(0, angle_deviations)
    across, down = rng.uniform(-max_shift, max_shift, 2)
    distance = dict(PA=165.0, AP=100.0, lateral=160.0)[projection]
    return Pose(projection, (turn, roll, tip), (across, down + 2.5), chest * rng.uniform(29, 50), distance)


def draw_exposure(rng: np.random.Generator, site: Site) -> Exposure:
    return Exposure(
        amount=float(np.exp(rng.normal(0, 0.35))),
        level=rng.normal(0.1, 0.25),
        width=np.exp(rng.normal(0, 0.14)) * (4.6 if site.film else 4.4),
    )


def camera(pose: Pose, size: int) -> Camera:
    """The camera of an image of size x size pixels. Pixels are squares of field / size."""
    (turn_cos, roll_cos, tip_cos), (turn_sin, roll_sin, tip_sin) = np.cos(pose.angles), np.sin(pose.angles)
    about_body = np.array([[turn_cos, 0, turn_sin], [0, 1, 0], [-turn_sin, 0, turn_cos]])
    in_image = np.array([[roll_cos, -roll_sin, 0], [roll_sin, roll_cos, 0], [0, 0, 1]])
    forwards = np.array([[1, 0, 0], [0, tip_cos, -tip_sin], [0, tip_sin, tip_cos]])
    axes = in_image @ forwards @ np.array(PROJECTIONS[pose.projection], float) @ about_body
    grid = ((np.arange(size) + 0.5) / size - 0.5) * pose.field
    u, v = ((grid + shift) / pose.distance for shift in pose.shift)
    return Camera(-pose.distance * axes[2], axes, pose.distance, u.astype(np.float32), v.astype(np.float32))


def transmit(path: np.ndarray) -> np.ndarray:
    """Beer-Lambert's law: the share exp(-∫ mu dl) of the photons that pass."""
    return np.exp(-path)


def expose(path: np.ndarray, site: Site, exposure: Exposure, pixel: float, rng: np.random.Generator) -> np.ndarray:
    """Turns line integrals [H,W] into brightness in [0,1], float32 [H,W]. Dense tissue is bright.

    `pixel` is the side of a pixel in cm. Scattered photons add a haze. The noise is the normal approximation of
    Poisson noise. Then the detector blurs, and the site's processing maps the logarithm to brightness.
    """
    direct = transmit(path)
    arrived = direct + np.float32(site.scatter) * _haze(direct)
    photons = site.photons * exposure.amount * pixel**2
    noise = rng.standard_normal(path.shape, np.float32)
    measured = _blur(arrived + np.sqrt(arrived / np.float32(photons)) * noise, site.blur / pixel)
    density = -np.log(np.maximum(measured, np.float32(1e-4)))
    quarter = len(density) // 4
    middle = density[quarter:-quarter, quarter:-quarter].mean()  # automatic exposure measures the middle of the image
    x = (density - (middle + np.float32(exposure.level))) / np.float32(exposure.width)  # -1/2 black, 1/2 white
    return 1 / (1 + np.exp(-5 * x)) if site.film else np.clip(x + np.float32(0.5), 0, 1)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian blur of `sigma` pixels, with repeated edges."""
    if sigma < 0.2:
        return image
    reach = int(np.ceil(2.5 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    h, w = image.shape
    padded = np.pad(image, reach, mode='edge')
    rows = np.add.reduce([k * padded[i : i + h] for i, k in enumerate(kernel)])
    return np.add.reduce([k * rows[:, i : i + w] for i, k in enumerate(kernel)])


def _haze(image: np.ndarray) -> np.ndarray:
    """A very broad blur, of about a sixth of the image: pooled to 16 x 16 cells, then blurred to full size."""
    pool, spread = _haze_matrices(image.shape[0])
    coarse = pool @ image @ pool.T
    return spread @ coarse @ spread.T


def _haze_matrices(size: int) -> tuple[np.ndarray, np.ndarray]:
    """[16,size]: the means over 16 cells. [size,16]: the Gaussian weights of the cells at each pixel."""
    at = (np.arange(size) + 0.5) / size * 16
    pool = (np.floor(at)[None] == np.arange(16)[:, None]).astype(np.float32)
    spread = np.exp(-0.5 * ((at[:, None] - np.arange(16) - 0.5) / 2.7) ** 2).astype(np.float32)
    return pool / pool.sum(1, keepdims=True), spread / spread.sum(1, keepdims=True)
