"""Regression: predicts a column of numbers, such as age, from frozen features by ridge regression.

For each column, over its n train records with a known value, with standardised features x and the value y in units of
its standard deviation:

    minimise  1/n sum (y - w.x - b)^2 + penalty |w|^2        (scikit-learn's Ridge with alpha = penalty n)

As in the linear probe, validation chooses from a grid: CLS of the last {1, 4} blocks, {without, with} the mean patch
token, and 17 penalties; here by the mean absolute error.

    R2   1 - sum (y - prediction)^2 / sum (y - mean)^2 over test records: 0 for the mean of test, 1 for no error
    MAE  the mean absolute error, in units of the column. Its mean over columns has no unit, so it is left out
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from medjax.probes import columns, label_splits, logistic, metrics
from medjax.probes.columns import Column, Prediction
from medjax.probes.evaluate import ProbeInputs, Result
from medjax.probes.methods import linear
from medjax.probes.statistics import Bootstrap, Sample

name = 'regression'
PENALTIES = tuple(10.0 ** (e / 2) for e in range(4, -13, -1))  # 100 … 1e-6 in half decades


class Ridge(NamedTuple):
    """Ridge regressions for R penalties: prediction = (x - mean) / std @ kernel + bias."""

    mean: np.ndarray  # [D]
    std: np.ndarray  # [D]
    kernel: np.ndarray  # float64 [D,R]
    bias: float


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    return _columns(inputs).facts()


def run(inputs: ProbeInputs) -> Result:
    result = columns.predict(inputs, _columns(inputs), predict)
    if len(result.content['results']['mae']) > 2:
        del result.content['results']['mae']['mean']
    return result


def _columns(inputs: ProbeInputs) -> columns.Columns:
    return columns.chosen(inputs, lambda column: column.is_number, 'column of numbers')


def predict(inputs: ProbeInputs, column: Column, bootstrap: Bootstrap) -> Prediction | str:
    """Predicts one column of numbers, or says why it cannot."""
    train, val, test = columns.splits_with(inputs, column, lambda values: values[:, None])
    train = label_splits.take(train, np.isfinite(train.labels[:, 0]))
    y, truth = train.labels[:, 0], val.labels[:, 0]
    if len(y) < 2 or np.ptp(y) == 0:
        return 'all known values in train are equal'
    if not np.isfinite(truth).any():
        return 'no record of validation has a value'
    grid: list[dict[str, Any]] = []
    best: tuple[float, Ridge, int] | None = None
    for features, x in linear.feature_sets(train).items():
        ridge = fit(x, y, PENALTIES)
        errors = np.abs(answers(ridge, linear.feature_sets(val)[features]) - truth[:, None])
        for r, penalty in enumerate(PENALTIES):
            mae = float(np.nanmean(errors[:, r]))
            grid.append(dict(features=features, penalty=penalty, validation_mae=mae))
            if best is None or mae < best[0]:
                best, entry = (mae, ridge, r), grid[-1]
    assert best is not None
    answer = answers(best[1], linear.feature_sets(test)[entry['features']])[:, best[2]]
    samples = errors_of(answer, test.labels[:, 0], bootstrap)
    constant = np.nanmean(np.abs(test.labels[:, 0] - np.median(y)))
    facts = dict(
        chosen=entry | dict(by='mean absolute error on validation'),
        constant_mae=float(constant),  # of the median of train
        known=dict(train=len(y), test=int(np.isfinite(test.labels[:, 0]).sum())),
        grid=grid,
    )
    arrays = dict(answer=answer.astype(np.float32), truth=test.labels[:, 0].astype(np.float32))
    return Prediction(samples, f'{entry["features"]}, penalty {entry["penalty"]:.3g}', facts, arrays)


def fit(x: logistic.Features, y: np.ndarray, penalties: tuple[float, ...]) -> Ridge:
    """Fits the regressions of all penalties to features [n,D] and values [n], in closed form along principal axes."""
    mean, std = logistic.moments(x)
    variances, axes = logistic.principal_axes(x, mean, std)
    centre = float(y.mean(dtype=np.float64))
    along = np.zeros(len(mean))
    for rows in logistic.blocks(x):
        along += ((x[rows] - mean) / std).T @ (y[rows] - centre)
    along = axes.T @ along / len(y)
    kernel = axes @ (along[:, None] / (variances[:, None] + np.array(penalties)))
    return Ridge(mean, std, kernel, centre)


def answers(ridge: Ridge, x: logistic.Features) -> np.ndarray:
    """Features [n,D] -> float64 [n,R]."""
    out = [(x[rows] - ridge.mean) / ridge.std @ ridge.kernel + ridge.bias for rows in logistic.blocks(x)]
    return np.concatenate(out)


def errors_of(answer: np.ndarray, truth: np.ndarray, bootstrap: Bootstrap) -> dict[str, Sample]:
    """The samples of R2 and MAE of answers [n] to truths [n], nan if unknown."""
    known = np.isfinite(truth)
    centre = truth[known].mean(dtype=np.float64)  # squares of numbers near 0 keep their digits
    y, error = np.where(known, truth - centre, 0.0), np.where(known, answer - truth, 0.0)
    sums = bootstrap.sums(np.stack([known, y, y * y, error * error, np.abs(error)], 1).astype(float))

    def r2(s: np.ndarray) -> np.ndarray:
        return 1 - metrics.ratio(s[:, 3], s[:, 2] - metrics.ratio(s[:, 1] ** 2, s[:, 0]))

    return dict(r2=sums.map(r2), mae=sums.map(lambda s: metrics.ratio(s[:, 4], s[:, 0])))
