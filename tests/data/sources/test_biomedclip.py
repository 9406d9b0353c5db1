"""The output of microsoft/BiomedCLIP_data_pipeline as a source."""

import json

import pytest
from releases_text import all_text, build, image, reasons, save

from medjax.data.sources import biomedclip
from medjax.errors import UserError

THERE = '/home/me/biomedclip_data_pipeline/_results/data/pubmed_open_access_files'


def figure(article: str, name: str, caption: object = 'A caption.', number: int = 1) -> dict:
    return {
        'fig_caption': caption, 'fig_id': f'F{number}', 'fig_label': f'Figure {number}',
        'graphic_ref': f'{THERE}/{article}/{name}.jpg' if name else '', 'pair_id': f'None_F{number}',
    }  # fmt: skip


def article(number: str, figures: object) -> str:
    return json.dumps({'pmid': '11178', 'pmc': number, 'location': f'{THERE}/PMC{number}', 'figures': figures}) + '\n'


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'data'
    save(
        root / 'pubmed_parsed_data.jsonl',
        article('15015', [figure('PMC15015', 'ar-1'), figure('PMC15015', 'ar-2', 'Two', 2), figure('PMC15015', '')])
        + article('15016', [figure('PMC15016', 'ar-1', 'Other'), figure('PMC15016', 'ar-1', 'The same file', 2)])
        + article('15017', [figure('PMC15017', 'gone'), 'no figure', figure('PMC15017', 'odd', 7)])
        + article('', [figure('PMC15018', 'ar-9', '')])
        + article('15019', None)
        + '{"pmid": \n',
    )
    names = ['PMC15015/ar-1', 'PMC15015/ar-2', 'PMC15016/ar-1', 'PMC15017/odd', 'PMC15018/ar-9']
    for n, name in enumerate(names):
        save(root / 'pubmed_open_access_files' / f'{name}.jpg', image(n, 'JPEG', 'RGB'))
    save(
        root / 'pubmed_open_access_file_list.txt',
        '2024-03-06 21:31:45\n'
        'oa_package/08/e0/PMC15015.tar.gz\tBreast Cancer Res. 2001 Nov 2; 3(1):55-60\tPMC15015\tPMID:11250746\tCC BY\n'
        'oa_package/f6/9d/PMC15016.tar.gz\tJ. 2026\tPMC15016\t\tCC BY-NC\n'
        'oa_package/f6/9d/PMC15018.tar.gz\tJ. 2026\tPMC15018\t\tNO-CC CODE\n'
        'oa_package/f6/9d/PMC999.tar.gz\tJ. 2026\tPMC999\t\tCC0\n',
    )
    return root


def test_figures(folder, tmp_path):
    source = biomedclip.source(str(folder))
    assert [entry.study for entry in source.entries] == ['PMC15015'] * 2 + ['PMC15016', 'PMC15017', 'PMC15018']
    _, rows, summary = build(source, tmp_path / 'out')
    assert {info['text'].get('caption') for *_, info in rows} == {'A caption.', 'Two', 'Other\nThe same file', None}
    licenses = sorted(info.get('license', '') for *_, info in rows)
    assert licenses == ['', 'CC BY', 'CC BY', 'CC BY-NC', 'NO-CC CODE']
    why = reasons(source)
    assert why == {
        'pubmed_parsed_data.jsonl line 1 figure 3': 'no file is named',
        'pubmed_parsed_data.jsonl line 3 figure 1': 'there is no such file',
        'pubmed_parsed_data.jsonl line 3 figure 2': 'no file is named',
        'pubmed_parsed_data.jsonl line 5': 'the article has no list of figures',
        'pubmed_parsed_data.jsonl line 6': 'the line is not JSON',
    }
    later = {drop.where: drop.reason for drop in summary['drops'] if drop.where not in why}
    assert later == {'pubmed_parsed_data.jsonl line 3 figure 3': 'the caption is left out: it is not a text'}
    assert any('licences: CC BY 2' in note for note in summary['notes'])
    text = all_text(tmp_path / 'out', rows, summary)
    assert '1501' not in text and '11178' not in text and 'home' not in text


def test_licenses_choose(folder):
    source = biomedclip.source(str(folder), licenses='cc by, CC0')
    assert [entry.image for entry in source.entries] == ['PMC15015/ar-1.jpg', 'PMC15015/ar-2.jpg']
    why = list(reasons(source).values())
    assert 'the licence of its article is CC BY-NC, not among --licenses' in why
    assert 'the licence of its article is unknown, not among --licenses' in why


def test_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"no 'CC-BYE'; did you mean 'CC BY"):
        biomedclip.source(str(folder), licenses='CC-BYE')
    with pytest.raises(UserError, match='none of the articles has one of these'):
        biomedclip.source(str(folder), licenses='CC BY-ND')
    (folder / 'pubmed_open_access_file_list.txt').unlink()
    assert len(biomedclip.source(str(folder)).entries) == 5
    with pytest.raises(UserError, match='says the licence of each article'):
        biomedclip.source(str(folder), licenses='CC BY')
    with pytest.raises(UserError, match=r'pubmed_parsed_data\.jsonl or pubmed_parsed_data\.json is missing'):
        biomedclip.source(str(tmp_path))
