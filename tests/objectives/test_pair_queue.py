"""The queue of past columns, against the definition with more columns."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference_pairs as reference
from pair_cases import (
    COLUMNS,
    MODULES,
    OPTIONS,
    ROWS,
    STEP,
    TEACHER_COLUMNS,
    TEACHER_ROWS,
    D,
    build_term,
    evaluate,
    is_positive,
    make_batch,
)
from reference_losses import close, context

from medjax.errors import UserError
from medjax.objectives.terms import pair_softmax

CONTEXT = dataclasses.replace(context(1), width=lambda name: D)


def expected_with_queue(module, features, views, past, past_studies):
    """The loss by its definition, with positives of 'identity' and 'study' and soft ones by the teacher.

    Rows also choose among the columns `past`, which have no row numbers and do not choose. Returns the loss, the
    gradients by the rows and by ln scale, and which rows and columns take part.
    """
    crop, report = views['crop'], views['report']
    x, x_soft, y = (np.float64(features[name][:, 0]) for name in (ROWS, TEACHER_ROWS, TEACHER_COLUMNS))
    n = len(x)
    h, h_past = np.zeros((n, n)), np.zeros((n, len(past)))
    for i in range(n):
        for j in range(n):
            if crop.present[i, 0] and report.present[j, 0]:
                h[i, j] = any(is_positive(kind, crop, i, report, j) for kind in ('identity', 'study'))
        for j in range(len(past)):
            h_past[i, j] = crop.present[i, 0] and (crop.meta['key/study'][i] == past_studies[j]).all()
    rows, columns = np.flatnonzero(h.any(1) | h_past.any(1)), np.flatnonzero(h.any(0))
    h, h_past = h[rows][:, columns], h_past[rows]
    candidates = np.concatenate([y[columns], past])
    t = 5.0 * reference.normal(x_soft[rows]) @ reference.normal(candidates).T
    h_all = np.concatenate([h, h_past], 1)
    if module is pair_softmax:
        p_rows = reference.targets(h_all, t, alpha=0.4)
        p_columns = reference.targets(h.T, t[:, : len(columns)].T, alpha=0.4)
        loss, by_x, _, *by_params = reference.pair_softmax(x[rows], candidates, p_rows, p_columns, 5.0, 0.75)
    else:
        z = reference.decisions(h_all, 1 / (1 + np.exp(-(t - 3.0))), alpha=0.4)
        loss, by_x, _, *by_params = reference.pair_sigmoid(x[rows], candidates, z, 5.0, -3.0)
    return loss, by_x, by_params[0], rows, columns


@pytest.mark.parametrize('placement', ['one_device', 'gathered'])
@pytest.mark.parametrize('module', MODULES)
def test_queue(module, placement):
    """Three batches through a queue of 20 columns.

    The newest columns that took part stay in it, with the keys of their studies and the vectors for soft positives, and
    without row numbers.
    """
    positives = ['identity', 'study', dict(soft='teacher', alpha=0.4)]
    term = module.build(CONTEXT, ROWS, TEACHER_COLUMNS, queue=20, positives=positives, **OPTIONS[module])
    _, state = term.init(jax.random.key(0))
    past, past_studies = np.zeros((0, D)), np.zeros((0, 2), int)
    for seed in range(3):
        features, views = make_batch(seed=seed)
        del features[COLUMNS]
        result = evaluate(term, placement, features, views, state=state)
        state = jax.device_put(state, jax.tree.leaves(result.carry)[0].sharding)
        state = jax.device_get(jax.jit(term.update)(state, result.carry, STEP))

        loss, by_rows, by_scale, rows, columns = expected_with_queue(module, features, views, past, past_studies)
        assert result.loss == pytest.approx(loss, rel=1e-5)
        close(result.by_features[ROWS][rows, 0], by_rows, 1e-5, 'by the rows')
        assert not result.by_features[TEACHER_COLUMNS].any() and int(result.metrics['queue']) == len(past)
        assert result.by_params['log_scale'] == pytest.approx(by_scale, rel=1e-4)
        newest = reference.normal(np.float64(features[TEACHER_COLUMNS][columns, 0]))
        past = np.concatenate([newest, past])[:20]
        past_studies = np.concatenate([views['report'].meta['key/study'][columns], past_studies])[:20]
    queue = state['queue']
    assert int(queue['present'].sum()) == 20 and not queue['has_key'][:, 0].any()
    np.testing.assert_allclose(queue['x'], past, rtol=1e-5, atol=1e-6)


def test_absent_columns_do_not_enter_the_queue():
    features, views = make_batch()
    term = pair_softmax.build(CONTEXT, ROWS, COLUMNS, queue=len(features[COLUMNS]))
    _, state = term.init(jax.random.key(0))
    carry = evaluate(term, 'one_device', features, views).carry
    newest = np.array([0, 1, 2, 4])  # row 3 has no image
    np.testing.assert_allclose(
        term.update(state, carry, STEP)['queue']['x'][:4], reference.normal(features[COLUMNS][newest, 0]), rtol=1e-5
    )


@pytest.mark.parametrize('module', MODULES)
def test_a_queue_smaller_than_a_batch(module):
    features, views = make_batch()
    size = len(features[COLUMNS]) - 1
    term = module.build(CONTEXT, ROWS, COLUMNS, queue=size)
    sentence = rf'queue={size}: must hold at least a batch, which has {size + 1} columns here'
    with pytest.raises(UserError, match=sentence):
        evaluate(term, 'one_device', features, views)


def test_axes_of_the_queue_have_the_shape_of_the_state():
    term = pair_softmax.build(CONTEXT, ROWS, COLUMNS, queue=4)
    state, axes = term.init(jax.random.key(0))[1], term.axes[1]
    is_axes = lambda x: isinstance(x, tuple)  # noqa: E731
    assert jax.tree.structure(state) == jax.tree.structure(axes, is_leaf=is_axes)
    assert jax.tree.map(jnp.ndim, state) == jax.tree.map(len, axes, is_leaf=is_axes)


def test_a_term_without_a_queue_has_no_state():
    assert build_term(pair_softmax).update({}, None, STEP) == {}
