"""Many devices compute what one device computes, each its share of it, and move only what the terms say."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from collectives import collectives

from medjax.parallel import sharding
from medjax.training.state import state_shardings
from medjax.training.step import gradients

if jax.device_count() != 8:
    pytest.skip('needs 8 (virtual) devices', allow_module_level=True)

# compiling for 8 devices takes half a minute; test_towers and test_pair_* compare one device with eight in little time
MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2)]


def on_mesh(shape, recipe, batch, micro_batches=1):
    """Objective, state, batch and functions of a recipe on a mesh."""
    mesh = sharding.make_mesh(*shape)
    jax.set_mesh(mesh)
    objective, optim, step = recipes.parts(recipe, micro_batches)
    abstract = jax.eval_shape(lambda: recipes.start(objective, optim))
    shardings = state_shardings(objective, abstract, mesh)
    state = recipes.start(objective, optim, shardings)
    placed = jax.device_put(batch, sharding.rows_sharding(mesh))
    return objective, step, state, placed, shardings


def as_numpy(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x), tree
    )


@pytest.fixture(scope='module')
def alone():
    """Loss and gradients of one device, and the state and metrics after a step."""
    recipe, batch = recipes.tiny(rows_per_group=2, drop_path=0.25), recipes.batch(16)
    jax.set_mesh(recipes.one_device())
    objective, optim, step = recipes.parts(recipe)
    state = recipes.start(objective, optim)
    loss, _, _, grads = as_numpy(jax.jit(gradients_of(objective, recipe))(state, batch))
    after, _ = jax.jit(step.train_step)(state, batch)
    return recipe, batch, as_numpy(state), loss, grads, as_numpy(after)


def gradients_of(objective, recipe):
    """(state, batch) -> what the train step differentiates, with its key."""
    views = recipes.views(recipe, objective)

    def run(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        return gradients(objective, state, batch, lambda b: views(b, key, state.step), key, 1)

    return run


@pytest.mark.slow
@pytest.mark.parametrize('shape', MESHES)
def test_a_mesh_gives_what_one_device_gives(shape, alone):
    recipe, batch, state1, loss1, grads1, after1 = alone
    objective, step, state, placed, shardings = on_mesh(shape, recipe, batch)
    assert recipes.worst(as_numpy(state), state1) == 0  # the same start on every mesh
    loss, _, _, grads = as_numpy(jax.jit(gradients_of(objective, recipe))(state, placed))
    assert abs(loss - loss1) <= 1e-5 * abs(loss1)
    assert recipes.worst(grads, grads1) <= 1e-5
    if shape == (2, 2, 2):
        after, _ = jax.jit(step.train_step, out_shardings=(shardings, None))(state, placed)
        # A first step of Adam is nearly lr * sign(gradient): what is compared is where the gradient has a sign.
        for new, old, g in zip(*map(jax.tree.leaves, (as_numpy(after.params), after1.params, grads1)), strict=True):
            sure = np.abs(g) > 1e-3 * np.abs(g).max()
            assert np.abs(new - old)[sure].max(initial=0) <= 2e-5  # the rate is 1e-3
    if shape != (8, 1, 1):  # parameters are really split
        kernel = state.params['towers']['image']['blocks']['mlp']['fc1']['kernel']
        assert kernel.addressable_shards[0].data.size < kernel.size


@pytest.mark.slow
@pytest.mark.parametrize(
    ('shape', 'micro_batches'),
    [
        ((8, 1, 1), 1),
        ((1, 8, 1), 1),
        ((8, 1, 1), 2),
    ],
)
def test_each_device_does_an_eighth_and_moves_what_the_terms_say(shape, micro_batches):
    recipe = recipes.tiny(rows_per_group=2, drop_path=0.25)
    rows = 32

    jax.set_mesh(recipes.one_device())
    goal1, optim1, step1 = recipes.parts(recipe, micro_batches)
    state1 = recipes.start(goal1, optim1)
    alone = jax.jit(step1.train_step).lower(state1, recipes.batch(rows // 8)).compile().cost_analysis()['flops']

    objective, step, state, batch, shardings = on_mesh(shape, recipe, recipes.batch(rows), micro_batches)
    compiled = jax.jit(step.train_step, donate_argnums=0, out_shardings=(shardings, None)).lower(state, batch).compile()
    each = compiled.cost_analysis()['flops']
    assert each <= 1.1 * alone, f'{each:.4g} FLOPs a device, {alone:.4g} for its share alone'

    views, masks = jax.eval_shape(recipes.views(recipe, objective), batch, state.key, state.step)
    computed, _ = jax.eval_shape(objective.features, state.params, state.aux, views, masks, state.key, state.step)
    allowed = objective.moves(rows, {name: x.shape for name, x in computed.features.items()})
    shapes = recipes.parameter_shapes(state.params, 8)
    extra = [(kind, dims) for kind, dims in collectives(compiled.as_text()) if recipes.plain(dims) not in shapes]
    moved = sum(math.prod(dims) for _, dims in extra)
    assert moved <= allowed, f'{moved} elements move, the terms say {allowed}: {extra}'


def test_split_rows_and_back():
    x = jnp.arange(48).reshape(16, 3)
    sharding_mesh = sharding.make_mesh(4, 2, 1)
    jax.set_mesh(sharding_mesh)
    placed = jax.device_put(x, sharding.rows_sharding(sharding_mesh))
    parts = jax.jit(lambda x: sharding.split_rows(x, 2))(placed)
    np.testing.assert_array_equal(parts[0, :, 0], np.arange(16).reshape(8, 2)[:, 0] * 3)  # a row of every device
    np.testing.assert_array_equal(jax.jit(lambda x: sharding.merge_rows(sharding.split_rows(x, 2), 2))(placed), x)


def test_mesh_that_does_not_fit():
    from medjax.errors import UserError

    with pytest.raises(UserError, match='the product of the sizes must be 8'):
        sharding.make_mesh(3, 1, 1)
