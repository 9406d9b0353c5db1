"""Line integrals of attenuation along the rays of an X-ray source, in closed form.

A scene is a list of pieces. A piece has a density in 1/cm on the intersection of some convex solids, minus the union of
other solids. A ray meets a convex solid in one interval of depth, so every integral is a sum of interval lengths:

    P(u, v) = ∫ mu dl = |(u, v, 1)| · Σ_pieces density · ( |∩ inside| − |∩ inside ∩ (∪ outside)| )

The union is written out by inclusion and exclusion. For example, |A ∩ (B ∪ C)| = |A ∩ B| + |A ∩ C| − |A ∩ B ∩ C|.

World coordinates are cm: x to the patient's left, y to the feet, z to the back. Camera coordinates: u along the columns
of the image, v along its rows, w along the central ray. A ray is t · (u, v, 1). Its depth is t minus the distance of
the isocentre, so that float32 resolves 1e-4 cm.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

Box = tuple[slice, slice]  # rows and columns of the image
Interval = tuple[np.ndarray, np.ndarray]  # depth where rays enter and leave, float32 [rows,cols]; empty: far < near


class Ellipsoid(NamedTuple):
    """centre + axes @ (unit ball)."""

    centre: np.ndarray  # [3]
    axes: np.ndarray  # [3,3], the semi-axes as columns


class Plate(NamedTuple):
    """The points p with low <= normal · p <= high; a half-space where one bound is infinite.

    `hull` holds points whose convex hull contains all that the pieces use of the plate. It only saves time.
    """

    normal: np.ndarray  # [3]
    low: float
    high: float
    hull: np.ndarray | None = None  # [n,3]


class Intersection(NamedTuple):
    """The intersection of convex solids. Pieces that share this object also share its computed intervals."""

    solids: tuple[Solid, ...]


Solid = Ellipsoid | Plate | Intersection


class SolidPiece(NamedTuple):
    """A piece of the body: the space inside some solids and outside others, with one density."""

    density: float  # 1/cm, added to what is around the piece
    inside: tuple[Solid, ...]
    outside: tuple[Solid, ...] = ()
    name: str = ''  # for masks: the length of pieces with a name is returned, too


class Camera(NamedTuple):
    """A point source and a flat detector."""

    source: np.ndarray  # float64 [3], in the world
    axes: np.ndarray  # float64 [3,3]: the directions u, v, w as rows; orthonormal, and may be a reflection
    distance: float  # cm from the source to the isocentre
    u: np.ndarray  # float32 [W], tangents of the columns
    v: np.ndarray  # float32 [H], tangents of the rows


def project(pieces: Sequence[SolidPiece], camera: Camera) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the line integrals P = ∫ mu dl, float32 [H,W], and the lengths of named pieces in cm, name -> [H,W]."""
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


def _lengths(piece: SolidPiece, solids: _Solids) -> Iterator[tuple[Box, np.ndarray]]:
    """Boxes of the image with signed lengths in depth, which add up to the length of the piece."""
    box = solids.common_box(piece.inside)
    if box is None:
        return
    if len(piece.inside) == 1 and not piece.outside and isinstance(piece.inside[0], Ellipsoid):
        yield box, solids.chord(piece.inside[0], box)
        return
    near, far = solids.common_interval(piece.inside, box)
    yield box, np.maximum(far - near, 0)
    outside = [solid for solid in piece.outside if _overlap(box, solids.box(solid)) is not None]
    for count in range(1, len(outside) + 1):
        for chosen in itertools.combinations(outside, count):
            overlap: Box | None = box
            for solid in chosen:
                overlap = overlap and _overlap(overlap, solids.box(solid))
            if overlap is None:
                continue
            inner = _relative(overlap, box)
            low, high = near[inner], far[inner]
            for solid in chosen:
                enter, leave = solids.interval(solid, overlap)
                low, high = np.maximum(low, enter), np.minimum(high, leave)
            length = np.maximum(high - low, 0)
            yield overlap, -length if count % 2 else length


