"""Pools the scores of images to one score for each study or patient: `medjax probe --unit patient --pool max`.

Slices of a volume and views of a study are images of one case. The question is then often about the case: does any
image show the finding? A unit is what the metrics count: an image, a study or a patient.

The score of a unit is the mean or the maximum of the scores of its images. Its label is positive if any of its images
is positive, negative if all known labels are negative, and unknown if none is known. Units with positive and negative
images are counted as `disagreeing`. A probe still learns from images and chooses its settings on images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.records import Split
from medjax.data.types import NEGATIVE, POSITIVE

UNITS, POOLS = ('image', 'study', 'patient'), ('mean', 'max')


class Cases(NamedTuple):
    """What the n records of a split say besides features and labels."""

    patient: np.ndarray  # uint64 [n]: the hashed key of the patient
    unit: np.ndarray  # int [n]: the unit of each record, as 0…m-1
    columns: Mapping[str, np.ndarray]  # attributes by name, each [n]: float32, nan if unknown, or words, '' if unknown

    def take(self, rows: np.ndarray) -> Cases:
        """The cases of some records, given as bool [n]."""
        unit = np.unique(self.unit[rows], return_inverse=True)[1]
        return Cases(self.patient[rows], unit, {name: x[rows] for name, x in self.columns.items()})


class Units(NamedTuple):
    """Scores, labels and patients of m units, with L labels."""

    scores: np.ndarray  # float [m,L]
    labels: np.ndarray  # int8 [m,L]
    patients: np.ndarray  # int [m], 0…P-1
    keys: np.ndarray  # uint64 [m]: the hashed key of the patient
    columns: Mapping[str, np.ndarray]  # attributes, each [m]


def cases(split: Split, unit: str, columns: Sequence[str] = ()) -> Cases:
    """The cases of a split. A record without a study (key 0) is a unit of its own."""
    patient = np.asarray(split.keys('patient'))
    attributes = {name: np.asarray(split.column(name)) for name in columns}
    if unit == 'image':
        return Cases(patient, np.arange(len(patient)), attributes)
    key = np.asarray(split.keys(unit))
    own = np.where(key == 0, np.arange(1, len(key) + 1), 0)
    return Cases(patient, np.unique(np.stack([key, own], 1), axis=0, return_inverse=True)[1].reshape(-1), attributes)


def plain(patients: np.ndarray) -> Cases:
    """The cases of records of which only the patient is known, as a number."""
    return Cases(patients.astype(np.uint64), np.arange(len(patients)), {})


def pool(scores: np.ndarray, labels: np.ndarray, cases: Cases, how: str) -> Units:
    """Pools the scores and labels [n,L] of records to units. `how` is 'mean' or 'max'."""
    first = np.unique(cases.unit, return_index=True)[1]  # a record of each unit
    keys = cases.patient[first]
    return Units(
        scores=pool_scores(scores, cases.unit, how),
        labels=pool_labels(labels, cases.unit),
        patients=np.unique(keys, return_inverse=True)[1],
        keys=keys,
        columns={name: _pool_column(x, cases.unit) for name, x in cases.columns.items()},
    )


def pool_scores(scores: np.ndarray, unit: np.ndarray, how: str) -> np.ndarray:
    """The mean or the maximum [m,L] of the scores [n,L] of each unit."""
    if how == 'max':
        return _reduce(np.maximum, scores, unit)
    return (_reduce(np.add, scores.astype(np.float64), unit) / np.bincount(unit)[:, None]).astype(scores.dtype)


def pool_labels(labels: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """int8 [m,L]: the greatest code of each unit: positive (1), negative (0), or the codes of unknown labels below."""
    return _reduce(np.maximum, labels, unit)


def disagreeing(labels: np.ndarray, unit: np.ndarray, names: Sequence[str]) -> dict[str, int]:
    """{label: number of units with positive and negative records}, without zeros."""
    positive = _reduce(np.logical_or, labels == POSITIVE, unit)
    counts = (positive & _reduce(np.logical_or, labels == NEGATIVE, unit)).sum(0)
    return {name: int(count) for name, count in zip(names, counts) if count}


def facts(cases: Cases, unit: str, how: str, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """How the test records were pooled, for the result's JSON."""
    count = int(cases.unit.max()) + 1
    if unit == 'image':
        return dict(unit='image', units=count)
    return dict(unit=unit, units=count, pool=how, disagreeing=disagreeing(labels, cases.unit, names)) | dict(
        label='positive if any record of the unit is, negative if all known labels are negative'
    )


def _pool_column(values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """[m]: the mean of known numbers, or the word that all records with a word share, else 'several'."""
    if values.dtype.kind == 'f':
        known = ~np.isnan(values)
        total = np.bincount(unit, np.where(known, values, 0))
        count = np.bincount(unit, known)
        return np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    words, code = np.unique(values, return_inverse=True)
    named = words[code] != ''
    low = _reduce(np.minimum, np.where(named, code, len(words)), unit)
    high = _reduce(np.maximum, np.where(named, code, -1), unit)
    pooled = np.append(words.astype(object), '')[low]
    return np.where((high > low) & (high >= 0), 'several', pooled).astype(str)


def _reduce(ufunc: np.ufunc, values: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """[m,…]: the values [n,…] of each unit, reduced by a ufunc."""
    order = np.argsort(unit, kind='stable')
    starts = np.flatnonzero(np.append(True, np.diff(unit[order]) > 0))
    return ufunc.reduceat(values[order], starts, axis=0)
