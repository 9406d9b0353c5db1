"""Bytes to pixels and back: JPEG, PNG and DICOM in, JPEG and PNG stored.

Pixels are uint8 or uint16 [H,W,C], C = 1 or 3. A colour file whose three channels are equal is a grey image.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from medjax.data.images import dicom, headers
from medjax.data.types import Unreadable


def decode(data: bytes, channels: int, bits: int) -> np.ndarray:
    """The pixels of a stored JPEG or PNG, [H,W,channels], uint8 or uint16 as `bits` says.

    Grey becomes three equal channels, 8 bits become 16 by v -> 257 v, so that both mean the same part of full scale.
    """
    pixels = _jpeg(data, grey=channels == 1) if data[:2] == b'\xff\xd8' else _pillow(data)
    if bits == 16 and pixels.dtype == np.uint8:
        pixels = pixels.astype(np.uint16) * 257
    if pixels.shape[2] != channels:
        pixels = pixels[..., :1] if channels == 1 else np.repeat(pixels, channels, axis=2)
    return pixels


def read(data: bytes, frame: int = 0) -> np.ndarray:
    """The pixels of a source file, told by its content, not by its name; `frame` of a DICOM file. Raises Unreadable."""
    kind = 'DICOM' if dicom.looks_like(data) else headers.kind(data)
    try:
        if kind == 'DICOM':
            pixels = dicom.pixels(data, frame)
        elif kind == 'PNG':
            needed, turn = headers.png(data)
            pixels = turned(_pillow(needed), turn)
        else:
            pixels = _whole_jpeg(data)
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable('there is not enough memory to read it') from None
    except Exception as error:  # decoders of damaged files raise nearly anything
        # What a DICOM library says may quote the file's fields.
        words = type(error).__name__ if kind == 'DICOM' else ' '.join(str(error).split())[:150]
        raise Unreadable(f'damaged {kind}: {words}') from None
    return grey_if_equal(pixels)


def mask(data: bytes) -> np.ndarray:
    """The values of a mask file, uint8 [H,W]. Raises Unreadable."""
    pixels = read(data)
    if pixels.shape[2] != 1 or pixels.dtype != np.uint8:
        raise Unreadable('not an 8-bit grey image')
    return pixels[..., 0]


def grey_if_equal(pixels: np.ndarray) -> np.ndarray:
    """[H,W] -> [H,W,1]; [H,W,3] with three equal channels -> [H,W,1]."""
    if pixels.ndim == 2:
        return pixels[..., None]
    if pixels.shape[2] == 3 and (pixels == pixels[..., :1]).all():
        return np.ascontiguousarray(pixels[..., :1])
    return pixels


def bounded(pixels: np.ndarray, size: int | None) -> np.ndarray:
    """Reduced so that the longer side is `size`; aspect kept, antialiased (bicubic), depth kept; never enlarged."""
    from PIL import Image

    if size is None or max(pixels.shape[:2]) <= size:
        return pixels
    shape = _reduced(pixels.shape[:2], size)
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        small = np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC))
        return small.reshape(*shape, pixels.shape[2])
    planes = [  # Pillow has no antialiased resize of 16 bits: through float32, which holds them exactly
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC))
        for plane in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack(planes, axis=2).round().clip(0, 65_535).astype(np.uint16)


def bounded_mask(values: np.ndarray, size: int | None) -> np.ndarray:
    """Like `bounded` for a mask [H,W]: nearest neighbour, so that no value is invented."""
    if size is None or max(values.shape) <= size:
        return values
    (h, w), (to_h, to_w) = values.shape, _reduced(values.shape, size)
    rows = ((np.arange(to_h) + 0.5) * h / to_h).astype(int)
    columns = ((np.arange(to_w) + 0.5) * w / to_w).astype(int)
    return values[rows[:, None], columns]


def png(pixels: np.ndarray) -> bytes:
    """PNG bytes of uint8 [H,W], [H,W,1], [H,W,3] or uint16 [H,W], [H,W,1].

    Every row is stored less the row above, and packed as runs. Pillow would try five filters on every row and search
    for repeats: about as many bytes, but four times as long to write (level 4) and twice as long to read (8 bits).
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    if channels == 3 and bits == 16:
        raise Unreadable('16 bits in colour')
    values = np.ascontiguousarray(pixels).astype('>u2' if bits == 16 else np.uint8).reshape(height, -1).view(np.uint8)
    rows = np.empty((height, 1 + values.shape[1]), np.uint8)
    rows[:, 0] = 2  # the filter 'up', whose first row is less nothing
    rows[0, 1:] = values[0]
    np.subtract(values[1:], values[:-1], out=rows[1:, 1:])
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    header = struct.pack('>IIBBBBB', width, height, bits, 2 if channels == 3 else 0, 0, 0, 0)
    parts = [(b'IHDR', header), (b'IDAT', packer.compress(rows) + packer.flush()), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in parts
    )


