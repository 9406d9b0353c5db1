"""Bytes to pixels and back: sources have JPEG, PNG and DICOM files; data sets store JPEG and PNG.

Pixels are uint8 or uint16 [H,W,C], C = 1 or 3. A colour file with three equal channels is read as a grey image.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from medjax.data.images import dicom, dicom_pixels, grey, headers
from medjax.data.images.windows import Window
from medjax.data.types import Picture, Unreadable


def decode(data: bytes, channels: int, bits: int) -> np.ndarray:
    """The pixels of a stored JPEG or PNG, [H,W,channels], uint8 (bits=8) or uint16 (bits=16).

    Grey becomes three equal channels. 8 bits become 16 by v -> 257 v, so full scale stays full scale.
    """
    pixels = _jpeg(data, grey=channels == 1) if data[:2] == b'\xff\xd8' else _pillow(data)
    if bits == 16 and pixels.dtype == np.uint8:
        pixels = pixels.astype(np.uint16) * 257
    if pixels.shape[2] != channels:
        pixels = pixels[..., :1] if channels == 1 else np.repeat(pixels, channels, axis=2)
    return pixels


def read(data: bytes, frame: int = 0) -> np.ndarray:
    """The pixels of a source file, as `picture` gives them. Raises Unreadable."""
    return picture(data, frame).pixels


def picture(data: bytes, frame: int = 0, windows: Sequence[Window] = ()) -> Picture:
    """The pixels of a source file in the size that it has, with remarks.

    Its content, not its name, gives its kind. `frame`: of a DICOM file. `windows`: for CT, in place of those of the
    header. Raises Unreadable.
    """
    kind = 'DICOM' if dicom.looks_like(data) else headers.kind(data)
    if windows and kind != 'DICOM':
        raise Unreadable(f'--window is for CT in DICOM files, and this is a {kind}; leave --window out')
    try:
        if kind == 'DICOM':
            found = dicom_pixels.picture(data, frame, windows)
        elif kind == 'PNG':
            needed, turn = headers.png(data)
            found = Picture(turned(_deep_grey(needed) if headers.is_deep_with_alpha(needed) else _pillow(needed), turn))
        else:
            found = Picture(_checked_jpeg(data))
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable('there is not enough memory to read it') from None
    except Exception as error:  # on damaged files, decoders may raise almost any exception
        # Some messages of Pillow and simplejpeg help; those of other exceptions are words for programmers.
        detail = ' '.join(str(error).split())[:150] if isinstance(error, (OSError, ValueError)) else ''
        raise Unreadable(f'damaged {kind}: {detail or "its picture cannot be read"}') from None
    return remarked(found._replace(pixels=grey_if_equal(found.pixels)))


def remarked(found: Picture) -> Picture:
    """The picture with the remark that it shows nothing, if all its pixels are equal and no remark says so."""
    pixels = found.pixels.reshape(-1, found.pixels.shape[2])
    if found.remarks or (pixels[0] != pixels[len(pixels) // 2]).any() or (pixels != pixels[0]).any():
        return found
    return found._replace(remarks=(grey.ONE_VALUE,))


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


def fitted(pixels: np.ndarray, fit: str | None, aspect: float = 1.0) -> np.ndarray:
    """The part of an image or mask [H,W,...] that `fit` keeps: 'crop' the centre square, 'pad' all, with black beside.

    `aspect` is the height of a pixel divided by its width: the square is one in millimetres. None keeps the image.
    """
    height, width = pixels.shape[:2]
    if fit is None:
        return pixels
    side = (min if fit == 'crop' else max)(height * aspect, width)
    rows, columns = max(1, round(side / aspect)), max(1, round(side))
    if (rows, columns) == (height, width):
        return pixels  # itself: then a JPEG keeps its coded image
    if fit == 'crop':
        top, left = (height - rows) // 2, (width - columns) // 2
        return pixels[top : top + rows, left : left + columns]
    headers.check_size(rows, columns)
    top, left = (rows - height) // 2, (columns - width) // 2
    out = np.zeros((rows, columns, *pixels.shape[2:]), pixels.dtype)
    out[top : top + height, left : left + width] = pixels
    return out


def cropped_share(shape: tuple[int, ...], aspect: float = 1.0) -> float:
    """The share of an image's area that its centre square leaves out."""
    height, width = shape[0] * aspect, shape[1]
    return 1.0 - min(height, width) / max(height, width)


