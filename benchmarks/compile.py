"""Compiles programs of shipped recipes for GPUs and TPUs that are not there, and compares them with committed numbers.

    make aot                                          the cases of CI, in environments that it makes
    python benchmarks/compile.py                      all cases: an hour
    python benchmarks/compile.py --list               print them
    python benchmarks/compile.py vitb_step --text vitb.hlo
    python benchmarks/compile.py dino:towers.image.variant=B/16:dtype=float32       a case with overrides of its recipe
    python benchmarks/compile.py --ci --write         after a wanted change: write benchmarks/programs.json anew

The cases are the programs that the notes speak of, the fits and encoders of probes, and the step and the views of every
shipped recipe at a few rows. Each runs in a process of its own, with the Python of .venv-aot-gpu or .venv-aot-tpu (see
`make aot`). A case fails if a program takes more than three times its limit to compile, or holds an array that it must
not hold. programs.json has the numbers of the cases of CI, for the versions in aot-gpu.txt and aot-tpu.txt: such a case
fails too if a number differs by more than 2 %. Write a line into BUILD_NOTES.md for every changed number.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import difflib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
NUMBERS = ROOT / 'benchmarks' / 'programs.json'
SLACK = 3  # CI machines are busy: a case may take this many times its limit
TOLERANCE = 0.02
ROWS = 32
MIB, GIB = 2**20, 2**30


class Case(NamedTuple):
    """One program for one topology."""

    topology: str
    recipe: str  # '' for fits of probes, which have no recipe
    program: str  # of medjax/aot/programs.py or medjax/aot/probes.py
    limit: int  # seconds on two idle cores
    overrides: tuple[str, ...] = ()
    canvas: int = 256
    ci: bool = False
    flash: bool = True  # whether no array of attention scores may lie in memory, if the recipe computes in bfloat16
    few_rows: bool = False  # whether each part of the batch has ROWS rows instead of those of the recipe


# ViT-B/14 on 2 x 224 + 8 x 98 px with one head of 65,536 prototypes: the step that the notes time.
VITB = ('init_from=None', 'views.global.size=224', 'views.local.size=98', 'towers.image.native_size=224')
TI = (*VITB, 'towers.image.variant=Ti/14', 'heads.dino.prototypes=4096', 'towers.image.unroll=1')
CASES = {
    'vitb_views': Case('h100:1x1', 'rad_dino_vitb14', 'views', 15, ('batch_size=40',), canvas=777, ci=True),
    'vitb_step': Case('h100:1x1', 'rad_dino_vitb14', 'step', 180, (*VITB, 'batch_size=60'), ci=True),
    'vitb_step_scanned': Case(
        'h100:1x1', 'rad_dino_vitb14', 'step', 60, (*VITB, 'batch_size=60', 'towers.image.unroll=1')
    ),
    'vitb_step_8': Case(
        'h100:1x8', 'rad_dino_vitb14', 'step', 60, (*VITB, 'batch_size=480', 'towers.image.unroll=1'), ci=True
    ),
    'pair_step': Case('h100:1x1', 'convirt', 'step', 60, ('dtype="bfloat16"',), ci=True),
    'mae_step': Case('h100:1x1', 'mae_vitb16', 'step', 60, ('batch_size=64',), ci=True),
    'encoder': Case('h100:1x1', 'rad_dino_vitb14', 'encoder', 30, ('init_from=None',), canvas=777, ci=True),
    'rad_dino_64': Case('h100:8x8', 'rad_dino_vitb14', 'step', 180, canvas=777),
    'tpu_views': Case('v5p:2x2x1', 'dinov2_vits14', 'views', 30, ('batch_size=64',), ci=True),
    'fsdp_step': Case(
        'h100:1x8', 'rad_dino_vitb14', 'step', 60,
        (*TI, 'towers.image.depth=2', 'batch_size=80', 'mesh.data=1', 'mesh.fsdp=8'), ci=True,
    ),
    'tpu_step': Case(
        'v5p:2x2x1', 'rad_dino_vitb14', 'step', 120, (*TI, 'batch_size=80', 'mesh.data=2', 'mesh.fsdp=2'), ci=True,
        flash=False,
    ),
    'tpu_rad_dino': Case(
        'v5p:2x2x1', 'rad_dino_vitb14', 'step', 300, ('batch_size=160', 'towers.image.unroll=1'), canvas=777,
        flash=False,
    ),
    'tpu_rad_dino_512': Case(
        'v5p:8x8x8', 'rad_dino_vitb14', 'step', 300, ('towers.image.unroll=1',), canvas=777, flash=False
    ),
    'linear': Case('h100:1x1', '', 'linear', 30),
    'nearest': Case('h100:1x1', '', 'nearest', 30),
    'images': Case('h100:1x1', 'rad_dino_vitb14', 'images', 30, canvas=777),
    'texts': Case('h100:1x1', 'chexzero', 'texts', 30),
}  # fmt: skip
for _path in sorted((ROOT / 'configs').glob('*.py')):
    CASES[_path.stem] = Case('h100:1x1', _path.stem, 'step', 180, few_rows=True)
    CASES[f'{_path.stem}_views'] = Case('h100:1x1', _path.stem, 'views', 30, few_rows=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('names', nargs='*', metavar='CASE', help='cases to compile; default: all')
    parser.add_argument('--ci', action='store_true', help='the cases of CI alone')
    parser.add_argument('--list', action='store_true', help='print the cases')
    parser.add_argument('--write', action='store_true', help='write the numbers instead of comparing with them')
    parser.add_argument('--json', action='store_true', help='one JSON line a case')
    parser.add_argument('--text', metavar='FILE', help='write the optimised program of one case here')
    parser.add_argument('--jobs', type=int, default=1, metavar='N', help='compile N cases at once; default: 1')
    parser.add_argument('--here', action='store_true', help='compile in this process, with this Python')
    args = parser.parse_args()
    if unknown := [known for name in args.names if (known := name.split(':')[0]) not in CASES]:
        near = ''.join(f'; did you mean {one!r}?' for one in difflib.get_close_matches(unknown[0], CASES, n=1))
        parser.error(f'no case {unknown[0]!r}{near}; --list prints all')
    if args.jobs < 1:
        parser.error(f'--jobs {args.jobs}: must be at least 1')
    names = args.names or [name for name, case in CASES.items() if case.ci or not args.ci]
    if args.list:
        for name, case in CASES.items():
            rows = f'{ROWS} rows' if case.few_rows else ''
            what = ' '.join(filter(None, (case.recipe, case.program, rows, *case.overrides)))
            print(f'{name:23} {"CI" if case.ci else "":2} {case.topology:10} {what}')
        return 0
    if args.here:
        print(json.dumps(compiled(case_of(names[0]), args.text)))
        return 0
    numbers = json.loads(NUMBERS.read_text()) if NUMBERS.exists() else {}
    failed = False
    with ThreadPool(args.jobs) as pool:
        results = pool.imap(lambda name: in_own_process(name, args.text), names)
        for name, (result, error) in zip(names, results, strict=True):
            case = case_of(name)
            if result is None:
                print(f'{name}: {error}', flush=True)
                failed = True
                continue
            print(json.dumps({'case': name, **result}) if args.json else f'{name}: {sentence(result)}', flush=True)
            complaints = list(faults(case, result))
            if args.write and case.ci:
                numbers[name] = guarded(result)
            elif case.ci:
                complaints += differences(guarded(result), numbers.get(name))
            for complaint in complaints:
                print(f'  {complaint}', flush=True)
            failed |= bool(complaints)
    if args.write:
        NUMBERS.write_text(json.dumps(numbers, indent=1) + '\n')
    return int(failed)


def case_of(name: str) -> Case:
    """The case of a name, with the overrides of its recipe that follow. With overrides it is no case of CI."""
    known, *given = name.split(':')
    case = CASES[known]
    return case._replace(overrides=(*case.overrides, *given), ci=case.ci and not given)


def in_own_process(name: str, text: str | None = None, slack: int = SLACK) -> tuple[dict[str, Any] | None, str]:
    """The result of a case, or None and what went wrong. It may take `slack` times its limit."""
    case = case_of(name)
    kind = 'gpu' if case.topology.startswith('h100') else 'tpu'
    python = ROOT / f'.venv-aot-{kind}' / 'bin' / 'python'
    if not python.exists():
        return None, f'there is no {python}; make aot makes this environment'
    command = [str(python), __file__, name, '--here', *(['--text', text] if text else [])]
    limit = max(slack * case.limit, 120)
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit + 60)
    except subprocess.TimeoutExpired:
        return None, f'still compiling after {limit + 60} s; the limit is {case.limit} s'
    if done.returncode:
        return None, f'failed:\n{done.stderr[-2000:]}'
    return json.loads(done.stdout.splitlines()[-1]), ''


def compiled(case: Case, text_file: str | None = None) -> dict[str, Any]:
    """The numbers of a program, which is compiled here."""
    from medjax.aot import devices as topologies

    devices = topologies.devices(case.topology)  # before jax starts

    from medjax.aot import hlo, probes, profile, programs
    from medjax.training.metrics import PEAKS

    recipe, work = None, {}
    if case.recipe:
        few = programs.few_rows(case.recipe, ROWS, case.overrides) if case.few_rows else ()
        recipe = programs.prepare(case.recipe, (*case.overrides, *few), case.canvas)
    if case.program == 'step':
        work = dict(rows=recipe.config['batch_size'], tflop=round(programs.model_flops(recipe) / 1e12, 3))
    start = time.perf_counter()
    with tokens_of_attention() as tokens:
        if case.program in programs.PROGRAMS:
            lowered = programs.lower(recipe, case.program, devices)
        else:
            lowered = probes.lower(case.program, devices, recipe)
    middle, before = time.perf_counter(), os.times()
    executable = lowered.compile()
    end, after = time.perf_counter(), os.times()
    text, memory = executable.as_text(), executable.memory_analysis()
    if text_file:
        Path(text_file).write_text(text)
    program = hlo.Program(text)
    seconds, by_source = program.roofline(topologies.H100['memory_bandwidth'], PEAKS['H100'])
    roofline_ms, parts = round(1e3 * seconds, 1), collections.Counter()
    for source, took in by_source.items():
        parts[profile.part_of(source)] += 1e3 * took
    summary = program.summary()
    # In float32, attention takes the plain form. Probes encode in float32.
    half = recipe is not None and recipe.config['dtype'] == 'bfloat16' and case.program in programs.PROGRAMS
    return dict(
        device=f'{len(devices)} x {devices[0].device_kind}',
        **work,
        lowering_s=round(middle - start, 1),
        compile_s=round(end - middle, 1),
        compile_cpu_s=round(sum(after[:4]) - sum(before[:4]), 1),  # of all threads: on a busy machine it says more
        arguments_mib=round(memory.argument_size_in_bytes / MIB, 1),
        temporary_mib=round(memory.temp_size_in_bytes / MIB, 1),
        peak_mib=round(memory.peak_memory_in_bytes / MIB, 1),
        kernels=summary.kernels,
        fusions=sum(n for kind, n in summary.by_kind.items() if kind.startswith('fusion')),
        scan_copy_mib=round(summary.scan_copy_bytes / MIB, 1),
        exchanged_mib={kind: round(n / MIB, 1) for kind, n in sorted(summary.exchanged().items())},
        exchanges=sum(one.runs for one in summary.collectives),
        largest_exchanges=[
            f'{c.bytes / MIB:.0f} MiB in {c.runs} {c.kind}: {c.source}' for c in summary.collectives[:3]
        ],
        by_kind=summary.by_kind,
        moved_gib=round(program.moved() / GIB, 2),
        roofline_ms=roofline_ms if case.topology.startswith('h100') else None,
        roofline_ms_by_part={part: round(ms, 1) for part, ms in parts.most_common() if ms >= 0.05},
        padding=round(program.padding(), 3) if case.topology.startswith('v') else 1.0,
        **(forbidden(recipe, tokens, program.arrays()) if half else dict(scores=[], float32_hidden=[])),
    )


@contextlib.contextmanager
def tokens_of_attention() -> Iterator[set[int]]:
    """Collects the numbers of tokens of all attention that is traced inside, also as the flash kernel gets them.

    A number that is the size of a head too is left out: scores [S,H,T,T] look like queries [S,H,T,E] then.
    """
    from medjax.models import attention

    tokens: set[int] = set()
    sizes: set[int] = set()
    choose = attention.choose

    def record(implementation: str, queries: tuple[int, ...], *others: Any) -> str:
        _, count, _, size = queries
        sizes.add(size)
        tokens.update(n for n in (count, count + -count % attention.MULTIPLE) if count >= attention.MULTIPLE)
        tokens.difference_update(sizes)
        return choose(implementation, queries, *others)

    attention.choose = record
    try:
        yield tokens
    finally:
        attention.choose = choose


def forbidden(recipe: Any, tokens: set[int], arrays: dict[tuple[str, tuple[int, ...]], int]) -> dict[str, list[str]]:
    """Arrays in memory that no fast program holds: attention scores, and float32 values of a hidden layer."""
    hidden: dict[int, int] = {}  # a hidden size -> the rows of the stacked parameters
    for tower in recipe.objective.towers.values():
        module = getattr(tower, 'module', None)
        if hasattr(module, 'hidden'):
            hidden[module.hidden] = max(module.depth * module.width, hidden.get(module.hidden, 0))
    scores = [(kind, shape) for kind, shape in arrays if len(shape) > 2 and {shape[-1], shape[-2]} <= tokens]
    wide = [
        (kind, shape)
        for kind, shape in arrays
        if kind == 'f32' and shape and shape[-1] in hidden and math.prod(shape[:-1]) > hidden[shape[-1]]
    ]
    named = {'scores': scores, 'float32_hidden': wide}
    return {key: [f'{kind}{list(shape)}' for kind, shape in found] for key, found in named.items()}


def guarded(result: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a result that are committed."""
    kept = ('kernels', 'fusions', 'temporary_mib', 'peak_mib', 'scan_copy_mib', 'exchanged_mib', 'padding')
    return {key: result[key] for key in kept}


