"""Certainty curves: metrics on the records that are left when the least certain ones are withheld.

A reader would look at the withheld records. The certainty of a record is that of its label, max(p, 1 - p), with the
probability p after Platt's map; without calibration it is the probability that the probe gives. A useful certainty
makes the metrics rise as less is retained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medjax.probes import metrics, policy

FRACTIONS = tuple(round(1 - k / 10, 1) for k in range(10))  # 1, .9, … .1


def curves(probabilities: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """{metric: {label: [values]}} at each of FRACTIONS, for probabilities [n,L]; None where a class is missing.

    Records as certain as the least certain retained one are retained too, so that the order of records has no part:
    `retained` has the true fractions. The decision for accuracy is p >= .5.
    """
    found: dict[str, Any] = dict(fractions=list(FRACTIONS), retained={}, auroc={}, accuracy={})
    for j, name in enumerate(names):
        known = policy.known(labels[:, j])
        p, y = probabilities[known, j], labels[known, j]
        certainty = np.maximum(p, 1 - p)
        falling = np.sort(certainty)[::-1]
        rows: dict[str, list[float | None]] = dict(retained=[], auroc=[], accuracy=[])
        for fraction in FRACTIONS:
            kept = certainty >= falling[max(1, round(fraction * len(p))) - 1]
            both = 0 < (y[kept] == 1).sum() < kept.sum()
            rows['retained'].append(float(kept.mean()))
            rows['auroc'].append(float(metrics.auroc(metrics.curve(p[kept], y[kept]))[0]) if both else None)
            rows['accuracy'].append(float(metrics.accuracy(metrics.confusion(p[kept], y[kept], 0.5))[0]))
        for key, values in rows.items():
            found[key][name] = values
    return found
