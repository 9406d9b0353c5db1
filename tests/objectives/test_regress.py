"""The term `regress`: padding and absent rows do not count, and both sides are tokens at one mask."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UserError
from medjax.objectives.terms import TermContext, TermInputs, regress
from medjax.types import Mask, View

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
