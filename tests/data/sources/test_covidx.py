"""COVIDx: lists of two and three classes, with blanks and without sources, and films of RSNA."""

import json

import pytest
from releases_dicom import assert_hidden, build, by_image, csv, dicom, labels, png, reasons

from medjax.data.releases import published_splits
from medjax.data.sources import covidx, rsna_pneumonia
from medjax.data.types import BLANK, CONFLICTING, Origin, patient_of
from medjax.errors import UserError

RSNA = ('003d8fa0-6bf1-40ed-b54c-ac657f8495c5', '009eb222-eabc-4150-8121-d5a6d06b8ebf')
TRAIN = [
    '3 SARS-10.1148rg.jpeg pneumonia cohen',
    'COVID 1 COVID(1).png COVID-19 sirm',
    'COVID 2 COVID(2).png COVID-19 sirm',
    f'{RSNA[0]} {RSNA[0]}.png normal rsna',
    'ANON191 CR.1.2.840.png COVID-19 actmed',
    'ANON191 gone.png COVID-19 actmed',
    '',
    'a line of words',
    '3 SARS-10.1148rg.jpeg normal cohen',
]
TEST = [
    f'{RSNA[1]} {RSNA[1]}.png pneumonia rnsa',
    'ANON191 CR.1.2.841.png COVID-19 actmed',
    '3 COVID(1).png COVID-19 fig1',
    '3 other.png normal fig1',
]


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'covidx'
    for n, name in enumerate(
        ('SARS-10.1148rg.png', 'COVID(1).png', 'COVID(2).png', f'{RSNA[0]}.png', 'CR.1.2.840.png')
    ):
        png(root / 'train' / name, n, mode='RGB')
    (root / 'train' / 'SARS-10.1148rg.png').rename(root / 'train' / 'SARS-10.1148rg.jpeg')
    for n, name in enumerate((f'{RSNA[1]}.png', 'CR.1.2.841.png', 'COVID(1).png', 'other.png', 'extra.png')):
        png(root / 'test' / name, 10 + n)
    csv(root / 'labels' / 'train_COVIDx7A.txt', *TRAIN)
    csv(root / 'labels' / 'test_COVIDx7A.txt', *TEST)
    return root


def test_a_list_of_three_classes(folder, tmp_path):
    source = covidx.source(str(folder))
    assert {image: tuple(codes.values()) for image, codes in labels(source).items()} == {
        'SARS-10.1148rg.jpeg': (0, CONFLICTING, CONFLICTING),
        'COVID(1).png': (1, 0, 0),
        'COVID(2).png': (1, 0, 0),
        f'{RSNA[0]}.png': (0, 0, 1),
        f'{RSNA[1]}.png': (0, 1, 0),
        'CR.1.2.841.png': (1, 0, 0),
        'other.png': (0, 0, 1),
    }
    assert reasons(source) == {
        'train_COVIDx7A.txt line 6': 'there is no such file',
        'train_COVIDx7A.txt line 8': 'not: patient, file, class and source',
        'test_COVIDx7A.txt line 3': 'the film is in train too',
        'train_COVIDx7A.txt line 5': 'in train of the published list, but its patient is in test too',
    }
    entries = {entry.image: entry for entry in source.entries}
    assert entries['COVID(2).png'].patient == 'sirm/COVID 2'  # blanks are part of the patient
    assert entries['SARS-10.1148rg.jpeg'].patient != entries['other.png'].patient  # both are number 3, of two sources
    origin = Origin('rsna_pneumonia', RSNA[0], f'study/image/{RSNA[0]}')
    assert entries[f'{RSNA[0]}.png'].origin == origin and entries['COVID(2).png'].origin is None
    notes = ' '.join(source.notes)
    assert (
        'the class depends on the source' in notes
        and 'covid-19: actmed 3, sirm 2, fig1 1; normal: rsna 1, cohen 1, fig1 1' in notes
    )
    assert 'is not one of the published lists' in notes and '1 image file in the folder is not in the lists' in notes
    assert '2 films are from the RSNA challenge' in notes

    data, _ = build(source, tmp_path / 'out')
    assert data.splits == {'train': 4, 'test': 3}
    assert set(data.split('test').column('site')) == {'rsna', 'actmed', 'fig1'}
    assert_hidden(data, RSNA[0], RSNA[1], 'ANON191', 'SARS-10')
    drawn = covidx.source(str(folder), split='drawn')
    assert 'CR.1.2.840.png' in by_image(drawn)  # where splits are drawn, its patient is not in two


