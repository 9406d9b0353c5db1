"""The command line: help, version, mistakes; none of them imports anything heavy."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import types

import pytest

from medjax import __version__, cli
from medjax.errors import UserError


@pytest.fixture
def command(monkeypatch):
    """Replaces `medjax train` by a function."""

    def replace(function):
        monkeypatch.setitem(sys.modules, 'medjax.commands.train', types.SimpleNamespace(main=function))

    return replace


def test_help_names_every_command(capsys):
    assert cli.main(['--help']) == 0
    out = capsys.readouterr().out
    assert all(f'\n    {name} ' in out for name in ('build', 'train', 'probe', 'report'))
    assert cli.main([]) == 0
    assert capsys.readouterr().out == out


def test_version(capsys):
    assert cli.main(['--version']) == 0
    assert capsys.readouterr().out == f'medjax {__version__}\n'


def test_unknown_command_suggests(capsys):
    assert cli.main(['trian']) == 2
    assert capsys.readouterr().err == "medjax: there is no command 'trian'; did you mean 'train'?\n"


def test_arguments_and_exit_code_pass_through(command):
    command(lambda argv: len(argv))
    assert cli.main(['train', '--config', 'x']) == 2
    command(lambda argv: 3)
    assert cli.main(['train']) == 3


def test_a_users_mistake_is_one_line(command, capsys):
    def fail(argv):
        raise UserError('optim.lr: must be a number')

    command(fail)
    assert cli.main(['train']) == 2
    assert capsys.readouterr().err == 'medjax: optim.lr: must be a number\n'


@pytest.mark.parametrize(('name', 'words'), [('cuda', "'medjax[gpu]'"), ('x', 'known are cpu, cuda and tpu')])
def test_a_backend_that_is_not_installed_is_a_sentence(name, words):
    program = 'import sys; from medjax import cli; import jax, types; '
    program += 'sys.modules["medjax.commands.train"] = types.SimpleNamespace(main=lambda argv: jax.devices()); '
    program += 'sys.exit(cli.main(["train"]))'
    done = subprocess.run(
        [sys.executable, '-c', program], env={**os.environ, 'JAX_PLATFORMS': name}, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert f"medjax: jax cannot use the backend '{name}'" in done.stderr and words in done.stderr
    assert 'Traceback' not in done.stderr


def test_a_bug_keeps_its_traceback_and_has_its_own_code(command, capsys):
    def fail(argv):
        raise ZeroDivisionError

    command(fail)
    assert cli.main(['train']) == 70  # 1 is a result: `medjax audit` returns it if there is a leak
    assert 'ZeroDivisionError' in capsys.readouterr().err


def test_ctrl_c(command, capsys):
    def stop(argv):
        raise KeyboardInterrupt

    command(stop)
    assert cli.main(['train']) == 130
    assert capsys.readouterr().err.count('\n') == 1


@pytest.mark.parametrize('name', ['build', 'train'])
def test_sigterm(name, tmp_path):
    """The command cleans up as after Ctrl-C; train handles SIGTERM itself."""
    program = (
        'import os, pathlib, signal, sys, types; from medjax.cli import main\n'
        'def run(argv):\n'
        '    try: os.kill(os.getpid(), signal.SIGTERM)\n'
        f'    finally: pathlib.Path({str(tmp_path / "cleaned")!r}).touch()\n'
        f'sys.modules["medjax.commands.{name}"] = types.SimpleNamespace(main=run)\n'
        f'sys.argv = ["medjax", "{name}"]; sys.exit(main())'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    if name == 'train':
        assert (done.returncode, done.stderr) == (-signal.SIGTERM, '')
    else:
        assert (done.returncode, done.stderr) == (143, 'medjax: build was stopped by SIGTERM\n')
        assert (tmp_path / 'cleaned').exists()


def test_help_imports_nothing_heavy():
    program = (
        'import sys; from medjax.cli import main; code = main(["--help"]);'
        'heavy = {"jax", "numpy", "flax", "ml_collections"} & set(sys.modules); sys.exit(str(heavy) if heavy else code)'
    )
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')


def test_output_into_a_closed_pipe():
    # 100,000 lines do not fit in the pipe, so the command is still writing when its reader closes
    program = (
        'import sys, types; from medjax.cli import main;'
        'main_ = lambda argv: [print(i) for i in range(100_000)] and 0;'
        'sys.modules["medjax.commands.probe"] = types.SimpleNamespace(main=main_);'
        'sys.exit(main(["probe"]))'
    )
    process = subprocess.Popen(
        [sys.executable, '-c', program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == '0\n'
    process.stdout.close()
    assert process.wait(30) == 141
    assert process.stderr.read() == ''
    process.stderr.close()
