"""Grey values of DICOM files: padding, functional groups, runs of frames, windows that show nothing, windows for CT."""

import io
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from damaged_files import J2K, RLE, coded_dicom
from image_files import dicom, file as as_file

from medjax.data.images import decode, dicom as dicom_headers, dicom_pixels, grey, windows
from medjax.data.types import Unreadable
from medjax.errors import UserError

RAMP = np.linspace(0, 1, 40)[None].repeat(30, 0)
OUTSIDE = np.zeros((30, 40), bool)
OUTSIDE[:4], OUTSIDE[:, :3] = True, True


def values(low: float, high: float, dtype) -> np.ndarray:
    return (low + RAMP * (high - low)).round().astype(dtype)


def padded(low: float, high: float, dtype, value: int) -> np.ndarray:
    stored = values(low, high, dtype)
    stored[OUTSIDE] = value
    return stored


def unit(data: bytes, frame: int = 0) -> np.ndarray:
    pixels = decode.read(data, frame)
    return pixels[..., 0].astype(float) / np.iinfo(pixels.dtype).max


def stretched(stored: np.ndarray, mask: np.ndarray) -> np.ndarray:
    inside = stored[~mask].astype(float)
    return np.where(mask, 0.0, (stored - inside.min()) / (inside.max() - inside.min()))


# Padding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('dtype', 'bits', 'value', 'field'),
    [
        (np.int16, 16, -2000, ('SS', -2000)),
        (np.int16, 16, -2000, ('US', 63_536)),
        (np.int16, 16, -32_768, ('US', 32_768)),
        (np.int16, 12, -2000, ('SS', -2000)),
        (np.int16, 12, -2000, ('US', 2096)),  # its 12 bits
        (np.int16, 12, -2000, ('US', 63_536)),
        (np.int16, 12, -32_768, ('SS', -32_768)),  # outside of the stored bits
        (np.uint16, 12, 63_536, ('SS', -2000)),
        (np.uint16, 12, 63_536, ('US', 63_536)),
        (np.uint16, 16, 0, ('US', 0)),
        (np.uint16, 14, 16_383, ('US', 16_383)),
        (np.uint16, 14, 65_535, ('SS', -1)),
        (np.uint8, 8, 255, ('US', 255)),
        (np.int8, 8, -128, ('US', 128)),
        (np.int32, 32, -70_000, ('SL', -70_000)),
        (np.int16, 16, -2000, ('UN', (-2000).to_bytes(2, 'little', signed=True))),
        (np.int16, 16, -2000, ('DS', '-2000.0')),
        (np.int16, 16, -2000, ('SS', [-2000, 5])),
    ],
)
@pytest.mark.parametrize('colours', ['MONOCHROME1', 'MONOCHROME2'])
@pytest.mark.parametrize('window', [False, True])
@pytest.mark.parametrize('big', [False, True])
@pytest.mark.filterwarnings('ignore')
def test_padding_in_every_writing(dtype, bits, value, field, colours, window, big):
    if big and field[0] == 'UN':
        field = 'UN', field[1][::-1]
    low, high = (-100, 100) if bits == 8 and dtype == np.int8 else (10, 110) if bits == 8 else (100, 1900)
    stored = padded(low, high, dtype, value)
    facts = dict(WindowCenter=(low + high) / 2, WindowWidth=high - low, VOILUTFunction='LINEAR_EXACT') if window else {}
    data = dicom(
        stored, big, BitsStored=bits, PhotometricInterpretation=colours, PixelPaddingValue=field,
        **facts,
    )  # fmt: skip
    # a window shows the whole ramp, the range of the frame only the ramp beside the padding
    want = RAMP if window else stretched(values(low, high, dtype).astype(float), OUTSIDE)
    want = np.where(OUTSIDE, 0.0, 1 - want if colours == 'MONOCHROME1' else want)
    np.testing.assert_allclose(unit(data), want, atol=0.01)  # the ramp was rounded
    assert (unit(data)[OUTSIDE] == 0).all()


