"""Damaged, mislabelled and hostile files: each ends as pixels or as a sentence, in bounded time and memory.

As a script it reads mutated files and says where it is, so that a crash or a hang of a decoder has a name:
    python tests/data/images/test_damaged.py FAMILY FIRST COUNT
"""

from __future__ import annotations

import collections
import contextlib
import faulthandler
import functools
import io
import json
import os
import pathlib
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib

import numpy as np
import pytest
from image_files import dicom, file, smooth
from PIL import Image, ImageOps

from medjax.data.images import decode, dicom as films, headers
from medjax.data.sources import npz
from medjax.data.types import Unreadable
from medjax.errors import UserError

MUTANTS = 10_000  # of all families together
SECONDS = 20  # for one file; the slowest takes some hundredths
MEMORY = 3 << 30  # address space of a process; what is read here is tiny
grey, colour, deep = smooth(24, 20), smooth(24, 20, 3), smooth(24, 20, top=65_535)


def reason(data: bytes, frame: int = 0) -> str:
    with pytest.raises(Unreadable) as error:
        decode.read(data, frame)
    return str(error.value)


# Making files ------------------------------------------------------------------------------------------------------


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + name + body + struct.pack('>I', zlib.crc32(name + body))


def png(width: int, height: int, bits: int, colours: int, rows: bytes, interlaced: int = 0, more: bytes = b'') -> bytes:
    header = chunk(b'IHDR', struct.pack('>II5B', width, height, bits, colours, 0, 0, interlaced))
    return b'\x89PNG\r\n\x1a\n' + header + more + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


def interlaced_png(pixels: np.ndarray) -> bytes:
    parts = [pixels[y::down, x::right, 0] for x, y, right, down in headers.ADAM7]
    rows = b''.join(b'\0' + row.tobytes() for part in parts if part.size for row in part)
    return png(pixels.shape[1], pixels.shape[0], 8, 0, rows, interlaced=1)


def exif(turn: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = turn
    return tags


def resized(jpeg: bytes, height: int, width: int) -> bytes:
    """A JPEG whose header tells another size."""
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
    """A DICOM file as pydicom compresses or deflates it."""
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


BASELINE, LOSSLESS, J2K = '1.2.840.10008.1.2.4.50', '1.2.840.10008.1.2.4.70', '1.2.840.10008.1.2.4.90'
RLE, DEFLATED = '1.2.840.10008.1.2.5', '1.2.840.10008.1.2.1.99'


def of_pydicom(name: str) -> bytes:
    from pydicom.data import get_testdata_file

    return pathlib.Path(get_testdata_file(name, download=False)).read_bytes()


def coded_of(data: bytes) -> bytes:
    import pydicom
    from pydicom.encaps import get_frame

    return get_frame(pydicom.dcmread(io.BytesIO(data)).PixelData, 0, number_of_frames=1)


# Each form once ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('progressive', [False, True])
@pytest.mark.parametrize('share', [0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize('closed', [False, True])
def test_half_a_jpeg_is_no_picture(progressive, share, closed):
    """With an end marker too, which tools that repair files put there."""
    whole = file(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8), 'JPEG', progressive=progressive
    )
    cut = whole[: int(len(whole) * share)] + b'\xff\xd9' * closed
    assert 'cut short' in reason(cut) or (closed and 'damaged JPEG' in reason(cut))


def test_a_progressive_jpeg_without_its_last_scans_is_no_picture():
    whole = file(colour, 'JPEG', progressive=True)
    scans = [start for marker, start, _ in headers.segments(whole) if marker == 0xDA]
    assert len(scans) == 10 and decode.read(whole).shape == colour.shape
    for start in scans[1:]:
        assert 'some of its scans are missing' in reason(whole[:start] + b'\xff\xd9')


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.99])
def test_half_a_png_is_no_picture(share):
    whole = file(deep, 'PNG')
    assert 'cut short' in reason(whole[: int(len(whole) * share)])
    rows = b''.join(b'\0' + row.tobytes() for row in grey[..., 0])
    np.testing.assert_array_equal(decode.read(png(20, 24, 8, 0, rows)), grey)
    assert 'rows are missing' in reason(png(20, 24, 8, 0, rows[: int(len(rows) * share)]))  # all checksums are right


