"""Measures time and memory of opening, reading and streaming data sets of 10 thousand to 10 million records.

    python benchmarks/scale.py [--records 10000 1000000 10000000] [--folder FOLDER] [--repeats 3] [--json FILE]

The data sets are synthetic: every record has the same image of 16 x 16 pixels, in the files that `medjax build` makes.
They are written into a temporary folder, or into FOLDER, where the next run finds them (10 million: 4 GB). Every
measurement runs in a new process, for the numbers of records in turn, after the files were dropped from the page cache.
Memory is what the process itself holds. Pages of mapped columns are listed apart, because the system takes them back
when it needs them. Two things grow with the number of records: the index of ArrayRecord's readers, 8 bytes a record,
and the number of files of a split, at most about 256, which are opened once each.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from medjax.data import records
from medjax.data.audit import near_duplicates
from medjax.data.builder import chunks, write
from medjax.data.builder.chunks import Chunk, StoredRecord
from medjax.data.format import FORMAT, schema
from medjax.data.types import Entry, Example, Source

STEPS = ('imports', 'open', 'first record', 'stream and first batch', '20 batches', '1,000 records')
LABELS = ('odd', 'blank')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--records', type=int, nargs='+', default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument('--folder', type=pathlib.Path, help='the folder of the data sets, which stay there')
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--json', type=pathlib.Path, metavar='FILE', help='write the figures there too')
    parser.add_argument('--measure', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or pathlib.Path(temporary)).absolute()
        paths = {n: folder / f'{n}' for n in options.records}
        seconds = {n: synthetic(n, path) for n, path in paths.items() if not path.exists()}
        for n, spent in seconds.items():
            print(f'{n} records written in {spent:.0f} s')
        runs: dict[int, list[dict]] = {n: [] for n in paths}
        for _ in range(options.repeats):
            for n, path in paths.items():
                drop_from_page_cache(path)
                runs[n].append(measure_in_a_process(path))
        result = dict(machine=f'{os.cpu_count()} cores, numpy {np.__version__}', written_s=seconds, steps=summary(runs))
    print(table(result['steps']))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + '\n')


def synthetic(count: int, out: pathlib.Path) -> float:
    """Writes a data set of `count` records with inner functions of medjax.data; returns the seconds."""
    start = time.perf_counter()
    picture = np.arange(256, dtype=np.uint8).reshape(16, 16)
    source = Source(
        'synthetic', '1', 'synthetic', LABELS, '', [Entry('image', 'patient', 'study', None)], lambda i: [1, -2],
        lambda i: Example(picture, attributes={'age': 50.0}),
    )  # fmt: skip
    stored, _ = chunks._process_entry(source, b'key', 0, np.array([1, -2], np.int8))
    named = np.repeat(['train', 'val', 'test'], [count - 2 * (count // 10), count // 10, count // 10])
    plan = chunks.plan(named)
    made = out.with_name(out.name + '.making')
    (made / 'chunks').mkdir(parents=True)
    with concurrent.futures.ProcessPoolExecutor() as pool:
        list(pool.map(functools.partial(write_chunk, stored, made / 'chunks'), plan))
    lengths = {split: [len(c.entries) for c in plan if c.split == split] for split in ('train', 'val', 'test')}
    write._move_records(len(LABELS), plan, lengths, made / 'chunks', made / 'records')
    for split, parts in lengths.items():
        write_columns(stored, sum(parts), made / 'columns' / split)
    sizes = {split: sum(parts) for split, parts in lengths.items()}
    data = records.DataSet(
        made, 'synthetic', '1', f'{count:016x}', '0' * 16, '', LABELS, 1, 8, 16, 0.5, 0.29, sizes, sizes, 0,
        'synthetic', 'drawn', 0, True,
    )  # fmt: skip
    content = {name: value for name, value in dataclasses.asdict(data).items() if name != 'path'}
    (made / 'drops.csv').write_text('scope,where,reason,image_key\n')
    (made / 'medjax.json').write_text(json.dumps({'format': FORMAT} | content))
    (made / 'chunks').rmdir()
    os.sync()  # only pages that are on the disk can be dropped from the page cache
    made.rename(out)
    return time.perf_counter() - start


def write_chunk(stored: StoredRecord, folder: pathlib.Path, chunk: Chunk) -> None:
    """Like chunks.write, without columns: writes one record under the number of every entry."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = schema(len(LABELS))
    serializer = ExampleSerializer(features.get_serialized_info())
    example = serializer.get_tf_example(features.encode_example(stored.content | {'index': 0}))
    index = example.features.feature['index'].int64_list.value
    writer = ArrayRecordWriter(str(folder / f'{chunk.name}.array_record'), 'group_size:1')
    for entry in chunk.entries:
        index[0] = entry
        writer.write(example.SerializeToString(deterministic=True))
    writer.close()