@pytest.mark.parametrize(
    ('dtype', 'bits', 'value', 'kept'),
    [
        (np.int16, 12, -1024, 'its bits'), (np.int16, 14, -8000, 'its bits'), (np.int16, 10, -512, 'its bits'),
        (np.int16, 13, -3024, 'all bits'), (np.int32, 32, -1500, 'all bits'), (np.int32, 20, -32_768, 'its bits'),
        (np.int8, 8, -100, 'all bits'),
    ],
)  # fmt: skip
@pytest.mark.parametrize('big', [False, True])
@pytest.mark.filterwarnings('ignore')
def test_padding_of_signed_pixels_written_as_us(dtype, bits, value, kept, big):
    """`kept`: the bits above the stored ones are 0, or they repeat the sign."""
    stored = padded(5, min(2 ** (bits - 1) - 1, 3000), dtype, value)
    written = stored & (1 << bits) - 1 if kept == 'its bits' else stored
    field = ('US', value + 65_536)
    data = dicom(written.astype(dtype), big, BitsStored=bits, PixelPaddingValue=field)
    np.testing.assert_allclose(unit(data), stretched(stored.astype(float), OUTSIDE), atol=0.005)
    assert not unit(data)[OUTSIDE].any()
    limit = ('US', value + 65_536 + 4)
    stored[:2] = value + 4
    written = stored & (1 << bits) - 1 if kept == 'its bits' else stored
    data = dicom(
        written.astype(dtype), big, BitsStored=bits, PixelPaddingValue=field, PixelPaddingRangeLimit=limit,
        PhotometricInterpretation='MONOCHROME1',
    )  # fmt: skip
    want = np.where(OUTSIDE, 0, 1 - stretched(stored.astype(float), OUTSIDE))
    np.testing.assert_allclose(unit(data), want, atol=0.005)


def test_large_padding_of_signed_pixels_is_taken_as_it_is_where_it_occurs():
    stored = padded(0, 60_000, np.int32, 63_000)
    data = dicom(stored, PixelPaddingValue=('US', 63_000))
    np.testing.assert_allclose(unit(data), stretched(stored.astype(float), OUTSIDE), atol=1e-4)


@pytest.mark.parametrize('ends', [(-3000, -1500), (-1500, -3000), (62_536, 64_036)])
def test_a_range_of_padding(ends):
    stored = padded(0, 900, np.int16, -2000)
    stored[0, ::2], stored[1] = -1600, -3000
    vr = 'US' if min(ends) > 0 else 'SS'
    data = dicom(stored, PixelPaddingValue=(vr, ends[0]), PixelPaddingRangeLimit=(vr, ends[1]))
    np.testing.assert_allclose(unit(data), stretched(stored, OUTSIDE), atol=1e-4)


def test_a_range_of_padding_with_both_signs():
    """On unsigned pixels it goes from the largest values on to the smallest, on signed ones it is what it says."""
    stored = padded(100, 900, np.uint16, 65_534)
    stored[0] = 3
    fields = dict(PixelPaddingValue=('SS', -2), PixelPaddingRangeLimit=('SS', 90))
    np.testing.assert_allclose(unit(dicom(stored, **fields)), stretched(stored, OUTSIDE), atol=1e-4)
    signed = padded(100, 900, np.int16, -2)
    for vr, low in (('SS', -2), ('US', 65_534)):
        data = dicom(signed, PixelPaddingValue=(vr, low), PixelPaddingRangeLimit=(vr, 90))
        np.testing.assert_allclose(unit(data), stretched(signed, OUTSIDE), atol=1e-4)


