"""Near-duplicates: one picture stored twice, at another size, coded again, brightened, or slightly cropped.

A record keeps a thumbnail. Of it come 256 bits, the signs of low frequencies, in which radiographs of different people
differ by nearly half; pairs that are close in bits (exact search) are candidates, and a candidate is a near-duplicate
if its thumbnails agree after the best of a few crops. What a threshold finds and what it misses was measured on real
radiographs: BUILD_NOTES.md, "Audit".
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SIDE = 32  # pixels of a thumbnail
WAVES = 17  # frequencies of an axis that enter the hash: 17 x 17, less the mean, 256 bits of the 288
RADIUS = 56  # bits by which candidates differ at most
ALIKE = 0.97  # correlation of two thumbnails from which on they show one picture
CHUNK = 4096  # queries searched at once


class Pairs(NamedTuple):
    """m pairs of records, the most alike first."""

    first: np.ndarray  # int64 [m], numbers of records
    second: np.ndarray  # int64 [m]
    bits: np.ndarray  # int32 [m], by which their hashes differ
    alike: np.ndarray  # float32 [m], correlation of the thumbnails after the best crop


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """uint8|uint16 [H,W,C] -> uint8 [32,32]: the whole picture squeezed, grey, stretched from its darkest to its
    brightest value, so that size, aspect, depth and window matter little."""
    from PIL import Image

    grey = pixels.astype(np.float32).mean(2)
    small = np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    low, high = small.min(), small.max()
    return np.round((small - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def hashes(thumbs: np.ndarray) -> np.ndarray:
    """[n,32,32] -> uint8 [n,32], 256 bits: the signs of the DCT-II coefficients (u,v), 0 <= u,v < 17, row by row from
    (0,1) on. A constant picture has no sign anywhere and gets zeros."""
    waves = _cosines()
    coefficients = np.einsum('ui,nij,vj->nuv', waves, thumbs.astype(np.float32), waves, optimize=True)
    chosen = coefficients.reshape(len(thumbs), -1)[:, 1:257]
    return np.packbits(chosen > 1e-2, axis=1)


def pairs(thumbs: np.ndarray, others: np.ndarray | None = None) -> Pairs:
    """Near-duplicates within `thumbs` [n,32,32] (first < second), or between them and `others` [m,32,32].

    Of a pair at least one is compared by its whole picture; the other may be a crop of it.
    """
    within = others is None
    others = thumbs if others is None else others
    best: dict[tuple[int, int], int] = {}
    for crop in range(len(_crops())):
        for queries, bank, turned in ((thumbs, others, False), (others, thumbs, True)):
            if turned and (within or crop == 0):
                continue
            for i, j, bits in _search(hashes(_cropped(queries, crop)), hashes(bank)):
                pair = (j, i) if turned else (i, j)
                if within and i == j:
                    continue
                pair = (min(pair), max(pair)) if within else pair
                best[pair] = min(best.get(pair, 256), bits)
    if not best:
        return Pairs(*(np.zeros(0, t) for t in (np.int64, np.int64, np.int32, np.float32)))
    first, second = np.array(list(best), np.int64).T
    bits = np.array(list(best.values()), np.int32)
    alike = agreement(thumbs[first], others[second])
    kept = np.flatnonzero(alike >= ALIKE)
    kept = kept[np.lexsort((second[kept], first[kept], -alike[kept]))]
    return Pairs(first[kept], second[kept], bits[kept], alike[kept])


def agreement(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[m,32,32] x [m,32,32] -> float32 [m]: the largest correlation over the crops of either picture. Flat: 0."""
    best = np.full(len(a), -1.0, np.float32)
    for crop in range(len(_crops())):
        best = np.maximum(best, _correlation(_cropped(a, crop), b))
        best = np.maximum(best, _correlation(a, _cropped(b, crop)))
    return best


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    x, y = (t.reshape(len(t), -1).astype(np.float32) for t in (a, b))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    size = np.sqrt((x * x).sum(1) * (y * y).sum(1))
    return (x * y).sum(1) / np.maximum(size, 1e-6)


def _search(queries: np.ndarray, bank: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """All pairs of packed hashes within RADIUS bits: (query, number in the bank, bits). Exact."""
    import faiss

    index = faiss.IndexBinaryFlat(256)
    index.add(np.ascontiguousarray(bank))
    for start in range(0, len(queries), CHUNK):
        part = np.ascontiguousarray(queries[start : start + CHUNK])
        ends, bits, numbers = index.range_search(part, RADIUS + 1)  # it returns what is nearer than that
        rows = np.repeat(np.arange(start, start + len(part)), np.diff(ends.astype(np.int64)))
        yield from zip(rows.tolist(), numbers.tolist(), bits.astype(int).tolist(), strict=True)


@functools.cache
def _cosines() -> np.ndarray:
    """float32 [17,32], orthonormal."""
    at = (np.arange(SIDE) + 0.5) / SIDE
    waves = np.cos(np.pi * np.arange(WAVES)[:, None] * at) * np.sqrt(2 / SIDE)
    waves[0] /= np.sqrt(2)
    return waves.astype(np.float32)


@functools.cache
def _crops() -> tuple[tuple[float, float, float], ...]:
    """(size, top, left) as shares of the side: the whole, and nine places each of crops of 92 and 84 %."""
    places = [(1.0, 0.0, 0.0)]
    for size in (0.92, 0.84):
        places += [(size, (1 - size) * y, (1 - size) * x) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)]
    return tuple(places)


def _cropped(thumbs: np.ndarray, crop: int) -> np.ndarray:
    """[n,32,32] -> float32 [n,32,32]: one of the crops, linear in between."""
    size, top, left = _crops()[crop]
    rows, columns = (_sampling(size, start) for start in (top, left))
    return np.einsum('ai,nij,bj->nab', rows, thumbs.astype(np.float32), columns, optimize=True)


@functools.cache
def _sampling(size: float, start: float) -> np.ndarray:
    """[32,32]: linear interpolation at the pixel centres of the part [start, start + size] of an axis."""
    at = np.clip((start + size * (np.arange(SIDE) + 0.5) / SIDE) * SIDE - 0.5, 0, SIDE - 1)
    weights = np.maximum(1 - np.abs(at[:, None] - np.arange(SIDE)), 0)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


# placeholder
SURE = 16


class Found(NamedTuple):
    first: np.ndarray
    second: np.ndarray
    bits: np.ndarray
    alike: np.ndarray
    notes: tuple = ()


def candidates(thumbs):
    return Found(*pairs(np.ascontiguousarray(thumbs)))


def near(queries, bank, radius=RADIUS):
    import faiss

    index = faiss.IndexBinaryFlat(256)
    index.add(np.ascontiguousarray(bank))
    ends, bits, numbers = index.range_search(np.ascontiguousarray(queries), radius + 1)
    return np.repeat(np.arange(len(queries)), np.diff(ends.astype(np.int64))), numbers, bits


def agree(a, b):
    return float(agreement(thumbnail(a)[None], thumbnail(b)[None])[0])


def groups(first, second, n):
    parent = np.arange(n)
    for a, b in zip(first, second):
        while parent[a] != a:
            a = parent[a]
        while parent[b] != b:
            b = parent[b]
        parent[max(a, b)] = min(a, b)
    for i in range(n):
        parent[i] = parent[parent[i]]
    return parent
