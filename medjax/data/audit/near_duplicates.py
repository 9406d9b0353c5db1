"""Near-duplicates: one picture stored twice, resized, coded again, brightened, marked or slightly cropped.

    matches = near_duplicates.candidates(thumbs)                  # `thumbnail` of every picture, kept in the data set
    similarity = near_duplicates.pixel_similarities(matches.first, matches.second, image)     # image(i) -> [H,W,C]
    same = similarity >= near_duplicates.SAME_PICTURE
    near_duplicates.clusters(matches.first[same], matches.second[same], len(thumbs))

The search has three stages. Each one is more precise and more expensive than the one before.

1. Hashes of 256 bits: the signs of the low frequencies of a thumbnail. This is the perceptual DCT hash (Zauner,
   "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010) with four times its bits, because all
   chest radiographs share the lowest frequencies. Each picture is searched for in eleven variants: as a whole, as nine
   crops (the hash of a cropped copy is near to one of them), and as a negative.
2. Thumbnails: one is aligned with the other by Gauss-Newton steps over scale and shift (inverse compositional: Baker
   and Matthews, "Lucas-Kanade 20 Years On", 2004). They are compared in a band of frequencies above those that all
   chests share.
3. Pixels: `pixel_similarity` does the same on 64 x 64 pixels and allows any smooth change of grey values. It needs both
   images, so the caller opens them.

Not found: mirrored and turned pictures, most crops of 15 % and more, and flat pictures (equal flat pictures are found
by the hash of their pixels). BUILD_NOTES.md has the measured recall and false matches; benchmarks/similar.py measures
them.
"""

from __future__ import annotations

import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from medjax.data.audit import hash_search, registration

THUMB_SIDE = 32  # pixels
FREQUENCIES = 17  # per axis, in the hash: the first 256 of the 17 x 17 coefficients without the mean

# Bits by which the hashes of two candidates may differ. In every variant, fewer than 1 in 10,000 pairs of images of
# different patients were as near as this.
RADIUS = 60
# The same for large sets, where 60 bits would give tens of millions of false candidates.
LARGE_SET_RADIUS = 52
# Bits up to which hashes alone mean one picture, for files that must not hold thumbnails. Images of two patients
# always differed in more than 40 bits, except for images of equal pixels.
HASH_ONLY_RADIUS = 30
# Two images are opened and compared only if their thumbnails are at least this similar. Of 28-pixel images that were
# coded again as JPEG at quality 50, 98 % lie above it.
LIKELY_SAME = 0.98
# Similarity of pixels from which two pictures are one. Follow-up images of one patient reached 0.98, images of
# different patients 0.93.
SAME_PICTURE = 0.985
# Up to this number of comparisons (100,000 pictures with each other), every variant is compared with every picture.
# Larger sets use the cells of `hash_search` and LARGE_SET_RADIUS.
EXHAUSTIVE_LIMIT = 10**10
# Side of the nine crops, relative to the picture. Their hashes are near to those of copies cropped by 3 to 12 %.
CROP_SIDE = 0.92
# Pixels of a side for `pixel_similarity`. It is half of this where both images have a side below 48 pixels: such images
# would only become blurred at 64.
PIXEL_SIDE = 64
# Pairs of images that are aligned at once. Threads change places after each step of numpy, and that takes longer than a
# step on one pair.
BATCH = 8


class Matches(NamedTuple):
    """m matches of two pictures each, the most similar first."""

    first: np.ndarray  # int64 [m], numbers of pictures
    second: np.ndarray  # int64 [m]
    bits: np.ndarray  # int64 [m]: by how many bits the hashes of the nearest variant differ
    similarity: np.ndarray  # float32 [m]: of the thumbnails, LIKELY_SAME to 1
    exhaustive: bool  # every variant was compared with every picture; if False, crops were compared within cells only


def thumbnail(pixels: np.ndarray) -> np.ndarray:
    """A grey thumbnail: uint8|uint16 [H,W,C] -> uint8 [32,32].

    The whole picture becomes a square, and its darkest to brightest values become 0 to 255. So size, aspect, depth and
    window have little influence. A flat picture gives zeros.
    """
    small = registration.to_square(pixels, THUMB_SIDE)
    low, high = small.min(), small.max()
    return np.round((small - low) * (255 / max(high - low, 1e-6))).astype(np.uint8)


