"""The chunks of a data set, made in this process or in several. Files are all that processes tell each other."""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import signal
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from medjax.data.builder import chunks
from medjax.data.builder.chunks import Chunk
from medjax.data.types import Source
from medjax.errors import UserError

FEW = 512  # entries that are not worth starting processes for


def run(
    source: Source, again: Callable[[], Source] | None, key: bytes, plan: Sequence[Chunk], folder: pathlib.Path
) -> None:
    """Makes all chunks of the plan in `folder`: in threads, or in a process for each core where `again` can be sent
    there to make the source once more. A progress bar on a terminal."""
    from tqdm import tqdm

    total = sum(len(chunk.entries) for chunk in plan)
    count = min(os.cpu_count() or 1, len(plan))
    with tqdm(total=total, desc=source.name, unit=' images', disable=None) as bar:
        if again is None or count < 2 or total <= FEW:
            import tensorflow_datasets  # noqa: F401  patches __import__ while it loads: before the threads, never beside

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for chunk in plan:
                    chunks.write(source, key, chunk, folder, bar.update, pool)
        else:
            _in_processes(again, key, [list(plan[k::count]) for k in range(count)], folder, bar)


def _in_processes(
    again: Callable[[], Source], key: bytes, shares: list[list[Chunk]], folder: pathlib.Path, bar: Any
) -> None:
    """One process for each share; the first error, an interrupt or a killed process ends all of them."""
    context = multiprocessing.get_context('spawn')  # forks of a process with threads may hang
    done, errors = context.Value('q', 0), context.SimpleQueue()
    started = [
        context.Process(target=_work, args=(again, key, share, folder, done, errors, os.getpid()), daemon=True)
        for share in shares
    ]
    try:
        for process in started:
            process.start()
        while any(process.is_alive() for process in started):
            for process in started:
                process.join(0.2 / len(started))
            bar.update(done.value - bar.n)
            if any(process.exitcode for process in started):
                break
        bar.update(done.value - bar.n)
    finally:
        for process in started:
            process.terminate()
            process.join()
    if not errors.empty():
        kind, words = errors.get()
        raise UserError(words) if kind == 'user' else OSError(*words) if kind == 'os' else RuntimeError(words)
    if failed := [process.exitcode for process in started if process.exitcode]:
        raise UserError(
            f'a process of the build ended with code {failed[0]} (killed? out of memory?); the same command goes on'
        )


def _work(
    again: Callable[[], Source], key: bytes, share: list[Chunk], folder: pathlib.Path, done: Any, errors: Any, boss: int
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others

    def advance(n: int) -> None:
        with done.get_lock():
            done.value += n
        if os.getppid() != boss:  # killed: nobody would read what is made
            os._exit(1)

    try:
        source = again()
        for chunk in share:
            chunks.write(source, key, chunk, folder, advance)
    except UserError as error:
        errors.put(('user', str(error)))
        raise SystemExit(1) from None
    except OSError as error:
        errors.put(('os', (error.errno, error.strerror)))
        raise SystemExit(1) from None
    except Exception:
        errors.put(('bug', traceback.format_exc()))
        raise SystemExit(1) from None
