"""The masked autoencoder as a recipe: gradients in micro-batches and on several devices, absent rows, start, export."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from collectives import collectives

from medjax.parallel import sharding
from medjax.training.state import abstract_state, state_shardings
from medjax.training.step import gradients

OF = 'student/decoder/crop~random/pixels'


def recipe(**changes):
    """Images of 24 px in 9 patches of 8 px, of which 2 stay; no array has the shape of a parameter."""
    cfg = dict(
        total_steps=10,
        rows_per_group=2,
        dtype='float32',
        image=dict(channels=1, mean=0.5, std=0.25),
        views=dict(crop=dict(view='crop', part='cxr', size=24, count=2, area=(0.4, 1.0), photometric=None)),
        masks={'crop~random': dict(mask='random', share=0.75)},
        towers=dict(
            image=dict(
                tower='vit', variant='S/8', width=32, depth=2, heads=2, family='mae', positions='sincos',
                start='xavier', drop_path=0.25,
            ),
            decoder=dict(tower='decoder', reads=['image'], width=20, depth=1, heads=2),
        ),
        heads={},
        teachers={},
        terms=[dict(term='pixels', of=OF)],
        optim=dict(lr=1e-3, b2=0.95),
    )  # fmt: skip
    return cfg | changes


@functools.cache
def compiled(micro_batches, normalise):
    """A program that gives loss, metrics and gradient of one step, and the state for it."""
    cfg = recipe(terms=[dict(term='pixels', of=OF, normalise=normalise)])
    objective, optim, step = recipes.parts(cfg, micro_batches)
    state = recipes.start(objective, optim)

    def run(state, batch):
        key = jax.random.fold_in(state.key, state.step)
        return gradients(objective, state, batch, lambda b: step.make_views(b, key, state.step), key, micro_batches)

    return jax.jit(run), state


def gradient(micro_batches=1, normalise=True, batch=None):
    """Loss, metrics and gradient of one step on 8 rows."""
    run, state = compiled(micro_batches, normalise)
    loss, metrics, _, grads = run(state, recipes.batch(8) if batch is None else batch)
    return loss, metrics, grads


@pytest.mark.slow
def test_micro_batches_give_one_gradient():
    loss, metrics, whole = gradient()
    assert np.isfinite(loss) and metrics['term/pixels/rows'] == 8
    assert 0.3 < metrics['term/pixels/start'] < 1.2 and metrics['term/pixels/patch_mean'] > 0.9
    assert any(name.startswith('rank/student/image/crop~random') for name in metrics)
    for n in (2, 4):
        loss_n, metrics_n, grads = gradient(micro_batches=n)
        assert abs(loss_n - loss) <= 1e-5 * abs(loss)
        assert recipes.worst(grads, whole) <= 1e-5
        assert recipes.worst(metrics_n, metrics) <= 1e-4


@pytest.mark.slow
def test_absent_rows_count_nowhere():
    batch = recipes.batch(8)
    absent = np.array([1, 6])
    batch['cxr']['image/present'][absent] = False
    rng = np.random.default_rng(1)
    noisy = {'cxr': dict(batch['cxr'])}
    noisy['cxr']['image'] = batch['cxr']['image'].copy()
    noisy['cxr']['image'][absent] = rng.integers(0, 255, noisy['cxr']['image'][absent].shape)
    loss, metrics, grads = gradient(batch=batch)
    loss_n, metrics_n, grads_n = gradient(batch=noisy)
    assert metrics['term/pixels/rows'] == 6
    assert float(loss) == float(loss_n) and recipes.worst(grads_n, grads) == 0
    assert float(metrics['term/pixels/start']) == float(metrics_n['term/pixels/start'])


@pytest.mark.parametrize('normalise', [True, False])
def test_start_is_the_loss_of_the_best_constant_patch(normalise):
    cfg = recipe(terms=[dict(term='pixels', of=OF, normalise=normalise)])
    objective, _, step = recipes.parts(cfg)
    batch = recipes.batch(8)
    key = jax.random.fold_in(jax.random.key(1), 0)
    views, masks = jax.jit(step.make_views)(batch, key, jnp.int32(0))
    images = np.asarray(views['crop'].image, np.float64).reshape(8, 2, 3, 8, 3, 8).transpose(0, 1, 2, 4, 3, 5)
    patches = images.reshape(8, 2, 9, 64)
    if normalise:
        deviation = np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
        patches = (patches - patches.mean(-1, keepdims=True)) / deviation
    masked = patches[np.asarray(masks['crop~random'].bits)]
    expected = ((masked - masked.mean(0)) ** 2).mean()
    own_mean = ((masked - masked.mean(-1, keepdims=True)) ** 2).mean()

    _, metrics, _ = gradient(normalise=normalise, batch=batch)
    np.testing.assert_allclose(metrics['term/pixels/start'], expected, rtol=1e-4)
    np.testing.assert_allclose(metrics['term/pixels/patch_mean'], own_mean, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize('shape', [(8, 1, 1), (1, 8, 1)])
def test_each_device_does_an_eighth_and_nothing_travels(shape):
    rows, cfg = 32, recipe()
    jax.set_mesh(recipes.one_device())
    objective, optim, step = recipes.parts(cfg)
    state = recipes.start(objective, optim)
    alone = jax.jit(step.train_step).lower(state, recipes.batch(rows // 8)).compile().cost_analysis()['flops']

    mesh = sharding.make_mesh(*shape)
    jax.set_mesh(mesh)
    shardings = state_shardings(objective, abstract_state(objective, optim), mesh)
    state = recipes.start(objective, optim, shardings)
    placed = jax.device_put(recipes.batch(rows), sharding.rows_sharding(mesh))
    compiled = jax.jit(step.train_step, out_shardings=(shardings, None)).lower(state, placed).compile()
    assert compiled.cost_analysis()['flops'] <= 1.1 * alone

    views, masks = jax.eval_shape(step.make_views, placed, state.key, state.step)
    computed, _ = jax.eval_shape(objective.features, state.params, state.aux, views, masks, state.key, state.step)
    assert OF not in computed.features, 'predictions are dropped after the row-wise stage'
    allowed = objective.moves(rows, {name: x.shape for name, x in computed.features.items()})
    parameters = recipes.parameter_shapes(state.params, 8)
    moved = [dims for _, dims in collectives(compiled.as_text()) if recipes.plain(dims) not in parameters]
    assert sum(map(math.prod, moved)) <= allowed, moved
