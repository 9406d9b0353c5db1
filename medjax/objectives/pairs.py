"""The base of contrastive terms: the two sides of a batch, a queue of past columns, and walks over all pairs.

A simple case first: `medjax.objectives.formulas.clip_loss` and `siglip_loss` are the losses for one view a side, every
row present and the diagonal as positives. The terms equal them there, and add several views, absent rows, other kinds
of positives, a queue and a ring.

The sides are features [B,V,d] and [B,W,d]: V views (crops, texts) of each row on one side, W on the other. Each of the
V W combinations of a view with a view is a loss of its own over [B,B] pairs, and a term is their mean (CXR-CLIP, arXiv
2310.13292). Where both sides see the same view, a crop is not paired with itself. A block of pairs is an array
[i,V,j,W].

An element (a view of a row) takes part if it is present and has a positive on the other side. So a row without a text,
or without an image, is no row, no column and in no count: the loss is that of the batch without the row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.objectives.features import Feature
from medjax.objectives.numerics import unit
from medjax.objectives.positives import LABELS, Positives, keys, label_sets, positives
from medjax.objectives.schedules import Schedule, schedule
from medjax.objectives.terms import Alignment, Term, TermContext, TermInputs
from medjax.parallel.ring import ring_maxima, ring_sums
from medjax.parallel.sharding import everywhere
from medjax.plugins import call
from medjax.types import Metrics, Tree, is_number, is_whole

MOST_LABELS = 256  # soft labels exchange the label vectors; `moves` does not know their length


class Side(NamedTuple):
    """The elements of one side: rows i or columns j with their views."""

    x: Array  # float32 [B,V,d], L2-normalised; those of the rows are multiplied by the scale
    facts: dict[str, Array]
    """Arrays without gradient: present bool [B,V]; keys uint32 [B,V,K,2] and known bool [B,V,K] (see positives.py);
    for soft positives soft float32 [B,V,D], whose products are the soft similarity, and soft_known bool [B,V]; later
    takes_part bool [B,V,W], and what a term adds."""

    def having(self, **facts: Array) -> Side:
        """The same side with more facts."""
        return self._replace(facts={**self.facts, **facts})


class Sides(NamedTuple):
    rows: Side
    columns: Side
    queue: Side | None  # columns of past batches, which only rows are compared with


Block = Callable[[Side, Side], tuple[Tree, Tree]]
"""(rows, columns) of one block -> trees of arrays [i,…] for its rows and [j,…] for its columns."""


class Scale(NamedTuple):
    """1 / temperature: by a schedule, or a learned parameter `log_scale` that stays between low and high."""

    schedule: Schedule | None  # of the temperature
    start: float | None
    low: float
    high: float

    def value(self, params: Tree, step: Array) -> Array:
        return 1.0 / self.schedule(step) if self.start is None else jnp.exp(params['log_scale'])


@dataclasses.dataclass(frozen=True, eq=False)
class PairLoss(Term):
    """A contrastive term: rows find their positives among columns. `pair_options` makes the fields."""

    rows: Feature
    columns: Feature
    positives: Positives
    scale: Scale
    queue: int  # columns of past batches; 0 for none
    ring: bool

    @property
    def soft_features(self) -> tuple[str, str] | None:
        """The features of rows and columns, by the network that makes the soft positives; None without one."""
        network = self.positives.soft
        if network in (None, LABELS):
            return None
        rows, columns = ('/'.join([network, *f.name.split('/')[1:]]) for f in (self.rows, self.columns))
        return rows, columns

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.rows.name, self.columns.name, *(self.soft_features or ()))))

    @property
    def alignment(self) -> Alignment:
        return Alignment(self.rows, self.columns, lambda params, step: 1 / self.scale.value(params, step))

    # The sides of a batch.

    def sides(self, x: TermInputs) -> Sides:
        """The sides of this batch, with the elements that take part."""
        scale = self.scale.value(x.params, x.step)
        rows, columns = self._side(x, 0), self._side(x, 1)
        if 'identity' in self.positives.kinds and len(rows.x) != len(columns.x):
            raise UserError(
                f"{self.context.where}.positives: 'identity' pairs the rows of one part, not {len(rows.x)} rows of "
                f'{self.rows.view!r} with {len(columns.x)} of {self.columns.view!r}'
            )
        if not self.ring:  # every device compares its rows with all columns: it holds one copy of the columns
            columns = jax.tree.map(everywhere, columns)
        rows = rows._replace(x=rows.x * scale)
        if self.soft_features:
            rows = rows.having(soft=rows.facts['soft'] * jax.lax.stop_gradient(scale))
        queue = _past(x.state['queue'], columns.x.shape[1]) if self.queue else None
        return self._taking_part(Sides(rows, columns, queue))

    def _side(self, x: TermInputs, i: int) -> Side:
        feature = (self.rows, self.columns)[i]
        view, values = x.views[feature.view], x.features[feature.name]
        where = f'{self.context.where}.positives'
        if values.ndim != 3:
            raise UserError(
                f'{self.context.where}: {feature.name!r} is {list(values.shape)}; '
                'a pair needs one vector a view, [B,V,d]'
            )
        key, known = keys(view, self.positives.kinds, feature.view, where)
        facts = dict(present=view.present, keys=key, known=known & view.present[..., None])
        if self.positives.soft == LABELS:
            facts['soft'], given = label_sets(view, feature.view, where)
            facts['soft_known'] = given & view.present
        elif self.soft_features:
            facts['soft'] = jax.lax.stop_gradient(unit(x.features[self.soft_features[i]]))
            facts['soft_known'] = view.present
        return Side(unit(values), facts)

    def _taking_part(self, sides: Sides) -> Sides:
        """Adds to both sides the fact `takes_part`, bool [i,V,W] and [j,V,W]: in which combinations of views."""

        def block(rows: Side, columns: Side) -> tuple[Tree, Tree]:
            h = self.positive(rows, columns) if self.positives.kinds else self.soft_pairs(rows, columns)
            return h.any(2), by_column(h.any(0))

        of_rows_, of_columns_ = self.walk(block, sides, 'max')
        queue = sides.queue
        if queue is not None:
            v, w = of_rows_.shape[1:]
            queue = queue.having(takes_part=queue.facts['present'][:, None] & self.allowed(v, w)[:, :, 0])
        return Sides(sides.rows.having(takes_part=of_rows_), sides.columns.having(takes_part=of_columns_), queue)

    # Pairs of a block.

    def allowed(self, v: int, w: int) -> np.ndarray:
        """Which views are paired, bool [1,V,1,W]: all, but a crop not with itself."""
        same_view = self.rows.view == self.columns.view
        if same_view and v == 1 and self.rows.name == self.columns.name:
            raise UserError(
                f'{self.context.where}: {self.rows.name!r} has one crop and would be its own pair; count=2 or more'
            )
        return (~np.eye(v, w, dtype=bool) if same_view and v > 1 else np.ones((v, w), bool))[None, :, None]

    def positive(self, rows: Side, columns: Side) -> Array:
        """h: whether any kind of positives joins a row and a column, bool [i,V,j,W]."""
        (a, known_a), (b, known_b) = ((side.facts['keys'], side.facts['known']) for side in (rows, columns))
        out = jnp.zeros((), bool)
        for k in range(len(self.positives.kinds)):  # one kind at a time, so that no array is larger than a block
            same = (across(a[..., k, 0], b[..., k, 0], jnp.equal)) & (across(a[..., k, 1], b[..., k, 1], jnp.equal))
            out |= same & across(known_a[..., k], known_b[..., k], jnp.logical_and)
        return out & self.allowed(rows.x.shape[1], columns.x.shape[1])

    def soft_pairs(self, rows: Side, columns: Side) -> Array:
        """Where a soft similarity is known, bool [i,V,j,W]."""
        both = across(rows.facts['soft_known'], columns.facts['soft_known'], jnp.logical_and)
        return both & self.allowed(rows.x.shape[1], columns.x.shape[1])

    def in_loss(self, rows: Side, columns: Side) -> Array:
        """The pairs of elements that both take part, bool [i,V,j,W]."""
        both = of_rows(rows.facts['takes_part']) & of_columns(columns.facts['takes_part'])
        return both & self.allowed(rows.x.shape[1], columns.x.shape[1])

    def walk(self, block: Block, sides: Sides, what: str) -> tuple[Tree, Tree]:
        """Sums ('sum') or maxima ('max', without gradient) of `block` over all pairs, for rows and for columns."""

        def plain(x: Array, y: Array, row_facts: dict, column_facts: dict) -> tuple[Tree, Tree]:
            return block(Side(x, row_facts), Side(y, column_facts))

        around, combine = (ring_sums, jnp.add) if what == 'sum' else (ring_maxima, jnp.maximum)
        rows, columns, queue = sides if what == 'sum' else jax.lax.stop_gradient(sides)
        arguments = (rows.x, columns.x, rows.facts, columns.facts)
        for_rows, for_columns = around(plain, *arguments) if self.ring else plain(*arguments)
        if queue is not None:
            for_rows = jax.tree.map(combine, for_rows, block(rows, queue)[0])
        return for_rows, for_columns

    def counts(self, sides: Sides) -> tuple[Array, Array, Array]:
        """How many rows and columns take part in each combination of views, and each combination's share: [V,W]."""
        rows, columns = (side.facts['takes_part'].sum(0).astype(jnp.float32) for side in sides[:2])
        share = (rows > 0) / jnp.maximum((rows > 0).sum(), 1)
        return rows, columns, share

    def metrics(self, x: TermInputs, sides: Sides) -> Metrics:
        rows = sides.rows.facts['takes_part'].any((1, 2))
        out = {
            'rows': rows.sum(),
            'left_out': (~rows).sum(),  # rows without a partner on the other side
            'temperature': 1 / self.scale.value(x.params, x.step),
        }
        return out | ({'queue': sides.queue.facts['present'].any(1).sum()} if self.queue else {})

    # The learned scale and the queue.

    def init(self, key: Array) -> tuple[Tree, Tree]:
        size, kinds = self.queue, len(self.positives.kinds)
        params = {} if self.scale.start is None else {'log_scale': jnp.asarray(math.log(self.scale.start), jnp.float32)}
        if not size:
            return params, {}
        return params, {
            'queue': dict(
                x=jnp.zeros((size, self.context.width(self.columns.name)), jnp.float32),
                keys=jnp.zeros((size, kinds, 2), jnp.uint32),
                known=jnp.zeros((size, kinds), bool),
                present=jnp.zeros(size, bool),
            )
        }

    @property
    def axes(self) -> tuple[Tree, Tree]:
        queue = dict(x=(None, None), keys=(None, None, None), known=(None, None), present=(None,))
        return {} if self.scale.start is None else {'log_scale': ()}, {'queue': queue} if self.queue else {}

    def project(self, params: Tree) -> Tree:
        """Keeps the learned scale between its bounds."""
        if self.scale.start is None:
            return params
        low, high = math.log(self.scale.low), math.log(self.scale.high)
        return {**params, 'log_scale': jnp.clip(params['log_scale'], low, high)}

    def carry(self, sides: Sides) -> Tree:
        """The columns that took part, without their row numbers: `update` puts them into the queue."""
        if not self.queue:
            return None
        columns, kinds = sides.columns, np.array([kind != 'identity' for kind in self.positives.kinds])
        new = dict(
            x=columns.x,
            keys=columns.facts['keys'],
            known=columns.facts['known'] & kinds,
            present=columns.facts['takes_part'].any(1),
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), new)

    def update(self, state: Tree, carry: Tree, step: Array) -> Tree:
        """The newest `queue` columns that were present."""
        if not self.queue:
            return state
        both = jax.tree.map(lambda new, old: jnp.concatenate([new, old]), carry, state['queue'])
        first = jnp.argsort(~both['present'], stable=True)[: self.queue]
        return {'queue': jax.tree.map(lambda x: x[first], both)}

    def elements_of_pairs(self, shapes: Mapping[str, tuple[int, ...]], column_sums: int, walks: int) -> int:
        """Number of array elements sent between devices per step.

        column_sums: values accumulated per column. walks: passes over all pairs, the backward pass included. The
        columns go out, in a ring once for every walk, and their gradient comes back.
        """
        (_, v, _), (n, w, d) = shapes[self.rows.name], shapes[self.columns.name]
        facts = 2 + 3 * len(self.positives.kinds)
        if self.positives.soft == LABELS:
            facts += MOST_LABELS
        elif self.soft_features:
            facts += shapes[self.soft_features[1]][-1]
        gradient = d if self.columns.network == 'student' else 0
        scalars = 64 + 16 * v * w
        if not self.ring:
            return n * w * (d + facts + gradient + v * column_sums) + scalars
        return n * w * (facts + v + walks * (d + facts + v * (column_sums + 2)) + gradient) + scalars


