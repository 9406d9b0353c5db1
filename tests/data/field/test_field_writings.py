"""Tables in the writings of programs: marks of spreadsheets, lists, addresses, names of columns; and drawn splits."""

from __future__ import annotations

import csv
import pathlib

import pytest
from field_inputs import script
from releases_text import dicom, save

from medjax import cli
from medjax.data import records
from medjax.data.releases import column_names, words
from medjax.data.sources import dicom as export, table
from medjax.errors import UserError

field = script('tables')
N = [f'{i}.png' for i in range(12)]


def made(root: pathlib.Path, head: list, rows: list[list], names=None, encoding='utf-8') -> str:
    """Writes a table and one image for each row."""
    root.mkdir(parents=True, exist_ok=True)
    field.images(root, names or [row[0] for row in rows])
    with (root / 'metadata.csv').open('w', newline='', encoding=encoding) as file:
        csv.writer(file).writerows([head, *rows])
    return str(root)


def uses(source) -> dict:
    return {use.column: use for use in source.columns}


def codes(source) -> list[list[int]]:
    return [list(source.label(i)) for i in range(len(source.entries))]


@pytest.mark.parametrize('form', ['="{}"', "'{}", '\ufeff{}', '{}\u200b', '{}\u200e '])
def test_marks_of_spreadsheets_are_no_part_of_an_id(tmp_path, form):
    rows = [
        [n, form.format(f'{k // 2:05d}') if k % 2 else f'{k // 2:05d}', form.format(k % 2)] for k, n in enumerate(N)
    ]
    source = table.source(made(tmp_path / 'x', ['image', 'patient_id', 'mass'], rows))
    assert [entry.patient for entry in source.entries] == [f'{k // 2:05d}' for k in range(12)]
    assert source.labels == ('mass',) and codes(source) == [[k % 2] for k in range(12)]


def test_quotes_that_are_text_stay(tmp_path):
    texts = ["'Tis clear.", "'quoted'", "'a b'", '="a" is no cell']
    source = table.source(made(tmp_path / 'x', ['image', 'text'], [[n, t] for n, t in zip(N, texts, strict=False)]))
    assert [source.load(i).text['report'] for i in range(4)] == texts


def test_ids_that_differ_in_the_kind_of_blanks_are_one_person(tmp_path):
    rows = [[n, ['A 1', 'A\xa01', 'A  1', 'A 2'][k % 4]] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'patient_id'], rows))
    assert len({entry.patient for entry in source.entries}) == 2
    assert '6 cells differ from another only in case, blanks' in uses(source)['patient_id'].why


def test_a_separator_at_the_end_of_each_line(tmp_path):
    root = pathlib.Path(made(tmp_path / 'x', ['image', 'mass'], [[n, k % 2] for k, n in enumerate(N)]))
    head, *lines = (root / 'metadata.csv').read_text().splitlines()
    (root / 'metadata.csv').write_text('\n'.join([head, *(f'{line},' for line in lines)]))
    assert codes(table.source(str(root))) == [[k % 2] for k in range(12)]
    lines[3] += ',7'  # one line of other cells: nobody knows which cell is too many
    (root / 'metadata.csv').write_text('\n'.join([head, *(f'{line},' for line in lines)]))
    assert not table.source(str(root)).entries


def test_utf_32(tmp_path):
    rows = [[n, k % 2] for k, n in enumerate(N)]
    assert len(table.source(made(tmp_path / 'x', ['image', 'mass'], rows, encoding='utf-32')).entries) == 12


@pytest.mark.parametrize('form', ['scans/a%20b%20{}.png', 'https://host/x/scans/a%20b%20{}.png?size=9#top'])
def test_addresses_of_the_web(tmp_path, form):
    names = [f'scans/a b {k}.png' for k in range(6)]
    rows = [[form.format(k), k % 2] for k in range(6)]
    source = table.source(made(tmp_path / 'x', ['image', 'mass'], rows, names))
    assert [entry.image for entry in source.entries] == names
    assert '6 of them as an address of the web' in uses(source)['image'].why


