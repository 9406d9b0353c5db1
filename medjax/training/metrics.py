"""The numbers of a run on the host: metrics.jsonl (the source of truth), TensorBoard, and a progress bar or line.

Between log intervals the host does not wait for the device. Metrics stay jax arrays, and one `device_get` per interval
fetches them all, so the host runs ahead and the accelerator never waits.
"""

from __future__ import annotations

import functools
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import Array

from medjax import files
from medjax.training.goodput import Times

FLUSH = 30  # seconds; a flush of TensorBoard's file waits for the disk
COUNTS = ('skipped', 'skipped_in_a_row')  # a line holds the last value of a count, and the mean of other numbers

# Dense bf16 FLOP/s of one jax device, from the makers' data sheets. The first name that device_kind contains counts.
PEAKS = {
    'H100 PCIe': 756e12,
    'H100 NVL': 835e12,
    'H100': 989e12,
    'H200': 989e12,
    'A100': 312e12,
    'TPU v4': 275e12,
    'TPU v5 lite': 197e12,
    'TPU v5e': 197e12,
    'TPU v5': 459e12,  # jax's name for v5p
    'TPU v6': 918e12,
}


class Peak(NamedTuple):
    """The peak FLOP/s that MFU is relative to."""

    flops: float | None  # FLOP/s of all devices of the run together; None: unknown, so there is no MFU
    description: str  # what the number is, for messages


def peak_flops(devices: Sequence[jax.Device], dtype: str = 'bfloat16') -> Peak:
    """The peak FLOP/s of `devices`: known for accelerators (dense bf16), measured for a CPU (float32).

    Virtual CPU devices, and processes of one run on this machine, share its cores, so a CPU counts once.
    """
    kind = devices[0].device_kind
    if devices[0].platform == 'cpu':
        flops = measured_cpu_peak()
        return Peak(flops, f'CPU, {flops / 1e9:.0f} GFLOP/s measured with a float32 matrix product over all cores')
    one = next((flops for name, flops in PEAKS.items() if name in kind), None)
    if one is None:
        return Peak(None, f'{kind}: peak unknown, so no MFU')
    against = 'dense bf16' if dtype == 'bfloat16' else f'dense bf16, though this run computes in {dtype}'
    return Peak(one * len(devices), f'{len(devices)} x {kind}, {one / 1e12:.0f} TFLOP/s each ({against})')


@functools.cache
def measured_cpu_peak(size: int = 1024, budget: float = 0.8) -> float:
    """FLOP/s of a jitted float32 `size`³ matrix product (2·size³ FLOPs), the best run within `budget` seconds."""
    device = jax.local_devices(backend='cpu')[0]
    x = jax.device_put(np.random.default_rng(0).standard_normal((size, size), np.float32), device)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))  # compiles
    best, end = math.inf, time.perf_counter() + budget
    while time.perf_counter() < end:
        start = time.perf_counter()
        jax.block_until_ready(product(x, x))
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


