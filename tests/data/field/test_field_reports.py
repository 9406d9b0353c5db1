"""Reports in the forms of hospitals' systems, spreadsheets and language models, and BI-RADS in several writings."""

from __future__ import annotations

import time

import pytest
from field_inputs import script

from medjax.data.sources import table
from medjax.data.text import markup, sections

field = script('tables')

FINDINGS_IMPRESSION = {'findings': 'Lungs are clear. Heart is normal.', 'impression': 'No acute disease.'}


@pytest.mark.parametrize(
    'text',
    [
        '<div class="r"><h2>Findings</h2><p>Lungs are clear.</p><p>Heart is normal.</p>'
        '<h2>Impression</h2>No acute disease.</div>',
        '<table><tr><td><b>Findings</b></td><td><table><tr><td>Lungs are clear.</td></tr>'
        '<tr><td>Heart is normal.</td></tr></table></td></tr>'
        '<tr><td><b>Impression</b></td><td>No acute disease.</td></tr></table>',
        '<TABLE><TR><TH>FINDINGS</TH><TD>Lungs are clear.<BR>Heart is normal.</TD></TR><TR><TH>IMPRESSION</TH>'
        '<TD>No acute disease.</TD></TR></TABLE>',
        '<![CDATA[FINDINGS: Lungs are clear.<br>Heart is normal.<br><br>IMPRESSION: No acute disease.]]>',
        '<html><head><title>Report of Doe</title><style>p {color: red}</style></head><body><p>'
        '<strong>FINDINGS</strong> Lungs are clear. Heart is normal.</p><!-- Dr. Roe --><p>'
        '<strong>IMPRESSION:</strong> No acute disease.</p></body></html>',
        '&lt;p&gt;FINDINGS: Lungs are clear.&lt;br/&gt;Heart is normal.&lt;/p&gt;'
        '&lt;p&gt;IMPRESSION:&nbsp;No acute disease.&lt;/p&gt;',
        '<report><findings>Lungs are clear. Heart is normal.</findings><impression>No acute disease.</impression>'
        '</report>',
        '<AbstractText Label="FINDINGS">Lungs are clear. Heart is normal.</AbstractText>'
        '<AbstractText Label="IMPRESSION">No acute disease.</AbstractText>',
        'FINDINGS: Lungs are clear.\\nHeart is normal.\\n\\nIMPRESSION: No acute disease.',
        'Findings:\\r\\nLungs are clear.\\r\\n\\tHeart is normal.\\r\\nImpression:\\r\\nNo acute disease.',
        'FINDINGS: Lungs are clear.\\.br\\Heart is normal.\\.br\\\\.br\\IMPRESSION: No acute disease.\\.br\\',
        'FINDINGS:\\X0A\\Lungs are clear.\\X0D0A\\Heart is normal.\\X0A\\\\H\\IMPRESSION:\\N\\ No acute disease.',
        'FINDINGS: Lungs are clear.~Heart is normal.~IMPRESSION: No acute disease.~',
        'FINDINGS:~Lungs are clear. ~Heart is normal.~~IMPRESSION:~No acute disease.',
        'FINDINGS: | Lungs are clear. | Heart is normal. || IMPRESSION: | No acute disease.',
        'FINDINGS:_x000D_\nLungs are clear.\n_x000D_Heart is normal._x000D_\n_x000D_\nIMPRESSION:<CR>No acute disease.',
        'FINDINGS: Lungs are clear.\\\\nHeart is normal.\\\\r\\\\nIMPRESSION: No acute disease.',
        '{\\rtf1\\ansi{\\fonttbl{\\f0 Arial;}}\\pard\\b FINDINGS:\\b0  Lungs are clear.\\par Heart is normal.\\par\n'
        '\\b IMPRESSION: \\b0 No acute disease.\\par}',
        '**Findings**\nLungs are clear. Heart is normal.\n\n**Impression**\nNo acute disease.',
        '**Findings** Lungs are clear. Heart is normal. **Impression** No acute disease.',
        '## Findings\n- Lungs are **clear**. Heart is normal.\n## Impression\nNo acute disease.',
        '__FINDINGS:__ Lungs are clear. Heart is normal.\n__IMPRESSION:__ No acute disease.',
        '> ## Findings:\n> Lungs are clear.\n>\n> Heart is normal.\n> ## Impression:\n> No acute disease.',
        '> > FINDINGS: Lungs are clear.\n> > Heart is normal.\n> > IMPRESSION: No acute disease.',
        '<ul><li>FINDINGS: Lungs are clear. Heart is normal.</li><li>IMPRESSION: No acute disease.</li></ul>',
    ],
)
def test_forms(text):
    found = {name: value.lstrip('- ') for name, value in sections.parse(text).items() if value.strip('- ')}
    assert found == FINDINGS_IMPRESSION


