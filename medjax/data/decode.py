"""Bytes to pixels and back: JPEG, PNG and DICOM in, JPEG and PNG stored.

Pixels are uint8 or uint16 [H,W,C], C = 1 or 3. A colour file whose three channels are equal is a grey image.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np

from medjax.data import dicom
from medjax.data.sources import Unreadable


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
    if data[:3] == b'\xff\xd8\xff':
        kind = 'JPEG'
    elif data[:8] == b'\x89PNG\r\n\x1a\n':
        kind = 'PNG'
    elif dicom.looks_like(data):
        kind = 'DICOM'
    else:
        raise Unreadable('an empty file' if not data else 'neither JPEG, PNG nor DICOM')
    try:
        pixels = dicom.pixels(data, frame) if kind == 'DICOM' else {'JPEG': _jpeg, 'PNG': _pillow}[kind](data)
    except Unreadable:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise Unreadable(f'damaged {kind}: {type(error).__name__}: {" ".join(str(error).split())[:150]}') from None
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
    if isinstance(data, np.ndarray) or data[:3] != b'\xff\xd8\xff' or _turned(data) or _colours(data) == 'CMYK':
        return None
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], 'big')
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == 0xDA:  # start of scan: the coded image up to its end marker; what follows is no picture
            end = data.rfind(b'\xff\xd9')
            return b''.join([*kept, data[at : end + 2 if end > at else None]])
        comment = marker == 0xFE or (0xE1 <= marker <= 0xEF and marker != 0xEE)  # APP0 and APP14 say how to decode
        if not comment:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return None


def _jpeg(data: bytes, grey: bool = False) -> np.ndarray:
    import simplejpeg

    if _turned(data) or (colours := _colours(data)) == 'CMYK':
        return _pillow(data)
    return simplejpeg.decode_jpeg(data, colorspace='GRAY' if grey or colours == 'Gray' else 'RGB')


def _colours(data: bytes) -> str:
    """'Gray', 'YCbCr', 'RGB' or 'CMYK' (YCCK too)."""
    import simplejpeg

    colours = simplejpeg.decode_jpeg_header(data)[2]
    return 'CMYK' if colours in ('CMYK', 'YCCK') else colours


def _turned(data: bytes) -> bool:
    """Whether EXIF says that the picture is to be rotated or mirrored."""
    from PIL import Image

    if b'Exif' not in data[:65_536]:
        return False
    with Image.open(io.BytesIO(data), formats=['JPEG']) as image:
        return image.getexif().get(0x0112, 1) != 1


def _pillow(data: bytes) -> np.ndarray:
    from PIL import Image, ImageOps

    if data[1:4] == b'PNG' and data[24] == 16 and data[25] in (2, 6):
        raise Unreadable('a PNG of 16 bits in colour, which would lose half of them; store it as 16-bit grey')
    with Image.open(io.BytesIO(data), formats=['PNG', 'JPEG']) as file:
        file.load()
        image: Image.Image = ImageOps.exif_transpose(file)
        if image.mode in ('1', 'LA', 'La'):
            image = image.convert('L')
        elif image.mode.startswith('I'):
            values = np.asarray(image)
            if image.mode == 'I' and (values.min() < 0 or values.max() > 65_535):  # others have 16 bits
                raise Unreadable('values beyond 16 bits')
            return values.astype(np.uint16)[..., None]
        elif image.mode != 'L':
            image = image.convert('RGB')  # palettes, alpha, CMYK
        return grey_if_equal(np.array(image))


def _reduced(shape: tuple[int, ...], size: int) -> tuple[int, int]:
    height, width = shape
    scale = size / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))
