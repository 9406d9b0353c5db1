"""T1: each element of one side finds its positives among all of the other (CLIP, 2103.00020; ConVIRT, 2010.00747).

With unit embeddings x_i of the rows and y_j of the columns, s_ij = x_i . y_j / temperature, and positives P
(positives.py) whose rows, and P' whose columns, add up to one:

    loss = row_weight  mean_i ( ln sum_j exp s_ij  -  sum_j P_ij s_ij )
         + (1 - row_weight)  mean_j ( ln sum_i exp s_ij  -  sum_i P'_ij s_ij )

over the elements that take part (pairs.py). With the diagonal as P it is CLIP's loss; with equal labels UniCL's
(2204.03610); with soft labels MedCLIP's (2210.10163). Starts at ln N for uniform outputs, N the columns (rows) there.

Its least value is not 0 but the entropy of P, the metric `floor`: ln k for an element with k positives. Equal texts: k
rows of one text cannot get below ln k each. With the diagonal that is ln k above its floor of 0; with positives 'text'
it is the floor, and is reached. As long as equal texts have equal embeddings the two are one loss, in value and in
gradient: they differ where texts of one key are seen differently (masked, shuffled, sampled), and in `pair_sigmoid`.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives.pairs import Side, Sides, also, by_column, of_columns, of_rows, pairs, similarity
from medjax.objectives.schedules import is_number
from medjax.objectives.terms import Context, Term
from medjax.types import Tree


def build(
    context: Context,
    rows: str,
    columns: str,
    positives: Any = 'identity',
    row_weight: float = 0.5,
    temperature: Any = 0.07,
    queue: int = 0,
    ring: bool = False,
) -> Term:
    """`row_weight` is the share of the direction in which rows choose among columns; the others as in `pairs`."""
    if not is_number(row_weight) or not 0 <= row_weight <= 1:
        raise UserError(f'{context.where}.row_weight={row_weight!r}: must be a number from 0 to 1')
    of = pairs(context, rows, columns, positives, temperature, queue, ring)
    kinds, soft = bool(of.positives.kinds), of.positives.soft is not None

    def top(rows: Side, columns: Side) -> tuple[Tree, Tree]:
        """Each element's largest similarity, which its exponentials are relative to."""
        here = of.in_loss(rows, columns)
        s = jnp.where(here, similarity(rows.x, columns.x), -jnp.inf)
        mine, theirs = dict(top=s.max(2)), dict(top=by_column(s.max(0)))
        if soft:
            known = here & of.soft_pairs(rows, columns)
            t = jnp.where(known, similarity(rows.about['soft'], columns.about['soft']), -jnp.inf)
            mine, theirs = mine | dict(soft_top=t.max(2)), theirs | dict(soft_top=by_column(t.max(0)))
        return mine, theirs

    def sums(rows: Side, columns: Side) -> tuple[Tree, Tree]:
        """Sums over the candidates j of a row, and over the candidates i of a column."""
        here = of.in_loss(rows, columns)
        s = similarity(rows.x, columns.x)
        h = (here & of.positive(rows, columns)).astype(jnp.float32) if kinds else None
        if soft:
            known = here & of.soft_pairs(rows, columns)
            t = similarity(rows.about['soft'], columns.about['soft'])

        def one(top: Array, soft_top: Array | None, axis: int) -> Tree:
            out = dict(exp=jnp.exp(jnp.where(here, s - top, -jnp.inf)).sum(axis))
            if kinds:
                out |= dict(positives=h.sum(axis), chosen=(h * s).sum(axis))
            if soft:
                q = jnp.exp(jnp.where(known, t - soft_top, -jnp.inf))
                out |= dict(soft=q.sum(axis), soft_chosen=(q * s).sum(axis))
            return out

        a, b = rows.about, columns.about
        mine = one(of_rows(a['top']), of_rows(a['soft_top']) if soft else None, 2)
        theirs = one(of_columns(b['top']), of_columns(b['soft_top']) if soft else None, 0)
        return mine, jax.tree.map(by_column, theirs)

    def losses(top: Array, sums: Tree, step: Array) -> Array:
        """ln sum exp s - sum P s of every element, of [B,V,W]; anything where it does not take part."""
        chosen = sums['chosen'] / jnp.maximum(sums['positives'], 1) if kinds else 0.0
        if soft:
            share = of.positives.alpha(step) if kinds else 1.0
            share = jnp.where(sums['soft'] > 0, share, 0.0)  # where no similarity is known the kinds alone decide
            chosen = (1 - share) * chosen + share * sums['soft_chosen'] / jnp.maximum(sums['soft'], 1e-30)
        return top + jnp.log(jnp.maximum(sums['exp'], 1e-30)) - chosen

    def loss(params, aux, features, views, masks, net, key, step):
        sides = of.take_part(of.sides(params, aux, features, views, step))
        sides = _relative(sides, of.walk(top, sides, 'max'))
        n_rows, n_columns, share = of.counts(sides)
        value, floor = [], []
        for side, total in zip(sides[:2], of.walk(sums, sides, 'sum')):
            part = side.about['part']
            n = jnp.maximum(part.sum(0), 1)
            value.append((jnp.where(part, losses(side.about['top'], total, step), 0.0).sum(0) / n * share).sum())
            if not soft:
                entropy = jnp.log(jnp.maximum(total['positives'], 1))
                floor.append((jnp.where(part, entropy, 0.0).sum(0) / n * share).sum())
        value = row_weight * value[0], (1 - row_weight) * value[1]

        past = 0.0 if sides.queue is None else sides.queue.about['part'].sum(0)
        candidates = [jnp.log(jnp.maximum(n, 1)) for n in (n_columns + past, n_rows)]
        metrics = {
            'start': ((row_weight * candidates[0] + (1 - row_weight) * candidates[1]) * share).sum(),
            **of.metrics(params, sides, step),
            f'loss/{of.rows.inputs}': value[0],
        }
        other = f'loss/{of.columns.inputs}'
        metrics[other] = metrics.get(other, 0.0) + value[1]
        if not soft:
            metrics['floor'] = row_weight * floor[0] + (1 - row_weight) * floor[1]
        return sum(value), metrics, of.carry(sides)

    def moves(rows: int, shapes: dict[str, tuple[int, ...]]) -> int:
        # of a column: part, top, its sums, of which exp, chosen and positives, and as many more for soft positives
        return of.moves(shapes, 3 + 2 * kinds + 3 * soft, 3)

    return Term(of.needs, loss, moves, of.init, of.axes, of.update, of.project, of.pair)


def _relative(sides: Sides, tops: tuple[Tree, Tree]) -> Sides:
    """Adds the largest similarities to what is known of the sides; 0 where there is none."""
    rows, columns = jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0.0), tops)
    queue = sides.queue
    if queue is not None:  # its columns choose nothing
        queue = also(queue, **{name: jnp.zeros(queue.about['part'].shape) for name in columns})
    return Sides(also(sides.rows, **rows), also(sides.columns, **columns), queue)
