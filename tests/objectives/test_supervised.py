"""The term `supervised` against torch and loops in float64, its start against scipy, and its share of patients."""

from __future__ import annotations

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from collectives import collectives
from reference_losses import NETWORKS, close
from scipy import optimize, special

from medjax.errors import UserError
from medjax.objectives import task_options
from medjax.objectives.compose import compose
from medjax.objectives.terms import TermContext, TermInputs, supervised
from medjax.parallel import sharding
from medjax.training.step import gradients
from medjax.types import View

OF = 'student/image/crop/cls>classifier'
LABELS, WORDS = ('effusion', 'nodule', 'mass'), ('low', 'middle', 'high', 'top')
COLUMNS = dict(age='number', grade=WORDS, count='number')
ROWS, CROPS = 48, 2


def context(outputs: int = 0, labels=LABELS, columns=COLUMNS) -> TermContext:
    return TermContext('terms[0] (supervised)', 10, 1, width=lambda name: outputs, labels=labels, columns=columns)


def built(outputs: int, **options):
    return supervised.build(context(outputs), OF, **options)


def batch(outputs: int, seed: int = 0, rows: int = ROWS) -> tuple[np.ndarray, View]:
    """Outputs of a head, and rows with all codes of labels, unknown columns and absent crops."""
    rng = np.random.default_rng(seed)
    columns = np.stack([rng.normal(60, 20, rows), rng.integers(0, 4, rows), rng.integers(1, 5, rows)], 1)
    columns[rng.random(columns.shape) < 0.2] = np.nan
    meta = {
        'label': rng.choice([1, 0, -1, -2, -3], (rows, 3), p=[0.3, 0.4, 0.1, 0.1, 0.1]).astype(np.int8),
        'column': columns.astype(np.float32),
        'key/patient': rng.integers(0, 2**32, (rows, 2), dtype=np.uint32),
    }
    present = rng.random((rows, CROPS)) < 0.8
    return (
        rng.normal(0, 2, (rows, CROPS, outputs)).astype(np.float32),
        View(None, np.arange(rows, dtype=np.uint32), present, None, meta),
    )


def run(term, outputs, view, step: int = 0):
    """The `TermOutput`, and the gradient by the outputs."""

    def loss(outputs, view):
        inputs = TermInputs(
            {}, {}, {OF: outputs}, {OF: view.present}, {'crop': view}, {}, NETWORKS, jnp.int32(step), jax.random.key(7)
        )
        out = term.loss(inputs)
        return out.loss, out

    (_, out), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(outputs, view)
    return out, gradient


def targets(view, policy=None):
    """float64 [B,3] and bool [B,3] of labels, by plain loops."""
    codes, policy = view.meta['label'], policy or {}
    value, known = np.zeros(codes.shape), np.zeros(codes.shape, bool)
    for b in range(len(codes)):
        for k, label in enumerate(LABELS):
            meaning = {1: 'positive', 0: 'negative'} | policy.get(label, {})
            what = meaning.get(int(codes[b, k]), 'ignore')
            known[b, k] = what != 'ignore'
            value[b, k] = dict(positive=1, negative=0, ignore=0).get(what, what)
    return value, known


# Labels.


def binary_loss(s, t, known, present, weights, focal, smoothing):
    """The mean loss of known elements by loops, and the totals of each output's two classes."""
    total = count = 0
    totals = np.zeros((s.shape[-1], 2))
    for b, v, k in np.ndindex(s.shape):
        if present[b, v] and known[b, k]:
            p, soft = special.expit(s[b, v, k]), (1 - smoothing) * t[b, k] + smoothing / 2
            total += weights[k][1] * soft * (1 - p) ** focal * -math.log(p)
            total += weights[k][0] * (1 - soft) * p**focal * -math.log(1 - p)
            totals[k] += weights[k] * np.array([1 - soft, soft])
            count += 1
    return total / count, totals, count


