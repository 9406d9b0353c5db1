"""Files and folders that are written whole or not at all.

A file is written under a hidden name beside its place and renamed at the end. So a reader never meets half of a file,
whenever the writer is killed. The hidden name holds the host and the process that writes. The next write to the same
place removes what killed processes left behind: those of this host at once, those of other hosts after a day.

A folder that is replaced is set aside under a second hidden name until the new one is in its place. If the writer is
killed between, the next write to the place puts it back.

    with files.whole(path, 'wb') as file:        # any file
        np.savez(file, **arrays)
    files.write_json(path, result)               # the common kinds
    with files.whole_path(path) as hidden:       # a file that a library opens by its path
        save_file(arrays, hidden)
    with files.whole_folder(path) as folder:     # a folder: appears under its name when the block ends
        (folder / 'meta.json').write_text(…)
    files.replace_folder(folder, path)           # a finished folder takes the place of another one

A full or read-only disk is no bug. These functions raise the OSError; `writing` makes it a sentence:

    with files.writing(f'the export {path}'):
        …
"""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import json
import os
import re
import shutil
import socket
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from medjax.errors import UserError

SUFFIX = '.part'
ASIDE = '.old'  # of a folder that is being replaced
DAY = 24 * 60 * 60  # seconds; nobody writes one file for so long
_numbers = itertools.count()  # threads of one process may write to one place
_HIDDEN = re.compile(r'\.(.+)\.([^.]+)\.(\d+)\.\d+(\.part|\.old)')  # name, host, process, suffix

_SPACE = 'free some, and run the same command again'
_PLACE = 'make it writable, or choose another folder'
# Why a disk takes no file, and what would help.
REASONS = {
    errno.ENOSPC: f'no space is left on the disk; {_SPACE}',
    errno.EDQUOT: f'your quota of the disk is used up; {_SPACE}',
    errno.EFBIG: 'it is larger than a file may be here (`ulimit -f` shows the limit of the shell)',
    errno.EIO: 'the disk reports an error; look at it before you go on',
    errno.EROFS: f'the file system is read-only; {_PLACE}',
    errno.EACCES: f'permission denied; {_PLACE}',
    errno.EPERM: f'permission denied; {_PLACE}',
}


# What numpy raises for an .npz file that is missing, cut or changed, or lacks an array.
NPZ_ERRORS = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


def reason(error: BaseException) -> str | None:
    """Why the disk does not take a file, and what would help; None for every other error.

    Libraries in C++ raise errors of their own, which hold only the words of the operating system.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return REASONS.get(error.errno)
    return next((why for number, why in REASONS.items() if os.strerror(number) in str(error)), None)


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Makes a UserError of an error of the disk. `what` names what is written: 'the export runs/a/exports/8'."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if (why := reason(error)) is None:
            raise
        raise UserError(f'{what} cannot be written: {why}') from error


def check_writable(path: str | os.PathLike, what: str) -> None:
    """UserError if nothing can be made at `path`, a folder that may not be there yet. Nothing stays behind."""
    place = Path(path).absolute()
    while not place.is_dir():
        if place.exists() or place == place.parent:
            raise UserError(f'{what} cannot be written: {place} is no folder')
        place = place.parent
    probe = _hidden(place / 'probe')
    with writing(what):
        try:
            probe.write_text('.')
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)


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
        replace_folder(hidden, path)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


def replace_folder(new: str | os.PathLike, path: str | os.PathLike) -> None:
    """Renames the folder `new` to `path`, and deletes what was there. After an error what was there is still there."""
    path = Path(path)
    aside = _hidden(path, ASIDE)
    if path.exists():
        path.rename(aside)
    try:
        Path(new).rename(path)
    except BaseException:
        if aside.exists():
            aside.rename(path)
        raise
    _remove(aside)


def remove_folder(path: str | os.PathLike) -> None:
    """Deletes a folder. For readers it is gone at once, whole; `sweep` ends a deletion that was killed."""
    path = Path(path)
    hidden = _hidden(path)
    path.rename(hidden)
    _remove(hidden)


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
    """Removes what killed processes left behind while they wrote `path`, and puts back a folder that they set aside."""
    for left in sorted(path.parent.glob(f'.{glob.escape(path.name)}.*')):
        parts = _HIDDEN.fullmatch(left.name)
        if parts is None or parts[1] != path.name or not _is_left(left, parts[2], int(parts[3])):
            continue
        if parts[4] == ASIDE and not path.exists():
            left.rename(path)
        else:
            _remove(left)


def sweep_below(folder: Path) -> None:
    """The same for everything in a folder and below it."""
    found = {
        Path(at, parts[1])
        for at, folders, names in os.walk(folder)
        for name in (*folders, *names)
        if (parts := _HIDDEN.fullmatch(name))
    }
    for path in sorted(found):
        sweep(path)


def _is_left(hidden: Path, host: str, process: int) -> bool:
    """Whether nobody writes this hidden file or folder any more."""
    if host == _host():
        return not is_alive(process)
    try:
        about = hidden.stat()
    except FileNotFoundError:  # it got its name just now
        return False
    return max(about.st_mtime, about.st_ctime) < time.time() - DAY  # a rename changes ctime


def _remove(path: Path) -> None:
    folder = path.is_dir() and not path.is_symlink()
    shutil.rmtree(path, ignore_errors=True) if folder else path.unlink(missing_ok=True)


def _hidden(path: Path, suffix: str = SUFFIX) -> Path:
    return path.with_name(f'.{path.name}.{_host()}.{os.getpid()}.{next(_numbers)}{suffix}')


def _host() -> str:
    return socket.gethostname().replace('.', '-')  # a dot ends the host in a hidden name


def is_alive(process: int) -> bool:
    """Whether a process of this machine runs."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):  # a number that no process has
        return False
    except PermissionError:  # a process of somebody else
        return True
    return True
