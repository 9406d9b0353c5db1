"""The train step: views -> features -> terms -> gradients -> optimizer -> teachers. One step for every recipe.

`state.step` is the only clock: batch, keys, learning rate and momenta are functions of it. Nothing here names a method.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives.compose import Computed, Objective
from medjax.objectives.trees import floats_and_others, joined
from medjax.parallel.sharding import constrain_rows, merge_rows, split_rows
from medjax.training.optimizer import Optimizer
from medjax.types import Batch, MakeViews, Masks, Metrics, TrainState, Tree, Views


def make_step(objective: Objective, optimizer: Optimizer, make_views: MakeViews, micro_batches: int = 1) -> Step:
    """`micro_batches` > 1 gives the same gradient in less memory. UserError for towers that cannot be split so."""
    if micro_batches > 1 and objective.batch_statistics:
        name = objective.batch_statistics[0]
        other = "norm='frozen'" if name.startswith('towers.') else 'another norm'
        raise UserError(
            f'micro_batches={micro_batches}: {name} normalises by the statistics of the whole batch, which a '
            f'micro-batch does not have; give it {other}, or micro_batches=1'
        )
    return Step(objective, optimizer, make_views, micro_batches)


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step of training: (state, batch) -> state, metrics."""

    objective: Objective
    optimizer: Optimizer
    make_views: MakeViews
    micro_batches: int

    def train_step(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """A step from a batch of images and texts."""
        key = jax.random.fold_in(state.key, state.step)
        return self._finish(state, key, batch, lambda rows: self.make_views(rows, key, state.step))

    def step_on_views(self, state: TrainState, views: Views, masks: Masks) -> tuple[TrainState, Metrics]:
        """The same from views and masks, so that a test or a benchmark can give its own."""
        return self._finish(state, jax.random.fold_in(state.key, state.step), (views, masks), lambda rows: rows)

    def _finish(self, state: TrainState, key: Array, inputs: Any, prepare: Callable) -> tuple[TrainState, Metrics]:
        loss, metrics, (carry, stats), grads = gradients(
            self.objective, state, inputs, prepare, key, self.micro_batches, self.optimizer.trained
        )
        with jax.named_scope('optimizer'):  # scopes name the operations of a profile
            params, opt, rates = self.optimizer.update(grads, state.opt, state.params, state.step)
            params = self.objective.project(params)
        with jax.named_scope('teachers'):
            aux = self.objective.update(params, state.aux, carry, stats, state.step)

        # A step with NaN or infinite numbers (isfinite) is skipped: it advances the clock and changes nothing else.
        # Teachers need no check of their own: loss and gradients check the parameters that teachers are made from.
        norms = [norm for name, norm in rates.items() if name.startswith('grad_norm/')]
        finite = jnp.isfinite(jnp.stack([loss, *norms])).all()
        keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)  # noqa: E731
        skipped = {
            'in_a_row': jnp.where(finite, 0, state.skipped['in_a_row'] + 1),
            'total': state.skipped['total'] + ~finite,
        }
        state = TrainState(
            state.step + 1,
            keep(params, state.params),
            keep(opt, state.opt),
            keep(aux, state.aux),
            state.key,
            skipped,
        )
        return state, {**metrics, **rates, 'skipped': skipped['total'], 'skipped_in_a_row': skipped['in_a_row']}


def gradients(
    objective: Objective,
    state: TrainState,
    inputs: Any,
    prepare: Callable,
    key: Array,
    micro_batches: int,
    trained: Callable[[Tree], Tree] = lambda params: params,
) -> tuple[Array, Metrics, Tree, Tree]:
    """Loss, metrics, what `Objective.update` needs (carry of the terms, statistics), gradient by the parameters.

    `prepare` makes views and masks of some rows of `inputs`. `trained` stops the gradients of some parameters.
    """
    forward = Forward(objective, state.aux, prepare, key, state.step, trained)
    if micro_batches > 1:
        return _in_micro_batches(forward, state.params, inputs, micro_batches)
    (loss, (metrics, carry)), grads = jax.value_and_grad(forward.whole, has_aux=True)(state.params, inputs)
    return loss, metrics, carry, grads


@dataclasses.dataclass(frozen=True, eq=False)
class Forward:
    """The forward computation of one step, as functions of the parameters."""

    objective: Objective
    aux: Tree
    prepare: Callable  # some rows of the inputs -> views, masks
    key: Array
    step: Array
    trained: Callable[[Tree], Tree]  # parameters -> the same, without the gradients of frozen ones

    def features(self, params: Tree, rows: Any) -> tuple[Computed, Tree, tuple[Views, Masks]]:
        """What the terms need of some rows, statistics, and the views and masks that it was computed from."""
        with jax.named_scope('views'):
            views, masks = self.prepare(jax.tree.map(constrain_rows, rows))
        computed, stats = self.objective.features(self.trained(params), self.aux, views, masks, self.key, self.step)
        return computed, stats, (views, masks)

    def loss(self, params: Tree, computed: Computed, views: Views, masks: Masks) -> tuple[Array, tuple[Metrics, Tree]]:
        return self.objective.loss(self.trained(params), self.aux, computed, views, masks, self.key, self.step)

    def whole(self, params: Tree, inputs: Any) -> tuple[Array, tuple[Metrics, Tree]]:
        """The loss of the whole batch in one piece."""
        computed, stats, (views, masks) = self.features(params, inputs)
        loss, (metrics, carry) = self.loss(params, computed, views, masks)
        return loss, (metrics, (carry, stats))


def _in_micro_batches(forward: Forward, params: Tree, inputs: Any, n: int) -> tuple[Array, Metrics, Tree, Tree]:
    """The same gradient from n micro-batches, exact for every term.

    1. Run the features of each micro-batch without gradient.
    2. Differentiate the terms once over the whole batch: by the features and row-wise results (those that are floats),
       and by the parameters they use themselves.
    3. Run each micro-batch again with the same draws, pull the cotangents of its features back, and add up.

    A micro-batch is an equal share of every device's rows, in whole groups.
    """
    shares = split_rows(inputs, n)

    def features_only(_: None, rows: Any) -> tuple[None, Any]:
        computed, _, (views, masks) = forward.features(params, rows)  # `make_step` has refused moving statistics
        return None, (computed, {name: view._replace(x=None) for name, view in views.items()}, masks)  # pixels stay

    _, stacked = jax.lax.scan(features_only, None, shares)
    computed, views, masks = merge_rows(stacked, n)
    floats, others = floats_and_others(computed)

    def whole_loss(params: Tree, floats: Tree) -> tuple[Array, tuple[Metrics, Tree]]:
        return forward.loss(params, joined(floats, others), views, masks)

    (loss, (metrics, carry)), (grads, cotangents) = jax.value_and_grad(whole_loss, argnums=(0, 1), has_aux=True)(
        params, floats
    )

    def pull_back(grads: Tree, share: Any) -> tuple[Tree, None]:
        rows, cotangents = share
        _, pull = jax.vjp(lambda params: floats_and_others(forward.features(params, rows)[0])[0], params)
        return jax.tree.map(jnp.add, grads, pull(cotangents)[0]), None

    grads, _ = jax.lax.scan(pull_back, grads, (shares, split_rows(cotangents, n)))
    return loss, metrics, (carry, forward.aux['stats']['student']), grads
