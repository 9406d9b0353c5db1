"""docs/life_of_a_run.md: its commands run in their order, and say what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / 'docs' / 'life_of_a_run.md'


def commands() -> list[str]:
    """The commands of the page: indented lines, joined where a backslash ends one."""
    joined = PAGE.read_text().replace('\\\n', ' ')
    return re.findall(r'^    ((?:medjax|mv|rm|truncate|cp) .*)$', joined, re.MULTILINE)


@pytest.mark.long
def test_the_commands_of_the_page_run(tmp_path):
    found = commands()
    assert len(found) >= 6
    (tmp_path / 'bin').mkdir()
    script = tmp_path / 'bin' / 'medjax'
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m medjax "$@"\n')
    script.chmod(0o755)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    environment = {**os.environ, 'PATH': f'{script.parent}:{os.environ["PATH"]}', 'JAX_PLATFORMS': 'cpu'}
    for command in found:
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env={**environment, 'PYTHONPATH': path}, capture_output=True, text=True
        )
        assert done.returncode == 0, f'{command}\n{done.stdout}{done.stderr}'
        assert 'Traceback' not in done.stderr, f'{command}\n{done.stderr}'
