"""MIMIC-CXR-JPG from a small folder like the release, with faults in it."""

import gzip

import pytest
from releases_cxr import built, examples, image, labels, on_disk, table

from medjax.data.releases.coding import CHEXPERT_LABELS
from medjax.data.sources import mimic_cxr
from medjax.errors import UserError

META = (
    'dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,'
    'ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning'
)
IMAGES = [  # dicom, subject, study, view, split
    ('d1', '10000032', '50414267', 'PA', 'train'),
    ('d2', '10000032', '50414267', 'LATERAL', 'train'),
    ('d3', '10000032', '53189527', '', 'train'),
    ('d4', '11000011', '51111111', 'AP', 'validate'),
    ('d5', '12000022', '52222222', 'LL', 'test'),
    ('d6', '12000022', '52222223', 'AP LLD', 'test'),
    ('d7', '12000022', '52222224', 'PA', ''),  # the split is blank
    ('d8', '13000033', '54444444', 'PA', None),  # in no split table
    ('d9', '13000033', '54444444', 'PA', 'train'),  # no file
]
REPORT = 'FINAL REPORT\n EXAMINATION: CHEST\n\n IMPRESSION: No pneumothorax since ___.\n'
SECTIONS = {'technique': 'CHEST', 'impression': 'No pneumothorax since ___.'}


def cells(**given: str) -> str:
    return ','.join(given.get(name.replace(' ', '_').lower(), '') for name in sorted(CHEXPERT_LABELS))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'mimic-cxr-jpg'
    lines = [
        f'{dicom},{subject},{study},"CHEST (PA AND LAT)",{view},3056,2544,21800506,213014.531,CHEST,{view},Erect'
        for dicom, subject, study, view, _ in IMAGES
    ]
    table(folder / 'mimic-cxr-2.0.0-metadata.csv.gz', [META, *lines, lines[0], 'd10,13000033'])
    split = [f'{dicom},{study},{subject},{part}' for dicom, subject, study, _, part in IMAGES if part is not None]
    table(folder / 'mimic-cxr-2.0.0-split.csv.gz', ['dicom_id,study_id,subject_id,split', *split])
    head = f'subject_id,study_id,{",".join(sorted(CHEXPERT_LABELS))}'
    rows = [
        '10000032,50414267,' + cells(pneumothorax='0.0', lung_opacity='1.0', edema='-1.0'),
        '10000032,53189527,' + cells(no_finding='1.0'),
        '11000011,51111111,' + cells(edema='1.0', fracture='0.0'),
        '11000011,51111111,' + cells(edema='0.0', pneumonia='1.0'),
        '12000022,52222222,' + cells(lung_opacity='0.0', fracture='maybe'),
    ]
    table(folder / 'mimic-cxr-2.0.0-chexpert.csv.gz', [head, *rows])
    table(folder / 'mimic-cxr-2.0.0-negbio.csv.gz', [head, *(row.replace('1.0', '0.0') for row in rows)])
    for n, (dicom, subject, study, _, _) in enumerate(IMAGES[:-1]):
        image(folder / f'files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg', 20 * n)
    image(folder / 'files/p13/p13000033/s54444444/stray.jpg', 7)
    (folder / 'files/p13/p13000033/index.html').write_text('left by a download')
    return folder


def reports(folder):
    for study in ('p10/p10000032/s50414267', 'p10/p10000032/s53189527', 'p11/p11000011/s51111111'):
        path = folder / 'files' / f'{study}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(REPORT)
    path.write_bytes(b' \n')


def test_a_release_becomes_records(folder, tmp_path):
    reports(folder)
    source = mimic_cxr.source(str(folder))
    made, data = built(source, tmp_path / 'out')
    assert data.splits == {'train': 3, 'val': 1, 'test': 2} and source.splits == 'mimic_cxr/official, altered'
    assert [entry.image for entry in source.entries] == ['d1', 'd2', 'd3', 'd4', 'd5', 'd6']
    assert len({entry.study for entry in source.entries}) == 5 and len({e.patient for e in source.entries}) == 3

    got = labels(source)
    assert got['d1'] == got['d2']
    assert {name: code for name, code in got['d1'].items() if code != -2} == {
        'pneumothorax': 0, 'lung_opacity': 1, 'edema': -1
    }  # fmt: skip
    assert got['d4']['edema'] == -3 and got['d4']['fracture'] == 0 and got['d4']['pneumonia'] == 1
    assert got['d5']['fracture'] == -2 and set(got['d6'].values()) == {-2}

    opened = examples(source)
    assert [example.role for example in opened.values()] == [
        'frontal', 'lateral', 'image', 'frontal', 'lateral', 'frontal'
    ]  # fmt: skip
    assert opened['d1'].text == opened['d2'].text == SECTIONS and opened['d4'].text == {}
    assert opened['d1'].attributes == {'view': 'PA', 'label_source': 'chexpert'}
    assert opened['d3'].attributes == {'label_source': 'chexpert'} and opened['d6'].attributes == {'view': 'AP LLD'}

    reasons = sorted((drop.where, drop.scope, drop.reason) for drop in made['drops'])
    assert reasons == [
        ('mimic-cxr-2.0.0-chexpert.csv.gz line 6', 'detail', 'neither 1, 0, -1 nor blank, taken as blank: Fracture'),
        ('mimic-cxr-2.0.0-metadata.csv.gz line 10', 'record', 'there is no such file'),
        ('mimic-cxr-2.0.0-metadata.csv.gz line 11', 'record', 'repeats the image of line 2'),
        ('mimic-cxr-2.0.0-metadata.csv.gz line 12', 'record', '2 cells where the header has 12'),
        ('mimic-cxr-2.0.0-metadata.csv.gz line 6', 'detail', 'the report is left out: there is no such file'),
        ('mimic-cxr-2.0.0-metadata.csv.gz line 7', 'detail', 'the report is left out: there is no such file'),
        ('mimic-cxr-2.0.0-metadata.csv.gz line 8', 'record', 'the table of splits does not name it'),
        ('mimic-cxr-2.0.0-metadata.csv.gz line 9', 'record', 'the table of splits does not name it'),
        ('mimic-cxr-2.0.0-split.csv.gz line 8', 'record', 'its split is neither train, validate nor test'),
    ]
    notes = ' | '.join(made['notes'])
    assert '3 of the 9 images' in notes and '3 image files are not used' in notes
    assert '1 images belong to studies without labels' in notes and 'has 368960 train images, this list 4' in notes
    disk = on_disk(tmp_path / 'out')
    assert not any(word in disk for word in (b'10000032', b'50414267', b'21800506'))