class PairOptions(NamedTuple):
    """The fields of `PairLoss`, checked."""

    rows: Feature
    columns: Feature
    positives: Positives
    scale: Scale
    queue: int
    ring: bool


def pair_options(
    context: TermContext, rows: str, columns: str, kinds: Any, temperature: Any, queue: int, ring: bool
) -> PairOptions:
    """The arguments that all contrastive terms take.

    rows, columns   features [B,V,d] and [B,W,d], of any towers: image and text, image and image, text and text
    kinds           the config's `positives`, see positives.py
    temperature     a number or any schedule; or dict(learned=.07, low=.01, high=100.), low <= temperature <= high
    queue           the number of columns of past batches that rows are compared with as well (MoCo, arXiv 1911.05722)
    ring            visit the pairs in blocks around the devices: less memory, more and smaller messages
    """
    where = context.where
    r, c = context.feature(rows, 'rows'), context.feature(columns, 'columns')
    chosen = positives(kinds, context.total_steps, f'{where}.positives')
    for name, f in (('rows', r), ('columns', c)):
        if f.at:
            raise UserError(f'{where}.{name}: {f.name!r} has several tokens a view; a pair needs one vector')
    parts = [context.parts.get(f.view) for f in (r, c)]
    if 'identity' in chosen.kinds and parts[0] != parts[1]:
        raise UserError(
            f"{where}.positives: 'identity' pairs rows of one part, and {r.view!r} shows {parts[0]!r}, {c.view!r} "
            f'{parts[1]!r}; take study, text, label or soft positives'
        )
    if not is_whole(queue) or queue < 0:
        raise UserError(f'{where}.queue: a number of columns, 0 for none, got {queue!r}')
    if queue and not chosen.kinds:
        raise UserError(f"{where}.queue: needs kinds of positives besides the soft ones, for example 'identity'")
    if queue and (chosen.soft == LABELS or (chosen.soft and chosen.soft != c.network)):
        raise UserError(
            f'{where}.queue: soft positives with a queue come from the network that gives its columns, {c.network!r}, '
            f'not from {chosen.soft!r}'
        )
    if queue and ring:
        raise UserError(f'{where}.queue: every device holds the whole queue, so a ring saves no memory; leave out one')
    options = PairOptions(
        r, c, chosen, _scale(temperature, context.total_steps, f'{where}.temperature'), queue, bool(ring)
    )
    for name in PairLoss(context, *options).soft_features or ():
        context.feature(name, 'positives')
    return options


