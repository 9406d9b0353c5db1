"""Zero-shot classification: compares an image with sentences that state a finding, or its absence.

The text tower embeds every sentence. The vector of a class is the mean of its sentences' vectors, taken before or after
their normalisation as the prompt file decides, then normalised. With c the cosine of the image's vector and a class's
vector:

    score 'pair'       (c - c of the absence) / temperature           CheXzero (10.1038/s41551-022-00936-9)
    score 'classes'    c/t - ln sum of exp(c/t) over all other classes    CLIP (arXiv 2103.00020)
    score 'cosine'     c

The first two are log-odds, with threshold 0. The labels evaluate the scores; nothing is chosen by them. A val split
calibrates the scores (`medjax.probes.trust`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.data.text.prompts import ENSEMBLES, SCORES, ZeroShot
from medjax.errors import UserError
from medjax.probes import image_text, label_splits
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import ProbeInputs, Result, Scores, evaluate, fixed_splits
from medjax.probes.image_text import ImageTextEncoder
from medjax.probes.label_splits import missing_class
from medjax.probes.vectors import unit

name = 'zero_shot'


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    if inputs.prompts is None:
        raise UserError('zero_shot needs sentences for the classes; give a file of them with --prompts FILE')
    if not inputs.data.labels:
        raise UserError('the data set has no labels')
    return image_text.settings(inputs.encoder) | dict(prompts=inputs.prompts._asdict())


def run(inputs: ProbeInputs) -> Result:
    prompts, encoder, test = inputs.prompts, image_text.load(inputs.encoder), inputs.features('test')
    assert prompts is not None  # `requirements` checks it
    labels = list(inputs.data.labels)
    names, skipped = _evaluated_classes(labels, prompts, test.labels)
    if not names:
        why = label_splits.reasons(skipped)
        raise UserError(f'{inputs.data.name}: no class of the prompts can be evaluated ({why})')
    splits = fixed_splits(inputs, names, skipped)

    def score_split(split: SplitFeatures) -> np.ndarray:
        scores = score(unit(encoder.image_vectors(split.cls[:, -1])), prompts, encoder)
        return np.stack([scores[name] for name in names], 1)

    def score_both() -> Scores:
        threshold, scale = (None, 'any') if prompts.score == 'cosine' else (0.0, 'log-odds')
        on_val = None if splits.whole_val is None else score_split(inputs.features('val'))
        chosen, details = _settings(prompts, encoder), _details(prompts, encoder)
        return Scores(score_split(splits.test), on_val, threshold, chosen, {}, details, scale)

    return evaluate(score_both, splits, inputs.options)


def _settings(prompts: ZeroShot, encoder: ImageTextEncoder) -> dict[str, Any]:
    return dict(
        score=prompts.score,
        ensemble=ENSEMBLES[prompts.ensemble],
        temperature=prompts.temperature or encoder.temperature,
        prompts=prompts.digest,
        by='the prompt file',
        scores=SCORES[prompts.score],
    )


def _details(prompts: ZeroShot, encoder: ImageTextEncoder) -> dict[str, Any]:
    """The prompts, and the sentences that the text tower does not read to their end."""
    pools = (*prompts.present.values(), *prompts.absent.values(), prompts.normal)
    sentences = dict.fromkeys(sentence for pool in pools for sentence in pool)
    return dict(prompts=prompts._asdict(), cut_sentences=[s for s in sentences if not encoder.fits(s)])


def _evaluated_classes(
    labels: Sequence[str], prompts: ZeroShot, truth: np.ndarray
) -> tuple[tuple[str, ...], dict[str, str]]:
    """(classes with a positive and a negative test record, in the file's order; the other classes with a reason)."""
    skipped = {name: 'no prompt' for name in labels if name not in prompts.present}
    for name in prompts.present:
        if reason := missing_class(truth[:, labels.index(name)], 'test'):
            skipped[name] = reason
    return tuple(name for name in prompts.present if name not in skipped), skipped


def score(images: np.ndarray, prompts: ZeroShot, encoder: ImageTextEncoder) -> dict[str, np.ndarray]:
    """The score of each class, float32 [n], for images given as unit vectors [n,d]."""
    temperature = prompts.temperature or encoder.temperature
    present = _cosines(images, prompts.present, prompts.ensemble, encoder)
    if prompts.score == 'pair':
        absent = _cosines(images, {name: prompts.absent[name] for name in present}, prompts.ensemble, encoder)
        return {name: (present[name] - absent[name]) / temperature for name in present}
    if prompts.score == 'classes':
        normal = {'': prompts.normal} if prompts.normal else {}  # no label has an empty name
        rivals = present | _cosines(images, normal, prompts.ensemble, encoder)
        return {
            name: c / temperature
            - np.logaddexp.reduce([other / temperature for key, other in rivals.items() if key != name])
            for name, c in present.items()
        }
    return present


def _cosines(
    images: np.ndarray, pools: Mapping[str, Sequence[str]], ensemble: str, encoder: ImageTextEncoder
) -> dict[str, np.ndarray]:
    return {name: images @ vector for name, vector in class_vectors(pools, ensemble, encoder).items()}


def class_vectors(
    pools: Mapping[str, Sequence[str]], ensemble: str, encoder: ImageTextEncoder
) -> dict[str, np.ndarray]:
    """The unit vector [d] of each class, from the mean of its sentences' vectors.

    With the ensemble 'before' the mean is taken before the vectors are normalised, with 'after' after that.
    """
    if not pools:
        return {}
    sentences = list(dict.fromkeys(s for pool in pools.values() for s in pool))
    for sentence in sentences:
        if not encoder.tokens(sentence):
            raise UserError(f'the tokenizer of the export has no word of the prompt {sentence[:60]!r}')
    vectors = encoder.text_vectors(sentences)
    vectors = vectors if ensemble == 'before' else unit(vectors)
    by_sentence = dict(zip(sentences, vectors, strict=True))
    return {name: unit(np.mean([by_sentence[s] for s in pool], 0)) for name, pool in pools.items()}
