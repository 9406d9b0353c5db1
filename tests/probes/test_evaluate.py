"""What is counted and chosen: units of study and patient, halves of validation, thresholds; bad scores are refused."""

import json

import numpy as np
import pytest

from medjax.errors import UserError
from medjax.probes import aggregate, evaluate, halves, label_splits, retained
from medjax.probes.aggregate import Cases
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options, Scores


def test_scores_and_labels_are_pooled_by_unit():
    scores = np.array([[1.0], [3.0], [-2.0], [5.0], [4.0]])
    labels = np.array([[0], [1], [-1], [-2], [0]], np.int8)
    unit = np.array([1, 1, 0, 0, 2])
    cases = Cases(np.array([7, 7, 9, 9, 7], np.uint64), unit, {})
    mean, top = (aggregate.pool(scores, labels, cases, how) for how in ('mean', 'max'))
    assert mean.scores[:, 0].tolist() == [1.5, 2.0, 4.0] and top.scores[:, 0].tolist() == [5.0, 3.0, 4.0]
    assert mean.labels[:, 0].tolist() == [-1, 1, 0], 'unknown, any positive, negative'
    assert mean.patients.tolist() == [1, 0, 0] and mean.keys.tolist() == [9, 7, 7]
    assert aggregate.disagreeing(labels, unit, ['x']) == {'x': 1}


def test_attributes_are_pooled():
    sex, age = np.array(['F', '', 'M', 'F', '']), np.float32([40, np.nan, 50, 60, np.nan])
    cases = Cases(np.zeros(5, np.uint64), np.array([0, 0, 1, 1, 2]), dict(sex=sex, age=age))
    units = aggregate.pool(np.zeros((5, 1)), np.zeros((5, 1), np.int8), cases, 'mean')
    assert units.columns['sex'].tolist() == ['F', 'several', '']
    np.testing.assert_array_equal(units.columns['age'], [40, 55, np.nan])


class Records:
    """The keys of a split, with records that have no study."""

    def keys(self, kind):
        return np.array(dict(patient=[5, 5, 6, 6], study=[0, 0, 3, 3])[kind], np.uint64)

    def column(self, name):
        return np.array(['a', 'b', 'c', 'd'])


@pytest.mark.parametrize(('unit', 'expected'), [('image', 4), ('study', 3), ('patient', 2)])
def test_records_without_a_study_are_units_of_their_own(unit, expected):
    cases = aggregate.cases(Records(), unit, ['view'])
    assert cases.unit.max() + 1 == expected and cases.columns['view'].tolist() == ['a', 'b', 'c', 'd']
    assert (cases.unit[2] == cases.unit[3]) == (unit != 'image')


def test_the_half_of_a_patient_depends_on_nothing_else():
    keys = np.random.default_rng(0).integers(2**63, size=4000).astype(np.uint64)
    first = halves.in_first_half(keys, 0)
    assert np.array_equal(first[::-1], halves.in_first_half(keys[::-1], 0))
    assert np.array_equal(first[:50], halves.in_first_half(keys[:50], 0))
    assert 0.46 < first.mean() < 0.54
    assert 0.4 < (first == halves.in_first_half(keys, 1)).mean() < 0.6, 'the seed draws other halves'


def test_labels_with_enough_patients_are_divided_and_others_choose_with_all_records():
    rng = np.random.default_rng(1)
    patients = np.repeat(np.arange(200), 2).astype(np.uint64)
    labels = (rng.random((400, 2)) < (0.4, 0.02)).astype(np.int8)
    labels[:5, 0] = -1
    found = halves.divide(labels, patients, ('common', 'rare'), 0)
    choosing, calibrating = found.choosing(labels), found.calibrating(labels)
    known = labels[:, 0] >= 0
    assert ((choosing[:, 0] >= 0) ^ (calibrating[:, 0] >= 0))[known].all() and not (calibrating[~known, 0] >= 0).any()
    assert not set(patients[choosing[:, 0] >= 0]) & set(patients[calibrating[:, 0] >= 0])
    assert np.array_equal(choosing[:, 1], labels[:, 1]) and (calibrating[:, 1] < 0).all()
    assert list(found.reasons) == ['rare'] and 'patient(s) with a positive record in the' in found.reasons['rare']


def features(labels, patients=None):
    n = len(labels)
    return SplitFeatures(np.zeros((n, 1, 2), np.float32), None, labels, np.arange(n) if patients is None else patients)


