"""A build that is stopped at any moment leaves a whole data set or none, and continues with its finished chunks."""

from __future__ import annotations

import errno
import fcntl
import functools
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from small_source import COUNT, content, source

from medjax import files
from medjax.data import records
from medjax.data.builder import chunks, workers, write
from medjax.data.types import Source
from medjax.errors import UserError


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(chunks, 'SIZE', 8)


@pytest.fixture
def whole(tmp_path):
    write.write(source(), tmp_path / 'whole')
    return content(tmp_path / 'whole')


def stopping(at: int, error: BaseException):
    def load(i):
        if i == at:
            raise error
        return source().load(i)

    return load


@pytest.mark.parametrize('error', [KeyboardInterrupt(), RuntimeError('a bug'), MemoryError()])
def test_finished_chunks_are_kept_and_used(tmp_path, whole, error):
    out = tmp_path / 'data'
    with pytest.raises(type(error)):
        write.write(source(stopping(58, error)), out)
    assert not out.exists()
    (work,) = [path for path in tmp_path.iterdir() if path.name.startswith('.data.')]
    kept = len(list((work / 'chunks').glob('*.npz')))
    assert kept >= 2
    opened = []
    write.write(source(lambda i: opened.append(i) or source().load(i)), out)
    assert len(opened) <= COUNT - 6 * kept and 58 in opened  # the smallest chunk has about 6 entries
    assert content(out) == whole
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith('.')] == []


@pytest.mark.parametrize('kept', [0, 50, -50])
def test_a_damaged_chunk_is_made_again(tmp_path, whole, kept):
    """After a power cut, a file can exist without its content."""
    out = tmp_path / 'data'
    with pytest.raises(KeyboardInterrupt):
        write.write(source(stopping(58, KeyboardInterrupt())), out)
    damaged = sorted(tmp_path.glob('.data.*/chunks/*.npz'))[0]
    damaged.write_bytes(damaged.read_bytes()[:kept])
    write.write(source(), out)
    assert content(out) == whole