def test_padding_after_every_step():
    stored = padded(0, 1000, np.int16, -2000)
    table = dict(LUTDescriptor=('US', [1001, 0, 16]), LUTData=('US', list(range(0, 2002, 2))))
    import pydicom

    item = pydicom.Dataset()
    for name, field in table.items():
        item.add_new(name, *field)
    for facts in (
        dict(RescaleSlope=-2, RescaleIntercept=50),
        dict(RescaleSlope=0.5, RescaleIntercept=-1024, WindowCenter=-700, WindowWidth=900),
        dict(VOILUTSequence=[item]),
        dict(ModalityLUTSequence=[item], VOILUTFunction='SIGMOID', WindowCenter=900, WindowWidth=300),
    ):
        for colours in ('MONOCHROME1', 'MONOCHROME2'):
            shown = unit(dicom(stored, PhotometricInterpretation=colours, PixelPaddingValue=('SS', -2000), **facts))
            assert (shown[OUTSIDE] == 0).all() and np.ptp(shown[~OUTSIDE]) > 0.5


def test_padding_of_a_coded_picture():
    pytest.importorskip('pylibjpeg')
    import pydicom

    stored, outside = (np.kron(x, np.ones((2, 2), x.dtype)) for x in (padded(0, 1000, np.int16, -2000), OUTSIDE))
    file = pydicom.dcmread(io.BytesIO(dicom(stored, PixelPaddingValue=('US', 63_536))))
    for syntax in (J2K, RLE):
        file.compress(syntax, encoding_plugin='pydicom' if syntax == RLE else '', generate_instance_uid=False)
        buffer = io.BytesIO()
        file.save_as(buffer)
        np.testing.assert_allclose(unit(buffer.getvalue()), stretched(stored, outside), atol=1e-4)
        file.decompress(generate_instance_uid=False)


def test_padding_that_is_not_there_or_everywhere():
    stored = values(0, 1000, np.int16)
    plain = unit(dicom(stored))
    for field in (('US', 63_536), ('SS', -2000), ('US', []), ('LO', 'none'), ('FL', float('nan')), ('DS', '1.5')):
        np.testing.assert_array_equal(unit(dicom(stored, PixelPaddingValue=field)), plain)
    lie = decode.picture(dicom(stored, PixelPaddingValue=('SS', -10), PixelPaddingRangeLimit=('SS', 3000)))
    assert lie.remarks == (grey.ALL_PADDING,) and lie.pixels.max() == 65_535
    nothing = decode.picture(dicom(np.full((9, 7), -2000, np.int16), PixelPaddingValue=('SS', -2000)))
    assert nothing.remarks == (grey.ONE_VALUE,) and not nothing.pixels.any()
    colour = np.random.default_rng(0).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    np.testing.assert_array_equal(decode.read(dicom(colour, PixelPaddingValue=('US', int(colour[0, 0, 0])))), colour)


# Functional groups -------------------------------------------------------------------------------------------------


def group(**sequences) -> object:
    import pydicom

    one = pydicom.Dataset()
    for name, fields in sequences.items():
        item = pydicom.Dataset()
        for field, value in fields.items():
            setattr(item, field, value)
        setattr(one, name, [item])
    return one


def window_group(centre, width, **more):
    return group(
        FrameVOILUTSequence=dict(WindowCenter=centre, WindowWidth=width, VOILUTFunction='LINEAR_EXACT'), **more
    )


def rescale(slope, intercept):
    return dict(PixelValueTransformationSequence=dict(RescaleSlope=slope, RescaleIntercept=intercept))


RUN = np.stack([values(0, 1000, np.uint16), values(500, 800, np.uint16), values(200, 400, np.uint16)])


def run(**fields) -> bytes:
    return dicom(RUN, frames=3, **fields)


@pytest.mark.parametrize('big', [False, True])
def test_each_frame_has_its_own_window_and_rescaling(big):
    groups = [
        window_group(600, 1200, **rescale(1, 0)), window_group(1200, 2400, **rescale(2, 0)), window_group(0, 800),
    ]  # fmt: skip
    data = run(big=big, PerFrameFunctionalGroupsSequence=groups, RescaleSlope=1, RescaleIntercept=-400)
    for frame, (slope, intercept, centre, width) in enumerate(
        [(1, 0, 600, 1200), (2, 0, 1200, 2400), (1, -400, 0, 800)]  # the last has the rescaling of the file
    ):
        want = np.clip((RUN[frame] * float(slope) + intercept - centre) / width + 0.5, 0, 1)
        np.testing.assert_allclose(unit(data, frame), want, atol=1e-4)


