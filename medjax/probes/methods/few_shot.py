"""Few-shot: what a linear classifier learns from 1, 5, 10, 20 or 50 labelled patients of each class.

For each label by itself, k patients with a positive record and k other patients with a negative record are drawn from
train, one record of each. A logistic regression on the CLS of the last block learns from these 2k records. This is done
for five draws. Nothing is chosen, because a task with few labels has no validation: the strength is C = 1/D for D
standardised features (their squares sum up to D), and mean and deviation are those of all drawn records of a draw.

The value of a metric is the mean over draws. `deviation` is its standard deviation over draws, which tells how much
depends on the luck of a draw; the interval is over test patients. The .npz has the drawn records. A label takes part up
to the k for which train has enough patients, so look at `labels` before you compare the means of two k.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from medjax.data.types import BLANK
from medjax.errors import UserError
from medjax.probes import label_splits, logistic, statistics
from medjax.probes.evaluate import ProbeInputs, Result, label_requirements
from medjax.probes.label_splits import missing_class
from medjax.probes.statistics import Bootstrap

name, requirements = 'few_shot', label_requirements
SHOTS, DRAWS = (50, 20, 10, 5, 1), 5


def run(inputs: ProbeInputs) -> Result:
    begun, names = time.perf_counter(), inputs.data.labels
    train, test = inputs.features('train'), inputs.features('test')
    bootstrap = inputs.options.bootstrap(test.patients)
    gallery, queries = np.asarray(train.cls[:, -1]), np.asarray(test.cls[:, -1])
    skipped = {name: reason for name, y in zip(names, test.labels.T) if (reason := missing_class(y, 'test'))}
    results: dict[str, dict[str, Any]] = {}
    arrays: dict[str, np.ndarray] = {}
    for k in SHOTS:
        drawn = {
            j: rows
            for j, name in enumerate(names)
            if name not in skipped
            and (rows := draw(train.labels[:, j], train.patients, k, [inputs.seed, k, j])) is not None
        }
        if not drawn:
            continue
        scores = [learn(gallery, {j: rows[i] for j, rows in drawn.items()}, queries) for i in range(DRAWS)]
        for metric, rows in _rows(scores, test.labels[:, [*drawn]], [names[j] for j in drawn], bootstrap).items():
            results[f'{metric}@{k}'] = rows
        arrays |= {f'drawn@{k}/{names[j]}': rows for j, rows in drawn.items()}
        arrays[f'scores@{k}'] = np.stack(scores).astype(np.float32)
    ever = {label for rows in results.values() for label in rows}
    few = 'train has no two patients of whom one has a positive and the other a negative record'
    skipped |= {name: few for name in names if name not in skipped and name not in ever}
    if not results:
        raise UserError(f'{inputs.data.name}: no label to learn ({label_splits.reasons(skipped)})')
    content = dict(
        records=dict(train=len(train.labels), test=len(test.labels)),
        seed=inputs.seed,
        chosen=dict(
            features='cls of the last block', draws=DRAWS, C='1 / number of features', by='nobody, all is fixed'
        ),
        results=dict(sorted(results.items(), key=lambda item: item[0].startswith('AUPRC'))),
        skipped_labels=skipped,
        bootstrap=bootstrap.facts(),
        seconds=round(time.perf_counter() - begun, 2),
    )
    return Result(content, arrays | dict(patient=test.patients.astype(np.int64)))


def draw(labels: np.ndarray, patients: np.ndarray, k: int, seed: list[int]) -> np.ndarray | None:
    """int [DRAWS,2k]: records of k patients with a positive one, then of k others with a negative one.

    None if there are not enough patients. A patient with both is drawn for one class only.
    """
    found = []
    for i in range(DRAWS):
        rng = np.random.default_rng([*seed, i])
        order = rng.permutation(len(labels))
        rarer = 1 if (labels == 1).sum() <= (labels == 0).sum() else 0  # drawn first, as it has fewer patients
        chosen: dict[int, np.ndarray] = {}
        for value in (rarer, 1 - rarer):
            rows = order[labels[order] == value]
            rows = rows[~np.isin(patients[rows], patients[np.concatenate([[], *chosen.values()]).astype(int)])]
            rows = rows[np.sort(np.unique(patients[rows], return_index=True)[1])][:k]
            if len(rows) < k:
                return None
            chosen[value] = rows
        found.append(np.concatenate([chosen[1], chosen[0]]))
    return np.stack(found)


def learn(gallery: np.ndarray, drawn: dict[int, np.ndarray], queries: np.ndarray) -> np.ndarray:
    """Log-odds float32 [n,L] of queries [n,D] for L labels; `drawn` has the 2k records of each label."""
    rows = np.unique(np.concatenate([*drawn.values()]))
    labels = np.full((len(rows), len(drawn)), BLANK, np.int8)
    for j, of_label in enumerate(drawn.values()):
        k = len(of_label) // 2
        labels[np.searchsorted(rows, of_label[:k]), j] = 1
        labels[np.searchsorted(rows, of_label[k:]), j] = 0
    regressions = logistic.fit(gallery[rows], labels, np.array([1 / gallery.shape[1]]))
    return logistic.log_odds(regressions, queries)[:, 0]


def _rows(
    scores: list[np.ndarray], labels: np.ndarray, names: list[str], bootstrap: Bootstrap
) -> dict[str, dict[str, Any]]:
    """{metric: rows}: means over draws of the metrics of scores [n,L], with their deviation over draws."""
    samples = statistics.samples(np.concatenate(scores, 1), np.tile(labels, len(scores)), {}, bootstrap)
    found = {}
    for metric in ('AUROC', 'AUPRC'):
        sample = samples[metric.lower()]
        of_draws = sample.value.reshape(len(scores), len(names))
        means = sample.map(lambda x: x.reshape(len(x), len(scores), len(names)).mean(1))
        found[metric] = statistics.rows({name: means.at(j) for j, name in enumerate(names)}, bootstrap)
        for j, name in enumerate(names):
            found[metric][name]['deviation'] = float(of_draws[:, j].std(ddof=1))
        found[metric]['mean']['deviation'] = float(of_draws.mean(1).std(ddof=1))
    return found
