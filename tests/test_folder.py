"""The folder of a run: lost files, two runs at once, runs that are refused."""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_runs
from small_runs import content, same_end, unfinished

from medjax import branch, cli, config as configs, folder as folders, run_config, train
from medjax.commands import compare
from medjax.errors import UserError
from medjax.reports import run_files, run_page
from medjax.training import checkpoint

NEWEST = 'default/d'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return small_runs.build(tmp_path_factory.mktemp('made'))


@pytest.fixture(scope='module')
def whole(made, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    assert small_runs.run(made, folder) == 0
    return folder


@pytest.fixture
def run(whole, tmp_path):
    """A copy of it that was killed after its last save."""
    copy = shutil.copytree(whole, tmp_path / 'run')
    unfinished(copy)
    return copy


def refused(made: Path, run: Path, *overrides: str, data: Path | None = None) -> str:
    """The sentence of a run that does not begin, and that changes nothing."""
    before = content(run)
    with pytest.raises(UserError) as told:
        small_runs.run(made, run, *overrides, data=data)
    assert content(run) == before
    return str(told.value)


# Checkpoints.


def test_a_run_with_a_damaged_checkpoint_resumes_from_the_one_before_to_the_same_bits(made, whole, run, capsys):
    os.truncate(next((run / 'checkpoints' / '8' / NEWEST).iterdir()), 100)
    assert small_runs.run(made, run) == 0
    told = capsys.readouterr().err
    assert 'the checkpoint of step 8 cannot be used' in told and 'resuming from step 4' in told
    assert sorted(os.listdir(run / 'checkpoints')) == ['4', '8', '8.damaged']
    same_end(run, whole)
    assert (run / 'DONE').exists() and not (run / '.lock').exists()


def test_all_checkpoints_are_damaged(made, run):
    for step in (4, 8):
        shutil.rmtree(run / 'checkpoints' / str(step) / NEWEST)
    assert 'none of the checkpoints can be used (step 8: default/d/' in (sentence := refused(made, run))
    assert 'exports/8")' in sentence and '--from OTHER' in sentence


def test_a_finished_run_without_checkpoints_is_not_lengthened(made, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / 'run')
    shutil.rmtree(run / 'checkpoints')
    assert 'its checkpoints are lost, so it cannot be lengthened' in refused(made, run, 'total_steps=12')
    assert not (run / 'checkpoints').exists()


def test_one_checkpoint_is_not_enough():
    with pytest.raises(UserError, match='checkpoint.keep=1: must be at least 2; if the newest is damaged'):
        configs.check(
            configs.resolve(configs.read('tiny', ['checkpoint.keep=1', 'image.mean=0.5', 'image.std=1.0']), {})
        )


# config.json.


@pytest.mark.parametrize('left', ['checkpoints', 'metrics.jsonl', 'exports'])
def test_a_lost_config_is_refused(made, run, left):
    """Whatever else is lost: a new run would write over what is left."""
    for path in run.iterdir():
        if path.name != left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sentence = refused(made, run)
    assert 'holds a run' in sentence and left in sentence
    way = 'medjax config RECIPE --data DATA' if left == 'checkpoints' else 'use another --workdir, or move the folder'
    assert way in sentence and (left != 'checkpoints' or f'> {run}/config.json' in sentence)
    assert os.listdir(run) == [left]


@pytest.mark.parametrize('text', ['{"total_steps": 8', '', '{}', 'null', '[1]', '\x80'])
def test_a_damaged_config_is_refused(made, run, text):
    (run / 'config.json').write_text(text, encoding='latin-1')
    sentence = refused(made, run)
    assert 'is not the config.json of a run' in sentence and 'medjax config RECIPE' in sentence


DAMAGES = [
    (dict(life={'parent': None}), "life: lacks 'ends'"),
    (dict(life=None), 'life=None: must be a dict'),
    (dict(life=[1]), r'life=\(1,\): must be a dict'),
    (dict(life=7), 'life=7: must be a dict'),
    (dict(life=dict(parent=None, ends=[])), 'life.ends=.*: must be a list of at least 1'),
    (dict(life=dict(parent=None, ends=[[0, 'x']])), "life.ends.0.1='x': must be a whole number of at least 0"),
    (dict(life=dict(parent='runs/a', ends=[[0, 8]])), "life.parent='runs/a': must be a dict"),
    (
        dict(life=dict(parent=dict(run='a', step=None, fingerprint='0'), ends=[[0, 8]])),
        'life.parent.step=None: must be',
    ),
    (dict(teachers=[]), 'teachers=.*: must be a dict'),
    (dict(teachers=dict(ema=None)), 'teachers.ema=None: must be a dict'),
    (dict(data=None), 'data=None: must be a dict'),
    (dict(data_paths=['x']), 'data_paths=.*: must be a dict'),
    (dict(views=dict(crop=3)), 'views.crop=3: must be a dict'),
    (dict(terms={}), 'terms={}: must be a list'),
    (dict(stages=[{}]), "stages.0: lacks 'at'"),
    (dict(export=None), 'export=None: must be a dict'),
    (dict(tokenizer=1), 'tokenizer=1: must be a dict'),
    (dict(total_steps='8'), "total_steps='8': must be a whole number of at least 1"),
    (dict(batch_size=None), 'batch_size=None: must be a whole number of at least 1'),
]


@pytest.mark.parametrize(('damage', 'sentence'), DAMAGES)
def test_a_damaged_entry_of_a_config_is_one_sentence_for_every_command(made, run, damage, sentence):
    path = run / 'config.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | damage))
    shutil.rmtree(run / 'exports')
    before = content(run)
    recipe = ['train', '--config', made / 'recipe.py', '--data', made / 'data', '--workdir', run]
    for argv in (
        recipe,
        ['train', '--from', f'{run}@4', '--workdir', run.parent / 'branch'],
        ['train', '--from', 'parent', '--workdir', run],
        ['export', f'{run}@4'],
        ['config', run],
    ):
        with pytest.raises(UserError, match=f'config.json is damaged: {sentence}') as told:
            cli.run(argv[0], list(map(str, argv[1:])))
        assert ('medjax config RECIPE --data DATA' in str(told.value)) == (argv[-1] == run and argv[0] == 'train')
    assert content(run) == before and not (run.parent / 'branch').exists()
    read = run_files.read_run(run)
    (note,) = read.damaged
    assert re.search(f'^A damaged entry of config.json is left out: {sentence}'.replace(r'\(1,\)', r'\[1\]'), note)
    assert not damage.keys() & read.config.keys()
    assert dict(run_page.facts(read)) and compare.compare_configs([read.config, read.config])


@pytest.mark.parametrize('file', sorted((Path(__file__).parent / 'golden').glob('*.json')), ids=lambda file: file.stem)
def test_the_configs_of_all_recipes_have_the_right_form(file):
    for config in (json.loads(file.read_text()), configs.frozen(json.loads(file.read_text()))):
        assert run_config.damaged(config) == {}


def test_a_lost_config_is_written_again_as_the_sentence_says(made, whole, tmp_path, capsys):
    """The run goes on to the same bits. With another recipe, that is said."""
    run = shutil.copytree(whole, tmp_path / 'run')
    unfinished(run, 4)
    (run / 'config.json').unlink()
    recipe = [str(made / 'recipe.py'), '--data', str(made / 'data')]
    capsys.readouterr()
    assert cli.main(['config', *recipe]) == 0
    (run / 'config.json').write_text(capsys.readouterr().out)
    recovered = configs.load_json(run / 'config.json')
    assert configs.fingerprint(recovered) == configs.fingerprint(configs.load_json(whole / 'config.json'))
    assert small_runs.run(made, run) == 0
    told = capsys.readouterr().err
    assert 'resuming from step 4' in told and 'compare recipe' not in told
    same_end(run, whole)

    assert cli.main(['config', *recipe, '--config.optim.lr=0.01']) == 0
    (run / 'config.json').write_text(capsys.readouterr().out)
    unfinished(run)
    assert small_runs.run(made, run, 'optim.lr=0.01') == 0
    told = capsys.readouterr().err
    assert 'is not the config that the export of step 8 was made with' in told and 'compare recipe' in told


# RUN/data.


@pytest.mark.parametrize(
    ('lost', 'words'),
    [
        (['sources.json'], 'hashes of the training images show that the data are the same'),
        (['seen.npz'], 'it is made again from the data, which are the same'),
        (['seen.npz', 'sources.json'], 'hashes of the training images show that the data are the same'),
    ],
)
@pytest.mark.parametrize('damage', ['removed', 'cut'])
def test_lost_records_of_the_data_are_made_again(made, run, lost, words, damage, capsys):
    before = content(run / 'data')
    for name in lost:
        (run / 'data' / name).unlink() if damage == 'removed' else os.truncate(run / 'data' / name, 50)
    assert small_runs.run(made, run) == 0
    assert words in capsys.readouterr().err
    assert content(run / 'data') == before


def test_other_data_are_refused_whatever_is_lost(made, run, tmp_path):
    other = small_runs.build(tmp_path / 'other', seed=1) / 'data'
    assert 'holds a run of other data: main was' in refused(made, run, data=other)
    (run / 'data' / 'sources.json').unlink()
    assert 'holds a run of other data: the hashes of the training images differ' in refused(made, run, data=other)
    (run / 'data' / 'seen.npz').unlink()
    assert 'differ from those in its exports' in refused(made, run, data=other)
    shutil.rmtree(run / 'exports')
    for data in (other, made / 'data'):  # nothing tells which are right
        sentence = refused(made, run, data=data)
        assert 'nothing tells whether these are the data' in sentence and 'medjax train --from' in sentence


@pytest.mark.parametrize(
    'text', [b'', b'\x00' * 300 + b'\n', b'\xff\xfe{\n', b'5\nnull\n[]\n{"step": "x"}\n{"loss": 1}\n', None]
)
def test_damaged_metrics(made, whole, run, text, capsys):
    """Lines that can be read stay. If all are lost, that is said."""
    path, kept = run / 'metrics.jsonl', (run / 'metrics.jsonl').read_bytes()
    path.unlink() if text is None else path.write_bytes(text + kept)
    (run / 'health.json').write_text('{')
    assert small_runs.run(made, run) == 0
    assert ('metrics.jsonl is lost: the curves begin at step 8' in capsys.readouterr().err) == (text is None)
    assert small_runs.losses(run) == ({} if text is None else small_runs.losses(whole))


# Refused runs, and two at once.


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob('*'))


