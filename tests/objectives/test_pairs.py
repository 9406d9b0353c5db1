"""The terms over pairs against float64 formulas and transformers: dense and in a ring, on one device and eight."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
import reference_pairs as reference
from reference_losses import close, context, loss_of

from medjax.errors import UserError
from medjax.objectives import pairs
from medjax.objectives.compose import compose
from medjax.objectives.terms import pair_sigmoid, pair_softmax
from medjax.parallel import sharding
from medjax.training.step import gradients
from medjax.types import TrainState, View

ROWS, COLUMNS = 'student/image/crop/cls>vi', 'student/text/report/cls>vt'
STEP = jnp.zeros((), jnp.int32)
N, D = 16, 6
MEANS = ['alone', 'dense', 'ring']  # one device; eight, every one looking at all columns; eight in a ring


def use(means):
    """One device or eight, as the rows are split."""
    if means != 'alone' and jax.device_count() != 8:
        pytest.skip('needs 8 (virtual) devices')
    devices = np.array(jax.devices()[:1]).reshape(1, 1, 1)
    mesh = jax.sharding.Mesh(devices, sharding.AXES) if means == 'alone' else sharding.make_mesh(4, 2, 1)
    jax.set_mesh(mesh)
    return mesh


def build(module, means='alone', rows=ROWS, columns=COLUMNS, **cfg):
    return module.build(context(1), rows, columns, **{'ring': means == 'ring', **cfg})


def batch(v=1, w=1, n=N, seed=0):
    """Embeddings of both sides by two copies, and what the views say of them: equal texts, studies, label sets; rows
    without a picture, without a text, without labels."""
    rng = np.random.default_rng(seed)
    draw = lambda k: rng.normal(size=(n, k, D)).astype(np.float32)  # noqa: E731
    found = {ROWS: draw(v), COLUMNS: draw(w)}
    found |= {name.replace('student', 'teacher'): draw(x.shape[1]) for name, x in found.items()}
    # both halves of a key tell keys apart
    key = lambda choices: np.stack(np.divmod(rng.integers(1, choices, n), 2), 1).astype(np.uint32)  # noqa: E731
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
        value, metrics, carry = loss_of(term, fixed, placed[1], params=params, state=aux, step=step)
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


@pytest.mark.parametrize('means', MEANS)
@pytest.mark.parametrize('spec', ['text', dict(soft='teacher')], ids=str)
def test_the_lowest_temperature(spec, means):
    """Similarities of up to 100: exponentials are relative to the largest of all devices, not to anything else."""
    found, views = batch()
    value, _, _, (grads, _) = run(build(pair_softmax, means, positives=spec, temperature=0.01), means, found, views)
    total, dx, dy, *_ = expected(pair_softmax, spec, found, views, scale=100.0, weight=0.5)
    assert value == pytest.approx(total, rel=1e-5)
    close(grads[ROWS][:, 0], dx, 1e-4, 'by the rows')
    close(grads[COLUMNS][:, 0], dy, 1e-4, 'by the columns')


@pytest.mark.parametrize('means', ['dense', 'ring'])
@pytest.mark.parametrize('module', [pair_softmax, pair_sigmoid])
def test_the_gathered_side_detached_is_noticed(module, means, monkeypatch):
    """The classic mistake has the right value and a wrong gradient: the comparison must fail on it, and on that."""
    stop, gathered, around = jax.lax.stop_gradient, sharding.everywhere, pairs.ring_sums
    if means == 'dense':
        monkeypatch.setattr(pairs, 'everywhere', lambda x: stop(gathered(x)))
    else:
        monkeypatch.setattr(pairs, 'ring_sums', lambda block, x, y, *about: around(block, x, stop(y), *about))
    with pytest.raises(AssertionError, match='by the columns'):
        agree(module, means, 'identity', *batch())


def test_ring_where_devices_share_rows():
    """With a tensor axis two devices hold the same rows."""
    use('ring')
    jax.set_mesh(sharding.make_mesh(2, 2, 2))
    found, views = batch()
    term = build(pair_softmax, 'ring', positives='text', **OPTIONS[pair_softmax])
    params, _ = term.init(jax.random.key(0))
    loss = jax.jit(jax.value_and_grad(lambda found: loss_of(term, found, views, params=params)[0]))
    value, grads = loss(jax.device_put(found, sharding.rows_sharding(jax.sharding.get_mesh())))
    total, dx, dy, *_ = expected(pair_softmax, 'text', found, views)
    assert float(value) == pytest.approx(total, rel=1e-5)
    close(grads[ROWS][:, 0], dx, 1e-5, 'by the rows')
    close(grads[COLUMNS][:, 0], dy, 1e-5, 'by the columns')


def all_present(views):
    return {name: view._replace(present=np.ones_like(view.present)) for name, view in views.items()}


@pytest.mark.parametrize('means', MEANS)
def test_clip_of_transformers(means):
    torch = pytest.importorskip('torch')
    clip = pytest.importorskip('transformers.models.clip.modeling_clip')
    found, views = batch()
    x, y = (torch.tensor(found[name][:, 0], requires_grad=True) for name in (ROWS, COLUMNS))
    scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
    u, v = (z / z.norm(dim=-1, keepdim=True) for z in (x, y))
    loss = getattr(clip, 'image_text_contrastive_loss', None) or clip.clip_loss  # renamed in transformers 5
    theirs = loss(v @ u.t() * scale.exp())
    theirs.backward()
    term = build(pair_softmax, means, temperature=dict(learned=0.07))
    value, _, _, (grads, own) = run(term, means, found, all_present(views))
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    close(grads[ROWS][:, 0], x.grad, 1e-5, 'image')
    close(grads[COLUMNS][:, 0], y.grad, 1e-5, 'text')
    assert own['log_scale'] == pytest.approx(scale.grad.item(), rel=1e-4)


@pytest.mark.parametrize('means', MEANS)
def test_siglip_of_transformers(means):
    """SiglipModel itself, towers that give our embeddings in the place of its own."""
    torch = pytest.importorskip('torch')
    siglip = pytest.importorskip('transformers.models.siglip')
    outputs = pytest.importorskip('transformers.modeling_outputs').BaseModelOutputWithPooling
    found, views = batch()
    x, y = (torch.tensor(found[name][:, 0], requires_grad=True) for name in (ROWS, COLUMNS))

    class Gives(torch.nn.Module):
        def __init__(self, z):
            super().__init__()
            self.z = z

        def forward(self, *_, **__):
            return outputs(last_hidden_state=self.z, pooler_output=self.z)

    tiny = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = siglip.SiglipModel(siglip.SiglipConfig(text_config=dict(tiny, vocab_size=9), vision_config=tiny))
    model.vision_model, model.text_model = Gives(x), Gives(y)
    scale, bias = model.logit_scale, model.logit_bias
    with torch.no_grad():
        scale.fill_(math.log(10))
        bias.fill_(-10.0)
    theirs = model(input_ids=None, pixel_values=None, return_loss=True).loss
    theirs.backward()
    value, _, _, (grads, own) = run(build(pair_sigmoid, means), means, found, all_present(views))
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    close(grads[ROWS][:, 0], x.grad, 1e-5, 'image')
    close(grads[COLUMNS][:, 0], y.grad, 1e-5, 'text')
    assert own['log_scale'] == pytest.approx(scale.grad.item(), rel=1e-4)
    assert own['bias'] == pytest.approx(bias.grad.item(), rel=1e-4)


@pytest.fixture(scope='module')
def open_clip_losses():
    """open_clip's own loss.py. It needs torch alone; the package would ask for torchvision, whose wheels for Linux are
    built for CUDA, and so no extra of medjax names it."""
    pytest.importorskip('torch')
    package = importlib.util.find_spec('open_clip')
    if package is None:
        pytest.skip('open_clip is not there: pip install --no-deps open_clip_torch')
    spec = importlib.util.spec_from_file_location('open_clip_loss', Path(package.origin).with_name('loss.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('means', MEANS)
@pytest.mark.parametrize('module', [pair_softmax, pair_sigmoid])
def test_losses_of_open_clip(module, means, open_clip_losses):
    """ClipLoss and SigLipLoss: the value, and the gradients by both embeddings, ln scale and bias."""
    import torch

    found, views = batch(n=24)
    start = dict(temperature=dict(learned=0.07)) if module is pair_softmax else dict(bias=-4.0)
    term = build(module, means, **start)
    params, _ = term.init(jax.random.key(0))
    x, y = (torch.tensor(np.float64(found[name][:, 0]), requires_grad=True) for name in (ROWS, COLUMNS))
    theirs = {name: torch.tensor(np.float64(p), requires_grad=True) for name, p in params.items()}
    sides = [torch.nn.functional.normalize(z, dim=-1) for z in (x, y)]
    scale = theirs['log_scale'].exp()
    if module is pair_softmax:
        loss = open_clip_losses.ClipLoss()(*sides, scale)
    else:
        loss = open_clip_losses.SigLipLoss()(*sides, scale, theirs['bias'])
    loss.backward()
    value, metrics, _, (grads, own) = run(term, means, found, all_present(views))
    assert value == pytest.approx(loss.item(), rel=1e-5)
    assert int(metrics['rows']) == 24
    close(grads[ROWS][:, 0], x.grad, 1e-5, 'image')
    close(grads[COLUMNS][:, 0], y.grad, 1e-5, 'text')
    assert own.keys() == theirs.keys()
    for name, value in theirs.items():
        assert own[name] == pytest.approx(value.grad.item(), rel=1e-4), name


@pytest.mark.parametrize('means', ['alone', 'ring'])
def test_a_batch_without_the_absent_rows_is_the_same(means):
    found, views = batch()
    term = build(pair_softmax, means)
    whole, metrics, _, _ = run(term, means, found, views)
    keep = np.setdiff1d(np.arange(N), [3, 5, 6])
    use('alone')
    less = {name: x[keep] for name, x in found.items()}
    rest = jax.tree.map(lambda x: x[keep], views)
    alone, expected_metrics, _, _ = run(build(pair_softmax), 'alone', less, rest)
    assert whole == pytest.approx(alone, rel=1e-6)
    assert float(metrics['start']) == pytest.approx(float(expected_metrics['start'])) == pytest.approx(math.log(13))
    assert int(metrics['rows']) == 13 and int(metrics['left_out']) == 3


@pytest.mark.parametrize('module', [pair_softmax, pair_sigmoid])
def test_a_view_that_no_row_has_is_in_no_mean(module):
    """Two crops of which all second ones are absent give the loss of the first ones, not half of it."""
    found, views = batch()
    one, metrics, _, _ = run(build(module), 'alone', found, views)
    found[ROWS] = np.concatenate([found[ROWS], found[ROWS][::-1]], 1)
    here = views['crop'].present
    views['crop'] = views['crop']._replace(present=np.concatenate([here, np.zeros_like(here)], 1))
    two, more, _, (grads, _) = run(build(module), 'alone', found, views)
    assert two == pytest.approx(one, rel=1e-6) and not grads[ROWS][:, 1].any()
    assert float(more['start']) == pytest.approx(float(metrics['start']))
    assert int(more['rows']) == int(metrics['rows'])


@pytest.mark.parametrize('means', MEANS)
@pytest.mark.parametrize('module', [pair_softmax, pair_sigmoid])
def test_a_batch_without_a_positive_gives_zero(module, means):
    found, views = batch()
    views['report'] = views['report']._replace(present=np.zeros((N, 1), bool))
    for spec in ('identity', 'text', ['identity', dict(soft='teacher', alpha=0.4)], dict(soft='labels')):
        value, metrics, _, grads = run(build(module, means, positives=spec), means, found, views)
        assert value == 0.0 and float(metrics['start']) == 0.0
        assert int(metrics['rows']) == 0 and int(metrics['left_out']) == N
        assert all(np.isfinite(g).all() and not g.any() for g in jax.tree.leaves(grads))


def test_start_values():
    """ln N for equal outputs; softplus(10) + (N - 1) softplus(-10) for orthogonal ones."""
    found, views = batch(n=256)
    views = all_present(views)
    equal = {name: np.ones_like(x) for name, x in found.items()}
    value, metrics, _, _ = run(build(pair_softmax), 'alone', equal, views)
    assert value == pytest.approx(math.log(256), rel=1e-6) and float(metrics['start']) == pytest.approx(5.545, abs=1e-3)
    apart = {ROWS: np.tile(np.eye(D)[0], (256, 1, 1)), COLUMNS: np.tile(np.eye(D)[1], (256, 1, 1))}
    value, metrics, _, _ = run(build(pair_sigmoid), 'alone', jax.tree.map(np.float32, apart), views)
    start = math.log1p(math.exp(10)) + 255 * math.log1p(math.exp(-10))
    assert value == pytest.approx(start, rel=1e-6) and float(metrics['start']) == pytest.approx(start, rel=1e-6)
    assert start == pytest.approx(10.012, abs=1e-3)


def test_scale_is_kept_between_its_bounds():
    term = build(pair_softmax, temperature=dict(learned=0.07, low=0.01))
    params, _ = term.init(jax.random.key(0))
    assert float(jnp.exp(params['log_scale'])) == pytest.approx(1 / 0.07, rel=1e-6)
    assert float(term.project({'log_scale': jnp.float32(9.0)})['log_scale']) == pytest.approx(math.log(100))
    assert float(term.project({'log_scale': jnp.float32(1.0)})['log_scale']) == 1.0
    assert build(pair_softmax).init(jax.random.key(0)) == ({}, {})
    found, views = batch()
    warm = build(pair_softmax, temperature=[0.5, 0.1])
    _, metrics, _, _ = run(warm, 'alone', found, views, step=jnp.int32(1))
    assert float(metrics['temperature']) == pytest.approx(0.1)


K = 5  # rows with one text


def equal_texts():
    """N rows of which the first K have the same text."""
    rng = np.random.default_rng(3)
    text = np.stack([np.r_[np.ones(K, int), 2 + np.arange(N - K)], np.zeros(N, int)], 1).astype(np.uint32)
    meta = {'key/text': text}
    row = np.arange(N, dtype=np.uint32)
    views = {name: View(None, row, np.ones((N, 1), bool), None, meta) for name in ('crop', 'report')}
    y = rng.normal(size=(N, 1, D)).astype(np.float32)
    y[:K] = y[0]  # one text, one embedding
    return {ROWS: rng.normal(size=(N, 1, D)).astype(np.float32), COLUMNS: y}, views


def perfect(cosine=1.0):
    """Every image where its text is, different texts at right angles; images of the shared text at `cosine` to it."""
    group = np.r_[np.zeros(K, int), 1 + np.arange(N - K)]
    y = np.eye(N, dtype=np.float32)[group][:, None]
    x = y.copy()
    x[:K, 0, 0], x[:K, 0, -1] = cosine, math.sqrt(1 - cosine**2)
    return {ROWS: x, COLUMNS: y}


@pytest.mark.parametrize('row_weight', [1.0, 0.0])
def test_equal_texts_have_a_floor_on_the_diagonal_and_no_longer_with_their_keys(row_weight):
    """K rows of one text do not get below ln K each, a direction's mean not below K/N ln K, and this is reached."""
    least = K / N * math.log(K)
    found, views = equal_texts()
    make = lambda spec: build(pair_softmax, positives=spec, temperature=0.01, row_weight=row_weight)  # noqa: E731
    diagonal, metrics, _, _ = run(make('identity'), 'alone', found, views)
    assert diagonal > least and float(metrics['floor']) == 0.0
    diagonal, metrics, _, _ = run(make('identity'), 'alone', perfect(), views)
    assert diagonal - float(metrics['floor']) == pytest.approx(least, rel=1e-5)  # no better than this, for ever
    by_text, metrics, _, _ = run(make('text'), 'alone', perfect(), views)
    assert float(metrics['floor']) == pytest.approx(least, rel=1e-6)
    assert by_text - float(metrics['floor']) == pytest.approx(0.0, abs=1e-5)  # nothing is left to gain


