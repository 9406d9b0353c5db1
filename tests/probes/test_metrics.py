"""Metrics equal scikit-learn with ties and weights. Intervals equal slow loops and scipy and contain the truth."""

import types

import numpy as np
import pytest
import scipy.stats
from sklearn import metrics as sk

from medjax.errors import UserError
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
        prevalence = np.average(labels, weights=w)
        assert metrics.adjusted_auprc(c)[r] == pytest.approx(1 - np.log(precision) / np.log(prevalence), abs=1e-12)
        decided = metrics.confusion(scores, labels, 0.25, weights)
        y, predicted, w = labels[w > 0], (scores >= 0.25)[w > 0], w[w > 0]
        for name, reference in DECIDED.items():
            expected = reference(y, predicted, sample_weight=w)
            assert getattr(metrics, name)(decided)[r] == pytest.approx(expected, abs=1e-12), name


DECIDED = dict(
    accuracy=sk.accuracy_score,
    balanced_accuracy=sk.balanced_accuracy_score,
    mcc=sk.matthews_corrcoef,
    sensitivity=sk.recall_score,
    false_positive_rate=lambda y, p, sample_weight: 1 - sk.recall_score(y, p, pos_label=0, sample_weight=sample_weight),
    positive_rate=lambda y, p, sample_weight: np.average(p, weights=sample_weight),
)


def test_all_scores_equal_is_chance():
    c = metrics.curve(np.zeros(10, np.float32), np.arange(10) % 2)
    assert metrics.auroc(c) == [0.5] and metrics.auprc(c) == [0.5] and metrics.adjusted_auprc(c) == [0.0]


@pytest.mark.parametrize('labels', [np.zeros(4, int), np.ones(4, int), np.zeros(0, int)], ids=['neg', 'pos', 'empty'])
def test_a_missing_class_is_nan(labels):
    scores = np.arange(float(len(labels)))
    c = metrics.curve(scores, labels)
    assert np.isnan(metrics.auroc(c)).all() and np.isnan(metrics.adjusted_auprc(c)).all()
    decided = metrics.confusion(scores, labels, 1.5)
    assert np.isnan(metrics.balanced_accuracy(decided)).all() and np.isnan(metrics.mcc(decided)).all()


def test_one_decision_for_all_has_mcc_0_and_infinite_scores_have_an_order():
    labels = np.array([0, 0, 1, 1])
    assert metrics.mcc(metrics.confusion(np.zeros(4), labels, 0.0)) == [0.0]
    assert metrics.auroc(metrics.curve(np.array([-np.inf, 0, 0, np.inf]), labels)) == [0.875]


def test_scores_that_are_no_numbers_are_refused():
    scores, labels = np.array([0.1, np.nan, 0.3, 0.2]), np.array([0, 1, 1, 0])
    calls = [
        lambda: metrics.curve(scores, labels),
        lambda: metrics.confusion(scores, labels, 0.2),
        lambda: metrics.best_threshold(scores, labels),
        lambda: metrics.matching_threshold(scores, 0.5),
        lambda: statistics.intervals(scores[:, None], labels[:, None], ('x',), {}, Bootstrap(np.arange(4))),
    ]
    for call in calls:
        with pytest.raises(UserError, match='1 of 4 scores are not a number'):
            call()


