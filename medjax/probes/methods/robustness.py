"""Robustness: how much the linear probe loses on radiographs with faults.

The classifier learns from clean train records and is chosen on clean validation records, as the probe `linear`. Then it
sees the test records with each of eleven corruptions at five severities (`medjax.probes.corruptions`), 55 times in all.

    AUROC  the mean over labels
    error  1 - balanced accuracy, the mean over labels; the thresholds are those of clean validation
    drop   the AUROC of clean test records minus that of the corrupted ones, on the same patients
    rise   the error of corrupted records minus that of clean ones

Each is the mean over severities; those of each severity stand in `details`. MedMNIST-C (arXiv 2406.17536) divides
errors by those of an AlexNet on its data. There is none for other data, so errors are not divided. To compare two
encoders, compare the drop as well as the AUROC: an encoder that knows nothing loses nothing.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from medjax.data.records import Split
from medjax.probes import aggregate, corruptions, encode, metrics, statistics
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import ProbeInputs, Result, label_requirements
from medjax.probes.label_splits import LabelSplits, label_splits
from medjax.probes.methods import linear
from medjax.probes.statistics import Bootstrap, Sample
from medjax.probes.thresholds import choose_thresholds

name, requirements = 'robustness', label_requirements


class CorruptedSplit(Split):
    """A split whose images are corrupted."""

    def __init__(self, split: Split, kind: str, severity: int, seed: int):
        super().__init__(split.data, split.name)
        self.kind, self.severity, self.seed = kind, severity, seed

    def image(self, i: int, channels: int | None = None, bits: int | None = None) -> np.ndarray:
        return corruptions.apply(self.kind, self.severity, super().image(i, channels, bits), self.seed, i)


def run(inputs: ProbeInputs) -> Result:
    begun = time.perf_counter()
    val = inputs.features('val') if inputs.data.splits.get('val') else None
    splits = label_splits(
        inputs.features('train'), val, inputs.features('test'), inputs.data.labels, inputs.seed, inputs.data.name
    )
    classifier = linear.choose(splits.train, splits.val)
    thresholds, notes = thresholds_of(classifier, splits)
    bootstrap = inputs.options.bootstrap(splits.test.patients)

    def judged(features: SplitFeatures) -> dict[str, Sample]:
        return judge(classifier.log_odds(features), splits.test.labels, thresholds, bootstrap)

    clean = judged(splits.test)
    rows: dict[str, dict[str, Sample]] = dict(AUROC={}, error={}, drop={}, rise={})
    details: dict[str, Any] = {}
    for kind in corruptions.KINDS:
        of_severity = [judged(corrupted(inputs, kind, severity)) for severity in corruptions.SEVERITIES]
        found = {metric: statistics.mean([each[metric] for each in of_severity]) for metric in clean}
        found |= dict(drop=clean['AUROC'].minus(found['AUROC']), rise=found['error'].minus(clean['error']))
        for metric, sample in found.items():
            rows[metric][kind] = sample
        details[kind] = [
            dict(meaning=corruptions.meaning(kind, severity)) | {m: bootstrap.estimate(x) for m, x in each.items()}
            for severity, each in zip(corruptions.SEVERITIES, of_severity, strict=True)
        ]
    content = dict(
        records=dict(inputs.data.splits),
        validation=splits.validation,
        seed=inputs.seed,
        chosen=classifier.chosen,
        results={metric: statistics.rows(of_kind, bootstrap) for metric, of_kind in rows.items()},
        clean={metric: bootstrap.estimate(sample) for metric, sample in clean.items()},
        details=details,
        rows='corruption',
        threshold_notes=notes,
        skipped_labels=splits.skipped,
        bootstrap=bootstrap.facts(),
        seconds=round(time.perf_counter() - begun, 2),
    )
    return Result(content, dict(patient=splits.test.patients.astype(np.int64)))


def corrupted(inputs: ProbeInputs, kind: str, severity: int) -> SplitFeatures:
    """The features of corrupted test records. They are not kept on disk: all of them need 55 times the space."""
    return encode.features_of(
        inputs.encoder, CorruptedSplit(inputs.data.split('test'), kind, severity, inputs.seed), None
    )


def thresholds_of(classifier: linear.Classifier, splits: LabelSplits) -> tuple[np.ndarray, dict[str, str]]:
    """The thresholds [L] of balanced accuracy on clean validation, and notes by label."""
    whole = splits.whole_val
    val = aggregate.pool(classifier.log_odds(splits.val), whole.halves.choosing(whole.labels), whole.cases, how='mean')
    found, notes = choose_thresholds(val, linear.THRESHOLD, splits.names, splits.train.labels)
    return found['balanced_accuracy'], notes


def judge(scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, bootstrap: Bootstrap) -> dict[str, Sample]:
    """The samples of AUROC and error, means over labels, for scores [n,L] and labels int8 [n,L]."""
    ranked = statistics.ranked_sample(scores, labels, bootstrap).at([*metrics.RANKED].index('auroc'))
    decided = statistics.decision_sample(scores, labels, thresholds, bootstrap)
    balanced = statistics.rates(decided, metrics.balanced_accuracy)
    return dict(
        AUROC=ranked.filled().map(lambda x: x.mean(1)),
        error=balanced.filled().map(lambda x: 1 - x.mean(1)),
    )
