"""Line integrals of attenuation along cone-beam rays, in closed form.

A scene is a list of pieces: a density in 1/cm on (the intersection of some convex solids) minus (the union of
others). A ray meets a convex solid in one interval of depth, so every integral is a sum of interval lengths:

    P(u, v) = ∫ mu dl = |(u, v, 1)| · Σ_pieces density · ( |∩ inside| − |∩ inside ∩ (∪ outside)| )

where the union is written out by inclusion and exclusion. World coordinates are cm: x to the patient's left, y to
the feet, z to the back. Camera coordinates: u along the columns of the picture, v along its rows, w along the
central ray; a ray is t · (u, v, 1), and depth is t minus the distance of the isocentre, so that float32 keeps 1e-4 cm.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Box = tuple[slice, slice]  # rows and columns of the picture
Interval = tuple[np.ndarray, np.ndarray]  # depth where rays enter and leave, float32 [rows, cols]; empty: far < near


class Ellipsoid(NamedTuple):
    """centre + axes @ (unit ball)."""

    centre: np.ndarray  # [3]
    axes: np.ndarray  # [3,3], the semi-axes as columns


class Plate(NamedTuple):
    """low <= normal · p <= high; a half-space where one bound is infinite.

    `hull` are points whose convex hull holds all of the plate that its pieces use: it only saves time.
    """

    normal: np.ndarray  # [3]
    low: float
    high: float
    hull: np.ndarray | None = None  # [n,3]


class Common(NamedTuple):
    """What several convex solids have in common; its intervals are found once for all pieces that share the object."""

    parts: tuple


Solid = Ellipsoid | Plate | Common


class Piece(NamedTuple):
    density: float  # 1/cm, added wherever the piece is
    inside: tuple[Solid, ...]
    outside: tuple[Solid, ...] = ()
    name: str = ''  # pieces with a name also give their length along each ray, for masks


class Camera(NamedTuple):
    """A point source and a flat detector."""

    source: np.ndarray  # float64 [3], world
    axes: np.ndarray  # float64 [3,3]: the directions u, v, w as rows; orthonormal, a reflection is fine
    distance: float  # cm from the source to the isocentre
    u: np.ndarray  # float32 [W], tangents of the columns
    v: np.ndarray  # float32 [H]


def project(pieces: Sequence[Piece], camera: Camera) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """-> P = ∫ mu dl, float32 [H,W]; name -> length of the named pieces along each ray in cm, float32 [H,W]."""
    shape = (len(camera.v), len(camera.u))
    total = np.zeros(shape, np.float32)
    lengths: dict[str, np.ndarray] = {}
    solids = _Solids(pieces, camera)
    for piece in pieces:
        if piece.name and piece.name not in lengths:
            lengths[piece.name] = np.zeros(shape, np.float32)
        for box, length in _lengths(piece, solids):
            total[box] += np.float32(piece.density) * length
            if piece.name:
                lengths[piece.name][box] += length
    slant = np.sqrt(1 + camera.u[None] ** 2 + camera.v[:, None] ** 2)
    return total * slant, {name: length * slant for name, length in lengths.items()}


def _lengths(piece: Piece, solids: _Solids):
    """Boxes of the picture and signed lengths in depth that add up to the length of the piece."""
    box = solids.common_box(piece.inside)
    if box is None:
        return
    if len(piece.inside) == 1 and not piece.outside and isinstance(piece.inside[0], Ellipsoid):
        yield box, solids.chord(piece.inside[0], box)
        return
    near, far = solids.meet(piece.inside, box)
    yield box, np.maximum(far - near, 0)
    outside = [(solid, part) for solid in piece.outside if (part := _overlap(box, solids.box(solid))) is not None]
    for count in range(1, len(outside) + 1):
        for some in itertools.combinations(outside, count):
            part = box
            for _, other in some:
                part = part and _overlap(part, other)
            if part is None:
                continue
            inner = _shift(part, box)
            low, high = near[inner], far[inner]
            for solid, _ in some:
                enter, leave = solids.interval(solid, part)
                low, high = np.maximum(low, enter), np.minimum(high, leave)
            length = np.maximum(high - low, 0)
            yield part, -length if count % 2 else length


class _Solids:
    """Boxes and intervals of solids under one camera; each is computed once, on its own box."""

    def __init__(self, pieces: Sequence[Piece], camera: Camera):
        self.camera = camera
        self.full = (slice(0, len(camera.v)), slice(0, len(camera.u)))
        self.boxes: dict[int, Box | None] = {}
        self.intervals: dict[int, Interval] = {}
        self.forms = _forms(pieces, camera)

    def box(self, solid: Solid) -> Box | None:
        """The part of the picture that can show the solid, or None."""
        key = id(solid)
        if key not in self.boxes:
            if isinstance(solid, Common):
                self.boxes[key] = self.common_box(solid.parts)
            elif isinstance(solid, Ellipsoid):
                self.boxes[key] = self.forms[key].box
            elif solid.hull is None:
                self.boxes[key] = self.full
            else:
                points = (solid.hull - self.camera.source) @ self.camera.axes.T
                uv = points[:, :2] / points[:, 2:]
                self.boxes[key] = _boxes(self.camera, uv.min(0)[None], uv.max(0)[None])[0]
        return self.boxes[key]

    def common_box(self, some: Sequence[Solid]) -> Box | None:
        box: Box | None = self.full
        for solid in some:
            box = box and _overlap(box, self.box(solid))
        return box

    def meet(self, some: Sequence[Solid], box: Box) -> Interval:
        """The interval that all solids share, on a box inside all of theirs."""
        near, far = self.interval(some[0], box)
        for solid in some[1:]:
            enter, leave = self.interval(solid, box)
            near, far = np.maximum(near, enter), np.minimum(far, leave)
        return near, far

    def interval(self, solid: Solid, box: Box) -> Interval:
        """Where rays enter and leave, on a box inside the solid's own."""
        key, own = id(solid), self.box(solid)
        assert own is not None, 'the box that is asked for lies in it'
        if key not in self.intervals:
            if isinstance(solid, Common):
                self.intervals[key] = self.meet(solid.parts, own)
            elif isinstance(solid, Ellipsoid):
                self.intervals[key] = self._ellipsoid(solid, own)
            elif solid.hull is None:
                return self._plate(solid, box)  # as wide as the picture: cheaper where it is wanted
            else:
                self.intervals[key] = self._plate(solid, own)
        near, far = self.intervals[key]
        inner = _shift(box, own)
        return near[inner], far[inner]

    def chord(self, solid: Ellipsoid, box: Box) -> np.ndarray:
        """2 sqrt(disc) / a, see `_Form`."""
        root, a = self._roots(solid, box)
        root *= 2
        root /= a
        return root

    def _ellipsoid(self, solid: Ellipsoid, box: Box) -> Interval:
        form = self.forms[id(solid)]
        root, a = self._roots(solid, box)
        c, bu, bv = form.b
        u, v = self.camera.u[box[1]] - form.u, self.camera.v[box[0]] - form.v
        middle = ((c + bu * u)[None] + (bv * v)[:, None]) / a - np.float32(self.camera.distance)
        half = root / a
        half[root == 0] = -1  # missed: an empty interval
        return middle - half, middle + half

    def _roots(self, solid: Ellipsoid, box: Box):
        """sqrt(max(disc, 0)) and a on a box."""
        form = self.forms[id(solid)]
        u, v = self.camera.u[box[1]] - form.u, self.camera.v[box[0]] - form.v
        root = _polynomial(form.disc, u, v)
        np.sqrt(np.maximum(root, 0, out=root), out=root)
        return root, _polynomial(form.a, u, v)

    def _plate(self, plate: Plate, box: Box) -> Interval:
        """low <= t · (n · d) <= high, with the isocentre's depth taken off."""
        camera = self.camera
        normal = (camera.axes @ plate.normal).astype(np.float32)
        u, v = camera.u[box[1]], camera.v[box[0]]
        slope = (normal[0] * u + normal[2])[None] + (normal[1] * v)[:, None]
        slope = np.where(np.abs(slope) < 1e-7, np.float32(1e-7), slope)
        offset = plate.normal @ camera.source
        one = np.float32(plate.low - offset) / slope - np.float32(camera.distance)
        two = np.float32(plate.high - offset) / slope - np.float32(camera.distance)
        return np.minimum(one, two), np.maximum(one, two)


