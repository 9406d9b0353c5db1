"""The linear probe equals scikit-learn, kNN equals a loop in numpy, unknown labels are left out, validation chooses."""

import json

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medjax.probes import evaluate, label_splits
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options
from medjax.probes.methods import knn, linear


def examples(seed=0, n=300, d=24, labels=3, strength=1.0, layers=1, patches=False, patients=None):
    """Correlated features, a logistic truth; later draws share the truth of seed 0's weights."""
    truth = np.random.default_rng(99)
    mix = truth.standard_normal((d, d)) * np.exp(-np.arange(d) / 6)[:, None]
    weight = truth.standard_normal((d, labels)) * strength
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) @ mix + 3
    y = ((x - 3) @ weight / np.abs((x - 3) @ weight).mean(0) + rng.logistic(size=(n, labels)) > 0.5).astype(np.int8)
    cls = np.stack([rng.standard_normal((n, d))] * (layers - 1) + [x], 1).astype(np.float32)
    groups = np.arange(n) if patients is None else rng.integers(patients, size=n)
    mean_patch = rng.standard_normal((n, d)).astype(np.float32) if patches else None
    return SplitFeatures(cls, mean_patch, y, np.unique(groups, return_inverse=True)[1])


@pytest.mark.parametrize(('n', 'd'), [(300, 24), (60, 100)], ids=['more records', 'more features'])
def test_heads_equal_sklearn(n, d):
    train, test = examples(0, n, d), examples(1, 500, d)
    x, xt = train.cls[:, 0], test.cls[:, 0]
    unknown = np.random.default_rng(5).random(train.labels.shape) < 0.2
    blank = np.random.default_rng(6).choice([-1, -2], train.labels.shape)
    labels = np.where(unknown, blank, train.labels).astype(np.int8)
    penalties = (1.0, 0.03, 0.001)
    heads = linear.fit(x, labels, penalties)
    scores = linear.log_odds(heads, xt)
    assert heads.residual <= 1e-5
    mean, std = x.mean(0), x.std(0)
    for j in range(3):
        known = labels[:, j] >= 0
        for r, penalty in enumerate(penalties):
            reference = LogisticRegression(C=1 / (penalty * known.sum()), max_iter=5000, tol=1e-8)
            reference.fit((x[known] - mean) / std, labels[known, j])
            expected = reference.decision_function((xt - mean) / std)
            np.testing.assert_allclose(scores[:, r, j], expected, atol=2e-3 * np.abs(expected).max())
            auroc = [roc_auc_score(test.labels[:, j], s) for s in (scores[:, r, j], expected)]
            assert auroc[0] == pytest.approx(auroc[1], abs=1e-3)
            loss = [np.logaddexp(0, -(2 * test.labels[:, j] - 1) * s).mean() for s in (scores[:, r, j], expected)]
            assert loss[0] == pytest.approx(loss[1], abs=1e-3)


def test_a_constant_feature_changes_nothing():
    train = examples()
    x = train.cls[:, 0]
    padded = np.concatenate([x, np.full((len(x), 2), 7.3, np.float32)], 1)
    a, b = linear.fit(x, train.labels, (0.1,)), linear.fit(padded, train.labels, (0.1,))
    np.testing.assert_allclose(linear.log_odds(a, x), linear.log_odds(b, padded), atol=1e-3)


def test_validation_chooses_and_the_result_has_the_grid():
    train, val, test = (examples(s, layers=4, patches=True) for s in range(3))
    out = linear.learn(train, val, test, seed=0)
    grid = out.details['grid']
    assert len(grid) == 4 * len(linear.PENALTIES)
    assert out.chosen['validation_auroc'] == max(g['validation_auroc'] for g in grid)
    assert out.chosen['validation_auroc'] == pytest.approx(evaluate.mean_auroc(out.val, val.labels))
    assert out.chosen['features'] == 'cls of the last block', 'the other features are noise here'
    assert out.test.shape == test.labels.shape and evaluate.mean_auroc(out.test, test.labels) > 0.7


def test_pixels_have_one_feature_set():
    train = examples()
    assert list(linear.feature_sets(train)) == ['pixels']


