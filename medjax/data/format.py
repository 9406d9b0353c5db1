"""The format of a data set on disk, for the writer and for the readers: number, record, columns, list of drops."""

from __future__ import annotations

import csv
import functools
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

FORMAT = 2

# The hashed keys of a record, in the order of their columns. 'pixels' is a hash of the pixels, the others of ids.
KINDS = ('patient', 'study', 'image', 'origin', 'via', 'text', 'pixels')


@functools.cache
def schema(label_count: int) -> Any:
    """The stored record as tfds features. Images are encoded. `text` and `info` (the attributes) are JSON."""
    import tensorflow_datasets as tfds

    as_bytes = tfds.features.Text()  # a Text holds any bytes
    return tfds.features.FeaturesDict(
        dict.fromkeys(('image', 'mask', 'role', 'text', 'info'), as_bytes)
        | {
            'index': np.int64,
            'label': tfds.features.Tensor(shape=(label_count,), dtype=np.int8),
            # The keys are uint64, which protos lack: int64 holds the same bits.
            'keys': tfds.features.Tensor(shape=(len(KINDS),), dtype=np.int64),
        }
    )


# The columns of every data set. In addition there is info/NAME for each attribute that the source gave.
COLUMNS = ('label', 'keys', 'thumb', 'hash', 'shape', 'bits', 'words', 'sentences', 'role')


def map_columns(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The columns of a split by name, mapped read-only."""
    files = sorted(folder.rglob('*.npy'))
    return {file.relative_to(folder).with_suffix('').as_posix(): np.load(file, mmap_mode='r') for file in files}


def column_rows(file: pathlib.Path) -> int | None:
    """The number of rows of a column. None: the file cannot be mapped."""
    try:
        return len(np.load(file, mmap_mode='r'))
    except (OSError, ValueError, EOFError, TypeError):
        return None


class Dropped(NamedTuple):
    """A row of drops.csv. It holds no plain id."""

    scope: str  # 'record' or 'detail', as in `types.Drop`
    where: str
    reason: str
    image_key: str  # the hashed id of the image, 16 hex digits; '' without an id


def stored_drop(row: Sequence[str]) -> Dropped:
    """A row as it is stored. The first builds of format 2 wrote 'part' where 'detail' stands now."""
    drop = Dropped(*row)
    return drop._replace(scope='detail') if drop.scope == 'part' else drop


def read_drops(file: pathlib.Path) -> list[Dropped]:
    """The rows of a drops.csv. The name of the first column does not matter: it was 'part' in older data sets."""
    with file.open(newline='') as opened:
        return [stored_drop(row) for row in list(csv.reader(opened))[1:] if row]


def write_drops(file: pathlib.Path, drops: Iterable[Dropped]) -> None:
    """Writes a drops.csv."""
    with file.open('w', newline='') as opened:
        csv.writer(opened).writerows([Dropped._fields, *drops])
