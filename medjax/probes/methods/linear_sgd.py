"""The linear probe as DINOv2 trains it: linear classifiers by SGD on frozen features, the whole grid at once.

The grid has 52 settings (arXiv 2304.07193, and the file dinov2/eval/linear.py of its code): the CLS of the last {1, 4}
blocks, {without, with} the mean patch token, and 13 learning rates. All are trained on the same batches: SGD with
momentum .9, no weight decay, a cosine from the rate to 0 over 12,500 steps of 128 records, weights that begin normal
with deviation .01. A rate counts for 256 records a step. Validation chooses one setting for all labels.

The chosen setting is then trained again, as many steps, on train and validation, and scores test once; that is the
protocol of DINOv2 on radiographs (2312.02366). Nothing may be fitted on records that a classifier was trained on. So a
label is learned again from the choosing half of validation only (`medjax.probes.halves`). Its thresholds, and its
metrics on validation, are those of the first classifier on this half. It is calibrated by the second classifier on the
other half. A label that is not divided is learned again from all of validation, and is not calibrated.

    loss of a label = 1/B sum over the records of a batch whose label is known of log(1 + exp(-s (w.x + b))), s = ±1

Two things differ from the code of DINOv2. It shows the encoder another random crop in each epoch; here features are
encoded once. It has one softmax over classes; here each label has a sigmoid of its own, and the rate of a label does
not depend on the number of labels.

`linear` fits the same classifiers to their optimum. It is faster and has no rate to choose; take this probe to compare
with figures of papers.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medjax.probes import policy
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import (
    ProbeInputs,
    Result,
    Scores,
    evaluate,
    label_requirements,
    learning_splits,
    mean_auroc,
)
from medjax.probes.label_splits import LabelSplits, take
from medjax.probes.methods import linear

name, requirements = 'linear_sgd', label_requirements
RATES = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1)  # for 256 records a step
BATCH, STEPS, MOMENTUM, DEVIATION = 128, 12_500, 0.9, 0.01
STEPS_AT_ONCE = 50  # run by one call of the device
ON_DEVICE = 2 << 30  # bytes of features that the device holds; of more, it gets the rows of STEPS_AT_ONCE steps


class Heads(NamedTuple):
    """Linear classifiers on one feature set, for R rates and L labels; also their momentum."""

    kernel: Any  # float32 [D,R*L]
    bias: Any  # float32 [R*L]


class Columns(NamedTuple):
    """The columns of a feature set in a row of features; see `row`."""

    start: int
    stop: int


def run(inputs: ProbeInputs) -> Result:
    splits = learning_splits(inputs)
    return evaluate(lambda: learn(splits, inputs.seed), splits, inputs.options)


def learn(splits: LabelSplits, seed: int, steps: int = STEPS) -> Scores:
    """Trains the grid on train, chooses by mean AUROC on val, trains again with val, scores test in log-odds.

    Of equally good settings the first is chosen: fewer features, then the lower rate.
    """
    train, val = splits.train, splits.val
    assert train is not None and val is not None and splits.whole_val is not None  # this probe learns
    sets, labels = feature_sets(train), train.labels.shape[1]
    trained = fit([train], tuple(sets.values()), RATES, seed, steps)
    grid: list[dict[str, Any]] = []
    for (features, columns), heads in zip(sets.items(), trained, strict=True):
        scores = log_odds(heads, val, columns).reshape(-1, len(RATES), labels)
        for r, rate in enumerate(RATES):
            finite = np.isfinite(scores[:, r]).all()  # a rate may be too great
            auroc = mean_auroc(scores[:, r], val.labels) if finite else None
            grid.append(dict(features=features, rate=rate, validation_auroc=auroc))
    best = max(range(len(grid)), key=lambda i: (grid[i]['validation_auroc'] or 0.0, -i))
    s, r = divmod(best, len(RATES))
    of_rate = slice(r * labels, (r + 1) * labels)
    first = Heads(trained[s].kernel[:, of_rate], trained[s].bias[of_rate])
    columns = sets[grid[best]['features']]
    added = take(val, policy.known(val.labels).any(1))
    (final,) = fit([train, added], (columns,), (RATES[r],), seed, steps)
    on_val = np.where(splits.whole_val.halves.chooses, log_odds(first, val, columns), log_odds(final, val, columns))
    chosen = dict(grid[best], steps=steps, by='mean AUROC over labels on validation', scores='log-odds')
    chosen['retrained_on'] = f'train and the {len(added.labels):,} records of validation that chose'
    on_test = log_odds(final, splits.test, columns)
    return Scores(on_test, on_val, linear.THRESHOLD, chosen, {}, dict(grid=grid), scale='log-odds')


def feature_sets(split: SplitFeatures) -> dict[str, Columns]:
    """The feature sets of the linear probe as columns of `row`: the columns of each stand side by side there."""
    _, layers, width = split.cls.shape
    return {
        name: Columns((layers - one.blocks) * width, (layers + one.patches) * width)
        for name, one in linear.feature_sets(split).items()
    }


def row(split: SplitFeatures, numbers: np.ndarray | slice) -> np.ndarray:
    """float32 [n,F]: CLS of the last blocks, the last one at the end, then the mean patch, of some records."""
    cls = split.cls[numbers]
    cls = cls.reshape(len(cls), -1)
    return cls if split.patches is None else np.concatenate([cls, split.patches[numbers]], 1)


def rows(splits: Sequence[SplitFeatures], numbers: np.ndarray) -> np.ndarray:
    """float32 [n,F]: `row` of records that are numbered through all splits."""
    starts = np.cumsum([0, *(len(split.labels) for split in splits)])
    of_split = np.searchsorted(starts, numbers, 'right') - 1
    found = [row(split, numbers[of_split == k] - starts[k]) for k, split in enumerate(splits)]
    order = np.argsort(of_split, kind='stable')
    return np.concatenate(found)[np.argsort(order)]


def log_odds(heads: Heads, split: SplitFeatures, columns: Columns, block: int = 4096) -> np.ndarray:
    """float32 [n,R*L] of all records of a split."""
    blocks = (slice(i, i + block) for i in range(0, len(split.labels), block))
    with np.errstate(over='ignore', invalid='ignore'):  # a rate may be too great
        return np.concatenate([row(split, b)[:, slice(*columns)] @ heads.kernel + heads.bias for b in blocks])


def fit(
    splits: Sequence[SplitFeatures], sets: Sequence[Columns], rates: Sequence[float], seed: int, steps: int = STEPS
) -> list[Heads]:
    """Trains classifiers for all feature sets, rates and labels on the same batches; one `Heads` a feature set.

    The records are those of all splits together.
    """
    all_labels = np.concatenate([split.labels for split in splits])
    n, labels = all_labels.shape
    batch = min(BATCH, n)
    rng = np.random.default_rng(seed)
    heads = [
        Heads(
            rng.normal(scale=DEVIATION, size=(stop - start, len(rates) * labels)).astype(np.float32),
            np.zeros(len(rates) * labels, np.float32),
        )
        for start, stop in sets
    ]
    momentum = jax.tree.map(np.zeros_like, heads)
    of_column = np.repeat(np.float32(rates) * batch / 256, labels)
    width = max(stop for _, stop in sets)
    whole = 4 * n * width <= ON_DEVICE
    if whole:
        pool = jnp.asarray(np.concatenate([row(split, slice(None)) for split in splits])), jnp.asarray(all_labels)
    for first, numbers in _batches(n, batch, steps, rng):
        if not whole:
            pool = rows(splits, numbers.ravel()), all_labels[numbers.ravel()]
            numbers = np.arange(numbers.size).reshape(numbers.shape)
        heads, momentum = _train(heads, momentum, *pool, numbers, of_column, first, steps, tuple(sets))
    return jax.tree.map(np.asarray, heads)


def _batches(n: int, batch: int, steps: int, rng: np.random.Generator) -> Iterator[tuple[int, np.ndarray]]:
    """(first step, record numbers [S,batch] of S steps): each record once before any record comes again."""
    waiting = np.zeros(0, np.int64)
    for first in range(0, steps, STEPS_AT_ONCE):
        count = min(STEPS_AT_ONCE, steps - first)
        while len(waiting) < count * batch:
            waiting = np.concatenate([waiting, rng.permutation(n)])
        yield first, waiting[: count * batch].reshape(count, batch)
        waiting = waiting[count * batch :]


@functools.partial(jax.jit, static_argnames=('steps', 'sets'), donate_argnums=(0, 1))
def _train(
    heads: list[Heads],
    momentum: list[Heads],
    pool: jax.Array,
    labels: jax.Array,
    numbers: jax.Array,
    rates: jax.Array,
    first: jax.Array,
    steps: int,
    sets: tuple[Columns, ...],
) -> tuple[list[Heads], list[Heads]]:
    """The steps first … first+S-1 of `steps`: features `pool` [n,F], labels [n,L], numbers [S,B] of their records."""

    def gradient(one: Heads, x: jax.Array, y: jax.Array) -> Heads:
        logits = (x @ one.kernel + one.bias).reshape(len(x), -1, y.shape[1])
        error = jnp.where(policy.known(y)[:, None], jax.nn.sigmoid(logits) - (y == 1)[:, None], 0) / len(x)
        error = error.reshape(len(x), -1)
        return Heads(x.T @ error, error.sum(0))

    def step(carry: Any, now: Any) -> Any:
        heads, momentum = carry
        i, rows = now
        x, y = pool[rows], labels[rows]
        with jax.default_matmul_precision('highest'):
            slopes = [gradient(one, x[:, slice(*columns)], y) for one, columns in zip(heads, sets, strict=True)]
        momentum = jax.tree.map(lambda m, g: MOMENTUM * m + g, momentum, slopes)
        rate = rates * (1 + jnp.cos(math.pi * i / steps)) / 2
        return (jax.tree.map(lambda w, m: w - rate * m, heads, momentum), momentum), None

    (heads, momentum), _ = jax.lax.scan(step, (heads, momentum), (first + jnp.arange(len(numbers)), numbers))
    return heads, momentum