@pytest.mark.parametrize(
    'text',
    [
        'Nodule < 5 mm and > 3 mm.',
        'About ~5 mm, p<0.05.',
        'Seen by <NAME> on <DATE>.',
        '> 5 mm nodule.\nAnother one.',
        'R&D; T1/T2 * 3',
        'C:\\new\\reports',
        'a ~ b',
        '[**Name**] and ***',
        'AT&T;',
        'ca. ~ 12 mm',
        'grade <b',
        'x__y__z',
    ],
)
def test_what_is_no_mark_stays(text):
    assert markup.plain(text) == text
    assert sections.parse(text) == {'report': ' '.join(text.split())}


@pytest.mark.parametrize(
    ('text', 'plain'),
    [
        ('Nodule &lt; 5 mm &amp; &#223;', 'Nodule < 5 mm & ß'),
        ('&amp;lt;3', '<3'),
        ('2\\X20\\mm', '2 mm'),
        ('A\\T\\B\\S\\C', 'A&B^C'),
        ('<ol><li>One<li>Two</ol>', '\n\n\nOne\nTwo\n\n'),
        ('a<br >b', 'a\nb'),
        ('<o:p>x</o:p>', 'x'),
    ],
)
def test_marks(text, plain):
    assert markup.plain(text) == plain


@pytest.mark.parametrize(
    'assessment',
    [
        'BI-RADS 1: Negative.',
        'BIRADS 2 - benign.',
        'BI-RADS® Category 0: Incomplete.',
        'ACR BI-RADS 4A.',
        'Bi-Rads: 3',
        'BI-RADS ASSESSMENT: 5 - Highly suggestive.',
        'BI-RADS CATEGORY 6',
        'Final BI-RADS assessment: 2',
        'Category: 2 Benign.',
        'Assessment category: BI-RADS 1',
        'BI-RADS IV',
        'BI-RADS-Klassifikation: 2',
        'BI-RADS right: 2, left: 1',
        'BI RADS 4c',
        'Lung-RADS 2: Benign appearance.',
        'LI-RADS LR-5',
        'PI-RADS v2.1 Score 4.',
        'Lung-RADS category 4X',
    ],
)
def test_assessments(assessment):
    want = {'findings': 'No mass. Prior BI-RADS 3 lesion is gone.', 'impression': assessment}
    assert sections.parse(f'FINDINGS: No mass. Prior BI-RADS 3 lesion is gone.\n{assessment}') == want
    assert (
        sections.parse(f'FINDINGS: No mass. Prior BI-RADS 3 lesion is gone.\n\n** {assessment}')['impression']
        == assessment
    )
    assert sections.parse(f'FINDINGS: No mass.\nASSESSMENT: {assessment}\nRECOMMENDATION: None.') == {
        'findings': 'No mass.',
        'impression': assessment,
        'recommendation': 'None.',
    }


def test_assessments_in_one_line_and_in_prose():
    assert sections.parse('FINDINGS: No mass. BI-RADS 1: Negative. Routine screening.') == {
        'findings': 'No mass.',
        'impression': 'BI-RADS 1: Negative. Routine screening.',
    }
    text = 'FINDINGS: No mass. BI-RADS 3: as before. IMPRESSION: Benign.'
    assert sections.parse(text) == {'findings': 'No mass. BI-RADS 3: as before.', 'impression': 'Benign.'}
    prose = 'FINDINGS: A lesion.\nBI-RADS 3 lesions were seen before.\nNo change.'
    assert sections.parse(prose) == {'findings': 'A lesion. BI-RADS 3 lesions were seen before. No change.'}


