"""The headers of image files, read before anything is decoded: kind, size, and whether the file is complete.

Decoders trust a header. A few hundred bytes can make them reserve gigabytes, fill the missing half of an image with
grey, or run forever. So every file is checked here first.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from medjax.data.types import Unreadable

# Pixels of an image or a frame. The largest mammograms have 28 million, films scanned at 50 micrometres 60 million.
# During processing a pixel takes up to 40 bytes, so an image of this size needs 3 GB. Pillow's own limits are higher.
MOST_PIXELS = 80_000_000
MOST_BYTES = 4 << 30  # of a file, which is held in memory; the longest volumes of tomosynthesis have half of it
MOST_INFLATED = 1 << 30  # bytes of a deflated DICOM file once it is inflated; a few KB can inflate to terabytes
MOST_SCANS = 100  # of a progressive JPEG; each scan costs a pass over the image; encoders write about 10

# The next marker of a JPEG. After FF, these bytes are no such marker: 00, FF, restarts, and, for JPEG-LS, all below 80.
NEXT_MARKER = re.compile(rb'\xff[\xc0-\xcf\xd8-\xfe]')
START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
SEQUENTIAL, PROGRESSIVE, LOSSLESS = (0xC0, 0xC1), 0xC2, 0xC3
WHOLE = b'\0\x3f\0'  # the end of a scan header: coefficients 0 to 63, with all their bits
STRICT = {0xC0, 0xC1, PROGRESSIVE, LOSSLESS}  # the 8-bit codings that simplejpeg decodes; lossless in grey only

OTHERS = {  # other kinds of files that are given as images -> how they begin
    'a GIF': rb'GIF8[79]a',
    'a TIFF': rb'II[*+]\0|MM\0[*+]',
    'a BMP': rb'BM.{4}\0{4}',
    'a WebP': rb'RIFF.{4}WEBP',
    'a HEIC or AVIF': rb'.{4}ftyp(heic|heix|mif1|msf1|avif)',
    'a JPEG 2000': rb'\0\0\0\x0cjP  |\xff\x4f\xff\x51',
    'a JPEG-LS': rb'\xff\xd8\xff\xf7',
    'a JPEG XL': rb'\0\0\0\x0cJXL |\xff\x0a',
    'a NIfTI file': rb'.{344}n[i+]1\0|.{4}n[i+]2\0',
    'a file packed by gzip (NIfTI?)': rb'\x1f\x8b\x08',
    'a ZIP archive': rb'PK\x03\x04',
    'a PDF': rb'%PDF-',
    'a web page': rb'\s*<(!doctype|html)',
    'a pointer of Git LFS': rb'version https://git-lfs',
}


SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type of a PNG -> samples of a pixel
ADAM7 = (  # the passes of an interlaced PNG: first column, first row, steps between columns and between rows
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip


class Jpeg(NamedTuple):
    """The header of a JPEG."""

    height: int
    width: int
    channels: int
    bits: int
    process: int  # the marker of its frame: 0xC0 baseline, PROGRESSIVE, LOSSLESS, …
    turn: int  # EXIF's orientation, 1 to 8; 1: upright
    is_odd: bool  # its scans are sequential and do not state all coefficients; see `whole_spectrum`


def kind(data: bytes) -> str:
    """'JPEG' or 'PNG', by the first bytes. Raises Unreadable for other files; the reason names their kind if known."""
    if not data:
        raise Unreadable('an empty file')
    if data[:8] == b'\x89PNG\r\n\x1a\n':
        return 'PNG'
    for name, start in OTHERS.items():
        if re.match(start, data, re.DOTALL | re.IGNORECASE):
            raise Unreadable(f'{name}; PNG, JPEG and DICOM can be read')
    if data[:3] == b'\xff\xd8\xff':
        return 'JPEG'
    if not data.strip(b'\0'):
        raise Unreadable('a file of nothing but zeros')
    raise Unreadable('neither JPEG, PNG nor DICOM')


def check_size(height: int, width: int) -> None:
    """Raises Unreadable for an image without pixels, or with more than MOST_PIXELS."""
    if height < 1 or width < 1:
        raise Unreadable(f'a picture of {width} x {height} pixels')
    if height * width > MOST_PIXELS:
        most = f'{MOST_PIXELS // 10**6} million'
        raise Unreadable(f'{width} x {height} pixels; at most {most} can be read: cut it into tiles, or reduce it')


# JPEG --------------------------------------------------------------------------------------------------------------


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment of a JPEG. The coded image lies between them.

    The last segment of a complete file is (0xD9, …).
    """
    at = 2
    while match := NEXT_MARKER.search(data, at):
        start, body = match.span()
        marker = data[start + 1]
        if marker == 0xD9:
            yield marker, start, body
            return
        at = body if marker == 0xD8 else body + int.from_bytes(data[body : body + 2], 'big')
        if at > len(data):
            return
        yield marker, start, at


