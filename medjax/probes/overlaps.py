"""Dice and IoU of predicted structures, record by record, and their means over patients.

For the pixels A that a mask shows and the pixels B that are predicted, among those that the encoder sees:

    Dice          2 |A and B| / (|A| + |B|)
    IoU           |A and B| / |A or B|
    false area    |B| / all pixels, for records whose mask does not show the structure

A record whose mask does not show the structure has no Dice and no IoU, whatever is predicted: it counts for the false
area only. So Dice is over the same records for every encoder. The records of a patient count as one: first the mean
over records, then over patients.

The false area is an area and not a share of records with a false alarm: thresholds are chosen for Dice, and nearly
every record then has some predicted pixel, so such a share would hardly tell encoders apart. A least size of an alarm
would be one more number to choose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.probes import metrics, statistics
from medjax.probes.statistics import Bootstrap, Sample
from medjax.probes.structures import Masked, inside, on_pixels

LEVELS = np.arange(-5, 5.01, 0.5, np.float32)  # the thresholds that are tried, in log-odds


class Overlap(NamedTuple):
    """Numbers of pixels for n records and K structures, each int64 [n,K], or [n,K,R] at R thresholds."""

    both: np.ndarray  # in the mask and predicted
    predicted: np.ndarray
    shown: np.ndarray  # in the mask
    pixels: np.ndarray  # that the encoder sees

    def dice(self) -> np.ndarray:
        """Float64; nan where the mask does not show the structure."""
        return np.where(self.shown > 0, metrics.ratio(2 * self.both, self.shown + self.predicted), np.nan)

    def iou(self) -> np.ndarray:
        """Float64; nan where the mask does not show the structure."""
        return np.where(self.shown > 0, metrics.ratio(self.both, self.shown + self.predicted - self.both), np.nan)

    def false_area(self) -> np.ndarray:
        """Float64; nan where the mask shows the structure."""
        return np.where(self.shown > 0, np.nan, metrics.ratio(self.predicted, self.pixels))


def count(predicted: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """int64 [4,K]: the pixels of `Overlap` for predicted and shown structures, bool [K,H,W]."""
    pixels = np.full(len(shown), shown[0].size)
    return np.stack([(predicted & shown).sum((1, 2)), predicted.sum((1, 2)), shown.sum((1, 2)), pixels])


def count_at_levels(values: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """int64 [4,K,thresholds]: the pixels of `Overlap` where values float32 [K,H,W] reach each of LEVELS."""
    reached = np.searchsorted(LEVELS, values, side='right')  # the number of levels that a pixel reaches
    found = []
    for of_structure, plane in zip(reached, shown, strict=True):
        at = [np.bincount(x, minlength=len(LEVELS) + 1) for x in (of_structure[plane], of_structure.ravel())]
        both, predicted = (x[::-1].cumsum()[::-1][1:] for x in at)
        found.append([both, predicted, *(np.full(len(LEVELS), number) for number in (plane.sum(), plane.size))])
    return np.moveaxis(np.array(found), 0, 1)


def overlap(records: Masked, values: Iterable[np.ndarray], thresholds: np.ndarray | None) -> Overlap:
    """The overlap of the masks with values float32 [K,h,w] of the grid of each record.

    It is that at thresholds [K]; None: at each of LEVELS.
    """
    found = []
    for planes, of_record in zip(records.planes(), values, strict=True):
        rows, columns = records.axes(planes.shape[1:])
        shown = planes[:, inside(rows), inside(columns)]
        on = on_pixels(of_record, rows, columns)
        found.append(
            count_at_levels(on, shown) if thresholds is None else count(on >= thresholds[:, None, None], shown)
        )
    return Overlap(*np.moveaxis(np.array(found, np.int64), 1, 0))


def best_thresholds(records: Masked, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The thresholds [K] with the best mean Dice over patients, and these means; 0 and nan for a structure not shown.

    Of equally good thresholds the one nearest to 0 is taken.
    """
    dice = overlap(records, values, None).dice()  # [n,K,thresholds]
    weight = patient_weights(dice[:, :, 0], records.patients)
    means = metrics.ratio((weight[..., None] * np.nan_to_num(dice)).sum(0), weight.sum(0)[:, None])
    order = np.argsort(np.abs(LEVELS), kind='stable')
    best = order[np.argmax(np.nan_to_num(means, nan=-1)[:, order], 1)]
    return LEVELS[best], means[np.arange(len(means)), best]


def patient_weights(values: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """[n,K]: 1 / the number of records of the patient that have a value; 0 for records without one (nan)."""
    there = ~np.isnan(values)
    counts = np.zeros((int(patients.max()) + 1, values.shape[1]))
    np.add.at(counts, patients, there)
    return np.where(there, 1 / np.maximum(counts[patients], 1), 0)


def mean_over_patients(values: np.ndarray, bootstrap: Bootstrap) -> Sample:
    """The sample [K] of means over patients of values [n,K]; nan: the record has no value."""
    weight = patient_weights(values, bootstrap.patients)
    sums = bootstrap.sums(np.concatenate([weight * np.nan_to_num(values), weight], 1))
    return sums.map(lambda x: metrics.ratio(x[:, : values.shape[1]], x[:, values.shape[1] :]))


def results(found: Overlap, names: Sequence[str], bootstrap: Bootstrap) -> statistics.Results:
    """{metric: {'mean' or structure: {value, low, high, records, …}}} of Dice, IoU and false area."""
    return {metric: rows(values, names, bootstrap) for metric, values in measures(found).items()}


def measures(found: Overlap) -> dict[str, np.ndarray]:
    """{metric: float64 [n,K]}, nan where a record has no value."""
    return dict(dice=found.dice(), iou=found.iou(), false_area=found.false_area())


def arrays(values: dict[str, np.ndarray], found: Overlap, records: Masked) -> dict[str, np.ndarray]:
    """The .npz file of a result: {metric: [n,K]}, and what `probes.comparison` needs to compare it with another."""
    return values | dict(
        names=np.array(records.names), record=records.numbers, pixels=found.pixels[:, 0], patient=records.patients
    )


def rows(values: np.ndarray, names: Sequence[str], bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """{'mean' or structure: {value, low, high, records, …}} of means over patients of values [n,K]."""
    sample = mean_over_patients(values, bootstrap)
    return {'mean': statistics.mean_estimate(sample, bootstrap)} | {
        name: bootstrap.estimate(sample.at(k)) | dict(records=int((~np.isnan(values[:, k])).sum()))
        for k, name in enumerate(names)
    }
