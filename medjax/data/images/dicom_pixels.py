"""The pixels of a DICOM file as a radiologist sees them: rescaled, windowed, dense tissue bright."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from medjax.data.images import grey, headers, jpeg_colour, lookup
from medjax.data.images.dicom import frame_bytes, open_file, pixel_aspect, step, uid_name
from medjax.data.images.windows import Window
from medjax.data.types import Picture, Unreadable

COLOURS = ('MONOCHROME1', 'MONOCHROME2', 'PALETTE COLOR', 'RGB', 'YBR_FULL', 'YBR_FULL_422', 'YBR_ICT', 'YBR_RCT')
NEEDED = ('Rows', 'Columns', 'SamplesPerPixel', 'PhotometricInterpretation', 'BitsAllocated')
PALETTE = 'PaletteColorLookupTable'
CODED = 'its coded picture'  # a step, for reasons
# What a decoder needs to know of a coded frame.
CODING = (*NEEDED, 'BitsStored', 'HighBit', 'PixelRepresentation', 'PlanarConfiguration')
OVERLAY = 0x60000010  # rows of an overlay
RUNS = 64  # files whose range is kept, because their other frames follow

SAMPLES, SAMPLE = 256, 4096  # parts of a file, and their bytes, that tell it from others; a small file is read whole


class _Run:
    """The range of a file's frames, once it is known. One thread measures it; only those of the same file wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.measured: list[grey.Range | None] = []  # nothing, or the range


_runs: dict[bytes, _Run] = {}
_lock = threading.Lock()


@np.errstate(all='ignore')  # non-finite values are looked for at the end
def picture(data: bytes, frame: int = 0, windows: Sequence[Window] = ()) -> Picture:
    """A frame of a DICOM file: pixels uint8 or uint16 [H,W,C], remarks, and the shape of a pixel.

    Grey: more than 8 stored bits become full-scale 16 bits; see `grey.picture`. Without a window: the range of all
    frames of the file, padding left out. Colour and palettes: 8 bits, RGB. `windows`: windows for CT, in place of those
    of the header; three of them give three channels of 8 bits. Raises Unreadable.
    """
    with step('its header'):
        file = open_file(io.BytesIO(data))
    if 'PixelData' not in file:
        kind = 'float pixel data, which are no picture' if _has_floats(file) else 'a DICOM file without pixel data'
        raise Unreadable(kind)
    if missing := [name for name in NEEDED if file.get(name) is None]:
        raise Unreadable(f'a DICOM file whose header lacks {", ".join(missing)}')
    file.PhotometricInterpretation = str(file.PhotometricInterpretation).strip().upper()
    colours, bits = file.PhotometricInterpretation, int(file.BitsAllocated)
    if colours not in COLOURS:  # the field may hold any text: the reason does not quote it
        raise Unreadable('a DICOM file in an unknown colour space')
    _check_plugins(file)
    aspect = pixel_aspect(file, frame)
    raw, remarks = _stored(file, frame)
    if windows and (raw.ndim != 2 or colours == 'PALETTE COLOR'):
        raise Unreadable('--window is for CT, and this picture is in colour; leave --window out to keep it')
    if colours == 'PALETTE COLOR':
        return Picture(_through_palette(_of_stored_bits(raw, file), file), remarks, aspect)
    if raw.ndim == 3 and raw.shape[2] == 3 and raw.dtype == np.uint8:
        return Picture(raw, remarks, aspect)
    if colours not in ('MONOCHROME1', 'MONOCHROME2') or raw.ndim != 2:
        raise Unreadable(f'a DICOM file in {colours} of {bits} bits; grey, palettes and 8-bit colour can be read')
    stored, facts = _of_stored_bits(raw, file), grey.facts(file, frame)
    with step('its padding'):
        mask = grey.padding(raw, stored, file)
    remarks = (*remarks, *_bit_remarks(raw, stored, file, mask))
    pixels, more = grey.picture(
        stored, mask, facts, int(file.get('BitsStored') or bits), windows, lambda: _run_range(data, file)
    )
    return Picture(pixels, (*remarks, *more), aspect)


def _frame_count(file: Any) -> int:
    """NumberOfFrames; 1 if it is missing or no number, as in `dicom.header`."""
    try:
        return max(int(file.get('NumberOfFrames') or 1), 1)
    except (ValueError, TypeError):
        file.NumberOfFrames = 1  # pydicom's decoders read it too
        return 1


