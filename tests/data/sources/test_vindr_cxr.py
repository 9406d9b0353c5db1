"""VinDr-CXR: three readers become one label, inverted films are inverted back, two tables are joined."""

import gzip

import numpy as np
import pytest
from PIL import Image
from releases_dicom import assert_hidden, build, by_image, csv, dicom, labels, reasons

from medjax.data.sources import vindr_cxr
from medjax.data.types import BLANK, CONFLICTING
from medjax.errors import UserError

A, B, C, D, E, F, G = (f'{n:032x}' for n in range(0xABC0, 0xABC7))


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'vindr'
    for n, image in enumerate((A, B, C)):
        dicom(root / 'train' / f'{image}.dicom', n, PatientSex='F', PatientAge='411Y')
    dicom(root / 'train' / f'{C}.dicom', 2, PhotometricInterpretation='MONOCHROME1')
    dicom(root / 'train' / f'{G}.dicom', 6)
    dicom(root / 'test' / f'{E}.dicom', 4, PatientAge='095Y')
    csv(
        root / 'annotations' / 'image_labels_train.csv',
        'image_id,rad_id,Nodule/Mass,Pleural effusion,Other diseases,No finding',
        *(f'{A},R{n},1,0,0,0' for n in (1, 2, 3)),
        f'{B},R8,1,0,0,0',
        f'{B},R9,0,0,,0',
        f'{B},R10,1,0,0,0',
        f'{C},R8,0,0,1,0.0',
        f'{C},R9,0,x,1,0',
        f'{C},R10,0,,1,0',
        f'{D},R10,0,0,0,1',
        'line,with,five,cells,only',
    )
    csv(
        root / 'annotations' / 'image_labels_test.csv',
        'image_id,Nodule/Mass,Pleural effusion,Other disease,No finding',
        f'{E},0,1,1,0',
        f'{F},0,0,0,1',
        encoding='utf-8-sig',
    )
    csv(root / 'annotations' / 'annotations_train.csv', 'image_id,rad_id,class_name,x_min,y_min,x_max,y_max')
    return root


def test_readers_are_joined_and_disagreement_is_conflicting(folder, tmp_path):
    source = vindr_cxr.source(str(folder))
    assert source.labels == ('nodule_mass', 'pleural_effusion', 'other_diseases', 'no_finding')
    assert {image: tuple(codes.values()) for image, codes in labels(source).items()} == {
        A: (1, 0, 0, 0), B: (CONFLICTING, 0, 0, 0), C: (0, 0, 1, 0), E: (0, 1, 1, 0),
    }  # fmt: skip
    assert reasons(source) == {
        'image_labels_train.csv line 9': 'Pleural effusion is neither 0 nor 1 and left blank',
        'image_labels_train.csv line 11': 'there is no such file',
        'image_labels_train.csv line 12': '5 cells where the header has 6',
        'image_labels_test.csv line 3': 'there is no such file',
    }
    assert '1 image file in the folder is not in annotations/image_labels_train.csv and left out' in source.notes
    assert any('15000 train images, this list 4' in note for note in source.notes)

    data, _ = build(source, tmp_path / 'out')
    assert data.splits == {'train': 3, 'test': 1} and data.bits == 8
    assert set(data.split('train').column('role')) == {'frontal'}
    assert data.split('test').column('age').tolist() == [90.0] and np.isnan(data.split('train').column('age')).all()
    upright, turned = dicom(tmp_path / 'x.dicom', 2), data.split('train')[by_image(source)[C]].image[..., 0]
    assert np.corrcoef(upright.ravel(), turned.ravel())[0, 1] < -0.99
    assert_hidden(data, A, D, 'MRN-4711', 'Doe')


