"""What the term `supervised` can predict: labels, classes, numbers and ordered levels.

A task knows the outputs that it needs, reads the targets of the rows, and compares them with the outputs of a head.

    Labels     each label by itself: present or absent
    Levels     ordered levels, one after the other (CORN, arXiv 2111.08851)
    Classes    one of K classes
    Numbers    columns of numbers
    Structures of masks, in each cell of a crop

Shapes: B rows, V crops, O outputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.data.types import CONFLICTING, POSITIVE, UNCERTAIN
from medjax.objectives.features import Feature
from medjax.objectives.label_policy import LabelPolicy
from medjax.objectives.terms import TargetColumn, TermInputs

STEPS = 16  # of `best_constant`: relative to the true loss it is 4e-8 too high for gamma = 2, 1e-3 for gamma = 5
HALVINGS = 32  # of the search for the best constant number


class Targets(NamedTuple):
    """What the rows should be told to be."""

    value: Array  # float32 [B,O], without gradient
    known: Array  # bool [B,O], or [B,1] where all outputs are known together


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task of O outputs. Subclasses define the methods."""

    names: tuple[str, ...]  # of the outputs

    def targets(self, x: TermInputs, of: Feature) -> Targets:
        """The targets of the rows of a feature."""
        raise NotImplementedError

    def losses(self, outputs: Array, value: Array) -> Array:
        """Outputs [B,V,O] and targets [B,1,O] -> the loss of each element, [B,V,O], or [B,V,1] of all outputs."""
        raise NotImplementedError

    def start(self, value: Array, count: Array) -> Array:
        """The sum of the losses of the best constant answer; `count` [B,O] or [B,1]: the elements of a row."""
        raise NotImplementedError

    def described(self) -> dict[str, Any]:
        """The task for exports: whoever has the head can say what its outputs mean."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True, eq=False)
class Binary(Task):
    """Each output s is a decision by itself, with p = sigmoid(s) and a target t from 0 to 1:

    loss = t w1 (1-p)^gamma (-ln p)  +  (1-t) w0 p^gamma (-ln (1-p))

    w0 and w1 are the class weights, gamma is that of the focal loss (arXiv 1708.02002). With smoothing e, t becomes
    (1-e) t + e/2.
    """

    weights: np.ndarray  # float32 [O,2]: of absent, of present
    gamma: float
    smoothing: float

    def smooth(self, value: Array) -> Array:
        return (1 - self.smoothing) * value + self.smoothing / 2

    def losses(self, outputs: Array, value: Array) -> Array:
        no, yes = jax.nn.softplus(outputs), jax.nn.softplus(-outputs)  # -ln (1-p), -ln p
        present = value * self.weights[:, 1] * jnp.exp(-self.gamma * no) * yes
        return present + (1 - value) * self.weights[:, 0] * jnp.exp(-self.gamma * yes) * no

    def start(self, value: Array, count: Array) -> Array:
        shares = jnp.stack([((1 - value) * count).sum(0), (value * count).sum(0)], -1)
        return best_constant(shares * self.weights, self.gamma).sum()


@dataclasses.dataclass(frozen=True, eq=False)
class Labels(Binary):
    """Labels of the data, each present or absent."""

    columns: tuple[int, ...]  # of the labels in a batch
    policy: LabelPolicy

    def targets(self, x: TermInputs, of: Feature) -> Targets:
        codes = x.codes(of, self.columns)
        u: Array | float = 0.0
        if self.policy.draws:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(x.key, x.views[of.view].row)
            u = jax.vmap(lambda key: jax.random.uniform(key, (len(self.columns),)))(keys)
        value, known = self.policy.targets(codes, u)
        return Targets(self.smooth(value), known)

    def described(self) -> dict[str, Any]:
        return dict(predicts='labels', names=self.names)


@dataclasses.dataclass(frozen=True, eq=False)
class Structures(Binary):
    """Structures that masks show. The target of a cell is the share of it that a structure covers.

    Structures may overlap, so each is a decision by itself. The term reads the targets, see `supervised.OfCells`.
    """

    def described(self) -> dict[str, Any]:
        return dict(predicts='structures', names=self.names)


@dataclasses.dataclass(frozen=True, eq=False)
class Levels(Binary):
    """Ordered levels 0 … K-1: output k says whether a row that is at least at level k lies above it.

    Only rows that are at least at level k count for output k. So P(y > k) = p_0 p_1 … p_k, which never rises with k.
    """

    column: TargetColumn
    levels: np.ndarray  # float32 [K]: the value of each level in a batch
    words: tuple[Any, ...]  # the levels, as a config names them

    def targets(self, x: TermInputs, of: Feature) -> Targets:
        given = x.target(of, self.column)
        is_level = given.value[:, None] == self.levels
        y = jnp.argmax(is_level, axis=1)[:, None]
        output = np.arange(len(self.levels) - 1)
        known = (given.known & is_level.any(1))[:, None]
        return Targets(self.smooth((y > output).astype(jnp.float32)), known & (y >= output))

    def described(self) -> dict[str, Any]:
        return dict(predicts='levels', names=self.words, column=self.column.name)


@dataclasses.dataclass(frozen=True, eq=False)
class Classes(Task):
    """One of K classes, with p = softmax(outputs) and a target q, which is 1 for the class of the row:

    loss = sum_k w_k q_k (1-p_k)^gamma (-ln p_k)

    With smoothing e, q becomes (1-e) q + e/K. The mean over rows divides by their number, not by the sum of weights.
    """

    weights: np.ndarray  # float32 [K]
    gamma: float
    smoothing: float
    column: TargetColumn | None  # of words; None: the classes are labels
    columns: tuple[int, ...]  # of these labels in a batch

    def targets(self, x: TermInputs, of: Feature) -> Targets:
        if self.column is None:
            codes = x.codes(of, self.columns)
            known, number = only_label(codes), jnp.argmax(codes == POSITIVE, axis=1)
        else:
            number, known = x.target(of, self.column)
        one = (number[:, None] == np.arange(len(self.names))).astype(jnp.float32)
        return Targets((1 - self.smoothing) * one + self.smoothing / len(self.names), known[:, None])

    def losses(self, outputs: Array, value: Array) -> Array:
        log_p = jax.nn.log_softmax(outputs)
        # ln (1-p); without the bound its gradient is not a number where p is 1
        log_other = jnp.log(-jnp.expm1(jnp.minimum(log_p, -1e-7)))
        return -(self.weights * value * jnp.exp(self.gamma * log_other) * log_p).sum(-1, keepdims=True)

    def start(self, value: Array, count: Array) -> Array:
        return best_constant((value * count).sum(0) * self.weights, self.gamma)

    def described(self) -> dict[str, Any]:
        column = {} if self.column is None else dict(column=self.column.name)
        return dict(predicts='classes', names=self.names, **column)


def only_label(codes: Any) -> Any:
    """Codes [B,K] of labels that exclude each other -> bool [B]: exactly one is present, and none is in doubt."""
    doubt = (codes == UNCERTAIN) | (codes == CONFLICTING)
    return ((codes == POSITIVE).sum(-1) == 1) & ~doubt.any(-1)


class Error(NamedTuple):
    """A loss of the difference between an output and its target, and its slope."""

    loss: Callable[[Array], Array]
    slope: Callable[[Array], Array]


ERRORS = dict(
    mse=Error(jnp.square, lambda d: 2 * d),
    mae=Error(jnp.abs, jnp.sign),
    huber=Error(lambda d: jnp.where(jnp.abs(d) < 1, 0.5 * d * d, jnp.abs(d) - 0.5), lambda d: jnp.clip(d, -1.0, 1.0)),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers(Task):
    """Columns of numbers y. The target is (y - mean) / std, so an output s stands for mean + std s.

    The losses are 'mse' d^2, 'mae' |d| and 'huber', which is d^2/2 for |d| < 1 and |d| - 1/2 beyond.
    """

    columns: tuple[TargetColumn, ...]
    mean: np.ndarray  # float32 [O]
    std: np.ndarray  # float32 [O]
    error: Error

    def targets(self, x: TermInputs, of: Feature) -> Targets:
        value, known = (jnp.stack(both, 1) for both in zip(*(x.target(of, column) for column in self.columns)))
        return Targets(jnp.where(known, (value - self.mean) / self.std, 0.0), known)

    def losses(self, outputs: Array, value: Array) -> Array:
        return self.error.loss(outputs - value)

    def start(self, value: Array, count: Array) -> Array:
        """The slope of the summed loss rises with the constant, so its zero is found by halving."""

        def halve(_: int, limits: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = limits
            middle = (low + high) / 2
            rising = (count * self.error.slope(middle - value)).sum(0) > 0
            return jnp.where(rising, low, middle), jnp.where(rising, middle, high)

        limits = jnp.where(count > 0, value, jnp.inf).min(0), jnp.where(count > 0, value, -jnp.inf).max(0)
        low, high = jax.lax.fori_loop(0, HALVINGS, halve, limits)
        constant = jnp.where(count.any(0), (low + high) / 2, 0.0)
        return (count * self.error.loss(constant - value)).sum()

    def described(self) -> dict[str, Any]:
        return dict(predicts='numbers', names=self.names, mean=self.mean.tolist(), std=self.std.tolist())


def best_constant(totals: Array, gamma: float) -> Array:
    """min over p of sum_k totals_k (1-p_k)^gamma (-ln p_k), for totals [...,K] of the classes.

    At the minimum totals_k h(p_k) is one number for all classes k, with h the slope below. Without gamma this is
    p = totals / sum: the minimum is an entropy. Else each step multiplies p_k by (totals_k h(p_k))^(1 / (1 + gamma)).
    """
    p = _shares(totals)
    for _ in range(STEPS if gamma else 0):
        h = (1 - p) ** gamma / p - gamma * (1 - p) ** (gamma - 1) * jnp.log(p)
        p = _shares(p * (totals * h) ** (1 / (1 + gamma)))
    return -(totals * (1 - p) ** gamma * jnp.log(p)).sum(-1)


def _shares(x: Array) -> Array:
    """x / sum x, inside of (0, 1) so that logarithms and powers are finite."""
    return jnp.clip(x / jnp.maximum(x.sum(-1, keepdims=True), 1e-30), 1e-12, 1 - 1e-6)