def test_mammography_in_other_languages():
    german = (
        'Indikation: Screening.\nBrustdichte: ACR c.\nBefund: Kein Herdbefund.\nBeurteilung: BI-RADS 1.\n'
        'Empfehlung: Keine.'
    )
    assert sections.parse(german) == {
        'indication': 'Screening.',
        'findings': 'Brustdichte: ACR c. Kein Herdbefund.',
        'impression': 'BI-RADS 1.',
        'recommendation': 'Keine.',
    }
    french = 'Indication : Dépistage.\nDensité mammaire : type b.\nRésultats : Pas de masse.\nConclusion : ACR 1.'
    assert sections.parse(french)['findings'] == 'Densité mammaire : type b. Pas de masse.'
    spanish = 'MOTIVO: Cribado. DENSIDAD MAMARIA: tipo c. HALLAZGOS: Sin nódulos. BI-RADS 2: benigno.'
    assert sections.parse(spanish)['findings'].startswith('DENSIDAD MAMARIA: tipo c. Sin nódulos.')


def test_every_kept_heading_opens_its_section_and_stays():
    for section, names in sections.KEPT_HEADINGS.items():
        for name in (' '.join(name.split()) for name in names.replace(';', ',').split(',')):
            for heading in (name.upper(), name.title(), name.lower()):
                assert sections.parse(f'HISTORY: Pain.\n{heading}: b.')[section] == f'{heading}: b.'


