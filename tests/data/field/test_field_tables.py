"""Tables and reports as people bring them: every case of wants.json, and other inputs of the same kinds."""

from __future__ import annotations

import csv
import json
import pathlib
import re

import numpy as np
import pytest
from field_inputs import script

from medjax import cli
from medjax.data import records
from medjax.data.releases import coding, column_names, words
from medjax.data.sources import table
from medjax.data.text import sections
from medjax.errors import UserError

reports, field = script('reports'), script('tables')

WANTS = json.loads((pathlib.Path(__file__).parent / 'wants.json').read_text())
CASES = {case.__name__: case for case in field.CASES}


def test_every_case_is_wanted():
    wanted = {name.partition('/')[2] for name in WANTS if name.startswith('tables/')}
    assert wanted == CASES.keys()
    assert {name.partition('/')[2] for name in WANTS if name.startswith('reports/')} == reports.REPORTS.keys()


@pytest.mark.parametrize('name', CASES)
def test_tables(name, tmp_path, capsys):
    want, root = WANTS[f'tables/{name}'], tmp_path / name
    root.mkdir()
    CASES[name](root)
    code = cli.main(['build', 'table', str(root), '--out', str(tmp_path / 'data')])
    printed = capsys.readouterr()
    if 'refused' in want:
        assert code == 2 and all(words in printed.err for words in want['refused']), printed.err
        return
    assert code == 0, printed.err
    for said in want['says']:
        assert said in printed.out, printed.out
    data = records.open(tmp_path / 'data')
    splits = [data.split(split) for split in data.splits]
    assert sum(data.splits.values()) == want['records'] and data.dropped == 0
    labels = {
        label: {str(code): int((column == code).sum()) for code in np.unique(column)}
        for label, column in zip(data.labels, np.concatenate([s.labels_array for s in splits]).T, strict=True)
    }
    assert labels == want['labels']
    for kind in ('patient', 'study'):
        keys = {int(key) for split in splits for key in split.keys(kind)}
        wanted = want.get('patients' if kind == 'patient' else 'studies')
        assert wanted is None or len(keys) == wanted
    assert data.unknown_patients == want.get('unknown_patients', 0)
    assert data.split_list == ('given' if 'splits' in want else 'drawn')
    assert 'splits' not in want or data.splits == want['splits']
    if 'ages' in want:
        ages = np.concatenate([split.column('age') for split in splits])
        assert [float(ages.min()), float(ages.max())] == want['ages']
    if 'sections' in want:
        texts = [split[i].attributes['text'] for split in splits for i in range(len(split))]
        assert want['sections'] in texts and all(text.keys() == want['sections'].keys() for text in texts)
    columns = {use['column']: use for use in data.columns}
    with (root / 'metadata.csv').open(encoding='utf-8-sig') as file:
        assert columns.keys() == set(re.split('[,;]', file.readline().strip()))
    assert all(use['use'] or use['why'] for use in columns.values())


# Other inputs of these kinds


def made(root: pathlib.Path, head: list[str], rows: list[list], names=None, encoding='utf-8', delimiter=',') -> str:
    """Writes a table and one image for each row; names: of the files, else the first cell of each row."""
    root.mkdir(exist_ok=True)
    field.images(root, names or [row[0] for row in rows])
    with (root / 'metadata.csv').open('w', newline='', encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([head, *rows])
    return str(root)


def uses(source) -> dict:
    return {use.column: use for use in source.columns}


def codes(source) -> list[list[int]]:
    return [list(source.label(i)) for i in range(len(source.entries))]


N = [f'{i}.png' for i in range(24)]


@pytest.mark.parametrize(
    'blank',
    [
        'NaN',
        'NA',
        'N.A.',
        'n/a',
        'missing',
        '-',
        '--',
        'None',
        'null',
        'unknown',
        '#N/A',
        '<NA>',
        '?',
        'keine Angabe',
        'unbekannt',
        'non renseigné',
        'inconnu',
        'sin datos',
        's/d',
        'não informado',
        'sconosciuto',
        'onbekend',
        'n. r.',
        '#NV',
        '#VALEUR!',
        '#BEZUG!',
        '#¿NOMBRE?',
        'o. A.',
        'nicht untersucht',
        'not evaluable',
        'sem informação',
        'no documentado',
        'non applicabile',
        'ausstehend',
    ],
)
def test_words_for_blank(tmp_path, blank):
    rows = [[n, [blank, 'p1', 'p2'][k % 3], [blank, '1', '0'][k % 3], blank] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'patient_id', 'mass', 'text'], rows))
    assert source.labels == ('mass',) and codes(source)[:3] == [[-2], [1], [0]]
    assert [entry.patient for entry in source.entries[:3]] == [None, 'p1', 'p2']
    assert source.load(0).text == {}
    assert uses(source)['mass'].words == {blank: ('blank', 8)} and uses(source)['mass'].blank == 8


