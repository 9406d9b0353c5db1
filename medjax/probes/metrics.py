"""AUROC, AUPRC and accuracy of weighted records, exact under ties.

A weight says how often a record counts. It is 1 for the plain value. In a bootstrap it is the number of times that the
record's patient was drawn. All functions take R rows of weights at once, so one call computes a thousand draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
    """Weighted counts above each of T distinct scores, from the highest score down."""

    true: np.ndarray  # float64 [R,T], weight of positives with at least this score
    false: np.ndarray  # float64 [R,T], weight of negatives with at least this score
    thresholds: np.ndarray  # float32|float64 [T], the distinct scores, falling


def curve(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """The counts that all metrics use: scores [n], labels 0|1 [n], weights [R,n] (default: one row of ones)."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(-scores, kind='stable')
    scores, positive, weights = scores[order], labels[order] == 1, weights[:, order].astype(np.float64)
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True))  # of equal scores: ties are counted together
    total = np.cumsum(weights, 1)[:, last]
    true = np.cumsum(weights * positive, 1)[:, last]
    return Curve(true, total - true, scores[last])


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b, and nan where b is 0."""
    return np.divide(a, b, out=np.full(np.broadcast_shapes(a.shape, b.shape), np.nan), where=b > 0)


def auroc(c: Curve) -> np.ndarray:
    """Area under the ROC curve: P(positive scored above negative) + P(tie) / 2; [R], nan if a class is missing."""
    zero = np.zeros((len(c.true), 1))
    before = np.concatenate([zero, c.true[:, :-1]], 1)
    area = (np.diff(c.false, axis=1, prepend=zero) * (c.true + before) / 2).sum(1)
    return _ratio(area, c.true[:, -1] * c.false[:, -1])


def auprc(c: Curve) -> np.ndarray:
    """Average precision: sum over thresholds of (rise in recall) x precision; [R], nan without positives."""
    rise = np.diff(c.true, axis=1, prepend=np.zeros((len(c.true), 1)))
    precision = np.nan_to_num(_ratio(c.true, c.true + c.false))
    return _ratio((rise * precision).sum(1), c.true[:, -1])


def accuracy(scores: np.ndarray, labels: np.ndarray, threshold: float, weights: np.ndarray | None = None) -> np.ndarray:
    """Share of records that `score >= threshold` classifies correctly; [R]."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    right = ((scores >= threshold) == (labels == 1)).astype(np.float64)
    return _ratio(weights @ right, weights.sum(1).astype(np.float64))


def balanced_accuracy(
    scores: np.ndarray, labels: np.ndarray, threshold: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """Mean of sensitivity and specificity of `score >= threshold`; [R], nan if a class is missing."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    above, positive = scores >= threshold, labels == 1
    sensitivity = _ratio(weights @ (above & positive).astype(float), weights @ positive.astype(float))
    specificity = _ratio(weights @ (~above & ~positive).astype(float), weights @ (~positive).astype(float))
    return (sensitivity + specificity) / 2


def best_threshold(scores: np.ndarray, labels: np.ndarray, balanced: bool = False) -> float:
    """The threshold with the greatest (balanced) accuracy on these records, halfway to the next lower score.

    If several thresholds are equally good, it is the highest. If a class is missing, nothing can be chosen: .5.
    """
    c = curve(scores, labels)
    true, false, positives, negatives = c.true[0], c.false[0], c.true[0, -1], c.false[0, -1]
    if positives == 0 or negatives == 0:
        return 0.5
    gain = true / positives - false / negatives if balanced else true - false
    best = int(np.argmax(np.append(0.0, gain)))  # the number of distinct scores that count as positive
    if best == 0:
        return float(np.nextafter(c.thresholds[0], np.inf))
    if best == len(c.thresholds):
        return float(c.thresholds[-1])
    return float((c.thresholds[best - 1].astype(np.float64) + c.thresholds[best]) / 2)
