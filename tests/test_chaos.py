"""Chaos: a run is killed at random moments, goes on, and ends in the bits of a run that nobody disturbed.

A moment is a number of seconds of processor time, anywhere in the life of a process: while it opens the data,
compiles, trains, writes or ends. Processes are forked from one that has imported everything, so that most of their life
is training.
"""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
from pathlib import Path

import pytest
import small_runs

from medjax.training import checkpoint

FORKED = multiprocessing.get_context('forkserver')
STEPS = ('total_steps=40', 'log.every=2', 'checkpoint.every=4', 'export.every=8')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    FORKED.set_forkserver_preload(['small_runs', 'tensorflow_datasets', 'array_record.python.array_record_data_source'])
    return small_runs.build(tmp_path_factory.mktemp('made'))


def session(made: Path, folder: Path, life: float = 1e6) -> tuple[bool, str]:
    """Trains until the end, or until the process has lived `life` seconds: whether it was killed, and what it said."""
    log = folder.with_suffix('.log')
    process = FORKED.Process(target=small_runs.session, args=(made, folder, STEPS, log, life))
    process.start()
    process.join()
    said = log.read_text() if log.exists() else ''
    assert process.exitcode in (0, -signal.SIGPROF), (process.exitcode, said)
    return process.exitcode != 0, said


@pytest.fixture(scope='module')
def whole(made, tmp_path_factory):
    """A run that nobody disturbed, and the seconds of the processor that such a run takes."""
    folder = tmp_path_factory.mktemp('whole') / 'run'
    session(made, folder)  # compiles
    shutil.rmtree(folder)
    _, said = session(made, folder)
    return folder, float(said.splitlines()[-1])


def check_chaos(made: Path, whole: tuple[Path, float], place: Path, kills: int, seed: int) -> None:
    """Kills runs at `kills` moments in all. Each run goes on until it ends as the whole one."""
    undisturbed, length = whole
    draw, moments, runs = random.Random(seed), [], 0
    while len(moments) < kills:
        folder, runs = place / str(runs), runs + 1
        while not (folder / 'DONE').exists():
            before = checkpoint.steps(folder / 'checkpoints')
            moment = draw.uniform(0, length) if len(moments) < kills else 1e6
            killed, said = session(made, folder, moment)
            if 'resuming from step' in said:
                assert f'resuming from step {before[-1]} ' in said, (seed, moments, before, said)
            saved = checkpoint.steps(folder / 'checkpoints')
            assert not before or (saved and saved[-1] >= before[-1]), (seed, moments, before, saved)
            if killed:
                moments.append((round(moment, 2), saved[-1] if saved else 0))
        small_runs.same_end(undisturbed, folder)
        left = [name for name in small_runs.content(folder) if '.part' in name or 'checkpoint-tmp' in name]
        assert not left, (seed, moments, left)
    print(f'{kills} kills of {runs} runs of {length:.1f} s; moment and last checkpoint of each: {moments}')


@pytest.mark.slow
def test_three_kills(made, whole, tmp_path):
    check_chaos(made, whole, tmp_path, 3, seed=0)


@pytest.mark.long
def test_fifty_kills(made, whole, tmp_path):
    check_chaos(made, whole, tmp_path, 50, seed=2)
