"""Image search: the training images nearest to a test image, and how many of them have its finding.

Each test record with a label is a query for this label. The candidates are the train records whose value of the label
is known, sorted by their cosine with the query (CLS of the last block). For the first K candidates

    P@K = the share of them that have the label

The metric of a label is the mean over its queries, and that of the probe the mean over labels. Random candidates give
the prevalence of the label in train, which stands beside it as `chance`. Nothing is learned or chosen. Splits share no
patients, so no candidate is of the query's patient.
"""

from __future__ import annotations

import time

import numpy as np

from medjax.errors import UserError
from medjax.probes import label_splits, metrics, policy, statistics
from medjax.probes.evaluate import ProbeInputs, Result, label_requirements
from medjax.probes.vectors import nearest, unit

name, requirements = 'search', label_requirements
K = (10, 5, 1)


def run(inputs: ProbeInputs) -> Result:
    begun = time.perf_counter()
    train, test = inputs.features('train'), inputs.features('test')
    gallery, queries = unit(train.cls[:, -1]), unit(test.cls[:, -1])
    bootstrap = inputs.options.bootstrap(test.patients)
    samples: dict[str, dict[str, statistics.Sample]] = {f'P@{k}': {} for k in K}
    skipped, chance, counts, shares = {}, {}, {}, {}
    for j, label in enumerate(inputs.data.labels):
        known, asked = policy.known(train.labels[:, j]), test.labels[:, j] == 1
        if known.sum() < max(K) or not (train.labels[:, j] == 1).any() or not asked.any():
            skipped[label] = (
                'no positive record in test'
                if not asked.any()
                else 'no positive record in train'
                if known.sum() >= max(K)
                else f'only {known.sum()} records of train have a known value, {max(K)} are needed'
            )
            continue
        found = relevant(gallery[known], train.labels[known, j] == 1, queries[asked])
        chance[label], counts[label] = float((train.labels[known, j] == 1).mean()), int(asked.sum())
        for k in K:
            share = np.zeros(len(asked))
            share[asked] = found[:, :k].mean(1)
            sums = bootstrap.sums(np.stack([share, asked], 1))
            samples[f'P@{k}'][label] = sums.map(lambda s: metrics.ratio(s[:, 0], s[:, 1]))
            shares[f'P@{k}/{label}'] = share[asked].astype(np.float32)
    if not chance:
        raise UserError(f'{inputs.data.name}: no label to search for ({label_splits.reasons(skipped)})')
    results = {metric: statistics.rows(of_label, bootstrap) for metric, of_label in samples.items()}
    for rows in results.values():
        for label, count in counts.items():
            rows[label] |= dict(queries=count, chance=chance[label])
        rows['mean']['chance'] = float(np.mean(list(chance.values())))
    content = dict(
        records=dict(train=len(train.labels), test=len(test.labels)),
        seed=inputs.seed,
        chosen=dict(features='cls of the last block', chance=results[f'P@{K[0]}']['mean']['chance']),
        results=results,
        skipped_labels=skipped,
        bootstrap=bootstrap.facts() | dict(candidates='every draw has all candidates'),
        seconds=round(time.perf_counter() - begun, 2),
    )
    return Result(content, shares | dict(patient=test.patients.astype(np.int64)))


def relevant(gallery: np.ndarray, positive: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """bool [n,K]: whether the nearest, the second nearest, … candidate of each query is positive.

    Args: unit vectors [m,D] of the candidates, whether they are positive [m], unit vectors [n,D] of the queries.
    """
    return positive[nearest(queries, gallery, max(K))[1]]
