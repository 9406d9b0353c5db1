"""Chooses the records that a page shows: by a fixed shuffle, and from as many patients as possible."""

from __future__ import annotations

import numpy as np

from medjax.data.records import Split


def varied(split: Split, n: int) -> list[int]:
    """At most n records, each of another patient: a positive record of each label in turn, then any record."""
    order = np.random.default_rng(0).permutation(len(split))
    labels, patients = split.labels_array[order], split.keys('patient')[order]
    first = np.sort(np.unique(patients, return_index=True)[1])  # one record of each patient
    positives = [first[labels[first, i] == 1] for i in range(labels.shape[1])]
    turns = [records[turn] for turn in range(n) for records in positives if turn < len(records)]
    return [int(order[i]) for i in list(dict.fromkeys([*turns, *first]))[:n]]


def spread(split: Split, records: np.ndarray, n: int) -> list[int]:
    """At most n of the given records: one of each patient, before any patient has a second."""
    shuffled = np.random.default_rng(0).permutation(records)
    first = np.sort(np.unique(split.keys('patient')[shuffled], return_index=True)[1])
    others = np.setdiff1d(np.arange(len(shuffled)), first)
    return shuffled[np.concatenate([first, others])[:n]].tolist()
