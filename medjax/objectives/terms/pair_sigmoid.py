"""T2: every pair of elements is a decision of its own, together or not (SigLIP, 2303.15343).

With unit embeddings x_i of the rows and y_j of the columns, s_ij = x_i . y_j / temperature + bias, positives z_ij:

    loss = 1/N  sum_ij  z_ij softplus(-s_ij) + (1 - z_ij) softplus(s_ij)

over the N rows and the columns that take part (pairs.py). z is 1 for positives and 0 else; soft positives give
z = (1 - alpha) h + alpha q, with q the cosine of the label sets, or sigmoid(s) of the copy that is asked. Temperature
(from 1/10) and bias (from -10) are learned. Starts at softplus(10) + (N - 1) softplus(-10) for orthogonal outputs.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.objectives.pairs import Side, Sides, also, pairs, similarity
from medjax.objectives.positives import LABELS
from medjax.objectives.schedules import is_number
from medjax.objectives.terms import Context, Term
from medjax.types import Tree


def build(
    context: Context,
    rows: str,
    columns: str,
    positives: Any = 'identity',
    temperature: Any = None,
    bias: float = -10.0,
    queue: int = 0,
    ring: bool = False,
) -> Term:
    """`temperature`: None for dict(learned=.1), which is kept from .01 to 100; `bias`: what the learned bias starts
    from; the others as in `pairs`."""
    if not is_number(bias) or not math.isfinite(bias):
        raise UserError(f'{context.where}.bias={bias!r}: must be a number')
    of = pairs(
        context, rows, columns, positives, dict(learned=0.1) if temperature is None else temperature, queue, ring
    )
    kinds, soft = bool(of.positives.kinds), of.positives.soft

    def sums(rows: Side, columns: Side) -> tuple[Tree, Tree]:
        """Over the columns, of every row; the columns need none."""
        here = of.in_loss(rows, columns)
        s = similarity(rows.x, columns.x)
        z = of.positive(rows, columns).astype(jnp.float32) if kinds else jnp.zeros_like(s)
        if soft is not None:
            known = of.soft_pairs(rows, columns)
            q = similarity(rows.about['soft'], columns.about['soft'])
            share = rows.about['alpha'][:, None, None, None]
            z = jnp.where(known, (1 - share) * z + share * (q if soft == LABELS else jax.nn.sigmoid(q)), z)
        z = jax.lax.stop_gradient(z)
        each = z * jax.nn.softplus(-s) + (1 - z) * jax.nn.softplus(s)
        total = dict(loss=each, positives=z, pairs=jnp.ones_like(s))
        return {name: jnp.where(here, x, 0.0).sum(2) for name, x in total.items()}, {}

    def loss(params, aux, features, views, masks, net, key, step):
        sides = of.take_part(of.sides(params, aux, features, views, step))
        total, _ = of.walk(sums, _biased(sides, params['bias'], soft not in (None, LABELS), alpha(step)), 'sum')
        n, _, share = of.counts(sides)
        # [B,V,W] -> a mean over rows, and over the combinations of views
        mean = {name: (x.sum(0) / jnp.maximum(n, 1) * share).sum() for name, x in total.items()}
        start = mean['positives'] * np.logaddexp(0, -bias)
        start += (mean['pairs'] - mean['positives']) * np.logaddexp(0, bias)
        metrics = {
            'start': start,
            **of.metrics(params, sides, step),
            'positives': mean['positives'],
            'bias': params['bias'],
            f'loss/{of.rows.inputs}': mean['loss'],
        }
        return mean['loss'], metrics, of.carry(sides)

    def alpha(step: Array) -> Array:
        return of.positives.alpha(step) if kinds else jnp.ones(())

    def init(key: Array) -> tuple[Tree, Tree]:
        params, aux = of.init(key)
        return params | {'bias': jnp.asarray(bias, jnp.float32)}, aux

    def moves(rows: int, shapes: dict[str, tuple[int, ...]]) -> int:
        n, w, _ = shapes[columns]
        return of.moves(shapes, 1, 2) + 2 * n * w  # the bias beside each column

    axes = of.axes[0] | {'bias': ()}, of.axes[1]
    return Term(of.needs, loss, moves, init, axes, of.update, of.project, of.pair)


def _biased(sides: Sides, bias: Array, soft: bool, alpha: Array) -> Sides:
    """The bias as one more number of the embeddings, (x, bias) . (y, 1): then blocks hold all that gradients pass."""

    def longer(side: Side, value: Array) -> Side:
        x = jnp.concatenate([side.x, jnp.broadcast_to(value, (*side.x.shape[:-1], 1))], -1)
        if not soft:
            return side._replace(x=x)
        last = jnp.broadcast_to(jax.lax.stop_gradient(value), (*side.x.shape[:-1], 1))
        return also(side._replace(x=x), soft=jnp.concatenate([side.about['soft'], last], -1))

    rows, columns, queue = sides
    rows = also(longer(rows, bias), alpha=jnp.broadcast_to(alpha, rows.x.shape[:1]))
    one = jnp.ones(())
    return Sides(rows, longer(columns, one), None if queue is None else longer(queue, one))
