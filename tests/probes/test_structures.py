"""Masks, cells and grids: both maps against loops over pixels, and what is done with records without masks."""

import dense_cases
import jax
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from medjax.errors import UserError
from medjax.probes import structures
from medjax.probes.structures import Axis, MaskedSplits


@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
@pytest.mark.parametrize(('shape', 'cells'), [((9, 14), 4), ((16, 16), 4), ((7, 5), 12)])
def test_shares_of_cells_equal_a_fine_raster(fit, shape, cells):
    planes = np.random.default_rng(0).random((2, *shape)) < 0.4
    rows, columns = structures.seen_axes(shape, dict(fit=fit))
    shares, on_image = structures.covered(planes, rows, columns, cells)
    fine = 60  # points of each cell, along an axis
    at = [axis.start + (np.arange(cells * fine) + 0.5) / (cells * fine) * axis.length for axis in (rows, columns)]
    there = [(x >= 0) & (x < axis.pixels) for x, axis in zip(at, (rows, columns), strict=True)]
    pixel = [np.clip(np.floor(x).astype(int), 0, axis.pixels - 1) for x, axis in zip(at, (rows, columns), strict=True)]
    inside = there[0][:, None] & there[1]
    blocks = lambda x: x.reshape(cells, fine, cells, fine).mean((1, 3))  # noqa: E731
    np.testing.assert_allclose(on_image, blocks(inside), atol=0.03)
    for k in range(2):
        drawn = blocks(planes[k][pixel[0][:, None], pixel[1]] & inside)
        np.testing.assert_allclose(shares[k] * on_image, drawn, atol=0.04)


@pytest.mark.parametrize('fit', ['crop', 'pad', 'stretch'])
def test_grids_are_interpolated_at_pixels(fit):
    values = np.random.default_rng(1).standard_normal((2, 5, 5)).astype(np.float32)
    rows, columns = structures.seen_axes((20, 31), dict(fit=fit, zoom=1.25))
    found = structures.on_pixels(values, rows, columns)
    seen = structures.inside(rows), structures.inside(columns)
    expected = np.empty(found.shape)
    at = [(np.arange(s.start, s.stop) + 0.5 - a.start) / a.length * 5 - 0.5 for s, a in zip(seen, (rows, columns))]
    for k in range(2):
        expected[k] = map_coordinates(values[k], np.meshgrid(*at, indexing='ij'), order=1, mode='nearest')
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.shape[1] == sum(rows.start <= i + 0.5 < rows.start + rows.length for i in range(20))
    assert found.shape[2] == sum(columns.start <= i + 0.5 < columns.start + columns.length for i in range(31))


def test_interpolation_is_that_of_the_loss():
    values = np.random.default_rng(1).standard_normal((1, 6, 6)).astype(np.float32)
    axis = Axis(24, 0.0, 24.0)
    np.testing.assert_allclose(
        structures.on_pixels(values, axis, axis), jax.image.resize(values, (1, 24, 24), 'linear'), atol=1e-5
    )


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    return dense_cases.data(tmp_path_factory.mktemp('masks'))


def splits_of(data, **encoder) -> MaskedSplits:
    return structures.masked_splits(dense_cases.inputs(dense_cases.pixels_of_patches(**encoder), data))


def test_records_without_masks_and_absent_structures_are_counted(built):
    found = splits_of(built)
    assert found.test.names == ('disc', 'bar') and found.skipped == {'never': 'no record of train and test shows it'}
    assert found.without == dict(train=4, val=2, test=2) and found.validation == 'the val split'
    for name, one in found.learning().items():
        first = dict(train=0, val=24, test=32)[name]
        expected = [i for i in range(first, first + built.splits[name]) if i % 5 != 4]
        assert (one.numbers + first).tolist() == expected and len(one.grid) == len(expected)
        masks = [dense_cases.picture(i)[1] for i in expected]
        np.testing.assert_array_equal(one.present, [[(mask & 1).any(), (mask & 2).any()] for mask in masks])
        for planes, mask in zip(one.planes(), masks, strict=True):
            np.testing.assert_array_equal(planes, [mask & 1 > 0, mask & 2 > 0])


def test_what_the_encoder_does_not_see_is_not_there(tmp_path):
    data = dense_cases.data(tmp_path, wide=200)
    inputs = [dense_cases.inputs(dense_cases.pixels_of_patches(fit=fit), data) for fit in ('crop', 'pad')]
    found = dict(crop=structures.masked(inputs[0], 'test'), pad=structures.masked(inputs[1], 'test'))
    rows, columns = found['crop'].axes((32, 232))
    assert structures.inside(rows) == slice(0, 32) and structures.inside(columns) == slice(100, 132)
    assert found['pad'].present[:, 0].all() and found['crop'].present[:, 0].all()


def test_validation_without_masks_is_held_out_of_train(tmp_path):
    data = dense_cases.data(tmp_path, masked=lambda i: not 24 <= i < 32)
    found = splits_of(data)
    assert 'held out' in found.validation and len(found.train.numbers) + len(found.val.numbers) == 24
    ids = data.split('train').keys('patient')
    assert not set(ids[found.train.numbers]) & set(ids[found.val.numbers])


def test_a_structure_that_is_held_out_alone_is_skipped(tmp_path):
    """With two patients, the one that is held out may have the only records with the bar."""
    data = dense_cases.data(tmp_path, counts=(4, 0, 4), patients=['a', 'b'] * 2 + ['c'] * 4, masked=lambda i: True)
    found = splits_of(data)
    assert found.test.names == (('disc', 'bar') if found.train.numbers[0] == 1 else ('disc',))
    assert all(found.train.present.any(0))


def test_masks_without_names(tmp_path):
    one = dense_cases.data(tmp_path / 'one', names=(), masked=lambda i: i % 2 == 0)
    found = splits_of(one)
    assert found.test.names == ('mask',) and found.test.present.all()
    with pytest.raises(UserError, match=r'values 1, 2, 3 of its masks.*--masks lung=1'):
        splits_of(dense_cases.data(tmp_path / 'several', names=()))


@pytest.mark.parametrize(
    ('masked', 'words'),
    [(lambda i: False, 'no masks: 24 records of train'), (lambda i: i < 32, 'no masks: 12 records of test')],
)
def test_data_without_masks_are_refused_at_once(tmp_path, masked, words):
    encoder = dense_cases.pixels_of_patches()
    inputs = dense_cases.inputs(encoder, dense_cases.data(tmp_path / 'unnamed', names=(), masked=masked))
    with pytest.raises(UserError, match=words):
        structures.requirements(inputs)
    inputs = dense_cases.inputs(encoder, dense_cases.data(tmp_path / 'named', masked=masked))
    structures.requirements(inputs)
    with pytest.raises(UserError, match=r'no record of (train|test) has a mask'):
        structures.masked_splits(inputs)


def test_an_encoder_without_patches_is_refused(built):
    from medjax.probes import encode

    encoder = dense_cases.pixels_of_patches()
    pixels = encode.Encoder('pixels', 'x', {}, encode._pixels, 32, encoder.image, encoder.meta)
    with pytest.raises(UserError, match='no feature for each patch'):
        structures.requirements(dense_cases.inputs(pixels, built))
