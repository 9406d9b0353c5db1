"""Dice and IoU against loops and scikit-learn, at the resolution of the masks."""

import dense_cases
import numpy as np
import pytest
from sklearn.metrics import f1_score, jaccard_score

from medjax.probes import overlaps, structures
from medjax.probes.overlaps import LEVELS, Overlap
from medjax.probes.statistics import Bootstrap


@pytest.fixture(scope='module')
def masked(tmp_path_factory):
    data = dense_cases.data(tmp_path_factory.mktemp('overlaps'), wide=7)
    return structures.masked(dense_cases.inputs(dense_cases.pixels_of_patches(), data), 'train')


def test_dice_and_iou_of_each_record_equal_scikit_learn(masked):
    rng = np.random.default_rng(3)
    values = rng.standard_normal((len(masked.numbers), 3, 4, 4)).astype(np.float32) * 3
    thresholds = np.array([-0.5, 1.0, 0.0], np.float32)
    found = overlaps.overlap(masked, values, thresholds)
    levels = overlaps.overlap(masked, values, None)
    for n, planes in enumerate(masked.planes()):
        axes = masked.axes(planes.shape[1:])
        on = structures.on_pixels(values[n], *axes)
        for k in range(3):
            shown = planes[k][structures.inside(axes[0]), structures.inside(axes[1])]
            called = on[k] >= thresholds[k]
            assert found.shown[n, k] == shown.sum() and found.predicted[n, k] == called.sum()
            assert found.pixels[n, k] == shown.size and (found.false_area()[n, k] == called.mean()) != shown.any()
            if not shown.any():
                assert np.isnan(found.dice()[n, k]) and np.isnan(found.iou()[n, k])
                continue
            truth, answer = shown.ravel(), called.ravel()
            assert found.dice()[n, k] == pytest.approx(f1_score(truth, answer, zero_division=0))
            assert found.iou()[n, k] == pytest.approx(jaccard_score(truth, answer, zero_division=0))
            for level in range(k, len(LEVELS), 4) if n < 4 else ():
                value = LEVELS[level]
                expected = f1_score(truth, on[k].ravel() >= value, zero_division=0)
                assert levels.dice()[n, k, level] == pytest.approx(expected)


def test_means_are_over_patients():
    shown = np.array([[4], [4], [0], [4], [0]])
    both = np.array([[4], [0], [0], [2], [0]])
    predicted = np.array([[4], [4], [3], [2], [0]])
    found = Overlap(both, predicted, shown, np.array([[10], [10], [12], [10], [8]]))
    patients = np.array([0, 0, 0, 1, 2])
    table = overlaps.results(found, ('lung',), Bootstrap(patients, draws=50))
    dice = [1.0, 0.0, np.nan, 2 * 2 / 6]
    assert table['dice']['lung']['value'] == pytest.approx((np.mean(dice[:2]) + dice[3]) / 2)
    assert table['dice']['lung']['records'] == 3 and table['dice']['mean']['labels'] == 1
    assert table['iou']['lung']['value'] == pytest.approx((np.mean([1, 0]) + 0.5) / 2)
    assert table['false_area']['lung']['value'] == pytest.approx((3 / 12 + 0) / 2), 'patients 0 and 2 have such records'
    assert table['false_area']['lung']['records'] == 2


def test_the_best_threshold_is_that_of_a_loop(masked):
    rng = np.random.default_rng(4)
    values = rng.standard_normal((len(masked.numbers), 3, 4, 4)).astype(np.float32) * 2
    thresholds, best = overlaps.best_thresholds(masked, values)
    assert thresholds[2] == 0 and np.isnan(best[2]), 'a structure that no record shows'
    for k in range(2):
        means = []
        for level in LEVELS:
            dice = overlaps.overlap(masked, values, np.full(3, level)).dice()[:, k]
            by_patient = [dice[masked.patients == p] for p in np.unique(masked.patients)]
            means.append(np.mean([np.nanmean(x) for x in by_patient if np.isfinite(x).any()]))
        assert best[k] == pytest.approx(max(means)) and means[[*LEVELS].index(thresholds[k])] == pytest.approx(best[k])
