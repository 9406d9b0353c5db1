"""A recipe with a tower over image and text on eight devices: each does an eighth, and groups stay where they are."""

from __future__ import annotations

import math

import fusion_recipe
import jax
import numpy as np
import pytest
import recipes
from collectives import collectives

from medjax.parallel import sharding
from medjax.training.state import state_shardings
from medjax.training.step import gradients

if jax.device_count() != 8:
    pytest.skip('needs 8 (virtual) devices', allow_module_level=True)

ROWS = 32  # and no side of a parameter


def gradients_of(recipe, objective):
    make_views = recipes.views(recipe, objective)

    def run(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        return gradients(objective, state, batch, lambda rows: make_views(rows, key, state.step), key, 1)

    return run


def placed(shape, recipe):
    """Objective, state and batch on a mesh."""
    mesh = sharding.make_mesh(*shape)
    jax.set_mesh(mesh)
    objective, optim, _ = recipes.parts(recipe)
    abstract = jax.eval_shape(lambda: recipes.start(objective, optim))
    state = recipes.start(objective, optim, state_shardings(objective, abstract, mesh))
    return objective, state, jax.device_put(fusion_recipe.batch(ROWS), sharding.rows_sharding(mesh))


def one_device():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1), sharding.AXES)


def plain(shape):
    """Without axes of one and in ascending order: XLA adds, drops and swaps axes."""
    return tuple(sorted(n for n in shape if n > 1))


def parameter_shapes(params):
    """The shapes that a parameter may have on its way: whole or a device's share, as an array or as a matrix."""
    shapes = set()
    for leaf in jax.tree.leaves(params):
        forms = [leaf.shape, leaf.shape[1:]]
        # queries, keys and values have products of their own, with slices of a kernel [in,n,heads,size]
        forms += [(shape[0], *shape[2:]) for shape in forms if len(shape) == 4]
        for shape in forms:
            matrices = [(math.prod(shape[:i]), math.prod(shape[i:])) for i in range(1, len(shape))]
            for form in (shape, *matrices):
                shares = [(*form[:i], n // 8, *form[i + 1 :]) for i, n in enumerate(form) if n % 8 == 0]
                shapes |= {plain(s) for s in (form, *shares)}
    return shapes


@pytest.mark.parametrize(
    'shape', [pytest.param((8, 1, 1), marks=pytest.mark.slow), pytest.param((1, 8, 1), marks=pytest.mark.long)]
)
def test_each_device_does_an_eighth_and_moves_what_the_terms_say(shape):
    recipe = fusion_recipe.fusion()
    jax.set_mesh(one_device())
    objective, optim, _ = recipes.parts(recipe)
    state = recipes.start(objective, optim)
    run = jax.jit(gradients_of(recipe, objective))
    alone = run.lower(state, fusion_recipe.batch(ROWS // 8)).compile().cost_analysis()['flops']
    loss1, _, _, grads1 = jax.tree.map(np.asarray, run(state, fusion_recipe.batch(ROWS)))

    objective, state, batch = placed(shape, recipe)
    compiled = jax.jit(gradients_of(recipe, objective)).lower(state, batch).compile()
    each = compiled.cost_analysis()['flops']
    assert each <= 1.1 * alone, f'{each:.4g} FLOPs a device, {alone:.4g} for its share alone'

    views, masks = jax.eval_shape(recipes.views(recipe, objective), batch, state.key, state.step)
    computed, _ = jax.eval_shape(objective.features, state.params, state.aux, views, masks, state.key, state.step)
    allowed = objective.moves(ROWS, {name: x.shape for name, x in computed.features.items()})
    shapes = parameter_shapes(state.params)
    activations = {x.shape for x in jax.tree.leaves((computed, views))}
    assert not {plain(s) for s in activations if len(plain(s)) > 1} & shapes, 'a gather of these would stay hidden'
    extra = [(kind, dims) for kind, dims in collectives(compiled.as_text()) if plain(dims) not in shapes]
    moved = sum(math.prod(dims) for _, dims in extra)
    assert ROWS * 12 <= moved <= allowed, f'{moved} elements move, the terms say {allowed}: {extra}'

    loss, _, _, grads = jax.tree.map(np.asarray, compiled(state, batch))
    assert abs(loss - loss1) <= 1e-5 * abs(loss1)
    assert recipes.worst(grads, grads1) <= 1e-5
