"""The processes of a run: one alone, several by launch/local.sh, a failure of one, SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medjax.errors import UserError
from medjax.parallel import runtime

LAUNCH = Path(__file__).parents[2] / 'launch' / 'local.sh'
WORKER = r"""
import os, sys, time, types
import jax
from medjax import cli
from medjax.errors import UserError
from medjax.parallel import runtime
from jax.experimental import multihost_utils

def main(argv):
    runtime.start()
    try:
        work(argv)
    finally:
        runtime.shutdown()
    return 0

def work(argv):
    seen = f'process {jax.process_index()} of {jax.process_count()} devices {jax.device_count()}\n'
    os.write(1, seen.encode())
    if argv[0] == 'fail' and jax.process_index() == 1:
        raise UserError('out of luck')
    if argv[0] in ('fail', 'wait'):
        for step in range(1_000):
            if multihost_utils.reached_preemption_sync_point(step):
                os.write(1, f'stopped at {step}\n'.encode())  # whole lines: two processes share the pipe
                break
            time.sleep(0.05)

sys.modules['medjax.commands.train'] = types.SimpleNamespace(main=main)
sys.exit(cli.main(['train', *sys.argv[1:]]))
"""


def start(tmp_path, job, processes=None, devices=1):
    worker = tmp_path / 'worker.py'
    worker.write_text(WORKER)
    command = [sys.executable, str(worker), job]
    if processes:
        command = [str(LAUNCH), str(processes), '--', *command]
    env = {**os.environ, 'MEDJAX_DEVICES_PER_PROCESS': str(devices), 'PYTHONPATH': str(LAUNCH.parents[1])}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def read_until(stream, text):
    lines = []
    while not any(text in line for line in lines):
        line = stream.readline()
        assert line, f'the output ended before {text!r}: {lines}'
        lines.append(line)
    return lines


def test_two_processes_see_each_others_devices(tmp_path):
    process = start(tmp_path, 'count', processes=2, devices=2)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    lines = [line for line in out.splitlines() if 'Gloo' not in line]
    assert sorted(lines) == ['[1] process 1 of 2 devices 4', 'process 0 of 2 devices 4']


def test_one_failure_ends_all_with_its_code_and_message(tmp_path):
    process = start(tmp_path, 'fail', processes=2)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert '[1] medjax: out of luck' in err
    assert 'process 1 of 2 ended with code 2; ending the others' in err


@pytest.mark.parametrize('processes', [None, 2], ids=['alone', 'two'])
def test_sigterm_reaches_all_at_one_step(tmp_path, processes):
    """This holds for a single process, too: without jax.distributed SIGTERM would kill it."""
    process = start(tmp_path, 'wait', processes=processes)
    lines = read_until(process.stdout, 'process 0 of')
    while processes and not any('process 1 of' in line for line in lines):
        lines += read_until(process.stdout, 'process 1 of')
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    stops = [line.removeprefix('[1] ') for line in out.splitlines() if 'stopped at' in line]
    assert len(stops) == (processes or 1)
    assert len(set(stops)) == 1


def test_how_to_call_the_launcher():
    done = subprocess.run([str(LAUNCH), 'two', '--', 'true'], capture_output=True, text=True)
    assert done.returncode == 2
    assert 'medjax train' in done.stderr


def test_half_a_set_of_variables_is_a_mistake(monkeypatch):
    monkeypatch.setattr('jax.distributed.is_initialized', lambda: False)
    monkeypatch.setenv('MEDJAX_COORDINATOR', '127.0.0.1:20000')
    with pytest.raises(UserError, match='the files of launch/ set the three'):
        runtime.start()


def test_a_free_port_can_be_bound():
    import socket

    with socket.socket() as s:
        s.bind(('127.0.0.1', runtime.free_port()))
