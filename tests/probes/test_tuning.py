"""Probes that train: the command of the training, its folder, its end, the choice of an export, and signals."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from small_runs import build

from medjax import cli, config as configs, folder as folders, train
from medjax.data import records
from medjax.data.audit import seen
from medjax.errors import UserError
from medjax.models import build as models
from medjax.overrides import split_overrides
from medjax.probes import encode, tuning
from medjax.probes.evaluate import ProbeInputs
from medjax.probes.tuning import Tuning
from medjax.weights import export

VIT = dict(tower='vit', variant='Ti/8', width=16, depth=2, heads=2, native_size=16, drop_path=0.3)
RESNET = dict(tower='resnet', variant='18', stem=4, depths=[1, 1])
META = dict(network='student', heads={}, image=dict(channels=1, mean=0.4, std=0.2, fit='pad'), size=16, seen=None)


def make_export(run, step=4, tower=VIT, **meta):
    import jax

    params = models.tower(tower, 1, where='towers.image').init(jax.random.key(step))
    described = META | dict(step=step, towers=dict(image=tower)) | meta
    return export.save(run / 'exports' / str(step), {'towers': {'image': params}}, described)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return records.open(build(tmp_path_factory.mktemp('small')) / 'data')


def inputs(run, data, **options):
    make_export(run, **options)
    return ProbeInputs(encode.load(run), data, run / 'cache', {}, None, 0, 10)


def config_of(command, data):
    """The config that `medjax train` makes of a command."""
    argv, overrides = split_overrides(command[4:])
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    return configs.load(given['--config'], [given['--data']], overrides)[0]


@pytest.mark.parametrize('tower', [VIT, RESNET], ids=['vit', 'resnet'])
def test_the_training_starts_from_the_encoder_and_sees_what_it_sees(tmp_path, data, tower):
    one = dataclasses.replace(
        inputs(tmp_path / 'run', data, tower=tower),
        epochs=3,
        overrides=('optim.lr=0.5',),
        policy=dict(blank='negative'),
    )
    config = config_of(Tuning('fine_tune').command(one, tmp_path / 'w'), data)
    kept = {key: value for key, value in tower.items() if key not in ('drop_path', 'depths')}
    assert config['towers']['image'].items() >= kept.items()
    assert config['towers']['image'].get('drop_path') in (None, 0.125), 'drop path is that of the recipe'
    assert config['init_from'][0]['path'] == str(tmp_path / 'run' / 'exports' / '4')
    assert config['image'] == dict(channels=1, mean=0.4, std=0.2) and config['views']['crop']['size'] == 16
    assert config['export']['fit'] == 'pad' and config['optim']['lr'] == 0.5
    assert config['terms'][0]['policy'] == dict(blank='negative')
    assert config['total_steps'] == -(-3 * data.splits['train'] // 64)


def test_the_folder_depends_on_all_that_changes_the_numbers(tmp_path, data):
    one, job = inputs(tmp_path / 'run', data), Tuning('fine_tune')
    other = make_export(tmp_path / 'other', step=9)
    variants = [
        one,
        dataclasses.replace(one, epochs=3),
        dataclasses.replace(one, overrides=('seed=1',)),
        dataclasses.replace(one, policy=dict(blank='negative')),
        dataclasses.replace(one, encoder=encode.load(other)),
    ]
    folders_of = [job.folder(each) for each in variants]
    assert len(set(folders_of)) == 5 and all(
        folder.is_relative_to(tmp_path / 'run' / 'tuning') for folder in folders_of
    )
    assert job.folder(dataclasses.replace(one, draws=99, seed=7)) == folders_of[0], 'these are of the evaluation'


def test_what_cannot_be_tuned_is_refused(tmp_path, data):
    vit, job = inputs(tmp_path / 'a', data), Tuning('fine_tune')
    for baseline in encode.BASELINES.values():
        with pytest.raises(UserError, match='starts from trained weights'):
            job.requirements(dataclasses.replace(vit, encoder=baseline.make(vit.encoder)))
    resnet = inputs(tmp_path / 'b', data, tower=RESNET)
    with pytest.raises(UserError, match="lora needs the tower 'vit', and the encoder is 'resnet'"):
        Tuning('lora', 'vit').requirements(resnet)
    assert job.requirements(resnet)


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (['--probes', 'knn', '--epochs', '3'], '--epochs is for probes that train'),
        (['--probes', 'knn', '--config.seed=1'], '--config.seed=1 is for probes that train'),
        (['--probes', 'fine_tune', '--epochs', '0'], 'at least 1 pass over the train split, not 0'),
    ],
)
def test_options_in_vain_are_refused(tmp_path, data, capsys, args, words):
    make_export(tmp_path / 'run')
    assert cli.main(['probe', '--run', str(tmp_path / 'run'), '--data', str(data.path), *args]) == 2
    assert words in capsys.readouterr().err


def test_the_best_export_on_validation_is_judged_and_the_last_without_one(tmp_path, data, monkeypatch):
    one = inputs(tmp_path / 'run', data)
    for step in (0, 2, 4, 6):
        make_export(tmp_path / 'tuned', step)
    values = {0: 0.99, 2: 0.7, 4: 0.8, 6: 0.8}
    monkeypatch.setattr(tuning, 'on_validation', lambda inputs: values[inputs.encoder.name])
    job = Tuning('fine_tune')
    assert job.best_export(one, tmp_path / 'tuned') == (4, {2: 0.7, 4: 0.8, 6: 0.8}), 'the earliest of equal ones'
    monkeypatch.setattr(tuning, 'on_validation', lambda inputs: None)
    assert job.best_export(one, tmp_path / 'tuned') == (6, {})


def test_a_failed_training_is_a_sentence_and_the_probe_fails(tmp_path, data, capsys, monkeypatch):
    make_export(tmp_path / 'run')
    monkeypatch.setattr(tuning, 'run_and_pass_signals', lambda command, lock: 2)
    args = ['--run', str(tmp_path / 'run'), '--data', str(data.path), '--probes', 'fine_tune', '--baselines', 'none']
    assert cli.main(['probe', *args]) == 1
    told = capsys.readouterr().err
    assert 'ended before its last step (exit code 2; its message stands above)' in told and 'Traceback' not in told


CHILD = """
import signal, sys, time, pathlib
def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text(str(number))
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
pathlib.Path(sys.argv[2]).write_text('ready')
time.sleep(60)
"""
PARENT = """
import pathlib, sys
from medjax import cli
from medjax.probes import tuning
def main(argv):
    with tuning.alone(pathlib.Path(argv[1]).parent / 'tuned') as lock:
        tuning.run_and_pass_signals([sys.executable, *argv], lock)
    print('went on')
    return 0
