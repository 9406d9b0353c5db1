"""Lookup tables of DICOM headers: what the file holds counts, whatever its descriptor says."""

import io
import struct
import time

import numpy as np
import pytest
from image_files import dicom

from medjax.data.images import decode, lookup
from medjax.data.types import Unreadable

DEEP = np.linspace(0, 65_535, 96).round().astype(np.uint16).reshape(8, 12)


def item(descriptor, data, vr='OW', descriptor_vr='US'):
    import pydicom

    one = pydicom.Dataset()
    one.add_new('LUTDescriptor', descriptor_vr, descriptor)
    one.add_new('LUTData', vr, data)
    return one


def unit(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., 0].astype(float) / np.iinfo(pixels.dtype).max


@pytest.mark.parametrize('vr', ['US', 'OW', 'OB', 'UN', 'SS'])
@pytest.mark.parametrize('bits', [8, 12, 16])
@pytest.mark.parametrize('stated', [8, 10, 16])
def test_a_table_is_read_in_every_writing(vr, bits, stated):
    entries = np.linspace(0, 2**bits - 1, 256).round().astype(int)[::-1]
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    if vr in ('US', 'SS'):
        data = [int(v) - 65_536 * (vr == 'SS' and v > 32_767) for v in entries]
    else:
        data = entries.astype('<u2').tobytes()
    read = decode.read(dicom(pixels, VOILUTSequence=[item([256, 0, stated], data, vr)]))
    np.testing.assert_allclose(unit(read).reshape(-1), entries / entries.max(), atol=0.003)


@pytest.mark.parametrize('vr', ['OW', 'OB'])
@pytest.mark.parametrize('count', [255, 256])
def test_entries_of_one_byte(vr, count):
    pixels = np.arange(count, dtype=np.uint8)[None]
    entries = bytes(range(count - 1, -1, -1)) + b'\0' * (count % 2)
    read = decode.read(dicom(pixels, VOILUTSequence=[item([count, 0, 8], entries, vr)]))
    np.testing.assert_allclose(unit(read)[0], np.arange(count - 1, -1, -1) / (count - 1), atol=0.003)


def test_two_entries_in_a_word():
    words = [low | low + 1 << 8 for low in range(0, 256, 2)]
    read = decode.read(dicom(np.arange(256, dtype=np.uint8)[None], VOILUTSequence=[item([256, 0, 8], words, 'US')]))
    np.testing.assert_array_equal(read[0, :, 0], np.arange(256))


def test_byte_order_is_that_of_the_syntax():
    table = (np.linspace(0, 1, 4096) ** 2 * 40_000).round().astype(np.uint16)
    pixels = (DEEP >> 4).astype(np.uint16)
    facts = dict(BitsStored=12, WindowCenter=None)
    want = decode.read(dicom(pixels, VOILUTSequence=[item([4096, 0, 16], table.tobytes())], **facts))
    for vr, data in (('OW', table.astype('>u2').tobytes()), ('US', table.tolist())):
        got = decode.read(dicom(pixels, big=True, VOILUTSequence=[item([4096, 0, 16], data, vr)], **facts))
        np.testing.assert_array_equal(got, want)
    assert want.max() > 65_000  # as bright as the table goes, whatever 16 bits could hold
    swapped = np.arange(256, dtype=np.uint8).reshape(-1, 2)[:, ::-1].tobytes()  # bytes in big-endian words
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    got = decode.read(dicom(ramp, big=True, VOILUTSequence=[item([256, 0, 8], swapped)]))
    np.testing.assert_array_equal(got[..., 0], ramp)


def test_no_number_of_entries_means_65536():
    table = np.arange(65_536, dtype=np.uint16)[::-1]
    read = decode.read(dicom(DEEP, VOILUTSequence=[item([0, 0, 16], table.tobytes())]))
    np.testing.assert_array_equal(read[..., 0], 65_535 - DEEP)


@pytest.mark.parametrize('stated', [1, 300, 2000, 0])
def test_the_stated_number_of_entries_is_not_believed(stated):
    table = np.linspace(0, 1023, 1024).astype(np.uint16)
    pixels = np.linspace(0, 1023, 96).round().astype(np.uint16).reshape(8, 12)
    read = decode.read(dicom(pixels, BitsStored=10, VOILUTSequence=[item([stated, 0, 10], table.tobytes())]))
    np.testing.assert_allclose(unit(read), pixels / 1023, atol=1e-4)


