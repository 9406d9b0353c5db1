"""Probes of columns and of neighbours: metadata, ordinal, regression, search; against scikit-learn and loops."""

import types

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import Ridge

from medjax.errors import UserError
from medjax.probes import columns, statistics
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options
from medjax.probes.methods import metadata, ordinal, regression, search

SIZES = dict(train=240, val=80, test=120)

pytestmark = pytest.mark.usefixtures('few_strengths')


class Split:
    def __init__(self, values):
        self.values = values

    @property
    def attribute_names(self):
        return tuple(self.values)

    def column(self, name):
        return self.values[name]


def inputs_of(asked=None, d=8, seed=0, without=(), change=None, labels=2):
    """Records with age, sex, site and a grade that their features tell, and one label; two records a patient."""
    rng = np.random.default_rng(99)
    of_age, of_site, of_label = (
        rng.standard_normal((d, 1)),
        rng.standard_normal((d, 3)),
        rng.standard_normal((d, labels)),
    )
    features, splits = {}, {}
    for i, (split, n) in enumerate(SIZES.items()):
        if split in without:
            continue
        rng = np.random.default_rng([seed, i])
        x = rng.standard_normal((n, 4, d)).astype(np.float32)
        last = x[:, -1]
        age = 50 + 10 * (last @ of_age)[:, 0] + 3 * rng.standard_normal(n)
        site = np.array(['north', 'south', 'west'])[(last @ of_site + rng.gumbel(size=(n, 3))).argmax(1)]
        values = dict(
            age=np.where(rng.random(n) < 0.2, np.nan, age).astype(np.float32),
            sex=np.where(rng.random(n) < 0.2, '', np.where(last[:, 0] + rng.logistic(size=n) > 0, 'F', 'M')),
            site=site,
            grade=np.clip(np.floor((age - 30) / 10), 0, 4).astype(np.float32),
            extent=np.array(['none', 'mild', 'severe'])[np.clip(np.floor((age - 40) / 10), 0, 2).astype(int)],
        )
        if change:
            change(split, values)
        y = (last @ of_label + rng.logistic(size=(n, labels)) > 0).astype(np.int8)
        features[split] = SplitFeatures(x, rng.standard_normal((n, d)).astype(np.float32), y, np.arange(n) // 2)
        splits[split] = Split(values)
    names = tuple(f'finding {j}' for j in range(labels))
    data = types.SimpleNamespace(
        name='data', labels=names, splits={name: SIZES[name] for name in splits}, split=splits.__getitem__
    )
    return types.SimpleNamespace(
        data=data, features=features.__getitem__, seed=0, columns=asked or {}, options=Options(draws=100)
    )


def known(inputs, name, split='test'):
    return inputs.data.split(split).column(name)


def test_metadata_equals_sklearn():
    inputs = inputs_of()
    result = metadata.run(inputs)
    rows = result.content['results']
    assert list(rows['auroc']) == ['mean', 'sex', 'site'] and not result.content['skipped_labels']
    for name in ('sex', 'site'):
        truth, scores = known(inputs, name), result.arrays[f'{name}/scores']
        here, words = truth != '', result.arrays[f'{name}/words']
        aurocs = [sk.roc_auc_score(truth[here] == word, scores[here, c]) for c, word in enumerate(words)]
        assert rows['auroc'][name]['value'] == pytest.approx(np.mean(aurocs)) and np.mean(aurocs) > 0.6
        answer = words[result.arrays[f'{name}/answer']]
        assert rows['accuracy'][name]['value'] == pytest.approx(sk.accuracy_score(truth[here], answer[here]))
        balanced = sk.balanced_accuracy_score(truth[here], answer[here])
        assert rows['balanced_accuracy'][name]['value'] == pytest.approx(balanced)
        assert rows['auroc'][name]['low'] < rows['auroc'][name]['value'] < rows['auroc'][name]['high']
    mean = rows['accuracy']['mean']
    assert mean['value'] == pytest.approx(np.mean([rows['accuracy'][name]['value'] for name in ('sex', 'site')]))


def test_a_word_that_train_lacks_is_counted_and_left_out():
    def change(split, values):
        if split == 'test':
            values['site'][:7] = 'elsewhere'

    inputs = inputs_of({'site': ()}, change=change)
    result = metadata.run(inputs)
    facts = result.content['details']['site']
    assert facts['unseen'] == 7 and sum(c['test'] for c in facts['classes'].values()) == SIZES['test'] - 7
    truth, answer = known(inputs, 'site')[7:], result.arrays['site/words'][result.arrays['site/answer']][7:]
    assert result.content['results']['accuracy']['site']['value'] == pytest.approx(np.mean(truth == answer))


def test_a_class_that_test_lacks_is_still_a_wrong_answer():
    def change(split, values):
        if split == 'test':
            values['site'][values['site'] == 'west'] = ''

    result = metadata.run(inputs_of({'site': ()}, change=change))
    facts, rows = result.content['details']['site'], result.content['results']
    assert facts['classes']['west'] | dict(train=0) == dict(train=0, test=0, auroc=None)
    assert (result.arrays['site/answer'] == 2).any(), 'the answer west is possible'
    aurocs = [facts['classes'][word]['auroc'] for word in ('north', 'south')]
    assert rows['auroc']['site']['value'] == pytest.approx(np.mean(aurocs))


@pytest.mark.parametrize('name', ['grade', 'extent'])
def test_ordinal_equals_sklearn(name):
    inputs = inputs_of({name: ('none', 'mild', 'severe') if name == 'extent' else ()})
    result = ordinal.run(inputs)
    truth, answer = result.arrays[f'{name}/truth'], result.arrays[f'{name}/answer']
    expected = known(inputs, name)
    levels = result.content['details'][name]['levels']
    assert [levels[k] for k in truth] == expected.tolist()
    rows = {metric: row[name]['value'] for metric, row in result.content['results'].items()}
    assert rows['quadratic_kappa'] == pytest.approx(sk.cohen_kappa_score(truth, answer, weights='quadratic'))
    assert rows['quadratic_kappa'] > 0.5
    assert rows['accuracy'] == pytest.approx(sk.accuracy_score(truth, answer))
    assert rows['mean_error'] == pytest.approx(sk.mean_absolute_error(truth, answer))
    assert np.sum(result.content['details'][name]['pairs']) == SIZES['test']


def test_kappa_equals_sklearn_and_is_undefined_for_one_level():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = rng.integers(4, size=(2, 30))
        counts = sk.confusion_matrix(a, b, labels=range(4))[None].astype(float)
        assert ordinal.quadratic_kappa(counts)[0] == pytest.approx(sk.cohen_kappa_score(a, b, weights='quadratic'))
    one = np.zeros((1, 3, 3))
    one[0, 1, 1] = 9
    assert np.isnan(ordinal.quadratic_kappa(one)[0]) and np.isnan(ordinal.quadratic_kappa(0 * one)[0])


def test_ordinal_needs_an_order():
    with pytest.raises(UserError, match='name a column with an order: --columns grade'):
        ordinal.requirements(inputs_of())
    with pytest.raises(UserError, match="--columns extent=none<mild: the records also have 'severe'"):
        ordinal.requirements(inputs_of({'extent': ('none', 'mild')}))
    with pytest.raises(UserError, match='--columns age=a<b: the records have numbers there; write --columns age'):
        ordinal.requirements(inputs_of({'age': ('a', 'b')}))
    with pytest.raises(UserError, match='data has no column with an order to predict'):
        ordinal.requirements(inputs_of({'age': ()}))


@pytest.mark.parametrize('n', [200, 20], ids=['more records', 'more features'])
def test_ridge_equals_sklearn(n):
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((n, 40)).astype(np.float32) * 3 + 100, rng.standard_normal(n).astype(np.float32) + 50
    ridge = regression.fit(x, y, (10.0, 0.1, 1e-4))
    z = (x - x.mean(0, dtype=np.float64)) / x.std(0, dtype=np.float64)
    for r, penalty in enumerate((10.0, 0.1, 1e-4)):
        expected = Ridge(alpha=penalty * n).fit(z, y.astype(np.float64)).predict(z)
        np.testing.assert_allclose(regression.answers(ridge, x)[:, r], expected, atol=2e-3)


def test_regression_equals_sklearn():
    inputs = inputs_of()
    result = regression.run(inputs)
    rows = result.content['results']
    truth, answer = known(inputs, 'age'), result.arrays['age/answer']
    here = np.isfinite(truth)
    assert rows['r2']['age']['value'] == pytest.approx(sk.r2_score(truth[here], answer[here]), abs=1e-6)
    assert rows['mae']['age']['value'] == pytest.approx(sk.mean_absolute_error(truth[here], answer[here]), rel=1e-6)
    assert rows['r2']['age']['value'] > 0.8 and rows['r2']['age']['low'] < rows['r2']['age']['value']
    train = known(inputs, 'age', 'train')
    constant = np.abs(truth[here] - np.nanmedian(train)).mean()
    assert result.content['details']['age']['constant_mae'] == pytest.approx(constant, rel=1e-5)
    assert rows['mae']['mean']['value'] == rows['mae']['age']['value']
    grid = result.content['details']['age']['grid']
    assert len(grid) == 4 * len(regression.PENALTIES)
    assert result.content['details']['age']['chosen']['validation_mae'] == min(e['validation_mae'] for e in grid)


def test_an_error_in_years_is_not_averaged_with_one_in_levels():
    result = regression.run(inputs_of({'age': (), 'grade': ()}))
    assert 'mean' in result.content['results']['r2'] and 'mean' not in result.content['results']['mae']


def test_r2_of_great_numbers_keeps_its_digits():
    truth = np.float32(1e6) + np.arange(40, dtype=np.float32)
    answer = truth.astype(float) + np.sin(np.arange(40))
    sample = regression.errors_of(answer, truth, statistics.Bootstrap(np.arange(40)))
    assert sample['r2'].value == pytest.approx(sk.r2_score(truth.astype(float), answer), rel=1e-9)


def test_without_validation_patients_are_held_out():
    for probe in (metadata, regression):
        assert probe.run(inputs_of(without=('val',))).content['results']


def test_columns_that_cannot_be_predicted_are_named():
    def change(split, values):
        values['sex'][:] = ''
        values['sex'][:5] = 'F'
        values['age'][:] = 40

    inputs = inputs_of(change=change)
    assert metadata.run(inputs).content['skipped_labels'] == {
        'sex': 'known for 5 records of train and 5 of test; 10 are needed in each'
    }
    with pytest.raises(UserError, match='no column can be predicted .age: all known values in train are equal.'):
        regression.run(inputs)
    with pytest.raises(UserError, match="--columns agee: the records have no such column; did you mean 'age'"):
        metadata.requirements(inputs_of({'agee': ()}))
    with pytest.raises(UserError, match='data has no column of numbers to predict .name one with --columns.'):
        regression.requirements(inputs_of({'sex': ()}))


@pytest.mark.parametrize('text', ['grade=none', 'grade=', '=a<b', 'grade=a<<b', 'grade=a<a'])
def test_columns_are_parsed(text):
    assert columns.parse('age,,grade=none<mild') == {'age': (), 'grade': ('none', 'mild')}
    with pytest.raises(UserError, match='write a name, as age, or also its words'):
        columns.parse(text)


def test_search_equals_a_loop():
    inputs = inputs_of(labels=3)
    train, test = inputs.features('train'), inputs.features('test')
    unknown = np.random.default_rng(3).random(train.labels.shape) < 0.3
    train.labels[unknown] = -1
    test.labels[:, 2] = 0
    result = search.run(inputs)
    assert result.content['skipped_labels'] == {'finding 2': 'no positive record in test'}

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    cosine = unit(test.cls[:, -1].astype(float)) @ unit(train.cls[:, -1].astype(float)).T
    for j in range(2):
        here = train.labels[:, j] >= 0
        for k in search.K:
            shares = []
            for i in np.flatnonzero(test.labels[:, j] == 1):
                near = np.argsort(-cosine[i, here])[:k]
                shares.append((train.labels[here, j][near] == 1).mean())
            row = result.content['results'][f'P@{k}'][f'finding {j}']
            assert row['value'] == pytest.approx(np.mean(shares)) and row['queries'] == len(shares)
            assert row['low'] < row['value'] < row['high']
        assert row['chance'] == pytest.approx((train.labels[here, j] == 1).mean())
    mean = result.content['results']['P@10']['mean']
    assert mean['value'] == pytest.approx(
        np.mean([result.content['results']['P@10'][f'finding {j}']['value'] for j in range(2)])
    )