@pytest.mark.parametrize(
    ('yes', 'no'),
    [
        ('True', 'False'),
        ('TRUE', 'FALSE'),
        ('Yes', 'No'),
        ('y', 'n'),
        ('ja', 'nein'),
        ('J', 'N'),
        ('oui', 'non'),
        ('O', 'N'),
        ('sí', 'no'),
        ('S', 'N'),
        ('sim', 'não'),
        ('positive', 'negative'),
        ('present', 'absent'),
        ('pos', 'neg'),
        ('T', 'F'),
        ('1.0', '0.0'),
        ('1,0', '0,0'),
        ('vorhanden', 'nicht vorhanden'),
        ('vero', 'falso'),
        ('+', 'no'),
        ('01', '00'),
        ('1.0e+00', '0.000e+00'),
        ('positiva', 'negativa'),
        ('detected', 'not detected'),
        ('nachgewiesen', 'nicht nachgewiesen'),
        ('present', 'Not present'),
    ],
)
def test_words_for_yes_and_no(tmp_path, yes, no):
    rows = [[n, [yes, no, ''][k % 3]] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'mass'], rows, delimiter=';'))
    assert source.labels == ('mass',) and codes(source)[:3] == [[1], [0], [-2]]


def test_letters_are_yes_and_no_only_in_pairs(tmp_path):
    rows = [[n, 'F', 'F' if k % 2 else 'M', 't' if k % 2 else ''] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'a', 'b', 'c'], rows))
    assert source.labels == ()
    assert all(
        'makes a label of each value' in uses(source)[c].why or 'text, one value' in uses(source)[c].why for c in 'abc'
    )


@pytest.mark.parametrize('named', [None, 'mass'])
@pytest.mark.parametrize('typo', ['o', '1?', 'yse', 'x'])
def test_a_typing_error_does_not_lose_the_label(tmp_path, typo, named):
    rows = [[n, typo if k == 5 else k % 2] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'mass'], rows), labels=named)
    assert source.labels == ('mass',) and codes(source)[5] == [-2] and codes(source)[:2] == [[0], [1]]
    assert '1 cell is neither yes nor no and left blank: line 7' in uses(source)['mass'].why
    assert uses(source)['mass'].cells == 23


def test_a_number_that_is_there_once_is_a_typing_error(tmp_path):
    rows = [[n, '10' if k == 7 else k % 2, '3' if k in (4, 6, 8) else k % 2] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'mass', 'stage'], rows), labels='mass,stage')
    assert source.labels == ('mass', 'stage=0', 'stage=1', 'stage=3')
    assert codes(source)[7][0] == -2 and 'left blank: line 9' in uses(source)['mass'].why
    assert uses(source)['stage'].why.startswith('lines 6, 8, 10 are neither yes nor no; each value became a label')


