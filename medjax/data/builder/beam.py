"""Makes the chunks of a data set on Apache Beam, for data sets that are too large for one machine.

Every Beam worker needs medjax and the source's files under the same paths. All workers and the machine that started
the build share the file system of the data set's folder. That machine alone draws the splits, joins the chunks and
runs the audit. A private file in the hidden work folder carries the patients' ids, the key that hashes them and the
plan. Beam itself sees only the numbers of the chunks.
"""

from __future__ import annotations

import functools
import pathlib
import pickle
import re
import shlex
import tempfile
import threading
import traceback
from collections.abc import Callable, Sequence

from medjax.data.builder import chunks
from medjax.data.builder.chunks import Chunk
from medjax.data.types import Source
from medjax.errors import UserError

_lock = threading.Lock()  # the threads of one worker share one source


def run(
    options: str,
    source: Source,
    make_source: Callable[[], Source],
    key: bytes,
    plan: Sequence[Chunk],
    folder: pathlib.Path,
) -> None:
    """Makes all chunks of `plan` in `folder`, as `workers.run` does, in a Beam pipeline.

    `options` are Beam's, for example '--runner=FlinkRunner --parallelism=64'; '' runs on this machine. `make_source`
    is the factory of the source for the workers. UserError where the workers do not share `folder`.
    """
    try:
        arguments = shlex.split(options)
    except ValueError as error:
        raise UserError(f'--beam {options}: these options cannot be read ({error})') from None
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--beam needs Apache Beam; install it with: pip install 'medjax[beam]'") from None
    with tempfile.NamedTemporaryFile(dir=folder, prefix='.job-') as job:  # only its owner can read it
        pickle.dump((make_source, key, plan), job)
        job.flush()
        try:
            with beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
                numbers = pipeline | beam.Create(range(len(plan))) | beam.Reshuffle()
                numbers | 'make chunks' >> beam.Map(functools.partial(_make_chunk, job.name))
        except Exception as error:
            # Beam appends ' [while running …]' to a worker's error, or quotes it in a RuntimeError
            lines = ''.join(traceback.format_exception_only(error))
            if match := re.search(r'medjax\.errors\.UserError: (.+?)(?: \[while running|$)', lines, re.MULTILINE):
                raise UserError(match[1]) from None
            raise


def _make_chunk(job: str, number: int) -> None:
    """Makes chunk `number` of the plan that the file `job` holds."""
    with _lock:
        source, key, plan = _load_job(job)
    chunks.write(source, key, plan[number], pathlib.Path(job).parent)


@functools.lru_cache(1)
def _load_job(job: str) -> tuple[Source, bytes, Sequence[Chunk]]:
    """Source, id key and plan; each worker process loads them once."""
    try:
        with open(job, 'rb') as file:
            make_source, key, plan = pickle.load(file)
    except OSError as error:
        raise UserError(
            f'{job}: a Beam worker cannot read it ({error.strerror}); --out must lie on a file system that all workers '
            'share, under one path and for one user'
        ) from None
    return make_source(), key, plan
