"""The term `swav` against float64 loops, with a queue and absent rows; its mistakes, its heads, many devices.

The arrays of the original code are in tests/configs/test_reference_arrays.py.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from programs import run

from medjax.errors import UserError
from medjax.models import build
from medjax.objectives.terms import TermContext, TermInputs, swav
from medjax.parallel import sharding
from medjax.types import View

GLOBAL, LOCAL = 'student/image/global/cls>projector', 'student/image/local/cls>projector'
ROWS, CROPS, WIDTH, K, QUEUE = 8, 4, 5, 6, 11  # two crops are global


def term(**options):
    context = TermContext('terms[0] (swav)', 10, 1, width=lambda name: WIDTH, crops={'global': 2, 'local': 2}, parts={})
    return swav.build(context, GLOBAL, LOCAL, prototypes=K, epsilon=0.2, **options)


def inputs(z, prototypes, here, state, step=0):
    features = {GLOBAL: z[:, :2], LOCAL: z[:, 2:]}
    presence = {name: jnp.broadcast_to(here[:, None], x.shape[:2]) for name, x in features.items()}
    params = dict(prototypes=prototypes)
    return TermInputs(params, state, features, presence, {}, {}, None, jnp.int32(step), None)


def unit(x, axis=-1):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def sinkhorn(scores):
    q = np.exp(scores / 0.2).T
    for _ in range(3):
        q /= q.sum(1, keepdims=True) * len(q)
        q /= q.sum(0, keepdims=True) * q.shape[1]
    return (q * q.shape[1]).T


def loop(z, prototypes, past=(None, None), assign=sinkhorn, assigned=(0, 1)):
    """The loss, crop by crop; `past` are the rows of each queue."""
    z = unit(z)
    total = 0.0
    for crop in assigned:
        rows = z[:, crop] if past[crop] is None else np.concatenate([past[crop], z[:, crop]])
        q = assign(rows @ prototypes)[-len(z) :]
        for other in range(CROPS):
            if other != crop:
                s = z[:, other] @ prototypes / 0.1
                log_p = s - np.log(np.exp(s).sum(1, keepdims=True))
                total -= (q * log_p).sum() / len(z) / (CROPS - 1) / len(assigned)
    return total


def one_crop_only(z, prototypes):
    """A mistake: only the first crop is assigned."""
    return loop(z, prototypes, assigned=(0,))


def both_crops_at_once(z, prototypes):
    """A mistake: Sinkhorn over the rows of both crops together."""
    scores = unit(z)[:, :2] @ prototypes
    joint = sinkhorn(scores.transpose(1, 0, 2).reshape(-1, K)).reshape(2, len(z), K)
    each = iter(joint)
    return loop(z, prototypes, assign=lambda _: next(each))


@pytest.fixture(scope='module')
def given():
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, CROPS, WIDTH)), unit(rng.normal(size=(WIDTH, K)), 0)


@functools.cache
def gradient_of(one):
    """(z, prototypes, here, state, step) -> ((loss, output), gradients), compiled."""

    def loss(z, prototypes, here, state, step):
        out = one.loss(inputs(z, prototypes, here, state, step))
        return out.loss, out

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def test_values_gradients_and_the_mistakes_that_differ(given):
    z, prototypes = given
    here = np.arange(ROWS) != 3
    one = term(frozen=1)
    (loss, out), grads = gradient_of(one)(*map(jnp.float32, given), here, {}, 1)
    (_, _), frozen = gradient_of(one)(*map(jnp.float32, given), here, {}, 0)
    assert loss == pytest.approx(loop(z[here], prototypes), rel=1e-5)
    assert float(out.start) == pytest.approx(np.log(K)) and out.metrics['rows'] == ROWS - 1
    for mistake in (one_crop_only, both_crops_at_once):
        assert abs(mistake(z[here], prototypes) - loss) > 2e-3 * loss  # 200 times the tolerance
    assert not np.asarray(frozen[1]).any() and np.asarray(grads[1]).any() and not np.asarray(grads[0])[3].any()
    # assignments have no gradient: they are constants of the slopes
    constants = [sinkhorn(unit(z[here])[:, crop] @ prototypes) for crop in (0, 1)]

    def fixed(z, prototypes):
        each = iter(constants)
        return loop(z, prototypes, assign=lambda _: next(each))

    for found, which in ((np.asarray(grads[0])[here], 0), (np.asarray(grads[1]), 1)):
        at = [z[here], prototypes]
        expected = np.zeros_like(at[which])
        for i in np.ndindex(expected.shape):
            ends = []
            for h in (1e-6, -1e-6):
                moved = [x.copy() for x in at]
                moved[which][i] += h
                ends.append(fixed(*moved))
            expected[i] = (ends[0] - ends[1]) / 2e-6
        np.testing.assert_allclose(found, expected, atol=2e-5 * np.abs(expected).max())


def test_the_queue_starts_when_it_is_full(given):
    """Two batches fill eleven rows; absent rows do not enter. Nothing is kept before `queue_from`."""
    prototypes = given[1]
    one, rng = term(queue=QUEUE, queue_from=1), np.random.default_rng(1)
    _, state = run(one.init, jax.random.key(0))
    kept = [np.zeros((0, WIDTH))] * 2
    for step in range(5):
        z, here = rng.normal(size=(ROWS, CROPS, WIDTH)), np.arange(ROWS) != step
        (loss, out), _ = gradient_of(one)(jnp.float32(z), jnp.float32(prototypes), here, state, step)
        full = len(kept[0]) == QUEUE
        assert full == (step >= 3)
        assert loss == pytest.approx(loop(z[here], prototypes, kept if full else (None, None)), rel=1e-5)
        assert float(out.metrics['queue']) == len(kept[0])
        state = run(one.update, state, out.carry, jnp.int32(step))
        if step >= 1:
            kept = [np.concatenate([unit(z[here])[:, crop], kept[crop]])[:QUEUE] for crop in (0, 1)]
        np.testing.assert_allclose(state['queue']['z'][:, : len(kept[0])], kept, atol=1e-6)


@pytest.mark.parametrize('queue', [0, 16])
def test_eight_devices_give_what_one_gives(queue):
    rng, rows = np.random.default_rng(2), 16
    z, prototypes = rng.normal(size=(rows, CROPS, WIDTH)), unit(rng.normal(size=(WIDTH, K)), 0)
    one, here = term(queue=queue), np.arange(rows) % 5 != 2
    z, prototypes, past = map(np.float32, (z, prototypes, unit(rng.normal(size=(2, queue, WIDTH)))))
    state = dict(queue=dict(z=past, present=np.ones((2, queue), bool))) if queue else {}
    jax.set_mesh(recipes.one_device())
    alone = jax.tree.map(np.asarray, gradient_of(one)(z, prototypes, here, state, 1))
    mesh = sharding.make_mesh(8, 1, 1)
    jax.set_mesh(mesh)
    z, here = jax.device_put((z, here), sharding.rows_sharding(mesh))
    many = gradient_of(term(queue=queue))(z, prototypes, here, state, 1)
    assert recipes.worst(jax.tree.map(np.asarray, many), alone) <= 1e-5


def test_prototypes_stay_unit_vectors():
    one = term()
    params, _ = run(one.init, jax.random.key(0))
    moved = run(one.project, jax.tree.map(lambda x: 3 * x + 0.1, params))
    for tree in (params, moved):
        np.testing.assert_allclose(np.linalg.norm(tree['prototypes'], axis=0), 1, rtol=1e-6)
    assert params['prototypes'].shape == (WIDTH, K)


def test_a_head_together_has_the_statistics_of_all_crops():
    """The features of both views pass as one batch. Micro-batches are refused, because they lack these statistics."""
    head = dict(head='mlp', out=4, hidden=6, batch_norm=True, together=True)
    recipe = dict(
        total_steps=10, rows_per_group=1, dtype='float32', image=dict(channels=1, mean=0.5, std=0.25), masks={},
        views={name: dict(view='crop', part='images', size=16, count=2) for name in ('global', 'local')},
        towers=dict(image=dict(tower='swav.given', width=WIDTH)), heads=dict(projector=head), teachers={},
        terms=[dict(term='swav', of=GLOBAL, others=LOCAL, prototypes=K)], optim=dict(lr=0.1, rule='lars'),
    )  # fmt: skip
    objective, *_ = recipes.parts(recipe)
    params, aux = run(objective.init, jax.random.key(0))
    z = np.random.default_rng(0).normal(size=(ROWS, CROPS, WIDTH)).astype(np.float32)
    z[:, 2:] *= 3
    here = np.broadcast_to(np.arange(ROWS)[:, None] != 3, (ROWS, 2))

    def features(params, aux, z):
        views = {
            name: View(x[:, :, None, None, None], jnp.arange(ROWS), jnp.asarray(here), None, {})
            for name, x in (('global', z[:, :2]), ('local', z[:, 2:]))
        }
        computed, stats = objective.features(params, aux, views, {}, jax.random.key(0), jnp.int32(0))
        return jnp.concatenate([computed.features[name] for name in (GLOBAL, LOCAL)], axis=1), stats['heads']

    found, stats = run(features, params, aux, z)
    own = params['heads']['projector'] | dict(stats=aux['stats']['student']['heads']['projector'])
    one = objective.heads['projector']
    expected, moved = run(lambda x: one.apply(own, x, present=np.tile(here, 2), train=True), z)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert recipes.worst(stats['projector'], moved) <= 1e-6
    apart = run(lambda x: one.apply(own, x, present=here, train=True)[0], z[:, :2])
    assert np.abs(apart - found[:, :2]).max() > 0.1 * np.abs(found).max()
    with pytest.raises(UserError, match=r'micro_batches=2: heads\.projector normalises by the statistics'):
        recipes.parts(recipe, micro_batches=2)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(queue=-1), 'queue=-1: must be a whole number of at least 0'),
        (dict(iterations=0), 'iterations=0: must be a whole number of at least 1'),
        (dict(temperature=0), 'temperature=0: must be a number above 0'),
    ],
)
def test_options_that_are_none(options, words):
    with pytest.raises(UserError, match=words):
        term(**options)


def test_a_queue_smaller_than_a_batch(given):
    one = term(queue=ROWS - 1)
    _, state = run(one.init, jax.random.key(0))
    with pytest.raises(UserError, match=r'terms\[0\] \(swav\).queue=7: must hold at least a batch, which has 8 rows'):
        one.loss(inputs(*map(jnp.float32, given), np.ones(ROWS, bool), state))


def test_together_needs_statistics():
    with pytest.raises(
        UserError, match='heads.projector.together=True: must be True or False, and True only for a head'
    ):
        build.head(dict(head='mlp', out=4, together=True), 4, 'heads.projector')