@pytest.mark.parametrize(
    'override',
    ['batch_size=9', 'views.global.size=15', "init_from=dict(path='nowhere')", 'mesh.fsdp=3', 'total_steps=0'],
)
def test_a_refused_run_leaves_nothing(made, tmp_path, override):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('what the user put there')
    for folder in (tmp_path / 'new' / 'deep' / 'run', tmp_path / 'mine'):
        with pytest.raises(UserError):
            small_runs.run(made, folder, override)
        assert files_below(tmp_path) == ['mine', 'mine/notes.txt']


def test_a_workdir_that_cannot_be_a_folder(made, tmp_path):
    (tmp_path / 'file').touch()
    for folder in (tmp_path / 'file', tmp_path / 'file' / 'run'):
        with pytest.raises(UserError, match='is no folder, and none can be made there: .*choose another'):
            small_runs.run(made, folder)
    assert files_below(tmp_path) == ['file']


MOMENTS = {
    'a line of metrics': ('medjax.training.metrics.Writer.step', 1),
    'an export': ('medjax.training.export.Exporter.meta', 1),
    'the last step': ('medjax.training.metrics.Writer.step', 7),
    'the list of a checkpoint': ('medjax.training.file_list.write', 0),
    'the start of a checkpoint': ('medjax.training.checkpoint.Checkpoints.save', 0),
    'the end': ('medjax.training.checkpoint.Checkpoints.close', 0),
    'the first files': ('medjax.train.claim_folder', 0),
    'another run': ('medjax.training.metrics.Writer.step', 3),
}