def faults(case: Case, result: dict[str, Any]) -> Iterator[str]:
    """What a result must not be, whatever the committed numbers say."""
    if result['compile_s'] > SLACK * case.limit:
        yield f'compiling took {result["compile_s"]} s; the limit is {case.limit} s on two idle cores, times {SLACK}'
    if case.flash and result['scores']:
        yield f'attention scores lie in memory: {result["scores"]}'
    if result['float32_hidden'] and case.topology.startswith('h100'):
        yield f'hidden layers lie in memory as float32: {result["float32_hidden"]}'


def differences(now: dict[str, Any], committed: dict[str, Any] | None) -> Iterator[str]:
    """A sentence for each number that is not the committed one."""
    if committed is None:
        yield 'no numbers are committed for this case; write them with --write'
        return
    a, b = _flat(now), _flat(committed)
    for key in sorted(a.keys() | b.keys()):
        new, old = a.get(key, 0.0), b.get(key, 0.0)
        if abs(new - old) > TOLERANCE * max(abs(old), 1):
            yield f'{key} is {new:,} and was {old:,}; if this is wanted: --write, and a line in BUILD_NOTES.md'


def _flat(numbers: dict[str, Any]) -> dict[str, float]:
    return {k: v for k, v in numbers.items() if not isinstance(v, dict)} | {
        f'{key}.{name}': v for key, value in numbers.items() if isinstance(value, dict) for name, v in value.items()
    }


def sentence(result: dict[str, Any]) -> str:
    exchanged = ', '.join(f'{kind} {n:,.0f} MiB' for kind, n in result['exchanged_mib'].items()) or 'nothing'
    return (
        f'compiled in {result["compile_s"]} s ({result["compile_cpu_s"]} s of CPU) for {result["device"]}; '
        f'{result["kernels"]:,} kernels, '
        f'{result["temporary_mib"]:,.0f} MiB temporary, peak {result["peak_mib"]:,.0f} MiB, '
        f'{result["scan_copy_mib"]:,.0f} MiB copied by scans, exchanged: {exchanged}'
        + (f'; {result["roofline_ms"]} ms at the roofline' if result['roofline_ms'] else '')
    )


if __name__ == '__main__':
    sys.exit(main())
