"""Files of launch/ that tests start, with a program in place of medjax that writes down how it was called."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def installed(folder: Path, name: str, text: str, program: str) -> Path:
    """A file of launch/ with this text in a folder, and a program `medjax` in its reach."""
    for path, content in ((folder / name, text), (folder / 'bin/medjax', program)):
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    return folder / name


def environment(folder: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get('PYTHONPATH'))))
    return {**os.environ, 'PATH': f'{folder / "bin"}:{os.environ["PATH"]}', 'PYTHONPATH': path, 'JAX_PLATFORMS': 'cpu'}


def start(file: Path, *args: str) -> subprocess.CompletedProcess:
    folder = file.parent
    return subprocess.run(
        [str(file), *args], cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=300
    )


def calls(folder: Path) -> list[list[str]]:
    return [shlex.split(line) for line in (folder / 'calls').read_text().splitlines()]