def test_typing_errors_in_a_named_column_are_told(tmp_path):
    cells = {3: 'jja', 9: 'nien'}
    rows = [[n, cells.get(k, ('ja', 'nein')[k % 2]), 'ABC'[k % 3]] for k, n in enumerate(N)]
    root = made(tmp_path / 'x', ['image', 'edema', 'type'], rows)
    source = table.source(root, labels='edema,type')
    assert source.labels == (
        'edema=ja', 'edema=jja', 'edema=nein', 'edema=nien', 'type=A', 'type=B', 'type=C'
    )  # fmt: skip
    assert 'lines 5, 11 are neither yes nor no' in uses(source)['edema'].why and not uses(source)['type'].why
    why = uses(table.source(root))['edema'].why
    assert '2 cells are neither yes, no nor blank, too many for a label: lines 5, 11' in why


def test_columns_that_labels_does_not_name(tmp_path):
    rows = [[n, k % 2, k % 2] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'mass', 'edema'], rows), labels='mass')
    assert uses(source)['edema'].why == 'no label, because --labels names others'


def test_writings_of_bi_rads_are_joined(tmp_path):
    cells = ['BI-RADS 4b', '4 B', 'IVb', 'Kategorie 4B', 'ACR 4-b', '2', 'II', 'bi-rads: 2 - benign', '2.0', 'N.A.']
    rows = [[n, cells[k % 10]] for k, n in enumerate(N[:20])]
    source = table.source(made(tmp_path / 'x', ['image', 'BI-RADS'], rows), labels='BI-RADS')
    assert source.labels == ('BI-RADS=2', 'BI-RADS=4B')
    assert codes(source)[:10] == [[0, 1]] * 5 + [[1, 0]] * 4 + [[-2, -2]]


def test_many_errors_are_no_label_and_grades_are_none(tmp_path):
    rows = [[n, 'so so' if k % 4 == 0 else k % 2, k % 3, k / 2] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'mass', 'grade', 'dose'], rows))
    assert source.labels == ()
    assert '6 cells are neither yes, no nor blank' in uses(source)['mass'].why
    assert uses(source)['grade'].why == 'numbers, 3 values; --labels grade makes a label of each value'
    named = table.source(str(tmp_path / 'x'), labels='grade')
    assert named.labels == ('grade=0', 'grade=1', 'grade=2') and uses(named)['grade'].use == '3 labels'


def test_categories_are_joined_by_case_and_blanks(tmp_path):
    rows = [[n, ['Benign', 'benign', 'BI-RADS 4A', 'birads: 4a', 'N/A', 'Benign'][k % 6]] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'kind'], rows), labels='kind')
    assert source.labels == ('BI-RADS 4A', 'Benign')
    assert codes(source)[:6] == [[0, 1], [0, 1], [1, 0], [1, 0], [-2, -2], [0, 1]]
    assert '2 values are other writings of one' in uses(source)['kind'].why and uses(source)['kind'].blank == 4


def test_several_names_in_a_cell(tmp_path):
    cells = ['Effusion|Mass', 'mass', 'No Finding', 'nan', 'Effusion | Nodule ']
    source = table.source(
        made(tmp_path / 'x', ['image', 'finding'], [[n, cells[k % 5]] for k, n in enumerate(N)]), 'finding'
    )
    assert source.labels == ('Effusion', 'Mass', 'No Finding', 'Nodule')
    assert codes(source)[:5] == [[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [-2] * 4, [1, 0, 0, 1]]
    assert (
        '9 cells hold several names' in uses(source)['finding'].why
        and '1 value is another' in uses(source)['finding'].why
    )


@pytest.mark.parametrize(
    'column',
    [
        'fold',
        'Fold_1',
        'cv_fold',
        'SiteID',
        'site',
        'scanner',
        'Hospital',
        'Unnamed: 0',
        'index',
        'gender_code',
        'Standort',
        'is_male',
        'laterality',
        'sexe',
        'centro',
        'followUp',
        'device',
        'split_2',
        'KFold',
        'outer-fold',
        'Site_B',
        'sex_F',
        'view_AP',
        'is_train',
        'has_mask',
        'Krankenhaus',
        'Abteilung',
        'Partição',
        'exclude',
        'ct_scanner',
    ],
)
def test_columns_that_are_no_findings(tmp_path, column):
    rows = [[n, f'p{k}', k % 2, k % 2] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'patient_id', column, 'effusion'], rows))
    assert source.labels == ('effusion',)
    assert uses(source)[column].use != 'label' and uses(source)[column].why
    if column not in ('sexe', 'gender_code'):
        assert table.source(str(tmp_path / 'x'), labels=column).labels == (column,)


