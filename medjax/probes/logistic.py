"""Logistic regressions: those of all labels and of all strengths of regularisation at once, read in blocks of rows.

For each label, over its n records with a known label (`policy.known`), with standardised features x:

    minimise  1/n sum log(1 + exp(-s (w.x + b)))  +  penalty/2 |w|^2,      s = 1 for positives, -1 for negatives

This is scikit-learn's LogisticRegression with C = 1 / (penalty n).

The minimiser is L-BFGS (Liu and Nocedal 1989), for each regression apart, but all of them share the passes over the
features. It works along the principal axes of the features. There the Hessian is nearly diagonal: mean p(1-p) x the
variance along the axis + penalty, with p the probability of a record. This diagonal is where L-BFGS starts in each
step, so most regressions need about ten passes. The strengths are solved in ascending order of C, some at a time. They
start on the line through the last two solutions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from medjax.probes import policy

BLOCK = 1 << 26  # bytes of the features that are computed with at once, of so many rows at most:
ROWS = 1 << 15
KEPT = 5 << 29  # bytes of features that stay in memory between passes; more are read again in each pass
AT_ONCE = 5  # strengths that share their passes
MEMORY = 20  # steps that L-BFGS remembers
TOLERANCE = 1e-7  # the greatest `gap`
FLOOR = 0.01  # of the entropy of a label: a smaller objective, as of separable data, counts as this
PASSES = 200  # for the strengths that are solved at once
COLUMNS = 16  # the number of regressions of a pass is rounded up to a multiple, so that few shapes are compiled


class Features(Protocol):
    """Features float32 [n,D]: an array, or rows that are read from the disk when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class Regressions(NamedTuple):
    """Logistic regressions for R strengths and L labels on one feature set.

    log-odds = (x - mean) / std @ kernel + bias
    """

    mean: np.ndarray  # float32 [D]
    std: np.ndarray  # float32 [D]
    kernel: np.ndarray  # float32 [D,R,L]
    bias: np.ndarray  # float32 [R,L]
    passes: int  # over the features
    gap: np.ndarray  # [R,L]: the estimated distance of the objective to its optimum, in units of the objective
    converged: np.ndarray  # bool [R,L]

    def of_strength(self, r: int) -> Regressions:
        """The regressions of one strength."""
        kernel, bias = self.kernel[:, r : r + 1].copy(), self.bias[r : r + 1]
        return self._replace(kernel=kernel, bias=bias, gap=self.gap[r : r + 1], converged=self.converged[r : r + 1])


def fit(x: Features, labels: np.ndarray, strengths: np.ndarray) -> Regressions:
    """Fits the regressions of R values of C, in ascending order, and L labels to features [n,D] and labels int8 [n,L].

    A label is fitted on the records with a known value of it. Each label needs a positive and a negative record.
    """
    mean, std = moments(x)
    variances, axes = principal_axes(x, mean, std)
    known = policy.known(labels)
    counts = known.sum(0)
    prevalence = ((labels == 1) & known).sum(0) / counts
    floors = -FLOOR * (prevalence * np.log(prevalence) + (1 - prevalence) * np.log(1 - prevalence))
    passes = _Passes(x, mean, std, axes, labels)
    points = np.zeros((len(counts), len(variances) + 1))
    points[:, -1] = np.log(prevalence / (1 - prevalence))  # with weights of 0, it predicts the prevalence
    change = np.zeros_like(points)
    solved: list[_Solution] = []
    for at in range(0, len(strengths), AT_ONCE):
        some = strengths[at : at + AT_ONCE]
        penalties = (1 / (some[:, None] * counts)).reshape(-1)
        label = np.tile(np.arange(len(counts)), len(some))
        ahead = [points + (k + 1) * change for k in range(len(some))]
        solved.append(_minimise(passes, variances, penalties, floors[label], label, np.concatenate(ahead)))
        before, points = np.concatenate([points, solved[-1].points])[-2 * len(counts) :].reshape(2, *points.shape)
        change = points - before
    together = [np.concatenate(each).reshape(len(strengths), len(counts), *each[0].shape[1:]) for each in zip(*solved)]
    points, gap, converged = together
    kernel = np.moveaxis(points[..., :-1] @ np.asarray(axes, np.float64).T, -1, 0)
    bias = points[..., -1]
    return Regressions(mean, std, kernel.astype(np.float32), bias.astype(np.float32), passes.count, gap, converged)


def log_odds(regressions: Regressions, x: Features) -> np.ndarray:
    """Features [n,D] -> float32 [n,R,L]."""
    out = np.empty((x.shape[0], *regressions.bias.shape), np.float32)
    for rows in blocks(x):
        z = (x[rows] - regressions.mean) / regressions.std
        out[rows] = np.tensordot(z, regressions.kernel, 1) + regressions.bias
    return out


