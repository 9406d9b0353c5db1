"""A thorax of convex solids: from a body, a breath and the findings of a study to the pieces of a scene.

Lengths in cm, densities in 1/cm (what is added to the tissue around). x to the patient's left, y to the feet,
z to the back; the origin lies in the middle of the chest, about the height of the fifth thoracic vertebra.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medjax.data.phantom.findings import NORMAL_HEART, Finding
from medjax.data.phantom.projection import Common, Ellipsoid, Piece, Plate

SOFT, LUNG, BONE = 0.20, 0.05, 0.22  # BONE is added to SOFT
AIR = SOFT - LUNG  # what filling a lung with soft tissue adds
NODULE = 3 * AIR  # it holds some calcium
SIDES = {'right': -1.0, 'left': 1.0}


class Body(NamedTuple):
    """What a patient keeps through all studies."""

    sex: str  # 'F' | 'M'
    age: float  # years at the first study
    width: float  # scales of the chest around 1
    height: float
    depth: float
    fat: float  # cm of soft tissue outside the ribs
    bone: float  # density, relative
    slope: float  # of the ribs, to the front
    curve: float  # cm, sideways, of the spine
    kyphosis: float  # cm, backwards
    heart: float  # width over the width of the chest, without cardiomegaly
    axis: float  # of the heart, radians below the horizontal
    domes: tuple[float, float]  # cm by which the right and the left half of the diaphragm stand high
    middle: float  # half the width of what lies between the lungs, in cm
    knob: float  # radius of the aortic arch in cm
    clavicle: float  # slope
    gas: tuple[float, float, float]  # of the stomach: semi-axes in cm
    vessels: np.ndarray  # [2,18,4]: for each side where vessels end (unit ball of the lung) and their radius


def draw_body(rng: np.random.Generator) -> Body:
    sex = 'FM'[int(rng.integers(2))]
    age = float(np.clip(rng.normal(55, 17), 20, 92))
    old = (age - 55) / 35
    large = rng.normal(1.0 if sex == 'M' else 0.93, 0.04)
    down = rng.uniform(-0.75, 0.05, (2, 18))
    reach = np.sqrt(1 - down**2) * rng.uniform(0.55, 0.9, (2, 18))
    angle = rng.uniform(-1.5, 1.5, (2, 18))
    ends = [reach * np.cos(angle), down, reach * np.sin(angle), rng.uniform(0.28, 0.52, (2, 18))]
    return Body(
        sex=sex,
        age=age,
        width=large * rng.normal(1, 0.04),
        height=large * rng.normal(1, 0.05),
        depth=large * rng.normal(1, 0.05) + 0.04 * old,
        fat=float(np.clip(rng.gamma(3, 0.5), 0.3, 4)),
        bone=float(np.clip(rng.normal(1 - 0.15 * old, 0.12), 0.6, 1.3)),
        slope=rng.uniform(0.34, 0.52),
        curve=rng.normal(0, 0.6),
        kyphosis=rng.uniform(0.5, 2) + max(0.0, old),
        heart=float(rng.uniform(*NORMAL_HEART)),
        axis=rng.uniform(0.45, 0.85),
        domes=(float(rng.exponential(0.9)), float(rng.exponential(0.9))),
        middle=rng.uniform(2.2, 3.5),
        knob=float(np.clip(rng.normal(1.6 + 0.3 * old, 0.2), 1.1, 2.4)),
        clavicle=rng.uniform(-0.05, 0.35),
        gas=(rng.uniform(0.8, 2.8), rng.uniform(0.5, 1.6), rng.uniform(1.0, 3.0)),
        vessels=np.stack(ends, -1),
    )


def scene(body: Body, breath: float, arms_up: bool, present: dict[str, Finding], tube: str = '') -> list[Piece]:
    """The pieces of one study. `breath` in [0,1] lowers the diaphragm; `tube` is the side of a chest tube, or ''."""
    scale = np.array([body.width, body.height, body.depth])
    tops = {
        side: (6.4 + 3.8 * breath + low - min(high, 4.0)) * scale[1]
        for side, low, high in zip(SIDES, (0.0, 0.6), body.domes, strict=True)
    }
    domes = {
        side: _ball([sign * 7.0 * scale[0], tops[side] + 7.0 * scale[1], 0], [6.7, 7.0, 10.4] * scale)
        for side, sign in SIDES.items()
    }
    heart = _heart(body, scale, present['cardiomegaly'].size if 'cardiomegaly' in present else body.heart, breath)
    middle = _ball([0.2, -3.0, 0.8], [body.middle * scale[0], 17 * scale[1], 4.5 * scale[2]])
    pieces = _soft_parts(body, scale, arms_up, tops['left']) + _bones(body, scale, arms_up)
    pieces.append(Piece(0.0, (heart,), name='heart'))
    for side in SIDES:
        solid = (heart, domes[side], middle)  # no air where these are
        pieces += _lung_parts(body, solid, side, scale, present, tops[side])
    return pieces + (_tube(_lung(SIDES[tube], scale), SIDES[tube], scale) if tube else [])


def _lung_parts(
    body: Body, solid: tuple, side: str, scale: np.ndarray, present: dict[str, Finding], dome_top: float
) -> list[Piece]:
    """One lung: air, its root, vessels, and what is wrong with it."""
    sign = SIDES[side]
    whole = _lung(sign, scale)
    lung = Common((whole, Plate(np.array([0.0, 1.0, 0.0]), -np.inf, dome_top + 6.5 * scale[1])))
    here = {name: finding for name, finding in present.items() if finding.side == side}
    hilum = np.array([sign * 3.6, 0.0, 1.2]) * scale
    shrunk = here['pneumothorax'].size if 'pneumothorax' in here else 0.0
    pieces = [Piece(-AIR, (lung,), solid, name='lung')]
    pieces.append(Piece(0.45 * AIR, (lung, _ball(hilum + [0.1 * sign, 0.5, 0], [1.5, 2.4, 1.8])), solid))
    if side == 'left':
        arch = _ball(np.array([2.0, -6.0, 2.5]) * scale, [body.knob] * 3)  # of the aorta
        pieces.append(Piece(AIR, (lung, arch), solid))
    for *end, radius in body.vessels[0 if sign < 0 else 1]:
        tip = hilum + (1 - 1.6 * shrunk) * (_in_lung(whole, end, sign) - hilum)
        root = hilum + [0.4 * sign, 2.2 * (end[1] + 0.35), 1.2 * end[2]]
        bend = root + 0.45 * (tip - root) + [0, 0.8, 0]
        pieces += [Piece(0.15, (_rod(root, bend, radius, 1.1),)), Piece(0.15, (_rod(bend, tip, 0.65 * radius, 1.1),))]
    if 'pneumothorax' in here:
        pieces += _pneumothorax(lung, whole, solid, shrunk, hilum + [0, 5 * scale[1], 0])
    if 'nodule' in here:
        ball = _ball(_in_lung(whole, here['nodule'].place, sign), [here['nodule'].size / 2] * 3)
        pieces.append(Piece(NODULE, (lung, ball), name='nodule'))  # whole, behind the heart as well
    if 'consolidation' in here:
        finding = here['consolidation']
        *blobs, (density,) = finding.shape
        centre = _in_lung(whole, finding.place, sign)
        for *offset, radius in blobs:
            ball = _ball(centre + finding.size * np.array(offset), [finding.size * radius] * 3)
            pieces.append(Piece(AIR * density, (lung, ball), solid, name='consolidation'))
    if 'effusion' in here:
        pieces += _effusion(lung, whole, solid, dome_top + 5.5 * scale[1] - here['effusion'].size, scale, shrunk > 0)
    return pieces


def _pneumothorax(lung: Common, whole: Ellipsoid, solid: tuple, shrunk: float, anchor: np.ndarray) -> list[Piece]:
    """Air without lung between the chest wall and a lung that shrinks towards its root; the pleura is a thin line."""
    less = 1 - shrunk * np.array([1, 1, 0.2])  # the air lies at the side and above
    rest = Ellipsoid(anchor + less * (whole.centre - anchor), less[:, None] * whole.axes)
    inner = Ellipsoid(rest.centre, rest.axes * (1 - 0.1 / np.linalg.norm(rest.axes, axis=0)))
    return [
        Piece(-LUNG, (lung,), (*solid, rest), name='pneumothorax'),
        Piece(1.2 * shrunk * LUNG, (lung, rest), solid),  # the rest holds less air
        Piece(AIR, (lung, rest), (inner, *solid)),
    ]


def _effusion(lung: Common, whole: Ellipsoid, solid: tuple, level: float, scale: np.ndarray, flat: bool) -> list[Piece]:
    """Fluid up to `level`, and drawn up along the wall: what a lung that floats on it leaves free. Flat under air."""
    below = Plate(np.array([0.0, 1.0, 0.0]), level - (1.5 if flat else 4.5), np.inf)
    floating = _ball([0.93 * whole.centre[0], level - 14, 0], [6.9 * scale[0], 14, 9.6 * scale[2]])
    return [Piece(AIR, (lung, below), solid if flat else (floating, *solid), name='effusion')]


def _lung(sign: float, scale: np.ndarray) -> Ellipsoid:
    """Far taller than what is seen of it: the diaphragm cuts it at its widest. The apex leans to the middle."""
    lean = sign * 0.13
    axes = np.array([[np.cos(lean), np.sin(lean), 0], [-np.sin(lean), np.cos(lean), 0], [0, 0, 1]])
    return Ellipsoid(np.array([sign * 7.0, 8.0, 0.0]) * scale, scale[:, None] * axes * [6.3, 19.5, 9.2])


def _in_lung(lung: Ellipsoid, place, sign: float) -> np.ndarray:
    """A point of the unit ball (lateral, down, back) in world coordinates."""
    return lung.centre + lung.axes @ (np.asarray(place) * [sign, 1, 1])


def _heart(body: Body, scale: np.ndarray, ratio: float, breath: float) -> Ellipsoid:
    """Its axis points to the left, down and forward; scaled until it is `ratio` times as wide as the chest."""
    along = np.array([np.cos(body.axis), np.sin(body.axis), -0.45])
    axes = _frame(along) * [6.6, 4.6, 4.8]
    width = 2 * np.linalg.norm(axes[0])
    axes = axes * (ratio * 2 * 13.3 * scale[0] / width)
    more = ratio - 0.45  # a large heart reaches further to the left and down
    centre = np.array([1.6 + 6 * more, 3.6 + 1.2 * breath + 5 * more, -2.6]) * scale
    return Ellipsoid(centre, axes)


def _soft_parts(body: Body, scale: np.ndarray, arms_up: bool, dome_top: float) -> list[Piece]:
    trunk = _ball([0, 13, 0.5], [14.6 * scale[0] + body.fat, 42, 11.6 * scale[2] + body.fat])
    neck = _ball([0, -20 * scale[1], 1.0], [5.5 * scale[0], 12, 5.5])
    pieces = [Piece(SOFT, (trunk,)), Piece(SOFT, (neck,), (trunk,))]
    for sign in SIDES.values():
        shoulder = [sign * (11.0 if arms_up else 14.0) * scale[0], (-21 if arms_up else -8.0) * scale[1], 1.0]
        pieces.append(Piece(SOFT, (_ball(shoulder, [6.5, 7.5, 5.0] * scale),), (trunk, neck)))
        if body.sex == 'F':
            breast = _ball([sign * 7.4 * scale[0], 6.0 * scale[1], -10.5 * scale[2]], [5.4, 5.8, 2.2 + 0.6 * body.fat])
            pieces.append(Piece(0.9 * SOFT, (breast,), (trunk,)))
    windpipe = _rod(np.array([0, -19, 0.5]) * scale, np.array([0.3, -3.2, 1.8]) * scale, 0.85, 1.0)
    gas = _ball([5.2 * scale[0], dome_top + 2.0 + body.gas[1], -1.5], body.gas)
    return [*pieces, Piece(-SOFT, (windpipe,)), Piece(-0.8 * SOFT, (gas,))]


def _bones(body: Body, scale: np.ndarray, arms_up: bool) -> list[Piece]:
    bone = BONE * body.bone
    pieces = []
    for k in range(15):  # vertebrae, and what sticks out of them to the back and the sides
        y = (-17.5 + 2.4 * k) * scale[1]
        bend = np.cos(y / 15)
        at = np.array([body.curve * bend, y, 7.2 * scale[2] + body.kyphosis * (bend - 0.6)])
        size = (0.85 + 0.02 * k) * scale
        pieces.append(Piece(0.75 * bone, (_ball(at, [1.9, 1.25, 1.6] * size),)))
        pieces.append(Piece(0.5 * bone, (_ball(at + [0, 0.5, 2.6], [0.45, 1.0, 1.3] * size),)))
        pieces.append(Piece(0.7 * bone, (_ball(at + [0, -0.2, 1.3], [3.0, 0.45, 0.5] * size),)))
    cage = Ellipsoid(np.array([0, 8.0, 0]) * scale, np.diag([14.3, 21.6, 11.7] * scale))
    inside = Ellipsoid(cage.centre, np.diag([13.6, 20.9, 11.0] * scale))
    front, back = -7.5 * scale[2], 11.9 * scale[2]
    for sign in SIDES.values():
        half = Common((cage, Plate(np.array([sign, 0, 0]), 1.5, np.inf), Plate(np.array([0, 0, 1.0]), front, np.inf)))
        for k in range(10):
            pieces.append(Piece(bone * 0.9, (half, _rib(k, sign, body, scale, front, back)), (inside,)))
        x, drop = sign * 2.0, body.clavicle + (0.5 if arms_up else 0)
        ends = np.array(
            [[x, -10.6, -6.0], [x + sign * 5.5, -11.2 - 3 * drop, -5.0], [x + sign * 11, -12 - 5 * drop, -1.0]]
        )
        ends = ends * scale
        pieces += [Piece(bone, (_rod(ends[i], ends[i + 1], 0.62, 1.15),)) for i in range(2)]
        blade = _ball(
            [sign * (12.2 if arms_up else 11.0) * scale[0], -4.5 * scale[1], 10.6 * scale[2]], [3.2, 7.0, 0.35]
        )
        pieces.append(Piece(0.8 * bone, (_turned(blade, sign * 0.25),)))
        arm = np.array([sign * 16.5, -18.0 if arms_up else -9.5, 1.0]) * scale
        pieces.append(Piece(0.7 * bone, (_ball(arm, [2.4, 2.9, 2.4]),)))
    pieces.append(
        Piece(0.6 * bone, (_rod(np.array([0, -8.5, -9.4]) * scale, np.array([0, 7.5, -11.6]) * scale, 0.9, 1.1),))
    )
    return pieces


def _rib(k: int, sign: float, body: Body, scale: np.ndarray, front: float, back: float) -> Plate:
    """The plate that cuts a rib out of the shell of the cage: it falls to the front and to the side."""
    normal = np.array([-sign * 0.16, 1.0, body.slope])
    normal /= np.linalg.norm(normal)
    middle = normal @ (np.array([0, -12.3 + 2.35 * k, 9.0]) * scale)
    low, high = float(middle - 0.55), float(middle + 0.55)
    hull = [
        [a, (bound - normal[0] * a - normal[2] * b) / normal[1], b]
        for a in (0.0, sign * 15 * scale[0])
        for b in (front, back)
        for bound in (low, high)
    ]
    return Plate(normal, low, high, np.array(hull))


def _tube(lung: Ellipsoid, sign: float, scale: np.ndarray) -> list[Piece]:
    """A chest tube, from the wall at the side up to the apex."""
    points = [np.array([sign * 15.5, 7.0, 1.0]) * scale]
    points += [_in_lung(lung, place, sign) for place in ((0.8, -0.25, 0.2), (0.55, -0.55, 0.25), (0.2, -0.82, 0.2))]
    return [Piece(0.9, (_rod(points[i], points[i + 1], 0.28, 1.08),), name='tube') for i in range(3)]


def _ball(centre, radii) -> Ellipsoid:
    return Ellipsoid(np.asarray(centre, float), np.diag(np.asarray(radii, float)))


def _rod(start: np.ndarray, end: np.ndarray, radius: float, stretch: float) -> Ellipsoid:
    """A long ellipsoid between two points; `stretch` makes neighbours in a chain overlap."""
    half = np.sqrt((end - start) @ (end - start)) / 2
    return Ellipsoid((start + end) / 2, _frame(end - start) * [half * stretch, radius, radius])


def _turned(solid: Ellipsoid, angle: float) -> Ellipsoid:
    """Turned about z."""
    c, s = np.cos(angle), np.sin(angle)
    return Ellipsoid(solid.centre, np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ solid.axes)


def _frame(along: np.ndarray) -> np.ndarray:
    """Three unit vectors at right angles as columns, the first along the given one: a reflection of the axes."""
    along = along / np.sqrt(along @ along)
    mirror = along - [1.0, 0.0, 0.0]
    return np.eye(3) - mirror[:, None] * mirror * (2 / max(mirror @ mirror, 1e-12))
