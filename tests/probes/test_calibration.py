"""Maps to probabilities equal scikit-learn, venn-abers and a loop of isotonic fits; errors equal loops and cover."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn import metrics as sk
from sklearn.calibration import _SigmoidCalibration, calibration_curve
from sklearn.isotonic import IsotonicRegression
from venn_abers import VennAbers

from medjax.probes import calibration, calibration_errors
from medjax.probes.statistics import Bootstrap


def calibrating(seed, n=60, ties=False):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(np.int8)
    labels[:2] = 0, 1
    scores = (labels * 1.5 + rng.standard_normal(n)).astype(np.float32)
    new = np.concatenate([rng.standard_normal(40), scores[:9], [-99.0, 99.0]]).astype(np.float32)
    return (np.round(scores, 1), labels, np.round(new, 1)) if ties else (scores, labels, new)


CASES = [(seed, n, ties) for seed, n in ((0, 60), (1, 7), (2, 2), (3, 200)) for ties in (False, True)]


@pytest.mark.parametrize(('seed', 'n', 'ties'), CASES)
def test_maps_equal_sklearn(seed, n, ties):
    scores, labels, new = calibrating(seed, n, ties)
    expected = IsotonicRegression(out_of_bounds='clip').fit(scores, labels).predict(new)
    np.testing.assert_allclose(calibration.isotonic(scores, labels)(new), expected, atol=1e-6)
    expected = _SigmoidCalibration().fit(scores.astype(np.float64), labels).predict(new.astype(np.float64))
    np.testing.assert_allclose(calibration.platt(scores, labels)(new), expected, atol=1e-5)


@pytest.mark.parametrize(('seed', 'n', 'ties'), CASES)
def test_venn_abers_equals_a_fit_for_each_record_and_the_package(seed, n, ties):
    scores, labels, new = (x.astype(np.float64) for x in calibrating(seed, n, ties))
    found = calibration.venn_abers(scores, labels)
    pair = found.pair(new)
    for label in (0, 1):
        for x, p in zip(new, pair[label], strict=True):
            fit = IsotonicRegression().fit(np.append(scores, x), np.append(labels, label))
            assert p == pytest.approx(fit.predict([x])[0], abs=1e-9)
    package = VennAbers()
    package.fit(np.stack([1 - scores, scores], 1), labels, precision=None)
    probability, both = package.predict_proba(np.stack([1 - new, new], 1))
    np.testing.assert_allclose(np.stack(pair, 1), both, atol=1e-9)
    np.testing.assert_allclose(found.probability(new), probability[:, 1], atol=1e-9)
    assert (found.width(new) >= 0).all()


def test_the_temperature_is_the_best_one():
    rng = np.random.default_rng(0)
    z = rng.standard_normal(500) * 3
    labels = (rng.random(500) < expit(z / 2.5)).astype(np.int8)
    found = calibration.temperature(z, labels, 'log-odds')(z)
    best = minimize_scalar(lambda t: sk.log_loss(labels, expit(z / t)), bounds=(0.1, 20), method='bounded')
    assert sk.log_loss(labels, found) == pytest.approx(best.fun, abs=1e-8) and 1.8 < best.x < 3.2
    votes = calibration.temperature(expit(z), labels, 'probability')(expit(z))
    np.testing.assert_allclose(votes, found, atol=1e-3)


def test_classes_that_are_apart_give_finite_maps():
    scores, labels = np.array([0.0, 1.0, 2.0, 3.0]), np.array([0, 0, 1, 1])
    for function in (calibration.platt, calibration.isotonic):
        p = function(scores, labels)(np.array([-50.0, 1.5, 50.0]))
        assert np.isfinite(p).all() and (np.diff(p) >= 0).all() and p.min() >= 0 and p.max() <= 1
    same = calibration.platt(np.zeros(6), np.array([0, 0, 0, 0, 1, 1]))(np.zeros(1))
    assert same == pytest.approx((2 * 3 / 4 + 4 * 1 / 6) / 6)  # the mean of Platt's targets


def test_scales():
    assert calibration.probability(np.array([0.3]), 'any') is None and calibration.log_odds(np.ones(1), 'any') is None
    assert calibration.probability(np.array([0.0]), 'log-odds') == [0.5]
    assert np.isfinite(calibration.log_odds(np.array([0.0, 1.0]), 'probability')).all()


def example(seed=0, n=300, labels=2):
    """Probabilities in steps of a hundredth, so many are tied, and labels of which some are unknown."""
    rng = np.random.default_rng(seed)
    p = np.round(rng.beta(1, 2, (n, labels)), 2)
    y = (rng.random(p.shape) < p**1.5).astype(np.int8)
    y[rng.random(p.shape) < 0.1] = -1
    return p, y


def test_errors_equal_loops_and_sklearn():
    p, y = example()
    found = calibration_errors.errors(p, y, ('a', 'b'), Bootstrap(np.arange(300), 0, 20))
    for j, name in enumerate(('a', 'b')):
        q, t = p[y[:, j] >= 0, j], y[y[:, j] >= 0, j]
        ece = 0
        for k in range(15):
            members = (np.floor(q * 15).clip(max=14) == k).nonzero()[0]
            ece += len(members) / len(q) * abs(t[members].mean() - q[members].mean()) if len(members) else 0
        assert found['ece'][name]['value'] == pytest.approx(ece, abs=1e-12)
        assert found['brier'][name]['value'] == pytest.approx(sk.brier_score_loss(t, q), abs=1e-12)
        clipped = q.clip(1e-6, 1 - 1e-6)
        assert found['nll'][name]['value'] == pytest.approx(sk.log_loss(t, clipped), abs=1e-9)
    mean = np.mean([found['ece'][name]['value'] for name in ('a', 'b')])
    assert found['ece']['mean']['value'] == pytest.approx(mean) and found['ece']['mean']['labels'] == 2


def test_adaptive_error_equals_bins_of_sorted_records_and_ignores_their_order():
    rng = np.random.default_rng(1)
    p = rng.random(150)
    y = (rng.random(150) < p**2).astype(np.int8)
    bins = np.array_split(np.argsort(p), 15)
    expected = np.mean([abs(y[b].mean() - p[b].mean()) for b in bins])

    def ace(p, y):
        bootstrap = Bootstrap(np.arange(len(p)), 0, 5)
        return calibration_errors.errors(p[:, None], y[:, None], ('x',), bootstrap)['ace']['x']['value']

    assert ace(p, y) == pytest.approx(expected, abs=1e-12)
    tied, order = np.round(p, 1), rng.permutation(150)
    assert ace(tied, y) == pytest.approx(ace(tied[order], y[order]), abs=1e-12)
    assert ace(np.full(150, 0.5), y) == pytest.approx(abs(y.mean() - 0.5))
    assert ace(p[:4], y[:4]) == pytest.approx(np.abs(p[:4] - y[:4]).mean()), 'fewer records than bins'


def test_reliability_equals_sklearn():
    p, y = example(labels=1)
    found = calibration_errors.reliability(p, y)[0]
    known = y[:, 0] >= 0
    # bins of sklearn have their upper limit, ours the lower one: move values on a limit inside
    share, mean = calibration_curve(y[known, 0], p[known, 0] + 1e-9, n_bins=15)
    filled = found[:, 0] > 0
    np.testing.assert_allclose(found[filled, 1], mean, atol=1e-6)
    np.testing.assert_allclose(found[filled, 2], share, atol=1e-12)
    assert found[:, 0].sum() == known.sum()


@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_intervals_of_calibration_errors_contain_the_truth(temperature):
    """The probabilities are expit(z), the truth is expit(z / temperature)."""
    rng = np.random.default_rng(9)
    z = rng.standard_normal(300_000) * 1.5 - 1
    p, q = expit(z), expit(z / temperature)
    truth = dict(
        ece=np.abs(np.bincount(calibration_errors.width_bins(p), q - p, 15)).sum() / len(p),
        brier=np.mean(q * (1 - p) ** 2 + (1 - q) * p**2),
        nll=np.mean(-q * np.log(p) - (1 - q) * np.log1p(-p)),
    )
    hits = dict.fromkeys(truth, 0)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        z = rng.standard_normal((300, 1)) * 1.5 - 1
        y = (rng.random(z.shape) < expit(z / temperature)).astype(np.int8)
        found = calibration_errors.errors(expit(z), y, ('x',), Bootstrap(np.arange(300), 0, 150))
        for metric in hits:
            hits[metric] += found[metric]['x']['low'] <= truth[metric] <= found[metric]['x']['high']
    assert min(hits.values()) >= 51, hits
