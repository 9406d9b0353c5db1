"""Split conformal sets: the labels that a record may have, wrong for at most a tenth of the records (alpha = .1).

The nonconformity of a record says how little a label fits it. Its threshold is the ceil((n + 1)(1 - alpha))-th smallest
nonconformity of the n calibrating records (Vovk et al. 2005; arXiv 2107.07511). The set of a test record holds all
labels whose nonconformity is at most the threshold. If n is too small for this rank, every set holds all labels.

    marginal           nonconformity 1 - probability of the label; one threshold. Right for 90 % of all records, but it
                       may be right for few records of a rare class. It needs scores with a scale
    class_conditional  a threshold for each class, so 90 % of the positives and 90 % of the negatives are covered. The
                       nonconformity is the score itself, so any scores will do
    exclusive          for labels of which each record has exactly one: a set of classes. The nonconformity is
                       1 - probability of the class, with the probabilities of all labels divided by their sum

The guarantee holds on average over calibrating sets, for new records of new patients like those of validation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.probes import policy
from medjax.probes.aggregate import Units
from medjax.probes.calibration import probability
from medjax.probes.statistics import Bootstrap, ratios

ALPHA = 0.1

Groups = Mapping[tuple[str, str], np.ndarray]  # {(column, group): bool [n]}


def threshold(nonconformity: np.ndarray, alpha: float = ALPHA) -> float:
    """The threshold from n calibrating records; infinite if n < 1 / alpha - 1."""
    rank = math.ceil((len(nonconformity) + 1) * (1 - alpha) - 1e-9)
    return float(np.sort(nonconformity)[rank - 1]) if rank <= len(nonconformity) else math.inf


def marginal_sets(calibrating: np.ndarray, labels: np.ndarray, test: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """bool [m,2], the sets {negative, positive} of test probabilities [m], from probabilities and labels 0|1 [n]."""
    limit = threshold(np.where(labels == 1, 1 - calibrating, calibrating), alpha)
    return np.stack([test <= limit, 1 - test <= limit], 1)


def class_sets(calibrating: np.ndarray, labels: np.ndarray, test: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """bool [m,2], as `marginal_sets`, with a threshold for each class and scores of any scale."""
    negative = test <= threshold(calibrating[labels == 0], alpha)
    return np.stack([negative, -test <= threshold(-calibrating[labels == 1], alpha)], 1)


def exclusive_sets(calibrating: np.ndarray, classes: np.ndarray, test: np.ndarray, alpha: float = ALPHA) -> np.ndarray:
    """bool [m,L], sets of classes, from probabilities [n,L] and [m,L] and the classes int [n]."""
    calibrating, test = (p / np.maximum(p.sum(1, keepdims=True), 1e-30) for p in (calibrating, test))
    limit = threshold(1 - calibrating[np.arange(len(classes)), classes], alpha)
    return 1 - test <= limit


def judge(
    test: Units, calibrating: Units, names: Sequence[str], scale: str, bootstrap: Bootstrap, groups: Groups
) -> dict[str, Any]:
    """Coverage and size of the sets on test, with intervals over patients.

    Labels that `calibrating` does not know are left out. Returns {'marginal' or 'class_conditional': {measure: {label:
    estimate}}, 'groups': the coverage of each group, 'exclusive': {measure: {class: estimate}}}.
    """
    kinds: dict[str, dict[str, np.ndarray]] = dict(marginal={}, class_conditional={})
    for j, name in enumerate(names):
        known = policy.known(calibrating.labels[:, j])
        scores, labels, new = calibrating.scores[known, j], calibrating.labels[known, j], test.scores[:, j]
        if not known.any():
            continue
        if scale != 'any':
            kinds['marginal'][name] = marginal_sets(probability(scores, scale), labels, probability(new, scale))
        kinds['class_conditional'][name] = class_sets(scores, labels, new)
    parts: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}
    for kind, sets in kinds.items():
        for name, one in sets.items():
            truth = test.labels[:, names.index(name)]
            for measure, pair in _measures(one, truth).items():
                parts[kind, measure, name] = pair
            covered, known = _measures(one, truth)['coverage']
            for (column, group), members in groups.items():
                parts['groups', kind, column, group, name] = covered * members, known * members
    found: dict[str, Any] = dict(alpha=ALPHA)
    for key, estimate in ratios(parts, bootstrap).items():
        place = found
        for word in key[:-1]:
            place = place.setdefault(word, {})
        place[key[-1]] = estimate
    exclusive = _exclusive(test, calibrating, names, scale, bootstrap)
    return found | (dict(exclusive=exclusive) if exclusive else {})


def _measures(sets: np.ndarray, truth: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{measure: (numerator [n], denominator [n])} of sets bool [n,2] for labels [n]."""
    known, size = policy.known(truth), sets.sum(1)
    covered = np.where(truth == 1, sets[:, 1], sets[:, 0]) & known
    return dict(
        coverage=(covered, known),
        coverage_of_positives=(covered & (truth == 1), truth == 1),
        coverage_of_negatives=(covered & (truth == 0), truth == 0),
        size=(size * known, known),
        singletons=((size == 1) & known, known),
    )


def are_exclusive(labels: np.ndarray) -> bool:
    """Whether each record of labels [n,L], L > 1, has exactly one positive label, and all others are negative."""
    return labels.shape[1] > 1 and bool(policy.known(labels).all() and ((labels == 1).sum(1) == 1).all())


def _exclusive(
    test: Units, calibrating: Units, names: Sequence[str], scale: str, bootstrap: Bootstrap
) -> dict[str, Any] | None:
    """{measure: {'all' or class: estimate}} of sets of classes; None if labels are not exclusive or have no scale."""
    used = policy.known(calibrating.labels).all(1)
    if scale == 'any' or not used.any() or not all(map(are_exclusive, (test.labels, calibrating.labels[used]))):
        return None
    p, new = probability(calibrating.scores[used], scale), probability(test.scores, scale)
    sets = exclusive_sets(p, calibrating.labels[used].argmax(1), new)
    truth, size = test.labels.argmax(1), sets.sum(1)
    covered = sets[np.arange(len(truth)), truth]
    rows = {'all': np.ones(len(truth), bool)} | {name: truth == j for j, name in enumerate(names)}
    values = dict(coverage=covered, size=size, singletons=size == 1)
    parts = {(m, row): (x * members, members) for m, x in values.items() for row, members in rows.items()}
    estimates = ratios(parts, bootstrap)
    return {measure: {row: estimates[measure, row] for row in rows} for measure in values}
