"""Reading pixels from JPEG, PNG and DICOM files, and storing them."""

import io

import numpy as np
import pytest
from damaged_files import png
from image_files import dicom, file, smooth
from PIL import Image

from medjax.data.builder import chunks
from medjax.data.images import decode, dicom as dicom_headers, dicom_pixels, headers
from medjax.data.types import Unreadable

rng = np.random.default_rng(0)


@pytest.mark.parametrize('pixels', [smooth(9, 14), smooth(9, 14, 3), smooth(9, 14, top=65_535)], ids=['8', 'rgb', '16'])
def test_png_is_exact(pixels):
    np.testing.assert_array_equal(decode.read(file(pixels, 'PNG')), pixels)
    bits, channels = pixels.dtype.itemsize * 8, pixels.shape[2]
    stored = decode.decode(decode.png(pixels), channels, bits)
    np.testing.assert_array_equal(stored, pixels)
    assert stored.dtype == pixels.dtype


@pytest.mark.parametrize('shape', [(1, 1), (3, 7), (33, 20)])
@pytest.mark.parametrize('interlaced', [False, True])
@pytest.mark.parametrize('level', [0, 9])
def test_16_bit_grey_with_alpha_keeps_its_bits(shape, interlaced, level):
    """Every filter of PNG occurs: Pillow writes the four bytes of a pixel as RGBA, and the header is changed."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    grey = (257 * x + 1021 * y + rng.integers(0, 3, shape)).astype(np.uint16)
    alpha = rng.integers(0, 65_536, shape).astype(np.uint16)
    pixels = np.stack([grey >> 8, grey & 255, alpha >> 8, alpha & 255], -1).astype(np.uint8)
    if interlaced:
        passes = [pixels[y::down, x::right] for x, y, right, down in headers.ADAM7]
        rows = b''.join(b'\0' + row.tobytes() for each in passes if each.size for row in each)
        data = png(shape[1], shape[0], 16, 4, rows, interlaced=1)
    else:
        data = headers.png_as(file(pixels, 'PNG', compress_level=level), 16, 4)
    np.testing.assert_array_equal(decode.read(data)[..., 0], grey)


@pytest.mark.parametrize('channels', [1, 3])
def test_jpeg_agrees_with_pillow(channels):
    data = file(smooth(40, 31, channels), 'JPEG', quality=90)
    expected = np.asarray(Image.open(io.BytesIO(data))).reshape(40, 31, channels)
    assert np.abs(decode.read(data).astype(int) - expected).max() <= 1


def test_three_equal_channels_are_grey():
    grey = smooth(8, 8)
    np.testing.assert_array_equal(decode.read(file(np.repeat(grey, 3, 2), 'PNG')), grey)
    as_jpeg = file(np.repeat(grey, 3, 2), 'JPEG')
    one = decode.read(as_jpeg)
    assert one.shape == (8, 8, 1)
    np.testing.assert_array_equal(decode.decode(as_jpeg, 1, 8), one)  # luma, not a second rounding


@pytest.mark.parametrize('mode', ['1', 'LA', 'P', 'RGBA'])
def test_other_png_modes(mode):
    image = Image.fromarray(smooth(8, 8)[..., 0]).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, 'PNG')
    np.testing.assert_array_equal(decode.read(buffer.getvalue())[..., 0], np.asarray(image.convert('L')))


def test_grey_and_8_bits_are_converted_if_the_data_set_needs_it():
    data = file(smooth(8, 8), 'PNG')
    spread = decode.decode(data, 3, 16)
    assert spread.shape == (8, 8, 3) and spread.dtype == np.uint16
    np.testing.assert_allclose(spread[..., 1] / 65_535, smooth(8, 8)[..., 0] / 255)


def test_exif_rotation_is_applied_and_not_kept():
    exif = Image.Exif()
    exif[0x0112] = 6  # the image must be turned by 90 degrees clockwise
    data = file(smooth(8, 20), 'JPEG', exif=exif, quality=95)
    assert decode.read(data).shape == (20, 8, 1)
    assert decode.keepable(data) is None


def test_kept_jpegs_lose_their_metadata_and_nothing_else():
    exif = Image.Exif()
    exif[0x010E] = 'PATIENT DOE'
    plain = file(smooth(30, 20), 'JPEG', quality=90)
    named = file(smooth(30, 20), 'JPEG', quality=90, exif=exif, comment=b'PATIENT DOE') + b'PATIENT DOE'
    assert named.count(b'PATIENT DOE') == 3
    kept = decode.keepable(named)
    assert b'PATIENT' not in kept
    np.testing.assert_array_equal(decode.read(kept), decode.read(plain))
    assert decode.keepable(plain) == plain


def test_cmyk_jpeg_is_read_but_not_kept():
    buffer = io.BytesIO()
    Image.fromarray(smooth(8, 8, 3)).convert('CMYK').save(buffer, 'JPEG', quality=95)
    assert decode.read(buffer.getvalue()).shape == (8, 8, 3)
    assert decode.keepable(buffer.getvalue()) is None


@pytest.mark.parametrize(
    ('data', 'reason'),
    [
        (b'', 'empty'),
        (b'GIF89a', 'a GIF; PNG, JPEG and DICOM'),
        (b'\xff\xd8\xff\xe0 no image', 'damaged JPEG: it is cut short'),
        (file(smooth(60, 60), 'PNG')[:200], 'damaged PNG: it is cut short'),
        (file(smooth(60, 60), 'JPEG')[:400], 'damaged JPEG: it is cut short'),
        (b'\0' * 128 + b'DICM' + b'\0\1', 'DICOM'),
    ],
)
def test_damaged_files_have_a_reason(data, reason):
    with pytest.raises(Unreadable, match=reason):
        decode.read(data)


@pytest.mark.parametrize('top', [255, 65_535])
def test_bounded_keeps_aspect_and_depth_and_antialiases(top):
    pixels = smooth(90, 120, top=top)
    small = decode.bounded(pixels, 40)
    assert small.shape == (30, 40, 1) and small.dtype == pixels.dtype
    assert decode.bounded(pixels, 120) is pixels and decode.bounded(pixels, None) is pixels
    checker = np.indices((120, 120)).sum(0)[..., None] % 2 * top
    flat = decode.bounded(checker.astype(pixels.dtype), 40).astype(float)
    assert np.abs(flat - top / 2).max() < 0.03 * top
    assert decode.bounded(smooth(4, 400), 10).shape == (1, 10, 1)


def test_16_bits_survive_the_resize():
    ramp = np.repeat(np.arange(0, 2000, 2, dtype=np.uint16)[None, :, None], 10, 0)
    small = decode.bounded(ramp, 500)
    assert len(np.unique(small)) > 450  # 8 bits would leave 8 values
    np.testing.assert_allclose(small[2, 5:-5, 0], np.arange(500)[5:-5] * 4 + 1, atol=1)


def test_masks_keep_their_values():
    mask = np.zeros((90, 120), np.uint8)
    mask[30:60, 40:80] = 255
    small = decode.bounded_mask(mask, 40)
    expected = np.zeros((30, 40), np.uint8)
    expected[10:20, 40 // 3 + 1 : 80 // 3 + 1] = 255
    assert set(np.unique(small)) == {0, 255} and (small != expected).mean() < 0.03
    with pytest.raises(Unreadable, match='grey'):
        decode.mask(file(smooth(8, 8, 3), 'PNG'))


def test_pixel_hash_depends_on_shape_and_depth():
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    hashes = {
        int(chunks.pixel_hash(p)) for p in (pixels, pixels.reshape(4, 3, 1), pixels.astype(np.uint16), pixels + 1)
    }
    assert len(hashes) == 4
    assert chunks.pixel_hash(pixels) == chunks.pixel_hash(pixels.copy())


# DICOM -------------------------------------------------------------------------------------------------------------


stored12 = rng.integers(0, 4096, (12, 10)).astype(np.uint16)


@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID'])
def test_dicom_window_agrees_with_pydicom(function):
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    data = dicom(
        stored12, BitsStored=12, RescaleSlope=2, RescaleIntercept=-1000,
        WindowCenter=[2500, 1], WindowWidth=[3000, 2], VOILUTFunction=function,
    )  # fmt: skip
    file_ = pydicom.dcmread(io.BytesIO(data))
    shown = apply_voi_lut(apply_modality_lut(file_.pixel_array, file_), file_)
    low, high = -1000, 4095 * 2 - 1000  # pydicom's output range: the range of the rescaled bits
    expected = (shown - low) / (high - low)
    pixels = decode.read(data)
    assert pixels.dtype == np.uint16
    np.testing.assert_allclose(pixels[..., 0] / 65_535, expected, atol=2e-5)


def test_dicom_monochrome1_is_the_inverse():
    facts = dict(BitsStored=12, WindowCenter=2000, WindowWidth=2500)
    upright = decode.read(dicom(stored12, **facts)).astype(int)
    inverse = decode.read(dicom(stored12, PhotometricInterpretation='MONOCHROME1', **facts)).astype(int)
    assert np.abs(upright + inverse - 65_535).max() <= 1


def test_dicom_without_window_uses_its_range_and_leaves_padding_out():
    stored = stored12.astype(np.int16)
    stored[0] = -2000
    pixels = decode.read(dicom(stored, PixelPaddingValue=-2000))[..., 0]
    picture = stored[1:].astype(float)
    expected = (picture - picture.min()) / (picture.max() - picture.min())
    np.testing.assert_allclose(pixels[1:] / 65_535, expected, atol=1e-5)
    assert (pixels[0] == 0).all()


def test_dicom_voi_lut_sequence():
    import pydicom

    lut = pydicom.Dataset()
    lut.LUTDescriptor = [4096, 0, 10]
    table = ((np.arange(4096) / 4095) ** 2 * 1023).round().astype(np.uint16)
    lut.add_new('LUTData', 'OW', table.tobytes())
    pixels = decode.read(dicom(stored12, BitsStored=12, VOILUTSequence=[lut]))
    np.testing.assert_allclose(pixels[..., 0] / 65_535, table[stored12] / 1023, atol=2e-5)


def test_dicom_of_8_bits_and_in_colour():
    assert decode.read(dicom(smooth(9, 7)[..., 0], WindowCenter=128, WindowWidth=256)).dtype == np.uint8
    np.testing.assert_array_equal(decode.read(dicom(smooth(9, 7, 3))), smooth(9, 7, 3))


def test_dicom_that_cannot_be_read_does_not_name_the_patient():
    whole = dicom(stored12)
    for data in (
        whole[:-50],
        whole[:300],
        dicom(stored12, NumberOfFrames=2),
        dicom(stored12, PhotometricInterpretation='X'),
    ):
        with pytest.raises(Unreadable) as error:
            decode.read(data)
        assert 'Doe' not in str(error.value) and '4711' not in str(error.value)


# Real DICOM files, of pydicom-data ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('coded', 'plain'),
    [
        ('RG1_J2KR.dcm', 'RG1_UNCR.dcm'),  # a radiograph, MONOCHROME1 of 15 bits, lossless JPEG 2000
        ('RG3_J2KR.dcm', 'RG3_UNCR.dcm'),  # 10 bits
        ('MR2_J2KR.dcm', 'MR2_UNCR.dcm'),
        ('US1_J2KR.dcm', 'US1_UNCR.dcm'),  # colour
        ('emri_small_RLE.dcm', 'emri_small.dcm'),
        ('emri_small_jpeg_ls_lossless.dcm', 'emri_small.dcm'),
        ('emri_small_big_endian.dcm', 'emri_small.dcm'),
        ('OBXXXX1A_rle.dcm', 'OBXXXX1A.dcm'),  # a palette
    ],
)
def test_real_dicom_lossless_equals_uncompressed(real_dicom, coded, plain):
    pytest.importorskip('pylibjpeg')
    np.testing.assert_array_equal(decode.read(real_dicom(coded)), decode.read(real_dicom(plain)))


def test_real_dicom_lossless_jpeg(real_dicom):
    """The coding of most hospital radiographs. The second file holds the image of the first file after lossy coding."""
    pytest.importorskip('pylibjpeg')
    exact, lossy = (decode.read(real_dicom(name)).ravel().astype(float) for name in ('JPEG-LL.dcm', 'JPEG2000_UNC.dcm'))
    assert np.corrcoef(exact, lossy)[0, 1] > 0.9  # pixels count few photons, so lossy coding changes them
    assert decode.read(real_dicom('JPGLosslessP14SV1_1s_1f_8b.dcm')).dtype == np.uint8


def test_real_dicom_keeps_its_bits(real_dicom):
    picture = decode.read(real_dicom('RG3_UNCR.dcm'))
    assert picture.shape == (1760, 1760, 1)
    assert picture.dtype == np.uint16
    assert len(np.unique(picture)) > 500  # of 10 bits


def test_real_dicom_frames(real_dicom):
    data = real_dicom('emri_small.dcm')
    assert dicom_headers.frames(io.BytesIO(data)) == 10
    assert len({decode.read(data, frame).tobytes() for frame in range(10)}) == 10
    assert dicom_headers.frames(io.BytesIO(real_dicom('RG1_UNCR.dcm'))) == 1
    assert dicom_headers.frames(io.BytesIO(b'')) == 1


@pytest.mark.parametrize('implicit', [True, False])
def test_dicom_without_preamble_or_transfer_syntax(implicit):
    import pydicom
    from pydicom.data import get_testdata_file

    with open(get_testdata_file('CT_small.dcm', download=False), 'rb') as file:
        whole = file.read()
    bare = pydicom.dcmread(io.BytesIO(whole))
    del bare.file_meta
    bare.preamble = None
    buffer = io.BytesIO()
    bare.save_as(buffer, implicit_vr=implicit, little_endian=True)
    assert buffer.getvalue()[128:132] != b'DICM'
    np.testing.assert_array_equal(decode.read(buffer.getvalue()), decode.read(whole))


def test_only_plain_words_leave_a_header():
    data = dicom(
        stored12,
        PatientName='Doe^Jane',
        PatientID='4711',
        PatientAge='093Y',
        PatientSex='F',
        Modality='DX',
        ViewPosition='PA',
        Manufacturer='Jane Doe <jane@example.org>',
        BurnedInAnnotation='YES',
        ImagerPixelSpacing=[0.143, 0.143],
        StudyDate='20200101',
    )
    assert dicom_headers.attributes(data) == dict(
        sex='F', modality='DX', view='PA', burned_in='YES', age=90.0, spacing=pytest.approx(0.143)
    )
    assert dicom_headers.attributes(b'nothing') == {}


def test_only_known_words_leave_a_header():
    fields = dict(
        Modality='MG', BodyPartExamined='LEFT BREAST', ViewPosition='MLO', ImageLaterality='L',
        Manufacturer='G.E. Medical Systems', BurnedInAnnotation='NO', PatientSex='F',
    )  # fmt: skip
    assert dicom_headers.attributes(dicom(stored12, **fields)) == dict(
        modality='MG', body_part='LEFT BREAST', view='MLO', laterality='L', scanner='G.E. Medical Systems',
        burned_in='NO', sex='F',
    )  # fmt: skip
    assert dicom_headers.attributes(dicom(stored12, ViewPosition='AP_SUPINE', BodyPartExamined='Chest')) == dict(
        view='AP_SUPINE', body_part='Chest'
    )
    for name in fields:  # in releases, each of these fields has held typed text
        for typed in ('Jane Doe', 'DOE', 'PA DOE', 'CHEST DOE', '4711', 'SIEMENS 4711'):
            assert not dicom_headers.attributes(dicom(stored12, **{name: typed})), (name, typed)


def test_no_reason_quotes_a_header():
    with pytest.raises(Unreadable, match=r'^a DICOM file in an unknown colour space') as error:
        dicom_pixels.picture(dicom(stored12, PhotometricInterpretation='DOE JANE'))
    assert 'DOE' not in str(error.value)

    whole = dicom(stored12).replace(b'1.2.840.10008.1.2.1\0', b'Doe^Jane.1948.4711.\0')
    with pytest.raises(Unreadable, match='^a DICOM file in an unknown coding, which nothing here decodes$'):
        dicom_pixels.picture(whole)
    for uid in ('Doe^Jane', '1.2.3.4711'):
        with pytest.raises(Unreadable, match='^no picture but an object of an unknown class$'):
            dicom_headers.header(io.BytesIO(dicom(stored12, Rows=None, SOPClassUID=uid)))


@pytest.mark.parametrize('fit', ['crop', 'pad'])
@pytest.mark.parametrize('size', [None, 31])
def test_a_fit_with_pixels_that_are_not_square_gives_squares(fit, size):
    rng = np.random.default_rng(5)
    for _ in range(200):
        height, width = rng.integers(20, 120, 2)
        aspect = float(np.exp(rng.uniform(-1.2, 1.2)))
        image = np.full((height, width, 1), 200, np.uint8)
        part = decode.fitted(image, fit, aspect)
        stored = decode.bounded(part, size, aspect, is_square=True)
        side = (min if fit == 'crop' else max)(height * aspect, width) / min(aspect, 1.0)
        assert stored.shape[0] == stored.shape[1] and abs(stored.shape[0] - min(side, size or side)) <= 1
        mask = decode.bounded_mask(decode.fitted(image[..., 0], fit, aspect), size, aspect, is_square=True)
        assert mask.shape == stored.shape[:2]
