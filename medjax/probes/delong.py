"""DeLong's test of two AUROCs on the same patients, without draws: a check of the p-value of the bootstrap.

DeLong et al. 1988, with the patients as clusters (Obuchowski 1997).
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr
from scipy.stats import rankdata


def p_value(a: np.ndarray, b: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float | None:
    """The two-sided p-value of equal AUROCs of scores a and b [n] for labels 0|1 [n], with patients as clusters.

    None where the variance of the difference cannot be estimated: a single patient of a class, or equal rankings.
    """
    positive = labels == 1
    if not 0 < positive.sum() < len(labels):
        return None
    parts = [_placements(scores, positive) for scores in (a, b)]
    difference = parts[0] - parts[1]
    number = np.unique(patients, return_inverse=True)[1]
    mean = difference[positive].mean()  # of positives, and of negatives too: the difference of the AUROCs
    sums, counts, clusters = [], [], []
    for members in (positive, ~positive):
        deviation = np.where(members, difference - mean, 0)
        sums.append(np.bincount(number, deviation))
        counts.append(members.sum())
        clusters.append(len(np.unique(number[members])))
    if min(clusters) < 2:
        return None
    own = sum(n / (n - 1) * (s**2).sum() / count**2 for s, n, count in zip(sums, clusters, counts))
    both, total = (sums[0] * sums[1]).sum(), int(number.max()) + 1
    variance = own + 2 * total / (total - 1) * both / (counts[0] * counts[1])
    if not variance > 1e-20:
        return None
    return float(2 * ndtr(-abs(mean) / np.sqrt(variance)))


def _placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """[n]: for a positive the share of negatives below, for a negative the share of positives above; ties are half."""
    everyone = rankdata(scores)
    placed = np.empty(len(scores))
    placed[positive] = (everyone[positive] - rankdata(scores[positive])) / (~positive).sum()
    placed[~positive] = 1 - (everyone[~positive] - rankdata(scores[~positive])) / positive.sum()
    return placed
