"""The arrays of weight files by name: read one at a time, so that a file never stands in memory whole."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from medjax.errors import UserError

FLOATS = ('float64', 'float32', 'float16', 'bfloat16')
# The names of safetensors for types.
TYPES = dict(F64='float64', F32='float32', F16='float16', BF16='bfloat16')


class Stored(NamedTuple):
    """An array that lies in a file."""

    shape: tuple[int, ...]
    dtype: str  # 'float32', 'bfloat16', …; the file's own word for other types
    load: Callable[[], np.ndarray]


class Arrays(Mapping[str, np.ndarray]):
    """Arrays by name, in float32. An array is read when it is asked for; its shape is known before."""

    def __init__(self, stored: Mapping[str, Stored]):
        self.stored = dict(stored)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self.stored[name].load(), np.float32)

    def __contains__(self, name: object) -> bool:
        return name in self.stored

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.stored[name].shape

    def forget(self, names: Sequence[str]) -> None:
        """Lets go of arrays that are in memory. Their shapes stay known; to read them again is an error."""
        for name in names:
            self.stored[name] = self.stored[name]._replace(load=_gone)

    def renamed(self, names: Mapping[str, str]) -> Arrays:
        """The same arrays under other names, {old: new}. Names that are not in it stay."""
        return Arrays({names.get(name, name): stored for name, stored in self.stored.items()})

    def is_float(self, name: str) -> bool:
        return self.stored[name].dtype in FLOATS

    def not_floats(self) -> list[str]:
        """The arrays that hold something else than floating-point numbers, each with its type."""
        return [f'{name} ({s.dtype})' for name, s in self.stored.items() if not self.is_float(name)]


def _gone() -> np.ndarray:
    raise RuntimeError('this array was read before and is no longer in memory')


def of_dict(state: Mapping[str, Any]) -> Arrays:
    """Arrays that are in memory."""

    def stored(array: Any) -> Stored:
        array = np.asarray(array)
        return Stored(array.shape, array.dtype.name, lambda: array)

    return Arrays({name: stored(array) for name, array in state.items()})


def of_safetensors(paths: Sequence[Any]) -> Arrays:
    """The arrays of one or several .safetensors files. UserError: one is missing or cut off, or two hold one array."""
    stored: dict[str, Stored] = {}
    owners: dict[str, Any] = {}
    for path in paths:
        try:
            file = safe_open(path, 'numpy', backend='pread')  # pages of a map would count as memory
            for name in list(file.keys()):
                check_once(name, path, owners)
                part = file.get_slice(name)
                dtype = TYPES.get(part.get_dtype(), part.get_dtype())
                stored[name] = Stored(tuple(part.get_shape()), dtype, _reader(file, name))
        except FileNotFoundError:
            raise UserError(f'{path}: there is no such file') from None
        except (SafetensorError, OSError) as error:
            raise UserError(f'{path} is no whole safetensors file: {other_content(path) or error}') from None
    return Arrays(stored)


def check_once(name: str, path: Any, owners: dict[str, Any]) -> None:
    """UserError if another file of the same model holds an array of this name too."""
    if name in owners:
        raise UserError(f'{name} is both in {owners[name]} and in {path}: they are not parts of one model')
    owners[name] = path


def other_content(path: Any) -> str:
    """What a file is instead of weights, by its first bytes; '' if they say nothing."""
    try:
        with open(path, 'rb') as file:
            begin = file.read(64).lstrip()
    except OSError:
        return ''
    if begin.startswith(b'version https://git-lfs'):
        return 'it is a pointer of git-lfs; `git lfs pull` gets the file itself'
    if begin[:1] == b'<':
        return 'it is a page of HTML; the download went wrong'
    return 'it is empty' if not begin else ''


def _reader(file: Any, name: str) -> Callable[[], np.ndarray]:
    return lambda: file.get_tensor(name)


def listed(names: Sequence[str]) -> str:
    """Names for a message, all of them: those that differ in the number of a layer alone stand together.

    ['b.0.x', 'b.1.x', 'b.2.x', 'c'] -> 'b.[0-2].x, c'
    """
    numbers: dict[str, list[int]] = {}
    order: dict[str, str] = {}
    for name in names:
        found = re.search(r'(?<=\.)\d+(?=\.)', name)
        pattern = name if found is None else f'{name[: found.start()]}[#]{name[found.end() :]}'
        order.setdefault(pattern, name)
        numbers.setdefault(pattern, []).extend([] if found is None else [int(found[0])])
    return ', '.join(
        pattern.replace('[#]', f'[{_ranges(sorted(set(found)))}]') if len(found) > 1 else order[pattern]
        for pattern, found in numbers.items()
    )


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> '0-2,5'."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ','.join(f'{a}' if a == b else f'{a}-{b}' for a, b in runs)
