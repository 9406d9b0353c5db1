"""Damaged, mislabelled and unusual image files: each is read, or refused with a reason. Mutations: test_mutated.py."""

from __future__ import annotations

import contextlib
import io
import re
import struct

import numpy as np
import pytest
from damaged_files import (
    BASELINE,
    J2K,
    RLE,
    coded_dicom,
    coded_of,
    colour,
    deep,
    exif,
    grey,
    interlaced_png,
    of_pydicom,
    packed_dicom,
    png,
    resized,
)  # fmt: skip
from image_files import dicom, file, smooth
from PIL import Image, ImageOps

from medjax.data.images import decode, dicom as films, headers
from medjax.data.types import Unreadable


def reason(data: bytes, frame: int = 0) -> str:
    with pytest.raises(Unreadable) as error:
        decode.read(data, frame)
    return str(error.value)


@pytest.mark.parametrize('progressive', [False, True])
@pytest.mark.parametrize('share', [0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize('closed', [False, True])
def test_half_a_jpeg_is_refused(progressive, share, closed):
    """Also with an end marker, which repair tools add."""
    whole = file(
        np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8), 'JPEG', progressive=progressive
    )
    cut = whole[: int(len(whole) * share)] + b'\xff\xd9' * closed
    assert 'cut short' in reason(cut) or (closed and 'damaged JPEG' in reason(cut))


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    whole = file(colour, 'JPEG', progressive=True)
    scans = [start for marker, start, _ in headers.segments(whole) if marker == 0xDA]
    assert len(scans) == 10 and decode.read(whole).shape == colour.shape
    for start in scans[1:]:
        assert 'some of its scans are missing' in reason(whole[:start] + b'\xff\xd9')


@pytest.mark.parametrize('share', [0.1, 0.5, 0.9, 0.99])
def test_half_a_png_is_refused(share):
    whole = file(deep, 'PNG')
    assert 'cut short' in reason(whole[: int(len(whole) * share)])
    rows = b''.join(b'\0' + row.tobytes() for row in grey[..., 0])
    np.testing.assert_array_equal(decode.read(png(20, 24, 8, 0, rows)), grey)
    assert 'rows are missing' in reason(png(20, 24, 8, 0, rows[: int(len(rows) * share)]))  # with correct checksums


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
def test_the_reason_names_the_kind_of_other_files(start, words):
    assert words in reason(start)


@pytest.mark.parametrize('kind', ['GIF', 'TIFF', 'BMP', 'WEBP', 'JPEG2000'])
def test_the_reason_names_the_kind_of_other_images(kind):
    assert reason(file(colour, kind)).endswith('; PNG, JPEG and DICOM can be read')


def test_animations_are_refused():
    more = [Image.fromarray(grey[::-1, :, 0].copy())]
    assert 'an animated PNG of 2 pictures' in reason(file(grey, 'PNG', save_all=True, append_images=more))
    assert 'a GIF' in reason(file(grey, 'GIF', save_all=True, append_images=more))
    assert 'a TIFF' in reason(file(grey, 'TIFF', save_all=True, append_images=more))


def test_a_second_picture_behind_a_jpeg_is_not_kept():
    """Cameras write a preview there, with its own EXIF."""
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
    at = data.index(b'Adobe') + 11  # the colour transform in APP14: none, or YCCK
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
    assert '16 bits in colour, which would lose 8 of its 16 bits' in reason(png(2, 1, 16, 2, bytes(13)))


@pytest.mark.parametrize('turn', range(1, 9))
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_exif_turns_as_pillow_does(turn, kind):
    data = file(colour, kind, exif=exif(turn))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    read = decode.read(data)
    assert read.shape == expected.shape and np.abs(read.astype(int) - expected).max() <= 1


@pytest.mark.parametrize('progressive', [False, True])
@pytest.mark.parametrize(('height', 'width'), [(8, 20), (24, 8), (24, 60), (99, 20), (0, 20), (24, 0)])
def test_a_jpeg_with_another_size_in_its_header(progressive, height, width):
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 1)).astype(np.uint8)
    assert reason(resized(file(noise, 'JPEG', progressive=progressive), height, width))


def test_jpegs_without_a_decoder():
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
def test_the_reason_of_a_damaged_dicom_file_quotes_no_field():
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


def test_more_frames_than_the_file_can_hold_are_not_believed():
    """Each frame would be a record."""
    assert films.frames(io.BytesIO(dicom(grey[..., 0], NumberOfFrames=2_000_000_000))) == 1
    coded = coded_dicom([file(grey, 'JPEG')], grey, BASELINE, NumberOfFrames=2_000_000_000)
    assert films.frames(io.BytesIO(coded)) == 1


@pytest.mark.parametrize('channels', [1, 3])
def test_compressed_dicom(channels):
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
def test_half_a_dicom_frame_of_other_codings_is_refused(name):
    """Their decoder fills missing data without an error."""
    pytest.importorskip('pylibjpeg')
    data = of_pydicom(name)
    assert decode.read(data).size
    coded = coded_of(data)
    half = coded[: len(coded) // 2]
    assert 'cut short' in reason(data.replace(coded, half + bytes(len(coded) - len(half))))


def test_a_box_without_length_does_not_hang():
    pytest.importorskip('pylibjpeg')
    boxes = b'\0\0\0\x0cjP  \r\n\x87\n' + b'\0\0\0\0ftyp' + bytes(30)
    assert 'damaged JPEG 2000' in reason(coded_dicom([boxes], grey, J2K))


@pytest.mark.parametrize('start', [b'\0\0', b'\x89PNG\r\n', b'\xff\xff\xff\xff'])
def test_a_coded_picture_of_no_known_coding_is_not_called_jpeg_2000(start):
    pytest.importorskip('pylibjpeg')
    assert 'begins neither as a JPEG nor as a JPEG 2000' in reason(coded_dicom([start + bytes(60)], grey, J2K))


def test_damaged_rle_does_not_panic():
    data = packed_dicom(grey[..., 0], RLE)
    np.testing.assert_array_equal(decode.read(data), decode.read(dicom(grey[..., 0])))
    segment = struct.pack('<16I', 1, 64, *[0] * 14)
    assert 'damaged DICOM' in reason(coded_dicom([segment + b'\x81\7'], grey, RLE))
    longer = coded_dicom([segment + b'\x81\7' * 10], grey, RLE)
    with contextlib.suppress(Unreadable):  # surplus data may be dropped, but must not end the process
        assert decode.read(longer).shape == grey.shape
