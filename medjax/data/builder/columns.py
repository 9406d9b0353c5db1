"""Columns: what is cheap to know of every record, one .npy file for each split and fact, mapped and never read whole.

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


class Gathered(NamedTuple):
    """What the columns of all chunks add up to."""

    shards: dict[str, list[int]]  # split -> records of each chunk; only splits that have any
    patients: dict[str, int]
    people: int  # patients of all splits, each counted once
    drops: list[Dropped]
    moments: np.ndarray  # float64 [3]: number, sum and sum of squares of the pixels of train (of all without a train)
    channels: int
    bits: int
    size: int  # the longest side
    content: str  # digest of all records in their order, hashed ids left out


def gather(folder: pathlib.Path, plan: Sequence[Chunk], out: pathlib.Path) -> Gathered:
    """Joins the columns of the chunks in `folder` into files below `out`, a chunk in memory at a time."""
    shards: dict[str, list[int]] = defaultdict(list)
    kinds: dict[str, np.dtype] = {}  # column -> dtype that holds the values of all chunks, so every split has it
    shapes: dict[str, tuple[int, ...]] = {}
    moments: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(3))
    drops: list[Dropped] = []
    digest = hashlib.sha256()
    channels = bits = size = 0
    for chunk in plan:
        read = chunks.read(folder, chunk)
        drops += [stored_drop(row) for row in json.loads(str(read['drops']))]
        n = len(read.get('label', ()))
        shards[chunk.split].append(n)
        if not n:
            continue
        for name in (*COLUMNS, *(name for name in read if name.startswith('info/'))):
            kinds[name] = _both(kinds.get(name, read[name].dtype), read[name].dtype)
            shapes[name] = read[name].shape[1:]
        moments[chunk.split] += read['moments'].sum(0)
        digest.update(read['content'].tobytes())
        channels, bits = max(channels, int(read['shape'][:, 2].max())), max(bits, int(read['bits'].max()))
        size = max(size, int(read['shape'][:, :2].max()))
    shards = {split: lengths for split, lengths in shards.items() if sum(lengths)}
    for split in shards:
        _join(folder, [c for c in plan if c.split == split], sum(shards[split]), kinds, shapes, out / split)
    people = {split: _distinct(out / split / 'keys.npy', KINDS.index('patient')) for split in shards}
    patients = {split: len(keys) for split, keys in people.items()}
    everyone = len(np.unique(np.concatenate(list(people.values())))) if people else 0
    counted = moments['train'] if 'train' in shards else sum(moments.values())
    return Gathered(shards, patients, everyone, drops, counted, channels, bits, size, digest.hexdigest())


def _join(
    folder: pathlib.Path,
    plan: list[Chunk],
    rows: int,
    kinds: dict[str, np.dtype],
    shapes: dict[str, tuple[int, ...]],
    out: pathlib.Path,
) -> None:
    files = {}
    for name, dtype in kinds.items():
        path = out / f'{name}.npy'
        path.parent.mkdir(parents=True, exist_ok=True)
        files[name] = np.lib.format.open_memmap(path, 'w+', dtype, (rows, *shapes[name]))
    at = 0
    for chunk in plan:
        read = chunks.read(folder, chunk)
        n = len(read.get('label', ()))
        for name, file in files.items():
            blank: Any = '' if file.dtype.kind == 'U' else np.nan
            file[at : at + n] = _told(read[name], file.dtype) if name in read else blank
        at += n
    for file in files.values():
        file.flush()


def _both(a: np.dtype, b: np.dtype) -> np.dtype:
    """A type for the values of both: words as soon as one has words."""
    if a.kind == b.kind:
        return max(a, b, key=lambda dtype: dtype.itemsize)
    return max((dtype for dtype in (a, b, np.dtype('U24')) if dtype.kind == 'U'), key=lambda dtype: dtype.itemsize)


def _told(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Numbers among words are told as words."""
    if dtype.kind == 'U' and values.dtype.kind == 'f':
        return np.array(['' if np.isnan(value) else f'{value:g}' for value in values], dtype)
    return values


def _distinct(path: pathlib.Path, column: int) -> np.ndarray:
    return np.unique(np.load(path, mmap_mode='r')[:, column])