def moments(x: Features) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the features, float32 [D]; 1 for a constant feature."""
    n, shift = x.shape[0], x[:1].astype(np.float64)  # of numbers near their mean, little is lost in the squares
    first = second = np.zeros(x.shape[1])
    for rows in blocks(x):
        away = x[rows] - shift
        first, second = first + away.sum(0), second + np.einsum('nd,nd->d', away, away)
    mean = shift[0] + first / n
    std = np.sqrt(np.maximum(second / n - (first / n) ** 2, 0))
    return mean.astype(np.float32), np.where(std > 1e-6 * np.abs(mean), std, 1.0).astype(np.float32)


def principal_axes(x: Features, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The variances [r] along the principal axes of the standardised features, and the axes, float32 [D,r].

    With fewer records than features, the axes span the records: an optimum has no weight elsewhere.
    """
    n, width = x.shape
    if n < width:
        z = ((x[:] - mean) / std).astype(np.float64)
        variances, left = np.linalg.eigh(z @ z.T / n)
        real = variances > 1e-12 * variances[-1]
        variances, left = variances[real], left[:, real]
        return variances, (z.T @ left / np.sqrt(n * variances)).astype(np.float32)
    gram = np.zeros((width, width))
    for rows in blocks(x):
        z = (x[rows] - mean) / std
        gram += z.T @ z
    variances, axes = np.linalg.eigh(gram / n)
    return np.maximum(variances, 1e-8 * variances[-1]), axes.astype(np.float32)


def blocks(x: Features) -> Iterator[slice]:
    """The rows of features in blocks of BLOCK bytes."""
    rows = rows_of_block(*x.shape)
    return (slice(start, start + rows) for start in range(0, x.shape[0], rows))


