"""The term `regress`: padding and absent rows do not count, and both sides are tokens at one mask."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medjax.errors import UserError
from medjax.objectives.terms import TermContext, TermInputs, regress
from medjax.types import View

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
