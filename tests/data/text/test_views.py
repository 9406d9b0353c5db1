"""The texts that a text view draws: sections, sentences, prompts. Every mistake gives a sentence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from medjax.data.text import prompts, views as text_views
from medjax.errors import UserError

TEXTS = {
    'findings': 'The heart is normal. No effusion. Clear lungs.',
    'impression': 'No acute findings.',
    'caption': 'A chest radiograph.',
}
PROMPTS = {
    'present': {'effusion': ['Effusion A.', 'Effusion B.'], 'nodule': ['Nodule.']},
    'absent': {'effusion': ['No effusion.'], 'nodule': ['No nodule.'], 'mass': ['No mass.']},
    'normal': ['All normal.'],
}


def view(**cfg):
    return text_views.from_config({'report': dict(dict(view='text', part='cxr', length=32), **cfg)})['report']


def drawn(cfg, texts=TEXTS, labels=None, seed=0):
    chosen = view(**cfg)
    return chosen.draw(chosen.pool(texts, labels or {}), np.random.default_rng(seed))


def key(cfg, texts=TEXTS, labels=None):
    return text_views.text_key([view(**cfg).pool(texts, labels or {})])


def test_the_best_section_that_is_there():
    assert drawn({}) == ['No acute findings.']
    assert drawn(dict(sections=['findings', 'impression'])) == ['The heart is normal. No effusion. Clear lungs.']
    assert drawn(dict(sections=['report', 'caption'])) == ['A chest radiograph.']
    assert drawn(dict(sections=['report', 'impression+caption'])) == ['No acute findings. A chest radiograph.']
    assert drawn(dict(sections=['report+caption'])) == ['A chest radiograph.']
    assert drawn(dict(sections=['technique'])) == []
    assert drawn(dict(sections=['impression', 'caption']), {'impression': ' \n -- \x00', 'caption': 'x'}) == ['x']


def test_several_texts_are_the_first_sections_that_are_there():
    assert drawn(dict(sections=['report', 'caption', 'impression'], count=2)) == [
        'A chest radiograph.',
        'No acute findings.',
    ]
    assert drawn(dict(count=4)) == [
        'No acute findings.',
        'The heart is normal. No effusion. Clear lungs.',
        'A chest radiograph.',
    ]


def test_sentences_are_dealt_without_replacement():
    cfg = dict(sections=['findings'], sentences=1, count=5)
    sentences = ['The heart is normal.', 'No effusion.', 'Clear lungs.']
    orders = [tuple(drawn(cfg, seed=seed)) for seed in range(200)]
    assert all(sorted(each) == sorted(sentences) for each in orders)
    assert len(set(orders)) == 6  # every order occurs
    firsts = [drawn(cfg | dict(count=1), seed=seed)[0] for seed in range(900)]
    assert all(abs(firsts.count(sentence) - 300) < 75 for sentence in sentences)  # uniform, as ConVIRT draws
    kept = {tuple(drawn(cfg | dict(sentences=2, count=1), seed=seed)) for seed in range(100)}
    assert kept == {(' '.join(pair),) for pair in [sentences[:2], sentences[1:], sentences[::2]]}  # in their order
    shuffled = {drawn(cfg | dict(sentences=2, count=1, shuffle=True), seed=seed)[0] for seed in range(100)}
    assert len(shuffled) == 6


def test_sentences_of_a_section_are_shuffled():
    texts = {drawn(dict(sections=['findings'], shuffle=True), seed=seed)[0] for seed in range(100)}
    assert len(texts) == 6 and {len(text) for text in texts} == {len(TEXTS['findings'])}
    assert drawn(dict(sections=['findings'], shuffle=True), seed=3) == drawn(
        dict(sections=['findings'], shuffle=True), seed=3
    )


def test_labels_become_sentences_only_where_there_is_no_text():
    cfg = dict(prompts=PROMPTS)
    labels = dict(effusion=1, nodule=0, mass=-2)
    assert drawn(cfg, TEXTS, labels) == ['No acute findings.']
    assert {drawn(cfg, {}, labels, seed)[0] for seed in range(30)} == {'Effusion A.', 'Effusion B.'}
    both = {drawn(cfg, {}, dict(labels, nodule=1), seed)[0] for seed in range(50)}
    assert both == {f'{a} {b}' for x in 'AB' for a, b in [(f'Effusion {x}.', 'Nodule.'), ('Nodule.', f'Effusion {x}.')]}
    assert drawn(cfg, {}, dict(effusion=0, nodule=-2, mass=0)) == ['All normal.']
    assert drawn(cfg, {}, dict(effusion=0, nodule=-1, mass=0)) == []  # uncertain: neither normal nor a finding
    assert drawn(cfg, {}, dict(effusion=0, nodule=-3, mass=0)) == []  # readers disagree
    assert drawn(cfg, {}, dict(effusion=-2, nodule=-2, mass=-2)) == []  # no label is known
    assert drawn(dict(prompts=PROMPTS, sections=[]), TEXTS, dict(nodule=1)) == ['Nodule.']


def test_the_absence_of_findings():
    labels = dict(effusion=1, nodule=0, mass=0)
    texts = {drawn(dict(prompts=PROMPTS, absent=1), {}, labels, seed)[0] for seed in range(80)}
    assert all(('No nodule.' in text) ^ ('No mass.' in text) and 'Effusion' in text for text in texts)
    assert len(texts) == 8  # two captions, two absent findings, two orders
    every = drawn(dict(prompts=PROMPTS, absent=9, sentences=1, count=9), {}, labels)
    assert sorted(text.removesuffix(' A.').removesuffix(' B.') for text in every) == [
        'Effusion',
        'No mass.',
        'No nodule.',
    ]
    # several texts from labels are several draws
    pairs = {tuple(drawn(dict(prompts=PROMPTS, count=2), {}, labels, seed)) for seed in range(40)}
    assert len(pairs) == 4


def test_records_with_equal_pools_have_equal_keys():
    other = {'findings': 'Something else.', 'impression': 'NO acute  findings.'}
    assert key({}) == key({}, other) != text_views.NO_TEXT
    assert key(dict(count=2)) != key(dict(count=2), other)
    sampled = dict(sections=['findings'], sentences=1)
    assert key(sampled) == key(sampled, dict(TEXTS, impression='x')) != key(sampled, other)
    assert key({}, {}) == key({}, {'impression': '...'}) == text_views.NO_TEXT
    cfg = dict(prompts=PROMPTS)
    assert key(cfg, {}, dict(effusion=1, mass=0)) == key(cfg, {}, dict(effusion=1, mass=-2)) != text_views.NO_TEXT
    assert key(cfg, {}, dict(effusion=1)) != key(cfg, {}, dict(nodule=1))
    assert key(cfg, {}, dict(effusion=-2)) == text_views.NO_TEXT
    assert key({}, {'impression': 'odd \ud800 bytes'}) != text_views.NO_TEXT


@pytest.mark.parametrize('texts', ['', ' ', '.', '\x00\x01', '\u200b'])
def test_texts_without_a_word_are_absent(texts):
    assert drawn({}, {'impression': texts}) == []
    assert drawn(dict(sentences=1, shuffle=True, count=3), {'impression': texts}) == []


@pytest.mark.parametrize('texts', ['effusion', '中文報告。第二句。', 'a\x07b', 'word ' * 10_000])
def test_odd_texts_are_texts(texts):
    assert len(drawn({}, {'impression': texts})) == 1
    assert drawn(dict(sentences=1), {'impression': texts})[0].split()[0] in texts.replace('\x07', ' ')


@pytest.mark.parametrize(
    ('cfg', 'words'),
    [
        (dict(lenght=8), "views.report: unknown key 'lenght'; did you mean 'length'"),
        (dict(length=2), 'views.report.length: a whole number of at least 3, not 2'),
        (dict(count=0), 'views.report.count: a whole number of at least 1'),
        (dict(count=True), 'views.report.count: a whole number'),
        (dict(sentences=0), 'views.report.sentences: None for whole sections'),
        (dict(sections='findings'), 'views.report.sections: a list of names'),
        (dict(sections=[]), 'views.report.sections: empty, and there are no prompts'),
        (dict(absent=1), 'views.report.absent: 1 without prompts has no effect'),
        (dict(prompts='nowhere.json'), 'views.report.prompts=nowhere.json: cannot be read: No such file'),
        (dict(prompts={'presnt': {}}), "views.report.prompts: unknown key 'presnt'; did you mean 'present'"),
        (dict(prompts={'present': {'mass': 'Mass.'}}), 'present.mass must be a list of sentences'),
        (dict(prompts={'present': {'mass': []}}), 'present.mass must be a list of sentences'),
        (dict(prompts={'present': {'mass': [' ']}}), 'present.mass must be a list of sentences'),
        (dict(prompts={'absent': ['mass']}), 'absent must be a dict of classes'),
        (dict(prompts={'normal': []}), 'there is no prompt in it'),
    ],
)
def test_mistakes_are_sentences(cfg, words):
    with pytest.raises(UserError) as error:
        view(**cfg)
    assert words in str(error.value)


def test_files_of_prompts(tmp_path):
    path = tmp_path / 'prompts.json'
    path.write_text(json.dumps(PROMPTS))
    assert prompts.read(str(path), 'x') == PROMPTS == prompts.read(PROMPTS, 'x')
    path.write_text('{')
    with pytest.raises(UserError, match=r'prompts.json: is no JSON'):
        view(prompts=str(path))
    path.write_text('[1]')
    with pytest.raises(UserError, match='a dict with present, absent, normal'):
        view(prompts=str(path))
    prompts.check_classes(PROMPTS, ['mass', 'nodule', 'effusion', 'more'], 'x')
    with pytest.raises(UserError, match="x: present: the data have no label 'nodule'; did you mean 'nodules'"):
        prompts.check_classes(PROMPTS, ['mass', 'nodules', 'effusion'], 'x')
