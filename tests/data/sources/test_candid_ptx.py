"""CANDID-PTX: files without a suffix, patients in file names, three tables of run lengths."""

import numpy as np
import pytest
from releases_dicom import assert_hidden, build, by_image, csv, dicom, labels, reasons

from medjax.data.sources import candid_ptx
from medjax.data.types import BLANK, CONFLICTING
from medjax.errors import UserError

HEAD = 'StudyInstanceUID,SOPInstanceUID,SeriesInstanceUID,EncodedPixels,Report,filename'


def uid(n: int) -> str:
    return f'1.2.826.0.1.3680043.8.498.{n}4711'


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'candid'
    for n in (1, 2, 3, 4, 5, 6):
        dicom(root / 'chest_radiographs' / uid(n), n, PatientAge='093Y', PatientSex='M', ViewPosition='PA')
    dicom(root / 'chest_radiographs' / f'{uid(7)}.dcm', 7)
    dicom(root / 'chest_radiographs' / uid(9), 9)
    csv(
        root / 'Pneumothorax_reports.csv',
        HEAD,
        f's1,{uid(1)},e,3 2 19 1,"Chest: seen by !PERSONALNAME! <###>.\nLeft pneumothorax.",P0012_a.dcm',
        f's1,{uid(1)},e,60 5,"Chest: seen by !PERSONALNAME! <###>.\nLeft pneumothorax.",P0012_a.dcm',
        f's1,{uid(2)},e,-1,,P0012_b.dcm',
        f's2,{uid(3)},e,,No change.,P13_a.dcm',
        f's2,{uid(4)},e,-1,No change.,P13_b.dcm',
        f's2,{uid(4)},e,1 2,No change.,P13_b.dcm',
        f's3,{uid(5)},e,-1,x,P14_a.dcm',
        f's3,{uid(5)},e,-1,x,P15_a.dcm',
        f's4,{uid(6)},e,none,x,P16_a.dcm',
        f's4,{uid(7)},e,400 1,x,P16_b.dcm',
        f's5,{uid(8)},e,-1,x,P17_a.dcm',
        'one,two',
    )
    csv(root / 'chest_tube.csv', 'anon_SOPUID,annotation_ref,mask_rle', f'{uid(2)},a,4 5', f'{uid(3)},a,-1')
    csv(root / 'acute_rib_fracture.csv', 'anon_SOPUID,annotation_ref,mask_rle', f'{uid(2)},a,4 5', f'{uid(2)},b,9 5')
    return root


def test_lines_masks_patients_and_tables_are_joined(folder, tmp_path):
    source = candid_ptx.source(str(folder))
    assert {image: tuple(codes.values()) for image, codes in labels(source).items()} == {
        uid(1): (1, 0, 0),
        uid(2): (0, 1, 1),
        uid(3): (BLANK, 0, 0),
        uid(4): (CONFLICTING, 0, 0),
        uid(6): (BLANK, 0, 0),
        uid(7): (1, 0, 0),
    }
    assert reasons(source) == {
        'Pneumothorax_reports.csv line 10': 'its lines name two patients',
        'Pneumothorax_reports.csv line 12': 'EncodedPixels is neither runs nor -1; this line is ignored',
        'Pneumothorax_reports.csv line 14': 'there is no such file',
        'Pneumothorax_reports.csv line 15': '2 cells where the header has 6',
    }
    places = by_image(source)
    assert [source.entries[places[uid(n)]].patient for n in (1, 2, 3, 7)] == ['12', '12', '13', '16']
    assert source.entries[places[uid(1)]].study == '12/s1'
    assert source.notes == ['1 image file in the folder is not in Pneumothorax_reports.csv and left out']

    example = source.load(places[uid(1)])
    expected = np.zeros((20, 16), np.uint8)
    expected[[3, 4], 0], expected[4, 1], expected[0:5, 3] = 255, 255, 255
    np.testing.assert_array_equal(example.mask, expected)
    assert source.masks == ('pneumothorax',)
    assert example.text == {'report': 'Chest: seen by ___. Left pneumothorax.'}
    assert example.role == 'frontal' and example.attributes['age'] == 90 and example.attributes['sex'] == 'M'
    assert source.load(places[uid(2)]).text == {} and not source.load(places[uid(2)]).mask.any()
    assert 'leave the image' in source.load(places[uid(7)]).note

    data, _ = build(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 6
    assert_hidden(data, uid(1), uid(8), 'MRN-4711', 'Doe', 'P0012')


def test_without_the_small_tables_and_the_patients(folder):
    (folder / 'chest_tube.csv').unlink()
    (folder / 'acute_rib_fracture.csv').rename(folder / 'Rib_fracture_mask_rle.csv')
    csv(folder / 'Pneumothorax_reports.csv', 'SOPInstanceUID,EncodedPixels', f'{uid(2)},-1')
    source = candid_ptx.source(str(folder))
    assert source.label(0) == [0, BLANK, 1] and source.entries[0].patient is None
    assert source.notes[:2] == [
        'chest_tube.csv is missing: chest_tube is blank',
        'Pneumothorax_reports.csv has no column filename, which names the patients: each image counts as one',
    ]


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match='Pneumothorax_reports.csv is missing; give the folder'):
        candid_ptx.source(str(tmp_path))
    csv(tmp_path / 'Pneumothorax_reports.csv', HEAD, f's1,{uid(1)},e,-1,x,P1_a')
    with pytest.raises(UserError, match='none of the 1 images'):
        candid_ptx.source(str(tmp_path))