class _Form(NamedTuple):
    """How rays t·d, d = (u, v, 1), meet an ellipsoid; centre c and Q = (axes axesᵀ)⁻¹ in camera coordinates:

    t = (b ± sqrt(disc)) / a,   a = dᵀ Q d,   b = cᵀ Q d,   disc = b² − a (cᵀ Q c − 1) = dᵀ D d.

    Polynomials around a pixel (u, v) near its middle: disc is a small difference of large numbers anywhere else.
    """

    box: Box | None
    u: float
    v: float
    disc: list[float]  # of 1, u, v, u², v², uv
    a: list[float]
    b: list[float]  # of 1, u, v


def _forms(pieces: Sequence[Piece], camera: Camera) -> dict[int, _Form]:
    """The forms of all ellipsoids by their id, all at once and in float64."""
    found: dict[int, Ellipsoid] = {}
    waiting = [solid for piece in pieces for solid in (*piece.inside, *piece.outside)]
    while waiting:
        solid = waiting.pop()
        if isinstance(solid, Common):
            waiting += solid.parts
        elif isinstance(solid, Ellipsoid):
            found[id(solid)] = solid
    if not found:
        return {}
    axes = camera.axes @ np.array([solid.axes for solid in found.values()])
    c = (np.array([solid.centre for solid in found.values()]) - camera.source) @ camera.axes.T
    spread = axes @ axes.transpose(0, 2, 1)
    q = np.linalg.inv(spread)
    qc = np.einsum('nij,nj->ni', q, c)
    disc = qc[:, :, None] * qc[:, None] - ((c * qc).sum(1) - 1)[:, None, None] * q

    # planes n through the source touch an ellipsoid where nᵀ (c cᵀ − axes axesᵀ) n = 0
    touch = c[:, :, None] * c[:, None] - spread
    middle = touch[:, :2, 2] / touch[:, 2:, 2]
    half = np.sqrt(np.maximum(middle**2 - touch[:, [0, 1], [0, 1]] / touch[:, 2:, 2], 0))
    boxes = _boxes(camera, middle - half, middle + half)

    at = np.concatenate([middle, np.ones((len(c), 1))], 1)
    b = np.stack([(qc * at).sum(1), qc[:, 0], qc[:, 1]], 1)
    parts = middle.tolist(), _around(disc, at).tolist(), _around(q, at).tolist(), b.tolist()
    return {key: _Form(box, u, v, d, a, b) for key, box, (u, v), d, a, b in zip(found, boxes, *parts, strict=True)}


