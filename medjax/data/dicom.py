"""DICOM files to pixels, as a reader of films sees them: rescaled, windowed, bright = dense."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from medjax.data.sources import Unreadable


def pixels(data: bytes) -> np.ndarray:
    """uint8 or uint16 [H,W,C]: more than 8 stored bits become full-scale 16, so that none is lost.

    Grey: modality LUT or rescale, then the first VOI LUT or window (without one: the image's own range, padding
    left out), then MONOCHROME1 inverted (DICOM PS3.3 C.11.1, C.11.2). Colour: 8 bits as decoded, RGB.
    """
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE  # its complaints quote the file's fields
    file = pydicom.dcmread(io.BytesIO(data))
    if 'PixelData' not in file:
        raise Unreadable('a DICOM file without pixel data')
    if int(file.get('NumberOfFrames') or 1) > 1:
        raise Unreadable('a DICOM file of several frames; export each frame as an image')
    kind = file.PhotometricInterpretation
    stored = file.pixel_array
    if stored.ndim == 3 and stored.shape[2] == 3 and stored.dtype == np.uint8:
        return stored
    if kind not in ('MONOCHROME1', 'MONOCHROME2') or stored.ndim != 2:
        raise Unreadable(f'a DICOM file in {kind} of {file.BitsAllocated} bits; grey and 8-bit RGB can be read')

    values = np.asarray(apply_modality_lut(stored, file), np.float64)
    if file.get('VOILUTSequence'):
        lut = file.VOILUTSequence[0]
        shown = apply_voi(np.asarray(apply_modality_lut(stored, file)), file) / (2.0 ** lut.LUTDescriptor[2] - 1)
    elif (window := _window(file)) is not None:
        shown = _windowed(values, *window)
    else:
        picture = values[~_padding(stored, file)]
        low, high = (picture.min(), picture.max()) if picture.size else (0.0, 1.0)
        shown = (values - low) / max(high - low, 1e-12)
    shown = np.clip(shown, 0.0, 1.0)
    if kind == 'MONOCHROME1':
        shown = 1.0 - shown
    scale, kept = (255, np.uint8) if file.BitsStored <= 8 else (65_535, np.uint16)
    return np.round(shown * scale).astype(kept)[..., None]


def _window(file: Any) -> tuple[float, float, str] | None:
    """The first window: (centre, width, function); None where the file has none that works."""
    centre, width = (_first(file.get(name)) for name in ('WindowCenter', 'WindowWidth'))
    function = str(file.get('VOILUTFunction') or 'LINEAR').upper()
    if centre is None or width is None or width <= 0 or (function == 'LINEAR' and width < 1):
        return None
    return centre, width, function


def _first(value: Any) -> float | None:
    """The first of several values, None where there is none."""
    if value is None or value == '':
        return None
    if isinstance(value, (list, tuple)) or type(value).__name__ == 'MultiValue':
        return float(value[0]) if len(value) else None
    return float(value)


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """The part of the display range that PS3.3 C.11.2.1.2 gives each value, 0 to 1 (before clipping)."""
    if function == 'SIGMOID':
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700, 700)))
    if function == 'LINEAR_EXACT':
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1.0, 1e-12) + 0.5


def _padding(stored: np.ndarray, file: Any) -> np.ndarray:
    """Where the detector saw nothing and the file says so."""
    low = file.get('PixelPaddingValue')
    if low is None:
        return np.zeros(stored.shape, bool)
    high = file.get('PixelPaddingRangeLimit', low)
    return (stored >= min(low, high)) & (stored <= max(low, high))