def jpeg(data: bytes) -> Jpeg:
    """The header of a JPEG or JPEG-LS. Raises Unreadable if the file is incomplete, or too large to be read."""
    frames, scans, turn, last = [], [], 1, 0
    for marker, start, end in segments(data):
        body, last = data[start + 4 : end], marker
        if marker in START_OF_FRAME and len(body) >= 6:
            frames.append((marker, *struct.unpack('>BHHB', body[:6]), set(body[6::3])))
        elif marker == 0xDA:
            scans.append(body)
        elif marker == 0xE1 and body[:6] == b'Exif\0\0':
            turn = orientation(body[6:])
    if last != 0xD9:
        raise Unreadable('damaged JPEG: it is cut short')
    if len(frames) != 1:
        raise Unreadable('damaged JPEG: no picture, or more than one, between its start and its end')
    process, bits, height, width, channels, components = frames[0]
    check_size(height, width)
    if len(scans) > MOST_SCANS:
        raise Unreadable(f'a JPEG of {len(scans)} scans; at most {MOST_SCANS} can be read')
    if not components <= (_complete(scans) if process == PROGRESSIVE else {c for s in scans for c in _components(s)}):
        raise Unreadable('damaged JPEG: some of its scans are missing')
    is_odd = process in SEQUENTIAL and any(scan[-3:] != WHOLE for scan in scans)
    return Jpeg(height, width, channels, bits, process, turn, is_odd)


def whole_spectrum(data: bytes) -> bytes:
    """A sequential JPEG whose scan headers state all coefficients, 0 to 63.

    Some devices let them end at 0. A sequential scan has no other choice than all of them, so some decoders ignore
    these fields, and others refuse the file.
    """
    fixed = bytearray(data)
    for marker, _, end in segments(data):
        if marker == 0xDA:
            fixed[end - 3 : end] = WHOLE
    return bytes(fixed)


def _components(scan: bytes) -> bytes:
    """The numbers of the colour components of a scan."""
    return scan[1 : 1 + 2 * scan[0] : 2] if scan else b''


def _complete(scans: list[bytes]) -> set[int]:
    """The components of a progressive JPEG whose coefficients are all there, to the last bit."""
    missing_of: dict[int, set[int]] = {}
    for scan in scans:
        if scan and len(scan) >= 4 + 2 * scan[0]:
            first, final, bits = scan[1 + 2 * scan[0] : 4 + 2 * scan[0]]
            for component in _components(scan):
                missing = missing_of.setdefault(component, set(range(64)))
                if bits & 15 == 0:
                    missing -= set(range(first, final + 1))
    return {component for component, missing in missing_of.items() if not missing}


def orientation(exif: bytes) -> int:
    """The orientation in EXIF data that begin with their TIFF header, 1 to 8. Without a valid one: 1."""
    byte_order = {b'II*\0': '<', b'MM\0*': '>'}.get(exif[:4])
    try:
        at = struct.unpack_from(f'{byte_order}I', exif, 4)[0]
        for entry in range(at + 2, at + 2 + 12 * struct.unpack_from(f'{byte_order}H', exif, at)[0], 12):
            tag, _, _, value = struct.unpack_from(f'{byte_order}HHIH', exif, entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the data end too early, or are no EXIF
        pass
    return 1


# PNG ---------------------------------------------------------------------------------------------------------------


def png(data: bytes) -> tuple[bytes, int]:
    """The PNG with only the chunks that its image needs, and its orientation.

    Texts, colour profiles and transparency are left out: they are not needed, and they may be decompression bombs. The
    rows are inflated here, to see whether all are there. The result holds them as they are, so that the decoder need
    not inflate them again.
    Raises Unreadable if a chunk is damaged or missing, or if the image cannot be read.
    """
    kept, packed, at, turn, name = [data[:8]], [], 8, 1, b''
    while name != b'IEND':
        length, name = int.from_bytes(data[at : at + 4], 'big'), data[at + 4 : at + 8]
        body, end = at + 8, at + 12 + length
        if end > len(data):
            raise Unreadable('damaged PNG: it is cut short')
        needed = name[:1].isupper()
        if needed and zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], 'big'):
            raise Unreadable('damaged PNG: a checksum in it is wrong')
        if (name == b'IHDR') != (at == 8):
            raise Unreadable('damaged PNG: its header is not at its start')
        if at == 8:
            width, height, bits, colours, *_, interlaced = struct.unpack(
                '>II5B', data[body : body + 13].ljust(13, b'\0')
            )
            check_size(height, width)
            if bits == 16 and colours in (2, 6):
                raise Unreadable(
                    'a PNG of 16 bits in colour, which would lose 8 of its 16 bits; store it as 16-bit grey'
                )
        if name == b'acTL' and (pictures := int.from_bytes(data[body : body + 4], 'big')) > 1:
            raise Unreadable(f'an animated PNG of {pictures} pictures; store each as a file of its own')
        if name == b'eXIf':
            turn = orientation(data[body : end - 4])
        if name == b'IDAT':
            packed.append(memoryview(data)[body : end - 4])
            if len(packed) == 1:
                kept.append(b'')  # the place of the rows
                place = len(kept) - 1
        elif needed:
            kept.append(data[at:end])
        at = end
    rows = _rows(packed, width, height, bits * SAMPLES.get(colours, 0), bool(interlaced))
    if packed:
        body = b'IDAT' + zlib.compress(rows, 0)
        kept[place] = struct.pack('>I', len(body) - 4) + body + struct.pack('>I', zlib.crc32(body))
    return b''.join(kept), turn


