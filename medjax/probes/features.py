"""The cache of features: arrays on disk that are encoded once, in shards, and read in parts.

    <folder>/about.json     key, number of records, and the arrays with their shapes
    <folder>/cls.npy        float32 [n,layers,D]
    <folder>/patches.npy    float32 [n,D]
    <folder>/grid.npy       float16 [n,h,w,D], only if a probe asked for it
    <folder>/shards.npy     int32 [shards,2], a marker of each shard for cls with patches, and for grid

A shard is SHARD rows. Its marker is 0 until its rows are on the disk, and then 1 + the number of its records whose
features are not finite. A job locks the marker of a shard while it encodes it, so jobs share the work and never do it
twice. The system frees the lock when the job ends, however it ends. A job that is killed loses the shards that it was
encoding, and no others.

The key identifies encoder, preprocessing and records. A cache with another key, and a damaged one, is replaced. Files
are replaced by renaming, so a job that still reads or fills the old ones goes on undisturbed.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import fcntl
import json
import math
import os
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from medjax import files
from medjax.errors import UserError
from medjax.probes import locks

FORMAT = 1  # of the folder
SHARD = 512  # rows
PARTS = {'features': ('cls', 'patches'), 'grid': ('grid',)}  # the columns of shards.npy, with their arrays
READ = 1 << 26  # bytes that are read at once

Rows = Mapping[str, tuple[tuple[int, ...], str]]  # arrays by name: the shape of one row, and the dtype
Arrays = dict[str, np.ndarray]


class CacheWarning(UserWarning):
    """A damaged cache, or one that another job fills."""


class Stored:
    """An array on disk, of which parts are read into memory: `x[:, -1]`, `x[a:b]`, `x[rows]`.

    It is not held in memory. So a probe reads it in blocks of rows, or only the layer that it needs. `numpy.asarray(x)`
    reads all of it. The file is read and not mapped: of a map, the pages that were read count as memory of the process,
    and a file that becomes shorter kills it.
    """

    def __init__(self, file: _File, start: int, shape: tuple[int, ...], dtype: np.dtype, rows: Any = None) -> None:
        """`start` is where the numbers begin in the file, `shape` [n,…]; `rows` are those that it has, None: all."""
        self._of_file = file, start, shape, dtype
        self._rows = range(shape[0]) if rows is None else rows
        self.shape, self.dtype = (len(self._rows), *shape[1:]), dtype

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def take(self, rows: np.ndarray) -> Stored:
        """Some of its rows, given by their numbers or by a mask. Reads nothing."""
        return Stored(*self._of_file, np.asarray(self._rows)[rows])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __getitem__(self, key: Any) -> np.ndarray:
        first, *rest = key if isinstance(key, tuple) else (key,)
        if any(each is Ellipsis or each is None for each in (first, *rest)):
            return np.asarray(self)[key]
        rows = np.asarray(self._rows[first] if isinstance(first, slice) else np.asarray(self._rows)[first], np.intp)
        if rows.ndim > 1:
            return np.asarray(self)[key]
        if rows.ndim == 0:
            return self._read(rows[None])[(0, *rest)]
        step, out = max(1, READ // max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)), None
        for start in range(0, max(len(rows), 1), step):
            part = self._read(rows[start : start + step])[(slice(None), *rest)]
            if len(part) == len(rows):
                return part
            out = np.empty((len(rows), *part.shape[1:]), part.dtype) if out is None else out
            out[start : start + len(part)] = part
        return out

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the file; those that follow each other in one piece."""
        file, start, shape, dtype = self._of_file
        out = np.empty((len(rows), *shape[1:]), dtype)
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        for begin, end in zip(begins, [*begins[1:], len(rows)], strict=False):
            view = memoryview(out[begin:end]).cast('B') if out.nbytes else memoryview(b'')
            at = start + int(rows[begin]) * math.prod(shape[1:]) * dtype.itemsize
            while view:
                count = os.preadv(file.number, [view], at)
                if not count:
                    raise UserError(f'{file.path} is shorter than it was; run again to encode its records anew')
                view, at = view[count:], at + count
        return out


class _File:
    """A file that is open for reading until the last array of it is gone."""

    def __init__(self, path: Path) -> None:
        self.path, self.number = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.number)


