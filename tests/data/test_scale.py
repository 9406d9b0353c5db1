"""Opening a data set and reading a record cost the same with a hundred thousand records as with a thousand.

benchmarks/scale.py measures the same up to ten million records.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INDEX = 8 / 2**20  # MiB for each record: its place in its file, which the reader of ArrayRecord keeps in memory


@pytest.mark.slow
def test_memory_and_time_do_not_grow_with_the_records(tmp_path):
    few, many = 1_000, 100_000
    script = [sys.executable, 'benchmarks/scale.py', '--repeats', '1', '--json', str(tmp_path / 'figures.json')]
    done = subprocess.run(
        [*script, '--records', str(few), str(many)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    rows = json.loads((tmp_path / 'figures.json').read_text())['steps']
    measured = {(row['step'], row['records']): row for row in rows}
    for step in {row['step'] for row in rows}:
        small, large = measured[step, few], measured[step, many]
        assert large['own'] - small['own'] < INDEX * many + 8, (step, small, large)
        assert large['mapped'] - small['mapped'] < 8, (step, small, large)
        # The large train split has 79 more files. Opening one takes a few ms, once.
        files = 0 if step in ('imports', 'open') else 79
        assert large['seconds'] < 3 * small['seconds'] + 0.02 * files + 1, (step, small, large)