def test_findings_are_findings():
    for name in (
        'no_finding',
        'Support Devices',
        'mass',
        'left_effusion',
        'Ergebnis',
        'pneumonia',
        'covid',
        'fracture of rib',
        'in_lung_mass',
        'support_device',
        'has_nodule',
        'CT',
        'OA',
        'label',
        'target',
        'class',
        '肺炎',
        'пневмония',
        'y',
    ):
        assert not column_names.is_no_finding(name), name


@pytest.mark.parametrize(
    'column',
    [
        'Patient ID',
        'Patient-ID',
        'PatientID',
        'pat_id',
        'MRN',
        'subject',
        'Subject_ID',
        'patient',
        'ID_Paciente',
        'Patientennummer',
        'PATIENT_ID',
        'Pat.-ID',
        'PtID',
        'pt_id',
        'Patient Identifier',
        'Pseudonym',
        'subject_code',
    ],
)
def test_columns_of_patients(tmp_path, column):
    rows = [[n, f'p{k // 4}', k % 2] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', column, 'effusion'], rows, delimiter='\t'))
    assert len({entry.patient for entry in source.entries}) == 6 and None not in {
        entry.patient for entry in source.entries
    }
    (use,) = (use for use in source.columns if use.use == 'patient_id')
    assert use.column.lower() == column.lower() and use.cells == 24


def test_other_columns_of_patients_are_suggested(tmp_path):
    rows = [[n, f'p{k // 4}', k % 2] for k, n in enumerate(N)]
    for column in ('case_id', 'patinet_id'):
        source = table.source(made(tmp_path / column, ['image', column, 'effusion'], rows))
        assert {entry.patient for entry in source.entries} == {None}
        assert 'if it holds ids of patients, rename it to patient_id' in uses(source)[column].why
        assert f'{column!r} looks like one' in source.notes[0]
    two = [[n, f'p{k // 4}', f'q{k}'] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'two', ['image', 'MRN', 'patient_id'], two))
    assert source.entries[0].patient == 'q0' and uses(source)['MRN'].use == ''


@pytest.mark.parametrize('column', ['split', 'SplitName', 'subset', 'Data-Split', 'partition', 'set'])
@pytest.mark.parametrize(
    ('train', 'val', 'test'),
    [
        ('Training', 'tune', 'testing'),
        ('train', 'valid', 'held-out'),
        ('TRAIN', 'dev', 'TEST'),
        ('trn', 'Tuning', 'tst'),
        ('entraînement', 'validation', 'test'),
        ('train', 'Validierung', 'hold_out'),
    ],
)
def test_words_for_splits(tmp_path, column, train, val, test):
    rows = [[n, f'p{k}', [train, val, test][k % 3]] for k, n in enumerate(N[:6])]
    source = table.source(made(tmp_path / 'x', ['image', 'patient_id', column], rows))
    assert [entry.split for entry in source.entries] == ['train', 'val', 'test'] * 2
    assert uses(source)[column].words == {
        word: (split, 2) for word, split in ((train, 'train'), (val, 'val'), (test, 'test')) if word.lower() != split
    }


@pytest.mark.parametrize(
    ('empty', 'filled', 'field', 'cells'),
    [
        ('patient_id', 'Subject_ID', 'patient_id', ['K1', 'K2', 'K3', 'K4']),
        ('Split', 'subset', 'split', ['train', 'val', 'test', 'train']),
        ('sex', 'Sexe', 'sex', ['femme', 'homme', 'F', 'M']),
        ('age', 'Edad', 'age', ['40', '50', '61', '33']),
    ],
)
def test_an_empty_column_leaves_its_field_to_a_filled_one(tmp_path, empty, filled, field, cells):
    rows = [[n, '' if k else 'N/A', cells[k]] for k, n in enumerate(N[:4])]
    source = table.source(made(tmp_path / 'x', ['image', empty, filled], rows))
    name = empty.lower() if empty.lower() == field else empty
    assert uses(source)[filled].use == field and uses(source)[name].use == ''
    assert uses(source)[name].why == 'empty'
    if field == 'patient_id':
        assert [entry.patient for entry in source.entries] == cells


