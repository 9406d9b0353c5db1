"""Near-duplicates: one picture stored twice, at another size, coded again, brightened, marked or slightly cropped.

    found = similar.candidates(thumbs)              # of every picture its `thumbnail`, kept in the data set
    same = similar.agreed(found.first, found.second, image) >= similar.ALIKE        # image(i) -> pixels [H,W,C]
    similar.groups(found.first[same], found.second[same], len(thumbs))

Three looks, each finer and dearer than the one before:
1. 256 bits of a thumbnail, the signs of its low frequencies: the perceptual DCT hash (Zauner, "Implementation and
   Benchmarking of Perceptual Image Hash Functions", 2010) with four times its bits, as chests share the lowest. Every
   picture is searched with as a whole, by nine crops, whose bits a crop's own are near to, and as a negative.
2. Thumbnails, one laid upon the other by Gauss-Newton steps over scale and shift (inverse compositional: Baker and
   Matthews, "Lucas-Kanade 20 Years On", 2004), compared in a band of frequencies above those that all chests share.
3. `agree`: the same on 64 x 64 pixels, with any curve of grey values. It needs both pictures, so it is the caller's.

Not found are mirrored and turned pictures, crops of 15 % and more for the most part, and flat pictures, of which equal
ones are known by the hash of their pixels. Measured recall and false pairs: BUILD_NOTES.md, benchmarks/similar.py.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from medjax.data.audit import alignment

SIDE = 32  # pixels of a thumbnail
WAVES = 17  # frequencies of an axis that enter the hash: 17 x 17 without the mean, 256 of 288
RADIUS = 60  # bits: under 1e-4 of the pairs of different patients are as near in any view
TIGHT = 52  # bits in large sets, where 60 would bring tens of millions of false pairs
SURE = 30  # bits at which hashes alone tell, where no thumbnail may be kept: 40 and fewer were never two patients
LIKELY = 0.98  # agreement of thumbnails worth opening: above it are 98 % of what JPEG at quality 50 leaves of 28 pixels
ALIKE = 0.985  # agreement of pixels of one picture: follow-ups of a patient reach 0.98, other patients 0.93
MOST = 32  # pairs of a picture that are kept, the nearest: 10,000 copies make 320,000 pairs, not 50 million
EVERY = 10**10  # comparisons of a view up to which every view meets every picture: those of 100,000 pictures
CELLS, PROBES = 2048, 16  # beyond that crops meet the pictures of 16 cells of 2,048, of what is near 97 to 99 %
CROP = 0.92  # side of the nine crops: near to crops of 3 to 12 %
LOOK = 64  # pixels of a side at which `agree` looks; at 32 where both pictures have a side below 48, which is blur


class Pairs(NamedTuple):
    """m pairs of pictures, the most alike first."""

    first: np.ndarray  # int64 [m], numbers of pictures
    second: np.ndarray  # int64 [m]
    bits: np.ndarray  # int64 [m], by which the hashes of the nearest view differ
    alike: np.ndarray  # float32 [m], agreement of the thumbnails, LIKELY to 1
    every: bool  # whether every view met every picture at RADIUS; else crops met near cells only, all at TIGHT


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """uint8|uint16 [H,W,C] -> uint8 [32,32]: the whole picture squeezed, grey, stretched from its darkest to its
    brightest value, so that size, aspect, depth and window matter little. A flat picture gives zeros."""
    small = alignment.squeezed(pixels, SIDE)
    low, high = small.min(), small.max()
    return np.round((small - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def hashes(thumbs: np.ndarray) -> np.ndarray:
    """[n,32,32] -> uint8 [n,32], 256 bits: whether the DCT-II coefficients (u,v), 0 <= u,v < 17, are positive, row by
    row from (0,1) on. Flat thumbnails give zeros, and nothing else does."""
    return _seen(thumbs, np.arange(len(thumbs)), 0)[0]


def near(queries: np.ndarray, bank: np.ndarray, radius: int = RADIUS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """first, second, bits, int64 [p]: pairs of packed hashes [n,32] and [m,32] that differ by `radius` bits at most.

    Exact, of whole pictures, the MOST nearest of each query. Hashes of flat pictures (no bit set) are near to nothing.
    """
    ours, theirs = np.flatnonzero(queries.any(1)), np.flatnonzero(bank.any(1))
    first, second, bits = _search(queries[ours], bank[theirs], radius)
    return ours[first], theirs[second], bits.astype(np.int64)


def candidates(thumbs: np.ndarray, others: np.ndarray | None = None) -> Pairs:
    """Likely near-duplicates within `thumbs` [n,32,32] (first < second), or between them and `others` [m,32,32].

    Hashes are searched exactly, at RADIUS bits, for each whole picture, its nine crops and its negative. BEYOND
    n m = EVERY (100,000 pictures) THE RADIUS IS TIGHT, AND CROPS AND NEGATIVES MEET ONLY THE 1 % OF THE PICTURES IN
    THE NEAREST CELLS OF 15 LOW FREQUENCIES: `every` is False then, and fewer crops and markers are found.

    Of equal thumbnails the first alone is searched with; the others are paired with it (bits 0, alike 1) or, between
    two sets, have its pairs in `thumbs` and are left out in `others`. A picture keeps the MOST nearest; `groups`
    makes whole what that leaves open. Flat thumbnails are in no pair.
    """
    within = others is None
    ours, copies, original = _distinct(thumbs)
    others, theirs = (thumbs, ours) if others is None else (others, _distinct(others)[0])
    every = len(ours) * len(theirs) <= EVERY
    found = _near(thumbs, ours, others, theirs, within, every)
    alike = _agreements(thumbs, others, ours[found.first], theirs[found.second], found.view)
    likely = np.flatnonzero(alike >= LIKELY)
    first, second = ours[found.first[likely]], theirs[found.second[likely]]
    bits, alike = found.bits[likely].astype(np.int64), alike[likely]
    if within:
        first, second = np.concatenate([first, original]), np.concatenate([second, copies])
        bits = np.concatenate([bits, np.zeros(len(copies), np.int64)])
        alike = np.concatenate([alike, np.ones(len(copies), np.float32)])
        first, second = np.minimum(first, second), np.maximum(first, second)
    elif len(copies):
        order = np.argsort(first, kind='stable')
        start, stop = (np.searchsorted(first[order], original, side) for side in ('left', 'right'))
        copy = np.repeat(np.arange(len(copies)), stop - start)
        pair = order[np.arange(len(copy)) - np.repeat(np.cumsum(stop - start) - stop, stop - start)]
        first, second = np.concatenate([first, copies[copy]]), np.concatenate([second, second[pair]])
        bits, alike = np.concatenate([bits, bits[pair]]), np.concatenate([alike, alike[pair]])
    order = np.lexsort((second, first, -alike))
    return Pairs(first[order], second[order], bits[order], alike[order], every)


def agree(a: np.ndarray, b: np.ndarray) -> float:
    """How far two pictures, uint8|uint16 [H,W,C] of any size, are one: 0 to 1; from ALIKE on they are.

    Both are squeezed to 64 x 64 (32 x 32 where each has a side below 48). One is laid upon the other by scale and
    shift of either axis, from the best of 19 crops (either picture may be the crop); its grey values g become the cubic
    c0 + c1 g + c2 g^2 + c3 g^3 nearest to the other's; both pass the band; the agreement is their correlation without
    the 4 of 64 blocks that differ most, where a marker may be. A negative agrees, a mirrored picture does not, a flat
    one agrees with nothing: 0.
    """
    side = LOOK if max(min(a.shape[:2]), min(b.shape[:2])) >= 48 else LOOK // 2
    pair = np.stack([alignment.squeezed(a, side), alignment.squeezed(b, side)])
    low, high = pair.min((1, 2), keepdims=True), pair.max((1, 2), keepdims=True)
    if (high - low < 1e-3).any():
        return 0.0
    pair = (pair - low) / (high - low)
    places = np.concatenate([_crops(1.0)[:1], _crops(CROP), _crops(0.84)])
    both = ((pair[0], pair[1]), (pair[1], pair[0]))
    wide = [alignment.band(alignment.warped(one[None], places)) for one, _ in both]
    met = np.stack([(seen * alignment.band(other[None])).mean((1, 2)) for seen, (_, other) in zip(wide, both)])
    turn, start = np.unravel_index(np.argsort(-abs(met), axis=None)[:3], met.shape)
    sign = np.sign(met[turn, start])[:, None, None]
    image, target = sign * pair[turn], pair[1 - turn]
    laid = alignment.laid(image, target, places[start], steps=10)
    return max(0.0, float(alignment.agreement(alignment.curved(laid, target), target).max()))


def agreed(first: np.ndarray, second: np.ndarray, image: Callable[[int], np.ndarray]) -> np.ndarray:
    """float64 [m]: `agree` of m pairs of pictures, which `image` opens by number. A progress bar on a terminal."""
    from tqdm import tqdm

    picture = functools.lru_cache(64)(image)  # a picture has several pairs, near each other
    pairs = list(zip(first.tolist(), second.tolist(), strict=True))
    bar = tqdm(pairs, 'near-duplicates', unit=' pairs', disable=None, leave=False)
    return np.array([agree(picture(i), picture(j)) for i, j in bar], np.float64)


def groups(first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """int64 [n]: the connected components of n pictures under pairs, each named by its smallest number."""
    group = np.arange(n)
    while True:
        joined, smaller = group.copy(), np.minimum(group[first], group[second])
        for side in (first, second):
            np.minimum.at(joined, group[side], smaller)  # the head of a group joins the smaller group
        while (joined != joined[joined]).any():  # and its members follow
            joined = joined[joined]
        if (joined == group).all():
            return group
        group = joined


# The views of a picture, their bits and low frequencies


def _crops(size: float) -> np.ndarray:
    """float32 [9,4]: nine places of a crop of `size` as places of `align`."""
    shifts = (0.0, size - 1, 1 - size)
    return np.array([(size, down, size, across) for down in shifts for across in shifts], np.float32)


_PLACES = np.concatenate([_crops(1.0)[:1], _crops(CROP), _crops(1.0)[:1]])  # the whole, nine crops, the negative
_NEGATIVE = len(_PLACES) - 1


@functools.cache
def _basis(view: int) -> np.ndarray:
    """float32 [1024,256]: a thumbnail times these are its coefficients in a view."""
    at, waves = (np.arange(SIDE) + 0.5) / SIDE, np.arange(WAVES)[:, None]
    cosines = np.cos(np.pi * waves * at) * np.sqrt(np.where(waves > 0, 2, 1) / SIDE)
    place = _PLACES[view : view + 1]
    down, across = (
        cosines @ alignment.sampling(place[:, :2], SIDE)[0],
        cosines @ alignment.sampling(place[:, 2:], SIDE)[0],
    )
    basis = np.einsum('ui,vj->ijuv', down, across).reshape(SIDE * SIDE, WAVES * WAVES)[:, 1:257]
    return np.ascontiguousarray(-basis if view == _NEGATIVE else basis, np.float32)


def _seen(thumbs: np.ndarray, chosen: np.ndarray, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the chosen pictures in a view, uint8 [n,32], the packed bits, and float32 [n,15], the coefficients (u,v) below
    (4,4) as a unit vector."""
    bits, lows = np.zeros((len(chosen), 32), np.uint8), np.zeros((len(chosen), 15), np.float32)
    low = (np.arange(4)[:, None] * WAVES + np.arange(4)).ravel()[1:] - 1
    for start in range(0, len(chosen), 4096):
        part = thumbs[chosen[start : start + 4096]]
        waves = part.reshape(len(part), -1).astype(np.float32) @ _basis(view)
        bits[start : start + 4096] = np.packbits(waves > 1e-2, axis=1)  # beyond rounding, or flat ones had bits
        few = waves[:, low]
        lows[start : start + 4096] = few / np.maximum(np.linalg.norm(few, axis=1, keepdims=True), 1e-6)
    return bits, lows


