"""Labels of the data in a term: by name, with what is known, and their frequency as the best constant answer."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import recipes

from medjax.errors import UserError
from medjax.objectives.compose import compose

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


def test_a_label_that_the_data_lack_is_a_sentence():
    with pytest.raises(UserError, match=r"terms\[0\] \(label\).label: the data have no label 'nodul'; did you mean"):
        compose(recipe('nodul'))
