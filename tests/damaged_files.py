"""Makes image files that are damaged, compressed or hostile: PNG chunks, JPEG headers, coded DICOM frames."""

from __future__ import annotations

import io
import pathlib
import struct
import zlib

import numpy as np
from image_files import dicom, smooth
from PIL import Image

from medjax.data.images import headers

grey, colour, deep = smooth(24, 20), smooth(24, 20, 3), smooth(24, 20, top=65_535)
BASELINE, LOSSLESS, J2K = '1.2.840.10008.1.2.4.50', '1.2.840.10008.1.2.4.70', '1.2.840.10008.1.2.4.90'
RLE, DEFLATED = '1.2.840.10008.1.2.5', '1.2.840.10008.1.2.1.99'


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def png(width: int, height: int, bits: int, colours: int, rows: bytes, interlaced: int = 0, more: bytes = b'') -> bytes:
    header = chunk(b'IHDR', struct.pack('>II5B', width, height, bits, colours, 0, 0, interlaced))
    return b'\x89PNG\r\n\x1a\n' + header + more + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def interlaced_png(pixels: np.ndarray) -> bytes:
    passes = [pixels[y::down, x::right, 0] for x, y, right, down in headers.ADAM7]
    rows = b''.join(b'\0' + row.tobytes() for each in passes if each.size for row in each)
    return png(pixels.shape[1], pixels.shape[0], 8, 0, rows, interlaced=1)


def exif(turn: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = turn
    return tags


def resized(jpeg: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its header."""
    at = max(jpeg.find(b'\xff\xc0'), jpeg.find(b'\xff\xc2')) + 5
    return jpeg[:at] + struct.pack('>HH', height, width) + jpeg[at + 4 :]


def coded_dicom(coded: list[bytes], pixels: np.ndarray, syntax: str, **facts) -> bytes:
    """A DICOM file of compressed frames."""
    import pydicom
    from pydicom.encaps import encapsulate

    d = pydicom.dcmread(io.BytesIO(dicom(pixels[..., 0] if pixels.shape[2] == 1 else pixels, **facts)))
    d.file_meta.TransferSyntaxUID = syntax
    d.PixelData = encapsulate(coded)
    d['PixelData'].is_undefined_length = True
    buffer = io.BytesIO()
    d.save_as(buffer)
    return buffer.getvalue()


def packed_dicom(pixels: np.ndarray, syntax: str, **facts) -> bytes:
    """A DICOM file that pydicom compressed or deflated."""
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    d = pydicom.dcmread(io.BytesIO(dicom(pixels, **facts)))
    if syntax == DeflatedExplicitVRLittleEndian:
        d.file_meta.TransferSyntaxUID = syntax
    else:
        d.compress(syntax, encoding_plugin='pydicom' if syntax.endswith('.5') else '')
    buffer = io.BytesIO()
    d.save_as(buffer)
    return buffer.getvalue()


def of_pydicom(name: str) -> bytes:
    """A test file of pydicom."""
    from pydicom.data import get_testdata_file

    return pathlib.Path(get_testdata_file(name, download=False)).read_bytes()


def coded_of(data: bytes) -> bytes:
    """The compressed first frame of a DICOM file."""
    import pydicom
    from pydicom.encaps import get_frame

    return get_frame(pydicom.dcmread(io.BytesIO(data)).PixelData, 0, number_of_frames=1)
