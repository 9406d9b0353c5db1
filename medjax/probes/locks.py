"""Locks between jobs that work on one run, so that each piece of work is done by one job.

The locks are those of POSIX on single bytes of a file: they hold between processes, also of several machines. The
system frees them when a job ends, however it ends, and when the job closes the file. Where a file system has no locks,
each job gets every lock, and work may be done twice.
"""

from __future__ import annotations

import contextlib
import fcntl
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TypeVar

from medjax import files

T = TypeVar('T')

POLL = 0.5  # seconds between two looks at what other jobs do


def take(file: IO[bytes], byte: int) -> bool:
    """Whether this job holds the lock of a byte of a file from now on. The file is open for writing."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:  # this file system has no locks
        return True
    return True


def free(file: IO[bytes], byte: int) -> None:
    """Gives a lock back."""
    with contextlib.suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_UN, 1, byte)


def shared(path: Path, pieces: Mapping[T, int], what: str) -> Iterator[T]:
    """Yields each piece of work while this job holds its lock: the byte `pieces[piece]` of the file `path`.

    Pieces that another job holds come later, when that job has let go of them. So whoever gets a piece looks first
    whether it is done. `what` names the work in a message, where nothing is left but to wait.
    """
    waiting, told = list(pieces), False
    with files.writing(f'the lock {path}'):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open('ab')
    with opened as file:
        while waiting:
            held = []
            for piece in waiting:
                if not take(file, pieces[piece]):
                    held.append(piece)
                    continue
                try:
                    yield piece
                finally:
                    free(file, pieces[piece])
            if len(held) == len(waiting):
                if not told:
                    print(f'medjax: {what}: waits for another job', file=sys.stderr, flush=True)
                told = True
                time.sleep(POLL)
            waiting = held