def _scale(temperature: Any, total_steps: int, where: str) -> Scale:
    def learned(learned: float, low: float = 0.01, high: float = 100.0) -> Scale:
        if not all(map(is_number, (learned, low, high))) or not 0 < low <= learned <= high:
            raise UserError(f'{where}: 0 < low <= learned <= high, got {low!r}, {learned!r}, {high!r}')
        return Scale(None, 1 / learned, 1 / high, 1 / low)

    if isinstance(temperature, Mapping) and 'rule' not in temperature:
        return call(learned, temperature, where)
    if is_number(temperature) and temperature <= 0:
        raise UserError(f'{where}={temperature!r}: must be above 0')
    return Scale(schedule(temperature, total_steps, where), None, 0.0, 0.0)


def _past(queue: Tree, w: int) -> Side:
    """The queue as columns, the same for every view w."""
    facts = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (len(x), w, *x.shape[1:])), queue)
    x = facts.pop('x')
    # soft positives with a queue come from the network that gives its columns: one vector serves both similarities
    return Side(x, facts | dict(soft=x, soft_known=facts['present']))


# Shapes of blocks.


def similarity(a: Array, b: Array) -> Array:
    """[i,V,d], [j,W,d] -> [i,V,j,W], in full float32."""
    return jnp.einsum('ivd,jwd->ivjw', a, b, precision='highest')


def across(a: Array, b: Array, f: Callable[[Array, Array], Array]) -> Array:
    """f of every pair: [i,V], [j,W] -> [i,V,j,W]."""
    return f(a[:, :, None, None], b[None, None])


def of_rows(x: Array) -> Array:
    """[i,V,W] -> [i,V,1,W], which broadcasts against a block."""
    return x[:, :, None]


def of_columns(x: Array) -> Array:
    """[j,V,W] -> [1,V,j,W], which broadcasts against a block."""
    return x.swapaxes(0, 1)[None]


def by_column(x: Array) -> Array:
    """The result of a block for its columns: [V,j,W] -> [j,V,W]."""
    return x.swapaxes(0, 1)
