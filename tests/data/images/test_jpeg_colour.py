"""Colours of JPEG frames in DICOM files: the content decides where header and code stream contradict each other."""

import io

import numpy as np
import pytest
from damaged_files import coded_dicom, of_pydicom
from image_files import dicom, smooth
from PIL import Image

from medjax.data.images import decode, headers, jpeg_colour
from medjax.data.types import Unreadable

BASELINE, EXTENDED = '1.2.840.10008.1.2.4.50', '1.2.840.10008.1.2.4.51'
rng = np.random.default_rng(0)


def ultrasound() -> np.ndarray:
    """Grey speckle on black, with a patch of colour as of a Doppler box."""
    picture = np.zeros((96, 112, 3), np.uint8)
    picture[20:90, 10:100] = rng.integers(10, 200, (70, 90, 1))
    picture[40:60, 30:50], picture[40:60, 60:80] = (200, 40, 30), (20, 60, 210)
    return np.asarray(Image.fromarray(picture).resize((448, 384), Image.Resampling.BICUBIC))


def endoscopy() -> np.ndarray:
    """Smooth pink and brown without black, white or grey: YCbCr and RGB cannot be told apart."""
    waves = smooth(96, 112, 3).astype(float) / 255
    return (np.array([150, 95, 90]) + waves * np.array([50, 40, 35])).round().astype(np.uint8)


def jpeg(picture: np.ndarray, stored: str, mark: str, subsampling: int = 0) -> bytes:
    """A JPEG whose components are RGB or YCbCr (`stored`), and whose markers are `mark`: '', 'JFIF', 'Adobe 0'."""
    buffer = io.BytesIO()
    image = Image.fromarray(picture)
    if stored == 'RGB':
        image.save(buffer, 'JPEG', quality=95, keep_rgb=True)  # writes Adobe 0 and the names R, G, B
    else:
        image.save(buffer, 'JPEG', quality=95, subsampling=subsampling)
    data, kept, at = buffer.getvalue(), [], 2
    for marker, start, end in headers.segments(data):
        if marker in (0xE0, 0xEE):
            kept.append(data[at:start])
            at = end
    bare = b''.join(kept) + data[at:]
    frame = bare.index(b'\xff\xc0')
    for name, number in zip((b'R', b'G', b'B'), (1, 2, 3), strict=True):  # names as all devices write them
        place = frame + 10 + 3 * (number - 1)
        assert bare[place : place + 1] in (name, bytes([number]))
        bare = bare[:place] + bytes([number]) + bare[place + 1 :]
    scan = bare.index(b'\xff\xda')
    for number in (1, 2, 3):
        place = scan + 5 + 2 * (number - 1)
        bare = bare[:place] + bytes([number]) + bare[place + 1 :]
    marks = {
        'JFIF': b'\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0',
        'Adobe 0': b'\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0',
        'Adobe 1': b'\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1',
        '': b'',
    }
    return b'\xff\xd8' + marks[mark] + bare


def read(picture, coded, header, syntax=BASELINE):
    return decode.picture(coded_dicom([coded], picture, syntax, PhotometricInterpretation=header))


@pytest.mark.parametrize('header', ['RGB', 'YBR_FULL', 'YBR_FULL_422'])
@pytest.mark.parametrize('mark', ['', 'JFIF', 'Adobe 0', 'Adobe 1'])
@pytest.mark.parametrize('stored', ['RGB', 'YCbCr', 'YCbCr 2x1', 'YCbCr 2x2'])
def test_the_content_decides(header, mark, stored):
    if (header, mark) == ('RGB', 'Adobe 0') and stored != 'RGB':
        return  # header and code stream agree, and teal is a colour too
    picture = ultrasound()
    coded = jpeg(picture, stored.split()[0], mark, dict(zip(('2x1', '2x2'), (1, 2))).get(stored[-3:], 0))
    found = read(picture, coded, header)
    assert found.remarks == ()
    difference = np.abs(found.pixels.astype(int) - picture)
    assert np.percentile(difference, 95) <= 12 and difference.mean() < 5


