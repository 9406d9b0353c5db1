"""Makes the chunks of a data set: in threads of this process, or in several processes.

The processes share no memory but a counter and a queue of errors. Their results are files: each process writes its own
chunks into one common folder.
"""

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

MAX_FOR_THREADS = 512  # entries; starting processes is not worth its time for so few


def run(
    source: Source, make_source: Callable[[], Source] | None, key: bytes, plan: Sequence[Chunk], folder: pathlib.Path
) -> None:
    """Makes all chunks of `plan` in `folder`, with a progress bar on a terminal.

    With `make_source`, the factory of the source for worker processes, it starts one process per core. Without it, for
    few entries, or on one core, it uses threads of this process.
    """
    from tqdm import tqdm

    total = sum(len(chunk.entries) for chunk in plan)
    count = min(os.cpu_count() or 1, len(plan))
    with tqdm(total=total, desc=source.name, unit=' images', disable=None) as bar:
        if make_source is None or count < 2 or total <= MAX_FOR_THREADS:
            # tensorflow_datasets patches __import__ while it loads, so it loads before the threads start
            import tensorflow_datasets  # noqa: F401

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                for chunk in plan:
                    chunks.write(source, key, chunk, folder, bar.update, pool)
        else:
            _run_in_processes(make_source, key, [list(plan[k::count]) for k in range(count)], folder, bar)


def _run_in_processes(
    make_source: Callable[[], Source], key: bytes, shares: list[list[Chunk]], folder: pathlib.Path, bar: Any
) -> None:
    """Runs one process per share. The first error, Ctrl-C or a killed process ends all of them."""
    context = multiprocessing.get_context('spawn')  # a fork of a process with threads may hang
    done, errors = context.Value('q', 0), context.SimpleQueue()
    processes = [
        context.Process(
            target=_run_share, args=(make_source, key, share, folder, done, errors, os.getpid()), daemon=True
        )
        for share in shares
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            for process in processes:
                process.join(0.2 / len(processes))
            bar.update(done.value - bar.n)
            if any(process.exitcode for process in processes):
                break
        bar.update(done.value - bar.n)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    if not errors.empty():
        kind, content = errors.get()
        raise UserError(content) if kind == 'user' else OSError(*content) if kind == 'os' else RuntimeError(content)
    if failed := [process.exitcode for process in processes if process.exitcode]:
        raise UserError(
            f'a process of the build ended with code {failed[0]} (killed, perhaps for lack of memory); run the same '
            'command again, it continues with the finished chunks'
        )


def _run_share(
    make_source: Callable[[], Source],
    key: bytes,
    share: list[Chunk],
    folder: pathlib.Path,
    done: Any,
    errors: Any,
    parent: int,
) -> None:
    """Makes one share of the chunks in a worker process.

    `done` is the shared count of finished entries, `errors` the queue that takes an error to the parent process, and
    `parent` the id of that process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends the workers

    def advance(n: int) -> None:
        with done.get_lock():
            done.value += n
        if os.getppid() != parent:  # the parent was killed: nobody would use the chunks
            os._exit(1)

    try:
        source = make_source()
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
