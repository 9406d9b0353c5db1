"""A run that begins with weights exports them as step 0, which `export.keep` keeps."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from medjax.probes import watch
from medjax.reports import run_files
from medjax.weights import export

ROOT = Path(__file__).parents[2]
SHORT = ['--config.total_steps=4', '--config.checkpoint.every=2', '--config.export.every=4', '--config.log.every=2']


def medjax(*args):
    env = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': '1'}
    command = [sys.executable, '-m', 'medjax', *map(str, args)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


def train(data, run, *more):
    return medjax('train', '--config', ROOT / 'configs/tiny.py', '--data', data, '--workdir', run, *SHORT, *more)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """(data, a run from random weights, a run that begins with its export)."""
    folder = tmp_path_factory.mktemp('runs')
    medjax('build', 'phantom', '--records', '48', '--size', '32', '--out', folder / 'data')
    train(folder / 'data', folder / 'first')
    train(folder / 'data', folder / 'second', start(folder / 'first'), '--config.seed=1')
    return folder / 'data', folder / 'first', folder / 'second'


def start(run):
    return f'--config.init_from=dict(path="{run}/exports/4", take=["towers/image"])'


@pytest.mark.slow
def test_step_zero_holds_the_weights_that_the_run_began_with(runs):
    _, first, second = runs
    assert export.steps(first) == [4] and export.steps(second) == [0, 4]
    given, zero, end = (
        load_file(run / 'exports' / step / 'weights.safetensors')
        for run, step in ((first, '4'), (second, '0'), (second, '4'))
    )
    towers = [name for name in given if name.startswith('towers/image/')]
    assert towers
    for name in towers:
        np.testing.assert_array_equal(zero[name], given[name])
    assert any(np.abs(end[name] - zero[name]).max() > 0 for name in towers)
    meta = json.loads((second / 'exports' / '0' / 'meta.json').read_text())
    assert meta['step'] == 0 and meta['seen'] == json.loads((second / 'exports/4/meta.json').read_text())['seen']


@pytest.mark.slow
def test_probes_and_reports_see_step_zero(runs):
    _, _, second = runs
    assert watch.select_steps(second, 'all') == [0, 4] and watch.select_steps(second, None) == [4]
    assert [step for step, _ in watch.follow(second, str)] == [0, 4]
    assert run_files.read_run(second).exports == [0, 4]


@pytest.mark.slow
def test_step_zero_the_best_and_the_last_are_kept(runs, tmp_path):
    data, first, _ = runs
    (tmp_path / 'best.json').write_text('{"step": 2}')  # as a `medjax probe --follow --best` would beside the training
    train(data, tmp_path, start(first), '--config.export.every=1', '--config.export.keep=1')
    assert export.steps(tmp_path) == [0, 2, 4]
    assert sorted(path.name for path in (tmp_path / 'exports').iterdir()) == ['0', '2', '4']


@pytest.mark.slow
def test_a_resumed_run_does_not_write_it_again(runs, tmp_path):
    data, first, second = runs
    run = tmp_path / 'resumed'
    shutil.copytree(second, run)
    for name in ('DONE', 'checkpoints/4', 'exports/4'):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / 'exports' / '0' / 'mark').touch()
    assert 'resuming from step 2' in train(data, run, start(first), '--config.seed=1')
    assert (run / 'exports' / '0' / 'mark').exists(), 'a new export would have replaced the folder'
    one, other = (load_file(folder / 'exports' / '4' / 'weights.safetensors') for folder in (run, second))
    for name in one:
        np.testing.assert_array_equal(one[name], other[name])
