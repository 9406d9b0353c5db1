"""What a file says of itself, read before anything is decoded: its kind, its size, whether it is whole.

Decoders believe a header: they would reserve the gigabytes that a few hundred bytes ask for, fill the missing half of
a picture with grey, or never come back. So every file passes here first.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from medjax.data.types import Unreadable

# A picture or a frame. The largest mammograms have 28 million, films scanned at 50 micrometres 60; on the way to what
# is stored a pixel takes up to 40 bytes, so that such a picture needs 3 GB. Below it Pillow's own limits never speak.
MOST_PIXELS = 80_000_000
MOST_BYTES = 4 << 30  # of a file, which is held in memory; the longest volumes of tomosynthesis have half of that
MOST_INFLATED = 1 << 30  # of a deflated DICOM file, which is inflated as a whole; a few KB may claim terabytes
MOST_SCANS = 100  # of a progressive JPEG, each of which costs a pass over the picture; encoders write about 10

NEXT_MARKER = re.compile(rb'\xff[\xc0-\xcf\xd8-\xfe]')  # not 00, FF and restarts, nor, for JPEG-LS, what is below 80
START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
PROGRESSIVE, LOSSLESS = 0xC2, 0xC3
STRICT = {0xC0, 0xC1, PROGRESSIVE, LOSSLESS}  # what simplejpeg decodes, of 8 bits; lossless ones in grey alone

OTHERS = {  # what people mix up with images -> how it begins
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


SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the kind of colours that a PNG tells
ADAM7 = (  # the pictures that an interlaced PNG is sent as: first column and row, steps to the next
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2),
)  # fmt: skip


class Jpeg(NamedTuple):
    height: int
    width: int
    channels: int
    bits: int
    process: int  # the marker of its frame: 0xC0 baseline, PROGRESSIVE, LOSSLESS, …
    turn: int  # EXIF's orientation, 1 to 8; 1 is upright


def kind(data: bytes) -> str:
    """'JPEG' or 'PNG' by the first bytes; what else the file is, if it can be told, is the reason of Unreadable."""
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
    """Raises Unreadable for no pixels and for more than MOST_PIXELS."""
    if height < 1 or width < 1:
        raise Unreadable(f'a picture of {width} x {height} pixels')
    if height * width > MOST_PIXELS:
        most = f'{MOST_PIXELS // 10**6} million'
        raise Unreadable(f'{width} x {height} pixels; at most {most} can be read: cut it into tiles, or reduce it')


# JPEG --------------------------------------------------------------------------------------------------------------


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of each segment of a JPEG; the coded picture lies between them. The last is (0xD9, …) if
    the file is whole."""
    at = 2
    while found := NEXT_MARKER.search(data, at):
        start, body = found.span()
        marker = data[start + 1]
        if marker == 0xD9:
            yield marker, start, body
            return
        at = body if marker == 0xD8 else body + int.from_bytes(data[body : body + 2], 'big')
        if at > len(data):
            return
        yield marker, start, at


def jpeg(data: bytes) -> Jpeg:
    """What a JPEG or JPEG-LS says of itself. Raises Unreadable where it is cut short, or larger than can be read."""
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
    if not components <= (_finished(scans) if process == PROGRESSIVE else {c for scan in scans for c in _of(scan)}):
        raise Unreadable('damaged JPEG: some of its scans are missing')
    return Jpeg(height, width, channels, bits, process, turn)


def _of(scan: bytes) -> bytes:
    """The components of a scan."""
    return scan[1 : 1 + 2 * scan[0] : 2] if scan else b''


def _finished(scans: list[bytes]) -> set[int]:
    """The components of a progressive JPEG of which all coefficients were sent to their last bit."""
    left: dict[int, set[int]] = {}
    for scan in scans:
        if scan and len(scan) >= 4 + 2 * scan[0]:
            first, final, bits = scan[1 + 2 * scan[0] : 4 + 2 * scan[0]]
            for component in _of(scan):
                sent = left.setdefault(component, set(range(64)))
                if bits & 15 == 0:
                    sent -= set(range(first, final + 1))
    return {component for component, missing in left.items() if not missing}


