"""RSNA: lines are boxes, images are NIH images, and a patient of several splits is kept in the last one."""

import json

import numpy as np
import pytest
from releases_dicom import assert_hidden, build, by_image, csv, dicom, labels, reasons

from medjax.data.sources import rsna_pneumonia
from medjax.data.types import BLANK, CONFLICTING, Origin
from medjax.errors import UserError

A, B, C, D, E, F, TEST = (f'{n:08x}-3906-4c2f-b5b4-8aa1280f6181' for n in range(7))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'rsna'
    for n, image in enumerate((A, B, C, D, F)):
        age = ('43', '155', '43', '92', '43')[n]
        dicom(root / 'stage_2_train_images' / f'{image}.dcm', n, ViewPosition='AP', PatientAge=age, PatientSex='F')
    dicom(root / 'stage_2_test_images' / f'{TEST}.dcm', 9, ViewPosition='PA')
    dicom(root / 'stage_2_train_images' / 'stray.dcm', 10)
    csv(
        root / 'stage_2_train_labels.csv',
        'patientId,x,y,width,height,Target',
        f'{A},,,,,0',
        f'{B},2.0,3.0,4.0,5.0,1',
        f'{B},10.0,3.0,4.0,5.0,1',
        f'{C},,,,,0',
        f'{C},1.0,1.0,2.0,2.0,1',
        f'{D},100.0,1.0,2.0,2.0,1',
        f'{E},,,,,0',
        f'{F},,,,,maybe',
        'too,few',
    )
    csv(
        root / 'stage_2_detailed_class_info.csv',
        'patientId,class',
        f'{A},No Lung Opacity / Not Normal',
        f'{B},Lung Opacity',
        f'{B},Lung Opacity',
        f'{D},Lung opacity of the left',
    )
    return root


def mapping(folder, **nih) -> None:
    rows = [dict(subset_img_id=globals()[name], img_id=image, orig_labels=[]) for name, image in nih.items()]
    (folder / rsna_pneumonia.MAPPING).write_text(json.dumps(rows))


def test_lines_are_joined(folder, tmp_path):
    source = rsna_pneumonia.source(str(folder))
    assert source.labels == ('pneumonia', 'lung_opacity', 'no_lung_opacity_not_normal', 'normal')
    assert {image: tuple(codes.values()) for image, codes in labels(source).items()} == {
        A: (0, 0, 1, 0),
        B: (1, 1, 0, 0),
        C: (CONFLICTING, BLANK, BLANK, BLANK),
        D: (1, BLANK, BLANK, BLANK),
        F: (BLANK, BLANK, BLANK, BLANK),
        TEST: (BLANK, BLANK, BLANK, BLANK),
    }
    assert reasons(source) == {
        'stage_2_train_labels.csv line 7': 'the class is none of Lung Opacity, No Lung Opacity / Not Normal, Normal',
        'stage_2_train_labels.csv line 8': 'there is no such file',
        'stage_2_train_labels.csv line 9': 'Target is neither 0 nor 1',
        'stage_2_train_labels.csv line 10': '2 cells where the header has 6',
    }
    assert {entry.patient for entry in source.entries} == {None}
    assert any('every image is one of NIH' in note for note in source.notes)
    assert '1 image file in the folder is not in the table and left out' in source.notes

    expected = np.zeros((20, 16), np.uint8)
    expected[3:8, 2:6] = expected[3:8, 10:14] = 255
    np.testing.assert_array_equal(source.load(by_image(source)[B]).mask, expected)
    assert source.masks == ('pneumonia_box',)
    assert not source.load(by_image(source)[A]).mask.any() and source.load(by_image(source)[C]).mask is None
    assert 'a box leaves the image' in source.load(by_image(source)[D]).note

    data, _ = build(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 6
    ages = [age for split in data.splits for age in data.split(split).column('age') if not np.isnan(age)]
    assert sorted(ages) == [43, 43, 43, 90]  # 155 is none, and so is the test image's
    assert_hidden(data, A, TEST, 'MRN-4711', 'Doe')


def test_the_mapping_gives_nih_images_and_patients(folder):
    mapping(folder, A='00000013_005.png', B='00000013_006.png', D='00012045_000.png')
    source = rsna_pneumonia.source(str(folder))
    origins = {entry.image: entry.origin for entry in source.entries}
    assert origins[A] == Origin('nih', '00000013_005.png', '13') and origins[D].patient == '12045'
    assert origins[C] is None
    assert '3 images are known as images of NIH ChestX-ray14' in source.notes
    assert any('3 images are not in' in note for note in source.notes)


def test_the_list_of_benchx(folder):
    for split, images in (('train', [A, C]), ('val', [D]), ('test', [B])):
        csv(folder / 'benchx' / f'{split}.txt', *images)
    source = rsna_pneumonia.source(str(folder), split='benchx')
    assert {entry.image: entry.split for entry in source.entries} == {A: 'train', C: 'train', D: 'val', B: 'test'}
    assert reasons(source)['stage_2_test_images'] == 'not in the lists of the split benchx'
    assert '1 image file in the folder is not in the table and left out' in source.notes
    assert any('18678 train images, this list 2' in note for note in source.notes)
    assert source.splits == 'rsna_pneumonia/benchx, altered'

    mapping(folder, A='00000013_005.png', B='00000013_006.png', D='00012045_000.png')
    source = rsna_pneumonia.source(str(folder), split='benchx')
    assert set(by_image(source)) == {C, D, B}  # A is of B's patient
    apart = 'in train of the published list, but its patient is in test too'
    assert reasons(source)['stage_2_train_labels.csv line 2'] == apart
    assert labels(source)[B]['pneumonia'] == 1  # the entries moved, the labels with them


def test_what_is_refused(folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='stage_2_train_labels.csv is missing; give the folder'):
        rsna_pneumonia.source(str(tmp_path / 'empty'))
    for text, reason in (
        ('[{"a"', 'cannot be read as a JSON file'),
        ('[' * 100_000, 'cannot be read as a JSON file'),
        ('{"a": 1}', 'has no subset_img_id'),
    ):
        (folder / rsna_pneumonia.MAPPING).write_text(text)
        with pytest.raises(UserError, match=reason):
            rsna_pneumonia.source(str(folder))
    (folder / rsna_pneumonia.MAPPING).unlink()
    for image in (folder / 'stage_2_train_images').iterdir():
        image.unlink()
    (folder / 'stage_2_test_images' / f'{TEST}.dcm').unlink()
    with pytest.raises(UserError, match='none of the 6 images'):
        rsna_pneumonia.source(str(folder))
