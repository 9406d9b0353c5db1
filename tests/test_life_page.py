"""docs/life_of_a_run.md: its commands run in their order, and say what the page says."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from medjax import cli
from medjax.parallel import runtime

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'life_of_a_run.md'


def commands() -> list[str]:
    """The commands of the page: indented lines, joined where a backslash ends one."""
    joined = PAGE.read_text().replace('\\\n', ' ')
    return re.findall(r'^    ((?:medjax|mv|rm|truncate|cp) .*)$', joined, re.MULTILINE)


@pytest.mark.slow
def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    """Those of medjax run in this process, without jax's service of processes, which starts once in a process."""
    monkeypatch.chdir(tmp_path)
    for name in ('start', 'shutdown'):
        monkeypatch.setattr(runtime, name, lambda: None)
    found = commands()
    assert len(found) >= 6
    for command in found:
        name, *argv = shlex.split(command)
        if name != 'medjax':
            subprocess.run(command, shell=True, check=True)
            continue
        argv, file = (argv[:-2], argv[-1]) if argv[-2:-1] == ['>'] else (argv, None)
        code = cli.main(argv)
        told = capsys.readouterr()
        assert code == 0 and 'Traceback' not in told.err, f'{command}\n{told.out}{told.err}'
        if file is not None:
            Path(file).write_text(told.out)
