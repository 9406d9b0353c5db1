"""Intervals by a bootstrap over patients.

The images of one patient are not independent, so a draw takes patients with replacement and all of their images.
All labels and metrics are computed in the same draws, which gives their mean over labels an interval of its own,
and as the draws depend on the seed alone, two encoders on one test set are compared on the same patients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from medjax.probes import metrics, policy

DRAWS, LEVEL = 1000, 0.95
THRESHOLDED = dict(accuracy=metrics.accuracy, balanced_accuracy=metrics.balanced_accuracy)


def draws_of(groups: np.ndarray, draws: int, seed: int, chunk_elements: int = 1 << 22) -> Iterator[np.ndarray]:
    """Group numbers 0…P-1 of each record [n] -> weights [R,n] in chunks: how often each record's patient was drawn."""
    rng = np.random.default_rng(seed)
    patients = int(groups.max()) + 1
    rows = max(1, chunk_elements // max(len(groups), patients))
    for start in range(0, draws, rows):
        picked = rng.integers(patients, size=(min(rows, draws - start), patients))
        counts = np.stack([np.bincount(p, minlength=patients) for p in picked])
        yield counts[:, groups].astype(np.float64)


def figures(
    scores: np.ndarray, labels: np.ndarray, thresholds: dict[str, float], weights: np.ndarray
) -> dict[str, np.ndarray]:
    """All metrics of one label, [R] each; of those that need a threshold the ones that have it. Only records with a
    known label may come in."""
    c = metrics.curve(scores, labels, weights)
    both = (c.true[:, -1] > 0) & (c.false[:, -1] > 0)
    values = dict(auroc=metrics.auroc(c), auprc=metrics.auprc(c))
    for name, threshold in thresholds.items():
        values[name] = THRESHOLDED[name](scores, labels, threshold, weights)
    return {name: np.where(both, value, np.nan) for name, value in values.items()}


def intervals(
    scores: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    groups: np.ndarray,
    thresholds: dict[str, np.ndarray],
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Every metric of every label, and its mean over labels, with percentile intervals over patients.

    Args: scores [n,L]; labels int8 [n,L], of which only 0 and 1 are known; names of the L labels; groups int [n], the
    patient of each record as 0…P-1; thresholds: of some of THRESHOLDED [L] each.
    Returns {metric: {'mean': {value, low, high, labels}, label: {value, low, high, positives, negatives, undefined}}}.

    A draw in which a label lost a class says nothing about it: it is left out of that label's percentiles and counted
    in `undefined`; in the mean over labels the label then stands with its plain value, so that the mean is always
    over the same labels.
    """
    known = policy.known(labels).T

    def each_label(weights: np.ndarray) -> dict[str, np.ndarray]:  # [R,n] -> {metric: [L,R]}
        one = [
            figures(scores[k, j], labels[k, j], {m: t[j] for m, t in thresholds.items()}, weights[:, k])
            for j, k in enumerate(known)
        ]
        return {metric: np.stack([o[metric] for o in one]) for metric in one[0]}

    plain = {metric: value[:, 0] for metric, value in each_label(np.ones((1, len(groups)))).items()}
    drawn: dict[str, list[np.ndarray]] = {metric: [] for metric in plain}
    for weights in draws_of(groups, draws, seed):
        for metric, value in each_label(weights).items():
            drawn[metric].append(value)

    tails = [50 * (1 - level), 50 * (1 + level)]
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for metric, value in plain.items():
        all_draws = np.concatenate(drawn[metric], 1)  # [L,R]
        lost = np.isnan(all_draws)
        mean = np.where(lost, value[:, None], all_draws).mean(0)
        low, high = np.percentile(mean, tails)
        table = {'mean': dict(value=float(value.mean()), low=float(low), high=float(high), labels=len(names))}
        for j, name in enumerate(names):
            kept = all_draws[j][~lost[j]]
            low, high = np.percentile(kept, tails) if len(kept) else (None, None)
            table[name] = dict(
                value=float(value[j]),
                low=low if low is None else float(low),
                high=high if high is None else float(high),
                positives=int((labels[:, j] == 1).sum()),
                negatives=int((labels[:, j] == 0).sum()),
                undefined=int(lost[j].sum()),
            )
        results[metric] = table
    return results


def of_means(
    values: dict[str, dict[str, np.ndarray]],
    groups: np.ndarray,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Figures that are means over records, in several ways each, and the mean over the ways, with percentile intervals.

    Args: values {metric: {way: [n]}}; groups int [n], the patient of each record as 0…P-1.
    Returns {metric: {'mean': {value, low, high}, way: {value, low, high}}}.
    """
    columns = {(metric, way): x for metric, ways in values.items() for way, x in ways.items()}
    columns |= {(metric, 'mean'): np.mean(list(ways.values()), 0) for metric, ways in values.items()}
    table = np.stack([np.asarray(x, np.float64) for x in columns.values()], 1)  # [n,M]
    drawn = np.concatenate([w @ table / w.sum(1, keepdims=True) for w in draws_of(groups, draws, seed)])
    lows, highs = np.percentile(drawn, [50 * (1 - level), 50 * (1 + level)], axis=0)
    at = {
        key: dict(value=float(table[:, k].mean()), low=float(lows[k]), high=float(highs[k]))
        for k, key in enumerate(columns)
    }
    return {metric: {way: at[metric, way] for way in ('mean', *ways)} for metric, ways in values.items()}
