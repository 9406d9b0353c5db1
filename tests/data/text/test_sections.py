"""Cutting reports into sections. A form in tests/files/reports: a report, '>>> sections', and the parsed sections."""

import csv
import random
import re
import time
from pathlib import Path

import pytest

from medjax.data.text import language, sections

FORMS = sorted((Path(__file__).parents[2] / 'files' / 'reports').glob('*.txt'))
NAMES = {
    section: [' '.join(name.split()) for name in names.replace(';', ',').split(',')]
    for section, names in sections.HEADINGS.items()
}
each_form = pytest.mark.parametrize('path', FORMS, ids=lambda path: path.stem)


def form(path: Path) -> tuple[str, dict[str, str]]:
    report, expected = path.read_text(encoding='utf-8').split('\n>>> sections\n')
    return report, dict(line.split(': ', 1) for line in expected.splitlines())


@each_form
def test_form(path):
    report, expected = form(path)
    assert sections.parse(report) == expected
    assert list(sections.parse(report)) == list(expected)  # in order


@each_form
def test_line_ends_and_control_characters_change_nothing(path):
    report, expected = form(path)
    for end in ('\r\n', '\r\r\n', '\r', '\u2028'):
        assert sections.parse(report.replace('\n', end)) == expected
    assert sections.parse('\ufeff' + report + '\0\0\x1a') == expected


def test_the_forms_show_every_section():
    assert {name for path in FORMS for name in form(path)[1]} == set(sections.SECTIONS)
    assert {*sections.HEADINGS} == {*sections.SECTIONS, *sections.DROPPED}


@pytest.mark.parametrize('case', [str.upper, str.title, str.lower], ids=['upper', 'title', 'lower'])
def test_every_heading_opens_its_section_in_any_case(case):
    for section, names in NAMES.items():
        for name in names:
            (piece,) = sections.pieces(f'{case(name)}: word')
            assert (piece.section, piece.text) == (section, ' word'), name


def test_no_heading_stands_for_two_sections():
    meanings = {(language.fold(name), section) for section, names in NAMES.items() for name in names}
    assert len({name for name, _ in meanings}) == len(meanings)


@pytest.mark.parametrize(
    ('report', 'expected'),
    [
        ('', {}),
        (' \n\t\0', {}),
        ('Normal', {'report': 'Normal'}),
        ('FINDINGS:\nIMPRESSION:\n', {}),
        ('MRN 123456\nClear lungs.', {'report': 'Clear lungs.'}),
        ('MRN:\n\nClear lungs.', {'report': 'Clear lungs.'}),
        ('INDICATION:\n\nCough.\n\nClear lungs.', {'indication': 'Cough.', 'report': 'Clear lungs.'}),
        ('COMPARISON: No.\n\nNOTIFICATION: Dr. X\n\nClear.', {'comparison': 'No.', 'report': 'Clear.'}),
        ('PROVISIONAL FINDINGS IMPRESSION (PFI): Edema.', {'preliminary': 'Edema.'}),
        ('The result (FINDINGS: none) at 10:30. Lungs: clear.', None),
        ('The findings are reported to be stable. Findings called by the computer are marked.', None),
        (
            'Large pneumothorax, discussed with Dr. Roe at 10:30.',
            None,
        ),  # the sentence begins with a finding: it stays, with the name
    ],
)
def test_small_reports(report, expected):
    assert sections.parse(report) == ({'report': report} if expected is None else expected)


@pytest.mark.parametrize(
    'notice',
    [
        'Findings were called to Dr. Ray at 3:10 PM.',
        'These findings were discussed by Dr. Roe with Dr. Ray\nby telephone at 3:10 PM.',
        'Dr. Ray was paged at 3:10 PM.',
        'Discussed with Dr. Ray.',
        'I, Dr. Jane Roe, have reviewed the images for this study and agree.',
        'Electronically signed by Jane Roe, MD.',
        'The team was made aware by phone.',
        'Firmado por Dra. Gómez.',
    ],
)
def test_sentences_of_calls_and_signatures_are_left_out(notice):
    report = f'Name: Jane Roe\nFINDINGS: Clear. {notice} Normal.\nRead by: Dr. Ray'
    kinds = [piece.section for piece in sections.pieces(report)]
    assert kinds == ['identity', 'report', 'findings', 'notice', 'findings', 'identity']
    assert sections.parse(report) == {'findings': 'Clear. Normal.'}