def test_a_changed_bit_of_a_png_is_seen():
    whole = file(grey, 'PNG')
    at = whole.index(b'IDAT') + 20
    assert 'checksum' in reason(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])


def test_interlaced_png():
    for pixels in (grey, grey[:1, :1], grey[:3, :7]):
        np.testing.assert_array_equal(decode.read(interlaced_png(pixels)), pixels)


@pytest.mark.parametrize(
    ('start', 'words'),
    [
        (b'', 'an empty file'),
        (bytes(1000), 'nothing but zeros'),
        (b'Dear colleague, the pictures are attached.', 'neither JPEG, PNG nor DICOM'),
        (b'<!DOCTYPE html><p>please log in', 'a web page'),
        (b'version https://git-lfs.github.com/spec/v1', 'Git LFS'),
        (b'%PDF-1.7', 'a PDF'),
        (b'PK\x03\x04', 'a ZIP archive'),
        (b'\x1f\x8b\x08', 'NIfTI'),
        (bytes(344) + b'n+1\0', 'a NIfTI file'),
        (b'\0\0\0\x18ftypheic', 'HEIC'),
        (b'II*\0', 'a TIFF'),
        (b'MM\0*', 'a TIFF'),
        (b'\xff\x4f\xff\x51', 'a JPEG 2000'),
    ],
)
def test_other_files_are_called_what_they_are(start, words):
    assert words in reason(start)


@pytest.mark.parametrize('kind', ['GIF', 'TIFF', 'BMP', 'WEBP', 'JPEG2000'])
def test_other_pictures_are_called_what_they_are(kind):
    assert reason(file(colour, kind)).endswith('; PNG, JPEG and DICOM can be read')


def test_pictures_that_move_are_refused():
    more = [Image.fromarray(grey[::-1, :, 0].copy())]
    assert 'an animated PNG of 2 pictures' in reason(file(grey, 'PNG', save_all=True, append_images=more))
    assert 'a GIF' in reason(file(grey, 'GIF', save_all=True, append_images=more))
    assert 'a TIFF' in reason(file(grey, 'TIFF', save_all=True, append_images=more))


def test_a_second_picture_behind_a_jpeg_is_not_kept():
    """Cameras put previews there, with EXIF of their own."""
    more = file(colour[::-1], 'JPEG', comment=b'PATIENT DOE')
    plain = file(colour, 'JPEG')
    np.testing.assert_array_equal(decode.read(plain + more), decode.read(plain))
    assert decode.keepable(plain + more) == plain


@pytest.mark.parametrize('kind', ['PNG', 'JPEG'])
def test_one_pixel(kind):
    assert abs(int(decode.read(file(np.full((1, 1, 1), 77, np.uint8), kind)).item()) - 77) <= 1


def test_cmyk_and_ycck_agree_with_pillow():
    cmyk = np.random.default_rng(0).integers(0, 256, (24, 20, 4)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(cmyk, 'CMYK').save(buffer, 'JPEG', quality=95)
    data = buffer.getvalue()
    expected = np.asarray(Image.open(io.BytesIO(data)).convert('RGB'))
    assert np.abs(decode.read(data).astype(int) - expected).max() <= 1
    at = data.index(b'Adobe') + 11  # the transform that APP14 tells: none, or YCCK
    ycck = data[:at] + b'\x02' + data[at + 1 :]
    expected = np.asarray(Image.open(io.BytesIO(ycck)).convert('RGB'))
    assert np.abs(decode.read(ycck).astype(int) - expected).max() <= 2
    assert decode.keepable(data) is decode.keepable(ycck) is None


def test_palettes_with_and_without_transparency():
    image = Image.fromarray(colour).quantize(16)
    for options in ({}, {'transparency': 3}, {'transparency': bytes(range(16))}):
        buffer = io.BytesIO()
        image.save(buffer, 'PNG', **options)
        np.testing.assert_array_equal(decode.read(buffer.getvalue()), np.asarray(image.convert('RGB')))


def test_16_bits_in_colour_are_refused():
    assert '16 bits in colour' in reason(png(2, 1, 16, 2, bytes(13)))


@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_exif_turns_as_pillow_does(turn, kind):
    data = file(colour, kind, exif=exif(turn))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    read = decode.read(data)
    assert read.shape == expected.shape and np.abs(read.astype(int) - expected).max() <= 1


@pytest.mark.parametrize('progressive', [False, True])
@pytest.mark.parametrize(('height', 'width'), [(8, 20), (24, 8), (24, 60), (99, 20), (0, 20), (24, 0)])
def test_a_jpeg_whose_header_tells_another_size(progressive, height, width):
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 1)).astype(np.uint8)
    assert reason(resized(file(noise, 'JPEG', progressive=progressive), height, width))


