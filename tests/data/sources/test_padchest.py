"""PadChest from a small folder like the release, with faults in it."""

import csv
import io

import pytest
from releases_cxr import built, examples, image, labels, on_disk, table

from medjax.data.sources import padchest
from medjax.errors import UserError

HEAD = [
    '', 'ImageID', 'ImageDir', 'StudyDate_DICOM', 'StudyID', 'PatientID', 'PatientBirth', 'PatientSex_DICOM',
    'ViewPosition_DICOM', 'Projection', 'MethodProjection', 'Pediatric', 'Modality_DICOM', 'Manufacturer_DICOM',
    'PhotometricInterpretation_DICOM', 'PixelRepresentation_DICOM', 'PixelAspectRatio_DICOM', 'SpatialResolution_DICOM',
    'BitsStored_DICOM', 'WindowCenter_DICOM', 'WindowWidth_DICOM', 'Rows_DICOM', 'Columns_DICOM',
    'XRayTubeCurrent_DICOM', 'Exposure_DICOM', 'ExposureInuAs_DICOM', 'ExposureTime', 'RelativeXRayExposure_DICOM',
    'ReportID', 'Report', 'MethodLabel', 'Labels', 'Localizations', 'LabelsLocalizationsBySentence', 'labelCUIS',
    'LocalizationsCUIS',
]  # fmt: skip


def line(number: int, name: str, cell: str, **given: str) -> list[str]:
    cells = {
        '': str(number), 'ImageID': name, 'ImageDir': '0', 'StudyDate_DICOM': '20140407', 'StudyID': f'24090{number}',
        'PatientID': f'2746985{number // 2}', 'PatientBirth': '1959.0', 'PatientSex_DICOM': 'M', 'Projection': 'PA',
        'Modality_DICOM': 'CR', 'Manufacturer_DICOM': 'PhilipsMedicalSystems', 'SpatialResolution_DICOM': '0.143',
        'PhotometricInterpretation_DICOM': 'MONOCHROME2', 'ReportID': '4765777', 'Report': 'sin hallazg patolog',
        'MethodLabel': 'Physician', 'Labels': cell, 'Localizations': "['loc basal']",
        'LabelsLocalizationsBySentence': "[['normal'], ['normal']]",
    } | given  # fmt: skip
    return [cells.get(column, '') for column in HEAD]


LINES = [
    line(0, 'a_1.png', "['pleural effusion', 'cardiomegaly ', '', 'cardiomegaly']"),
    line(1, 'b_00 - 030 - 080.png', "['normal']", Projection='L', PatientBirth='1911', PatientSex_DICOM='F'),
    line(2, 'c.png', "['suboptimal study']", Projection='AP_horizontal', StudyDate_DICOM=''),
    line(3, 'd.png', "['unchanged']", Projection='COSTAL', PatientID='', Report=''),
    line(4, 'e.png', "['unchanged' 'cardiomegaly']", PhotometricInterpretation_DICOM='MONOCHROME1'),
    line(5, 'f.png', '', Projection='EXCLUDE', Manufacturer_DICOM='see Dr. Perez, room 4; ask <him>'),
    line(6, 'g.png', '__import__("os").system("true")'),
    line(7, 'h.png', "['normal']"),  # two lines that differ
    line(7, 'h.png', "['cardiomegaly']", PatientBirth='1960'),
    line(8, 'truncated.png', "['normal']"),
    line(9, 'missing.png', "['normal']"),
    line(10, 'i.png', "['normal']", PatientID='1'),
    line(10, 'i.png', "['normal']", PatientID='2'),
]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'padchest'
    text = io.StringIO()
    csv.writer(text, lineterminator='\n').writerows([HEAD, *LINES])
    table(folder / f'{padchest.TABLE}.gz', text.getvalue() + '99,x.png\n')
    for n, name in enumerate(('a_1', 'b_00 - 030 - 080', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'truncated')):
        image(folder / str(n % 3) / f'{name}.png', 15 * n, mode='I;16')
    cut = folder / '0' / 'truncated.png'
    cut.write_bytes(cut.read_bytes()[:60])
    image(folder / '1' / 'in no table.png', 3)
    return folder


def test_a_release_becomes_records(folder, tmp_path):
    source = padchest.source(str(folder))
    made, data = built(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 8 and (data.bits, data.channels) == (16, 1)
    assert source.labels == ('cardiomegaly', 'normal', 'pleural_effusion', 'suboptimal_study', 'unchanged')
    entries = {entry.image: entry for entry in source.entries}
    assert entries['a_1.png'].patient == entries['b_00 - 030 - 080.png'].patient == '27469850'
    assert entries['d.png'].patient is None and entries['a_1.png'].study == '27469850/240900'

    got = {name: list(codes.values()) for name, codes in labels(source).items()}
    assert got['a_1.png'] == [1, 0, 1, 0, 0] and got['b_00 - 030 - 080.png'] == [0, 1, 0, 0, 0]
    assert got['c.png'] == [-2, -2, -2, 1, -2] and got['d.png'] == [-2, -2, -2, -2, 1]
    assert got['e.png'] == [1, 0, 0, 0, 1]
    assert got['f.png'] == got['g.png'] == [-2] * 5
    assert got['h.png'] == [-3, -3, 0, 0, 0]

    opened = examples(source._replace(entries=[e for e in source.entries if e.image != 'truncated.png']))
    first = opened['a_1.png']
    assert first.text == {'report': 'sin hallazg patolog'} and first.role == 'frontal'
    assert first.attributes == {
        'age': 55.0, 'sex': 'M', 'view': 'PA', 'modality': 'CR', 'scanner': 'PhilipsMedicalSystems', 'spacing': 0.143,
        'photometric': 'MONOCHROME2', 'label_source': 'Physician', 'language': 'es',
    }  # fmt: skip
    assert [opened[name].role for name in ('b_00 - 030 - 080.png', 'c.png', 'd.png', 'f.png')] == [
        'lateral', 'frontal', 'costal', 'image'
    ]  # fmt: skip
    assert opened['b_00 - 030 - 080.png'].attributes['age'] == 90.0 and 'age' not in opened['c.png'].attributes
    assert (
        'scanner' not in opened['f.png'].attributes
        and opened['d.png'].text == {}
        and 'age' not in opened['h.png'].attributes
    )

    reasons = {drop.where.rsplit(' ', 1)[-1]: (drop.scope, drop.reason) for drop in made['drops']}
    assert reasons.pop('11')[1].startswith('damaged PNG')
    assert reasons == {
        '8': ('detail', 'Labels is not a list: all labels are blank'),
        '12': ('record', 'there is no such file'),
        '13': ('record', 'its lines name several patients'),
        '15': ('record', '2 cells where the header has 36'),
    }
    notes = ' | '.join(made['notes'])
    assert '2 of the 11 images' in notes and '2 image files are not used' in notes and '1 films were MONO' in notes
    disk = on_disk(tmp_path / 'out')
    assert not any(word in disk for word in (b'27469850', b'20140407', b'1959', b'Perez'))


def test_what_is_refused(folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'02\.19\.csv\.gz is missing; give the folder that holds PADCHEST'):
        padchest.source(str(tmp_path / 'empty'))
    for path in folder.rglob('*.png'):
        path.unlink()
    with pytest.raises(UserError, match='none of the 11 images'):
        padchest.source(str(folder))
    table(folder / padchest.TABLE, 'ImageID,StudyID,PatientID,Projection,Labels\n')
    with pytest.raises(UserError, match='the column Report is missing'):
        padchest.source(str(folder))
