"""Shenzhen and Montgomery: facts in readings, one mask for each lung, palettes, copies of films."""

import numpy as np
import pytest
from PIL import Image
from releases_dicom import assert_hidden, build, by_image, csv, labels, png

from medjax.data.sources import tb_lung
from medjax.errors import UserError

CHINA, COUNTY = 'ChinaSet_AllFiles', 'MontgomerySet'


def mask(path, rows: slice, columns: slice, shape=(20, 16), mode='L') -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(shape, np.uint8)
    values[rows, columns] = 255
    Image.fromarray(values).convert(mode).save(path)
    return values


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'tb'
    for n, name in enumerate(('CHNCXR_0001_0', 'CHNCXR_0327_1', 'CHNCXR_0328_1')):
        png(root / CHINA / 'CXR_png' / f'{name}.png', n, mode='P')
    for n, name in enumerate(('MCUCXR_0001_0', 'MCUCXR_0104_1', 'MCUCXR_0105_1')):
        png(root / COUNTY / 'CXR_png' / f'{name}.png', 10 + n)
    png(root / COUNTY / 'CXR_png' / 'Thumbs_0001.png', 20)
    png(root / 'test' / 'CHNCXR_0001_0.png', 0, mode='RGB')
    csv(root / CHINA / 'ClinicalReadings' / 'CHNCXR_0001_0.txt', 'male 45yrs', 'normal')
    csv(root / CHINA / 'ClinicalReadings' / 'CHNCXR_0327_1.txt', 'Female, 93yrs ', '', '1.bilateral PTB', '2.fibrosis')
    csv(root / COUNTY / 'ClinicalReadings' / 'MCUCXR_0001_0.txt', "Patient's Sex: F ", "Patient's Age: 027Y", 'normal')
    csv(root / COUNTY / 'ClinicalReadings' / 'MCUCXR_0104_1.txt', "Patient's Sex: O", "Patient's Age: unknown", 'TB.')
    csv(root / COUNTY / 'ClinicalReadings' / 'MCUCXR_0105_1.txt', "Patient's Sex: M", "Patient's Age: 411Y")
    for side, columns in (('left', slice(9, 14)), ('right', slice(2, 7))):
        for name in ('MCUCXR_0001_0', 'MCUCXR_0104_1'):
            mask(root / COUNTY / 'ManualMask' / f'{side}Mask' / f'{name}.png', slice(3, 15), columns, mode='1')
    mask(root / COUNTY / 'ManualMask' / 'leftMask' / 'MCUCXR_0105_1.png', slice(0, 3), slice(0, 3))
    mask(root / 'mask' / 'CHNCXR_0001_0_mask.png', slice(3, 15), slice(2, 14))
    mask(root / 'mask' / 'CHNCXR_0327_1_mask.png', slice(3, 15), slice(2, 14), shape=(10, 10))
    return root


def test_films_readings_and_masks_are_joined(folder, tmp_path):
    source = tb_lung.source(str(folder))
    assert {image: codes['tuberculosis'] for image, codes in labels(source).items()} == {
        'CHNCXR_0001_0': 0, 'CHNCXR_0327_1': 1, 'CHNCXR_0328_1': 1,
        'MCUCXR_0001_0': 0, 'MCUCXR_0104_1': 1, 'MCUCXR_0105_1': 1,
    }  # fmt: skip
    assert [drop.reason for drop in source.dropped] == ['the name is not CHNCXR_ or MCUCXR_, a number, _0 or _1']
    assert source.notes == ['1 films have no lung mask'] and source.masks == ('lungs',)

    examples = {image: source.load(i) for image, i in by_image(source).items()}
    assert examples['CHNCXR_0001_0'].attributes == {'site': 'Shenzhen', 'view': 'PA', 'sex': 'M', 'age': 45}
    assert examples['CHNCXR_0327_1'].attributes['age'] == 90
    assert examples['CHNCXR_0327_1'].text == {'report': '1.bilateral PTB\n2.fibrosis'}
    assert examples['MCUCXR_0001_0'].attributes == {'site': 'Montgomery', 'view': 'PA', 'sex': 'F', 'age': 27}
    assert examples['MCUCXR_0104_1'].attributes == {'site': 'Montgomery', 'view': 'PA'}
    assert examples['MCUCXR_0105_1'].attributes['sex'] == 'M' and examples['MCUCXR_0105_1'].text == {}
    assert 'age' not in examples['MCUCXR_0105_1'].attributes
    assert examples['MCUCXR_0105_1'].note == 'the mask is left out: only the leftMask of two is there'
    assert examples['CHNCXR_0328_1'].note == 'the reading is left out: there is no such file'
    both = np.zeros((20, 16), np.uint8)
    both[3:15, 2:7] = both[3:15, 9:14] = 255
    np.testing.assert_array_equal(examples['MCUCXR_0001_0'].mask, both)

    data, summary = build(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 6 and data.channels == 1
    assert any('10x10 pixels, its image 16x20' in drop.reason for drop in summary['drops'])
    assert_hidden(data, 'CHNCXR_0', 'MCUCXR_0', 'Thumbs')


@pytest.mark.parametrize(
    ('line', 'sex', 'age'),
    [
        ('femal 32yrs', 'F', 32),
        ('male 16month', 'M', 16 / 12),
        ('female 64days', 'F', 64 / 365.25),
        ('Female, 28yrs', 'F', 28),
        ('male 33 yr', 'M', 33),
        ('male', 'M', None),
    ],
)
def test_odd_readings(line, sex, age):
    text, facts = tb_lung.reading(f'{line}\r\nnormal\r\n'.encode())
    assert text == {'report': 'normal'} and facts['sex'] == sex and facts.get('age') == pytest.approx(age)


def test_text_without_facts_stays_text():
    assert tb_lung.reading('male nurse with cough\nfemale 30yrs'.encode('utf-8-sig')) == (
        {'report': 'male nurse with cough\nfemale 30yrs'},
        {},
    )
    assert tb_lung.reading(b'\xff\xfe')[1] == {}


def test_one_set_alone_and_merged_copies(tmp_path):
    png(tmp_path / 'CXR_png' / 'MCUCXR_0001_0.png')
    lungs = mask(tmp_path / 'masks' / 'MCUCXR_0001_0.png', slice(3, 15), slice(2, 14))
    source = tb_lung.source(str(tmp_path))
    np.testing.assert_array_equal(source.load(0).mask, lungs)
    assert source.notes == ['Shenzhen is not in the folder']


@pytest.mark.parametrize(
    'changed',
    ['ManualMask/leftMask/MCUCXR_0001_0.png', 'ManualMask/rightMask/MCUCXR_0001_0.png']
    + ['ClinicalReadings/MCUCXR_0001_0.txt', 'CXR_png/MCUCXR_0001_0.png'],
)
def test_the_stamp_is_that_of_film_masks_and_reading(folder, changed):
    before = {entry.image: entry.stamp for entry in tb_lung.source(str(folder)).entries}
    with (folder / COUNTY / changed).open('ab') as file:
        file.write(b' ')
    after = {entry.image: entry.stamp for entry in tb_lung.source(str(folder)).entries}
    assert [image for image in before if before[image] != after[image]] == ['MCUCXR_0001_0']


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'no film named like CHNCXR_0001_0\.png'):
        tb_lung.source(str(tmp_path))
    with pytest.raises(UserError, match='is not a folder'):
        tb_lung.source(str(tmp_path / 'none'))