def test_jpegs_that_nothing_here_decodes():
    data = file(grey, 'JPEG')
    at = data.index(b'\xff\xc0')
    assert 'of 12 bits' in reason(data[: at + 4] + b'\x0c' + data[at + 5 :])
    for process in b'\xc5\xc9\xca\xcb':
        assert 'rare coding' in reason(data[: at + 1] + bytes([process]) + data[at + 2 :])


def test_a_jpeg_of_very_many_scans():
    data = file(grey, 'JPEG', progressive=True)
    *_, (_, start, end), (_, stop, _) = headers.segments(data)
    assert 'at most 100' in reason(data[:stop] + data[start:stop] * 200 + data[stop:])


@pytest.mark.filterwarnings('ignore:Invalid value')  # of the writer
def test_a_damaged_film_has_a_reason_that_quotes_nothing():
    damaged = {
        'cut short': dicom(grey[..., 0], NumberOfFrames=3),
        '0 pixels': dicom(grey[..., 0], Rows=0),
        'lacks PhotometricInterpretation': dicom(grey[..., 0]).replace(b'(\0\x04\0CS', b'(\0\x03\0CS'),
        'unknown colour space': dicom(grey[..., 0], PhotometricInterpretation='DOE^JANE'),
        'makes no numbers': dicom(grey[..., 0], RescaleSlope='NaN', RescaleIntercept=0),
        'an unknown coding': dicom(grey[..., 0]).replace(b'1.2.840.10008.1.2.1\0', b'DOE.840.10008.1.2.1\0'),
        'damaged DICOM': dicom(grey[..., 0], RescaleSlope=1, RescaleIntercept=1).replace(
            b'DS\4\x001.0 ', b'DS\4\0DOE '
        ),
    }
    for words, data in damaged.items():
        assert words in reason(data), words
        assert not {'DOE', 'Doe', '4711'} & set(re.split(r'\W+', reason(data)))
        assert 'DOE' not in str(films.attributes(data)) and films.frames(io.BytesIO(data)) == 1


def test_frames_that_a_film_cannot_hold_are_not_believed():
    """Each would be a record."""
    assert films.frames(io.BytesIO(dicom(grey[..., 0], NumberOfFrames=2_000_000_000))) == 1
    coded = coded_dicom([file(grey, 'JPEG')], grey, BASELINE, NumberOfFrames=2_000_000_000)
    assert films.frames(io.BytesIO(coded)) == 1


@pytest.mark.parametrize('channels', [1, 3])
def test_coded_films(channels):
    pixels = smooth(24, 20, channels)
    jpeg = file(pixels, 'JPEG', quality=95, subsampling=0)
    facts = dict(PhotometricInterpretation='YBR_FULL') if channels == 3 else dict(WindowCenter=128, WindowWidth=256)
    pytest.importorskip('pylibjpeg')
    read = decode.read(coded_dicom([jpeg], pixels, BASELINE, **facts))
    assert read.shape == pixels.shape and np.abs(read.astype(int) - pixels).max() < 12
    for share in (0.5, 0.9):
        cut = jpeg[: int(len(jpeg) * share)]
        assert 'cut short' in reason(coded_dicom([cut], pixels, BASELINE, **facts))
        closed = reason(coded_dicom([cut + b'\xff\xd9'], pixels, BASELINE, **facts))
        assert 'cut short' in closed or 'damaged DICOM' in closed
    for height, width in ((20, 24), (48, 40), (65_000, 65_000), (12, 40)):
        other = coded_dicom([resized(jpeg, height, width)], pixels, BASELINE, **facts)
        assert (
            reason(other).endswith(f'{width} x {height} pixels')
            or 'pixels; at most' in reason(other)
            or (f'whose coded picture has {width} x {height} x {channels}' in reason(other))
        )


