"""Zero-shot classification: a record's image against sentences that say a finding is there, or is not.

Every sentence is embedded by the text side of the export; those of a class are averaged as the prompt file says, before
or after normalisation, and the mean is normalised. With c the cosine of the image's embedding and of a class's,

    score 'pair'     (c - c of its absence) / temperature             CheXzero (10.1038/s41551-022-00936-9)
    score 'classes'  c/t - ln sum of exp(c/t) over all other classes    CLIP (arXiv 2103.00020)
    score 'cosine'   c

The first two are log-odds, with threshold 0. Labels judge the scores and decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from medjax.data.text.prompts import ENSEMBLES, SCORES, ZeroShot
from medjax.errors import UserError
from medjax.probes import image_text
from medjax.probes.evaluate import Outcome, Result, Splits, Task, judge, lacks
from medjax.probes.image_text import Pair
from medjax.probes.vectors import unit

name = 'zero_shot'


def needs(task: Task) -> dict[str, Any]:
    if task.prompts is None:
        raise UserError('zero_shot needs sentences for the classes; give a file of them with --prompts FILE')
    if not task.data.labels:
        raise UserError('the data set has no labels')
    return image_text.about(task.encoder) | dict(prompts=task.prompts._asdict())


def run(task: Task) -> Result:
    prompts, both = task.prompts, image_text.load(task.encoder)
    assert prompts is not None  # says `needs`
    test = task.features('test')
    names, skipped = _judged(task.data.labels, prompts, test.labels)
    if not names:
        why = '; '.join(f'{name}: {reason}' for name, reason in list(skipped.items())[:5])
        raise UserError(f'{task.data.name}: no class of the prompts can be judged ({why})')
    columns = [task.data.labels.index(name) for name in names]
    splits = Splits(None, None, test._replace(labels=test.labels[:, columns]), names, skipped, 'nothing is chosen')
    pools = (prompts.present, prompts.absent, {'': prompts.normal})
    sentences = [s for pool in pools for some in pool.values() for s in some]
    chosen = dict(
        score=prompts.score,
        ensemble=ENSEMBLES[prompts.ensemble],
        temperature=prompts.temperature or both.temperature,
        prompts=prompts.digest,
        by='the prompt file',
        scores=SCORES[prompts.score],
    )
    details = dict(prompts=prompts._asdict(), cut_sentences=[s for s in dict.fromkeys(sentences) if not both.whole(s)])

    def learnt() -> Outcome:
        scores = score(unit(both.images(test.cls[:, -1])), prompts, both)
        found = np.stack([scores[name] for name in names], 1)
        return Outcome(found, None, None if prompts.score == 'cosine' else 0.0, chosen, {}, details)

    return judge(learnt, splits, task.seed, task.draws)


def score(images: np.ndarray, prompts: ZeroShot, both: Pair) -> dict[str, np.ndarray]:
    """The score of each class for images given by their unit vectors [n,d]: float32 [n]."""
    temperature = prompts.temperature or both.temperature
    present = _cosines(images, prompts.present, prompts.ensemble, both)
    if prompts.score == 'pair':
        absent = _cosines(images, {name: prompts.absent[name] for name in present}, prompts.ensemble, both)
        return {name: (present[name] - absent[name]) / temperature for name in present}
    if prompts.score == 'classes':
        normal = {'': prompts.normal} if prompts.normal else {}  # no label has an empty name
        rivals = present | _cosines(images, normal, prompts.ensemble, both)
        return {
            name: c / temperature
            - np.logaddexp.reduce([other / temperature for key, other in rivals.items() if key != name])
            for name, c in present.items()
        }
    return present


def _cosines(
    images: np.ndarray, pools: Mapping[str, Sequence[str]], ensemble: str, both: Pair
) -> dict[str, np.ndarray]:
    return {name: images @ direction for name, direction in directions(pools, ensemble, both).items()}


def directions(pools: Mapping[str, Sequence[str]], ensemble: str, both: Pair) -> dict[str, np.ndarray]:
    """The unit vector [d] of each class: of the mean of its sentences' vectors, raw ('before') or unit ('after')."""
    if not pools:
        return {}
    sentences = list(dict.fromkeys(s for pool in pools.values() for s in pool))
    for sentence in sentences:
        if not both.tokens(sentence):
            raise UserError(f'the tokenizer of the export knows no word of the prompt {sentence[:60]!r}')
    vectors = both.texts(sentences)
    vectors = vectors if ensemble == 'before' else unit(vectors)
    at = dict(zip(sentences, vectors, strict=True))
    return {name: unit(np.mean([at[s] for s in pool], 0)) for name, pool in pools.items()}


def _judged(labels: Sequence[str], prompts: ZeroShot, truth: np.ndarray) -> tuple[tuple[str, ...], dict[str, str]]:
    """The classes that the prompts name and the test records can judge, in the file's order, and why not the others."""
    skipped = {name: 'no prompt' for name in labels if name not in prompts.present}
    for name in prompts.present:
        if reason := lacks(truth[:, list(labels).index(name)], 'test'):
            skipped[name] = reason
    return tuple(name for name in prompts.present if name not in skipped), skipped
