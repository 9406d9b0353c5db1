"""Colours of JPEG frames in DICOM files, where header and code stream often contradict each other.

Header (PhotometricInterpretation) and code stream (markers JFIF and Adobe, names of components, coarser chroma) say
whether the three components are RGB or YCbCr. Many devices write one of them wrongly. Here the content decides. In
YCbCr, grey and black are (Y, 128, 128). Most colours of RGB that are taken as YCbCr lie outside of all colours.

JPEG 2000 has a transform of its own: where the code stream names it, the decoder gives RGB, whatever the header says.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from medjax.data.images import headers

RGB, YCBCR = 'RGB', 'YCbCr'
OPEN = (
    'its header and its JPEG code do not agree whether its colours are RGB or YCbCr, and the picture does not decide '
    'it; they are taken as {}'
)
SIDE = 160  # pixels of a side that are enough to judge colours


class Evidence(NamedTuple):
    """What speaks for the two colour spaces in a picture."""

    rgb: float  # share of the pixels whose colours would not exist in YCbCr
    ycbcr: float  # share of the pixels that are grey in YCbCr, and coloured in RGB

    def verdict(self, least: float) -> str | None:
        """The colour space of the picture. None: it stays open. `least`: the share of pixels that is enough."""
        if self.rgb > least and self.rgb > 2 * self.ycbcr:
            return RGB
        return YCBCR if self.ycbcr > least and self.ycbcr > 2 * self.rgb else None


def decode(coded: bytes, header: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The RGB pixels uint8 [H,W,3] of a JPEG of 8 bits and three components, and remarks. `header`: RGB or YCBCR."""
    import simplejpeg

    space, remarks = colour_space(coded, header)
    return simplejpeg.decode_jpeg(_marked(coded, space), colorspace='RGB'), remarks


def of_components(components: np.ndarray, coded: bytes, header: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The RGB pixels of decoded components uint8 [H,W,3], and remarks. For codings that `decode` does not read."""
    space, remarks = colour_space(coded, header, components)
    return _rgb(components, space), remarks


def of_plain(components: np.ndarray, header: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The RGB pixels of components uint8 [H,W,3] that have no code stream, or one of RLE, and remarks."""
    space = _evidence(components).verdict(0.2) or header
    remarks = () if space == header else (f'its header says {header}, but its colours are {space}',)
    return _rgb(components, space), remarks


def of_jpeg2000(components: np.ndarray, header: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The RGB pixels of JPEG 2000 without a transform, from its components uint8 [H,W,3], and remarks.

    `header` is PhotometricInterpretation: YBR_RCT and YBR_ICT state a transform, which the code stream lacks.
    """
    evidence = _evidence(components)
    if header in ('YBR_RCT', 'YBR_ICT'):
        verdict = evidence.verdict(0.02)
        space, remarks = verdict or RGB, () if verdict else (OPEN.format(RGB),)
    else:
        space, remarks = evidence.verdict(0.2) or (YCBCR if 'YBR' in header else RGB), ()
    return _rgb(components, space), remarks


def _rgb(components: np.ndarray, space: str) -> np.ndarray:
    from pydicom.pixels import convert_color_space

    return components if space == RGB else convert_color_space(components, 'YBR_FULL', 'RGB')


def colour_space(coded: bytes, header: str, components: np.ndarray | None = None) -> tuple[str, tuple[str, ...]]:
    """RGB or YCBCR, for three components, and a remark if it stays open. `components`: decoded; None: to be decoded."""
    sign, explicit = _sign(coded)
    if sign == header == RGB and explicit:
        return RGB, ()  # teal is (0, 128, 128), so such a screen would look like YCbCr
    evidence = _evidence(_small(coded) if components is None else components)
    if header == YCBCR and sign in (None, YCBCR):
        return evidence.verdict(0.2) or YCBCR, ()  # strong colours and coarse chroma give some impossible colours too
    if verdict := evidence.verdict(0.02):
        return verdict, ()
    space = sign or header
    return space, (OPEN.format(space),)


def _sign(coded: bytes) -> tuple[str | None, bool]:
    """The colour space that the code stream states, None if it states none, and whether it states it explicitly."""
    sign, numbers, coarse = None, b'', False
    for marker, start, end in headers.segments(coded):
        body = coded[start + 4 : end]
        if marker == 0xE0 and body[:5] == b'JFIF\0':
            sign = sign or YCBCR
        elif marker == 0xEE and body[:5] == b'Adobe' and len(body) >= 12:
            sign = RGB if body[11] == 0 else YCBCR
        elif marker in headers.START_OF_FRAME:
            numbers = body[6::3]
            coarse = len(set(body[7::3])) > 1
    if numbers in (b'RGB', b'rgb'):
        return RGB, True
    if sign:
        return sign, True
    return (YCBCR if coarse else None), False


def _small(coded: bytes) -> np.ndarray:
    """The components of a JPEG of 8 bits, reduced."""
    import simplejpeg

    return simplejpeg.decode_jpeg(_marked(coded, RGB), colorspace='RGB', min_height=SIDE, min_width=SIDE, min_factor=1)


def _evidence(components: np.ndarray) -> Evidence:
    step = max(1, min(components.shape[:2]) // SIDE)
    y, cb, cr = (plane.astype(np.float32) for plane in np.moveaxis(components[::step, ::step], 2, 0))
    cb, cr = cb - 128, cr - 128
    colours = np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb])
    outside = ((colours < -24) | (colours > 279)).any(0)
    grey = (np.abs(cb) <= 4) & (np.abs(cr) <= 4) & (np.abs(y - 128) > 8)
    return Evidence(float(outside.mean()), float(grey.mean()))


def _marked(coded: bytes, space: str) -> bytes:
    """The JPEG with the marker Adobe in place of its own ones, so that every decoder takes its colours as `space`."""
    kept, at = [], 2
    for marker, start, end in headers.segments(coded):
        if marker in (0xE0, 0xEE):
            kept.append(coded[at:start])
            at = end
    adobe = b'\xff\xee\0\x0eAdobe\0\x64\0\0\0\0' + bytes([space == YCBCR])
    return coded[:2] + adobe + b''.join(kept) + coded[at:]