class Writer:
    """Collects the metrics of every step and writes their means once per log interval.

    Args:
        run: the folder RUN; metrics.jsonl and tensorboard/ lie in it.
        total_steps: where the run ends (for the bar and the time left).
        every: the log interval in steps.
        start_step: number of steps before this session. Later lines, which a killed run left, are cut from the file.
        flops: model FLOPs of one step of the whole batch; None if unknown.
        peak: the peak that MFU is relative to (`peak_flops`).
        times: adds goodput and input stall to a line.
        enabled: true on process 0 alone; on other processes every call does nothing.

    `history` holds every line so far, also those from before a resume. health.verdict reads it.
    """

    def __init__(
        self,
        run: str | os.PathLike,
        total_steps: int,
        every: int,
        start_step: int = 0,
        *,
        flops: float | None = None,
        peak: Peak | None = None,
        times: Times | None = None,
        enabled: bool = True,
    ) -> None:
        self.enabled, self.total_steps, self.every = enabled, total_steps, every
        self.flops, self.peak, self.times, self._peak_exceeded = flops, peak, times, False
        self.history: list[dict[str, Any]] = []
        self._images = 0  # since the clock was started
        self._clock: float | None = None
        if not enabled:
            return
        from tqdm import tqdm

        folder = epath.Path(run)
        self.path = folder / 'metrics.jsonl'
        with files.writing(f'the metrics {self.path}'):
            folder.mkdir(parents=True, exist_ok=True)
            self.history = cut(self.path, start_step)
            self._file = open(self.path, 'ab', buffering=0)  # noqa: SIM115
            self._board = Board(folder / 'tensorboard', start_step)
        self._bar = tqdm(total=total_steps, initial=start_step, unit='step', disable=None, dynamic_ncols=True)
        self._waiting: list[Mapping[str, Array]] = []  # the steps of this interval, still on the device
        self._step = start_step

    def begin_stage(self, flops: float | None) -> None:
        """The next step is the first of a stage: it compiles, and its steps have other FLOPs."""
        self.flops, self._images, self._clock = flops, 0, None

    def step(self, step: int, metrics: Mapping[str, Array], images: int) -> dict[str, Any] | None:
        """Takes the metrics of one step (scalars on the device), the number of steps so far, and its global images.

        Returns the line that was written, at the end of a log interval and of the run; else None.
        """
        if not self.enabled:
            return None
        self._waiting.append(metrics)
        self._step = step
        if self._clock is None:  # the first step compiles: start the clock when it is over
            jax.block_until_ready(metrics)
            self._clock = time.perf_counter()
        else:
            self._images += images
        self._bar.update(1)
        return self.flush(images) if step % self.every == 0 or step == self.total_steps else None

    def flush(self, images_per_step: int) -> dict[str, Any] | None:
        """Writes the line of the interval so far; also called before a run stops."""
        if not self.enabled or not self._waiting:
            return None
        steps = jax.device_get(self._waiting)  # the one place that waits for the device
        now = time.perf_counter()
        line = {'step': self._step, 'time': round(time.time(), 3)}
        if self._images:
            line['images_per_s'] = self._images / (now - self._clock)
            if self.flops and self.peak and self.peak.flops:
                line['mfu'] = self._mfu(line['images_per_s'] / images_per_step * self.flops)
        if self.times is not None:
            line |= self.times.interval()
        line |= means(steps)
        line = {name: finite(value) for name, value in line.items()}
        self._waiting, self._images, self._clock = [], 0, now

        with files.writing(f'the metrics {self.path}'):
            self._append(json.dumps(line, allow_nan=False) + '\n')
            self._board.add(self._step, {k: v for k, v in line.items() if v is not None and k not in ('step', 'time')})
        self.history.append(line)
        self._show(line, images_per_step)
        return line

    def _append(self, line: str) -> None:
        """Writes a line whole or not at all, in one write: a kill tears the last at most, a full disk none."""
        end, content = os.fstat(self._file.fileno()).st_size, line.encode()
        try:
            while content:
                content = content[self._file.write(content) :]  # what still fits; the next write gives the error
        except OSError:
            self._file.truncate(end)
            raise

    def say(self, text: str) -> None:
        """Prints a sentence without breaking the progress bar."""
        if self.enabled:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self.enabled:
            self._bar.close()
            self._file.close()
            with files.writing(f'the metrics {self.path.parent / "tensorboard"}'):
                self._board.close()

    def _mfu(self, flops_per_s: float) -> float | None:
        """The share of the peak, or None if the peak is too low: once a line exceeds it, for the rest of the run.

        A CPU's peak is too low if other programs used the processors while it was measured.
        """
        if not self._peak_exceeded and flops_per_s > self.peak.flops:
            self._peak_exceeded = True
            self.say(
                f'MFU is unknown from here on: the run computes {flops_per_s / 1e9:.4g} GFLOP/s, more than the peak '
                f'({self.peak.description}). A peak is too low if other programs were busy while it was measured.'
            )
        return None if self._peak_exceeded else flops_per_s / self.peak.flops

    def _show(self, line: Mapping[str, Any], images_per_step: int) -> None:
        fields = []
        if 'loss' in line:
            fields += ['loss not finite' if line['loss'] is None else f'loss {line["loss"]:.4g}']
        if line.get('images_per_s'):
            fields += [f'{line["images_per_s"]:.4g} images/s']
        if line.get('mfu'):
            fields += [f'MFU {100 * line["mfu"]:.1f} %']
        if not self._bar.disable:
            return self._bar.set_postfix_str(', '.join(fields))
        if line.get('images_per_s'):
            left = (self.total_steps - self._step) * images_per_step / line['images_per_s']
            fields += [f'{duration(left)} left']
        print(f'step {self._step}/{self.total_steps}: ' + ', '.join(fields), file=sys.stderr, flush=True)


class Board:
    """RUN/tensorboard: the numbers of each line, without a thread.

    tensorboardX's own writer has a thread. On a full disk the thread ends, and the run would wait for it forever.
    """

    def __init__(self, folder: epath.Path, start_step: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(os.fspath(folder / 'events'))
        log = SessionLog(status=SessionLog.START)  # a viewer leaves out what a killed run wrote after this step
        self._writer.write_event(Event(wall_time=time.time(), step=start_step + 1, session_log=log))
        self._writer.flush()
        self._flushed = time.monotonic()

    def add(self, step: int, numbers: Mapping[str, float]) -> None:
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        for name, value in numbers.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary.scalar(name, value)))
        if time.monotonic() > self._flushed + FLUSH:
            self._writer.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        self._writer.close()


def means(steps: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of each number over the steps of an interval, finite values only; for COUNTS the last value.

    A number that was never finite stays NaN. A step in which a term had no rows (loss 0.0, rows 0) does not count for
    the term's other numbers.
    """
    result = {}
    for name in dict.fromkeys(name for step in steps for name in step):
        rows = '/'.join(name.split('/')[:2]) + '/rows' if name.startswith('term/') else None
        values = np.array(
            [float(step[name]) for step in steps if name in step and (name == rows or step.get(rows, 1) != 0)]
        )
        good = values[np.isfinite(values)]
        if name in COUNTS:
            result[name] = float(values[-1])
        elif len(values):
            result[name] = float(good.mean()) if len(good) else math.nan
    return result


def finite(value: Any) -> Any:
    """None for NaN and infinite numbers, which JSON does not have."""
    return value if not isinstance(value, float) or math.isfinite(value) else None


def cut(path: epath.Path, step: int) -> list[dict[str, Any]]:
    """Removes from metrics.jsonl the lines after `step` and a torn last line; returns the other lines."""
    if not path.exists():
        return []
    text = path.read_bytes().decode(errors='replace')
    lines = []
    for raw in text.splitlines():
        try:
            line = json.loads(raw)
        except json.JSONDecodeError:
            continue  # torn, or damaged
        if isinstance(line, dict) and isinstance(line.get('step'), int) and line['step'] <= step:
            lines.append(line)
    kept = ''.join(json.dumps(line) + '\n' for line in lines)
    if kept != text:
        files.write_text(path, kept)
    return lines


def duration(seconds: float) -> str:
    """3725.4 -> '1:02:05'."""
    minutes, s = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02}:{s:02}'
