"""Times one training step on random views, and the loop of training on real records.

    python benchmarks/step.py --json
    python benchmarks/step.py --config configs/rad_dino_vitb14.py --data DATA --config.batch_size=64 …

Without --data, 256 phantoms are built in a temporary folder. Steps of both kinds are timed in turn, so a busy machine
slows both. An image is one record with all its crops. FLOPs are those of the model: work that rematerialisation repeats
does not count.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from medjax import config as configs
from medjax.commands import build
from medjax.data.stream import Stream
from medjax.objectives.compose import compose
from medjax.parallel import sharding
from medjax.training.flops import step_flops
from medjax.training.metrics import peak_flops
from medjax.training.state import abstract_state, create, make_optimizer, state_shardings
from medjax.training.step import make_step
from medjax.views import make

HERE = Path(__file__).parent


def main() -> None:
    argv, overrides = configs.split_overrides(sys.argv[1:])
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--config', default=str(HERE / 'vits14_small.py'))
    parser.add_argument('--data', action='append', default=[])
    parser.add_argument('--steps', type=int, default=12, help='timed steps of each kind')
    parser.add_argument('--warmup', type=int, default=3)
    parser.add_argument('--json', action='store_true', help='one JSON line instead of a table')
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        if not args.data:
            args.data = [f'{folder}/phantom']
            build.main(['phantom', '--records', '256', '--size', '128', '--out', args.data[0]])
        config, datasets = configs.load(args.config, args.data, overrides)
        result = measure(config, datasets, args.steps, args.warmup)
    result = dict(config=args.config, overrides=overrides, **result)
    print(json.dumps(result) if args.json else table(result))


def measure(config, datasets, steps: int, warmup: int) -> dict:
    peak = peak_flops(jax.devices(), config['dtype'])
    mesh = sharding.make_mesh(**config['mesh'])
    jax.set_mesh(mesh)
    objective = compose(config)
    stream = Stream(config['data'], datasets, config['seed'])
    make_views = make.build(
        objective.views, config['masks'], config['image'], objective.grids(), config['rows_per_group']
    )
    optim = make_optimizer(objective, config['optim'], config['total_steps'])
    abstract = abstract_state(objective, optim)
    step = make_step(objective, optim, make_views, config['micro_batches'])
    shardings, rows = state_shardings(objective, abstract, mesh), sharding.rows_sharding(mesh)
    state = jax.jit(lambda key: create(objective, optim, key), out_shardings=shardings)(jax.random.key(0))
    local_rows = {part: sharding.local_rows(rows, b) for part, b in stream.rows.items()}
    batches = stream.batches(0, local_rows)

    def fetch():
        return sharding.global_batch(next(batches), rows, stream.rows)

    batch = fetch()
    views, masks = jax.jit(make_views)(batch, jax.random.key(1), state.step)
    noise = {name: view._replace(x=jax.random.normal(jax.random.key(2), view.x.shape)) for name, view in views.items()}
    flops = step_flops(objective, make_views, state, batch)

    out = (shardings, sharding.replicated(mesh))
    bare, bare_compile = compiled(step.step_on_views, out, state, noise, masks)
    loop, loop_compile = compiled(step.train_step, out, state, batch)

    # In turn: a bare step, then a step of the loop with the batch that was fetched during the last step.
    times = dict(step=[], loop=[])
    for i in range(warmup + steps):
        start = time.perf_counter()
        state, metrics = bare(state, noise, masks)
        jax.block_until_ready((state, metrics))
        middle = time.perf_counter()
        state, metrics = loop(state, batch)
        batch = fetch()
        jax.block_until_ready((state, metrics))
        end = time.perf_counter()
        if i >= warmup:
            times['step'].append(middle - start)
            times['loop'].append(end - middle)
    batches.close()
    if not np.isfinite(float(metrics['loss'])):
        raise SystemExit('the loss is not finite: these times mean nothing')

    stats = jax.local_devices()[0].memory_stats() or {}
    memory = stats.get('peak_bytes_in_use', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)

    def summary(kind: str, compile_s: float) -> dict:
        median = statistics.median(times[kind])
        return dict(
            seconds=median,
            seconds_min=min(times[kind]),
            seconds_max=max(times[kind]),
            images_per_s=config['batch_size'] / median,
            mfu=flops / median / peak.flops if peak.flops else None,
            compile_s=compile_s,
        )

    return dict(
        device=f'{jax.device_count()} x {jax.devices()[0].device_kind}',
        jax=jax.__version__,
        batch_size=config['batch_size'],
        parameters=sum(x.size for x in jax.tree.leaves(state.params)),
        flops=flops,
        peak=peak.description,
        peak_memory_mib=memory / 2**20,
        temporary_memory_mib=getattr(bare.memory_analysis(), 'temp_size_in_bytes', 0) / 2**20,
        step=summary('step', bare_compile),
        loop=summary('loop', loop_compile),
    )


def compiled(function, out_shardings, *args):
    """The compiled function, and the seconds of tracing and compilation."""
    start = time.perf_counter()
    program = jax.jit(function, donate_argnums=0, out_shardings=out_shardings).lower(*args).compile()
    return program, time.perf_counter() - start


def table(result: dict) -> str:
    head = f'{result["config"]} on {result["device"]}, jax {result["jax"]}: '
    head += f'{result["parameters"] / 1e6:.1f} M parameters, {result["flops"] / 1e9:.1f} GFLOP a step of '
    head += f'{result["batch_size"]} images\n{result["peak"]}\n'
    head += f'peak memory {result["peak_memory_mib"]:.0f} MiB, temporary {result["temporary_memory_mib"]:.0f} MiB\n\n'
    rows = ['| | s a step (median, min, max) | images/s | MFU | compile s |', '| --- | --- | --- | --- | --- |']
    for kind, title in (('step', 'step on random views'), ('loop', 'loop on records')):
        r = result[kind]
        mfu = '' if r['mfu'] is None else f'{100 * r["mfu"]:.1f} %'
        spread = f'{r["seconds"]:.3f} ({r["seconds_min"]:.3f}, {r["seconds_max"]:.3f})'
        rows.append(f'| {title} | {spread} | {r["images_per_s"]:.1f} | {mfu} | {r["compile_s"]:.1f} |')
    return head + '\n'.join(rows)


if __name__ == '__main__':
    main()