def test_equal_embeddings_of_equal_texts_make_both_softmax_losses_one():
    """No image can be told what to do differently: value and gradients by images and by the one text are equal."""
    found, views = equal_texts()
    one, two = (
        run(build(pair_softmax, positives=spec, row_weight=0.3), 'alone', found, views) for spec in ('identity', 'text')
    )
    assert one[0] == pytest.approx(two[0], rel=1e-6)
    close(one[3][0][ROWS], two[3][0][ROWS], 1e-5, 'by the images')
    texts = [g[3][0][COLUMNS][:, 0] for g in (one, two)]
    close(texts[0][:K].sum(0), texts[1][:K].sum(0), 1e-5, 'by the text they share')
    close(texts[0][K:], texts[1][K:], 1e-5, 'by the others')
    # seen differently, by masking or another choice of sentences, they are two losses
    found[COLUMNS] += 0.3 * np.random.default_rng(4).normal(size=(N, 1, D)).astype(np.float32)
    one, two = (run(build(pair_softmax, positives=s), 'alone', found, views) for s in ('identity', 'text'))
    assert abs(one[0] - two[0]) > 1e-3


def test_sigmoid_reaches_zero_with_equal_texts_and_not_on_the_diagonal():
    _, views = equal_texts()

    def value(spec, similarity=50.0):
        found = perfect((similarity + 50) / 100)
        return run(build(pair_sigmoid, positives=spec, temperature=0.01, bias=-50.0), 'alone', found, views)[0]

    assert value('text') == pytest.approx(0.0, abs=1e-6)
    # of one positive and K - 1 negatives at one s, the best is sigmoid(s) = 1 / K
    least = K / N * (math.log(K) + (K - 1) * math.log(K / (K - 1)))
    assert value('identity', -math.log(K - 1)) == pytest.approx(least, rel=1e-5)
    assert min(value('identity', -math.log(K - 1) + shift) for shift in (-0.3, 0.3, 50.0)) > least


