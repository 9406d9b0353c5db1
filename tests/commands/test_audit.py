"""`medjax audit`: its sentences, exit codes and JSON, and a page that shows the matches but no id."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from pages import Page, browse, needs_browser

from medjax import cli
from medjax.data import records
from medjax.data.builder import write
from medjax.data.types import Drop, Entry, Example, Source
from medjax.reports import audit_page as page

LABELS = ('nodule', '<b>R&D</b>')
SECRET = 'DOE^JANE 1234'  # in ids, folder names and reports; it must never be on the page


def noise(i: int) -> np.ndarray:
    """A random picture, similar only to itself."""
    return np.random.default_rng(i).integers(0, 255, (24, 20), np.uint8)


def build(folder, name, seeds, splits, changes=(), label=lambda i: [0, 0], **more):
    """A data set of `noise` pictures, each of its own patient, with `changes` of entries: number -> new values."""
    entries = [Entry(f'{SECRET}{i}', f'{SECRET}{i}', f's{i}', s) for i, s in enumerate(splits)]
    for i, change in dict(changes).items():
        entries[i] = entries[i]._replace(**change)
    info = {'age': 61.0, 'sex': 'F'}
    load = lambda i: Example(noise(seeds[i]), text={'report': f'{SECRET} is well.'}, attributes=info)  # noqa: E731
    write.write(Source(name, '1', name, LABELS, 'CC0', entries, label, load, **more), folder / SECRET / name)
    return str(folder / SECRET / name)


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    return build(tmp_path_factory.mktemp('clean'), 'clean', range(6), ['train'] * 4 + ['val', 'test'])


@pytest.fixture(scope='module')
def leaky(tmp_path_factory):
    """The test image equals a training image with another label, and two training images are equal."""
    seeds, splits = [0, 1, 2, 2, 4, 0], ['train'] * 4 + ['val', 'test']
    dropped = [Drop('x', 'line 7', 'damaged <PNG>')]
    label = lambda i: [int(i == 5), -3 if i == 1 else 0]  # noqa: E731
    return build(tmp_path_factory.mktemp('leaky'), 'leaky', seeds, splits, label=label, dropped=dropped)


@pytest.fixture(scope='module')
def page_and_json(leaky, tmp_path_factory):
    """The files that the command writes about the leaky data set."""
    folder = tmp_path_factory.mktemp('page')
    page, result = folder / 'page.html', folder / 'audit.json'
    assert cli.main(['audit', leaky, '--out', str(page), '--json', str(result)]) == 1
    return page, result


def test_no_leak_is_exit_code_0(clean, capsys):
    assert cli.main(['audit', clean]) == 0
    assert capsys.readouterr().out.startswith('no leak found\n')


def test_a_leak_is_exit_code_1_within_and_between(clean, leaky, tmp_path, capsys):
    assert cli.main(['audit', leaky]) == 1
    assert capsys.readouterr().out.startswith(
        'leak: 1 of 1 records of leaky/test has the same pixels as a record of leaky/train\n'
    )
    other = build(tmp_path, 'other', [100, 5], ['train', 'train'])  # clean's test image
    assert cli.main(['audit', other, clean]) == 1
    assert (
        'leak: 1 of 1 records of clean/test has the same pixels as a record of other/train' in capsys.readouterr().out
    )


def test_mistakes_are_exit_code_2(clean, tmp_path, capsys):
    for argv, message in (
        (['nowhere'], 'there is no such folder'),
        ([str(tmp_path)], 'no medjax.json'),
        ([clean, clean], 'named twice'),
        ([clean, f'{clean}/../clean'], 'named twice'),
        ([clean, '--out', str(tmp_path / 'no' / 'page.html')], '--out'),
        ([clean, '--json', str(tmp_path)], 'that is a folder'),
        ([clean, '--out', str(tmp_path / 'x'), '--json', f'{tmp_path}/./x'], 'a file of its own'),
    ):
        assert cli.main(['audit', *argv]) == 2
        printed = capsys.readouterr()
        assert message in printed.err and not printed.out, 'the mistake is reported before any search'
    with pytest.raises(SystemExit) as exit:
        cli.main(['audit'])
    assert exit.value.code == 2


def test_the_json_is_the_result(page_and_json):
    result = json.loads(page_and_json[1].read_text())
    assert [(f['kind'], f['pairs'], f['pair_count']) for f in result['leaks']] == [('pixels', [[0, 0, 1]], 1)]
    assert result['verdict'][0].startswith('leak: 1 of 1 records')


def test_the_page_shows_the_findings(page_and_json):
    parsed = Page(page_and_json[0].read_text())
    assert set(parsed.sections) >= {id for id, _ in page.SECTIONS}
    assert (
        'leak: 1 of 1 records of leaky/test has the same pixels as a record of leaky/train' in parsed.sections['header']
    )
    assert 'images of patients' in parsed.sections['header']
    assert ['equal pixels', 'leaky/train', 'leaky/test', '1', '1', '100.0'] in parsed.rows
    assert ['equal pixels', 'leaky/train', 'leaky/train', '1', '4', '25.0'] in parsed.rows
    assert 'pixels\tleaky/train\tleaky/test\t1\t1' in parsed.sections['leaks'], 'the table as text'
    # two images each: of a leak and of equal training images; of contradicting labels
    assert parsed.figures == {'matches': 4, 'labels': 2}
    assert 'leaky/train/0' in parsed.sections['matches'] and '61 years, F' in parsed.sections['matches']
    assert 'nodule: only the right' in parsed.sections['labels']
    assert ['leaky/train', '<b>R&D</b>', '1'] in parsed.rows, 'a conflicting label'
    assert ['leaky/train', '4', '1', '4', '0'] in parsed.rows, 'texts'
    assert ['leaky', 'record', 'damaged <PNG>', '1'] in parsed.rows
    assert ['leaky', '0', '0', '6'] in parsed.rows, 'burned-in text'
    assert 'leaky: every record is a patient of its own' in parsed.sections['unknown']
    assert 'CC0' in parsed.sections['sets']


def test_nobody_is_named(page_and_json, leaky):
    """The files hold no id (hashed or not), no path, no text of a report, and no link to the network."""
    data = records.open(leaky)
    hashed = np.concatenate([np.asarray(data.split(s)._columns['keys']).ravel() for s in data.splits])
    for file in page_and_json:
        text = file.read_text()
        assert SECRET not in text and str(data.path.parent.parent) not in text and 'is well' not in text
        assert not any(form.format(int(key)) in text for key in hashed if key for form in ('{:016x}', '{}'))
    assert all(address.startswith(('#', 'data:')) for address in Page(page_and_json[0].read_text()).addresses)
    assert '<b>R' not in page_and_json[0].read_text()


def test_different_keys_are_reported(clean, tmp_path):
    other = build(tmp_path, 'other', [100, 101], ['train', 'test'], key=b'another')
    assert cli.main(['audit', clean, other, '--out', str(tmp_path / 'page.html')]) == 0
    parsed = Page((tmp_path / 'page.html').read_text())
    assert (
        'hashed with different keys' in parsed.sections['unknown']
        and 'hashed with different' in parsed.sections['header']
    )
    assert 'There is no match to show' in parsed.sections['matches'] and parsed.figures == {}


def test_many_matches_are_listed_by_number(tmp_path):
    n = page.SHOWN + 6
    data = build(tmp_path, 'twice', [*range(n)] * 2, ['train'] * n + ['test'] * n)
    assert cli.main(['audit', data, '--out', str(tmp_path / 'page.html')]) == 1
    parsed = Page((tmp_path / 'page.html').read_text())
    assert parsed.figures['matches'] == 2 * page.SHOWN
    assert f'{n - 1} – {n - 1}' in parsed.sections['matches'] and '6 more by number' in parsed.sections['matches']


def test_the_number_of_pictures_is_limited():
    assert page.ration([100, 3, 0]) == [page.SHOWN, 3, 0]
    assert sum(page.ration([100] * 100)) == page.ALL and page.ration([100] * 100)[-1] == 0


@needs_browser
def test_in_a_browser(page_and_json, tmp_path):
    dom, console, asked = browse(page_and_json[0], tmp_path)
    assert console == [] and asked == set()
    built, source = Page(dom), Page(page_and_json[0].read_text())
    assert built.figures == source.figures and built.rows == source.rows
    assert not re.search(r'<script', dom)
