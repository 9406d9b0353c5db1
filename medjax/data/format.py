"""What lies on disk, for the writer and the readers: the format number, the schema of a record, its columns."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import numpy as np

FORMAT = 2


# The hashed keys of a record, in the order of their columns.
KINDS = ('patient', 'study', 'image', 'origin', 'via', 'text', 'pixels')


@functools.cache
def schema(labels: int) -> Any:
    """What a record holds on disk, as tfds features: encoded images, labels, hashed keys; text and info as JSON."""
    import tensorflow_datasets as tfds

    text, names = tfds.features.Text(), ('image', 'mask', 'role', 'text', 'info')  # Text holds any bytes
    features = dict.fromkeys(names, text) | {
        'index': np.int64,
        'label': tfds.features.Tensor(shape=(labels,), dtype=np.int8),
        'keys': tfds.features.Tensor(shape=(len(KINDS),), dtype=np.int64),  # the bits of uint64, which protos lack
    }
    return tfds.features.FeaturesDict(features)


# The columns that every data set has; columns/info/NAME are those that its source gave.
COLUMNS = ('label', 'keys', 'thumb', 'hash', 'shape', 'bits', 'words', 'sentences', 'role')


def map_columns(folder: pathlib.Path) -> dict[str, np.ndarray]:
    """The columns of a split, mapped read-only."""
    files = sorted(folder.rglob('*.npy'))
    return {file.relative_to(folder).with_suffix('').as_posix(): np.load(file, mmap_mode='r') for file in files}


def column_rows(file: pathlib.Path) -> int | None:
    """The rows of a column, None where it cannot be mapped."""
    try:
        return len(np.load(file, mmap_mode='r'))
    except (OSError, ValueError, EOFError, TypeError):
        return None