@pytest.mark.parametrize('name', ['SC_rgb_jpeg_gdcm.dcm', 'JPEGLSNearLossless_08.dcm', 'JPGExtended.dcm'])
def test_half_a_film_of_other_codings_is_no_picture(name):
    """Their decoder fills what is missing, and says nothing."""
    pytest.importorskip('pylibjpeg')
    data = of_pydicom(name)
    assert decode.read(data).size
    coded = coded_of(data)
    half = coded[: len(coded) // 2]
    assert 'cut short' in reason(data.replace(coded, half + bytes(len(coded) - len(half))))


def test_a_box_of_no_length_does_not_hang():
    pytest.importorskip('pylibjpeg')
    boxes = b'\0\0\0\x0cjP  \r\n\x87\n' + b'\0\0\0\0ftyp' + bytes(30)
    assert 'damaged JPEG 2000' in reason(coded_dicom([boxes], grey, J2K))


def test_damaged_rle_does_not_panic():
    data = packed_dicom(grey[..., 0], RLE)
    np.testing.assert_array_equal(decode.read(data), decode.read(dicom(grey[..., 0])))
    segment = struct.pack('<16I', 1, 64, *[0] * 14)
    assert 'damaged DICOM' in reason(coded_dicom([segment + b'\x81\7'], grey, RLE))
    longer = coded_dicom([segment + b'\x81\7' * 10], grey, RLE)
    with contextlib.suppress(Unreadable):  # what is too much may be left out, but not end the process
        assert decode.read(longer).shape == grey.shape


# Bombs -------------------------------------------------------------------------------------------------------------


def bombs() -> dict[str, tuple[bytes, str]]:
    """Name -> small file that asks for gigabytes, words of its reason ('' where it can be read)."""
    packer = zlib.compressobj(9, wbits=-15)
    zeros = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)  # may be repeated
    many = b'x\0\0\x78\xda' + zeros * 64
    rows = b''.join(b'\0' + row.tobytes() for row in grey[..., 0])
    jpeg = file(grey, 'JPEG')
    large = (
        b'\xff\x4f\xff\x51' + struct.pack('>HH8IH', 41, 0, 60_000, 60_000, 0, 0, 60_000, 60_000, 0, 0, 1) + b'\7\1\1'
    )
    film = functools.partial(coded_dicom, pixels=grey)
    plain = dicom(grey[..., 0])
    deflated = packed_dicom(grey[..., 0], DEFLATED)
    return {
        'PNG header': (png(100_000, 100_000, 8, 0, b''), '80 million'),
        'PNG rows': (png(8_000, 9_000, 8, 6, bytes(1000)), 'rows are missing'),
        'PNG text': (png(20, 24, 8, 0, rows, more=chunk(b'zTXt', many)), ''),
        'PNG profile': (png(20, 24, 8, 0, rows, more=chunk(b'iCCP', many)), ''),
        'JPEG header': (resized(jpeg, 65_500, 65_500), '80 million'),
        'DICOM header': (dicom(grey[..., 0], Rows=65_535, Columns=65_535), '80 million'),
        'DICOM frames': (dicom(grey[..., 0], NumberOfFrames=2**31 - 1), 'cut short'),
        'DICOM samples': (plain.replace(b'(\0\2\0US\2\0\1\0', b'(\0\2\0US\2\0\xff\xff'), '65535 samples'),
        'DICOM JPEG': (film([resized(jpeg, 65_500, 65_500)], syntax=BASELINE), '80 million'),
        'DICOM J2K': (film([large + bytes(100)], syntax=J2K), '60000 x 60000'),
        'DICOM deflated': (deflated[: deflated.index(DEFLATED.encode()) + 22] + zeros * 80, 'more than 1 GB'),
    }


def peak() -> int:
    """The largest resident size of this process, MB. (getrusage's is inherited from the process that started it.)"""
    status = pathlib.Path('/proc/self/status').read_text()
    return int(re.search(r'VmHWM:\s+(\d+)', status)[1]) >> 10


