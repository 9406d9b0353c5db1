"""Every pair of elements is a decision of its own: together or not (SigLIP, arXiv 2303.15343).

With unit embeddings x_i of the rows and y_j of the columns, s_ij = x_i . y_j / temperature + bias, and positives z_ij:

    loss = 1/N  sum_ij  z_ij softplus(-s_ij) + (1 - z_ij) softplus(s_ij)

over the N rows and the columns that take part (pairs.py). z is 1 for positives (h = 1 in positives.py) and 0 otherwise.
With soft positives z = (1 - alpha) h + alpha q. Here q is the cosine of two label sets, or sigmoid(s_ij) of the network
that makes the soft positives. Temperature and bias are learned and start at 1/10 and -10. For orthogonal outputs the
loss starts at softplus(10) + (N - 1) softplus(-10).

The plain formula is `medjax.objectives.formulas.siglip_loss`; this term equals it with one view a side, all rows
present and positives='identity'.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.objectives.pair_options import pair_options
from medjax.objectives.pairs import PairLoss, Side, Sides, similarity
from medjax.objectives.positives import LABELS
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.types import Tree, is_number


def build(
    context: TermContext,
    rows: str,
    columns: str,
    positives: Any = 'identity',
    temperature: Any = None,
    bias: float = -10.0,
    queue: int = 0,
    ring: bool = False,
) -> Term:
    """The term `pair_sigmoid` of a config.

    temperature  None for dict(learned=.1), which stays between .01 and 100
    bias         the start of the learned bias
    All other arguments are those of `pair_options` in medjax/objectives/pair_options.py.
    """
    if not is_number(bias) or not math.isfinite(bias):
        raise UserError(f'{context.where}.bias={bias!r}: must be a number')
    temperature = dict(learned=0.1) if temperature is None else temperature
    options = pair_options(context, rows, columns, positives, temperature, queue, ring)
    return PairSigmoid(context, *options, bias=bias)


@dataclasses.dataclass(frozen=True, eq=False)
class PairSigmoid(PairLoss):
    """The term `pair_sigmoid`: the loss of SigLIP."""

    bias: float

    def loss(self, x: TermInputs) -> TermOutput:
        sides = self.sides(x)
        alpha = self.positives.alpha(x.step) if self.positives.kinds else jnp.ones(())
        by_network = self.positives.soft not in (None, LABELS)
        total, _ = self.walk(self.sums, _with_bias(sides, x.params['bias'], by_network, alpha), 'sum')
        n, _, share = self.counts(sides)
        # the mean over rows, and over the combinations of views, of sums [B,V,W]
        mean = {name: (sums.sum(0) / jnp.maximum(n, 1) * share).sum() for name, sums in total.items()}
        untrained = mean['positives'] * np.logaddexp(0, -self.bias)
        untrained += (mean['pairs'] - mean['positives']) * np.logaddexp(0, self.bias)
        # the best constant answer is the frequency of positives; its loss is the entropy of that frequency
        frequency = jnp.clip(mean['positives'] / jnp.maximum(mean['pairs'], 1), 1e-9, 1 - 1e-6)
        start = -mean['positives'] * jnp.log(frequency)
        start -= (mean['pairs'] - mean['positives']) * jnp.log1p(-frequency)
        metrics = {
            **self.metrics(x, sides),
            'positives': mean['positives'],
            'untrained': untrained,
            'bias': x.params['bias'],
            f'loss/{self.rows.masked_views}': mean['loss'],
        }
        return TermOutput(mean['loss'], metrics, start, self.carry(sides))

    def sums(self, rows: Side, columns: Side) -> tuple[Tree, Tree]:
        """Sums over the columns of each row. Columns need no sums."""
        in_loss = self.in_loss(rows, columns)
        s = similarity(rows.x, columns.x)
        z = self.is_positive(rows, columns).astype(jnp.float32) if self.positives.kinds else jnp.zeros_like(s)
        if self.positives.soft is not None:
            q = similarity(rows.facts['soft'], columns.facts['soft'])
            q = q if self.positives.soft == LABELS else jax.nn.sigmoid(q)
            share = rows.facts['alpha'][:, None, None, None]
            z = jnp.where(self.is_soft(rows, columns), (1 - share) * z + share * q, z)
        z = jax.lax.stop_gradient(z)
        losses = z * jax.nn.softplus(-s) + (1 - z) * jax.nn.softplus(s)
        summands = dict(loss=losses, positives=z, pairs=jnp.ones_like(s))
        return {name: jnp.where(in_loss, x, 0.0).sum(2) for name, x in summands.items()}, {}

    def init(self, key: Array) -> tuple[Tree, Tree]:
        params, state = super().init(key)
        return params | {'bias': jnp.asarray(self.bias, jnp.float32)}, state

    @property
    def axes(self) -> tuple[Tree, Tree]:
        params, state = super().axes
        return params | {'bias': ()}, state

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        n, w, _ = shapes[self.columns.name]
        return self.elements_of_pairs(shapes, 1, 2) + 2 * n * w  # one more number beside each column, for the bias


def _with_bias(sides: Sides, bias: Array, soft: bool, alpha: Array) -> Sides:
    """Appends the bias to the embeddings: (x, bias) . (y, 1) = x . y + bias.

    The ring differentiates by embeddings only, so the bias gets its gradient as one of their numbers. `soft`: True if a
    network makes the soft similarity; the bias is then added to that too. `alpha` is stored in the facts of the rows.
    """

    def longer(side: Side, value: Array) -> Side:
        x = jnp.concatenate([side.x, jnp.broadcast_to(value, (*side.x.shape[:-1], 1))], -1)
        if not soft:
            return side._replace(x=x)
        last = jnp.broadcast_to(jax.lax.stop_gradient(value), (*side.x.shape[:-1], 1))
        return side._replace(x=x).with_facts(soft=jnp.concatenate([side.facts['soft'], last], -1))

    rows, columns, queue = sides
    rows = longer(rows, bias).with_facts(alpha=jnp.broadcast_to(alpha, rows.x.shape[:1]))
    one = jnp.ones(())
    return Sides(rows, longer(columns, one), None if queue is None else longer(queue, one))
