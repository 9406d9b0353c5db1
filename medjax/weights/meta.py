"""What a meta.json may say: checks of its values, so that a damaged or edited file gives no wrong numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.types import is_number, is_whole

LARGEST = 4096  # px of an image side
FITS = ('crop', 'pad', 'stretch')


def lacking(meta: Mapping[str, Any]) -> list[str]:
    """The keys that an encoder needs and that are not there."""
    image = [f'image.{key}' for key in ('mean', 'std') if key not in meta.get('image', {})]
    return [key for key in ('towers', 'image', 'size') if key not in meta] or image


def problem(meta: Mapping[str, Any]) -> str:
    """The first thing that is wrong with the keys that are there; '' if nothing is."""
    for kind in ('towers', 'heads'):
        sections = meta.get(kind, {})
        if not isinstance(sections, dict) or not all(isinstance(one, dict) for one in sections.values()):
            return f'`{kind}` is no object with a section for each name'
    pairs = meta.get('pairs') or []
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) and _is_pair(pair) for pair in pairs):
        return '`pairs` is no list of image and text towers'
    classifiers = meta.get('classifiers') or []
    if not isinstance(classifiers, list) or not all(map(_is_classifier, classifiers)):
        return '`classifiers` is no list of heads with what they predict'
    decoders = meta.get('decoders') or []
    if not isinstance(decoders, list) or not all(_is_classifier(one) and _is_decoder(one) for one in decoders):
        return '`decoders` is no list of towers with what they draw'
    if not (meta.get('step') is None or is_whole(meta['step'])):
        return f'step={meta["step"]!r} is no whole number'
    if not (meta.get('encoder') is None or isinstance(meta['encoder'], str)):
        return f'encoder={meta["encoder"]!r} is no name of a tower'
    if 'size' in meta and not (is_whole(meta['size']) and 0 <= meta['size'] <= LARGEST):
        return f'size={meta["size"]!r}: the side of an image has 1 to {LARGEST} px'
    return _image_problem(meta['image']) if 'image' in meta else ''


def _is_pair(pair: Mapping[str, Any]) -> bool:
    sides = [pair.get('image'), pair.get('text')]
    there = all(isinstance(side, dict) and isinstance(side.get('tower'), str) and 'head' in side for side in sides)
    return there and is_number(pair.get('temperature')) and pair['temperature'] > 0


def _is_classifier(one: Any) -> bool:
    if not isinstance(one, dict) or not all(isinstance(one.get(key), str) for key in ('term', 'tower', 'predicts')):
        return False
    return isinstance(one.get('head'), str | None) and isinstance(one.get('names'), list)


def _is_decoder(one: Mapping[str, Any]) -> bool:
    return isinstance(one.get('output'), str) and all(isinstance(name, str) for name in one['names'])


def _image_problem(image: Any) -> str:
    if not isinstance(image, dict) or 'channels' not in image:
        return '`image` is no object with channels, mean and std'
    channels = image['channels']
    if not is_whole(channels) or channels < 1:
        return f'image.channels={channels!r} is no whole number of at least 1'
    for name in ('mean', 'std'):
        levels = image.get(name, 1)
        levels = levels if isinstance(levels, list) else [levels]
        numbers = all(is_number(x) and np.isfinite(x) and (name == 'mean' or x > 0) for x in levels)
        if not numbers or len(levels) not in (1, channels):
            above = ' above 0' * (name == 'std')
            return f'image.{name}={image[name]!r}: one finite number{above} is needed, or one for each channel'
    if image.get('fit', 'crop') not in FITS:
        return f'image.fit={image["fit"]!r}: known are {", ".join(FITS)}'
    zoom = image.get('zoom', 1)
    return '' if is_number(zoom) and 0 < zoom < np.inf else f'image.zoom={zoom!r} is no number above 0'
