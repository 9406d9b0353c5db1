"""Files and folders that are written whole or not at all.

A file is written under a hidden name beside its place and renamed at the end. So a reader never meets half of a file,
whenever the writer is killed. The hidden name holds the host and the process that writes; the next write to the same
place removes what killed processes of this host left behind.

    with files.whole(path, 'wb') as file:        # any file
        np.savez(file, **arrays)
    files.write_json(path, result)               # the common kinds
    with files.whole_path(path) as hidden:       # a file that a library opens by its path
        save_file(arrays, hidden)
    with files.whole_folder(path) as folder:     # a folder: appears under its name when the block ends
        (folder / 'meta.json').write_text(…)
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

SUFFIX = '.part'
_numbers = itertools.count()  # threads of one process may write to one place


@contextlib.contextmanager
def whole(path: str | os.PathLike, mode: str = 'w') -> Iterator[IO]:
    """A file opened for writing ('w' for UTF-8 text, 'wb' for bytes), which gets its name when the block ends.

    After an error the file at `path` is the one that was there before. Missing parent folders are made.
    """
    with whole_path(path) as hidden, hidden.open(mode, encoding=None if 'b' in mode else 'utf-8') as file:
        yield file


@contextlib.contextmanager
def whole_path(path: str | os.PathLike) -> Iterator[Path]:
    """The same for a library that opens the file itself: a hidden path, which becomes `path` when the block ends."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    hidden = _hidden(path)
    try:
        yield hidden
        hidden.replace(path)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A new folder, which gets its name when the block ends; a folder that is there already is replaced."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path)
    hidden = _hidden(path)
    hidden.mkdir()
    try:
        yield hidden
        if path.exists():  # aside first: the old folder is deleted only when the new one is in its place
            old = _hidden(path)
            path.rename(old)
            hidden.rename(path)
            shutil.rmtree(old)
        else:
            hidden.rename(path)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def write_text(path: str | os.PathLike, text: str) -> None:
    with whole(path) as file:
        file.write(text)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """`value` as indented JSON; ValueError where it holds a number that is not finite."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + '\n')


def write_npz(path: str | os.PathLike, compressed: bool = False, **arrays: np.ndarray) -> None:
    with whole(path, 'wb') as file:
        (np.savez_compressed if compressed else np.savez)(file, **arrays)  # type: ignore[arg-type]


def sweep(path: Path) -> None:
    """Removes what killed processes of this host left behind while they wrote `path`."""
    start = f'.{path.name}.'
    for left in path.parent.glob(f'{glob.escape(start)}*{SUFFIX}'):
        host, _, rest = left.name[len(start) : -len(SUFFIX)].rpartition('.')[0].rpartition('.')
        if host == socket.gethostname() and rest.isdecimal() and not _is_alive(int(rest)):
            shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _hidden(path: Path) -> Path:
    return path.with_name(f'.{path.name}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}{SUFFIX}')


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # a process of somebody else
        return True
    return True
