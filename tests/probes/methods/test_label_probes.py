"""The linear probe equals scikit-learn, kNN equals a loop in numpy, unknown labels are left out, validation chooses."""

import json
import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medjax.probes import evaluate, label_splits, logistic, vectors
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


def objective(z, y, weights, bias, strength):
    """scikit-learn's, as a mean over records, in float64."""
    against = (1 - 2.0 * y) * (z @ weights + bias)
    return np.logaddexp(0, against).mean() + (weights**2).sum() / (2 * strength * len(z))


@pytest.mark.parametrize(('n', 'd'), [(600, 24), (60, 100)], ids=['more records', 'more features'])
def test_each_regression_is_sklearns_optimum(n, d):
    """To 1e-6 of the objective; of separable records, whose objective comes near 0, to 1e-6 of a label's entropy."""
    train = examples(0, n, d)
    x = train.cls[:, 0] * np.geomspace(0.01, 100, d).astype(np.float32)
    unknown = np.random.default_rng(5).random(train.labels.shape) < 0.2
    blank = np.random.default_rng(6).choice([-1, -2], train.labels.shape)
    labels = np.where(unknown, blank, train.labels).astype(np.int8)
    strengths = linear.STRENGTHS[::4]
    found = logistic.fit(x, labels, strengths)
    assert found.converged.all() and found.gap.max() <= logistic.TOLERANCE
    assert found.kernel.shape == (d, len(strengths), 3) and found.bias.shape == (len(strengths), 3)
    separable = 0
    for j in range(3):
        known = labels[:, j] >= 0
        z, y = ((x[known] - x.mean(0)) / x.std(0)).astype(np.float64), labels[known, j]
        for r, strength in enumerate(strengths):
            sklearns = LogisticRegression(C=strength, solver='newton-cholesky', tol=1e-10, max_iter=1000).fit(z, y)
            best = objective(z, y, sklearns.coef_[0], sklearns.intercept_[0], strength)
            ours = objective(z, y, found.kernel[:, r, j].astype(np.float64), found.bias[r, j], strength)
            assert ours <= best + 1e-6 * max(best, 0.01 * np.log(2)), (j, strength)
            separable += best < 1e-3
    assert (separable > 0) == (n < d)


def test_scores_are_those_of_sklearn():
    train, test = examples(0), examples(1, 500)
    x, xt = train.cls[:, 0], test.cls[:, 0]
    found = logistic.fit(x, train.labels, np.array([0.003, 0.1]))
    scores = logistic.log_odds(found, xt)
    mean, std = x.mean(0), x.std(0)
    for j in range(3):
        for r, strength in enumerate((0.003, 0.1)):
            reference = LogisticRegression(C=strength, max_iter=5000, tol=1e-8).fit(
                (x - mean) / std, train.labels[:, j]
            )
            expected = reference.decision_function((xt - mean) / std)
            np.testing.assert_allclose(scores[:, r, j], expected, atol=2e-3 * np.abs(expected).max())
            assert roc_auc_score(test.labels[:, j], scores[:, r, j]) == pytest.approx(
                roc_auc_score(test.labels[:, j], expected), abs=1e-3
            )


def test_blocks_that_are_read_again_give_what_one_block_gives(monkeypatch):
    train = examples(0, n=331)
    strengths = np.array([0.001, 0.1, 10])
    whole = logistic.fit(train.cls[:, 0], train.labels, strengths)
    monkeypatch.setattr(logistic, 'BLOCK', 4 * 24 * 50)
    monkeypatch.setattr(logistic, 'KEPT', 0)
    blocks = logistic.fit(train.cls[:, 0], train.labels, strengths)
    assert blocks.passes == whole.passes
    np.testing.assert_allclose(blocks.mean, whole.mean, rtol=1e-6)
    np.testing.assert_allclose(blocks.std, whole.std, rtol=1e-5)
    a, b = (logistic.log_odds(each, train.cls[:, 0]) for each in (whole, blocks))
    np.testing.assert_allclose(a, b, atol=2e-3 * np.abs(a).max())