def test_shared_groups_and_those_of_the_file():
    own, empty = window_group(300, 600), group(FrameVOILUTSequence={})
    shared = window_group(500, 1000, **rescale(1, 0), PixelMeasuresSequence=dict(PixelSpacing=[0.5, 0.25]))
    data = run(
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=[own, empty],  # one is missing
        WindowCenter=9, WindowWidth=3, PixelSpacing=[1, 1],
    )  # fmt: skip
    for frame, (centre, width) in enumerate([(300, 600), (500, 1000), (500, 1000)]):
        want = np.clip((RUN[frame].astype(float) - centre) / width + 0.5, 0, 1)
        np.testing.assert_allclose(unit(data, frame), want, atol=1e-4)
    assert decode.picture(data).aspect == 2 and dicom_headers.attributes(data)['spacing'] == 0.5


def test_groups_that_are_none():
    plain = [unit(run(WindowCenter=500, WindowWidth=900), frame) for frame in range(3)]
    for groups in ([], [group(), group(), group()], [group(FrameVOILUTSequence=dict(WindowCenter='', WindowWidth=''))]):
        for name in ('SharedFunctionalGroupsSequence', 'PerFrameFunctionalGroupsSequence'):
            data = run(WindowCenter=500, WindowWidth=900, **{name: groups})
            for frame in range(3):
                np.testing.assert_array_equal(unit(data, frame), plain[frame])


def test_a_table_of_a_frame():
    import pydicom

    item, one = pydicom.Dataset(), pydicom.Dataset()
    item.add_new('LUTDescriptor', 'US', [1001, 0, 16])
    item.add_new('LUTData', 'US', list(range(1000, -1, -1)))
    inner = pydicom.Dataset()
    inner.VOILUTSequence = [item]
    one.FrameVOILUTSequence = [inner]
    data = run(PerFrameFunctionalGroupsSequence=[one, window_group(500, 1000)])
    np.testing.assert_allclose(unit(data, 0), 1 - RUN[0] / 1000, atol=1e-4)
    np.testing.assert_allclose(unit(data, 1), RUN[1] / 1000, atol=1e-4)


def lut(low: int, high: int, entries: list) -> object:
    import pydicom

    item = pydicom.Dataset()
    item.add_new('LUTDescriptor', 'US', [high - low + 1, low % 65_536, 16])
    item.add_new('LUTData', 'US', entries)
    return item


@pytest.mark.parametrize('place', ['PerFrameFunctionalGroupsSequence', 'SharedFunctionalGroupsSequence'])
def test_a_window_of_a_frame_beats_a_table_of_the_file(place):
    groups = [window_group(1000, 2100, **rescale(2, 10))] * (3 if place.startswith('Per') else 1)
    of_file = dict(
        VOILUTSequence=[lut(0, 1000, list(range(1000, -1, -1)))], VOILUTFunction='SIGMOID',
        ModalityLUTSequence=[lut(0, 1000, list(range(1000, -1, -1)))],
    )  # fmt: skip
    data = run(**{place: groups}, **of_file)
    for frame in range(3):
        want = np.clip((RUN[frame] * 2.0 + 10 - 1000) / 2100 + 0.5, 0, 1)
        np.testing.assert_allclose(unit(data, frame), want, atol=1e-4)


def test_a_part_of_a_window_is_not_filled_up_from_elsewhere():
    own = group(FrameVOILUTSequence=dict(WindowCenter=100), PixelValueTransformationSequence=dict(RescaleIntercept=-50))
    data = run(
        PerFrameFunctionalGroupsSequence=[own] * 3, RescaleSlope=3, RescaleIntercept=9, WindowWidth=400,
        WindowCenter=300, VOILUTFunction='LINEAR_EXACT',
    )  # fmt: skip
    np.testing.assert_allclose(unit(data, 1), np.clip((RUN[1] - 50.0 - 300) / 400 + 0.5, 0, 1), atol=1e-4)


# Runs of frames ----------------------------------------------------------------------------------------------------


