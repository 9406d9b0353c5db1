"""The concept bottleneck: labels see concepts alone, scores of train are out of fold, figures are scikit-learn's."""

import types

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from medjax.errors import UserError
from medjax.probes import aggregate
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options
from medjax.probes.methods import concepts

pytestmark = pytest.mark.usefixtures('few_strengths')


class Columns:
    def __init__(self, columns):
        self.columns, self.attribute_names = columns, tuple(columns)

    def column(self, name):
        return self.columns[name]


def drawn(seed, n):
    """Features that show two things; the label is their combination, which stands in no single feature alone."""
    rng = np.random.default_rng(seed)
    fluid, size = rng.random(n) < 0.5, rng.normal(50, 10, n)
    x = rng.standard_normal((n, 1, 6)).astype(np.float32)
    x[:, 0, 0] += 3 * fluid
    x[:, 0, 1] += (size - 50) / 3
    labels = np.stack([fluid, fluid | (size > 55), rng.random(n) < 0.5], 1).astype(np.int8)
    columns = dict(
        size=np.where(np.arange(n) % 9, size, np.nan).astype(np.float32),
        view=np.array(['AP', 'PA', ''])[rng.integers(0, 3, n)],
        one=np.array(['x'] * n),
    )
    return SplitFeatures(x, x[:, 0] * 1, labels, np.arange(n) // 2), Columns(columns)


def inputs(asked=('fluid', 'size', 'view'), names=('fluid', 'ill', 'noise'), splits=None, **more):
    given = splits or dict(train=drawn(0, 240), val=drawn(1, 120), test=drawn(2, 160))
    data = types.SimpleNamespace(
        name='data', labels=names, splits={k: len(x.labels) for k, (x, _) in given.items()}, split=lambda k: given[k][1]
    )
    return types.SimpleNamespace(
        data=data, features=lambda k: given[k][0], seed=0, concepts=asked, options=Options(draws=50),
        cases=lambda k, unit=None: aggregate.plain(given[k][0].patients), **more
    )  # fmt: skip


@pytest.fixture(scope='module')
def result():
    patch = pytest.MonkeyPatch()
    patch.setattr(concepts.linear, 'STRENGTHS', np.array([1e-3, 1e-1, 10.0]))
    found = concepts.run(inputs())
    patch.undo()
    return found


def test_the_combination_of_concepts_is_learned(result):
    content = result.content
    assert list(content['results']['auroc']) == ['mean', 'ill', 'noise']
    assert content['skipped_labels']['fluid'] == 'it is a concept'
    assert content['results']['auroc']['ill']['value'] > 0.85 > 0.65 > content['results']['auroc']['noise']['value']
    names = list(content['details']['concepts'])
    assert (names[0] == 'fluid' and names[1].startswith('size above 4')) or names[1].startswith('size above 5')
    assert names[2] == 'view=PA' and content['details']['concepts']['fluid']['auroc'] > 0.95
    weights = content['details']['weights']['ill']
    assert weights['fluid'] > weights['view=PA'] and weights['fluid'] > 0


def test_the_classifier_is_that_of_scikit_learn(result, few_strengths):
    given = inputs()
    targets = concepts.learnable(concepts.targets_of(given))
    of = {k: given.features(k)._replace(labels=x) for k, x in targets.labels.items()}
    one = concepts.linear.choose(of['train'], of['val'])
    folds = concepts.folds_of(of['train'].patients, 0)
    assert len(set(zip(of['train'].patients.tolist(), folds.tolist(), strict=True))) == 120, 'a patient is in one fold'
    x = concepts.linear.feature_sets(of['train'])[one.features][slice(None)]
    on_train = np.empty(of['train'].labels.shape)
    for fold in range(5):
        for c in range(3):
            known = (of['train'].labels[:, c] >= 0) & (folds != fold)
            mean, std = x[folds != fold].mean(0), x[folds != fold].std(0)
            model = LogisticRegression(C=one.chosen['C'], tol=1e-8, max_iter=5000)
            model.fit((x[known] - mean) / std, of['train'].labels[known, c])
            on_train[folds == fold, c] = model.predict_proba((x[folds == fold] - mean) / std)[:, 1]
    on_test = expit(one.log_odds(of['test']))
    mean, std = on_train.mean(0), on_train.std(0)
    labels, test = (given.features(k).labels[:, 1] for k in ('train', 'test'))
    model = LogisticRegression(C=result.content['chosen']['C'], tol=1e-8, max_iter=5000)
    model.fit((on_train - mean) / std, labels)
    scores = model.decision_function((on_test - mean) / std)
    np.testing.assert_allclose(result.arrays['scores'][:, 0], scores, atol=2e-2)
    assert result.content['results']['auroc']['ill']['value'] == pytest.approx(roc_auc_score(test, scores), abs=2e-3)
    weights = [*result.content['details']['weights']['ill'].values()]
    np.testing.assert_allclose(weights, model.coef_[0], atol=1e-2)


def test_the_strength_is_chosen_by_log_loss_because_one_concept_has_one_order(monkeypatch):
    """All strengths have one AUROC, and with the weakest weights all records are called by the greater class."""
    monkeypatch.setattr(concepts.linear, 'STRENGTHS', np.array([1e-6, 1.0]))
    content = concepts.run(inputs(('fluid',), ('fluid', 'ill', 'noise'))).content
    assert content['chosen']['C'] == 1.0
    assert content['results']['accuracy']['ill']['value'] > 0.75
    scores, labels = np.random.default_rng(0).normal(size=(50, 2)), np.tile([[1, 0], [0, -2]], (25, 1))
    expected = log_loss([1, 0] * 25 + [0] * 25, expit(np.concatenate([scores[:, 0], scores[::2, 1]])))
    assert concepts.log_loss(scores, labels) == pytest.approx(expected, rel=1e-6)


def test_values_of_columns():
    assert concepts.above(np.array([1, np.nan, 3], np.float32), 2).T.tolist() == [[0, -2, 1]]
    found = concepts.of_words(np.array(['a', '', 'c', 'd']), ('a', 'c'))
    assert found.T.tolist() == [[1, -2, 0, 0], [0, -2, 1, 0]]


def test_what_cannot_be_a_concept_is_said():
    with pytest.raises(UserError, match=r'needs their names: --concepts with some of fluid'):
        concepts.requirements(inputs(()))
    with pytest.raises(UserError, match="no such label or column; did you mean 'fluid'"):
        concepts.requirements(inputs(('fluidd',)))
    with pytest.raises(UserError, match='none is left to predict'):
        concepts.requirements(inputs(('fluid', 'ill', 'noise')))
    targets = concepts.learnable(concepts.targets_of(inputs(('fluid', 'one'))))
    assert targets.names == ('fluid',) and targets.skipped == {'one=x': 'no negative record in train'}
    with pytest.raises(UserError, match='no concept can be learned'):
        concepts.learnable(concepts.targets_of(inputs(('one',))))


def test_a_column_of_numbers_and_words_is_skipped():
    given = dict(train=drawn(0, 240), val=drawn(1, 120), test=drawn(2, 160))
    given['test'][1].columns['size'] = np.array(['x'] * 160)
    targets = concepts.targets_of(inputs(('fluid', 'size'), splits=given))
    assert targets.names == ('fluid',) and 'numbers in one split' in targets.skipped['size']


def test_three_patients_are_too_few():
    few = {}
    for seed, split in enumerate(('train', 'val', 'test')):
        x, columns = drawn(seed, 12)
        few[split] = x._replace(patients=np.arange(12) // 4), columns
    few['train'][0].labels[:, 0] = np.arange(12) // 4 == 0  # one patient has all positive records
    with pytest.raises(UserError, match='fold'):
        concepts.run(inputs(('fluid',), splits=few))


def test_without_a_val_split_the_same_patients_are_held_out(few_strengths):
    given = inputs(splits=dict(train=drawn(0, 240), test=drawn(2, 160)))
    content, _ = concepts.run(given)
    assert 'held out' in content['validation'] and content['results']['auroc']['ill']['value'] > 0.8
