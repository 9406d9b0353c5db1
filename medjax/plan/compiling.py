"""Compiles the step of a recipe in a process of its own, and keeps the facts, so that a second plan is instant."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medjax import files
from medjax.errors import UserError
from medjax.plan.facts import Facts
from medjax.plan.topology import Topology

ROOT = Path(__file__).parents[2]  # of the checkout, or of the packages of this Python
# What decides the facts of a program: these folders and files of medjax.
SOURCE = (
    'aot', 'models', 'objectives', 'parallel', 'plan/exchanges.py', 'plan/kernels.py', 'plan/memory.py',
    'plan/worker.py', 'training', 'views',
)  # fmt: skip
EXPECTED = {'gpu': '1 to 3 minutes', 'tpu': '2 to 8 minutes'}  # for a ViT-B on two idle cores


class Request(NamedTuple):
    """One step to compile."""

    config: str  # a file, or the name of a shipped recipe
    overrides: tuple[str, ...]
    resolved: Mapping[str, Any]  # the config that comes out
    topology: Topology


def interpreter(topology: Topology, given: str | None) -> Path:
    """The Python with a compiler for a topology. UserError with the command that installs one, if there is none."""
    kind, module = ('gpu', 'jax_cuda13_plugin') if topology.chip.is_gpu else ('tpu', 'libtpu')
    if given is not None:
        path = Path(given).expanduser()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise UserError(f'--compiler {given}: there is no Python of this name; give the path of an interpreter')
        return path
    made = ROOT / f'.venv-aot-{kind}' / 'bin' / 'python'
    if made.exists():
        return made
    if importlib.util.find_spec(module):
        return Path(sys.executable)
    if (ROOT / 'Makefile').exists():
        raise UserError(
            f'{topology.name}: no compiler for {kind.upper()}s is installed; make aot-environments, in {ROOT}, '
            'installs one'
        )
    raise UserError(
        f'{topology.name}: no compiler for {kind.upper()}s is installed; python3.12 -m venv compiler && '
        f"compiler/bin/pip install 'medjax[plan-{kind}]' installs one, and --compiler compiler/bin/python names it"
    )


def compiled(request: Request, python: Path, say: Callable[[str], None]) -> tuple[Facts, bool]:
    """The facts of a step, and whether an earlier plan had compiled it. `say` tells the user what happens."""
    place = cache_folder() / f'{_key(request, python)}.json'
    if (kept := _read(place)) is not None:
        return kept, True
    kind = 'gpu' if request.topology.chip.is_gpu else 'tpu'
    say(f'compiling for {request.topology.name}: {EXPECTED[kind]} for a ViT-B on two idle cores')
    found = _compile(request, python, say)
    with files.writing(f'the result {place}'):
        files.write_json(place, found)
    return Facts.of_json(found), False


def cache_folder() -> Path:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'medjax' / 'plan'


def _read(place: Path) -> Facts | None:
    try:
        return Facts.of_json(json.loads(place.read_text()))
    except (OSError, ValueError, TypeError, AttributeError):  # nothing there, or of another version or cut
        return None


def _key(request: Request, python: Path) -> str:
    config = {key: value for key, value in request.resolved.items() if key not in ('data_paths', 'log', 'checkpoint')}
    known = [config, request.topology.name, _versions(python), _source()]
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


@functools.cache
def _source() -> str:
    """A digest of the code that decides what a program looks like."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in SOURCE:
        path = package / name
        for file in [path] if path.is_file() else sorted(path.rglob('*.py')):
            digest.update(f'{file.relative_to(package)}\n'.encode() + file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _versions(python: Path) -> dict[str, str]:
    """The versions of what compiles."""
    done = subprocess.run(_command(python, '--versions'), env=_environment(), capture_output=True, text=True)
    if done.returncode:
        raise UserError(f'{python} cannot run medjax: {_last_line(done.stderr)}')
    return json.loads(done.stdout)['versions']


def _command(python: Path, *arguments: str) -> list[str]:
    return [str(python), '-m', 'medjax.plan.worker', *arguments]


def _environment() -> dict[str, str]:
    """The environment of the worker: it runs this code, whatever its own packages hold."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}


def _compile(request: Request, python: Path, say: Callable[[str], None]) -> dict[str, Any]:
    asked = dict(config=request.config, overrides=request.overrides, topology=request.topology.name)
    with tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen(
            _command(python),
            env=_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert process.stdin and process.stdout
            json.dump(asked, process.stdin)
            process.stdin.close()
            message: dict[str, Any] = {}
            for line in process.stdout:
                message = json.loads(line)
                if 'stage' in message:
                    say(message['stage'])
            code = process.wait()
        finally:
            process.kill()
            process.wait()
        errors.seek(0)
        text = errors.read()
    if 'error' in message:
        raise UserError(message['error'])
    if 'facts' in message and code == 0:
        return message['facts']
    if code == -9:
        raise UserError(
            f'{request.topology.name}: the process that compiles was killed, probably because the memory of this '
            'machine is full; a ViT-B takes 2 to 4 GiB'
        )
    if 'ModuleNotFoundError' in _last_line(text):
        raise UserError(f'{python} cannot run medjax: {_last_line(text)}')
    raise RuntimeError(f'{request.topology.name}: the process that compiles ended with {code}:\n{text[-4_000:]}')


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), '')