@pytest.mark.parametrize('means', ['alone', 'dense'])
@pytest.mark.parametrize('module', [pair_softmax, pair_sigmoid])
def test_queue(module, means):
    """Three batches through a queue of 20: the newest columns that took part are more columns for the rows, with the
    keys of their studies, the soft ones of their copy, and without a row of their own."""
    teacher = COLUMNS.replace('student', 'teacher')
    options = OPTIONS[module] | dict(positives=['identity', 'study', dict(soft='teacher', alpha=0.4)])
    with_queue = context(1)._replace(width=lambda name: D)
    term = module.build(with_queue, ROWS, teacher, queue=20, **options)
    _, aux = term.init(jax.random.key(0))
    past, studies = np.zeros((0, D)), np.zeros((0, 2), int)
    for seed in range(3):
        found, views = batch(seed=seed)
        del found[COLUMNS]
        value, metrics, carry, (grads, own) = run(term, means, found, views, aux=aux)
        aux = jax.device_get(jax.jit(term.update)(jax.device_put(aux, jax.tree.leaves(carry)[0].sharding), carry, STEP))

        crop, report = views['crop'], views['report']
        x, x_soft, y = (found[n][:, 0] for n in (ROWS, ROWS.replace('student', 'teacher'), teacher))
        h = np.maximum(same('identity', crop, report, 0, 0), same('study', crop, report, 0, 0))
        h_past = (crop.meta['key/study'][:, None] == studies).all(-1) * crop.present
        i, j = np.flatnonzero(h.any(1) | h_past.any(1)), np.flatnonzero(h.any(0))
        h, h_past = h[np.ix_(i, j)], h_past[i]
        every, all_h = np.concatenate([y[j], past]), np.concatenate([h, h_past], 1)
        t = 5.0 * reference.normal(np.float64(x_soft[i])) @ reference.normal(every).T
        if module is pair_softmax:
            p = reference.targets(all_h, t, t < np.inf, 0.4), reference.targets(h.T, t[:, : len(j)].T, h.T >= 0, 0.4)
            total, dx, _, *rest = reference.pair_softmax(x[i], every, *p, 5.0, 0.75)
        else:
            z = 0.6 * all_h + 0.4 / (1 + np.exp(-(t - 3.0)))
            total, dx, _, *rest = reference.pair_sigmoid(x[i], every, z, 5.0, -3.0)
        assert value == pytest.approx(total, rel=1e-5)
        close(grads[ROWS][i, 0], dx, 1e-5, 'by the rows')
        assert not grads[teacher].any() and int(metrics['queue']) == len(past)
        assert own['log_scale'] == pytest.approx(rest[0], rel=1e-4)
        past = np.concatenate([reference.normal(np.float64(y[j])), past])[:20]
        studies = np.concatenate([report.meta['key/study'][j], studies])[:20]
    assert int(aux['queue']['present'].sum()) == 20 and not aux['queue']['known'][:, 0].any()
    np.testing.assert_allclose(aux['queue']['x'], past, rtol=1e-5, atol=1e-6)