@pytest.mark.parametrize(
    'column',
    ['Patientnummer', 'anon_patient_id', 'hashed_pid', 'PatientID_anon', 'subject_hash', 'Pat.-Kennung',
     'participant_code', 'study_subject_id', 'Probanden-Nr.', 'deid_patient_key'],
)  # fmt: skip
def test_names_made_of_a_person_and_an_id_are_patients(tmp_path, column):
    rows = [[n, f'p{k // 3}', k % 2] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', column, 'mass'], rows))
    assert len({entry.patient for entry in source.entries}) == 4 and uses(source)[column].use == 'patient_id'


@pytest.mark.parametrize(
    'column', ['patient_age', 'patient_weight', 'person_name', 'outpatient', 'participants', 'pat']
)
def test_other_names_with_a_person_are_no_ids(column):
    assert column_names.is_name(column, 'patient_id') == (column == 'pat')


@pytest.mark.parametrize(
    'column', ['qc_pass', 'usable', 'read_by_2', 'verified', 'is_adult', 'AP', 'over_65', 'has_text']
)
def test_flags_of_a_study_are_no_findings(tmp_path, column):
    rows = [[n, k % 2, k % 2] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', column, 'mass'], rows))
    assert source.labels == ('mass',) and f'--labels {column}' in uses(source)[column].why


@pytest.mark.parametrize('word', ['unclear', 'not sure', 'Inconclusive', 'verdächtig', 'cannot exclude', 'borderline'])
def test_more_words_for_uncertain(word):
    assert words.code(word) == -1


@pytest.mark.parametrize('word', ['missing value', 'not avail.', 'no info', 'TBC', 'Not collected', 'n/e'])
def test_more_words_for_blank(word):
    assert words.is_blank(word)


def test_lists_of_names(tmp_path):
    cells = ['["Effusion", "Mass"]', "['Mass']", "{'Effusion'}", '[]', 'Mass|Effusion', '["Mass, left"]']
    rows = [[n, cells[k]] for k, n in enumerate(N[:6])]
    source = table.source(made(tmp_path / 'x', ['image', 'finding'], rows), labels='finding')
    assert source.labels == ('Effusion', 'Mass', 'Mass, left')
    assert codes(source) == [[1, 1, 0], [0, 1, 0], [1, 0, 0], [-2, -2, -2], [1, 1, 0], [0, 0, 1]]
    assert '2 cells hold several names, divided at the bar or as a list' in uses(source)['finding'].why
    assert '1 value holds a comma, a semicolon or a slash between other values' in uses(source)['finding'].why


@pytest.mark.parametrize('value', ['Pneumonia, viral', 'Nodule/Mass'])
def test_values_with_a_comma_beside_no_part_of_them_are_names(tmp_path, value):
    rows = [[n, ['Normal', value][k % 2]] for k, n in enumerate(N)]
    source = table.source(made(tmp_path / 'x', ['image', 'finding'], rows), labels='finding')
    assert set(source.labels) == {'Normal', value} and not uses(source)['finding'].why


def test_drawn_splits_need_no_splits_of_the_table(tmp_path):
    rows = [[n, f'p{k}', ['train', 'trian', ''][k % 3], k % 2] for k, n in enumerate(N)]
    root = made(tmp_path / 'x', ['image', 'patient_id', 'split', 'mass'], rows)
    with pytest.raises(UserError, match="did you mean 'train'"):
        table.source(root)
    assert cli.main(['build', 'table', root, '--out', str(tmp_path / 'data'), '--split', 'drawn']) == 0
    data = records.open(tmp_path / 'data')
    assert sum(data.splits.values()) == 12 and data.dropped == 0 and data.split_list == 'drawn'
    assert {use['column']: use['why'] for use in data.columns}['split'] == '--split drawn draws other splits'


# Tables of labels beside an export


@pytest.fixture
def scans(tmp_path):
    root = tmp_path / 'export'
    for k in range(8):
        ids = dict(SOPInstanceUID=f'1.2.{k}', StudyInstanceUID=f'1.3.{k // 2}', PatientID=f'case {k // 2:03d}')
        save(root / 'a' / f'IM_{k}.dcm', dicom(**ids))
    return root


def labels_file(tmp_path, head: str, *lines: str) -> str:
    path = tmp_path / 'labels.csv'
    path.write_text('\n'.join([head, *lines]))
    return str(path)


def test_drawn_splits_of_an_export_need_no_splits_of_the_table(tmp_path, scans):
    path = labels_file(
        tmp_path, 'StudyInstanceUID,split,mass', *(f'1.3.{k},{["train", "tset", ""][k % 3]},1' for k in range(4))
    )
    with pytest.raises(UserError, match="did you mean 'test'"):
        export.source(str(scans), labels=path)
    source = export.source(str(scans), labels=path, split='drawn')
    assert len(source.entries) == 8 and uses(source)['split'].why == '--split drawn draws other splits'


@pytest.mark.parametrize('column', ['Image File Path', 'dcm_path', 'Dateiname', 'DICOM file'])
def test_more_names_of_files(tmp_path, scans, column):
    source = export.source(
        str(scans), labels=labels_file(tmp_path, f'{column},mass', *(f'D:\\x\\a\\IM_{k},{k % 2}' for k in range(8)))
    )
    assert codes(source) == [[k % 2] for k in range(8)]


@pytest.mark.parametrize(
    ('column', 'form', 'key'),
    [('id', 'case {:03d}', 'PatientID'), ('nr', '1.3.{}', 'StudyInstanceUID'), ('x', 'IM_{}', 'file')],
)
def test_a_key_of_another_name_is_suggested(tmp_path, scans, column, form, key):
    lines = [f'{k % 2},{form.format(k)}' for k in range(4)]
    with pytest.raises(UserError, match=f"'{column}' seems to hold {key}: then rename it to {key}"):
        export.source(str(scans), labels=labels_file(tmp_path, f'mass,{column}', *lines))


def test_lines_that_disagree_are_told(tmp_path, scans):
    lines = [f'1.3.{k // 2},{k % 2}' for k in range(6)]
    source = export.source(str(scans), labels=labels_file(tmp_path, 'StudyInstanceUID,mass', *lines))
    assert codes(source) == [[-3]] * 6 + [[-2]] * 2
    assert any('6 images have lines in labels.csv that disagree in a label' in note for note in source.notes)
