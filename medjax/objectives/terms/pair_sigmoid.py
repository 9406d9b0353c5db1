"""Every pair of elements is a decision of its own: together or not (SigLIP, arXiv 2303.15343).

With unit embeddings x_i of the rows and y_j of the columns, s_ij = x_i . y_j / temperature + bias, positives z_ij:

    loss = 1/N  sum_ij  z_ij softplus(-s_ij) + (1 - z_ij) softplus(s_ij)

over the N rows and the columns that take part (pairs.py). z is 1 for positives and 0 otherwise. Soft positives give
z = (1 - alpha) h + alpha q, where q is the cosine of the label sets, or sigmoid(s) of the network that is named.
Temperature (from 1/10) and bias (from -10) are learned. The loss starts at softplus(10) + (N - 1) softplus(-10) for
orthogonal outputs. The plain formula is `medjax.objectives.formulas.siglip_loss`.
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
from medjax.objectives.pairs import PairLoss, Side, Sides, pair_options, similarity
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
    others       see `pair_options` in medjax/objectives/pairs.py
    """
    if not is_number(bias) or not math.isfinite(bias):
        raise UserError(f'{context.where}.bias={bias!r}: must be a number')
    temperature = dict(learned=0.1) if temperature is None else temperature
    options = pair_options(context, rows, columns, positives, temperature, queue, ring)
    return PairSigmoid(context, *options, bias=bias)


@dataclasses.dataclass(frozen=True, eq=False)
class PairSigmoid(PairLoss):
    bias: float

    def loss(self, x: TermInputs) -> TermOutput:
        sides = self.sides(x)
        alpha = self.positives.alpha(x.step) if self.positives.kinds else jnp.ones(())
        by_network = self.positives.soft not in (None, LABELS)
        total, _ = self.walk(self.sums, _with_bias(sides, x.params['bias'], by_network, alpha), 'sum')
        n, _, share = self.counts(sides)
        # [B,V,W] -> a mean over rows, and over the combinations of views
        mean = {name: (each.sum(0) / jnp.maximum(n, 1) * share).sum() for name, each in total.items()}
        start = mean['positives'] * np.logaddexp(0, -self.bias)
        start += (mean['pairs'] - mean['positives']) * np.logaddexp(0, self.bias)
        metrics = {
            **self.metrics(x, sides),
            'positives': mean['positives'],
            'bias': x.params['bias'],
            f'loss/{self.rows.inputs}': mean['loss'],
        }
        return TermOutput(mean['loss'], metrics, start, self.carry(sides))

    def sums(self, rows: Side, columns: Side) -> tuple[Tree, Tree]:
        """Sums over the columns for every row; columns need no sums."""
        here = self.in_loss(rows, columns)
        s = similarity(rows.x, columns.x)
        z = self.positive(rows, columns).astype(jnp.float32) if self.positives.kinds else jnp.zeros_like(s)
        if self.positives.soft is not None:
            known = self.soft_pairs(rows, columns)
            q = similarity(rows.facts['soft'], columns.facts['soft'])
            q = q if self.positives.soft == LABELS else jax.nn.sigmoid(q)
            share = rows.facts['alpha'][:, None, None, None]
            z = jnp.where(known, (1 - share) * z + share * q, z)
        z = jax.lax.stop_gradient(z)
        each = z * jax.nn.softplus(-s) + (1 - z) * jax.nn.softplus(s)
        total = dict(loss=each, positives=z, pairs=jnp.ones_like(s))
        return {name: jnp.where(here, x, 0.0).sum(2) for name, x in total.items()}, {}

    def init(self, key: Array) -> tuple[Tree, Tree]:
        params, state = super().init(key)
        return params | {'bias': jnp.asarray(self.bias, jnp.float32)}, state

    @property
    def axes(self) -> tuple[Tree, Tree]:
        params, state = super().axes
        return params | {'bias': ()}, state

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        n, w, _ = shapes[self.columns.name]
        return self.elements_of_pairs(shapes, 1, 2) + 2 * n * w  # the bias beside each column


def _with_bias(sides: Sides, bias: Array, soft: bool, alpha: Array) -> Sides:
    """The bias as one more number of the embeddings, (x, bias) . (y, 1), so that blocks hold all that has a gradient.

    `soft`: the soft similarity is a network's and has the bias too. `alpha` becomes a fact of the rows.
    """

    def longer(side: Side, value: Array) -> Side:
        x = jnp.concatenate([side.x, jnp.broadcast_to(value, (*side.x.shape[:-1], 1))], -1)
        if not soft:
            return side._replace(x=x)
        last = jnp.broadcast_to(jax.lax.stop_gradient(value), (*side.x.shape[:-1], 1))
        return side._replace(x=x).having(soft=jnp.concatenate([side.facts['soft'], last], -1))

    rows, columns, queue = sides
    rows = longer(rows, bias).having(alpha=jnp.broadcast_to(alpha, rows.x.shape[:1]))
    one = jnp.ones(())
    return Sides(rows, longer(columns, one), None if queue is None else longer(queue, one))
