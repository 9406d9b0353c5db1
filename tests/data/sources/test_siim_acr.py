"""SIIM-ACR: several masks of an image are joined; faults of the table become labels or drops."""

import numpy as np
import pytest
from releases_dicom import assert_hidden, build, by_image, csv, dicom, labels, reasons

from medjax.data.releases import rle
from medjax.data.sources import siim_acr
from medjax.data.types import BLANK, CONFLICTING, Unreadable
from medjax.errors import UserError


def uid(n: int) -> str:
    return f'1.2.276.0.7230010.3.1.4.8323329.{n}.1517875201'


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'siim'
    for n in (1, 2, 3, 4, 5, 6):
        dicom(root / 'dicom-images-train' / f's{n}' / f'e{n}' / f'{uid(n)}.dcm', n, ViewPosition='PA', PatientAge='61')
    dicom(root / 'dicom-images-train' / 's8' / 'e8' / f'{uid(8)}.dcm', 8, ViewPosition='AP', PatientAge='413')
    dicom(root / 'dicom-images-test' / 's9' / 'e9' / f'{uid(9)}.dcm', 9)
    (root / 'dicom-images-train' / 's8' / 'e8' / 'readme.txt').write_text('x')
    csv(
        root / 'train-rle.csv',
        'ImageId, EncodedPixels',
        f'{uid(1)}, -1',
        f'{uid(2)},3 2 19 1',  # column 0: rows 3, 4; then 19 on: row 4 of column 1
        f'{uid(2)},60 5',
        f'{uid(3)},-1',
        f'{uid(3)},1 2',
        f'{uid(4)},',
        f'{uid(5)},some words',
        f'{uid(6)},300 40',  # leaves the image
        f'{uid(7)},-1',
        f'{uid(8)},-1',
        'too,many,cells',
    )
    return root


def test_lines_become_one_record_for_each_image(folder, tmp_path):
    source = siim_acr.source(str(folder))
    assert {image: list(codes.values()) for image, codes in labels(source).items()} == {
        uid(1): [0], uid(2): [1], uid(3): [CONFLICTING], uid(4): [BLANK], uid(5): [BLANK], uid(6): [1], uid(8): [0],
    }  # fmt: skip
    assert reasons(source) == {
        'train-rle.csv line 10': 'there is no such file',
        'train-rle.csv line 8': 'EncodedPixels is neither runs nor -1; this line is ignored',
        'train-rle.csv line 12': '3 cells where the header has 2',
    }
    assert '1 image file in the folder is not in train-rle.csv and left out' in source.notes
    assert any('NIH' in note for note in source.notes)

    mask = source.load(by_image(source)[uid(2)]).mask
    expected = np.zeros((20, 16), np.uint8)
    expected[[3, 4], 0], expected[4, 1], expected[0:5, 3] = 255, 255, 255
    np.testing.assert_array_equal(mask, expected)
    assert source.masks == ('pneumothorax',)
    assert not source.load(by_image(source)[uid(1)]).mask.any()  # a mask that says: nothing here
    assert source.load(by_image(source)[uid(4)]).mask is None

    data, summary = build(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 7 and data.labels == ('pneumothorax',)
    assert {'frontal'} == {role for split in data.splits for role in data.split(split).column('role')}
    ages = np.concatenate([data.split(split).column('age') for split in data.splits])
    assert np.isnan(ages).sum() == 1 and np.nanmax(ages) == 61  # 413 years are none
    parts = [drop.reason for drop in summary['drops'] if drop.scope == 'detail']
    assert 'the mask is left out: its runs leave the image of 16x20 pixels' in parts
    assert_hidden(data, uid(1), uid(7), 'MRN-4711', 'Doe')


def test_what_is_refused(folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='train-rle.csv is missing; give the folder that holds'):
        siim_acr.source(str(tmp_path / 'empty'))
    csv(tmp_path / 'empty' / 'train-rle.csv', 'ImageId, EncodedPixels', f'{uid(1)}, -1')
    with pytest.raises(UserError, match='none of the 1 images'):
        siim_acr.source(str(tmp_path / 'empty'))
    csv(folder / 'train-rle.csv', 'ImageId,Pixels', f'{uid(1)},-1')
    with pytest.raises(UserError, match='column EncodedPixels is missing'):
        siim_acr.source(str(folder))


def test_runs_equal_a_slow_reading_pixel_by_pixel():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = rng.random((7, 5)) < 0.4
        runs, skip, length = [], 0, 0
        for pixel in [*truth.T.reshape(-1), False]:  # pixel by pixel, down the columns
            if pixel:
                length += 1
            elif length:
                runs += [skip, length]
                skip, length = 1, 0
            else:
                skip += 1
        np.testing.assert_array_equal(rle.mask([' '.join(map(str, runs))], (7, 5)) == 255, truth)
    with pytest.raises(Unreadable, match='odd number'):
        rle.mask(['1 2 3'], (7, 5))
    with pytest.raises(Unreadable, match='leave the image'):
        rle.mask(['1 99999999999999999999'], (7, 5))
