"""Latent prediction as a recipe: micro-batches, several devices, what it costs, absent rows."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import pytest
import recipes
from collectives import collectives

from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.parallel import sharding
from medjax.training.state import abstract_state, state_shardings
from medjax.training.step import gradients

STUDENT = 'student/predictor/crop~block/patches@block'
TEACHER = 'teacher/image/crop/patches@block'


def recipe(loss='smooth_l1', **changes):
    """Images of 48 px in 36 patches of 8 px; no array has the shape of a parameter."""
    cfg = dict(
        total_steps=10,
        rows_per_group=2,
        dtype='float32',
        image=dict(channels=1, mean=0.5, std=0.25),
        views=dict(crop=dict(view='crop', part='cxr', size=48, count=2, area=(0.4, 1.0), photometric=None)),
        masks={'crop~block': dict(mask='multiblock', min_keep=2, contexts=2, longest=13)},
        towers=dict(
            image=dict(tower='vit', variant='S/8', width=32, depth=2, heads=2, family='ijepa'),
            predictor=dict(tower='predictor', reads=['image'], width=20, depth=1, heads=2),
        ),
        heads={},
        teachers=dict(teacher=dict(of=['towers/image'], rule='ema', momentum=0.9)),
        terms=[dict(term='regress', student=STUDENT, teacher=TEACHER, loss=loss)],
        optim=dict(lr=1e-3),
    )
    return cfg | changes


@functools.cache
def compiled(micro_batches=1, loss='smooth_l1'):
    """A program that gives loss, metrics and gradient of a step, and the state for it."""
    objective, optim, step = recipes.parts(recipe(loss), micro_batches)
    state = recipes.start(objective, optim)

    def run(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        views = functools.partial(step.make_views, key=key, step=state.step)
        loss, metrics, _, grads = gradients(objective, state, batch, views, key, micro_batches)
        return loss, metrics, grads

    return jax.jit(run), state


@pytest.mark.long
@pytest.mark.parametrize('loss', ['smooth_l1', 'mse'])
def test_micro_batches_give_one_gradient(loss):
    run, state = compiled(loss=loss)
    whole_loss, metrics, whole = run(state, recipes.batch(8))
    assert any(name.startswith('rank/student/image/crop~block') for name in metrics)
    for n in (2, 4):
        loss_n, metrics_n, grads = compiled(n, loss=loss)[0](state, recipes.batch(8))
        assert abs(loss_n - whole_loss) <= 1e-5 * abs(whole_loss)
        assert recipes.worst(grads, whole) <= 1e-5
        assert recipes.worst(metrics_n, metrics) <= 1e-4


@pytest.mark.long
def test_each_device_does_an_eighth_and_nothing_travels():
    rows, cfg = 32, recipe()
    jax.set_mesh(recipes.one_device())
    objective, optim, step = recipes.parts(cfg)
    state = recipes.start(objective, optim)
    alone = jax.jit(step.train_step).lower(state, recipes.batch(rows // 8)).compile().cost_analysis()['flops']

    mesh = sharding.make_mesh(8, 1, 1)
    jax.set_mesh(mesh)
    shardings = state_shardings(objective, abstract_state(objective, optim), mesh)
    state = recipes.start(objective, optim, shardings)
    placed = jax.device_put(recipes.batch(rows), sharding.rows_sharding(mesh))
    program = jax.jit(step.train_step, out_shardings=(shardings, None)).lower(state, placed).compile()
    assert program.cost_analysis()['flops'] <= 1.1 * alone

    views, masks = jax.eval_shape(step.make_views, placed, state.key, state.step)
    computed, _ = jax.eval_shape(objective.features, state.params, state.aux, views, masks, state.key, state.step)
    assert STUDENT not in computed.features, 'predictions are dropped after the row-wise stage'
    allowed = objective.moves(rows, {name: x.shape for name, x in computed.features.items()})
    parameters = recipes.parameter_shapes(state.params, 8)
    moved = [dims for _, dims in collectives(program.as_text()) if recipes.plain(dims) not in parameters]
    assert sum(map(math.prod, moved)) <= allowed, moved


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        (
            dict(masks={'crop~block': dict(mask='random', share=0.5)}),
            'must be targets, crop by crop; give the view a mask',
        ),
        (dict(masks={'crop~block': dict(mask='blocks')}), 'must be targets, crop by crop; give the view a mask'),
        (dict(towers=dict(recipe()['towers'], predictor=dict(tower='predictor', reads=['image', None]))), 'one tower'),
        (
            dict(towers=dict(recipe()['towers'], predictor=dict(tower='predictor', reads=['image'], width=22))),
            'width 22 must be divisible by 4 and by its 12 heads',
        ),
    ],
)
def test_mistakes_are_sentences(changes, words):
    cfg = recipe(**changes)

    def built():
        objective = compose(cfg)
        params, aux = jax.eval_shape(objective.init, jax.random.key(0))
        key, step = jax.random.key(0), jnp.int32(0)
        views, masks = jax.eval_shape(recipes.views(cfg, objective), recipes.batch(4), key, step)
        jax.eval_shape(objective.features, params, aux, views, masks, key, step)

    with pytest.raises(UserError, match=words):
        built()
