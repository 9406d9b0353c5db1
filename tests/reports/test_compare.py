"""`medjax compare`: runs side by side, with a sentence where a run lacks something, nothing from the network."""

import contextlib
import io
import json
import re
import shutil

import numpy as np
import pytest
from pages import Page, browse, needs_browser
from run_folders import config, lines, make_run, write_result

from medjax import cli, config as configs
from medjax.commands import compare
from medjax.probes import comparison
from medjax.reports import compare_page, compare_plots, run_files


def chosen(step, **more):
    return dict(
        dict(step=step, figure='linear.auroc', probe='linear', metric='auroc', value=0.8, low=0.7, high=0.9),
        data='phantom',
        steps={'500': {}, '1000': {}, '2000': {}},
    ) | dict(more)


@pytest.fixture
def runs(tmp_path):
    """Runs of its own for each test that changes them."""
    return make_runs(tmp_path)


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """Three runs that nobody changes, their page, and what the command printed."""
    place = tmp_path_factory.mktemp('whole')
    runs, out, err = make_runs(place), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert medjax_compare(*runs, out=place / 'page.html') == 0
    return runs, place / 'page.html', (out.getvalue(), err.getvalue())


def make_runs(place):
    """A finished run with a best export, a branch of it with a higher rate, and one that has just begun."""
    parents = [place / name for name in ('one', 'two', 'three')]
    for parent in parents:
        parent.mkdir()
    first, second, third = map(make_run, parents)
    (first / 'DONE').write_text('2000\n')
    (first / 'best.json').write_text(json.dumps(chosen(1000)))
    (first / 'exports' / '1000').mkdir(parents=True)
    parent = dict(run=str(first), step=1000, total_steps=2000, fingerprint='0' * 16, kept=['towers/image'])
    life = dict(parent=parent, ends=[[0, 1500], [1400, 2000]])
    change(second, optim={'lr': 2e-3}, log=dict(every=7), data_paths={'main': '/else/phantom'}, life=life)
    for step in (500, 1000, 2000):
        write_result(second, step, 'linear', skill=1.4)
    shutil.rmtree(third / 'probes')
    for name in ('metrics.jsonl', 'health.json'):
        (third / name).unlink()
    return first, second, third


def change(run, **values):
    (run / 'config.json').write_text(json.dumps(config() | values))


def medjax_compare(*runs, out):
    return cli.main(['compare', *map(str, runs), '--out', str(out)])


def test_every_section_with_all_runs(whole):
    _, page, (out, err) = whole
    parsed = Page(page.read_text())
    assert set(parsed.sections) >= {id for id, _ in compare_page.SECTIONS}
    names = [f'{name}/a run <1>' for name in ('one', 'two', 'three')]
    assert all(name in parsed.sections['header'] for name in names), 'folders of one name have their parents before it'
    assert f'{names[0]}: Learning: cls loss 6.02' in parsed.sections['header']
    assert f'{names[2]}: No verdict yet' in parsed.sections['header']
    assert ['branch of', '–', 'a run <1>, step 1,000', '–'] in parsed.rows
    assert ['length', '–', '1,500 steps, lengthened at step 1,400 to 2,000', '–'] in parsed.rows
    assert ['', f'{names[0]}, step 1,000 ★', f'{names[1]}, step 2,000', names[2]] in parsed.rows
    assert ['mean AUROC', '0.700†[0.670, 0.730]', '0.850†[0.820, 0.880]', '–'] in parsed.rows
    assert ['step 1,000', '0.700†[0.670, 0.730]★', '0.850†[0.820, 0.880]', '–'] in parsed.rows, 'over steps'
    assert ['raw pixels', '0.625[0.595, 0.655]', '0.625[0.595, 0.655]', '–'] in parsed.rows
    assert page.read_text().count('role="img"') == 1 + 2 + 4 + 4 + 5, (
        'a forest plot, panels of results, losses, health, rates'
    )
    assert '| one/a run \\<1\\> | 2,000 | step 1,000 ★ |' in out
    assert '| two/a run \\<1\\> | 2,000 | step 2,000 | ' in out and '**.850**† [.820, .880]' in out
    assert out.count('contaminated, so') == 1 and parsed.sections['results'].count('contaminated, so') == 1
    assert '| three/a run \\<1\\> | 0 of 2,000 |  | – | – | no health.json |' in out
    for note in ('It is not finished', 'no line in metrics.jsonl', 'no results of probes'):
        assert f'{names[2]}: ' in err and note in err and note in parsed.sections['header']


def test_exports_are_compared_on_the_same_patients(whole):
    runs, page, _ = whole
    names = [f'{name}/a run <1>' for name in ('one', 'two')]
    text = Page(page.read_text()).sections['results']
    assert f'{names[1]}, step 2,000† - {names[0]}, step 1,000 ★†: mean AUROC +' in text
    first, second = (run_files.read_run(run) for run in runs[:2])
    (group,) = (g for g in compare_page.groups_of([first, second]) if g.probe == 'linear')
    (sentence,) = compare_page.paired(group, dict(a=first, b=second))
    pair = comparison.paired(
        *(
            comparison.read(run / 'probes' / step / 'phantom.linear.json')
            for run, step in zip(runs[1::-1], ('2000', '1000'))
        )
    )
    assert f'{pair["results"]["auroc"]["mean"]["value"]:+.3f}'.replace('0.', '.') in sentence


