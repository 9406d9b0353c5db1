"""Signs of life of a run: a heartbeat of each process, and the end of a run that hangs.

A host that hangs, on a dead disk or in an exchange that another one never enters, would hold a whole pod for nothing.
So a thread of each process counts the seconds in which nothing moves. After a limit it prints the stacks of all threads
and ends the process with EXIT, so that a launcher can start the run again. The limit follows the steps of the run:
nothing is to be set. A process that is frozen as a whole, or dead, is found by jax's coordinator after 100 seconds.

    RUN/hosts/<process>.json         heartbeat: host, step that is finished, phase, time
    RUN/hosts/<process>.stacks.txt   the stacks of the last hang
    RUN/metrics.prom                 the last numbers and all heartbeats for Prometheus, see prometheus.py
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from medjax import files
from medjax.training import prometheus
from medjax.training.goodput import Times

EXIT = 75  # "temporary failure", as sysexits.h calls it
STILL = 600  # seconds without a move in which steps run
FACTOR = 20  # or this number of the longest time between two moves, if that is more
STILL_ELSEWHERE = 3600  # seconds in a phase that may be long by itself: set-up, compiling, saving, exporting
QUICK = ('step', 'input')
POLL, BEAT, PATIENCE = 1.0, 10.0, 5.0  # seconds: between two looks, between two heartbeats, for a disk at the end
FIELDS = {'process', 'host', 'step', 'phase', 'time'}  # of a heartbeat
DOING = {
    'setup': 'setting up or ending',
    'compile': 'compiling the step',
    'step': 'waiting for its devices or for another process',
    'input': 'reading a batch',
    'checkpoint': 'saving a checkpoint',
    'export': 'writing an export',
    'gauge': 'comparing its features with the start',
}


class Watch:
    """The two threads of one process. The watchdog touches no disk; the heartbeat may hang on one."""

    def __init__(self, folder: Path, times: Times, is_ours: Callable[[], bool]) -> None:
        self.folder, self.times, self.is_ours = folder, times, is_ours
        self.process, self.main = jax.process_index(), jax.process_index() == 0
        self.begun = False  # until then, nothing is written: a session that is refused leaves the folder as it was
        self.line: dict[str, Any] = {}  # the last line of metrics.jsonl
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=target.__name__.strip('_'), daemon=True)
            for target in (self._watch, self._beat)
        ]

    def _watch(self) -> None:
        still, longest, moves = 0.0, 0.0, -1
        while not self._end.wait(POLL):  # a process that was stopped and goes on has missed looks, so they do not count
            if self.times.moves != moves:
                if self.times.finished and self.times.phase in QUICK:
                    longest = max(longest, still)
                still, moves = 0.0, self.times.moves
                continue
            still += POLL
            quick = self.times.finished and self.times.phase in QUICK
            if still > (max(STILL, FACTOR * longest) if quick else STILL_ELSEWHERE):
                self._end_process(still)

    def _end_process(self, still: float) -> None:
        times = self.times
        print(
            f'medjax: the run hangs: process {self.process} on {socket.gethostname()} has not moved for {still:.0f} '
            f'seconds, after step {times.finished:,}, while it was {DOING[times.phase]}. The stacks of its threads '
            'follow',
            file=sys.__stderr__, flush=True,
        )  # fmt: skip
        faulthandler.dump_traceback(sys.__stderr__)
        _in_time(self._write_stacks)
        behind = _in_time(lambda: _behind(self.folder)) or ''
        if self.main:
            time.sleep(PATIENCE)  # the others may have the same to say, and end when this process ends
        print(
            f'medjax: {behind}the run ends with code {EXIT}; the same command goes on from the last checkpoint',
            file=sys.__stderr__, flush=True,
        )  # fmt: skip
        os._exit(EXIT)

    def _write_stacks(self) -> None:
        if place := self._place():
            with (place / f'{self.process}.stacks.txt').open('w') as file:
                faulthandler.dump_traceback(file)

    def _place(self) -> Path | None:
        """RUN/hosts; None where the folder is not this run's yet, or not any more."""
        place = self.folder / 'hosts'
        if not self.begun or not (self.folder / 'config.json').exists() or not self.is_ours():
            return None
        place.mkdir(exist_ok=True)
        return place

    def _beat(self) -> None:
        self.beat()
        while not self._end.wait(BEAT):
            self.beat()

    def beat(self, phase: str | None = None) -> None:
        """One heartbeat. A disk that does not take it is the business of the loop."""
        with contextlib.suppress(OSError):
            place = self._place()
            if place is None:
                return
            content = dict(
                process=self.process, host=socket.gethostname(), step=self.times.finished,
                phase=phase or self.times.phase, time=round(time.time(), 3),
            )  # fmt: skip
            files.write_json(place / f'{self.process}.json', content)
            if self.main and self.line:
                prometheus.write(self.folder, self.line, self.times.seconds(), heartbeats(self.folder))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self, phase: str) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        self.beat(phase)


@contextlib.contextmanager
def watching(folder: Path, is_ours: Callable[[], bool] = lambda: True) -> Iterator[Watch]:
    """Watches over the block, and says at its end whether it ended or failed."""
    faulthandler.enable(sys.__stderr__)  # jax aborts a process where another one is dead; this shows where it was
    times = Times()
    watch = Watch(folder, times, is_ours)
    watch.start()
    phase = 'failed'
    try:
        yield watch
        phase = 'ended'
    finally:
        times.close()
        watch.close(phase)


def heartbeats(folder: Path) -> list[dict[str, Any]]:
    """The last heartbeat of each process of a run."""
    found = []
    for path in sorted((folder / 'hosts').glob('*.json')):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_bytes()))
    return [beat for beat in found if isinstance(beat, dict) and beat.keys() >= FIELDS]


def remove_others(folder: Path, processes: int) -> None:
    """Removes heartbeats of processes that a run had before and has no more."""
    for beat in heartbeats(folder):
        if beat['process'] >= processes:
            with contextlib.suppress(OSError):
                (folder / 'hosts' / f'{beat["process"]}.json').unlink()


def _behind(folder: Path) -> str:
    """Which processes are behind the others by their heartbeats; '' for one process, or where all are at one step."""
    beats = heartbeats(folder)
    last = max((beat['step'] for beat in beats), default=0)
    late = [beat for beat in beats if beat['step'] < last or beat['phase'] != 'step']
    if len(beats) < 2 or not late or len(late) == len(beats):
        return ''
    named = '; '.join(
        f'process {beat["process"]} on {beat["host"]} was {DOING.get(beat["phase"], beat["phase"])} after step '
        f'{beat["step"]:,}' for beat in late[:4]
    )  # fmt: skip
    return f'behind the others: {named}. '


def _in_time(work: Callable[[], Any]) -> Any:
    """The result of some work on a disk; None if it fails, or does not come in time."""
    results: list[Any] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            results.append(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return results[0] if results else None