def orientation(exif: bytes) -> int:
    """The orientation that EXIF (from its TIFF header on) tells, 1 to 8; 1 where it tells none."""
    order = {b'II*\0': '<', b'MM\0*': '>'}.get(exif[:4])
    try:
        at = struct.unpack_from(f'{order}I', exif, 4)[0]
        for entry in range(at + 2, at + 2 + 12 * struct.unpack_from(f'{order}H', exif, at)[0], 12):
            tag, _, _, value = struct.unpack_from(f'{order}HHIH', exif, entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:  # it ends too early, or is none
        pass
    return 1


# PNG ---------------------------------------------------------------------------------------------------------------


def png(data: bytes) -> tuple[bytes, int]:
    """The parts of a PNG that its picture is made of, and its orientation. Raises Unreadable where a part is damaged
    or missing, and for what cannot be read.

    Texts, colour profiles and transparency are left out: they may be packed bombs, and nothing of them is wanted.
    """
    kept, packed, at, turn, seen = [data[:8]], [], 8, 1, b''
    while seen != b'IEND':
        length, seen = int.from_bytes(data[at : at + 4], 'big'), data[at + 4 : at + 8]
        body, end = at + 8, at + 12 + length
        if end > len(data):
            raise Unreadable('damaged PNG: it is cut short')
        needed = seen[:1].isupper()
        if needed and zlib.crc32(memoryview(data)[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], 'big'):
            raise Unreadable('damaged PNG: a checksum in it is wrong')
        if (seen == b'IHDR') != (at == 8):
            raise Unreadable('damaged PNG: its header is not at its start')
        if at == 8:
            width, height, bits, colours, *_, interlaced = struct.unpack(
                '>II5B', data[body : body + 13].ljust(13, b'\0')
            )
            check_size(height, width)
            if bits == 16 and colours in (2, 6):
                raise Unreadable('a PNG of 16 bits in colour, which would lose half of them; store it as 16-bit grey')
        if seen == b'acTL' and (pictures := int.from_bytes(data[body : body + 4], 'big')) > 1:
            raise Unreadable(f'an animated PNG of {pictures} pictures; store each as a file of its own')
        if seen == b'eXIf':
            turn = orientation(data[body : end - 4])
        if seen == b'IDAT':
            packed.append(memoryview(data)[body : end - 4])
        if needed:
            kept.append(data[at:end])
        at = end
    _check_rows(packed, width, height, bits * SAMPLES.get(colours, 0), bool(interlaced))
    return b''.join(kept), turn


def _check_rows(packed: list[memoryview], width: int, height: int, bits: int, interlaced: bool) -> None:
    """Raises Unreadable where the inflated data of a PNG are shorter than its rows, which Pillow would leave black."""
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    shapes = [(-(-(height - y) // down), -(-(width - x) // right)) for x, y, right, down in passes]
    left = sum(rows * (1 + -(-columns * bits // 8)) for rows, columns in shapes if rows > 0 and columns > 0)
    inflater = zlib.decompressobj()
    for part in packed:
        while len(part) and left > 0:
            left -= len(inflater.decompress(part, min(left, 1 << 20)))
            part = inflater.unconsumed_tail
    if left > 0:
        raise Unreadable('damaged PNG: rows are missing')


# JPEG 2000 ---------------------------------------------------------------------------------------------------------


def jpeg2000(data: bytes) -> tuple[int, int, int]:
    """(height, width, channels) of a JPEG 2000 picture. Raises Unreadable where it does not say."""
    at = 0
    if data[4:8] == b'jP  ':  # in boxes, of which the one with the picture is looked for
        while data[at + 4 : at + 8] != b'jp2c':
            length = int.from_bytes(data[at : at + 4], 'big')
            if length < 8:  # a box of no length: pydicom would look for the next one for ever
                raise Unreadable('damaged JPEG 2000 picture')
            at += length
        at += 8
    if data[at : at + 4] != b'\xff\x4f\xff\x51' or len(data) < at + 42:
        raise Unreadable('damaged JPEG 2000 picture')
    right, bottom, left, top = struct.unpack('>4I', data[at + 8 : at + 24])
    return bottom - top, right - left, int.from_bytes(data[at + 40 : at + 42], 'big')
