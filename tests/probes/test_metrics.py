"""Metrics equal scikit-learn with ties and weights. Intervals equal a slow loop, and they contain the truth."""

import numpy as np
import pytest
from sklearn import metrics as sk

from medjax.probes import metrics, statistics
from medjax.probes.statistics import Bootstrap


def tied(seed, n=400, prevalence=0.3):
    """Scores in steps of a tenth, so most of them are tied."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prevalence).astype(np.int8)
    return np.round(labels * 0.6 + rng.standard_normal(n), 1).astype(np.float32), labels


@pytest.mark.parametrize('seed', range(3))
def test_metrics_equal_sklearn_with_ties_and_weights(seed):
    scores, labels = tied(seed)
    weights = np.random.default_rng(seed).integers(0, 4, (5, len(scores)))
    c = metrics.curve(scores, labels, weights)
    for r, w in enumerate(weights):
        assert metrics.auroc(c)[r] == pytest.approx(sk.roc_auc_score(labels, scores, sample_weight=w), abs=1e-12)
        precision = sk.average_precision_score(labels, scores, sample_weight=w)
        assert metrics.auprc(c)[r] == pytest.approx(precision, abs=1e-12)
        predicted, kept = scores >= 0.25, w > 0
        assert metrics.accuracy(scores, labels, 0.25, weights)[r] == pytest.approx(
            sk.accuracy_score(labels, predicted, sample_weight=w), abs=1e-12
        )
        assert metrics.balanced_accuracy(scores, labels, 0.25, weights)[r] == pytest.approx(
            sk.balanced_accuracy_score(labels[kept], predicted[kept], sample_weight=w[kept]), abs=1e-12
        )


def test_all_scores_equal_is_chance():
    c = metrics.curve(np.zeros(10, np.float32), np.arange(10) % 2)
    assert metrics.auroc(c) == [0.5] and metrics.auprc(c) == [0.5]


def test_a_missing_class_is_nan():
    c = metrics.curve(np.arange(4.0), np.zeros(4, int))
    assert np.isnan(metrics.auroc(c)).all() and np.isnan(metrics.auprc(c)).all()


@pytest.mark.parametrize('balanced', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_best_threshold_is_the_best(seed, balanced):
    scores, labels = tied(seed, n=60)
    figure = metrics.balanced_accuracy if balanced else metrics.accuracy
    tries = [-np.inf, *(np.unique(scores) + 0.05), np.inf]
    best = max(figure(scores, labels, t)[0] for t in tries)
    assert figure(scores, labels, metrics.best_threshold(scores, labels, balanced))[0] == pytest.approx(best)


def test_best_threshold_without_a_class_is_a_half():
    assert metrics.best_threshold(np.arange(3.0), np.zeros(3, int)) == 0.5


def several_labels(seed, patients=40):
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rng.integers(1, 5, patients))
    labels = (rng.random((len(patient), 3)) < (0.4, 0.2, 0.03)).astype(np.int8)
    labels[rng.random(labels.shape) < 0.1] = -1
    labels[0, 2], labels[1, 2] = 1, 0  # the third is rare, so that draws lose it
    return np.float32(labels + rng.standard_normal(labels.shape)), labels, patient


def test_intervals_equal_a_slow_loop():
    scores, labels, patient = several_labels(0)
    thresholds = dict(accuracy=np.array([0.5, 0.6, 0.7]), balanced_accuracy=np.array([0.2, 0.3, 0.4]))
    draws, names = 60, ('a', 'b', 'c')
    results = statistics.intervals(scores, labels, names, thresholds, Bootstrap(patient, seed=3, draws=draws))

    rng = np.random.default_rng(3)
    count = patient.max() + 1
    plain = [sk.roc_auc_score(y[y >= 0], s[y >= 0]) for s, y in zip(scores.T, labels.T, strict=True)]
    aurocs, accuracies = np.full((draws, 3), np.nan), np.full((draws, 3), np.nan)
    for d in range(draws):
        rows = np.concatenate([np.flatnonzero(patient == p) for p in rng.integers(count, size=count)])
        for j in range(3):
            s, y = scores[rows, j], labels[rows, j]
            s, y = s[y >= 0], y[y >= 0]
            if 0 < y.sum() < len(y):
                aurocs[d, j] = sk.roc_auc_score(y, s)
                accuracies[d, j] = np.mean((s >= thresholds['accuracy'][j]) == y)
    assert np.isnan(aurocs[:, 2]).any(), 'the test needs a label that is lost in some draws'
    for j, name in enumerate(names):
        estimate = results['auroc'][name]
        assert estimate['value'] == pytest.approx(plain[j], abs=1e-12)
        assert [estimate['low'], estimate['high']] == pytest.approx(
            np.nanpercentile(aurocs[:, j], [2.5, 97.5]), abs=1e-12
        )
        assert estimate['undefined'] == np.isnan(aurocs[:, j]).sum()
        assert (estimate['positives'], estimate['negatives']) == ((labels[:, j] == 1).sum(), (labels[:, j] == 0).sum())
        other = results['accuracy'][name]
        assert [other['low'], other['high']] == pytest.approx(np.nanpercentile(accuracies[:, j], [2.5, 97.5]))
    mean = np.where(np.isnan(aurocs), plain, aurocs).mean(1)
    estimate = results['auroc']['mean']
    assert [estimate['low'], estimate['high']] == pytest.approx(np.percentile(mean, [2.5, 97.5]), abs=1e-12)
    assert estimate['labels'] == 3


def test_draws_depend_on_the_seed_alone():
    patient = np.repeat(np.arange(30), 2)
    whole = np.concatenate(list(Bootstrap(patient, seed=1, draws=50).weights()))
    in_chunks = np.concatenate(list(Bootstrap(patient, seed=1, draws=50).weights(chunk_elements=7 * 60)))
    assert np.array_equal(whole, in_chunks)
    assert (whole.sum(1) == 60).all() and not np.array_equal(
        whole, next(Bootstrap(patient, seed=2, draws=50).weights())
    )


def test_intervals_cover_and_count_patients_not_images():
    """The interval contains the truth in about 95 % of repetitions, with twelve similar images of each patient.

    An interval over images would be too narrow: the images of a patient share most of their score."""
    from scipy.stats import norm

    def interval(scores, labels, patient):
        half = dict(accuracy=np.array([0.5]), balanced_accuracy=np.array([0.5]))
        return statistics.intervals(scores, labels, ('x',), half, Bootstrap(patient, 0, 100))['auroc']['x']

    truth = norm.cdf(1 / np.sqrt(2))
    hits, width, images = 0, [], []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        of_patient = rng.random(80) < 0.5
        labels = np.repeat(of_patient, 12).astype(np.int8)[:, None]
        shared = np.repeat(rng.standard_normal(80), 12)
        scores = labels[:, 0] + np.sqrt(0.9) * shared + np.sqrt(0.1) * rng.standard_normal(len(shared))
        estimate = interval(scores[:, None], labels, np.repeat(np.arange(80), 12))
        hits += estimate['low'] <= truth <= estimate['high']
        width.append(estimate['high'] - estimate['low'])
        if seed < 3:
            wrong = interval(scores[:, None], labels, np.arange(960))
            images.append(wrong['high'] - wrong['low'])
    assert 0.87 <= hits / 120 <= 0.99
    assert np.mean(images) < 0.5 * np.mean(width)
