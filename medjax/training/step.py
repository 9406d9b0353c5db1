"""The train step: views -> features -> terms -> gradients -> optimiser -> copies. One function for every recipe.

`state.step` is the only clock: batch, keys, rates and momenta are functions of it. Nothing here names a method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.objectives.compose import Objective
from medjax.parallel.sharding import constrain_rows, merge_rows, split_rows
from medjax.training.optimizer import Optimizer
from medjax.types import Batch, MakeViews, Masks, Metrics, TrainState, Tree, Views


class Step(NamedTuple):
    """(state, batch) -> state, metrics; and the same from views, so that a test or a benchmark can feed them."""

    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    step_on_views: Callable[[TrainState, Views, Masks], tuple[TrainState, Metrics]]


def create(objective: Objective, optimizer: Callable[[Tree], Optimizer], key: Array) -> TrainState:
    """The state at step 0. Run it under jit with the shardings of `axes`, so that no device holds it whole."""
    params, aux = objective.init(key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer(params).init(params), aux, key, {'in_a_row': zero, 'total': zero})


def make_step(objective: Objective, optimizer: Optimizer, make_views: MakeViews, micro_batches: int = 1) -> Step:
    """`micro_batches` > 1 gives the same gradient in less memory: see `gradients`."""
    if micro_batches > 1 and objective.batch_statistics:
        name = objective.batch_statistics[0]
        raise UserError(
            f'micro_batches={micro_batches}: towers.{name} normalises by the statistics of the whole batch, which a '
            f"micro-batch does not have; give it norm='frozen', or micro_batches=1"
        )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(state.key, state.step)
        return finish(state, key, batch, lambda part: make_views(part, key, state.step))

    def step_on_views(state: TrainState, views: Views, masks: Masks) -> tuple[TrainState, Metrics]:
        return finish(state, jax.random.fold_in(state.key, state.step), (views, masks), lambda part: part)

    def finish(state: TrainState, key: Array, inputs: Any, prepare: Callable) -> tuple[TrainState, Metrics]:
        loss, metrics, (carry, stats), grads = gradients(objective, state, inputs, prepare, key, micro_batches)
        params, opt, moved = optimizer.update(grads, state.opt, state.params, state.step)
        params = objective.project(params)
        aux = objective.update(params, state.aux, carry, stats, state.step)

        # A step with a number that is not finite advances the clock and nothing else. Copies are checked through
        # the loss and the gradients they are made from.
        norms = [norm for name, norm in moved.items() if name.startswith('grad_norm/')]
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
        return state, {**metrics, **moved, 'skipped': skipped['total'], 'skipped_in_a_row': skipped['in_a_row']}

    return Step(train_step, step_on_views)


def gradients(
    objective: Objective, state: TrainState, inputs: Any, prepare: Callable, key: Array, n: int
) -> tuple[Array, Metrics, Tree, Tree]:
    """Loss, metrics, what `Objective.update` takes (the terms' carry, statistics), the gradient by the parameters.

    With n micro-batches, exact for every term: run the features of each micro-batch without gradient; differentiate
    the terms once over the whole batch, by the features and by the parameters they use themselves; run each
    micro-batch again with those cotangents and the same draws, and add up. `prepare` makes views and masks of a
    micro-batch of `inputs`; a micro-batch is an equal share of every device's rows, in whole groups.
    """
    aux, step = state.aux, state.step

    def features(params: Tree, part: Any) -> tuple[Tree, Tree, tuple[Views, Masks]]:
        views, masks = prepare(jax.tree.map(constrain_rows, part))
        return *objective.features(params, aux, views, masks, key, step), (views, masks)

    def terms(params: Tree, found: Tree, views: Views, masks: Masks):
        return objective.terms(params, aux, found, views, masks, key, step)

    if n == 1:

        def whole(params: Tree):
            found, stats, (views, masks) = features(params, inputs)
            loss, (metrics, carry) = terms(params, found, views, masks)
            return loss, (metrics, (carry, stats))

        (loss, (metrics, carry)), grads = jax.value_and_grad(whole, has_aux=True)(state.params)
        return loss, metrics, carry, grads

    parts = split_rows(inputs, n)

    def forward(_, part: Any):
        found, _, (views, masks) = features(state.params, part)  # `make_step` has refused statistics that move
        return None, (found, {name: view._replace(x=None) for name, view in views.items()}, masks)  # pixels stay behind

    _, stacked = jax.lax.scan(forward, None, parts)
    found, views, masks = merge_rows(stacked, n)
    (loss, (metrics, carry)), (grads, cotangents) = jax.value_and_grad(terms, argnums=(0, 1), has_aux=True)(
        state.params, found, views, masks
    )

    def backward(grads: Tree, part: Any):
        inputs, cotangents = part
        _, pull = jax.vjp(lambda params: features(params, inputs)[0], state.params)
        return jax.tree.map(jnp.add, grads, pull(cotangents)[0]), None

    grads, _ = jax.lax.scan(backward, grads, (parts, split_rows(cotangents, n)))
    return loss, metrics, (carry, aux['stats']['student']), grads