@pytest.mark.parametrize('moment', MOMENTS)
def test_a_folder_that_is_deleted_while_a_run_trains_in_it(made, tmp_path, monkeypatch, moment):
    """The run stops at its next write, and nothing comes back. A run that has begun there since is left alone."""
    name, calls = MOMENTS[moment]
    module, _, function = name.rpartition('.')
    owner = importlib.import_module(module) if module in sys.modules else getattr(
        importlib.import_module(module.rpartition('.')[0]), module.rpartition('.')[2]
    )  # fmt: skip
    real, number, run = getattr(owner, function), itertools.count(), tmp_path / 'run'

    def deleting(*args, **more):
        if next(number) == calls:
            shutil.rmtree(run, ignore_errors=True)  # goes on like rm -rf where a thread is writing
            if moment == 'another run':
                run.mkdir()
                (run / '.lock').write_text('another host 17\n')
                (run / 'config.json').write_text('{}')
        return real(*args, **more)

    monkeypatch.setattr(owner, function, deleting)
    with pytest.raises(UserError, match=f'^{run} was deleted while this run trained in it'):
        small_runs.run(made, run)
    assert files_below(tmp_path) == (['run', 'run/.lock', 'run/config.json'] if moment == 'another run' else [])


def test_a_run_that_loses_only_its_config_keeps_its_checkpoints(made, tmp_path, monkeypatch):
    """It stops, and removes nothing: its state can still be read once config.json is written again."""
    real, number, run = folders.check_there, itertools.count(), tmp_path / 'run'

    def losing(folder, begun=True):
        if (folder / 'checkpoints' / '4').exists() and next(number) == 0:
            (folder / 'config.json').unlink()
        real(folder, begun)

    monkeypatch.setattr(folders, 'check_there', losing)
    with pytest.raises(UserError, match='config.json was deleted while this run trained.* medjax config RECIPE'):
        small_runs.run(made, run)
    assert {'run/checkpoints/4', 'run/data', 'run/metrics.jsonl'} <= {
        str(path.relative_to(tmp_path)) for path in run.rglob('*')
    } | {'run'}