def test_queue_is_filled_with_what_was_there():
    term = build(pair_softmax)
    short = pair_softmax.build(context(1)._replace(width=lambda name: D), ROWS, COLUMNS, queue=4)
    assert term.update({}, None, STEP) == {}
    found, views = batch()
    aux = short.init(jax.random.key(0))[1]
    assert jax.tree.structure(aux) == jax.tree.structure(short.axes[1], is_leaf=lambda x: isinstance(x, tuple))
    assert jax.tree.map(jnp.ndim, aux) == jax.tree.map(len, short.axes[1], is_leaf=lambda x: isinstance(x, tuple))
    carry = run(short, 'alone', found, views)[2]
    kept = np.array([0, 1, 2, 4])  # row 3 has no picture
    np.testing.assert_allclose(
        short.update(aux, carry, STEP)['queue']['x'], reference.normal(found[COLUMNS][kept, 0]), rtol=1e-5
    )


def test_a_crop_is_not_its_own_pair():
    """Image and image: two crops of one view; the mean of both orders is the loss of one with the other."""
    found, views = batch(v=2)
    views['crop'] = views['crop']._replace(present=np.ones((N, 2), bool))
    value, metrics, _, (grads, _) = run(build(pair_softmax, columns=ROWS, temperature=0.2), 'alone', found, views)
    x, y = found[ROWS][:, 0], found[ROWS][:, 1]
    total, dx, dy, _ = reference.pair_softmax(x, y, np.eye(N), np.eye(N), 5.0, 0.5)
    assert value == pytest.approx(total, rel=1e-5)
    close(grads[ROWS], np.stack([dx, dy], 1), 1e-5, 'by the crops')
    # by two copies one crop may meet itself; of several, each meets the others
    teacher = ROWS.replace('student', 'teacher')
    value, *_ = run(build(pair_softmax, columns=teacher, temperature=0.2), 'alone', found, views)
    pair = [found[ROWS][:, a] for a in (0, 1)], [found[teacher][:, b] for b in (1, 0)]
    both = [reference.pair_softmax(a, b, np.eye(N), np.eye(N), 5.0, 0.5)[0] for a, b in zip(*pair)]
    assert value == pytest.approx(np.mean(both), rel=1e-5)


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(positives='identiti'), "'identiti' is no kind of positives; did you mean 'identity'"),
        (dict(positives=[]), 'at most one dict(soft=…, alpha=…)'),
        (dict(positives=dict(soft='labels', alhpa=1)), "unknown key 'alhpa'; did you mean 'alpha'"),
        (dict(row_weight=2), 'row_weight=2: must be a number from 0 to 1'),
        (dict(temperature=0), 'temperature=0: must be above 0'),
        (dict(temperature=dict(learned=0.07, low=0.1)), '0 < low <= learned <= high, got 0.1, 0.07, 100.0'),
        (dict(temperature=dict(rule='cosin')), "did you mean 'cosine'"),
        (dict(queue=-1), 'queue: a number of columns'),
        (dict(queue=8, ring=True), 'ring: every device holds the whole queue'),
        (dict(queue=8, positives=dict(soft='teacher')), "needs kinds of positives besides the soft ones"),
        (dict(queue=8, positives=['identity', dict(soft='teacher')]), "copy that gives its columns, 'student'"),
        (dict(rows='student/image/crop/patches@block'), 'several tokens a view'),
    ],
)  # fmt: skip
def test_mistakes_in_the_config_are_sentences(change, words):
    with pytest.raises(UserError) as error:
        build(pair_softmax, **{'rows': ROWS, **change})
    assert words in str(error.value) and str(error.value).startswith('test')


