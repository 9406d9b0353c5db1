"""The pixels of a DICOM file as a radiologist sees them: rescaled, windowed, dense tissue bright."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from medjax.data.images import headers
from medjax.data.images.dicom import first_number, frame_bytes, open_file, uid_name
from medjax.data.types import Unreadable

COLOURS = ('MONOCHROME1', 'MONOCHROME2', 'PALETTE COLOR', 'RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT')
NEEDED = ('Rows', 'Columns', 'SamplesPerPixel', 'PhotometricInterpretation', 'BitsAllocated')


@np.errstate(all='ignore')  # non-finite values are looked for at the end
def pixels(data: bytes, frame: int = 0) -> np.ndarray:
    """The pixels of a frame, uint8 or uint16 [H,W,C]. More than 8 stored bits become full-scale 16 bits.

    Grey: modality LUT or rescale, then the first VOI LUT or window, then MONOCHROME1 is inverted (DICOM PS3.3 C.11.1,
    C.11.2). Without a window: the range of the frame itself, padding left out. Colour and palettes: 8 bits, RGB.
    Raises Unreadable.
    """
    from pydicom.pixels import apply_color_lut

    file = open_file(io.BytesIO(data))
    if 'PixelData' not in file:
        raise Unreadable('a DICOM file without pixel data')
    if missing := [name for name in NEEDED if file.get(name) is None]:
        raise Unreadable(f'a DICOM file whose header lacks {", ".join(missing)}')
    colours, bits = str(file.PhotometricInterpretation), int(file.BitsAllocated)
    if colours not in COLOURS:  # the field may hold any text: the reason does not quote it
        raise Unreadable('a DICOM file in an unknown colour space')
    _check_plugins(file)
    stored = _stored(file, frame)
    if colours == 'PALETTE COLOR':
        rgb = apply_color_lut(stored, file)[..., :3]
        return (rgb >> 8).astype(np.uint8) if rgb.dtype == np.uint16 else rgb.astype(np.uint8)
    if stored.ndim == 3 and stored.shape[2] == 3 and stored.dtype == np.uint8:
        return stored
    if colours not in ('MONOCHROME1', 'MONOCHROME2') or stored.ndim != 2:
        raise Unreadable(f'a DICOM file in {colours} of {bits} bits; grey, palettes and 8-bit colour can be read')
    shown = _grey(stored, file)
    if not np.isfinite(shown).all():
        raise Unreadable('a DICOM file whose rescaling or window makes no numbers of its pixels')
    shown = np.clip(shown, 0.0, 1.0)
    if colours == 'MONOCHROME1':
        shown = 1.0 - shown
    scale, dtype = (255, np.uint8) if int(file.get('BitsStored') or bits) <= 8 else (65_535, np.uint16)
    return np.round(shown * scale).astype(dtype)[..., None]


def _grey(stored: np.ndarray, file: Any) -> np.ndarray:
    """Stored grey values as shares of the display range, before they are clipped to 0 to 1."""
    from pydicom.pixels import apply_modality_lut, apply_voi

    values = np.asarray(apply_modality_lut(stored, file), np.float64)
    if file.get('VOILUTSequence'):
        lut = file.VOILUTSequence[0]
        return apply_voi(np.asarray(apply_modality_lut(stored, file)), file) / (2.0 ** lut.LUTDescriptor[2] - 1)
    if (window := _window(file)) is not None:
        return _windowed(values, *window)
    without_padding = values[~_padding(stored, file)]
    low, high = (without_padding.min(), without_padding.max()) if without_padding.size else (0.0, 1.0)
    return (values - low) / max(high - low, 1e-12)


def _stored(file: Any, frame: int) -> np.ndarray:
    """The stored values of a frame, [H,W] or [H,W,3]. Size and coding are checked before anything is decoded."""
    from pydicom.encaps import encapsulate, get_frame
    from pydicom.pixels import pixel_array
    from pydicom.uid import RLELossless

    rows, columns, samples = int(file.Rows), int(file.Columns), int(file.SamplesPerPixel)
    count = int(file.get('NumberOfFrames') or 1)
    syntax, data = file.file_meta.TransferSyntaxUID, file.PixelData
    headers.check_size(rows, columns)
    if samples not in (1, 3):
        raise Unreadable(f'a DICOM file of {samples} samples a pixel; 1 and 3 can be read')
    if not syntax.is_encapsulated:
        if len(data) < count * frame_bytes(file):
            raise Unreadable(f'damaged DICOM: it is cut short: {len(data)} bytes of {count * frame_bytes(file)}')
        return pixel_array(file, index=frame)

    tables = ('ExtendedOffsetTable', 'ExtendedOffsetTableLengths')
    offsets = tuple(file[name].value for name in tables) if all(name in file for name in tables) else None
    coded = get_frame(data, frame, number_of_frames=count, extended_offsets=offsets)
    if syntax != RLELossless:
        _check_coded(coded, (rows, columns, samples))
    # The file keeps only the frame that was checked, so that nothing else is decoded.
    file.PixelData, file.NumberOfFrames = encapsulate([coded]), 1
    for name in tables:
        file.pop(name, None)
    # On damaged data pylibjpeg-rle ends in a panic, which is no Exception. pydicom's own decoder is fast enough.
    return pixel_array(file, index=0, decoding_plugin='pydicom' if syntax == RLELossless else '')


def _check_coded(coded: bytes, size: tuple[int, int, int]) -> None:
    """Raises Unreadable if a compressed image is damaged, or has another (height, width, channels) than `size`."""
    if coded[:2] == b'\xff\xd8':
        jpeg = headers.jpeg(coded)
        coded_size = jpeg.height, jpeg.width, jpeg.channels
    else:
        jpeg, coded_size = None, headers.jpeg2000(coded)
    if coded_size != size:
        stated, actual = (' x '.join(map(str, (width, height, n))) for height, width, n in (size, coded_size))
        raise Unreadable(f'a DICOM file of {stated} whose coded picture has {actual}')
    strict = headers.STRICT if size[2] == 1 else headers.STRICT - {headers.LOSSLESS}
    if jpeg and jpeg.bits == 8 and jpeg.process in strict:
        import simplejpeg

        # Decoded only as a check: simplejpeg raises on missing data. pylibjpeg, which gives the pixels, fills it.
        simplejpeg.decode_jpeg(coded, colorspace='GRAY')


def _check_plugins(file: Any) -> None:
    """Raises Unreadable if there is no decoder for the file's compression. The reason names what to install."""
    from pydicom.pixels import get_decoder

    syntax = file.file_meta.TransferSyntaxUID
    try:
        missing = not get_decoder(syntax).is_available
    except NotImplementedError:
        coding = f'the coding {uid_name(syntax)}' if uid_name(syntax) else 'an unknown coding'
        raise Unreadable(f'a DICOM file in {coding}, which nothing here decodes') from None
    if missing:
        raise Unreadable(f"a DICOM file in {uid_name(syntax)}; its decoder comes with: pip install 'medjax[dicom]'")


def _window(file: Any) -> tuple[float, float, str] | None:
    """The first window: (centre, width, function). None: the file has no valid window."""
    centre, width = (first_number(file.get(name)) for name in ('WindowCenter', 'WindowWidth'))
    function = str(file.get('VOILUTFunction') or 'LINEAR').upper()
    if centre is None or width is None or width <= 0 or (function == 'LINEAR' and width < 1):
        return None
    return centre, width, function


def _windowed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """The place of each value in the display range by PS3.3 C.11.2.1.2, 0 to 1 before clipping."""
    if function == 'SIGMOID':
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700, 700)))
    if function == 'LINEAR_EXACT':
        return (values - centre) / width + 0.5
    return (values - (centre - 0.5)) / max(width - 1.0, 1e-12) + 0.5


def _padding(stored: np.ndarray, file: Any) -> np.ndarray:
    """The mask of padding in the stored values, by the fields of the file: the detector measured nothing there."""
    low = file.get('PixelPaddingValue')
    if low is None:
        return np.zeros(stored.shape, bool)
    high = file.get('PixelPaddingRangeLimit', low)
    return (stored >= min(low, high)) & (stored <= max(low, high))
