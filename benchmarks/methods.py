"""Makes the table of docs/cost.md: what a step of each method costs on two CPU cores, and in a program for an H100.

    python benchmarks/methods.py                         measures what benchmarks/methods.json lacks
    python benchmarks/methods.py mae_vitb16 byol         the same for these recipes; any recipe may be named
    python benchmarks/methods.py --only h100             only the compiled programs; or cpu, or gpu
    python benchmarks/methods.py --table                 measures nothing

Each call prints the table, and writes that of METHODS into the page.

Kinds of results:

cpu   The loop of training on phantoms by benchmarks/step.py, in a process of its own on the first two cores, in
      float32, with few rows. A result says how many cores other programs took meanwhile. If they took more than a tenth
      of a core, the table marks it, and the next call measures it again.
h100  The program of the step for one H100, as benchmarks/compile.py compiles it without a card, with 32 rows, or as
      many as whole groups need. `make aot` installs the compiler.
gpu   The same rows in the recipe's own precision on the GPU of this machine. Only with --only gpu.

ViTs have size B here, so that methods compare. Each finished result is written at once, so a stopped call goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from compile import ROWS as H100_ROWS, in_own_process  # the files beside this one
from step import for_sources, phantoms

from medjax import config as configs, files, recipes
from medjax.errors import UserError, suggest
from medjax.training.rehearsal import without_data

HERE = Path(__file__).parent
RESULTS = HERE / 'methods.json'
PAGE = HERE.parent / 'docs' / 'cost.md'
AROUND = ('<!-- written by benchmarks/methods.py -->\n', '\n<!-- end -->')  # of the table in the page
ROWS, STEPS, WARMUP = 4, 3, 1  # on two cores
CORES = 2
PATIENCE = 20  # times the limit of a program: on a machine that others use it may compile for an hour
QUIET = 0.1  # cores that other programs may take during a measurement
KINDS = ('cpu', 'h100', 'gpu')
# The recipes of the table, with the overrides that make their ViTs ViT-B.
METHODS: dict[str, tuple[str, ...]] = {
    'simclr': (),
    'moco_v3': (),
    'byol': (),
    'barlow_twins': (),
    'vicreg': (),
    'lejepa': ('towers.image.variant=B/14',),
    'dino': ('towers.image.variant=B/16',),
    'ibot': ('towers.image.variant=B/16',),
    'dinov2_vits14': ('towers.image.variant=B/14',),
    'less_is_more_swav': (),
    'ijepa_vitb16': (),
    'mae_vitb16': (),
    'spark_resnet50': (),
}
Results = dict[str, dict[str, Any]]  # recipe -> kind -> numbers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('names', nargs='*', metavar='RECIPE', help=f'default: {", ".join(METHODS)}')
    parser.add_argument('--only', choices=KINDS, help='measure this alone; default: cpu and h100')
    parser.add_argument('--table', action='store_true', help='measure nothing')
    args = parser.parse_args()
    for name in args.names:
        if name not in recipes.shipped():
            parser.error(f'there is no recipe {name!r}{suggest(name, recipes.shipped())}')
    names = args.names or list(METHODS)
    results = written()
    todo = [
        (name, kind)
        for kind in ([] if args.table else [args.only] if args.only else ['cpu', 'h100'])
        for name in names
        if not settled(results.get(name, {}).get(kind))
    ]
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, kind) in enumerate(todo, 1):
            start = time.monotonic()
            print(f'{i} of {len(todo)}: {name}, {kind} …', end=' ', file=sys.stderr, flush=True)
            result, error = on_h100(name) if kind == 'h100' else timed(name, kind, folder)
            print(error or f'{time.monotonic() - start:.0f} s', file=sys.stderr, flush=True)
            failed |= bool(error)
            if result is not None:
                results = written()  # another call may have added to it
                results.setdefault(name, {})[kind] = result
                files.write_json(RESULTS, results)
    print(table({name: results[name] for name in args.names or (*METHODS, *results) if name in results}))
    write_page(results)
    return int(failed)


def written() -> Results:
    """The results of earlier calls."""
    try:
        return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    except ValueError as error:
        raise UserError(f'{RESULTS} is damaged: {error}; without it everything is measured again') from None


def write_page(results: Results) -> None:
    """Puts the table of METHODS into docs/cost.md."""
    before, rest = PAGE.read_text().split(AROUND[0])
    after = rest.split(AROUND[1])[1]
    shown = table({name: results[name] for name in METHODS if name in results})
    PAGE.write_text(f'{before}{AROUND[0]}{shown}{AROUND[1]}{after}')


def settled(result: Mapping[str, Any] | None) -> bool:
    """Whether a result is there and was not disturbed by other programs."""
    return result is not None and result.get('others', 0) <= QUIET


# Measurements.


def timed(name: str, kind: str, folder: str) -> tuple[dict[str, Any] | None, str]:
    """The result of step.py in a process of its own, or None and what went wrong."""
    data = Path(folder) / 'phantom'
    if not data.exists():
        phantoms(folder)
    overrides = list(METHODS.get(name, ()))
    rows, environment = H100_ROWS, dict(os.environ)
    if kind == 'cpu':
        rows = ROWS
        overrides += for_cpu(name)
        environment['JAX_PLATFORMS'] = 'cpu'
        environment.pop('JAX_COMPILATION_CACHE_DIR', None)  # else the peak of memory depends on what is in the cache
    command = [sys.executable, str(HERE / 'step.py'), '--config', name, '--rows', str(rows), '--only', 'loop', '--json']
    command += ['--steps', str(STEPS), '--warmup', str(WARMUP)]
    command += [f'--data={item}' for item in for_sources(name, overrides, str(data))]
    command += [f'--config.{item}' for item in overrides]
    cores = sorted(os.sched_getaffinity(0))[:CORES]
    start, busy, own = time.monotonic(), busy_seconds(cores), own_seconds()
    pin = (lambda: os.sched_setaffinity(0, cores)) if kind == 'cpu' else None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=pin)
    if done.returncode:
        return None, f'failed:\n{done.stderr[-2000:]}'
    result = json.loads(done.stdout.splitlines()[-1])
    if kind == 'gpu' and result['platform'] != 'gpu':
        return None, f'jax finds no GPU here, only {result["device"]}'
    if kind == 'cpu':
        others = busy_seconds(cores) - busy - (own_seconds() - own)
        result['others'] = round(max(others, 0.0) / (time.monotonic() - start), 2)
    return result, ''


def for_cpu(name: str) -> list[str]:
    """Overrides for a CPU: float32, blocks that are not unrolled, and no group of more rows than there are."""
    config = configs.read(name, METHODS.get(name, ()))
    found = ['dtype="float32"', f'rows_per_group={min(config.rows_per_group, ROWS)}']
    return found + [f'towers.{tower}.unroll=1' for tower, cfg in config.towers.items() if 'unroll' in cfg]


def busy_seconds(cores: Sequence[int]) -> float:
    """The seconds that these cores have worked since the machine started."""
    fields = {line.split()[0]: line.split()[1:] for line in Path('/proc/stat').read_text().splitlines()}
    working = (0, 1, 2, 5, 6, 7)  # user, nice, system, interrupts, and what other virtual machines took
    ticks = sum(int(fields[f'cpu{core}'][i]) for core in cores for i in working)
    return ticks / os.sysconf('SC_CLK_TCK')


def own_seconds() -> float:
    """The CPU seconds of this process and of all that it started and that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def on_h100(name: str) -> tuple[dict[str, Any] | None, str]:
    """The numbers of the compiled step, or None and what went wrong."""
    result, error = in_own_process(':'.join((name, *METHODS.get(name, ()))), slack=PATIENCE)
    kept = ('rows', 'tflop', 'moved_gib', 'arguments_mib', 'temporary_mib', 'peak_mib', 'roofline_ms', 'compile_cpu_s')
    return result and {key: result[key] for key in kept}, error


