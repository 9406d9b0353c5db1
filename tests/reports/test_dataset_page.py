"""`medjax show` writes one page about any data set. The page has no id in it."""

from __future__ import annotations

import base64
import dataclasses
import io
import re

import numpy as np
import pytest
from pages import Page, browse, needs_browser
from PIL import Image

from medjax import cli
from medjax.data import records
from medjax.data.builder import write
from medjax.data.types import Entry, Example, Source
from medjax.reports import choice, dataset_page as page, images

SECRET = 'DOE^JANE 1234'
SPLITS = ['train'] * 20 + ['val'] * 6 + ['test'] * 10


def grey(i: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 255, (24 + i % 3, 20), np.uint8)


def build(folder, labels=('nodule', 'a <b>mass</b>'), label=lambda i: [i % 2, -1 - i % 3], example=None, splits=SPLITS):
    """A data set of two images a patient."""
    entries = [Entry(f'{SECRET}{i}', f'{SECRET}{i // 2}', f's{i}', split) for i, split in enumerate(splits)]
    source = Source('small', '1', 'space', labels, 'CC0', entries, label, example or (lambda i: Example(grey(i))))
    write.write(source, folder / SECRET)
    return records.open(folder / SECRET)


def example(i: int) -> Example:
    """With everything that a record can have."""
    mask = np.zeros(grey(i).shape, np.uint8)
    mask[4:12, 4:12], mask[12:16, 4:12] = 1, 2
    info = {'age': 40.0 + i, 'sex': 'FM'[i % 2], 'view': 'PA'} | ({'site': f'<site {i}>'} if i % 4 else {})
    text = {'findings': f'Finding {i}\n& no more.', 'impression': 'None.'} if i % 3 else {}
    return Example(grey(i), 'frontal', text, info, mask)


def shown(data, folder, *argv) -> Page:
    out = folder / 'page.html'
    assert cli.main(['show', str(data.path), '--out', str(out), *argv]) == 0
    return Page(out.read_text())


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    data = build(folder, example=example)
    shown(data, folder)
    return data, folder / 'page.html'


def test_what_the_page_tells(whole):
    parsed = Page(whole[1].read_text())
    assert set(parsed.sections) >= {id for id, _ in page.SECTIONS}
    assert '20 train, 6 val, 10 test' in parsed.sections['header'] and 'images of patients' in parsed.sections['header']
    assert '10 of 20' in parsed.sections['sheet'] and 'no positive label' in parsed.sections['sheet']
    assert parsed.figures['sheet'] == 2 * (8 + 3 + 5), 'the nodules and the others, at most 8 of a split'
    assert ['label', *['positive', 'negative', 'uncertain', 'blank', 'conflicting'] * 3] in parsed.rows
    assert ['nodule', *map(str, (10, 10, 0, 0, 0, 3, 3, 0, 0, 0, 5, 5, 0, 0, 0))] in parsed.rows
    assert ['a <b>mass</b>', *map(str, (0, 0, 7, 7, 6, 0, 0, 2, 2, 2, 0, 0, 3, 3, 4))] in parsed.rows
    assert ['nodule', '18', '0'] in parsed.rows, 'labels together'
    assert parsed.figures['histograms'] == 3, 'pixel values, height, age'
    assert 'text: 6 words in every record that has any' in parsed.sections['histograms']
    assert 'width: 20 px in every record' in parsed.sections['histograms']
    assert 'text: known of 13 of 20 in train, 4 of 6 in val, 7 of 10 in test' in parsed.sections['histograms']
    assert ['F', '10', '3', '5'] in parsed.rows and ['unknown', '5', '2', '2'] in parsed.rows
    assert any(row[0].endswith('other values') for row in parsed.rows)


def test_whole_records(whole, tmp_path):
    parsed = shown(whole[0], tmp_path, '--record', 'test/1', '--record', 'val/0')
    text = ' '.join(parsed.sections['records'].split())
    assert 'test/1' in text and 'val/0' in text and 'train/' not in text
    assert 'Finding 20 & no more.' in text and 'impressionNone.' in text.replace(' ', '')
    assert 'the values 1, 2' in text and 'age 67' in re.sub(r'(?<=[a-z])(?=\d)', ' ', text)
    assert 'positivenodule' in text.replace(' ', '')
    assert parsed.figures['records'] == 4, 'two images, two masks'
    assert Page(whole[1].read_text()).figures['records'] == 2 * page.RECORDS


def test_structures_of_a_mask_are_named(whole):
    split = dataclasses.replace(whole[0], masks=('lung', 'heart', 'tube')).split('test')
    assert page.mask_content(split, 0, split.mask(0)) == 'lung, heart'
    assert page.mask_content(split, 0, None) == ''


def test_nobody_is_named(whole):
    data, path = whole
    text = path.read_text()
    hashed = np.concatenate([np.asarray(data.split(s)._columns['keys']).ravel() for s in data.splits])
    assert SECRET not in text and str(data.path.parent) not in text
    assert not any(form.format(int(key)) in text for key in hashed if key for form in ('{:016x}', '{}'))
    assert all(address.startswith(('#', 'data:')) for address in Page(text).addresses)
    assert '<b>mass' not in text and '<site' not in text


