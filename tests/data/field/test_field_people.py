"""Ids of people and ids that stand for nobody: an id is judged by its use."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
from field_inputs import script
from PIL import Image
from releases_text import build, dicom, save

from medjax import cli
from medjax.data import records
from medjax.data.builder import splits
from medjax.data.releases import people, words
from medjax.data.sources import dicom as export, folder, table

pseudonyms = script('pseudonyms')

WANTS = json.loads((pathlib.Path(__file__).parent / 'wants.json').read_text())


def people_in_two_splits(source) -> int:
    drawn = splits.assign(source)
    places: dict[str, set[str]] = {}
    for entry, split in zip(source.entries, drawn, strict=True):
        places.setdefault(entry.patient, set()).add(split)
    return sum(len(found) > 1 for found in places.values())


def test_pseudonyms(tmp_path):
    truth, want = pseudonyms.write(tmp_path / 'export'), WANTS['pseudonyms']
    source = export.source(str(tmp_path / 'export'))
    data, _, summary = build(source, tmp_path / 'out')
    assert sum(data.splits.values()) == want['records'] and summary['patient_count'] == want['patients']
    assert data.unknown_patients == want['unknown_patients']
    assert people_in_two_splits(source) == want['patients_in_two_splits']
    assert [entry.patient for entry in source.entries] == [truth[entry.image] for entry in source.entries]
    assert summary['audit']['verdict'][0].startswith(want['begins'])


@pytest.mark.parametrize(
    'form', ['DE-ID {:04d}', 'Anonymous{:d}', '{:d}', '{:03d}', 'anon^{:02d}', 'PATIENT_{:d}', 'x{:d}']
)
def test_many_ids_with_a_few_studies_are_people_whatever_they_look_like(tmp_path, form):
    truth = pseudonyms.write(tmp_path / 'export', form, people=12)
    source = export.source(str(tmp_path / 'export'))
    assert [entry.patient for entry in source.entries] == [truth[entry.image] for entry in source.entries]
    assert not any('nobody' in note for note in source.notes)


@pytest.mark.parametrize(
    'name', ['ANONYMOUS', '000000', 'DE-ID 0001', 'Anon1', 'RESEARCH', '4711', 'unbekannt', '9999']
)
def test_one_id_on_all_studies_is_nobody(tmp_path, name):
    pseudonyms.write(tmp_path / 'export', name, people=3)
    source = export.source(str(tmp_path / 'export'))
    assert {entry.patient for entry in source.entries} == {None}
    assert any('stands for nobody' in note or 'it is nobody' in note for note in source.notes)
    data, _, summary = build(source, tmp_path / 'out')
    assert data.unknown_patients == 12
    assert summary['audit']['verdict'][0].startswith('leaks cannot be ruled out')
    assert not any('no leak found' in sentence for sentence in summary['audit']['verdict'])
    assert name not in ' '.join(summary['notes'])


@pytest.mark.parametrize(
    ('ids', 'nobody'),
    [
        (['ANON'] * 40 + ['a', 'b', 'b'], {'ANON'}),  # nearly all
        (['0'] * 30 + [f'p{i // 2}' for i in range(30)], {'0'}),  # many more than any person has
        (['0'] * 3 + [f'{i // 3}' for i in range(3, 60)], set()),  # person 0 of 20
        (['N/A', 'n.a.', '', '-', 'None', 'inconnu', 'a', 'b'], {'N/A', 'n.a.', '', '-', 'None', 'inconnu'}),
        (['S17'] * 5, set()),  # five studies of one person are possible
        (['S17'] * 50 + ['S18'], {'S17'}),
        (['S17'] * 20 + [f'S{i}' for i in range(20, 60)], set()),  # often ill
        (['anonym'] + [f'anonym{i}' for i in range(30)], {'anonym'}),
    ],
)
def test_use(ids, nobody):
    found = people.people(ids, [str(i) for i in range(len(ids))]).patients
    assert {id for id, patient in zip(ids, found, strict=True) if patient is None} == nobody
    assert {id for id, patient in zip(ids, found, strict=True) if patient is not None} == set(ids) - nobody


@pytest.mark.parametrize(
    ('ids', 'nobody'),
    [
        (['ANON 1'] * 8 + [f'k{i // 2}' for i in range(30)], {'ANON 1'}),  # four times the median
        (['ANON 1'] * 5 + [f'k{i // 2}' for i in range(30)], set()),  # 2.5 times the median
        (['K'] * 8 + [f'k{i // 2}' for i in range(30)], set()),  # no doubtful form
    ],
)
def test_a_doubtful_form_needs_three_times_the_median(ids, nobody):
    found = people.people(ids, [str(i) for i in range(len(ids))])
    assert {id for id, patient in zip(ids, found.patients, strict=True) if patient is None} == nobody


def test_ids_with_far_more_studies_than_others_are_told():
    ids = ['K'] * 14 + ['L'] * 11 + ['M'] * 9 + [f'k{i // 2}' for i in range(60)]
    found = people.people(ids, [str(i) for i in range(len(ids))])
    assert found.many == [14, 11] and None not in found.patients
    assert found.notes == [
        '2 ids have far more studies than others (14, 11). If they stand for nobody, leave them blank'
    ]
    assert people.people(['K'] * 4 + list('abcdef'), None).notes == []
    assert people.people(['K'] * 6 + list('abcdef'), None).notes[0].startswith('one id has far more images')


@pytest.mark.parametrize('filler', [[], ['z1'], ['z1', 'z2']])
def test_one_id_in_two_given_splits_is_nobody(tmp_path, filler):
    ids = ['Lehre'] * 20 + filler
    given = ['train', 'test'] * 10 + ['train'] * len(filler)
    found = people.people(ids, None, given)
    assert found.patients == [None] * 20 + filler and found.shared == 20
    assert people.people(ids, None, ['train'] * len(ids)).patients == ids
    some = ['Lehre'] * 12 + [f'q{i}' for i in range(8)]
    assert people.people(some, None, ['train', 'test'] * 10).patients == some  # the builder refuses this

    root = small_set(tmp_path / 'small')
    lines = [f'{i}.png,{"Lehre" if i < 38 else f"q{i}"},{("train", "test")[i % 2]}' for i in range(40)]
    (root / 'metadata.csv').write_text('image,patient_id,split\n' + '\n'.join(lines))
    data, _, summary = build(table.source(str(root)), tmp_path / 'out')
    assert data.unknown_patients == 38 and summary['audit']['verdict'][0].startswith('leaks cannot be ruled out')


def test_one_id_in_two_splits_of_an_export_is_nobody(tmp_path):
    for i in range(6):
        save(
            tmp_path / 'x' / f'{i}',
            dicom(SOPInstanceUID=f'1.{i}.1', StudyInstanceUID=f'1.{i}', AccessionNumber=f'A{i}', PatientID='LEHRE'),
        )
    lines = [f'A{i},{("train", "test")[i % 2]}' for i in range(6)]
    labels = save(tmp_path / 'labels.csv', 'AccessionNumber,split\n' + '\n'.join(lines))
    assert {entry.patient for entry in export.source(str(tmp_path / 'x')).entries} == {'LEHRE'}
    source = export.source(str(tmp_path / 'x'), labels=str(labels))
    assert {entry.patient for entry in source.entries} == {None} and len(source.entries) == 6


@pytest.mark.parametrize(
    'id', ['Anon^Subject', 'PATIENT^ANONYMISED', 'unknown^unknown', 'patient inconnu', 'Paciente anonimo', 'Blinded',
           'PRIVATE', 'Not Provided', 'unbekannter Patient', 'Subject_removed', 'anonymisierte Patient']
)  # fmt: skip
def test_nobody_in_several_words(id):
    assert words.is_nobody(id)


@pytest.mark.parametrize('id', ['Subject 7', 'Na^Nan', 'ANON-7', 'patient 12', 'Anonymous 3', 'Private^Ryan'])
def test_somebody(id):
    assert not words.is_nobody(id)


def test_slices_of_one_volume_are_no_studies():
    ids = ['S17'] * 200
    assert set(people.people(ids, ['one'] * 200).patients) == {'S17'}
    assert set(people.people(ids, None).patients) == {'S17'}  # a table without studies
    assert set(people.people(['ANONYMOUS'] * 9, None).patients) == {None}
    assert set(people.people(['0'] * 9, None).patients) == {None}


def test_spellings_of_numbers():
    assert people.spellings(['0017', '17', '18', '005', '1.5E+01', 'p.0']) == {'0017': '17', '1.5E+01': '15'}
    assert people.spellings(['12.0', '13,0', '007.0']) == {'12.0': '12', '13,0': '13', '007.0': '007'}
    assert people.spellings(['0', '0000', '1.2E+3']) == {'0000': '0'}
    cut = ['1.23457E+12', '1,2346e+09', '2E+08']
    assert all(map(people.is_shortened, cut)) and not any(map(people.is_shortened, ['1.5E+01', '12', 'E+12', '1E0']))
    dates = ['3-Dec', 'Mar-05', '2024-03-12 00:00:00', '01.02.2003', '12/3/1999', '5. Mai']
    assert all(map(people.is_date, dates)) and not any(map(people.is_date, ['p-12', '17', '1.2.840', 'may', '12-3']))


@pytest.mark.parametrize(
    ('ids', 'patients', 'words'),
    [
        (['00042', '42', '0043', '00044'], 3, 'PatientID: 1 id has zeros at the start or .0. It counts as the same'),
        (['ab-1', 'AB-1', 'Ab-1', 'ab-2'], 2, 'PatientID: 2 ids differ from another only in case'),
        (['É5', 'e5', 'é5', 'f5'], 3, 'PatientID: 1 id differs'),
    ],
)
def test_spellings_of_the_ids_of_an_export(tmp_path, ids, patients, words):
    for i, id in enumerate(ids):
        changes = dict(SOPInstanceUID=f'1.{i}.1', StudyInstanceUID=f'1.{i}', PatientID=id)
        save(tmp_path / 'x' / f'{i}', dicom(SpecificCharacterSet='ISO_IR 192', **changes))
    source = export.source(str(tmp_path / 'x'))
    assert len({entry.patient for entry in source.entries}) == patients
    assert [note for note in source.notes if note.startswith(words)]
    assert not any(id in note for id in ids for note in source.notes if len(id) > 3)


def small_set(root: pathlib.Path) -> pathlib.Path:
    root.mkdir()
    for i in range(40):
        picture = np.random.default_rng(i).integers(0, 256, (24, 24)).astype(np.uint8)
        Image.fromarray(picture).save(root / f'{i}.png')
    lines = [f'{i}.png,p{i // 2},{i % 2}' for i in range(40)]
    (root / 'metadata.csv').write_text('image,patient_id,mass\n' + '\n'.join(lines))
    return root


def split_of_pixels(path: pathlib.Path) -> dict[int, str]:
    data = records.open(path)
    return {int(key): name for name in data.splits for key in data.split(name).keys('pixels')}


@pytest.mark.parametrize(
    'arguments', [['table'], ['table', '--stratify', 'mass'], ['folder'], ['folder', '--patient', r'(\d)\d?\.png']]
)
def test_drawn_splits_do_not_depend_on_the_name_of_the_folder(tmp_path, arguments):
    found = []
    for name in ('clinic', 'Copy of clinic (2)'):
        (tmp_path / name).mkdir()
        root = small_set(tmp_path / name / f'{name}_set')
        kind, *options = arguments
        assert cli.main(['build', kind, str(root), *options, '--out', str(tmp_path / f'out {name}')]) == 0
        found.append(split_of_pixels(tmp_path / f'out {name}'))
    assert found[0] == found[1] and len(set(found[0].values())) == 3


def test_exports_are_drawn_by_people_and_a_namespace_draws_anew(tmp_path):
    for name in ('a', 'b'):
        for i in range(40):
            save(
                tmp_path / name / f'{i}', dicom(SOPInstanceUID=f'1.{i}.1', StudyInstanceUID=f'1.{i}', PatientID=f'p{i}')
            )
    drawn = [splits.assign(export.source(str(tmp_path / name))) for name in ('a', 'b')]
    assert drawn[0] == drawn[1]
    small = small_set(tmp_path / 'small')
    assert splits.assign(table.source(str(small))) != splits.assign(table.source(str(small), namespace='other'))
    assert splits.assign(folder.source(str(small))) != splits.assign(folder.source(str(small), namespace='other'))


def test_images_that_are_set_aside_are_no_unknown_patients(tmp_path, capsys):
    root = small_set(tmp_path / 'small')
    (root / '3.png').write_bytes(b'')
    (root / '4.png').write_bytes((root / '4.png').read_bytes()[:60])
    (root / 'metadata.csv').write_text('image\n' + '\n'.join(f'{i}.png' for i in range(40)))
    assert cli.main(['build', 'table', str(root), '--out', str(tmp_path / 'out')]) == 0
    assert records.open(tmp_path / 'out').unknown_patients == 38
    assert '38 of 38 images name no patient' in capsys.readouterr().out
