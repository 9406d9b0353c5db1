"""The thresholds at which a label probe decides, chosen on validation and never on test."""

from __future__ import annotations

import numpy as np

from medjax.data.types import known
from medjax.probes import metrics
from medjax.probes.aggregate import Units
from medjax.probes.label_splits import missing_class


def choose_thresholds(
    val: Units | None, own: float | None, names: tuple[str, ...], train: np.ndarray | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """({metric: [L]}, notes by label): the thresholds of accuracy, of balanced accuracy and of MCC.

    Args: the units of validation (None for a probe that chooses nothing); the probe's own threshold, if it has one; the
    labels of train [n,L].

    Accuracy uses the probe's own threshold if it has one, else the best on validation. The others use the threshold
    with the best balanced accuracy on validation. A probe that chooses nothing uses its own threshold for all; without
    one, they are left out.

    A label that lacks a class on validation has no best threshold. It gets the probe's own threshold. If there is none,
    it gets the threshold at which as many validation scores are positive as labels in train. A note says so.
    """
    count = len(names)
    if val is None:
        return {} if own is None else dict.fromkeys(metrics.THRESHOLDED, np.full(count, own)), {}
    best, balanced, notes = np.empty(count), np.empty(count), {}
    for j, name in enumerate(names):
        counted = known(val.labels[:, j])
        one = val.scores[counted, j], val.labels[counted, j]
        best[j], balanced[j] = metrics.best_threshold(*one), metrics.best_threshold(*one, balanced=True)
        if reason := missing_class(val.labels[:, j], 'validation'):
            if own is None:
                prevalence = (train[:, j] == 1).sum() / known(train[:, j]).sum()
                best[j] = balanced[j] = metrics.matching_threshold(val.scores[:, j], prevalence)
                notes[name] = f'{reason}: the threshold matches the prevalence in train, {prevalence:.3f}'
            else:
                balanced[j] = own
                notes[name] = f"{reason}: the probe's own threshold"
    accuracy = best if own is None else np.full(count, own)
    return dict(accuracy=accuracy, balanced_accuracy=balanced, mcc=balanced), notes