def read_bombs() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    for name, (data, words) in bombs().items():
        assert len(data) < 2 << 20, name
        told = ''
        try:
            decode.read(data)
        except Unreadable as error:
            told = str(error)
        assert words in told and bool(words) == bool(told), f'{name}: {told or "was read"}'
        if 'deflated' not in name:  # each time a second
            assert films.frames(io.BytesIO(data)) == 1 and films.attributes(data) == {}
        print(name, peak(), flush=True)


def test_bombs_are_refused_in_little_memory():
    pytest.importorskip('pylibjpeg')
    done = child('bombs')
    assert done.returncode == 0, done.stderr[-2000:]
    names = [line.rsplit(' ', 1) for line in done.stdout.splitlines()]
    assert len(names) == 11
    assert max(int(megabytes) for _, megabytes in names) < 300


# Mutated files -----------------------------------------------------------------------------------------------------


@functools.cache
def family(name: str) -> tuple[bytes, ...]:
    """Sound files of a kind, of which the mutated ones are made."""
    small = smooth(17, 16)
    if name == 'jpeg':
        return (
            file(small, 'JPEG'),
            file(smooth(17, 16, 3), 'JPEG', exif=exif(6)),
            file(smooth(17, 16, 3), 'JPEG', progressive=True, comment=b'DOE^JANE'),
            file(small, 'JPEG', restart_marker_blocks=1),
        )
    if name == 'png':
        buffer = io.BytesIO()
        Image.fromarray(smooth(17, 16, 3)).quantize(16).save(buffer, 'PNG', transparency=3)
        plain = (
            file(small, 'PNG'),
            file(smooth(17, 16, 3), 'PNG', exif=exif(3)),
            file(smooth(17, 16, top=65_535), 'PNG'),
        )
        return (*plain, interlaced_png(small), buffer.getvalue())
    facts = dict(PatientName='DOE^JANE', PatientID='DOE')
    if name == 'dicom':
        return (
            dicom(smooth(17, 16, top=65_535)[..., 0], WindowCenter=9000, WindowWidth=20_000, **facts),
            dicom(smooth(17, 16, 3), **facts),
            packed_dicom(small[..., 0], RLE, **facts),
            packed_dicom(small[..., 0], DEFLATED, **facts),
            of_pydicom('SC_rgb_small_odd_big_endian.dcm'),
            of_pydicom('rtdose_rle.dcm'),
        )
    return (
        coded_dicom([file(small, 'JPEG')], small, BASELINE, **facts),
        packed_dicom(smooth(33, 32, top=65_535)[..., 0], J2K, **facts),
        of_pydicom('JPEG2000.dcm'),
        of_pydicom('JPEGLSNearLossless_08.dcm'),
        of_pydicom('SC_rgb_jls_lossy_line.dcm'),
        of_pydicom('SC_rgb_jpeg_gdcm.dcm'),
    )


EXTREMES = [
    bytes(2),
    b'\xff\xff',
    b'\x7f\xff',
    b'\xff\x7f',
    b'\x80\0',
    bytes(4),
    b'\xff' * 4,
    b'\x7f\xff\xff\xff',
    b'nan ',
]


