"""How far probabilities are from the truth: ECE, ACE, Brier score and NLL of each label, and reliability diagrams.

    ece    expected calibration error: 15 bins of equal width over the probability of a positive label;
           sum over bins of (share of the records) x |share of positives - mean probability|
    ace    adaptive calibration error: 15 bins with equally many records; the mean over bins of the same difference.
           Records with equal probabilities share the bins that they fill, so the order of records has no part
    brier  mean of (probability - label)^2
    nll    mean of -ln(probability of the true label), with probabilities clipped to [1e-6, 1 - 1e-6]

ECE and ACE of a perfect model are above 0 on few records, and their size depends on the bins. Brier score and NLL do
not depend on bins, but also measure how well the classes are told apart.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from medjax.probes import policy
from medjax.probes.calibration import SMALLEST
from medjax.probes.statistics import Bootstrap, Results, Sample, distance_interval, mean_estimate

BINS = 15
METRICS = ('ece', 'ace', 'brier', 'nll')
PLACES = 3 * BINS + 3  # columns of sums for each label


def errors(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str], bootstrap: Bootstrap) -> Results:
    """{metric: {'mean' or label: {value, low, high}}} of probabilities [n,L] of labels int8 [n,L].

    The bins are those of the plain sample in all draws. Only records with a known label count.
    """
    columns = [_columns(p, y) for p, y in zip(probabilities.T, labels.T, strict=True)]
    sums = bootstrap.sums(np.concatenate(columns, 1)).map(lambda x: x.reshape(len(x), len(names), PLACES))
    results: Results = {}
    for metric in METRICS:
        sample = sums.map(functools.partial(_from_sums, metric=metric))
        distance = metric in ('ece', 'ace')
        results[metric] = {'mean': mean_estimate(sample, bootstrap)}
        for j, name in enumerate(names):
            results[metric][name] = bootstrap.estimate(sample.at(j))
        if distance:
            for row, one in results[metric].items():
                one |= _limits(sample, None if row == 'mean' else names.index(row))
    return results


def _limits(sample: Sample, label: int | None) -> dict[str, float | None]:
    """The limits of a distance: of one label, or of the mean over labels (None)."""
    if label is None:
        sample = sample.filled()
        value, drawn = np.nanmean(sample.value), np.nanmean(sample.drawn, 1)
    else:
        value, drawn = sample.value[label], sample.drawn[:, label]
    low, high = distance_interval(value, drawn)
    return dict(low=low, high=high)


def _from_sums(sums: np.ndarray, metric: str) -> np.ndarray:
    """[R,L]: a metric from the sums [R,L,PLACES] over records."""
    width, mass, filled = (sums[..., k * BINS : (k + 1) * BINS] for k in range(3))
    brier, nll, count = (sums[..., 3 * BINS + k] for k in range(3))
    with np.errstate(invalid='ignore', divide='ignore'):
        if metric == 'ece':
            return np.where(count > 0, np.abs(width).sum(-1) / count, np.nan)
        if metric == 'ace':
            used = filled > 1e-9
            return np.where(used, np.abs(mass) / filled, 0).sum(-1) / used.sum(-1)
        return np.where(count > 0, (brier if metric == 'brier' else nll) / count, np.nan)


def _columns(p: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [n,PLACES] of one label: what each record adds to each sum."""
    known, y = policy.known(labels), (labels == 1).astype(np.float64)
    columns = np.zeros((len(p), PLACES))
    rows, p, y = np.flatnonzero(known), p[known], y[known]
    columns[rows, width_bins(p)] = y - p
    membership = mass_bins(p)
    columns[rows, BINS : 2 * BINS] = membership * (y - p)[:, None]
    columns[rows, 2 * BINS : 3 * BINS] = membership
    clipped = np.clip(p, SMALLEST, 1 - SMALLEST)
    columns[rows, 3 * BINS] = (y - p) ** 2
    columns[rows, 3 * BINS + 1] = -np.log(np.where(y == 1, clipped, 1 - clipped))
    columns[rows, 3 * BINS + 2] = 1
    return columns


def width_bins(p: np.ndarray) -> np.ndarray:
    """int [n]: the bin of equal width of each probability; 1 belongs to the last bin."""
    return np.minimum((p * BINS).astype(int), BINS - 1)


def mass_bins(p: np.ndarray) -> np.ndarray:
    """float64 [n,BINS]: the share of each record in each bin, so that all bins hold n / BINS records.

    With fewer records than bins, each record is a bin.
    """
    n, bins = len(p), min(BINS, max(1, len(p)))
    _, group, count = np.unique(p, return_inverse=True, return_counts=True)
    end = np.cumsum(count)
    start = end - count
    edges = np.arange(bins + 1) * n / bins
    overlap = np.clip(np.minimum(end[:, None], edges[1:]) - np.maximum(start[:, None], edges[:-1]), 0, None)
    shares = np.zeros((n, BINS))
    shares[:, :bins] = (overlap / count[:, None])[group]
    return shares


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float64 [L,BINS,3]: number of records, mean probability and share of positives in each bin of equal width.

    An empty bin has 0 records and nan. A reliability diagram draws the share over the mean probability.
    """
    found = np.full((labels.shape[1], BINS, 3), np.nan)
    for j, known in enumerate(policy.known(labels).T):
        p, y = probabilities[known, j], labels[known, j] == 1
        bins = width_bins(p)
        count = np.bincount(bins, minlength=BINS)
        with np.errstate(invalid='ignore'):
            found[j] = np.stack([count, np.bincount(bins, p, BINS) / count, np.bincount(bins, y, BINS) / count], 1)
    return found
