"""What a probe is given, and how the scores of a probe of labels become a result with intervals.

A probe is a module with a `name` and

    run(task: Task) -> Result
    needs(task: Task) -> dict       # may be left out: what else its result depends on; UserError where it cannot run

A probe of labels sees only labels that have both classes in train and in test, and says nothing but scores: what is a
metric, an interval or a threshold is decided here, once for all of them, by `of_labels`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from medjax.data.records import DataSet
from medjax.data.text.prompts import ZeroShot
from medjax.errors import UserError
from medjax.probes import metrics, policy, statistics
from medjax.probes.encode import Encoder, Features


class Task(NamedTuple):
    """One encoder on one data set."""

    encoder: Encoder
    data: DataSet
    features: Callable[[str], Features]  # of a split, computed when first asked for; unclear labels as --policy decided
    prompts: ZeroShot | None  # of --prompts
    seed: int
    draws: int  # of the bootstrap


class Result(NamedTuple):
    """What is kept of a probe on an encoder."""

    told: dict[str, Any]
    """JSON: `results` {figure: {'mean' | a row's name: {value, low, high, …}}}, the first figure being the one that
    headlines and curves show; `records` of each split, `chosen` (settings in words and numbers), `bootstrap`, …"""
    arrays: dict[str, np.ndarray]  # beside it; `scores`, `labels`, `names` become ROC and PR curves


class Outcome(NamedTuple):
    """What a probe of labels says: a higher score is more positive."""

    scores: np.ndarray  # float32 [n,L] of the test split
    val_scores: np.ndarray | None  # float32 [n,L] of the validation split; None: nothing is chosen there
    threshold: float | None  # for accuracy; None: the one that is best on validation, label by label
    chosen: dict[str, Any]  # the settings in use, and by what they were chosen: words and numbers
    others: dict[str, np.ndarray]  # further scores [n,L] of the test split, reported by their mean AUROC beside
    details: dict[str, Any]  # what else to keep, as JSON: the whole grid, say


class Splits(NamedTuple):
    """What all probes of labels on one encoder and data set share; probes that learn nothing have `test` alone."""

    train: Features | None
    val: Features | None
    test: Features
    names: tuple[str, ...]  # of the labels that can be judged
    skipped: dict[str, str]  # the others, each with its reason
    validation: str  # where the validation split comes from, in words


def needs_labels(task: Task) -> dict[str, Any]:
    """The `needs` of a probe that learns from labels."""
    if not task.data.labels:
        raise UserError('the data set has no labels')
    if not task.data.splits.get('train'):
        raise UserError('the data set has no record in train')
    return {}


def of_labels(task: Task, learn: Callable[[Features, Features, Features, int], Outcome]) -> Result:
    """The result of learn(train, val, test, seed)."""
    data = task.data
    train, test = task.features('train'), task.features('test')
    val = task.features('val') if data.splits.get('val') else None
    splits = prepare(train, val, test, data.labels, task.seed, data.name)
    return judge(lambda: learn(splits.train, splits.val, splits.test, task.seed), splits, task.seed, task.draws)


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
        reasons = [lacks(split.labels[:, j], where) for split, where in ((train, 'train'), (test, 'test'))]
        if any(reasons):
            skipped[name] = '; '.join(filter(None, reasons))
    kept = [j for j, name in enumerate(names) if name not in skipped]
    if not kept:
        why = '; '.join(f'{name}: {reason}' for name, reason in list(skipped.items())[:5]) or 'it has no labels'
        raise UserError(f'{data}: no label to probe: each needs positives and negatives in train and test ({why})')
    train, val, test = (x._replace(labels=x.labels[:, kept]) for x in (train, val, test))
    return Splits(train, val, test, tuple(names[j] for j in kept), skipped, source)


def lacks(labels: np.ndarray, split: str) -> str:
    """Why the records of a split cannot judge a label [n], '' where they can."""
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
        known = policy.known(labels[:, j])
        figure = metrics.auroc(metrics.curve(scores[known, j], labels[known, j]))[0] if known.any() else np.nan
        figures += [] if np.isnan(figure) else [figure]
    return float(np.mean(figures)) if figures else None


def judge(score: Callable[[], Outcome], splits: Splits, seed: int, draws: int) -> Result:
    """The figures of the scores that `score` gives for the splits' test records."""
    begun = time.perf_counter()
    outcome = score()
    if not np.isfinite(outcome.scores).all():
        raise UserError('the scores are not finite numbers, so the features or the weights are not either')
    test, thresholds = splits.test, _thresholds(outcome, splits.val, len(splits.names))
    results = statistics.intervals(outcome.scores, test.labels, splits.names, test.patients, thresholds, seed, draws)
    result = dict(
        records={
            name: len(x.labels) for name, x in (('train', splits.train), ('val', splits.val), ('test', test)) if x
        },
        validation=splits.validation,
        seed=seed,
        chosen=outcome.chosen,
        results=results,
        others={name: mean_auroc(scores, test.labels) for name, scores in outcome.others.items()},
        thresholds={metric: dict(zip(splits.names, t.tolist(), strict=True)) for metric, t in thresholds.items()},
        details=outcome.details,
        skipped_labels=splits.skipped,
        bootstrap=bootstrap(test.patients, seed, draws)
        | dict(
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
    return Result(result, arrays)


def bootstrap(patients: np.ndarray, seed: int, draws: int) -> dict[str, Any]:
    """How the intervals were made; patients int [n] as 0…P-1."""
    return dict(unit='patient', patients=int(patients.max()) + 1, draws=draws, level=statistics.LEVEL, seed=seed)


def _thresholds(outcome: Outcome, val: Features | None, count: int) -> dict[str, np.ndarray]:
    """[L] for accuracy: the probe's own or the best on validation; for balanced accuracy: the best on validation.

    Where nothing is chosen on validation, the probe's own for both, if it has one.
    """
    fixed = outcome.threshold
    if val is None or outcome.val_scores is None:
        return {} if fixed is None else dict.fromkeys(statistics.THRESHOLDED, np.full(count, fixed))
    labels = val.labels

    def best(balanced: bool) -> np.ndarray:
        found = []
        for j in range(labels.shape[1]):
            known = policy.known(labels[:, j])
            found.append(metrics.best_threshold(outcome.val_scores[known, j], labels[known, j], balanced))
        return np.array(found)

    return dict(
        accuracy=best(False) if fixed is None else np.full(labels.shape[1], fixed),
        balanced_accuracy=best(True),
    )