def coded_run() -> bytes:
    import pydicom

    file = pydicom.dcmread(io.BytesIO(run(BitsStored=12)))
    file.compress(RLE, encoding_plugin='pydicom')
    buffer = io.BytesIO()
    file.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize('data', [run(), run(big=True), coded_run()], ids=['little', 'big', 'rle'])
def test_frames_of_a_run_share_one_range(data):
    for frame in (2, 0, 1):
        np.testing.assert_allclose(unit(data, frame), RUN[frame] / 1000, atol=1e-4)


def test_a_run_is_measured_after_rescaling_and_without_padding():
    stored = RUN.astype(np.int16)
    stored[:, OUTSIDE] = -2000
    groups = [group(**rescale(1, 0)), group(**rescale(3, -500)), group(**rescale(1, 0))]
    data = dicom(
        stored, frames=3, PerFrameFunctionalGroupsSequence=groups, PixelPaddingValue=('US', 63_536),
        PhotometricInterpretation='MONOCHROME1',
    )  # fmt: skip
    scaled = stored * np.array([1, 3, 1.0])[:, None, None] + np.array([0, -500, 0])[:, None, None]
    inside = scaled[:, ~OUTSIDE]
    for frame in range(3):
        want = 1 - (scaled[frame] - inside.min()) / (inside.max() - inside.min())
        np.testing.assert_allclose(unit(data, frame), np.where(OUTSIDE, 0, want), atol=1e-4)


def test_frames_with_windows_do_not_stretch_the_others():
    data = run(PerFrameFunctionalGroupsSequence=[window_group(500, 1000), group(), group()])
    for frame, (low, high) in enumerate([(0, 1000), (200, 800), (200, 800)]):
        np.testing.assert_allclose(unit(data, frame), (RUN[frame].astype(float) - low) / (high - low), atol=1e-4)


