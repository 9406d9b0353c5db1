"""Labels and columns of the data in a term: by name, with what is known; their frequency as best constant answer."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import recipes

from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.objectives.terms import TargetColumn

CLS = 'student/image/global/cls'


def recipe(label: str) -> dict:
    terms = [dict(term='labelled.supervised', name='label', of=f'{CLS}>logit', label=label)]
    heads = dict(logit=dict(head='linear', out=1, bias=True))
    return recipes.tiny(masks={}, heads=heads, teachers={}, terms=terms, labels=('effusion', 'nodule'))


def test_a_term_reads_a_label_by_its_name():
    cfg = recipe('nodule')
    objective, optim, step = recipes.parts(cfg)
    batch = recipes.batch(8)
    nodule = np.array([1, 0, 0, 0, -1, -2, -3, 1], np.int8)  # the last four: uncertain, blank, conflicting, absent
    batch['cxr']['label'] = np.stack([np.ones(8, np.int8), nodule], axis=1)
    batch['cxr']['image/present'][7] = False
    state = recipes.start(objective, optim)

    def run(state, batch):
        views, masks = step.make_views(batch, state.key, state.step)
        given = (state.params, state.aux)
        computed, _ = objective.features(*given, views, masks, state.key, state.step)
        return computed, objective.loss(*given, computed, views, masks, state.key, state.step)

    computed, (loss, (metrics, _)) = jax.jit(run)(state, batch)
    logit, value = np.asarray(computed.features[f'{CLS}>logit'][:4, :, 0], np.float64), np.array([[1], [0], [0], [0]])
    expected = (value * np.logaddexp(0, -logit) + (1 - value) * np.logaddexp(0, logit)).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert metrics['term/label/rows'] == 4
    np.testing.assert_allclose(metrics['term/label/start'], -(0.25 * np.log(0.25) + 0.75 * np.log(0.75)), rtol=1e-6)


def test_a_term_reads_a_column_by_its_name():
    cfg = recipe('sex') | dict(columns=dict(age='number', sex=('F', 'M')))
    objective, optim, step = recipes.parts(cfg)
    term = objective.terms['label']
    assert term.label == TargetColumn('sex', 'column', 1, ('F', 'M'))
    assert term.context.target('age', 'label').words == () and term.context.target('nodule', 'label').field == 'label'
    batch = recipes.batch(4)
    batch['cxr']['column'] = np.array([[50, 1], [60, 0], [70, np.nan], [np.nan, 1]], np.float32)
    state = recipes.start(objective, optim)
    _, metrics = jax.jit(step.train_step)(state, batch)
    assert metrics['term/label/rows'] == 3 and np.isfinite(metrics['loss'])
    np.testing.assert_allclose(metrics['term/label/start'], np.log(3) - 2 / 3 * np.log(2), rtol=1e-6)


def test_a_label_that_the_data_lack_is_a_sentence():
    with pytest.raises(UserError, match=r"terms\[0\] \(label\).label: the data have no label 'nodul', .* did you mean"):
        compose(recipe('nodul'))
