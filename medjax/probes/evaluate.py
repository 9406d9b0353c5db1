"""Evaluates label probes: metrics, thresholds and confidence intervals, computed in one place for all of them.

A label probe returns scores only. A label without a positive and a negative record in train and in test is skipped.

A probe is a module with

    name = 'knn'                                        # its name in results and tables
    def run(inputs: ProbeInputs) -> Result              # a label probe calls `run_label_probe` here
    def requirements(inputs: ProbeInputs) -> dict       # optional, see `label_requirements` for an example

`requirements` raises a UserError if the probe cannot run on these inputs. It returns the facts that the result depends
on besides encoder, data, seed and draws, such as the prompts. If one of them changes, the result is computed again.
"""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from medjax.data.records import DataSet
from medjax.data.text.prompts import ZeroShot
from medjax.errors import UserError
from medjax.probes import encode, metrics, policy, statistics
from medjax.probes.encode import Encoder, SplitFeatures
from medjax.probes.features import Stored
from medjax.probes.statistics import Bootstrap


@dataclasses.dataclass(frozen=True)
class ProbeInputs:
    """The inputs of a probe: one encoder, one data set and the options of `medjax probe`."""

    encoder: Encoder
    data: DataSet
    cache: pathlib.Path | None  # RUN/cache, where encoded splits are kept
    policy: Mapping[str, str]  # --policy: the value of uncertain, blank and conflicting labels
    prompts: ZeroShot | None  # --prompts
    seed: int
    draws: int  # of the bootstrap
    chosen_by: str = ''  # --best: the probe whose figure chooses an export, so it must have metrics on validation
    _splits: dict[str, SplitFeatures] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def features(self, split: str) -> SplitFeatures:
        """The features of a split, with its labels after `--policy`; computed at the first call, then kept."""
        if split not in self._splits:
            features = encode.features(self.encoder, self.data, split, self.cache)
            self._splits[split] = features._replace(labels=policy.apply(features.labels, self.policy))
        return self._splits[split]

    def grids(self, split: str) -> np.ndarray | Stored:
        """float16 [n,h,w,D]: the patch tokens of a split. A probe that calls this before `features` encodes once."""
        return encode.grids(self.encoder, self.data, split, self.cache)


class Result(NamedTuple):
    """The result of a probe on one encoder and one data set."""

    content: dict[str, Any]
    """The JSON file. `results` is {metric: {row: {value, low, high, …}}}. A row is 'mean', a label or a direction of
    retrieval. Reports put the first metric into headlines and curves. Further keys are `records` (their number in each
    split), `validation_results` (metrics on validation, by which an export can be chosen), `chosen` (the settings, as
    short texts and numbers), `bootstrap`, …"""
    arrays: dict[str, np.ndarray]  # the .npz file; reports draw ROC and PR curves from `scores`, `labels`, `names`


class Scores(NamedTuple):
    """The scores of a label probe: n records, L labels; a higher score means more positive."""

    test: np.ndarray  # float32 [n,L] of the test split
    val: np.ndarray | None  # float32 [n,L] of the validation split; None if nothing is chosen on it
    threshold: float | None  # for accuracy; None: for each label the best threshold on validation
    chosen: dict[str, Any]  # the settings and how they were chosen, as short texts and numbers
    others: dict[str, np.ndarray]  # test scores [n,L] of other settings; the result has the mean AUROC of each
    details: dict[str, Any]  # more to keep, as JSON: for example the whole grid


class LabelSplits(NamedTuple):
    """The splits that a label probe sees, with only the labels that can be evaluated."""

    train: SplitFeatures | None  # None, as `val`, if the probe does not learn
    val: SplitFeatures | None
    test: SplitFeatures
    names: tuple[str, ...]  # of the labels that can be evaluated
    skipped: dict[str, str]  # the other labels, each with the reason
    validation: str  # where the validation split comes from, for people


def label_requirements(inputs: ProbeInputs) -> dict[str, Any]:
    """The `requirements` of a probe that learns from labels: the data set has labels and a train split."""
    if not inputs.data.labels:
        raise UserError('the data set has no labels')
    if not inputs.data.splits.get('train'):
        raise UserError('the data set has no record in train')
    return {}


def run_label_probe(
    inputs: ProbeInputs, learn: Callable[[SplitFeatures, SplitFeatures, SplitFeatures, int], Scores]
) -> Result:
    """Evaluates the scores of learn(train, val, test, seed)."""
    data = inputs.data
    train, test = inputs.features('train'), inputs.features('test')
    val = inputs.features('val') if data.splits.get('val') else None
    splits = label_splits(train, val, test, data.labels, inputs.seed, data.name)
    return evaluate(
        lambda: learn(splits.train, splits.val, splits.test, inputs.seed), splits, inputs.seed, inputs.draws
    )


def label_splits(
    train: SplitFeatures,
    val: SplitFeatures | None,
    test: SplitFeatures,
    names: tuple[str, ...],
    seed: int,
    data: str,
) -> LabelSplits:
    """Skips labels that cannot be evaluated. Without a val split, holds out a tenth of the patients of train."""
    validation = 'the val split'
    if val is None:
        validation = 'a tenth of the patients of train, held out, as there is no val split'
        train, val = hold_out(train, 0.1, seed)
    skipped = {}
    for j, name in enumerate(names):
        reasons = [
            missing_class(features.labels[:, j], split) for features, split in ((train, 'train'), (test, 'test'))
        ]
        if any(reasons):
            skipped[name] = '; '.join(filter(None, reasons))
    kept = [j for j, name in enumerate(names) if name not in skipped]
    if not kept:
        why = '; '.join(f'{name}: {reason}' for name, reason in list(skipped.items())[:5]) or 'it has no labels'
        raise UserError(f'{data}: no label to probe: each needs positives and negatives in train and test ({why})')
    train, val, test = (features._replace(labels=features.labels[:, kept]) for features in (train, val, test))
    return LabelSplits(train, val, test, tuple(names[j] for j in kept), skipped, validation)


