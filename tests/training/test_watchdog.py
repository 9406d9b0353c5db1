"""The watchdog: a run that hangs is ended with its stacks; heartbeats say what each process does."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medjax.training import goodput, watchdog

ROOT = Path(__file__).parents[2]
# A run whose loop hangs in a phase, after some seconds of steps.
HANGS = """
import sys, time
from pathlib import Path
from medjax.training import watchdog
watchdog.POLL, watchdog.STILL, watchdog.STILL_ELSEWHERE, watchdog.PATIENCE = 0.05, 0.5, 2.0, 0.3

class Done:
    def block_until_ready(self): pass

def a_disk_that_does_not_answer():
    time.sleep(60)

with watchdog.watching(Path(sys.argv[1])) as watch:
    watch.begun = True
    with watch.times.training():
        for step in range(1, 4):
            watch.times.dispatched(step, Done())
            time.sleep(0.1)
        with watch.times.of(sys.argv[2]):
            a_disk_that_does_not_answer()
"""


@pytest.mark.parametrize('phase', ['input', 'checkpoint'])
def test_a_run_that_hangs_ends_with_its_stacks(tmp_path, phase):
    (tmp_path / 'config.json').write_text('{}')
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-c', HANGS, tmp_path, phase], capture_output=True, text=True, timeout=300, cwd=ROOT,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )  # fmt: skip
    assert done.returncode == watchdog.EXIT and time.monotonic() - begin < 60, done.stderr
    assert f'while it was {watchdog.DOING[phase]}' in done.stderr and 'after step 3' in done.stderr, done.stderr
    assert 'a_disk_that_does_not_answer' in done.stderr and 'goes on from the last checkpoint' in done.stderr
    assert 'a_disk_that_does_not_answer' in (tmp_path / 'hosts/0.stacks.txt').read_text()


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """A watch whose end is noted and not carried out."""
    ended = threading.Event()
    monkeypatch.setattr(watchdog, 'POLL', 0.02)
    monkeypatch.setattr(watchdog, 'STILL', 0.2)
    monkeypatch.setattr(watchdog.Watch, '_end_process', lambda self, still: ended.set())
    (tmp_path / 'config.json').write_text('{}')
    with watchdog.watching(tmp_path) as watch:
        yield watch, ended


def test_a_run_that_moves_or_is_slow_by_itself_is_left_alone(watched):
    watch, ended = watched
    watch.times.dispatched(1, Done())
    for _ in range(10):
        time.sleep(0.1)
        with watch.times.of('step'):
            pass
    with watch.times.of('export'):  # may take longer than steps
        time.sleep(0.6)
    assert not ended.is_set()
    with watch.times.training():  # as the loop waits for numbers of the devices
        assert ended.wait(30)


def test_slow_steps_have_a_longer_limit(watched):
    watch, ended = watched
    watch.times.dispatched(1, Done())
    with watch.times.of('step'):
        time.sleep(0.15)
    with watch.times.of('step'):  # 20 times as long would be 3 seconds
        time.sleep(1)
        assert not ended.is_set()


class Done:
    def block_until_ready(self) -> None:
        pass


def test_heartbeats(tmp_path):
    with watchdog.watching(tmp_path) as watch:
        watch.beat()
        assert not (tmp_path / 'hosts').exists()  # the folder is no run's yet
        (tmp_path / 'config.json').write_text('{}')
        watch.beat()
        assert not (tmp_path / 'hosts').exists()  # it may be another run's, and this one be refused
        watch.begun = True
        watch.line = {'step': 2, 'loss': 1.0}
        watch.times.dispatched(2, Done())
        watch.beat()
        (beat,) = watchdog.heartbeats(tmp_path)
        assert beat['process'] == 0 and beat['phase'] == 'setup' and abs(beat['time'] - time.time()) < 30
        assert 'medjax_heartbeat_step' in (tmp_path / 'metrics.prom').read_text()
    assert watchdog.heartbeats(tmp_path)[0]['phase'] == 'ended'
    (tmp_path / 'hosts/3.json').write_text(json.dumps(beat | {'process': 3}))
    (tmp_path / 'hosts/4.json').write_text('{"process"')
    watchdog.remove_others(tmp_path, 2)
    assert [beat['process'] for beat in watchdog.heartbeats(tmp_path)] == [0]
    with contextlib.suppress(ZeroDivisionError), watchdog.watching(tmp_path) as watch:
        watch.begun = True
        raise ZeroDivisionError
    assert watchdog.heartbeats(tmp_path)[0]['phase'] == 'failed'


def test_who_is_behind(tmp_path):
    (tmp_path / 'hosts').mkdir()
    for process, phase in enumerate(('step', 'input', 'step')):
        beat = dict(process=process, host=f'node{process}', step=12, phase=phase, time=0.0)
        (tmp_path / f'hosts/{process}.json').write_text(json.dumps(beat))
    assert watchdog._behind(tmp_path) == 'behind the others: process 1 on node1 was reading a batch after step 12. '


def test_watching_costs_little():
    """A step pays for its phases and its note: microseconds."""
    times = goodput.Times()
    begin = time.thread_time()
    with times.training():
        for step in range(1000):
            with times.of('step'):
                pass
            times.dispatched(step, Done())
            with times.of('input'):
                pass
    used = time.thread_time() - begin
    times.close()
    assert used < 1000 * 500e-6, f'{used * 1000:.0f} microseconds a step'
