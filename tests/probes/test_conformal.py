"""Conformal sets equal mapie and crepes, and they cover: by simulation, of each class and of exclusive labels."""

import numpy as np
import pytest
from crepes import ConformalClassifier
from mapie.classification import SplitConformalClassifier
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin

from medjax.probes import conformal
from medjax.probes.aggregate import Units
from medjax.probes.statistics import Bootstrap


def draw(rng, n, prevalence=0.2):
    y = (rng.random(n) < prevalence).astype(np.int8)
    return (y * 1.5 + rng.standard_normal(n) - 1), y


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose probabilities are its inputs."""

    classes_ = None

    def fit(self, x, y):
        self.classes_, self.n_features_in_ = np.unique(y), x.shape[1]
        return self

    def predict_proba(self, x):
        return x

    def predict(self, x):
        return x.argmax(1)


@pytest.mark.parametrize('n', [3, 10, 50, 333])
def test_marginal_sets_equal_mapie_and_crepes(n):
    rng = np.random.default_rng(n)
    (s, y), (t, _) = draw(rng, n), draw(rng, 200)
    y[:2] = 0, 1
    p, q = expit(s), expit(t)
    sets = conformal.marginal_sets(p, y, q)
    both, new = np.stack([1 - p, p], 1), np.stack([1 - q, q], 1)
    crepes = ConformalClassifier().fit(1 - both[np.arange(n), y])
    assert np.array_equal(sets, crepes.predict_set(1 - new, confidence=0.9, smoothing=False) == 1)
    if n > 3:  # mapie refuses fewer
        model = SplitConformalClassifier(Given().fit(both, y), confidence_level=0.9, prefit=True)
        expected = model.conformalize(both, y).predict_set(new)[1][:, :, 0]
        assert np.array_equal(sets, expected)
    else:
        assert sets.all(), 'too few records: every set holds both labels'


def test_class_sets_equal_crepes():
    rng = np.random.default_rng(0)
    (s, y), (t, _) = draw(rng, 120), draw(rng, 200)
    new = np.stack([t, -t], 1)
    nonconformity = np.where(y == 1, -s, s)
    crepes = ConformalClassifier().fit(nonconformity, bins=y)
    expected = np.stack(
        [crepes.predict_set(new, bins=np.full(200, c), confidence=0.9, smoothing=False)[:, c] for c in (0, 1)], 1
    )
    assert np.array_equal(conformal.class_sets(s, y, t), expected == 1)


def test_the_threshold_of_nine_records_is_the_largest():
    assert conformal.threshold(np.arange(9.0)) == 8 and conformal.threshold(np.arange(8.0)) == np.inf
    assert conformal.threshold(np.arange(99.0)) == 89


def test_sets_cover_on_average():
    """2,000 calibrating sets of 60 records: 90 % to 90 % + 1 / 61 of new records, for each class too."""
    rng = np.random.default_rng(1)
    covered, by_class = [], []
    for _ in range(2000):
        (s, y), (t, z) = draw(rng, 60, 0.4), draw(rng, 20, 0.4)
        row = np.arange(20)
        covered.append(conformal.marginal_sets(expit(s), y, expit(t))[row, z].mean())
        right = conformal.class_sets(s, y, t)[row, z]
        by_class.append([right[z == c].mean() if (z == c).any() else np.nan for c in (0, 1)])
    assert 0.893 <= np.mean(covered) <= 0.925
    assert (np.nanmean(by_class, 0) >= 0.893).all() and (np.nanmean(by_class, 0) <= 0.955).all()


def units(scores, labels):
    n = len(scores)
    return Units(scores, labels, np.arange(n), np.arange(n).astype(np.uint64), {})


def test_coverage_is_reported_for_labels_classes_and_groups():
    rng = np.random.default_rng(2)
    (s, y), (t, z) = draw(rng, 200), draw(rng, 300)
    z[:20] = -1
    group = np.arange(300) < 100
    test, calibrating = units(t[:, None], z[:, None]), units(s[:, None], y[:, None])
    found = conformal.judge(
        test, calibrating, ['x'], 'log-odds', Bootstrap(np.arange(300), 0, 50), {('sex', 'F'): group}
    )
    sets = conformal.marginal_sets(expit(s), y, expit(t))
    known = z >= 0
    right = sets[np.arange(300), np.maximum(z, 0)]
    marginal = {measure: rows['x']['value'] for measure, rows in found['marginal'].items()}
    assert marginal['coverage'] == pytest.approx(right[known].mean())
    assert marginal['coverage_of_positives'] == pytest.approx(right[z == 1].mean())
    assert marginal['size'] == pytest.approx(sets.sum(1)[known].mean())
    assert marginal['singletons'] == pytest.approx((sets.sum(1) == 1)[known].mean())
    assert found['groups']['marginal']['sex']['F']['x']['value'] == pytest.approx(right[known & group].mean())
    assert 'exclusive' not in found
    ranks = conformal.judge(test, calibrating, ['x'], 'any', Bootstrap(np.arange(300), 0, 9), {})
    assert 'marginal' not in ranks
    assert ranks['class_conditional']['coverage']['x']['value'] == found['class_conditional']['coverage']['x']['value']


def test_exclusive_labels_have_sets_of_classes_that_cover():
    rng, covered = np.random.default_rng(3), []

    def draw_classes(n):
        truth = rng.integers(3, size=n)
        return 2 * np.eye(3)[truth] + rng.standard_normal((n, 3)), np.eye(3, dtype=np.int8)[truth]

    for _ in range(1000):
        (s, y), (t, z) = draw_classes(50), draw_classes(50)
        sets = conformal.exclusive_sets(expit(s), y.argmax(1), expit(t))
        covered.append(sets[z == 1].mean())
    assert 0.893 <= np.mean(covered) <= 0.925
    bootstrap = Bootstrap(np.arange(50), 0, 9)
    found = conformal.judge(units(t, z), units(s, y), ['a', 'b', 'c'], 'log-odds', bootstrap, {})['exclusive']
    assert found['coverage']['all']['value'] == pytest.approx(covered[-1])
    assert found['coverage']['b']['value'] == pytest.approx(sets[z[:, 1] == 1, 1].mean())
    assert found['size']['all']['value'] == pytest.approx(sets.sum(1).mean())
    p = expit(t) / expit(t).sum(1, keepdims=True)
    q = expit(s) / expit(s).sum(1, keepdims=True)
    crepes = ConformalClassifier().fit(1 - q[np.arange(50), y.argmax(1)])
    expected = crepes.predict_set(1 - p, confidence=0.9, smoothing=False) == 1
    assert np.array_equal(conformal.exclusive_sets(expit(s), y.argmax(1), expit(t)), expected)


@pytest.mark.parametrize(
    ('labels', 'exclusive'),
    [([[1, 0], [0, 1]], True), ([[1, 1], [0, 1]], False), ([[0, 0], [0, 1]], False), ([[1, -1], [0, 1]], False)],
)
def test_labels_are_exclusive_if_each_record_has_one(labels, exclusive):
    assert conformal.are_exclusive(np.array(labels)) == exclusive
    assert not conformal.are_exclusive(np.array(labels)[:, :1])