def random_report(rng: random.Random) -> tuple[str, list[str], list[str]]:
    """A report of headings in many shapes and places, the words of its text, and those of its identity, all unique."""
    report, words, secrets = '', [], []
    for part in range(rng.randint(0, 12)):
        kind = rng.choice([*sections.SECTIONS, 'identity', 'prose', 'rule'])
        new = [f'{"secret" if kind == "identity" else "word"}{part}x{i}' for i in range(rng.randint(1, 12))]
        text, case = ' '.join(new), rng.choice([str.upper, str.title, str.lower])
        if kind == 'rule':
            report += '\n' + '_' * 40 + '\n'
        elif kind == 'identity':
            secrets += new
            report += f'\n{case(rng.choice(NAMES[kind]))}: {text}\n'
        else:
            words += new
            text = text.replace(' ', rng.choice([' ', '  ', '\n ', '. ', ': ']))
            if kind in sections.SECTIONS:
                heading = case(rng.choice(NAMES[kind])) + rng.choice([':', ': ', ' :  ', ':\n'])
                text = rng.choice(['\n', '\n\n', '  ', '. ']) + heading + text
            report += text + rng.choice(['\n', '\n\n', '  ', '.\r\n', '\0'])
    return report, words, secrets


def test_every_word_is_in_exactly_one_section_and_no_identity_is_in_any():
    rng = random.Random(0)
    for _ in range(1000):
        report, words, secrets = random_report(rng)
        pieces = sections.pieces(report)
        assert ''.join(piece.heading + piece.text for piece in pieces) == language.clean(report)
        assert all(piece.heading or piece.text for piece in pieces)
        parsed = sections.parse(report)
        assert sorted(re.findall(r'word\d+x\d+', ' '.join(parsed.values()))) == sorted(words)
        assert not any(secret in text for secret in secrets for text in parsed.values())
        assert set(parsed) <= set(sections.SECTIONS)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('The XXXX is XXXX-year-old. XX/XX/XXXX, xxxx.', 'The ___ is ___-year-old. ___, ___.'),
        ('[**First Name8 (NamePattern2) **] [**Last Name**] on [**2101-1-1**]', '___ on ___'),
        ('By <NAME>, <DATE_1>; [REDACTED], [Patient ID 3], [PERSONALNAME].', 'By ___, ___; ___, ___, ___.'),
        ('Seen by !PERSONALNAME! <###>, <#> <##>: <####>.', 'Seen by ___, ___: ___.'),
        ('from ____ to ___ ___, Dr. *** said', 'from ___ to ___, Dr. ___ said'),
        ('Factor XX, [AP] view, <5 mm and >3 mm, [see above], snake_case', None),
        ('', None),
    ],
)
def test_unify_placeholders(text, expected):
    assert language.unify_placeholders(text) == (text if expected is None else expected)
    assert language.unify_placeholders(language.unify_placeholders(text)) == language.unify_placeholders(text)


@pytest.mark.parametrize(
    ('name', 'texts'),
    {
        'en': ['Clear lungs.', 'PORTABLE AP CHEST. NO PNEUMOTHORAX.', '___ year old woman with cough, rule out PE'],
        'es': ['sin hallazgos', 'torax normal . sin hallazg signific .', 'No se observan condensaciones.'],
        'pt': ['Pulmões sem alterações.', 'Não há derrame pleural. Área cardíaca normal.'],
        'de': ['Kein Erguss.', 'Herz normal groß, keine Infiltrate.'],
        'fr': ["Pas d'épanchement pleural.", 'Cœur de taille normale. Pas de foyer.'],
        '': [
            'Pneumothorax.',
            'Thorax normal.',
            'Chest',
            'Normal, normal.',
            'no de',
            'Consolidation, stable.',
            '',
            '123',
            'xyz',
            '肺清',
            'Il cuore è di dimensioni normali.',
            'Geen afwijkingen van het hart',
        ],
    }.items(),
)
def test_language(name, texts):
    assert [language.language(text) for text in texts] == [name] * len(texts)