@pytest.mark.parametrize(('dtype', 'first'), [(np.int16, -700), (np.int16, 65_536 - 700), (np.uint16, 40_000)])
@pytest.mark.parametrize('vr', ['US', 'SS'])
@pytest.mark.parametrize('name', ['VOILUTSequence', 'ModalityLUTSequence'])
def test_the_sign_of_the_first_value_is_that_of_the_pixels(dtype, first, vr, name):
    start = first if dtype == np.uint16 else -700
    pixels = np.linspace(start, start + 1400, 96).round().astype(dtype).reshape(8, 12)
    written = first % 65_536 if vr == 'US' else (first % 65_536) - 65_536 * (first % 65_536 > 32_767)
    table = np.arange(1401) * 2
    data = dicom(pixels, **{name: [item([1401, written, 16], table.tolist(), 'US', vr)]})
    np.testing.assert_allclose(unit(decode.read(data)), (pixels.astype(int) - start) / 1400, atol=1e-3)


def test_rescaling_gives_a_table_negative_values():
    pixels = np.linspace(0, 4000, 96).round().astype(np.uint16).reshape(8, 12)
    table = item([4001, 65_536 - 1024, 12], (np.arange(4001) % 4096).tolist(), 'US')
    data = dicom(pixels, BitsStored=12, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=[table])
    np.testing.assert_allclose(unit(decode.read(data)), pixels / 4000, atol=1e-3)


def test_values_beside_the_table_get_its_ends():
    pixels = np.arange(96, dtype=np.uint8).reshape(8, 12)
    read = decode.read(dicom(pixels, VOILUTSequence=[item([11, 40, 8], list(range(100, 210, 10)), 'US')]))
    np.testing.assert_allclose(unit(read), np.clip(100 + 10 * (pixels.astype(int) - 40), 100, 200) / 200, atol=0.003)


def test_items_without_a_table_are_none():
    import pydicom

    empty, only_descriptor, blank = pydicom.Dataset(), item([256, 0, 8], None), item([256, 0, 8], b'')
    del only_descriptor['LUTData']
    pixels = np.arange(96, dtype=np.uint8).reshape(8, 12)
    plain = decode.read(dicom(pixels, WindowCenter=50, WindowWidth=60))
    for name in ('VOILUTSequence', 'ModalityLUTSequence'):
        for items in ([], [empty], [only_descriptor], [blank], [empty, blank]):
            read = decode.read(dicom(pixels, WindowCenter=50, WindowWidth=60, **{name: items}))
            np.testing.assert_array_equal(read, plain)
    second = [empty, item([256, 0, 8], bytes(range(255, -1, -1)))]
    read = decode.read(dicom(pixels, WindowCenter=50, WindowWidth=60, VOILUTSequence=second))
    np.testing.assert_array_equal(read[..., 0], 255 - pixels)


def test_a_table_beside_the_values_gives_way_to_the_window():
    pixels = np.arange(96, dtype=np.uint8).reshape(8, 12)
    beside = [item([20, 200, 8], list(range(20)), 'US')]
    found = decode.picture(dicom(pixels, WindowCenter=50, WindowWidth=60, VOILUTSequence=beside))
    np.testing.assert_array_equal(found.pixels, decode.read(dicom(pixels, WindowCenter=50, WindowWidth=60)))
    assert found.remarks == ('its VOI LUT makes one value of all its pixels, so it is not used',)


@pytest.mark.parametrize('descriptor', [[256, 0], [256]])
def test_a_damaged_modality_table_is_named(descriptor):
    pixels = np.arange(96, dtype=np.uint8).reshape(8, 12)
    words = f'damaged DICOM: its modality LUT has a descriptor of {len(descriptor)} numbers'
    with pytest.raises(Unreadable, match=words):
        decode.read(dicom(pixels, ModalityLUTSequence=[item(descriptor, bytes(256))]))