@pytest.mark.parametrize('balanced', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_best_threshold_is_the_best(seed, balanced):
    scores, labels = tied(seed, n=60)
    figure = metrics.balanced_accuracy if balanced else metrics.accuracy
    tries = [-np.inf, *(np.unique(scores) + 0.05), np.inf]
    best = max(figure(metrics.confusion(scores, labels, t))[0] for t in tries)
    chosen = metrics.best_threshold(scores, labels, balanced)
    assert figure(metrics.confusion(scores, labels, chosen))[0] == pytest.approx(best)


def test_a_threshold_between_neighbouring_floats_tells_them_apart():
    low, high = np.float32(0.1), np.nextafter(np.float32(0.1), np.float32(1))
    scores, labels = np.array([low, high], np.float32), np.array([0, 1])
    assert metrics.accuracy(metrics.confusion(scores, labels, metrics.best_threshold(scores, labels))) == [1.0]


def test_best_threshold_without_a_class_is_none():
    assert np.isnan(metrics.best_threshold(np.arange(3.0), np.zeros(3, int)))


@pytest.mark.parametrize(('share', 'above'), [(0.0, 0), (0.3, 3), (0.75, 8), (1.0, 10)])
def test_a_matching_threshold_has_the_share_above(share, above):
    scores = np.random.default_rng(0).standard_normal(10).astype(np.float32)
    assert (scores >= np.float64(metrics.matching_threshold(scores, share))).sum() == above


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
    bootstrap = Bootstrap(patient, seed=3, draws=draws)
    results = statistics.intervals(scores, labels, names, thresholds, bootstrap)

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


def test_draws_depend_on_the_seed_alone(monkeypatch):
    patient = np.repeat(np.arange(30), 2)
    whole = np.concatenate(list(Bootstrap(patient, seed=1, draws=50).counts()))
    monkeypatch.setattr(statistics, 'CHUNK', 7)
    in_chunks = np.concatenate(list(Bootstrap(patient, seed=1, draws=50).counts()))
    assert np.array_equal(whole, in_chunks)
    other = np.concatenate(list(Bootstrap(patient, seed=2, draws=50).counts()))
    assert (whole.sum(1) == 30).all() and not np.array_equal(whole, other)


@pytest.mark.parametrize('seed', range(3))
def test_bca_equals_scipy_on_the_same_draws(seed):
    """A skewed mean over patients. Each patient has a record, and one has three."""
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=25)
    bootstrap = Bootstrap(np.arange(25), seed=seed, draws=400, interval='bca')
    found = statistics.intervals_of_means({'m': {'x': x}}, bootstrap)['m']['x']
    drawn = np.concatenate([weights @ x / 25 for weights in bootstrap.counts()])
    given = types.SimpleNamespace(bootstrap_distribution=drawn)
    expected = scipy.stats.bootstrap((x,), np.mean, n_resamples=0, bootstrap_result=given, method='BCa')
    assert (found['low'], found['high']) == pytest.approx(tuple(expected.confidence_interval), abs=1e-12)
    assert 'interval' not in found


def test_the_jackknife_leaves_each_patient_out(monkeypatch):
    scores, labels, patient = several_labels(1)
    bootstrap = Bootstrap(patient, draws=5, interval='bca')
    sample = statistics.ranked_sample(scores, labels, bootstrap)
    left = np.concatenate(list(bootstrap.left_out()))
    assert left.shape == (40, 40) and (left.sum(1) == 39).all() and (left.sum(0) == 39).all()
    for r, weights in enumerate(left):
        for j in range(2):
            known = (patient != weights.argmin()) & (labels[:, j] >= 0)
            expected = sk.roc_auc_score(labels[known, j], scores[known, j])
            assert sample.left_out[r, 0, j] == pytest.approx(expected, abs=1e-12)
    monkeypatch.setattr(statistics, 'JACKKNIFE', 8)
    groups = np.concatenate(list(bootstrap.left_out()))
    assert groups.shape == (8, 40) and (groups.sum(1) == 35).all() and (groups.sum(0) == 7).all()


def test_where_bca_is_undefined_the_percentiles_are_taken_and_said():
    scores, labels = np.arange(40.0)[:, None], (np.arange(40) >= 20).astype(np.int8)[:, None]
    perfect = statistics.intervals(scores, labels, ('x',), {}, Bootstrap(np.arange(40), draws=50, interval='bca'))
    assert perfect['auroc']['x'] | dict(undefined=0) == dict(
        value=1.0, low=1.0, high=1.0, positives=20, negatives=20, undefined=0, interval='percentile'
    )
    labels[:] = 0
    labels[39] = 1  # without this patient there is no AUROC
    rare = statistics.intervals(scores[:, ::-1], labels, ('x',), {}, Bootstrap(np.arange(40), draws=50, interval='bca'))
    assert rare['auroc']['x']['interval'] == 'percentile' and rare['auroc']['x']['undefined'] > 0


def test_an_interval_contains_its_value_where_nearly_all_draws_are_greater():
    """The average precision of draws with repeated positives is greater: BCa would give [.1, .1] for a value of .12."""
    value, rng = 0.12, np.random.default_rng(0)
    drawn, left_out = np.append(0.14 + 0.1 * rng.random(398), [0.1, 0.11]), value + 0.01 * rng.standard_normal(38)
    low, high, kind = statistics.interval(value, drawn, left_out)
    assert kind == 'symmetric' and (low + high) / 2 == pytest.approx(value)
    assert (np.abs(drawn - value) <= high - value).mean() == pytest.approx(0.95, abs=0.003)
    levels = statistics.bca_levels(value, drawn, left_out)
    assert np.percentile(drawn, 100 * levels[1]) < value, 'which would leave the value out'
    assert statistics.interval(value, drawn)[2] == 'percentile'


