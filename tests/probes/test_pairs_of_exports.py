"""The image-text pair of an export: that whose image tower is the encoder, and no other."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from medjax.errors import UserError
from medjax.probes import image_text
from medjax.probes.encode import image_tower, pair_of


def pair(image: str) -> dict:
    return dict(image=dict(tower=image, head='vi'), text=dict(tower='text', head='vt'))


def test_the_pair_is_that_of_the_encoder():
    meta = dict(pairs=[pair('fusion'), pair('image')])
    assert image_tower(meta) == 'fusion' and pair_of(meta) == meta['pairs'][0]
    assert image_tower(meta | dict(encoder='image')) == 'image'
    assert pair_of(meta | dict(encoder='image')) == meta['pairs'][1]
    assert pair_of(dict(encoder='image')) is None
    encoder = SimpleNamespace(export={}, meta=dict(pairs=[pair('fusion')], encoder='image'))
    with pytest.raises(UserError, match="no term brought the image tower 'image' and a text tower into one space"):
        image_text.settings(encoder)
