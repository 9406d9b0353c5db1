"""Files are there whole or not at all, and leftovers of killed processes are swept."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

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