@pytest.mark.parametrize('left', [{}, {'metrics.jsonl': ''}, {'mine/notes.txt': 'x'}])
def test_checkpoints_beside_anything_else_are_never_removed(tmp_path, left):
    run = tmp_path / 'run'
    with contextlib.suppress(UserError), folders.held(run):
        (run / '.lock').unlink()
        (run / 'checkpoints' / '500').mkdir(parents=True)
        for name, text in left.items():
            (run / name).parent.mkdir(exist_ok=True)
            (run / name).write_text(text)
        folders.check_there(run)
    assert (run / 'checkpoints' / '500').exists() == bool(left)


def test_a_host_that_gets_another_name_goes_on(tmp_path, monkeypatch):
    with folders.held(tmp_path / 'run'):
        monkeypatch.setattr(folders.socket, 'gethostname', lambda: 'another')
        folders.check_there(tmp_path / 'run', begun=False)


def test_a_disk_without_locks_and_a_full_one(tmp_path, monkeypatch):
    def no_locks(file, how):
        raise OSError(errno.ENOLCK, 'No locks available')

    with monkeypatch.context() as patch, folders.held(tmp_path / 'run'):
        patch.setattr(folders.fcntl, 'flock', no_locks)
        with folders.held(tmp_path / 'other'), folders.held(tmp_path / 'other'):
            folders.check_there(tmp_path / 'other', begun=False)

    class Full(io.FileIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, 'No space left on device')

    real = Path.open
    opened = lambda self, mode='r', *args, **more: Full(self, mode) if mode == 'ab' else real(self, mode, *args, **more)  # noqa: E731
    monkeypatch.setattr(Path, 'open', opened)
    with (
        pytest.raises(UserError, match='full/.lock cannot be written: no space is left'),
        folders.held(tmp_path / 'full'),
    ):
        pass
    assert not (tmp_path / 'full').exists()


HOLD = """
import sys, time
from pathlib import Path
from medjax import folder
with folder.held(Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(600)
"""


