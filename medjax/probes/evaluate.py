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
from medjax.probes import aggregate, encode, label_splits, metrics, policy, statistics, trust
from medjax.probes.aggregate import Cases, Units
from medjax.probes.encode import Encoder, SplitFeatures
from medjax.probes.features import Stored
from medjax.probes.label_splits import LabelSplits, missing_class
from medjax.probes.statistics import Bootstrap
from medjax.probes.thresholds import choose_thresholds


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
    interval: str = statistics.BCA  # --interval
    unit: str = 'image'  # --unit: what the metrics of label probes count
    pool: str = 'mean'  # --pool: how the scores of a unit's images become one
    groups: tuple[str, ...] = ()  # --groups: columns, such as sex, or intersections, such as sex*age
    columns: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)  # --columns, see `probes.columns`
    concepts: tuple[str, ...] = ()  # --concepts: labels or columns
    outside: tuple[DataSet, ...] = ()  # --outside: sets of other images
    overrides: tuple[str, ...] = ()  # --config.KEY=VALUE of probes that train, as 'optim.lr=1e-3'
    epochs: int | None = None  # --epochs of probes that train
    _splits: dict[str, SplitFeatures] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def features(self, split: str) -> SplitFeatures:
        """The features of a split, with its labels after `--policy`; computed at the first call, then kept."""
        if split not in self._splits:
            features = encode.features(self.encoder, self.data, split, self.cache)
            self._splits[split] = features._replace(labels=policy.apply(features.labels, self.policy))
        return self._splits[split]

    def cases(self, split: str, unit: str | None = None) -> Cases:
        """The patients, units (default: those of `--unit`) and group columns of a split."""
        columns = {name for group in self.groups for name in group.split('*')} if split == 'test' else set()
        return aggregate.cases(self.data.split(split), unit or self.unit, sorted(columns))

    def grids(self, split: str) -> np.ndarray | Stored:
        """float16 [n,h,w,D]: the patch tokens of a split. A probe that calls this before `features` encodes once."""
        return encode.grids(self.encoder, self.data, split, self.cache)

    @property
    def options(self) -> Options:
        """The options of `evaluate`."""
        return Options(self.seed, self.draws, self.interval, self.unit, self.pool, self.groups)


class Options(NamedTuple):
    """How scores are evaluated: options of `medjax probe`."""

    seed: int = 0
    draws: int = statistics.DRAWS
    interval: str = statistics.BCA
    unit: str = 'image'
    pool: str = 'mean'
    groups: tuple[str, ...] = ()

    def bootstrap(self, patients: np.ndarray) -> Bootstrap:
        return Bootstrap(patients, self.seed, self.draws, self.interval)


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
    scale: str = 'any'  # of the scores: 'log-odds' or 'probability' of a positive label, or 'any'

    def with_labels(self, kept: list[int]) -> Scores:
        """The scores of some labels, given by number."""
        val = None if self.val is None else self.val[:, kept]
        others = {name: scores[:, kept] for name, scores in self.others.items()}
        return self._replace(test=self.test[:, kept], val=val, others=others)


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
    """Evaluates the scores of learn(train, val, test, seed).

    `val` has only the labels by which the probe may choose, see `medjax.probes.halves`.
    """
    splits = learning_splits(inputs)
    return evaluate(lambda: learn(splits.train, splits.val, splits.test, inputs.seed), splits, inputs.options)


def learning_splits(inputs: ProbeInputs, unit: str | None = None) -> LabelSplits:
    """The splits of a probe that learns from labels. `unit`: what it counts, in place of that of `--unit`."""
    data, validation = inputs.data, 'val' if inputs.data.splits.get('val') else 'train'
    train, test = inputs.features('train'), inputs.features('test')
    val = inputs.features('val') if validation == 'val' else None
    cases = {split: inputs.cases(split, unit) for split in (validation, 'test')}
    return label_splits.label_splits(train, val, test, data.labels, inputs.seed, data.name, cases)


def fixed_splits(inputs: ProbeInputs, names: tuple[str, ...], skipped: dict[str, str]) -> LabelSplits:
    """The splits of a probe that learns nothing, with these labels: test, and validation for calibration alone."""
    columns, test, whole_val = [inputs.data.labels.index(name) for name in names], inputs.features('test'), None
    if inputs.data.splits.get('val'):
        labels = inputs.features('val').labels[:, columns]
        whole_val = label_splits.divided(labels, inputs.cases('val'), names, inputs.seed)
    return LabelSplits(
        train=None,
        val=None,
        test=test._replace(labels=test.labels[:, columns]),
        names=names,
        skipped=skipped,
        validation='nothing is chosen' if whole_val is None else 'the val split',
        test_cases=inputs.cases('test'),
        whole_val=whole_val,
    )


