"""The splits of a label probe: the labels that can be evaluated, patients held out for validation, and the two halves
of validation.

The probe sees in its validation split only the labels by which it may choose, see `medjax.probes.halves`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medjax.errors import UserError
from medjax.probes import aggregate, halves
from medjax.probes.aggregate import Cases
from medjax.probes.encode import SplitFeatures
from medjax.probes.features import Stored
from medjax.probes.halves import Halves


class Validation(NamedTuple):
    """The validation split as it is, for calibration, and its division."""

    labels: np.ndarray  # int8 [n,L], all of them
    cases: Cases
    halves: Halves

    def with_labels(self, kept: list[int]) -> Validation:
        """The labels of these numbers."""
        return self._replace(labels=self.labels[:, kept], halves=self.halves.with_labels(kept))


class LabelSplits(NamedTuple):
    """The splits that a label probe sees, with only the labels that can be evaluated."""

    train: SplitFeatures | None  # None, as `val`, if the probe does not learn
    val: SplitFeatures | None  # with the labels by which the probe may choose; the others are unknown
    test: SplitFeatures
    names: tuple[str, ...]  # of the labels that can be evaluated
    skipped: dict[str, str]  # the other labels, each with the reason
    validation: str  # where the validation split comes from, for people
    test_cases: Cases
    whole_val: Validation | None = None  # None: nothing can be calibrated

    def with_labels(self, kept: list[int], skipped: dict[str, str]) -> LabelSplits:
        """The splits with some of the labels, given by number; `skipped` are the others, with reasons."""
        train, val, test = (x and x._replace(labels=x.labels[:, kept]) for x in (self.train, self.val, self.test))
        return self._replace(
            train=train,
            val=val,
            test=test,
            names=tuple(self.names[j] for j in kept),
            skipped=self.skipped | skipped,
            whole_val=self.whole_val and self.whole_val.with_labels(kept),
        )


def label_splits(
    train: SplitFeatures,
    val: SplitFeatures | None,
    test: SplitFeatures,
    names: tuple[str, ...],
    seed: int,
    data: str,
    cases: dict[str, Cases] | None = None,
) -> LabelSplits:
    """Skips labels that cannot be evaluated. Without a val split, holds out a tenth of the patients of train.

    `cases` are those of 'val' (of 'train' if there is no val) and of 'test'; default: each record is a unit.
    """
    cases = cases or {}
    if val is None:
        rows = held_out_rows(train.patients, 0.1, seed)
        cases = cases | dict(val=cases.get('train', aggregate.plain(train.patients)).take(rows))
    train, val, validation = with_validation(train, val, seed)
    skipped = {}
    for j, name in enumerate(names):
        missing = [
            missing_class(features.labels[:, j], split) for features, split in ((train, 'train'), (test, 'test'))
        ]
        if any(missing):
            skipped[name] = '; '.join(filter(None, missing))
    kept = [j for j, name in enumerate(names) if name not in skipped]
    if not kept:
        why = reasons(skipped) or 'it has no labels'
        raise UserError(f'{data}: no label to probe: each needs positives and negatives in train and test ({why})')
    train, val, test = (features._replace(labels=features.labels[:, kept]) for features in (train, val, test))
    kept_names = tuple(names[j] for j in kept)
    test_cases = cases.get('test', aggregate.plain(test.patients))
    whole_val = divided(val.labels, cases.get('val', aggregate.plain(val.patients)), kept_names, seed)
    val = val._replace(labels=whole_val.halves.choosing(val.labels))
    return LabelSplits(train, val, test, kept_names, skipped, validation, test_cases, whole_val)


def with_validation(
    train: SplitFeatures, val: SplitFeatures | None, seed: int
) -> tuple[SplitFeatures, SplitFeatures, str]:
    """(train, val, where val comes from): without a val split, a tenth of the patients of train is held out."""
    if val is not None:
        return train, val, 'the val split'
    rows = held_out_rows(train.patients, 0.1, seed)
    return take(train, ~rows), take(train, rows), 'a tenth of the patients of train, held out, as there is no val split'


def divided(labels: np.ndarray, cases: Cases, names: Sequence[str], seed: int) -> Validation:
    """The validation split with labels int8 [n,L], divided into halves."""
    return Validation(labels, cases, halves.divide(labels, cases.patient, names, seed))


def missing_class(labels: np.ndarray, split: str) -> str:
    """The class that a label [n] lacks in a split: 'no positive record in test'; '' if it has both classes."""
    missing = [name for value, name in ((1, 'positive'), (0, 'negative')) if not (labels == value).any()]
    return f'no {" and no ".join(missing)} record in {split}' if missing else ''


def reasons(skipped: Mapping[str, str]) -> str:
    """What was left out and why, for an error message: 'rare: no positive record in test; …', five entries at most."""
    return '; '.join(f'{name}: {reason}' for name, reason in list(skipped.items())[:5])


def held_out_rows(patients: np.ndarray, share: float, seed: int) -> np.ndarray:
    """bool [n]: True for the records of a random `share` of the patients [n], at least one patient."""
    count = int(patients.max()) + 1
    if count < 2:
        raise UserError('the train split has a single patient, so no patient can be held out for validation')
    drawn = np.random.default_rng(seed).permutation(count)[: max(1, round(share * count))]
    return np.isin(patients, drawn)


def take(split: SplitFeatures, rows: np.ndarray) -> SplitFeatures:
    """Some records of a split, given as bool [n]. Features on disk are not read."""

    def some(x: np.ndarray | Stored) -> np.ndarray | Stored:
        return x.take(rows) if isinstance(x, Stored) else x[rows]

    return SplitFeatures(
        some(split.cls),
        None if split.patches is None else some(split.patches),
        split.labels[rows],
        np.unique(split.patients[rows], return_inverse=True)[1],
    )
