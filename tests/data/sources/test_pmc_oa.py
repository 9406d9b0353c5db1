"""PMC-OA: sub-figures and captions in JSON lines."""

import json

import pytest
from releases_text import all_text, build, image, reasons, save

from medjax.data.releases import tables
from medjax.data.sources import pmc_oa
from medjax.errors import UserError

FOLDER = 'caption_T060_filtered_top4_sep_v0_subfigures'


def line(image: object, caption: object, **more) -> str:
    return json.dumps({'image': image, 'caption': caption, **more}, ensure_ascii=False) + '\n'


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'pmc_oa'
    save(
        root / 'pmc_oa.jsonl',
        line('PMC212319_Fig3_4.jpg', 'A. Réal time image', alignment_type='matched', alignment_score=0.8)
        + line('PMC212319_Fig3_5.jpg', 'B. Another')
        + '{"image": "cut\n'
        + '\n'
        + line('PMC212319_Fig3_5.jpg', 'B. Another')
        + line('PMC212319_Fig3_5.jpg', 'C. Of two parts')
        + line('../secret.jpg', 'x')
        + line('/etc/secret.jpg', 'x')
        + line('PMC99_Fig1_0.jpg', 'gone')
        + line(None, 'x')
        + line('PMC3_Fig1_0.jpg', ['no', 'text'])
        + line('link.jpg', 'x')
        + '[1, 2]\n'
        + '{"image": "\\ud800.jpg", "caption": "x"}\n',
    )
    save(tmp_path / 'secret.jpg', image(9, 'JPEG'))
    for n, name in enumerate(['PMC212319_Fig3_4', 'PMC212319_Fig3_5', 'PMC3_Fig1_0']):
        save(root / FOLDER / f'{name}.jpg', image(n, 'JPEG', 'RGB'))
    (root / FOLDER / 'link.jpg').symlink_to(tmp_path / 'secret.jpg')
    return root


def test_sub_figures(folder, tmp_path):
    source = pmc_oa.source(str(folder))
    assert [entry.study for entry in source.entries] == ['PMC212319', 'PMC212319', 'PMC3', 'image/link.jpg']
    assert {entry.split for entry in source.entries} == {None}
    data, rows, summary = build(source, tmp_path / 'out')
    assert sum(data.splits.values()) == 3 and data.labels == ()
    texts = {info['text'].get('caption', '') for *_, info in rows}
    assert texts == {'A. Réal time image', 'B. Another\nC. Of two parts', ''}
    assert [info['alignment_score'] for *_, info in rows if 'alignment_score' in info] == [0.8]
    why = reasons(source)
    assert why['pmc_oa.jsonl line 3'] == 'the line is not JSON'
    assert "'..'" in why['pmc_oa.jsonl line 7']
    assert why['pmc_oa.jsonl line 8'] == why['pmc_oa.jsonl line 9'] == 'there is no such file'
    assert why['pmc_oa.jsonl line 10'] == 'no image is named'
    assert why['pmc_oa.jsonl line 13'] == 'the line is not a JSON object'
    assert why['pmc_oa.jsonl line 14'] == 'there is no such file'
    later = {drop.where: drop.reason for drop in summary['drops'] if drop.where not in why}
    assert 'symbolic link' in later['pmc_oa.jsonl line 12']
    assert 'the caption is left out: it is not a text' in later['pmc_oa.jsonl line 11']
    text = all_text(tmp_path / 'out', rows, summary)
    assert 'PMC' not in text and 'secret' not in text


def test_beta_and_images_below_images(folder):
    (folder / 'pmc_oa.jsonl').rename(folder / 'pmc_oa_beta.jsonl')
    (folder / 'images').mkdir()
    (folder / FOLDER).rename(folder / 'images' / FOLDER)
    source = pmc_oa.source(str(folder))
    assert source.load(0).text == {'caption': 'A. Réal time image'}


def test_refused(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r'pmc_oa\.jsonl or pmc_oa_beta\.jsonl is missing'):
        pmc_oa.source(str(tmp_path))
    monkeypatch.setattr(tables, 'LONGEST_LINE', 40)
    with pytest.raises(UserError, match='line 1: longer than'):
        pmc_oa.source(str(folder))
    monkeypatch.undo()
    save(folder / 'pmc_oa.jsonl', '[' * 100_000)
    with pytest.raises(UserError, match='no line of it is a JSON object'):
        pmc_oa.source(str(folder))
    (folder / FOLDER).rename(folder / 'other')
    with pytest.raises(UserError, match=r'unpack images\.zip'):
        pmc_oa.source(str(folder))
