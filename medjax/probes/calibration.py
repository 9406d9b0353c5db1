"""Calibration: maps from scores to probabilities, fitted on the calibrating half of validation.

A probability is calibrated if, of all records with probability p, the share p is positive. Five maps are compared:

    none         the probability that the probe gives; not for scores without a scale
    temperature  sigmoid(log-odds / T), T by maximum likelihood (arXiv 1706.04599)
    platt        sigmoid(a score + b), with Platt's smoothed targets (Platt 1999)
    isotonic     the rising step function with the least squared error, linear between scores (Zadrozny, Elkan 2002)
    venn_abers   p1 / (1 - p0 + p1), where p0 and p1 are the isotonic values of the record if it were negative or
                 positive (inductive Venn-Abers, arXiv 1511.00213); the width p1 - p0 says how little is known

All take the scores and labels 0|1 of one label in the calibrating half, [n], and return a function of test scores [m].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.optimize import isotonic_regression, minimize, minimize_scalar
from scipy.special import expit, logit

Map = Callable[[np.ndarray], np.ndarray]
SMALLEST = 1e-6  # probabilities are clipped to [1e-6, 1 - 1e-6] where their logarithm is taken


def log_odds(scores: np.ndarray, scale: str) -> np.ndarray | None:
    """The log-odds of scores of this scale: 'log-odds' or 'probability'; None for any other."""
    if scale == 'log-odds':
        return scores.astype(np.float64)
    return logit(np.clip(scores.astype(np.float64), SMALLEST, 1 - SMALLEST)) if scale == 'probability' else None


def probability(scores: np.ndarray, scale: str) -> np.ndarray | None:
    """The probability that scores of this scale state; None for scores without one."""
    if scale == 'probability':
        return np.clip(scores.astype(np.float64), 0, 1)
    return expit(scores.astype(np.float64)) if scale == 'log-odds' else None


def temperature(scores: np.ndarray, labels: np.ndarray, scale: str) -> Map:
    """One temperature between e^-5 and e^5."""
    x, y = log_odds(scores, scale), labels == 1

    def loss(log_t: float) -> float:
        z = x * np.exp(-log_t)
        return float(np.mean(np.logaddexp(0, z) - y * z))

    t = np.exp(minimize_scalar(loss, bounds=(-5, 5), method='bounded', options=dict(xatol=1e-6)).x)
    return lambda new: expit(log_odds(new, scale) / t)


def platt(scores: np.ndarray, labels: np.ndarray) -> Map:
    """A logistic regression on the score. The smoothed targets keep it finite where the classes are apart."""
    scores = scores.astype(np.float64)
    positives, negatives = (labels == 1).sum(), (labels == 0).sum()
    target = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    middle, unit = scores.mean(), scores.std() or 1.0
    x = (scores - middle) / unit

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        z = point[0] * x + point[1]
        error = expit(z) - target
        return float(np.mean(np.logaddexp(0, z) - target * z)), np.array([np.mean(error * x), np.mean(error)])

    start = np.array([0.0, np.log((positives + 1) / (negatives + 1))])
    a, b = minimize(loss, start, jac=True, method='BFGS', options=dict(gtol=1e-9)).x
    return lambda new: expit(a * (new.astype(np.float64) - middle) / unit + b)


def isotonic(scores: np.ndarray, labels: np.ndarray) -> Map:
    """Outside the calibrating scores it has the first or last value."""
    x, count, positive = _tied(scores, labels)
    fitted = isotonic_regression(positive / count, weights=count).x
    return lambda new: np.interp(new.astype(np.float64), x, np.clip(fitted, 0, 1))


class VennAbers(NamedTuple):
    """The pair of probabilities for every place that a new score can have among k distinct calibrating scores.

    Place 2i + 1 is equality with the i-th score, place 2i is between score i - 1 and score i.
    """

    scores: np.ndarray  # [k], rising
    p0: np.ndarray  # [2k+1], if the new record is negative
    p1: np.ndarray  # [2k+1], if it is positive

    def pair(self, new: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """p0 and p1 of new scores [m]."""
        new = new.astype(np.float64)
        place = np.searchsorted(self.scores, new, 'left') + np.searchsorted(self.scores, new, 'right')
        return self.p0[place], self.p1[place]

    def probability(self, new: np.ndarray) -> np.ndarray:
        p0, p1 = self.pair(new)
        return p1 / (1 - p0 + p1)

    def width(self, new: np.ndarray) -> np.ndarray:
        p0, p1 = self.pair(new)
        return p1 - p0


def venn_abers(scores: np.ndarray, labels: np.ndarray) -> VennAbers:
    """The isotonic value of one more record, at each place and for each label of it.

    The fit of the scores below a place is a list of steps, and so is that of the scores above it. One more record
    between them is a step too. It is merged with its neighbours while they are out of order (pool adjacent violators).
    """
    x, count, positive = _tied(scores, labels)
    below, above = _steps(count, positive, -1), [*reversed(_steps(count[::-1], positive[::-1], 1))]
    k = len(x)
    values = np.empty((2, 2 * k + 1))
    for place in range(2 * k + 1):
        i, equal = divmod(place, 2)
        size, true = (count[i] + 1, positive[i]) if equal else (1.0, 0.0)
        left = below[i - 1] if i else None
        right = above[i + equal] if i + equal < k else None
        for label in (0, 1):
            values[label, place] = _merged(size, true + label, left, right)
    return VennAbers(x, values[0], values[1])


class _Step(NamedTuple):
    """A step of an isotonic fit, and the step beside it."""

    size: float
    true: float
    next: _Step | None


def _steps(count: np.ndarray, positive: np.ndarray, direction: int) -> list[_Step]:
    """For each i the last step of the isotonic fit of the first i + 1 distinct scores.

    `direction` is 1 where the scores fall, so that the fit falls too.
    """
    steps: list[_Step] = []
    last: _Step | None = None
    for size, true in zip(count.tolist(), positive.tolist(), strict=True):
        while last is not None and direction * (true * last.size - last.true * size) >= 0:
            size, true, last = size + last.size, true + last.true, last.next
        last = _Step(size, true, last)
        steps.append(last)
    return steps


def _merged(size: float, true: float, left: _Step | None, right: _Step | None) -> float:
    """The value of a step between two fits, after it is merged with all steps that are out of order."""
    while True:
        if left is not None and left.true * size >= true * left.size:
            size, true, left = size + left.size, true + left.true, left.next
        elif right is not None and right.true * size <= true * right.size:
            size, true, right = size + right.size, true + right.true, right.next
        else:
            return true / size


def _tied(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct scores, rising, with the numbers of records and of positive records of each."""
    x, number = np.unique(scores.astype(np.float64), return_inverse=True)
    return x, np.bincount(number).astype(np.float64), np.bincount(number, labels == 1)