def missing_class(labels: np.ndarray, split: str) -> str:
    """The class that a label [n] lacks in a split: 'no positive record in test'; '' if it has both classes."""
    missing = [name for value, name in ((1, 'positive'), (0, 'negative')) if not (labels == value).any()]
    return f'no {" and no ".join(missing)} record in {split}' if missing else ''


def hold_out(split: SplitFeatures, share: float, seed: int) -> tuple[SplitFeatures, SplitFeatures]:
    """Divides a split by patients: (all others, a random `share` of the patients, at least one)."""
    patients = int(split.patients.max()) + 1
    if patients < 2:
        raise UserError('the train split has a single patient, so no patient can be held out for validation')
    drawn = np.random.default_rng(seed).permutation(patients)[: max(1, round(share * patients))]
    held_out = np.isin(split.patients, drawn)

    def some(x: np.ndarray | Stored, rows: np.ndarray) -> np.ndarray | Stored:
        return x.take(rows) if isinstance(x, Stored) else x[rows]

    def take(rows: np.ndarray) -> SplitFeatures:
        return SplitFeatures(
            some(split.cls, rows),
            None if split.patches is None else some(split.patches, rows),
            split.labels[rows],
            np.unique(split.patients[rows], return_inverse=True)[1],
        )

    return take(~held_out), take(held_out)


def mean_auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The mean AUROC over the labels that have both classes; None if no label has."""
    values = []
    for j in range(labels.shape[1]):
        known = policy.known(labels[:, j])
        value = metrics.auroc(metrics.curve(scores[known, j], labels[known, j]))[0] if known.any() else np.nan
        values += [] if np.isnan(value) else [value]
    return float(np.mean(values)) if values else None


def evaluate(score: Callable[[], Scores], splits: LabelSplits, seed: int, draws: int) -> Result:
    """Calls `score` and computes the metrics of its test scores, with confidence intervals over patients.

    `score` is a function because the result states how many seconds the scores and the metrics took.
    """
    begun = time.perf_counter()
    scores = score()
    if not np.isfinite(scores.test).all():
        raise UserError('the scores are not finite numbers; the features or the weights are probably not finite either')
    test, thresholds = splits.test, _thresholds(scores, splits.val, len(splits.names))
    bootstrap = Bootstrap(test.patients, seed, draws)
    content = dict(
        records={
            name: len(split.labels)
            for name, split in (('train', splits.train), ('val', splits.val), ('test', test))
            if split
        },
        validation=splits.validation,
        seed=seed,
        chosen=scores.chosen,
        results=statistics.intervals(scores.test, test.labels, splits.names, thresholds, bootstrap),
        validation_results=on_validation(scores.val, splits.val, splits.names, seed, draws),
        others={name: mean_auroc(other, test.labels) for name, other in scores.others.items()},
        thresholds={metric: dict(zip(splits.names, t.tolist(), strict=True)) for metric, t in thresholds.items()},
        details=scores.details,
        skipped_labels=splits.skipped,
        bootstrap=bootstrap.facts()
        | dict(
            lost_class='a draw without a positive or without a negative record of a label is left out of the interval '
            'of this label and counted as undefined; in the mean over labels the label then keeps its plain value',
        ),
        seconds=round(time.perf_counter() - begun, 2),
    )
    arrays = dict(
        scores=scores.test.astype(np.float32),
        labels=test.labels.astype(np.int8),
        names=np.array(splits.names),
        patient=test.patients.astype(np.int64),
    )
    return Result(content, arrays)


def on_validation(
    scores: np.ndarray | None, val: SplitFeatures | None, names: tuple[str, ...], seed: int, draws: int
) -> statistics.Results:
    """Metrics of scores [n,L] on validation with intervals over its patients; {} without scores.

    A label without a positive or a negative record there is left out. There is no accuracy, because its thresholds are
    chosen on the same records.
    """
    if val is None or scores is None:
        return {}
    kept = [j for j in range(len(names)) if not missing_class(val.labels[:, j], 'val')]
    if not kept:
        return {}
    bootstrap = Bootstrap(val.patients, seed, draws)
    return statistics.intervals(scores[:, kept], val.labels[:, kept], tuple(names[j] for j in kept), {}, bootstrap)


def _thresholds(scores: Scores, val: SplitFeatures | None, count: int) -> dict[str, np.ndarray]:
    """{metric: [L]}: the thresholds of accuracy and of balanced accuracy for `count` labels.

    Accuracy uses the probe's own threshold if it has one, else the best on validation. Balanced accuracy uses the best
    on validation. Without validation scores both use the probe's own threshold; if there is none, both are left out.
    """
    fixed = scores.threshold
    if val is None or scores.val is None:
        return {} if fixed is None else dict.fromkeys(statistics.THRESHOLDED, np.full(count, fixed))

    def best(balanced: bool) -> np.ndarray:
        thresholds = []
        for j in range(count):
            known = policy.known(val.labels[:, j])
            thresholds.append(metrics.best_threshold(scores.val[known, j], val.labels[known, j], balanced))
        return np.array(thresholds)

    return dict(
        accuracy=best(False) if fixed is None else np.full(count, fixed),
        balanced_accuracy=best(True),
    )
