"""Which exports of a run there are to probe, now or as they come."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from medjax.errors import UserError
from medjax.weights import export

T = TypeVar('T')

# What a folder that is still being copied raises when it is read.
UNREADABLE = (UserError, OSError, ValueError, KeyError)

# A run that is silent for so long was stopped or killed: it logs every few steps, so every few minutes at most, and
# compiling or writing a checkpoint takes minutes too. Where one is only slow, `--follow` can be started again.
PATIENCE_S = 3600.0


def chosen(run: pathlib.Path, steps: str | None) -> list[int]:
    """The steps to probe: 'all', '100,200', or None for the newest export."""
    there = _there(run)
    if not there:
        raise UserError(f'{run} has no exports yet; `--follow` waits for them')
    if steps is None:
        return there[-1:]
    if steps == 'all':
        return there
    try:
        wanted = [int(step) for step in steps.split(',')]
    except ValueError:
        raise UserError(f"--steps: 'all' or numbers such as 1000,2000, not {steps!r}") from None
    if missing := [step for step in wanted if step not in there]:
        raise UserError(f'{run} has no export of step {_list(missing)}; it has {_list(there)}')
    return wanted


def each(
    run: pathlib.Path, steps: Sequence[int], load: Callable[[pathlib.Path], T]
) -> Iterator[tuple[int, T | Exception]]:
    """Each step with its loaded export, or with the error where it cannot be read."""
    for step in steps:
        yield step, _load(run, step, load)


def follow(
    run: pathlib.Path, load: Callable[[pathlib.Path], T], every_s: float = 5.0, patience_s: float = PATIENCE_S
) -> Iterator[tuple[int, T | Exception]]:
    """Each export as it appears, until RUN/DONE is there and all have been given.

    Ends as well, with a sentence, once there was neither a new export nor a change of metrics.jsonl for `patience_s`.
    A run that has no folder yet is waited for without limit: its job may be in a queue.
    An export that cannot be read is tried again at every poll, as somebody may still be copying it; what is unreadable
    at the end is given as its error.
    """
    given: set[int] = set()
    if not run.is_dir():
        print(f'{run} is not there yet: waiting for the run to begin', file=sys.stderr, flush=True)
    signs, heard = _signs(run), time.monotonic()
    while True:
        done = (run / 'DONE').exists()  # asked before listing: an export written before DONE cannot be missed
        now, last = time.monotonic(), signs
        signs = _signs(run)
        if signs != last or not run.is_dir():
            heard = now
        ended = done or now - heard > patience_s
        for step in _there(run):
            if step not in given:
                loaded = _load(run, step, load)
                if ended or not isinstance(loaded, Exception):
                    given.add(step)
                    yield step, loaded
        if ended:
            if not done:
                silent = f'no new export and no change of metrics.jsonl for {patience_s / 60:.0f} minutes'
                words = (
                    f'{run}: {silent}; it seems to have been stopped, so no more waiting (start again if it goes on)'
                )
                print(words, file=sys.stderr, flush=True)
            return
        time.sleep(every_s)


def _signs(run: pathlib.Path) -> tuple[object, ...]:
    """What a run that goes on changes."""
    try:
        log = (run / 'metrics.jsonl').stat()
    except OSError:
        return run.is_dir(), *_there(run)
    return log.st_size, log.st_mtime_ns, *_there(run)


def _there(run: pathlib.Path) -> list[int]:
    return list(export.steps(run)) if (run / 'exports').is_dir() else []


def _load(run: pathlib.Path, step: int, load: Callable[[pathlib.Path], T]) -> T | Exception:
    try:
        return load(run / 'exports' / str(step))
    except UNREADABLE as error:
        return error


def _list(steps: Sequence[int]) -> str:
    return ', '.join(map(str, steps))