@pytest.mark.parametrize('column', ['split', 'subset', 'Dataset_Split', 'partition'])
def test_a_typing_error_in_a_column_of_splits_is_refused(tmp_path, column):
    rows = [[n, 'tset' if k == 3 else ('train', 'test')[k % 2]] for k, n in enumerate(N[:12])]
    with pytest.raises(UserError, match=rf"column {column} .*: line 5 holds 'tset'; did you mean 'test'\?"):
        table.source(made(tmp_path / 'x', ['image', column], rows))


def test_a_message_about_splits_holds_no_names_of_people(tmp_path):
    rows = [[n, f'SCHMIDT^EVA{k}'] for k, n in enumerate(N[:6])]
    with pytest.raises(UserError, match='line 2 does not, line 3 does not') as refused:
        table.source(made(tmp_path / 'x', ['image', 'split'], rows))
    assert 'SCHMIDT' not in str(refused.value) and '3 more lines' in str(refused.value)


def test_evaluation_is_val(tmp_path):
    rows = [[n, ('train', 'eval', 'Evaluation')[k % 3]] for k, n in enumerate(N[:6])]
    source = table.source(made(tmp_path / 'x', ['image', 'subset'], rows))
    assert [entry.split for entry in source.entries] == ['train', 'val', 'val'] * 2


def test_a_column_set_that_holds_no_splits_is_none(tmp_path):
    source = table.source(made(tmp_path / 'x', ['image', 'set', 'original_split'], [[n, 'A', 'train'] for n in N[:4]]))
    assert {entry.split for entry in source.entries} == {None}
    assert (
        uses(source)['set'].use == ''
        and 'if it holds train, val and test, rename it to split' in uses(source)['original_split'].why
    )


@pytest.mark.parametrize(
    ('cell', 'age'),
    [
        ('055Y', 55),
        ('6M', 0.5),
        ('018M', 1.5),
        ('50,5', 50.5),
        ('45 years', 45),
        ('45 Jahre', 45),
        ('3 ans', 3),
        ('90+', 90),
        ('>89', 90),
        ('≥ 90', 90),
        ('12 Monate', 1),
        ('104', 90),
        ('121', None),
        ('>50', None),
        ('-1', None),
        ('6.', 6),
        ('30-35', None),
        ('45 y.o.', 45),
        ('2 weeks', 2 / 52.18),
        ('61 años', 61),
        ('.5', 0.5),
        ('1e1', None),
        ('M', None),
        ('72 y/o', 72),
        ('33-year-old', 33),
        ('18 Mon', 1.5),
        ('6 Wo.', 6 / 52.18),
    ],
)
def test_ages(cell, age):
    assert coding.age(cell) == (None if age is None else pytest.approx(age))


@pytest.mark.parametrize(('cell', 'sex'), [('weibl.', 'F'), ('masc', 'M'), ('Fem.', 'F'), ('männl.', 'M')])
def test_short_words_for_sexes(cell, sex):
    assert words.sex(cell) == sex


def test_oa_is_a_finding():
    assert not words.is_blank('OA') and words.is_blank('o.A.')
    assert not words.is_blank('#3') and words.is_blank('#WERT!')


def test_ages_and_sexes_are_counted(tmp_path):
    ages, sexes = ['45 years', '30-35', 'NA', '6M'], ['männlich', 'femme', '1', 'Other']
    rows = [[n, ages[k % 4], sexes[k % 4]] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'Alter', 'Geschlecht'], rows))
    assert [source.load(i).attributes.get('age') for i in range(4)] == [45, None, None, 0.5]
    assert [source.load(i).attributes.get('sex') for i in range(4)] == ['M', 'F', None, 'Other']
    age, sex = uses(source)['Alter'], uses(source)['Geschlecht']
    assert (age.cells, age.blank, age.why) == (12, 12, '6 cells hold no age, left blank')
    assert sex.words == {'männlich': ('M', 6), 'femme': ('F', 6)} and '1 do not say who is male' in sex.why