def test_language_of_the_forms():
    others = dict(german='de', french='fr', portuguese='pt', spanish='es', spanish_stemmed='es', chinese='')
    languages = {path.stem: language.language(' '.join(form(path)[1].values())) for path in FORMS}
    assert languages == {path.stem: others.get(path.stem, 'en') for path in FORMS}


@pytest.mark.parametrize(
    'marked',  # '|' is where a sentence ends
    [
        '',
        'No pneumothorax',
        'A 2.3 cm nodule.| No change since 12.3.2031.| Stable.',
        'Seen by Dr. ___ and Dr. J. Smith vs. prior, e.g. approx. 3 cm.| See Fig. 2 and No. 4.| Yes!',
        'At 5 p.m. today.| At 5 p.m.| Then nothing.| Type B.| Next.',
        'Effusion: No.| Pneumothorax: No.',
        '1. Clear lungs.| 2. No effusion.| 3. Stable 2.5 cm node.',
        '1. Clear lungs| 2. No effusion| 3. Stable',
        '1) Clear.| 2) Normal heart.',
        '1. Nodule in segment 2.| No effusion.| 2. Normal heart.',
        'Grade 2.| Normal heart.',
        'Possible ... nodule.| Follow-up...| Later.',
        '? pneumonia.| Is it clear?| ?PE',
        'torax normal .| sin hallazg .| cardiomegali .',
        'lungs clear.| no effusion.| heart normal',
        'Heart normal.|No effusion.| Measures 3 cm.|Stable.',
        'First paragraph\n\n|second one\n|- item\n|- item',
        'Links ca. 2 cm, z.B. re. Unterlappen.| Kein Erguss.',
        '双肺清晰。|心影正常。',
        '(Normal.)| Heart "clear."| Yes.',
    ],
)
def test_sentences(marked):
    expected = [' '.join(part.split()) for part in marked.split('|')]
    assert language.sentences(marked.replace('|', '')) == [part for part in expected if part]


def test_sentences_lose_no_word_and_none_is_empty():
    assert language.sentences('. . ,\n\n .. ! - .') == []
    rng = random.Random(0)
    bits = ['lungs', 'Dr.', '2.3', 'No.', '1.', '2.', '...', '?', '.', '\n\n', 'e.g.', '___', '。', 'Heart', '- ', ')']
    for _ in range(300):
        text = ' '.join(rng.choices(bits, k=rng.randint(0, 40)))
        sentences = language.sentences(text)
        assert all(any(c.isalnum() or c == '_' for c in sentence) for sentence in sentences)
        assert words_of(sentences) == words_of([text])


def words_of(texts: list[str]) -> list[str]:
    return re.findall(r'\w+', ' '.join(texts))


@pytest.mark.parametrize(
    'unit',
    ['FINDINGS:', 'MRN: 1 ', 'WET READ: ', ': ', '\n ', '*', '1. 2. ', '[**', 'the findings ', 'FINDINGS:' + 90 * '*'],
    ids=repr,
)
def test_a_megabyte_takes_seconds(unit):
    text = unit * (1_000_000 // len(unit))
    start = time.process_time()
    for function in (sections.parse, language.unify_placeholders, language.language, language.sentences):
        function(text)
    assert time.process_time() - start < 10  # 0.2 to 3 s on two busy cores; not linear would be minutes


def test_ten_thousand_words_in_a_line_stay_whole():
    text = ' '.join(f'word{i}' for i in range(10_000))
    assert sections.parse(text) == {'report': text}
    assert language.sentences(text) == [text]


def test_real_notes(real_data):
    """English notes without headings, or with unusual headings."""
    with (real_data / 'covid_cxr' / 'metadata.csv').open(encoding='utf-8') as file:
        texts = [row['text'] for row in csv.DictReader(file) if row['text'].strip()]
    assert len(texts) > 100
    assert not [piece for text in texts for piece in sections.pieces(text) if piece.section in sections.DROPPED]
    assert all(''.join(p.heading + p.text for p in sections.pieces(text)) == language.clean(text) for text in texts)
    assert sum('findings' in sections.parse(text) for text in texts) > 30
    assert sum(language.language(text) == 'en' for text in texts) > 0.97 * len(texts)
    assert all(language.unify_placeholders(text) == text for text in texts)
    assert all(words_of(language.sentences(text)) == words_of([text]) for text in texts)
