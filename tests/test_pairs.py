"""The terms over pairs against dense float64 formulas and transformers, dense and in a ring, on one device and eight."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
import reference_pairs as reference
from reference_losses import NET, close, context

from medjax.errors import UserError
from medjax.objectives import pairs
from medjax.objectives.compose import objective
from medjax.objectives.terms import pair_sigmoid, pair_softmax
from medjax.parallel import sharding
from medjax.training.step import gradients
from medjax.types import View

ROWS, COLUMNS = 'student/image/crop/cls>vi', 'student/text/report/cls>vt'
STEP = jnp.zeros((), jnp.int32)
N, D = 16, 6
MEANS = ['alone', 'dense', 'ring']  # one device; eight, every one looking at all columns; eight in a ring


@pytest.fixture(autouse=True)
def no_mesh_left():
    yield
    use('alone')


def use(means):
    """One device or eight, as the rows are split."""
    if means != 'alone' and jax.device_count() != 8:
        pytest.skip('needs 8 (virtual) devices')
    devices = np.array(jax.devices()[:1]).reshape(1, 1, 1)
    mesh = jax.sharding.Mesh(devices, sharding.AXES) if means == 'alone' else sharding.make_mesh(4, 2, 1)
    jax.set_mesh(mesh)
    return mesh


def build(module, means='alone', rows=ROWS, columns=COLUMNS, **cfg):
    return module.build(context(1), rows, columns, ring=means == 'ring', **cfg)


def batch(v=1, w=1, n=N, seed=0):
    """Embeddings of both sides by two copies, and what the views say of them: equal texts, studies, label sets; rows
    without a picture, without a text, without labels."""
    rng = np.random.default_rng(seed)
    draw = lambda k: rng.normal(size=(n, k, D)).astype(np.float32)  # noqa: E731
    found = {ROWS: draw(v), COLUMNS: draw(w)}
    found |= {name.replace('student', 'teacher'): draw(x.shape[1]) for name, x in found.items()}
    key = lambda choices: np.stack([rng.integers(1, choices, n), np.zeros(n, int)], 1).astype(np.uint32)  # noqa: E731
    study, text = key(6), key(4)
    text[7] = 0  # no key: equal to nothing
    label = rng.choice([1, 0, -1, -2], p=[0.3, 0.5, 0.1, 0.1], size=(n, 3)).astype(np.int8)
    label[9] = -2
    meta = {'label': label, 'key/study': study, 'key/text': text}
    image, words = np.ones((n, v), bool), np.ones((n, w), bool)
    image[3], words[5], words[6] = False, False, False
    row = np.arange(n, dtype=np.uint32)
    return found, {'crop': View(None, row, image, None, meta), 'report': View(None, row, words, None, meta)}


def run(term, means, found, views, params=None, aux=None, step=STEP):
    """loss, metrics, carry, and the gradients by the features and by the term's parameters."""
    mesh = use(means)
    own, state = term.init(jax.random.key(0))
    placed = jax.device_put((found, views), sharding.rows_sharding(mesh))

    def loss(found, params):
        fixed = {k: x if k.startswith('student') else jax.lax.stop_gradient(x) for k, x in found.items()}
        value, metrics, carry = term.loss(params, aux, fixed, placed[1], {}, NET, None, step)
        return value, (metrics, carry)

    aux = state if aux is None else aux
    f = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, (metrics, carry)), grads = f(placed[0], own if params is None else params)
    return float(value), metrics, carry, jax.tree.map(np.asarray, grads)


def same(kind, view, other, v, w):
    """h [N,N] of one kind, pair by pair, from the definition."""
    a, b = view.meta, other.meta
    out = np.zeros((N, N))
    for i in range(N):
        for j in range(N):
            if kind == 'identity':
                out[i, j] = i == j
            elif kind == 'label':
                sets = [[set(np.flatnonzero(m['label'][k] == value)) for value in (1, -1)] for m, k in ((a, i), (b, j))]
                blank = any((m['label'][k] == -2).all() for m, k in ((a, i), (b, j)))
                out[i, j] = sets[0] == sets[1] and not blank
            else:
                x, y = a[f'key/{kind}'][i], b[f'key/{kind}'][j]
                out[i, j] = (x == y).all() and x.any()
    return out * view.present[:, None, v] * other.present[None, :, w]


def cosines(views):
    """Of the sets of labels, with "none of them" as a set of its own; and where there are labels."""
    label = views['crop'].meta['label']
    u = reference.normal(np.concatenate([label == 1, ~(label == 1).any(1, keepdims=True)], 1).astype(float))
    return u @ u.T, (label != -2).any(1)


CASES = [
    'identity',
    'study',
    'text',
    'label',
    ['identity', 'text'],
    dict(soft='labels'),
    ['identity', dict(soft='labels', alpha=0.3)],
    ['identity', dict(soft='teacher', alpha=0.4)],
    dict(soft='teacher'),
]