@pytest.mark.parametrize(
    ('cell', 'file', 'how'),
    [
        ('C:\\Users\\Dr\\set\\images\\{}.png', 'images/{}.png', 'by a path of another machine'),
        ('\\\\server\\share\\images\\{}.png', 'images/{}.png', 'by a path of another machine'),
        ('clinic/images/{}.png', 'images/{}.png', 'by a path of another machine'),
        ('/mnt/x/images/IM_{}', 'images/IM_{}.png', 'by a path of another machine and without its suffix'),
        ('images/{}.jpg', 'images/{}.jpeg', 'with another suffix'),
        ('{}.PNG', 'images/{}.png', 'without its folder and in other case'),
        ('ISIC_{}', 'part_2/ISIC_{}.jpg', 'without its folder and without its suffix'),
        ('1.2.840.{}', '1.2.840.{}.png', 'without its suffix'),
        ('images/Ärztin {}.png', 'images/A\u0308rztin {}.png', ''),
        ('IMAGES/é{}.PNG', 'images/e\u0301{}.png', 'in other case'),
        ('{}.0', '000{}.png', 'by its number alone'),
        ('{}', 'images/00{}.jpg', 'by its number alone'),
    ],
)
def test_names_of_files(tmp_path, cell, file, how):
    rows = [[cell.format(k), k % 2] for k in range(6)]
    source = table.source(made(tmp_path / 'x', ['image', 'mass'], rows, [file.format(k) for k in range(6)]))
    assert len(source.entries) == 6 and not source.dropped
    assert [source.load(k).image == (tmp_path / 'x' / file.format(k)).read_bytes() for k in range(6)] == [True] * 6
    assert uses(source)['image'].why == (f'6 of them {how}' if how and 'ES' not in cell else uses(source)['image'].why)


def test_names_that_may_mean_several_files_are_set_aside(tmp_path):
    names = ['a/1.png', 'b/1.png', 'b/2.png', 'b/2.jpg', '3.png', '4.png']
    rows = [['1'], ['2'], ['/x/3.png'], ['/y/3.png'], ['4'], ['4.png'], ['1.23457E+12'], ['c/2.png'], ['/x/c/1']]
    source = table.source(made(tmp_path / 'x', ['image'], rows, names))
    assert [entry.image for entry in source.entries] == ['4.png']
    reasons = {drop.where.split()[-1]: drop.reason for drop in source.dropped}
    assert 'several files have this name' in reasons['2'] and 'several files have this name' in reasons['3']
    assert 'several lines may mean this file' in reasons['4'] and 'several lines may mean this file' in reasons['5']
    assert all('a file of this name in another folder' in reasons[line] for line in ('9', '10'))
    assert reasons['6'].startswith('repeats the image of line 7') and 'spreadsheet has shortened' in reasons['8']


@pytest.mark.parametrize(
    ('ids', 'people', 'words'),
    [
        (['12.0', '12', '13.0', '14'], 3, 'as the same number'),
        (['0001', '1', '02', '2'], 2, 'as the same number'),
        (['0001', '0002', '0003', '0004'], 4, ''),
        (['1.234567E+06', '1234567', '1.5E+01', '16'], 3, 'as the same number'),
        (['1,2346E+12', '1,2346E+12', '5', '6'], 3, '2 cells have lost digits'),
        (['123456789012345000', '123456789012346000', 'q7', 'q8'], 4, '12 cells have lost digits'),
        (['3-Dec', '4-Dec', '2024-03-12 00:00:00', 'p7'], 4, '18 cells look like dates'),
    ],
)
def test_numbers_of_people(tmp_path, ids, people, words):
    rows = [[n, ids[k % 4]] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'patient_id'], rows))
    assert len({entry.patient for entry in source.entries}) == people
    use = uses(source)['patient_id']
    assert words in use.why and use.cells == 24
    assert not any(id in use.why for id in ids if id not in ('12', '13.0', '14', '5', '6', '1', '2', '16', '02'))


