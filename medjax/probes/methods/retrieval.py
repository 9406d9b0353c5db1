"""Retrieval: does an image find its text among all texts of the test split, and a text its image?

Each record with a text is a query both ways, and all of them are the candidates, ordered by cosine in the space of the
export's pair. A candidate is a hit if it has the query's text (many reports say the same) or is of the query's study
(several images of one study). Of the query's hits among its first K candidates,

    R@K = 1 if there is one        P@K = their share of K

and figures are means over queries. The text of a record is what the pair's text view prefers, whole and undrawn: the
first of its sections that the record has, cut to the view's length.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medjax.data.records import Split
from medjax.data.text import views as text_views
from medjax.errors import UserError
from medjax.probes import image_text, statistics
from medjax.probes.evaluate import Result, Task, bootstrap
from medjax.probes.image_text import Pair
from medjax.probes.vectors import unit

name = 'retrieval'
RECALL, PRECISION = (1, 5, 10), (5, 10)
CHUNK_ELEMENTS = 1 << 24  # similarities that are in memory at once


def needs(task: Task) -> dict[str, Any]:
    if not (task.data.split('test').column('words') > 0).any():
        raise UserError('the test records have no texts')
    return image_text.about(task.encoder)


def run(task: Task) -> Result:
    begun = time.perf_counter()
    both, split, test = image_text.load(task.encoder), task.data.split('test'), task.features('test')
    said = said_of(split, both)
    told = np.array([bool(both.tokens(one)) for one in said])
    if told.sum() < 2:
        raise UserError(f'{task.data.name}: {told.sum()} test record(s) have a text; retrieval needs two or more')
    shown = [one for one, known in zip(said, told, strict=True) if known]
    _, first, text = np.unique([one.casefold() for one in shown], return_index=True, return_inverse=True)
    distinct = [shown[i] for i in first]  # equal but for capitals is equal, as for positives in training
    study, patient = split.keys('study')[told], np.unique(test.patients[told], return_inverse=True)[1]
    images = unit(both.images(test.cls[told, -1]))
    sentences = unit(both.texts(distinct))[text]

    k = min(max(RECALL), len(text))
    ways = {
        'image to text': hits(nearest(images, sentences, k), text, study),
        'text to image': hits(nearest(sentences, images, k), text, study),
    }
    values = figures(ways)
    chance = by_chance(text, study)
    result = dict(
        records=dict(test=len(said)),
        seed=task.seed,
        chosen=dict(queries=len(text), distinct_texts=len(distinct), records_without_text=int((~told).sum()))
        | {f'chance of {figure}': chance[figure] for figure in values if figure.startswith('R')},
        results=statistics.of_means(values, patient, task.seed, task.draws),
        details=dict(chance=chance, cut_texts=sum(not both.whole(one) for one in distinct)),
        bootstrap=bootstrap(patient, task.seed, task.draws) | dict(candidates='all of them in every draw'),
        seconds=round(time.perf_counter() - begun, 2),
    )
    arrays = {f'{figure}/{way}': x.astype(np.float32) for figure, ways in values.items() for way, x in ways.items()}
    return Result(result, arrays | dict(record=np.flatnonzero(told), patient=patient))


def said_of(split: Split, both: Pair) -> list[str]:
    """The text of each record, '' where it has none."""
    found = []
    for i in range(len(split)):
        sections = text_views.words(both.sections, split.text(i), {}).sections
        found.append(' '.join(sections[0]) if sections else '')
    return found


def nearest(queries: np.ndarray, candidates: np.ndarray, k: int) -> np.ndarray:
    """Of each query the numbers of the k candidates of the greatest cosine, the greatest first: int [n,k].

    Unit vectors [n,d] and [m,d]; of equal ones the first candidate comes first.
    """
    chunk = max(1, min(len(queries), CHUNK_ELEMENTS // len(candidates)))
    with jax.default_matmul_precision('highest'):
        return np.asarray(_nearest(jnp.asarray(queries), jnp.asarray(candidates), k, chunk))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _nearest(queries: jax.Array, candidates: jax.Array, k: int, chunk: int) -> jax.Array:
    return jax.lax.map(lambda query: jax.lax.top_k(candidates @ query, k)[1], queries, batch_size=chunk)


def hits(found: np.ndarray, text: np.ndarray, study: np.ndarray) -> np.ndarray:
    """Which of the found candidates [n,k] have the text or are of the study of their query: bool [n,k]."""
    return (text[found] == text[:, None]) | (study[found] == study[:, None])


def figures(ways: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """{figure: {way: float [n]}} of hits [n,k] by way; no figure whose K exceeds k."""
    k = min(found.shape[1] for found in ways.values())
    recall = {f'R@{n}': {way: h[:, :n].any(1).astype(float) for way, h in ways.items()} for n in RECALL if n <= k}
    return recall | {f'P@{n}': {way: h[:, :n].mean(1) for way, h in ways.items()} for n in PRECISION if n <= k}


def by_chance(text: np.ndarray, study: np.ndarray) -> dict[str, float]:
    """The figures that a random order of the candidates would have on average."""
    n, both = len(text), np.stack([text.astype(np.uint64), study.astype(np.uint64)], 1)

    def alike(x: np.ndarray) -> np.ndarray:
        _, number, count = np.unique(x, axis=0, return_inverse=True, return_counts=True)
        return count[number.reshape(-1)]

    h = alike(text) + alike(study) - alike(both)  # hits of each query: of its text or of its study

    def missed(k: int) -> np.ndarray:
        """None of the first k is a hit: (n-h)/n (n-h-1)/(n-1) …"""
        drawn = np.arange(k)
        return np.prod(np.maximum(n - h[:, None] - drawn, 0) / (n - drawn), 1)

    recall = {f'R@{k}': float(1 - missed(k).mean()) for k in RECALL if k <= n}
    return recall | {f'P@{k}': float((h / n).mean()) for k in PRECISION if k <= n}