def mutated(name: str, seed: int) -> bytes:
    """One of the family, damaged in one to eight places; always the same for a seed."""
    dice = random.Random(f'{name} {seed}')
    whole = dice.choice(family(name))
    data = bytearray(whole)
    coded = max(whole.find(b'\xe0\x7f\x10\0'), 0)  # where the pixels of a DICOM file are
    for _ in range(dice.choice((1, 1, 2, 8))):
        low, high = dice.choice(((0, len(data)), (132, 400), (len(data) // 2, len(data)), (coded, coded + 200)))
        at = min(dice.randrange(min(low, len(data) - 1), max(high, low + 1)), len(data) - 1)
        how = dice.choice(['bit', 'byte', 'extreme', 'extreme', 'gap', 'again', 'cut'])
        length = dice.randrange(1, 60)
        if how == 'bit':
            data[at] ^= 1 << dice.randrange(8)
        elif how == 'byte':
            data[at] = dice.randrange(256)
        elif how == 'extreme':
            value = dice.choice(EXTREMES)
            data[at : at + len(value)] = value
        elif how == 'gap':
            del data[at : at + length]
        elif how == 'again':
            data[at:at] = data[at : at + length]
        elif dice.random() < 0.2:
            del data[at:]
        if len(data) < 2:
            break
    return rechecked(bytes(data)) if name == 'png' and dice.random() < 0.7 else bytes(data)


def rechecked(data: bytes) -> bytes:
    """A PNG with right checksums, so that its damage reaches the decoder."""
    parts, at = [data[:8]], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], 'big')
        if length > len(data):
            return data
        parts.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    return b''.join(parts)


def read_mutants(name: str, first: int, count: int) -> None:
    """Prints what became of them. A hang ends the process; where it was is the last line of stderr."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.enable()
    ends: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + count):
        os.pwrite(3, f'{seed:10}'.encode(), 0)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        data = mutated(name, seed)
        try:
            pixels = decode.read(data)
        except Unreadable as error:
            words = str(error)
            told = 0 < len(words) < 300 and words.isprintable() and 'DOE' not in words and ' at 0x' not in words
            assert told and 'memory' not in words, words
            ends['a reason'] += 1
        else:
            assert (
                pixels.dtype in (np.uint8, np.uint16) and pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size
            )
            ends['pixels'] += 1
            if name == 'jpeg' and (kept := decode.keepable(data)):  # what is stored reads the same
                again = decode.decode(kept, pixels.shape[2], 8)
                assert b'DOE' not in kept and (pixels.shape[2] == 3 or again.shape == pixels.shape)
                assert pixels.shape[2] == 1 or (again == pixels).all()
        if name not in ('jpeg', 'png'):
            assert films.frames(io.BytesIO(data)) <= max(len(data), 1)
            films.attributes(data)
            films.shape(data)
    faulthandler.cancel_dump_traceback_later()
    peak = re.search(r'VmHWM:\s+(\d+) kB', pathlib.Path('/proc/self/status').read_text())  # ru_maxrss has the parent's
    print(json.dumps(dict(ends, megabytes=int(peak[1]) >> 10)))


def child(*arguments: object, at: int | None = None) -> subprocess.CompletedProcess[str]:
    """This file as a script, with the warnings of libraries on; `at` becomes its file descriptor 3."""
    root = pathlib.Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), str(root / 'tests'), *filter(None, [os.environ.get('PYTHONPATH')])])
    return subprocess.run(
        [sys.executable, '-W', 'always::UserWarning', '-W', 'always::RuntimeWarning', __file__, *map(str, arguments)],
        env=os.environ | {'PYTHONPATH': paths, 'OPENBLAS_NUM_THREADS': '1'},
        capture_output=True, text=True, timeout=600,
        preexec_fn=None if at is None else functools.partial(os.dup2, at, 3), close_fds=at is None,
    )  # fmt: skip


@pytest.mark.parametrize('name', ['jpeg', 'png', 'dicom', 'coded'])
def test_mutated_files_end_as_pixels_or_with_a_reason(name, tmp_path):
    if name == 'coded':
        pytest.importorskip('pylibjpeg')
    count = MUTANTS // 4
    with open(tmp_path / 'seed', 'w+') as seed:
        done = child(name, 0, count, at=seed.fileno())
        where = f'mutated({name!r}, {seed.read().strip()})'
    assert done.returncode == 0, f'{where} ended the process with {done.returncode}:\n{done.stderr[-3000:]}'
    assert not done.stderr, f'words on the terminal:\n{done.stderr[-3000:]}'
    ends = json.loads(done.stdout)
    assert ends['pixels'] + ends['a reason'] == count
    assert min(ends['pixels'], ends['a reason']) > count // 20  # else the damage is too little or too much to tell
    assert ends['megabytes'] < 600


# npz ---------------------------------------------------------------------------------------------------------------


def refused(path: pathlib.Path) -> str:
    with pytest.raises(UserError) as error:
        npz.source(str(path))
    return str(error.value)


def with_header(header: str, version: bytes = b'\1\0', body: bytes = bytes(16)) -> bytes:
    text = header.encode().ljust(118)[:117] + b'\n'
    return b'\x93NUMPY' + version + struct.pack('<H', len(text)) + text + body


@pytest.mark.parametrize(
    'member',
    [
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000)}"),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 4, 4)}"),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (-1, -4, 4)}"),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (2, 4, 4)}"),
        with_header("{'descr': '|O', 'fortran_order': False, 'shape': (2,)}"),
        with_header("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (2,)}"),
        with_header("{'descr': '|u1', 'shape': (2,)}"),
        with_header('(' * 100),
        with_header("__import__('os').abort()"),
        with_header("{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 4)}", version=b'\7\0'),
        b'\x93NUMPY',
        b'no array',
        b'',
    ],
)
def test_npz_headers_are_not_believed(member, tmp_path):
    with zipfile.ZipFile(tmp_path / 'set.npz', 'w') as archive:
        archive.writestr('train_images.npy', member)
    assert 'not read' in refused(tmp_path / 'set.npz')


def test_a_sound_npz_header_is_read(tmp_path):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1, 4, 4)}"
    with zipfile.ZipFile(tmp_path / 'set.npz', 'w') as archive:
        archive.writestr('train_images.npy', with_header(header))
        archive.writestr('notes.txt', 'not read')
    assert npz.source(str(tmp_path / 'set.npz')).load(0).image.shape == (4, 4)


def test_npz_archives_damaged_anywhere(tmp_path):
    stack = np.random.default_rng(0).integers(0, 256, (3, 8, 8)).astype(np.uint8)
    np.savez_compressed(tmp_path / 'sound.npz', train_images=stack, train_labels=np.array([0, 1, 1]))
    sound = (tmp_path / 'sound.npz').read_bytes()
    dice, path = random.Random(0), tmp_path / 'set.npz'
    for _ in range(600):
        data = bytearray(sound)
        for _ in range(dice.choice((1, 3))):
            data[dice.randrange(len(data))] = dice.randrange(256)
        path.write_bytes(data[: dice.randrange(len(data))] if dice.random() < 0.3 else data)
        with contextlib.suppress(UserError):
            source = npz.source(str(path))
            if source.entries:  # a changed name may leave the labels out, nothing may change a pixel
                np.testing.assert_array_equal([source.load(k).image for k in range(3)], stack)


def test_an_npz_bomb(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / 'set.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1024, 128, 128)}"
        archive.writestr('train_images.npy', with_header(header, body=bytes(1 << 24)))
    assert (tmp_path / 'set.npz').stat().st_size < 1 << 17
    assert len(npz.source(str(tmp_path / 'set.npz')).entries) == 1024
    monkeypatch.setattr(npz, 'MOST_OF_MEMORY', 1e-6)
    assert 'there is room for 0.0 GB in memory' in refused(tmp_path / 'set.npz')
    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(npz, 'IN_MEMORY', 1000)  # larger ones are mapped
    assert len(npz.source(str(tmp_path / 'set.npz')).entries) == 1024
    monkeypatch.setattr(npz.shutil, 'disk_usage', lambda folder: room._replace(free=0))
    assert 'TMPDIR' in refused(tmp_path / 'set.npz')


@pytest.mark.parametrize(
    ('arrays', 'words'),
    [
        (dict(train_images=np.zeros((2, 0, 4), np.uint8)), 'a picture of 4 x 0 pixels'),
        (dict(train_images=np.zeros((0, 9_000, 9_000), np.uint8)), '80 million'),
        (dict(train_images=np.zeros((2, 4, 4), np.uint8), train_labels=np.array(1)), 'one number'),
        (dict(train_images=np.array(1, np.uint8)), 'shape'),
    ],
)
def test_npz_arrays_of_odd_shapes(arrays, words, tmp_path):
    np.savez(tmp_path / 'set.npz', **arrays)
    assert words in refused(tmp_path / 'set.npz')


def test_an_empty_split_is_no_mistake(tmp_path):
    full, none = np.zeros((2, 4, 4), np.uint8), np.zeros((0, 4, 4), np.uint8)
    np.savez(
        tmp_path / 'set.npz',
        train_images=full,
        train_labels=np.array([[0], [1]]),
        val_images=none,
        val_labels=np.zeros((0, 1), int),
    )
    assert len(npz.source(str(tmp_path / 'set.npz')).entries) == 2


if __name__ == '__main__':
    if sys.argv[1] == 'bombs':
        read_bombs()
    else:
        read_mutants(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
