"""Groups and their distances equal loops over scikit-learn and the formulas of FairSeg and of equalised odds."""

import numpy as np
import pytest
from sklearn import metrics as sk

from medjax.errors import UserError
from medjax.probes import subgroups
from medjax.probes.aggregate import Units
from medjax.probes.statistics import Bootstrap


def example(seed=0, n=400):
    rng = np.random.default_rng(seed)
    patients = np.unique(rng.integers(n // 2, size=n), return_inverse=True)[1]
    labels = (rng.random((n, 2)) < (0.4, 0.2)).astype(np.int8)
    scores = labels + rng.standard_normal((n, 2))
    labels[rng.random((n, 2)) < 0.05] = -1
    sex = rng.choice(['F', 'M', ''], n, p=[0.5, 0.45, 0.05])
    age = rng.uniform(0, 95, n).astype(np.float32)
    age[:10] = np.nan
    return Units(scores, labels, patients, patients.astype(np.uint64), dict(sex=sex, age=age))


def judge(units, *names, thresholds=(0.5, 0.6), draws=20):
    columns = [subgroups.column(name, units.columns, units.patients) for name in names]
    chosen = None if thresholds is None else np.array(thresholds)
    return subgroups.judge(units, columns, ('a', 'b'), chosen, Bootstrap(units.patients, 0, draws))


def test_each_group_equals_sklearn_and_distances_equal_their_formulas():
    units = example()
    found = judge(units, 'sex')['sex']
    assert set(found['groups']) == {'F', 'M'} and found['unknown'] == (units.columns['sex'] == '').sum()
    auroc, rates, balanced = {}, {}, {}
    for group in ('F', 'M', 'both'):
        members = units.columns['sex'] == group if group != 'both' else units.columns['sex'] != ''
        for j, name in enumerate(('a', 'b')):
            known = members & (units.labels[:, j] >= 0)
            y, s = units.labels[known, j], units.scores[known, j]
            called = s >= (0.5, 0.6)[j]
            auroc[group, name] = sk.roc_auc_score(y, s)
            rates[group, name] = called.mean(), called[y == 1].mean(), called[y == 0].mean()
            balanced[group, name] = sk.balanced_accuracy_score(y, called)
            if group != 'both':
                values = {metric: found['results'][metric][group][name]['value'] for metric in found['results']}
                assert values['auroc'] == pytest.approx(auroc[group, name])
                assert values['auprc'] == pytest.approx(sk.average_precision_score(y, s))
                assert values['balanced_accuracy'] == pytest.approx(balanced[group, name])
                three = values['positive_rate'], values['sensitivity'], values['false_positive_rate']
                assert three == pytest.approx(rates[group, name])
    distances = found['distances']
    for name in ('a', 'b'):
        f, m, overall = (auroc[group, name] for group in ('F', 'M', 'both'))
        assert distances['auroc_gap'][name]['value'] == pytest.approx(abs(f - m))
        scaled = overall / (1 + abs(f - overall) + abs(m - overall))
        assert distances['auroc_equity_scaled'][name]['value'] == pytest.approx(scaled)
        assert distances['auroc_std_disparity'][name]['value'] == pytest.approx(np.std([f, m]) / overall)
        assert distances['auroc_gap_disparity'][name]['value'] == pytest.approx(abs(f - m) / overall)
        gaps = np.abs(np.subtract(rates['F', name], rates['M', name]))
        assert distances['dpd'][name]['value'] == pytest.approx(gaps[0])
        assert distances['eod'][name]['value'] == pytest.approx(max(gaps[1:]))
        assert distances['aod'][name]['value'] == pytest.approx(np.mean(gaps[1:]))
        gap = distances['auroc_gap'][name]
        assert gap['low'] <= gap['value'] <= gap['high']
    means = [np.mean([auroc[group, name] for name in ('a', 'b')]) for group in ('F', 'M')]
    assert found['results']['auroc']['F']['mean']['value'] == pytest.approx(means[0])
    assert distances['auroc_gap']['mean']['value'] == pytest.approx(abs(means[0] - means[1]))


def test_gaps_equal_a_slow_loop_over_the_same_draws():
    units = example(1, 200)
    bootstrap = Bootstrap(units.patients, 0, 30)
    columns = [subgroups.column('sex', units.columns, units.patients)]
    found = subgroups.judge(units, columns, ('a', 'b'), None, bootstrap)['sex']
    assert 'dpd' not in found['distances'] and set(found['results']) == {'auroc', 'auprc'}
    drawn = []
    for weights in np.concatenate(list(bootstrap.counts())):
        values = []
        for group in ('F', 'M'):
            members = (units.columns['sex'] == group) & (units.labels[:, 0] >= 0)
            w = weights[units.patients[members]]
            values.append(sk.roc_auc_score(units.labels[members, 0], units.scores[members, 0], sample_weight=w))
        drawn.append(abs(values[0] - values[1]))
    gap = found['distances']['auroc_gap']['a']
    assert gap['high'] == pytest.approx(max(gap['value'], np.percentile(drawn, 97.5)))


def test_ages_are_in_bands_and_other_numbers_in_quarters_or_values():
    ages = np.float32([0, 17.9, 18, 24.9, 25, 49, 50, 64, 65, 79, 80, 95, np.nan])
    bands = subgroups.values_of('age', ages).tolist()
    assert bands == [*np.repeat(['below 18', '18 to 25', '25 to 50', '50 to 65', '65 to 80', '80 and above'], 2), '']
    assert subgroups.values_of('severity', np.float32([0, 2, np.nan, 2])).tolist() == ['0', '2', '', '2']
    quarters = subgroups.values_of('dose', np.arange(100, dtype=np.float32))
    assert np.unique(quarters, return_counts=True)[1].tolist() == [25] * 4
    assert subgroups.values_of('dose', np.full(3, np.nan, np.float32)).tolist() == [''] * 3


def test_small_groups_are_skipped_by_name_and_intersections_have_pairs():
    units = example()
    units.columns['sex'][:3] = 'X'
    found = judge(units, 'sex', 'sex*age')
    assert found['sex']['skipped'] == {'X': 3} and list(found['sex']['groups']) == ['F', 'M']
    pairs = found['sex*age']
    assert 'F, 25 to 50' in pairs['groups'] and next(iter(pairs['groups'])).startswith('F')
    members = (units.columns['sex'] == 'F') & (units.columns['age'] >= 25) & (units.columns['age'] < 50)
    about = dict(records=int(members.sum()), patients=len(np.unique(units.patients[members])))
    assert pairs['groups']['F, 25 to 50'] == about
    assert all(count < subgroups.FEWEST for count in pairs['skipped'].values())


def test_a_label_that_a_group_lacks_has_no_part_in_distances_and_means():
    units = example()
    female = units.columns['sex'] == 'F'
    units.labels[female & (units.labels[:, 1] == 1), 1] = 0  # no woman is positive for b
    found = judge(units, 'sex')['sex']
    assert found['too_rare'] == ['b'] and 'b' not in found['results']['auroc']['F']
    assert 'b' in found['results']['auroc']['M'] and 'b' not in found['distances']['auroc_gap']
    assert found['results']['auroc']['M']['mean']['labels'] == 1
    assert found['results']['auroc']['M']['mean']['value'] == found['results']['auroc']['M']['a']['value']
    units.labels[female] = -1
    empty = judge(units, 'sex')['sex']
    assert empty['distances']['auroc_gap'] == {} and empty['results']['auroc']['F']['mean']['value'] is None


@pytest.mark.parametrize(('sex', 'words'), [('F', "only 'F' has at least 20 patients"), ('', 'no group with at least')])
def test_a_single_group_is_nothing_to_compare(sex, words):
    units = example()
    units.columns['sex'][:] = sex
    assert words in judge(units, 'sex')['sex']['note']


def test_the_option_names_columns_that_the_records_have():
    available = ('age', 'sex', 'dose')
    assert subgroups.parse(None, available) == ('sex', 'age') and subgroups.parse('none', available) == ()
    assert subgroups.parse('dose,sex*age', available) == ('dose', 'sex*age')
    with pytest.raises(UserError, match="no column 'sx'; did you mean 'sex'"):
        subgroups.parse('age*sx', available)


def test_a_column_with_very_many_values_keeps_the_largest_groups():
    patients = np.arange(3000)
    site = np.array([f's{i}' for i in np.minimum(patients // 25, 90)])
    found = subgroups.column('site', dict(site=site), patients)
    assert len(found.groups) == subgroups.MOST_GROUPS and 's90' in found.groups
    assert len(found.skipped) == subgroups.MOST_NAMED + 1 and found.skipped['21 more'] == 21 * 25
