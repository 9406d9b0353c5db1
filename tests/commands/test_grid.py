"""launch/grid.sh: a file that states its runs, trains them one after the other and compares them."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launched import calls, environment, installed, start

ROOT = Path(__file__).parents[2]
GRID = ROOT / 'launch' / 'grid.sh'

# In place of medjax: writes its words to the file `calls`. As `train` it leaves a folder as a run does, and
# --config.seed=NUMBER says how it ends.
FAKE = """#!/usr/bin/env bash
printf '%s\\n' "$(printf '%q ' "$@")" >>calls
[[ $1 == train ]] || exit 0
while [[ $1 != --workdir ]]; do shift; done
mkdir -p "$2"
echo '{}' >"$2/config.json"
case $* in
    *seed=1*) exit 2 ;;
    *seed=2*) exit 0 ;;
    *seed=3*) trap 'echo saved >calls.saved; exit 0' TERM; touch begun; for ((;;)); do sleep 0.05; done ;;
esac
echo 4 >"$2/DONE"
"""


def grid(folder: Path, *runs: str, program: str = FAKE, recipe: str = 'tiny', data: str = '"my data"') -> Path:
    """A copy of the file that states other runs, with a program `medjax` in reach."""
    stated = f'RECIPE={recipe}\nDATA=({data})\nRUNS=runs\ngrid() {{\n    :\n    ' + '\n    '.join(runs) + '\n}\n# ---'
    text, count = re.subn(r'^RECIPE=.*?^# ---', lambda _: stated, GRID.read_text(), flags=re.M | re.S)
    assert count == 1
    return installed(folder, 'grid.sh', text, program)


def test_the_runs_one_after_the_other_and_all_compared(tmp_path):
    file = grid(
        tmp_path, 'run a', 'run b --config.optim.lr=.5 --config.stages="[dict(at=4, change={\'optim.lr\': 1})]"'
    )
    done = start(file)
    assert done.returncode == 0, done.stderr
    first = ['train', '--config', 'tiny', '--data', 'my data', '--workdir', 'runs/a']
    second = [*first[:-1], 'runs/b', '--config.optim.lr=.5', "--config.stages=[dict(at=4, change={'optim.lr': 1})]"]
    compared = ['compare', 'runs/a', 'runs/b', '--out', 'runs/compare.html']
    assert calls(tmp_path) == [first, second, compared]
    assert 'run 2 of 2, b' in done.stderr


def test_a_run_that_fails_or_stops_early_stops_nothing(tmp_path):
    file = grid(tmp_path, 'run a --config.seed=1', 'run b', 'run c --config.seed=2', 'run d')
    done = start(file)
    assert done.returncode == 1
    assert [call[-1] if call[0] == 'compare' else call[6] for call in calls(tmp_path)] == [
        'runs/a', 'runs/b', 'runs/c', 'runs/d', 'runs/compare.html'
    ]  # fmt: skip
    assert 'run a ended with code 2' in done.stderr and 'run c was stopped before its end' in done.stderr
    assert '2 of 4 runs failed: a c' in done.stderr


def test_print_starts_nothing_and_its_lines_are_commands(tmp_path):
    file = grid(tmp_path, 'for lr in .1 .2; do run "lr_$lr" --config.optim.lr="$lr"; done')
    done = start(file, '--print')
    assert done.returncode == 0 and not (tmp_path / 'calls').exists()
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[:8] for line in words] == [
        ['medjax', 'train', '--config', 'tiny', '--data', 'my data', '--workdir', f'runs/lr_{lr}']
        for lr in ('.1', '.2')
    ]
    assert '# when all of them have ended: medjax compare runs/lr_.1 runs/lr_.2 --out' in done.stderr
    for line in done.stdout.splitlines():
        subprocess.run(line, shell=True, cwd=tmp_path, env=environment(tmp_path), check=True)
    assert ['medjax', *calls(tmp_path)[1]] == words[1]


@pytest.mark.parametrize(
    ('runs', 'sentence'),
    [
        ((), 'there is no run in it'),
        (('run a', 'run b', 'run a --config.seed=1'), 'run a: two runs have this name'),
        (('run a', 'run x/y'), "run 'x/y': a run needs a name of letters"),
        (('run a', 'run --config.seed=1'), "run '--config.seed=1': a run needs a name"),
        (('run',), "run '': a run needs a name"),
    ],
)
def test_mistakes_are_found_before_the_first_run(tmp_path, runs, sentence):
    done = start(grid(tmp_path, *runs))
    assert done.returncode == 2 and sentence in done.stderr and not (tmp_path / 'calls').exists()


def test_how_to_call_it(tmp_path):
    done = start(grid(tmp_path, 'run a'), '--prnt')
    assert done.returncode == 2 and 'use: ' in done.stderr and not (tmp_path / 'calls').exists()


@pytest.mark.parametrize('sent', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_present_run_and_ends_the_grid(tmp_path, sent):
    file = grid(tmp_path, 'run a --config.seed=3', 'run b')
    job = subprocess.Popen(
        [str(file)], cwd=tmp_path, env=environment(tmp_path), stderr=subprocess.PIPE, text=True, restore_signals=True
    )
    for _ in range(2400):
        if (tmp_path / 'begun').exists():
            break
        time.sleep(0.05)
    job.send_signal(sent)
    said = job.communicate(timeout=60)[1]
    assert job.returncode == 130 and 'the same command goes on' in said
    assert (tmp_path / 'calls.saved').exists() and len(calls(tmp_path)) == 1


@pytest.mark.long
def test_a_grid_of_real_runs_that_grows(tmp_path):
    """The first run is finished when the second is stated; it is not repeated, and both are compared."""
    given = dict(program=f'#!/bin/sh\nexec {sys.executable} -m medjax "$@"\n', data='data')
    given |= dict(recipe=str(ROOT / 'configs' / 'tiny.py'))
    first, second = 'run a --config.total_steps=2', 'run b --config.total_steps=2 --config.optim.lr=1e-4'
    file = grid(tmp_path, first, **given)
    build = [sys.executable, '-m', 'medjax', 'build', 'phantom', '--records', '48', '--size', '32', '--out', 'data']
    subprocess.run(build, cwd=tmp_path, env=environment(tmp_path), check=True, capture_output=True)
    done = start(file)
    assert done.returncode == 0, done.stderr
    before = (tmp_path / 'runs' / 'a' / 'metrics.jsonl').read_bytes()
    done = start(grid(tmp_path, first, second, **given))
    assert done.returncode == 0 and 'runs/a is finished' in done.stderr, done.stderr
    assert '| a | 2 |' in done.stdout and '| b | 2 |' in done.stdout
    assert (tmp_path / 'runs' / 'compare.html').stat().st_size > 10_000
    assert (tmp_path / 'runs' / 'a' / 'metrics.jsonl').read_bytes() == before