def expected(module, spec, found, views, v=0, w=0, scale=5.0, weight=0.75, bias=-3.0):
    """The float64 formula on the rows and columns that take part; gradients put back in their places."""
    entries = spec if isinstance(spec, list) else [spec]
    kinds = [k for k in entries if isinstance(k, str)]
    soft = next((k for k in entries if isinstance(k, dict)), None)
    alpha = 1.0 if soft is None else soft.get('alpha', 1.0)
    crop, report = views['crop'], views['report']
    h = sum(same(k, crop, report, v, w) for k in kinds).clip(0, 1) if kinds else None
    t, known = None, (crop.present[:, v], report.present[:, w])
    if soft and soft['soft'] == 'labels':
        t, labelled = cosines(views)
        known = known[0] & labelled, known[1] & labelled
    elif soft:
        a, b = (found[name.replace('student', 'teacher')] for name in (ROWS, COLUMNS))
        t = scale * reference.normal(np.float64(a[:, v])) @ reference.normal(np.float64(b[:, w])).T
    i, j = (np.flatnonzero(h.any(1)), np.flatnonzero(h.any(0))) if kinds else map(np.flatnonzero, known)
    h, t = (None if m is None else m[np.ix_(i, j)] for m in (h, t))
    known = known[0][i][:, None] & known[1][j][None]
    x, y = found[ROWS][i, v], found[COLUMNS][j, w]
    if module is pair_softmax:
        back = (None if m is None else m.T for m in (h, t, known))
        p = reference.targets(h, t, known, alpha), reference.targets(*back, alpha)
        value, dx, dy, *rest = reference.pair_softmax(x, y, *p, scale, weight)
    else:
        z = h
        if t is not None:
            q = t if soft['soft'] == 'labels' else 1 / (1 + np.exp(-(t + bias)))
            z = q if h is None else np.where(known, (1 - alpha) * h + alpha * q, h)
        value, dx, dy, *rest = reference.pair_sigmoid(x, y, z, scale, bias)
    full_x, full_y = np.zeros((N, D)), np.zeros((N, D))
    full_x[i], full_y[j] = dx, dy
    return value, full_x, full_y, rest, len(i)


OPTIONS = {
    pair_softmax: dict(temperature=dict(learned=0.2), row_weight=0.75),
    pair_sigmoid: dict(temperature=dict(learned=0.2), bias=-3.0),
}


def agree(module, means, spec, found, views):
    """Loss, count and every gradient of the term are those of the formula; views averaged over their combinations."""
    term = build(module, means, positives=spec, **OPTIONS[module])
    value, metrics, _, (grads, own) = run(term, means, found, views)
    v, w = found[ROWS].shape[1], found[COLUMNS].shape[1]
    dx, dy, total, rest = np.zeros((N, v, D)), np.zeros((N, w, D)), 0.0, 0.0
    for a in range(v):
        for b in range(w):
            one = expected(module, spec, found, views, a, b)
            total += one[0] / (v * w)
            dx[:, a] += one[1] / (v * w)
            dy[:, b] += one[2] / (v * w)
            rest = rest + np.array(one[3]) / (v * w)
    assert value == pytest.approx(total, rel=1e-5)
    close(grads[ROWS], dx, 1e-5, 'by the rows')
    close(grads[COLUMNS], dy, 1e-5, 'by the columns')
    ours = [own['log_scale']] + ([own['bias']] if module is pair_sigmoid else [])
    np.testing.assert_allclose(ours, rest, rtol=1e-4, atol=1e-6)
    for name in grads:
        assert name.startswith('student') or not grads[name].any()
    if v == w == 1:
        assert int(metrics['rows']) == one[4] and int(metrics['left_out']) == N - one[4]
    return metrics


@pytest.mark.parametrize('means', MEANS)
@pytest.mark.parametrize('spec', CASES, ids=str)
@pytest.mark.parametrize('module', [pair_softmax, pair_sigmoid])
def test_every_kind_of_positives(module, spec, means):
    agree(module, means, spec, *batch())


@pytest.mark.parametrize('means', MEANS)
@pytest.mark.parametrize('module', [pair_softmax, pair_sigmoid])
def test_several_views_and_texts(module, means):
    agree(module, means, ['identity', 'text', dict(soft='teacher', alpha=0.4)], *batch(2, 3))


def test_the_gathered_side_detached_is_noticed(monkeypatch):
    """The classic mistake has the right value and a wrong gradient: the comparison must fail on it, and on that."""
    monkeypatch.setattr(pairs, 'everywhere', lambda x: jax.lax.stop_gradient(sharding.everywhere(x)))
    with pytest.raises(AssertionError, match='by the columns'):
        agree(pair_softmax, 'dense', 'identity', *batch())