def best_constant(totals, focal, count):
    """The best constant outputs by scipy, one output after the other."""

    def loss(s, absent, present):
        p = special.expit(s)
        return absent * p**focal * -np.log1p(-p) + present * (1 - p) ** focal * -np.log(p)

    bounds = dict(bounds=(-10, 10), method='bounded', options=dict(xatol=1e-9))
    return sum(optimize.minimize_scalar(loss, args=tuple(of_output), **bounds).fun for of_output in totals) / count


@pytest.mark.parametrize(
    ('options', 'weights', 'focal', 'smoothing'),
    [
        ({}, np.ones((3, 2)), 0, 0),
        (dict(weights=[3.0, [0.5, 2.0], 1.0], smoothing=0.1), [[1, 3], [0.5, 2], [1, 1]], 0, 0.1),
        (dict(weights=dict(mass=4.0), focal=2.0), [[1, 1], [1, 1], [1, 4]], 2, 0),
        (dict(focal=0.5, smoothing=0.2), np.ones((3, 2)), 0.5, 0.2),
    ],
)
def test_labels_equal_a_loop(options, weights, focal, smoothing):
    outputs, view = batch(3)
    out, _ = run(built(3, **options), outputs, view)
    t, known = targets(view)
    s = outputs.astype(np.float64)
    loss, totals, count = binary_loss(s, t, known, view.present, np.array(weights), focal, smoothing)
    np.testing.assert_allclose(out.loss, loss, rtol=1e-5)
    np.testing.assert_allclose(out.start, best_constant(totals, focal, count), rtol=1e-4)
    assert out.metrics['targets'] == count
    assert out.metrics['rows'] == (known.any(1) & view.present.any(1)).sum()


def test_a_policy_gives_each_label_its_targets():
    policy = dict(uncertain={'effusion': 'positive', '*': 'negative'}, blank=dict(mass=0.25), conflicting='ignore')
    outputs, view = batch(3)
    out, _ = run(built(3, policy=policy), outputs, view)
    meaning = {
        'effusion': {-1: 'positive'},
        'nodule': {-1: 'negative'},
        'mass': {-1: 'negative', -2: 0.25},
    }
    t, known = targets(view, meaning)
    loss, _, count = binary_loss(outputs.astype(np.float64), t, known, view.present, np.ones((3, 2)), 0, 0)
    np.testing.assert_allclose(out.loss, loss, rtol=1e-5)
    assert out.metrics['targets'] == count


def test_a_target_that_is_drawn_lies_in_its_range_and_depends_on_the_row_alone():
    term = built(3, policy=dict(uncertain=[0.55, 0.85]))
    outputs, view = batch(3, rows=4_000)

    def of(view):
        inputs = TermInputs({}, {}, {}, {}, {'crop': view}, {}, NETWORKS, jnp.int32(0), jax.random.key(7))
        return jax.jit(lambda: term.task.targets(inputs, term.of))()

    value, known = of(view)
    drawn = np.asarray(value)[view.meta['label'] == -1]
    assert known[view.meta['label'] == -1].all()
    assert drawn.min() >= 0.55 and drawn.max() <= 0.85 and abs(drawn.mean() - 0.7) < 0.01 and drawn.std() > 0.08
    later = view._replace(row=view.row[8:], meta={name: x[8:] for name, x in view.meta.items()})
    np.testing.assert_array_equal(of(later).value, value[8:])


def test_labels_equal_torch():
    torch = pytest.importorskip('torch')
    outputs, view = batch(3)
    _, gradient = run(built(3, weights=[3.0, 2.0, 1.0]), outputs, view)
    t, known = (torch.tensor(x)[:, None].expand(-1, CROPS, -1) for x in targets(view))
    s = torch.tensor(outputs.astype(np.float64), requires_grad=True)
    here = known & torch.tensor(view.present)[..., None]
    each = torch.nn.BCEWithLogitsLoss(reduction='none', pos_weight=torch.tensor([3.0, 2.0, 1.0]))(s, t)
    (each[here].sum() / here.sum()).backward()
    close(gradient, s.grad.numpy(), 1e-5, 'by the outputs')


