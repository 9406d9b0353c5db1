"""What the terms over pairs share: the two sides of a batch, a queue of past columns, a scale, walks over all pairs.

The sides are features [B,V,d] and [B,W,d]: V views (crops, texts) of each row of one, W of the other. Each of the V W
combinations of a view with a view is a loss of its own over [B,B] pairs, and a term is their mean (CXR-CLIP,
2310.13292); where both sides see one view, a crop is not paired with itself. A block of pairs is an array [i,V,j,W].

An element takes part if it is present and has a positive on the other side; so a row without a text, or without an
image, is no row, no column and in no count, and the loss is that of the batch without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.objectives.features import Feature, parse
from medjax.objectives.positives import LABELS, Positives, keys, label_sets, positives
from medjax.objectives.schedules import Schedule, is_number, schedule
from medjax.objectives.terms import Context
from medjax.parallel.ring import ring_maxima, ring_sums
from medjax.parallel.sharding import everywhere
from medjax.plugins import call
from medjax.types import Metrics, Tree, Views

MOST_LABELS = 256  # soft labels move the label vectors; how long they are is not known where `moves` is asked


class Side(NamedTuple):
    """The elements of one side: rows i or columns j with their views."""

    x: Array  # float32 [B,V,d], L2-normalised; of the rows times the scale
    about: dict[str, Array]
    """Without gradient: present bool [B,V]; keys uint32 [B,V,K,2] and known bool [B,V,K] (see positives.py);
    soft float32 [B,V,D] and soft_known bool [B,V], where a soft similarity is their product; and what the terms add."""


class Sides(NamedTuple):
    rows: Side
    columns: Side
    queue: Side | None  # columns of past batches, for the rows alone


class Pairs(NamedTuple):
    """The arguments that all terms over pairs take; see `pairs`."""

    where: str
    rows: Feature
    columns: Feature
    positives: Positives
    scale: Scale
    queue: int
    ring: bool
    width: Callable[[str], int]

    @property
    def copies(self) -> tuple[str, str] | None:
        """The features of the copy that makes soft positives."""
        copy = self.positives.soft
        if copy in (None, LABELS):
            return None
        rows, columns = ('/'.join([copy, *f.name.split('/')[1:]]) for f in (self.rows, self.columns))
        return rows, columns

    @property
    def needs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.rows.name, self.columns.name, *(self.copies or ()))))

    def allowed(self, v: int, w: int) -> np.ndarray:
        """Which views are paired, bool [1,V,1,W]."""
        return (~np.eye(v, w, dtype=bool) if self.same_view(v) else np.ones((v, w), bool))[None, :, None]

    def same_view(self, v: int) -> bool:
        """Whether a crop would meet itself, and there is another to pair it with."""
        if self.rows.view == self.columns.view and v == 1 and self.rows.name == self.columns.name:
            raise UserError(f'{self.where}: {self.rows.name!r} has one crop and would be its own pair; count=2 or more')
        return self.rows.view == self.columns.view and v > 1

    def sides(self, params: Tree, aux: Tree, features: Mapping[str, Array], views: Views, step: Array) -> Sides:
        """The sides of this batch, the rows times the scale."""
        scale = self.scale.value(params, step)
        found = []
        for i, f in enumerate((self.rows, self.columns)):
            view, x = views[f.view], features[f.name]
            if x.ndim != 3:
                raise UserError(f'{self.where}: {f.name!r} is {list(x.shape)}; a pair needs one vector a view, [B,V,d]')
            key, known = keys(view, self.positives.kinds, f.view, f'{self.where}.positives')
            about = dict(present=view.present, keys=key, known=known & view.present[..., None])
            if self.positives.soft == LABELS:
                about['soft'], given = label_sets(view, f.view, f'{self.where}.positives')
                about['soft_known'] = given & view.present
            elif self.copies:
                about['soft'] = jax.lax.stop_gradient(unit(features[self.copies[i]]))
                about['soft_known'] = view.present
            found.append(Side(unit(x), about))
        rows, columns = found
        if 'identity' in self.positives.kinds and len(rows.x) != len(columns.x):
            raise UserError(f"{self.where}.positives: 'identity' pairs the rows of one part, not {len(rows.x)} rows of "
                            f'{self.rows.view!r} with {len(columns.x)} of {self.columns.view!r}')  # fmt: skip
        if not self.ring:  # every device looks at all columns: one copy of them each
            columns = jax.tree.map(everywhere, columns)
        rows = rows._replace(x=rows.x * scale)
        if self.copies:
            rows.about['soft'] *= jax.lax.stop_gradient(scale)
        return Sides(rows, columns, _past(aux['queue'], columns.x.shape[1]) if self.queue else None)

    def walk(self, block: Callable[[Side, Side], tuple[Tree, Tree]], sides: Sides, what: str) -> tuple[Tree, Tree]:
        """Sums ('sum') or maxima ('max', without gradient) over all pairs, for the rows and for the columns.

        block(rows, columns) gives them for one block: trees of arrays [i,…] and [j,…].
        """

        def plain(x: Array, y: Array, of_rows: dict, of_columns: dict) -> tuple[Tree, Tree]:
            return block(Side(x, of_rows), Side(y, of_columns))

        around, combine = (ring_sums, jnp.add) if what == 'sum' else (ring_maxima, jnp.maximum)
        rows, columns, queue = sides if what == 'sum' else jax.lax.stop_gradient(sides)
        every = (rows.x, columns.x, rows.about, columns.about)
        own, others = around(plain, *every) if self.ring else plain(*every)
        if queue is not None:
            own = jax.tree.map(combine, own, block(rows, queue)[0])
        return own, others

    def take_part(self, sides: Sides) -> Sides:
        """Adds `part` to what is known of every side: bool [i,V,W] and [j,V,W], in which combinations it takes part."""

        def block(rows: Side, columns: Side) -> tuple[Tree, Tree]:
            h = self.positive(rows, columns) if self.positives.kinds else self.soft_pairs(rows, columns)
            return h.any(2), by_column(h.any(0))

        part = self.walk(block, sides, 'max')
        queue = sides.queue
        if queue is not None:
            v, w = part[0].shape[1:]
            queue = also(queue, part=queue.about['present'][:, None] & self.allowed(v, w)[:, :, 0])
        return Sides(also(sides.rows, part=part[0]), also(sides.columns, part=part[1]), queue)

    def positive(self, rows: Side, columns: Side) -> Array:
        """h: whether any kind of positives joins them, bool [i,V,j,W]."""
        (a, known_a), (b, known_b) = ((side.about['keys'], side.about['known']) for side in (rows, columns))
        out = jnp.zeros((), bool)
        for k in range(len(self.positives.kinds)):  # one kind at a time, so that nothing larger than a block is made
            same = (across(a[..., k, 0], b[..., k, 0], jnp.equal)) & (across(a[..., k, 1], b[..., k, 1], jnp.equal))
            out |= same & across(known_a[..., k], known_b[..., k], jnp.logical_and)
        return out & self.allowed(rows.x.shape[1], columns.x.shape[1])

    def soft_pairs(self, rows: Side, columns: Side) -> Array:
        """Where a soft similarity is known, bool [i,V,j,W]."""
        both = across(rows.about['soft_known'], columns.about['soft_known'], jnp.logical_and)
        return both & self.allowed(rows.x.shape[1], columns.x.shape[1])

    def in_loss(self, rows: Side, columns: Side) -> Array:
        """The pairs of elements that take part, bool [i,V,j,W]."""
        both = of_rows(rows.about['part']) & of_columns(columns.about['part'])
        return both & self.allowed(rows.x.shape[1], columns.x.shape[1])

    def counts(self, sides: Sides) -> tuple[Array, Array, Array]:
        """How many rows and columns take part in each combination and the share of each combination: [V,W]."""
        rows, columns = (side.about['part'].sum(0).astype(jnp.float32) for side in sides[:2])
        share = (rows > 0) / jnp.maximum((rows > 0).sum(), 1)
        return rows, columns, share

    def metrics(self, params: Tree, sides: Sides, step: Array) -> Metrics:
        rows = sides.rows.about['part'].any((1, 2))
        out = {
            'rows': rows.sum(),
            'left_out': (~rows).sum(),  # rows without a partner on the other side
            'temperature': 1 / self.scale.value(params, step),
        }
        return out | ({'queue': sides.queue.about['present'].any(1).sum()} if self.queue else {})

    def init(self, key: Array) -> tuple[Tree, Tree]:
        size, kinds = self.queue, len(self.positives.kinds)
        params = {} if self.scale.start is None else {'log_scale': jnp.asarray(math.log(self.scale.start), jnp.float32)}
        if not size:
            return params, {}
        return params, {
            'queue': dict(
                x=jnp.zeros((size, self.width(self.columns.name)), jnp.float32),
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
        """The learned scale between its bounds."""
        if self.scale.start is None:
            return params
        low, high = math.log(self.scale.low), math.log(self.scale.high)
        return {**params, 'log_scale': jnp.clip(params['log_scale'], low, high)}

    @property
    def pair(self) -> tuple[str, str, Callable[[Tree, Array], Array]]:
        """The two features, and the temperature of their cosines as a function of (params, step)."""
        return self.rows.name, self.columns.name, lambda params, step: 1 / self.scale.value(params, step)

    def carry(self, sides: Sides) -> Tree:
        """What `update` puts into the queue: the columns that took part, without their row numbers."""
        if not self.queue:
            return None
        columns, kinds = sides.columns, np.array([kind != 'identity' for kind in self.positives.kinds])
        new = dict(
            x=columns.x,
            keys=columns.about['keys'],
            known=columns.about['known'] & kinds,
            present=columns.about['part'].any(1),
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), new)

    def update(self, aux: Tree, carry: Tree, step: Array) -> Tree:
        """The newest `queue` columns that were there."""
        if not self.queue:
            return aux
        both = jax.tree.map(lambda new, old: jnp.concatenate([new, old]), carry, aux['queue'])
        first = jnp.argsort(~both['present'], stable=True)[: self.queue]
        return {'queue': jax.tree.map(lambda x: x[first], both)}

    def moves(self, shapes: dict[str, tuple[int, ...]], column_sums: int, walks: int) -> int:
        """Elements that are exchanged by a term with so many results of a column, the gradient among its walks.

        The columns go out, in a ring once for every walk, and their gradient comes back; results of columns are added
        up over devices, and some sums over rows. (Who takes part is found by what is known of the columns alone.)
        """
        (_, v, _), (n, w, d) = shapes[self.rows.name], shapes[self.columns.name]
        about = 2 + 3 * len(self.positives.kinds)
        if self.positives.soft == LABELS:
            about += MOST_LABELS
        elif self.copies:
            about += shapes[self.copies[1]][-1]
        back = d if self.columns.network == 'student' else 0
        scalars = 64 + 16 * v * w
        if not self.ring:
            return n * w * (d + about + back + v * column_sums) + scalars
        return n * w * (about + v + walks * (d + about + v * (column_sums + 2)) + back) + scalars


class Scale(NamedTuple):
    """kappa = 1 / temperature: of a schedule, or a parameter `log_scale` kept between low and high."""

    at: Schedule | None
    start: float | None
    low: float
    high: float

    def value(self, params: Tree, step: Array) -> Array:
        return 1.0 / self.at(step) if self.start is None else jnp.exp(params['log_scale'])


def pairs(
    context: Context, rows: str, columns: str, positives_of: Any, temperature: Any, queue: int, ring: bool
) -> Pairs:
    """The arguments of a term over pairs, checked.

    rows, columns   features [B,V,d] and [B,W,d], of any towers: image and text, image and image, text and text
    positives_of    see positives.py
    temperature     a number or any schedule; or dict(learned=.07, low=.01, high=100.), low <= temperature <= high
    queue           so many columns of past batches are more columns for the rows (MoCo, 1911.05722)
    ring            visit the pairs in blocks around the devices: less memory, more and smaller messages
    """
    where = context.where
    r, c = parse(rows, f'{where}.rows'), parse(columns, f'{where}.columns')
    chosen = positives(positives_of, context.total_steps, f'{where}.positives')
    for name, f in (('rows', r), ('columns', c)):
        if f.at:
            raise UserError(f'{where}.{name}: {f.name!r} has several tokens a view; a pair needs one vector')
    parts = [context.parts.get(f.view) for f in (r, c)]
    if 'identity' in chosen.kinds and parts[0] != parts[1]:
        raise UserError(
            f"{where}.positives: 'identity' pairs rows of one part, and {r.view!r} shows {parts[0]!r}, {c.view!r} "
            f'{parts[1]!r}; take study, text, label or soft positives'
        )
    if not isinstance(queue, int) or isinstance(queue, bool) or queue < 0:
        raise UserError(f'{where}.queue: a number of columns, 0 for none, got {queue!r}')
    if queue and not chosen.kinds:
        raise UserError(f"{where}.queue: needs kinds of positives besides the soft ones, for example 'identity'")
    if queue and (chosen.soft == LABELS or (chosen.soft and chosen.soft != c.network)):
        raise UserError(
            f'{where}.queue: soft positives with a queue come from the copy that gives its columns, {c.network!r}, '
            f'not from {chosen.soft!r}'
        )
    if queue and ring:
        raise UserError(
            f'{where}.ring: every device holds the whole queue, so a ring would spare nothing; leave out one'
        )
    scale = _scale(temperature, context.total_steps, f'{where}.temperature')
    return Pairs(where, r, c, chosen, scale, queue, bool(ring), context.width)


def _scale(spec: Any, total_steps: int, where: str) -> Scale:
    def learned(learned: float, low: float = 0.01, high: float = 100.0) -> Scale:
        if not all(map(is_number, (learned, low, high))) or not 0 < low <= learned <= high:
            raise UserError(f'{where}: 0 < low <= learned <= high, got {low!r}, {learned!r}, {high!r}')
        return Scale(None, 1 / learned, 1 / high, 1 / low)

    if isinstance(spec, Mapping) and 'rule' not in spec:
        return call(learned, spec, where)
    if is_number(spec) and spec <= 0:
        raise UserError(f'{where}={spec!r}: must be above 0')
    return Scale(schedule(spec, total_steps, where), None, 0.0, 0.0)


def _past(queue: Tree, w: int) -> Side:
    """The queue as columns that every view w has."""
    every = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (len(x), w, *x.shape[1:])), queue)
    x = every.pop('x')
    # soft positives with a queue are of the copy that gives its columns, so their vectors serve for both similarities
    return Side(x, every | dict(soft=x, soft_known=every['present']))


def unit(x: Array) -> Array:
    """L2-normalised in float32; the squared norm is bounded, not the norm, whose gradient at 0 is not a number."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def also(side: Side, **about: Array) -> Side:
    return side._replace(about={**side.about, **about})


def similarity(a: Array, b: Array) -> Array:
    """[i,V,d], [j,W,d] -> [i,V,j,W], in full float32."""
    return jnp.einsum('ivd,jwd->ivjw', a, b, precision='highest')


def across(a: Array, b: Array, f: Callable[[Array, Array], Array]) -> Array:
    """[i,V], [j,W] -> [i,V,j,W]"""
    return f(a[:, :, None, None], b[None, None])


def of_rows(x: Array) -> Array:
    """[i,V,W] -> [i,V,1,W], to stand beside a block."""
    return x[:, :, None]


def of_columns(x: Array) -> Array:
    """[j,V,W] -> [1,V,j,W]"""
    return x.swapaxes(0, 1)[None]


def by_column(x: Array) -> Array:
    """A block's result for its columns: [V,j,W] -> [j,V,W]."""
    return x.swapaxes(0, 1)