def not_finite(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """bool [n]: the rows with a number that is not finite in one of the arrays [n,…]."""
    return np.any([~np.isfinite(x).all(tuple(range(1, x.ndim))) for x in arrays.values()], 0)


class Content(NamedTuple):
    """The arrays of a part of a whole cache."""

    arrays: dict[str, Stored]
    bad: int  # records with a feature that is not finite


def read(folder: Path, key: str, n: int, part: str) -> Content | None:
    """The arrays of a part of PARTS; None if they are not all there. Needs no right to write."""
    opened = _open(folder, key, n)
    if isinstance(opened, str) or not set(opened.arrays) & set(PARTS[part]):
        return None
    marks = opened.marks[:, [*PARTS].index(part)]
    if not marks.all():
        return None
    arrays = {name: opened.arrays[name] for name in PARTS[part] if name in opened.arrays}
    return Content(arrays, int((marks - 1).sum()))


class _Opened(NamedTuple):
    marks: np.ndarray  # shards.npy
    arrays: dict[str, Stored]


def _open(folder: Path, key: str, n: int) -> _Opened | str:
    """Opens all files of a cache; otherwise the damage, or '' if there is no cache with this key."""
    try:
        about = json.loads((folder / 'about.json').read_bytes())
        if (about['key'], about['records'], about['shard'], about['format']) != (key, n, SHARD, FORMAT):
            return ''
        marks = stored(folder / 'shards.npy', (-(-n // SHARD), len(PARTS)), 'int32')
        arrays = {name: stored(folder / f'{name}.npy', *about['arrays'][name]) for name in about['arrays']}
        if json.loads((folder / 'about.json').read_bytes()) != about:  # it is being replaced
            return ''
        return _Opened(np.asarray(marks), arrays)
    except FileNotFoundError as error:
        return '' if Path(error.filename).name == 'about.json' else f'{Path(error.filename).name} is missing'
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        return str(error)


def stored(path: Path, shape: Sequence[int], dtype: str) -> Stored:
    """The array of a .npy file; ValueError if it has another shape or dtype, or is cut off."""
    file = _File(path)
    with os.fdopen(os.dup(file.number), 'rb') as beginning:
        np.lib.format.read_magic(beginning)
        found, by_column, kind = np.lib.format.read_array_header_1_0(beginning)
        start = beginning.tell()
    size = start + math.prod(shape) * kind.itemsize
    if (found, kind, by_column) != (tuple(shape), np.dtype(dtype), False) or os.fstat(file.number).st_size != size:
        raise ValueError(f'{path.name} has not {list(shape)} numbers of the type {dtype}')
    return Stored(file, start, found, kind)


Encode = Callable[[Iterator[int], int], Iterable[tuple[np.ndarray, Arrays]]]
"""(numbers of the rows to encode, number of those that are there) -> some of the rows, with their arrays, in order.

The numbers are taken when they are needed, because a shard is locked when its first number is taken."""


def fill(folder: Path, key: str, n: int, rows: Rows, parts: Sequence[str], encode: Encode) -> None:
    """Encodes those of n rows that are not there yet; `rows` are the arrays of some of PARTS.

    Another job that fills the cache takes its share of the shards. UserError where the disk takes no files.
    """
    columns = [[*PARTS].index(part) for part in parts]
    with contextlib.ExitStack() as at_the_end:
        with files.writing(f'the features {folder}'):
            cache = _prepare(folder, key, n, rows, at_the_end)
        told = False
        while not cache.marks()[:, columns].all():
            if _encode_free_shards(cache, columns, encode) == 0:
                if not told:
                    warnings.warn(f'{folder}: waits for another job, which encodes the last records', CacheWarning, 3)
                told = True
                time.sleep(locks.POLL)


@dataclasses.dataclass(frozen=True)
class _Cache:
    """The open files of a cache that is being filled."""

    folder: Path
    n: int
    files: Mapping[str, IO[bytes]]  # shards.npy and the arrays, by name
    arrays: Mapping[str, Stored]

    def marks(self) -> np.ndarray:
        """int32 [shards,2], as other jobs left it just now."""
        data = os.pread(self._file('shards'), 4 * len(PARTS) * self.shards, self._start('shards'))
        return np.frombuffer(data, np.int32).reshape(self.shards, len(PARTS))

    @property
    def shards(self) -> int:
        return -(-self.n // SHARD)

    def size(self, shard: int) -> int:
        return min(SHARD, self.n - shard * SHARD)

    def lock(self, shard: int) -> bool:
        """Whether this job holds the shard from now on."""
        return locks.take(self.files['shards'], shard)

    def unlock(self, shard: int) -> None:
        locks.free(self.files['shards'], shard)

    def write(self, shard: int, column: int, arrays: Arrays) -> None:
        """Writes the rows of a part of a shard to the disk, and then its marker."""
        with files.writing(f'the features {self.folder}'):
            part = {name: arrays[name] for name in PARTS[[*PARTS][column]] if name in arrays}
            for name, x in part.items():
                self._write(name, shard * SHARD * x[:1].nbytes, np.ascontiguousarray(x, self.arrays[name].dtype))
            mark = np.array([1 + not_finite(part).sum()], np.int32)
            self._write('shards', 4 * (shard * len(PARTS) + column), mark)

    def _write(self, name: str, at: int, x: np.ndarray) -> None:
        view, at = memoryview(x).cast('B'), at + self._start(name)
        while view:
            count = os.pwrite(self._file(name), view, at)
            view, at = view[count:], at + count
        os.fdatasync(self._file(name))

    def _start(self, name: str) -> int:
        """Where the numbers begin in a file."""
        size = 4 * len(PARTS) * self.shards if name == 'shards' else self.arrays[name].nbytes
        return os.fstat(self._file(name)).st_size - size

    def _file(self, name: str) -> int:
        return self.files[name].fileno()


def _prepare(folder: Path, key: str, n: int, rows: Rows, at_the_end: contextlib.ExitStack) -> _Cache:
    """Opens the files of a cache, and makes those that it lacks, while no other job does so."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / '.lock').open('a') as lock:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        opened = _open(folder, key, n)
        if isinstance(opened, str):
            if opened:
                warnings.warn(f'{folder} is damaged ({opened}); its records are encoded anew', CacheWarning, 4)
            for name in ('about.json', *(f'{name}.npy' for names in PARTS.values() for name in names)):
                (folder / name).unlink(missing_ok=True)
            folder.with_name(f'{folder.name}.npz').unlink(missing_ok=True)  # of an earlier version
            _create(folder / 'shards.npy', (-(-n // SHARD), len(PARTS)), 'int32')
        have = {} if isinstance(opened, str) else {name: (x.shape, x.dtype.name) for name, x in opened.arrays.items()}
        if missing := {name: ((n, *row), dtype) for name, (row, dtype) in rows.items() if name not in have}:
            for name, (shape, dtype) in missing.items():
                _create(folder / f'{name}.npy', shape, dtype)
            arrays = have | missing
            files.write_json(folder / 'about.json', dict(format=FORMAT, key=key, records=n, shard=SHARD, arrays=arrays))
        opened = _open(folder, key, n)
        assert not isinstance(opened, str), f'{folder}: {opened}'
        open_files = {
            name: at_the_end.enter_context((folder / f'{name}.npy').open('r+b', buffering=0))
            for name in (*rows, 'shards')
        }
    return _Cache(folder, n, open_files, opened.arrays)


def _create(path: Path, shape: tuple[int, ...], dtype: str) -> None:
    """An array of zeros, for which the disk has space: OSError now, and not hours later."""
    with files.whole(path, 'wb') as file:
        header = dict(descr=np.dtype(dtype).str, fortran_order=False, shape=shape)
        np.lib.format.write_array_header_1_0(file, header)
        file.flush()
        os.posix_fallocate(file.fileno(), 0, file.tell() + math.prod(shape) * np.dtype(dtype).itemsize)


def _encode_free_shards(cache: _Cache, columns: list[int], encode: Encode) -> int:
    """Encodes the shards that no other job holds; returns their number."""
    held: collections.deque[tuple[int, list[int]]] = collections.deque()  # shards, each with the columns that it lacks
    before = cache.marks()[:, columns].all(1)

    def numbers() -> Iterator[int]:
        for shard in np.flatnonzero(~before).tolist():
            if not cache.lock(shard):
                continue
            now = cache.marks()[shard]
            if lacking := [column for column in columns if not now[column]]:
                held.append((shard, lacking))
                yield from range(shard * SHARD, shard * SHARD + cache.size(shard))
            else:
                cache.unlock(shard)

    encoded = rows = 0
    pieces: list[Arrays] = []  # of the first shard that is held
    try:
        for found, arrays in encode(numbers(), sum(map(cache.size, np.flatnonzero(before)))):
            start = 0
            while start < len(found):
                shard, lacking = held[0]
                count = min(cache.size(shard) - rows, len(found) - start)
                pieces.append({name: x[start : start + count] for name, x in arrays.items()})
                start, rows = start + count, rows + count
                if rows == cache.size(shard):
                    for column in lacking:
                        cache.write(shard, column, {name: np.concatenate([p[name] for p in pieces]) for name in arrays})
                    held.popleft()
                    cache.unlock(shard)
                    encoded, rows, pieces = encoded + 1, 0, []
    finally:
        for shard, _ in held:
            cache.unlock(shard)
    return encoded