cli.run = lambda name, argv: main(argv)
sys.exit(cli.main())
"""


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_training_and_then_ends_the_probe(tmp_path, number, code):
    (tmp_path / 'child.py').write_text(CHILD)
    child = [tmp_path / 'child.py', tmp_path / 'got', tmp_path / 'ready']
    parent = subprocess.Popen(
        [sys.executable, '-c', PARENT, 'probe', *map(str, child)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / 'ready').exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(parent.pid, number)
    out, err = parent.communicate(timeout=120)
    assert (tmp_path / 'got').read_text() == str(int(number)) and parent.returncode == code, err
    assert b'went on' not in out and b'Traceback' not in err


TRAINING = """
import pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir(parents=True)
(folder / 'begun').touch()
while not (folder / 'may end').exists():
    time.sleep(0.02)
(folder / 'DONE').touch()
"""
JOB = """
import pathlib, sys
from medjax.probes import tuning
with tuning.alone(pathlib.Path(sys.argv[2])) as lock:
    tuning.run_and_pass_signals([sys.executable, *sys.argv[1:]], lock)
"""


def test_the_training_of_a_killed_job_is_waited_for_and_used(tmp_path, data, monkeypatch, capfd):
    one, job = inputs(tmp_path / 'run', data), Tuning('fine_tune')
    folder = job.folder(one)
    (tmp_path / 'training.py').write_text(TRAINING)
    killed = subprocess.Popen([sys.executable, '-c', JOB, str(tmp_path / 'training.py'), str(folder)])
    deadline = time.monotonic() + 120
    while not (folder / 'begun').exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    monkeypatch.setattr(Tuning, 'train', lambda *_: pytest.fail('trained again'))
    judged = []

    def best_export(job, inputs, folder):
        judged.append((folder / 'DONE').exists())
        raise UserError('judged')

    monkeypatch.setattr(Tuning, 'best_export', best_export)

    def end():
        while 'waits for it' not in (told := capfd.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not judged and str(folder) in told
        (folder / 'may end').touch()

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(UserError, match='judged'):
        job.run(one)
    thread.join()
    assert judged == [True]


def test_what_given_weights_were_trained_on_is_seen_too(tmp_path, data):
    make_export(tmp_path / 'run')
    path = tmp_path / 'run' / 'exports' / '4'
    assert folders._before(None, [dict(path=str(path))]) == ([], ['run-4']), 'its meta.json names no list'
    other = records.open(build(tmp_path / 'other', seed=1) / 'data')
    seen.write_seen({'main': other}, tmp_path / 'run' / 'data' / 'seen.npz')
    digest = folders._digest(tmp_path / 'run' / 'data' / 'seen.npz')
    make_export(tmp_path / 'run', seen=digest)
    for given in (path, tmp_path / 'run', path / 'weights.safetensors'):
        assert folders._before(None, [dict(path=str(given))]) == ([tmp_path / 'run' / 'data' / 'seen.npz'], [])
    teachers = dict(frozen=dict(init_from=dict(path='dinov2-base/')), ema=dict(init_from=None))
    starts = folders.given_weights(dict(init_from=dict(path=str(path)), teachers=teachers))
    (tmp_path / 'new').mkdir()
    folders.write_data(tmp_path / 'new', None, {'main': data}, starts)
    with np.load(tmp_path / 'new' / 'data' / 'seen.npz') as file:
        patients = [each.split('train').keys('patient') for each in (data, other)]
        assert set(file['patient'].tolist()) == set(np.concatenate(patients).tolist())
        assert file['unknown'].tolist() == ['dinov2-base']
    shares = seen.overlap(tmp_path / 'new' / 'data' / 'seen.npz', other.split('train'))
    assert shares['patient'] == 1 and shares['unknown'] == ['dinov2-base']


@pytest.mark.slow
def test_a_job_trains_once_goes_on_after_a_kill_and_equals_a_run_by_hand(tmp_path, data, capfd):
    run = tmp_path / 'run'
    one = dataclasses.replace(inputs(run, data), epochs=2, overrides=('dtype=float32', 'export.every=1'))
    args = ['--run', str(run), '--data', str(data.path), '--probes', 'fine_tune', '--epochs', '2', '--draws', '10']
    args += ['--config.dtype=float32', '--config.export.every=1', '--baselines', 'none']
    assert cli.main(['probe', *args]) == 0
    folder = Tuning('fine_tune').folder(one)
    result = json.loads((run / 'probes' / '4' / f'{data.name}.fine_tune.json').read_text())
    assert result['tuned']['run'] == str(folder) and (folder / 'DONE').exists()
    with np.load(folder / 'data' / 'seen.npz') as file:
        assert file['unknown'].tolist() == ['run-4'], 'the export names no list of what it was trained on'
    capfd.readouterr()
    shutil.rmtree(run / 'probes')
    assert cli.main(['probe', *args]) == 0
    assert 'trains on' not in capfd.readouterr().out, 'a finished training is not done again'
    again = json.loads((run / 'probes' / '4' / f'{data.name}.fine_tune.json').read_text())
    assert again['results'] == result['results']
    by_hand = ['--encoder', f'tuned={folder}/exports/{result["tuned"]["step"]}', '--run', str(run), '--fit', 'pad']
    by_hand += ['--data', str(data.path), '--probes', 'classifier', '--draws', '10', '--baselines', 'none']
    cli.main(['probe', *by_hand])
    other = json.loads((run / 'probes' / 'tuned' / f'{data.name}.classifier.json').read_text())
    assert other['results']['auroc'] == result['results']['auroc']


TUNED = dict(
    bias_only=lambda name: name.endswith('/bias'),
    lora=lambda name: name.endswith(('attn/qkv/kernel', 'fc1/kernel', 'fc2/kernel')),
    prompts=lambda name: name.startswith('prompts/'),
)


@pytest.mark.parametrize(
    'recipe',
    [
        pytest.param('lora', marks=pytest.mark.slow),
        *(pytest.param(name, marks=pytest.mark.long) for name in ('bias_only', 'prompts')),
    ],
)
def test_a_recipe_changes_what_it_says_and_its_export_is_a_tower(tmp_path, data, recipe):
    one = dataclasses.replace(
        inputs(tmp_path / 'run', data),
        epochs=4,
        overrides=('dtype=float32', 'optim.schedule=1.0', 'batch_size=16', 'rows_per_group=2', 'optim.lr=0.05'),
    )
    command = Tuning(recipe).command(one, tmp_path / 'w')
    argv, overrides = split_overrides(command[4:])
    given = dict(zip(argv[::2], argv[1::2], strict=True))
    config, datasets = configs.load(given['--config'], [given['--data']], overrides)
    assert train.run(config, datasets, tmp_path / 'w') == 0
    before, _ = export.load(tmp_path / 'run' / 'exports' / '4')
    after, meta = export.load(tmp_path / 'w' / 'exports' / str(config['total_steps']))
    old, new = (export.flatten(tree['towers']['image']) for tree in (before, after))
    changed = {name for name in new if name not in old or not np.array_equal(old[name], new[name])}
    may_change = {name for name in new if TUNED[recipe](name)}
    assert changed <= may_change and changed
    if recipe != 'bias_only':  # the biases of keys have no gradient
        assert changed == may_change
    assert 'lora' not in meta['towers']['image'] and not any('lora' in name for name in new)
    assert ('prompts' in meta['towers']['image']) == (recipe == 'prompts')
    tuned = encode.load(tmp_path / 'w')
    assert np.isfinite(encode.features(tuned, data, 'test').cls[:]).all()
