"""Out-of-distribution detection against loops, scipy and scikit-learn."""

import types

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import roc_auc_score, roc_curve

from medjax.errors import UserError
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options
from medjax.probes.methods import out_of_distribution as ood
from medjax.probes.statistics import Bootstrap

pytestmark = pytest.mark.usefixtures('few_strengths')


def features(seed, n, shift=3.0, d=6):
    """Records with two labels; those with the first one lie elsewhere."""
    rng = np.random.default_rng(seed)
    y = (rng.random((n, 2)) < (0.3, 0.5)).astype(np.int8)
    x = rng.standard_normal((n, 1, d)).astype(np.float32) + 2
    x[:, 0, 0] += shift * y[:, 0]
    x[:, 0, 1] += 2 * y[:, 1]
    return SplitFeatures(x, x[:, 0] * 1, y, np.arange(n) // 2)


def inputs_of(monkeypatch=None, outside=(), **splits):
    data = types.SimpleNamespace(
        name='data',
        labels=('strange', 'usual'),
        splits={name: len(x.labels) for name, x in splits.items()},
        fingerprint='1',
    )
    sets = [
        types.SimpleNamespace(name=name, path=name, splits=dict(test=len(x.labels)), fingerprint=name)
        for name, x in outside
    ]
    if monkeypatch:
        monkeypatch.setattr(ood.encode, 'features', lambda encoder, data, split, cache: dict(outside)[data.name])
    return types.SimpleNamespace(
        data=data,
        features=splits.__getitem__,
        seed=0,
        options=Options(draws=100),
        outside=sets,
        encoder=None,
        cache=None,
    )


def test_a_held_out_label_is_found_as_in_loops():
    inputs = inputs_of(train=features(0, 400), val=features(1, 100), test=features(2, 200))
    result = ood.run(inputs)
    train, test = inputs.features('train'), inputs.features('test')
    known, queries = train.cls[train.labels[:, 0] == 0, 0].astype(float), test.cls[:, 0].astype(float)
    covariance = np.cov(known.T, bias=True)
    covariance += 0.01 * np.trace(covariance) / 6 * np.eye(6)
    expected = cdist(queries, known.mean(0)[None], 'mahalanobis', VI=np.linalg.inv(covariance))[:, 0]
    np.testing.assert_allclose(result.arrays['mahalanobis/strange'], expected, rtol=1e-4)
    far = np.sort(cdist(queries, known, 'cosine'), 1)[:, 49]
    np.testing.assert_allclose(result.arrays['knn/strange'], far, atol=1e-5)
    other = test.labels[:, 0]
    for detector in ('mahalanobis', 'knn', 'energy'):
        scores = result.arrays[f'{detector}/strange']
        row = result.content['results'][f'{detector} AUROC']['strange']
        assert row['value'] == pytest.approx(roc_auc_score(other, scores)) and row['low'] < row['value'] < row['high']
        false, true, _ = roc_curve(other, scores, drop_intermediate=False)
        expected = false[np.argmax(true >= 0.95)]
        assert result.content['results'][f'{detector} FPR95']['strange']['value'] == pytest.approx(expected)
    assert result.content['results']['mahalanobis AUROC']['strange']['value'] > 0.9


def test_another_data_set_is_found(monkeypatch):
    there = features(5, 120)
    there = there._replace(cls=there.cls + 4)
    inputs = inputs_of(monkeypatch, [('elsewhere', there)], train=features(0, 400), test=features(2, 200))
    result = ood.run(inputs)
    rows = result.content['results']['mahalanobis AUROC']
    assert list(rows) == ['mean', 'strange', 'usual', 'elsewhere'] and rows['elsewhere']['value'] > 0.95
    assert result.content['records'] == dict(train=400, test=200, elsewhere=120)
    assert len(set(result.arrays['patient'].tolist())) == 100 + 60
    assert (result.arrays['other/strange'][200:] < 0).all() and (result.arrays['other/elsewhere'] >= 0).all()


def test_records_of_the_same_kind_are_not_found(monkeypatch):
    inputs = inputs_of(monkeypatch, [('same', features(5, 200))], train=features(0, 400), test=features(2, 200))
    for detector in ('mahalanobis', 'knn', 'energy'):
        row = ood.run(inputs).content['results'][f'{detector} AUROC']['same']
        assert abs(row['value'] - 0.5) < 0.1


def test_the_label_itself_is_not_seen_by_the_energy():
    only = [
        split._replace(labels=split.labels[:, :1]) for split in (features(0, 400), features(1, 99), features(2, 200))
    ]
    inputs = inputs_of(**dict(zip(('train', 'val', 'test'), only, strict=True)))
    inputs.data.labels = ('strange',)
    assert not any(metric.startswith('energy') for metric in ood.run(inputs).content['results'])


def test_fpr95_counts_weights_and_ties():
    rng = np.random.default_rng(0)
    scores, other = rng.integers(6, size=60).astype(float), rng.integers(2, size=60).astype(np.int8)
    sample = ood.judge(scores, other, Bootstrap(np.arange(60), draws=50))
    weights = np.concatenate([*Bootstrap(np.arange(60), draws=50).counts()])
    for value, weight in zip(sample['FPR95'].drawn, weights, strict=True):
        false, true, _ = roc_curve(other, scores, sample_weight=weight, drop_intermediate=False)
        assert value == pytest.approx(false[np.argmax(true >= 0.95 - 1e-12)])


def test_what_cannot_be_held_out_is_named():
    few = features(2, 20)
    with pytest.raises(UserError, match='no label can be held out .strange: fewer than 20 records without it'):
        ood.run(inputs_of(train=features(0, 50), val=features(1, 50), test=few))
    twice = inputs_of(outside=[('strange', few)], train=features(0, 50), test=few)
    with pytest.raises(UserError, match="--outside: 'strange' is the name of two sets or labels"):
        ood.requirements(twice)
    inputs = inputs_of(train=features(0, 50), test=few)
    inputs.data.labels = ()
    with pytest.raises(UserError, match='no labels to hold out; name another data set with --outside'):
        ood.requirements(inputs)
