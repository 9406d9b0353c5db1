"""Jobs that run at once: each piece of work is done by one of them, and one that waits gets it afterwards."""

import subprocess
import sys
import time

import pytest

from medjax.probes import locks

HOLDER = """
import pathlib, sys, time
from medjax.probes import locks
file = open(sys.argv[1], 'ab')
assert locks.take(file, 7)
print('holds', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another job that holds the byte 7 until its input ends."""
    job = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path / 'lock')], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert job.stdout.readline() == b'holds\n'
    yield job
    job.kill()
    job.wait()
    job.stdout.close()


@pytest.mark.parametrize('killed', [False, True], ids=['ends', 'killed'])
def test_pieces_of_another_job_come_last(tmp_path, holder, capsys, monkeypatch, killed):
    monkeypatch.setattr(locks, 'POLL', 0.02)
    pieces = locks.shared(tmp_path / 'lock', dict(b=7, a=1, c=2**60 - 1), 'knn')
    assert [next(pieces), next(pieces)] == ['a', 'c']

    sleep = time.sleep

    def end_of_the_other(seconds):
        holder.kill() if killed else holder.stdin.close()
        sleep(seconds)

    monkeypatch.setattr(locks.time, 'sleep', end_of_the_other)
    assert list(pieces) == ['b']
    assert capsys.readouterr().err == 'medjax: knn: waits for another job\n'


def test_a_piece_that_fails_is_free_again(tmp_path):
    first = locks.shared(tmp_path / 'lock', dict(a=7), 'knn')
    next(first)
    with pytest.raises(KeyError):
        first.throw(KeyError())
    taken = subprocess.run([sys.executable, '-c', HOLDER, str(tmp_path / 'lock')], stdin=subprocess.DEVNULL, timeout=60)
    assert taken.returncode == 0