class _Solids:
    """The boxes and intervals of solids under one camera. Each is computed once, on the solid's own box."""

    def __init__(self, pieces: Sequence[SolidPiece], camera: Camera):
        self.camera = camera
        self.full = (slice(0, len(camera.v)), slice(0, len(camera.u)))
        self.boxes: dict[int, Box | None] = {}
        self.intervals: dict[int, Interval] = {}
        self.quadratics = _ray_quadratics(pieces, camera)

    def box(self, solid: Solid) -> Box | None:
        """A box that contains all pixels whose rays meet the solid; None if there are no such pixels."""
        key = id(solid)
        if key not in self.boxes:
            if isinstance(solid, Intersection):
                self.boxes[key] = self.common_box(solid.solids)
            elif isinstance(solid, Ellipsoid):
                self.boxes[key] = self.quadratics[key].box
            elif solid.hull is None:
                self.boxes[key] = self.full
            else:
                points = (solid.hull - self.camera.source) @ self.camera.axes.T
                uv = points[:, :2] / points[:, 2:]
                self.boxes[key] = _boxes(self.camera, uv.min(0)[None], uv.max(0)[None])[0]
        return self.boxes[key]

    def common_box(self, solids: Sequence[Solid]) -> Box | None:
        """The overlap of the boxes of all solids."""
        box: Box | None = self.full
        for solid in solids:
            box = box and _overlap(box, self.box(solid))
        return box

    def common_interval(self, solids: Sequence[Solid], box: Box) -> Interval:
        """The overlap of the intervals of all solids, on a box inside all their boxes."""
        near, far = self.interval(solids[0], box)
        for solid in solids[1:]:
            enter, leave = self.interval(solid, box)
            near, far = np.maximum(near, enter), np.minimum(far, leave)
        return near, far

    def interval(self, solid: Solid, box: Box) -> Interval:
        """The points where rays enter and leave the solid, on a box inside the solid's own box."""
        key, own_box = id(solid), self.box(solid)
        assert own_box is not None, 'the box lies inside it'
        if key not in self.intervals:
            if isinstance(solid, Intersection):
                self.intervals[key] = self.common_interval(solid.solids, own_box)
            elif isinstance(solid, Ellipsoid):
                self.intervals[key] = self._ellipsoid_interval(solid, own_box)
            elif solid.hull is None:
                return self._plate_interval(solid, box)  # its own box is the whole image: computing less is cheaper
            else:
                self.intervals[key] = self._plate_interval(solid, own_box)
        near, far = self.intervals[key]
        inner = _relative(box, own_box)
        return near[inner], far[inner]

    def chord(self, solid: Ellipsoid, box: Box) -> np.ndarray:
        """The length of the interval: 2 sqrt(disc) / a, see `_RayQuadratic`."""
        root, a = self._root_and_a(solid, box)
        root *= 2
        root /= a
        return root

    def _ellipsoid_interval(self, solid: Ellipsoid, box: Box) -> Interval:
        quadratic = self.quadratics[id(solid)]
        root, a = self._root_and_a(solid, box)
        c, bu, bv = quadratic.b
        u, v = self.camera.u[box[1]] - quadratic.u, self.camera.v[box[0]] - quadratic.v
        middle = ((c + bu * u)[None] + (bv * v)[:, None]) / a - np.float32(self.camera.distance)
        half = root / a
        half[root == 0] = -1  # the ray misses the solid: an empty interval
        return middle - half, middle + half

    def _root_and_a(self, solid: Ellipsoid, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """sqrt(max(disc, 0)) and a, on a box."""
        quadratic = self.quadratics[id(solid)]
        u, v = self.camera.u[box[1]] - quadratic.u, self.camera.v[box[0]] - quadratic.v
        root = _polynomial(quadratic.disc, u, v)
        np.sqrt(np.maximum(root, 0, out=root), out=root)
        return root, _polynomial(quadratic.a, u, v)

    def _plate_interval(self, plate: Plate, box: Box) -> Interval:
        """Solves low <= normal · (source + t d) <= high for the depth."""
        camera = self.camera
        normal = (camera.axes @ plate.normal).astype(np.float32)
        u, v = camera.u[box[1]], camera.v[box[0]]
        slope = (normal[0] * u + normal[2])[None] + (normal[1] * v)[:, None]
        slope = np.where(np.abs(slope) < 1e-7, np.float32(1e-7), slope)
        offset = plate.normal @ camera.source
        at_low = np.float32(plate.low - offset) / slope - np.float32(camera.distance)
        at_high = np.float32(plate.high - offset) / slope - np.float32(camera.distance)
        return np.minimum(at_low, at_high), np.maximum(at_low, at_high)


class _RayQuadratic(NamedTuple):
    """The quadratic equation for t at which rays t·d, d = (u, v, 1), meet the surface of an ellipsoid.

    In camera coordinates, with the centre c and Q = (axes axesᵀ)⁻¹:

        t = (b ± sqrt(disc)) / a,   a = dᵀ Q d,   b = cᵀ Q d,   disc = b² − a (cᵀ Q c − 1) = dᵀ D d

    disc, a and b are stored as polynomials in u and v, relative to a point (u, v) near the middle of the ellipsoid:
    anywhere else, disc would be a small difference of large numbers.
    """

    box: Box | None
    u: float
    v: float
    disc: list[float]  # coefficients of 1, u, v, u², v², uv
    a: list[float]
    b: list[float]  # coefficients of 1, u, v


def _ray_quadratics(pieces: Sequence[SolidPiece], camera: Camera) -> dict[int, _RayQuadratic]:
    """The quadratics of all ellipsoids by their id, computed together in float64."""
    ellipsoids: dict[int, Ellipsoid] = {}
    waiting = [solid for piece in pieces for solid in (*piece.inside, *piece.outside)]
    while waiting:
        solid = waiting.pop()
        if isinstance(solid, Intersection):
            waiting += solid.solids
        elif isinstance(solid, Ellipsoid):
            ellipsoids[id(solid)] = solid
    if not ellipsoids:
        return {}
    axes = camera.axes @ np.array([solid.axes for solid in ellipsoids.values()])
    c = (np.array([solid.centre for solid in ellipsoids.values()]) - camera.source) @ camera.axes.T
    spread = axes @ axes.transpose(0, 2, 1)
    q = np.linalg.inv(spread)
    qc = np.einsum('nij,nj->ni', q, c)
    disc = qc[:, :, None] * qc[:, None] - ((c * qc).sum(1) - 1)[:, None, None] * q

    # a plane through the source with normal n touches an ellipsoid where nᵀ (c cᵀ − axes axesᵀ) n = 0
    touch = c[:, :, None] * c[:, None] - spread
    middle = touch[:, :2, 2] / touch[:, 2:, 2]
    half = np.sqrt(np.maximum(middle**2 - touch[:, [0, 1], [0, 1]] / touch[:, 2:, 2], 0))
    boxes = _boxes(camera, middle - half, middle + half)

    at = np.concatenate([middle, np.ones((len(c), 1))], 1)
    b = np.stack([(qc * at).sum(1), qc[:, 0], qc[:, 1]], 1)
    columns = middle.tolist(), _expand_around(disc, at).tolist(), _expand_around(q, at).tolist(), b.tolist()
    return {
        key: _RayQuadratic(box, u, v, d, a, b)
        for key, box, (u, v), d, a, b in zip(ellipsoids, boxes, *columns, strict=True)
    }


def _expand_around(form: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Expands the quadratic form (at + (u, v, 0))ᵀ form (at + (u, v, 0)): [n,3,3], [n,3] -> [n,6].

    The six coefficients are those of 1, u, v, u², v², uv.
    """
    slope = np.einsum('nij,nj->ni', form, at)
    const = (slope * at).sum(1)
    return np.stack([const, 2 * slope[:, 0], 2 * slope[:, 1], form[:, 0, 0], form[:, 1, 1], 2 * form[:, 0, 1]], 1)


def _polynomial(coefficients: list[float], u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The values of a polynomial with coefficients of 1, u, v, u², v², uv: float32 [len(v), len(u)]."""
    c, du, dv, uu, vv, uv = coefficients
    total = (uv * v)[:, None] * u
    total += c + u * (du + uu * u)
    total += (v * (dv + vv * v))[:, None]
    return total


def _boxes(camera: Camera, low: np.ndarray, high: np.ndarray) -> list[Box | None]:
    """The boxes of pixels whose centres lie between the corners (u, v) `low` and `high`, [n,2] each; None if empty."""
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


def _relative(box: Box, outer: Box) -> Box:
    """A box of the image in the coordinates of a larger box around it."""
    (r, c), (r0, c0) = box, outer
    return slice(r.start - r0.start, r.stop - r0.start), slice(c.start - c0.start, c.stop - c0.start)