def test_runs_are_measured_at_the_same_time_and_once(monkeypatch):
    """Two threads measure two files at the same time; those that need the same file wait for it."""
    measured, both = [], threading.Barrier(2, timeout=10)
    measure = dicom_pixels._range_of

    def slow(file, count):
        measured.append(str(file.PatientID))
        both.wait()  # breaks if a lock of one file stops the other
        return measure(file, count)

    monkeypatch.setattr(dicom_pixels, '_range_of', slow)
    files = [dicom(RUN * k, frames=3, PatientID=f'{k} at a time') for k in (2, 3)]
    with ThreadPoolExecutor(6) as pool:
        shown = list(pool.map(lambda job: unit(files[job % 2], job // 2), range(6)))
    assert sorted(measured) == ['2 at a time', '3 at a time']
    for job, picture in enumerate(shown):
        np.testing.assert_allclose(picture, RUN[job // 2] / 1000, atol=1e-4)


def test_long_runs_are_told_apart():
    """By header, length and pixels; a run of more than a megabyte is not hashed whole."""
    stored = np.zeros((3, 700, 600), np.uint16)
    stored[0, ::7, ::5], stored[1] = 1000, 400
    deeper = stored.copy()
    deeper[2] = 4000
    for run_of, most in ((stored, 1000), (deeper, 4000), (stored[..., ::-1], 1000)):
        data = dicom(np.ascontiguousarray(run_of), frames=3)
        assert len(data) > 2 << 20
        np.testing.assert_allclose(unit(data, 1), 400 / most, atol=1e-4)
    rescaled = dicom(stored, frames=3, RescaleSlope=2, RescaleIntercept=0)
    np.testing.assert_allclose(unit(rescaled, 1), 0.4, atol=1e-4)


@pytest.mark.parametrize('place', ['file', 'frames'])
def test_frames_whose_window_shows_nothing_share_a_range(place):
    beside = dict(WindowCenter=30_000, WindowWidth=10)
    if place == 'file':
        data, ends = run(**beside), [(0, 1000)] * 3
    else:  # the window of the first frame shows it
        groups = [window_group(500, 1000), window_group(30_000, 10), window_group(-30_000, 10)]
        data, ends = run(PerFrameFunctionalGroupsSequence=groups), [(0, 1000), (200, 800), (200, 800)]
    for frame, (low, high) in enumerate(ends):
        np.testing.assert_allclose(unit(data, frame), (RUN[frame].astype(float) - low) / (high - low), atol=1e-4)
    of_ct = run(Modality='CT', PerFrameFunctionalGroupsSequence=[group(), window_group(30_000, 10), group()])
    np.testing.assert_allclose(unit(of_ct, 2), RUN[2] / 1000, atol=1e-4)
    assert not unit(of_ct, 1).any()


def test_a_frame_that_shows_nothing_is_remarked_and_keeps_its_grey():
    stored = RUN.copy()
    stored[1] = 500
    data = dicom(stored, frames=3)
    found = decode.picture(data, 1)
    assert found.remarks == (grey.ONE_VALUE,) and abs(int(found.pixels[0, 0, 0]) - 32_768) < 5
    assert decode.picture(data, 0).remarks == ()


def test_a_damaged_frame_does_not_spoil_the_run():
    jpegs = [as_file((k * 10 + RAMP * 100)[..., None].astype(np.uint8), 'JPEG', quality=95) for k in range(3)]
    jpegs[1] = jpegs[1][: len(jpegs[1]) // 2]
    grey8 = (RAMP * 100)[..., None].astype(np.uint8)
    data = coded_dicom(jpegs, grey8, '1.2.840.10008.1.2.4.50', NumberOfFrames=3)
    with pytest.raises(Unreadable, match='cut short'):
        decode.read(data, 1)
    assert unit(data, 2).max() == 1 and unit(data, 0).max() < 0.87


# Windows that show nothing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('function', ['LINEAR', 'LINEAR_EXACT', 'SIGMOID'])
@pytest.mark.parametrize('centre', [-90_000, 90_000])
def test_a_window_beside_the_values(function, centre):
    stored = values(0, 4095, np.uint16)
    facts = dict(WindowCenter=centre, WindowWidth=100, VOILUTFunction=function, BitsStored=12)
    found = decode.picture(dicom(stored, Modality='MR', **facts))
    assert found.remarks == ('its window makes one value of all its pixels, so it is not used',)
    np.testing.assert_array_equal(found.pixels, decode.read(dicom(stored, BitsStored=12)))
    of_ct = decode.picture(dicom(stored, Modality='CT', **facts))
    assert of_ct.remarks == ('its window makes one value of all its pixels',)
    assert len(np.unique(of_ct.pixels)) == 1  # air beside a patient is black


@pytest.mark.parametrize('modality', ['MR', 'CT'])
def test_the_next_window_is_tried(modality):
    stored = values(0, 4095, np.uint16)
    beside = 'its window makes one value of all its pixels, so it is not used'
    good = decode.read(dicom(stored, WindowCenter=2000, WindowWidth=3000))
    for centres, widths, remarks in (
        ([-9000, 2000, 9], [100, 3000, 40], (beside,)),
        ([2000, -9000], [3000, 100], ()),
        ([20, 2000], [0, 3000], ()),  # a window of width 0 is none
        ([-9000, 9000, 2000], [1, 1, 3000], (beside, beside.replace('window', 'window 2'))),
    ):
        data = dicom(stored, Modality=modality, WindowCenter=centres, WindowWidth=widths)
        found = decode.picture(data)
        assert found.remarks == remarks
        np.testing.assert_array_equal(found.pixels, good)
    black = decode.picture(dicom(stored, Modality=modality, WindowCenter=[9000, 7000], WindowWidth=[9, 9]))
    second = beside.replace('window', 'window 2')
    assert black.remarks == (beside, second.replace(', so it is not used', '') if modality == 'CT' else second)
    assert black.pixels.any() == (modality == 'MR')


@pytest.mark.parametrize('value', [0, 7, 255])
@pytest.mark.parametrize('facts', [{}, dict(WindowCenter=128, WindowWidth=256)])
@pytest.mark.parametrize('kind', ['DICOM', 'PNG', 'JPEG', 'colour'])
def test_a_picture_of_one_value(value, facts, kind):
    pixels = np.full((12, 9, 3 if kind == 'colour' else 1), value, np.uint8)
    if kind == 'colour':
        pixels[..., 0] ^= 40
    data = dicom(pixels[..., 0], **facts) if kind == 'DICOM' else as_file(pixels, 'PNG' if kind == 'colour' else kind)
    assert decode.picture(data).remarks == (grey.ONE_VALUE,)
    pixels[3, 4] = 100
    data = dicom(pixels[..., 0], **facts) if kind == 'DICOM' else as_file(pixels, 'PNG' if kind == 'colour' else kind)
    assert decode.picture(data).remarks == ()


@pytest.mark.parametrize('field', ['slope', 'table', 'table that ends before'])
@pytest.mark.parametrize('window', [{}, dict(WindowCenter=600, WindowWidth=700)])
@pytest.mark.parametrize('colours', ['MONOCHROME1', 'MONOCHROME2'])
def test_a_modality_step_that_makes_one_value_is_not_used(field, window, colours):
    stored = values(100, 900, np.uint16)
    facts = {
        'slope': dict(RescaleSlope=0, RescaleIntercept=600),
        'table': dict(ModalityLUTSequence=[lut(0, 1000, [600] * 1001)]),
        'table that ends before': dict(ModalityLUTSequence=[lut(0, 50, list(range(51)))]),
    }[field]
    stored[OUTSIDE] = 0
    plain = dict(PixelPaddingValue=0, PhotometricInterpretation=colours, **window)
    found = decode.picture(dicom(stored, **plain, **facts))
    what = 'its rescale' if field == 'slope' else 'its modality LUT'
    assert found.remarks == (f'{what} makes one value of all its pixels, so it is not used',)
    np.testing.assert_array_equal(found.pixels, decode.read(dicom(stored, **plain)))


def test_a_rescale_to_one_value_gives_no_hounsfield_units():
    with pytest.raises(Unreadable, match='--window is for CT'):
        decode.picture(ct(RescaleSlope=0), 0, windows.parse('lung'))
    assert decode.picture(ct(np.full((9, 7), 5, np.int16), RescaleSlope=0)).remarks == (grey.ONE_VALUE,)


def test_a_run_whose_rescale_makes_one_value():
    data = run(RescaleSlope=0, RescaleIntercept=7)
    for frame in range(3):
        np.testing.assert_allclose(unit(data, frame), RUN[frame] / 1000, atol=1e-4)


def test_a_frame_beside_the_table_of_its_run():
    """The table makes one value of the second frame. That frame has its own range, and does not change the others."""
    stored = np.stack([values(0, 100, np.uint16), values(3000, 9000, np.uint16), values(20, 80, np.uint16)])
    data = dicom(stored, frames=3, ModalityLUTSequence=[lut(0, 100, list(range(0, 1010, 10)))])
    for frame, (low, high) in enumerate([(0, 100), (3000, 9000), (0, 100)]):
        found = decode.picture(data, frame)
        want = (stored[frame].astype(float) - low) / (high - low)
        np.testing.assert_allclose(found.pixels[..., 0] / 65_535, want, atol=1e-4)
        assert len(found.remarks) == (frame == 1)


# Windows for CT ----------------------------------------------------------------------------------------------------


def ct(stored=None, **facts) -> bytes:
    stored = values(0, 3000, np.int16) if stored is None else stored
    return dicom(
        stored, **dict(Modality='CT', RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=9) | facts
    )


HU = values(0, 3000, np.int16) - 1024.0


def test_windows_for_ct():
    lung = decode.picture(ct(), 0, windows.parse('lung')).pixels
    assert lung.dtype == np.uint16 and lung.shape[2] == 1
    np.testing.assert_allclose(lung[..., 0] / 65_535, np.clip((HU + 1350) / 1500, 0, 1), atol=1e-4)
    three = decode.picture(ct(), 0, windows.parse('lung, 50/350,Bone')).pixels
    assert three.dtype == np.uint8 and three.shape[2] == 3
    for channel, (low, high) in enumerate([(-1350, 150), (-125, 225), (-500, 1300)]):
        np.testing.assert_allclose(three[..., channel] / 255, np.clip((HU - low) / (high - low), 0, 1), atol=0.003)
    of_group = dicom(
        np.stack([HU.astype(np.int16)] * 2), frames=2, Modality='CT',
        SharedFunctionalGroupsSequence=[group(**rescale(1, 0))],
    )  # fmt: skip
    np.testing.assert_array_equal(decode.picture(of_group, 1, windows.parse('lung')).pixels, lung)


def test_padding_is_black_in_every_window():
    stored = padded(0, 3000, np.int16, -2000)
    for text in ('lung', 'lung,bone,brain'):
        shown = decode.picture(ct(stored, PixelPaddingValue=('US', 63_536)), 0, windows.parse(text)).pixels
        assert not shown[OUTSIDE].any() and shown[~OUTSIDE].any()


def test_windows_that_show_nothing_are_remarked():
    found = decode.picture(ct(), 0, windows.parse('9000/10'))
    assert found.remarks == ('its window makes one value of all its pixels',) and not found.pixels.any()
    assert decode.picture(ct(), 0, windows.parse('lung,9000/10,9000/10')).remarks == ()


@pytest.mark.parametrize(
    ('data', 'why'),
    [
        (dicom(values(0, 3000, np.int16), Modality='MR', RescaleSlope=1, RescaleIntercept=0), 'this is no CT'),
        (dicom(values(0, 3000, np.int16), Modality='CT'), 'no RescaleSlope and no RescaleIntercept'),
        (ct(RescaleType='US'), 'another RescaleType than HU'),
        (ct(RescaleType='Z_EFF'), 'another RescaleType than HU'),
        (ct(RescaleSlope=0), 'its rescale makes one value'),
        (ct(ModalityLUTSequence=[lut(0, 3000, list(range(3001)))]), 'a modality LUT instead'),
        (dicom(np.zeros((9, 7, 3), np.uint8), Modality='CT'), 'in colour'),
        (as_file(values(0, 255, np.uint8)[..., None], 'PNG'), 'this is a PNG'),
    ],
    ids=['mr', 'no rescale', 'no HU', 'atomic numbers', 'one value', 'table', 'colour', 'png'],
)
def test_windows_are_for_ct(data, why):
    with pytest.raises(Unreadable, match='--window is for CT') as error:
        decode.picture(data, 0, windows.parse('lung'))
    assert why in str(error.value)
    assert ("--where 'modality=CT'" in str(error.value)) == (why == 'this is no CT')  # it keeps other CT


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('lungs', "did you mean 'lung'"),
        ('lung,bone', 'not 2'),
        ('lung,bone,brain,liver', 'not 4'),
        ('40/0', 'larger than 0'),
        ('40', 'no window of this name'),
        ('40/-3', 'no window of this name'),
        ('', 'a name is missing; known: abdomen'),
        ('lung,,bone', 'a name is missing'),
        ('40,400', 'a window is centre/width'),
        ('40,5/400', 'decimals with a dot'),
    ],
)
def test_windows_that_are_none(text, words):
    with pytest.raises(UserError, match=words):
        windows.parse(text)


# Reasons -----------------------------------------------------------------------------------------------------------


def test_reasons_name_the_step():
    stored = values(0, 3000, np.uint16)
    broken = dicom(stored, RescaleSlope='1.00', RescaleIntercept='1.00').replace(b'DS\4\x001.00', b'DS\4\x00DOE ')
    coded = coded_dicom([b'\xff\xd8\xff\xc0' + bytes(40) + b'\xff\xd9'], stored[..., None], '1.2.840.10008.1.2.4.50')
    for data, words in (
        (broken, 'its rescale slope and intercept'),
        (coded, 'JPEG'),
    ):
        with pytest.raises(Unreadable, match=words) as error:
            decode.read(data)
        assert 'Error' not in str(error.value) and 'DOE' not in str(error.value)
