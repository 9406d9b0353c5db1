"""A thorax (chest) of convex solids: builds the pieces of a scene from a body, a breath and the findings of a study.

Lengths are in cm. Densities are attenuations in 1/cm, and a piece adds its density to what is around it. x points to
the patient's left, y to the feet, z to the back. The origin is in the middle of the chest, at about the height of the
fifth thoracic vertebra.

Words of anatomy. Apex: the top of a lung. Hilum: the place on the inner side of a lung where its vessels enter.
Diaphragm: the muscle below the lungs; its right and left halves are two domes, and it moves down with a breath.
Mediastinum: all that lies between the lungs. Pleura: the skin of a lung. Clavicle: the collar bone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medjax.data.phantom.findings import NORMAL_HEART, Finding
from medjax.data.phantom.projection import Ellipsoid, Intersection, Plate, Solid, SolidPiece

SOFT, LUNG, BONE = 0.20, 0.05, 0.22  # soft tissue; lung with air; what bone adds to soft tissue
AIR = SOFT - LUNG  # what a lung gains when soft tissue or fluid replaces its air
NODULE = 3 * AIR  # a nodule contains some calcium
SIDES = {'right': -1.0, 'left': 1.0}  # sign of x


class Body(NamedTuple):
    """The properties of a patient that stay the same in all studies."""

    sex: str  # 'F' | 'M'
    age: float  # years, at the first study
    width: float  # scales of the chest, around 1
    height: float
    depth: float
    fat: float  # cm of soft tissue outside the ribs
    bone: float  # relative density
    slope: float  # of the ribs, downwards to the front
    curve: float  # of the spine, cm sideways
    kyphosis: float  # curve of the spine, cm backwards
    heart: float  # width of the heart divided by the width of the chest, without cardiomegaly
    axis: float  # of the heart, in radians below the horizontal
    domes: tuple[float, float]  # cm by which the right and the left dome of the diaphragm stand higher than normal
    middle: float  # half the width of the mediastinum, in cm
    knob: float  # radius of the arch of the aorta, in cm
    clavicle: float  # slope
    gas: tuple[float, float, float]  # in the stomach: semi-axes in cm
    vessels: np.ndarray  # [2,18,4]: side, vessel, (the end in the unit ball of the lung, radius in cm)


def draw_body(rng: np.random.Generator) -> Body:
    sex = 'FM'[int(rng.integers(2))]
    age = float(np.clip(rng.normal(55, 17), 20, 92))
    old = (age - 55) / 35
    large = rng.normal(1.0 if sex == 'M' else 0.93, 0.04)
    down = rng.uniform(-0.75, 0.05, (2, 18))
    reach = np.sqrt(1 - down**2) * rng.uniform(0.55, 0.9, (2, 18))
    angle = rng.uniform(-1.5, 1.5, (2, 18))
    vessels = [reach * np.cos(angle), down, reach * np.sin(angle), rng.uniform(0.28, 0.52, (2, 18))]
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
        vessels=np.stack(vessels, -1),
    )


def scene(body: Body, breath: float, arms_up: bool, present: dict[str, Finding], tube: str = '') -> list[SolidPiece]:
    """The pieces of one study.

    breath: in [0,1]; a deeper breath lowers the diaphragm.
    present: the findings of the study.
    tube: the side of a chest tube, or ''.
    """
    scale = np.array([body.width, body.height, body.depth])
    dome_tops = {
        side: (6.4 + 3.8 * breath + lower - min(higher, 4.0)) * scale[1]
        for side, lower, higher in zip(SIDES, (0.0, 0.6), body.domes, strict=True)
    }
    domes = {
        side: _ellipsoid([sign * 7.0 * scale[0], dome_tops[side] + 7.0 * scale[1], 0], [6.7, 7.0, 10.4] * scale)
        for side, sign in SIDES.items()
    }
    heart = _heart(body, scale, present['cardiomegaly'].size if 'cardiomegaly' in present else body.heart, breath)
    mediastinum = _ellipsoid([0.2, -3.0, 0.8], [body.middle * scale[0], 17 * scale[1], 4.5 * scale[2]])
    pieces = _soft_tissue(body, scale, arms_up, dome_tops['left']) + _bones(body, scale, arms_up)
    pieces.append(SolidPiece(0.0, (heart,), name='heart'))  # only for the mask: soft tissue is there already
    for side, sign in SIDES.items():
        pieces += _lung_pieces(body, sign, scale, present, dome_tops[side], (heart, domes[side], mediastinum))
    return pieces + (_tube(SIDES[tube], scale) if tube else [])


# Lungs


class _Lung(NamedTuple):
    """The space of one lung."""

    sign: float  # -1 right, 1 left
    whole: Ellipsoid  # far taller than the lung; the dome of the diaphragm cuts it
    space: Solid  # `whole` down to the lowest point that air can reach
    solid: tuple[Solid, ...]  # heart, dome and mediastinum: they contain no air
    hilum: np.ndarray  # [3]
    shrunk: float  # share by which a pneumothorax has shrunk the lung; 0 without one


def _lung_pieces(
    body: Body,
    sign: float,
    scale: np.ndarray,
    present: dict[str, Finding],
    dome_top: float,
    solid: tuple[Solid, ...],
) -> list[SolidPiece]:
    """One lung: its air, hilum and vessels, and the findings on this side."""
    here = {name: finding for name, finding in present.items() if SIDES.get(finding.side) == sign}
    whole = _whole_lung(sign, scale)
    lung = _Lung(
        sign=sign,
        whole=whole,
        space=Intersection((whole, Plate(np.array([0.0, 1.0, 0.0]), -np.inf, dome_top + 6.5 * scale[1]))),
        solid=solid,
        hilum=np.array([sign * 3.6, 0.0, 1.2]) * scale,
        shrunk=here['pneumothorax'].size if 'pneumothorax' in here else 0.0,
    )
    pieces = [SolidPiece(-AIR, (lung.space,), solid, name='lung')]
    hilum_tissue = _ellipsoid(lung.hilum + [0.1 * sign, 0.5, 0], [1.5, 2.4, 1.8])
    pieces.append(SolidPiece(0.45 * AIR, (lung.space, hilum_tissue), solid))
    if sign == SIDES['left']:
        aorta = _ellipsoid(np.array([2.0, -6.0, 2.5]) * scale, [body.knob] * 3)
        pieces.append(SolidPiece(AIR, (lung.space, aorta), solid))
    pieces += _vessels(lung, body.vessels[0 if sign < 0 else 1])
    if 'pneumothorax' in here:
        pieces += _pneumothorax(lung, lung.hilum + [0, 5 * scale[1], 0])
    if 'nodule' in here:
        ball = _ellipsoid(_in_lung(whole, here['nodule'].place, sign), [here['nodule'].size / 2] * 3)
        pieces.append(SolidPiece(NODULE, (lung.space, ball), name='nodule'))  # its part behind the heart counts as well
    if 'consolidation' in here:
        finding = here['consolidation']
        centre = _in_lung(whole, finding.place, sign)
        for *offset, radius in finding.blobs:
            ball = _ellipsoid(centre + finding.size * np.array(offset), [finding.size * radius] * 3)
            pieces.append(SolidPiece(AIR * finding.density, (lung.space, ball), solid, name='consolidation'))
    if 'effusion' in here:
        pieces += _effusion(lung, dome_top + 5.5 * scale[1] - here['effusion'].size, scale)
    return pieces


def _vessels(lung: _Lung, vessels: np.ndarray) -> list[SolidPiece]:
    """Each vessel [x, y, z, radius] is two rods, from the hilum to a bend and on to its end."""
    pieces = []
    for *end, radius in vessels:
        tip = lung.hilum + (1 - 1.6 * lung.shrunk) * (_in_lung(lung.whole, end, lung.sign) - lung.hilum)
        root = lung.hilum + [0.4 * lung.sign, 2.2 * (end[1] + 0.35), 1.2 * end[2]]
        bend = root + 0.45 * (tip - root) + [0, 0.8, 0]
        pieces += [
            SolidPiece(0.15, (_rod(root, bend, radius, 1.1),)),
            SolidPiece(0.15, (_rod(bend, tip, 0.65 * radius, 1.1),)),
        ]
    return pieces


def _pneumothorax(lung: _Lung, anchor: np.ndarray) -> list[SolidPiece]:
    """Air between the chest wall and a lung that has shrunk towards `anchor`. The pleura is a thin line."""
    scale = 1 - lung.shrunk * np.array([1, 1, 0.2])  # the air lies at the side and above
    shrunk = Ellipsoid(anchor + scale * (lung.whole.centre - anchor), scale[:, None] * lung.whole.axes)
    inner = Ellipsoid(shrunk.centre, shrunk.axes * (1 - 0.1 / np.linalg.norm(shrunk.axes, axis=0)))
    return [
        SolidPiece(-LUNG, (lung.space,), (*lung.solid, shrunk), name='pneumothorax'),
        SolidPiece(1.2 * lung.shrunk * LUNG, (lung.space, shrunk), lung.solid),  # the shrunk lung is denser
        SolidPiece(AIR, (lung.space, shrunk), (inner, *lung.solid)),  # the pleura
    ]


def _effusion(lung: _Lung, level: float, scale: np.ndarray) -> list[SolidPiece]:
    """Fluid up to the height `level`. The lung floats on it, so the fluid rises along the chest wall.

    Below a pneumothorax its surface is flat.
    """
    flat = lung.shrunk > 0
    below = Plate(np.array([0.0, 1.0, 0.0]), level - (1.5 if flat else 4.5), np.inf)
    floating = _ellipsoid([0.93 * lung.whole.centre[0], level - 14, 0], [6.9 * scale[0], 14, 9.6 * scale[2]])
    return [SolidPiece(AIR, (lung.space, below), lung.solid if flat else (floating, *lung.solid), name='effusion')]


def _whole_lung(sign: float, scale: np.ndarray) -> Ellipsoid:
    """An ellipsoid far taller than the lung: the diaphragm cuts it at its widest place. The apex leans inwards."""
    lean = sign * 0.13
    axes = np.array([[np.cos(lean), np.sin(lean), 0], [-np.sin(lean), np.cos(lean), 0], [0, 0, 1]])
    return Ellipsoid(np.array([sign * 7.0, 8.0, 0.0]) * scale, scale[:, None] * axes * [6.3, 19.5, 9.2])


def _in_lung(whole: Ellipsoid, place: Sequence[float], sign: float) -> np.ndarray:
    """World coordinates of a point (lateral, down, back) in the unit ball of a lung."""
    return whole.centre + whole.axes @ (np.asarray(place) * [sign, 1, 1])


# Heart, soft tissue, bones


def _heart(body: Body, scale: np.ndarray, ratio: float, breath: float) -> Ellipsoid:
    """The heart. Its axis points left, down and forwards; its width is `ratio` times the width of the chest."""
    along = np.array([np.cos(body.axis), np.sin(body.axis), -0.45])
    axes = _basis_along(along) * [6.6, 4.6, 4.8]
    width = 2 * np.linalg.norm(axes[0])
    axes = axes * (ratio * 2 * 13.3 * scale[0] / width)
    excess = ratio - 0.45  # a large heart extends further to the left and downwards
    centre = np.array([1.6 + 6 * excess, 3.6 + 1.2 * breath + 5 * excess, -2.6]) * scale
    return Ellipsoid(centre, axes)


def _soft_tissue(body: Body, scale: np.ndarray, arms_up: bool, dome_top: float) -> list[SolidPiece]:
    """Trunk, neck, shoulders and breasts, with the air of the windpipe and the gas of the stomach."""
    trunk = _ellipsoid([0, 13, 0.5], [14.6 * scale[0] + body.fat, 42, 11.6 * scale[2] + body.fat])
    neck = _ellipsoid([0, -20 * scale[1], 1.0], [5.5 * scale[0], 12, 5.5])
    pieces = [SolidPiece(SOFT, (trunk,)), SolidPiece(SOFT, (neck,), (trunk,))]
    for sign in SIDES.values():
        shoulder = [sign * (11.0 if arms_up else 14.0) * scale[0], (-21 if arms_up else -8.0) * scale[1], 1.0]
        pieces.append(SolidPiece(SOFT, (_ellipsoid(shoulder, [6.5, 7.5, 5.0] * scale),), (trunk, neck)))
        if body.sex == 'F':
            centre = [sign * 7.4 * scale[0], 6.0 * scale[1], -10.5 * scale[2]]
            breast = _ellipsoid(centre, [5.4, 5.8, 2.2 + 0.6 * body.fat])
            pieces.append(SolidPiece(0.9 * SOFT, (breast,), (trunk,)))
    windpipe = _rod(np.array([0, -19, 0.5]) * scale, np.array([0.3, -3.2, 1.8]) * scale, 0.85, 1.0)
    gas = _ellipsoid([5.2 * scale[0], dome_top + 2.0 + body.gas[1], -1.5], body.gas)
    return [*pieces, SolidPiece(-SOFT, (windpipe,)), SolidPiece(-0.8 * SOFT, (gas,))]


def _bones(body: Body, scale: np.ndarray, arms_up: bool) -> list[SolidPiece]:
    bone = BONE * body.bone
    pieces = _spine(body, scale)
    cage = Ellipsoid(np.array([0, 8.0, 0]) * scale, np.diag([14.3, 21.6, 11.7] * scale))
    inside = Ellipsoid(cage.centre, np.diag([13.6, 20.9, 11.0] * scale))
    front, back = -7.5 * scale[2], 11.9 * scale[2]
    for sign in SIDES.values():
        beside_spine = Plate(np.array([sign, 0, 0]), 1.5, np.inf)
        behind_front = Plate(np.array([0, 0, 1.0]), front, np.inf)
        half = Intersection((cage, beside_spine, behind_front))
        for k in range(10):
            pieces.append(SolidPiece(bone * 0.9, (half, _rib(k, sign, body, scale, front, back)), (inside,)))
        x, slope = sign * 2.0, body.clavicle + (0.5 if arms_up else 0)
        clavicle = np.array(
            [[x, -10.6, -6.0], [x + sign * 5.5, -11.2 - 3 * slope, -5.0], [x + sign * 11, -12 - 5 * slope, -1.0]]
        )
        clavicle = clavicle * scale
        pieces += [SolidPiece(bone, (_rod(clavicle[i], clavicle[i + 1], 0.62, 1.15),)) for i in range(2)]
        centre = [sign * (12.2 if arms_up else 11.0) * scale[0], -4.5 * scale[1], 10.6 * scale[2]]
        shoulder_blade = _rotated(_ellipsoid(centre, [3.2, 7.0, 0.35]), sign * 0.25)
        pieces.append(SolidPiece(0.8 * bone, (shoulder_blade,)))
        upper_arm = np.array([sign * 16.5, -18.0 if arms_up else -9.5, 1.0]) * scale
        pieces.append(SolidPiece(0.7 * bone, (_ellipsoid(upper_arm, [2.4, 2.9, 2.4]),)))
    breastbone = _rod(np.array([0, -8.5, -9.4]) * scale, np.array([0, 7.5, -11.6]) * scale, 0.9, 1.1)
    return [*pieces, SolidPiece(0.6 * bone, (breastbone,))]


def _spine(body: Body, scale: np.ndarray) -> list[SolidPiece]:
    """15 vertebrae: each has a body, one process to the back, and one across to both sides."""
    bone = BONE * body.bone
    pieces = []
    for k in range(15):
        y = (-17.5 + 2.4 * k) * scale[1]
        bend = np.cos(y / 15)
        centre = np.array([body.curve * bend, y, 7.2 * scale[2] + body.kyphosis * (bend - 0.6)])
        size = (0.85 + 0.02 * k) * scale
        pieces.append(SolidPiece(0.75 * bone, (_ellipsoid(centre, [1.9, 1.25, 1.6] * size),)))
        pieces.append(SolidPiece(0.5 * bone, (_ellipsoid(centre + [0, 0.5, 2.6], [0.45, 1.0, 1.3] * size),)))
        pieces.append(SolidPiece(0.7 * bone, (_ellipsoid(centre + [0, -0.2, 1.3], [3.0, 0.45, 0.5] * size),)))
    return pieces


def _rib(k: int, sign: float, body: Body, scale: np.ndarray, front: float, back: float) -> Plate:
    """The plate that cuts rib `k` out of the shell of the rib cage. It slopes down to the front and to the side."""
    normal = np.array([-sign * 0.16, 1.0, body.slope])
    normal /= np.linalg.norm(normal)
    middle = normal @ (np.array([0, -12.3 + 2.35 * k, 9.0]) * scale)
    low, high = float(middle - 0.55), float(middle + 0.55)
    hull = [
        [x, (bound - normal[0] * x - normal[2] * z) / normal[1], z]
        for x in (0.0, sign * 15 * scale[0])
        for z in (front, back)
        for bound in (low, high)
    ]
    return Plate(normal, low, high, np.array(hull))


def _tube(sign: float, scale: np.ndarray) -> list[SolidPiece]:
    """A chest tube, which drains air: three rods from the side wall up to the apex."""
    lung = _whole_lung(sign, scale)
    points = [np.array([sign * 15.5, 7.0, 1.0]) * scale]
    points += [_in_lung(lung, place, sign) for place in ((0.8, -0.25, 0.2), (0.55, -0.55, 0.25), (0.2, -0.82, 0.2))]
    return [SolidPiece(0.9, (_rod(points[i], points[i + 1], 0.28, 1.08),), name='tube') for i in range(3)]


# Shapes


def _ellipsoid(centre: Sequence[float] | np.ndarray, radii: Sequence[float] | np.ndarray) -> Ellipsoid:
    """An ellipsoid with axes along x, y, z."""
    return Ellipsoid(np.asarray(centre, float), np.diag(np.asarray(radii, float)))


def _rod(start: np.ndarray, end: np.ndarray, radius: float, stretch: float) -> Ellipsoid:
    """A long ellipsoid between two points. A `stretch` over 1 makes it longer, so that the rods of a chain overlap."""
    half = np.sqrt((end - start) @ (end - start)) / 2
    return Ellipsoid((start + end) / 2, _basis_along(end - start) * [half * stretch, radius, radius])


def _rotated(solid: Ellipsoid, angle: float) -> Ellipsoid:
    """The solid rotated about its own z axis."""
    c, s = np.cos(angle), np.sin(angle)
    return Ellipsoid(solid.centre, np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ solid.axes)


def _basis_along(direction: np.ndarray) -> np.ndarray:
    """Three orthogonal unit vectors as columns, the first along `direction`: a reflection of the coordinate axes."""
    unit = direction / np.sqrt(direction @ direction)
    mirror = unit - [1.0, 0.0, 0.0]
    return np.eye(3) - mirror[:, None] * mirror * (2 / max(mirror @ mirror, 1e-12))