def test_a_forest_plot_has_a_row_for_each_run_with_results(whole):
    runs, page, _ = whole
    read = {name: run_files.read_run(run) for name, run in zip('abc', runs, strict=True)}
    drawn, real = [], compare_plots.forest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_plots, 'forest', lambda *given: drawn.append(given) or real(*given))
        (svg,) = compare_page.forests(compare_page.groups_of(list(read.values())), read)
    ((metric, blocks, names),) = drawn
    assert metric == 'mean AUROC' and names == ['a', 'b', 'c']
    assert [heading for heading, _ in blocks] == ['knn on phantom', 'linear on phantom']
    linear = [estimate and estimate['value'] for estimate in blocks[1][1]]
    assert linear == [pytest.approx(0.7), pytest.approx(0.85), None], 'the best export, the newest one, none'
    texts = re.findall('<text[^>]*>([^<]*)</text>', svg)
    assert [texts.count(name) for name in 'abc'] == [2, 2, 0] and texts.count('†') == 4
    assert 'mean AUROC of each probe, with intervals, a row for each run' in page.read_text()


def test_results_of_other_labels_are_not_compared(runs):
    for file in runs[1].glob('probes/*/*.npz'):
        with np.load(file) as arrays:
            np.savez(file, **dict(arrays) | dict(labels=1 - arrays['labels']))
    first, second = (run_files.read_run(run) for run in runs[:2])
    (group,) = (g for g in compare_page.groups_of([first, second]) if g.probe == 'linear')
    (sentence,) = compare_page.paired(group, dict(a=first, b=second))
    assert 'are not compared: their results are of different test records, labels' in sentence


def test_settings_are_told_apart_by_what_they_change(whole):
    parsed = Page(whole[1].read_text())
    text = parsed.sections['settings']
    computed, others = text.split('Settings that do not change what a step computes')
    assert 'optim.lr' in computed and '0.002' in computed
    assert 'data_paths.main' in others and 'log.every' in others and 'optim.lr' not in others
    assert 'life' not in text and ['optim.lr', '0.001', '0.002', '0.001'] in parsed.rows


@pytest.mark.parametrize('schedule', [1.0, dict(rule='cosine', warmup=5)])
def test_the_length_counts_where_it_shapes_a_schedule(schedule):
    given = [config() | dict(total_steps=n, optim=dict(lr=1e-3, schedule=schedule)) for n in (10, 20)]
    found = compare.compare_configs(given)
    shaped = configs.ends_with_run(configs.frozen(given[0]))
    assert bool(shaped) == isinstance(schedule, dict)
    rows = [('total_steps', '10', '20')]
    assert (found.computed, found.others) == ((rows, []) if shaped else ([], rows))


def test_one_file_that_asks_for_nothing_and_escapes(whole):
    text = whole[1].read_text()
    parsed = Page(text)
    assert all(address.startswith(('#', 'data:')) for address in parsed.addresses)
    assert not re.search(r'url\((?!#)|@import|<script', text)
    assert '<b>R&' not in text and '&lt;b&gt;R&amp;D&lt;/b&gt; $x$' in text and 'a run <1>' not in text


def test_other_data_of_one_name_and_other_labels_are_said(runs):
    first, second, _ = runs
    for file in second.glob('probes/*/*.json'):
        file.write_text(json.dumps(json.loads(file.read_text()) | dict(data_fingerprint='beef12345')))
    file = first / 'probes' / '500' / 'phantom.knn.json'
    body = json.loads(file.read_text())
    del body['results']['auroc']['nodule']
    file.write_text(json.dumps(body))
    groups = {group.title: group for group in compare_page.groups_of([run_files.read_run(run) for run in runs])}
    names = [f'{probe} AUROC on phantom ({data})' for probe in ('knn', 'linear') for data in ('beef12', 'f00')]
    assert sorted(groups) == sorted(names)
    said = {title: compare_page.warnings(group) for title, group in groups.items() if compare_page.warnings(group)}
    (sentence,) = said.pop('knn AUROC on phantom (f00)')
    assert 'some are of other labels, so their means differ by that too' in sentence and not said


@pytest.mark.parametrize(
    ('file', 'content', 'sentence'),
    [
        ('health.json', '{"st', 'health.json is not JSON'),
        ('best.json', '{"step": "x"}', 'best.json is damaged'),
        ('metrics.jsonl', '\x00\x01\n[3]\n{"loss": 1}\n', 'no line in metrics.jsonl'),
        ('probes/2000/phantom.knn.json', '[', '2000/phantom.knn.json'),
    ],
)
def test_a_damaged_file_is_a_note(runs, file, content, sentence):
    (runs[1] / file).write_text(content)
    assert sentence in ' '.join(compare_page.notes(run_files.read_run(runs[1])))


