"""CheXpert, its test set and CheXpert Plus from small folders like the releases, with faults in them."""

import json

import pytest
from releases_cxr import built, examples, image, labels, on_disk, table

from medjax.data.releases import published_splits
from medjax.data.releases.coding import CHEXPERT_LABELS
from medjax.data.sources import chexpert
from medjax.errors import UserError

HEAD = f'Path,Sex,Age,Frontal/Lateral,AP/PA,{",".join(CHEXPERT_LABELS)}'


def cells(**given: str) -> str:
    return ','.join(given.get(name.replace(' ', '_').lower(), '') for name in CHEXPERT_LABELS)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / 'CheXpert-v1.0-small'
    prefix = 'CheXpert-v1.0-small/'
    lines = [
        f'{prefix}train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,{cells(no_finding="1.0")}',
        f'{prefix}train/patient00002/study1/view1_frontal.jpg,Male,0,Frontal,LL,{cells(edema="-1.0")}',
        f'{prefix}train/patient00002/study1/view2_lateral.jpg,Unknown,93,Lateral,,{cells(edema="-1.0")}',
        f'{prefix}train/patient00002/study1/view2_lateral.jpg,Unknown,93,Lateral,,{cells(edema="1.0")}',
        f'{prefix}train/patient00003/study1/view1_frontal.jpg,Male,40,Frontal,PA,{cells(fracture="x")}',
        f'{prefix}train/patient00004/study1/view1_frontal.jpg,Male,40,Frontal,PA,{cells()}',  # no file
        f'{prefix}train/../patient00005.jpg,Male,40,Frontal,PA,{cells()}',
        f'{prefix}train/patient00006',
    ]
    table(folder / 'train.csv', [HEAD, *lines])
    name = f'{prefix}valid/patient64541/study1/view1_frontal.jpg'
    table(folder / 'valid.csv', [HEAD, f'{name},Male,73,Frontal,AP,{",".join(["0.0"] * 13)},1.0'])
    for n, (part, patient, view) in enumerate([
        ('train', '00001', '1_frontal'), ('train', '00002', '1_frontal'), ('train', '00002', '2_lateral'),
        ('train', '00003', '1_frontal'), ('train', '00099', '1_frontal'), ('valid', '64541', '1_frontal'),
    ]):  # fmt: skip
        image(folder / part / f'patient{patient}' / 'study1' / f'view{view}.jpg', 20 * n)
    return folder


def test_a_release_becomes_records(folder, tmp_path):
    source = chexpert.source(str(folder))
    made, data = built(source, tmp_path / 'out')
    assert data.splits == {'train': 4, 'val': 1} and source.splits == 'chexpert/official, altered'
    assert source.entries[0].image == 'train/patient00001/study1/view1_frontal.jpg'
    assert [entry.patient for entry in source.entries] == [
        'patient00001', 'patient00002', 'patient00002', 'patient00003', 'patient64541'
    ]  # fmt: skip
    assert len({entry.study for entry in source.entries}) == 4

    one, two, three, four, five = labels(source).values()
    assert one['no_finding'] == 1 and one['edema'] == -2
    assert two['edema'] == -1 and three['edema'] == -3 and four['fracture'] == -2
    assert five['support_devices'] == 1 and five['pleural_effusion'] == 0

    one, two, three, four, five = examples(source).values()
    assert [example.role for example in (one, two, three)] == ['frontal', 'frontal', 'lateral']
    assert one.attributes == {'age': 68.0, 'sex': 'F', 'view': 'AP'}
    assert two.attributes == {'sex': 'M', 'view': 'LL'}  # an age of 0 is none
    assert three.attributes == {'age': 90.0, 'view': 'Lateral'}

    assert sorted((drop.where, drop.scope, drop.reason) for drop in made['drops']) == [
        ('train.csv line 6', 'detail', 'neither 1, 0, -1 nor blank, taken as blank: Fracture'),
        ('train.csv line 7', 'record', 'there is no such file'),
        ('train.csv line 8', 'record', 'its Path names no view of a study'),
        ('train.csv line 9', 'record', '1 cells where the header has 19'),
    ]
    notes = ' | '.join(made['notes'])
    assert '1 of the 6 images' in notes and '1 image files are not used' in notes
    assert 'chexpert/official has 223414 train images, this list 5' in notes and 'chexpert/test' not in notes
    assert b'patient00002' not in on_disk(tmp_path / 'out')
    assert {entry.split for entry in chexpert.source(str(folder), split='drawn').entries} == {None}


@pytest.mark.parametrize('by', ['Path', 'Study'])
def test_the_test_set(folder, by):
    for n, view in enumerate(('1_frontal', '2_lateral')):
        image(folder / 'test' / 'patient64741' / 'study1' / f'view{view}.jpg', 100 + n)
    ones = ','.join(['1'] + ['0'] * 13)
    if by == 'Path':
        paths = [f'test/patient64741/study1/view{view}.jpg' for view in ('1_frontal', '2_lateral', '3_frontal')]
        table(folder / 'test_labels.csv', [f'Path,{",".join(CHEXPERT_LABELS)}', *(f'{path},{ones}' for path in paths)])
    else:
        studies = ['CheXpert-v1.0/test/patient64741/study1', 'CheXpert-v1.0/test/patient64742/study1']
        table(
            folder / 'groundtruth.csv',
            [f'Study,{",".join(CHEXPERT_LABELS)}', *(f'{study},{ones}' for study in studies)],
        )
    source = chexpert.source(str(folder))
    test = [i for i, entry in enumerate(source.entries) if entry.split == 'test']
    assert [source.label(i) for i in test] == [[1] + [0] * 13] * 2
    assert [source.load(i).role for i in test] == ['frontal', 'lateral'] and source.load(test[0]).attributes == {}
    reasons = {drop.where: drop.reason for drop in source.dropped}
    assert {'Path': ('test_labels.csv line 4', 'there is no such file'),
            'Study': ('groundtruth.csv line 3', 'no view of the study is there')}[by] in reasons.items()  # fmt: skip
    assert any('chexpert/test has 668 test images' in note for note in source.notes)


