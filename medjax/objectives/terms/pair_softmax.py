"""Each element of one side finds its positives among all elements of the other side.

Source: CLIP (arXiv 2103.00020) and ConVIRT (2010.00747).

With unit embeddings x_i of the rows and y_j of the columns, s_ij = x_i . y_j / temperature, and positives P
(positives.py), normalised over the columns of a row, and P', normalised over the rows of a column:

    loss = row_weight  mean_i ( ln sum_j exp s_ij  -  sum_j P_ij s_ij )
         + (1 - row_weight)  mean_j ( ln sum_i exp s_ij  -  sum_i P'_ij s_ij )

over the elements that take part (pairs.py). With the diagonal as P this is CLIP's loss, with equal labels UniCL's
(arXiv 2204.03610), with soft labels MedCLIP's (2210.10163). The loss starts at ln N for uniform outputs, where N
columns (rows) take part. The plain formula is `medjax.objectives.formulas.clip_loss`; this term equals it with one view
a side, all rows present, positives='identity' and row_weight=.5.

The metric `floor` is the least possible value of the loss, the mean entropy of P: ln k for an element with k positives.
If k rows share one text, their loss cannot fall below ln k. `floor` reports this bound with positives='text'. With
positives='identity' `floor` is 0, although the bound is the same. Where equal texts have equal embeddings, the two
losses are equal. They differ if equal texts can get different embeddings (masked, shuffled or sampled sentences). In
`pair_sigmoid` they always differ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives.pair_options import pair_options
from medjax.objectives.pairs import PairLoss, Side, Sides, by_column, of_columns, of_rows, similarity
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.types import Tree, is_number


def build(
    context: TermContext,
    rows: str,
    columns: str,
    positives: Any = 'identity',
    row_weight: float = 0.5,
    temperature: Any = 0.07,
    queue: int = 0,
    ring: bool = False,
) -> Term:
    """The term `pair_softmax` of a config.

    row_weight  the share of the direction in which rows choose among columns
    All other arguments are those of `pair_options` in medjax/objectives/pair_options.py.
    """
    if not is_number(row_weight) or not 0 <= row_weight <= 1:
        raise UserError(f'{context.where}.row_weight={row_weight!r}: must be a number from 0 to 1')
    options = pair_options(context, rows, columns, positives, temperature, queue, ring)
    return PairSoftmax(context, *options, row_weight=row_weight)


@dataclasses.dataclass(frozen=True, eq=False)
class PairSoftmax(PairLoss):
    """The term `pair_softmax`: the loss of CLIP."""

    row_weight: float

    @property
    def has_kinds(self) -> bool:
        return bool(self.positives.kinds)

    @property
    def has_soft(self) -> bool:
        return self.positives.soft is not None

    def loss(self, x: TermInputs) -> TermOutput:
        sides = self.sides(x)
        sides = _with_maxima(sides, self.walk(self.maxima, sides, 'max'))
        n_rows, n_columns, share = self.counts(sides)
        value, floor = [], []
        for side, sums in zip(sides[:2], self.walk(self.sums, sides, 'sum')):
            takes_part = side.facts['takes_part']
            n = jnp.maximum(takes_part.sum(0), 1)
            losses = self.cross_entropy(side.facts['max'], sums, x.step)
            value.append((jnp.where(takes_part, losses, 0.0).sum(0) / n * share).sum())
            if not self.has_soft:
                entropy = jnp.log(jnp.maximum(sums['positives'], 1))
                floor.append((jnp.where(takes_part, entropy, 0.0).sum(0) / n * share).sum())
        weights = self.row_weight, 1 - self.row_weight
        value = weights[0] * value[0], weights[1] * value[1]

        past = 0.0 if sides.queue is None else sides.queue.facts['takes_part'].sum(0)
        candidates = [jnp.log(jnp.maximum(n, 1)) for n in (n_columns + past, n_rows)]
        start = ((weights[0] * candidates[0] + weights[1] * candidates[1]) * share).sum()
        metrics = {**self.metrics(x, sides), f'loss/{self.rows.masked_views}': value[0]}
        column_loss = (
            f'loss/{self.columns.masked_views}'  # the same name for both directions where both sides are one view
        )
        metrics[column_loss] = metrics.get(column_loss, 0.0) + value[1]
        if not self.has_soft:
            metrics['floor'] = weights[0] * floor[0] + weights[1] * floor[1]
        return TermOutput(sum(value), metrics, start, self.carry(sides))

    def maxima(self, rows: Side, columns: Side) -> tuple[Tree, Tree]:
        """Each element's largest similarity; exponentials are taken relative to it."""
        in_loss = self.in_loss(rows, columns)
        s = jnp.where(in_loss, similarity(rows.x, columns.x), -jnp.inf)
        row_results, column_results = dict(max=s.max(2)), dict(max=by_column(s.max(0)))
        if self.has_soft:
            soft = in_loss & self.is_soft(rows, columns)
            t = jnp.where(soft, similarity(rows.facts['soft'], columns.facts['soft']), -jnp.inf)
            row_results['soft_max'], column_results['soft_max'] = t.max(2), by_column(t.max(0))
        return row_results, column_results

    def sums(self, rows: Side, columns: Side) -> tuple[Tree, Tree]:
        """Sums over the candidates j of each row, and over the candidates i of each column."""
        in_loss = self.in_loss(rows, columns)
        s = similarity(rows.x, columns.x)
        h = (in_loss & self.is_positive(rows, columns)).astype(jnp.float32) if self.has_kinds else None
        if self.has_soft:
            soft = in_loss & self.is_soft(rows, columns)
            t = similarity(rows.facts['soft'], columns.facts['soft'])

        def one_direction(maximum: Array, soft_maximum: Array | None, axis: int) -> Tree:
            sums = dict(exp=jnp.exp(jnp.where(in_loss, s - maximum, -jnp.inf)).sum(axis))
            if self.has_kinds:
                sums |= dict(positives=h.sum(axis), positive_s=(h * s).sum(axis))
            if self.has_soft:
                q = jnp.exp(jnp.where(soft, t - soft_maximum, -jnp.inf))
                sums |= dict(soft=q.sum(axis), soft_s=(q * s).sum(axis))
            return sums

        a, b = rows.facts, columns.facts
        row_results = one_direction(of_rows(a['max']), of_rows(a['soft_max']) if self.has_soft else None, 2)
        column_results = one_direction(of_columns(b['max']), of_columns(b['soft_max']) if self.has_soft else None, 0)
        return row_results, jax.tree.map(by_column, column_results)

    def cross_entropy(self, maximum: Array, sums: Tree, step: Array) -> Array:
        """ln sum exp s - sum P s of every element, [B,V,W]; meaningless where an element does not take part."""
        target_s = sums['positive_s'] / jnp.maximum(sums['positives'], 1) if self.has_kinds else 0.0
        if self.has_soft:
            share = self.positives.alpha(step) if self.has_kinds else 1.0
            share = jnp.where(sums['soft'] > 0, share, 0.0)  # without soft similarities the kinds alone decide
            target_s = (1 - share) * target_s + share * sums['soft_s'] / jnp.maximum(sums['soft'], 1e-30)
        return maximum + jnp.log(jnp.maximum(sums['exp'], 1e-30)) - target_s

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        # of each column: takes_part, max and exp; positives and positive_s; soft_max, soft and soft_s
        return self.elements_of_pairs(shapes, 3 + 2 * self.has_kinds + 3 * self.has_soft, 3)


def _with_maxima(sides: Sides, maxima: tuple[Tree, Tree]) -> Sides:
    """Adds the largest similarities to the facts of the sides; 0 for elements without any."""
    rows, columns = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), maxima)
    queue = sides.queue
    if queue is not None:  # past columns do not choose among the rows
        queue = queue.with_facts(**{name: jnp.zeros(queue.facts['takes_part'].shape) for name in columns})
    return Sides(sides.rows.with_facts(**rows), sides.columns.with_facts(**columns), queue)
