"""Full and read-only disks: a sentence that names what was being written, and nothing half there.

A full disk is a tmpfs of a few kilobytes. Where none can be mounted, it is a limit on the size of a file, which stops
the same writes. CI runs as root, whom mode bits do not stop, so read-only is tested in a child that gives up root.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import small_runs
from PIL import Image
from small_runs import content, same_end, unfinished

from medjax import cli, files
from medjax.errors import UserError

SPACE = 'no space is left on the disk; free some, and run the same command again'


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    return small_runs.build(tmp_path_factory.mktemp('made'))


@pytest.fixture(scope='module')
def whole(made, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp('runs') / 'whole'
    assert small_runs.run(made, folder) == 0
    return folder


@contextlib.contextmanager
def disk(folder: Path, kilobytes: int):
    """A small disk at a folder; the function that makes it large."""
    folder.mkdir()
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={kilobytes}k', 'tmpfs', str(folder)]
    if shutil.which('mount') and subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield lambda: subprocess.run(['mount', '-o', 'remount,size=100m', str(folder)], check=True)
        finally:
            subprocess.run(['umount', '-l', str(folder)], check=True)
    else:
        with limit(kilobytes) as lift:
            yield lift


@contextlib.contextmanager
def limit(kilobytes: int):
    """No file of this process may be larger; the function that lifts the limit."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def lift() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes << 10, before[1]))
    try:
        yield lift
    finally:
        lift()


def used(folder: Path) -> int:
    """Kilobytes of a folder on a disk with blocks of 4."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in folder.rglob('*'))


def hidden(folder: Path) -> list[str]:
    """What is half written."""
    return [name for name in content(folder) if '.part' in name or 'orbax-checkpoint-tmp' in name]


# A full disk.


@pytest.mark.parametrize(
    ('kilobytes', 'what'),
    [
        (4, 'the record of the data'),
        (16, 'the '),
        (120, 'the checkpoint of step 4'),
        (None, 'the checkpoint of step 8'),
    ],
)
def test_a_run_on_a_full_disk(made, whole, tmp_path, kilobytes, what, capsys):
    """It stops with a sentence, leaves nothing half there, and goes on to the same bits once there is space."""
    begun = shutil.copytree(whole, tmp_path / 'begun')
    unfinished(begun, 4)
    with disk(tmp_path / 'disk', kilobytes or used(begun) + 60) as enlarge:
        run = tmp_path / 'disk' / 'run'
        if kilobytes is None:
            shutil.copytree(begun, run)
        with pytest.raises(UserError, match=f'^{what}.* cannot be written: (no space|it is larger than a file may be)'):
            small_runs.run(made, run)
        assert not hidden(tmp_path / 'disk') and not (run / '.lock').exists()
        saved = [path.name for path in (run / 'checkpoints').glob('*')]
        assert saved == (['4'] if kilobytes is None else [])
        if (run / 'metrics.jsonl').exists():  # no line is torn
            lines = (run / 'metrics.jsonl').read_text()
            assert (not lines or lines.endswith('\n')) and all(map(json.loads, lines.splitlines()))
        enlarge()
        capsys.readouterr()
        assert small_runs.run(made, run) == 0
        assert ('resuming from step 4' in capsys.readouterr().err) == bool(saved)
        same_end(run, whole)


def test_a_disk_that_is_full_for_each_kind_of_file(made, whole, tmp_path, capsys):
    """The command says what does not fit, and leaves nothing."""
    pictures(tmp_path / 'images')
    with disk(tmp_path / 'disk', 8):
        at = tmp_path / 'disk'
        (at / 'ballast').write_bytes(bytes(4096))
        for words, argv in {
            'the records of': ['build', 'phantom', '--records', '20', '--size', '32', '--out', at / 'data'],
            'the page': ['show', made / 'data', '--out', at / 'page.html'],
            'the features': ['encode', whole, tmp_path / 'images', '--out', at / 'f.npz'],
            '--out': ['convert', whole / 'exports' / '8', '--to', 'stablehlo', '--out', at / 'program'],
        }.items():
            assert cli.main([str(arg) for arg in argv]) == 2, argv
            told = capsys.readouterr().err
            assert f'medjax: {words} {at}/' in told and 'cannot be written: ' in told, told
            assert 'Traceback' not in told and [*content(at)] == ['ballast'], (told, content(at).keys())


@pytest.mark.parametrize('what', ['export', 'metrics', 'health of the run', 'config'])
def test_the_files_of_a_run_are_named(made, whole, tmp_path, monkeypatch, what):
    """The disk is full at the moment when this file is written."""
    run = shutil.copytree(whole, tmp_path / 'run')
    unfinished(run, 4)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if what == 'export':
        monkeypatch.setattr('medjax.weights.export.save_file', full)
    elif what == 'metrics':
        monkeypatch.setattr('medjax.training.metrics.Writer._append', full)
    else:
        real, name = files.write_text, 'health.json' if 'health' in what else 'config.json'
        monkeypatch.setattr(
            files, 'write_text', lambda path, text: (full if Path(path).name == name else real)(path, text)
        )
    overrides = ['log.every=1'] if what == 'config' else []  # then config.json is written again
    with pytest.raises(UserError, match=f'^the {what}.* cannot be written: {SPACE}'):
        small_runs.run(made, run, *overrides)
    monkeypatch.undo()
    assert not hidden(run) and not (run / 'DONE').exists()
    assert small_runs.run(made, run) == 0
    same_end(run, whole)


def test_a_torn_line_of_metrics(tmp_path):
    """A disk that takes half of a line: the line is taken back."""
    from medjax.training.metrics import Writer

    writer = Writer(tmp_path, total_steps=4, every=1)
    writer.step(1, {'loss': np.float32(1)}, images=8)
    before = (tmp_path / 'metrics.jsonl').read_bytes()
    assert before.endswith(b'\n')
    with limit(0) as lift:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 20, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        with pytest.raises(UserError, match='the metrics .*metrics.jsonl cannot be written: it is larger'):
            writer.step(2, {'loss': np.float32(1)}, images=8)
        lift()
    assert (tmp_path / 'metrics.jsonl').read_bytes() == before
    writer.close()


# A read-only disk.

READ_ONLY = """
import contextlib, importlib, io, os, pkgutil, sys, warnings
import medjax
from medjax import cli

