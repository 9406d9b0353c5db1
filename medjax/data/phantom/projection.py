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
                self.boxes[key] = self._pixels(*self.forms[key][0])
            elif solid.hull is None:
                self.boxes[key] = self.full
            else:
                points = (solid.hull - self.camera.source) @ self.camera.axes.T
                uv = points[:, :2] / points[:, 2:]
                self.boxes[key] = self._pixels(uv.min(0), uv.max(0))
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
        """2 sqrt(disc) / a, see `_forms`."""
        root, a, _ = self._roots(solid, box)
        root *= 2
        root /= a
        return root

    def _ellipsoid(self, solid: Ellipsoid, box: Box) -> Interval:
        root, a, b = self._roots(solid, box)
        middle, half = b / a - np.float32(self.camera.distance), root / a
        half[root == 0] = -1  # missed: an empty interval
        return middle - half, middle + half

    def _roots(self, solid: Ellipsoid, box: Box):
        """sqrt(max(disc, 0)), a and b on a box, from their polynomials around the middle of the box."""
        _, disc, a, b = self.forms[id(solid)]
        u, v = self.camera.u[box[1]], self.camera.v[box[0]]
        d0 = np.array([u[len(u) // 2], v[len(v) // 2], 1.0])
        u, v = u - np.float32(d0[0]), v - np.float32(d0[1])
        root = _quadratic(disc, d0, u, v)
        np.sqrt(np.maximum(root, 0, out=root), out=root)
        c = np.float32(b @ d0)
        return root, _quadratic(a, d0, u, v), (c + np.float32(b[0]) * u)[None] + (np.float32(b[1]) * v)[:, None]

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

    def _pixels(self, low: np.ndarray, high: np.ndarray) -> Box | None:
        """The pixels whose centres can lie between two corners (u, v)."""
        top, bottom = np.searchsorted(self.camera.v, [low[1], high[1]])
        left, right = np.searchsorted(self.camera.u, [low[0], high[0]])
        return (slice(int(top), int(bottom)), slice(int(left), int(right))) if top < bottom and left < right else None


def _forms(pieces: Sequence[Piece], camera: Camera) -> dict[int, tuple]:
    """With Q = (axes axesᵀ)⁻¹ and centre c in camera coordinates, a ray t·d, d = (u, v, 1), meets the surface at

        t = (b ± sqrt(disc)) / a,   a = dᵀ Q d,   b = cᵀ Q d,   disc = b² − a (cᵀ Q c − 1) = dᵀ D d.

    Planes n through the source touch it where nᵀ (c cᵀ − axes axesᵀ) n = 0, which bounds its shadow on the detector.
    -> id of each ellipsoid -> corners of the shadow [2,2], D, Q, Q c: float64, as disc is a small difference of
    large numbers.
    """
    found: dict[int, Ellipsoid] = {}
    waiting = [solid for piece in pieces for solid in (*piece.inside, *piece.outside)]
    while waiting:
        solid = waiting.pop()
        if isinstance(solid, Common):
            waiting += solid.parts
        elif isinstance(solid, Ellipsoid):
            found[id(solid)] = solid
    axes = camera.axes @ np.array([solid.axes for solid in found.values()])
    c = (np.array([solid.centre for solid in found.values()]) - camera.source) @ camera.axes.T
    spread = axes @ axes.transpose(0, 2, 1)
    q = np.linalg.inv(spread)
    qc = np.einsum('nij,nj->ni', q, c)
    disc = qc[:, :, None] * qc[:, None] - ((c * qc).sum(1) - 1)[:, None, None] * q
    touch = c[:, :, None] * c[:, None] - spread
    middle = touch[:, :2, 2] / touch[:, 2:, 2]
    half = np.sqrt(np.maximum(middle**2 - touch[:, [0, 1], [0, 1]] / touch[:, 2:, 2], 0))
    corners = np.stack([middle - half, middle + half], 1)
    return dict(zip(found, zip(corners, disc, q, qc)))


def _quadratic(form: np.ndarray, d0: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """(d0 + (u, v, 0))ᵀ form (d0 + (u, v, 0)) for a symmetric form -> float32 [len(v), len(u)]."""
    const, (du, dv, _) = d0 @ form @ d0, 2 * d0 @ form
    c, du, dv, uu, vv, uv = np.float32([const, du, dv, form[0, 0], form[1, 1], 2 * form[0, 1]])
    total = (uv * v)[:, None] * u[None]
    total += (c + u * (du + uu * u))[None]
    total += (v * (dv + vv * v))[:, None]
    return total


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