def test_what_a_batch_lacks_is_named():
    found, views = batch()
    del views['report'].meta['key/text']
    with pytest.raises(UserError, match=r"'text' needs the field 'key/text' of the view 'report'"):
        run(build(pair_softmax, positives='text'), 'alone', found, {**views, 'crop': batch()[1]['crop']})
    with pytest.raises(UserError, match='one crop and would be its own pair'):
        run(build(pair_softmax, columns=ROWS), 'alone', found, views)
    with pytest.raises(UserError, match=r'a pair needs one vector a view, \[B,V,d\]'):
        run(build(pair_softmax), 'alone', {**found, ROWS: found[ROWS][..., None]}, views)
    apart = context(1)._replace(parts=dict(crop='cxr', report='texts'))
    with pytest.raises(UserError, match="'identity' pairs rows of one part"):
        pair_softmax.build(apart, ROWS, COLUMNS)


@pytest.mark.parametrize('means', ['dense', 'ring'])
@pytest.mark.parametrize('spec', ['identity', ['text', dict(soft='teacher', alpha=0.4)]], ids=str)
@pytest.mark.parametrize('module', [pair_softmax, pair_sigmoid])
def test_what_devices_exchange_is_what_the_term_says(module, spec, means):
    """And in a ring no device ever holds all columns."""
    from collectives import collectives

    mesh = use(means)
    n, d = 64, 48
    rng = np.random.default_rng(0)
    names = [name.replace('student', copy) for name in (ROWS, COLUMNS) for copy in ('student', 'teacher')]
    _, views = batch(n=n)
    found = {name: rng.normal(size=(n, 1, d)).astype(np.float32) for name in names}
    term = build(module, means, positives=spec)
    params, _ = term.init(jax.random.key(0))

    def loss(found, params, views):
        fixed = {k: x if k.startswith('student') else jax.lax.stop_gradient(x) for k, x in found.items()}
        return loss_of(term, fixed, views, params=params)[0]

    placed = jax.device_put((found, views), sharding.rows_sharding(mesh))
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(placed[0], params, placed[1]).compile()
    elsewhere, entry = compiled.as_text().split('\nENTRY ')
    sent = collectives(elsewhere) * 7 + collectives(entry)  # the loop of a ring goes around seven times
    says = term.moves(n, {name: x.shape for name, x in found.items()})
    moved = sum(math.prod(dims) for _, dims in sent)
    assert moved <= says <= 1.5 * moved, f'{moved} elements move, the term says {says}: {sent}'
    if means == 'ring':
        assert max(math.prod(dims) for _, dims in sent) <= n // 8 * (d + 1)


