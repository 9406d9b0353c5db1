"""Localisation and graph cuts: figures equal loops, and maps point at what they should."""

import dense_cases
import numpy as np
import pytest
from scipy.linalg import eigh
from sklearn.metrics import jaccard_score

from medjax.probes import structures
from medjax.probes.methods import graph_cut, localisation


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    return dense_cases.data(tmp_path_factory.mktemp('localisation'))


@pytest.fixture(scope='module')
def inputs(built, tmp_path_factory):
    return dense_cases.inputs(dense_cases.pixels_of_patches(), built, cache=tmp_path_factory.mktemp('cache'))


@pytest.fixture(scope='module')
def splits(inputs):
    return structures.masked_splits(inputs)


def test_prototypes_equal_a_loop_over_patches(splits):
    sums = np.zeros((2, 2, 16))
    for i, planes in enumerate(splits.train.planes()):
        for row in range(8):
            for column in range(8):
                patch = np.asarray(splits.train.grid[i, row, column], np.float64)
                patch = patch / max(np.linalg.norm(patch), 1e-12)
                for k in range(2):
                    share = planes[k, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].mean()
                    sums[0, k] += share * patch
                    sums[1, k] += (1 - share) * patch
    expected = sums / np.linalg.norm(sums, axis=2, keepdims=True)
    np.testing.assert_allclose(localisation.prototypes(splits.train), expected, atol=1e-4)


def test_pointing_and_contrast_equal_loops(splits):
    maps = np.random.default_rng(0).standard_normal((len(splits.test.numbers), 2, 8, 8)).astype(np.float32)
    found = localisation.judge(splits.test, maps)
    for i, planes in enumerate(splits.test.planes()):
        on = structures.on_pixels(maps[i], *splits.test.axes((32, 32)))
        for k in range(2):
            if not planes[k].any():
                assert np.isnan(found[i, k]).all()
                continue
            row, column = np.unravel_index(on[k].argmax(), (32, 32))
            inside, outside = on[k][planes[k]], on[k][~planes[k]]
            contrast = (inside.mean() - outside.mean()) / np.sqrt(np.var(inside) + np.var(outside))
            np.testing.assert_allclose(found[i, k], [planes[k, row, column], contrast, planes[k].mean()], rtol=1e-4)


def test_maps_without_contrast():
    plane = np.eye(3, dtype=bool)
    assert localisation.cnr(np.ones((3, 3)), plane) == 0
    assert np.isnan(localisation.cnr(np.ones((3, 3)), np.ones((3, 3), bool)))
    assert np.isfinite(localisation.cnr(plane * 1.0, plane))


def test_bright_patches_are_found(inputs, tmp_path):
    content, arrays = result = localisation.run(inputs)
    rows = content['results']
    assert rows['pointing']['disc']['value'] > 0.8 > 2 * rows['pointing']['disc']['chance']
    assert (
        rows['signed_cnr']['disc']['value'] > 1 and rows['cnr']['disc']['value'] >= rows['signed_cnr']['disc']['value']
    )
    assert rows['dice']['disc']['value'] > 0.6 and content['skipped_labels'].keys() == {'never'}
    assert content['chosen']['similarity'] == 'to prototypes of train' and arrays['cnr'].shape == (10, 2)
    assert set(dense_cases.stored(tmp_path, 8, result).values) == set(rows), 'all can be compared with another encoder'


def test_a_cut_is_the_eigenvector_of_the_formula():
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((30, 4))
    patches[:12] += 3
    found = graph_cut.cut(patches, 0.2)
    x = patches - patches.mean(0)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    weight = np.where(x @ x.T >= 0.2, 1, 1e-5)
    degrees = np.diag(weight.sum(1))
    vector = eigh(degrees - weight, degrees)[1][:, 1]
    vector = vector - vector.mean()
    vector *= np.sign(vector[np.abs(vector).argmax()])
    np.testing.assert_allclose(found / np.abs(found).max(), vector / np.abs(vector).max(), atol=1e-6)
    assert ((found > 0) == (np.arange(30) < 12)).all() or ((found < 0) == (np.arange(30) < 12)).all()


@pytest.mark.parametrize('patches', [np.ones((1, 3)), np.ones((9, 3)), np.zeros((4, 2))])
def test_equal_patches_have_a_finite_cut(patches):
    assert np.isfinite(graph_cut.cut(patches, 0.2)).all()


def test_discs_are_cut_out(inputs, splits, tmp_path):
    content, arrays = result = graph_cut.run(inputs)
    assert content['results']['dice']['disc']['value'] > 0.6
    part = 1 if content['details']['parts']['disc'] == 'object' else -1
    divided = graph_cut.cuts(splits.test, content['chosen']['threshold'])
    for i, planes in enumerate(splits.test.planes()):
        on = structures.on_pixels(part * divided[i][None], *splits.test.axes((32, 32)))[0]
        called = on >= 0 if part > 0 else on > 0
        assert arrays['iou'][i, 0] == pytest.approx(jaccard_score(planes[0].ravel(), called.ravel()))
    grid = [entry['validation_dice'] for entry in content['details']['grid']]
    assert content['chosen']['validation_dice'] == max(grid)
    assert set(dense_cases.stored(tmp_path, 8, result).values) == set(content['results'])
