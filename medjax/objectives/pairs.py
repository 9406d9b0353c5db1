"""The base of contrastive terms: the two sides of a batch, a queue of past columns, and walks over all pairs.

Read the simple case first: `clip_loss` and `siglip_loss` in `medjax/objectives/formulas.py` are the losses for one view
a side, with every row present and the diagonal as positives. The terms equal them there. They add several views, absent
rows, other kinds of positives, a queue, and a ring of devices.

The sides are features [B,V,d] and [B,W,d]: V views (crops, texts) of each row on one side, W on the other. Each of the
V W combinations of two views is a loss of its own over [B,B] pairs, and the term is the mean of these losses (CXR-CLIP,
arXiv 2310.13292). Where both sides see the same view, a crop is not paired with itself. A block of pairs is an array
[i,V,j,W]: rows i in their views, columns j in their views.

An element (a view of a row) takes part if it is present and has a positive on the other side. A row without a text or
without an image therefore enters no sum and no count: the loss is that of the batch without the row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.objectives.features import Feature
from medjax.objectives.numerics import unit
from medjax.objectives.pair_options import Scale, soft_features
from medjax.objectives.positives import LABELS, Positives, keys, label_sets
from medjax.objectives.terms import Alignment, Term, TermInputs
from medjax.objectives.trees import same_crop
from medjax.parallel.ring import ring_maxima, ring_sums
from medjax.parallel.sharding import everywhere
from medjax.types import Metrics, Tree

MOST_LABELS = 256  # bound on the length of label vectors, for `elements_of_pairs`, which does not see a batch


class Side(NamedTuple):
    """The elements of one side: rows i or columns j with their views."""

    x: Array  # float32 [B,V,d], L2-normalised; the rows are also multiplied by the scale
    facts: dict[str, Array]
    """Arrays without gradient.

    present [B,V]      bool
    keys [B,V,K,2]     uint32, one key for each of K kinds of positives (see positives.py)
    has_key [B,V,K]    bool
    soft [B,V,D]       float32, for soft positives: the product of two vectors is the soft similarity
    has_soft [B,V]     bool, for soft positives
    takes_part [B,V,W] bool, added by `PairLoss.sides`
    A term adds its own, for example the largest similarity of each element.
    """

    def with_facts(self, **facts: Array) -> Side:
        """The same side with more facts."""
        return self._replace(facts={**self.facts, **facts})


class Sides(NamedTuple):
    """All that a contrastive term compares."""

    rows: Side
    columns: Side
    queue: Side | None  # columns of past batches, which only rows are compared with


Block = Callable[[Side, Side], tuple[Tree, Tree]]
"""(rows, columns) of one block -> results of its rows, a tree of arrays [i,…], and of its columns, [j,…]."""


@dataclasses.dataclass(frozen=True, eq=False)
class PairLoss(Term):
    """A contrastive term: rows find their positives among columns. `pair_options` checks the fields."""

    rows: Feature
    columns: Feature
    positives: Positives
    scale: Scale
    queue: int  # columns of past batches; 0 for none
    ring: bool

    @property
    def soft_features(self) -> tuple[str, str] | None:
        return soft_features(self.rows, self.columns, self.positives)

    @property
    def alignment(self) -> Alignment:
        return Alignment(self.rows, self.columns)

    def own_temperature(self, params: Tree, step: Array) -> Array | None:
        return None if self.scale.of else 1 / self.scale.value(params, step)

    @property
    def temperature_of(self) -> str | None:
        return self.scale.of

    def scale_of(self, x: TermInputs) -> Array:
        """1 / temperature: that of this term, or of the term that it shares one with."""
        return 1 / x.temperature(self.scale.of) if self.scale.of else self.scale.value(x.params, x.step)

    @property
    def least_rows(self) -> int:
        return 1 if self.queue else 2

    # The sides of a batch.

    def sides(self, x: TermInputs) -> Sides:
        """The sides of this batch, with the elements that take part."""
        scale = self.scale_of(x)
        soft = self.soft_features or (None, None)
        rows, columns = self._side(x, self.rows, soft[0]), self._side(x, self.columns, soft[1])
        if 'identity' in self.positives.kinds and len(rows.x) != len(columns.x):
            raise UserError(
                f"{self.context.where}.positives: 'identity' pairs rows of one part, but {self.rows.view!r} has "
                f'{len(rows.x)} rows and {self.columns.view!r} has {len(columns.x)}'
            )
        if not self.ring:  # every device compares its own rows with all columns, and so holds all columns
            columns = jax.tree.map(everywhere, columns)
        rows = rows._replace(x=rows.x * scale)
        if self.soft_features:
            rows = rows.with_facts(soft=rows.facts['soft'] * jax.lax.stop_gradient(scale))
        queue = None
        if self.queue:
            n, w = columns.x.shape[:2]
            self.context.check_queue(self.queue, n * w, 'columns')
            queue = _queued_columns(x.state['queue'], w)
        return self._taking_part(Sides(rows, columns, queue))

    def _side(self, x: TermInputs, feature: Feature, soft_feature: str | None) -> Side:
        view, values = x.views[feature.view], x.features[feature.name]
        where = f'{self.context.where}.positives'
        if values.ndim != 3:
            raise UserError(
                f'{self.context.where}: {feature.name!r} has the shape {list(values.shape)}; '
                'a pair needs one vector a view, [B,V,d]'
            )
        element_keys, has_key = keys(view, self.positives.kinds, feature.view, where)
        present = x.present(feature)
        facts = dict(present=present, keys=element_keys, has_key=has_key & present[..., None])
        if self.positives.soft == LABELS:
            facts['soft'], labelled = label_sets(view, feature.view, where)
            facts['has_soft'] = labelled & present
        elif soft_feature:
            facts['soft'] = jax.lax.stop_gradient(unit(x.features[soft_feature]))
            facts['has_soft'] = present & x.presence[soft_feature]
        return Side(unit(values), facts)

    def _taking_part(self, sides: Sides) -> Sides:
        """Adds the fact `takes_part` to all sides: in which combinations of views an element has a partner."""

        def block(rows: Side, columns: Side) -> tuple[Tree, Tree]:
            partners = self.is_positive(rows, columns) if self.positives.kinds else self.is_soft(rows, columns)
            return partners.any(2), by_column(partners.any(0))

        row_results, column_results = self.walk(block, sides, 'max')
        queue = sides.queue
        if queue is not None:  # past columns are candidates of all rows
            v, w = row_results.shape[1:]
            queue = queue.with_facts(takes_part=queue.facts['present'][:, None] & self.allowed(v, w)[:, :, 0])
        rows = sides.rows.with_facts(takes_part=row_results)
        columns = sides.columns.with_facts(takes_part=column_results)
        return Sides(rows, columns, queue)

    # Pairs of a block.

    def allowed(self, v: int, w: int) -> np.ndarray:
        """Which combinations of views are compared, bool [1,V,1,W]. A crop is not compared with itself."""
        same_view = {x.view for x in self.rows.inputs} == {x.view for x in self.columns.inputs}
        # a crop has several elements if its mask has contexts
        crops = max(self.context.crops.get(x.view, v) for x in self.rows.inputs)
        if same_view and crops == 1 and self.what(self.rows) == self.what(self.columns):
            raise UserError(
                f'{self.context.where}: {self.rows.name!r} has one crop, which would be its own pair; '
                'give its view count=2 or more'
            )
        same = same_view and crops > 1 and same_crop(v, w, crops).astype(bool)
        return np.broadcast_to(~np.asarray(same), (v, w))[None, :, None]

    def what(self, f: Feature) -> tuple:
        """What a feature is, whatever the order in which its name has the inputs."""
        return self.context.passes.get(f.name, f.name), f.output, f.at, f.heads

    def is_positive(self, rows: Side, columns: Side) -> Array:
        """h: whether a row and a column are positives by any kind, bool [i,V,j,W]."""
        a, b = rows.facts, columns.facts
        positive = jnp.zeros((), bool)
        for k in range(len(self.positives.kinds)):  # one kind at a time, so that no array is larger than a block
            equal = across(a['has_key'][..., k], b['has_key'][..., k], jnp.logical_and)
            for half in (0, 1):
                equal &= across(a['keys'][..., k, half], b['keys'][..., k, half], jnp.equal)
            positive |= equal
        return positive & self.allowed(rows.x.shape[1], columns.x.shape[1])

    def is_soft(self, rows: Side, columns: Side) -> Array:
        """Whether a row and a column have a soft similarity, bool [i,V,j,W]."""
        soft = across(rows.facts['has_soft'], columns.facts['has_soft'], jnp.logical_and)
        return soft & self.allowed(rows.x.shape[1], columns.x.shape[1])

    def in_loss(self, rows: Side, columns: Side) -> Array:
        """Whether a pair enters the loss, bool [i,V,j,W]: both elements take part."""
        take_part = of_rows(rows.facts['takes_part']) & of_columns(columns.facts['takes_part'])
        return take_part & self.allowed(rows.x.shape[1], columns.x.shape[1])

    def walk(self, block: Block, sides: Sides, reduction: str) -> tuple[Tree, Tree]:
        """Applies `block` to all pairs and reduces its results over the blocks, by 'sum' or by 'max'.

        Returns the results of the rows and of the columns. 'max' passes no gradient. Past columns get no result.
        """

        def plain(x: Array, y: Array, row_facts: dict, column_facts: dict) -> tuple[Tree, Tree]:
            return block(Side(x, row_facts), Side(y, column_facts))

        ring, combine = (ring_sums, jnp.add) if reduction == 'sum' else (ring_maxima, jnp.maximum)
        rows, columns, queue = sides if reduction == 'sum' else jax.lax.stop_gradient(sides)
        arguments = (rows.x, columns.x, rows.facts, columns.facts)
        row_results, column_results = ring(plain, *arguments) if self.ring else plain(*arguments)
        if queue is not None:
            row_results = jax.tree.map(combine, row_results, block(rows, queue)[0])
        return row_results, column_results

    def counts(self, sides: Sides) -> tuple[Array, Array, Array]:
        """How many rows and columns take part in each combination of views [V,W], and its weight in the mean.

        A combination in which no row takes part is not in the mean.
        """
        rows, columns = (side.facts['takes_part'].sum(0).astype(jnp.float32) for side in sides[:2])
        share = (rows > 0) / jnp.maximum((rows > 0).sum(), 1)
        return rows, columns, share

    def metrics(self, x: TermInputs, sides: Sides) -> Metrics:
        rows = sides.rows.facts['takes_part'].any((1, 2))
        values = {
            'rows': rows.sum(),
            'left_out': (~rows).sum(),  # rows that are absent or have no positive on the other side
            'temperature': 1 / self.scale_of(x),
        }
        return values | ({'queue': sides.queue.facts['present'].any(1).sum()} if self.queue else {})

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
                has_key=jnp.zeros((size, kinds), bool),
                present=jnp.zeros(size, bool),
            )
        }

    @property
    def axes(self) -> tuple[Tree, Tree]:
        queue = dict(x=(None, None), keys=(None, None, None), has_key=(None, None), present=(None,))
        return {} if self.scale.start is None else {'log_scale': ()}, {'queue': queue} if self.queue else {}

    def project(self, params: Tree) -> Tree:
        """Keeps the learned scale between its bounds."""
        if self.scale.start is None:
            return params
        low, high = math.log(self.scale.low), math.log(self.scale.high)
        return {**params, 'log_scale': jnp.clip(params['log_scale'], low, high)}

    def carry(self, sides: Sides) -> Tree:
        """The columns of this batch with their keys, for `update`.

        Keys of kind 'identity' are left out, because a past column belongs to no row of a later batch.
        """
        if not self.queue:
            return None
        columns, lasting = sides.columns, np.array([kind != 'identity' for kind in self.positives.kinds])
        newest = dict(
            x=columns.x,
            keys=columns.facts['keys'],
            has_key=columns.facts['has_key'] & lasting,
            present=columns.facts['takes_part'].any(1),
        )
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), newest)

    def update(self, state: Tree, carry: Tree, step: Array) -> Tree:
        """Keeps the newest `queue` columns that took part."""
        if not self.queue:
            return state
        candidates = jax.tree.map(lambda new, old: jnp.concatenate([new, old]), carry, state['queue'])
        newest = jnp.argsort(~candidates['present'], stable=True)[: self.queue]
        return {'queue': jax.tree.map(lambda x: x[newest], candidates)}

    def elements_of_pairs(self, shapes: Mapping[str, tuple[int, ...]], column_sums: int, walks: int) -> int:
        """Number of array elements that devices exchange in a step.

        column_sums: numbers summed for each column. walks: passes over all pairs, the backward pass included. Every
        device receives the columns (in a ring: once for each walk) and sends their gradient back.
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