def test_the_other_labeler_and_reports_elsewhere(folder, tmp_path):
    reports(tmp_path / 'mimic-cxr')
    source = mimic_cxr.source(str(folder), labeler='negbio', reports=str(tmp_path / 'mimic-cxr'))
    assert labels(source)['d1']['lung_opacity'] == 0
    with (tmp_path / 'mimic-cxr/files/p10/p10000032/s50414267.txt').open('a') as file:
        file.write(' ')
    again = mimic_cxr.source(str(folder), labeler='negbio', reports=str(tmp_path / 'mimic-cxr'))
    pairs = zip(source.entries, again.entries, strict=True)
    assert [old.image for old, new in pairs if old.stamp != new.stamp] == ['d1', 'd2']
    example = source.load(0)
    assert example.text == SECTIONS and example.attributes['label_source'] == 'negbio'
    with pytest.raises(UserError, match='files/ is missing'):
        mimic_cxr.source(str(folder), reports=str(tmp_path))


def test_missing_reports_give_one_note(folder, tmp_path):
    made, _ = built(mimic_cxr.source(str(folder)), tmp_path / 'out')
    assert not any('report' in drop.reason for drop in made['drops'])
    assert any('--reports DIR' in note for note in made['notes'])


def test_radiologists_labels_replace_the_labelers_and_are_marked(folder):
    names = [name.replace('Lung Opacity', 'Airspace Opacity') for name in sorted(CHEXPERT_LABELS)]
    table(folder / 'mimic-cxr-2.1.0-test-set-labeled.csv', [f'study_id,{",".join(names)}', f'52222222{",1.0" * 14}'])
    source = mimic_cxr.source(str(folder))
    got, opened = labels(source), examples(source)
    assert set(got['d5'].values()) == {1} and got['d5']['lung_opacity'] == 1
    assert (
        opened['d5'].attributes['label_source'] == 'radiologists'
        and opened['d1'].attributes['label_source'] == 'chexpert'
    )
    assert any("1 images have radiologists' labels, the other 1 of the test split" in note for note in source.notes)


def test_unpacked_tables_and_drawn_splits(folder):
    for name in ('metadata', 'chexpert'):
        packed = folder / f'mimic-cxr-2.0.0-{name}.csv.gz'
        table(folder / f'mimic-cxr-2.0.0-{name}.csv', gzip.decompress(packed.read_bytes()).decode())
        packed.unlink()
    (folder / 'mimic-cxr-2.0.0-split.csv.gz').unlink()
    source = mimic_cxr.source(str(folder), split='drawn')
    assert len(source.entries) == 8 and {entry.split for entry in source.entries} == {None} and source.splits == ''


def test_what_is_refused(folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='files is missing; give the folder of MIMIC-CXR-JPG'):
        mimic_cxr.source(str(tmp_path / 'empty'))
    (folder / 'mimic-cxr-2.0.0-split.csv.gz').unlink()
    with pytest.raises(UserError, match=r'2\.0\.0-split\.csv\.gz or mimic-cxr-2\.0\.0-split\.csv is missing'):
        mimic_cxr.source(str(folder))
    table(folder / 'mimic-cxr-2.0.0-negbio.csv.gz', 'subject_id,study_id,Edema\n')
    with pytest.raises(UserError, match='the column No Finding is missing'):
        mimic_cxr.source(str(folder), split='drawn', labeler='negbio')
    for path in folder.rglob('*.jpg'):
        path.unlink()
    with pytest.raises(UserError, match='none of the 9 images'):
        mimic_cxr.source(str(folder), split='drawn')
