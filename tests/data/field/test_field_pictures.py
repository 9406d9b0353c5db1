"""Pictures as other people's files have them: every case of dicoms.py and png_grey_alpha16.py against wants.json.

In wants.json, `profile` are the grey values (0 to 1) of the columns 0, 16, 32, 48 and 63 of the middle row, of every
frame unless `last_is` gives the value of all columns outside the vessel. `why` says why an open choice was made so.
"""

import io
import json
import pathlib
import sys

import numpy as np
import pytest

from medjax.commands import build
from medjax.data import records
from medjax.data.format import read_drops
from medjax.data.images import decode, dicom as dicom_headers

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
import dicoms  # noqa: E402
import png_grey_alpha16  # noqa: E402

WANTS = json.loads((HERE / 'wants.json').read_text())
COLUMNS = [0, 16, 32, 48, 63]


def written(case) -> bytes:
    buffer = io.BytesIO()
    case().save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def unit(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(float) / np.iinfo(pixels.dtype).max


def test_every_case_has_a_wanted_answer():
    ours = {name for name in WANTS if name.startswith(('dicoms/', 'png_grey_alpha16'))}
    assert ours == {'png_grey_alpha16', *(f'dicoms/{case.__name__}' for case in dicoms.CASES)}


@pytest.mark.parametrize('case', dicoms.CASES, ids=lambda case: case.__name__)
def test_dicom(case):
    want, data = WANTS[f'dicoms/{case.__name__}'], written(case)
    count = dicom_headers.frames(io.BytesIO(data))
    assert count == want.get('frames', 1)
    pictures = [decode.picture(data, frame) for frame in range(count)]
    assert [picture.remarks for picture in pictures] == [(want['remark'],) if 'remark' in want else ()] * count
    shown = [unit(picture.pixels) for picture in pictures]
    if 'last_is' in want:  # a vessel fills: the rest of the picture must not change
        np.testing.assert_allclose(shown[0][32, COLUMNS, 0], want['profile'], atol=0.01)
        for picture in shown:
            np.testing.assert_allclose(picture[63, :, 0], want['last_is'], atol=0.01)
    elif 'profile' in want:
        for picture in shown:
            assert picture.shape == (64, 64, 1)
            np.testing.assert_allclose(picture[32, COLUMNS, 0], want['profile'], atol=0.01)
    if 'corner' in want:
        assert (shown[0][[0, 0, -1, -1], [0, -1, 0, -1]] == want['corner']).all()
    for name, column in (('left', 10), ('right', 50), ('first_column', 0), ('last_column', 63)):
        if name in want:
            seen = pictures[0].pixels[:, column].astype(int)
            assert pictures[0].pixels.shape == (64, 64, 3) and np.abs(seen - want[name]).max() <= 3
    if want.get('profiles_are_equal'):
        assert np.abs(shown[0] - shown[1]).max() < 0.003  # the halved values were rounded
    for name, value in want.get('attributes', {}).items():
        assert dicom_headers.attributes(data)[name] == value


def test_the_same_picture_in_either_byte_order():
    np.testing.assert_array_equal(
        *(decode.read(written(getattr(dicoms, f'palette_{end}'))) for end in ('big', 'little'))
    )


def test_png():
    want, picture = WANTS['png_grey_alpha16'], decode.read(png_grey_alpha16.grey_alpha())
    assert picture.dtype == want['dtype'] and (picture.min(), picture.max()) == (want['least'], want['most'])
    np.testing.assert_array_equal(picture[..., 0], np.linspace(0, 4095, 64).round()[None].repeat(64, 0))


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    """All cases as an export, built once: the data set and the records by the case's name."""
    root = tmp_path_factory.mktemp('field')
    for k, case in enumerate(dicoms.CASES):
        file = case()
        file.PatientID = f'P{k:02d}'
        (root / 'export').mkdir(exist_ok=True)
        file.save_as(root / 'export' / f'{case.__name__}.dcm', enforce_file_format=True)
    return root


@pytest.mark.parametrize('case', [case for case in dicoms.CASES if 'build_remark' in WANTS[f'dicoms/{case.__name__}']])
def test_a_build_says_it(built, tmp_path, capsys, case):
    want = WANTS[f'dicoms/{case.__name__}']
    (tmp_path / 'one').mkdir()
    (tmp_path / 'one' / 'file').write_bytes(written(case))
    build.main(['dicom', str(tmp_path / 'one'), '--out', str(tmp_path / 'data')])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith('    1 x '))
    assert want['build_remark'] in line and line.endswith('(file 1)')
    data = records.open(tmp_path / 'data')
    assert [count for remark, count in data.remarks.items() if remark.startswith(want['build_remark'])] == [1]
    (split,) = data.splits
    if 'stored_shape' in want:
        assert data.split(split).image(0).shape[:2] == tuple(want['stored_shape'])
    if 'where' in want:
        out = str(tmp_path / 'fewer')
        build.main(['dicom', str(built / 'export'), '--out', out, '--where', want['where']])
        reasons = [drop.reason for drop in read_drops(tmp_path / 'fewer' / 'drops.csv') if drop.scope == 'record']
        assert reasons == [f'left out by --where {want["where"]}']


def test_a_build_counts_its_remarks(built, tmp_path, capsys):
    build.main(['dicom', str(built / 'export'), '--out', str(tmp_path / 'data')])
    out = capsys.readouterr().out
    data = records.open(tmp_path / 'data')
    assert sum(data.splits.values()) == 25  # 22 files, two of them with 2 and 3 frames
    assert 'kept, with a remark' in out and out.count('    1 x ') == 4 == sum(data.remarks.values())
