"""Shortcut audit: does a classifier use a column that should not matter, such as a tube, a site or a machine?

    medjax probe --run RUN --data DATA --probes shortcut --columns tube,site

A tube often comes with a pneumothorax, so a classifier can find the tube instead. The audit divides test records by
what the column suggests. A value of the column suggests a label if, in train, the label is more frequent among records
with this value than among all. Then, for the linear probe:

    aligned AUROC      positives whose column suggests the label, against negatives whose column does not: the shortcut
                       helps here
    conflicting AUROC  positives whose column does not suggest the label, against negatives whose column does: the
                       shortcut misleads here
    gap                aligned - conflicting; about 0 for a classifier that does not use the column
    column AUROC       how well the value of the column alone orders the records, by its prevalence in train

Sources: chest drains (arXiv 2507.21291 measures the AUROC with and without), confounded sets of KnoBo (2405.14839). A
gap is no proof: records with a tube can also be the clearer cases.

A row is a label and a column, 'pneumothorax by tube'. A row needs FEWEST records of each of the four kinds in test,
otherwise it is left out by name. Numbers, such as age, are put into bands.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from medjax.data.types import BLANK
from medjax.errors import UserError
from medjax.probes import columns, label_splits, policy, statistics, subgroups
from medjax.probes.evaluate import ProbeInputs, Result, label_requirements, learning_splits
from medjax.probes.methods import linear
from medjax.probes.statistics import Bootstrap, Sample

name = 'shortcut'
FEWEST = 10  # test records of each kind


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    if not inputs.columns:
        raise UserError('name the columns that should not matter: --columns tube,site')
    return label_requirements(inputs) | columns.chosen(inputs, lambda column: True, 'column').facts()


def run(inputs: ProbeInputs) -> Result:
    begun = time.perf_counter()
    found, skipped = columns.chosen(inputs, lambda column: True, 'column')
    splits = learning_splits(inputs, unit='image')
    scores = linear.learn(splits.train, splits.val, splits.test, inputs.seed)
    bootstrap = inputs.options.bootstrap(splits.test.patients)
    whole = inputs.features('train').labels[:, [inputs.data.labels.index(label) for label in splits.names]]
    samples: dict[str, dict[str, Sample]] = {}
    facts: dict[str, Any] = {}
    for column in found:
        groups = {split: subgroups.values_of(column.name, column.values[split]) for split in ('train', 'test')}
        for j, label in enumerate(splits.names):
            row, truth = f'{label} by {column.name}', splits.test.labels[:, j]
            suggestion = suggested(groups['train'], whole[:, j], groups['test'])
            if reason := too_few(suggestion, truth):
                skipped[row] = reason
                continue
            for metric, sample in compare(scores.test[:, j], truth, suggestion, bootstrap).items():
                samples.setdefault(metric, {})[row] = sample
            facts[row] = dict(kinds=kinds(suggestion, truth))
    if not samples:
        raise UserError(f'{inputs.data.name}: no label and column to audit ({label_splits.reasons(skipped)})')
    content = dict(
        records=dict(inputs.data.splits),
        validation=splits.validation,
        seed=inputs.seed,
        chosen=scores.chosen,
        results={metric: statistics.rows(rows, bootstrap) for metric, rows in samples.items()},
        details=facts,
        rows='label and column',
        skipped_labels=splits.skipped | skipped,
        bootstrap=bootstrap.facts(),
        seconds=round(time.perf_counter() - begun, 2),
    )
    return Result(content, dict(scores=scores.test, names=np.array(splits.names), patient=splits.test.patients))


def suggested(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """float [n]: by how much the value of each test record raises the prevalence of a label in train.

    Args: the column's words of train [m], the label of train [m], the column's words of test [n]. nan: no value, or a
    value that train does not have with a known label.
    """
    known = policy.known(labels) & (train != '')
    prevalence = (labels[known] == 1).mean() if known.any() else np.nan
    rise = {
        value: float((labels[known & (train == value)] == 1).mean() - prevalence)
        for value in np.unique(train[known]).tolist()
    }
    return np.array([rise.get(value, np.nan) for value in test.tolist()])


def kinds(suggestion: np.ndarray, truth: np.ndarray) -> dict[str, int]:
    """The number of test records of each kind."""
    with_it, without = suggestion > 0, suggestion <= 0
    return dict(
        positive_suggested=int(((truth == 1) & with_it).sum()),
        positive_not_suggested=int(((truth == 1) & without).sum()),
        negative_suggested=int(((truth == 0) & with_it).sum()),
        negative_not_suggested=int(((truth == 0) & without).sum()),
    )


def too_few(suggestion: np.ndarray, truth: np.ndarray) -> str:
    """Why a label and a column cannot be audited; '' if they can."""
    kind, count = min(kinds(suggestion, truth).items(), key=lambda item: item[1])
    truth_of, _, suggested_or_not = kind.partition('_')
    kind = f'{truth_of} and {suggested_or_not.replace("_", " ")}'
    return '' if count >= FEWEST else f'fewer than {FEWEST} test records are {kind} by the column'


def compare(scores: np.ndarray, truth: np.ndarray, suggestion: np.ndarray, bootstrap: Bootstrap) -> dict[str, Sample]:
    """The samples of the four metrics for scores [n], labels int8 [n] and suggestions [n]."""
    positive, with_it, has = truth == 1, suggestion > 0, ~np.isnan(suggestion)
    subsets = np.stack([with_it == positive, with_it != positive, np.ones(len(truth), bool)], 1) & has[:, None]
    labels = np.where(subsets, truth[:, None], BLANK).astype(np.int8)
    table = np.stack([scores, scores, np.nan_to_num(suggestion)], 1)
    ranked = statistics.samples(table, labels, {}, bootstrap)['auroc']
    aligned, conflicting, column = map(ranked.at, range(3))
    return dict(
        conflicting_auroc=conflicting, aligned_auroc=aligned, gap=aligned.minus(conflicting), column_auroc=column
    )
