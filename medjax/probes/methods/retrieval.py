"""Retrieval: finds the text of an image among all texts of the test split, and the image of a text.

Each record with a text is a query in both directions, and all of these records are the candidates. Candidates are
sorted by their cosine with the query, in the space of the export's image-text term. A candidate is a hit if it has the
text of the query (many reports have the same text) or belongs to the study of the query (a study can have several
images). For the first K candidates of a query

    R@K = 1 if one of them is a hit        P@K = the share of hits among them

and the metrics are means over queries. The text of a record is the first section that the text view of the training
prefers and the record has. Nothing is drawn from it, and it is cut to the length of the view.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np

from medjax.data.records import Split
from medjax.errors import UserError
from medjax.probes import image_text, statistics
from medjax.probes.evaluate import ProbeInputs, Result
from medjax.probes.image_text import ImageTextEncoder
from medjax.probes.vectors import nearest, unit

name = 'retrieval'
RECALL, PRECISION = (1, 5, 10), (5, 10)


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    if not (inputs.data.split('test').column('words') > 0).any():
        raise UserError('the test records have no texts')
    return image_text.settings(inputs.encoder)


def run(inputs: ProbeInputs) -> Result:
    begun = time.perf_counter()
    encoder, found = image_text.load(inputs.encoder), queries_of(inputs, 'test')
    values, bootstrap = metrics_of(found), inputs.options.bootstrap(found.patient)
    chance = chance_metrics(found.text, found.study)
    content = dict(
        records=dict(test=len(found.has_text)),
        seed=inputs.seed,
        chosen=dict(
            queries=len(found.text),
            distinct_texts=len(found.distinct),
            records_without_text=int((~found.has_text).sum()),
        )
        | {f'chance of {metric}': chance[metric] for metric in values if metric.startswith('R')},
        results=statistics.intervals_of_means(values, bootstrap),
        details=dict(chance=chance, cut_texts=sum(not encoder.fits(text) for text in found.distinct)),
        bootstrap=bootstrap.facts() | dict(candidates='every draw has all candidates'),
        seconds=round(time.perf_counter() - begun, 2),
    )
    if inputs.chosen_by == name and inputs.data.splits.get('val'):
        val = queries_of(inputs, 'val')
        on_val = statistics.intervals_of_means(metrics_of(val), inputs.options.bootstrap(val.patient))
        content.update(validation_results=on_val, validation='the val split')
    arrays = {
        f'{metric}/{direction}': x.astype(np.float32)
        for metric, rows in values.items()
        for direction, x in rows.items()
    }
    return Result(content, arrays | dict(record=np.flatnonzero(found.has_text), patient=found.patient))


class Queries(NamedTuple):
    """The n records of a split that have a text, in the space of the image-text term."""

    has_text: np.ndarray  # bool, for each record of the split
    distinct: list[str]  # the different texts
    text: np.ndarray  # int [n], the text of each query, as a number of `distinct`
    study: np.ndarray  # uint64 [n]
    patient: np.ndarray  # int [n], 0…P-1
    images: np.ndarray  # unit vectors [n,d]
    texts: np.ndarray  # unit vectors [n,d]


def queries_of(inputs: ProbeInputs, name: str) -> Queries:
    """The queries of a split; UserError if fewer than two records have a text."""
    encoder, split, features = image_text.load(inputs.encoder), inputs.data.split(name), inputs.features(name)
    all_texts = record_texts(split, encoder)
    has_text = np.array([bool(encoder.tokens(text)) for text in all_texts])
    if has_text.sum() < 2:
        raise UserError(
            f'{inputs.data.name}: {has_text.sum()} {name} record(s) have a text; retrieval needs two or more'
        )
    texts = [text for text, usable in zip(all_texts, has_text, strict=True) if usable]
    # Texts that differ only in capitals count as equal, as they do for positives in training.
    _, first, text = np.unique([text.casefold() for text in texts], return_index=True, return_inverse=True)
    distinct = [texts[i] for i in first]
    study, patient = split.keys('study')[has_text], np.unique(features.patients[has_text], return_inverse=True)[1]
    images = unit(encoder.image_vectors(features.cls[has_text, -1]))
    return Queries(has_text, distinct, text, study, patient, images, unit(encoder.text_vectors(distinct))[text])


def metrics_of(found: Queries) -> dict[str, dict[str, np.ndarray]]:
    """{metric: {direction: float [n]}} of queries in both directions."""
    k = min(max(RECALL), len(found.text))
    return query_metrics(
        {
            'image to text': hits(nearest(found.images, found.texts, k)[1], found.text, found.study),
            'text to image': hits(nearest(found.texts, found.images, k)[1], found.text, found.study),
        }
    )


def record_texts(split: Split, encoder: ImageTextEncoder) -> list[str]:
    """The text of each record; '' if it has none."""
    texts = []
    for i in range(len(split)):
        sections = encoder.text_view.pool(split.text(i), {}).sections
        texts.append(' '.join(sections[0]) if sections else '')
    return texts


def hits(nearest: np.ndarray, text: np.ndarray, study: np.ndarray) -> np.ndarray:
    """bool [n,k]: True where a nearest candidate [n,k] has the text or the study of its query."""
    return (text[nearest] == text[:, None]) | (study[nearest] == study[:, None])


def query_metrics(hits: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """{metric: {direction: float [n]}} for hits [n,k] of each direction; metrics with K > k are left out."""
    k = min(is_hit.shape[1] for is_hit in hits.values())
    recall = {
        f'R@{n}': {direction: is_hit[:, :n].any(1).astype(float) for direction, is_hit in hits.items()} for n in RECALL
    }
    precision = {f'P@{n}': {direction: is_hit[:, :n].mean(1) for direction, is_hit in hits.items()} for n in PRECISION}
    return {metric: rows for metric, rows in (recall | precision).items() if int(metric[2:]) <= k}


def chance_metrics(text: np.ndarray, study: np.ndarray) -> dict[str, float]:
    """The expected metrics if the candidates are in random order."""
    n, text_in_study = len(text), np.stack([text.astype(np.uint64), study.astype(np.uint64)], 1)

    def equal(x: np.ndarray) -> np.ndarray:
        """For each record the number of records with an equal value."""
        _, number, count = np.unique(x, axis=0, return_inverse=True, return_counts=True)
        return count[number.reshape(-1)]

    h = equal(text) + equal(study) - equal(text_in_study)  # hits of each query: by text or by study

    def no_hit(k: int) -> np.ndarray:
        """The probability that none of the first k is a hit: (n-h)/n (n-h-1)/(n-1) …"""
        drawn = np.arange(k)
        return np.prod(np.maximum(n - h[:, None] - drawn, 0) / (n - drawn), 1)

    recall = {f'R@{k}': float(1 - no_hit(k).mean()) for k in RECALL if k <= n}
    return recall | {f'P@{k}': float((h / n).mean()) for k in PRECISION if k <= n}