def mean_auroc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """The mean AUROC over the labels that have both classes; None if no label has."""
    values = []
    for j in range(labels.shape[1]):
        known = policy.known(labels[:, j])
        value = metrics.auroc(metrics.curve(scores[known, j], labels[known, j]))[0] if known.any() else np.nan
        values += [] if np.isnan(value) else [value]
    return float(np.mean(values)) if values else None


def evaluate(score: Callable[[], Scores], splits: LabelSplits, options: Options) -> Result:
    """Calls `score` and computes the metrics of its test scores, with confidence intervals over patients.

    `score` is a function because the result states how many seconds the scores and the metrics took.
    """
    begun = time.perf_counter()
    scores = score()
    for name, values in (('test', scores.test), ('validation', scores.val)):
        if values is not None and not np.isfinite(values).all():
            why = 'the features or the weights are probably not finite either'
            raise UserError(f'the scores of {name} are not finite numbers; {why}')
    scores, splits = _with_both_classes(scores, splits, options)
    test = aggregate.pool(scores.test, splits.test.labels, splits.test_cases, options.pool)
    val = choosing_units(scores.val, splits, options)
    learns = splits.val is not None
    thresholds, notes = choose_thresholds(
        val if learns else None, scores.threshold, splits.names, splits.train.labels if learns else None
    )
    bootstrap = options.bootstrap(test.patients)
    content = dict(
        records={
            name: len(split.labels)
            for name, split in (('train', splits.train), ('val', splits.val), ('test', splits.test))
            if split
        },
        unit=aggregate.facts(splits.test_cases, options.unit, options.pool, splits.test.labels, splits.names),
        validation=splits.validation,
        seed=options.seed,
        chosen=scores.chosen,
        results=statistics.intervals(test.scores, test.labels, splits.names, thresholds, bootstrap),
        validation_results=on_validation(val, splits.names, options),
        others={
            name: mean_auroc(aggregate.pool_scores(other, splits.test_cases.unit, options.pool), test.labels)
            for name, other in scores.others.items()
        },
        thresholds={metric: dict(zip(splits.names, t.tolist(), strict=True)) for metric, t in thresholds.items()},
        threshold_notes=notes,
        details=scores.details,
        skipped_labels=splits.skipped,
        bootstrap=bootstrap.facts()
        | dict(
            lost_class='a draw without a positive or without a negative record of a label is left out of the interval '
            'of this label and counted as undefined; in the mean over labels the label then keeps its plain value',
        ),
    )
    if notes and len(notes) == len(splits.names):
        content['unjudged'] = (
            'no label has positive and negative records on validation, so nothing could be chosen there: a grid keeps '
            'its first settings, and thresholds are as threshold_notes says'
        )
    found, arrays = trust.judge(scores, splits, test, thresholds, bootstrap, options)
    arrays |= dict(
        scores=test.scores.astype(np.float32),
        labels=test.labels.astype(np.int8),
        names=np.array(splits.names),
        patient=test.patients.astype(np.int64),
        unit=splits.test_cases.unit.astype(np.int64),
    )
    return Result(content | found | dict(seconds=round(time.perf_counter() - begun, 2)), arrays)


def _with_both_classes(scores: Scores, splits: LabelSplits, options: Options) -> tuple[Scores, LabelSplits]:
    """Skips labels that have one class only after the records of a unit are pooled."""
    labels = aggregate.pool_labels(splits.test.labels, splits.test_cases.unit)
    reasons = {
        name: reason
        for name, column in zip(splits.names, labels.T, strict=True)
        if (reason := missing_class(column, f'test, counted by {options.unit}'))
    }
    if not reasons:
        return scores, splits
    kept = [j for j, name in enumerate(splits.names) if name not in reasons]
    if not kept:
        why = label_splits.reasons(reasons)
        raise UserError(f'no label to probe: each needs positives and negatives in test ({why})')
    return scores.with_labels(kept), splits.with_labels(kept, reasons)


def choosing_units(val_scores: np.ndarray | None, splits: LabelSplits, options: Options) -> Units | None:
    """The units of validation with the labels by which a probe may choose; None without scores."""
    whole = splits.whole_val
    if whole is None or val_scores is None:
        return None
    return aggregate.pool(val_scores, whole.halves.choosing(whole.labels), whole.cases, options.pool)


def on_validation(val: Units | None, names: tuple[str, ...], options: Options) -> statistics.Results:
    """Metrics on the choosing half of validation with intervals over its patients; {} without scores.

    A label without a positive or a negative record there is left out. There is no accuracy, because its thresholds are
    chosen on the same records.
    """
    kept = [] if val is None else [j for j in range(len(names)) if not missing_class(val.labels[:, j], 'val')]
    if not kept:
        return {}
    known = policy.known(val.labels[:, kept]).any(1)  # the patients of the other half have no part in a draw
    patients = np.unique(val.patients[known], return_inverse=True)[1]
    scores, labels = val.scores[known][:, kept], val.labels[known][:, kept]
    return statistics.intervals(scores, labels, tuple(names[j] for j in kept), {}, options.bootstrap(patients))
