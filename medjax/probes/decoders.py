"""Decoders from the frozen patch features of a grid to structures, trained on records with masks.

The square that the encoder sees is cut into T x T cells, T a power of 2 times the rows of the grid, at least CELLS. The
target of a cell is the share of it that the structure covers. With log-odds s and target t,

    loss = mean over records, structures and cells of log(1 + exp(s)) - t s

each cell with the weight of its share on the image. Structures may overlap, so each has a sigmoid of its own. A decoder
begins with the share of cells that each structure has. Adam with decoupled weight decay .0001 takes 16 records a step,
and its rate falls to 0 on a cosine. All rates learn from the same batches; the caller chooses one on validation.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medjax.probes.features import Stored
from medjax.probes.structures import Axis, Masked, covered, read

CELLS = 48  # rows, at least
RATES, BATCH, DECAY = (1e-3, 1e-2, 1e-1), 16, 1e-4
SAMPLE = 256  # records that the mean and the deviation of features are taken from
READ = 32  # records whose features are read at once

Params = Any
adam = optax.scale_by_adam()


class Decoder(Protocol):
    """A decoder as two functions; `factor` is T / h."""

    def init(self, rng: np.random.Generator, width: int, bias: np.ndarray, factor: int) -> Params:
        """Parameters for features of this width, with which the log-odds of each structure are its bias [K]."""

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """Standardised features [B,h,w,D] -> log-odds [B,h',w',K], h' = h or T."""


class Trained(NamedTuple):
    """A decoder with parameters for each rate."""

    decoder: Decoder
    mean: np.ndarray  # float32 [D]
    std: np.ndarray  # float32 [D]
    params: list[Params]  # for each of RATES

    def log_odds(self, grid: np.ndarray | Stored, rate: int) -> Iterator[np.ndarray]:
        """float32 [K,h',w'] of each record of a grid [n,h,w,D], with the parameters of a rate, by its number."""
        run = _run(self.decoder)
        for start in range(0, len(grid), READ):
            x = np.asarray(grid[start : start + READ])
            rows = len(x)
            x = np.pad(x, ((0, READ - rows), *((0, 0),) * 3)) if rows < READ else x  # one shape, compiled once
            yield from np.moveaxis(np.asarray(run(self.params[rate], x, self.mean, self.std))[:rows], -1, 1)


def factor_of(rows: int) -> int:
    """The smallest power of 2 that cuts a grid of this many rows into CELLS cells or more."""
    return 2 ** max(0, math.ceil(math.log2(CELLS / rows)))


def moments(grid: np.ndarray | Stored, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation float32 [D] of the patches of at most SAMPLE records; 1 for a constant feature."""
    chosen = np.sort(np.random.default_rng(seed).permutation(len(grid))[:SAMPLE])
    first = second = np.zeros(grid.shape[-1])
    for start in range(0, len(chosen), READ):
        x = np.asarray(grid[chosen[start : start + READ]], np.float64).reshape(-1, grid.shape[-1])
        first, second = first + x.sum(0), second + (x**2).sum(0)
    count = len(chosen) * math.prod(grid.shape[1:3])
    mean = first / count
    std = np.sqrt(np.maximum(second / count - mean**2, 0))
    return mean.astype(np.float32), np.where(std > 1e-4 * np.abs(mean) + 1e-8, std, 1).astype(np.float32)


def fit(decoder: Decoder, train: Masked, seed: int, steps: int, rates: Sequence[float] = RATES) -> Trained:
    """Trains a decoder on all records of `train` with each rate."""
    n, h, _, width = train.grid.shape
    factor, rng = factor_of(h), np.random.default_rng(seed)
    targets, weights = cells(train, h * factor)
    mean, std = moments(train.grid, seed)
    start = jax.tree.map(jnp.asarray, decoder.init(rng, width, prevalence(targets, weights), factor))
    each = [(start, adam.init(start)) for _ in rates]
    waiting: np.ndarray = np.zeros(0, int)
    for step in range(steps):
        batch = min(BATCH, n)
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, rng.permutation(n)])
        rows, waiting = np.sort(waiting[:batch]), waiting[batch:]
        falling = (1 + math.cos(math.pi * step / steps)) / 2
        batch_of = train.grid[rows], mean, std, targets[rows], weights[rows]
        each = [
            _step(decoder, *one, np.float32(rate * falling), *batch_of) for one, rate in zip(each, rates, strict=True)
        ]
    return Trained(decoder, mean, std, [jax.tree.map(np.asarray, params) for params, _ in each])


def cells(records: Masked, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The targets uint8 [n,K,T,T] and the weights uint8 [n,T,T] of the cells of all records, in 255ths."""
    targets = np.zeros((len(records.numbers), len(records.names), count, count), np.uint8)
    weights = np.zeros((len(records.numbers), count, count), np.uint8)
    for i, planes in enumerate(records.planes()):
        shares, on_image = covered(planes, *records.axes(planes.shape[1:]), count)
        targets[i], weights[i] = np.rint(255 * np.clip(shares, 0, 1)), np.rint(255 * np.clip(on_image, 0, 1))
    return targets, weights


def prevalence(targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The log-odds float32 [K] of the share of cells of each structure; learning it would take long."""
    total = np.zeros(targets.shape[1])
    for target, weight in zip(targets, weights, strict=True):
        total += target.reshape(len(target), -1).astype(np.float64) @ weight.reshape(-1) / 255
    share = np.clip(total / max(weights.sum(dtype=np.float64), 1), 1e-6, 1 - 1e-6)
    return np.log(share / (1 - share)).astype(np.float32)


def loss(log_odds: jax.Array, targets: jax.Array, weights: jax.Array) -> jax.Array:
    """The loss of log-odds [B,h',w',K] for targets uint8 [B,K,T,T] with weights uint8 [B,T,T]."""
    s = jnp.moveaxis(upsampled(log_odds, *weights.shape[1:]), -1, 1)
    each = (jax.nn.softplus(s) - targets / 255 * s).mean(1)
    return (each * weights).sum() / jnp.maximum(weights.astype(jnp.float32).sum(), 1)


def standardised(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    return (x.astype(jnp.float32) - mean) / std


def upsampled(x: jax.Array, rows: int, columns: int) -> jax.Array:
    """[B,h,w,K] -> [B,rows,columns,K], linear between the centres of cells, as `structures.on_pixels`."""
    _, h, w, _ = x.shape
    down, across = read(Axis(rows, 0.0, rows), h), read(Axis(columns, 0.0, columns), w)
    return jnp.einsum('rh,bhwk,cw->brck', down, x, across)


@functools.partial(jax.jit, static_argnums=0)
def _step(
    decoder: Decoder,
    params: Params,
    state: Any,
    rate: jax.Array,
    x: jax.Array,
    mean: jax.Array,
    std: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[Params, Any]:
    x = standardised(x, mean, std)
    slopes = jax.grad(lambda p: loss(decoder.apply(p, x), targets, weights))(params)
    moves, state = adam.update(slopes, state)
    return jax.tree.map(lambda p, m: p - rate * (m + DECAY * p), params, moves), state


@functools.cache
def _run(decoder: Decoder) -> jax.stages.Wrapped:
    return jax.jit(lambda params, x, mean, std: decoder.apply(params, standardised(x, mean, std)))