def _around(form: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(at + (u, v, 0))ᵀ form (at + (u, v, 0)) as coefficients of 1, u, v, u², v², uv: [n,3,3], [n,3] -> [n,6]."""
    slope = np.einsum('nij,nj->ni', form, at)
    const = (slope * at).sum(1)
    return np.stack([const, 2 * slope[:, 0], 2 * slope[:, 1], form[:, 0, 0], form[:, 1, 1], 2 * form[:, 0, 1]], 1)


def _polynomial(form: list[float], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """-> float32 [len(v), len(u)]."""
    c, du, dv, uu, vv, uv = form
    total = (uv * v)[:, None] * u
    total += c + u * (du + uu * u)
    total += (v * (dv + vv * v))[:, None]
    return total


def _boxes(camera: Camera, low: np.ndarray, high: np.ndarray) -> list[Box | None]:
    """The pixels whose centres can lie between corners (u, v), [n,2] each; None where there are none."""
    ends = [
        np.searchsorted(grid, x).tolist() for grid, k in ((camera.v, 1), (camera.u, 0)) for x in (low[:, k], high[:, k])
    ]
    return [
        (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None
        for top, bottom, left, right in zip(*ends, strict=True)
    ]


def _overlap(a: Box, b: Box | None) -> Box | None:
    if b is None:
        return None
    rows = slice(max(a[0].start, b[0].start), min(a[0].stop, b[0].stop))
    cols = slice(max(a[1].start, b[1].start), min(a[1].stop, b[1].stop))
    return (rows, cols) if rows.start < rows.stop and cols.start < cols.stop else None


def _shift(box: Box, own: Box) -> Box:
    """A box of the picture in the coordinates of a larger box."""
    (r, c), (r0, c0) = box, own
    return slice(r.start - r0.start, r.stop - r0.start), slice(c.start - c0.start, c.stop - c0.start)
