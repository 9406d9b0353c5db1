"""The chunks of a data set, made by Apache Beam: for those who outgrow one machine.

Every worker has medjax installed, finds the source's files under the same paths, and shares the file system of the data
set's folder with the machine that started the build, which splits, joins and audits alone. Patients' ids, the key that
hashes them and the plan go through a private file in the hidden work folder; Beam itself sees numbers of chunks only.
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

_once = threading.Lock()  # a worker's threads share one source


def run(
    options: str, source: Source, again: Callable[[], Source], key: bytes, plan: Sequence[Chunk], folder: pathlib.Path
) -> None:
    """Like `workers.run`, in a pipeline with Beam's `options` ('--runner=FlinkRunner --parallelism=64'; '' runs on this
    machine). UserError where the workers do not share `folder`."""
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UserError(f'--beam {options}: these are no options ({error})') from None
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--beam needs Apache Beam, which comes with: pip install 'medjax[beam]'") from None
    with tempfile.NamedTemporaryFile(dir=folder, prefix='.job-') as job:  # read by its owner alone
        pickle.dump((again, key, plan), job)
        job.flush()
        try:
            with beam.Pipeline(options=PipelineOptions(words)) as pipeline:
                numbers = pipeline | beam.Create(range(len(plan))) | beam.Reshuffle()
                numbers | 'make chunks' >> beam.Map(functools.partial(_write, job.name))
        except Exception as error:  # a worker's, with ' [while running …]' behind it, or a RuntimeError that quotes it
            lines = ''.join(traceback.format_exception_only(error))
            if said := re.search(r'medjax\.errors\.UserError: (.+?)(?: \[while running|$)', lines, re.MULTILINE):
                raise UserError(said[1]) from None
            raise


def _write(job: str, number: int) -> None:
    with _once:
        source, key, plan = _opened(job)
    chunks.write(source, key, plan[number], pathlib.Path(job).parent)


@functools.lru_cache(1)
def _opened(job: str) -> tuple[Source, bytes, Sequence[Chunk]]:
    """What a worker needs, once for each process."""
    try:
        with open(job, 'rb') as file:
            again, key, plan = pickle.load(file)
    except OSError as error:
        raise UserError(
            f'{job}: a Beam worker cannot read it ({error.strerror}); --out must lie on a file system that all workers '
            'share, under one path and for one user'
        ) from None
    return again(), key, plan
