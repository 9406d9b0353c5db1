"""preprocessor_config.json: what a processor of transformers does, medjax does, refuses or tells."""

from __future__ import annotations

import json

import numpy as np
import pytest
from public_models import FAMILIES, shaken

from medjax.errors import UserError
from medjax.weights import load

pytest.importorskip('transformers')
BIT = dict(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.25, 0.3], size=dict(shortest_edge=16), do_center_crop=True,
           crop_size=dict(height=12, width=12))  # fmt: skip


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('public') / 'dinov2'
    FAMILIES['dinov2'].save(shaken(FAMILIES['dinov2'].make()), path)
    return path


def meta_of(folder, **config):
    (folder / 'preprocessor_config.json').write_text(json.dumps(config))
    weights = load.open(folder)
    return weights.as_export()[1], weights.notes


@pytest.mark.parametrize(
    ('config', 'image', 'size'),
    [
        (BIT, dict(mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3], fit='crop', zoom=16 / 12), 12),
        (dict(BIT, size=16, crop_size=16), dict(mean=[0.5, 0.4, 0.3], std=[0.2, 0.25, 0.3], fit='crop'), 16),
        (dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, size=dict(height=8, width=8)),
         dict(mean=0.5, std=0.5, fit='stretch'), 8),
        (dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, size=8), dict(mean=0.5, std=0.5, fit='stretch'), 8),
        (dict(size=8, do_normalize=False), dict(mean=0.0, std=1.0, fit='stretch'), 8),
        # pixels that stay from 0 to 255, or are scaled to 0 to 2
        (dict(size=8, do_rescale=False, image_mean=[127.5] * 3, image_std=[63.75] * 3),
         dict(mean=0.5, std=0.25, fit='stretch'), 8),
        (dict(size=8, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3),
         dict(mean=0.5, std=0.5, fit='stretch'), 8),
    ],
)  # fmt: skip
def test_a_processor_becomes_the_section_image(config, image, size, folder):
    meta, notes = meta_of(folder, **config)
    assert meta['size'] == size and notes == ()
    assert {key: value for key, value in meta['image'].items() if key not in ('channels', 'mean', 'std')} == {
        key: value for key, value in image.items() if key not in ('mean', 'std')
    }
    for name in ('mean', 'std'):
        np.testing.assert_allclose(meta['image'][name], image[name], rtol=1e-6)


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (dict(BIT, do_resize=False), 'it does not resize images'),
        (dict(BIT, resample=2), 'another rule than bicubic'),
        (
            dict(size=dict(height=8, width=12), image_mean=[0.5] * 3, image_std=[0.5] * 3),
            '8 x 12; medjax makes squares',
        ),
        (dict(size=dict(shortest_edge=8), image_mean=[0.5] * 3, image_std=[0.5] * 3), 'medjax shows the centre square'),
    ],
)
def test_what_medjax_does_in_another_way_is_told(config, words, folder):
    _, notes = meta_of(folder, **config)
    assert any(words in note for note in notes)


@pytest.mark.parametrize(
    ('config', 'words'),
    [
        (dict(BIT, image_mean='x'), 'cannot be read'),
        (dict(BIT, image_mean=[0.5, float('nan'), 0.5]), 'mean of images is'),
        (dict(BIT, image_std=0), 'finite numbers above 0'),
        (dict(BIT, image_mean=[0.5, 0.4]), 'mean of images has 2 numbers, and the tower reads 3 channels'),
        (dict(size=dict(height=-3, width=-3)), 'images of -3 px; a side has 1 to 4096 px'),
        (dict(size=10**9), 'a side has 1 to 4096 px'),
        (dict(size=dict(width=3)), 'cannot be read'),
        (dict(size=[3]), 'cannot be read'),
    ],
)
def test_a_processor_that_cannot_be_is_refused(config, words, folder):
    with pytest.raises(UserError, match=words):
        meta_of(folder, **config)