def bounded(pixels: np.ndarray, size: int | None, aspect: float = 1.0, is_square: bool = False) -> np.ndarray:
    """The image with square pixels, reduced if its longer side exceeds `size`. Antialiased (bicubic); the depth stays.

    `aspect` is the height of a pixel divided by its width. Where it is not 1, the coarser axis is enlarged.
    `is_square`: see `stored_shape`.
    """
    from PIL import Image

    shape = stored_shape(pixels.shape[:2], size, aspect, is_square)
    if shape == pixels.shape[:2]:
        return pixels
    if pixels.dtype == np.uint8:
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        small = np.asarray(image.resize(shape[::-1], Image.Resampling.BICUBIC))
        return small.reshape(*shape, pixels.shape[2])
    planes = [  # Pillow has no antialiased resize for 16 bits; float32 holds all values exactly
        np.asarray(Image.fromarray(plane.astype(np.float32)).resize(shape[::-1], Image.Resampling.BICUBIC))
        for plane in np.moveaxis(pixels, 2, 0)
    ]
    return np.stack(planes, axis=2).round().clip(0, 65_535).astype(np.uint16)


def bounded_mask(values: np.ndarray, size: int | None, aspect: float = 1.0, is_square: bool = False) -> np.ndarray:
    """Like `bounded` for a mask [H,W], by nearest neighbour: so no new values appear."""
    (h, w), (to_h, to_w) = values.shape, stored_shape(values.shape, size, aspect, is_square)
    if (h, w) == (to_h, to_w):
        return values
    rows = ((np.arange(to_h) + 0.5) * h / to_h).astype(int)
    columns = ((np.arange(to_w) + 0.5) * w / to_w).astype(int)
    return values[rows[:, None], columns]


def png(pixels: np.ndarray) -> bytes:
    """PNG bytes of uint8 [H,W], [H,W,1], [H,W,3] or uint16 [H,W], [H,W,1].

    A row is stored as its difference from the row above, and compressed as runs of equal bytes. Pillow tries five
    filters on every row and searches for repetitions. That gives about as many bytes, but takes four times as long to
    write (level 4) and twice as long to read (8 bits).
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    height, width, channels = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    if channels == 3 and bits == 16:
        raise Unreadable('16 bits in colour')
    values = np.ascontiguousarray(pixels).astype('>u2' if bits == 16 else np.uint8).reshape(height, -1).view(np.uint8)
    rows = np.empty((height, 1 + values.shape[1]), np.uint8)
    rows[:, 0] = 2  # the filter 'up'; above the first row are zeros
    rows[0, 1:] = values[0]
    np.subtract(values[1:], values[:-1], out=rows[1:, 1:])
    packer = zlib.compressobj(strategy=zlib.Z_RLE)
    header = struct.pack('>IIBBBBB', width, height, bits, 2 if channels == 3 else 0, 0, 0, 0)
    chunks = [(b'IHDR', header), (b'IDAT', packer.compress(rows) + packer.flush()), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in chunks
    )


def keepable(data: bytes | np.ndarray) -> bytes | None:
    """The bytes of a JPEG file without its metadata, if they can be stored unchanged; else None.

    EXIF, XMP, colour profiles and comments are removed: they may name the patient. The coded image is not touched. An
    image that EXIF rotates, or in CMYK, cannot be kept as JPEG and is stored as PNG.
    """
    if isinstance(data, np.ndarray) or data[:3] != b'\xff\xd8\xff':
        return None
    header = headers.jpeg(data)
    if header.turn != 1 or header.channels == 4:
        return None
    data = headers.whole_spectrum(data) if header.is_odd else data
    kept, at = [], 0
    for marker, start, end in headers.segments(data):  # up to the end marker; bytes after it belong to no image
        metadata = marker == 0xFE or (0xE1 <= marker <= 0xEF and marker != 0xEE)  # decoding needs APP0 and APP14
        kept.append(data[at : start if metadata else end])
        at = end
    return b''.join(kept)


def turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    """The pixels [H,W,...] turned upright, by EXIF's orientation 1 to 8."""
    if turn >= 5:  # exchange rows and columns; the rest is as for 1 to 4
        pixels = pixels.swapaxes(0, 1)
    rows, columns = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}[
        turn
    ]
    return np.ascontiguousarray(pixels[::rows, ::columns])


