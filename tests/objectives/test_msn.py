"""The term `msn` against float64 loops: values, gradients, absent rows, row chunks, several devices, mistakes.

The loops follow facebookresearch/msn, src/losses.py:33-72 (init_msn_loss) and :93-128 (distributed_sinkhorn), read and
not copied.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from programs import run

from medjax.errors import UserError
from medjax.objectives import numerics
from medjax.objectives.terms import TermContext, TermInputs, msn
from medjax.parallel import sharding

MASKED, FOCAL = 'student/image/anchor~drop/cls>projector', 'student/image/focal/cls>projector'
TARGET = 'teacher/image/target/cls>projector'
ROWS, CROPS, WIDTH, K = 5, 3, 4, 6  # one masked anchor and two focal ones
ABSENT = np.array([True, True, False, True, True])


def context(**crops):
    return TermContext('terms[0] (msn)', 10, 1, width=lambda name: WIDTH, crops={'focal': 2, **crops}, parts={})


def term(**options):
    return msn.build(context(), [MASKED, FOCAL], TARGET, prototypes=K, **options)


def output(one, z, t, prototypes, here):
    features = {MASKED: z[:, :1], FOCAL: z[:, 1:], TARGET: t}
    presence = {name: jnp.broadcast_to(here[:, None], x.shape[:2]) for name, x in features.items()}
    x = TermInputs(dict(prototypes=prototypes), {}, features, presence, {}, {}, None, jnp.int32(0), None)
    return one.loss(x)


@pytest.fixture(scope='module')
def given():
    rng = np.random.default_rng(0)
    return rng.normal(size=(ROWS, CROPS, WIDTH)), rng.normal(size=(ROWS, 1, WIDTH)), rng.normal(size=(WIDTH, K))


def unit(x):
    return x / math.sqrt(sum(float(v) ** 2 for v in x))


def probabilities(z, prototypes, temperature=0.1):
    e = np.array([math.exp(unit(z) @ unit(prototypes[:, k]) / temperature) for k in range(K)])
    return e / e.sum()


def targets(t, prototypes, iterations):
    q = np.array([probabilities(t[b, 0], prototypes) ** (1 / 0.25) for b in range(len(t))])
    q = np.array([row / row.sum() for row in q])
    for _ in range(iterations):
        for k in range(K):
            q[:, k] /= q[:, k].sum() * K
        for b in range(len(q)):
            q[b] /= q[b].sum() * len(q)
    return q * len(q) if iterations else q


def loop(z, prototypes, q, me_max=1.0):
    p = [[probabilities(z[b, s], prototypes) for s in range(CROPS)] for b in range(len(z))]
    pairs = [(b, s) for b in range(len(z)) for s in range(CROPS)]
    cross_entropy = -sum(q[b][k] * math.log(p[b][s][k]) for b, s in pairs for k in range(K)) / len(pairs)
    mean = sum(p[b][s] for b, s in pairs) / len(pairs)
    return cross_entropy + me_max * (sum(m * math.log(m) for m in mean) + math.log(K))


@pytest.mark.parametrize(
    ('iterations', 'me_max', 'present'), [(3, 1.0, np.ones(ROWS, bool)), (0, 0.5, ABSENT)], ids=['all', 'absent']
)
def test_values_and_gradients_are_those_of_the_loop(given, iterations, me_max, present):
    z, t, prototypes = given
    one = term(iterations=iterations, me_max=me_max)

    def loss(z, t, prototypes):
        out = output(one, z, t, prototypes, present)
        return out.loss, (out.start, out.metrics['rows'])

    (value, (start, rows)), (by_anchors, by_target, by_prototypes) = run(
        jax.value_and_grad(loss, (0, 1, 2), has_aux=True), *map(jnp.float32, given)
    )
    z, q = z[present], targets(t[present], prototypes, iterations)
    assert value == pytest.approx(loop(z, prototypes, q, me_max), rel=1e-5)
    assert rows == present.sum()
    expected = recipes.slopes(lambda z: loop(z, prototypes, q, me_max), z)
    np.testing.assert_allclose(by_anchors[present], expected, atol=2e-5 * np.abs(expected).max())
    expected = recipes.slopes(lambda prototypes: loop(z, prototypes, q, me_max), prototypes)
    np.testing.assert_allclose(by_prototypes, expected, atol=2e-5 * np.abs(expected).max())
    assert not np.asarray(by_anchors)[~present].any() and not np.asarray(by_target).any()
    assert start is None if iterations == 0 else start == pytest.approx(math.log(K))


def test_row_chunks_and_eight_devices_give_the_same(monkeypatch):
    rng = np.random.default_rng(1)
    z, t = (jnp.float32(rng.normal(size=(16, n, WIDTH))) for n in (CROPS, 1))
    prototypes, here = jnp.float32(rng.normal(size=(WIDTH, K))), jnp.asarray(np.arange(16) % 5 != 2)
    one = term()

    def gradient():
        return jax.jit(jax.value_and_grad(lambda z, t, p, here: output(one, z, t, p, here).loss, (0, 2)))

    jax.set_mesh(recipes.one_device())
    alone = jax.tree.map(np.asarray, gradient()(z, t, prototypes, here))
    mesh = sharding.make_mesh(8, 1, 1)
    jax.set_mesh(mesh)
    z_, t_, here_ = jax.device_put((z, t, here), sharding.rows_sharding(mesh))
    eight = gradient()(z_, t_, jax.device_put(prototypes, sharding.replicated(mesh)), here_)
    assert recipes.worst(jax.tree.map(np.asarray, eight), alone) <= 1e-5

    jax.set_mesh(recipes.one_device())
    monkeypatch.setattr(numerics, 'CHUNK_ELEMENTS', 4 * K * (CROPS + 1))
    assert recipes.worst(jax.tree.map(np.asarray, gradient()(z, t, prototypes, here)), alone) <= 1e-5


def test_mistakes_are_answered_by_a_sentence():
    for name, value, told in (
        ('temperature', 0, 'must be a number above 0'),
        ('sharpening', 2, 'must be a number above 0, at most 1'),
        ('me_max', -1, 'must be a number of at least 0'),
        ('prototypes', 1, 'must be a whole number of at least 2'),
        ('iterations', -1, 'must be a whole number of at least 0'),
    ):
        with pytest.raises(UserError, match=rf'terms\[0\] \(msn\).{name}={value}: {told}'):
            msn.build(context(), MASKED, TARGET, **{name: value})
    with pytest.raises(UserError, match=r"target: '.*' has 2 crops, and the term has one target"):
        msn.build(context(target=2), MASKED, TARGET)
    with pytest.raises(UserError, match=r'target=7: must be the name of one feature'):
        msn.build(context(), MASKED, 7)
    with pytest.raises(UserError, match='several tokens a crop'):
        msn.build(context(), 'student/image/anchor~drop/patches@block', TARGET)
    with pytest.raises(UserError, match='of: no feature is named'):
        msn.build(context(), [], TARGET)