def keepable(data: bytes | np.ndarray) -> bytes | None:
    """A JPEG file's bytes without its metadata, where they can be stored as they are; else None.

    Dropped are EXIF, XMP, colour profiles and comments, which may name the patient; the coded image is untouched.
    A picture that EXIF turns, or one in CMYK, cannot be kept: it is stored as PNG.
    """
    if isinstance(data, np.ndarray) or data[:3] != b'\xff\xd8\xff':
        return None
    header = headers.jpeg(data)
    if header.turn != 1 or header.channels == 4:
        return None
    kept, at = [], 0
    for marker, start, end in headers.segments(data):  # up to the end marker; what follows is no picture
        comment = marker == 0xFE or (0xE1 <= marker <= 0xEF and marker != 0xEE)  # APP0 and APP14 say how to decode
        kept.append(data[at : start if comment else end])
        at = end
    return b''.join(kept)


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """[H,W,...] set upright, by EXIF's orientation 1 to 8."""
    if turn >= 5:  # rows and columns are exchanged, then as 1 to 4
        pixels = pixels.swapaxes(0, 1)
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[
        turn
    ]
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _whole_jpeg(data: bytes) -> np.ndarray:
    """A JPEG as a source has it: checked, in whatever colours, set upright."""
    header = headers.jpeg(data)
    if header.process not in headers.STRICT:
        raise Unreadable('a JPEG in a rare coding (arithmetic or hierarchical), which nothing here decodes')
    if header.bits != 8 or header.channels not in (1, 3, 4):
        raise Unreadable(f'a JPEG of {header.channels} channels of {header.bits} bits; 1 or 3 of 8 bits can be read')
    return turned(_cmyk(data) if header.channels == 4 else _jpeg(data), header.turn)


def _jpeg(data: bytes, grey: bool = False) -> np.ndarray:
    import simplejpeg

    grey = grey or simplejpeg.decode_jpeg_header(data)[2] == 'Gray'
    return simplejpeg.decode_jpeg(data, colorspace='GRAY' if grey else 'RGB')  # strict: a damaged one raises


def _cmyk(data: bytes) -> np.ndarray:
    """The RGB of a JPEG for printers, which are inverted by custom: 255 is no ink."""
    import simplejpeg

    inks = simplejpeg.decode_jpeg(data, colorspace='CMYK').astype(np.uint16)
    return ((inks[..., :3] * inks[..., 3:] + 127) // 255).astype(np.uint8)


def _pillow(data: bytes) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(data), formats=['PNG'])
    except UnidentifiedImageError:  # its words name an address in memory
        raise Unreadable('damaged PNG: its header tells of no kind of picture') from None
    with opened as image:
        image.load()
        if image.mode in ('1', 'LA', 'La'):
            return np.array(image.convert('L'))[..., None]
        if image.mode.startswith('I'):
            values = np.asarray(image)
            if image.mode == 'I' and (values.min() < 0 or values.max() > 65_535):  # others have 16 bits
                raise Unreadable('values beyond 16 bits')
            return values.astype(np.uint16)[..., None]
        if image.mode != 'L':
            return grey_if_equal(np.array(image.convert('RGB')))  # palettes, alpha
        return np.array(image)[..., None]


def _reduced(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    height, width = shape
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