def _distinct(thumbs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first of each kind of equal thumbnails that are not flat, the other ones, and the first of each of those."""
    rows = np.ascontiguousarray(thumbs).reshape(len(thumbs), SIDE * SIDE).view(np.uint64)
    odd = np.random.default_rng(0).integers(1 << 64, size=SIDE * SIDE // 8, dtype=np.uint64) | np.uint64(1)
    shaped = np.flatnonzero(rows.any(1))  # a flat one is all zeros
    sums = (rows @ odd)[shaped]  # modulo 2^64: equal for equal rows, and by chance for one pair of millions of millions
    _, kinds, kind = np.unique(sums, return_index=True, return_inverse=True)
    original = shaped[kinds[kind]]
    copy = original != shaped
    return np.sort(shaped[kinds]), shaped[copy], original[copy]


# Pairs of near bits; first and second are int32, bits uint8


class _Found(NamedTuple):
    first: np.ndarray  # int32 [m]
    second: np.ndarray  # int32 [m]
    bits: np.ndarray  # uint8 [m]
    view: np.ndarray  # int8 [m], of the first picture; where negative, of the second


def _near(
    thumbs: np.ndarray, ours: np.ndarray, others: np.ndarray, theirs: np.ndarray, within: bool, every: bool
) -> _Found:
    """The pairs of the chosen pictures that are near in any view, of each picture the MOST nearest."""
    hashed, lows = _seen(thumbs, ours, 0)
    known, known_lows = (hashed, lows) if within else _seen(others, theirs, 0)
    radius = RADIUS if every else TIGHT
    found = _of_view(*_search(hashed, known, radius, half=within), 0)
    crops_of = [(thumbs, ours, known, None if every else _cells(known_lows), 1)]
    if not within:
        crops_of.append((others, theirs, hashed, None if every else _cells(lows), -1))
    for view in range(1, len(_PLACES)):
        parts = [found]
        for pictures, chosen, bank, cells, turn in crops_of[: 1 if view == _NEGATIVE else 2]:
            bits, low = _seen(pictures, chosen, view)
            pairs = _search(bits, bank, radius) if cells is None else _search_cells(bits, low, bank, cells)
            parts.append(_of_view(*(pairs if turn > 0 else (pairs[1], pairs[0], pairs[2])), turn * view))
        found = _merged(parts, within)
    return found


def _of_view(first: np.ndarray, second: np.ndarray, bits: np.ndarray, view: int) -> _Found:
    return _Found(first, second, bits, np.full(len(first), view, np.int8))


def _merged(parts: list[_Found], within: bool) -> _Found:
    """Each pair once, in the view where it is nearest; within one set, not with itself and first < second."""
    found = _Found(*map(np.concatenate, zip(*parts)))
    if within:
        turned = found.first > found.second
        ends = np.minimum(found.first, found.second), np.maximum(found.first, found.second)
        found = _Found(*ends, found.bits, np.where(turned, -found.view, found.view))
        found = _Found(*(column[found.first < found.second] for column in found))
    order = np.lexsort((found.bits, found.second, found.first))
    found = _Found(*(column[order] for column in found))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(found.first) > 0) | (np.diff(found.second) > 0)
    found = _Found(*(column[new] for column in found))
    kept = _nearest(found.first, found.bits)
    return _Found(*(column[kept] for column in found))


def _nearest(first: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The numbers of the pairs that are among the MOST nearest of their first picture."""
    if not len(first) or np.bincount(first - first.min()).max() <= MOST:
        return np.arange(len(first))
    order = np.lexsort((bits, first))
    starts = np.flatnonzero(np.diff(first[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(order[rank < MOST])


def _search(
    queries: np.ndarray, bank: np.ndarray, radius: int, half: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """first, second, bits: packed hashes within `radius`, of a query the MOST nearest; half: first < second."""
    block, few = 65_536, 512  # a bank that stays in the cache; an answer of 400 MB where all are equal
    indices = [_index(bank[start : start + block]) for start in range(0, len(bank), block)]
    parts = []
    for start in range(0, len(queries), few):
        mine = []
        for b in range(start // block if half else 0, len(indices)):
            first, second, bits = _range(indices[b], queries[start : start + few], radius)
            second += b * block
            kept = np.flatnonzero(first + start < second) if half else slice(None)
            mine.append((first[kept], second[kept], bits[kept]))
        first, second, bits = _joined(mine)
        kept = _nearest(first, bits)
        parts.append((first[kept] + np.int32(start), second[kept], bits[kept]))
    return _joined(parts)


def _search_cells(
    queries: np.ndarray, lows: np.ndarray, bank: np.ndarray, cells: tuple
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As _search at TIGHT, of the hashes [n,32] with low frequencies [n,15] in the PROBES nearest cells of the bank."""
    coarse, members = cells
    indices = [_index(bank[numbers]) for numbers in members]
    parts, many = [], 1 << 18
    for start in range(0, len(queries), many):
        cell = coarse.search(lows[start : start + many], min(PROBES, len(members)))[1]
        query = np.argsort(cell.astype(np.uint16).ravel(), kind='stable') // cell.shape[1]
        ends = np.cumsum(np.bincount(cell.ravel(), minlength=len(members)))
        mine = []
        for numbers, index, asking in zip(members, indices, np.split(query.astype(np.int32), ends[:-1])):
            few = 1 + (1 << 25) // max(1, len(numbers))  # a cell may be a crowd of copies: as in _search, 400 MB
            for at in range(0, len(asking), few):
                some = asking[at : at + few]
                first, second, bits = _range(index, queries[start + some], TIGHT)
                kept = _nearest(first, bits)
                mine.append((some[first[kept]], numbers[second[kept]], bits[kept]))
        first, second, bits = _joined(mine)
        kept = _nearest(first, bits)
        parts.append((first[kept] + np.int32(start), second[kept], bits[kept]))
    return _joined(parts)


def _cells(lows: np.ndarray) -> tuple:
    """faiss's index of the centres of cells, and of each cell the numbers of its pictures, int32."""
    import faiss

    number = max(1, min(CELLS, len(lows) // 40))
    some = lows[np.random.default_rng(0).permutation(len(lows))[: 64 * number]]
    means = faiss.Kmeans(lows.shape[1], number, niter=8, seed=0)
    means.train(np.ascontiguousarray(some))
    cell = means.index.search(lows, 1)[1][:, 0]
    order = np.argsort(cell, kind='stable').astype(np.int32)
    return means.index, np.split(order, np.cumsum(np.bincount(cell, minlength=number))[:-1])


def _index(bank: np.ndarray):
    import faiss

    index = faiss.IndexBinaryFlat(256)
    index.add(np.ascontiguousarray(bank))
    return index


def _range(index, queries: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ends, bits, second = index.range_search(np.ascontiguousarray(queries), radius + 1)  # it returns what is nearer
    first = np.repeat(np.arange(len(queries), dtype=np.int32), np.diff(ends.astype(np.int64)))
    return first, second.astype(np.int32), np.asarray(bits).astype(np.uint8)


def _joined(parts: list) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [tuple(np.zeros(0, kind) for kind in (np.int32, np.int32, np.uint8)), *parts]
    first, second, bits = (np.concatenate(columns) for columns in zip(*parts))
    return first, second, bits


def _agreements(thumbs: np.ndarray, others: np.ndarray, first: np.ndarray, second: np.ndarray, view: np.ndarray):
    """float32 [m]: agreement of the thumbnails of pairs, each laid from the view that made it a candidate."""

    def part(chosen: np.ndarray) -> np.ndarray:
        a, b = thumbs[first[chosen]].astype(np.float32), others[second[chosen]].astype(np.float32)
        turned = (view[chosen] < 0)[:, None, None]
        wide, tight = np.where(turned, b, a), np.where(turned, a, b)
        seen = abs(view[chosen])
        wide *= np.where(seen == _NEGATIVE, -1, 1).astype(np.float32)[:, None, None]
        return alignment.agreement(alignment.laid(wide, tight, _PLACES[seen], steps=5), tight)

    parts = [np.arange(start, min(start + 64, len(first))) for start in range(0, len(first), 64)]  # 64 fit the cache
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return np.concatenate([np.zeros(0, np.float32), *threads.map(part, parts)])
