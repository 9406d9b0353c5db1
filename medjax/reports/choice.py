"""Which records a page shows: by one fixed shuffle, of as many patients as there are; no luck and no eye for beauty."""

from __future__ import annotations

import numpy as np

from medjax.data.records import Split


def varied(split: Split, n: int) -> list[int]:
    """n records of as many patients where there are so many: a positive of each label in turn, then any."""
    order = np.random.default_rng(0).permutation(len(split))
    labels, patients = split.labels_array[order], split.keys('patient')[order]
    first = np.sort(np.unique(patients, return_index=True)[1])  # one record of each patient
    wanted = [first[labels[first, i] == 1] for i in range(labels.shape[1])]
    turns = [where[turn] for turn in range(n) for where in wanted if turn < len(where)]
    return [int(order[i]) for i in list(dict.fromkeys([*turns, *first]))[:n]]


def spread(split: Split, records: np.ndarray, n: int) -> list[int]:
    """At most n of the given records: of each patient one, before any patient has a second."""
    shuffled = np.random.default_rng(0).permutation(records)
    first = np.sort(np.unique(split.keys('patient')[shuffled], return_index=True)[1])
    rest = np.setdiff1d(np.arange(len(shuffled)), first)
    return shuffled[np.concatenate([first, rest])[:n]].tolist()