def test_the_focal_loss_equals_torchvision():
    ops = pytest.importorskip('torchvision.ops')
    torch = pytest.importorskip('torch')
    outputs, view = batch(3)
    view = view._replace(present=np.ones_like(view.present))
    out, gradient = run(built(3, focal=2.0, weights=dict.fromkeys(LABELS, (0.75, 0.25))), outputs, view)
    t, known = (torch.tensor(x)[:, None].expand(-1, CROPS, -1) for x in targets(view))
    s = torch.tensor(outputs.astype(np.float64), requires_grad=True)
    loss = ops.sigmoid_focal_loss(s[known], t[known], alpha=0.25, gamma=2.0, reduction='mean')
    loss.backward()
    np.testing.assert_allclose(out.loss, loss.item(), rtol=1e-5)
    close(gradient, s.grad.numpy(), 1e-5, 'by the outputs')


# Classes.


def class_of(view, kind) -> tuple[np.ndarray, np.ndarray]:
    if kind == 'grade':
        grade = view.meta['column'][:, 1]
        return np.nan_to_num(grade).astype(int), np.isfinite(grade)
    codes = view.meta['label']
    known = [(row == 1).sum() == 1 and not ((row == -1) | (row == -3)).any() for row in codes]
    return (codes == 1).argmax(1), np.array(known)


@pytest.mark.parametrize('classes', ['grade', list(LABELS)], ids=['words', 'labels'])
def test_classes_equal_torch(classes):
    torch = pytest.importorskip('torch')
    k = len(WORDS) if classes == 'grade' else 3
    weights = [2.0, 1.0, 0.5, 1.5][:k]
    outputs, view = batch(k)
    out, gradient = run(built(k, classes=classes, weights=weights, smoothing=0.1), outputs, view)
    y, known = class_of(view, classes)
    here = known[:, None] & view.present
    s = torch.tensor(outputs.astype(np.float64), requires_grad=True)
    target = torch.tensor(np.repeat(y[:, None], CROPS, 1))[torch.tensor(here)]
    cross_entropy = torch.nn.functional.cross_entropy
    loss = cross_entropy(s[torch.tensor(here)], target, torch.tensor(weights).double(), label_smoothing=0.1,
                         reduction='sum') / here.sum()  # fmt: skip
    loss.backward()
    np.testing.assert_allclose(out.loss, loss.item(), rtol=1e-5)
    close(gradient, s.grad.numpy(), 1e-5, 'by the outputs')
    assert out.metrics['targets'] == here.sum()


@pytest.mark.parametrize('focal', [0.0, 0.7, 2.0, 3.0])
def test_the_focal_loss_of_classes_and_its_best_constant(focal):
    outputs, view = batch(4)
    out, _ = run(built(4, classes='grade', focal=focal, weights=[1.0, 2.0, 1.0, 0.5]), outputs, view)
    y, known = class_of(view, 'grade')
    here, w = known[:, None] & view.present, np.array([1.0, 2.0, 1.0, 0.5])
    p = special.softmax(outputs.astype(np.float64), -1)
    each = [w[y[b]] * (1 - p[b, v, y[b]]) ** focal * -np.log(p[b, v, y[b]]) for b, v in np.argwhere(here)]
    np.testing.assert_allclose(out.loss, np.mean(each), rtol=1e-5)
    totals = np.array([w[k] * here[y == k].sum() for k in range(4)]) / here.sum()

    def constant(s):
        p = special.softmax(s)
        return (totals * (1 - p) ** focal * -np.log(p)).sum()

    best = optimize.minimize(constant, np.log(totals + 1e-3), method='BFGS', options=dict(gtol=1e-9)).fun
    np.testing.assert_allclose(out.start, best, rtol=2e-4)


def test_a_certain_answer_has_a_finite_gradient():
    outputs, view = batch(4)
    outputs = np.full_like(outputs, -200.0)
    outputs[..., 0] = 200.0
    for term in (built(4, classes='grade', focal=0.5), built(4, classes='grade')):
        out, gradient = run(term, outputs, view)
        assert np.isfinite(out.loss) and np.isfinite(gradient).all()
    out, gradient = run(built(3, focal=0.5), outputs[..., :3], view)
    assert np.isfinite(out.loss) and np.isfinite(gradient).all()