PLUS = (
    ',path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,'
    'section_narrative,section_clinical_history,section_history,section_comparison,section_technique,'
    'section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,'
    'section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split'
)


def plus(name: str, findings: str, split: str, age: str = '91.0') -> str:
    given = {
        'path_to_image': name, 'frontal_lateral': 'Frontal', 'ap_pa': 'AP', 'deid_patient_id': 'patient00001',
        'report': '"NARRATIVE:\nACCESSION NUMBER: 12345678"', 'section_history': 'Fever.', 'section_findings': findings,
        'section_impression': '"1. Clear,\nno change."', 'section_accession_number': '12345678', 'age': age,
        'sex': 'Female', 'race': 'White', 'ethnicity': 'Non-Hispanic', 'insurance_type': 'Medicare',
        'recent_bmi': '31.4', 'deceased': 'No', 'split': split,
    }  # fmt: skip
    return ','.join(given.get(column, '') for column in PLUS.split(','))


def test_chexpert_plus_alone(tmp_path):
    folder = tmp_path / 'chexpertplus'
    names = [f'train/patient0000{n}/study1/view1_frontal.jpg' for n in range(4)]
    lines = [plus(names[0], 'Clear.', 'train'), plus(names[1], '', 'valid'), plus(names[2], '', '')]
    table(folder / 'df_chexpert_plus_240401.csv', [PLUS, *lines, plus('patient7.jpg', '', 'train')])
    for n, name in enumerate(names[:3]):
        image(folder / 'PNG' / name.replace('.jpg', '.png'), 30 * n)
    item = (
        {'path_to_image': names[0]}
        | dict.fromkeys(CHEXPERT_LABELS)
        | {'Edema': -1.0, 'Fracture': 1.0, 'Pneumonia': 0.0}
    )
    table(folder / 'chexbert_labels' / 'impression_fixed.json', [json.dumps(item)])
    source = chexpert.source(str(folder))
    made, data = built(source, tmp_path / 'out')
    assert data.splits == {'train': 1, 'val': 1} and [entry.image for entry in source.entries] == names[:2]
    assert source.splits == ''  # the column split is not the list of CheXpert 1.0
    first, second = labels(source).values()
    assert {name: code for name, code in first.items() if code != -2} == {'edema': -1, 'fracture': 1, 'pneumonia': 0}
    assert set(second.values()) == {-2}
    example = source.load(0)
    assert example.text == {'indication': 'Fever.', 'findings': 'Clear.', 'impression': '1. Clear,\nno change.'}
    assert example.attributes == {
        'age': 90.0, 'sex': 'F', 'view': 'AP', 'race': 'White', 'ethnicity': 'Non-Hispanic', 'insurance': 'Medicare',
        'label_source': 'chexbert',
    }  # fmt: skip
    assert [drop.reason for drop in made['drops']] == [
        'path_to_image names no view of a study', 'its split is neither train, valid nor test'
    ]  # fmt: skip
    assert b'12345678' not in on_disk(tmp_path / 'out')
    assert len(chexpert.source(str(folder), split='drawn').entries) == 3
    table(folder / 'chexbert_labels' / 'impression_fixed.json', '\n{"Edema": 1.0}\n')
    with pytest.raises(UserError, match='line 2: no JSON object with path_to_image'):
        chexpert.source(str(folder))


def test_chexpert_plus_beside_chexpert_keeps_its_labels_and_adds_reports(folder):
    name = 'train/patient00001/study1/view1_frontal.jpg'
    table(folder / 'df_chexpert_plus_240401.csv', [PLUS, plus(name, 'Clear.', 'valid', age='70')])
    source = chexpert.source(str(folder))
    assert source.entries[0].split == 'train' and labels(source)[name]['no_finding'] == 1
    assert source.load(0).text['findings'] == 'Clear.' and source.load(0).attributes['race'] == 'White'
    assert source.load(0).attributes['age'] == 68.0 and 'label_source' not in source.load(0).attributes


def test_what_is_refused(folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'train\.csv or valid\.csv or .* is missing; give the folder that holds'):
        chexpert.source(str(tmp_path / 'empty'))
    for path in folder.rglob('*.jpg'):
        path.unlink()
    with pytest.raises(UserError, match='none of the 6 images that its table names is there'):
        chexpert.source(str(folder))
    table(folder / 'valid.csv', 'Path,Sex\n')
    with pytest.raises(UserError, match='the column No Finding is missing'):
        chexpert.source(str(folder))


def test_the_published_lists_have_digests():
    assert all(len(published_splits.LISTS[name].digest) == 64 for name in ('chexpert/official', 'chexpert/test'))