def without_descriptor() -> object:
    one = item([96, 0, 8], bytes(96))
    del one['LUTDescriptor']
    return one


@pytest.mark.parametrize(
    'broken',
    [without_descriptor(), item([96, 0], bytes(96)), item([96], bytes(96)), item(['x'], bytes(96), 'OW', 'LO')],
)
def test_a_broken_table_gives_way_to_the_next_one(broken):
    pixels = np.arange(96, dtype=np.uint8).reshape(8, 12)
    good, window = item([96, 0, 8], bytes(range(200, 8, -2))), dict(WindowCenter=50, WindowWidth=60)
    remark = 'its VOI LUT cannot be read, so it is not used'
    for first, others, same in (
        ([broken, good], window, dict(VOILUTSequence=[good])),
        ([broken], window, window),
        ([broken], {}, {}),
    ):
        found = decode.picture(dicom(pixels, VOILUTSequence=first, **others))
        assert found.remarks == (remark,)
        np.testing.assert_array_equal(found.pixels, decode.read(dicom(pixels, **same)))
    second = decode.picture(dicom(pixels, VOILUTSequence=[item([9, 200, 8], list(range(9)), 'US'), broken, good]))
    assert second.remarks == (
        'its VOI LUT 2 cannot be read, so it is not used',
        'its VOI LUT makes one value of all its pixels, so it is not used',
    )
    np.testing.assert_array_equal(second.pixels, decode.read(dicom(pixels, VOILUTSequence=[good])))


# Palettes ----------------------------------------------------------------------------------------------------------


def coloured(pixels: np.ndarray, tables: list, descriptor, vr='OW', kind='', **options) -> bytes:
    """A DICOM file of three palettes. `kind`: '' or 'Segmented'."""
    fields = {}
    for colour, table in zip(('Red', 'Green', 'Blue'), tables, strict=True):
        fields[f'{colour}PaletteColorLookupTableDescriptor'] = 'US', descriptor
        fields[f'{kind}{colour}PaletteColorLookupTableData'] = vr, table
    return dicom(pixels, PhotometricInterpretation='PALETTE COLOR', **fields, **options)


RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
RGB = [np.arange(256), 255 - np.arange(256), np.arange(256) // 3]


@pytest.mark.parametrize(
    ('entries', 'bits', 'vr'),
    [
        (lambda t: (t * 256).astype('<u2').tobytes(), 16, 'OW'),
        (lambda t: (t * 257).astype('<u2').tobytes(), 16, 'OW'),
        (lambda t: t.astype(np.uint8).tobytes(), 8, 'OW'),
        (lambda t: t.astype(np.uint8).tobytes(), 8, 'OB'),
        (lambda t: t.astype('<u2').tobytes(), 8, 'OW'),  # a byte in a word, as gdcm meets them
        (lambda t: t.astype('<u2').tobytes(), 16, 'OW'),  # 16 are stated, and 8 bits are there
        (lambda t: (t * 256).astype('<u2').tobytes(), 8, 'OW'),  # and the other way round
        (lambda t: (t * 16).astype('<u2').tobytes(), 16, 'OW'),  # 12 bits
    ],
)
def test_palettes_in_every_writing(entries, bits, vr):
    read = decode.read(coloured(RAMP, [entries(table) for table in RGB], [256, 0, bits], vr))
    want = np.stack(RGB, -1)[RAMP]
    assert read.dtype == np.uint8 and np.abs(read.astype(int) - want).max() <= 1


def test_palettes_in_big_endian():
    words = [(table * 256).astype('>u2').tobytes() for table in RGB]
    little = decode.read(coloured(RAMP, [(t * 256).astype('<u2').tobytes() for t in RGB], [256, 0, 16]))
    np.testing.assert_array_equal(decode.read(coloured(RAMP, words, [256, 0, 16], big=True)), little)
    packed = [table.astype(np.uint8).reshape(-1, 2)[:, ::-1].tobytes() for table in RGB]
    np.testing.assert_array_equal(decode.read(coloured(RAMP, packed, [256, 0, 8], big=True)), little)


def test_palettes_with_an_offset_and_of_65536_entries():
    read = decode.read(coloured(RAMP, [bytes(range(0, 200, 2))] * 2 + [bytes(range(100))], [100, 50, 8]))
    np.testing.assert_array_equal(read[..., 0], np.clip(RAMP.astype(int) - 50, 0, 99) * 2)
    whole = np.arange(65_536).astype('<u2').tobytes()
    down = np.arange(65_535, -1, -1).astype('<u2').tobytes()
    read = decode.read(coloured(DEEP, [whole, down, whole], [0, 0, 16]))
    np.testing.assert_array_equal(read[..., 0], DEEP >> 8)
    np.testing.assert_array_equal(read[..., 1], 65_535 - DEEP >> 8)


def segments(size: str, scale: int) -> bytes:
    """0 to 99 as they are, then a line up to 255, in segments of bytes ('B') or words ('<H')."""
    code = lambda *words: b''.join(struct.pack(size, word) for word in words)  # noqa: E731
    return code(0, 100, *[k * scale for k in range(100)]) + code(1, 156, 255 * scale)


@pytest.mark.parametrize(('size', 'scale', 'bits'), [('B', 1, 8), ('<H', 256, 16)])
def test_segmented_palettes(size, scale, bits):
    data = segments(size, scale)
    data += b'\0' * (len(data) % 2)
    read = decode.read(coloured(RAMP, [data] * 3, [256, 0, bits], kind='Segmented'))
    np.testing.assert_array_equal(read, RAMP[..., None])  # equal channels are grey


def test_a_segment_that_points_back():
    first = struct.pack('<4H', 0, 2, 0, 1 << 8) + struct.pack('<3H', 1, 2, 3 << 8)
    again = struct.pack('<4H', 2, 2, 0, 0)  # the first two segments once more
    table = lookup.segmented([8, 0, 16], first + again, 0, 255, True, 'it')
    assert table.entries.tolist() == [0, 256, 512, 768] * 2


@pytest.mark.parametrize(
    'words',
    [[0, 500, 1], [7, 1, 1], [1, 5, 300], [2, 1, 0, 0], [0, 1, 1, 2, 1, 6, 0], [0, 1, 1, 2, 60_000, 9, 9], [0]],
)
def test_damaged_segments_are_refused(words):
    with pytest.raises(Unreadable, match='segment'):
        lookup.segmented([256, 0, 16], np.array(words, '<u2').tobytes(), 0, 255, True, 'the red table of its palette')


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('kind', [0, 1])
def test_segments_without_entries_take_no_time(bits, kind):
    """Many pointers, each of which reads many segments of length 0."""
    most = 2 ** min(bits, 15) - 1
    place = 5 * (bits // 8)  # after the first segment of three entries
    empty = [kind, 0, *[7] * kind]
    pointer = [2, most, place, 0, *[0, 0] * (bits == 8)]
    words = np.array([0, 3, 1, 2, 3, *empty * most, *pointer * 4000], f'<u{bits // 8}')
    start = time.monotonic()
    with pytest.raises(Unreadable, match='a segment that cannot be read'):
        lookup.segmented([256, 0, bits], words.tobytes(), 0, 255, True, 'the red table of its palette')
    assert time.monotonic() - start < 5


def test_some_segments_without_entries_are_passed_over():
    words = np.array([0, 2, 4, 5, 0, 0, 1, 0, 9, 0, 1, 6, 0, 0], '<u2')
    assert lookup.segmented([4, 0, 16], words.tobytes(), 0, 255, True, 'it').entries.tolist() == [4, 5, 6]


def test_a_palette_that_lacks_a_table():
    data = coloured(RAMP, [bytes(256), bytes(256), b''], [256, 0, 8])
    with pytest.raises(Unreadable, match='the blue table of its palette is missing'):
        decode.read(data)


def test_a_packed_palette_is_the_same():
    import pydicom

    tables = [(table * 256).astype('<u2').tobytes() for table in RGB]
    plain = coloured(RAMP, tables, [256, 0, 16])
    file = pydicom.dcmread(io.BytesIO(plain))
    file.compress('1.2.840.10008.1.2.5', encoding_plugin='pydicom')
    buffer = io.BytesIO()
    file.save_as(buffer)
    np.testing.assert_array_equal(decode.read(buffer.getvalue()), decode.read(plain))