def _has_floats(file: Any) -> bool:
    return 'FloatPixelData' in file or 'DoubleFloatPixelData' in file


def _run_range(data: bytes, file: Any) -> grey.Range | None:
    """The range of all frames of a file. None: it has one frame, or none can be read.

    Frames of a run are stretched alike: a vessel that fills must not darken what is beside it. Frames with a window of
    their own that shows something do not count. The range is kept, because each frame of a file asks for it.
    """
    count = _frame_count(file)
    if count < 2:
        return None
    key = _key(data, len(file.PixelData))
    with _lock:
        if key not in _runs:
            while len(_runs) >= RUNS:
                del _runs[next(iter(_runs))]
            _runs[key] = _Run()
        run = _runs[key]
    with run.lock:
        if not run.measured:
            run.measured.append(_range_of(file, count))
        return run.measured[0]


def _key(data: bytes, pixel_bytes: int) -> bytes:
    """What tells a file from others: length, header, and parts of its pixels. Each frame of a long file asks for it."""
    if len(data) <= SAMPLES * SAMPLE:
        return hashlib.sha256(data).digest()
    total = hashlib.sha256(len(data).to_bytes(8, 'big'))
    view = memoryview(data)
    total.update(view[: max(len(data) - pixel_bytes, SAMPLE)])  # a deflated file may have fewer bytes than its pixels
    for part in range(SAMPLES):
        start = part * (len(data) - SAMPLE) // (SAMPLES - 1)
        total.update(view[start : start + SAMPLE])
    return total.digest()


def _range_of(file: Any, count: int) -> grey.Range | None:
    ends: list[grey.Range | None] = []
    bits = int(file.get('BitsStored') or file.BitsAllocated)
    for frame in range(count):
        try:
            facts = grey.facts(file, frame)
            raw, _ = _stored(file, frame)
            stored = _of_stored_bits(raw, file)
            mask = grey.padding(raw, stored, file)
            if grey.takes_range(stored, mask, facts, bits):
                ends.append(grey.extremes(stored, mask, facts))
        except Unreadable:  # this frame is set aside when its turn comes
            continue
    found = [one for one in ends if one is not None and np.isfinite(one).all()]
    if not found:
        return None
    is_stored = all(one.is_stored for one in found)
    found = [one for one in found if one.is_stored == is_stored]  # values of one unit
    return grey.Range(min(one.low for one in found), max(one.high for one in found), is_stored)


def stored_values(file: Any, frame: int) -> np.ndarray:
    """The stored values of a frame, [H,W], or the colours of a frame in RGB, [H,W,3]. Raises Unreadable."""
    _check_plugins(file)
    return _of_stored_bits(_stored(file, frame)[0], file)


