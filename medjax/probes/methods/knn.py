"""k nearest neighbours by cosine, as in DINOv2: k train records vote, weighted by softmax(cosine / .07).

The result has k = 20. The AUROCs of the other k are reported beside it, but no k is chosen.
"""

from __future__ import annotations

import numpy as np

from medjax.probes import policy
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import ProbeInputs, Result, Scores, label_requirements, mean_auroc, run_label_probe
from medjax.probes.vectors import nearest, unit

name, requirements = 'knn', label_requirements
K, ALL_K, TEMPERATURE = 20, (10, 20, 100, 200), 0.07
BLOCK = 256  # queries whose neighbours' labels are in memory at once


def run(inputs: ProbeInputs) -> Result:
    return run_label_probe(inputs, learn)


def learn(train: SplitFeatures, val: SplitFeatures, test: SplitFeatures, seed: int) -> Scores:
    """Scores val and test by their neighbours in train. A train split of fewer than 20 records uses a smaller k."""
    ks = tuple(k for k in ALL_K if k <= len(train.labels)) or (len(train.labels),)
    k = K if K in ks else max(ks)
    val_scores, test_scores = score(train, val, ks), score(train, test, ks)
    return Scores(
        test=test_scores[k],
        val=val_scores[k],
        threshold=None,
        chosen=dict(k=k, temperature=TEMPERATURE, by='nobody, k is fixed', scores='votes'),
        others={f'k={other}': scores for other, scores in test_scores.items() if other != k},
        details=dict(validation_auroc={f'k={k}': mean_auroc(scores, val.labels) for k, scores in val_scores.items()}),
        scale='probability',
    )


def score(train: SplitFeatures, queries: SplitFeatures, ks: tuple[int, ...]) -> dict[int, np.ndarray]:
    """For each k, float32 [n,L]: the weighted share of positives among the k neighbours whose label is known.

    With w_i = softmax(cosine / .07) over the k neighbours, a score is (sum of w_i over positive neighbours) / (sum of
    w_i over neighbours with a known label). If no neighbour's label is known, it is the share of positives in train.
    """
    known, positive = policy.known(train.labels).astype(np.float32), (train.labels == 1).astype(np.float32)
    prevalence = positive.sum(0) / np.maximum(known.sum(0), 1)
    cosines, numbers = nearest(unit(queries.cls[:, -1]), unit(train.cls[:, -1]), max(ks))
    scores = {k: np.empty((len(cosines), known.shape[1]), np.float32) for k in ks}
    for start in range(0, len(cosines), BLOCK):
        rows = slice(start, start + BLOCK)
        for k in ks:
            weight = np.exp((cosines[rows, :k] - cosines[rows, :1]) / TEMPERATURE)
            weight /= weight.sum(1, keepdims=True)
            of_known, of_positive = (
                np.einsum('bk,bkl->bl', weight, labels[numbers[rows, :k]]) for labels in (known, positive)
            )
            scores[k][rows] = np.where(of_known > 0, of_positive / np.maximum(of_known, 1e-30), prevalence)
    return scores
