"""`medjax train` as people run it: to the end, interrupted, killed, on several processes, and with mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

ROOT = Path(__file__).parents[1]
LONG = [
    '--config.total_steps=240',
    '--config.checkpoint.every=60',
    '--config.export.every=120',
    '--config.log.every=20',
]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data') / 'tiny'
    medjax('build', 'phantom', '--records', '48', '--size', '32', '--out', folder)
    return folder


def command(*args) -> list[str]:
    return [sys.executable, '-m', 'medjax', *map(str, args)]


def train(data, run, *overrides) -> list[str]:
    return command('train', '--config', ROOT / 'configs/tiny.py', '--data', data, '--workdir', run, *overrides)


def environment(devices: int = 1) -> dict[str, str]:
    return {**os.environ, 'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(devices)}


def medjax(*args, code: int = 0, devices: int = 1) -> str:
    """Runs a command to its end and gives what it says on stderr."""
    done = subprocess.run(
        command(*args), cwd=ROOT, env=environment(devices), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr, done.stderr
    return done.stderr


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]


def started(args: list[str], until: str) -> subprocess.Popen:
    """A command in the background that has said `until`."""
    process = subprocess.Popen(args, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if until in line:
            return process
    raise AssertionError(f'it never said {until!r}')


def same_end(one: Path, other: Path, step: int) -> None:
    """Two runs ended in the same bits: parameters of the export, and every number that was logged."""
    a, b = (load_file(run / 'exports' / str(step) / 'weights.safetensors') for run in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    timed = ('time', 'images_per_s', 'mfu', 'goodput', 'input_stall')
    for x, y in zip(lines(one)[-2:], lines(other)[-2:], strict=True):
        assert {k: v for k, v in x.items() if k not in timed} == {k: v for k, v in y.items() if k not in timed}


@pytest.fixture(scope='module')
def whole(data, tmp_path_factory):
    """A run that nobody interrupted."""
    run = tmp_path_factory.mktemp('runs') / 'whole'
    subprocess.run(train(data, run, *LONG), cwd=ROOT, env=environment(), check=True, timeout=600)
    return run


@pytest.mark.slow
def test_a_run_leaves_its_files(whole, data):
    for name in (
        'config.json',
        'metrics.jsonl',
        'health.json',
        'data/seen.npz',
        'exports/120/meta.json',
        'exports/240',
        'DONE',
    ):
        assert (whole / name).exists(), name
    assert sorted(int(p.name) for p in (whole / 'checkpoints').iterdir() if p.name.isdigit()) == [180, 240]
    last = lines(whole)[-1]
    assert last['step'] == 240 and np.isfinite(last['loss']) and last['images_per_s'] > 0 and last['mfu'] > 0
    assert last['loss'] < lines(whole)[0]['loss']
    meta = json.loads((whole / 'exports/240/meta.json').read_text())
    assert meta['step'] == 240 and meta['size'] == 32 and meta['image']['channels'] == 1
    # the same command again has nothing to do
    assert 'is finished' in medjax(*train(data, whole, *LONG)[3:])


@pytest.mark.slow
def test_sigterm_ends_in_a_saved_step_and_the_run_goes_on_to_the_same_bits(whole, data, tmp_path):
    process = started(train(data, tmp_path / 'run', *LONG), 'step 40/240')
    process.send_signal(signal.SIGTERM)
    stderr = process.stderr.read()
    assert process.wait(60) == 0, stderr
    assert 'which is saved' in stderr and 'Traceback' not in stderr, stderr
    saved = max(int(p.name) for p in (tmp_path / 'run/checkpoints').iterdir() if p.name.isdigit())
    assert 40 <= saved < 240 and f'stopped at step {saved},' in stderr, stderr
    assert not (tmp_path / 'run/DONE').exists()
    assert f'resuming from step {saved}' in medjax(*train(data, tmp_path / 'run', *LONG)[3:])
    same_end(whole, tmp_path / 'run', 240)


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint_to_the_same_bits(whole, data, tmp_path):
    process = started(train(data, tmp_path / 'run', *LONG), 'step 100/240')
    process.kill()
    process.wait()
    stderr = medjax(*train(data, tmp_path / 'run', *LONG)[3:])
    assert 'resuming from step' in stderr
    same_end(whole, tmp_path / 'run', 240)
    assert [line['step'] for line in lines(tmp_path / 'run')] == [line['step'] for line in lines(whole)]


@pytest.mark.slow
def test_interrupt_by_hand(data, tmp_path):
    process = started(train(data, tmp_path / 'run', '--config.total_steps=5000', '--config.log.every=20'), 'step 20/')
    process.send_signal(signal.SIGINT)
    stderr = process.stderr.read()
    assert process.wait(60) == 0, stderr
    assert 'stopping after this step' in stderr and 'which is saved' in stderr and 'Traceback' not in stderr, stderr


@pytest.mark.slow
def test_two_processes_of_two_devices_are_one_of_four(data, tmp_path):
    """The same losses, and a run saved by two goes on with one."""
    steps = ['--config.total_steps=12', '--config.log.every=1', '--config.checkpoint.every=6', '--config.mesh.fsdp=2']
    medjax(*train(data, tmp_path / 'one', *steps)[3:], devices=4)
    launch = [str(ROOT / 'launch/local.sh'), '2', '--']
    env = {**environment(), 'MEDJAX_DEVICES_PER_PROCESS': '2'}
    subprocess.run([*launch, *train(data, tmp_path / 'two', *steps)], cwd=ROOT, env=env, check=True, timeout=600)
    for a, b in zip(lines(tmp_path / 'one'), lines(tmp_path / 'two'), strict=True):
        assert a['step'] == b['step'] and a['loss'] == pytest.approx(b['loss'], rel=1e-5), (a['step'], b['step'])

    half = subprocess.Popen([*launch, *train(data, tmp_path / 'moved', *steps)], cwd=ROOT, env=env)
    while not (tmp_path / 'moved/checkpoints/6').exists() and half.poll() is None:
        time.sleep(0.05)
    half.terminate()
    half.wait(60)
    (tmp_path / 'moved/DONE').unlink(missing_ok=True)
    for step in (p for p in (tmp_path / 'moved/checkpoints').iterdir() if p.name.isdigit() and int(p.name) > 6):
        subprocess.run(['rm', '-r', step], check=True)  # what was saved later goes, so that something is left to do
    one_device = [*steps[:-1], '--config.mesh.fsdp=1']
    assert 'resuming from step 6' in medjax(*train(data, tmp_path / 'moved', *one_device)[3:])
    for a, b in zip(lines(tmp_path / 'one')[6:], lines(tmp_path / 'moved')[6:], strict=True):
        # KoLeo is the logarithm of distances, here near 1e-3 between the rows of an untrained network. So a difference
        # in the seventh digit of the rows, from another order of sums, is one in the fourth digit of KoLeo.
        for term, allowed in (('distill_cls', 1e-5), ('distill_patch', 1e-5), ('koleo', 1e-3)):
            assert a[f'term/{term}/loss'] == pytest.approx(b[f'term/{term}/loss'], rel=allowed), (a['step'], term)


@pytest.mark.slow
def test_a_masked_autoencoder_resumes_exactly_and_runs_on_two_processes(data, tmp_path):
    """On four devices in one process: whole, and again from its middle; then on two processes of two devices."""
    overrides = dict(total_steps=6, batch_size=8)
    overrides |= {'towers.image.depth': 1, 'towers.decoder.depth': 1, 'views.crop.size': 32, 'mesh.fsdp': 2}
    overrides |= {'optim.schedule.warmup': 1, 'log.every': 1, 'checkpoint.every': 3, 'export.every': 6}

    def args(run: Path) -> list[str]:
        given = [f'--config.{key}={value}' for key, value in overrides.items()]
        return command('train', '--config', 'medical_mae_small', '--data', data, '--workdir', run, *given)

    whole, again, two = (tmp_path / name for name in ('whole', 'again', 'two'))
    medjax(*args(whole)[3:], devices=4)
    shutil.copytree(whole, again)
    (again / 'DONE').unlink()
    for later in ('checkpoints/6', 'exports/6'):
        shutil.rmtree(again / later)
    assert 'resuming from step 3' in medjax(*args(again)[3:], devices=4)
    same_end(whole, again, 6)

    launch = [str(ROOT / 'launch/local.sh'), '2', '--']
    env = {**environment(), 'MEDJAX_DEVICES_PER_PROCESS': '2'}
    subprocess.run([*launch, *args(two)], cwd=ROOT, env=env, check=True, timeout=600)
    for a, b in zip(lines(whole), lines(two), strict=True):
        assert a['step'] == b['step'] and a['loss'] == pytest.approx(b['loss'], rel=1e-5), (a['step'], b['step'])


@pytest.mark.slow
def test_a_run_of_numbers_that_are_not_finite_stops_and_says_so(data, tmp_path):
    args = ['--config.total_steps=100', '--config.optim.lr=1e30', '--config.optim.schedule=1.', '--config.log.every=5']
    stderr = medjax(*train(data, tmp_path / 'run', *args)[3:], code=2)
    assert 'steps in a row gave numbers that are not finite' in stderr and 'optim.lr' in stderr
    health = json.loads((tmp_path / 'run/health.json').read_text())
    assert health['status'] == 'unstable', health


@pytest.mark.parametrize(
    ('overrides', 'words'),
    [
        (['--config.optim.lrr=1'], "no key 'lrr'; did you mean 'lr'"),
        (['--config.optim.lr=fast'], 'optim.lr'),
        (['--config.views.global.size=30'], '24 or 32 would work'),
        (['--config.data.cxr.rows=9'], 'batch_size'),
        (['--config.rows_per_group=3'], 'multiple of 3'),
        (['--config.towers.image.drop_path=.3'], 'rows_per_group'),
        (['--config.mesh.fsdp=2'], 'must be 1'),
        (['--config.init_from=dict(path="nowhere.safetensors")'], 'nowhere.safetensors'),
        (['--config.init_from.path=nowhere.safetensors'], 'write the whole of it'),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(data, tmp_path, overrides, words):
    stderr = medjax(*train(data, tmp_path / 'run', *overrides)[3:], code=2)
    assert words in stderr, stderr
    assert not (tmp_path / 'run/config.json').exists()  # the folder is free for the mended command


def test_a_data_set_that_is_not_there(tmp_path):
    stderr = medjax(*train(tmp_path / 'nothing', tmp_path / 'run')[3:], code=2)
    assert 'nothing' in stderr and 'medjax build' in stderr


# A recipe that compiles in seconds. Mean and std are not those of the data, so other data leave the config as it is.
SMALL = """
def get_config():
    return dict(
        total_steps=2,
        batch_size=8,
        image=dict(channels=1, mean=0.5, std=0.25),
        views={'global': dict(view='crop', part='images', count=1, size=16, area=(0.5, 1.0))},
        towers=dict(image=dict(tower='vit', variant='Ti/8', width=16, depth=1, heads=1, native_size=16)),
        terms=[dict(term='koleo', of='student/image/global/cls')],
        optim=dict(lr=1e-3),
    )