def hashes(thumbs: np.ndarray) -> np.ndarray:
    """The perceptual hashes of thumbnails: [n,32,32] -> uint8 [n,32], 256 packed bits.

    A bit says whether the DCT-II coefficient (u,v), 0 <= u,v < 17, is positive, row by row from (0,1) on. Flat
    thumbnails give zeros, and no other thumbnail does.
    """
    return _describe(_Pictures(thumbs, np.arange(len(thumbs))), 0)[0]


def near_hashes(
    queries: np.ndarray, bank: np.ndarray, radius: int = RADIUS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds hashes of `queries` [n,32] and `bank` [m,32] that differ in at most `radius` bits.

    Returns first, second, bits, int64 [k]. The search is exact. It compares whole pictures only, and keeps the MAX_HITS
    nearest of each query. A hash without a set bit (of a flat picture) is near to nothing.
    """
    filled, bank_filled = np.flatnonzero(queries.any(1)), np.flatnonzero(bank.any(1))
    first, second, bits = hash_search.search(queries[filled], bank[bank_filled], radius)
    return filled[first], bank_filled[second], bits.astype(np.int64)


def candidates(thumbs: np.ndarray, others: np.ndarray | None = None) -> Matches:
    """Likely near-duplicates within `thumbs` [n,32,32] (first < second), or between them and `others` [m,32,32].

    Up to n m = EXHAUSTIVE_LIMIT (100,000 pictures within one set), every whole picture, crop and negative is compared
    with every picture, at RADIUS bits. The search of larger sets is approximate, and `exhaustive` is False: the radius
    is LARGE_SET_RADIUS, and crops and negatives are compared only with the 1 % of the pictures in the nearest cells of
    15 low frequencies. It finds fewer crops and marked copies.

    Only the first of several equal thumbnails is searched. Within one set, its copies become matches with 0 bits and
    similarity 1. Between two sets, copies in `thumbs` get the matches of the first; copies in `others` are left out.
    The search keeps the MAX_HITS nearest of a picture; `clusters` joins what this leaves out. A flat thumbnail has no
    match.
    """
    pictures, copies, originals = _distinct(thumbs)
    other_pictures = None if others is None else _distinct(others)[0]
    bank = pictures if other_pictures is None else other_pictures
    exhaustive = len(pictures.numbers) * len(bank.numbers) <= EXHAUSTIVE_LIMIT
    hits = _search_variants(pictures, other_pictures, exhaustive)
    first, second = pictures.numbers[hits.first], bank.numbers[hits.second]
    similarity = _thumb_similarities(thumbs, bank.thumbs, first, second, hits.variant)
    likely = np.flatnonzero(similarity >= LIKELY_SAME)
    first, second, similarity = first[likely], second[likely], similarity[likely]
    bits = hits.bits[likely].astype(np.int64)
    if others is None:
        first, second = np.concatenate([first, originals]), np.concatenate([second, copies])
        bits = np.concatenate([bits, np.zeros(len(copies), np.int64)])
        similarity = np.concatenate([similarity, np.ones(len(copies), np.float32)])
        first, second = np.minimum(first, second), np.maximum(first, second)
    elif len(copies):
        order = np.argsort(first, kind='stable')
        start, stop = (np.searchsorted(first[order], originals, side) for side in ('left', 'right'))
        copy = np.repeat(np.arange(len(copies)), stop - start)  # copy and match: one line for each match of an original
        match = order[np.arange(len(copy)) - np.repeat(np.cumsum(stop - start) - stop, stop - start)]
        first, second = np.concatenate([first, copies[copy]]), np.concatenate([second, second[match]])
        bits, similarity = np.concatenate([bits, bits[match]]), np.concatenate([similarity, similarity[match]])
    order = np.lexsort((second, first, -similarity))
    return Matches(first[order], second[order], bits[order], similarity[order], exhaustive)


def pixel_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """The similarity, 0 to 1, of two images uint8|uint16 [H,W,C] of any size. SAME_PICTURE or more means one picture.

    1. Both are resized to 64 x 64 pixels (32 x 32 where both have a side below 48).
    2. One is aligned with the other by scale and shift of each axis. The start is the best of 19 crops, and either
       picture may be the cropped one.
    3. Its grey values g become c0 + c1 g + c2 g² + c3 g³ with the c that bring it nearest to the other.
    4. The result is the correlation of their details, without the 4 of 64 blocks that differ most.

    A negative counts as the same picture, a mirrored picture does not, and a flat picture is similar to nothing (0).
    """
    return float(_similarities(_squares(a, b)[None])[0])


def pixel_similarities(first: np.ndarray, second: np.ndarray, image: Callable[[int], np.ndarray]) -> np.ndarray:
    """float64 [m]: `pixel_similarity` of m matches. `image` opens a picture by its number; threads call it.

    Shows a progress bar on a terminal.
    """
    from tqdm import tqdm

    cached = functools.lru_cache(64)(image)  # the matches of one picture are near each other in the list

    def of_batch(start: int) -> np.ndarray:
        chosen = slice(start, start + BATCH)
        pairs = [_squares(cached(i), cached(j)) for i, j in zip(first[chosen].tolist(), second[chosen].tolist())]
        sides = np.array([pair.shape[-1] for pair in pairs])
        values = np.zeros(len(pairs))
        for side in np.unique(sides):
            values[sides == side] = _similarities(np.stack([pair for pair in pairs if pair.shape[-1] == side]))
        return values

    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(first), desc='near-duplicates', unit=' matches', disable=None, leave=False) as bar,
    ):
        similarities = [np.zeros(0)]
        for values in pool.map(of_batch, range(0, len(first), BATCH)):
            similarities.append(values)
            bar.update(len(values))
    return np.concatenate(similarities)


def _squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """float32 [2,S,S]: two images [H,W,C], resized for `pixel_similarity`."""
    side = PIXEL_SIDE if max(min(a.shape[:2]), min(b.shape[:2])) >= 48 else PIXEL_SIDE // 2
    return np.stack([registration.to_square(a, side), registration.to_square(b, side)])


def _similarities(pairs: np.ndarray) -> np.ndarray:
    """float32 [m]: `pixel_similarity` of m pairs of resized images, float32 [m,2,S,S]."""
    low, high = pairs.min((2, 3), keepdims=True), pairs.max((2, 3), keepdims=True)
    filled = np.flatnonzero((high - low >= 1e-3).all((1, 2, 3)))
    similarities = np.zeros(len(pairs), np.float32)
    if not len(filled):
        return similarities
    images = ((pairs - low) / np.maximum(high - low, 1e-3))[filled]
    correlations = np.stack([_correlations(pair) for pair in images]).reshape(len(images), -1)
    best = np.argsort(-abs(correlations), axis=1)[:, :3]
    whole, start = np.divmod(best, len(_STARTS))
    sign = np.sign(np.take_along_axis(correlations, best, 1))[..., None, None]  # -1 for a negative
    pair = np.arange(len(images))[:, None]
    image, target = (x.reshape(-1, *x.shape[2:]) for x in (sign * images[pair, whole], images[pair, 1 - whole]))
    aligned = registration.align(image, target, _STARTS[start.ravel()], steps=10)
    matched = registration.match_grey_values(aligned, target)
    fit = registration.details_correlation(matched, target).reshape(best.shape)
    similarities[filled] = np.maximum(fit.max(1), 0)
    return similarities


def _correlations(pair: np.ndarray) -> np.ndarray:
    """float32 [2,n]: correlation of the details of crops of one picture and the other one, for n crops of each."""
    down, across = _start_matrices(pair.shape[-1])
    return np.stack([
        (registration.band_pass(down @ whole @ across) * registration.band_pass(cropped)).mean((1, 2))
        for whole, cropped in (pair, pair[::-1])
    ])  # fmt: skip


def clusters(first: np.ndarray, second: np.ndarray, n: int) -> np.ndarray:
    """int64 [n]: the connected components of n pictures under matches, each named by its smallest number."""
    cluster = np.arange(n)
    while True:
        joined, smaller = cluster.copy(), np.minimum(cluster[first], cluster[second])
        for side in (first, second):
            np.minimum.at(joined, cluster[side], smaller)  # the head of a cluster joins the smaller cluster
        while (joined != joined[joined]).any():  # and its members follow
            joined = joined[joined]
        if (joined == cluster).all():
            return cluster
        cluster = joined


# The variants of a picture, with their hashes and low frequencies


def _crops(size: float) -> np.ndarray:
    """float32 [9,4]: the placements (see `registration`) of nine crops of side `size`; the first is the middle one."""
    shifts = (0.0, size - 1, 1 - size)
    return np.array([(size, down, size, across) for down in shifts for across in shifts], np.float32)


# the whole picture, nine crops, and the whole picture again, for its negative
_PLACEMENTS = np.concatenate([_crops(1.0)[:1], _crops(CROP_SIDE), _crops(1.0)[:1]])
_NEGATIVE = len(_PLACEMENTS) - 1
# the placements from which two pictures are aligned
_STARTS = np.concatenate([_crops(1.0)[:1], _crops(CROP_SIDE), _crops(0.84)])


@functools.cache
def _start_matrices(side: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [n,side,side], twice: down @ image @ across are the n crops of _STARTS."""
    down, across = (registration.sampling_matrix(_STARTS[:, k : k + 2], side) for k in (0, 2))
    return down, across.swapaxes(1, 2)


class _Pictures(NamedTuple):
    """A choice of pictures by their thumbnails."""

    thumbs: np.ndarray  # uint8 [n,32,32], all of a set
    numbers: np.ndarray  # int [m], the chosen ones


@functools.cache
def _basis(variant: int) -> np.ndarray:
    """float32 [1024,256]: the product of a thumbnail and this matrix is the coefficients of one variant."""
    at, waves = (np.arange(THUMB_SIDE) + 0.5) / THUMB_SIDE, np.arange(FREQUENCIES)[:, None]
    cosines = np.cos(np.pi * waves * at) * np.sqrt(np.where(waves > 0, 2, 1) / THUMB_SIDE)
    placement = _PLACEMENTS[variant : variant + 1]
    down = cosines @ registration.sampling_matrix(placement[:, :2], THUMB_SIDE)[0]
    across = cosines @ registration.sampling_matrix(placement[:, 2:], THUMB_SIDE)[0]
    basis = np.einsum('ui,vj->ijuv', down, across).reshape(THUMB_SIDE**2, FREQUENCIES**2)[:, 1:257]
    return np.ascontiguousarray(-basis if variant == _NEGATIVE else basis, np.float32)


def _describe(pictures: _Pictures, variant: int) -> tuple[np.ndarray, np.ndarray]:
    """One variant of m pictures: the packed bits uint8 [m,32] of its hash, and its low frequencies float32 [m,15].

    The low frequencies are the coefficients (u,v) below (4,4), scaled to a unit vector.
    """
    chosen, batch_size = pictures.numbers, 4096
    bits, lows = np.zeros((len(chosen), 32), np.uint8), np.zeros((len(chosen), 15), np.float32)
    low = (np.arange(4)[:, None] * FREQUENCIES + np.arange(4)).ravel()[1:] - 1
    for start in range(0, len(chosen), batch_size):
        batch = pictures.thumbs[chosen[start : start + batch_size]]
        coefficients = batch.reshape(len(batch), -1).astype(np.float32) @ _basis(variant)
        # above rounding errors, which would set bits of flat pictures
        bits[start : start + batch_size] = np.packbits(coefficients > 1e-2, axis=1)
        few = coefficients[:, low]
        lows[start : start + batch_size] = few / np.maximum(np.linalg.norm(few, axis=1, keepdims=True), 1e-6)
    return bits, lows


def _distinct(thumbs: np.ndarray) -> tuple[_Pictures, np.ndarray, np.ndarray]:
    """The first of each kind of equal thumbnails, without flat ones; the copies; and the original of each copy."""
    rows = np.ascontiguousarray(thumbs).reshape(len(thumbs), THUMB_SIDE**2).view(np.uint64)
    factors = np.random.default_rng(0).integers(1 << 64, size=THUMB_SIDE**2 // 8, dtype=np.uint64) | np.uint64(1)
    filled = np.flatnonzero(rows.any(1))  # a flat thumbnail is all zeros
    # sums modulo 2^64: equal for equal rows, and by chance for fewer than one in a million million pairs of rows
    sums = (rows @ factors)[filled]
    _, kinds, kind = np.unique(sums, return_index=True, return_inverse=True)
    original = filled[kinds[kind]]
    is_copy = original != filled
    return _Pictures(thumbs, np.sort(filled[kinds])), filled[is_copy], original[is_copy]


# The search over all variants


class _Hits(NamedTuple):
    """Two pictures with near hashes, as positions in `_Pictures.numbers`."""

    first: np.ndarray  # int32 [m]
    second: np.ndarray  # int32 [m]
    bits: np.ndarray  # uint8 [m]
    variant: np.ndarray  # int8 [m]: a variant of the first picture; a negative number is a variant of the second one


def _search_variants(pictures: _Pictures, others: _Pictures | None, exhaustive: bool) -> _Hits:
    """Hits of any variant, at most MAX_HITS of each picture. Without `others`, the search is within `pictures`."""
    within = others is None
    hashed, lows = _describe(pictures, 0)
    other_hashed, other_lows = (hashed, lows) if others is None else _describe(others, 0)
    radius = RADIUS if exhaustive else LARGE_SET_RADIUS
    hits = _with_variant(*hash_search.search(hashed, other_hashed, radius, half=within), 0)
    # variants of `pictures` are searched for in the bank of `others`, and between two sets also the other way round
    directions = [(pictures, other_hashed, None if exhaustive else hash_search.make_cells(other_lows), 1)]
    if others is not None:
        directions.append((others, hashed, None if exhaustive else hash_search.make_cells(lows), -1))
    for variant in range(1, len(_PLACEMENTS)):
        hits_by_variant = [hits]
        for queries, bank, cells, sign in directions[: 1 if variant == _NEGATIVE else 2]:
            query_bits, query_lows = _describe(queries, variant)
            if cells is None:
                first, second, bits = hash_search.search(query_bits, bank, radius)
            else:
                first, second, bits = hash_search.search_cells(query_bits, query_lows, bank, cells, radius)
            first, second = (first, second) if sign > 0 else (second, first)
            hits_by_variant.append(_with_variant(first, second, bits, sign * variant))
        hits = _merge(hits_by_variant, within)
    return hits


def _with_variant(first: np.ndarray, second: np.ndarray, bits: np.ndarray, variant: int) -> _Hits:
    return _Hits(first, second, bits, np.full(len(first), variant, np.int8))


def _merge(hits_by_variant: list[_Hits], within: bool) -> _Hits:
    """Keeps one hit of each two pictures, the variant in which they are nearest.

    within: the search is within one set; no picture is matched with itself, and first < second.
    """
    hits = _Hits(*map(np.concatenate, zip(*hits_by_variant)))
    if within:
        swapped = hits.first > hits.second
        ends = np.minimum(hits.first, hits.second), np.maximum(hits.first, hits.second)
        hits = _Hits(*ends, hits.bits, np.where(swapped, -hits.variant, hits.variant))
        hits = _Hits(*(column[hits.first < hits.second] for column in hits))
    order = np.lexsort((hits.bits, hits.second, hits.first))
    hits = _Hits(*(column[order] for column in hits))
    is_new = np.ones(len(order), bool)
    is_new[1:] = (np.diff(hits.first) > 0) | (np.diff(hits.second) > 0)
    hits = _Hits(*(column[is_new] for column in hits))
    kept = hash_search.nearest(hits.first, hits.bits)
    return _Hits(*(column[kept] for column in hits))


def _thumb_similarities(
    thumbs: np.ndarray, others: np.ndarray, first: np.ndarray, second: np.ndarray, variant: np.ndarray
) -> np.ndarray:
    """float32 [m]: similarity of the thumbnails of m hits, each aligned from the variant that was the hit."""

    def of_batch(chosen: np.ndarray) -> np.ndarray:
        a, b = thumbs[first[chosen]].astype(np.float32), others[second[chosen]].astype(np.float32)
        swapped = (variant[chosen] < 0)[:, None, None]
        whole, cropped = np.where(swapped, b, a), np.where(swapped, a, b)
        start = abs(variant[chosen])
        whole *= np.where(start == _NEGATIVE, -1, 1).astype(np.float32)[:, None, None]
        aligned = registration.align(whole, cropped, _PLACEMENTS[start], steps=5)
        return registration.details_correlation(aligned, cropped)

    batches = [np.arange(start, min(start + 64, len(first))) for start in range(0, len(first), 64)]  # 64 fit the cache
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
        return np.concatenate([np.zeros(0, np.float32), *threads.map(of_batch, batches)])