def draw(seed, n=400, prevalence=(0.4, 0.3)):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, 2)) < prevalence).astype(np.int8)
    return (1.5 * labels + rng.standard_normal((n, 2)) - 1).astype(np.float32), labels


def judged(val=400, prevalence=(0.4, 0.3), threshold=0.0, scale='log-odds', cases=None, **options):
    (sv, yv), (st, yt) = draw(1, val, prevalence), draw(2)
    splits = label_splits.label_splits(features(draw(0)[1]), features(yv), features(yt), ('a', 'b'), 0, 'data', cases)
    scores = Scores(st, sv, threshold, {}, {}, {}, scale)
    return evaluate.evaluate(lambda: scores, splits, Options(**(dict(draws=30) | options))), splits, (sv, yv, st, yt)


def test_one_half_chooses_and_the_other_calibrates():
    result, splits, (sv, yv, st, yt) = judged()
    json.dumps(result.content, allow_nan=False)
    chooses = splits.whole_val.halves.chooses[:, 0]
    assert (splits.val.labels[~chooses] < 0).all() and np.array_equal(splits.val.labels[chooses], yv[chooses])
    row = result.content['validation_results']['auroc']['a']
    assert row['positives'] == (yv[chooses, 0] == 1).sum() and row['negatives'] == (yv[chooses, 0] == 0).sum()
    about = result.content['calibration']
    assert about['calibrating_patients'] == (~chooses).sum() and about['labels'] == ['a', 'b']
    assert set(about['results']) == {'none', 'temperature', 'platt', 'isotonic', 'venn_abers'}
    assert about['results']['platt']['brier']['mean']['value'] < about['results']['none']['brier']['mean']['value']
    other, *_ = judged(scale='any')
    assert set(other.content['calibration']['results']) == {'platt', 'isotonic', 'venn_abers'}
    assert result.arrays['reliability'].shape == (5, 2, 15, 3)
    assert result.content['retained']['auroc']['a'][0] == pytest.approx(
        result.content['results']['auroc']['a']['value']
    )


def test_labels_of_the_calibrating_half_do_not_choose():
    """The thresholds stay the same if the labels of the calibrating half are turned over."""
    result, splits, (sv, yv, st, yt) = judged(threshold=None)
    turned = np.where(splits.whole_val.halves.calibrates, 1 - yv, yv).astype(np.int8)
    again = label_splits.label_splits(features(draw(0)[1]), features(turned), features(yt), ('a', 'b'), 0, 'data')
    other = evaluate.evaluate(lambda: Scores(st, sv, None, {}, {}, {}, 'log-odds'), again, Options(draws=30))
    assert other.content['thresholds'] == result.content['thresholds']
    assert other.content['calibration'] != result.content['calibration']


def test_a_small_validation_chooses_as_a_whole_and_calibrates_nothing():
    result, splits, (_, yv, *_) = judged(val=30)
    assert np.array_equal(splits.val.labels, yv)
    assert 'no label has 10 patients of each class in each half' in result.content['calibration']['left_out']
    assert 'conformal' not in result.content and result.content['retained']['certainty'] == 'probe'


@pytest.mark.parametrize('own', [0.0, None])
def test_a_label_with_one_class_on_validation_gets_a_threshold_in_the_units_of_its_scores(own):
    """The scores are log-odds around -1. Before, .5 was used: a probability of .62."""
    result, _, (sv, *_) = judged(val=60, prevalence=(0.4, 0.0), threshold=own)
    thresholds = result.content['thresholds']
    note = result.content['threshold_notes']['b']
    assert list(result.content['threshold_notes']) == ['b'] and 'no positive record in validation' in note
    if own is None:
        prevalence = (draw(0)[1][:, 1] == 1).mean()
        assert 'matches the prevalence in train' in note
        assert (sv[:, 1] >= thresholds['balanced_accuracy']['b']).mean() == pytest.approx(prevalence, abs=0.02)
    else:
        assert thresholds['balanced_accuracy']['b'] == 0 and "the probe's own threshold" in note
    assert thresholds['mcc'] == thresholds['balanced_accuracy'] and 'unjudged' not in result.content


def test_if_no_label_can_be_judged_on_validation_it_is_said():
    result, *_ = judged(val=40, prevalence=(0.0, 0.0))
    assert result.content['unjudged'].startswith('no label has positive and negative records on validation')
    assert result.content['validation_results'] == {} and result.content['results']['accuracy']['mean']['value'] > 0.5


