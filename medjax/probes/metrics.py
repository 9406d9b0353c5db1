"""AUROC, AUPRC and metrics at a threshold, of weighted records and exact under ties.

A weight says how often a record counts. It is 1 for the plain value. In a bootstrap it is the number of times that the
record's patient was drawn. All functions take R rows of weights at once, so one call computes many draws. The scores
are sorted once for all draws.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medjax.errors import UserError


class Ranking(NamedTuple):
    """The order of n records by falling score. Records with equal scores are one group.

    AUROC and AUPRC change only at groups with a positive record, so only these G groups are kept.
    """

    columns: np.ndarray  # int [n]: the column of the weights for each record in this order
    positive: np.ndarray  # int [P]: the places of the positive records in this order
    before: np.ndarray  # int [G]: the number of records before the group
    last: np.ndarray  # int [G]: the place of the last record of the group
    positives: np.ndarray  # int [G]: the number of positive records up to the end of the group


class Curve(NamedTuple):
    """Weights of R draws at the G groups of a ranking, from the highest score down."""

    true: np.ndarray  # [R,G]: of positives with at least the score of the group
    rise: np.ndarray  # [R,G]: of positives of the group
    false: np.ndarray  # [R,G]: of negatives with at least the score of the group
    false_before: np.ndarray  # [R,G]: of negatives with a higher score
    positives: np.ndarray  # [R]: of all positives
    negatives: np.ndarray  # [R]: of all negatives


def check(scores: np.ndarray) -> None:
    """UserError if a score is not a number: records without a score have no place in an order."""
    if np.isnan(scores).any():
        count = int(np.isnan(scores).sum())
        raise UserError(f'{count} of {scores.size} scores are not a number (NaN), so no metric can be computed')


def ranking(scores: np.ndarray, labels: np.ndarray, columns: np.ndarray | None = None) -> Ranking:
    """Sorts n records with scores [n] and labels 0|1 [n].

    `columns` int [n] says which column of the weights belongs to a record, for example its patient. None: column i
    belongs to record i.
    """
    check(scores)
    order = np.argsort(-scores, kind='stable')
    ordered = scores[order]
    positive = np.flatnonzero(labels[order] == 1)
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)])  # of all groups
    ends = np.append(starts[1:], len(ordered)) - 1
    group = np.searchsorted(ends, positive)  # of each positive record
    kept, count = np.unique(group, return_counts=True)
    columns = order if columns is None else columns[order]
    return Ranking(columns, positive, starts[kept], ends[kept], np.cumsum(count))


def curve_of(ranking: Ranking, weights: np.ndarray) -> Curve:
    """The curve of R draws with weights [R,C], of integers or floats."""
    exact = np.int64 if np.issubdtype(weights.dtype, np.integer) else np.float64
    dtype = np.int32 if exact is np.int64 and len(ranking.columns) < 1 << 20 else exact
    ordered = np.take(weights, ranking.columns, axis=1)
    total = np.zeros((len(weights), ordered.shape[1] + 1), dtype)  # with a zero in front
    np.cumsum(ordered, 1, dtype=dtype, out=total[:, 1:])
    true = np.cumsum(ordered[:, ranking.positive], 1, dtype=dtype)
    positives = true[:, -1] if true.shape[1] else total[:, 0]
    true = true[:, ranking.positives - 1]
    rise = np.diff(true, axis=1, prepend=0)
    false, before = total[:, ranking.last + 1] - true, total[:, ranking.before] - (true - rise)
    return Curve(true, rise, false, before, positives, total[:, -1] - positives)


def curve(scores: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> Curve:
    """The curve of scores [n], labels 0|1 [n] and weights [R,n] (default: one row of ones)."""
    return curve_of(ranking(scores, labels), np.ones((1, len(scores)), np.int32) if weights is None else weights)


def ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a / b in float64, and nan where b is 0."""
    shape = np.broadcast_shapes(np.shape(a), np.shape(b))
    return np.divide(a, b, out=np.full(shape, np.nan), where=np.asarray(b) > 0)


def auroc(c: Curve) -> np.ndarray:
    """Area under the ROC curve: P(positive scored above negative) + P(tie) / 2; [R], nan if a class is missing."""
    negatives = c.negatives.astype(np.float64)
    won = c.rise * (negatives[:, None] - (c.false + c.false_before) / 2)
    return ratio(won.sum(1), c.positives * negatives)


def auprc(c: Curve) -> np.ndarray:
    """Average precision: sum over thresholds of (rise in recall) x precision; [R], nan without positives."""
    precision = c.true / np.maximum(c.true + c.false, np.finfo(float).tiny)
    return ratio((c.rise * precision).sum(1), c.positives)


def adjusted_auprc(c: Curve) -> np.ndarray:
    """1 - ln(AUPRC) / ln(prevalence): 0 at chance, 1 for a perfect order, whatever the prevalence; [R].

    AUPRCs of groups with different prevalence cannot be compared; this form can (TheoSourget/clip_cxr_fairness). It is
    nan if a class is missing.
    """
    prevalence = ratio(c.positives, c.positives + c.negatives)
    prevalence = np.where((c.positives > 0) & (c.negatives > 0), prevalence, np.nan)
    return 1 - np.log(auprc(c)) / np.log(prevalence)


