"""`medjax audit`: its sentences, its exit codes, its JSON, and a page that shows the pairs and nobody's id."""

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
SECRET = 'DOE^JANE 1234'  # as id, as folder, in a report: never on the page


def noise(i: int) -> np.ndarray:
    """Pictures that nothing but themselves is alike."""
    return np.random.default_rng(i).integers(0, 255, (24, 20), np.uint8)


def build(folder, name, seeds, splits, changes=(), label=lambda i: [0, 0], **more):
    """A data set of `noise`, each of a patient of its own but for changes of entries."""
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
    """A test image is a training image under another label, and two training images are one."""
    seeds, splits = [0, 1, 2, 2, 4, 0], ['train'] * 4 + ['val', 'test']
    dropped = [Drop('x', 'line 7', 'damaged <PNG>')]
    label = lambda i: [int(i == 5), -3 if i == 1 else 0]  # noqa: E731
    return build(tmp_path_factory.mktemp('leaky'), 'leaky', seeds, splits, label=label, dropped=dropped)


@pytest.fixture(scope='module')
def whole(leaky, tmp_path_factory):
    """The page and the JSON of the leaky set."""
    folder = tmp_path_factory.mktemp('page')
    page, result = folder / 'page.html', folder / 'audit.json'
    assert cli.main(['audit', leaky, '--out', str(page), '--json', str(result)]) == 1
    return page, result


def test_no_leak_is_exit_code_0(clean, capsys):
    assert cli.main(['audit', clean]) == 0
    assert capsys.readouterr().out.startswith('no leak found\n')


def test_a_leak_is_exit_code_1_within_and_between(clean, leaky, tmp_path, capsys):
    assert cli.main(['audit', leaky]) == 1
    assert capsys.readouterr().out.startswith('leak: 1 of 1 records of leaky/test are in leaky/train by equal pixels\n')
    other = build(tmp_path, 'other', [100, 5], ['train', 'train'])  # clean's test image
    assert cli.main(['audit', other, clean]) == 1
    assert 'leak: 1 of 1 records of clean/test are in other/train by equal pixels' in capsys.readouterr().out


def test_mistakes_are_exit_code_2(clean, tmp_path, capsys):
    for argv, said in (
        (['nowhere'], 'there is no such folder'),
        ([str(tmp_path)], 'no medjax.json'),
        ([clean, clean], 'named twice'),
        ([clean, f'{clean}/../clean'], 'named twice'),
        ([clean, '--out', str(tmp_path / 'no' / 'page.html')], '--out'),
        ([clean, '--json', str(tmp_path)], 'that is a folder'),
        ([clean, '--out', str(tmp_path / 'x'), '--json', f'{tmp_path}/./x'], 'a file of its own'),
    ):
        assert cli.main(['audit', *argv]) == 2
        heard = capsys.readouterr()
        assert said in heard.err and not heard.out, 'nothing is searched before the mistake is told'
    with pytest.raises(SystemExit) as left:
        cli.main(['audit'])
    assert left.value.code == 2


def test_the_json_is_the_result(whole):
    told = json.loads(whole[1].read_text())
    assert [(leak['kind'], leak['pairs'], leak['pair_count']) for leak in told['leaks']] == [('pixels', [[0, 0, 1]], 1)]
    assert told['verdict'][0].startswith('leak: 1 of 1 records')


def test_what_the_page_tells(whole):
    text = whole[0].read_text()
    found = Page(text)
    assert set(found.sections) >= {id for id, _ in page.SECTIONS}
    assert 'leak: 1 of 1 records of leaky/test are in leaky/train by equal pixels' in found.sections['header']
    assert 'images of patients' in found.sections['header']
    assert ['equal pixels', 'leaky/train', 'leaky/test', '1', '1', '100.0'] in found.rows
    assert ['equal pixels', 'leaky/train', 'leaky/train', '1', '4', '25.0'] in found.rows
    assert 'pixels\tleaky/train\tleaky/test\t1\t1' in found.sections['leaks'], 'the table as text'
    assert found.figures == {'pairs': 4, 'labels': 2}, 'a pair that leaks, one that repeats, one that contradicts'
    assert 'leaky/train/0' in found.sections['pairs'] and '61 years, F' in found.sections['pairs']
    assert 'nodule: only the right' in found.sections['labels']
    assert ['leaky/train', '<b>R&D</b>', '1'] in found.rows, 'a label that contradicts itself'
    assert ['leaky/train', '4', '1', '4', '0'] in found.rows, 'texts'
    assert ['leaky', 'record', 'damaged <PNG>', '1'] in found.rows
    assert ['leaky', '0', '0', '6'] in found.rows, 'burned-in text'
    assert 'leaky: every record is a patient of its own' in found.sections['unknown']
    assert 'CC0' in found.sections['sets']


def test_nobody_is_named(whole, leaky):
    """No id, hashed or not, no path, no text of a report; and nothing from the network."""
    data = records.open(leaky)
    hashed = np.concatenate([np.asarray(data.split(s)._columns['keys']).ravel() for s in data.splits])
    for file in whole:
        text = file.read_text()
        assert SECRET not in text and str(data.path.parent.parent) not in text and 'is well' not in text
        assert not any(form.format(int(key)) in text for key in hashed if key for form in ('{:016x}', '{}'))
    assert all(address.startswith(('#', 'data:')) for address in Page(whole[0].read_text()).addresses)
    assert '<b>R' not in whole[0].read_text()


def test_different_keys_are_told(clean, tmp_path):
    other = build(tmp_path, 'other', [100, 101], ['train', 'test'], key=b'another')
    assert cli.main(['audit', clean, other, '--out', str(tmp_path / 'page.html')]) == 0
    found = Page((tmp_path / 'page.html').read_text())
    assert (
        'hashed with different keys' in found.sections['unknown']
        and 'hashed with different' in found.sections['header']
    )
    assert 'There is no pair to show' in found.sections['pairs'] and found.figures == {}


def test_many_pairs_are_told_by_number(tmp_path):
    n = page.SHOWN + 6
    data = build(tmp_path, 'twice', [*range(n)] * 2, ['train'] * n + ['test'] * n)
    assert cli.main(['audit', data, '--out', str(tmp_path / 'page.html')]) == 1
    found = Page((tmp_path / 'page.html').read_text())
    assert found.figures['pairs'] == 2 * page.SHOWN
    assert f'{n - 1} – {n - 1}' in found.sections['pairs'] and '6 more by number' in found.sections['pairs']


def test_pictures_are_rationed():
    assert page.ration([100, 3, 0]) == [page.SHOWN, 3, 0]
    assert sum(page.ration([100] * 100)) == page.ALL and page.ration([100] * 100)[-1] == 0


@needs_browser
def test_in_a_browser(whole, tmp_path):
    dom, console, asked = browse(whole[0], tmp_path)
    assert console == [] and asked == set()
    built, source = Page(dom), Page(whole[0].read_text())
    assert built.figures == source.figures and built.rows == source.rows
    assert not re.search(r'<script', dom)
