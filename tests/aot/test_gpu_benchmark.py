"""The benchmark for a GPU: every case at small sizes on this machine, and what happens where one fails or hangs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medjax.aot import programs

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))

import gpu  # noqa: E402  benchmarks/gpu.py
import gpu_cases  # noqa: E402

# One step at once, so that the rest compiles with the slow tests.
QUICK = ('ceilings', 'attention')
CASES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in gpu.CASES]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    for name, value in dict(STEPS=2, WARMUP=1, PROFILED=1).items():
        monkeypatch.setattr(gpu_cases, name, value)


def call(*arguments, **environment):
    """The program in a process of its own: its JSON lines, its exit code and what it said beside."""
    env = {**os.environ, 'JAX_NUM_CPU_DEVICES': '1', **environment}
    command = [sys.executable, str(ROOT / 'benchmarks' / 'gpu.py'), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert 'Traceback' not in done.stderr, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode, done.stderr


@pytest.mark.parametrize('name', CASES)
def test_every_case_runs_at_small_sizes(name):
    result = json.loads(json.dumps(gpu_cases.measured(gpu.CASES[name], tiny=True), allow_nan=False))
    measure = gpu.CASES[name].measure
    assert result['device'] and (measure == 'half' or result.get('passed', True)), result
    if measure == 'step':
        assert result['images_per_s'] == pytest.approx(result['images'] / result['seconds'])
        assert 0 < result['gflop_per_image'] < 1 and result['mfu'] > 0 and result['temporary_gib'] > 0
        assert math.isfinite(result['loss']) and result['compile_s'] > 0
        assert {'attention', 'MLP', 'norms'} <= set(result['ms_by_part'])
        assert sum(result['ms_by_part'].values()) == pytest.approx(result['device_ms'], rel=0.05)
        assert 0 < float(result['largest'][0].split(' ms, ')[0]) <= result['device_ms']
    if measure == 'loop':
        assert result['slower'] == pytest.approx(result['loop_seconds'] / result['step_seconds'] - 1)
    if measure == 'images':
        assert result['images'] == 32 and result['images_per_s'] > 0
    if measure == 'koleo':
        assert (
            any('koleo' in name for name in result['bfloat16'])
            and result['float32'].keys() == result['bfloat16'].keys()
        )
        assert result['float32']['loss'] == pytest.approx(result['bfloat16']['loss'], rel=0.1)
        assert result['float32'] != result['bfloat16']
    if measure == 'half':
        # small towers are further from float32 than large ones, and need not pass
        assert 0.99 < result['worst_cosine'] < 1 and 0 < result['loss_difference'] < 1e-2
        assert 0.98 < result['worst_cosine_of_qkv_bias'] < 1


def test_an_override_changes_its_case(monkeypatch):
    """It comes after those of the case, and after those that make it small."""

    def settings(job):
        config = programs.prepare(job.recipe, job.overrides, job.canvas).config
        return dict(rows=config['data']['images']['rows'], attention=config['towers']['image'].get('attention'))

    monkeypatch.setitem(gpu_cases.MEASURES, 'step', settings)
    for tiny, rows in ((True, 32), (False, 128)):
        case = gpu.CASES['vits']
        assert gpu_cases.measured(case, tiny=tiny)['rows'] == rows
        changed = gpu_cases.measured(case, ['batch_size=64', 'towers.image.attention=xla'], tiny=tiny)
        assert changed['rows'] == 64 and changed['attention'] == 'xla' and changed['overrides'][-2] == 'batch_size=64'


def test_times_are_kept_where_the_profiler_fails(monkeypatch):
    def profile(*_):
        raise RuntimeError('CUPTI needs rights')

    monkeypatch.setattr('medjax.aot.profile.profile', profile)
    result = gpu_cases.measured(gpu.CASES['vits'], tiny=True)
    assert result['profile_failed'] == 'RuntimeError: CUPTI needs rights' and result['images_per_s'] > 0


def test_a_comparison_that_fails_says_so(monkeypatch):
    monkeypatch.setattr(gpu_cases, 'WITHIN', 1e-9)
    assert gpu_cases.measured(gpu.CASES['attention'], tiny=True)['passed'] is False


@pytest.mark.parametrize(
    ('only', 'sentence'),
    [
        ('vitt', "no case 'vitt'; there are ceilings, vitb"),
        ('vitb,', "no case ''"),
        ('vitb:unroll', "'unroll' is not an override KEY=VALUE"),
    ],
)
def test_a_wrong_name_is_a_sentence(only, sentence):
    lines, code, said = call('--only', only)
    assert lines == [] and code == 2 and sentence in said


def test_without_a_gpu_the_first_case_says_so_and_no_other_starts():
    (line,), code, said = call('--only', 'ceilings,vitb')
    assert code == 1 and said == ''
    assert line['case'] == 'ceilings' and line['failed'].startswith('jax finds no GPU here, only cpu; pip install')
    assert line['failed'].endswith('--tiny runs every case small, on any machine')


def test_a_backend_that_does_not_start_is_a_sentence():
    (line,), code, _ = call('--only', 'ceilings,vitb', JAX_PLATFORMS='cuda')
    assert code == 1 and line['failed'].startswith("jax cannot use the backend 'cuda' that JAX_PLATFORMS names")


def test_a_command_beside_has_its_card_in_the_same_lines():
    comparator = (
        f"{sys.executable} -c 'print(1); print(chr(123) + chr(34) + chr(115) + chr(34) + chr(58) + chr(49) + chr(125))'"
    )
    (first, beside), code, _ = call('--tiny', '--only', 'ceilings', '--beside', comparator)
    assert code == 0 and first['case'] == 'ceilings' and first['product_tflops'] > 0
    assert beside == dict(case='beside', command=comparator, device=first['device'], s=1)


def test_a_case_that_cannot_run_leaves_the_others(tmp_path):
    """An override that does not fit, a package that is missing, and a command that does not exist."""
    (tmp_path / 'ml_collections.py').write_text('raise ModuleNotFoundError(name="ml_collections")')
    (wrong, first, missing), code, _ = call(
        *('--tiny', '--only', 'vits:towers.image.depths=3,ceilings', '--beside', 'no_such_program --batch 60')
    )
    assert code == 1 and "'depths'" in wrong['failed'] and 'Error' not in wrong['failed']
    assert missing['case'] == 'ceilings' and first['failed'] == 'no_such_program: No such file or directory'
    (line, other), code, _ = call('--tiny', '--only', 'vits,ceilings', PYTHONPATH=str(tmp_path))
    assert code == 1 and other['product_tflops'] > 0
    assert line['failed'] == (
        "the package 'ml_collections' is missing; the top of benchmarks/gpu.py says how to bring it"
    )


def test_a_case_that_hangs_or_dies_ends_with_its_processes(tmp_path):
    pid = tmp_path / 'pid'
    hang = (
        'import faulthandler, subprocess, sys, time; faulthandler.dump_traceback_later(.5, file=sys.stderr); '
        f'open({str(pid)!r}, "w").write(str(subprocess.Popen(["sleep", "60"]).pid)); print("{{}}", flush=True); '
        'time.sleep(60)'
    )
    start = time.monotonic()
    lines, reason, code = gpu.run([sys.executable, '-c', hang], 3, dict(os.environ))
    assert time.monotonic() - start < 30 and code == 1
    assert lines == [{}] and reason == 'not done after 3 s; it was in <string>, line 1'
    deadline = time.monotonic() + 10
    while _runs(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(int(pid.read_text()))
    lines, reason, code = gpu.run([sys.executable, '-c', 'import os; os.abort()'], 30, dict(os.environ))
    assert lines == [] and 'exit code -6' in reason and code == -6


def _runs(pid: int) -> bool:
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def test_the_default_cases_end_in_time(monkeypatch, capsys):
    """A case that would start too late is left out, and a line says how to run it."""
    monkeypatch.setattr(gpu, 'run', lambda *_: ([dict(case='ceilings', device='card')], '', 0))
    assert gpu.all_of(['ceilings'], None, False, 30) == 0
    assert gpu.all_of(['vitb'], None, False, gpu.LEAST - 1) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first['device'] == 'card' and second['left_out'].endswith('minutes are over; --only vitb runs it')


def test_ctrl_c_ends_the_case_and_prints_no_traceback(tmp_path):
    command = [
        sys.executable,
        str(ROOT / 'benchmarks' / 'gpu.py'),
        '--tiny',
        '--only',
        'ceilings',
        '--beside',
        'sleep 61',
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # the tests themselves may ignore it
    )
    assert json.loads(process.stdout.readline())['case'] == 'ceilings'
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err == 'stopped from the keyboard\n' and out == ''


def test_the_frame_of_a_hanging_case():
    text = 'Timeout!\nThread 1:\n  File "/x/jax/compiler.py", line 9 in f\n  File "/r/medjax/a.py", line 7\n'
    assert gpu.frames(text) == ['a.py, line 7'] and gpu.frames('nothing') == []