# Numbers and levels.


@pytest.mark.parametrize('error', ['mse', 'mae', 'huber'])
def test_numbers_equal_torch_and_start_at_the_best_constant(error):
    torch = pytest.importorskip('torch')
    outputs, view = batch(2)
    out, gradient = run(
        built(2, numbers=['age', 'count'], error=error, mean=[60.0, 2.0], std=[20.0, 1.5]), outputs, view
    )
    y = (view.meta['column'][:, [0, 2]].astype(np.float64) - [60, 2]) / [20, 1.5]
    here = np.isfinite(y)[:, None] & view.present[..., None]
    functional = torch.nn.functional
    loss_of = dict(mse=functional.mse_loss, mae=functional.l1_loss, huber=functional.huber_loss)
    s = torch.tensor(outputs.astype(np.float64), requires_grad=True)
    target = torch.tensor(np.repeat(y[:, None], CROPS, 1))
    loss = loss_of[error](s[torch.tensor(here)], target[torch.tensor(here)])
    loss.backward()
    np.testing.assert_allclose(out.loss, loss.item(), rtol=1e-5)
    close(gradient, s.grad.numpy(), 1e-5, 'by the outputs')

    def constant(c, values):
        d = np.abs(c - values)
        return dict(mse=d**2, mae=d, huber=np.where(d < 1, d * d / 2, d - 0.5))[error].sum()

    best = 0.0
    for k in range(2):
        values = target[..., k].numpy()[here[..., k]]
        best += optimize.minimize_scalar(constant, args=(values,), bounds=(-5, 5), method='bounded').fun
    np.testing.assert_allclose(out.start, best / here.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ('column', 'levels', 'values'),
    [('grade', ['low', 'middle', 'high', 'top'], [0, 1, 2, 3]), ('count', [1, 2, 4], [1, 2, 4])],
)
def test_levels_equal_the_loss_of_corn(column, levels, values):
    """The loss of arXiv 2111.08851: for each output the binary cross-entropy of the rows at its level or above."""
    outputs, view = batch(len(levels) - 1)
    out, _ = run(built(len(levels) - 1, ordered=column, levels=levels), outputs, view)
    given = view.meta['column'][:, list(COLUMNS).index(column)]
    total = count = 0
    for k in range(len(levels) - 1):
        for b, v in np.argwhere(view.present):
            if given[b] in values and values.index(given[b]) >= k:
                sign = 1.0 if values.index(given[b]) > k else -1.0
                total += np.logaddexp(0, -sign * float(outputs[b, v, k]))
                count += 1
    np.testing.assert_allclose(out.loss, total / count, rtol=1e-5)
    assert out.metrics['targets'] == count and out.start < np.log(2)


# The share of patients.