def contrast(**softmax):
    """A recipe with image–image pairs: dense with a queue of the teacher's, and of the student's crops, learned."""
    student, teacher = 'student/image/global~block/cls>dino', 'teacher/image/global/cls>dino'
    recipe = recipes.tiny(rows_per_group=2, drop_path=0.25)
    recipe['terms'] = [
        dict(term='pair_softmax', rows=student, columns=teacher, queue=6, **softmax),
        dict(term='pair_sigmoid', rows=student, columns='student/image/local/cls>dino'),
    ]
    return recipe


def image_and_text():
    """A recipe with a ViT and a BERT: a softmax with a queue and soft positives of the teacher's, and a sigmoid."""
    recipe = recipes.tiny(rows_per_group=2, drop_path=0.25)
    image, text = 'student/image/global/cls>vi', 'student/text/report/cls>vt'
    learned = dict(temperature=dict(learned=0.07))
    soft = dict(positives=['identity', dict(soft='teacher', alpha=0.4)], queue=6, **learned)
    changes = dict(
        views={
            'global': recipe['views']['global'],
            'report': dict(view='text', part='cxr', length=6),
        },
        masks={},
        heads={name: dict(head='linear', out=16) for name in ('vi', 'vt')},
        teachers=dict(
            teacher=dict(of=['towers/image', 'towers/text', 'heads/vi', 'heads/vt'], rule='ema', momentum=0.9)
        ),
        terms=[
            dict(term='pair_softmax', rows=image, columns=text.replace('student', 'teacher'), **soft),
            dict(term='pair_sigmoid', rows=image, columns=text, **learned),
        ],
    )
    recipe['towers']['text'] = dict(tower='text', width=32, depth=2, heads=2, vocabulary=50, context=6)
    return recipe | changes


