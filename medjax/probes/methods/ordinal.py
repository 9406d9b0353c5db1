"""Ordinal: predicts a column with an order, such as a grade from 0 to 4, from frozen features; quadratic kappa.

    medjax probe --run RUN --data DATA --probes ordinal --columns grade,extent=none<mild<severe

A column is either words whose order `--columns` gives, or whole numbers, at most 20 different ones. For K levels the
linear probe learns K-1 questions, whether a record is above a level (Frank and Hall 2001). The answer is the number of
questions that get a yes.

    quadratic kappa  1 - sum w O / sum w E, with w = (answer - truth)^2, O the counts of pairs and E those that chance
                     would give with the same answers and truths (Cohen 1968)
    mean error       the mean of |answer - truth|, in levels
    accuracy         the share of right answers

A test record with a level that train does not have is left out, and counted as `unseen`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medjax.data.types import BLANK
from medjax.errors import UserError
from medjax.probes import columns, metrics
from medjax.probes.columns import Column, Prediction
from medjax.probes.evaluate import ProbeInputs, Result
from medjax.probes.methods import linear
from medjax.probes.statistics import Bootstrap

name = 'ordinal'
MOST_LEVELS = 20


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    for column, order in inputs.columns.items():
        if order:
            for split in inputs.data.splits:
                _check_words(column, order, inputs.data.split(split).column(column))
    return _columns(inputs).facts()


def run(inputs: ProbeInputs) -> Result:
    return columns.predict(inputs, _columns(inputs), predict)


def _columns(inputs: ProbeInputs) -> columns.Columns:
    if not inputs.columns:
        raise UserError('name a column with an order: --columns grade, or --columns extent=none<mild<severe')
    return columns.chosen(inputs, lambda column: bool(column.order) or _is_of_levels(column), 'column with an order')


def _check_words(name: str, order: tuple[str, ...], values: np.ndarray) -> None:
    """UserError if a column has words that the given order does not have."""
    if values.dtype.kind == 'f':
        raise UserError(f'--columns {name}={"<".join(order)}: the records have numbers there; write --columns {name}')
    if others := sorted({*values.tolist()} - {'', *order}):
        raise UserError(f'--columns {name}={"<".join(order)}: the records also have {", ".join(map(repr, others[:5]))}')


def _is_of_levels(column: Column) -> bool:
    """Whether a column holds few whole numbers."""
    if not column.is_number:
        return False
    known = np.unique(column.values['train'][column.known('train')])
    return 2 <= len(known) <= MOST_LEVELS and (known == np.rint(known)).all()


def predict(inputs: ProbeInputs, column: Column, bootstrap: Bootstrap) -> Prediction | str:
    """Predicts one column, or says why it cannot."""
    present = np.unique(column.values['train'][column.known('train')]).tolist()
    levels = [word for word in column.order if word in present] if column.order else present
    if len(levels) < 2:
        return 'train has fewer than two of its levels'
    train, val, test = columns.splits_with(inputs, column, lambda values: above(values, levels))
    if any(len(set(of_level[of_level >= 0].tolist())) < 2 for of_level in train.labels.T):
        return 'a level has all its records among those held out for validation'
    scores = linear.learn(train, val, test, inputs.seed)
    known = (test.labels >= 0).all(1)
    truth, answer = np.where(known, (test.labels == 1).sum(1), 0), (scores.test > 0).sum(1)
    size = len(levels)
    pairs = np.zeros((len(truth), size, size))
    pairs[np.arange(len(truth)), truth, answer] = known
    counts = bootstrap.sums(pairs.reshape(len(truth), -1)).map(lambda x: x.reshape(len(x), size, size))
    far = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    samples = dict(
        quadratic_kappa=counts.map(quadratic_kappa),
        accuracy=counts.map(lambda x: metrics.ratio(np.einsum('rii->r', x), x.sum((1, 2)))),
        mean_error=counts.map(lambda x: metrics.ratio((x * far).sum((1, 2)), x.sum((1, 2)))),
    )
    facts = dict(
        levels=levels,
        pairs=counts.value.astype(int).tolist(),  # rows: truth, columns: answer
        unseen=int((column.known('test') & ~known).sum()),
        unknown=int((~column.known('test')).sum()),
        chosen=scores.chosen,
    )
    arrays = dict(scores=scores.test, answer=answer, truth=truth, known=known)
    return Prediction(samples, f'{size} levels, {scores.chosen["features"]}', facts, arrays)


def above(values: np.ndarray, levels: list[Any]) -> np.ndarray:
    """int8 [n,K-1]: 1 where a value is above level 0, …, K-2; BLANK for unknown values and for other levels."""
    place = values[:, None] == np.array(levels, values.dtype if values.dtype.kind == 'f' else None)
    number = place.argmax(1)[:, None]
    return np.where(place.any(1)[:, None], number > np.arange(len(levels) - 1), BLANK).astype(np.int8)


def quadratic_kappa(counts: np.ndarray) -> np.ndarray:
    """Cohen's kappa with squared weights of counts [R,K,K]; [R], nan where answers and truths are all one level."""
    size = counts.shape[1]
    weight = np.subtract.outer(np.arange(size), np.arange(size)) ** 2.0
    by_chance = (
        counts.sum(2)[:, :, None] * counts.sum(1)[:, None] / np.maximum(counts.sum((1, 2)), 1e-30)[:, None, None]
    )
    return 1 - metrics.ratio((weight * counts).sum((1, 2)), (weight * by_chance).sum((1, 2)))
