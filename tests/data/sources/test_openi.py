"""Open-I: reports without films, empty sections, reports without terms, XML that is refused."""

import pytest
from releases_dicom import assert_hidden, build, by_image, csv, labels, png, reasons

from medjax.data.sources import openi
from medjax.data.types import BLANK, Unreadable
from medjax.errors import UserError


def report(number: int, images: list[str], terms: list[str], **sections: str) -> str:
    """A report with the elements of the release, blank lines included."""
    texts = ''.join(f'\n<AbstractText Label="{name}">{text}</AbstractText>\n' for name, text in sections.items())
    films = ''.join(
        f'<parentImage id="{image}"><figureId>F1</figureId><caption>Xray Chest PA and Lateral</caption></parentImage>'
        for image in images
    )
    codes = ''.join(f'<major>{term}</major>' for term in terms)
    return f"""<?xml version="1.0" encoding="utf-8"?>
<eCitation>
   <meta type="rr"/>
   <uId id="CXR{number}"/>
   <licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
   <MedlineCitation Owner="Indiana University"><Article><Abstract>{texts}</Abstract>
      <AuthorList><Author><LastName>Kohli</LastName></Author></AuthorList></Article></MedlineCitation>
   <MeSH>{codes}<automatic>pneumonia</automatic></MeSH>
   {films}
</eCitation>"""


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'openi'
    reports = {
        1: report(
            1, ['CXR1_1_IM-0001-3001', 'CXR1_1_IM-0001-4001'], ['normal'],
            COMPARISON='None.', INDICATION='Positive TB test', FINDINGS='There are no XXXX of a\n   pleural effusion.',
            IMPRESSION='Normal chest x-XXXX.',
        ),
        2: report(
            2, ['CXR2_IM-0652-1001'],
            ['Cardiomegaly/mild', 'Thickening/pleura/right', 'Thickening/lung', 'Pulmonary Atelectasis/base/left '],
            COMPARISON='', FINDINGS='Heart &lt;mildly&gt; enlarged.', IMPRESSION='',
        ),
        3: report(3, ['CXR3_IM-1384-1001'], ['No Indexing'], FINDINGS='x', OTHER='y'),
        4: report(4, [], ['normal'], FINDINGS='No film.'),
        5: report(5, ['CXR5_IM-2117-1003002', 'CXR1_1_IM-0001-3001'], ['Opacity/lung'], FINDINGS='x'),
        6: '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "boom">]><a>&b;</a>',
        7: '<eCitation><uId id="CXR7"/>',
        8: '<eCitation><uId/></eCitation>',
    }  # fmt: skip
    for number, text in reports.items():
        csv(root / 'ecgen-radiology' / f'{number}.xml', text)
    for n, image in enumerate(('CXR1_1_IM-0001-3001', 'CXR1_1_IM-0001-4001', 'CXR2_IM-0652-1001', 'CXR3_IM-1384-1001')):
        png(root / 'NLMCXR_png' / f'{image}.png', n, mode=('L', 'RGBA', 'L', 'RGB')[n])
    png(root / 'NLMCXR_png' / 'CXR9_IM-2407-1001.png', 9)
    return root


def test_reports_and_films_are_joined(folder, tmp_path):
    source = openi.source(str(folder))
    codes = labels(source)
    assert [name for name, value in codes['CXR2_IM-0652-1001'].items() if value] == [
        'atelectasis', 'cardiomegaly', 'pleural_thickening',
    ]  # fmt: skip
    assert [name for name, value in codes['CXR1_1_IM-0001-4001'].items() if value] == ['normal']
    assert set(codes['CXR3_IM-1384-1001'].values()) == {BLANK}
    assert [drop.reason for drop in source.dropped] == [
        'there is no such file',
        'the image is named twice',
        'XML with a document type, which could grow without bound',
        'damaged XML: no element found: line 2, column 0',
        'the report has no uId',
    ]
    assert all('CXR' not in where and 'of 8' in where for where in reasons(source))
    assert {'1 report has no film', '1 image file in the folder is not in the reports and left out'} <= {*source.notes}

    places = by_image(source)
    first = source.load(places['CXR1_1_IM-0001-3001'])
    assert first.text['findings'] == 'There are no ___ of a pleural effusion.' and set(first.text) == openi.SECTIONS
    assert first.text['impression'] == 'Normal chest x-___.'
    assert source.load(places['CXR2_IM-0652-1001']).text == {'findings': 'Heart <mildly> enlarged.'}
    assert source.load(places['CXR3_IM-1384-1001']).text == {'findings': 'x', 'report': 'y'}
    with (folder / 'ecgen-radiology' / '2.xml').open('a') as file:
        file.write('\n')
    again = openi.source(str(folder))
    changed = [a.image for a, b in zip(source.entries, again.entries, strict=True) if a.stamp != b.stamp]
    assert changed == ['CXR2_IM-0652-1001']
    entry = source.entries[places['CXR1_1_IM-0001-3001']]
    assert entry.patient == entry.study == 'CXR1' and first.role == 'image' and first.attributes['language'] == 'en'

    data, _ = build(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 4 and data.labels == source.labels and data.license == 'CC BY-NC-ND 4.0'
    assert_hidden(data, 'CXR1', 'CXR5', '_IM-', 'Kohli')


def test_views_of_the_kaggle_table(folder):
    csv(
        folder / 'indiana_projections.csv',
        'uid,filename,projection',
        '1,1_IM-0001-4001.dcm.png,Lateral',
        '1,1_IM-0001-3001.dcm.png,Frontal',
        '2,2_IM-0652-1001.dcm.png,Frontal',
    )
    source = openi.source(str(folder))
    roles = {image: source.load(i).role for image, i in by_image(source).items()}
    assert roles == {
        'CXR1_1_IM-0001-3001': 'frontal', 'CXR1_1_IM-0001-4001': 'lateral',
        'CXR2_IM-0652-1001': 'frontal', 'CXR3_IM-1384-1001': 'image',
    }  # fmt: skip


def test_entities_are_refused_in_every_encoding():
    for encoding in ('utf-8', 'utf-16'):
        text = '<!DOCTYPE a SYSTEM "file:///etc/passwd"><a/>'
        with pytest.raises(Unreadable, match='document type'):
            openi.parse(text.encode(encoding))
    assert openi.parse('<a>é</a>'.encode('utf-16')).text == 'é'


def test_what_is_refused(tmp_path):
    with pytest.raises(UserError, match=r'no \.xml report is there; give the folder that holds'):
        openi.source(str(tmp_path))
    csv(tmp_path / '1.xml', report(1, ['CXR1_1_IM-0001-3001'], ['normal']))
    with pytest.raises(UserError, match=r'no report has a \.png film'):
        openi.source(str(tmp_path))