def test_micro_batches_give_one_gradient():
    """One, two and four micro-batches of a whole recipe: the same loss, gradients, queue and counts."""
    objective = compose(image_and_text())
    rng = np.random.default_rng(0)
    row = np.arange(8, dtype=np.uint32)
    valid = np.arange(6) < rng.integers(1, 7, (8, 1, 1))
    views = {  # as make_views would give them, whose micro-batches tests/training/test_step.py compares
        'global': View(rng.normal(size=(8, 2, 32, 32, 1)).astype(np.float32), row, np.ones((8, 2), bool), None, {}),
        'report': View(rng.integers(0, 50, (8, 1, 6), np.int32), row, np.ones((8, 1), bool), valid, {}),
    }
    views['global'].present[5] = views['report'].present[2] = False

    @jax.jit
    def start(key):
        params, aux = objective.init(key)
        leaves, structure = jax.tree.flatten(params)
        keys = jax.random.split(key, len(leaves))
        moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
        queue = aux['terms']['pair_softmax']['queue']
        queue['x'] = jax.random.normal(key, queue['x'].shape)
        queue['present'] = jnp.arange(6) < 4
        return TrainState(STEP, jax.tree.unflatten(structure, moved), {}, aux, key, {})

    state = start(jax.random.key(0))
    found = {
        n: jax.jit(lambda state, views, n=n: gradients(objective, state, (views, {}), lambda part: part, state.key, n))(
            state, views
        )
        for n in (1, 2, 4)
    }
    loss, metrics, carry, grads = found[1]
    assert int(metrics['term/pair_softmax/queue']) == 4
    assert int(metrics['term/pair_sigmoid/rows']) == 6 and int(metrics['term/pair_sigmoid/left_out']) == 2
    for part in ('terms', 'heads'):
        assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grads[part]))
    for n in (2, 4):
        assert abs(found[n][0] - loss) <= 1e-5 * abs(loss)
        assert recipes.worst(found[n][3], grads) <= 1e-5
        assert recipes.worst(found[n][2], carry) <= 1e-5
        assert set(found[n][1]) == set(metrics)


def test_identity_across_parts_is_refused_by_the_objective():
    recipe = contrast()
    recipe['views']['local']['part'] = 'other'
    with pytest.raises(UserError, match="'global' shows 'cxr', 'local' 'other'"):
        compose(recipe)
