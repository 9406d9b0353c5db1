"""Times medjax on one GPU, and checks what only a GPU can show.

    python benchmarks/gpu.py > results.jsonl              the default cases, within nine minutes
    python benchmarks/gpu.py --list                       all cases
    python benchmarks/gpu.py --only vitb,vitb:towers.image.unroll=1,vitb:towers.image.attention=xla:batch_size=120
    python benchmarks/gpu.py --only vitb --beside 'python bench_torch_gpu.py --batch 60'
    python benchmarks/gpu.py --tiny                       every case small, on any machine

A case may be followed by overrides of its recipe, KEY=VALUE after a colon. So each choice is timed beside the case
without it: towers.image.unroll (1 … 12), towers.image.attention (auto, xla, cudnn), towers.image.remat (products,
blocks, none), batch_size, dtype.

Each case runs in a process of its own, which is stopped after its time. Its result is one JSON line, written at once: a
case that cannot run says why in its line. The default cases begin with the most important ones. What does not fit into
nine minutes is left out, and a line says so. `--beside` runs another command on the same card, after the first step
that is timed, and passes its JSON lines on. Seconds of compilation are those of an empty cache.

The machine needs no network. It needs jax for CUDA, flax, optax, orbax-checkpoint and einops. What else medjax needs
can be carried there, 20 MB:

    python3.12 -m pip wheel --no-deps -w wheels -r benchmarks/gpu-wheels.txt           # where there is a network
    python -m pip install --no-index --no-deps wheels/*.whl                            # on the machine with the GPU

A case whose packages are missing says so, and the others run: `ceilings` and `attention` need none of them.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'benchmarks')]  # a machine without pip may not have medjax installed

from compile import VITB  # noqa: E402  the file beside this one

from medjax.errors import UserError  # noqa: E402

SECONDS = 240  # of one case
ALL_SECONDS = 540  # of the default cases together
LEAST = 20  # seconds in which a case can do anything
NO_GPU = 3  # exit code of a case on a machine without a GPU


class Case(NamedTuple):
    """What is measured, of one recipe with overrides."""

    measure: str  # a function of gpu_cases.py
    recipe: str = ''
    overrides: tuple[str, ...] = ()
    canvas: int = 256  # side of the stored images in pixels
    default: bool = True
    flags: str = ''  # of XLA


VITB_60 = (*VITB, 'batch_size=60')
AT_518 = ('init_from=None', 'batch_size=20')
CASES = {
    'ceilings': Case('ceilings'),
    'vitb': Case('step', 'rad_dino_vitb14', VITB_60),
    'attention': Case('attention'),
    'vits': Case('step', 'dinov2_vits14', ('batch_size=128',)),
    'vitb518': Case('step', 'rad_dino_vitb14', AT_518, canvas=777),
    'images': Case('images', 'rad_dino_vitb14', ('init_from=None',), canvas=777),
    'pair': Case('step', 'chexzero', ('batch_size=1024', 'dtype="bfloat16"')),
    'mae': Case('step', 'mae_vitb16', ('batch_size=512',)),
    # Not unrolled: it compiles two programs.
    'loop': Case('loop', 'rad_dino_vitb14', (*VITB_60, 'towers.image.unroll=1')),
    # The step of 'vitb' without CUDA graphs, which costs about 1 %: its profile knows the source of every product.
    'profile': Case('step', 'rad_dino_vitb14', VITB_60, default=False, flags='--xla_gpu_enable_command_buffer='),
    'half': Case(
        'half', 'rad_dino_vitb14', (*VITB, 'batch_size=20', 'towers.image.layerscale=1.0', 'towers.image.unroll=1'),
        default=False,
    ),
    'koleo': Case('koleo', 'demo', ('total_steps=200',), canvas=64, default=False),
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--only', metavar='NAMES', help=f'some of {",".join(CASES)}, each with overrides :KEY=VALUE')
    parser.add_argument('--beside', metavar='COMMAND', help='a command to run after the first step that is timed')
    parser.add_argument('--tiny', action='store_true', help='every case with small towers, on any machine')
    parser.add_argument('--list', action='store_true', help='print the cases')
    parser.add_argument('--here', type=float, help=argparse.SUPPRESS)  # seconds: measure the one case in this process
    args = parser.parse_args()
    if args.list:
        for name, case in CASES.items():
            when, what = 'default' if case.default else '', ' '.join((case.recipe, *case.overrides))
            print(f'{name:10} {when:7} {case.measure:9} {what}'.rstrip())
        return 0
    names = args.only.split(',') if args.only else [name for name, case in CASES.items() if case.default]
    for name in names:
        known, *given = name.split(':')
        if known not in CASES:
            parser.error(f'no case {known!r}; there are {", ".join(CASES)}')
        if wrong := [one for one in given if '=' not in one.strip('=')]:
            parser.error(f'{name!r}: {wrong[0]!r} is not an override KEY=VALUE, as in vitb:towers.image.unroll=1')
    if args.here:
        return here(names[0], args.here, args.tiny)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return all_of(names, args.beside, args.tiny, SECONDS * len(names) if args.only else ALL_SECONDS)
    except KeyboardInterrupt:
        print('stopped from the keyboard', file=sys.stderr)
        return 130


def all_of(names: list[str], beside: str | None, tiny: bool, seconds: float) -> int:
    """Runs the cases in turn, each in a process of its own; the exit code."""
    end, failed, device = time.monotonic() + seconds, False, None
    steps = [name for name in names if CASES[name.split(':')[0]].measure in ('step', 'loop')]
    with tempfile.TemporaryDirectory(prefix='medjax-gpu-') as cache:
        for name in names:
            limit = min(SECONDS, end - time.monotonic())
            if limit < LEAST:
                write(name, left_out=f'the {seconds / 60:.0f} minutes are over; --only {name} runs it')
                continue
            case = CASES[name.split(':')[0]]
            environment = dict(os.environ, JAX_COMPILATION_CACHE_DIR=cache)
            environment['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {case.flags}'.strip()
            command = [sys.executable, __file__, '--only', name, '--here', str(limit), *(['--tiny'] if tiny else [])]
            lines, reason, code = run(command, limit, environment)
            for line in lines:
                device = line.get('device', device)
                print(json.dumps(line), flush=True)
            failed |= bool(reason) or bool(code)
            if reason:
                write(name, failed=reason)
            if code == NO_GPU:
                return 1
            if beside and name == (steps or names)[0]:
                start = time.monotonic()
                lines, reason, _ = run(shlex.split(beside), SECONDS, dict(os.environ))
                for line in lines:
                    write('beside', command=beside, device=device, **line)
                if reason:
                    write('beside', command=beside, device=device, failed=reason)
                failed |= bool(reason)
                end += time.monotonic() - start
    return int(failed)


def write(case: str, **result: Any) -> None:
    print(json.dumps(dict(case=case) | result), flush=True)


def run(command: list[str], seconds: float, environment: dict[str, str]) -> tuple[list[dict[str, Any]], str, int]:
    """Runs a command: its JSON lines, a sentence that says why there are none or too few, and its exit code.

    The command and all processes that it started end with this function.
    """
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
    except OSError as error:
        return [], f'{command[0]}: {error.strerror}', 1
    try:
        out, err = process.communicate(timeout=seconds)
        late = ''
    except subprocess.TimeoutExpired:
        kill(process)
        out, err = process.communicate()
        late = f'not done after {seconds:.0f} s' + ''.join(f'; it was in {where}' for where in frames(err))
    finally:
        kill(process)
    lines = list(json_lines(out))
    if late:
        return lines, late, 1
    said = err.strip().splitlines() or ['it printed no JSON line']
    bad = not lines or (process.returncode and not any('failed' in line for line in lines))
    return lines, f'{said[-1][:500]} (exit code {process.returncode})' if bad else '', process.returncode


def kill(process: subprocess.Popen) -> None:
    """Ends a command with all processes that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def json_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def frames(text: str) -> list[str]:
    """The innermost frame of medjax in the output of faulthandler, or the innermost of all; empty if there is none."""
    found = re.findall(r'File "([^"]+)", line (\d+)', text)
    own = [(file, line) for file, line in found if '/medjax/' in file or '/benchmarks/' in file]
    return [f'{Path(file).name}, line {line}' for file, line in (own or found)[:1]]


def here(name: str, seconds: float, tiny: bool) -> int:
    """Measures one case in this process, and prints its line; the exit code."""
    faulthandler.dump_traceback_later(max(seconds - 5, 1), file=sys.stderr)  # says where a case hangs
    known, *given = name.split(':')
    try:
        import gpu_cases

        if not tiny and (problem := gpu_cases.no_gpu()):
            write(name, failed=problem)
            return NO_GPU
        result = gpu_cases.measured(CASES[known], given, tiny)
    except ModuleNotFoundError as error:
        reason = f'the package {error.name!r} is missing; the top of benchmarks/gpu.py says how to bring it'
        write(name, failed=reason)
        return 1
    except UserError as error:
        write(name, failed=str(error))
        return 1
    except Exception as error:
        said = str(error).strip().splitlines() or ['']
        last = [frame for frame in traceback.extract_tb(error.__traceback__) if str(ROOT) in frame.filename][-1:]
        where = ''.join(f' ({Path(frame.filename).name}, line {frame.lineno})' for frame in last)
        write(name, failed=f'{type(error).__name__}: {said[0][:500]}{where}')
        return 1
    write(name, **result)
    return int(result.get('passed') is False)


if __name__ == '__main__':
    sys.exit(main())