def write_columns(stored: StoredRecord, rows: int, out: pathlib.Path) -> None:
    """The columns of a split. All rows but the keys are equal; the thumbnails (10 GB) are a hole in their file."""
    (out / 'info').mkdir(parents=True)
    values = {name: np.asarray(stored.columns[name]) for name in ('label', 'keys', 'thumb', 'shape', 'bits')}
    values['hash'] = near_duplicates.hashes(values['thumb'][None])[0]
    values |= {name: np.asarray(stored.columns[name]) for name in ('words', 'sentences', 'role')} | {
        'info/age': np.float32(50)
    }
    for name, value in values.items():
        file = np.lib.format.open_memmap(out / f'{name}.npy', 'w+', value.dtype, (rows, *value.shape))
        if name == 'keys':
            file[:] = np.arange(1, file.size + 1, dtype=np.uint64).reshape(file.shape)
        elif name != 'thumb':
            file[:] = value
        file.flush()


def drop_from_page_cache(folder: pathlib.Path) -> None:
    for path in folder.rglob('*'):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def measure_in_a_process(folder: pathlib.Path) -> dict[str, dict[str, float]]:
    done = subprocess.run(
        [sys.executable, __file__, '--measure', str(folder)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: str) -> dict[str, dict[str, float]]:
    """The seconds of each step, and the memory of the process and the bytes read so far."""
    steps = {}

    def step(name: str, function: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = function()
        steps[name] = dict(seconds=time.perf_counter() - start, **memory())
        return result

    def first_batches(number: int) -> Any:
        stream = Stream({'main': dict(rows=64, sources=dict(main=1.0))}, {'main': data}, seed=0, threads=2)
        batches = stream.batches(1000)
        for _ in range(number):
            next(batches)
        batches.close()

    def some_records() -> None:
        chosen = np.random.default_rng(0).integers(0, len(train), 1000)
        for i in chosen:
            assert train.raw(int(i))['index'] == i
            train[int(i)]

    from medjax.data.stream import Stream

    step('imports', imports)
    data = step('open', lambda: records.open(folder))
    train = data.split('train')
    step('first record', lambda: train[0])
    step('stream and first batch', lambda: first_batches(1))  # before the next step, because it opens the files
    step('20 batches', lambda: first_batches(20))
    step('1,000 records', some_records)
    return steps


def imports() -> None:
    """The imports that medjax.data makes at its first use, and those of tfds."""
    import grain  # noqa: F401
    import tensorflow_datasets as tfds
    from array_record.python import array_record_data_source  # noqa: F401

    tfds.folder_dataset, tfds.core.SplitInfo  # noqa: B018


def memory() -> dict[str, float]:
    """MiB that the process holds itself, that are mapped from files, and that were read so far (not by mapping)."""
    status = dict(line.split(':', 1) for line in pathlib.Path('/proc/self/status').read_text().splitlines())
    read = dict(line.split(': ') for line in pathlib.Path('/proc/self/io').read_text().splitlines())
    return dict(
        own=int(status['RssAnon'].split()[0]) / 1024,
        mapped=int(status['RssFile'].split()[0]) / 1024,
        read=int(read['rchar']) / 2**20,
    )


def summary(runs: dict[int, list[dict]]) -> list[dict]:
    """For each step and number of records: median, least and most of the seconds, and medians of the memory."""
    rows = []
    for step in STEPS:
        for n, repeats in runs.items():
            seconds = [run[step]['seconds'] for run in repeats]
            medians = {
                name: statistics.median(run[step][name] for run in repeats) for name in ('own', 'mapped', 'read')
            }
            rows.append(
                dict(step=step, records=n, seconds=statistics.median(seconds), least=min(seconds), most=max(seconds))
                | medians
            )
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        '| step | records | s (median, min, max) | MiB held | MiB mapped | MiB read |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for row in rows:
        seconds = f'{row["seconds"]:.3f} ({row["least"]:.3f}, {row["most"]:.3f})'
        memory = ' | '.join(f'{row[name]:.0f}' for name in ('own', 'mapped', 'read'))
        lines.append(f'| {row["step"]} | {row["records"]} | {seconds} | {memory} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