def test_a_changed_file_is_read_again(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write.write(source(stopping(58, KeyboardInterrupt())), tmp_path / 'data')
    opened = []
    write.write(source(lambda i: opened.append(i) or source().load(i), stamps='x' * COUNT), tmp_path / 'data')
    assert sorted(opened) == list(range(COUNT))


def test_two_builds_of_one_data_set_are_not_mixed(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write.write(source(stopping(58, KeyboardInterrupt())), tmp_path / 'data')
    (lock,) = tmp_path.glob('.data.*/lock')
    with lock.open('w') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match='another build is writing'):
            write.write(source(), tmp_path / 'data')
    write.write(source(), tmp_path / 'data')


def test_another_source_does_not_use_the_chunks_of_the_first(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write.write(source(stopping(58, KeyboardInterrupt())), tmp_path / 'data')
    opened = []
    write.write(
        source(lambda i: opened.append(i) or source().load(i))._replace(stamp='another table'), tmp_path / 'data'
    )
    assert sorted(opened) == list(range(COUNT))


def test_a_data_set_that_appeared_meanwhile_is_not_replaced(tmp_path):
    """Another build publishes the same folder while this one works."""

    def run(*args):
        write.write(source(), tmp_path / 'other')
        os.rename(tmp_path / 'other', tmp_path / 'data')
        workers.run(*args)

    with pytest.raises(UserError, match='exists'):
        write.write(source(), tmp_path / 'data', make_chunks=run)


def ended_process() -> int:
    process = subprocess.Popen(['true'])
    process.wait()
    return process.pid


def test_an_old_data_set_that_a_killed_build_set_aside(tmp_path):
    """It comes back if the new one did not get its place, and goes if it did."""
    out = tmp_path / 'data'
    write.write(source(), out)
    aside = out.with_name(f'.data.{files._host()}.{ended_process()}.0{files.ASIDE}')
    out.rename(aside)
    with pytest.raises(UserError, match='exists; choose another --out, or add --overwrite'):
        write.write(source(), out)
    assert os.listdir(tmp_path) == ['data']
    aside.mkdir()
    (aside / 'file').write_text('half deleted')
    write.write(source(), out, overwrite=True)
    assert os.listdir(tmp_path) == ['data']


def test_a_data_set_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    out = tmp_path / 'data'
    write.write(source(), out)
    before, rename = content(out), pathlib.Path.rename

    def fail(self, to):
        if self.name == '.data.work':
            raise OSError('it cannot be renamed')
        return rename(self, to)

    monkeypatch.setattr(pathlib.Path, 'rename', fail)
    with pytest.raises(OSError, match='cannot be renamed'):
        write.write(source(), out, overwrite=True)
    monkeypatch.undo()
    assert content(out) == before


@pytest.mark.parametrize(
    'error',
    [OSError(errno.ENOSPC, 'No space left on device'), RuntimeError('write() failed: No space left on device; x')],
)
def test_a_full_disk_is_one_sentence(tmp_path, error):
    with pytest.raises(
        UserError, match='the records of .* no space is left on the disk; free some, and run the same command'
    ):
        write.write(source(stopping(58, error)), tmp_path / 'data')
    write.write(source(), tmp_path / 'data')


def test_a_killed_publication_is_finished_by_the_next_build(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(write, 'publish', lambda *args: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write.write(source(), tmp_path / 'data')
    monkeypatch.undo()
    monkeypatch.setattr(chunks, 'SIZE', 8)
    write.write(source(), tmp_path / 'data')
    assert content(tmp_path / 'data') == whole


def test_processes_make_the_same_data_set(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(workers, 'MAX_FOR_THREADS', 8)
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    write.write(source(), tmp_path / 'data', make_source=source)
    assert content(tmp_path / 'data') == whole


def broken(how: str) -> Source:
    return source(stopping(30, {'bug': RuntimeError('a bug'), 'mistake': UserError('a mistake')}[how]))


def killed() -> Source:
    def load(i):
        if i == 30:
            os.kill(os.getpid(), signal.SIGKILL)
        return source().load(i)

    return source(load)


@pytest.mark.parametrize(
    ('make_source', 'error', 'message'),
    [
        (functools.partial(broken, 'bug'), RuntimeError, 'a bug'),
        (functools.partial(broken, 'mistake'), UserError, '^a mistake$'),
        (killed, UserError, r'code -9 \(killed'),
    ],
)
def test_what_ends_a_process_ends_the_build(tmp_path, monkeypatch, make_source, error, message):
    monkeypatch.setattr(workers, 'MAX_FOR_THREADS', 8)
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    with pytest.raises(error, match=message):
        write.write(source(), tmp_path / 'data', make_source=make_source)
    assert not (tmp_path / 'data').exists()


def alive(group: int) -> list[str]:
    """The running processes of a process group, without zombies."""
    listing = subprocess.run(['ps', '-eo', 'pgid,stat'], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if line.split()[0] == str(group) and 'Z' not in line]


@pytest.mark.parametrize(
    'number', [signal.SIGINT, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGTERM, signal.SIGKILL))]
)
def test_the_command_is_stopped_and_continues(tmp_path, number):
    """The build uses several processes, and none of them survives."""
    command = [sys.executable, '-m', 'medjax', 'build', 'phantom', '--records', '1100', '--size', '32', '--out']
    args = [*command, str(tmp_path / 'data')]
    process = subprocess.Popen(
        args, stderr=subprocess.PIPE, start_new_session=True, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests themselves may ignore it
    )  # fmt: skip
    while not list(tmp_path.glob('.data.*/chunks/*.npz')):
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(number)
    assert process.wait(20) in (130, 143, -9)
    assert 'Traceback' not in process.stderr.read()
    assert not (tmp_path / 'data').exists()
    until = time.time() + 20
    while alive(process.pid):
        time.sleep(0.05)
        assert time.time() < until
    if number == signal.SIGKILL:
        subprocess.run(args, check=True, capture_output=True)
        assert sum(records.open(tmp_path / 'data').splits.values()) == 1100
