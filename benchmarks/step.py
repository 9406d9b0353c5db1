"""Times one training step on random views, and the loop of training on real records, of any recipe.

    python benchmarks/step.py --json
    python benchmarks/step.py --config medclip
    python benchmarks/step.py --config rad_dino_vitb14 --data DATA --config.batch_size=64

Without --data, phantoms with reports, labels and masks are built in a temporary folder, with a tokenizer beside them.
They stand for every source of the recipe. All parameters are random, also those that training would read from public
weights: times do not depend on them. Without --rows and --config.batch_size, each part of the batch has 8 rows, or as
many as a whole group and the micro-batches need.

Steps of both kinds are timed in turn, so a busy machine slows both. CPU seconds are those of all threads; on a machine
that others use they say more. An image is one record with all its crops. FLOPs are those of the model: work that
rematerialisation repeats does not count.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gpu_cases import random_views  # the file beside this one

from medjax import config as configs, train
from medjax.aot.programs import few_rows
from medjax.commands import build, tokenizer
from medjax.errors import UserError
from medjax.parallel import sharding
from medjax.training.flops import step_flops
from medjax.training.metrics import peak_flops
from medjax.training.state import create

HERE = Path(__file__).parent
KINDS = dict(step='step on random views', loop='loop on records')
ROWS = 8  # of each part
RECORDS, SIDE = 64, 256  # of the phantoms


def main() -> int:
    argv, overrides = configs.split_overrides(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--config', default=str(HERE / 'vits14_small.py'), metavar='FILE|NAME')
    parser.add_argument('--data', action='append', default=[], metavar='[SOURCE=]DATA')
    parser.add_argument('--rows', type=int, metavar='N', help='rows of each part of the batch, in whole groups')
    parser.add_argument('--only', choices=KINDS, help='time one kind alone')
    parser.add_argument('--steps', type=int, default=12, help='timed steps of each kind')
    parser.add_argument('--warmup', type=int, default=3)
    parser.add_argument('--json', action='store_true', help='one JSON line instead of a table')
    args = parser.parse_args(argv)
    if args.steps < 1 or args.warmup < 0 or (args.rows is not None and args.rows < 1):
        parser.error('--steps and --rows must be at least 1, and --warmup at least 0')
    try:
        if args.rows or not any(item.startswith('batch_size=') for item in overrides):
            overrides = [*overrides, *few_rows(args.config, args.rows or ROWS, overrides)]
        with tempfile.TemporaryDirectory() as folder:
            data = args.data or for_sources(args.config, overrides, phantoms(folder))
            config, datasets = configs.load(args.config, data, overrides)
            result = measure(config, datasets, args.steps, args.warmup, (args.only,) if args.only else tuple(KINDS))
    except UserError as error:
        print(f'step.py: {error}', file=sys.stderr)
        return 1
    result = dict(config=args.config, overrides=overrides, **result)
    print(json.dumps(result) if args.json else table(result))
    return 0


def phantoms(folder: str, records: int = RECORDS, side: int = SIDE) -> str:
    """Builds phantoms with a tokenizer beside them in a folder, and returns where they lie."""
    data = f'{folder}/phantom'
    with contextlib.redirect_stdout(io.StringIO()):
        build.main(['phantom', '--records', str(records), '--size', str(side), '--out', data])
        tokenizer.main([data])
    return data


def for_sources(spec: str, overrides: Sequence[str], data: str) -> list[str]:
    """The arguments of --data that give one data set to each source of a recipe."""
    parts = configs.read(spec, overrides).data.values()
    return [f'{source}={data}' for source in sorted({source for part in parts for source in part.sources})]


def measure(
    config: Mapping[str, Any], datasets: Mapping[str, Any], steps: int, warmup: int, kinds: Sequence[str]
) -> dict[str, Any]:
    """Times, FLOPs and memory of some of KINDS."""
    peak = peak_flops(jax.devices(), config['dtype'])  # measured on a CPU, so before a mesh is in use
    mesh = sharding.make_mesh(**config['mesh'])
    jax.set_mesh(mesh)
    training = train.setup(config, datasets, mesh)
    step = training.step
    new = jax.jit(lambda key: create(training.objective, step.optimizer, key), out_shardings=training.shardings)
    state = new(jax.random.key(0))
    with contextlib.closing(training.batches(0)) as batches:
        batch = next(batches)
        flops = step_flops(training.objective, step.make_views, state, batch)
        views = masks = bare = loop = None
        compile_s = {}
        if 'step' in kinds:
            views, masks = jax.jit(random_views(step.make_views))(batch, jax.random.key(1), state.step)
            bare, compile_s['step'] = compiled(training, step.step_on_views, state, views, masks)
        if 'loop' in kinds:
            loop, compile_s['loop'] = compiled(training, step.train_step, state, batch)

        # In turn: a bare step, then a step of the loop with the batch that was fetched during the last step.
        times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
        for i in range(warmup + steps):
            for kind in kinds:
                start, spent = time.perf_counter(), time.process_time()
                if kind == 'step':
                    state, metrics = bare(state, views, masks)
                else:
                    state, metrics = loop(state, batch)
                    batch = next(batches)
                jax.block_until_ready((state, metrics))
                if i >= warmup:
                    times[kind].append((time.perf_counter() - start, time.process_time() - spent))
    if not np.isfinite(float(metrics['loss'])):
        raise UserError('the loss is not finite: these times mean nothing')

    device = jax.local_devices()[0]
    memory = (device.memory_stats() or {}).get('peak_bytes_in_use')
    of_process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    program = bare or loop

    def summary(kind: str) -> dict[str, Any]:
        seconds, cpu_seconds = zip(*times[kind], strict=True)
        median = statistics.median(seconds)
        return dict(
            seconds=median,
            seconds_min=min(seconds),
            seconds_max=max(seconds),
            cpu_seconds=statistics.median(cpu_seconds),
            images_per_s=config['batch_size'] / median,
            mfu=flops / median / peak.flops if peak.flops else None,
            compile_s=compile_s[kind],
        )

    return dict(
        device=f'{jax.device_count()} x {device.device_kind}',
        platform=device.platform,
        jax=jax.__version__,
        batch_size=config['batch_size'],
        dtype=config['dtype'],
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        random_weights=train.begins_with_weights(training),
        flops=flops,
        peak=peak.description,
        peak_memory_mib=(of_process if memory is None else memory) / 2**20,
        temporary_memory_mib=getattr(program.memory_analysis(), 'temp_size_in_bytes', 0) / 2**20,
        **{kind: summary(kind) for kind in kinds},
    )


def compiled(training: train.Training, function: Any, *args: Any) -> tuple[Any, float]:
    """The function compiled as training compiles its step, and the seconds of tracing and compilation."""
    start = time.perf_counter()
    program = jax.jit(
        function,
        donate_argnums=0,
        out_shardings=(training.shardings, sharding.replicated(training.mesh)),
        compiler_options=sharding.compiler_options(),
    )
    return program.lower(*args).compile(), time.perf_counter() - start


def table(result: Mapping[str, Any]) -> str:
    head = f'{result["config"]} on {result["device"]}, {result["dtype"]}, jax {result["jax"]}: '
    head += f'{result["parameters"] / 1e6:.1f} M parameters, {result["flops"] / 1e9:.1f} GFLOP a step of '
    head += f'{result["batch_size"]} images\n{result["peak"]}\n'
    head += 'random parameters in place of the weights that the recipe names\n' if result['random_weights'] else ''
    head += f'peak memory {result["peak_memory_mib"]:.0f} MiB, temporary {result["temporary_memory_mib"]:.0f} MiB\n\n'
    rows = [
        '| | s a step (median, min, max) | CPU s | images/s | MFU | compile s |',
        '| --- | --- | --- | --- | --- | --- |',
    ]
    for kind in (kind for kind in KINDS if kind in result):
        r = result[kind]
        mfu = '' if r['mfu'] is None else f'{100 * r["mfu"]:.1f} %'
        spread = f'{r["seconds"]:.3f} ({r["seconds_min"]:.3f}, {r["seconds_max"]:.3f})'
        cells = (KINDS[kind], spread, f'{r["cpu_seconds"]:.2f}', f'{r["images_per_s"]:.1f}', mfu, r['compile_s'])
        rows.append('| {} | {} | {} | {} | {} | {:.1f} |'.format(*cells))
    return head + '\n'.join(rows)


if __name__ == '__main__':
    sys.exit(main())
