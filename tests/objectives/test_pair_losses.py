"""The pair losses against their definition, transformers and open_clip, and with absent rows."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_pairs as reference
from pair_cases import (
    COLUMNS,
    MODULES,
    PLACEMENTS,
    ROWS,
    TEACHER_ROWS,
    Constants,
    D,
    N,
    all_present,
    build_term,
    check_term,
    evaluate,
    expected_loss,
    make_batch,
    set_mesh,
)
from reference_losses import close

from medjax.objectives.terms import pair_sigmoid, pair_softmax


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('module', MODULES)
def test_several_views_and_texts(module, placement):
    check_term(module, placement, ['identity', 'text', dict(soft='teacher', alpha=0.4)], *make_batch(2, 3))


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('positives', ['text', dict(soft='teacher')], ids=str)
def test_the_lowest_temperature(positives, placement):
    """Similarities reach 100. They overflow unless exponentials are relative to the largest one of all devices."""
    features, views = make_batch()
    term = build_term(pair_softmax, placement, positives=positives, temperature=0.01)
    result = evaluate(term, placement, features, views)
    expected = expected_loss(pair_softmax, positives, features, views, constants=Constants(100.0, 0.5))
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    close(result.by_features[ROWS][:, 0], expected.by_rows, 1e-4, 'by the rows')
    close(result.by_features[COLUMNS][:, 0], expected.by_columns, 1e-4, 'by the columns')


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_clip_of_transformers(placement):
    torch = pytest.importorskip('torch')
    clip = pytest.importorskip('transformers.models.clip.modeling_clip')
    features, views = make_batch()
    x, y = (torch.tensor(features[name][:, 0], requires_grad=True) for name in (ROWS, COLUMNS))
    scale = torch.tensor(math.log(1 / 0.07), requires_grad=True)
    u, v = (z / z.norm(dim=-1, keepdim=True) for z in (x, y))
    loss = getattr(clip, 'image_text_contrastive_loss', None) or clip.clip_loss  # renamed in transformers 5
    expected = loss(v @ u.t() * scale.exp())
    expected.backward()
    term = build_term(pair_softmax, placement, temperature=dict(learned=0.07))
    result = evaluate(term, placement, features, all_present(views))
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    close(result.by_features[ROWS][:, 0], x.grad, 1e-5, 'image')
    close(result.by_features[COLUMNS][:, 0], y.grad, 1e-5, 'text')
    assert result.by_params['log_scale'] == pytest.approx(scale.grad.item(), rel=1e-4)


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_siglip_of_transformers(placement):
    """SiglipModel itself, with towers that give our embeddings in the place of its own."""
    torch = pytest.importorskip('torch')
    siglip = pytest.importorskip('transformers.models.siglip')
    outputs = pytest.importorskip('transformers.modeling_outputs').BaseModelOutputWithPooling
    features, views = make_batch()
    x, y = (torch.tensor(features[name][:, 0], requires_grad=True) for name in (ROWS, COLUMNS))

    class FixedTower(torch.nn.Module):
        def __init__(self, z):
            super().__init__()
            self.z = z

        def forward(self, *_, **__):
            return outputs(last_hidden_state=self.z, pooler_output=self.z)

    tiny = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = siglip.SiglipModel(siglip.SiglipConfig(text_config=dict(tiny, vocab_size=9), vision_config=tiny))
    model.vision_model, model.text_model = FixedTower(x), FixedTower(y)
    scale, bias = model.logit_scale, model.logit_bias
    with torch.no_grad():
        scale.fill_(math.log(10))
        bias.fill_(-10.0)
    expected = model(input_ids=None, pixel_values=None, return_loss=True).loss
    expected.backward()
    result = evaluate(build_term(pair_sigmoid, placement), placement, features, all_present(views))
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    close(result.by_features[ROWS][:, 0], x.grad, 1e-5, 'image')
    close(result.by_features[COLUMNS][:, 0], y.grad, 1e-5, 'text')
    assert result.by_params['log_scale'] == pytest.approx(scale.grad.item(), rel=1e-4)
    assert result.by_params['bias'] == pytest.approx(bias.grad.item(), rel=1e-4)


@pytest.fixture(scope='module')
def open_clip_losses():
    """The file loss.py of open_clip, which needs torch alone.

    The whole package needs torchvision, whose wheels for Linux are built for CUDA. So no extra of medjax names it.
    """
    pytest.importorskip('torch')
    package = importlib.util.find_spec('open_clip')
    if package is None:
        pytest.skip('open_clip is not installed: pip install --no-deps open_clip_torch')
    spec = importlib.util.spec_from_file_location('open_clip_loss', Path(package.origin).with_name('loss.py'))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('module', MODULES)
def test_losses_of_open_clip(module, placement, open_clip_losses):
    """ClipLoss and SigLipLoss: the value, and the gradients by both embeddings, ln scale and bias."""
    import torch

    features, views = make_batch(rows=24)
    start = dict(temperature=dict(learned=0.07)) if module is pair_softmax else dict(bias=-4.0)
    term = build_term(module, placement, **start)
    params, _ = term.init(jax.random.key(0))
    x, y = (torch.tensor(np.float64(features[name][:, 0]), requires_grad=True) for name in (ROWS, COLUMNS))
    torch_params = {name: torch.tensor(np.float64(p), requires_grad=True) for name, p in params.items()}
    sides = [torch.nn.functional.normalize(z, dim=-1) for z in (x, y)]
    scale = torch_params['log_scale'].exp()
    if module is pair_softmax:
        expected = open_clip_losses.ClipLoss()(*sides, scale)
    else:
        expected = open_clip_losses.SigLipLoss()(*sides, scale, torch_params['bias'])
    expected.backward()
    result = evaluate(term, placement, features, all_present(views))
    assert result.loss == pytest.approx(expected.item(), rel=1e-5)
    assert int(result.metrics['rows']) == 24
    close(result.by_features[ROWS][:, 0], x.grad, 1e-5, 'image')
    close(result.by_features[COLUMNS][:, 0], y.grad, 1e-5, 'text')
    assert result.by_params.keys() == torch_params.keys()
    for name, value in torch_params.items():
        assert result.by_params[name] == pytest.approx(value.grad.item(), rel=1e-4), name


@pytest.mark.parametrize('placement', ['one_device', 'ring'])
def test_a_batch_without_the_absent_rows_is_the_same(placement):
    features, views = make_batch()
    whole = evaluate(build_term(pair_softmax, placement), placement, features, views)
    present = np.setdiff1d(np.arange(N), [3, 5, 6])
    set_mesh('one_device')
    fewer_features = {name: x[present] for name, x in features.items()}
    fewer_views = jax.tree.map(lambda x: x[present], views)
    fewer = evaluate(build_term(pair_softmax), 'one_device', fewer_features, fewer_views)
    assert whole.loss == pytest.approx(fewer.loss, rel=1e-6)
    start = float(whole.metrics['start'])
    assert start == pytest.approx(float(fewer.metrics['start'])) == pytest.approx(math.log(13))
    assert int(whole.metrics['rows']) == 13 and int(whole.metrics['left_out']) == 3


@pytest.mark.parametrize('module', MODULES)
def test_a_view_that_no_row_has_is_in_no_mean(module):
    """Two crops a row, where every second crop is absent, give the loss of the first crops, not half of it."""
    features, views = make_batch()
    first = evaluate(build_term(module), 'one_device', features, views)
    features[ROWS] = np.concatenate([features[ROWS], features[ROWS][::-1]], 1)
    present = views['crop'].present
    views['crop'] = views['crop']._replace(present=np.concatenate([present, np.zeros_like(present)], 1))
    both = evaluate(build_term(module), 'one_device', features, views)
    assert both.loss == pytest.approx(first.loss, rel=1e-6) and not both.by_features[ROWS][:, 1].any()
    assert float(both.metrics['start']) == pytest.approx(float(first.metrics['start']))
    assert int(both.metrics['rows']) == int(first.metrics['rows'])


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('module', MODULES)
def test_a_batch_without_a_positive_gives_zero(module, placement):
    features, views = make_batch()
    views['report'] = views['report']._replace(present=np.zeros((N, 1), bool))
    for positives in ('identity', 'text', ['identity', dict(soft='teacher', alpha=0.4)], dict(soft='labels')):
        result = evaluate(build_term(module, placement, positives=positives), placement, features, views)
        assert result.loss == 0.0 and float(result.metrics['start']) == 0.0
        assert int(result.metrics['rows']) == 0 and int(result.metrics['left_out']) == N
        gradients = jax.tree.leaves((result.by_features, result.by_params))
        assert all(np.isfinite(g).all() and not g.any() for g in gradients)


def test_start_values():
    """ln N for equal outputs; softplus(10) + (N - 1) softplus(-10) for orthogonal ones, before any training."""
    features, views = make_batch(rows=256)
    views = all_present(views)
    equal = {name: np.ones_like(x) for name, x in features.items()}
    result = evaluate(build_term(pair_softmax), 'one_device', equal, views)
    assert result.loss == pytest.approx(math.log(256), rel=1e-6)
    assert float(result.metrics['start']) == pytest.approx(5.545, abs=1e-3)
    orthogonal = {name: np.tile(np.eye(D, dtype=np.float32)[i], (256, 1, 1)) for i, name in enumerate((ROWS, COLUMNS))}
    result = evaluate(build_term(pair_sigmoid), 'one_device', orthogonal, views)
    start = math.log1p(math.exp(10)) + 255 * math.log1p(math.exp(-10))
    assert result.loss == pytest.approx(start, rel=1e-6)
    assert float(result.metrics['untrained']) == pytest.approx(start, rel=1e-6)
    assert start == pytest.approx(10.012, abs=1e-3)
    entropy = -(math.log(1 / 256) + 255 * math.log(255 / 256))  # of the frequency of positives, for each row
    assert float(result.metrics['start']) == pytest.approx(entropy, rel=1e-4)


def test_scale_is_kept_between_its_bounds():
    term = build_term(pair_softmax, temperature=dict(learned=0.07, low=0.01))
    params, _ = term.init(jax.random.key(0))
    assert float(jnp.exp(params['log_scale'])) == pytest.approx(1 / 0.07, rel=1e-6)
    assert float(term.project({'log_scale': jnp.float32(9.0)})['log_scale']) == pytest.approx(math.log(100))
    assert float(term.project({'log_scale': jnp.float32(1.0)})['log_scale']) == 1.0
    assert build_term(pair_softmax).init(jax.random.key(0)) == ({}, {})


def test_temperature_follows_its_schedule():
    term = build_term(pair_softmax, temperature=[0.5, 0.1])
    result = evaluate(term, 'one_device', *make_batch(), step=jnp.int32(1))
    assert float(result.metrics['temperature']) == pytest.approx(0.1)


def test_a_crop_is_not_its_own_pair():
    """Two crops of one view on both sides: the loss is that of one crop with the other, in both orders."""
    features, views = make_batch(crops=2)
    views['crop'] = views['crop']._replace(present=np.ones((N, 2), bool))
    term = build_term(pair_softmax, columns=ROWS, temperature=0.2)
    result = evaluate(term, 'one_device', features, views)
    x, y = features[ROWS][:, 0], features[ROWS][:, 1]
    loss, by_x, by_y, _ = reference.pair_softmax(x, y, np.eye(N), np.eye(N), 5.0, 0.5)
    assert result.loss == pytest.approx(loss, rel=1e-5)
    close(result.by_features[ROWS], np.stack([by_x, by_y], 1), 1e-5, 'by the crops')


def test_a_crop_of_the_student_meets_the_other_crops_of_the_teacher():
    """Student and teacher see the same two crops: each crop of the student meets the teacher's other crop."""
    features, views = make_batch(crops=2)
    views['crop'] = views['crop']._replace(present=np.ones((N, 2), bool))
    term = build_term(pair_softmax, columns=TEACHER_ROWS, temperature=0.2)
    result = evaluate(term, 'one_device', features, views)
    losses = [
        reference.pair_softmax(
            features[ROWS][:, crop], features[TEACHER_ROWS][:, 1 - crop], np.eye(N), np.eye(N), 5.0, 0.5
        )[0]
        for crop in (0, 1)
    ]
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize('module', MODULES)
def test_contexts_of_one_crop_are_not_compared(module):
    """Two crops of two contexts each: the loss has the pairs of contexts of different crops alone."""
    features, views = make_batch(crops=4)
    term = build_term(module, columns=ROWS, positives='identity')
    with_contexts = dataclasses.replace(term, context=dataclasses.replace(term.context, crops=dict(crop=2)))
    allowed = np.asarray(with_contexts.allowed(4, 4))[0, :, 0]
    np.testing.assert_array_equal(allowed, np.kron([[0, 1], [1, 0]], np.ones((2, 2))))
    result = evaluate(with_contexts, 'one_device', features, views)
    crops = [{**features, ROWS: features[ROWS][:, [i, j]]} for i in (0, 1) for j in (2, 3)]
    pairs = {**views, 'crop': views['crop']._replace(present=views['crop'].present[:, :2])}
    expected = [evaluate(term, 'one_device', pair, pairs).loss for pair in crops]
    np.testing.assert_allclose(result.loss, np.mean(expected), rtol=1e-5)
