"""Joins the columns of all chunks: one .npy file per split and column, for readers that map it into memory.

DATA/columns/<split>/label.npy   int8 [n,L]     keys.npy uint64 [n,7]     info/age.npy float32 [n], …
"""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.builder import chunks
from medjax.data.builder.chunks import Chunk
from medjax.data.format import COLUMNS, KINDS, Dropped, stored_drop


class Totals(NamedTuple):
    """Counts and sums over all chunks of a data set."""

    chunk_lengths: dict[str, list[int]]  # split -> records of each chunk; only splits that have records
    patients: dict[str, int]  # split -> number of patients
    patient_count: int  # patients of all splits, each counted once
    drops: list[Dropped]
    moments: np.ndarray  # float64 [3]: count, sum, sum of squares of the pixels of train (of all splits without train)
    channels: int
    bits: int
    size: int  # the longest side in pixels
    content: str  # digest of all records in their order, without hashed ids


def gather(folder: pathlib.Path, plan: Sequence[Chunk], out: pathlib.Path) -> Totals:
    """Joins the columns of the chunks in `folder` into files below `out`, with one chunk in memory at a time."""
    chunk_lengths: dict[str, list[int]] = defaultdict(list)
    dtypes: dict[str, np.dtype] = {}  # column -> dtype for the values of all chunks, so it is equal in all splits
    shapes: dict[str, tuple[int, ...]] = {}  # column -> shape of one value
    moments: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    drops: list[Dropped] = []
    digest = hashlib.sha256()
    channels = bits = size = 0
    for chunk in plan:
        columns = chunks.read(folder, chunk)
        drops += [stored_drop(row) for row in json.loads(str(columns['drops']))]
        n = len(columns.get('label', ()))
        chunk_lengths[chunk.split].append(n)
        if not n:
            continue
        for name in (*COLUMNS, *(name for name in columns if name.startswith('info/'))):
            dtypes[name] = _common_dtype(dtypes.get(name, columns[name].dtype), columns[name].dtype)
            shapes[name] = columns[name].shape[1:]
        moments[chunk.split] += columns['moments'].sum(0)
        digest.update(columns['content'].tobytes())
        channels, bits = max(channels, int(columns['shape'][:, 2].max())), max(bits, int(columns['bits'].max()))
        size = max(size, int(columns['shape'][:, :2].max()))
    chunk_lengths = {split: lengths for split, lengths in chunk_lengths.items() if sum(lengths)}
    for split in chunk_lengths:
        _join(folder, [c for c in plan if c.split == split], sum(chunk_lengths[split]), dtypes, shapes, out / split)
    patient_keys = {split: _distinct(out / split / 'keys.npy', KINDS.index('patient')) for split in chunk_lengths}
    patients = {split: len(keys) for split, keys in patient_keys.items()}
    patient_count = len(np.unique(np.concatenate(list(patient_keys.values())))) if patient_keys else 0
    summed = moments['train'] if 'train' in chunk_lengths else sum(moments.values())
    return Totals(chunk_lengths, patients, patient_count, drops, summed, channels, bits, size, digest.hexdigest())


def _join(
    folder: pathlib.Path,
    plan: list[Chunk],
    rows: int,
    dtypes: dict[str, np.dtype],
    shapes: dict[str, tuple[int, ...]],
    out: pathlib.Path,
) -> None:
    """Writes the columns of one split, whose chunks `plan` lists, into the folder `out`."""
    files = {}
    for name, dtype in dtypes.items():
        path = out / f'{name}.npy'
        path.parent.mkdir(parents=True, exist_ok=True)
        files[name] = np.lib.format.open_memmap(path, 'w+', dtype, (rows, *shapes[name]))
    at = 0
    for chunk in plan:
        columns = chunks.read(folder, chunk)
        n = len(columns.get('label', ()))
        for name, file in files.items():
            blank: Any = '' if file.dtype.kind == 'U' else np.nan
            file[at : at + n] = _as_dtype(columns[name], file.dtype) if name in columns else blank
        at += n
    for file in files.values():
        file.flush()


def _common_dtype(a: np.dtype, b: np.dtype) -> np.dtype:
    """A type for the values of both: a string type as soon as one of them is one."""
    if a.kind == b.kind:
        return max(a, b, key=lambda dtype: dtype.itemsize)
    return max((dtype for dtype in (a, b, np.dtype('U24')) if dtype.kind == 'U'), key=lambda dtype: dtype.itemsize)


def _as_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers as strings ('' for nan) where the column holds strings; other values unchanged."""
    if dtype.kind == 'U' and values.dtype.kind == 'f':
        return np.array(['' if np.isnan(value) else f'{value:g}' for value in values], dtype)
    return values


def _distinct(path: pathlib.Path, column: int) -> np.ndarray:
    return np.unique(np.load(path, mmap_mode='r')[:, column])
