"""k nearest neighbours by cosine, as DINOv2's: votes weighted by softmax(similarity / .07) over the k neighbours."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from medjax.probes import policy
from medjax.probes.encode import Features
from medjax.probes.evaluate import Outcome, Result, Task, mean_auroc, needs_labels, of_labels
from medjax.probes.vectors import unit

name, needs = 'knn', needs_labels
K, ALL_K, TEMPERATURE = 20, (10, 20, 100, 200), 0.07
CHUNK_ELEMENTS = 1 << 24  # similarities that are in memory at once


def run(task: Task) -> Result:
    return of_labels(task, learn)


def learn(train: Features, val: Features, test: Features, seed: int) -> Outcome:
    """Scores test by the 20 nearest records of train. k is fixed, not chosen; the other k are reported beside."""
    ks = tuple(k for k in ALL_K if k <= len(train.labels)) or (len(train.labels),)
    k = K if K in ks else max(ks)
    val_scores, scores = score(train, val, ks), score(train, test, ks)
    chosen = dict(k=k, temperature=TEMPERATURE, by='nobody: k is fixed', scores='votes')
    validation = {f'k={k}': mean_auroc(s, val.labels) for k, s in val_scores.items()}
    others = {f'k={other}': s for other, s in scores.items() if other != k}
    return Outcome(scores[k], val_scores[k], None, chosen, others, dict(validation_auroc=validation))


def score(train: Features, queries: Features, ks: tuple[int, ...]) -> dict[int, np.ndarray]:
    """For each k the weighted share of positives among the neighbours whose label is known: float32 [n,L].

    w_i = softmax over the k neighbours of cosine / .07; score = sum of w_i over positives / over known ones. Where no
    neighbour's label is known, the score is the share of positives in train.
    """
    known, positive = policy.known(train.labels), train.labels == 1
    with jax.default_matmul_precision('highest'):
        out = _score(unit(train.cls[:, -1]), known, positive, unit(queries.cls[:, -1]), ks)
    return {k: np.asarray(o) for k, o in zip(ks, out, strict=True)}


@functools.partial(jax.jit, static_argnums=4)
def _score(
    train: jax.Array, known: jax.Array, positive: jax.Array, queries: jax.Array, ks: tuple[int, ...]
) -> list[jax.Array]:
    """`score` for unit vectors [n,D], and known and positive labels bool [n,L] of train."""
    prevalence = positive.sum(0) / jnp.maximum(known.sum(0), 1)

    def one(query: jax.Array) -> list[jax.Array]:  # [D] -> [L] for each k
        similarity, nearest = jax.lax.top_k(train @ query, max(ks))
        scores = []
        for k in ks:
            vote = jax.nn.softmax(similarity[:k] / TEMPERATURE)
            of_known = vote @ known[nearest[:k]].astype(jnp.float32)
            of_positive = vote @ positive[nearest[:k]].astype(jnp.float32)
            scores.append(jnp.where(of_known > 0, of_positive / jnp.maximum(of_known, 1e-30), prevalence))
        return scores

    chunk = max(1, min(len(queries), CHUNK_ELEMENTS // len(train)))
    return jax.lax.map(one, queries, batch_size=chunk)
