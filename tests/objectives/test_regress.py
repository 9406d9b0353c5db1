"""The term `regress`: padding and absent rows do not count, and both sides are tokens at one mask.

The loops of data2vec follow facebookresearch/data2vec_vision, beit/engine_for_cyclical.py:65-123, read and not copied.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import run

from medjax.errors import UserError
from medjax.models.towers import vit
from medjax.objectives.terms import TermContext, TermInputs, regress
from medjax.objectives.trees import at_mask
from medjax.types import Mask, View
from medjax.views.masks import from_bits

STUDENT, TEACHER = 'student/text/report/tokens', 'teacher/large/report/tokens'


def context():
    return TermContext('terms[0] (regress)', 10, 1, width=lambda name: 4)


@pytest.mark.parametrize('loss', ['mse', 'cosine'])
def test_padding_and_absent_texts_count_nowhere(loss):
    rng = np.random.default_rng(0)
    valid = np.arange(5) < np.array([[5], [2], [3]])
    present = np.array([[True], [True], [False]])
    view = View(None, np.arange(3, dtype=np.uint32), present, valid[:, None], {})
    student, teacher = rng.normal(size=(2, 3, 1, 5, 4)).astype(np.float32)
    term = regress.build(context(), STUDENT, TEACHER, loss, normalise=None)
    features, presence = {STUDENT: student, TEACHER: teacher}, {STUDENT: present, TEACHER: present}

    def inputs(**more):
        return TermInputs({}, {}, features, presence, {'report': view}, {}, None, jnp.int32(0), None, **more)

    out = jax.jit(lambda: term.loss(inputs(per_row=term.per_row(inputs()))))()
    s, t = (np.concatenate([x[0, 0, :5], x[1, 0, :2]]).astype(np.float64) for x in (student, teacher))
    if loss == 'cosine':
        s, t = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (s, t))
        expected, start = 1 - (s * t).sum(1).mean(), 1 - np.linalg.norm(t.mean(0))
    else:
        expected, start = ((s - t) ** 2).mean(), ((t - t.mean(0)) ** 2).mean()
    np.testing.assert_allclose(out.loss, expected, rtol=1e-5)
    np.testing.assert_allclose(out.start, start, rtol=1e-4)
    assert float(out.metrics['rows']) == 7


def test_both_sides_are_tokens_at_one_mask():
    with pytest.raises(UserError, match='student and teacher must be tokens at one mask'):
        regress.build(context(), 'student/image/crop/patches@block', 'teacher/image/crop/patches@other')


def test_smooth_l1_by_loops_and_without_gradient_through_the_target():
    """Two groups of one row with two crops, two contexts of each crop, three sets of at most three targets."""
    rng = np.random.default_rng(0)
    g, crops, contexts, sets, room, d = 2, 2, 2, 3, 3, 4
    counts = rng.integers(1, room + 1, (g, sets, crops))
    weight = (np.arange(room) < counts[..., None]) / counts[..., None]
    index = rng.integers(0, 9, (g, sets, crops, room)) + 9 * np.arange(crops)[:, None]
    mask = Mask(
        np.zeros((g, crops, 9), bool), index.reshape(g, sets, -1), weight.reshape(g, sets, -1).astype(np.float32),
        mode='drop', crop_room=room,
    )  # fmt: skip
    student, teacher = 'student/predictor/crop~block/patches@block', 'teacher/image/crop/patches@block'
    predicted = 2 * rng.normal(size=(g, sets, crops * contexts * room, d)).astype(np.float32)
    features = rng.normal(size=(g, sets, crops * room, d)).astype(np.float32)
    present = np.array([[True, False], [True, True]])
    view = View(None, np.arange(g, dtype=np.uint32), present, None, {})
    term = regress.build(context(), student, teacher, 'smooth_l1')

    def loss(predicted, features):
        presence = {student: jnp.repeat(present, contexts, axis=1), teacher: present}
        x = TermInputs(
            {}, {}, {student: predicted, teacher: features}, presence, {'crop': view}, {'crop~block': mask}, None,
            jnp.int32(0), None,
        )  # fmt: skip
        out = term.loss(dataclasses.replace(x, per_row=term.per_row(x)))
        assert out.start is None
        return out.loss

    value, (by_student, by_teacher) = jax.jit(jax.value_and_grad(loss, (0, 1)))(predicted, features)
    terms = []
    for i in np.ndindex(g, sets, crops, contexts):
        group, k, crop, one = i
        for m in range(counts[group, k, crop] if present[group, crop] else 0):
            t = features[group, k, crop * room + m].astype(np.float64)
            t = (t - t.mean()) / np.sqrt(t.var() + 1e-5)
            distance = np.abs(predicted[group, k, (crop * contexts + one) * room + m] - t)
            terms.append(np.where(distance < 1, distance**2 / 2, distance - 0.5).mean())
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    assert np.abs(by_student).max() > 0 and not np.abs(by_teacher).any()


def standardised(x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-5)


def test_data2vec_by_loops():
    """Targets are the standardised mean of standardised patches after the last two blocks, at masked patches alone."""
    rng = np.random.default_rng(0)
    rows, side, beta, width = 3, 4, 2.0, 16
    tower = vit.build(1, 'Ti/4', 'ijepa', width, 3, 2, native_size=16, positions='learned')
    params = run(lambda: jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(x.size), x.shape),
                                      tower.init(jax.random.key(0))))  # fmt: skip
    present = np.array([[True], [False], [True]])
    view = View(
        rng.normal(size=(rows, 1, 1, 16, 16, 1)).astype(np.float32), np.arange(rows, dtype=np.uint32), present, None,
        {}, present[..., None],
    )  # fmt: skip
    bits = np.stack([rng.permutation(side**2) < n for n in (5, 7, 9)])[:, None]
    mask = from_bits(bits, rows, 9)
    student, teacher = (
        'student/image/crop~block/patches@block>predictor',
        'teacher/image/crop/mean2/standardised_patches@block',
    )
    predicted = (3 * rng.normal(size=(rows, 1, 9, width))).astype(np.float32)
    term = regress.build(
        TermContext('terms[0]', 10, 1, width=lambda name: width), student, teacher, 'smooth_l1', beta=beta
    )

    def loss(predicted, params):
        outputs = tower.apply(params, vit.Input(view), want=['mean2/standardised_patches'])
        features = {student: predicted, teacher: at_mask(outputs['mean2/standardised_patches'], mask)}
        x = TermInputs(
            {}, {}, features, {student: present, teacher: present}, {'crop': view}, {'crop~block': mask}, None,
            jnp.int32(0), None,
        )  # fmt: skip
        blocks, _, _ = tower.module.apply({'params': params}, view.image[:, 0], vit.Seen(), None, 2)
        return term.loss(dataclasses.replace(x, per_row=term.per_row(x))).loss, blocks

    (value, blocks), (slope, of_teacher) = run(jax.value_and_grad(loss, (0, 1), has_aux=True), predicted, params)
    blocks = np.asarray(blocks, np.float64)  # [blocks,S,N,D], before the final norm
    total, expected, count = 0.0, np.zeros(predicted.shape), bits[present].sum() * width
    for row in np.flatnonzero(present):
        for m, patch in enumerate(np.flatnonzero(bits[row, 0])):
            target = standardised(sum(standardised(block[row, patch]) for block in blocks) / 2)
            for d in range(width):
                distance = predicted[row, 0, m, d] - target[d]
                near = abs(distance) < beta
                total += (distance**2 / (2 * beta) if near else abs(distance) - beta / 2) / count
                expected[row, 0, m, d] = (distance / beta if near else np.sign(distance)) / count
    np.testing.assert_allclose(value, total, rtol=1e-5)
    np.testing.assert_allclose(slope, expected, atol=2e-5 * np.abs(expected).max())
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(of_teacher)), 'a gradient reaches the teacher'


def test_mistakes_about_beta_are_sentences():
    for loss, beta, told in (('smooth_l1', 0, 'must be a number above 0'), ('mse', 2.0, "belongs to loss='smooth_l1'")):
        with pytest.raises(UserError, match=rf'\.beta={beta}: {told}'):
            regress.build(context(), STUDENT, TEACHER, loss, beta=beta)
