"""Where the wall time of a run goes: its steps, and everything that kept the devices from them.

The host runs ahead of the devices. A host that reads or writes costs nothing as long as the devices still have steps
to do. So a thread notes when each step is finished, and only the time after that counts as lost.

    goodput      the share of the time in which the devices did steps that count, over all sessions of the run
    input stall  the share of a log interval in which the devices waited for a batch
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax import Array

from medjax import files

FILE = 'goodput.json'
LOST = ('compile', 'input', 'checkpoint', 'export', 'gauge')  # phases of the loop that are no steps
KINDS = ('steps', *LOST, 'setup', 'restart', 'stopped')


class Times:
    """The clock of one session of a run. `phase`, `moves` and `finished` say whether it moves (see watchdog.py)."""

    def __init__(self) -> None:
        self.phase, self.moves = 'setup', 0
        self.dispatched_step = self.finished = 0  # the last step that was started, and that the devices have done
        self._begin = self._interval = time.perf_counter()
        self._finished_at = 0.0
        self._lost = dict.fromkeys(LOST, 0.0)
        self._training = 0.0  # seconds inside the loop
        self._loop: float | None = None  # when it was entered
        self._stalled = 0.0  # seconds of input before the present log interval
        self._count = 0  # steps of this session
        self._earlier = dict.fromkeys(KINDS, 0.0)
        self._sessions, self._earlier_count, self._repeated = 1, 0, 0
        self._steps: queue.SimpleQueue[tuple[int, Array] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._note, name='goodput', daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._steps.put(None)
        self._thread.join(5)

    def go_on(self, folder: Path, start: int) -> None:
        """Adds what earlier sessions of the run took. Steps that they did after `start` are repeated: lost."""
        before = read(folder)
        if before is None:
            return
        seconds, count = before['seconds'], before['counted']
        self._repeated = before['repeated'] + max(before['step'] - start, 0)
        again = min(max(before['step'] - start, 0), count)
        moved = seconds['steps'] * again / count if count else 0.0
        self._earlier = seconds | {
            'steps': seconds['steps'] - moved,
            'restart': seconds['restart'] + moved,
            'stopped': seconds['stopped'] + max(time.time() - self._age() - before['time'], 0.0),
        }
        self._sessions, self._earlier_count = before['sessions'] + 1, count - again

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """The loop. What is outside of it is the set-up of a session."""
        self._loop = self._interval = time.perf_counter()
        self.phase = 'step'
        try:
            yield
        finally:
            self.phase = 'setup'
            self._training += time.perf_counter() - self._loop
            self._loop = None

    @contextlib.contextmanager
    def of(self, phase: str) -> Iterator[None]:
        """The host does something. It is lost time as far as the devices have nothing to do."""
        before, self.phase = self.phase, phase
        self.moves += 1
        begin = time.perf_counter()
        try:
            yield
        finally:
            end = time.perf_counter()
            if phase in self._lost and self.finished >= self.dispatched_step:
                self._lost[phase] += max(end - max(begin, self._finished_at), 0.0)
            self.phase = before
            self.moves += 1

    def dispatched(self, step: int, result: Array) -> None:
        """A step was handed to the devices; `result` is there when they have done it."""
        self.dispatched_step = step
        self._count += 1
        self._steps.put((step, result))

    def _note(self) -> None:
        while (item := self._steps.get()) is not None:
            step, result = item
            with contextlib.suppress(Exception):  # the loop meets the error itself
                result.block_until_ready()
            self._finished_at, self.finished = time.perf_counter(), step
            self.moves += 1

    def interval(self) -> dict[str, float]:
        """`goodput` so far and the `input_stall` since the last call, for a line of metrics.jsonl."""
        now, stalled = time.perf_counter(), self._lost['input']
        share = (stalled - self._stalled) / max(now - self._interval, 1e-9)
        self._interval, self._stalled = now, stalled
        return {'goodput': share_of_steps(self.seconds()), 'input_stall': min(share, 1.0)}

    def seconds(self) -> dict[str, float]:
        """Seconds of the whole run by kind."""
        training = self._training + (time.perf_counter() - self._loop if self._loop is not None else 0.0)
        now = dict.fromkeys(KINDS, 0.0) | self._lost
        now['steps'] = max(training - sum(self._lost.values()), 0.0)
        now['setup' if self._sessions == 1 else 'restart'] = self._age() - training
        return {kind: self._earlier[kind] + now[kind] for kind in KINDS}

    def _age(self) -> float:
        return time.perf_counter() - self._begin

    def write(self, folder: Path, step: int) -> None:
        """RUN/goodput.json."""
        seconds = self.seconds()
        content = dict(
            goodput=round(share_of_steps(seconds), 4),
            seconds={kind: round(value, 3) for kind, value in seconds.items()},
            sessions=self._sessions,
            step=step,
            counted=self._earlier_count + self._count,
            repeated=self._repeated,
            time=round(time.time(), 3),
        )
        with files.writing(f'the goodput of the run, {folder / FILE}'):
            files.write_json(folder / FILE, content)


def share_of_steps(seconds: dict[str, float]) -> float:
    """Goodput: steps against all time in which a process of the run was there."""
    there = sum(value for kind, value in seconds.items() if kind != 'stopped')
    return seconds['steps'] / there if there > 0 else 0.0


def read(folder: Path) -> dict[str, Any] | None:
    """RUN/goodput.json; None where it is not there or damaged: it is a record, and no run depends on it."""
    try:
        found = json.loads((folder / FILE).read_bytes())
        seconds = {kind: float(found['seconds'][kind]) for kind in KINDS}
        numbers = {name: int(found[name]) for name in ('sessions', 'step', 'counted', 'repeated')}
        return dict(seconds=seconds, time=float(found['time']), **numbers)
    except (OSError, ValueError, KeyError, TypeError):
        return None
