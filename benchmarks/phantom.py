"""Measures how many phantoms one core renders in a second, with PNG encoding of image and mask.

taskset -c 0 python benchmarks/phantom.py [--size 256] [--records 200] [--json]
"""

from __future__ import annotations

import os

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')  # set before numpy is imported: one core is measured

import argparse
import json
import statistics
import time

from medjax.data import phantom
from medjax.data.images import decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--size', type=int, default=256)
    parser.add_argument('--records', type=int, default=200)
    parser.add_argument('--json', action='store_true')
    options = parser.parse_args()
    settings = phantom.check(phantom.Settings(size=options.size))

    phantom.record(0, settings)  # warm up: imports and first pages are not counted
    seconds, stored, spent = [], 0, time.process_time()
    for i in range(options.records):
        start = time.perf_counter()
        record = phantom.record(i, settings)
        encoded = decode.png(record.image[..., None]), decode.png(record.mask)
        seconds.append(time.perf_counter() - start)
        stored += sum(map(len, encoded))
    result = dict(
        size=options.size,
        records=options.records,
        images_per_s=options.records / sum(seconds),
        images_per_cpu_s=options.records / (time.process_time() - spent),  # for a core in shared use
        median_ms=1e3 * statistics.median(seconds),
        bytes_per_image=stored / options.records,
    )
    if options.json:
        print(json.dumps(result))
    else:
        print(
            f'{options.size} px: {result["images_per_s"]:.1f} images/s ({result["images_per_cpu_s"]:.1f} per CPU s), '
            f'median {result["median_ms"]:.1f} ms, {result["bytes_per_image"] / 1024:.0f} KiB an image'
        )


if __name__ == '__main__':
    main()