@pytest.mark.parametrize(
    ('ids', 'people', 'words'),
    [
        (['Jürgen-1', 'Ju\u0308rgen-1', 'JÜRGEN-1', 'x'], 2, '8 cells differ from another only in case'),
        (['k7', 'K7', 'k8', 'K9'], 3, '4 cells differ'),
        (['straße 3', 'STRASSE 3', 'a', 'b'], 3, '4 cells differ'),
        (['aa', 'ab', 'ac', 'a-c'], 4, ''),
    ],
)
def test_letters_of_people(tmp_path, ids, people, words):
    rows = [[n, ids[k % 4], k % 2] for k, n in enumerate(N[:16])]
    source = table.source(made(tmp_path / 'x', ['image', 'patient_id', 'mass'], rows))
    assert len({entry.patient for entry in source.entries}) == people
    assert words in uses(source)['patient_id'].why and bool(uses(source)['patient_id'].why) == bool(words)


def test_nobody_in_a_table(tmp_path):
    rows = [[n, 'anonymous' if k < 20 else f'p{k}', k] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'patient_id', 'study_id'], rows))
    assert [entry.patient for entry in source.entries] == [None] * 20 + ['p20', 'p21', 'p22', 'p23']
    assert uses(source)['patient_id'].cells == 4 and '20 lines have no patient' in source.notes[0]


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
@pytest.mark.parametrize('delimiter', [';', '\t', '|'])
def test_a_table_of_a_spreadsheet(tmp_path, encoding, delimiter):
    head = ['Image', 'Patienten-ID', 'Alter', 'Geschlecht', 'Erguß', 'Fold', 'Befundtext']
    rows = [
        [f'Röntgen {k}', f'{k // 2}.0', f'{50 + k},5', 'wm'[k % 2], ['ja', 'nein'][k % 2], k % 5, 'Text']
        for k in range(12)
    ]
    root = made(tmp_path / 'x', head, rows, [f'Röntgen {k}.png' for k in range(12)], encoding, delimiter)
    source = table.source(root)
    assert source.labels == ('Erguß',) and codes(source)[:2] == [[1], [0]]
    assert [entry.patient for entry in source.entries[:3]] == ['0', '0', '1']
    assert source.load(1).attributes == {'age': 51.5, 'sex': 'M'} and source.load(0).attributes['sex'] == 'F'
    assert 'numbers, 5 values' in uses(source)['Fold'].why and 'rename it to text' in uses(source)['Befundtext'].why


def test_columns_are_told_and_kept_without_ids(tmp_path, capsys):
    rows = [[n, f'SECRET{k // 2}', ['nan', 1, 0][k % 3], k % 2, 'NOTE'] for k, n in enumerate(N)]
    root = made(tmp_path / 'x', ['image', 'MRN', 'mass', 'fold', 'remark'], rows)
    assert cli.main(['build', 'table', root, '--out', str(tmp_path / 'data')]) == 0
    printed = capsys.readouterr().out
    assert "column mass: label, 16 cells, 8 blank; 'nan' as blank 8 times" in printed
    assert 'column MRN: patient_id, 24 cells' in printed and 'column fold: not used' in printed
    written = (tmp_path / 'data' / 'medjax.json').read_text()
    assert 'SECRET' not in written + printed and 'NOTE' not in written + printed
    assert [use['column'] for use in json.loads(written)['columns']] == ['image', 'MRN', 'mass', 'fold', 'remark']
    facts = json.loads(written)
    del facts['columns']  # as in data sets of before
    (tmp_path / 'data' / 'medjax.json').write_text(json.dumps(facts))
    assert records.open(tmp_path / 'data').columns == []


def test_a_column_may_be_a_field_and_labels(tmp_path):
    rows = [[n, 'MF'[k % 2], k % 2] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'Gender', 'mass'], rows), labels='Gender,mass')
    assert source.labels == ('sex=F', 'sex=M', 'mass') and [use.column for use in source.columns] == [
        'image',
        'Gender',
        'mass',
    ]
    assert uses(source)['Gender'].use == 'sex and 2 labels'