def test_a_best_export_that_is_gone_is_a_note(runs):
    shutil.rmtree(runs[0] / 'exports')
    (note,) = compare_page.notes(run_files.read_run(runs[0]))
    assert note == 'Its best export, of step 1,000, is no longer there.'


def test_folders_that_cannot_be_compared(runs, tmp_path, capsys):
    first, second, _ = runs
    (tmp_path / 'empty').mkdir()
    out = tmp_path / 'page.html'
    for given, sentence in (
        ([first], 'there is one run'),
        ([first, f'{first}/../{first.name}/'], 'there is one run'),
        ([first, tmp_path / 'nowhere'], 'nowhere: there is no such folder'),
        ([first, tmp_path / 'empty'], 'empty: no config.json in it'),
    ):
        assert medjax_compare(*given, out=out) == 2 and not out.exists()
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith('medjax: ') and sentence in said
    assert medjax_compare(first, second, out=tmp_path / 'none' / 'page.html') == 2
    assert '--out' in capsys.readouterr().err
    (second / 'config.json').write_text('{')
    assert medjax_compare(first, second, out=out) == 2
    assert 'config.json is not JSON' in capsys.readouterr().err


def test_a_damaged_entry_of_a_config_is_said_and_the_page_is_written(runs, tmp_path, capsys):
    first, second, third = runs
    change(first, life={'parent': None}, teachers=[])
    change(second, views=None)
    change(third, batch_size='many')
    assert medjax_compare(*runs, out=tmp_path / 'page.html') == 0
    parsed, told = Page((tmp_path / 'page.html').read_text()), capsys.readouterr().err
    for sentence in ("life: lacks 'ends'", 'teachers=[]: must be a dict', 'views=None: must be a dict',
                     "batch_size='many': must be a whole number of at least 1"):  # fmt: skip
        sentence = f'A damaged entry of config.json is left out: {sentence}.'
        assert sentence in told and sentence in parsed.sections['header']


def test_the_same_run_twice_is_shown_once(capsys, tmp_path):
    (tmp_path / 'b').mkdir()
    given = [str(tmp_path / 'a'), f'{tmp_path}/b/../a/', str(tmp_path / 'b')]
    assert compare.different(given) == [given[0], given[2]]
    assert f'{given[1]} is the same folder as {given[0]}, and is shown once' in capsys.readouterr().err


def test_runs_with_little_more_than_a_config(runs, tmp_path):
    """A config of another version, a run without any result, results without intervals."""
    first, second, third = runs
    (first / 'config.json').write_text('{}')
    for file in second.glob('probes/*/*.json'):
        body = json.loads(file.read_text())
        body['results'] = {'auroc': {'mean': {'value': 0.7, 'low': None, 'high': None}, 'nodule': {'value': None}}}
        file.write_text(json.dumps(body))
    shutil.rmtree(first / 'probes')
    assert medjax_compare(*runs, out=tmp_path / 'page.html') == 0
    parsed = Page((tmp_path / 'page.html').read_text())
    assert 'what changes no number is not told apart' in parsed.sections['settings']
    assert ['mean AUROC', '–', '0.700†', '–'] in parsed.rows and ['nodule', '–', '–', '–'] in parsed.rows


def test_names_are_as_short_as_they_can_be(tmp_path):
    given = [tmp_path / name for name in ('x/lr/a', 'x/wd/a', 'y/wd/a', 'b')]
    assert compare.names(given) == ['lr/a', 'x/wd/a', 'y/wd/a', 'b']


def test_many_runs_have_lines_of_their_own():
    styles = [str(compare_plots.style(run)) for run in range(24)]
    assert len(set(styles)) == 24 and len({str(compare_plots.line(run)) for run in range(24)}) == 24


def test_a_run_keeps_its_colour_where_others_lack_a_curve(runs):
    logs = [[], list(lines())]
    assert run_files.read_run(runs[0]).log
    (panel,) = compare_page.panels(logs, {'loss': 'total loss', 'term/none/loss': 'nothing'})
    assert 'var(--c2)' in panel and 'var(--c1)' not in panel


@needs_browser
def test_in_a_browser(whole, tmp_path):
    _, page, _ = whole
    dom, console, asked = browse(page, tmp_path)
    assert console == [] and asked == set()
    assert Page(dom).rows == Page(page.read_text()).rows


@pytest.mark.parametrize(
    ('metric', 'marked'),
    [('auroc', [False, True, False]), ('mae', [True, False, False]), ('kNN FPR95', [True, False, False]),
     ('false_area', [True, False, False]), ('mean_error', [False] * 3), ('drop', [False] * 3), ('gap', [False] * 3)],
)  # fmt: skip
def test_the_best_value_of_a_metric_is_marked(metric, marked):
    assert compare_page.best([dict(value=0.2), dict(value=0.7), None], metric) == marked
