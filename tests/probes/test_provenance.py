"""Contaminated results: what counts as one, and one mark with one explanation in every table."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from medjax.data.text import prompts
from medjax.probes import provenance, results, tables
from medjax.probes.provenance import MARK


def content(step, overlap=None, data='nih', probe='knn', **more):
    row = dict(value=0.842, low=0.82, high=0.864, labels=2)
    return dict(
        data=data, probe=probe, encoder=dict(step=step), records=dict(test=20), overlap=overlap or {},
        bootstrap=dict(patients=10, level=0.95), results=dict(auroc=dict(mean=row)),
    ) | more  # fmt: skip


@pytest.mark.parametrize('kind', ['patient', 'image', 'pixels', 'near'])
def test_any_record_that_training_saw_contaminates(kind):
    shares = dict.fromkeys(('patient', 'image', 'pixels', 'near'), 0.0) | dict(comparable=True)
    assert not provenance.is_contaminated(content(1, shares)) and provenance.seen(content(1, shares)) == '0 %'
    assert provenance.is_contaminated(content(1, shares | {kind: 0.125}))
    assert provenance.seen(content(1, shares | {kind: 0.125})) == f'12.5 %{MARK}'
    assert provenance.seen(content(1, shares | {kind: 1e-5})) == f'<0.1 %{MARK}', 'one record of many is no 0'
    assert provenance.seen(content(1, dict(shares, patient=None, image=None))) == '0 %'


def test_what_is_not_known_is_not_zero():
    assert provenance.seen(content(1)) == 'unknown' and provenance.seen(content('dinov2')) == 'unknown'
    assert provenance.seen(content('pixels')) == 'untrained'
    started = content(1, dict(pixels=0.0), started_from=['dinov2'])
    assert provenance.seen(started) == 'unknown' and not provenance.mark(started)
    assert provenance.seen(content(1, dict(pixels=0.5), started_from=['dinov2'])) == f'50.0 %{MARK}'
    assert not provenance.is_contaminated(dict(overlap=None)) and not provenance.is_contaminated({})


def test_weights_that_a_run_began_with_are_named(tmp_path):
    teachers = dict(a=dict(init_from=dict(path='x/biomed.safetensors')), b=dict(init_from=None))
    config = dict(init_from=[dict(path='runs/demo/exports/1000'), dict(path='/far/dinov2/')], teachers=teachers)
    (tmp_path / 'config.json').write_text(json.dumps(config))
    encoder = SimpleNamespace(name=10, meta={}, folder=None)
    data = SimpleNamespace(version='1', split_list='given')
    found = provenance.of(tmp_path, encoder, data)
    assert found['started_from'] == ['demo, step 1000', 'dinov2', 'biomed.safetensors']
    assert 'training began with other weights (demo, step 1000, dinov2, biomed.safetensors)' in found['provenance']
    assert (found['splits'], found['overlap'], found['contaminated']) == ('given', {}, False)
    stranger = provenance.of(tmp_path, SimpleNamespace(name='moved', meta={}, folder=None), data)
    assert stranger['started_from'] == [], 'the config of this run says nothing of it'
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'seen.npz').write_bytes(b'')
    stranger = provenance.of(tmp_path, SimpleNamespace(name='moved', meta={}, folder=None), data)
    assert 'unknown: the export does not lie in its run' in stranger['provenance'], 'seen.npz is that of another run'


def test_every_table_marks_contaminated_results_and_explains_once():
    found = [
        content('pixels'), content(10, dict(patient=0.03, pixels=0.0)), content(20, dict(patient=0.03, pixels=0.0)),
        content('dinov2'),
    ]  # fmt: skip
    (table,) = tables.of_results(found, ['knn'])
    assert table.columns[-1] == 'seen in training'
    assert [row[-2:] for row in table.rows] == [
        ['.842 [.820, .864]', 'untrained'], ['.842 [.820, .864]', 'unknown'],
        [f'.842{MARK} [.820, .864]', f'3.0 %{MARK}'], [f'.842{MARK} [.820, .864]', f'3.0 %{MARK}'],
    ]  # fmt: skip
    (note,) = table.notes
    assert note == (
        f'{MARK} contaminated, so the value may be too high: step 10, step 20 saw the patient of 3.0 %, the pixels of '
        '0.0 % of the test records of nih in training'
    )
    text = tables.markdown(table)
    assert text.count(note) == 1 and f'| step 20 | knn | .842{MARK} [.820, .864] | 3.0 %{MARK} |' in text
    assert not tables.of_results(found[:1], ['knn'])[0].notes


def test_the_cells_of_markdown_are_words():
    table = tables.Table('', ['a|b', 'x'], [['<b>', '.842 [.820, .864]']])
    assert tables.markdown(table) == '| a\\|b | x |\n|---|---|\n| \\<b\\> | .842 [.820, .864] |'


@pytest.mark.parametrize(('file', 'name'), [('cxr', 'cxr'), ('my prompts.v2', 'my_prompts_v2'), ('…', '_')])
def test_the_prompt_file_is_part_of_a_name(file, name):
    one = prompts.zero_shot('cxr', '')._replace(name=file)
    found = results.name('zero_shot', one)
    assert found == f'zero_shot-{name}-{one.digest[:6]}' and results.probe_of(found) == 'zero_shot'
    assert found != results.name('zero_shot', one._replace(digest='0' * 16)), 'a changed file has another name'
    assert results.name('knn', one) == results.probe_of('knn') == 'knn'
    assert results.name('zero_shot', None) == 'zero_shot'
    assert results.probe_of('zero_shot') == 'zero_shot', 'of a result before this name'


def test_a_result_file_that_is_no_object_is_none(tmp_path):
    (tmp_path / 'a.json').write_text('[1]')
    assert results.read(tmp_path / 'a.json') is None
