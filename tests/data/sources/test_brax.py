"""BRAX from a small folder like the release, with faults in it."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from releases_cxr import built, examples, image, labels, on_disk, table

from medjax.data.releases.coding import CHEXPERT_LABELS
from medjax.data.sources import brax
from medjax.errors import UserError

HEAD = [
    'DicomPath', 'PngPath', 'PatientID', 'PatientSex', 'PatientAge', 'AccessionNumber', 'StudyDate', *CHEXPERT_LABELS,
    'ViewPosition', 'Rows', 'Columns', 'Manufacturer',
]  # fmt: skip


def line(n: int, patient: str, **given: str) -> str:
    below = f'id_{patient}/Study_1/Series_{n}/image-{n}'
    cells = {
        'DicomPath': f'Anonymized_DICOMs/{below}.dcm', 'PngPath': f'images/{below}.png', 'PatientID': patient,
        'PatientSex': 'M', 'PatientAge': '60', 'AccessionNumber': f'7700{n}', 'StudyDate': '20081122',
        'ViewPosition': 'PA', 'Manufacturer': '2', 'Edema': '1.0',
    } | {name.replace('_', ' '): cell for name, cell in given.items()}  # fmt: skip
    return ','.join(cells.get(column, '') for column in HEAD)


def dicom(path, value: int) -> None:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = '1.2.3'
    file = FileDataset(None, {}, file_meta=meta, preamble=b'\0' * 128)
    file.Rows = file.Columns = 16
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.PhotometricInterpretation, file.SamplesPerPixel = 'MONOCHROME1', 1
    file.PixelData = (np.arange(256, dtype=np.uint16) * 16 + value).tobytes()
    data = io.BytesIO()
    file.save_as(data, enforce_file_format=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.getvalue())


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'brax'
    lines = [
        line(1, 'aaa', No_Finding='0.0', Fracture='-1.0'),
        line(2, 'aaa', ViewPosition='RL', PatientAge='85 or more', PatientSex='F'),
        line(3, 'bbb', ViewPosition='', PatientAge='60 - 64', PatientSex='O'),  # DICOM alone
        line(4, 'ccc', Edema='0.0'),
        line(4, 'ccc', Edema='1.0', Pneumonia='1.0', PatientAge='65'),
        line(5, 'ddd', Edema='yes', Manufacturer='ACME'),
        line(6, 'eee'),  # no file
        line(7, '', AccessionNumber=''),
        line(8, 'fff').replace('images/', '../images/').replace('Anonymized', '../Anonymized'),
        'a,b',
    ]
    table(folder / 'master_spreadsheet_update.csv', [','.join(HEAD), *lines])
    for n, patient in ((1, 'aaa'), (2, 'aaa'), (4, 'ccc'), (5, 'ddd'), (7, '')):
        image(folder / 'images' / f'id_{patient}' / 'Study_1' / f'Series_{n}' / f'image-{n}.png', 20 * n, mode='I;16')
    for n, patient in ((1, 'aaa'), (3, 'bbb')):
        dicom(folder / 'Anonymized_DICOMs' / f'id_{patient}' / 'Study_1' / f'Series_{n}' / f'image-{n}.dcm', n)
    image(folder / 'images' / 'stray.png', 9)
    return folder


def test_a_release_becomes_records(folder, tmp_path):
    source = brax.source(str(folder))
    made, data = built(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 6 and data.bits == 16
    assert [entry.patient for entry in source.entries] == ['aaa', 'aaa', 'bbb', 'ccc', 'ddd', None]
    assert source.entries[0].study == 'aaa/77001' and source.entries[0].image.startswith('images/id_aaa/')
    one, _, three, four, five, _ = labels(source).values()
    assert {name: code for name, code in one.items() if code != -2} == {'edema': 1, 'no_finding': 0, 'fracture': -1}
    assert three['edema'] == 1 and four['edema'] == -3 and four['pneumonia'] == 1 and five['edema'] == -2

    one, two, three, four, five, _ = examples(source).values()
    assert (
        one.attributes == {'age': 60.0, 'sex': 'M', 'view': 'PA', 'scanner': 'manufacturer 2'} and one.role == 'frontal'
    )
    assert one.image[:4] == b'\x89PNG' and three.image[128:132] == b'DICM'
    assert two.attributes['age'] == 85.0 and two.attributes['sex'] == 'F' and two.role == 'lateral'
    assert three.attributes == {'age': 60.0, 'scanner': 'manufacturer 2'} and three.role == 'image'
    assert 'age' not in four.attributes and 'scanner' not in five.attributes

    assert {(drop.where.rsplit(' ', 1)[-1], drop.scope, drop.reason) for drop in made['drops']} == {
        ('7', 'detail', 'neither 1, 0, -1 nor blank, taken as blank: Edema'),
        ('8', 'record', 'there is no such file'),
        ('10', 'record', 'there is no such file'),
        ('11', 'record', '2 cells where the header has 25'),
    }
    assert any('2 of the 8 images' in note for note in made['notes'])
    disk = on_disk(tmp_path / 'out')
    assert not any(word in disk for word in (b'id_aaa', b'77001', b'20081122', b'ACME'))


def test_what_is_refused(folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'update\.csv or master_spreadsheet\.csv is missing; give the folder'):
        brax.source(str(tmp_path / 'empty'))
    for path in [*folder.rglob('*.png'), *folder.rglob('*.dcm')]:
        path.unlink()
    with pytest.raises(UserError, match='none of the 8 images that master_spreadsheet_update.csv names'):
        brax.source(str(folder))
    table(folder / 'master_spreadsheet_update.csv', 'PngPath,PatientID\n')
    with pytest.raises(UserError, match='the column AccessionNumber is missing'):
        brax.source(str(folder))
