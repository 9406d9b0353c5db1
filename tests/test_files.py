"""Files are there whole or not at all, and leftovers of killed processes are swept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from medjax import files


def test_an_error_leaves_what_was_there(tmp_path):
    path = tmp_path / 'folder' / 'a.json'
    files.write_json(path, {'a': 1})
    with pytest.raises(ValueError, match='JSON'):
        files.write_json(path, {'a': float('nan')})
    with pytest.raises(TypeError), files.whole(path) as file:
        file.writelines(['half', 1])
    assert json.loads(path.read_text()) == {'a': 1}
    assert os.listdir(path.parent) == ['a.json']


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / 'exports' / '10'
    for content in ('old', 'new'):
        with files.whole_folder(path) as folder:
            (folder / 'meta.json').write_text(content)
            assert not (path / 'meta.json').exists() or (path / 'meta.json').read_text() == 'old'
    assert (path / 'meta.json').read_text() == 'new'
    with pytest.raises(FileNotFoundError), files.whole_folder(path) as folder:
        (folder / 'nowhere' / 'x').touch()
    assert os.listdir(path.parent) == ['10']


@pytest.mark.parametrize('kind', ['whole', 'whole_folder'])
def test_leftovers_of_a_killed_process_are_swept(kind, tmp_path):
    path = tmp_path / 'a.[1].npz'  # a name with letters that a pattern would read
    program = (
        f'import os, signal; from medjax import files\nwith files.{kind}({str(path)!r}): '
        f'os.kill(os.getpid(), signal.{signal.SIGKILL.name})'
    )
    assert subprocess.run([sys.executable, '-c', program]).returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 1
    mine, other = files._hidden(path), tmp_path / f'.{path.name}.elsewhere.1.0.part'
    mine.touch()  # this process lives
    other.touch()  # nothing is known of processes of another host
    files.write_npz(path, x=np.arange(3))
    assert sorted(tmp_path.iterdir()) == sorted([mine, other, path])
    with np.load(path) as file:
        assert file['x'].tolist() == [0, 1, 2]


def test_leftovers_of_other_hosts_are_swept_after_a_day(tmp_path, monkeypatch):
    path, of_another_path = tmp_path / 'a', tmp_path / '.a.b.elsewhere.1.0.part'  # of the file 'a.b'
    for left in ('.a.elsewhere.1.0.part', of_another_path):
        (tmp_path / left).touch()
    (tmp_path / '.a.elsewhere.1.1.part').mkdir()
    now = time.time()
    monkeypatch.setattr(time, 'time', lambda: now + 23 * 60 * 60)
    files.write_text(path, 'x')
    assert len(list(tmp_path.iterdir())) == 4
    monkeypatch.setattr(time, 'time', lambda: now + 25 * 60 * 60)
    files.write_text(path, 'y')
    assert sorted(tmp_path.iterdir()) == [of_another_path, path]


def test_a_file_that_a_library_opens_by_its_path(tmp_path):
    path = tmp_path / 'folder' / 'a.bin'
    with files.whole_path(path) as hidden:
        hidden.write_bytes(b'1')
        assert hidden.parent == path.parent and not path.exists()
    with pytest.raises(ValueError, match='range'), files.whole_path(path) as hidden:
        hidden.write_bytes(bytes([300]))
    with pytest.raises(FileNotFoundError), files.whole_path(path):  # nothing was written
        pass
    assert path.read_bytes() == b'1' and os.listdir(path.parent) == ['a.bin']


def folder_of(path, text):
    path.mkdir()
    (path / 'meta.json').write_text(text)
    return path


KILLED = """
import os, pathlib, signal, sys
from medjax import files
path, rename, calls = pathlib.Path(sys.argv[1]), pathlib.Path.rename, []
def kill_at_the_second(self, to):
    calls.append(to)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, to)
pathlib.Path.rename = kill_at_the_second
with files.whole_folder(path) as folder:
    (folder / 'meta.json').write_text('new')
"""


def test_a_folder_whose_writer_is_killed_between_two_renames_comes_back(tmp_path):
    path = folder_of(tmp_path / '10', 'old')
    assert subprocess.run([sys.executable, '-c', KILLED, str(path)]).returncode == -signal.SIGKILL
    assert not path.exists() and len(os.listdir(tmp_path)) == 2
    files.sweep(path)
    assert (path / 'meta.json').read_text() == 'old' and os.listdir(tmp_path) == ['10']
    with files.whole_folder(path) as folder:
        (folder / 'meta.json').write_text('newer')
    assert (path / 'meta.json').read_text() == 'newer' and os.listdir(tmp_path) == ['10']


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path, rename = folder_of(tmp_path / '10', 'old'), Path.rename

    def fail(self, to):
        if self.suffix == '.part':
            raise OSError('no space')
        return rename(self, to)

    monkeypatch.setattr(Path, 'rename', fail)
    with pytest.raises(OSError, match='no space'), files.whole_folder(path) as folder:
        (folder / 'meta.json').write_text('new')
    assert (path / 'meta.json').read_text() == 'old' and os.listdir(tmp_path) == ['10']
    with pytest.raises(FileNotFoundError):
        files.replace_folder(tmp_path / 'nothing', path)
    assert (path / 'meta.json').read_text() == 'old' and os.listdir(tmp_path) == ['10']
