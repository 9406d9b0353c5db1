"""Terms that compare the crops of an image: values and gradients of float64 loops, absent rows, mistakes, devices.

The loops follow the originals, read and not copied:
nt_xent            google-research/simclr, objective.py:39-103 (add_contrastive_loss)
cross_correlation  facebookresearch/barlowtwins, main.py:207-222 (BarlowTwins.forward)
vicreg             facebookresearch/vicreg, main_vicreg.py (VICReg.forward)
lejepa             rbalestr-lab/lejepa, MINIMAL.md (SIGReg.forward, main)
byol               google-deepmind/deepmind-research, byol/utils/helpers.py:102 (regression_loss)
moco_v3            facebookresearch/moco-v3, moco/builder.py (ctr_loss, forward)
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from programs import run

from medjax.errors import UserError
from medjax.objectives.terms import (
    TermContext,
    TermInputs,
    cross_correlation,
    lejepa,
    nt_xent,
    pair_softmax,
    regress,
    vicreg,
)
from medjax.parallel import sharding
from medjax.types import View

ROWS, WIDTH = 5, 4
FIRST, SECOND = 'student/image/first/cls', 'student/image/second/cls'
TEACHERS = 'teacher/image/first/cls', 'teacher/image/second/cls'
ABSENT = np.array([True, True, False, True, True])
KEY = jax.random.key(3)


def context(crops=1):
    where = dict(crops={'first': crops, 'second': 1}, parts={'first': 'cxr', 'second': 'cxr'})
    return TermContext('terms[0]', 10, 1, width=lambda name: WIDTH, **where)


def inputs(features, present, **more):
    rows = len(present)
    keys = {'key/study': np.arange(2 * rows, dtype=np.uint32).reshape(rows, 2)}
    views = {
        name: View(None, np.arange(rows, dtype=np.uint32), present[:, None], None, keys) for name in ('first', 'second')
    }
    presence = {name: jnp.broadcast_to(present[:, None], x.shape[:2]) for name, x in features.items()}
    return TermInputs({}, {}, features, presence, views, {}, None, jnp.int32(0), KEY, **more)


def value_of(terms, features, present):
    """The sum of some terms, as the objective computes it."""
    total, outs = 0.0, []
    for term in terms:
        x = inputs(features, present)
        outs.append(term.loss(inputs(features, present, per_row=term.per_row(x))))
        total += outs[-1].loss
    return total, outs


# The losses as loops over elements, in float64.


def unit(x):
    return x / math.sqrt(sum(float(v) ** 2 for v in x))


def softmax_loss(scores, right):
    most = max(scores)
    return most + math.log(sum(math.exp(s - most) for s in scores)) - right


def loop_nt_xent(z, temperature=0.5):
    (rows, crops), total = z.shape[:2], 0.0
    for b in range(rows):
        for v in range(crops):
            others = [(c, w) for c in range(rows) for w in range(crops) if (c, w) != (b, v)]
            s = {o: unit(z[b, v]) @ unit(z[o]) / temperature for o in others}
            right = [s[b, w] for w in range(crops) if w != v]
            total += softmax_loss(list(s.values()), sum(right) / len(right))
    return total / (rows * crops)


def loop_cross_correlation(z, off_diagonal=0.1):
    rows, _, width = z.shape
    normal = np.zeros_like(z)
    for v in range(2):
        for d in range(width):
            column = z[:, v, d]
            mean = sum(column) / rows
            variance = sum((x - mean) ** 2 for x in column) / rows
            normal[:, v, d] = (column - mean) / math.sqrt(variance + 1e-5)
    total = 0.0
    for i in range(width):
        for j in range(width):
            c = sum(normal[b, 0, i] * normal[b, 1, j] for b in range(rows)) / rows
            total += (c - 1) ** 2 if i == j else off_diagonal * c**2
    return total


def loop_vicreg(z, invariance=25.0, variance=25.0, covariance=1.0):
    rows, _, width = z.shape
    near = sum((z[b, 0, d] - z[b, 1, d]) ** 2 for b in range(rows) for d in range(width)) / (rows * width)
    spread, repeat = 0.0, 0.0
    for v in range(2):
        centred = z[:, v] - z[:, v].sum(0) / rows
        for i in range(width):
            deviation = math.sqrt(sum(centred[:, i] ** 2) / (rows - 1) + 1e-4)
            spread += max(0.0, 1 - deviation) / width / 2
            for j in range(width):
                repeat += (i != j) * (sum(centred[:, i] * centred[:, j]) / (rows - 1)) ** 2 / width
    return invariance * near + variance * spread + covariance * repeat


def loop_lejepa(z, share=0.3, directions=6, global_crops=2):
    rows, crops, width = z.shape
    a = np.asarray(jax.random.normal(KEY, (width, directions)), np.float64)
    prediction = 0.0
    for b in range(rows):
        centre = sum(z[b, g] for g in range(global_crops)) / global_crops
        prediction += sum(((z[b, v] - centre) ** 2).sum() for v in range(crops)) / (rows * crops * width)
    total, h = 0.0, 3 / 16
    for v in range(crops):
        for m in range(directions):
            along = [float(z[b, v] @ unit(a[:, m])) for b in range(rows)]
            for k in range(-16, 17):  # the whole integral, and not half of it twice
                t, edge = k * h, 0.5 if abs(k) == 16 else 1.0
                ecf = sum(complex(math.cos(t * p), math.sin(t * p)) for p in along) / rows
                phi = math.exp(-t * t / 2)
                total += rows * abs(ecf - phi) ** 2 * phi * h * edge / (crops * directions)
    return (1 - share) * prediction + share * total


def loop_byol(z, t):
    total = 0.0
    for b in range(len(z)):
        for mine, other in ((0, 1), (1, 0)):
            total += ((unit(z[b, mine]) - unit(t[b, other])) ** 2).sum()
    return total / len(z)


def loop_moco(z, t, temperature=0.2):
    total = 0.0
    for mine, other in ((0, 1), (1, 0)):
        for b in range(len(z)):
            scores = [unit(z[b, mine]) @ unit(t[c, other]) / temperature for c in range(len(z))]
            total += 2 * temperature * softmax_loss(scores, scores[b]) / len(z)
    return total


BOTH = [FIRST, SECOND]
CASES = {  # name -> (the terms, the loop, whether it has a teacher)
    'nt_xent': (lambda c: [nt_xent.build(c, BOTH, 0.5)], loop_nt_xent, False),
    'cross_correlation': (lambda c: [cross_correlation.build(c, BOTH, 0.1)], loop_cross_correlation, False),
    'vicreg': (lambda c: [vicreg.build(c, BOTH)], loop_vicreg, False),
    'lejepa': (lambda c: [lejepa.build(c, BOTH, share=0.3, directions=6)], loop_lejepa, False),
}


def student(z):
    return {FIRST: z[:, :1], SECOND: z[:, 1:]}


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('present', [np.ones(ROWS, bool), ABSENT], ids=['all', 'absent'])
def test_values_and_gradients_are_those_of_the_loop(name, present):
    build, loop, _ = CASES[name]
    z = np.random.default_rng(0).normal(size=(ROWS, 2, WIDTH)) * 0.8
    terms = build(context())

    def loss(z):
        total, outs = value_of(terms, student(z), present)
        return total, (outs[0].start, outs[0].metrics['rows'])

    (value, (start, rows)), gradient = run(jax.value_and_grad(loss, has_aux=True), jnp.float32(z))
    assert value == pytest.approx(loop(z[present]), rel=1e-5)
    assert rows == present.sum()
    expected = recipes.slopes(loop, z[present])
    np.testing.assert_allclose(gradient[present], expected, atol=2e-5 * np.abs(expected).max())
    assert not np.asarray(gradient)[~present].any()
    constant = {'nt_xent': 1.0}.get(name, 0.0)  # `start` is the loss of equal embeddings
    np.testing.assert_allclose(start, loop(np.full_like(z[present], constant)), rtol=1e-4)


def test_one_view_with_two_crops_is_two_views_with_one():
    z = jnp.float32(np.random.default_rng(1).normal(size=(ROWS, 2, WIDTH)))
    for module in (nt_xent, cross_correlation, vicreg, lejepa):
        one = module.build(context(crops=2), FIRST)
        two = module.build(context(), BOTH)
        found = [
            run(lambda z, t=t, f=f: value_of([t], f(z), ABSENT)[0], z)
            for t, f in ((one, lambda z: {FIRST: z}), (two, student))
        ]
        np.testing.assert_allclose(*found, rtol=1e-6)


def test_three_crops_are_compared_pair_by_pair():
    z = np.random.default_rng(2).normal(size=(ROWS, 3, WIDTH))
    pairs = [z[:, [v, w]] for v, w in ((0, 1), (0, 2), (1, 2))]
    features, here = {FIRST: jnp.float32(z)}, np.ones(ROWS, bool)
    cases = [
        (nt_xent.build(context(3), FIRST, 0.5), loop_nt_xent(z)),
        (cross_correlation.build(context(3), FIRST, 0.1), np.mean([loop_cross_correlation(p) for p in pairs])),
        (vicreg.build(context(3), FIRST), np.mean([loop_vicreg(p) for p in pairs])),
        (lejepa.build(context(2), FIRST, SECOND, 0.3, 6), loop_lejepa(z)),
    ]
    for term, expected in cases:
        given = {FIRST: features[FIRST][:, :2], SECOND: features[FIRST][:, 2:]} if len(term.of) == 2 else features
        np.testing.assert_allclose(run(lambda t=term, g=given: value_of([t], g, here)[0]), expected, rtol=1e-5)


def test_byol_and_moco_are_terms_that_were_there():
    """The terms of configs/byol.py and configs/moco_v3.py."""
    rng = np.random.default_rng(3)
    z, t = rng.normal(size=(2, ROWS, 2, WIDTH))
    byol = [regress.build(context(), mine, other, 'cosine', None) for mine, other in zip(BOTH, reversed(TEACHERS))]
    moco = [
        pair_softmax.build(context(), mine, other, row_weight=1.0, temperature=0.2)
        for mine, other in zip(BOTH, reversed(TEACHERS))
    ]
    here = np.ones(ROWS, bool)
    for terms, weight, loop in ((byol, 2.0, loop_byol), (moco, 2 * 0.2, loop_moco)):

        def loss(z, terms=terms, weight=weight):
            features = student(z) | dict(zip(TEACHERS, (jnp.float32(t[:, :1]), jnp.float32(t[:, 1:]))))
            return weight * value_of(terms, features, here)[0]

        value, gradient = run(jax.value_and_grad(loss), jnp.float32(z))
        assert value == pytest.approx(loop(z, t), rel=1e-5)
        expected = recipes.slopes(functools.partial(loop, t=t), z)
        np.testing.assert_allclose(gradient, expected, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize('module', [nt_xent, cross_correlation, vicreg, lejepa])
def test_eight_devices_give_what_one_gives(module):
    z = jnp.float32(np.random.default_rng(4).normal(size=(16, 2, WIDTH)))
    here = np.arange(16) % 5 != 2
    term = module.build(context(), BOTH)
    gradient = jax.jit(jax.value_and_grad(lambda z, here: value_of([term], student(z), here)[0]))
    jax.set_mesh(recipes.one_device())
    alone = jax.tree.map(np.asarray, gradient(z, jnp.asarray(here)))
    mesh = sharding.make_mesh(8, 1, 1)
    jax.set_mesh(mesh)
    placed = jax.device_put((z, jnp.asarray(here)), sharding.rows_sharding(mesh))
    assert recipes.worst(jax.tree.map(np.asarray, gradient(*placed)), alone) <= 1e-5


def test_mistakes_are_answered_by_a_sentence():
    with pytest.raises(UserError, match=r"terms\[0\].of: '.*first/cls' has one crop, and the term compares crops"):
        vicreg.build(context(), FIRST)
    for value, told in (
        (7, 'of=7: must be a list of texts'),
        ([FIRST, None], 'must be a list'),
        ([], 'of: no feature is'),
    ):
        with pytest.raises(UserError, match=told):
            vicreg.build(context(), value)
    with pytest.raises(UserError, match='others=7: must be a list of texts'):
        lejepa.build(context(), BOTH, others=7)
    with pytest.raises(UserError, match='several tokens a crop'):
        nt_xent.build(context(2), 'student/image/first/patches@block')
    with pytest.raises(UserError, match=r'terms\[0\].temperature=0: must be a number above 0'):
        nt_xent.build(context(), BOTH, 0)
    with pytest.raises(UserError, match=r'terms\[0\].share=2: must be a number from 0 to 1'):
        lejepa.build(context(), BOTH, share=2)
    with pytest.raises(UserError, match=r'terms\[0\].directions=0: must be a whole number of at least 1'):
        lejepa.build(context(), BOTH, directions=0)
    with pytest.raises(UserError, match=r'terms\[0\].covariance=-1: must be a number of at least 0'):
        vicreg.build(context(), BOTH, covariance=-1)
    widths = TermContext('terms[0]', 10, 1, width=lambda name: 4 if 'first' in name else 5, crops={}, parts={})
    with pytest.raises(UserError, match=r"equally many numbers, but '.*first/cls' has 4 and '.*second/cls' has 5"):
        cross_correlation.build(widths, BOTH)
