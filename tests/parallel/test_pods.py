"""`medjax train` on two processes that do not fit together: both stop with one sentence that says in what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs

ROOT = Path(__file__).parents[2]
TRAIN = 'exec env {variables} {python} -m medjax train --config {made}/recipe.py {arguments}'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return small_runs.build(tmp_path_factory.mktemp('made'))


def of_two(made: Path, arguments: str, variables: str = '') -> str:
    """What two processes say that are refused. In the arguments, $MEDJAX_PROCESS is the number of the process."""
    command = TRAIN.format(variables=variables, python=sys.executable, made=made, arguments=arguments)
    done = subprocess.run(
        [ROOT / 'launch/local.sh', '2', '--', 'bash', '-c', command],
        capture_output=True, text=True, timeout=600, cwd=ROOT,
        env={**os.environ, 'MEDJAX_DEVICES_PER_PROCESS': '1', 'PYTHONPATH': str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and 'Traceback' not in done.stderr and 'Check failure' not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.slow
def test_another_config_on_one_host(made, tmp_path):
    told = of_two(made, f'--data {made}/data --workdir {tmp_path}/run --config.optim.lr=.00$((MEDJAX_PROCESS + 1))')
    assert told.count('differ in config and data: optim.lr (0.001 and 0.002)') == 2, told
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_other_data_on_one_host(made, tmp_path):
    small_runs.build(tmp_path / '0', seed=0)
    small_runs.build(tmp_path / '1', seed=1)
    told = of_two(made, f'--data {tmp_path}/$MEDJAX_PROCESS/data --workdir {tmp_path}/run')
    assert told.count('the data main (') == 2 and 'id key' not in told, told


@pytest.mark.long
def test_another_id_key_on_one_host(made, tmp_path, monkeypatch):
    for i in range(2):
        monkeypatch.setenv('MEDJAX_ID_KEY', f'key number {i}')
        small_runs.build(tmp_path / str(i))
    told = of_two(made, f'--data {tmp_path}/$MEDJAX_PROCESS/data --workdir {tmp_path}/run')
    assert told.count('the id key of the data main (') == 2, told


@pytest.mark.long
def test_a_file_that_one_host_lacks(made, tmp_path):
    (tmp_path / '0').symlink_to(made / 'data')
    told = of_two(made, f'--data {tmp_path}/$MEDJAX_PROCESS --workdir {tmp_path}/run')
    assert told.count('no data set at') == 2 and 'process 1 on' in told, told


@pytest.mark.long
def test_another_number_of_devices(made, tmp_path):
    arguments = f'--data {made}/data --workdir {tmp_path}/run'
    told = of_two(made, arguments, 'JAX_NUM_CPU_DEVICES=$((MEDJAX_PROCESS + 1))')
    assert told.count('differ in devices: number (1 and 2)') == 2, told


@pytest.mark.long
def test_a_folder_that_is_not_shared(made, tmp_path):
    told = of_two(made, f'--data {made}/data --workdir {tmp_path}/run$MEDJAX_PROCESS')
    assert told.count('is not the folder of process 0') == 2, told