def _checked_jpeg(data: bytes) -> np.ndarray:
    """The pixels of a source's JPEG: checked, grey or RGB, turned upright."""
    header = headers.jpeg(data)
    data = headers.whole_spectrum(data) if header.is_odd else data
    if header.process not in headers.STRICT:
        raise Unreadable('a JPEG in a rare coding (arithmetic or hierarchical), which nothing here decodes')
    if header.bits != 8 or header.channels not in (1, 3, 4):
        raise Unreadable(f'a JPEG of {header.channels} channels of {header.bits} bits; 1 or 3 of 8 bits can be read')
    return turned(_cmyk(data) if header.channels == 4 else _jpeg(data), header.turn)


def _jpeg(data: bytes, grey: bool = False) -> np.ndarray:
    import simplejpeg

    grey = grey or simplejpeg.decode_jpeg_header(data)[2] == 'Gray'
    return simplejpeg.decode_jpeg(data, colorspace='GRAY' if grey else 'RGB')  # strict: raises on a damaged JPEG


def _cmyk(data: bytes) -> np.ndarray:
    """The RGB pixels of a JPEG for printers. By custom its values are inverted: 255 is no ink."""
    import simplejpeg

    inks = simplejpeg.decode_jpeg(data, colorspace='CMYK').astype(np.uint16)
    return ((inks[..., :3] * inks[..., 3:] + 127) // 255).astype(np.uint8)


def _deep_grey(data: bytes) -> np.ndarray:
    """The grey values uint16 [H,W,1] of a PNG of 16-bit grey with alpha, which is left out.

    Pillow keeps 8 bits of such files. A pixel has four bytes, as in 8-bit RGBA, so the filters of its rows are the
    same: Pillow reads the file under this name, and the first two bytes are the grey value.
    """
    from PIL import Image

    with Image.open(io.BytesIO(headers.png_as(data, 8, 6)), formats=['PNG']) as image:
        high, low = np.moveaxis(np.asarray(image, np.uint16)[..., :2], 2, 0)
    return (high << 8 | low)[..., None]


def _pillow(data: bytes) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(data), formats=['PNG'])
    except UnidentifiedImageError:  # its message holds an address in memory
        raise Unreadable('damaged PNG: its header names no kind of image') from None
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


def stored_shape(
    shape: tuple[int, ...], size: int | None, aspect: float = 1.0, is_square: bool = False
) -> tuple[int, int]:
    """Height and width with square pixels, the longer one at most `size`, and all at most headers.MOST_PIXELS.

    `is_square`: `fitted` made the image a square in millimetres, so height and width are equal.
    """
    if is_square and aspect != 1.0:  # the number of pixels of the finer axis; the other one was rounded
        height = width = float(shape[1] if aspect > 1.0 else shape[0])
    else:
        height, width = shape[0] * max(aspect, 1.0), shape[1] / min(aspect, 1.0)
    scale = 1.0 if size is None else min(1.0, size / max(height, width))
    if aspect != 1.0:
        scale = min(scale, (headers.MOST_PIXELS / (height * width)) ** 0.5)
    return max(1, round(height * scale)), max(1, round(width * scale))