@pytest.mark.parametrize(
    ('header', 'mark', 'taken', 'remarked'),
    [
        ('RGB', 'JFIF', 'YCbCr', True),
        ('RGB', 'Adobe 1', 'YCbCr', True),
        ('RGB', '', 'RGB', True),  # YCbCr by the custom of JPEG
        ('YBR_FULL', 'Adobe 0', 'RGB', True),
        ('YBR_FULL', '', 'YCbCr', False),
        ('YBR_FULL_422', 'JFIF', 'YCbCr', False),
        ('RGB', 'Adobe 0', 'RGB', False),
    ],
)
def test_what_stays_open_is_said(header, mark, taken, remarked):
    picture = endoscopy()
    found = read(picture, jpeg(picture, taken, mark), header)
    assert np.abs(found.pixels.astype(int) - picture).max() < 25
    assert found.remarks == ((jpeg_colour.OPEN.format(taken),) if remarked else ())


def test_names_of_components():
    buffer = io.BytesIO()
    Image.fromarray(endoscopy()).save(buffer, 'JPEG', quality=95, keep_rgb=True)
    for header in ('RGB', 'YBR_FULL'):
        found = read(endoscopy(), buffer.getvalue(), header)
        assert np.abs(found.pixels.astype(int) - endoscopy()).max() < 25
        assert bool(found.remarks) == (header != 'RGB')


def test_a_teal_screen_in_rgb():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[...] = 0, 128, 128
    picture[20:30] = 250
    found = read(picture, jpeg(picture, 'RGB', 'Adobe 0'), 'RGB')
    assert np.abs(found.pixels.astype(int) - picture).max() < 10


def test_real_files_in_rgb_with_the_signs_of_ycbcr():
    """The header says YBR_FULL, and chroma is coarse; the components are RGB. SC_rgb.dcm is the same picture."""
    pytest.importorskip('pylibjpeg')
    plain = decode.read(of_pydicom('SC_rgb.dcm')).astype(int)
    for name in ('SC_rgb_jpeg_lossy_gdcm.dcm', 'SC_rgb_jpeg_dcmtk.dcm', 'SC_rgb_dcmtk_+eb+cr.dcm'):
        found = decode.picture(of_pydicom(name))
        assert found.remarks == () and np.median(np.abs(found.pixels.astype(int) - plain)) <= 3, name


@pytest.mark.parametrize('name', ['SC_rgb_jpeg_gdcm.dcm', 'SC_rgb_jls_lossy_line.dcm'])
@pytest.mark.parametrize('header', ['RGB', 'YBR_FULL'])
def test_other_codings_of_jpeg(name, header):
    """Lossless JPEG and JPEG-LS, whose components are RGB; a header that says YBR_FULL is wrong."""
    pytest.importorskip('pylibjpeg')
    import pydicom

    file = pydicom.dcmread(io.BytesIO(of_pydicom(name)))
    file.PhotometricInterpretation = header
    buffer = io.BytesIO()
    file.save_as(buffer)
    found = decode.picture(buffer.getvalue())
    plain = decode.read(of_pydicom('SC_rgb.dcm')).astype(int)
    assert found.remarks == () and np.median(np.abs(found.pixels.astype(int) - plain)) <= 3


# Scan headers ------------------------------------------------------------------------------------------------------


def scan_header(data: bytes, *last: int) -> bytes:
    at = [end for marker, _, end in headers.segments(data) if marker == 0xDA]
    out = bytearray(data)
    for end in at:
        out[end - 3 : end] = bytes(last)
    return bytes(out)


