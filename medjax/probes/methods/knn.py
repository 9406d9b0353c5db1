"""k nearest neighbours by cosine, as in DINOv2: k train records vote, weighted by softmax(cosine / .07).

The result has k = 20. The AUROCs of the other k are reported beside it, but no k is chosen.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from medjax.probes import policy
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import ProbeInputs, Result, Scores, label_requirements, mean_auroc, run_label_probe
from medjax.probes.vectors import unit

name, requirements = 'knn', label_requirements
K, ALL_K, TEMPERATURE = 20, (10, 20, 100, 200), 0.07
CHUNK_ELEMENTS = 1 << 24  # cosines in memory at once


def run(inputs: ProbeInputs) -> Result:
    return run_label_probe(inputs, learn)


def learn(train: SplitFeatures, val: SplitFeatures, test: SplitFeatures, seed: int) -> Scores:
    """Scores val and test by their neighbours in train. A train split of fewer than 20 records uses a smaller k."""
    ks = tuple(k for k in ALL_K if k <= len(train.labels)) or (len(train.labels),)
    k = K if K in ks else max(ks)
    val_scores, test_scores = score(train, val, ks), score(train, test, ks)
    return Scores(
        test=test_scores[k],
        val=val_scores[k],
        threshold=None,
        chosen=dict(k=k, temperature=TEMPERATURE, by='nobody, k is fixed', scores='votes'),
        others={f'k={other}': scores for other, scores in test_scores.items() if other != k},
        details=dict(validation_auroc={f'k={k}': mean_auroc(scores, val.labels) for k, scores in val_scores.items()}),
        scale='probability',
    )


def score(train: SplitFeatures, queries: SplitFeatures, ks: tuple[int, ...]) -> dict[int, np.ndarray]:
    """For each k, float32 [n,L]: the weighted share of positives among the k neighbours whose label is known.

    With w_i = softmax(cosine / .07) over the k neighbours, a score is (sum of w_i over positive neighbours) / (sum of
    w_i over neighbours with a known label). If no neighbour's label is known, it is the share of positives in train.
    """
    known, positive = policy.known(train.labels), train.labels == 1
    with jax.default_matmul_precision('highest'):
        scores = score_arrays(unit(train.cls[:, -1]), known, positive, unit(queries.cls[:, -1]), ks)
    return {k: np.asarray(x) for k, x in zip(ks, scores, strict=True)}


@functools.partial(jax.jit, static_argnums=4)
def score_arrays(
    train: jax.Array, known: jax.Array, positive: jax.Array, queries: jax.Array, ks: tuple[int, ...]
) -> list[jax.Array]:
    """`score` on arrays: unit vectors [n,D] and [m,D], bool [n,L] of the train labels."""
    prevalence = positive.sum(0) / jnp.maximum(known.sum(0), 1)

    def score_query(query: jax.Array) -> list[jax.Array]:  # [D] -> [L] for each k
        cosine, nearest = jax.lax.top_k(train @ query, max(ks))
        scores = []
        for k in ks:
            vote = jax.nn.softmax(cosine[:k] / TEMPERATURE)
            of_known = vote @ known[nearest[:k]].astype(jnp.float32)
            of_positive = vote @ positive[nearest[:k]].astype(jnp.float32)
            scores.append(jnp.where(of_known > 0, of_positive / jnp.maximum(of_known, 1e-30), prevalence))
        return scores

    chunk = max(1, min(len(queries), CHUNK_ELEMENTS // len(train)))
    return jax.lax.map(score_query, queries, batch_size=chunk)