def test_a_share_of_patients_is_fixed_nested_and_as_large_as_it_says():
    keys = np.random.default_rng(0).integers(0, 2**32, (200_000, 2), dtype=np.uint32)
    keys[: len(keys) // 2, 0] = 5  # keys that differ in few bits are as good
    keys[: len(keys) // 2, 1] = np.arange(len(keys) // 2)
    for share in (0.01, 0.1, 0.5, 1.0):
        used = supervised.is_used(keys, share, 3)
        deviation = math.sqrt(share * (1 - share) / len(used) * 2)
        for half in np.split(used, 2):
            assert abs(half.mean() - share) <= 4 * deviation
        np.testing.assert_array_equal(jax.jit(lambda x, share=share: supervised.is_used(x, share, 3))(keys), used)
    small, large = (supervised.is_used(keys, share, 3) for share in (0.01, 0.1))
    assert not (small & ~large).any()
    other = supervised.is_used(keys, 0.1, 4)
    assert abs((large & other).mean() - 0.01) < 0.002


def test_only_patients_of_the_share_count():
    outputs, view = batch(3, rows=400)
    term = built(3, share=0.3, seed=1)
    out, gradient = run(term, outputs, view)
    used = supervised.is_used(view.meta['key/patient'], 0.3, 1)
    kept = view._replace(present=view.present & used[:, None])
    expected, _ = run(built(3), outputs, kept)
    assert 60 < used.sum() < 180 and out.loss == pytest.approx(float(expected.loss), rel=1e-6)
    assert not gradient[~used].any() and gradient[used].any()


# CutMix.


def mixed(view):
    """The view with partners: crops of row b show row b + 1 too, the last row shows row 0."""
    rng = np.random.default_rng(2)
    own = np.where(rng.random(view.present.shape) < 0.3, 1.0, rng.random(view.present.shape)).astype(np.float32)
    told = {f'mix/{name}': np.roll(x, -1, 0) for name, x in {**view.meta, 'row': view.row}.items()}
    return view._replace(meta={**view.meta, **told, 'mix/share': own})


@pytest.mark.parametrize('kind', ['labels', 'classes'])
def test_a_mixed_crop_is_worth_its_two_rows_by_their_share_of_the_pixels(kind):
    """l(s, t) a + l(s, t') (1-a) in a loop over the known targets, and its slope, in float64."""
    outputs, options = (3, {}) if kind == 'labels' else (4, dict(classes='grade'))
    s, plain = batch(outputs)
    view = mixed(plain)
    out, gradient = run(built(outputs, **options), s, view)
    total, weight, slope = 0.0, 0.0, np.zeros(s.shape)
    for b, v in zip(*np.nonzero(plain.present), strict=True):
        own, x = float(view.meta['mix/share'][b, v]), s[b, v].astype(np.float64)
        for row, part in ((b, own), ((b + 1) % ROWS, 1 - own)):
            if kind == 'labels':
                codes = plain.meta['label'][row]
                known, target = codes >= 0, codes.clip(0)
                losses, slopes = np.logaddexp(0, x) - target * x, special.expit(x) - target
                total, weight = total + part * losses[known].sum(), weight + part * known.sum()
                slope[b, v] += part * np.where(known, slopes, 0)
            elif np.isfinite(word := plain.meta['column'][row, 1]):
                total, weight = total + part * (special.logsumexp(x) - x[int(word)]), weight + part
                slope[b, v] += part * (special.softmax(x) - (np.arange(4) == word))
    assert float(out.loss) == pytest.approx(total / weight, rel=1e-5)
    assert float(out.metrics['targets']) == pytest.approx(weight, rel=1e-5)
    np.testing.assert_allclose(gradient, slope / weight, atol=1e-7)


def test_the_start_of_mixed_crops_is_the_entropy_of_all_targets_by_their_weights():
    view = mixed(batch(3)[1])
    out, _ = run(built(3), batch(3)[0], view)
    own, expected, total = view.meta['mix/share'], 0.0, 0.0
    for o in range(3):
        counts = np.zeros(2)
        for name, weight in (('label', own), ('mix/label', 1 - own)):
            for value in (0, 1):
                counts[value] += (weight * view.present)[view.meta[name][:, o] == value].sum()
        expected -= (counts * np.log(counts / counts.sum())).sum()
        total += counts.sum()
    assert float(out.start) == pytest.approx(expected / total, rel=1e-5)


def test_only_this_term_reads_a_view_with_cutmix():
    cfg = recipe() | dict(rows_per_group=2)
    cfg['views'] = {**cfg['views'], 'global': {**cfg['views']['global'], 'cutmix': 0.5}}
    assert compose(cfg)
    cfg['terms'] = [*cfg['terms'], dict(term='koleo', of='student/image/global/cls')]
    with pytest.raises(UserError, match="the crops of 'global' show two rows each .cutmix., and this term would take"):
        compose(cfg)


# Devices.


@pytest.mark.skipif(jax.device_count() != 8, reason='needs 8 (virtual) devices')
@pytest.mark.parametrize(
    ('outputs', 'options'),
    [
        (3, dict(policy=dict(uncertain=[0.1, 0.9]), share=0.5, focal=2.0)),
        (4, dict(classes='grade', smoothing=0.1)),
        (2, dict(numbers=['age', 'count'], error='huber', mean=[60, 2], std=[20, 1])),
    ],
)
def test_eight_devices_give_the_same_and_move_what_the_term_says(outputs, options):
    jax.set_mesh(recipes.one_device())
    term = built(outputs, **options)
    features, view = batch(outputs, rows=64)
    view = mixed(view) if 'smoothing' in options else view
    alone, gradient = run(term, features, view)
    mesh = sharding.make_mesh(4, 2, 1)
    jax.set_mesh(mesh)
    placed = jax.device_put((features, view), sharding.rows_sharding(mesh))
    out, same = run(term, *placed)
    np.testing.assert_allclose([out.loss, out.start], [alone.loss, alone.start], rtol=1e-5)
    close(same, gradient, 1e-5, 'by the outputs')

    def loss(outputs, view):
        inputs = TermInputs(
            {}, {}, {OF: outputs}, {OF: view.present}, {'crop': view}, {}, NETWORKS, jnp.int32(0), jax.random.key(7)
        )
        return term.loss(inputs)

    value_and_grad = jax.value_and_grad(lambda *x: (loss(*x).loss, loss(*x)), has_aux=True)
    compiled = jax.jit(value_and_grad).lower(*placed).compile()
    moved = collectives(compiled.as_text())
    assert moved and sum(math.prod(dims) for _, dims in moved) <= term.moves(64, {OF: features.shape}), moved


# In a recipe.


def recipe(**options) -> dict:
    terms = [dict(term='supervised', of='student/image/global/cls>classifier', **options)]
    heads = dict(classifier=dict(head='linear', bias=True))
    return recipes.tiny(masks={}, heads=heads, teachers={}, terms=terms, labels=LABELS, columns=COLUMNS)


def test_the_head_gets_its_outputs_from_the_term():
    objective = compose(recipe())
    params, _ = jax.eval_shape(objective.init, jax.random.key(0))
    assert params['heads']['classifier']['fc1']['kernel'].shape == (32, 3)
    assert compose(recipe(classes='grade')).predictions['supervised'].outputs == 4
    told = recipe()
    told['heads']['classifier']['out'] = 5
    with pytest.raises(UserError, match='has 5 numbers and the term predicts 3 outputs; end it in a head of its own'):
        compose(told)
    without = recipe()
    without['terms'][0]['of'] = 'student/image/global/cls'
    with pytest.raises(UserError, match='has 32 numbers and the term predicts 3 outputs'):
        compose(without | dict(heads={}))


def test_without_data_any_number_of_labels_will_do():
    objective = compose(recipe(weights='balanced') | dict(labels=None))
    assert objective.predictions['supervised'].meaning['names'] == ('any label',)
    compose(recipe(numbers='age') | dict(labels=None))
    compose(recipe(ordered='grade') | dict(labels=None))


@pytest.mark.slow
@pytest.mark.parametrize('cutmix', [0.0, 0.7])
def test_micro_batches_give_one_loss_and_one_gradient(cutmix):
    cfg = recipe(policy=dict(uncertain=[0.2, 0.8]), share=0.6)
    cfg['views'] = {**cfg['views'], 'global': {**cfg['views']['global'], 'cutmix': cutmix}}
    rows = recipes.batch(8)
    rng = np.random.default_rng(1)
    rows['cxr']['label'] = rng.integers(-3, 2, (8, 3)).astype(np.int8)
    rows['cxr']['key/patient'] = rng.integers(0, 2**32, (8, 2), dtype=np.uint32)
    rows['cxr']['column'] = np.zeros((8, 3), np.float32)
    results = []
    for micro_batches in (1, 4):
        objective, optim, step = recipes.parts(cfg | dict(rows_per_group=2), micro_batches)
        state = recipes.start(objective, optim)

        def run(state, batch, objective=objective, step=step, n=micro_batches):
            views = lambda rows: step.make_views(rows, state.key, state.step)  # noqa: E731
            loss, _, _, grads = gradients(objective, state, batch, views, state.key, n)
            return loss, grads

        results.append(jax.jit(run)(state, rows))
    (loss, grads), (split_loss, split_grads) = results
    assert abs(loss - split_loss) <= 1e-6 * abs(loss) and recipes.worst(split_grads, grads) <= 1e-5


@pytest.mark.parametrize(
    ('options', 'sentence'),
    [
        (dict(labels=['efusion']), r"labels: the data have no label 'efusion'.*did you mean 'effusion'"),
        (dict(labels=['age']), r"labels: 'age' is a column and no label; write numbers='age'"),
        (dict(labels=['mass', 'mass']), 'must name at least one label, each once'),
        (dict(labels='mass'), 'must be a list of texts'),
        (dict(classes='mass'), r"'mass' is one label; name several, or write labels=\['mass'\]"),
        (dict(classes='age'), "'age' is a column of numbers; write numbers='age'"),
        (dict(classes=['mass']), 'must name at least two classes'),
        (dict(numbers='grade'), "'grade' holds words and no numbers; classes=… predicts them"),
        (dict(numbers='age'), 'mean: comes from the data when a run begins'),
        (dict(numbers='age', mean=1, std=0), r'std=0: must be above 0'),
        (dict(numbers='age', mean=[1, 2], std=1), r'mean=\[1, 2\]: must be a number, or a list of 1'),
        (dict(numbers='age', mean=1, std=1, error='l1'), r"error='l1': must be one of mse, mae, huber"),
        (dict(numbers='age', mean=1, std=1, focal=2.0), "unknown key 'focal'"),
        (dict(ordered='mass'), "'mass' is a label, present or absent"),
        (dict(ordered='count', levels=[3, 2]), 'numbers stand in rising order'),
        (dict(ordered='grade', levels=['low', 'hihg']), "has no word 'hihg'; did you mean 'high'"),
        (dict(classes='grade', numbers='age'), 'it predicts classes or numbers, not both'),
        (dict(policy=dict(uncertain='yes')), "policy.uncertain='yes': must be 'ignore', 'negative', 'positive'"),
        (dict(policy=dict(uncertain=[0.9, 0.1])), 'a probability from 0 to 1, or two of them'),
        (dict(policy=dict(uncertain=dict(mas=1))), "predicts no label 'mas'; did you mean 'mass'"),
        (dict(policy=dict(unknown=1)), "policy: unknown key 'unknown'"),
        (dict(weights=[1.0, 2.0]), 'a dict by name or a list of 3'),
        (dict(weights=[1, 1, -1]), 'at least 0'),
        (dict(weights=dict(mas=1)), "no output 'mas'; did you mean 'mass'"),
        (dict(weights='balanced'), 'weights: comes from the data when a run begins, but not in a stage'),
        (dict(focal=9.0), r'focal=9.0: must be a number from 0'),
        (dict(smoothing=1), r'smoothing=1: must be a number from 0 to below 1'),
        (dict(share=0), r'share=0: must be above 0 and at most 1'),
        (dict(ordered='grade', levels=[['low'], 'high']), 'must be a list of at least two different levels'),
        (dict(policy='negative'), r"policy='negative': must be a dict, such as dict\(uncertain='negative'\)"),
        (dict(seed=-1), r'seed=-1: must be a whole number'),
    ],
)
def test_mistakes_are_sentences(options, sentence):
    with pytest.raises(UserError, match=sentence):
        compose(recipe(**options))


def test_data_without_labels_are_told_what_would_work():
    with pytest.raises(UserError, match=r"the data have no labels to predict; build them with labels.*classes='sex'"):
        compose(recipe() | dict(labels=()))


def test_no_option_can_be_given_in_vain():
    """All options of the term are keywords of one of its tasks."""
    ours = set(inspect.signature(supervised.build).parameters) - {'context', 'of', 'share', 'seed'}
    theirs = {name for kind in task_options.KINDS.values() for name in inspect.signature(kind).parameters}
    assert ours == theirs - {'context', 'stand_ins'}
