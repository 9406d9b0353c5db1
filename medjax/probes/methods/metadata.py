"""Metadata: predicts what a record says besides its findings, such as sex, view or site, from frozen features.

RAD-DINO is judged in this way (arXiv 2401.10815): sex, age and view show what features hold beside findings. It is also
an audit, because a model can use all that its features tell, for example the site. This probe predicts columns of
words, `regression` those of numbers.

The classes of a column are its words in train. The linear probe tells each class from all others; it chooses its
settings by the mean AUROC over classes on validation. The answer is the class with the highest log-odds.

    AUROC              the mean over classes of the AUROC of a class against all others
    balanced accuracy  the mean over classes of the share of right answers among the records of the class
    accuracy           the share of right answers

A test record with a word that train does not have is left out, and counted as `unseen`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medjax.data.types import BLANK
from medjax.probes import columns, metrics, statistics
from medjax.probes.columns import Column, Prediction
from medjax.probes.evaluate import ProbeInputs, Result
from medjax.probes.methods import linear
from medjax.probes.statistics import Bootstrap

name = 'metadata'
MOST_CLASSES = 50


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    return _columns(inputs).facts()


def run(inputs: ProbeInputs) -> Result:
    return columns.predict(inputs, _columns(inputs), predict)


def _columns(inputs: ProbeInputs) -> columns.Columns:
    return columns.chosen(inputs, lambda column: not column.is_number and not column.order, 'column of words')


def predict(inputs: ProbeInputs, column: Column, bootstrap: Bootstrap) -> Prediction | str:
    """Predicts one column of words, or says why it cannot."""
    words = tuple(np.unique(column.values['train'][column.known('train')]).tolist())
    in_test = set(column.values['test'].tolist())
    if sum(word in in_test for word in words) < 2:
        return 'fewer than two of its words are in train and in test'
    if len(words) > MOST_CLASSES:
        return f'it has {len(words)} different words, and at most {MOST_CLASSES} are predicted'
    train, val, test = columns.splits_with(inputs, column, lambda values: one_hot(values, words))
    if lost := [word for word, of_class in zip(words, train.labels.T, strict=True) if not (of_class == 1).any()]:
        return f'the only records of {lost[0]!r} are among those held out for validation'
    scores = linear.learn(train, val, test, inputs.seed)
    ranked = statistics.samples(scores.test, test.labels, {}, bootstrap)['auroc']
    known, answer = np.all(test.labels >= 0, axis=1), scores.test.argmax(1)
    here = np.where(known[:, None], test.labels, 0).astype(float)  # [n,C]
    right = here * np.equal(answer[:, None], np.arange(len(words)))
    of_class = bootstrap.sums(np.concatenate([right, here], 1))

    def recalls(sums: np.ndarray) -> np.ndarray:  # [R,2C] -> [R,C]
        return metrics.ratio(sums[:, : len(words)], sums[:, len(words) :])

    def accuracy(sums: np.ndarray) -> np.ndarray:
        return metrics.ratio(sums[:, : len(words)].sum(1), sums[:, len(words) :].sum(1))

    samples = dict(
        auroc=ranked.filled().map(lambda x: _mean(x)),
        balanced_accuracy=of_class.map(recalls).map(lambda x: _mean(x)),
        accuracy=of_class.map(accuracy),
    )
    facts = dict(
        classes={
            word: dict(
                train=int((train.labels[:, c] == 1).sum()), test=int(here[:, c].sum()), auroc=_number(ranked.value[c])
            )
            for c, word in enumerate(words)
        },
        unseen=int((column.known('test') & ~known).sum()),
        unknown=int((~column.known('test')).sum()),
        chosen=scores.chosen,
    )
    arrays = dict(scores=scores.test, words=np.array(words), answer=answer, known=known)
    return Prediction(samples, f'{len(words)} classes, {scores.chosen["features"]}', facts, arrays)


def one_hot(values: np.ndarray, words: tuple[str, ...]) -> np.ndarray:
    """int8 [n,C]: 1 in the column of the word, 0 elsewhere; BLANK for unknown values and for other words."""
    found = np.equal(values[:, None], np.array(words))
    return np.where(found.any(1, keepdims=True), found, BLANK).astype(np.int8)


def _mean(x: np.ndarray) -> np.ndarray:
    """The mean [R] over those classes [R,C] that have a value."""
    there = ~np.isnan(x)
    return metrics.ratio(np.where(there, x, 0).sum(1), there.sum(1).astype(float))


def _number(x: float) -> float | None:
    return None if np.isnan(x) else float(x)