def fpr_at_sensitivity(c: Curve, sensitivity: float = 0.95) -> np.ndarray:
    """False positive rate at the highest threshold with this sensitivity (FPR95); [R], nan if a class is missing."""
    reached = c.true >= sensitivity * c.positives[:, None]
    at = np.take_along_axis(c.false, reached.argmax(1)[:, None], 1)[:, 0] if c.true.shape[1] else c.negatives
    return np.where(c.positives > 0, ratio(at, c.negatives), np.nan)


RANKED = dict(auroc=auroc, auprc=auprc, adjusted_auprc=adjusted_auprc)


class Confusion(NamedTuple):
    """Weights of the four kinds of decisions, each [R]."""

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray


def decisions(scores: np.ndarray, labels: np.ndarray, threshold: float) -> np.ndarray:
    """float64 [n,4]: one column for each field of Confusion; 1 where the decision `score >= threshold` is of its kind.

    A record with an unknown label has four zeros. Weights [R,n] @ these columns are the fields of a Confusion.
    """
    check(scores)
    above, positive, negative = scores >= np.float64(threshold), labels == 1, labels == 0  # compared in float64
    return np.stack([above & positive, above & negative, ~above & positive, ~above & negative], 1).astype(np.float64)


def confusion(scores: np.ndarray, labels: np.ndarray, threshold: float, weights: np.ndarray | None = None) -> Confusion:
    """The decisions `score >= threshold` of R draws with weights [R,n] (default: one row of ones)."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    return Confusion(*(weights @ decisions(scores, labels, threshold)).T)


def accuracy(c: Confusion) -> np.ndarray:
    """Share of records that are classified correctly; [R]."""
    return ratio(c.tp + c.tn, c.tp + c.fp + c.fn + c.tn)


def sensitivity(c: Confusion) -> np.ndarray:
    """Share of the positive records that are found; [R], nan without positives."""
    return ratio(c.tp, c.tp + c.fn)


def false_positive_rate(c: Confusion) -> np.ndarray:
    """Share of the negative records that are called positive; [R], nan without negatives."""
    return ratio(c.fp, c.fp + c.tn)


def positive_rate(c: Confusion) -> np.ndarray:
    """Share of all records that are called positive; [R]."""
    return ratio(c.tp + c.fp, c.tp + c.fp + c.fn + c.tn)


def balanced_accuracy(c: Confusion) -> np.ndarray:
    """Mean of sensitivity and specificity; [R], nan if a class is missing."""
    return (sensitivity(c) + 1 - false_positive_rate(c)) / 2


def mcc(c: Confusion) -> np.ndarray:
    """Matthews' correlation of decisions and labels; [R].

    It is nan if a class is missing. If all records get the same decision it is 0, as in scikit-learn.
    """
    product = (c.tp + c.fp) * (c.fn + c.tn) * (c.tp + c.fn) * (c.fp + c.tn)
    value = np.where(product > 0, (c.tp * c.tn - c.fp * c.fn) / np.sqrt(np.maximum(product, 1e-300)), 0.0)
    return np.where((c.tp + c.fn > 0) & (c.fp + c.tn > 0), value, np.nan)


THRESHOLDED = dict(accuracy=accuracy, balanced_accuracy=balanced_accuracy, mcc=mcc)


def best_threshold(scores: np.ndarray, labels: np.ndarray, balanced: bool = False) -> float:
    """The threshold with the greatest (balanced) accuracy on these records, halfway to the next lower score.

    If several thresholds are equally good, it is the highest. If a class is missing, nothing can be chosen: nan.
    """
    check(scores)
    order = np.argsort(-scores, kind='stable')
    ordered, positive = scores[order], labels[order] == 1
    if not 0 < positive.sum() < len(positive):
        return float('nan')
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # of each group of equal scores
    true, false, values = np.cumsum(positive)[last], np.cumsum(~positive)[last], ordered[last]
    gain = true / true[-1] - false / false[-1] if balanced else true - false
    best = int(np.argmax(np.append(0.0, gain)))  # the number of distinct scores that count as positive
    if best == 0:
        return float(np.nextafter(values[0], np.inf))
    if best == len(values):
        return float(values[-1])
    return float((values[best - 1].astype(np.float64) + values[best]) / 2)


def matching_threshold(scores: np.ndarray, prevalence: float) -> float:
    """The threshold at which about the share `prevalence` of these scores is positive, halfway between two scores."""
    check(scores)
    falling = np.sort(scores.astype(np.float64))[::-1]
    count = round(prevalence * len(falling))
    if count == 0:
        return float(np.nextafter(falling[0], np.inf))
    return float(falling[-1] if count == len(falling) else (falling[count - 1] + falling[count]) / 2)
