"""Turns stored images into 8-bit pictures for a page, as data URIs with a caption."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from medjax.data.images import decode

SIDE = 224  # pixels of `centre`
TINTS = np.array([[255, 90, 40], [40, 170, 255], [250, 210, 50], [90, 220, 120], [220, 110, 240]])  # of masks' values


def eight_bits(image: np.ndarray) -> Image.Image:
    """uint8 or uint16 [H,W,1|3] with black as 0 and full scale as white, as an encoder sees it."""
    shades = (image.astype(np.float32) * (255 / np.iinfo(image.dtype).max)).round().astype(np.uint8)
    return Image.fromarray(shades[..., 0] if shades.shape[-1] == 1 else shades)


def centre(image: np.ndarray, fit: str = 'crop', zoom: float = 1.0) -> Image.Image:
    """The square that an encoder sees, in RGB; `fit` and `zoom` as in `evaluation_view`."""
    square = eight_bits(image if fit == 'stretch' else decode.fitted(image, fit)).convert('RGB')
    side, edge = round(SIDE * zoom), (round(SIDE * zoom) - SIDE) // 2
    return square.resize((side, side), Image.Resampling.BICUBIC).crop((edge, edge, edge + SIDE, edge + SIDE))


def whole(image: np.ndarray, side: int) -> str:
    """The whole image as a data URI. It is reduced if its longer side exceeds `side`; else all pixels are kept."""
    picture = eight_bits(image)
    if max(picture.size) <= side:
        return uri(picture, 'PNG')
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    return uri(picture)


def tinted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image as uint8 [H,W,3], tinted where the mask [H,W] is not 0; each value of the mask has its own tint."""
    shades = np.asarray(eight_bits(image).convert('RGB'))
    values = np.unique(mask[mask != 0])
    tints = np.concatenate([np.zeros((1, 3), int), TINTS[np.arange(len(values)) % len(TINTS)]])
    colours = tints[np.where(mask != 0, 1 + np.searchsorted(values, mask), 0)]
    return np.where(mask[..., None] != 0, 0.55 * shades + 0.45 * colours, shades).round().astype(np.uint8)


def uri(picture: Image.Image, kind: str = 'JPEG') -> str:
    """The picture as a data URI: 'JPEG', or 'PNG' to keep all pixels."""
    file = io.BytesIO()
    picture.save(file, kind, quality=88)
    return f'data:image/{kind.lower()};base64,' + base64.b64encode(file.getvalue()).decode()


def caption(label: np.ndarray, names: Sequence[str]) -> str:
    """The positive labels [L] of a record: 'nodule, effusion'."""
    positive = [name for name, value in zip(names, label, strict=True) if value == 1]
    return ', '.join(positive) or ('no finding labelled' if len(names) else '')