@pytest.mark.parametrize('last', [(0, 0, 0), (0, 63, 0), (0, 0, 63), (1, 5, 0)])
@pytest.mark.parametrize('channels', [1, 3])
def test_scan_headers_of_sequential_jpegs(last, channels):
    buffer = io.BytesIO()
    pixels = smooth(40, 48, channels)
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(
        buffer, 'JPEG', quality=95, restart_marker_blocks=2
    )
    whole, other = buffer.getvalue(), scan_header(buffer.getvalue(), *last)
    np.testing.assert_array_equal(decode.read(other), decode.read(whole))
    assert decode.keepable(other) == decode.keepable(whole)
    facts = dict(PhotometricInterpretation='YBR_FULL' if channels == 3 else 'MONOCHROME2')
    for syntax in (BASELINE, EXTENDED):
        got, want = (decode.read(coded_dicom([data], pixels, syntax, **facts)) for data in (other, whole))
        np.testing.assert_array_equal(got, want)


def test_scan_headers_of_progressive_jpegs_are_not_touched():
    buffer = io.BytesIO()
    Image.fromarray(smooth(40, 48)[..., 0]).save(buffer, 'JPEG', quality=95, progressive=True)
    assert not headers.jpeg(buffer.getvalue()).is_odd
    with pytest.raises(Unreadable):
        decode.read(scan_header(buffer.getvalue(), 0, 0, 0))


def test_the_real_file_of_12_bits():
    pytest.importorskip('pylibjpeg')
    assert len(np.unique(decode.read(of_pydicom('JPEG-lossy.dcm')))) > 50
    assert decode.read(dicom(np.arange(12, dtype=np.uint16).reshape(3, 4))).dtype == np.uint16


# JPEG 2000 ---------------------------------------------------------------------------------------------------------


def scan_like(seed: int) -> np.ndarray:
    """RGB: black with grey speckle and two coloured patches, as in a Doppler picture."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[8:40, 10:50] = rng.integers(20, 230, (32, 40, 1))
    pixels[12:20, 14:26], pixels[24:34, 30:44] = (220, 40, 30), (20, 60, 210)
    return pixels


def in_jpeg2000(pixels: np.ndarray, transformed: bool, boxes: bool = False) -> bytes:
    openjpeg = pytest.importorskip('openjpeg')
    return openjpeg.encode(pixels, photometric_interpretation=1, use_mct=transformed, codec_format=int(boxes))


@pytest.mark.parametrize('header', ['RGB', 'YBR_FULL', 'YBR_RCT', 'YBR_ICT'])
@pytest.mark.parametrize('coding', ['transformed', 'rgb', 'ycbcr'])
@pytest.mark.parametrize('boxes', [False, True])
def test_colours_of_jpeg_2000_are_those_of_its_code(header, coding, boxes):
    from pydicom.pixels import convert_color_space

    pixels = scan_like(len(header))
    stored = convert_color_space(pixels, 'RGB', 'YBR_FULL') if coding == 'ycbcr' else pixels
    coded = in_jpeg2000(stored, coding == 'transformed', boxes)
    assert headers.jpeg2000(coded).is_transformed == (coding == 'transformed')
    found = decode.picture(coded_dicom([coded], pixels, '1.2.840.10008.1.2.4.90', PhotometricInterpretation=header))
    assert found.remarks == () and np.abs(found.pixels.astype(int) - pixels).max() <= (2 if coding == 'ycbcr' else 0)


def test_jpeg_2000_whose_picture_does_not_decide():
    pixels = np.random.default_rng(3).integers(118, 139, (40, 40, 3)).astype(np.uint8)  # neither space excludes it
    pixels[..., 1] += 20
    coded = in_jpeg2000(pixels, False)
    for header, remarks in (('RGB', 0), ('YBR_FULL', 0), ('YBR_RCT', 1)):
        found = decode.picture(coded_dicom([coded], pixels, '1.2.840.10008.1.2.4.90', PhotometricInterpretation=header))
        assert len(found.remarks) == remarks and (found.pixels == pixels).all() == (header != 'YBR_FULL')
