"""The report of a run: a section from each file, a sentence where a file is missing, nothing from the network."""

import json
import math
import re
import shutil

import numpy as np
import pytest
from pages import Page, browse, needs_browser
from run_folders import lines, make_run, write_result

from medjax.commands import report
from medjax.errors import UserError
from medjax.probes import tables
from medjax.reports import choice, images, pictures, plots, run_files, run_page


@pytest.fixture
def run(tmp_path):
    """A run of its own for each test that changes it."""
    return make_run(tmp_path)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run that nobody changes, and its report."""
    folder = make_run(tmp_path_factory.mktemp('whole'))
    return folder, write(folder)


def write(run, **kwargs):
    assert report.main(['--run', str(run), *kwargs.get('argv', [])]) == 0
    return (run / 'report.html').read_text()


def test_every_section_from_its_file(whole):
    run, text = whole
    parsed = Page(text)
    assert set(parsed.sections) >= {id for id, _ in run_page.SECTIONS}
    assert 'Learning: cls loss 6.02 of 8.32 for a constant answer.' in parsed.sections['header']
    assert '2,000 of 2,000 steps, 64,000 images' in parsed.sections['header']
    assert 'above raw pixels (0.625), intervals do not overlap' in parsed.sections['header']
    assert ['mean', '', '0.800†[0.770, 0.830]', '0.500†[0.470, 0.530]', '0.800†[0.770, 0.830]',
            '0.500[0.470, 0.530]', '0.625[0.595, 0.655]'] in parsed.rows  # fmt: skip
    assert 'mean\t\t\t0.8000\t0.7700\t0.8300' in parsed.sections['results'], 'the table as text'
    assert 'hernia (no positive in val)' in parsed.sections['results']
    assert 'test records seen in training: 12.5 %†' in parsed.sections['header']
    assert parsed.sections['results'].count('† contaminated, so the value may be too high') == 1
    assert 'step 500, step 1000, step 2000 saw' in parsed.sections['results']
    assert 'the pixels of 12.5 % of the test records' in parsed.sections['data']
    assert '"total_steps": 2000' in parsed.sections['config']
    assert parsed.figures == {'results': 2, 'curves': 3, 'losses': 4, 'health': 4, 'rates': 5}
    assert 'start 8.32' in parsed.sections['losses']
    assert 'one per row: 640' in parsed.sections['health']
    assert not list(run.glob('.report*'))


def test_one_file_that_asks_for_nothing(whole):
    _, text = whole
    parsed = Page(text)
    assert all(address.startswith(('#', 'data:')) for address in parsed.addresses)
    assert not re.search(r'url\((?!#)|@import|<script', text)
    assert {a[1:] for a in parsed.addresses if a.startswith('#') and not re.fullmatch(r'#[mp][0-9a-f]{10}', a)} <= set(
        parsed.ids
    )


def test_words_of_the_user_stay_words(whole):
    _, text = whole
    assert '<b>' not in text and '&lt;b&gt;R&amp;D&lt;/b&gt; $x$' in text
    assert '<title>a run &lt;1&gt; – medjax report</title>' in text


def test_the_same_run_gives_the_same_bytes(whole):
    run, text = whole
    assert write(run) == text


def test_torn_and_missing_numbers_are_left_out(run):
    loaded = run_files.read_run(run)
    assert len(loaded.log) == 40, 'the last line is torn'
    x, y = run_page.column(loaded.log, 'loss')
    assert len(x) == 39 and np.isfinite(y).all(), 'null is no point'


def test_mfu_is_unknown_if_a_line_was_faster_than_the_peak(run):
    assert ', MFU 31.0 % (median)' in Page(write(run)).sections['header']
    given = [line | ({'mfu': None} if line['step'] > 1500 else {}) for line in lines()]
    (run / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in given))
    parsed = Page(write(run))
    assert ', MFU unknown (median)' in parsed.sections['header']
    assert parsed.figures['rates'] == 4 and 'MFU' not in parsed.sections['rates']


MISSING = {
    'metrics.jsonl': {'losses': 'No line in metrics.jsonl yet', 'health': 'No gauges', 'rates': 'No rates'},
    'health.json': {'header': 'No verdict yet'},
    'probes': {
        'results': 'No probe results yet',
        'curves': 'No scores of an export yet',
        'data': 'Unknown: no probe has compared',
    },
}


@pytest.mark.parametrize('gone', MISSING)
def test_what_is_missing_is_said(run, gone):
    shutil.rmtree(run / gone) if gone == 'probes' else (run / gone).unlink()
    parsed = Page(write(run))
    for section, sentence in MISSING[gone].items():
        assert sentence in parsed.sections[section]
    assert 'No export yet' in parsed.sections['patches']
    assert 'No export yet' in parsed.sections['neighbours']
    assert 'The data of source main is not where the config says' in parsed.sections['data']


def test_only_a_config(tmp_path):
    (tmp_path / 'config.json').write_text('{}')
    parsed = Page(write(tmp_path))
    assert parsed.figures == {}
    for sentences in MISSING.values():
        assert all(sentence in parsed.sections[section] for section, sentence in sentences.items())


def test_one_step_and_one_export_without_intervals(run):
    (run / 'metrics.jsonl').write_text(json.dumps({'step': 1, 'loss': 3.0, 'lr': 1e-3}) + '\n')
    shutil.rmtree(run / 'probes')
    write_result(run, 1, 'knn', skill=1.0)
    path = run / 'probes' / '1' / 'phantom.knn.json'
    body = json.loads(path.read_text())
    body['results'] = {'auroc': {'mean': {'value': 0.7, 'low': None, 'high': None}, 'nodule': {'value': None}}}
    path.write_text(json.dumps(body))
    (run / 'probes' / '1' / 'phantom.knn.npz').unlink()
    parsed = Page(write(run))
    assert ['mean', '', '0.700†'] in parsed.rows and ['nodule', '', '–'] in parsed.rows
    assert 'no baseline yet' in parsed.sections['header']


def test_an_export_that_is_worse_than_the_start_is_said_beside_the_verdict(run):
    write_result(run, 0, 'knn', skill=1.6)
    write_result(run, 0, 'linear', skill=1.25)  # a little better than step 2,000, with intervals that overlap
    text = ' '.join(Page(write(run)).sections['header'].split())
    assert 'Worse than its start: knn on phantom, mean AUROC .800† [.770, .830] at step 2,000, .900†' in text
    assert 'Worse than its start: linear' not in text


def test_the_similarity_to_the_start_is_a_curve(run):
    assert Page(write(run)).figures['health'] == 4
    rows = [row | {'similarity/start': 1 - i / 100} for i, row in enumerate(lines())]
    (run / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    assert Page(write(run)).figures['health'] == 5


def test_baselines_alone(run):
    for step in ('500', '1000', '2000'):
        shutil.rmtree(run / 'probes' / step)
    parsed = Page(write(run))
    assert 'phantom, knn, random init' in parsed.sections['results'] and parsed.figures['results'] == 2


def test_damaged_results_are_left_out_and_said(run):
    at = run / 'probes' / '2000'
    (at / 'phantom.knn.json').write_text('{"probe": "knn", "da')
    (at / 'phantom.linear.npz').write_bytes((at / 'phantom.linear.npz').read_bytes()[:200])
    (run / 'probes' / '500' / 'phantom.knn.json').write_bytes(b'\xff\x00')
    (run / 'probes' / '500' / 'phantom.linear.json').write_text('{"probe": "linear", "data": "phantom"}')
    parsed = Page(write(run))
    text = parsed.sections['results']
    for name in ('2000/phantom.knn.json', '2000/phantom.linear.npz', '500/phantom.knn.json', '500/phantom.linear.json'):
        assert f'left out: {name} ' in text, text
    assert text.count(' are left out: ') == 1 and text.count(' is left out: ') == 3
    assert 'phantom, linear, export of step 2,000' in text and 'phantom, knn, export of step 1,000' in text
    assert parsed.figures['results'] == 2


def test_the_best_export_is_marked(run):
    best = dict(step=1000, probe='linear', metric='auroc', data='phantom', value=0.7, low=0.65, high=0.75)
    (run / 'best.json').write_text(json.dumps(best | dict(steps={'1000': {}, '2000': {}})))
    (run / 'exports' / '1000').mkdir(parents=True)
    parsed = Page(write(run))
    sentence = 'step 1000 is the best of 2 exports by linear AUROC on validation of phantom, 0.700 [0.650, 0.750]'
    assert sentence in parsed.sections['header'] and 'no longer there' not in parsed.sections['header']
    assert parsed.sections['results'].count('best on validation') == 2, 'a star in each panel'
    (run / 'best.json').write_text(json.dumps(best))
    parsed = Page(write(run))
    assert 'best.json is damaged' in parsed.sections['results'] and sentence not in parsed.sections['header']


def test_why_overlap_is_unknown(run):
    for path in (run / 'probes' / '2000').glob('*.json'):
        why = {'overlap': {}, 'provenance': 'overlap with pretraining unknown: the run has no data/seen.npz'}
        path.write_text(json.dumps(json.loads(path.read_text()) | why))
    text = Page(write(run)).sections['data']
    assert 'phantom: overlap with pretraining unknown: the run has no data/seen.npz.' in text
    assert 'no probe has compared' not in text


def test_ticks_of_a_flat_curve_are_its_values():
    flat = np.log(64) + 1e-7 * np.array([26, 28, 31, 27, 29])
    svg = str(plots.curves('entropy', {'entropy': (np.arange(5), flat)}))
    assert 'e−' not in svg and 'e-7' not in svg, 'no offset beside the axis'
    ticks = [float(text) for text in re.findall(r'>([\d.]+)</text>', svg)]
    assert sum(abs(tick - flat[0]) < 1e-5 for tick in ticks) >= 3, ticks


def test_a_wrong_folder_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match='no such folder'):
        report.main(['--run', str(tmp_path / 'nowhere')])
    with pytest.raises(UserError, match=r'no config\.json'):
        report.main(['--run', str(tmp_path)])
    (tmp_path / 'config.json').write_text('{}')
    (tmp_path / 'report.html').mkdir()
    with pytest.raises(UserError, match='report.html: that is a folder'):
        report.main(['--run', str(tmp_path)])


def test_components_are_those_of_a_singular_value_decomposition():
    rng = np.random.default_rng(0)
    patches = (rng.normal(size=(3, 4, 5, 3)) * [3, 2, 1]) @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:3] + 7
    colours, shares = pictures.components(patches)
    assert colours.shape == (3, 4, 5, 3) and colours.min() == 0 and colours.max() == 1
    values = np.sort(np.linalg.eigvalsh(np.cov(patches.reshape(-1, 8).T)))[::-1]
    np.testing.assert_allclose(shares, values[:3] / values.sum(), atol=1e-12)
    again = pictures.components(np.concatenate([patches, patches]))[0]
    np.testing.assert_allclose(again[:3], colours, atol=0.02), 'one basis for all images'


def test_features_of_one_patch_image_have_colours():
    colours, _ = pictures.components(np.ones((1, 1, 1, 2), np.float32))
    assert colours.shape == (1, 1, 1, 3) and np.isfinite(colours).all()


def test_nearest_is_by_cosine():
    others = np.array([[1, 0], [10, 10], [0, 3], [-1, 0]], np.float32)
    numbers, similarities = pictures.nearest(np.array([[2, 0.1]], np.float32), others, 3)
    assert numbers.tolist() == [[0, 1, 2]]
    np.testing.assert_allclose(similarities[0, 0], 2 / math.hypot(2, 0.1), rtol=1e-6)


@pytest.mark.parametrize(('dtype', 'channels'), [(np.uint8, 1), (np.uint16, 1), (np.uint8, 3)])
def test_pictures_show_the_centre_square(dtype, channels):
    image = np.zeros((40, 80, channels), dtype)
    image[:, 20:60] = np.iinfo(dtype).max
    shown = np.asarray(images.centre(image))
    assert shown.shape == (224, 224, 3) and shown.min() == 255
    wider = np.asarray(images.centre(image[:, 15:65], zoom=1.25))  # the edges of the square are cut
    assert wider.shape == (224, 224, 3) and wider.min() == 255
    stretched = np.asarray(images.centre(image, fit='stretch'))
    assert (stretched[:, :50] == 0).all() and (stretched[:, 60:164] == 255).all()


@pytest.fixture(scope='module')
def phantom(tmp_path_factory):
    """A small data set as `medjax build` makes it."""
    from medjax.commands import build
    from medjax.data import records

    path = tmp_path_factory.mktemp('data') / 'phantom'
    assert build.main(['phantom', '--records', '60', '--size', '32', '--out', str(path)]) == 0
    return records.open(path)


def add_export(run, data):
    """A tower before any training, as an export."""
    import jax

    from medjax.models import build
    from medjax.weights import export

    cfg = {'tower': 'vit', 'variant': 'Ti/8', 'width': 16, 'depth': 4, 'heads': 2}
    params = jax.jit(build.tower(cfg, 1, 'towers.image').init)(jax.random.key(0))
    image = {'channels': 1, 'mean': data.mean, 'std': data.std}
    meta = {'step': 2000, 'network': 'teacher', 'towers': {'image': cfg}, 'heads': {}, 'image': image, 'size': 32}
    export.save(run / 'exports' / '2000', {'towers': {'image': params}}, meta)


def test_pictures_of_real_records(run, phantom):
    add_export(run, phantom)
    text = write(run, argv=['--data', str(phantom.path)])
    parsed = Page(text)
    assert parsed.figures['patches'] == 2 * pictures.IMAGES
    assert parsed.figures['neighbours'] == pictures.QUERIES * (1 + pictures.NEIGHBOURS)
    assert (run / 'cache' / '2000' / 'phantom.train' / 'cls.npy').exists(), 'encoded once, where the probes keep theirs'
    train = phantom.split('train').labels_array
    positives = [f'{np.sum(train[:, i] == 1):,} / {len(train):,}' for i in range(len(phantom.labels))]
    assert [
        row[1] for row in parsed.rows if row[0] in phantom.labels and len(row) == 1 + len(phantom.splits)
    ] == positives
    keys = [phantom.split(s).keys(kind) for s in phantom.splits for kind in ('patient', 'study', 'image')]
    hashed = [form.format(int(key)) for part in keys for key in part for form in ('{:016x}', '{}')]
    assert not any(key in text for key in hashed), 'no identifier, hashed or not'


def test_the_chosen_records_are_of_different_patients(phantom):
    split = phantom.split('train')
    chosen = choice.varied(split, 8)
    assert len(chosen) == len(set(split.keys('patient')[chosen].tolist())) == 8
    assert (split.labels_array[chosen] == 1).any(0).sum() >= 3, 'positives of several labels'


@needs_browser
def test_in_a_browser(whole, tmp_path):
    """The page as a browser builds it: no error in the console, no request, and nothing lost on the way."""
    run, text = whole
    dom, console, asked = browse(run / 'report.html', tmp_path)
    assert console == []
    assert asked == set()
    built, source = Page(dom), Page(text)
    assert built.figures == source.figures
    assert built.rows == source.rows
    assert built.sections.keys() == source.sections.keys()

    bad = tmp_path / 'bad.html'  # that the browser would tell
    bad.write_text('<!doctype html><img src="http://127.0.0.1:9/x.png"><script>console.error("oh")</script>')
    _, console, asked = browse(bad, tmp_path)
    assert len(console) >= 1
    assert asked == {'http://127.0.0.1:9/x.png'}


def test_tables_for_a_paper_lie_beside_the_page(whole):
    run, _ = whole
    latex, text = (run / 'report.tex').read_text(), (run / 'report.md').read_text()
    assert latex.count(r'\toprule') == latex.count(r'\bottomrule') == text.count('means on the test split') == 2
    line = r'step 2000 & .800\textsuperscript{\textdagger} [.770, .830]'
    assert line in latex and r'12.5 \%' in latex and 'step 2000 | .800† [.770, .830]' in text
    content = json.loads((run / 'report.json').read_text())
    assert len(content['results']) == 10 and content['answer']['better'].startswith('Not known')
    assert [one['contaminated'] for one in content['results'] if one['encoder'] in (2000, 'pixels')] == [
        True,
        False,
    ] * 2


def test_latex_has_no_command_of_the_user():
    table = tables.Table('50% of a_b', ['a&b', 'x'], [['{#}$~^\\', '**.8**']])
    latex = tables.latex(table)
    assert r'50\% of a\_b' in latex and r'a\&b' in latex and r'\textbf{.8}' in latex
    assert r'\{\#\}\$\textasciitilde{}\textasciicircum{}\textbackslash{}' in latex