"""


@pytest.fixture(scope='module')
def small_run(data, tmp_path_factory):
    """The arguments of `medjax train`, without --data, of a finished run of SMALL on `data`."""
    folder = tmp_path_factory.mktemp('small')
    (folder / 'small.py').write_text(SMALL)
    args = ['train', '--config', folder / 'small.py', '--workdir', folder / 'run']
    medjax(*args, '--data', data)
    return args


def test_the_folder_of_another_run_is_refused(small_run, data):
    stderr = medjax(*small_run, '--data', data, '--config.optim.lr=.5', code=2)
    assert 'optim' in stderr and '--workdir' in stderr


def test_weights_to_start_from(tmp_path):
    """A public backbone comes into student and teacher, to the bit; heads stay new."""
    import jax
    import published_names
    import recipes
    from safetensors.numpy import save_file

    from medjax.errors import UserError
    from medjax.training.state import start_from

    objective, optim, _ = recipes.parts(recipes.tiny())
    state = recipes.start(objective, optim)
    other = objective.towers['image'].init(jax.random.key(7))
    save_file(
        {k: np.ascontiguousarray(v) for k, v in published_names.to_meta(other).items()}, tmp_path / 'public.safetensors'
    )
    started_from = start_from(str(tmp_path / 'public.safetensors'), state, objective.towers)[0]
    for tower in (started_from.params['towers'], started_from.aux['teachers']['teacher']['towers']):
        jax.tree.map(np.testing.assert_array_equal, tower['image'], other)
    for heads in (started_from.params['heads'], started_from.aux['teachers']['teacher']['heads']):
        jax.tree.map(np.testing.assert_array_equal, heads, state.params['heads'])
    with pytest.raises(UserError, match="has no 'heads/dino'; known: towers/image"):
        start_from(str(tmp_path / 'public.safetensors'), state, objective.towers, take=['heads/dino'])
    wide = recipes.tiny()
    wide['towers']['image'].update(width=48)
    objective, optim, _ = recipes.parts(wide)
    with pytest.raises(UserError, match='init_from: towers/image'):
        start_from(str(tmp_path / 'public.safetensors'), recipes.start(objective, optim), objective.towers)


def test_a_run_does_not_go_on_with_other_data(small_run, tmp_path):
    medjax('build', 'phantom', '--records', '48', '--size', '32', '--seed', '1', '--out', tmp_path / 'other')
    stderr = medjax(*small_run, '--data', tmp_path / 'other', code=2)
    assert 'other data' in stderr and '--workdir' in stderr


def test_a_workdir_that_is_a_file(data, tmp_path):
    (tmp_path / 'file').touch()
    assert 'is no folder' in medjax(*train(data, tmp_path / 'file')[3:], code=2)