def test_one_person_in_all_lines_is_told(tmp_path):
    source = table.source(made(tmp_path / 'x', ['image', 'patient_id'], [[n, 'clinic A'] for n in N]))
    assert {entry.patient for entry in source.entries} == {'clinic A'}
    assert any('24 of 24 lines have one patient: if the id stands for nobody' in note for note in source.notes)


def test_columns_that_differ_are_refused(tmp_path):
    rows = [[n, k % 2, k % 3 % 2] for k, n in enumerate(N)]
    with pytest.raises(UserError, match="'mass' is there twice, and line 5 differs"):
        table.source(made(tmp_path / 'x', ['image', 'mass', 'mass'], rows))


@pytest.mark.parametrize('column', ['filename', 'Image Path', 'img_id', 'file'])
def test_a_column_like_image_is_read_if_its_cells_name_files(tmp_path, column):
    root = made(tmp_path / 'x', [column, 'mass'], [[n, 1] for n in N])
    source = table.source(root)
    assert len(source.entries) == len(N) and uses(source)[column].use == 'image' and source.labels == ('mass',)
    table_of_elsewhere = (tmp_path / 'x' / 'metadata.csv').read_text().replace('.png', '.tif_old')
    (tmp_path / 'x' / 'metadata.csv').write_text(table_of_elsewhere)
    with pytest.raises(UserError, match=f"the column image is missing; did you mean '{column}'"):
        table.source(root)


# Reports


@pytest.mark.parametrize('name', reports.REPORTS)
def test_reports(name):
    assert sections.parse(reports.REPORTS[name]) == WANTS[f'reports/{name}']


@pytest.mark.parametrize('above', ['sep=;\r\n', '"sep=;"\n', '\n', '  \n\n', '\nsep=;\n', 'sep=;\n\n'])
def test_lines_above_the_header(tmp_path, above):
    root = tmp_path / 'x'
    made(root, ['image', 'patient_id', 'mass'], [[n, f'p{k}', 'yse' if k == 3 else k % 2] for k, n in enumerate(N[:6])])
    text = (root / 'metadata.csv').read_text().replace(',', ';')
    (root / 'metadata.csv').write_bytes((above + text).encode())
    source = table.source(str(root))
    assert source.labels == ('mass',) and [entry.patient for entry in source.entries] == [f'p{k}' for k in range(6)]
    line = 5 + above.count('\n')
    assert uses(source)['mass'].why == f'1 cell is neither yes nor no and left blank: line {line}'
    assert source.entries[0].where == f'metadata.csv line {2 + above.count(chr(10))}'


def test_a_separator_that_the_table_names(tmp_path):
    root = tmp_path / 'x'
    made(root, ['image', 'a;b', 'mass'], [[n, '1;2;3;4', k % 2] for k, n in enumerate(N[:6])])
    text = 'sep=,\n' + (root / 'metadata.csv').read_text().replace('a;b', 'a;b;c;d;e')
    (root / 'metadata.csv').write_text(text)
    assert table.source(str(root)).labels == ('mass',)


def test_sexes_and_views_are_words_of_lists(tmp_path):
    sexes, views = ['Roe', 'divers', 'weibl.', 'X'], ['Dr. Doe', 'AP supine', 'lateral', 'RCC']
    rows = [[n, sexes[k % 4], views[k % 4], k % 2] for k, n in enumerate(N[:8])]
    source = table.source(made(tmp_path / 'x', ['image', 'sex', 'view', 'mass'], rows))
    assert [source.load(i).attributes.get('sex') for i in range(4)] == [None, 'divers', 'F', 'X']
    assert [source.load(i).attributes.get('view') for i in range(4)] == [None, 'AP supine', 'lateral', 'RCC']
    assert uses(source)['sex'].why == '2 cells hold no sex, left blank'
    assert uses(source)['view'].why == '2 cells hold no view, left blank'
