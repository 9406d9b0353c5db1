"""Confidence intervals from a bootstrap over patients.

The images of one patient are not independent. So a draw takes patients with replacement, each with all images.
All labels and metrics use the same draws, so their mean over labels gets an interval of its own. The draws depend on
the seed only, so two encoders on one test set are compared on the same patients.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from medjax.probes import metrics, policy

DRAWS, LEVEL = 1000, 0.95
TAILS = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]  # percentiles
THRESHOLDED = dict(accuracy=metrics.accuracy, balanced_accuracy=metrics.balanced_accuracy)

Results = dict[str, dict[str, dict[str, Any]]]  # {metric: {row: {value, low, high, …}}}


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Random draws of the patients of n records, with replacement."""

    patients: np.ndarray  # int [n]: the patient of each record, as 0…P-1
    seed: int = 0
    draws: int = DRAWS

    @property
    def patient_count(self) -> int:
        return int(self.patients.max()) + 1

    def weights(self, chunk_elements: int = 1 << 22) -> Iterator[np.ndarray]:
        """Yields float64 [R,n] until all draws are done: how often each of R draws contains each record's patient."""
        rng, count = np.random.default_rng(self.seed), self.patient_count
        rows = max(1, chunk_elements // max(len(self.patients), count))
        for start in range(0, self.draws, rows):
            drawn = rng.integers(count, size=(min(rows, self.draws - start), count))
            times = np.stack([np.bincount(draw, minlength=count) for draw in drawn])
            yield times[:, self.patients].astype(np.float64)

    def facts(self) -> dict[str, Any]:
        """The settings of the bootstrap, for the result's JSON."""
        return dict(unit='patient', patients=self.patient_count, draws=self.draws, level=LEVEL, seed=self.seed)


def intervals(
    scores: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    thresholds: dict[str, np.ndarray],
    bootstrap: Bootstrap,
) -> Results:
    """Computes every metric of every label, and its mean over labels, with percentile intervals over patients.

    Args: scores [n,L]; labels int8 [n,L], see `policy.known` for those that count; names of the L labels; thresholds
    {metric: [L]}, for those of THRESHOLDED that are wanted.
    Returns {metric: {'mean': {value, low, high, labels}, label: {value, low, high, positives, negatives, undefined}}}.

    A draw in which a label has no positive or no negative record has no value for this label. The label's percentiles
    leave this draw out, and `undefined` counts it. In the mean over labels the label then has its plain value, so the
    mean is over the same labels in every draw.
    """
    plain = {
        metric: value[:, 0]
        for metric, value in _metrics_by_label(scores, labels, thresholds, np.ones((1, len(labels)))).items()
    }
    chunks = [_metrics_by_label(scores, labels, thresholds, weights) for weights in bootstrap.weights()]
    results: Results = {}
    for metric, value in plain.items():
        drawn = np.concatenate([chunk[metric] for chunk in chunks], 1)  # [L,R]
        low, high = np.percentile(np.where(np.isnan(drawn), value[:, None], drawn).mean(0), TAILS)
        rows = {'mean': dict(value=float(value.mean()), low=float(low), high=float(high), labels=len(names))}
        for j, name in enumerate(names):
            rows[name] = _label_interval(value[j], drawn[j], labels[:, j])
        results[metric] = rows
    return results


def _metrics_by_label(
    scores: np.ndarray, labels: np.ndarray, thresholds: dict[str, np.ndarray], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """{metric: [L,R]}: all metrics of all labels, for R draws with weights [R,n]."""
    values = [
        _label_metrics(scores[k, j], labels[k, j], {name: t[j] for name, t in thresholds.items()}, weights[:, k])
        for j, k in enumerate(policy.known(labels).T)
    ]
    return {metric: np.stack([value[metric] for value in values]) for metric in values[0]}


def _label_interval(value: float, drawn: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The result of one metric of one label: its value, its interval over the draws [R], and the counts."""
    undefined = np.isnan(drawn)
    defined = drawn[~undefined]
    low, high = np.percentile(defined, TAILS).tolist() if len(defined) else (None, None)
    return dict(
        value=float(value),
        low=low,
        high=high,
        positives=int((labels == 1).sum()),
        negatives=int((labels == 0).sum()),
        undefined=int(undefined.sum()),
    )


def _label_metrics(
    scores: np.ndarray, labels: np.ndarray, thresholds: dict[str, float], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """All metrics of one label, [R] each; nan where a draw lacks a class. The labels are 0 or 1.

    Accuracy and balanced accuracy are computed if `thresholds` has them.
    """
    curve = metrics.curve(scores, labels, weights)
    has_both = (curve.true[:, -1] > 0) & (curve.false[:, -1] > 0)
    values = dict(auroc=metrics.auroc(curve), auprc=metrics.auprc(curve))
    for name, threshold in thresholds.items():
        values[name] = THRESHOLDED[name](scores, labels, threshold, weights)
    return {name: np.where(has_both, value, np.nan) for name, value in values.items()}


def intervals_of_means(values: dict[str, dict[str, np.ndarray]], bootstrap: Bootstrap) -> Results:
    """Computes means over records, and the mean of these means, with percentile intervals over patients.

    Args: values {metric: {row: [n]}}; retrieval has a row for each direction.
    Returns {metric: {'mean': {value, low, high}, row: {value, low, high}}}.
    """
    columns = {(metric, row): x for metric, rows in values.items() for row, x in rows.items()}
    columns |= {(metric, 'mean'): np.mean(list(rows.values()), 0) for metric, rows in values.items()}
    table = np.stack([np.asarray(x, np.float64) for x in columns.values()], 1)  # [n,M]
    drawn = np.concatenate([w @ table / w.sum(1, keepdims=True) for w in bootstrap.weights()])
    lows, highs = np.percentile(drawn, TAILS, axis=0)
    estimates = {
        key: dict(value=float(table[:, k].mean()), low=float(lows[k]), high=float(highs[k]))
        for k, key in enumerate(columns)
    }
    return {metric: {row: estimates[metric, row] for row in ('mean', *rows)} for metric, rows in values.items()}
