"""Headers of DICOM files that contradict their pixels, or that hold numbers in another writing."""

from __future__ import annotations

import io

import numpy as np
import pydicom
import pytest
from field_inputs import script
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.pixels import convert_color_space
from pydicom.tag import Tag
from pydicom.uid import RLELossless

from medjax.data.images import decode

field = script('dicoms')
RAMP = field.ramp(0, 3000, 'uint16')


def saved(file) -> bytes:
    out = io.BytesIO()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def written(file, **texts: str) -> bytes:
    """The file with fields whose text is no valid number."""
    for name, text in texts.items():
        value = text.encode() + b' ' * (len(text) % 2)
        tag = Tag(tag_for_keyword(name))
        file[tag] = RawDataElement(tag, dictionary_VR(tag), len(value), value, 0, False, True)
    return saved(file)


def grey(pixels, stored=12, **more):
    return field.base(pixels, stored=stored, modality='MR', **more)


def test_decimal_commas():
    data = written(
        grey(RAMP), WindowCenter='1000,5', WindowWidth='800,0', RescaleSlope='0,5', RescaleIntercept='10,0',
        PixelSpacing='0,8\\0,4',
    )  # fmt: skip
    dots = saved(
        grey(RAMP, WindowCenter=1000.5, WindowWidth=800, RescaleSlope=0.5, RescaleIntercept=10, PixelSpacing=[0.8, 0.4])
    )
    found, wanted = decode.picture(data), decode.picture(dots)
    np.testing.assert_array_equal(found.pixels, wanted.pixels)
    assert found.remarks == () and decode.picture(data).aspect == wanted.aspect == 2.0


@pytest.mark.parametrize(
    'window',
    [dict(WindowCenter='40 HU', WindowWidth='400 HU'), dict(WindowCenter='40'), dict(WindowWidth='400'),
     dict(WindowCenter='40', WindowWidth='-400'), dict(WindowCenter='wide', WindowWidth='1')],
)  # fmt: skip
def test_windows_that_cannot_be_used_are_told(window):
    found = decode.picture(written(grey(RAMP), **window))
    assert found.remarks == ('its window has no valid centre and width, so it is not used',)
    np.testing.assert_array_equal(found.pixels, decode.picture(saved(grey(RAMP))).pixels)


@pytest.mark.parametrize('window', [dict(WindowCenter='0', WindowWidth='0'), dict(WindowCenter='', WindowWidth='')])
def test_windows_that_say_nothing_are_no_remark(window):
    assert decode.picture(written(grey(RAMP), **window)).remarks == ()


@pytest.mark.parametrize(
    ('low', 'high', 'dtype', 'bits'),
    [(0, 4095, 'uint16', 10), (200, 9000, 'uint16', 12), (-900, 2600, 'int16', 12), (0, 250, 'uint8', 6)],
)
def test_values_that_need_more_bits_than_the_header_states(low, high, dtype, bits):
    pixels = field.ramp(low, high, dtype)
    found = decode.picture(saved(grey(pixels, bits)))
    assert found.remarks == ('its pixels use more bits than its header states; all are read',)
    shown = found.pixels[0, :, 0].astype(float)
    assert (np.diff(shown) > 0).all()  # no jump from white to black


@pytest.mark.parametrize('overlay', [True, False])
def test_upper_bits_that_are_no_picture(overlay):
    mark = np.zeros_like(RAMP)
    mark[10:14, 5:40:2] = 1 << 15
    file = grey(RAMP | mark)
    if overlay:
        file.add_new(0x60000010, 'US', 64)
    found = decode.picture(saved(file))
    np.testing.assert_array_equal(found.pixels, decode.picture(saved(grey(RAMP))).pixels)
    assert found.remarks == (
        () if overlay else ('its pixels use more bits than its header states; the upper ones are cut',)
    )


def test_stored_bits_at_the_top_of_a_word():
    file = grey(RAMP << 4)
    file.HighBit = 15
    found = decode.picture(saved(file))
    np.testing.assert_array_equal(found.pixels, decode.picture(saved(grey(RAMP))).pixels)
    assert found.remarks == ()


def test_padding_as_an_unsigned_number_of_32_bits():
    file = field.base(field.ring(field.ramp(0, 2000, 'int16'), -3024), modality='CT')
    file.add_new('PixelPaddingValue', 'UL', 2**32 - 3024)
    pixels = decode.picture(saved(file)).pixels[..., 0]
    assert pixels[0, 0] == 0 and pixels[32, 0] == 0 and pixels[32, 31] > 30_000


@pytest.mark.parametrize(
    ('more', 'words'),
    [
        (dict(WindowCenter=0.5, WindowWidth=1), 'its window makes two or three greys of all its pixels'),
        (dict(WindowCenter=1500, WindowWidth=1), 'its window makes two or three greys of all its pixels'),
        (
            dict(WindowCenter=2048, WindowWidth=4096, RescaleSlope=1 / 4095, RescaleIntercept=0),
            'its window shows all its pixels in less than 2% of all greys',
        ),
        (dict(WindowCenter=1500, WindowWidth=900), None),
    ],
)
def test_windows_that_show_hardly_anything_are_told(more, words):
    assert decode.picture(saved(grey(RAMP, **more))).remarks == ((words,) if words else ())


def test_colour_spaces_in_other_letters():
    file = grey(RAMP)
    file.PhotometricInterpretation = 'monochrome1'
    assert decode.picture(saved(file)).pixels[0, 0, 0] == 65_535


COLOURS = np.zeros((64, 64, 3), np.uint8)
COLOURS[8:50, 8:50] = np.arange(42, dtype=np.uint8)[:, None, None] * 5
COLOURS[20:30, 20:40] = 210, 40, 30
YCBCR = convert_color_space(COLOURS, 'RGB', 'YBR_FULL')


@pytest.mark.parametrize('coding', ['plain', 'rle'])
@pytest.mark.parametrize(
    ('pixels', 'says', 'remark'),
    [
        (COLOURS, 'RGB', None),
        (YCBCR, 'YBR_FULL', None),
        (YCBCR, 'RGB', 'its header says RGB, but its colours are YCbCr'),
        (COLOURS, 'YBR_FULL', 'its header says YCbCr, but its colours are RGB'),
    ],
)
def test_colours_without_a_jpeg_follow_the_content(coding, pixels, says, remark):
    file = field.base(pixels, says, 8, 'US')
    if coding == 'rle':
        file.compress(RLELossless, generate_instance_uid=False)
    found = decode.picture(saved(file))
    assert found.remarks == ((remark,) if remark else ())
    assert np.abs(found.pixels.astype(int) - COLOURS).max() <= 3


def test_pydicom_reads_no_remark_from_a_good_file():
    assert decode.picture(saved(pydicom.dcmread(io.BytesIO(saved(grey(RAMP)))))).remarks == ()
