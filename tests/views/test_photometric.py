"""Grey-value and colour changes, against PIL, colorsys and float64 numpy."""

import colorsys

import jax
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from programs import run

from medjax.errors import UserError
from medjax.views import photometric
from medjax.views.photometric import dinov2, exposure, radiograph

NEUTRAL = dict(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, grey=np.bool_(False), solarise=np.bool_(False))
GREY_LEVEL = 1 / 255  # PIL rounds to whole levels


def picture(channels, seed=0, levels=True):
    x = np.random.default_rng(seed).random((24, 20, channels)) ** 1.5
    return (np.round(x * 255) / 255 if levels else x).astype(np.float32)


compiled = jax.jit(dinov2.build().apply)


def apply(x, **changes):
    return np.array(compiled(x, NEUTRAL | changes))


def as_pil(x):
    return Image.fromarray(np.round(x * 255).astype(np.uint8).squeeze())


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('change', ['brightness', 'contrast', 'saturation'])
@pytest.mark.parametrize('factor', [0.6, 1.0, 1.4])
def test_dinov2_jitter_equals_pil(change, factor, channels):
    x = picture(channels)
    enhance = {
        'brightness': ImageEnhance.Brightness,
        'contrast': ImageEnhance.Contrast,
        'saturation': ImageEnhance.Color,
    }
    if channels == 1 and change == 'saturation':
        reference = x
    else:
        reference = np.asarray(enhance[change](as_pil(x)).enhance(factor), np.float32).reshape(x.shape) / 255
    np.testing.assert_allclose(apply(x, **{change: np.float32(factor)}), reference, atol=1.6 * GREY_LEVEL)


@pytest.mark.parametrize('turn', [-0.1, 0.0, 0.07, 0.5])
def test_hue_equals_colorsys(turn):
    x = picture(3, levels=False)
    x[0, 0] = 0.25  # grey has no hue and stays
    x[0, 1] = (0.5, 0.5, 0.1)
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in x.reshape(-1, 3).astype(float)]
    reference = np.array([colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in hsv]).reshape(x.shape)
    np.testing.assert_allclose(apply(x, hue=np.float32(turn)), reference, atol=2e-6)


def test_grey_scale_and_solarise():
    x = picture(3)
    grey = apply(x, grey=np.bool_(True))
    np.testing.assert_allclose(grey, np.repeat(x @ np.float32([[0.299], [0.587], [0.114]]), 3, axis=-1), atol=1e-6)

    levels = (np.arange(256, dtype=np.float32) / 255).reshape(16, 16, 1)
    reference = np.where(np.arange(256) < 128, np.arange(256), 255 - np.arange(256)) / 255
    np.testing.assert_allclose(apply(levels, solarise=np.bool_(True)).ravel(), reference, atol=1e-6)


def test_one_channel_ignores_colour():
    x = picture(1)
    colour = apply(x, saturation=np.float32(1.2), hue=np.float32(0.1), grey=np.bool_(True))
    np.testing.assert_array_equal(colour, apply(x))


def test_dinov2_draws_with_the_published_shares():
    n = 20_000
    crops = run(jax.vmap(dinov2.build(solarise=(0.0, 0.2)).draw), jax.random.uniform(jax.random.key(0), (n, 2, 7)))
    crops = {name: np.array(v) for name, v in crops.items()}
    near = dict(atol=4 * 0.5 / np.sqrt(2 * n))
    np.testing.assert_allclose((crops['brightness'] != 1).mean(), 0.8, **near)
    np.testing.assert_allclose(crops['grey'].mean(), 0.2, **near)
    assert crops['solarise'][:, 0].sum() == 0
    np.testing.assert_allclose(crops['solarise'][:, 1].mean(), 0.2, atol=0.012)
    for name, middle, reach in (('brightness', 1, 0.4), ('contrast', 1, 0.4), ('saturation', 1, 0.2), ('hue', 0, 0.1)):
        drawn = crops[name][crops['brightness'] != 1]
        assert middle - reach <= drawn.min() < middle - 0.98 * reach
        assert middle + 0.98 * reach < drawn.max() <= middle + reach + 1e-6
    assert (crops['grey'][:, 0] != crops['grey'][:, 1]).any()  # drawn for each crop


def test_radiograph_equals_its_equation():
    x = picture(1, levels=False)
    p = dict(brightness=np.float32(0.08), contrast=np.float32(1.2), gamma=np.float32(0.8))
    x64 = x.astype(np.float64)
    reference = np.clip(x64.mean() + 1.2 * (x64 - x64.mean()) + 0.08, 0, 1) ** 0.8
    adjust = jax.jit(radiograph.build().apply)
    got = np.array(adjust(x, p))
    np.testing.assert_allclose(got, reference, atol=1e-5)
    drawn = run(radiograph.build().draw, jax.random.uniform(jax.random.key(0), (5000, 4)))
    unchanged = (np.array(drawn['gamma']) == 1) & (np.array(drawn['contrast']) == 1)
    np.testing.assert_allclose(unchanged.mean(), 0.2, atol=0.03)
    neutral = dict(brightness=np.float32(0), contrast=np.float32(1), gamma=np.float32(1))
    np.testing.assert_allclose(adjust(x, neutral), x, atol=1e-6)


def test_unknown_sets_and_keys_are_named():
    with pytest.raises(UserError, match=r"views.a.photometric.set: there is no set 'radiogaph' .*did you mean"):
        photometric.find_set('radiogaph', 'views.a.photometric')
    with pytest.raises(UserError, match="unknown key 'gama'; did you mean 'gamma'"):
        photometric.find_set(dict(set='radiograph', gama=0.1), 'views.a.photometric')
    with pytest.raises(UserError, match=r'solarise: one share in 0..1, or one for each of the 2 crops'):
        dinov2.build(solarise=(0.0, 0.2, 0.1)).draw(np.zeros((2, 7), np.float32))


def test_exposure_is_brightness_contrast_and_gamma_of_pil():
    """torchvision's adjust_gamma is 255 (x / 255)^g of each grey level."""
    x = picture(1)
    p = dict(brightness=1.3, contrast=0.7, gamma=1.6)
    reference = ImageEnhance.Brightness(as_pil(x)).enhance(p['brightness'])
    reference = np.asarray(ImageEnhance.Contrast(reference).enhance(p['contrast']), np.float32)[..., None] / 255
    ours = run(exposure.build().apply, x, {name: np.float32(value) for name, value in p.items()})
    np.testing.assert_allclose(ours, reference ** p['gamma'], atol=4 * GREY_LEVEL)
    drawn = run(exposure.build(per='row', share=0.5).draw, np.random.default_rng(0).random((3, 4)).astype(np.float32))
    assert all(len(np.unique(values)) == 1 for values in drawn.values()), 'one draw for all crops of an image'
    u = np.array([[0, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0.9]], np.float32)
    found = run(exposure.build().draw, u)
    for name, values in dict(brightness=(0.6, 1.4, 1), contrast=(0.6, 1.4, 1), gamma=(0.5, 2, 1)).items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6)