# The table.


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results in Markdown. The columns of a GPU are there only if one was measured."""
    gpu = next((found['gpu']['device'] for found in results.values() if 'gpu' in found), None)
    heads = [
        'recipe', 'tower', 'patches that it reads', 'GFLOP an image', 'rows', 's a step (min to max)', 'CPU s a step',
        'peak MiB',
        'H100: rows', 'TFLOP a step', 'GiB moved', 'peak GiB', 'ms at the roofline',
    ]  # fmt: skip
    heads += [f'ms on {gpu} (min to max)', 'peak GiB on it'] if gpu else []
    lines = [heads, ['---'] * len(heads)]
    for name, found in results.items():
        cells = [f'`{name}`', tower(name), reads(name)]
        cpu, h100, card = (found.get(kind) for kind in KINDS)
        works = [one['flops'] / 1e9 / one['batch_size'] for one in (cpu, card) if one]
        works += [1e3 * h100['tflop'] / h100['rows']] if h100 else []
        cells.append(f'{works[-1]:,.0f}')
        if cpu:
            mark = '' if settled(cpu) else '~'
            cells += [str(cpu['batch_size']), f'{mark}{spread(cpu["loop"], 1)}', f'{cpu["loop"]["cpu_seconds"]:.1f}']
            cells.append(f'{cpu["peak_memory_mib"]:,.0f}')
        else:
            cells += [''] * 4
        if h100:
            cells += [str(h100['rows']), f'{h100["tflop"]:.1f}', f'{h100["moved_gib"]:,.0f}']
            cells += [f'{h100["peak_mib"] / 1024:.1f}', f'{h100["roofline_ms"]:,.0f}']
        else:
            cells += [''] * 5
        if gpu:
            cells += [spread(card['loop'], 1e3), f'{card["peak_memory_mib"] / 1024:.1f}'] if card else ['', '']
        lines.append(cells)
    text = '\n'.join(f'| {" | ".join(cells)} |' for cells in lines)
    busy = [found['cpu']['others'] for found in results.values() if 'cpu' in found and not settled(found['cpu'])]
    if busy:
        text += f'\n\n~ Other programs took {statistics.median(busy):.1f} of the two cores meanwhile (median).'
        text += ' CPU seconds say more.'
    return text


def spread(times: Mapping[str, float], unit: float) -> str:
    median, low, high = (times[key] * unit for key in ('seconds', 'seconds_min', 'seconds_max'))
    return f'{median:.1f} ({low:.1f} to {high:.1f})'


def tower(name: str) -> str:
    """'ViT-B/16', 'ResNet-50' of a recipe with the overrides of this page."""
    cfg = configs.read(name, METHODS.get(name, ())).towers.image
    return f'{dict(vit="ViT", resnet="ResNet").get(cfg.tower, cfg.tower)}-{cfg.get("variant", "")}'.rstrip('-')


def reads(name: str) -> str:
    """'49 of 196' for an encoder that reads some patches of a crop."""
    config = configs.read(name, METHODS.get(name, ()))
    if all(mask.mask in ('blocks', 'words') for mask in config.masks.values()):  # other tokens replace the masked ones
        return 'all'
    _, _, make_views = without_data(configs.check(configs.resolve(config, {})))
    (mask,) = make_views.generators.values()
    if mask.mode == 'zero':
        return 'all: convolutions are dense'
    drawn = jax.eval_shape(lambda: mask.draw(jax.random.key(0), None, ()))
    return f'{drawn.kept.shape[-1]} of {math.prod(mask.context.grid)}'


if __name__ == '__main__':
    try:
        sys.exit(main())
    except UserError as error:
        print(f'methods.py: {error}', file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print('stopped; the same call goes on', file=sys.stderr)
        sys.exit(130)