def rows_of_block(n: int, width: int) -> int:
    return max(1, min(n, ROWS, BLOCK // (4 * width)))


class _Values(NamedTuple):
    """What a pass finds for H regressions, without the penalty."""

    loss: np.ndarray  # [H]
    gradient: np.ndarray  # [H,r+1]: by the weights along the axes, and by the bias at the end
    spread: np.ndarray  # [H]: the mean of p(1-p)


class _Passes:
    """Passes over the standardised features and the labels."""

    def __init__(self, x: Features, mean: np.ndarray, std: np.ndarray, axes: np.ndarray, labels: np.ndarray) -> None:
        self.x, self.mean, self.std, self.axes = x, mean, std, jnp.asarray(axes)
        self.labels, self.counts = labels, policy.known(labels).sum(0)
        self.count = 0
        keep = x.shape[0] * x.shape[1] * 4 <= KEPT
        self.kept = [*self._read()] if keep else None

    def __call__(self, points: np.ndarray, label: np.ndarray) -> _Values:
        """The values at points [H,r+1] of regressions of these labels [H]."""
        self.count += 1
        used = len(points)
        wide = -(-used // COLUMNS) * COLUMNS
        points, column = np.pad(points, ((0, wide - used), (0, 0))), np.pad(label, (0, wide - used))
        with jax.default_matmul_precision('highest'):
            weights = _along_features(self.axes, points[:, :-1].astype(np.float32))
            total: Any = None
            for z, labels in self._read() if self.kept is None else self.kept:
                total = _add(total, sums_of_block(z, labels, column, weights, points[:, -1].astype(np.float32)))
            loss, gradient, bias, spread = total
            gradient = _along_axes(self.axes, gradient)
        scale = self.counts[label]
        loss, gradient, bias, spread = (np.asarray(a, np.float64)[:used] for a in (loss, gradient, bias, spread))
        gradient = np.concatenate([gradient, bias[:, None]], 1) / scale[:, None]
        return _Values(loss / scale, gradient, spread / scale)

    def _read(self) -> Iterator[tuple[jax.Array, jax.Array]]:
        """Standardised features [rows,D] and labels [rows,L] in blocks of equal size; the last is filled up."""
        rows = rows_of_block(*self.x.shape)
        for block in blocks(self.x):
            x, labels = self.x[block], self.labels[block]
            z = _aligned(rows, x.shape[1])
            np.subtract(x, self.mean, out=z[: len(x)])
            z[: len(x)] /= self.std
            z[len(x) :] = 0
            labels = np.pad(labels, ((0, rows - len(x)), (0, 0)), constant_values=-1)
            yield jax.device_put(z), jax.device_put(labels)


def _aligned(*shape: int) -> np.ndarray:
    """An array float32 that a CPU device takes as it is. An array of numpy alone it copies, which takes longer."""
    size = 4 * math.prod(shape)
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(np.float32).reshape(shape)


@jax.jit
def _along_features(axes: jax.Array, points: jax.Array) -> jax.Array:
    return points @ axes.T


@jax.jit
def _along_axes(axes: jax.Array, gradient: jax.Array) -> jax.Array:
    return gradient @ axes


@jax.jit
def sums_of_block(z: jax.Array, labels: jax.Array, column: jax.Array, weights: jax.Array, bias: jax.Array) -> Any:
    """Sums over a block of rows for H regressions: loss [H], gradient [H,D], that by the bias [H], p(1-p) [H].

    Features [b,D] and labels int8 [b,L]; the label of each regression [H], its weights [H,D] and its bias [H].
    """
    labels = labels[:, column]
    known, wrong = policy.known(labels), jnp.where(labels == 1, -1.0, 1.0)  # the sign of a wrong answer
    against = wrong * (z @ weights.T + bias)
    p = jnp.where(known, jax.nn.sigmoid(against), 0)  # of the wrong answer: as p - 1 it would lose its digits near 0
    error = wrong * p
    loss = jnp.where(known, jax.nn.softplus(against), 0)
    return loss.sum(0), error.T @ z, error.sum(0), (p * (1 - p)).sum(0)


def _add(total: Any, found: Any) -> Any:
    if total is None:
        return found
    jax.block_until_ready(total)  # one block is computed while the next one is read, and no more are in memory
    return _sum(total, found)


@jax.jit
def _sum(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


class _Solution(NamedTuple):
    """The optima of H regressions."""

    points: np.ndarray  # [H,r+1]
    gap: np.ndarray  # [H], see `Regressions`
    converged: np.ndarray  # bool [H]


def _minimise(
    passes: _Passes,
    variances: np.ndarray,
    penalties: np.ndarray,
    floors: np.ndarray,
    label: np.ndarray,
    start: np.ndarray,
) -> _Solution:
    """Minimises H regressions with penalties, floors of the objective, and labels, each [H], from points [H,r+1].

    A regression that has come near enough leaves the passes. A step that goes so far that the objective rises there is
    shortened by the secant of the slopes. Slopes keep their digits near an optimum, where differences of objectives in
    float32 are noise.
    """
    weight = np.append(np.ones(len(variances)), 0)  # the bias has no penalty
    curvature = np.append(variances, 1)
    found = _Solution(np.array(start), np.zeros(len(start)), np.zeros(len(start), bool))
    number, point, penalty = np.arange(len(start)), start, penalties[:, None] * weight
    objective, gradient, spread = _with_penalty(passes(point, label), point, penalty)
    direction, moved, step = np.zeros_like(point), np.ones(len(point), bool), np.ones(len(point))
    memory: list[tuple[np.ndarray, np.ndarray]] = []  # differences of points and of gradients, 0 where nothing moved
    for _ in range(PASSES):
        first = 1 / np.maximum(spread[:, None] * curvature + penalty, 1e-300)
        direction = np.where(moved[:, None], -_newton_step(gradient, memory, first), direction)
        slope = _dot(gradient, direction)
        gap = -slope / 2 / np.maximum(objective, floors)
        found.points[number], found.gap[number], found.converged[number] = point, gap, gap <= TOLERANCE
        left = gap > TOLERANCE
        if not left.any():
            break
        if not left.all():
            number, floors, label, penalty, point, gradient, objective, spread, direction, slope, step = (
                each[left]
                for each in (number, floors, label, penalty, point, gradient, objective, spread, direction, slope, step)
            )
            memory = [(moves[left], changes[left]) for moves, changes in memory]
        tried = point + step[:, None] * direction
        values = _with_penalty(passes(tried, label), tried, penalty)
        ahead = _dot(values[1], direction)
        moved = np.isfinite(values[0]) & (ahead <= -slope / 2)
        by_row = moved[:, None]
        memory = [*memory[1 - MEMORY :], (by_row * (tried - point), np.where(by_row, values[1] - gradient, 0))]
        point, gradient = np.where(by_row, tried, point), np.where(by_row, values[1], gradient)
        objective, spread = np.where(moved, values[0], objective), np.where(moved, values[2], spread)
        secant = np.nan_to_num(slope / (slope - ahead), nan=0.1)
        step = np.where(moved, 1, step * np.clip(secant, 0.1, 0.7))
    return found


def _with_penalty(values: _Values, point: np.ndarray, penalty: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Objective [H], gradient [H,r+1], and the mean of p(1-p) [H]."""
    return values.loss + _dot(penalty * point, point) / 2, values.gradient + penalty * point, values.spread


def _newton_step(gradient: np.ndarray, memory: list[tuple[np.ndarray, np.ndarray]], first: np.ndarray) -> np.ndarray:
    """The inverse Hessian that L-BFGS guesses, times the gradient [H,r+1]; `first` is its diagonal before any step."""
    q, factors = gradient, []
    for moves, changes in reversed(memory):
        product = _dot(moves, changes)
        inverse = np.where(product > 0, 1 / np.where(product > 0, product, 1), 0)
        factor = inverse * _dot(moves, q)
        q = q - factor[:, None] * changes
        factors.append((inverse, factor))
    q = first * q
    for (moves, changes), (inverse, factor) in zip(memory, reversed(factors), strict=True):
        q = q + (factor - inverse * _dot(changes, q))[:, None] * moves
    return q


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[H]: the inner products of rows."""
    return np.einsum('hd,hd->h', a, b)