def test_knn_equals_a_loop():
    train, queries = examples(0, n=150), examples(1, n=37)
    labels = train.labels.copy()
    labels[np.random.default_rng(1).random(labels.shape) < 0.3] = -1
    labels[:, 2] = -2
    labels[:4, 2] = (0, 1, 1, 1)  # hardly any label is known, so most queries get the prevalence
    train = train._replace(labels=labels)
    by_k = knn.score(train, queries, (3, 20))

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    cosine = unit(queries.cls[:, -1].astype(np.float64)) @ unit(train.cls[:, -1].astype(np.float64)).T
    for k, scores in by_k.items():
        for i, row in enumerate(cosine):
            near = np.argsort(-row)[:k]
            vote = np.exp(row[near] / 0.07)
            for j in range(3):
                known = labels[near, j] >= 0
                prevalence = (labels[:, j] == 1).sum() / (labels[:, j] >= 0).sum()
                share = vote[known & (labels[near, j] == 1)].sum() / vote[known].sum() if known.any() else prevalence
                assert scores[i, j] == pytest.approx(share, abs=2e-4)


def test_knn_in_chunks_and_with_few_records(monkeypatch):
    train, val, test = examples(0, n=150), examples(1, n=30), examples(2, n=41)
    whole = knn.learn(train, val, test, 0)
    monkeypatch.setattr(knn, 'CHUNK_ELEMENTS', 150 * 7)
    knn.score_arrays.clear_cache()
    np.testing.assert_allclose(knn.learn(train, val, test, 0).test, whole.test, atol=1e-5)
    assert whole.chosen['k'] == 20 and set(whole.others) == {'k=10', 'k=100'}
    few = knn.learn(examples(0, n=7), val, test, 0)
    assert few.chosen['k'] == 7 and few.test.shape == (41, 3)


def test_labels_without_a_class_are_skipped_with_a_reason():
    train, val, test = examples(0), examples(1), examples(2)
    train.labels[:, 0] = np.where(train.labels[:, 0] == 1, -1, 0)
    test.labels[:, 2] = 1
    splits = label_splits.label_splits(train, val, test, ('a', 'b', 'c'), 0, 'data')
    assert splits.names == ('b',) and splits.train.labels.shape[1] == splits.test.labels.shape[1] == 1
    assert splits.skipped == {'a': 'no positive record in train', 'c': 'no negative record in test'}
    with pytest.raises(Exception, match='no label to probe: each needs positives and negatives'):
        label_splits.label_splits(
            train, val, test._replace(labels=np.ones_like(test.labels)), ('a', 'b', 'c'), 0, 'data'
        )


def test_without_validation_a_tenth_of_the_patients_is_held_out():
    train, test = examples(0, n=300, patients=60), examples(2)
    splits = label_splits.label_splits(train, None, test, ('a', 'b', 'c'), 0, 'data')
    assert 'a tenth of the patients' in splits.validation
    assert len(splits.train.labels) + len(splits.val.labels) == 300
    assert splits.val.patients.max() + 1 == 6

    def rows(split):
        return {tuple(r) for r in split.cls[:, 0, :3].tolist()}

    held = rows(splits.val)
    patients = {int(p) for p, r in zip(train.patients, train.cls[:, 0, :3].tolist(), strict=True) if tuple(r) in held}
    assert not held & rows(splits.train) and len(patients) == 6


@pytest.mark.parametrize('probe', [knn, linear])
def test_a_result_is_json_and_deterministic(probe):
    splits = label_splits.label_splits(
        examples(0), examples(1), examples(2, n=120, patients=50), ('a', 'b', 'c'), 0, 'data'
    )
    result, arrays = evaluate.evaluate(lambda: probe.learn(*splits[:3], 0), splits, Options(seed=0, draws=50))
    second, _ = evaluate.evaluate(lambda: probe.learn(*splits[:3], 0), splits, Options(seed=0, draws=50))
    json.dumps(result, allow_nan=False)
    assert result['results'] == second['results']
    assert set(result['results']) == {'auroc', 'auprc', 'adjusted_auprc', 'accuracy', 'balanced_accuracy', 'mcc'}
    assert result['results']['auroc']['mean']['value'] > 0.6
    assert result['records'] == dict(train=300, val=300, test=120) and result['bootstrap']['unit'] == 'patient'
    assert arrays['scores'].shape == arrays['labels'].shape == (120, 3) and arrays['patient'].max() < 50