def test_other_lists_and_missing_tables(folder):
    with pytest.raises(UserError, match='benchx.train.txt is missing; --split benchx reads'):
        vindr_cxr.source(str(folder), split='benchx')
    for split, images in (('train', [A]), ('val', [B]), ('test', [E])):
        csv(folder / 'benchx' / f'{split}.txt', *images)
    source = vindr_cxr.source(str(folder), split='benchx')
    assert {entry.image: entry.split for entry in source.entries} == {A: 'train', B: 'val', E: 'test'}
    assert (
        'not in the lists of the split benchx' in reasons(source).values()
        and source.splits == 'vindr_cxr/benchx, altered'
    )
    csv(folder / 'benchx' / 'val.txt', A, B)
    with pytest.raises(UserError, match=r'an image is in train\.txt and in val\.txt'):
        vindr_cxr.source(str(folder), split='benchx')

    (folder / 'annotations' / 'image_labels_test.csv').unlink()
    source = vindr_cxr.source(str(folder))
    assert len(source.entries) == 3 and labels(source)[A]['other_diseases'] == 0
    assert any('image_labels_test.csv is missing: no test image' in note for note in source.notes)


def test_a_column_of_one_table_alone_is_blank_in_the_other(folder):
    csv(folder / 'annotations' / 'image_labels_test.csv', 'image_id,Tuberculosis', f'{E},1')
    codes = labels(vindr_cxr.source(str(folder)))
    assert codes[A]['tuberculosis'] == BLANK and codes[E] == dict.fromkeys(codes[E], BLANK) | {'tuberculosis': 1}


@pytest.mark.parametrize(('suffix', 'inside'), [('dicom', ''), ('png', ''), ('png', 'train/512px')])
def test_the_layout_of_kaggle(tmp_path, suffix, inside):
    root = tmp_path / 'kaggle'
    for n, (split, image) in enumerate([('train', A), ('train', B), ('train', C), ('test', E)]):
        pixels = dicom(root / split / f'{image}.dicom', n)
        if suffix == 'png':
            (root / split / f'{image}.dicom').unlink()
            (root / split / inside).mkdir(exist_ok=True, parents=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / inside / f'{image}.png')
    csv(
        root / 'train.csv',
        'image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max',
        *(f'{A},Nodule/Mass,8,R{n},1,2,3,4' for n in (1, 2, 3)),
        f'{A},Nodule/Mass,8,R3,5,6,7,8',
        f'{A},ILD,5,R2,1,2,3,4',
        *(f'{B},No finding,14,R{n},,,,' for n in (1, 2, 3)),
        f'{C},ILD,5,R1,1,2,3,4',
        f'{C},No finding,14,R2,,,,',
        f'{D},No finding,14,R2,,,,',
    )
    csv(root / 'sample_submission.csv', 'image_id,PredictionString', f'{E},14 1 0 0 1 1')
    source = vindr_cxr.source(str(root))
    assert source.labels == ('ild', 'no_finding', 'nodule_mass')
    assert {image: tuple(codes.values()) for image, codes in labels(source).items()} == {
        A: (CONFLICTING, 0, 1), B: (0, 1, 0), C: (CONFLICTING, CONFLICTING, 0), E: (BLANK, BLANK, BLANK),
    }  # fmt: skip
    assert reasons(source) == {'train.csv line 12': 'there is no such file'}
    assert not any('annotations/' in note for note in source.notes)
    data, _ = build(source, tmp_path / 'out')
    assert data.splits == {'train': 3, 'test': 1}


def test_what_is_refused(tmp_path):
    with pytest.raises(
        UserError,
        match=r'image_labels_train\.csv or .*image_labels_test\.csv or train\.csv is missing; give the folder',
    ):
        vindr_cxr.source(str(tmp_path))
    csv(tmp_path / 'annotations' / 'image_labels_train.csv', 'image_id,rad_id,ILD', f'{A},R1,0')
    with pytest.raises(UserError, match='none of the images that the tables name is there'):
        vindr_cxr.source(str(tmp_path))
    (tmp_path / 'annotations' / 'image_labels_train.csv').write_bytes(gzip.compress(b'x'))
    with pytest.raises(UserError, match='not UTF-8'):
        vindr_cxr.source(str(tmp_path))