def test_the_same_set_gives_the_same_bytes(whole, tmp_path):
    shown(whole[0], tmp_path)
    assert (tmp_path / 'page.html').read_bytes() == whole[1].read_bytes()


def test_mistakes_are_exit_code_2(whole, tmp_path, capsys):
    data, out = str(whole[0].path), str(tmp_path / 'page.html')
    for argv, sentence in (
        (['nowhere', '--out', out], 'there is no such folder'),
        ([data, '--out', str(tmp_path / 'no' / 'page.html')], 'there is no folder'),
        ([data, '--out', str(tmp_path)], 'that is a folder'),
        ([data, '--out', out, '--record', '17'], 'as in --record train/17'),
        ([data, '--out', out, '--record', 'trian/1'], "did you mean 'train'"),
        ([data, '--out', out, '--record', 'val/6'], 'val/0 to val/5'),
        ([data, '--out', out, '--record', 'val/-1'], 'as in --record train/17'),
    ):
        assert cli.main(['show', *argv]) == 2
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_fact_that_is_a_number_in_one_split_and_a_word_in_another(tmp_path):
    grade = {'train': 2.0, 'val': 'high', 'test': 3.5}
    data = build(tmp_path, example=lambda i: Example(grey(i), attributes={'grade': grade[SPLITS[i]]}))
    assert {str(value) for name in data.splits for value in data.split(name).column('grade')} == {'2', 'high', '3.5'}
    assert ['2', '20', '0', '0'] in shown(data, tmp_path).rows


COLOUR = np.random.default_rng(0).integers(0, 255, (9, 30, 3), np.uint8)
SHAPES = {
    '1x1': lambda i: np.full((1, 1), i, np.uint8),
    'colour': lambda i: np.roll(COLOUR, i, 0),
    '16 bit': lambda i: grey(3 * i).astype(np.uint16) * 200,
    'large': lambda i: np.full((4, 1500), i, np.uint8),
    'black': lambda i: np.zeros((8, 8), np.uint8),
}


@pytest.mark.parametrize('shape', SHAPES)
def test_any_shape(shape, tmp_path):
    data = build(tmp_path, (), lambda i: [], lambda i: Example(SHAPES[shape](i)), ['train'] * 5)
    parsed = shown(data, tmp_path)
    assert parsed.figures == {'sheet': 5, 'histograms': 1, 'records': 3}
    assert 'The data set has no labels' in parsed.sections['labels'] and 'all records' in parsed.sections['sheet']
    assert 'No text.' in parsed.sections['records']


def test_a_hundred_labels_are_capped(tmp_path):
    names = tuple(f'label {i}' for i in range(100))
    data = build(tmp_path, names, lambda i: [int((i + k) % 5 == 0 and k % 2 == 0) for k in range(100)])
    parsed = shown(data, tmp_path)
    assert 'Only the 20 labels with the most positives are shown, of 100.' in parsed.sections['sheet']
    assert sum(row[0].startswith('label ') for row in parsed.rows) == 100 + page.LABELS
    assert '\nlabel 1\n' not in parsed.sections['sheet'], 'it has no positive'


def test_pictures_are_of_many_patients(whole):
    split = whole[0].split('train')
    chosen = choice.spread(split, np.arange(20), 8)
    assert len(set(split.keys('patient')[chosen].tolist())) == 8
    assert sorted(choice.spread(split, np.arange(20), 30)) == list(range(20))
    assert choice.spread(split, np.zeros(0, int), 8) == []


def test_pictures_are_exact_unless_reduced():
    pixels = SHAPES['colour'](0)
    uri = images.whole(pixels, 30)
    back = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2]))))
    assert uri.startswith('data:image/png') and (back == pixels).all()
    assert images.whole(pixels, 10).startswith('data:image/jpeg')


def test_a_mask_tints_what_it_marks():
    mask = np.zeros((9, 30), np.uint8)
    mask[2:4], mask[5] = 7, 255
    tinted = images.tinted(COLOUR, mask)
    assert (tinted[mask == 0] == COLOUR[mask == 0]).all()
    for value, tint in zip((7, 255), images.TINTS):
        np.testing.assert_allclose(tinted[mask == value], 0.55 * COLOUR[mask == value] + 0.45 * tint, atol=0.51)


@pytest.mark.parametrize('values', [[3, 9], [0, 1], [0.0, 0.1], [1, 1_000_000], [-0.5, 70.25], [17.0, 91.0]])
def test_bins_hold_all_values(values):
    at = page.edges(np.array(values))
    assert np.histogram(values, at)[0].sum() == 2 and len(at) <= page.BINS + 3 and (np.diff(at) > 0).all()


@needs_browser
def test_in_a_browser(whole, tmp_path):
    dom, console, asked = browse(whole[1], tmp_path)
    assert console == [] and asked == set()
    built, source = Page(dom), Page(whole[1].read_text())
    assert built.figures == source.figures and built.rows == source.rows