def test_a_label_without_a_class_has_no_value_and_no_part_in_the_mean():
    scores, labels, patient = several_labels(0)
    labels[:, 1] = np.where(labels[:, 1] == 1, -1, labels[:, 1])
    for kind in statistics.INTERVALS:
        results = statistics.intervals(scores, labels, ('a', 'b', 'c'), {}, Bootstrap(patient, 0, 30, kind))
        assert results['auroc']['b']['value'] is None and results['auroc']['b']['low'] is None
        mean = results['auroc']['mean']
        assert mean['labels'] == 2
        assert mean['value'] == pytest.approx((results['auroc']['a']['value'] + results['auroc']['c']['value']) / 2)
    nothing = statistics.intervals(scores, labels[:, [1]], ('b',), {}, Bootstrap(patient, 0, 30))['auroc']['mean']
    assert nothing == dict(value=None, low=None, high=None, labels=0)


def test_few_patients_are_said():
    assert 'only 3 patients' in Bootstrap(np.array([0, 1, 1, 2])).facts()['warning']
    assert 'warning' not in Bootstrap(np.arange(20)).facts()


def test_p_values_are_uniform_under_the_null_and_agree_with_the_interval():
    """The difference of two equal means, 300 times: about 5 % have p < .05, and just those intervals leave 0 out."""
    found = []
    for seed in range(300):
        x = np.random.default_rng(seed).standard_normal((60, 1))
        sample = Bootstrap(np.arange(60), 0, 199).sums(x)
        p = statistics.two_sided_p(sample.drawn[:, 0])
        low, high, _ = statistics.interval(float(sample.value[0]), sample.drawn[:, 0])
        if abs(p - 0.05) > 0.02:  # percentiles interpolate between draws
            assert (p < 0.05) == (low > 0 or high < 0)
        found.append(p)
    assert 0.02 <= np.mean(np.array(found) < 0.05) <= 0.1 and 0.4 < np.mean(found) < 0.6
    assert statistics.two_sided_p(np.zeros(9)) == 1 and statistics.two_sided_p(np.full(3, np.nan)) is None
    assert statistics.two_sided_p(np.ones(999)) == 0.002


def test_a_p_value_may_be_smaller_than_draws_can_count():
    """Else no comparison of many could be below .05 after Holm's method."""
    drawn = np.random.default_rng(0).normal(4, 1, 1000)
    assert drawn.min() > 0
    expected = 2 * scipy.stats.norm.sf(drawn.mean() / drawn.std(ddof=1))
    assert statistics.two_sided_p(drawn) == statistics.two_sided_p(-drawn) == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(2 * scipy.stats.norm.sf(4), rel=0.5) and 40 * expected < 0.05 < 40 * 2 / 1001
    drawn[0] = -1e-9  # one draw on the other side is counted
    assert statistics.two_sided_p(drawn) == pytest.approx(4 / 1001)
    assert statistics.two_sided_p(drawn[1:151]) == pytest.approx(2 / 151), 'too few draws for a tail'


@pytest.mark.parametrize(('groups', 'spread'), [(2, 0.0), (2, 3.0), (5, 0.0), (5, 4.0)])
def test_intervals_of_distances_contain_the_truth(groups, spread):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(300):
        found = np.linspace(0, spread, groups) + rng.standard_normal(groups)
        drawn = found + rng.standard_normal((200, groups))
        low, high = statistics.distance_interval(np.ptp(found), np.ptp(drawn, axis=1))
        hits += low <= spread <= high
        assert 0 <= low <= np.ptp(found) <= high
    assert hits / 300 >= 0.94


@pytest.mark.parametrize('kind', statistics.INTERVALS)
def test_intervals_cover_and_count_patients_not_images(kind):
    """The interval contains the truth in about 95 % of repetitions, with twelve similar images of each patient.

    An interval over images would be too narrow: the images of a patient share most of their score."""

    def interval(scores, labels, patient):
        return statistics.intervals(scores, labels, ('x',), {}, Bootstrap(patient, 0, 100, kind))['auroc']['x']

    truth = scipy.stats.norm.cdf(1 / np.sqrt(2))
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


@pytest.mark.slow
def test_bca_covers_a_rare_label_with_a_high_auroc_better():
    """Ten positives of 100 at AUROC .95: the percentile interval is too low too often."""
    truth, hits = scipy.stats.norm.cdf(2.3 / np.sqrt(2)), dict.fromkeys(statistics.INTERVALS, 0)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        labels = (rng.random((100, 1)) < 0.1).astype(np.int8)
        labels[:2] = [[0], [1]]
        scores = labels * 2.3 + rng.standard_normal((100, 1))
        for kind in hits:
            found = statistics.intervals(scores, labels, ('x',), {}, Bootstrap(np.arange(100), 0, 400, kind))
            hits[kind] += found['auroc']['x']['low'] <= truth <= found['auroc']['x']['high']
    assert hits['bca'] / 300 > 0.88 and hits['bca'] > hits['percentile'] + 9
