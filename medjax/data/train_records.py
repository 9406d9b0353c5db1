"""The train splits behind a part of the batch: labels, columns and patients of all records, without any image.

A term takes numbers from them before a run begins: the shares of its classes, the mean of a column.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from medjax.data.records import DataSet, Split
from medjax.data.types import BLANK


class TrainRecords(NamedTuple):
    """The records that the rows of a part are drawn from: n records of all its sources, one source after the other."""

    splits: tuple[Split, ...]
    weights: tuple[float, ...]  # of the sources, as in the config

    def shares(self) -> np.ndarray:
        """float64 [n]: the share of each record in the rows of the part. The sum is 1."""
        each = [w / len(split) for w, split in zip(self.weights, self.splits, strict=True)]
        return np.repeat(each, [len(split) for split in self.splits]) / sum(self.weights)

    def codes(self, label: str) -> np.ndarray:
        """int8 [n]: the codes of a label; blank in a source without it, as in a batch."""
        return np.concatenate([_codes(split, label) for split in self.splits])

    def column(self, name: str) -> np.ndarray:
        """[n]: a column of numbers (nan: unknown) or of words ('': unknown). None stands where a source lacks it."""
        return np.concatenate(
            [
                split.column(name) if name in split.attribute_names else np.full(len(split), None)
                for split in self.splits
            ]
        )

    def patients(self) -> np.ndarray:
        """uint32 [n,2]: the two halves of the hashed id of each record's patient, as `key/patient` of a batch."""
        keys = np.concatenate([split.keys('patient') for split in self.splits])
        return np.stack(np.divmod(keys, np.uint64(2**32)), 1).astype(np.uint32)

    def structures(self) -> tuple[str, ...]:
        """The structures that masks of any source may show, in order of first appearance."""
        return tuple(dict.fromkeys(name for split in self.splits for name in split.data.structures))

    def masks(self, used: np.ndarray) -> Iterator[tuple[Split, np.ndarray]]:
        """The masks uint8 [H,W] of the records that count, bool [n], each with its split.

        Records far from each other come first, so that one of many masks is found soon.
        """
        starts = np.cumsum([0, *(len(split) for split in self.splits)])
        numbers = np.flatnonzero(used)
        for i in np.random.default_rng(0).permutation(numbers).tolist():
            source = int(np.searchsorted(starts, i, 'right')) - 1
            mask = self.splits[source].mask(i - int(starts[source]))
            if mask is not None:
                yield self.splits[source], mask


def of_part(part: Mapping[str, Any], datasets: Mapping[str, DataSet]) -> TrainRecords:
    """The train records of a part of a config."""
    sources = part['sources']
    return TrainRecords(tuple(datasets[name].split('train') for name in sources), tuple(sources.values()))


def _codes(split: Split, label: str) -> np.ndarray:
    labels = split.data.labels
    if label not in labels:
        return np.full(len(split), BLANK, np.int8)
    return np.asarray(split.labels_array[:, labels.index(label)])
