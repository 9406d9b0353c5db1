"""Lookup tables of a DICOM header: modality LUT, VOI LUT and the three tables of a palette.

Files contradict themselves here more often than elsewhere. So a table is read as it is stored, and its descriptor is
believed only where the table agrees: the entries are those in the file, whatever their stated number and bits. The
first mapped value has 16 bits, and its sign is that of the table's input, not that of the field (DICOM PS3.3 C.11.1.1,
C.11.2.1.1, C.7.6.3.1.5). The transfer syntax gives the byte order. A table without entries is no table.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.types import Unreadable

MOST_ENTRIES = 1 << 16
DISCRETE, LINEAR, INDIRECT = range(3)  # the kinds of segments of a segmented palette, PS3.3 C.7.9.2


class Table(NamedTuple):
    """A lookup table: entry k belongs to the input value `first` + k."""

    first: int
    entries: np.ndarray  # uint16 [n], n >= 1

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """The entry of each value, uint16. Values before and after the table get its first and its last entry."""
        places = np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1)
        return self.entries[places.astype(np.int64)]


def table(
    descriptor: Any, data: Any, low: float, high: float, little: bool, what: str, swapped: bool = False
) -> Table | None:
    """The table of a descriptor and its data, as pydicom gives them. None: there are no entries.

    `low` and `high` are the smallest and the largest value that the table's input can have. `little` is the byte order
    of the file, `what` names the table in reasons ('its VOI LUT'). `swapped`: 8-bit entries lie in big-endian words, so
    each pair is exchanged. Raises Unreadable.
    """
    if data is None or len(_sequence(data)) == 0:
        return None
    count, first, bits = _descriptor(descriptor, little, what)
    entries = _entries(data, count, bits, little, swapped)
    if not len(entries):
        return None
    return Table(_signed(first, len(entries), low, high), entries[:MOST_ENTRIES])


def segmented(descriptor: Any, data: Any, low: float, high: float, little: bool, what: str) -> Table | None:
    """The table of a segmented palette. The parameters and errors are those of `table`."""
    if data is None or len(_sequence(data)) == 0:
        return None
    count, first, bits = _descriptor(descriptor, little, what)
    words = _words(data, little) if bits > 8 else np.frombuffer(_bytes(data, little), np.uint8)
    entries = _expanded([int(word) for word in words], 16 if bits > 8 else 8, count, what)
    return Table(_signed(first, len(entries), low, high), np.asarray(entries, np.uint16)) if entries else None


def _descriptor(value: Any, little: bool, what: str) -> tuple[int, int, int]:
    """(number of entries, first input value, bits of an entry) as unsigned numbers. A stated number 0 means 65536."""
    numbers = [int(word) for word in _words(value, little)] if isinstance(value, bytes) else _sequence(value)
    if len(numbers) < 3:
        raise Unreadable(f'damaged DICOM: {what} has a descriptor of {len(numbers)} numbers, not 3')
    count, first, bits = (int(number) % MOST_ENTRIES for number in numbers[:3])
    return count or MOST_ENTRIES, first, bits


def _signed(first: int, count: int, low: float, high: float) -> int:
    """The first input value with the sign that suits an input of `low` to `high`."""
    if first < MOST_ENTRIES // 2:
        return first
    below = first - MOST_ENTRIES

    def shared(start: int) -> float:
        return min(start + count - 1, high) - max(start, low)

    if shared(first) == shared(below):
        return below if low < 0 else first
    return first if shared(first) > shared(below) else below


def _entries(data: Any, count: int, bits: int, little: bool, swapped: bool) -> np.ndarray:
    """The entries uint16 [n] as they lie in the file: one in a byte or in a word."""
    if not isinstance(data, bytes):
        words = np.array([int(word) % MOST_ENTRIES for word in _sequence(data)], np.uint16)
        if bits > 8 or len(words) != -(-count // 2) or count < 2:
            return words
        data, little = words.astype('<u2').tobytes(), True  # two entries in a word, the first in its lower half
        return np.frombuffer(data, np.uint8)[:count].astype(np.uint16)
    if len(data) >= 2 * count or (bits > 8 and len(data) not in (count, count + count % 2)):
        return _words(data, little)
    packed = np.frombuffer(data, np.uint8)
    if swapped and not little and len(packed) % 2 == 0:
        packed = packed.reshape(-1, 2)[:, ::-1].reshape(-1)
    return packed[:count].astype(np.uint16)


def _expanded(words: list[int], bits: int, count: int, what: str) -> list[int]:
    """The entries that the segments of a palette stand for, at most `count`."""
    entries: list[int] = []
    numbers = itertools.count(1)  # of the segments that are read; those of length 0 add no entries

    def read(at: int, copied: bool) -> int:
        """Appends the segment at `at` and returns the place after it."""
        if at + 2 > len(words):
            raise Unreadable(f'damaged DICOM: a segment of {what} is cut short')
        kind, length = words[at : at + 2]
        end = at + 2 + {DISCRETE: length, LINEAR: 1, INDIRECT: 32 // bits}.get(kind, 0)
        is_odd = kind > INDIRECT or (kind == INDIRECT and copied) or (kind and not entries)
        if end > len(words) or is_odd or next(numbers) > MOST_ENTRIES:
            raise Unreadable(f'damaged DICOM: {what} has a segment that cannot be read')
        if kind == DISCRETE:
            entries.extend(words[at + 2 : end])
        elif kind == LINEAR:
            start, stop = entries[-1], words[at + 2]
            entries.extend(round(start + (stop - start) * (k + 1) / length) for k in range(length))
        else:
            place = sum(word << bits * k for k, word in enumerate(words[at + 2 : end])) // (bits // 8)
            for _ in range(length):
                place = read(place, True)
                if len(entries) > MOST_ENTRIES:
                    break
        return end

    at = 0
    while at < len(words) and len(entries) < count:
        if bits == 8 and at == len(words) - 1 and words[at] == 0:  # a byte that makes the length even
            break
        at = read(at, False)
    return entries[:count]


def _sequence(value: Any) -> Sequence[Any]:
    """Several values as a sequence, also where the field has one value or none."""
    if value is None:
        return []
    return value if isinstance(value, (bytes, list, tuple)) or type(value).__name__ == 'MultiValue' else [value]


def _words(data: Any, little: bool) -> np.ndarray:
    """The 16-bit words uint16 [n] of a field."""
    if isinstance(data, bytes):
        return np.frombuffer(data[: len(data) // 2 * 2], '<u2' if little else '>u2').astype(np.uint16)
    return np.array([int(word) % MOST_ENTRIES for word in _sequence(data)], np.uint16)


def _bytes(data: Any, little: bool) -> bytes:
    """The bytes of a field of bytes; of words, the lower half of each comes first."""
    if isinstance(data, bytes):
        return data if little or len(data) % 2 else np.frombuffer(data, '>u2').astype('<u2').tobytes()
    return _words(data, little).astype('<u2').tobytes()