def _queued_columns(queue: Tree, w: int) -> Side:
    """The queue as columns, the same in all w views."""
    facts = jax.tree.map(lambda x: jnp.broadcast_to(x[:, None], (len(x), w, *x.shape[1:])), queue)
    x = facts.pop('x')
    # soft positives with a queue come from the network that gives the columns: one vector serves both similarities
    return Side(x, facts | dict(soft=x, has_soft=facts['present']))


# Shapes of blocks.


def similarity(a: Array, b: Array) -> Array:
    """[i,V,d], [j,W,d] -> [i,V,j,W], in full float32."""
    return jnp.einsum('ivd,jwd->ivjw', a, b, precision='highest')


def across(a: Array, b: Array, f: Callable[[Array, Array], Array]) -> Array:
    """`f` of every pair: [i,V], [j,W] -> [i,V,j,W]."""
    return f(a[:, :, None, None], b[None, None])


def of_rows(x: Array) -> Array:
    """Numbers of rows, to broadcast against a block: [i,V,W] -> [i,V,1,W]."""
    return x[:, :, None]


def of_columns(x: Array) -> Array:
    """Numbers of columns, to broadcast against a block: [j,V,W] -> [1,V,j,W]."""
    return x.swapaxes(0, 1)[None]


def by_column(x: Array) -> Array:
    """A block that was reduced over its rows, columns first: [V,j,W] -> [j,V,W]."""
    return x.swapaxes(0, 1)
