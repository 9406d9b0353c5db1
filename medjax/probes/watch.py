"""Finds the exports of a run that `medjax probe` evaluates, now or as training writes them."""

from __future__ import annotations

import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from medjax.errors import UserError
from medjax.weights import export

T = TypeVar('T')

# Errors of reading a folder that is still being copied.
UNREADABLE = (UserError, OSError, ValueError, KeyError)

# A run without any sign for this long was stopped or killed. A live run logs every few steps, so every few minutes at
# most; compiling or writing a checkpoint takes minutes too. If a run is only slow, `--follow` can be started again.
PATIENCE_S = 3600.0


def select_steps(run: pathlib.Path, steps: str | None) -> list[int]:
    """The steps that `--steps` names: 'all', '100,200', or None for the newest export."""
    exported = _exported(run)
    if not exported:
        raise UserError(f'{run} has no exports yet; `--follow` waits for them')
    if steps is None:
        return exported[-1:]
    if steps == 'all':
        return exported
    try:
        wanted = [int(step) for step in steps.split(',')]
    except ValueError:
        raise UserError(f"--steps: 'all' or numbers such as 1000,2000, not {steps!r}") from None
    if missing := [step for step in wanted if step not in exported]:
        raise UserError(f'{run} has no export of step {_list(missing)}; it has {_list(exported)}')
    return wanted


def load_each(
    run: pathlib.Path, steps: Sequence[int], load: Callable[[pathlib.Path], T]
) -> Iterator[tuple[int, T | Exception]]:
    """Yields each step with its loaded export, or with the error if it cannot be read.

    An export that the training has deleted since (`export.keep`) is told and left out.
    """
    for step in steps:
        loaded = _load(run, step, load)
        if isinstance(loaded, Exception) and is_deleted(run / 'exports' / str(step)):
            say_deleted(run / 'exports' / str(step))
        else:
            yield step, loaded


def follow(
    run: pathlib.Path, load: Callable[[pathlib.Path], T], every_s: float = 5.0, patience_s: float = PATIENCE_S
) -> Iterator[tuple[int, T | Exception]]:
    """Yields each export when it appears, until RUN/DONE exists and all exports were yielded.

    It also ends, with a message, after `patience_s` without a new export and without a change of metrics.jsonl. A run
    without a folder is waited for without limit, because its job may be in a queue.
    An export that cannot be read is tried again at every poll, because it may still be copied. If it is unreadable at
    the end, its error is yielded. An export that the training deletes while it is read (`export.keep`) is told and left
    out.
    """
    yielded: set[int] = set()
    if not run.is_dir():
        print(f'{run} is not there yet: waiting for the run to begin', file=sys.stderr, flush=True)
    signs, last_sign = _signs_of_life(run), time.monotonic()
    while True:
        done = (run / 'DONE').exists()  # before the exports are listed: DONE is written after the last export
        now, before = time.monotonic(), signs
        signs = _signs_of_life(run)
        if signs != before or not run.is_dir():
            last_sign = now
        ended = done or now - last_sign > patience_s
        for step in _exported(run):
            if step not in yielded:
                loaded = _load(run, step, load)
                if isinstance(loaded, Exception) and is_deleted(run / 'exports' / str(step)):
                    say_deleted(run / 'exports' / str(step))
                elif ended or not isinstance(loaded, Exception):
                    yielded.add(step)
                    yield step, loaded
        if ended:
            if not done:
                silence = f'no new export and no change of metrics.jsonl for {patience_s / 60:.0f} minutes'
                advice = 'the run seems to have been stopped; if it goes on, start this command again'
                print(f'{run}: {silence}; {advice}', file=sys.stderr, flush=True)
            return
        time.sleep(every_s)


def is_deleted(export: pathlib.Path) -> bool:
    """Whether an export that was there is no longer."""
    return not (export / 'meta.json').exists()


def say_deleted(export: pathlib.Path) -> None:
    print(f'{export} was deleted while it was read, so it is left out (export.keep)', file=sys.stderr, flush=True)


def _signs_of_life(run: pathlib.Path) -> tuple[object, ...]:
    """Values that change while the run goes on: its exports, the size and time of metrics.jsonl."""
    try:
        log = (run / 'metrics.jsonl').stat()
    except OSError:
        return run.is_dir(), *_exported(run)
    return log.st_size, log.st_mtime_ns, *_exported(run)


def _exported(run: pathlib.Path) -> list[int]:
    return list(export.steps(run)) if (run / 'exports').is_dir() else []


def _load(run: pathlib.Path, step: int, load: Callable[[pathlib.Path], T]) -> T | Exception:
    try:
        return load(run / 'exports' / str(step))
    except UNREADABLE as error:
        return error


def _list(steps: Sequence[int]) -> str:
    return ', '.join(map(str, steps))
