"""Search for packed 256-bit hashes, uint8 [n,32], that differ in few bits. It uses faiss.

`search` is exact. `search_cells` is for large sets: it compares a hash only with those in the nearest cells. Both
return hits as three arrays: `first` int32 [m], numbers of queries; `second` int32 [m], numbers in the searched bank;
`bits` uint8 [m], the number of different bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

# Hits that are kept of one query, the nearest ones. So 10,000 copies of a picture give 320,000 hits, not 50 million.
MAX_HITS = 32
# Number of cells, and how many of them are searched. The 16 nearest of 2,048 cells hold 97 to 99 % of the near hashes.
CELLS, PROBES = 2048, 16
# Comparisons of a search that one thread makes in about 20 ms. Several threads of faiss would first wait for the
# threads of a product that numpy made before, and that takes longer.
FEW = 1 << 24

Hits = tuple[np.ndarray, np.ndarray, np.ndarray]  # first, second, bits


class Cells(NamedTuple):
    """The hashes of a bank, in cells of similar pictures."""

    centres: Any  # faiss index of the centres
    members: list[np.ndarray]  # of each cell: the numbers of its hashes, int32


def search(queries: np.ndarray, bank: np.ndarray, radius: int, half: bool = False) -> Hits:
    """Hashes that differ in at most `radius` bits, exactly, and of each query the MAX_HITS nearest.

    half: a bank is searched with itself, and only hits with first < second are wanted.
    """
    # a block of the bank stays in the cache; a batch of queries answers with 400 MB if all hashes are equal
    block_size, batch_size = 65_536, 512
    blocks = [_index(bank[start : start + block_size]) for start in range(0, len(bank), block_size)]
    batches = []
    with _one_thread() if len(queries) * len(bank) <= FEW else contextlib.nullcontext():
        for start in range(0, len(queries), batch_size):
            hits = []
            for b in range(start // block_size if half else 0, len(blocks)):
                first, second, bits = _range_search(blocks[b], queries[start : start + batch_size], radius)
                second += b * block_size
                kept = np.flatnonzero(first + start < second) if half else slice(None)
                hits.append((first[kept], second[kept], bits[kept]))
            first, second, bits = _concatenate(hits)
            kept = nearest(first, bits)
            batches.append((first[kept] + np.int32(start), second[kept], bits[kept]))
    return _concatenate(batches)


def search_cells(queries: np.ndarray, lows: np.ndarray, bank: np.ndarray, cells: Cells, radius: int) -> Hits:
    """Like `search`, but each query is compared only with the hashes in its PROBES nearest cells of the bank.

    `lows` [n,15] are the low frequencies of the queries, which decide the nearest cells.
    """
    indices = [_index(bank[numbers]) for numbers in cells.members]
    batches, batch_size = [], 1 << 18
    for start in range(0, len(queries), batch_size):
        cell = cells.centres.search(lows[start : start + batch_size], min(PROBES, len(indices)))[1]
        query = np.argsort(cell.astype(np.uint16).ravel(), kind='stable') // cell.shape[1]
        ends = np.cumsum(np.bincount(cell.ravel(), minlength=len(indices)))
        hits = []
        for numbers, index, visitors in zip(cells.members, indices, np.split(query.astype(np.int32), ends[:-1])):
            few = 1 + (1 << 25) // max(1, len(numbers))  # a cell may hold many equal hashes: at most 400 MB, as above
            for at in range(0, len(visitors), few):
                some = visitors[at : at + few]
                first, second, bits = _range_search(index, queries[start + some], radius)
                kept = nearest(first, bits)
                hits.append((some[first[kept]], numbers[second[kept]], bits[kept]))
        first, second, bits = _concatenate(hits)
        kept = nearest(first, bits)
        batches.append((first[kept] + np.int32(start), second[kept], bits[kept]))
    return _concatenate(batches)


def make_cells(lows: np.ndarray) -> Cells:
    """Clusters the pictures of a bank by their low frequencies [n,15] with k-means."""
    import faiss

    number = max(1, min(CELLS, len(lows) // 40))
    sample = lows[np.random.default_rng(0).permutation(len(lows))[: 64 * number]]
    means = faiss.Kmeans(lows.shape[1], number, niter=8, seed=0)
    means.train(np.ascontiguousarray(sample))
    cell = means.index.search(lows, 1)[1][:, 0]
    order = np.argsort(cell, kind='stable').astype(np.int32)
    return Cells(means.index, np.split(order, np.cumsum(np.bincount(cell, minlength=number))[:-1]))


def nearest(first: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """The numbers of the hits that are among the MAX_HITS nearest of their query."""
    if not len(first) or np.bincount(first - first.min()).max() <= MAX_HITS:
        return np.arange(len(first))
    order = np.lexsort((bits, first))
    starts = np.flatnonzero(np.diff(first[order], prepend=-1))
    rank = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    return np.sort(order[rank < MAX_HITS])


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keeps faiss to the calling thread."""
    import faiss

    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _index(bank: np.ndarray) -> Any:
    import faiss

    index = faiss.IndexBinaryFlat(256)
    index.add(np.ascontiguousarray(bank))
    return index


def _range_search(index: Any, queries: np.ndarray, radius: int) -> Hits:
    ends, bits, second = index.range_search(np.ascontiguousarray(queries), radius + 1)  # faiss excludes the bound
    first = np.repeat(np.arange(len(queries), dtype=np.int32), np.diff(ends.astype(np.int64)))
    return first, second.astype(np.int32), np.asarray(bits).astype(np.uint8)


def _concatenate(hits: list[Hits]) -> Hits:
    empty = tuple(np.zeros(0, kind) for kind in (np.int32, np.int32, np.uint8))
    first, second, bits = (np.concatenate(columns) for columns in zip(empty, *hits))
    return first, second, bits