def test_no_more_than_blocks_are_in_memory(monkeypatch):
    """The peak of a fit and of its scores is the same for one and for eight times as many rows."""

    class Drawn:
        def __init__(self, n):
            self.shape, self.largest = (n, 16), 0

        def __getitem__(self, rows):
            count = len(range(*rows.indices(self.shape[0])))
            self.largest = max(self.largest, count)
            return np.random.default_rng(rows.start or 0).standard_normal((count, 16)).astype(np.float32)

    monkeypatch.setattr(logistic, 'BLOCK', 4 * 16 * 1000)
    monkeypatch.setattr(logistic, 'KEPT', 0)
    peaks, strengths = {}, np.array([0.001, 0.1])
    for n in (4_000, 4_000, 32_000):  # what is made once, as programs are, is made the first time
        x, labels = Drawn(n), (np.arange(n) % 3 == 0).astype(np.int8)[:, None]
        tracemalloc.start()
        logistic.log_odds(logistic.fit(x, labels, strengths), x)
        peaks[n], _ = tracemalloc.get_traced_memory()[1], tracemalloc.stop()
        assert x.largest == 1000
    per_row = (peaks[32_000] - peaks[4_000]) / 28_000
    assert per_row < 4 * 16 / 2, f'{per_row} bytes a row; a copy of the features has 64, the scores have 8'


def test_separable_records_end_in_finite_numbers(monkeypatch):
    monkeypatch.setattr(logistic, 'PASSES', 5)
    train = examples(0, n=90, d=60, strength=50.0)
    found = logistic.fit(train.cls[:, 0], train.labels, linear.STRENGTHS)
    assert np.isfinite(found.kernel).all() and np.isfinite(found.bias).all() and np.isfinite(found.gap).all()
    assert found.passes <= 6 * 9 and not found.converged.all()
    assert (found.converged == (found.gap <= logistic.TOLERANCE)).all()
    scores = linear.learn(train, train, train, 0)
    assert sum(entry['not_converged'] for entry in scores.details['grid']) > 0


def test_a_constant_feature_changes_nothing():
    train = examples()
    x = train.cls[:, 0]
    padded = np.concatenate([x, np.full((len(x), 2), 7.3, np.float32)], 1)
    a, b = (logistic.fit(each, train.labels, np.array([0.03])) for each in (x, padded))
    np.testing.assert_allclose(logistic.log_odds(a, x), logistic.log_odds(b, padded), atol=1e-3)


def test_validation_chooses_and_the_result_has_the_grid():
    train, val, test = (examples(s, layers=4, patches=True) for s in range(3))
    out = linear.learn(train, val, test, seed=0)
    grid = out.details['grid']
    assert len(grid) == 4 * 45 and [grid[0]['C'], grid[44]['C']] == pytest.approx([1e-6, 1e5])
    assert out.chosen['validation_auroc'] == max(g['validation_auroc'] for g in grid)
    assert out.chosen['validation_auroc'] == pytest.approx(evaluate.mean_auroc(out.val, val.labels))
    assert out.chosen['features'] == 'cls of the last block', 'the other features are noise here'
    assert out.test.shape == test.labels.shape and evaluate.mean_auroc(out.test, test.labels) > 0.7


def test_pixels_have_one_feature_set():
    train = examples()
    (features,) = linear.feature_sets(train).items()
    assert features[0] == 'pixels' and np.array_equal(features[1][0:9], train.cls[:9, -1])


def test_feature_sets():
    train = examples(layers=4, patches=True)
    flat = train.cls.reshape(300, -1)
    expected = {
        'cls of the last block': train.cls[:, -1],
        'cls of the last 4 blocks': flat,
        'cls of the last block + mean patch': np.concatenate([train.cls[:, -1], train.patches], 1),
        'cls of the last 4 blocks + mean patch': np.concatenate([flat, train.patches], 1),
    }
    found = linear.feature_sets(train)
    assert list(found) == list(expected)
    for name, x in expected.items():
        assert found[name].shape == x.shape and np.array_equal(found[name][7:31], x[7:31])


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
    monkeypatch.setattr(vectors, 'COSINES', 150 * 7)
    monkeypatch.setattr(knn, 'BLOCK', 11)
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
