"""Hostile files of small size, and ten thousand mutated files: bounded time and memory, pixels or a reason.

As a script it reads mutated files. It writes the number of each file to file descriptor 3: the last number is the file
of a crash or a hang.
    python tests/data/images/test_mutated.py FAMILY FIRST COUNT
"""

from __future__ import annotations

import collections
import faulthandler
import functools
import io
import json
import os
import pathlib
import random
import re
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from damaged_files import (
    BASELINE,
    DEFLATED,
    J2K,
    RLE,
    chunk,
    coded_dicom,
    exif,
    grey,
    interlaced_png,
    of_pydicom,
    packed_dicom,
    png,
    resized,
)  # fmt: skip
from image_files import dicom, file, smooth
from PIL import Image

from medjax.data.images import decode, dicom as films, windows
from medjax.data.types import Unreadable

MUTANTS = 10_000  # of four of the five families together
SECONDS = 20  # for one file; the slowest takes some hundredths
MEMORY = 3 << 30  # address space of a process; the files are tiny

# Bombs -------------------------------------------------------------------------------------------------------------


def bombs() -> dict[str, tuple[bytes, str]]:
    """Name -> a small file that needs gigabytes if its header is trusted, and words of its reason ('': it is read)."""
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
    """The largest resident size of this process, MB. (The value of getrusage is inherited from the parent process.)"""
    status = pathlib.Path('/proc/self/status').read_text()
    return int(re.search(r'VmHWM:\s+(\d+)', status)[1]) >> 10


def read_bombs() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    for name, (data, words) in bombs().items():
        assert len(data) < 2 << 20, name
        reason = ''
        try:
            decode.read(data)
        except Unreadable as error:
            reason = str(error)
        assert words in reason and bool(words) == bool(reason), f'{name}: {reason or "was read"}'
        if 'deflated' not in name:  # it takes a second each time
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
    """The intact files of a kind; mutated files are made from them."""
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
        rows = b''.join(b'\0' + row.tobytes() for row in np.repeat(smooth(17, 16, top=65_535), 2, 2).astype('>u2'))
        return (*plain, interlaced_png(small), buffer.getvalue(), png(16, 17, 16, 4, rows))
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
    if name == 'fields':
        return with_fields(facts)
    return (
        coded_dicom([file(small, 'JPEG')], small, BASELINE, **facts),
        packed_dicom(smooth(33, 32, top=65_535)[..., 0], J2K, **facts),
        of_pydicom('JPEG2000.dcm'),
        of_pydicom('JPEGLSNearLossless_08.dcm'),
        of_pydicom('SC_rgb_jls_lossy_line.dcm'),
        of_pydicom('SC_rgb_jpeg_gdcm.dcm'),
    )


