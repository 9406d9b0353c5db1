"""Segmentation from patches: it finds what patches tell, chooses on validation, and says what it leaves out."""

import dense_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

from medjax.errors import UserError
from medjax.probes import comparison, decoders, segment, structures
from medjax.probes.methods import segmentation, segmentation_decoder

BOTH = dict(linear=segmentation.LINEAR, convolutional=segmentation_decoder.CONVOLUTIONAL)


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    return dense_cases.data(tmp_path_factory.mktemp('segmentation'))


@pytest.mark.parametrize('name', BOTH)
def test_structures_are_found(built, tmp_path, name):
    inputs = dense_cases.inputs(dense_cases.pixels_of_patches(), built, cache=tmp_path)
    content, arrays = segment.run(inputs, BOTH[name], steps=30)
    dice = content['results']['dice']
    assert dice['disc']['value'] > 0.7 and list(dice) == ['mean', 'disc', 'bar']
    assert content['skipped_labels'] == {'never': 'no record of train and test shows it'}
    assert content['records'] == dict(train=20, val=6, test=10) and content['without_mask']['test'] == 2
    assert content['bootstrap']['patients'] == 6
    rates = [entry['validation_dice'] for entry in content['details']['grid']]
    assert content['chosen']['validation_dice'] == max(rates)
    assert arrays['dice'].shape == (10, 2) and arrays['names'].tolist() == ['disc', 'bar']


def test_a_patch_with_noise_finds_nothing_and_is_worse_on_the_same_patients(built, tmp_path):
    found = {}
    for scale in (0.0, 1.0):
        encoder = dense_cases.pixels_of_patches(scale=scale)
        result = segment.run(dense_cases.inputs(encoder, built), segmentation.LINEAR, steps=20)
        found[scale] = dense_cases.stored(tmp_path, int(scale), result)
        assert (result.content['results']['dice']['disc']['value'] < 0.5) == (scale == 0)
    difference = comparison.paired(found[1.0], found[0.0])
    disc, means = difference['results']['dice']['disc'], [found[s].content['results']['dice'] for s in (1.0, 0.0)]
    assert disc['low'] > 0.1 and disc['value'] == pytest.approx(means[0]['disc']['value'] - means[1]['disc']['value'])
    assert set(difference['results']) == {'dice', 'iou', 'false_area'} and difference['rows'] == 'structure'


@pytest.mark.parametrize('name', BOTH)
def test_the_loss_is_its_formula(name):
    rng = np.random.default_rng(0)
    decoder, x = BOTH[name], rng.standard_normal((2, 6, 6, 5)).astype(np.float32)
    params = jax.tree.map(
        lambda p: p + rng.standard_normal(p.shape) / 9, decoder.init(rng, 5, np.zeros(3, np.float32), 8)
    )
    s = decoder.apply(params, jnp.asarray(x))
    assert s.shape == ((2, 6, 6, 3) if name == 'linear' else (2, 48, 48, 3))
    targets = rng.integers(0, 256, (2, 3, 48, 48)).astype(np.uint8)
    weights = rng.integers(0, 256, (2, 48, 48)).astype(np.uint8)
    axis = structures.Axis(48, 0.0, 48.0)
    total = 0.0
    for b in range(2):
        on = structures.on_pixels(np.moveaxis(np.asarray(s[b]), -1, 0), axis, axis).astype(np.float64)
        total += ((np.logaddexp(0, on) - targets[b] / 255 * on).mean(0) * weights[b]).sum()
    assert float(decoders.loss(s, targets, weights)) == pytest.approx(total / weights.astype(float).sum(), rel=1e-4)


@pytest.mark.parametrize(('rows', 'factor'), [(7, 8), (14, 4), (16, 4), (37, 2), (48, 1), (64, 1), (4, 16), (1, 64)])
def test_cells_of_a_grid(rows, factor):
    assert decoders.factor_of(rows) == factor


@pytest.mark.parametrize('name', BOTH)
def test_a_decoder_begins_with_the_share_of_each_structure(built, name):
    train = structures.masked(dense_cases.inputs(dense_cases.pixels_of_patches(), built), 'train')
    targets, weights = decoders.cells(train, 64)
    bias = decoders.prevalence(targets, weights)
    shares = np.mean([planes.mean((1, 2)) for planes in train.planes()], 0)  # all images are seen whole
    np.testing.assert_allclose(1 / (1 + np.exp(-bias[:2])), shares[:2], rtol=1e-3)
    assert bias[2] < -13, 'no record shows it'
    params = BOTH[name].init(np.random.default_rng(0), 16, bias, 8)
    found = BOTH[name].apply(params, np.ones((1, 8, 8, 16), np.float32))
    np.testing.assert_allclose(found, np.broadcast_to(bias, found.shape), rtol=1e-6)


def test_moments_are_those_of_all_patches():
    grid = np.random.default_rng(0).standard_normal((70, 3, 3, 5)).astype(np.float16) * 3 + 1
    grid[..., 4] = 2
    mean, std = decoders.moments(grid, 0)
    flat = grid.reshape(-1, 5).astype(np.float64)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, [*flat[:, :4].std(0), 1], rtol=1e-4)


def test_three_patients(tmp_path):
    """One patient in each split, a structure that only train shows, and one that validation lacks."""
    data = dense_cases.data(tmp_path, counts=(4, 2, 4), per_patient=9, masked=lambda i: i not in (5,))
    content, _ = segment.run(dense_cases.inputs(dense_cases.pixels_of_patches(), data), segmentation.LINEAR, steps=5)
    assert content['threshold_notes'].keys() == {'bar'} and content['thresholds']['bar'] == 0
    assert 'too narrow' in content['bootstrap']['warning']


def test_features_that_are_not_finite_are_refused(built):
    inputs = dense_cases.inputs(dense_cases.pixels_of_patches(scale=float('nan')), built)
    with pytest.raises(UserError, match='not finite'):
        segmentation.run(inputs)


def test_the_linear_layer_comes_near_the_minimum_of_its_loss(built):
    """The minimum is that of scipy's L-BFGS over all records at once."""
    train = structures.masked(dense_cases.inputs(dense_cases.pixels_of_patches(), built), 'train').of([0, 1])
    trained = decoders.fit(segmentation.LINEAR, train, 0, 200, rates=(0.1,))
    again = decoders.fit(segmentation.LINEAR, train, 0, 200, rates=(0.1,))
    np.testing.assert_array_equal(again.params[0]['kernel'], trained.params[0]['kernel'])
    targets, weights = decoders.cells(train, 64)
    x = decoders.standardised(jnp.asarray(np.asarray(train.grid)), trained.mean, trained.std)

    def value(flat):
        params = dict(kernel=flat[:-2].reshape(16, 2), bias=flat[-2:])
        return decoders.loss(segmentation.LINEAR.apply(params, x), targets, weights)

    both = jax.jit(jax.value_and_grad(value))

    def with_gradient(flat):
        found, slope = both(flat.astype(np.float32))
        return float(found), np.asarray(slope, np.float64)

    least = scipy.optimize.minimize(
        with_gradient, np.zeros(34), jac=True, method='L-BFGS-B', options=dict(maxiter=60)
    ).fun
    reached = [float(value(np.concatenate([p['kernel'].ravel(), p['bias']]))) for p in trained.params]
    assert least <= min(reached) + 1e-4 and min(reached) < 1.05 * least