def test_the_mapping_leads_to_nih(folder):
    rows = [{'subset_img_id': RSNA[0], 'img_id': '00000013_005.png'}]
    (folder / rsna_pneumonia.MAPPING).write_text(json.dumps(rows))
    origins = {entry.image: entry.origin for entry in covidx.source(str(folder)).entries}
    via = ('rsna_pneumonia', RSNA[0])  # RSNA's own set may have been built without the mapping
    assert origins[f'{RSNA[0]}.png'] == Origin('nih', '00000013_005.png', '13', via)
    assert origins[f'{RSNA[1]}.png'].namespace == 'rsna_pneumonia' and origins[f'{RSNA[1]}.png'].via is None


def test_an_origin_without_the_mapping_is_the_patient_of_rsnas_own_entry(folder, tmp_path):
    csv(tmp_path / 'rsna' / 'stage_2_train_labels.csv', 'patientId,x,y,width,height,Target', f'{RSNA[0]},,,,,0')
    dicom(tmp_path / 'rsna' / 'stage_2_train_images' / f'{RSNA[0]}.dcm')
    (theirs,) = rsna_pneumonia.source(str(tmp_path / 'rsna')).entries
    (ours,) = (entry for entry in covidx.source(str(folder)).entries if entry.image == f'{RSNA[0]}.png')
    assert ours.origin == ('rsna_pneumonia', theirs.image, patient_of(theirs), None)


def test_two_classes_three_splits_and_lists_without_sources(tmp_path):
    for n, part in enumerate(('train', 'val', 'test')):
        png(tmp_path / 'data' / part / 'CR.png', n)  # one name in three folders
        png(tmp_path / 'data' / part / f'{part}.png', 5 + n)
    csv(tmp_path / 'train.txt', '1 train.png positive bimcv', '2 CR.png negative cohen')
    csv(tmp_path / 'val.txt', '3 val.png negative', '')
    csv(tmp_path / 'test.txt', '4 test.png POSITIVE stonybrook')
    source = covidx.source(str(tmp_path))
    assert labels(source)['train.png'] == {'covid19': 1, 'pneumonia': BLANK, 'normal': BLANK}
    assert {entry.image: entry.split for entry in source.entries} == {
        'train.png': 'train', 'CR.png': 'train', 'val.png': 'val', 'test.png': 'test',
    }  # fmt: skip
    assert source.load(by_image(source)['CR.png']).image == (tmp_path / 'data' / 'train' / 'CR.png').read_bytes()
    assert 'site' not in source.load(by_image(source)['val.png']).attributes
    (tmp_path / 'data' / 'train').rename(tmp_path / 'data' / 'films')
    assert 'several files have this name' in reasons(covidx.source(str(tmp_path))).values()


def test_lists_are_named(folder, monkeypatch):
    source = covidx.source(str(folder), split='7A')
    assert source.splits == 'covidx/7A, altered' and 'covidx/7A has 15111 train images, this list 6' in source.notes
    parts = [(line.split()[-3], 'train') for line in TRAIN if line and 'words' not in line]
    parts += [(line.split()[-3], 'test') for line in TEST if 'COVID(1)' not in line]
    mine = published_splits.Published('', {'train': 6, 'test': 3}, published_splits.digest(dict(parts).items()))
    monkeypatch.setitem(published_splits.LISTS, 'covidx/8A', mine)
    source = covidx.source(str(folder))
    assert source.splits == 'covidx/8A' and 'the list is COVIDx 8A as published' in source.notes

    csv(folder / 'labels' / 'train_COVIDx9B.txt', *TRAIN)
    csv(folder / 'labels' / 'test_COVIDx9B.txt', *TEST)
    with pytest.raises(
        UserError, match=r'train_COVIDx7A\.txt, train_COVIDx9B\.txt; say which with --split, one of 1, 2'
    ):
        covidx.source(str(folder))
    assert covidx.source(str(folder), split='9B').splits == 'covidx/9B, altered'
    with pytest.raises(UserError, match='no list .* of version 4'):
        covidx.source(str(folder), split='4')


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'no list train\*\.txt and test\*\.txt; give the folder that holds'):
        covidx.source(str(tmp_path))
    csv(tmp_path / 'train.txt', '1 train.png positive bimcv')
    csv(tmp_path / 'test.txt', '1 test.png positive bimcv')
    with pytest.raises(UserError, match='none of the 2 films'):
        covidx.source(str(tmp_path))