def with_fields(facts: dict) -> tuple[bytes, ...]:
    """Files with tables, palettes, functional groups, padding, and colours that contradict the header."""
    from pydicom.dataset import Dataset

    def item(**fields) -> Dataset:
        one = Dataset()
        for field, (vr, value) in fields.items():
            one.add_new(field, vr, value)
        return one

    small = smooth(17, 16, top=65_535)[..., 0]
    ramp = np.arange(256, dtype=np.uint16).astype('<u2').tobytes()
    words = item(LUTDescriptor=('US', [256, 65_000, 12]), LUTData=('OW', ramp))
    numbers = item(LUTDescriptor=('US', [0, 0, 16]), LUTData=('US', list(range(0, 4096, 16))))
    scale = item(RescaleSlope=('DS', '2'), RescaleIntercept=('DS', '-1024'))
    window = item(WindowCenter=('DS', '40'), WindowWidth=('DS', '400'))
    spacing = item(PixelSpacing=('DS', ['0.7', '0.9']))
    group = item(
        PixelValueTransformationSequence=('SQ', [scale]), FrameVOILUTSequence=('SQ', [window]),
        PixelMeasuresSequence=('SQ', [spacing]),
    )  # fmt: skip
    segments = struct.pack('<4H', 0, 2, 0, 9) + struct.pack('<3H', 1, 200, 60_000) + struct.pack('<4H', 2, 1, 0, 0)
    palette = {
        f'{kind}{colour}PaletteColorLookupTable{end}': field
        for kind, colours, table in (('', ('Red', 'Green'), ramp), ('Segmented', ('Blue',), segments))
        for colour in colours
        for end, field in (('Data', ('OW', table)),)
    } | {f'{colour}PaletteColorLookupTableDescriptor': ('US', [256, 0, 16]) for colour in ('Red', 'Green', 'Blue')}
    run = np.stack([small, small[::-1]]) >> 4
    colour = file(smooth(17, 16, 3), 'JPEG')
    return (
        dicom(small, VOILUTSequence=[words, numbers], PixelPaddingValue=('US', 7), PixelSpacing=['1', '2'], **facts),
        dicom(small, big=True, ModalityLUTSequence=[numbers], WindowCenter=300, WindowWidth=9, **facts),
        dicom(small.astype(np.uint8), PhotometricInterpretation='PALETTE COLOR', **palette, **facts),
        dicom(run, frames=2, PerFrameFunctionalGroupsSequence=[group] * 2, Modality='CT', **facts),
        dicom(run, frames=2, SharedFunctionalGroupsSequence=[group], Modality='CT', **facts),
        dicom(run, frames=2, PixelPaddingValue=('SS', -2), PixelPaddingRangeLimit=('SS', 90), **facts),
        coded_dicom([colour], smooth(17, 16, 3), BASELINE, **facts),
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
    """A file of the family, damaged in one to eight places. The seed alone determines it."""
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
    """The PNG with correct checksums, so that its damage reaches the decoder."""
    chunks, at = [data[:8]], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], 'big')
        if length > len(data):
            return data
        chunks.append(chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += length + 12
    return b''.join(chunks)


def read_mutants(name: str, first: int, count: int) -> None:
    """Reads mutated files and prints the number of each result. A hang ends the process with a traceback."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    faulthandler.enable()
    ends: collections.Counter[str] = collections.Counter()
    for seed in range(first, first + count):
        os.pwrite(3, f'{seed:10}'.encode(), 0)
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        data = mutated(name, seed)
        try:
            found = decode.picture(
                data,
                seed % 2 if name == 'fields' else 0,
                windows.parse('lung') if seed % 5 == 0 and name == 'fields' else (),
            )
            pixels = found.pixels
            assert (
                all(len(remark) < 200 and 'DOE' not in remark for remark in found.remarks) and 0.1 <= found.aspect <= 10
            )
        except Unreadable as error:
            words = str(error)
            assert 0 < len(words) < 300 and words.isprintable(), words
            assert 'DOE' not in words and ' at 0x' not in words and 'memory' not in words, words
            assert not re.search(r'Error\b|Exception|object of type|NoneType', words), words  # words of Python
            ends['a reason'] += 1
        else:
            assert (
                pixels.dtype in (np.uint8, np.uint16) and pixels.ndim == 3 and pixels.shape[2] in (1, 3) and pixels.size
            )
            ends['pixels'] += 1
            if name == 'jpeg' and (kept := decode.keepable(data)):  # the stored file has the same pixels
                again = decode.decode(kept, pixels.shape[2], 8)
                assert b'DOE' not in kept and (pixels.shape[2] == 3 or again.shape == pixels.shape)
                assert pixels.shape[2] == 1 or (again == pixels).all()
        if name not in ('jpeg', 'png'):
            assert films.frames(io.BytesIO(data)) <= max(len(data), 1)
            films.attributes(data)
            films.shape(data)
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(dict(ends, megabytes=peak())))


def child(*arguments: object, at: int | None = None) -> subprocess.CompletedProcess[str]:
    """Runs this file as a script, with the warnings of libraries on. `at` becomes its file descriptor 3."""
    root = pathlib.Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), str(root / 'tests'), *filter(None, [os.environ.get('PYTHONPATH')])])
    return subprocess.run(
        [sys.executable, '-W', 'always::UserWarning', '-W', 'always::RuntimeWarning', __file__, *map(str, arguments)],
        env=os.environ | {'PYTHONPATH': paths, 'OPENBLAS_NUM_THREADS': '1'},
        capture_output=True, text=True, timeout=600,
        preexec_fn=None if at is None else functools.partial(os.dup2, at, 3), close_fds=at is None,
    )  # fmt: skip


@pytest.mark.parametrize('name', ['jpeg', 'png', 'dicom', 'coded', 'fields'])
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
    assert min(ends['pixels'], ends['a reason']) > count // 20  # else the damage is too small or too large
    assert ends['megabytes'] < 600


if __name__ == '__main__':
    if sys.argv[1] == 'bombs':
        read_bombs()
    else:
        read_mutants(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
