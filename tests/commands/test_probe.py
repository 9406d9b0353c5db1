"""`medjax probe` from end to end, on a data set that medjax build made and exports that a run would have made."""

import dataclasses
import json
import os
import pathlib
import shutil
import sys
import threading
import time
import types
import warnings

import jax
import numpy as np
import published_names
import pytest
from image_files import dicom
from PIL import Image
from safetensors.numpy import load_file, save_file

from medjax import cli, files
from medjax.data import records
from medjax.data.audit import seen
from medjax.data.images import decode
from medjax.errors import UserError
from medjax.models import build as models
from medjax.probes import batches, encode, evaluate, features, label_splits, locks, metrics, provenance, results, watch
from medjax.probes.methods import knn
from medjax.reports import result_sections, run_files
from medjax.weights import export

TOWER = dict(tower='vit', variant='Ti/8', width=32, depth=2, heads=2, native_size=32, layerscale=None)
META = dict(network='teacher', heads={}, image=dict(channels=1, mean=0.5, std=0.25), size=32, seen=None)


def make_table(folder, n=150, splits=('train', 'train', 'train', 'val', 'test'), labels=True, seed=0):
    """Noise with a bright square (`square`), a brighter left half (`left`), both or neither; two pictures a patient."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    lines = ['image,patient_id,split' + (',square,left,rare' if labels else '')]
    for i in range(n):
        height, width = rng.integers(32, 49, 2)
        picture = rng.normal(100, 20, (height, width))
        square, left = rng.random(2) < 0.5
        if square:
            picture[12:20, 4:12] += 60
        if left:
            picture[:, : width // 2] += 25
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / f'{i}.png')
        known = '' if i % 17 == 0 else int(square)
        line = f'{i}.png,p{i // 2},{splits[i // 2 % len(splits)]}'
        lines.append(line + (f',{known},{int(left)},0' if labels else ''))
    (folder / 'metadata.csv').write_text('\n'.join(lines) + '\n')
    return folder


def build(table, out):
    assert cli.main(['build', 'table', str(table), '--out', str(out)]) == 0
    return out


def make_export(run, step, seed=None, meta=META):
    tower = models.tower(TOWER, meta['image']['channels'], where='towers.image')
    params = tower.init(jax.random.key(step if seed is None else seed))
    export.save(
        run / 'exports' / str(step), {'towers': {'image': params}}, meta | dict(step=step, towers=dict(image=TOWER))
    )


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    return build(make_table(folder / 'shapes'), folder / 'built')


@pytest.fixture(scope='module')
def probed(tmp_path_factory, data):
    """A run with two exports, probed by the defaults."""
    run = tmp_path_factory.mktemp('run')
    make_export(run, 10)
    make_export(run, 20)
    seen.write_seen({'main': records.open(data)}, run / 'data' / 'seen.npz')
    assert cli.main(['probe', '--run', str(run), '--data', str(data), '--draws', '50']) == 0
    return run


def result_files(run):
    return {str(p.relative_to(run / 'probes')) for p in (run / 'probes').rglob('*.json')}


def test_whoever_reads_decides_on_blank_labels(probed, data, tmp_path):
    name, folder = records.open(data).name, tmp_path / 'run'
    shutil.copytree(probed, folder)
    args = ['probe', '--run', str(folder), '--data', str(data), '--draws', '10', '--probes', 'knn']
    assert cli.main([*args, '--baselines', 'none', '--policy', 'blank=negative,uncertain=negative']) == 0
    result = json.loads((folder / 'probes' / '20' / f'{name}.knn.json').read_text())
    assert result['policy'] == {'blank': 'negative', 'uncertain': 'negative'}
    square = result['results']['auroc']['square']
    assert square['positives'] + square['negatives'] == len(records.open(data).split('test'))


@pytest.mark.parametrize(('policy', 'words'), [('blnk=negative', "mean 'blank'"), ('blank=0', 'positive, negative')])
def test_policies_that_are_refused(probed, data, capsys, policy, words):
    assert cli.main(['probe', '--run', str(probed), '--data', str(data), '--policy', policy]) == 2
    assert words in capsys.readouterr().err


def test_the_newest_export_and_both_baselines(probed, data):
    name = records.open(data).name
    assert result_files(probed) == {
        f'{e}/{name}.{p}.json' for e in ('20', 'random', 'pixels') for p in ('knn', 'linear')
    }
    result = json.loads((probed / 'probes' / '20' / f'{name}.linear.json').read_text())
    assert result['skipped_labels'] == {'rare': 'no positive record in train; no positive record in test'}
    assert set(result['results']['auroc']) == {'mean', 'square', 'left'}
    assert result['encoder']['step'] == 20 and result['data_fingerprint'] == records.open(data).fingerprint
    assert result['overlap'] == dict(patient=0.0, image=0.0, pixels=0.0, near=0.0, comparable=True)
    assert result['results']['auroc']['left']['value'] > 0.9, 'brightness is easy even for random weights'
    split = records.open(data).split('test')
    with np.load(probed / 'probes' / '20' / result['scores'], allow_pickle=False) as arrays:
        assert arrays['names'].tolist() == ['square', 'left']
        assert np.array_equal(arrays['labels'], split.labels_array[:, :2])
        assert arrays['scores'].shape == arrays['labels'].shape
        assert arrays['patient'].max() < len(split)
    square = result['results']['auroc']['square']
    assert square['positives'] + square['negatives'] == (split.labels_array[:, 0] >= 0).sum() < len(split)


def test_an_export_that_is_worse_than_step_0_is_said_after_the_results(probed, data, tmp_path, capsys):
    name, run = records.open(data).name, tmp_path / 'run'
    shutil.copytree(probed, run)
    start = json.loads((run / 'probes' / '20' / f'{name}.knn.json').read_text())
    start['encoder']['step'] = 0
    start['results']['auroc']['mean'] |= dict(value=1.09, low=1.05, high=1.1)  # above any that a probe can have
    shutil.copytree(run / 'probes' / '20', run / 'probes' / '0')
    (run / 'probes' / '0' / f'{name}.knn.json').write_text(json.dumps(start))
    assert cli.main(['probe', '--run', str(run), '--data', str(data), '--draws', '50', '--baselines', 'none']) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1].startswith(f'Worse than its start: knn on {name}, mean AUROC ')
    assert 'at step 20, 1.090 [1.050, 1.100] at step 0.' in out
    assert out.count('Worse than its start') == 1, 'the linear probe of step 0 says the same as that of step 20'


@pytest.fixture(scope='module')
def grouped(tmp_path_factory):
    """A run and a data set of 150 patients with sex and age, enough of them in val to calibrate."""
    folder = tmp_path_factory.mktemp('grouped')
    table = make_table(folder / 'people', n=300, splits=('train', 'val', 'test'))
    lines = (table / 'metadata.csv').read_text().splitlines()
    people = [f'{line},{"FM"[i // 6 % 2]},{20 + i // 2 % 60},p{i // 2}' for i, line in enumerate(lines[1:])]
    (table / 'metadata.csv').write_text('\n'.join([f'{lines[0]},sex,age,study_id', *people]) + '\n')
    make_export(folder / 'run', 10)
    data = build(table, folder / 'built')
    command = ['probe', '--run', str(folder / 'run'), '--data', str(data), '--draws', '40', '--probes', 'linear']
    assert cli.main(command) == 0
    return folder / 'run', data, command


def test_a_result_has_calibration_conformal_sets_groups_and_a_comparison(grouped, capsys):
    run, data, command = grouped
    name = records.open(data).name
    result = json.loads((run / 'probes' / '10' / f'{name}.linear.json').read_text())
    assert result['bootstrap']['interval'] == 'bca' and result['unit'] == dict(unit='image', units=100)
    assert set(result['calibration']['results']) == {'none', 'temperature', 'platt', 'isotonic', 'venn_abers'}
    assert set(result['conformal']['groups']['marginal']['sex']) == {'F', 'M'}
    assert set(result['subgroups']) == {'sex', 'age'} and result['subgroups']['sex']['groups']['F']['records'] == 50
    assert result['subgroups']['sex']['distances']['dpd']['left']['value'] >= 0
    assert len(result['retained']['accuracy']['left']) == 10
    comparison = json.loads((run / 'comparisons' / f'{name}.linear.json').read_text())
    assert [(pair['encoder'], pair['other']) for pair in comparison['pairs']] == [(10, 'random'), (10, 'pixels')]
    row = comparison['pairs'][0]['results']['auroc']['left']
    assert {'value', 'low', 'high', 'p', 'p_holm', 'p_delong'} == set(row)
    assert cli.main(command) == 0
    output = capsys.readouterr().out
    assert 'linear: step 10 - ' in output and 'of 2 label(s)' in output and ', p ' in output
    assert 'linear, step 10: calibration error (ECE) .' in output and 'after Platt' in output
    assert 'linear, step 10: largest gap in mean AUROC' in output
    assert '(1 left out, see below)' in output and 'bootstrap, BCa' in output


def test_patients_can_be_scored_in_place_of_images(grouped, capsys):
    run, data, command = grouped
    assert (
        cli.main([*command, '--unit', 'patient', '--pool', 'max', '--interval', 'percentile', '--groups', 'none']) == 0
    )
    output = capsys.readouterr().out
    assert 'scored by patient (50 of them, max over records)' in output and 'bootstrap percentiles' in output
    name = records.open(data).name
    result = json.loads((run / 'probes' / '10' / f'{name}.linear.json').read_text())
    row = result['results']['auroc']['left']
    assert row['positives'] + row['negatives'] == 50 and result['records']['test'] == 100
    assert result['subgroups'] == {} and result['unit']['disagreeing']['left'] > 0
    before = json.loads((run / 'comparisons' / f'{name}.linear.json').read_text())['pairs']
    assert cli.main([*command, '--unit', 'study']) == 0
    assert 'scored by study (50 of them, mean over records)' in capsys.readouterr().out
    assert json.loads((run / 'comparisons' / f'{name}.linear.json').read_text())['pairs'] != before


def test_groups_that_the_records_do_not_have_are_refused(grouped, capsys):
    assert cli.main([*grouped[2], '--groups', 'sexx']) == 2
    assert "--groups sexx: the records have no column 'sexx'; did you mean" in capsys.readouterr().err


def test_pixels_are_probed_like_an_encoder(probed, data):
    result = json.loads((probed / 'probes' / 'pixels' / f'{records.open(data).name}.linear.json').read_text())
    assert result['encoder']['step'] == 'pixels' and result['overlap'] == {}
    assert result['results']['auroc']['square']['value'] > 0.9


def test_nothing_is_computed_twice_and_changed_settings_are(probed, data, capsys, monkeypatch):
    command = ['probe', '--run', str(probed), '--data', str(data), '--draws', '50']
    with monkeypatch.context() as patch:
        patch.setattr(encode, 'features', lambda *a, **k: pytest.fail('encoded again'))
        assert cli.main(command) == 0
    table = capsys.readouterr().out
    assert '| random init | linear |' in table and '| raw pixels | knn |' in table and '| step 20 | linear |' in table
    assert table.count('\n|') == 8 and 'balanced accuracy' in table
    with monkeypatch.context() as patch:
        patch.setattr(encode, '_encode_records', lambda *a, **k: pytest.fail('encoded again in spite of the cache'))
        assert cli.main([*command[:-1], '40', '--probes', 'knn']) == 0
    name = records.open(data).name
    assert json.loads((probed / 'probes' / '20' / f'{name}.knn.json').read_text())['bootstrap']['draws'] == 40


def test_a_result_that_another_job_computes_is_waited_for(probed, data, tmp_path, capsys, monkeypatch):
    run, looks = tmp_path / 'run', []
    shutil.copytree(probed, run)
    command = ['probe', '--run', str(run), '--data', str(data), '--draws', '50', '--baselines', 'none']
    command += ['--probes', 'knn,linear']
    assert cli.main(command) == 0
    results_of_the_other = tmp_path / 'aside'
    (run / 'probes' / '20').rename(results_of_the_other)

    def take(file, byte):
        looks.append(byte)
        if len(looks) == 3:  # after one look at each of the two
            shutil.copytree(results_of_the_other, run / 'probes' / '20')
        return len(looks) > 2

    monkeypatch.setattr(locks, 'take', take)
    monkeypatch.setattr(knn, 'run', lambda inputs: pytest.fail('computed twice'))
    assert cli.main(command) == 0
    output = capsys.readouterr()
    assert 'knn, linear on step 20: waits for another job' in output.err and '| step 20 | knn |' in output.out
    assert looks == [*looks[:2]] * 2 and looks[0] != looks[1]


def test_steps(probed, data):
    assert cli.main(['probe', '--run', str(probed), '--data', str(data), '--steps', 'all', '--probes', 'knn']) == 0
    assert (probed / 'probes' / '10' / f'{records.open(data).name}.knn.json').exists()
    assert watch.select_steps(probed, '20,10') == [20, 10]
    with pytest.raises(UserError, match='no export of step 15; it has 10, 20'):
        watch.select_steps(probed, '15')
    with pytest.raises(UserError, match="'all' or numbers"):
        watch.select_steps(probed, 'last')


def test_the_best_export_is_chosen_on_validation(tmp_path, data, capsys):
    """Exports 1 and 2 are equal, so the first of them wins or loses against 3; results of `test` have no part in it."""
    for step, seed in ((1, 1), (2, 1), (3, 3)):
        make_export(tmp_path, step, seed=seed)
    command = ['probe', '--run', str(tmp_path), '--data', str(data), '--draws', '20', '--baselines', 'none']
    assert cli.main([*command, '--steps', '1', '--probes', 'knn']) == 0
    file = tmp_path / 'probes' / '1' / f'{records.open(data).name}.knn.json'
    old = {name: value for name, value in json.loads(file.read_text()).items() if name != 'validation_results'}
    files.write_json(file, old)  # as an earlier version wrote it

    assert cli.main([*command, '--best', 'knn.auprc']) == 0
    best, output = json.loads((tmp_path / 'best.json').read_text()), capsys.readouterr().out
    found = {step: json.loads((tmp_path / 'probes' / str(step) / file.name).read_text()) for step in (1, 2, 3)}
    means = {step: result['validation_results']['auprc']['mean'] for step, result in found.items()}
    assert means[1]['value'] == means[2]['value'] != means[3]['value']
    assert best['step'] == max((1, 3), key=lambda step: means[step]['value'])
    assert {int(step): one['value'] for step, one in best['steps'].items()} == {s: m['value'] for s, m in means.items()}
    assert best['low'] < best['value'] == means[best['step']]['value'] < best['high']
    assert (best['figure'], best['data'], best['validation']) == ('knn.auprc', records.open(data).name, 'the val split')
    assert f'step {best["step"]} is the best of 3 exports by knn AUPRC on validation of' in output

    opened = records.open(data)
    inputs = evaluate.ProbeInputs(encode.load(tmp_path / 'exports' / '3'), opened, None, {}, None, 0, 20)
    train, val = inputs.features('train'), inputs.features('val')
    scores = knn.score(train, val, (20,))[20]
    known = [val.labels[:, j] >= 0 for j in range(2)]
    expected = [metrics.auprc(metrics.curve(scores[k, j], val.labels[k, j]))[0] for j, k in enumerate(known)]
    assert means[3]['value'] == pytest.approx(np.mean(expected))


def test_follow_chooses_before_the_training_deletes(tmp_path, data, monkeypatch, capsys):
    """A training with `export.keep=1` beside the command: the export of step 2 goes while it is read."""
    make_export(tmp_path, 1)
    make_export(tmp_path, 2)
    (tmp_path / 'DONE').touch()
    load = encode.load

    def deleting(path, *args, **kwargs):
        if path.name == '2':
            assert json.loads((tmp_path / 'best.json').read_text())['step'] == 1, 'noted before the next one is read'
            make_export(tmp_path, 3)
            export.delete_old(tmp_path, newest=3, keep=1)
        return load(path, *args, **kwargs)

    monkeypatch.setattr(encode, 'load', deleting)
    command = ['probe', '--run', str(tmp_path), '--data', str(data), '--draws', '20', '--probes', 'knn']
    assert cli.main([*command, '--follow', '--best', 'knn.auroc', '--baselines', 'none']) == 0
    output = capsys.readouterr()
    assert 'exports/2 was deleted while it was read, so it is left out' in output.err and 'failed' not in output.err
    assert export.steps(tmp_path) == [1, 3], 'the best one and the last one'
    assert set(json.loads((tmp_path / 'best.json').read_text())['steps']) <= {'1', '3'}


def test_all_exports_go_before_they_are_read(tmp_path, data, monkeypatch, capsys):
    make_export(tmp_path, 1)
    load = encode.load

    def deleting(path, *args, **kwargs):
        shutil.rmtree(path)
        return load(path, *args, **kwargs)

    monkeypatch.setattr(encode, 'load', deleting)
    assert cli.main(['probe', '--run', str(tmp_path), '--data', str(data), '--probes', 'knn']) == 1
    told = capsys.readouterr().err
    assert 'exports/1 was deleted while it was read' in told and 'each export was deleted before it could be' in told


def test_an_export_that_goes_while_it_is_probed(tmp_path, data, monkeypatch, capsys):
    make_export(tmp_path, 1)
    (tmp_path / 'DONE').touch()

    def read_late(inputs):
        shutil.rmtree(inputs.encoder.folder)
        return (inputs.encoder.folder / 'tokenizer.json').read_text()

    monkeypatch.setattr(knn, 'run', read_late)
    monkeypatch.setattr(results, 'key', lambda *_: 'a' * 32)
    command = ['probe', '--run', str(tmp_path), '--data', str(data), '--probes', 'knn', '--baselines', 'none']
    assert cli.main([*command, '--follow']) == 0
    assert 'exports/1 was deleted while it was read' in capsys.readouterr().err


def test_a_figure_of_a_probe_that_cannot_run_says_why(tmp_path, data, capsys):
    make_export(tmp_path, 1)
    command = ['probe', '--run', str(tmp_path), '--data', str(data), '--draws', '20', '--baselines', 'none']
    assert cli.main([*command, '--best', 'zero_shot.auroc']) == 1
    output = capsys.readouterr().err
    assert 'zero_shot on step 1 failed: zero_shot needs sentences for the classes' in output
    assert 'no export has a result of zero_shot' in output and not (tmp_path / 'best.json').exists()


def test_labels_that_are_left_out_are_told(probed, data, capsys):
    assert cli.main(['probe', '--run', str(probed), '--data', str(data), '--draws', '50']) == 0
    (said,) = [line for line in capsys.readouterr().out.splitlines() if 'leave' in line]
    assert said == 'knn, linear leave out rare: no positive record in train; no positive record in test'


def test_the_cache_follows_weights_and_preprocessing(tmp_path, data):
    opened = records.open(data)
    make_export(tmp_path, 1, seed=1)
    first = encode.features(encode.load(tmp_path / 'exports' / '1'), opened, 'test', tmp_path / 'cache')
    again = encode.features(encode.load(tmp_path / 'exports' / '1'), opened, 'test', tmp_path / 'cache')
    assert np.array_equal(first.cls, again.cls)
    first = first._replace(cls=np.asarray(first.cls))
    make_export(tmp_path, 1, seed=2)
    other = encode.features(encode.load(tmp_path / 'exports' / '1'), opened, 'test', tmp_path / 'cache')
    assert np.abs(first.cls - np.asarray(other.cls)).max() > 0.1
    make_export(tmp_path, 1, seed=2, meta=META | dict(image=dict(channels=1, mean=0.4, std=0.25)))
    lighter = encode.features(encode.load(tmp_path / 'exports' / '1'), opened, 'test', tmp_path / 'cache')
    assert np.abs(np.asarray(other.cls) - np.asarray(lighter.cls)).max() > 1e-3
    (cached,) = (tmp_path / 'cache').rglob('cls.npy')
    lighter = lighter._replace(cls=np.asarray(lighter.cls))
    cached.write_bytes(cached.read_bytes()[:1000])
    with pytest.warns(features.CacheWarning, match='is damaged .* its records are encoded anew'):
        healed = encode.features(encode.load(tmp_path / 'exports' / '1'), opened, 'test', tmp_path / 'cache')
    np.testing.assert_allclose(healed.cls, lighter.cls, atol=1e-6)


@pytest.mark.parametrize('cached', [True, False])
def test_features_that_are_not_finite_are_refused(tmp_path, data, cached, capsys):
    """The sentence names the encoder and the number of records; raw pixels are probed all the same."""
    make_export(tmp_path, 1)
    path = tmp_path / 'exports' / '1' / 'weights.safetensors'
    weights = load_file(path)
    weights = {name: np.full_like(x, np.nan) if name.endswith('norm/bias') else x for name, x in weights.items()}
    save_file(weights, path)
    encoder, opened = encode.load(tmp_path / 'exports' / '1'), records.open(data)
    n = len(opened.split('test'))
    sentence = f'the features of step 1 are not finite numbers for {n} of {n} records of {opened.name}, test'
    for _ in range(2):  # also from the cache
        with pytest.raises(UserError, match=sentence):
            encode.features(encoder, opened, 'test', tmp_path / 'cache' if cached else None)
    if cached:
        command = ['probe', '--run', str(tmp_path), '--data', str(data), '--draws', '20', '--probes', 'knn']
        assert cli.main([*command, '--baselines', 'pixels']) == 1
        assert 'knn on step 1' in (said := capsys.readouterr()).err and 'are not finite numbers for' in said.err
        assert '| raw pixels | knn |' in said.out


@pytest.mark.parametrize('cached', [True, False])
def test_grids_are_the_patch_tokens_of_the_records(tmp_path, data, cached, monkeypatch):
    make_export(tmp_path, 1)
    encoder, opened = encode.load(tmp_path / 'exports' / '1'), records.open(data)
    split, cache = opened.split('test'), tmp_path / 'cache' if cached else None
    inputs = evaluate.ProbeInputs(encoder, opened, cache, {}, None, 0, 20)
    grids = inputs.grids('test')
    assert grids.shape == (len(split), 4, 4, 32) and grids.dtype == np.float16
    expected = encoder.encode([split.image(i) for i in range(len(split))], outputs=('patches', 'layers'))
    np.testing.assert_allclose(np.asarray(grids), expected['patches'], atol=4e-3)
    if cached:
        monkeypatch.setattr(encode, '_encode_records', lambda *a, **k: pytest.fail('encoded twice'))
    np.testing.assert_allclose(np.asarray(inputs.features('test').cls), expected['layers'], atol=2e-5)
    with pytest.raises(UserError, match='the encoder raw pixels has no feature for each patch'):
        encode.grids(encode.raw_pixels(encoder), opened, 'test', cache)


def test_probes_read_the_cache_without_a_val_split(tmp_path, data):
    """The rows that are held out are read from the disk as they are from memory."""
    make_export(tmp_path, 1)
    encoder, opened = encode.load(tmp_path / 'exports' / '1'), records.open(data)
    found = []
    for cache in (tmp_path / 'cache', None):
        train = encode.features(encoder, opened, 'train', cache)
        splits = label_splits.with_validation(train, None, 0)[:2]
        assert isinstance(splits[0].cls, features.Stored) == (cache is not None)
        found.append([np.asarray(x) for split in splits for x in split])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_features_are_those_of_the_pictures_one_by_one(tmp_path, data):
    """Batches, padding and canvases change nothing, and the order is that of the records."""
    make_export(tmp_path, 1)
    encoder, split = encode.load(tmp_path / 'exports' / '1'), records.open(data).split('test')
    whole = encode.features(encoder, records.open(data), 'test')
    assert whole.cls.shape == (len(split), 4, 32) and whole.patches.shape == (len(split), 32)
    for i in (0, 7, len(split) - 1):
        one = encoder.encode([split[i].image], outputs=('layers', 'patches'))
        assert one['patches'].shape == (1, 4, 4, 32)
        np.testing.assert_allclose(one['layers'][0], whole.cls[i], atol=2e-5)
        np.testing.assert_allclose(one['patches'][0].mean((0, 1)), whole.patches[i], atol=2e-5)
    assert len(np.unique(whole.patients)) == whole.patients.max() + 1 == len(np.unique(split.keys('patient')))


def test_encode_takes_paths_and_mixed_pictures(tmp_path, data):
    make_export(tmp_path, 1)
    encoder = encode.load(tmp_path / 'exports' / '1')
    grey = np.random.default_rng(0).integers(0, 256, (40, 36), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / 'a.png')
    deep = grey.astype(np.uint16)[..., None] * 257
    out = encoder.encode([tmp_path / 'a.png', grey, deep, np.repeat(grey[..., None], 3, 2)])
    for i in (1, 2, 3):
        np.testing.assert_allclose(out['cls'][i], out['cls'][0], atol=2e-3)
    with pytest.raises(UserError, match='b.png: there is no such file'):
        encoder.encode([tmp_path / 'b.png'])
    with pytest.raises(UserError, match='uint8|uint16'):
        encoder.encode([grey.astype(np.float32)])


def test_an_encoder_may_see_the_whole_of_a_long_picture(tmp_path):
    """The picture is wide, and only its outer parts differ: a crop does not see them."""
    make_export(tmp_path, 1)
    folder = tmp_path / 'exports' / '1'
    same = np.random.default_rng(0).integers(0, 256, (20, 80), dtype=np.uint8)
    other = same.copy()
    other[:, :26], other[:, 54:] = 20, 230  # the resize of the middle 20 columns reads two beside them
    square = np.pad(same, ((30, 30), (0, 0)))
    crop, pad = encode.load(folder), encode.load(folder, fit='pad')
    assert crop.digest != pad.digest and encode.load(folder, fit='crop').digest == crop.digest
    with pytest.warns(batches.CropWarning, match='For 2 of 3 images this is less than two thirds'):
        a, b, _ = crop.encode([same, other, square])['cls']
    np.testing.assert_allclose(a, b, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        a, b, c = pad.encode([same, other, square])['cls']
        crop.encode([same[:, :30]])  # a third at most
    # `square` is the same picture but for its edges, into which the black reaches
    assert np.abs(a - b).max() > 5 * np.abs(a - c).max()
    with pytest.raises(UserError, match="fit='whole': an encoder takes 'crop', 'pad' or 'stretch'"):
        encode.load(folder, fit='whole')
    make_export(tmp_path, 2, seed=1, meta=META | dict(image=META['image'] | dict(fit='pad')))
    recorded = encode.load(tmp_path / 'exports' / '2')
    np.testing.assert_allclose(recorded.encode([same])['cls'][0], a, atol=1e-4)
    pixels = encode.raw_pixels(recorded)
    assert pixels.encode([same])['cls'].shape[-1] == pixels.size**2


def test_pixels_of_paths_become_square(tmp_path):
    make_export(tmp_path, 1)
    encoder = encode.load(tmp_path / 'exports' / '1')
    stored = np.random.default_rng(0).integers(0, 256, (20, 40), dtype=np.uint8)
    (tmp_path / 'a.dcm').write_bytes(dicom(stored, PixelSpacing=[1.0, 0.5], WindowCenter=128, WindowWidth=256))
    tall = decode.bounded(stored[..., None], None, 2.0)
    assert tall.shape == (40, 40, 1)
    one, two = encoder.encode([tmp_path / 'a.dcm', tall])['cls']
    np.testing.assert_allclose(one, two, atol=2e-3)


def test_params_are_differentiable_at_another_size(tmp_path):
    make_export(tmp_path, 1)
    encoder = encode.load(tmp_path / 'exports' / '1')
    images, extent = np.full((2, 40, 40, 1), 99, np.uint8), np.full((2, 2), 40, np.int32)

    def loss(params):
        out = encoder.apply(params, images, extent, 48)
        return out['cls'][:, 0].sum(), out['patches']

    gradient, patches = jax.jit(jax.grad(loss, has_aux=True))(encoder.params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))
    assert np.abs(gradient['image']['patch_embed']['kernel']).max() > 0 and patches.shape == (2, 6, 6, 32)


def test_follow_waits_for_exports_and_survives_a_half_written_one(tmp_path, data, monkeypatch, capsys):
    run = tmp_path / 'run'
    (run / 'exports' / '2').mkdir(parents=True)
    monkeypatch.setattr(time, 'sleep', lambda _, sleep=time.sleep: sleep(0.05))
    make_export(tmp_path / 'aside', 2)
    make_export(tmp_path / 'aside', 3)

    def train():  # another process, in truth
        make_export(run, 1)
        whole = tmp_path / 'aside' / 'exports' / '2'
        (run / 'exports' / '2' / 'weights.safetensors').write_bytes((whole / 'weights.safetensors').read_bytes()[:200])
        shutil.copy(whole / 'meta.json', run / 'exports' / '2')
        time.sleep(0.3)
        shutil.copy(whole / 'weights.safetensors', run / 'exports' / '2')
        shutil.copytree(tmp_path / 'aside' / 'exports' / '3', run / 'exports' / '3')
        (run / 'exports' / '3' / 'weights.safetensors').write_bytes(b'never whole')
        (run / 'DONE').touch()

    job = threading.Thread(target=train)
    job.start()
    code = cli.main(['probe', '--run', str(run), '--data', str(data), '--follow', '--probes', 'knn', '--draws', '20'])
    job.join()
    assert {path.split('/')[0] for path in result_files(run)} == {'1', '2', 'random', 'pixels'}
    output = capsys.readouterr().err
    assert code == 1 and 'export 3 failed' in output and 'export 2' not in output and 'Traceback' not in output


@pytest.fixture
def clock(monkeypatch):
    """Time that passes in sleep alone, and what happens meanwhile: time -> something done."""
    now, events = [0.0], {}

    def sleep(seconds):
        now[0] += seconds
        assert now[0] < 1e5, 'waits forever'
        for at in [at for at in events if at <= now[0]]:
            events.pop(at)()

    monkeypatch.setattr(watch, 'time', types.SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
    return now, events


def test_follow_waits_for_the_folder_and_ends_where_a_run_is_silent(tmp_path, clock, capsys):
    (now, events), run = clock, tmp_path / 'run'
    events[30_000] = lambda: make_export(run, 1)
    events[33_000] = lambda: (run / 'metrics.jsonl').write_text('{}\n')
    events[36_000] = lambda: make_export(run, 2)
    events[36_100] = lambda: make_export(run, 3)

    def load(folder):  # the third is never whole
        if folder.name == '3':
            raise ValueError(folder)
        return folder.name

    got = [(step, type(one)) for step, one in watch.follow(run, load)]
    assert got == [(1, str), (2, str), (3, ValueError)], 'an unreadable export is given at the end'
    assert 36_100 + watch.PATIENCE_S <= now[0] < 36_200 + watch.PATIENCE_S
    output = capsys.readouterr().err
    assert 'not there yet: waiting' in output
    assert 'no new export and no change of metrics.jsonl for 60 minutes' in output


def test_follow_of_a_run_that_never_exported(tmp_path, data, clock, capsys):
    _, events = clock
    run = tmp_path / 'run'
    events[10] = lambda: run.mkdir()
    assert cli.main(['probe', '--run', str(run), '--data', str(data), '--follow']) == 0
    assert 'seems to have been stopped' in capsys.readouterr().err


def test_scores_are_for_those_who_may_read_the_results(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_npz(tmp_path / 'scores.npz', scores=np.zeros(3))
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o640


def test_one_failing_probe_stops_nothing(tmp_path, data, monkeypatch, capsys):
    module = tmp_path / 'broken_probe' / 'failing.py'
    module.parent.mkdir()
    (module.parent / '__init__.py').touch()
    module.write_text("name = 'failing'\ndef run(inputs):\n    raise ValueError('not today')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    run = tmp_path / 'run'
    make_export(run, 1)
    command = ['probe', '--run', str(run), '--data', str(data), '--baselines', 'none', '--draws', '20']
    assert cli.main([*command, '--probes', 'broken_probe.failing,knn']) == 1
    output = capsys.readouterr()
    assert 'failing on step 1' in output.err and 'ValueError: not today' in output.err
    assert '| step 1 | knn |' in output.out
    assert 'overlap with pretraining unknown' in output.out
    sys.modules.pop('broken_probe.failing')


def test_seen_records_are_counted(tmp_path, data):
    run, opened = tmp_path / 'run', records.open(data)
    encoder = encode.Encoder(1, '', {}, None, 32, {}, dict(seen=None))
    train, test = opened.split('train'), opened.split('test')
    seen = dict(keys=np.array([opened.key_fingerprint]), split=np.array(['train']))
    for kind in ('patient', 'image'):
        hashes = np.unique(np.concatenate([train.keys(kind), test.keys(kind)[:3]]))
        seen |= {kind: hashes, f'{kind}/key': np.zeros(len(hashes), np.uint8)}
    (run / 'data').mkdir(parents=True)
    np.savez(run / 'data' / 'seen.npz', **seen, pixels=np.unique(train.keys('pixels')))
    origin = provenance.of(run, encoder, opened)
    assert origin['overlap']['image'] == pytest.approx(3 / len(test)) and origin['overlap']['pixels'] == 0
    assert f'the image (by its id) of {300 / len(test):.1f} %' in origin['provenance']
    other = dataclasses.replace(encoder, meta=dict(seen='0' * 64))
    assert 'unknown: data/seen.npz is not the one' in provenance.of(run, other, opened)['provenance']


def mistakes(tmp_path, data):
    run = tmp_path / 'run'
    make_export(run, 1)
    empty = tmp_path / 'empty'
    empty.mkdir()
    unlabelled = build(make_table(tmp_path / 'u', n=10, labels=False), tmp_path / 'unlabelled')
    trainless = build(make_table(tmp_path / 't', n=10, splits=('train',)), tmp_path / 'testless')
    yield 'no run', [tmp_path / 'nowhere', data], 'there is no such folder'
    yield 'no exports', [empty, data], 'has no exports yet'
    yield 'no data', [run, tmp_path / 'nodata'], 'no data set at'
    yield 'no labels', [run, unlabelled], 'no labels'
    yield 'no test', [run, trainless], 'no record in test'
    yield 'no probe', [run, data, '--probes', 'lineer'], "did you mean 'linear'?"
    yield 'no baseline', [run, data, '--baselines', 'pixel'], "did you mean 'pixels'?"
    yield (
        'no figure',
        [run, data, '--best', 'linear'],
        'write PROBE.FIGURE; figures on validation: knn.auroc, knn.auprc',
    )
    yield 'no metric', [run, data, '--best', 'linear.accuracy'], "linear has no figure 'accuracy' on validation"
    yield 'no probe of it', [run, data, '--probes', 'knn', '--best', 'linear.auroc'], 'the probes that run are knn;'
    yield 'no recall', [run, data, '--best', 'retrieval.R@2'], "retrieval has no figure 'R@2' on validation"
    yield 'no draws', [run, data, '--draws', '0'], 'at least 1 bootstrap draw'
    yield 'no seed', [run, data, '--seed', '-1'], '--seed: 0 or more, not -1'


def test_mistakes_are_sentences(tmp_path, data, capsys):
    for what, (run, path, *rest), words in mistakes(tmp_path, data):
        capsys.readouterr()
        assert cli.main(['probe', '--run', str(run), '--data', str(path), *rest]) == 2, what
        output = capsys.readouterr().err
        assert words in output and 'Traceback' not in output, (what, output)


def test_where_no_probe_can_run_one_sentence_says_why(tmp_path, capsys):
    """A data set with texts and without labels, and an export without a text tower."""
    table = make_table(tmp_path / 't', n=20, labels=False)
    lines = (table / 'metadata.csv').read_text().splitlines()
    lines = [lines[0] + ',text', *(f'{line},No effusion.' for line in lines[1:])]
    (table / 'metadata.csv').write_text('\n'.join(lines) + '\n')
    data = build(table, tmp_path / 'texts')
    make_export(tmp_path / 'run', 1)
    capsys.readouterr()
    assert cli.main(['probe', '--run', str(tmp_path / 'run'), '--data', str(data), '--baselines', 'none']) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('medjax: ')]
    assert said[0].startswith(f'medjax: step 1 failed: no probe can run on {data} (') and len(said) == 2
    for words in ('no labels', 'zero_shot', 'retrieval', '--prompts'):
        assert words in said[0]
    assert said[1] == 'medjax: 1 failure(s), see above'


def test_an_encoder_of_three_channels_reads_grey_pictures(tmp_path, data):
    make_export(tmp_path, 1, meta=META | dict(image=dict(channels=3, mean=[0.5] * 3, std=[0.25] * 3)))
    run = str(tmp_path)
    assert cli.main(['probe', '--run', run, '--data', str(data), '--probes', 'knn', '--draws', '20']) == 0
    assert pathlib.Path(run, 'probes', 'pixels').exists()


def test_the_page_on_probes_holds(tmp_path, probed, data, monkeypatch):
    """docs/add_a_probe.md: its probe runs under its own name."""
    page = (pathlib.Path(__file__).parents[2] / 'docs' / 'add_a_probe.md').read_text()
    (tmp_path / 'mypkg').mkdir()
    (tmp_path / 'mypkg' / 'centroids.py').write_text(page.split('```python\n')[1].split('```')[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    command = ['probe', '--run', str(probed), '--data', str(data), '--probes', 'mypkg.centroids', '--baselines', 'none']
    assert cli.main([*command, '--draws', '20']) == 0
    file = probed / 'probes' / '20' / f'{records.open(data).name}.centroids.json'
    assert json.loads(file.read_text())['results']['auroc']['left']['value'] > 0.8


def make_public(folder, seed=0):
    """A folder with a DINOv2 in the names of Meta, of the size of TOWER."""
    tower = dict(tower='vit', variant='Ti/8', width=64, depth=2, heads=1, native_size=32)
    params = models.tower(tower, 3, where='x').init(jax.random.key(seed))
    folder.mkdir(parents=True)
    save_file(published_names.to_meta(params), folder / 'model.safetensors')
    return folder


@pytest.mark.slow
def test_a_public_encoder_beside_a_run(tmp_path, data, capsys):
    """It has the results of a baseline, its preprocessing is its own, and the report shows it."""
    run, name = tmp_path / 'run', records.open(data).name
    make_export(run, 10)
    public = make_public(tmp_path / 'dinov2-tiny')
    command = ['probe', '--run', str(run), '--data', str(data), '--draws', '20', '--probes', 'knn,linear']
    assert cli.main([*command, '--encoder', str(public)]) == 0
    folders = ('10', 'random', 'pixels', 'dinov2-tiny')
    assert result_files(run) == {f'{e}/{name}.{p}.json' for e in folders for p in ('knn', 'linear')}
    said = capsys.readouterr().out
    assert said.count('| dinov2-tiny | ') == 2
    rows = [line.split(' | ')[0] for line in said.splitlines() if ' | knn | ' in line]
    assert rows == ['| raw pixels', '| random init', '| dinov2-tiny', '| step 10']
    result = json.loads((run / 'probes' / 'dinov2-tiny' / f'{name}.knn.json').read_text())
    assert result['encoder']['step'] == 'dinov2-tiny' and 'DINOv2' in result['encoder']['origin']
    assert result['overlap'] == {} and 'these are public weights (' in result['provenance']
    encoder = encode.load(public)
    assert encoder.name == 'dinov2-tiny' and encoder.image['channels'] == 3
    split = encode.features(encoder, records.open(data), 'test')
    np.testing.assert_allclose(np.load(run / 'cache/dinov2-tiny' / f'{name}.test/cls.npy'), split.cls, atol=1e-5)
    (run / 'config.json').write_text('{}')
    read = run_files.read_run(run)
    assert not read.damaged and read.newest_step() == 10
    (panels, _), (tables, _) = result_sections.curves_over_steps(read), result_sections.tables(read)
    assert 'dinov2-tiny' in str(panels) and 'random init' in str(panels)
    assert 'AUROC of dinov2-tiny' in tables['columns'] and 'step 10' in tables['title']
    assert any('dinov2-tiny (' in tile['note'] for tile in result_sections.headlines(read))


def test_an_encoder_without_a_run_has_a_folder_of_its_own(tmp_path, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_public(tmp_path / 'dinov2-tiny')
    make_export(tmp_path / 'old', 7)
    args = ['probe', '--data', str(data), '--draws', '20', '--probes', 'knn']
    assert cli.main([*args, '--encoder', 'dinov2-tiny', '--encoder', 'old/exports/7']) == 0
    said = capsys.readouterr().out
    assert 'dinov2-tiny: results lie in runs/dinov2-tiny' in said and 'old-7: results lie in runs/old-7' in said
    assert said.count('| raw pixels | knn |') == 2 and '| old-7 | knn |' in said
    for name in ('dinov2-tiny', 'old-7'):
        assert {path.split('/')[0] for path in result_files(pathlib.Path('runs', name))} == {name, 'random', 'pixels'}
    assert cli.main([*args, '--encoder', 'mine=dinov2-tiny/model.safetensors', '--baselines', 'none']) == 0
    assert {path.split('/')[0] for path in result_files(pathlib.Path('runs/mine'))} == {'mine'}


def test_an_export_of_another_run_knows_what_it_has_seen(tmp_path, data, capsys):
    make_export(tmp_path / 'other', 7)
    make_export(tmp_path / 'run', 1)
    seen.write_seen({'main': records.open(data)}, tmp_path / 'other' / 'data' / 'seen.npz')
    command = ['probe', '--run', str(tmp_path / 'run'), '--data', str(data), '--draws', '20', '--probes', 'knn']
    assert cli.main([*command, '--encoder', str(tmp_path / 'other'), '--baselines', 'none']) == 0
    name = records.open(data).name
    result = json.loads((tmp_path / 'run' / 'probes' / 'other' / f'{name}.knn.json').read_text())
    assert result['overlap']['pixels'] == 0 and 'pretraining saw none' in result['provenance']
    own = json.loads((tmp_path / 'run' / 'probes' / '1' / f'{name}.knn.json').read_text())
    assert 'unknown: the run has no data/seen.npz' in own['provenance']
    capsys.readouterr()
    command[-1] = 'classifier'  # which neither has: a failure of the run, and no failure of what stands beside it
    assert cli.main([*command, '--encoder', str(tmp_path / 'other'), '--baselines', 'none']) == 1
    said = capsys.readouterr()
    assert 'other, classifier: left out, it has no trained classifier' in said.out and '1 failure(s)' in said.err


def test_mistakes_with_encoders_are_sentences(tmp_path, data, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_export(tmp_path / 'run', 1)
    for seed, folder in enumerate(('a/net', 'b/net', '1000', 'random')):
        make_public(tmp_path / folder, seed)
    (tmp_path / 'runs' / 'trained').mkdir(parents=True)
    (tmp_path / 'runs' / 'trained' / 'config.json').write_text('{}')
    assert cli.main(['probe', '--data', str(data), '--encoder', 'a/net', '--probes', 'knn', '--baselines', 'none']) == 0
    for rest, words in (
        ([], 'nothing to probe: give --run RUN, --encoder PATH'),
        (['--encoder', 'a/net', '--steps', 'all'], '--steps is for the exports of a run'),
        (['--encoder', 'a/net', '--follow'], '--follow is for the exports of a run'),
        (['--encoder', 'nowhere'], 'nowhere: there is no such file or folder'),
        (['--encoder', '1000'], "the name '1000' means a step of the run; give another: --encoder NAME=1000"),
        (['--encoder', 'random'], "the name 'random' means the baseline random init"),
        (['--encoder', 'a/net', '--encoder', 'b/net'], "a/net has the name 'net' too"),
        (['--encoder', '../x=a/net'], "'../x' can be no name of a folder"),
        (['--encoder', 'b/net'], 'runs/net/probes/net has results of other weights'),
        (['--encoder', 'trained=a/net'], 'runs/trained is the folder of a run'),
        (['--encoder', str(data)], 'no'),
    ):
        capsys.readouterr()
        assert cli.main(['probe', '--data', str(data), *rest]) == 2, rest
        said = capsys.readouterr().err
        assert words in said and 'Traceback' not in said, (words, said)
    assert cli.main(['probe', '--data', str(data), '--encoder', 'a/net', '--probes', 'knn', '--fit', 'stretch']) == 0, (
        'the same weights with another fit replace their results'
    )
