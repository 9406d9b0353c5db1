"""The DICOM files that come with pydicom and pydicom-data, against plain numpy.

The reference below is written from the standard alone: rescale or modality LUT, window or VOI LUT or range, padding,
functional groups, inversion. It shares no code with medjax; pydicom decodes the stored values for both. Files that
differ are listed with the reason, and so are files that are refused.
"""

from __future__ import annotations

import functools
import pathlib
import warnings

import numpy as np
import pytest

from medjax.data.images import decode
from medjax.data.types import Unreadable

pydicom = pytest.importorskip('pydicom')

FRAMES = (0, 1, 7)  # of a file of several frames

# Files that are refused, with words of the reason.
REFUSED = {
    'MR_truncated.dcm': 'cut short',
    'JPEG2000-embedded-sequence-delimiter.dcm': 'whose coded picture has',  # 266 bytes that are no picture
    'meta_missing_tsyntax.dcm': 'header lacks Rows',
    'nested_priv_SQ.dcm': 'header lacks Rows',
    **{
        f'SC_rgb_{kind}{bits}bit{frames}.dcm': f'{bits} bits; grey, palettes and 8-bit colour can be read'
        for kind in ('', 'expb_', 'rle_')
        for bits in (16, 32)
        for frames in ('', '_2frame')
    },
}
# Files that pydicom reads wrongly or not at all, with the file that holds the same picture, or None, and the reason.
DIFFERENT = {
    # pydicom takes the palettes of a big-endian file as little-endian
    'OBXXXX1A_expb.dcm': 'OBXXXX1A.dcm',
    'OBXXXX1A_expb_2frame.dcm': 'OBXXXX1A_2frame.dcm',
    # its scan ends at coefficient 0, which pydicom's decoder refuses; JPGExtended.dcm is the same after a repair
    'JPEG-lossy.dcm': 'JPGExtended.dcm',
}
LOSSY = 0.025  # the decoders of lossy JPEG in colour differ by up to 5 of 255 levels at edges, and on average by less


@functools.cache
def paths() -> dict[str, pathlib.Path]:
    """The files with pixel data, by name. Nothing is downloaded."""
    from pydicom.data import get_testdata_files

    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for path in sorted(map(pathlib.Path, get_testdata_files('*'))):
            if path.suffix not in ('.dcm', '') or not path.is_file() or 'dicomdirtests' in path.parts:
                continue
            try:
                if 'PixelData' in pydicom.dcmread(path, force=True):
                    found.setdefault(path.name, path)
            except Exception:  # no DICOM file: pydicom's tests need such files too
                continue
    return found


def group(file, frame: int, sequence: str, name: str):
    """A value of a frame: its own, the shared one, or the one of the file."""
    own = file.get('PerFrameFunctionalGroupsSequence') or []
    for one in [*own[frame : frame + 1], *(file.get('SharedFunctionalGroupsSequence') or [])]:
        if sequence in one and name in one[sequence].value[0]:
            return one[sequence].value[0][name].value
    return file.get(name)


def first(value):
    return float(value[0] if isinstance(value, (list, pydicom.multival.MultiValue)) else value)


def values(file, frame: int) -> np.ndarray:
    """The values of a frame after modality LUT or rescale; nan where it is padded."""
    stored = pydicom.pixels.pixel_array(file, index=frame).astype(float)
    out = stored
    if 'ModalityLUTSequence' in file:
        lut = file.ModalityLUTSequence[0]
        table = np.asarray(lut.LUTData, float)
        out = table[np.clip(stored - lut.LUTDescriptor[1], 0, len(table) - 1).astype(int)]
    else:
        slope = group(file, frame, 'PixelValueTransformationSequence', 'RescaleSlope')
        intercept = group(file, frame, 'PixelValueTransformationSequence', 'RescaleIntercept')
        out = stored * float(1 if slope is None else slope) + float(intercept or 0)
    if file.get('PixelPaddingValue') is not None:
        out = np.where(stored == file.PixelPaddingValue, np.nan, out)
    return out


def reference(file, frame: int, count: int) -> np.ndarray:
    """What a screen shows, 0 to 1, [H,W] or [H,W,3]."""
    colours = file.PhotometricInterpretation
    if colours == 'PALETTE COLOR':
        stored = pydicom.pixels.pixel_array(file, index=frame)
        return (pydicom.pixels.apply_color_lut(stored, file) >> 8) / 255
    if file.SamplesPerPixel == 3:
        return pydicom.pixels.pixel_array(file, index=frame) / 255
    x = values(file, frame)
    centre, width = (group(file, frame, 'FrameVOILUTSequence', f'Window{end}') for end in ('Center', 'Width'))
    if 'VOILUTSequence' in file:
        lut = file.VOILUTSequence[0]
        table = np.asarray(lut.LUTData, float)
        shown = table[np.clip(x - lut.LUTDescriptor[1], 0, len(table) - 1).astype(int)] / table.max()
    elif centre is not None:
        centre, width = first(centre), first(width)
        shown = np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1)
    else:
        run = [values(file, k) for k in range(count)]
        low, high = min(map(np.nanmin, run)), max(map(np.nanmax, run))
        shown = (x - low) / (high - low) if high > low else x * 0
    shown = 1 - shown if colours == 'MONOCHROME1' else shown
    return np.nan_to_num(shown, nan=0.0)


@pytest.mark.parametrize('name', sorted(paths()))
@pytest.mark.filterwarnings('ignore')
def test_equal_to_plain_numpy(name):
    pytest.importorskip('pylibjpeg')
    data = paths()[name].read_bytes()
    if name in REFUSED:
        with pytest.raises(Unreadable, match=REFUSED[name]):
            decode.read(data)
        return
    if name in DIFFERENT:
        np.testing.assert_array_equal(decode.read(data), decode.read(paths()[DIFFERENT[name]].read_bytes()))
        return
    file = pydicom.dcmread(paths()[name], force=True)
    if 'TransferSyntaxUID' not in file.file_meta:
        file.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    if name == 'badVR.dcm':  # its number of frames is '1A'; one frame is read
        file.NumberOfFrames = 1
    count = int(file.get('NumberOfFrames') or 1)
    is_lossy = file.file_meta.TransferSyntaxUID.name.startswith('JPEG Baseline') and file.SamplesPerPixel == 3
    for frame in [frame for frame in FRAMES if frame < count]:
        got = decode.read(data, frame)
        want = reference(file, frame, count)
        got = got.astype(float) / np.iinfo(got.dtype).max
        got = got[..., 0] if want.ndim == 2 else np.broadcast_to(got, want.shape)
        assert got.shape == want.shape
        difference = np.abs(got - want)
        assert difference.max() < (LOSSY if is_lossy else 0.003) and difference.mean() < 0.001


def test_there_are_files_of_every_kind():
    assert len(paths()) > 100 and {*REFUSED, *DIFFERENT} <= set(paths())
