"""Corruptions of radiographs: shapes, draws, severities, and the values of each kind against other code."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medjax.probes import corruptions
from medjax.probes.corruptions import KINDS, SEVERITIES, apply


def film(height=256, width=224, channels=1, dtype=np.uint8, seed=0):
    """Soft shapes with fine texture between black and white."""
    rng = np.random.default_rng(seed)
    x = ndimage.gaussian_filter(rng.standard_normal((height, width)), 12)
    x = 0.5 + 0.2 * x / x.std() + 0.04 * ndimage.gaussian_filter(rng.standard_normal((height, width)), 1)
    white = np.iinfo(dtype).max
    return np.repeat(np.rint(np.clip(x, 0.05, 0.95) * white).astype(dtype)[..., None], channels, 2)


@pytest.mark.parametrize('kind', KINDS)
def test_every_corruption_keeps_shape_and_type_and_grows_with_severity(kind):
    for dtype, channels in ((np.uint8, 1), (np.uint16, 3)):
        image = film(dtype=dtype, channels=channels)
        distances = []
        for severity in SEVERITIES:
            out = apply(kind, severity, image, 0, 7)
            assert out.shape == image.shape and out.dtype == image.dtype
            assert (apply(kind, severity, image, 0, 7) == out).all(), 'the same draws'
            if channels == 3:
                np.testing.assert_allclose(out[..., 0].astype(float), out[..., 1], atol=0.02 * np.iinfo(dtype).max)
            distances.append(np.abs(out.astype(float) - image).mean() / np.iinfo(dtype).max)
        assert distances[0] > 0 and (np.diff(distances) > 0).all(), (kind, distances)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('shape', [(1, 1), (1, 40), (37, 5), (28, 28), (700, 90)])
def test_every_corruption_takes_images_of_any_shape(kind, shape):
    image = film()[: shape[0], : shape[1]] if shape != (700, 90) else film(*shape)
    for severity in (1, 5):
        assert apply(kind, severity, image, 0, 0).shape == image.shape


def test_draws_depend_on_record_and_seed_not_on_severity():
    image = film()
    turned = [apply('occlusion', 3, image, seed, number) for seed, number in ((0, 1), (0, 2), (1, 1))]
    assert not (turned[0] == turned[1]).all() and not (turned[0] == turned[2]).all()
    brighter = [apply('exposure', s, image, 0, 5).astype(int).mean() > image.mean() for s in SEVERITIES]
    assert len(set(brighter)) == 1


def test_noise_has_the_stated_deviation_and_grain():
    grey = np.full((448, 672, 1), 32768, np.uint16)
    for severity, deviation in zip(SEVERITIES, KINDS['noise'].values, strict=True):
        noise = (apply('noise', severity, grey, 0, 0) / 65535 - 0.5)[..., 0]
        assert np.std(noise) == pytest.approx(deviation, rel=0.06)  # clipped at the highest severity
        assert (noise[::2, ::2] == noise[1::2, 1::2]).all(), 'a grain has 2 x 2 of these pixels'
    for severity, photons in zip(SEVERITIES[:4], KINDS['dose'].values, strict=False):
        noise = apply('dose', severity, grey, 0, 0) / 65535 - 0.5
        assert np.std(noise) == pytest.approx(np.sqrt(0.5 / photons), rel=0.03)


def test_grey_values_change_as_stated():
    image = film(dtype=np.uint16)
    x = image / 65535
    for severity in SEVERITIES:
        i = severity - 1
        difference = apply('exposure', severity, image, 0, 0) / 65535 - x
        inside = (x - 0.41 > 0) & (x + 0.41 < 1)
        np.testing.assert_allclose(np.abs(difference[inside]), KINDS['exposure'].values[i], atol=1e-4)
        out = apply('contrast', severity, image, 0, 0) / 65535
        np.testing.assert_allclose(out - x.mean(), KINDS['contrast'].values[i] * (x - x.mean()), atol=1e-4)
        out = apply('gamma', severity, image, 0, 0) / 65535
        power = np.log(out) / np.log(x)
        assert np.abs(np.log2(np.median(power))) == pytest.approx(KINDS['gamma'].values[i], abs=1e-2)


def test_a_point_spreads_as_stated():
    point = np.zeros((201, 201, 1), np.uint16)
    point[100, 100] = 65535
    blurred = apply('blur', 5, point, 0, 0)[..., 0].astype(float)
    places = np.arange(201) - 100
    assert np.sqrt((blurred.sum(0) * places**2).sum() / blurred.sum()) == pytest.approx(0.03 * 201, rel=0.02)
    moved = apply('motion', 5, point, 0, 0)[..., 0].astype(float)
    y, x = np.nonzero(moved > moved.max() / 10)
    assert np.hypot(np.ptp(x), np.ptp(y)) == pytest.approx(0.09 * 201, abs=2)


def test_rotation_equals_pillow():
    image = film(240, 240)
    out = apply('rotation', 4, image, 0, 0)[..., 0]
    turns = [Image.fromarray(image[..., 0]).rotate(a, Image.Resampling.BILINEAR) for a in (-20, 20)]
    assert min(np.abs(np.asarray(t, float) - out)[40:200, 40:200].mean() for t in turns) < 0.5


def test_occlusion_hides_the_stated_share():
    image = film()
    for severity, share in zip(SEVERITIES, KINDS['occlusion'].values, strict=True):
        out = apply('occlusion', severity, image, 0, 3)
        assert np.mean(out != image) == pytest.approx(share, rel=0.06) and set(out[out != image]) <= {0, 255}


def test_compression_equals_pillow():
    image = film(224, 224)
    for severity, quality in zip(SEVERITIES, KINDS['compression'].values, strict=True):
        file = io.BytesIO()
        Image.fromarray(image[..., 0]).save(file, 'JPEG', quality=int(quality))
        expected = np.asarray(Image.open(file), float)
        assert np.abs(apply('compression', severity, image, 0, 0)[..., 0] - expected).mean() < 0.5


def test_resizing_equals_pillow():
    rng = np.random.default_rng(0)
    x = rng.random((60, 44, 1))
    as_picture = Image.fromarray(x[..., 0].astype(np.float32))
    smaller = np.asarray(as_picture.resize((11, 15), Image.Resampling.BOX))
    np.testing.assert_allclose(corruptions._resized(x, (15, 11))[..., 0], smaller, atol=1e-6)
    uneven = np.asarray(as_picture.resize((17, 23), Image.Resampling.BOX))
    assert np.abs(corruptions._resized(x, (23, 17))[..., 0] - uneven).mean() < 0.1, 'Pillow weighs pixels by centres'
    assert corruptions._resized(x, (23, 17)).mean() == pytest.approx(x.mean(), abs=1e-12)
    larger = np.asarray(as_picture.resize((88, 120), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(corruptions._resized(x, (120, 88))[..., 0], larger, atol=1e-5)


def test_meaning_is_for_people():
    assert corruptions.meaning('compression', 2) == 'JPEG of quality 25'