def call(folder, command):
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(told):
        code = cli.main(command.replace('AT', folder).split())
    return code, told.getvalue()

here, there, *commands = sys.argv[1:]
warnings.simplefilter('ignore')  # that jax was in use
if os.getuid() == 0:
    for module in pkgutil.walk_packages(medjax.__path__, 'medjax.'):  # while they can be read
        if not module.name.endswith('__main__'):
            importlib.import_module(module.name)
    for command in commands[2:]:
        code, told = call(there, command)
        assert code == 0, told
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for command in commands:
    code, told = call(here, command)
    print(code, ' '.join(told.split()))
"""
COMMANDS = {
    'train --config AT/recipe.py --data AT/data --workdir AT/run --config.total_steps=12':
        'AT/run cannot be written',
    'train --config AT/recipe.py --data AT/data --workdir AT/new/run':
        '--workdir AT/new/run: is no folder, and none can be made there',
    'probe --run AT/run --data AT/data --probes knn --baselines none':
        'the results of the probes in AT/run cannot be written',
    'export AT/run@4': 'the export AT/run/exports/4 cannot be written',
    'encode AT/run AT/images --out AT/f.npz': 'the features AT/f.npz cannot be written',
}  # fmt: skip


@pytest.mark.slow
def test_a_read_only_folder(made, whole):
    """Each command says what it cannot write, in the first line: `medjax probe` before it encodes."""
    with tempfile.TemporaryDirectory() as scratch:  # pytest's own folders can be read by their owner alone
        here, there = Path(scratch, 'here'), Path(scratch, 'there')
        for folder in (here, there):
            shutil.copytree(made, folder)
            shutil.copytree(whole, folder / 'run')
            shutil.rmtree(folder / 'run' / 'exports' / '4')
            pictures(folder / 'images')
        for path in (Path(scratch), here, *here.rglob('*')):
            path.chmod(0o555 if path.is_dir() and path != Path(scratch) else 0o755 if path.is_dir() else 0o444)
        before = content(here)
        done = subprocess.run(
            [sys.executable, '-c', READ_ONLY, str(here), str(there), *COMMANDS], capture_output=True, text=True
        )
        for path in (here, *here.rglob('*')):
            if path.is_dir():
                path.chmod(0o755)
        assert done.returncode == 0, done.stderr
        for line, words in zip(done.stdout.splitlines(), COMMANDS.values(), strict=True):
            assert line.startswith(f'2 medjax: {words.replace("AT", str(here))}'), line
            assert 'permission denied; make it writable, or choose another folder' in line and 'Traceback' not in line
        assert content(here) == before


def pictures(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for i in range(20):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32), np.uint8)).save(folder / f'{i}.png')
