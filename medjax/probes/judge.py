"""From the scores of one probe on one encoder to a result with intervals.

A probe is a module with a `name` and

    run(train: Features, val: Features, test: Features, seed: int) -> Outcome

It sees only labels that have both classes in train and in test, and reports nothing but scores: what is a metric, an
interval or a threshold is decided here, once for all probes.
"""

from __future__ import annotations

import time
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from medjax.errors import UserError
from medjax.probes import metrics, statistics
from medjax.probes.encode import Features


class Outcome(NamedTuple):
    """What a probe says: a higher score is more positive."""

    scores: np.ndarray  # float32 [n,L] of the test split
    val_scores: np.ndarray  # float32 [n,L] of the validation split
    threshold: float | None  # for accuracy; None: the one that is best on validation, label by label
    chosen: dict[str, Any]  # the settings in use, and by what they were chosen: words and numbers
    others: dict[str, np.ndarray]  # further scores [n,L] of the test split, reported by their mean AUROC beside
    details: dict[str, Any]  # what else to keep, as JSON: the whole grid, say


class Splits(NamedTuple):
    """What all probes on one encoder and data set share."""

    train: Features
    val: Features
    test: Features
    names: tuple[str, ...]  # of the labels that can be judged
    skipped: dict[str, str]  # the others, each with its reason
    validation: str  # where the validation split comes from, in words


def prepare(
    train: Features, val: Features | None, test: Features, names: tuple[str, ...], seed: int, data: str
) -> Splits:
    """Leaves out labels that cannot be judged; without a val split holds out a tenth of the patients of train."""
    source = 'the val split'
    if val is None:
        source = 'a tenth of the patients of train, held out, as there is no val split'
        train, val = hold_out(train, 0.1, seed)
    skipped = {}
    for j, name in enumerate(names):
        reasons = [_lacks(split.labels[:, j], where) for split, where in ((train, 'train'), (test, 'test'))]
        if any(reasons):
            skipped[name] = '; '.join(filter(None, reasons))
    kept = [j for j, name in enumerate(names) if name not in skipped]
    if not kept:
        why = '; '.join(f'{name}: {reason}' for name, reason in list(skipped.items())[:5]) or 'it has no labels'
        raise UserError(f'{data}: no label to probe: each needs positives and negatives in train and test ({why})')
    train, val, test = (x._replace(labels=x.labels[:, kept]) for x in (train, val, test))
    return Splits(train, val, test, tuple(names[j] for j in kept), skipped, source)


def _lacks(labels: np.ndarray, split: str) -> str:
    missing = [word for value, word in ((1, 'positive'), (0, 'negative')) if not (labels == value).any()]
    return f'no {" and no ".join(missing)} record in {split}' if missing else ''


def hold_out(split: Features, share: float, seed: int) -> tuple[Features, Features]:
    """(the rest, the records of a random `share` of the patients, at least one)."""
    patients = int(split.patients.max()) + 1
    if patients < 2:
        raise UserError('the train split has a single patient, of which no validation can be held out')
    drawn = np.random.default_rng(seed).permutation(patients)[: max(1, round(share * patients))]
    held = np.isin(split.patients, drawn)

    def take(rows: np.ndarray) -> Features:
        return Features(
            split.cls[rows],
            None if split.patches is None else split.patches[rows],
            split.labels[rows],
            np.unique(split.patients[rows], return_inverse=True)[1],
        )

    return take(~held), take(held)


def mean_auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """Mean AUROC over the labels that have both classes among the known; None where no label has."""
    figures = []
    for j in range(labels.shape[1]):
        known = (labels[:, j] == 0) | (labels[:, j] == 1)
        figure = metrics.auroc(metrics.curve(scores[known, j], labels[known, j]))[0] if known.any() else np.nan
        figures += [] if np.isnan(figure) else [figure]
    return float(np.mean(figures)) if figures else None


def judge(probe: ModuleType, splits: Splits, seed: int, draws: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Runs one probe -> (the part of the result that depends on its scores, the arrays to keep beside it)."""
    begun = time.perf_counter()
    outcome = probe.run(splits.train, splits.val, splits.test, seed)
    if not np.isfinite(outcome.scores).all():
        raise UserError('the scores are not finite numbers, so the features or the weights are not either')
    test, thresholds = splits.test, _thresholds(outcome, splits.val.labels)
    results = statistics.intervals(outcome.scores, test.labels, splits.names, test.patients, thresholds, seed, draws)
    result = dict(
        records={name: len(x.labels) for name, x in (('train', splits.train), ('val', splits.val), ('test', test))},
        validation=splits.validation,
        seed=seed,
        chosen=outcome.chosen,
        results=results,
        others={name: mean_auroc(scores, test.labels) for name, scores in outcome.others.items()},
        thresholds={metric: dict(zip(splits.names, t.tolist(), strict=True)) for metric, t in thresholds.items()},
        details=outcome.details,
        skipped_labels=splits.skipped,
        bootstrap=dict(
            unit='patient',
            patients=int(test.patients.max()) + 1,
            draws=draws,
            level=statistics.LEVEL,
            seed=seed,
            lost_class='a draw in which a label lost a class is left out of its interval and counted as undefined; '
            'in the mean over labels the label then keeps its plain value',
        ),
        seconds=round(time.perf_counter() - begun, 2),
    )
    arrays = dict(
        scores=outcome.scores.astype(np.float32),
        labels=test.labels.astype(np.int8),
        names=np.array(splits.names),
        patient=test.patients.astype(np.int64),
    )
    return result, arrays


def _thresholds(outcome: Outcome, labels: np.ndarray) -> dict[str, np.ndarray]:
    """[L] for accuracy: the probe's own or the best on validation; for balanced accuracy: the best on validation."""

    def best(balanced: bool) -> np.ndarray:
        found = []
        for j in range(labels.shape[1]):
            known = (labels[:, j] == 0) | (labels[:, j] == 1)
            found.append(metrics.best_threshold(outcome.val_scores[known, j], labels[known, j], balanced))
        return np.array(found)

    fixed = outcome.threshold
    return dict(
        accuracy=best(False) if fixed is None else np.full(labels.shape[1], fixed),
        balanced_accuracy=best(True),
    )
