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

The scores of each of the 55 lie in RUN/cache/<encoder>/<data>.corrupted/ until all are there. So a job that was killed
goes on where it was, and jobs that run at once share the work.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import json
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

import medjax
from medjax import files
from medjax.data.records import Split
from medjax.probes import corruptions, encode, locks, statistics
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import ProbeInputs, Result, choosing_units, label_requirements, learning_splits
from medjax.probes.methods import linear
from medjax.probes.statistics import Bootstrap, Sample
from medjax.probes.thresholds import choose_thresholds

name, requirements = 'robustness', label_requirements
shares_work = True  # jobs that run it at once divide its work
LOCK = '.lock'


class CorruptedSplit(Split):
    """A split whose images are corrupted."""

    def __init__(self, split: Split, kind: str, severity: int, seed: int):
        super().__init__(split.data, split.name)
        self.kind, self.severity, self.seed = kind, severity, seed

    def image(self, i: int, channels: int | None = None, bits: int | None = None) -> np.ndarray:
        return corruptions.apply(self.kind, self.severity, super().image(i, channels, bits), self.seed, i)


def run(inputs: ProbeInputs) -> Result:
    begun = time.perf_counter()
    splits = learning_splits(inputs, unit='image')
    classifier = linear.choose(splits.train, splits.val)
    val = choosing_units(classifier.log_odds(splits.val), splits, inputs.options)
    found, notes = choose_thresholds(val, linear.THRESHOLD, splits.names, splits.train.labels)
    thresholds = dict(balanced_accuracy=found['balanced_accuracy'])
    bootstrap = inputs.options.bootstrap(splits.test.patients)

    def judged(scores: np.ndarray) -> dict[str, Sample]:
        return judge(scores, splits.test.labels, thresholds, bootstrap)

    clean = judged(classifier.log_odds(splits.test))
    place = place_of(inputs, classifier)
    scores = all_scores(inputs, classifier, place)
    rows: dict[str, dict[str, Sample]] = dict(AUROC={}, error={}, drop={}, rise={})
    details: dict[str, Any] = {}
    for kind in corruptions.KINDS:
        of_severity = [judged(scores[kind, severity]) for severity in corruptions.SEVERITIES]
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
    if place:
        shutil.rmtree(place, ignore_errors=True)
    return Result(content, dict(patient=splits.test.patients.astype(np.int64)))


def place_of(inputs: ProbeInputs, classifier: linear.Classifier) -> pathlib.Path | None:
    """The folder for scores of this encoder, data, classifier and version; None if nothing is kept on disk."""
    if inputs.cache is None:
        return None
    about = [inputs.encoder.digest, inputs.data.fingerprint, inputs.seed, classifier.features, medjax.__version__]
    digest = hashlib.sha256(json.dumps([*about, inspect.getsource(corruptions)]).encode())
    for array in classifier.regressions[:4]:
        digest.update(np.ascontiguousarray(array).tobytes())
    return inputs.cache / str(inputs.encoder.name) / f'{inputs.data.name}.corrupted' / digest.hexdigest()[:16]


def all_scores(
    inputs: ProbeInputs, classifier: linear.Classifier, place: pathlib.Path | None
) -> dict[tuple[str, int], np.ndarray]:
    """The log-odds [n,L] of test records by (kind, severity). Jobs with one `place` share the work."""
    pairs = {pair: byte for byte, pair in enumerate(itertools.product(corruptions.KINDS, corruptions.SEVERITIES))}
    what = f'robustness of {encode.title(inputs.encoder.name)}'
    one_by_one = locks.shared(place / LOCK, pairs, what) if place else iter(pairs)
    return {(kind, severity): scores_of(inputs, classifier, kind, severity, place) for kind, severity in one_by_one}


def scores_of(
    inputs: ProbeInputs, classifier: linear.Classifier, kind: str, severity: int, place: pathlib.Path | None
) -> np.ndarray:
    """The log-odds [n,L] of corrupted test records: as they lie on disk, else computed and kept there."""
    file = place and place / f'{kind}-{severity}.npz'
    if file and file.exists():
        try:
            with np.load(file) as kept:
                if len(scores := kept['scores']) == inputs.data.splits['test']:
                    return scores
        except files.NPZ_ERRORS:
            pass  # damaged, so it is made again
    scores = classifier.log_odds(corrupted(inputs, kind, severity))
    if file:
        with files.writing(f'the scores {file}'):
            file.parent.mkdir(parents=True, exist_ok=True)
            files.write_npz(file, scores=scores)
    return scores


def corrupted(inputs: ProbeInputs, kind: str, severity: int) -> SplitFeatures:
    """The features of corrupted test records. They are not kept on disk: all of them need 55 times the space."""
    return encode.features_of(
        inputs.encoder, CorruptedSplit(inputs.data.split('test'), kind, severity, inputs.seed), None
    )


def judge(
    scores: np.ndarray, labels: np.ndarray, thresholds: Mapping[str, np.ndarray], bootstrap: Bootstrap
) -> dict[str, Sample]:
    """The samples of AUROC and error, means over labels, for scores [n,L] and labels int8 [n,L]."""
    samples = statistics.samples(scores, labels, thresholds, bootstrap)
    return dict(
        AUROC=samples['auroc'].filled().map(lambda x: x.mean(1)),
        error=samples['balanced_accuracy'].filled().map(lambda x: 1 - x.mean(1)),
    )