def test_two_processes_on_one_folder(made, run, whole):
    """The second is refused; a killed one holds nothing."""
    holder = subprocess.Popen([sys.executable, '-c', HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == 'held\n'
        before = content(run)
        assert f'another process trains in {run}; wait for it' in refused(made, run)
        assert content(run) == before
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert (run / '.lock').exists()
    assert small_runs.run(made, run) == 0
    same_end(run, whole)
    assert not (run / '.lock').exists()


LAUNCH = Path(__file__).parents[1] / 'launch' / 'local.sh'


def of_two(made: Path, run: Path) -> tuple[int, str]:
    """The exit code of `medjax train` on two processes, and what it says."""
    argv = ['train', '--config', made / 'recipe.py', '--data', made / 'data', '--workdir', run]
    done = subprocess.run(
        [LAUNCH, '2', '--', sys.executable, '-m', 'medjax', *map(str, argv)],
        capture_output=True, text=True, timeout=300, env={**os.environ, 'MEDJAX_DEVICES_PER_PROCESS': '1'},
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.slow
def test_two_processes_of_a_run_decide_alike(made, whole, run):
    """They take the same checkpoint. Where another run holds the folder, both are refused."""
    os.truncate(next((run / 'checkpoints' / '8' / NEWEST).iterdir()), 100)
    with folders.held(run):
        code, told = of_two(made, run)
    assert code == 2 and 'another process trains in' in told and 'Traceback' not in told, told
    code, told = of_two(made, run)
    assert code == 0 and 'Traceback' not in told, told
    assert told.count('the one of step 4 is taken') == told.count('resuming from step 4') == 1, told
    assert sorted(os.listdir(run / 'checkpoints')) == ['4', '8', '8.damaged']
    for step, loss in small_runs.losses(whole).items():
        assert small_runs.losses(run)[step] == pytest.approx(loss, rel=1e-3)  # KoLeo on another mesh


def test_a_folder_is_held_by_one(tmp_path, monkeypatch):
    with folders.held(tmp_path / 'run'):
        with pytest.raises(UserError, match='another process trains'), folders.held(tmp_path / 'run'):
            raise AssertionError('both hold it')
        assert (tmp_path / 'run' / '.lock').exists()
    assert not (tmp_path / 'run').exists()

    def without_locks(*_):
        raise OSError(95, 'Operation not supported')

    monkeypatch.setattr(folders.fcntl, 'flock', without_locks)
    with folders.held(tmp_path / 'run'):
        (tmp_path / 'run' / 'config.json').write_text('{}')
        other = subprocess.run([sys.executable, '-c', HOLD_WITHOUT_LOCKS, str(tmp_path / 'run')], capture_output=True)
        assert b'another process trains' in other.stdout and b'delete' in other.stdout, other
        folders.check_there(tmp_path / 'run')  # whoever was refused has left the lock as it was
    assert files_below(tmp_path) == ['run', 'run/config.json']
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    for left in (f'{folders._host()} {gone.pid}\n', 'other 1\n', '', f'{folders._host()} {10**30}', 'nonsense'):
        (tmp_path / 'run' / '.lock').write_text(left)  # of a run that was killed
        with folders.held(tmp_path / 'run'):
            pass


HOLD_WITHOUT_LOCKS = """
import sys
from pathlib import Path
from medjax import folder
from medjax.errors import UserError
def without_locks(*_):
    raise OSError(38, 'Function not implemented')
folder.fcntl.flock = without_locks
try:
    with folder.held(Path(sys.argv[1])):
        print('held')
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ('name', 'is_folder'), [('checkpoints', False), ('exports', False), ('data', False), ('DONE', True),
                            ('metrics.jsonl', True), ('tensorboard', False)],
)  # fmt: skip
def test_a_file_where_a_folder_should_be_and_the_other_way(run, name, is_folder):
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.mkdir() if is_folder else path.write_text('x')
    with pytest.raises(UserError, match=f'{path} is a f.*move it away'):
        folders.read_config(run)


def test_a_resumed_run_that_loses_its_config_while_it_sets_up_stops(made, run, monkeypatch):
    """It would lose its parent and its earlier ends."""
    for later in ('checkpoints/8', 'exports/8'):
        shutil.rmtree(run / later)
    real = train.claim_folder

    def losing(folder, *args):
        (folder / 'config.json').unlink()
        real(folder, *args)

    monkeypatch.setattr(train, 'claim_folder', losing)
    with pytest.raises(UserError, match='config.json was deleted while this run trained'):
        small_runs.run(made, run)
    assert not (run / 'config.json').exists() and checkpoint.steps(run / 'checkpoints') == [4]


def test_a_checkpoint_under_the_name_of_another_step_is_not_taken(made, run, capsys):
    shutil.rmtree(run / 'checkpoints/8')
    shutil.copytree(run / 'checkpoints/4', run / 'checkpoints/8')
    assert small_runs.run(made, run) == 0
    assert 'checkpoint of step 8 cannot be used (it holds step 4)' in capsys.readouterr().err
    assert checkpoint.steps(run / 'checkpoints') == [4, 8] and (run / 'checkpoints/8.damaged').exists()


@pytest.mark.parametrize(
    ('key', 'value'),
    [('views.global.count', None), ('towers.image.variant', None), ('image', {}), ('checkpoint', {}), ('export', {}),
     ('towers.image.native_size', 'x'), ('views.global.area', [None, 1.0]), ('data.images', {}),
     ('image.channels', None), ('data.images.sources.main', 0)],
)  # fmt: skip
def test_a_config_that_was_damaged_inside_is_named(run, key, value):
    """By whoever builds from it: `--from` and `medjax export`."""
    config = json.loads((run / 'config.json').read_text())
    *path, last = key.split('.')
    functools.reduce(lambda entry, name: entry[name], path, config)[last] = value
    (run / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match=f'{run}/config.json is damaged'):
        branch.parent(str(run))


def test_what_a_killed_process_leaves_is_swept(tmp_path):
    gone = subprocess.Popen([sys.executable, '-c', ''])
    gone.wait()
    host = folders.files._host()
    dead, alive = f'{host}.{gone.pid}.0', f'{host}.{os.getpid()}.0'
    for name in (f'exports/.8.{dead}.part/meta.json', f'.health.json.{dead}.part', f'exports/.4.{dead}.old/meta.json',
                 f'probes/8/.x.knn.npz.{dead}.part', f'exports/.12.{alive}.part/meta.json', 'config.json'):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('{}')
    with folders.held(tmp_path):
        pass
    assert sorted(content(tmp_path)) == ['config.json', f'exports/.12.{alive}.part/meta.json', 'exports/4/meta.json']