def test_a_megabyte_of_marks_takes_seconds():
    for unit in (
        '<p><b>x</b>',
        '<',
        '<b>',
        '&lt;',
        '\\n',
        '|',
        '~A',
        '> a\n',
        '**a',
        '<![CDATA[',
        '<findings>',
        '__a',
        'BI-RADS ',
    ):
        text = unit * (100_000 // len(unit))
        start = time.monotonic()
        assert isinstance(sections.parse(text), dict)
        assert time.monotonic() - start < 20, unit


def test_pieces_lose_no_word_of_marked_reports():
    pieces = sections.pieces('<p><b>FINDINGS:</b> One &lt; two.</p>|BI-RADS 2: benign.\\nIMPRESSION: three')
    words = ''.join(piece.heading + piece.text for piece in pieces).split()
    assert words == ['FINDINGS:', 'One', '<', 'two.', 'BI-RADS', '2:', 'benign.', 'IMPRESSION:', 'three']


def test_texts_of_a_table_are_cut(tmp_path):
    names = [f'{i}.png' for i in range(5)]
    field.images(tmp_path, names)
    texts = [
        '<p>FINDINGS: Clear.</p><p>IMPRESSION: Normal.</p>',
        'Clear lungs.',
        'nan',
        'MRN: 4711',
        '__Befund:__ [**Name**] hat Erguss.',
    ]
    field.table(tmp_path, ['image', 'text'], list(zip(names, texts, strict=True)))
    source = table.source(str(tmp_path))
    assert [source.load(i).text for i in range(5)] == [
        {'findings': 'Clear.', 'impression': 'Normal.'},
        {'report': 'Clear lungs.'},
        {},
        {},
        {'findings': '___ hat Erguss.'},
    ]
    assert 'names or notices' in source.load(3).note and not source.load(2).note


@pytest.mark.parametrize(
    ('text', 'plain'),
    [
        ('hyper\\normal liver', 'hyper\\normal liver'),
        ('left\\rib and right\\ribs\nSecond line.', 'left\\rib and right\\ribs\nSecond line.'),
        ('para\\thyroid\\nodule\nNext.', 'para\\thyroid\\nodule\nNext.'),
        ('One.\\nTwo.\\nthree', 'One.\nTwo.\nthree'),
        ('x<b or y>z', 'x<b or y>z'),
        ('if p <i and s> q, so', 'if p <i and s> q, so'),
        ('T <p of 3 or td> 2', 'T <p of 3 or td> 2'),
        ('<td nowrap>one</td><b class="x">two</b>', '\none\n**two**'),
        ("<span style='a: b' lang=de>one</span>", 'one'),
        ('T8|T9 and p~q', 'T8|T9 and p~q'),
        ('C5|C6 is\nnormal', 'C5|C6 is\nnormal'),
        ('One. | C5|C6 is normal', 'One.\nC5|C6 is normal'),
        ('C~D grade.~Heart is normal.', 'C~D grade.\nHeart is normal.'),
        ('Lungs clear|Heart normal', 'Lungs clear\nHeart normal'),
        ('Nodule &lt 4 mm &amp stable &gt3', 'Nodule < 4 mm & stable >3'),
        ('AT&T and R&D', 'AT&T and R&D'),
    ],
)
def test_no_text_is_lost(text, plain):
    assert markup.plain(text) == plain


@pytest.mark.parametrize(
    'text',
    [
        '_FINDINGS:_ Lungs are clear. Heart is normal.\n_IMPRESSION:_ No acute disease.',
        '\\*\\*Findings\\*\\*\nLungs are clear. Heart is normal.\n\\*\\*Impression:\\*\\* No acute disease.',
        'ACHADOS.- Lungs are clear. Heart is normal. IMPRESSÃO.- No acute disease.',
        'Hallazgos.- Lungs are clear. Heart is normal.\nConclusión. - No acute disease.',
    ],
)
def test_other_marks_of_headings(text):
    assert sections.parse(text) == FINDINGS_IMPRESSION


@pytest.mark.parametrize(
    ('line', 'kept'),
    [
        ('Gesamtbewertung: BI-RADS 3', 'BI-RADS 3'),
        ('Abschließende Beurteilung: BI-RADS 4c', 'BI-RADS 4c'),
        ('ACR/BI-RADS-Klassifikation: 2', 'ACR/BI-RADS-Klassifikation: 2'),
        ('Classification BI-RADS : ACR 5', 'Classification BI-RADS : ACR 5'),
        ('Clasificación BI-RADS 4C.', 'Clasificación BI-RADS 4C.'),
        ('Categoría final BI-RADS: 3', 'Categoría final BI-RADS: 3'),
        ('Categoria BI-RADS®: 6', 'Categoria BI-RADS®: 6'),
        ('LEFT BREAST: BI-RADS 2', 'LEFT BREAST: BI-RADS 2'),
        ('Mama derecha: BI-RADS 1', 'Mama derecha: BI-RADS 1'),
        ('<table><tr><td>ACR BI-RADS</td><td>4B</td></tr></table>', 'ACR BI-RADS: 4B'),
    ],
)
def test_headings_of_bi_rads(line, kept):
    assert sections.parse(f'FINDINGS: A mass.\n{line}') == {'findings': 'A mass.', 'impression': kept}


@pytest.mark.parametrize(
    'text',
    [
        'FINDINGS: Clear.^Heart normal, 10^3 cells.^IMPRESSION: Normal.',
        'FINDINGS: Clear.^^Heart normal, 10^3 cells^IMPRESSION: Normal.',
        '{"findings": ["Clear.", "Heart normal, 10^3 cells."], "impression": "Normal.", "technique": null}',
        '{"Findings": "Clear.\\nHeart normal, 10^3 cells.", "Impression": "Normal."}',
        '[FINDINGS] Clear. Heart normal, 10^3 cells. [IMPRESSION] Normal.',
        '*** FINDINGS ***\nClear. Heart normal, 10^3 cells.\n*** IMPRESSION ***\nNormal.',
        '=== Findings: ===\nClear. Heart normal, 10^3 cells.\n=== Impression ===\nNormal.',
        'FINDINGS\uff1a Clear. Heart normal, 10^3 cells.\nIMPRESSION\uff1aNormal.',
        'FINDINGS: Clear.\\u000aHeart normal, 10^3 cells.\\u000AIMPRESSION: Normal.',
    ],
)
def test_more_forms(text):
    found = sections.parse(text)
    assert found.keys() == {'findings', 'impression'} and found['impression'] == 'Normal.'
    assert found['findings'].rstrip('.') == 'Clear. Heart normal, 10^3 cells'


@pytest.mark.parametrize(
    'text', ['{"a": 1}', '{"a": {"b": "c"}}', '{not json}', 'Seen by Doe^Jane.', '[Name] was seen.', '[DATE] Clear.']
)
def test_forms_that_stay(text):
    assert sections.parse(text) == {'report': text}