def _stored(file: Any, frame: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The values of a frame with all allocated bits, [H,W] or [H,W,3], and remarks; colour is RGB.

    Size and coding are checked before anything is decoded.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels import pixel_array

    with step('the size of its picture'):
        rows, columns, samples = int(file.Rows), int(file.Columns), int(file.SamplesPerPixel)
        count = _frame_count(file)
    syntax, data = file.file_meta.TransferSyntaxUID, file.PixelData
    headers.check_size(rows, columns)
    if samples not in (1, 3):
        raise Unreadable(f'a DICOM file of {samples} samples a pixel; 1 and 3 can be read')
    with step('its picture'):
        if not syntax.is_encapsulated:
            if len(data) < count * frame_bytes(file):
                raise Unreadable(f'damaged DICOM: it is cut short: {len(data)} bytes of {count * frame_bytes(file)}')
            if samples == 3 and file.BitsAllocated == 8 and file.PhotometricInterpretation in ('RGB', 'YBR_FULL'):
                return jpeg_colour.of_plain(pixel_array(file, index=frame, raw=True), _colour_space(file))
            return pixel_array(file, index=frame, correct_unused_bits=False), ()
    with step(CODED):
        tables = ('ExtendedOffsetTable', 'ExtendedOffsetTableLengths')
        offsets = tuple(file[name].value for name in tables) if all(name in file for name in tables) else None
        coded = get_frame(data, frame, number_of_frames=count, extended_offsets=offsets)
        return _decoded(coded, file, (rows, columns, samples))


def _decoded(coded: bytes, file: Any, size: tuple[int, int, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The values of a coded frame and remarks, as `_stored` returns them. `size`: (height, width, channels)."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.pixels import pixel_array
    from pydicom.uid import RLELossless

    syntax = file.file_meta.TransferSyntaxUID
    jpeg = jpeg2000 = None
    if syntax != RLELossless:
        jpeg, jpeg2000 = _check_coded(coded, size)
        coded = headers.whole_spectrum(coded) if jpeg and jpeg.is_odd else coded
        if jpeg and jpeg.bits == 8 and jpeg.process in headers.STRICT - {headers.LOSSLESS}:
            return _jpeg(coded, file, size[2])
        if jpeg and jpeg.bits == 8 and jpeg.process == headers.LOSSLESS and size[2] == 1:
            import simplejpeg

            # Decoded only as a check: simplejpeg raises on missing data. pylibjpeg, which gives the pixels, fills it.
            simplejpeg.decode_jpeg(coded, colorspace='GRAY')
    one = pydicom.Dataset()  # of the frame that was checked alone, so that nothing else is decoded
    one.file_meta = file.file_meta
    for name in CODING:
        if name in file:
            setattr(one, name, file[name].value)
    has_colours = jpeg2000 is not None and size[2] == 3 and jpeg2000.bits == 8
    if jpeg2000 and has_colours:
        coded = coded[jpeg2000.start :]  # boxes state colours too
    one.NumberOfFrames, one.PixelData = 1, encapsulate([coded])
    if jpeg2000 and has_colours:
        one.PhotometricInterpretation, one.PlanarConfiguration = 'RGB', 0  # so that pydicom converts nothing
        components = pixel_array(one, index=0, raw=True)
        if jpeg2000.is_transformed:
            return components, ()
        return jpeg_colour.of_jpeg2000(components, str(file.PhotometricInterpretation))
    if jpeg and size[2] == 3 and jpeg.bits == 8:
        one.PhotometricInterpretation = 'YBR_FULL'  # then the decoder gives the components as they are
        components = pixel_array(one, index=0, raw=True)
        return jpeg_colour.of_components(components, coded, _colour_space(file))
    if syntax == RLELossless and size[2] == 3 and file.BitsAllocated == 8:
        components = pixel_array(one, index=0, decoding_plugin='pydicom', raw=True)
        return jpeg_colour.of_plain(components, _colour_space(file))
    # On damaged data pylibjpeg-rle ends in a panic, which is no Exception. pydicom's own decoder is fast enough.
    plugin = 'pydicom' if syntax == RLELossless else ''
    return pixel_array(one, index=0, decoding_plugin=plugin, correct_unused_bits=False), ()


def _jpeg(coded: bytes, file: Any, channels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The values of a JPEG of 8 bits. It is decoded strictly: missing data are an error."""
    import simplejpeg

    if channels == 3:
        return jpeg_colour.decode(coded, _colour_space(file))
    values = simplejpeg.decode_jpeg(coded, colorspace='GRAY')[..., 0]
    return values.view(np.int8) if file.get('PixelRepresentation') == 1 else values, ()


def _colour_space(file: Any) -> str:
    """The colour space of a JPEG that the header states."""
    return jpeg_colour.YCBCR if 'YBR' in str(file.PhotometricInterpretation) else jpeg_colour.RGB


def _check_coded(coded: bytes, size: tuple[int, int, int]) -> tuple[headers.Jpeg | None, headers.Jpeg2000 | None]:
    """The header of a JPEG, or that of a JPEG 2000; the other one is None.

    Raises Unreadable if the image is damaged, or has another (height, width, channels) than `size`.
    """
    jpeg = jpeg2000 = None
    if coded[:2] == b'\xff\xd8':
        jpeg = headers.jpeg(coded)
        coded_size = jpeg.height, jpeg.width, jpeg.channels
    elif coded[:2] != b'\xff\x4f' and coded[4:8] != b'jP  ':
        raise Unreadable('a DICOM file whose coded picture begins neither as a JPEG nor as a JPEG 2000')
    else:
        jpeg2000 = headers.jpeg2000(coded)
        coded_size = jpeg2000.size
    if coded_size != size:
        stated, actual = (' x '.join(map(str, (width, height, n))) for height, width, n in (size, coded_size))
        raise Unreadable(f'a DICOM file of {stated} whose coded picture has {actual}')
    return jpeg, jpeg2000


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


def _of_stored_bits(raw: np.ndarray, file: Any) -> np.ndarray:
    """The values without the bits that do not belong to them; devices have kept overlays there.

    Stored bits below HighBit, with zeros under them, are moved down. Where values need more bits than the header
    states, the content decides: a picture without its upper bits jumps from white to black, and varies more.
    """
    bits, size = int(file.get('BitsStored') or 8 * raw.dtype.itemsize), 8 * raw.dtype.itemsize
    if raw.dtype.kind not in 'iu' or bits >= size or bits < 1 or raw.ndim != 2:
        return raw
    below = int(file.get('HighBit') or bits - 1) + 1 - bits
    if 0 < below <= size - bits and raw.any() and not (raw & np.array((1 << below) - 1, raw.dtype)).any():
        return raw >> below
    stored = _cut(raw, bits)
    return raw if _needs_more(raw, bits) and _variation(raw) < _variation(stored) else stored


def _needs_more(raw: np.ndarray, bits: int) -> bool:
    """Whether values need more bits. The bits above those of signed values may repeat the sign, or may be 0."""
    low, high = int(raw.min()), int(raw.max())
    if raw.dtype.kind == 'u' or low >= 0:
        return high >= 1 << bits
    return low < -(1 << bits - 1) or high >= 1 << bits - 1


def _cut(raw: np.ndarray, bits: int) -> np.ndarray:
    """The lowest bits of values, with their sign."""
    unused = 8 * raw.dtype.itemsize - bits
    if raw.dtype.kind == 'u':
        return raw & np.array((1 << bits) - 1, raw.dtype)
    return (raw << unused) >> unused


def _variation(values: np.ndarray) -> float:
    """The sum of the differences between neighbours."""
    wide = values.astype(np.float64)
    return float(np.abs(np.diff(wide, axis=0)).sum() + np.abs(np.diff(wide, axis=1)).sum())


def _bit_remarks(raw: np.ndarray, stored: np.ndarray, file: Any, mask: np.ndarray | None) -> tuple[str, ...]:
    """A remark if values outside of the padding need more bits than the header states. Overlays are expected there.

    raw: values with all allocated bits. stored: `_of_stored_bits` of them.
    """
    bits, size = int(file.get('BitsStored') or 8 * raw.dtype.itemsize), 8 * raw.dtype.itemsize
    if raw.dtype.kind not in 'iu' or not 1 <= bits < size or OVERLAY in file:
        return ()
    is_whole = np.array_equal(stored, raw)
    is_moved = not is_whole and not np.array_equal(stored, _cut(raw, bits))  # as HighBit says
    inside = slice(None) if mask is None else ~mask
    if is_moved or not raw[inside].size or not _needs_more(raw[inside], bits):
        return ()
    what = 'all are read' if is_whole else 'the upper ones are cut'
    return (f'its pixels use more bits than its header states; {what}',)


def _through_palette(stored: np.ndarray, file: Any) -> np.ndarray:
    """The colours uint8 [H,W,3] of stored numbers [H,W]."""
    little = file.file_meta.TransferSyntaxUID.is_little_endian
    low, high = int(stored.min()), int(stored.max())
    tables = []
    with step('its palette'):
        for colour in ('Red', 'Green', 'Blue'):
            descriptor, what = file.get(f'{colour}{PALETTE}Descriptor'), f'the {colour.lower()} table of its palette'
            name = f'{colour}{PALETTE}Data'
            swapped = name in file and file[name].VR == 'OW'
            table = lookup.table(descriptor, file.get(name), low, high, little, what, swapped)
            if table is None:
                table = lookup.segmented(descriptor, file.get(f'Segmented{name}'), low, high, little, what)
            if table is None:
                raise Unreadable(f'damaged DICOM: {what} is missing')
            tables.append(table)
    # The entries have 8, 12 or 16 bits, whatever the descriptor says.
    most = max(int(table.entries.max()) for table in tables)
    unused = 0 if most < 1 << 8 else 4 if most < 1 << 12 else 8
    return np.stack([(table(stored) >> unused).astype(np.uint8) for table in tables], axis=2)