def is_deep_with_alpha(data: bytes) -> bool:
    """Whether a checked PNG has 16-bit grey with alpha."""
    return data[24] == 16 and data[25] == 4


def png_as(data: bytes, bits: int, colours: int) -> bytes:
    """The PNG with another depth and colour type in its header."""
    header = data[12:24] + bytes([bits, colours]) + data[26:29]
    return data[:12] + header + zlib.crc32(header).to_bytes(4, 'big') + data[33:]


def _rows(packed: list[memoryview], width: int, height: int, bits: int, interlaced: bool) -> bytes:
    """The inflated rows of a PNG.

    Raises Unreadable if they are fewer than its header says. Pillow would leave the missing rows black.
    """
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    shapes = [(-(-(height - y) // down), -(-(width - x) // right)) for x, y, right, down in passes]
    missing = sum(rows * (1 + -(-columns * bits // 8)) for rows, columns in shapes if rows > 0 and columns > 0)
    inflater, rows = zlib.decompressobj(), []
    for chunk in packed:
        while len(chunk) and missing > 0:
            rows.append(inflater.decompress(chunk, missing))
            missing -= len(rows[-1])
            chunk = inflater.unconsumed_tail
    if missing > 0:
        raise Unreadable('damaged PNG: rows are missing')
    return b''.join(rows)


# JPEG 2000 ---------------------------------------------------------------------------------------------------------


class Jpeg2000(NamedTuple):
    """The header of a JPEG 2000 image."""

    size: tuple[int, int, int]  # height, width, channels
    bits: int  # of the first channel; 0 if it has a sign
    is_transformed: bool  # three components are stored as differences of colours, and a decoder gives back RGB
    start: int  # place of the code stream, behind boxes


def jpeg2000(data: bytes) -> Jpeg2000:
    """The header of a JPEG 2000 image. Raises Unreadable if it is damaged."""
    at = 0
    if data[4:8] == b'jP  ':  # a file of boxes: search for the box with the image
        while data[at + 4 : at + 8] != b'jp2c':
            length = int.from_bytes(data[at : at + 4], 'big')
            if length < 8:  # a box without length: pydicom would search for the next box forever
                raise Unreadable('damaged JPEG 2000 picture')
            at += length
        at += 8
    if data[at : at + 4] != b'\xff\x4f\xff\x51' or len(data) < at + 43:
        raise Unreadable('damaged JPEG 2000 picture')
    right, bottom, left, top = struct.unpack('>4I', data[at + 8 : at + 24])
    size = bottom - top, right - left, int.from_bytes(data[at + 40 : at + 42], 'big')
    bits = 0 if data[at + 42] & 0x80 else data[at + 42] + 1
    return Jpeg2000(size, bits, _is_transformed(data, at + 2), at)


def _is_transformed(data: bytes, at: int) -> bool:
    """Whether the marker COD of a code stream names a transform of its components. `at`: place of its first segment."""
    while at + 9 <= len(data) and data[at : at + 2] not in (b'\xff\x90', b'\xff\xd9'):
        if data[at : at + 2] == b'\xff\x52':
            return data[at + 8] == 1
        at += 2 + max(int.from_bytes(data[at + 2 : at + 4], 'big'), 2)
    return False
