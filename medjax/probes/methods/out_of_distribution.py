"""Out-of-distribution detection: can records of another kind be told from the known ones by their features?

Two questions are asked. For each label with enough records: the label is held out, the detectors see only train records
without it, and test records with it must be found among those without it. For each set of `--outside DATA`: its test
records must be found among those of this data set. The encoder may have seen such images in its training; the detectors
have not.

    mahalanobis  the distance of the CLS of the last block from the mean of train, in the covariance of train, to which
                 a hundredth of its mean variance is added on the diagonal (arXiv 1807.03888, with one class)
    knn          1 - the cosine with the 50th nearest train record, or with the last one of a smaller train (2204.06507)
    energy       - sum over the other labels of log(1 + exp(log-odds)) of the linear probe (2109.14162); only where
                 there are other labels with both classes

    AUROC        P(a record of the other kind is further away than a known one) + P(tie) / 2
    FPR95        the share of known records above the threshold that finds 95 % of the others: lower is better

A metric is named after its detector, 'knn AUROC'. A row is a held-out label, or a set.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg

from medjax.data.records import DataSet
from medjax.data.types import BLANK
from medjax.errors import UserError
from medjax.probes import encode, label_splits, metrics, policy, statistics
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import ProbeInputs, Result
from medjax.probes.label_splits import missing_class, with_validation
from medjax.probes.methods import linear
from medjax.probes.statistics import Bootstrap, Sample
from medjax.probes.vectors import nearest, unit

name = 'out_of_distribution'
NEIGHBOUR = 50
FEWEST = 20  # records of each kind in test, and known ones in train
RIDGE = 0.01  # of the mean variance


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    if not inputs.data.splits.get('train'):
        raise UserError('the data set has no record in train')
    for data in inputs.outside:
        if not data.splits.get('test'):
            raise UserError(f'--outside {data.path}: no record in test')
        if data.fingerprint == inputs.data.fingerprint:
            raise UserError(f'--outside {data.path}: it is the data set itself')
    names = [*inputs.data.labels, *(data.name for data in inputs.outside)]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(
            f'--outside: {twice[0]!r} is the name of two sets or labels; build one into a folder of another name'
        )
    if not inputs.data.labels and not inputs.outside:
        raise UserError('the data set has no labels to hold out; name another data set with --outside')
    return dict(outside=[data.fingerprint for data in inputs.outside])


def run(inputs: ProbeInputs) -> Result:
    begun, names = time.perf_counter(), inputs.data.labels
    val = inputs.features('val') if inputs.data.splits.get('val') else None
    train, val, _ = with_validation(inputs.features('train'), val, inputs.seed)
    queries = [inputs.features('test'), *(_outside(inputs, data) for data in inputs.outside)]
    count = np.cumsum([0, *(len(one.labels) for one in queries)])
    patients = np.concatenate([one.patients + k * (1 << 40) for k, one in enumerate(queries)])  # no set shares one
    patients = np.unique(patients, return_inverse=True)[1]
    bootstrap = inputs.options.bootstrap(patients)
    samples: dict[str, dict[str, Sample]] = {}
    skipped: dict[str, str] = {}
    arrays: dict[str, np.ndarray] = dict(patient=patients)

    def add(row: str, known: SplitFeatures, on_val: SplitFeatures, other: np.ndarray) -> None:
        """A row from detectors that see `known`: other int8 [n] is 1, 0 or BLANK, for records that do not count."""
        for detector, scores in distances(known, on_val, queries).items():
            for metric, sample in judge(scores, other, bootstrap).items():
                samples.setdefault(f'{detector} {metric}', {})[row] = sample
            arrays[f'{detector}/{row}'] = scores.astype(np.float32)
        arrays[f'other/{row}'] = other

    for j, label in enumerate(names):
        other = np.full(count[-1], BLANK, np.int8)
        other[: count[1]] = np.where(policy.known(queries[0].labels[:, j]), queries[0].labels[:, j], BLANK)
        without, kinds = train.labels[:, j] == 0, [(other == value).sum() for value in (0, 1)]
        if min(without.sum(), *kinds) < FEWEST:
            skipped[label] = f'fewer than {FEWEST} records without it in train, or with it or without it in test'
            continue
        rest = [i for i in range(len(names)) if i != j]
        add(label, _some(train, without, rest), _some(val, val.labels[:, j] == 0, rest), other)
    for k, data in enumerate(inputs.outside, 1):
        other = np.full(count[-1], BLANK, np.int8)
        other[: count[1]], other[count[k] : count[k + 1]] = 0, 1
        add(data.name, train, val, other)
    if not samples:
        raise UserError(f'{inputs.data.name}: no label can be held out ({label_splits.reasons(skipped)})')
    order = sorted(samples, key=lambda metric: (metric.endswith('FPR95'), metric.startswith('energy')))
    content = dict(
        records=dict(inputs.data.splits) | {data.name: data.splits['test'] for data in inputs.outside},
        seed=inputs.seed,
        chosen=dict(neighbour=min(NEIGHBOUR, len(train.labels)), by='nobody, all is fixed'),
        results={metric: statistics.rows(samples[metric], bootstrap) for metric in order},
        rows='held-out label or set',
        skipped_labels=skipped,
        bootstrap=bootstrap.facts(),
        seconds=round(time.perf_counter() - begun, 2),
    )
    return Result(content, arrays)


def _outside(inputs: ProbeInputs, data: DataSet) -> SplitFeatures:
    return encode.features(inputs.encoder, data, 'test', inputs.cache)


def _some(split: SplitFeatures, rows: np.ndarray, labels: list[int]) -> SplitFeatures:
    """Some records and labels of a split."""
    chosen = label_splits.take(split, rows)
    return chosen._replace(labels=chosen.labels[:, labels])


def distances(known: SplitFeatures, val: SplitFeatures, queries: Sequence[SplitFeatures]) -> dict[str, np.ndarray]:
    """{detector: [n]}: the distances of all queries from the known records."""
    x, asked = np.asarray(known.cls[:, -1]), [np.asarray(one.cls[:, -1]) for one in queries]
    found = dict(mahalanobis=mahalanobis(x, np.concatenate(asked)), knn=neighbour(x, np.concatenate(asked)))
    kept = [j for j in range(known.labels.shape[1]) if not missing_class(known.labels[:, j], 'train')]
    if kept:
        known, val = (_last_block(one)._replace(labels=one.labels[:, kept]) for one in (known, val))
        classifier = linear.choose(known, val)
        queries = [*map(_last_block, queries)]
        found['energy'] = np.concatenate([-np.logaddexp(0, classifier.log_odds(one)).sum(1) for one in queries])
    return found


def _last_block(split: SplitFeatures) -> SplitFeatures:
    """A split with the CLS of the last block alone."""
    return split._replace(cls=split.cls[:, -1:], patches=None)


def mahalanobis(known: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The distance [n] of queries [n,D] from the mean of known records [m,D], in their covariance plus a ridge."""
    mean = known.mean(0, dtype=np.float64)
    z = known - mean
    covariance = z.T @ z / len(z)
    ridge = RIDGE * max(np.trace(covariance) / len(covariance), 1e-12)
    factor = scipy.linalg.cholesky(covariance + ridge * np.eye(len(covariance)), lower=True)
    return np.linalg.norm(scipy.linalg.solve_triangular(factor, (queries - mean).T, lower=True), axis=0)


def neighbour(known: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """1 - the cosine [n] of queries [n,D] with the NEIGHBOUR-th nearest of the known records [m,D]."""
    known, queries = unit(known), unit(queries)
    return 1 - nearest(queries, known, min(NEIGHBOUR, len(known)))[0][:, -1]


def judge(distances: np.ndarray, other: np.ndarray, bootstrap: Bootstrap) -> dict[str, Sample]:
    """The samples of AUROC and FPR95 for distances [n] and other int8 [n]."""
    here = policy.known(other)
    ranking = metrics.ranking(distances[here], other[here], bootstrap.patients[here])

    def statistic(weights: np.ndarray) -> np.ndarray:
        curve = metrics.curve_of(ranking, weights)
        return np.stack([metrics.auroc(curve), metrics.fpr_at_sensitivity(curve)], 1)

    sample = bootstrap.sample(statistic)
    return dict(AUROC=sample.at(0), FPR95=sample.at(1))
