"""The shortcut audit finds a classifier that uses a tube, and not one that does not; against loops."""

import types

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medjax.errors import UserError
from medjax.probes import aggregate
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options
from medjax.probes.methods import shortcut

pytestmark = pytest.mark.usefixtures('few_strengths')


def inputs_of(sees_tube, columns=('tube',), seed=0):
    """A finding that is hard to see and a tube that is easy to see and mostly comes with it."""
    features, splits = {}, {}
    for i, (split, n) in enumerate(dict(train=600, val=200, test=400).items()):
        rng = np.random.default_rng([seed, i])
        finding = rng.random(n) < 0.4
        tube = np.where(rng.random(n) < np.where(finding, 0.8, 0.1), 'left', 'none')
        age = (40 + 30 * rng.random(n)).astype(np.float32)
        x = rng.standard_normal((n, 1, 6)).astype(np.float32)
        x[:, 0, 0] += 1.5 * finding
        x[:, 0, 1] += 4 * sees_tube * (tube == 'left')
        features[split] = SplitFeatures(x, x[:, 0], finding[:, None].astype(np.int8), np.arange(n))
        values = dict(tube=tube, age=age)
        splits[split] = types.SimpleNamespace(attribute_names=tuple(values), column=values.__getitem__)
    sizes = {split: len(f.labels) for split, f in features.items()}
    data = types.SimpleNamespace(name='data', labels=('finding',), splits=sizes, split=splits.__getitem__)
    return types.SimpleNamespace(
        data=data,
        features=features.__getitem__,
        seed=0,
        columns=dict.fromkeys(columns, ()),
        cases=lambda split, unit: aggregate.plain(features[split].patients),
        options=Options(draws=200),
    )


def test_it_finds_the_classifier_that_uses_the_tube():
    rows = {sees: shortcut.run(inputs_of(sees)).content['results'] for sees in (False, True)}
    gaps = {sees: results['gap']['finding by tube'] for sees, results in rows.items()}
    assert gaps[True]['low'] > 0.2
    assert gaps[False]['low'] < 0 < gaps[False]['high']
    assert rows[True]['column_auroc']['finding by tube']['value'] > 0.8


def test_each_metric_equals_a_loop():
    inputs = inputs_of(True)
    result = shortcut.run(inputs)
    scores, truth = result.arrays['scores'][:, 0], inputs.features('test').labels[:, 0]
    tube = inputs.data.split('test').column('tube') == 'left'
    aligned, conflicting = tube == (truth == 1), tube != (truth == 1)
    rows = {metric: row['finding by tube']['value'] for metric, row in result.content['results'].items()}
    assert rows['aligned_auroc'] == pytest.approx(roc_auc_score(truth[aligned], scores[aligned]))
    assert rows['conflicting_auroc'] == pytest.approx(roc_auc_score(truth[conflicting], scores[conflicting]))
    assert rows['gap'] == pytest.approx(rows['aligned_auroc'] - rows['conflicting_auroc'])
    assert rows['column_auroc'] == pytest.approx(roc_auc_score(truth, tube))
    kinds = result.content['details']['finding by tube']['kinds']
    assert kinds['positive_suggested'] == (tube & (truth == 1)).sum() and sum(kinds.values()) == 400


def test_a_column_of_numbers_is_put_into_bands():
    rows = shortcut.run(inputs_of(False, ('age',))).content['results']
    assert rows['gap']['finding by age']['low'] < 0 < rows['gap']['finding by age']['high']


def test_suggestions_come_from_train():
    train, labels = np.array(['a', 'a', 'a', 'b', 'b', '', 'c']), np.int8([1, 1, 0, 0, 1, 1, -1])
    found = shortcut.suggested(train, labels, np.array(['a', 'b', '', 'c', 'new']))
    np.testing.assert_allclose(found[:2], [2 / 3 - 3 / 5, 1 / 2 - 3 / 5])
    assert np.isnan(found[2:]).all()


def test_too_few_records_of_a_kind_are_named():
    inputs = inputs_of(True)
    column = inputs.data.split('test').column('tube')
    column[inputs.features('test').labels[:, 0] == 1] = 'left'
    with pytest.raises(UserError, match='fewer than 10 test records are positive and not suggested by the column'):
        shortcut.run(inputs)
    inputs.columns = {}
    with pytest.raises(UserError, match='name the columns that should not matter: --columns tube,site'):
        shortcut.requirements(inputs)
