"""Mutated tables and reports: a sentence or a data source, never a traceback, and never the picture of another file."""

from __future__ import annotations

import random

from field_inputs import script
from releases_text import dicom, save

from medjax.data.sources import dicom as export, table
from medjax.data.text import sections
from medjax.errors import UserError

field = script('tables')

CELLS = [
    '',
    'nan',
    '0',
    '1',
    '-1',
    '1.5',
    '1e999',
    '1E+12',
    '٣',
    '𝟙',
    '\ud7ff',
    '\u202e',
    'True',
    'x' * 5000,
    '\0',
    '\\',
    '/',
    '..',
    '../a.png',
    'C:',
    'C:\\',
    '//',
    '|',
    '~',
    '<b>',
    '&#0;',
    '&#x110000;',
    '&#1114112;',
    '\\X',
    '\\X0\\',
    '{\\rtf1',
    "\\'zz",
    'dev',
    'test',
    'ANON',
    '-',
    '３',
    '½',
    '1,',
    ',5',
    '.',
    '0000',
    '9' * 400,
    '12.0',
    'İ',
    'ß',
    '\u0301',
    '%',
    '{}',
    '[',
    ')',
]
HEADS = [
    'image',
    'patient_id',
    'study_id',
    'split',
    'text',
    'age',
    'sex',
    'view',
    'mask',
    'license',
    'mass',
    'fold',
    'birads',
]


def test_mutated_tables(tmp_path):
    names = [f'images/{k}.png' for k in range(6)]
    field.images(tmp_path, names)
    rng, made, refused = random.Random(0), 0, []
    for _ in range(150):
        columns = rng.sample(HEADS[1:], rng.randint(0, 8)) + ['', ' ', 'mass'][: rng.randint(0, 3)]
        head = ['image', *columns]
        rng.shuffle(head)
        rows = [[rng.choice(CELLS) for _ in head] for _ in range(6)]
        for n, row in enumerate(rows):
            if rng.random() < 0.8:
                row[head.index('image')] = rng.choice(
                    [names[n], names[n][:-4], f'/x/{names[n]}', f'{n}', names[n].upper()]
                )
        field.table(tmp_path, head, rows, delimiter=rng.choice(',;\t'))
        try:
            source = table.source(str(tmp_path), labels=rng.choice([None, None, 'mass', 'birads', 'fold,mass']))
        except UserError as error:
            refused.append(str(error))
            continue
        made += 1
        assert len(source.entries) + len(source.dropped) == 6
        assert sorted(use.column for use in source.columns) == sorted({cell.strip() for cell in head})
        for i, entry in enumerate(source.entries):
            example = source.load(i)
            number = next(n for n, row in enumerate(rows) if f'line {n + 2}' in entry.where)
            assert example.image == (tmp_path / names[number]).read_bytes() or not rows[number][head.index('image')]
            assert len(list(source.label(i))) == len(source.labels)
    assert made > 20 and all(20 < len(sentence) < 500 for sentence in refused)


def test_mutated_tables_of_an_export(tmp_path):
    for n in range(4):
        save(
            tmp_path / f'x/{n}', dicom(SOPInstanceUID=f'1.{n}', StudyInstanceUID=f'2.{n // 2}', PatientID=f'p{n // 2}')
        )
    rng, made, refused = random.Random(0), 0, []
    keys = {'SOPInstanceUID': '1.{}', 'file': '{}', 'StudyInstanceUID': '2.{}', 'PatientID': 'p{}', 'accession': 'A{}'}
    for _ in range(80):
        key = rng.choice(list(keys))
        head = [key, *rng.sample(['split', 'text', 'mass', 'birads', 'PatientID', 'Series UID'], rng.randint(0, 5))]
        head = list(dict.fromkeys(head))
        rows = [[rng.choice(CELLS) for _ in head] for _ in range(5)]
        for n, row in enumerate(rows):
            row[0] = keys[key].format(n) if rng.random() < 0.8 else row[0]
        field.table(tmp_path, head, rows)
        try:
            source = export.source(
                str(tmp_path / 'x'), labels=str(tmp_path / 'metadata.csv'),
                label_columns=rng.choice([None, None, 'birads', 'mass']),
            )  # fmt: skip
        except UserError as error:
            refused.append(str(error))
            continue
        made += 1
        assert len(source.entries) + len(source.dropped) == 4
        for i in range(len(source.entries)):
            assert len(list(source.label(i))) == len(source.labels)
            source.load(i)
    assert made > 8 and all(20 < len(sentence) < 500 for sentence in refused)


def test_mutated_reports():
    seeds = [
        'FINDINGS: Clear.|IMPRESSION: Normal.',
        '<p><b>FINDINGS:</b> a</p><ul><li>b</li></ul>',
        '**Findings** x\\n> y ~ z',
        'BI-RADS 2: benign.',
        '{\\rtf1\\b FINDINGS:\\par x}',
        '&lt;findings&gt;a&lt;/findings&gt;',
        '## Findings\n\\.br\\b',
    ]
    rng = random.Random(0)
    for _ in range(3000):
        text = rng.choice(seeds) + rng.choice(seeds)
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice([rng.choice(CELLS), '']) + text[at + rng.randint(0, 3) :]
        parsed = sections.parse(text)
        assert all(value == ' '.join(value.split()) and name in sections.SECTIONS for name, value in parsed.items())
