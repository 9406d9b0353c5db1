"""Paired differences equal loops; DeLong equals its pair-by-pair formula and holds its level with clusters."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from medjax.errors import UserError
from medjax.probes import comparison, delong
from medjax.probes.comparison import Measured, Scored
from medjax.probes.statistics import Bootstrap


def scored(encoder, scores, labels, patient, draws=40, **more):
    content = dict(
        encoder=dict(step=encoder),
        bootstrap=dict(seed=0, draws=draws),
        thresholds=dict(accuracy=dict.fromkeys(('a', 'b'), 0.5), balanced_accuracy=dict.fromkeys(('a', 'b'), 0.4)),
    )
    return Scored(content | more, scores, labels, ('a', 'b'), patient)


def examples(seed=0, n=150, gain=0.5):
    rng = np.random.default_rng(seed)
    patient = np.unique(rng.integers(n // 2, size=n), return_inverse=True)[1]
    labels = (rng.random((n, 2)) < 0.4).astype(np.int8)
    shared = rng.standard_normal((n, 2))
    first = (1 + gain) * labels + shared + 0.3 * rng.standard_normal((n, 2))
    second = labels + shared + 0.3 * rng.standard_normal((n, 2))
    labels[rng.random((n, 2)) < 0.05] = -2
    return scored(20, first, labels, patient), scored('pixels', second, labels, patient)


def test_differences_equal_a_loop_over_the_same_draws():
    a, b = examples()
    found = comparison.paired(a, b)
    json.dumps(found, allow_nan=False)
    assert (found['encoder'], found['other']) == (20, 'pixels')
    assert {'auroc', 'auprc', 'accuracy', 'balanced_accuracy'} <= set(found['results'])
    drawn = np.empty((40, 2))
    plain = np.empty(2)
    for j in range(2):
        known = a.labels[:, j] >= 0
        y = a.labels[known, j]

        def difference(w, known=known, y=y, j=j):
            one, other = (roc_auc_score(y, x.scores[known, j], sample_weight=w) for x in (a, b))
            return one - other

        plain[j] = difference(np.ones(len(y)))
        weights = np.concatenate(list(Bootstrap(a.patient, 0, 40).counts()))[:, a.patient[known]]
        drawn[:, j] = [difference(w) for w in weights]
        row = found['results']['auroc']['ab'[j]]
        assert row['value'] == pytest.approx(plain[j])
        assert (row['low'], row['high']) == pytest.approx(tuple(np.percentile(drawn[:, j], [2.5, 97.5])))
        assert row['p'] == pytest.approx(min(1, 2 * (min((drawn[:, j] <= 0).sum(), (drawn[:, j] >= 0).sum()) + 1) / 41))
    mean = found['results']['auroc']['mean']
    assert mean['value'] == pytest.approx(plain.mean())
    assert (mean['low'], mean['high']) == pytest.approx(tuple(np.percentile(drawn.mean(1), [2.5, 97.5])))


def test_an_encoder_is_no_better_than_itself():
    a, _ = examples()
    row = comparison.paired(a, a)['results']['auroc']['a']
    assert row == dict(value=0.0, low=0.0, high=0.0, p=1.0, p_holm=1.0, p_delong=None)


def test_a_label_with_few_positives_has_no_p_value_and_is_not_counted():
    a, b = examples(gain=3)
    positives = np.flatnonzero(a.labels[:, 1] == 1)
    a.labels[positives[9:], 1] = b.labels[positives[9:], 1] = 0  # nine are left
    found = comparison.paired(a, b)
    rows = found['results']['auroc']
    assert (rows['b']['p'], rows['b']['p_holm']) == (None, None) and rows['b']['value'] > 0
    assert rows['a']['p_holm'] == rows['a']['p'] < 0.05
    assert rows['mean']['value'] == rows['a']['value'], 'the mean is over the labels that are judged'
    comparison.adjust_means([found])
    said = comparison.in_words(found)
    assert said.startswith('mean AUROC of the 1 label(s) with 10 patients of each class (of 2) +')
    assert said.endswith('of 1 label(s) 1 better, 0 worse (Holm)')
    rest = np.flatnonzero(a.labels[:, 0] == 1)[9:]
    a.labels[rest, 0] = b.labels[rest, 0] = 0
    found = comparison.paired(a, b)
    comparison.adjust_means([found])
    assert found['results']['auroc']['mean']['p'] is None
    assert 'without a p-value: none of 2 label(s) has 10 patients of each class' in comparison.in_words(found)


def test_few_patients_with_many_records_have_no_p_value():
    a, b = examples(gain=3)
    few = np.arange(len(a.patient)) % 9
    rows = comparison.paired(a._replace(patient=few), b._replace(patient=few))['results']['auroc']
    assert all(row['p'] is None and row['p_holm'] is None for row in rows.values())


def test_other_records_labels_or_patients_are_refused_and_names_are_matched():
    a, b = examples()
    swapped = b._replace(scores=b.scores[:, ::-1], labels=b.labels[:, ::-1], names=('b', 'a'))
    assert comparison.paired(a, swapped)['results'] == comparison.paired(a, b)['results']
    only = b._replace(scores=b.scores[:, :1], labels=b.labels[:, :1], names=('a',))
    assert set(comparison.paired(a, only)['results']['auroc']) == {'mean', 'a'}
    for other in (
        b._replace(scores=b.scores[:-1], labels=b.labels[:-1], patient=b.patient[:-1]),
        b._replace(labels=np.where(b.labels == -2, 0, b.labels).astype(np.int8)),
        b._replace(names=('c', 'd')),
    ):
        with pytest.raises(
            UserError, match='step 20 and raw pixels cannot be compared: their results are of different'
        ):
            comparison.paired(a, other)
    with pytest.raises(UserError, match='their patients differ'):
        comparison.paired(a, b._replace(patient=np.arange(len(b.patient))))


def measured(encoder, values, patient, pixels=100, **more):
    """A result of a probe of patches with the metrics `values` {metric: [n,2]}."""
    content = dict(encoder=dict(step=encoder), bootstrap=dict(seed=0, draws=40), rows='structure', results=values)
    n = len(patient)
    return Measured(content | more, values, ('lung', 'heart'), np.arange(n), np.full(n, pixels), patient)


def structures(seed=1, n=60):
    """Two encoders; a third of the records lacks the heart, and several records are of one patient."""
    rng = np.random.default_rng(seed)
    patient = np.unique(rng.integers(n // 2, size=n), return_inverse=True)[1]
    lacks = np.stack([np.zeros(n, bool), rng.random(n) < 0.3], 1)
    hard = rng.random((n, 2))

    def values(gain):
        dice = np.where(lacks, np.nan, (0.5 * hard + gain + 0.05 * rng.random((n, 2))).clip(0, 1))
        return dict(dice=dice, false_area=np.where(lacks, 0.1 * rng.random((n, 2)), np.nan))

    return measured(20, values(0.3), patient), measured('random', values(0.27), patient)


def test_a_metric_of_few_patients_has_no_p_value():
    """The heart is not in the masks of nine patients, and false_area is measured there alone."""
    a, b = structures()
    few = np.isin(a.patient, np.unique(a.patient)[:9])
    for one in (a, b):
        one.values['dice'][:, 1] = np.where(few, np.nan, 0.5 * one.values['dice'][:, 0])
        one.values['false_area'][:, 1] = np.where(few, one.values['dice'][:, 0], np.nan)
    found = comparison.paired(a, b)['results']
    assert found['dice']['heart']['p'] is not None
    assert found['false_area']['heart']['p'] is None and found['false_area']['mean']['p'] is None


def test_differences_of_structures_equal_a_loop_over_the_same_draws():
    a, b = structures()
    found = comparison.paired(a, b)
    json.dumps(found, allow_nan=False)
    draws = np.concatenate(list(Bootstrap(a.patient, 0, 40).counts()))

    def mean(x, k, weight):
        total = count = 0.0
        for p in range(a.patient.max() + 1):
            of_patient = x[a.patient == p, k]
            of_patient = of_patient[~np.isnan(of_patient)]
            if len(of_patient):
                total, count = total + weight[p] * of_patient.mean(), count + weight[p]
        return total / count

    drawn = {}
    for k, name in enumerate(a.names):
        row, (x, y) = found['results']['dice'][name], (one.values['dice'] for one in (a, b))
        drawn[name] = np.array([mean(x, k, w) - mean(y, k, w) for w in draws])
        assert row['value'] == pytest.approx(mean(x, k, np.ones(99)) - mean(y, k, np.ones(99)))
        assert (row['low'], row['high']) == pytest.approx(tuple(np.percentile(drawn[name], [2.5, 97.5])))
        assert row['low'] > 0 and row['p'] == pytest.approx(2 / 41) and row['p_holm'] == pytest.approx(4 / 41)
    both = np.mean([*drawn.values()], 0)
    row = found['results']['dice']['mean']
    assert (row['low'], row['high']) == pytest.approx(tuple(np.percentile(both, [2.5, 97.5])))
    assert set(found['results']['false_area']) == {'mean', 'heart'}, 'all records show the lung'
    comparison.adjust_means([found])
    assert comparison.in_words(found).endswith('of 2 structure(s) 0 better, 0 worse (Holm)')


def test_structures_of_other_records_or_of_another_part_of_the_image_are_refused():
    a, b = structures()
    values = {metric: x.copy() for metric, x in b.values.items()}
    values['dice'][0] = np.nan
    for other, words in (
        (b._replace(record=b.record + 1), 'different test records or structures'),
        (b._replace(pixels=b.pixels - 1), 'different parts of the images'),
        (b._replace(values=values), 'different parts of the images'),
        (b._replace(patient=b.record), 'their patients differ'),
        (b._replace(names=('liver', 'spleen')), 'different labels or structures'),
        (examples()[1], 'different test records or structures'),
    ):
        with pytest.raises(UserError, match=words):
            comparison.paired(a, other._replace(names=a.names) if isinstance(other, Scored) else other)
    swapped = b._replace(values={m: x[:, ::-1] for m, x in b.values.items()}, names=b.names[::-1])
    assert comparison.paired(a, swapped)['results'] == comparison.paired(a, b)['results']


def test_holm():
    assert comparison.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert comparison.holm([0.9, 0.8]) == [1, 1] and comparison.holm([]) == []


def slow_delong(a, b, labels):
    """Every pair of a positive and a negative record, as DeLong et al. write it; one record a patient."""
    from scipy.stats import norm

    def kernel(s):
        x, y = s[labels == 1][:, None], s[labels == 0][None]
        return (x > y) + 0.5 * (x == y)

    v10 = np.stack([kernel(s).mean(1) for s in (a, b)])
    v01 = np.stack([kernel(s).mean(0) for s in (a, b)])
    s = np.cov(v10) / v10.shape[1] + np.cov(v01) / v01.shape[1]
    z = (v10[0].mean() - v10[1].mean()) / np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    return 2 * norm.sf(abs(z))


@pytest.mark.parametrize('ties', [False, True])
def test_delong_equals_its_formula_over_pairs(ties):
    rng = np.random.default_rng(3)
    labels = (rng.random(80) < 0.3).astype(np.int8)
    a, b = labels + rng.standard_normal((2, 80))
    if ties:
        a, b = np.round(a, 0), np.round(b, 1)
    assert delong.p_value(a, b, labels, np.arange(80)) == pytest.approx(slow_delong(a, b, labels), rel=1e-9)


def test_delong_holds_its_level_with_clusters_where_records_alone_do_not():
    """Six similar records a patient, two encoders that are equally good: about 5 % have p < .05."""
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        patient = np.repeat(np.arange(40), 6)
        labels = np.repeat(rng.random(40) < 0.5, 6).astype(np.int8)
        a, b = (labels + np.repeat(rng.standard_normal(40), 6) + 0.3 * rng.standard_normal(240) for _ in range(2))
        found.append([delong.p_value(a, b, labels, groups) for groups in (patient, np.arange(240))])
    share = np.mean(np.array(found) < 0.05, 0)
    assert 0.02 <= share[0] <= 0.09 and share[1] > 0.25


def test_delong_without_a_variance_is_none():
    labels, a = np.array([1, 0, 0, 0]), np.array([1.0, 2, 0, 4])
    assert delong.p_value(a, a[::-1], labels, np.arange(4)) is None, 'a single positive patient'
    assert delong.p_value(a, a, np.array([1, 1, 0, 0]), np.arange(4)) is None, 'equal rankings'
    assert delong.p_value(a, a[::-1], np.zeros(4, int), np.arange(4)) is None