def test_units_are_scored_in_place_of_images():
    unit = np.arange(400) // 2
    cases = dict(test=Cases(unit.astype(np.uint64), unit, {}))
    result, _, (_, _, st, yt) = judged(cases=cases, unit='patient', pool='max')
    assert result.content['unit']['units'] == 200 and result.content['unit']['pool'] == 'max'
    assert result.content['bootstrap']['patients'] == 200 and result.content['records']['test'] == 400
    row = result.content['results']['auroc']['a']
    assert (
        row['positives'] == (yt[:, 0].reshape(-1, 2).max(1) == 1).sum() and row['positives'] + row['negatives'] == 200
    )
    np.testing.assert_array_equal(result.arrays['scores'], st.reshape(-1, 2, 2).max(1))
    assert np.array_equal(result.arrays['unit'], unit)


def test_a_label_that_every_unit_has_is_skipped_by_name():
    unit = np.arange(400) // 200
    cases = dict(test=Cases(np.arange(400).astype(np.uint64) % 2, unit, {}))
    with pytest.raises(UserError, match='no label to probe: .*a: no negative record in test, counted by patient'):
        judged(cases=cases, unit='patient')
    st, yt = draw(2)
    unit = np.arange(400) // 8  # each unit has a record with a; not each one with b
    yt[::8, 0], yt[:8, 1] = 1, 0
    cases = dict(test=Cases(unit.astype(np.uint64), unit, {}))
    splits = label_splits.label_splits(
        features(draw(0)[1]), features(draw(1)[1]), features(yt), ('a', 'b'), 0, 'd', cases
    )
    scores = Scores(st, draw(1)[0], 0.0, {}, {'other': st}, {}, 'log-odds')
    result = evaluate.evaluate(lambda: scores, splits, Options(draws=20, unit='study'))
    assert result.content['skipped_labels'] == {'a': 'no negative record in test, counted by study'}
    assert list(result.content['results']['auroc']) == ['mean', 'b'] and result.arrays['scores'].shape == (50, 1)
    assert 'a' not in result.content['calibration'].get('not_calibrated', {})


@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('split', ['test', 'validation'])
def test_scores_that_are_not_finite_are_a_sentence(bad, split):
    (sv, yv), (st, yt) = draw(1), draw(2)
    (st if split == 'test' else sv)[3, 1] = bad
    splits = label_splits.label_splits(features(yv), features(yv), features(yt), ('a', 'b'), 0, 'data')
    with pytest.raises(UserError, match=f'the scores of {split} are not finite'):
        evaluate.evaluate(lambda: Scores(st, sv, 0.0, {}, {}, {}), splits, Options(draws=5))


def test_three_patients_give_a_result_with_a_warning():
    st, yt = draw(2, 12, (0.5, 0.5))
    yt[:2] = [[0, 1], [1, 0]]
    patients = np.arange(12) % 3
    splits = label_splits.label_splits(features(draw(0)[1]), None, features(yt, patients), ('a', 'b'), 0, 'data')
    scores = Scores(st, draw(1, len(splits.val.labels))[0], 0.0, {}, {}, {}, 'log-odds')
    result = evaluate.evaluate(lambda: scores, splits, Options(draws=20))
    json.dumps(result.content, allow_nan=False)
    assert 'only 3 patients' in result.content['bootstrap']['warning']


def test_certainty_curves_equal_a_loop_and_keep_ties_together():
    p = np.array([[0.9], [0.1], [0.6], [0.4], [0.5], [0.95], [0.05], [0.7], [0.3], [0.8]])
    y = np.array([[1], [0], [0], [1], [1], [1], [0], [1], [0], [0]], np.int8)
    found = retained.curves(p, y, ['x'])
    assert found['retained']['x'][0] == 1 and found['accuracy']['x'][0] == 0.7
    half = found['fractions'].index(0.5)  # certain to .8 or more: .95, .05, .9, .1, .8
    assert found['retained']['x'][half] == 0.5 and found['accuracy']['x'][half] == 0.8
    assert found['auroc']['x'][half] == pytest.approx(1.0)
    tied = retained.curves(np.full((10, 1), 0.7), y, ['x'])
    assert tied['retained']['x'] == [1.0] * 10 and tied['auroc']['x'] == [0.5] * 10
    one = retained.curves(p, (p == 0.6).astype(np.int8), ['x'])
    assert one['auroc']['x'][0] is not None and one['auroc']['x'][-1] is None, 'only negatives are left'
