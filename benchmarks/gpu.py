"""Times medjax on one GPU: training steps, the encoding of probes, and the ceilings of the card.

    python benchmarks/gpu.py                                     the default cases, within nine minutes
    python benchmarks/gpu.py --only vitb,vitb_scanned,vitb_plain_attention
    python benchmarks/gpu.py --only vitb --beside 'python bench_torch_gpu.py --batch 60'
    python benchmarks/gpu.py --only tiny                         a small step, on any machine

Each case runs in a process of its own, which is stopped after its time. Its result is one JSON line, printed at once:
seconds of the bare step on random views and of the whole step with the making of views, in turn; images/s; MFU; memory;
seconds of compilation; and where the time goes. Images are random numbers, so no data set is needed. `--beside` runs
another command after the first case, on the same card, and passes its lines on.
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # a machine without pip may not have medjax installed

from compile import VITB  # noqa: E402  the file beside this one

SECONDS = 240  # of one case
STEPS, WARMUP = 10, 3


class Case(NamedTuple):
    """One recipe, or one function of this file, and what it is changed to."""

    recipe: str
    overrides: tuple[str, ...] = ()
    canvas: int = 256
    program: str = 'step'  # 'step', 'encoder' or 'ceilings'
    default: bool = True


VITB_60 = (*VITB, 'batch_size=60')
CASES = {
    'ceilings': Case('', program='ceilings'),
    'vitb': Case('rad_dino_vitb14', VITB_60),
    'vitb518': Case('rad_dino_vitb14', ('init_from=None', 'batch_size=20'), canvas=777),
    'vits': Case('dinov2_vits14', ('batch_size=128',)),
    'mae': Case('mae_vitb16', ('batch_size=512',)),
    'pair': Case('chexzero', ('batch_size=1024', 'dtype="bfloat16"')),
    'encoder': Case('rad_dino_vitb14', ('init_from=None',), canvas=777, program='encoder'),
    # What one choice costs or saves, beside 'vitb'.
    'vitb_scanned': Case('rad_dino_vitb14', (*VITB_60, 'towers.image.unroll=1'), default=False),
    'vitb_plain_attention': Case('rad_dino_vitb14', (*VITB_60, 'towers.image.attention="xla"'), default=False),
    'vitb_blocks_stored': Case('rad_dino_vitb14', (*VITB_60, 'towers.image.remat="blocks"'), default=False),
    'vitb_all_stored': Case('rad_dino_vitb14', (*VITB_60, 'towers.image.remat="none"'), default=False),
    'vitb_120': Case('rad_dino_vitb14', (*VITB, 'batch_size=120'), default=False),
    'vitb518_40': Case('rad_dino_vitb14', ('init_from=None', 'batch_size=40'), canvas=777, default=False),
    'tiny': Case('tiny', canvas=64, default=False),
}

# The parts of a step, by words in the names that jax gives to operations; the first that fits counts.
PARTS = (
    ('views', ('views/',)),
    ('optimizer', ('optimizer/',)),
    ('teachers', ('teachers/',)),
    ('drop path', ('drop_path', 'take', 'put')),
    ('attention', ('/attn/', '/cross/')),
    ('MLP', ('/mlp/',)),
    ('norms', ('norm',)),
    ('terms', ('terms/',)),
    ('embeddings', ('patch_embed', 'embed')),
    ('blocks, other', ('blocks',)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--only', metavar='NAMES', help=f'some of {",".join(CASES)}')
    parser.add_argument('--beside', metavar='COMMAND', help='a command to run after the first case')
    parser.add_argument('--here', action='store_true', help='run the one case in this process')
    args = parser.parse_args()
    names = args.only.split(',') if args.only else [name for name, case in CASES.items() if case.default]
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f'no case {unknown[0]!r}; there are {", ".join(CASES)}')
    if args.here:
        print(json.dumps({'case': names[0], **measured(CASES[names[0]])}), flush=True)
        return 0
    failed = False
    for i, name in enumerate(names):
        failed |= passed_on([sys.executable, __file__, '--only', name, '--here'], name)
        if args.beside and i == 0:
            failed |= passed_on(shlex.split(args.beside), 'beside')
    return int(failed)


def passed_on(command: list[str], name: str) -> bool:
    """Runs a command, prints the lines of JSON that it gives or why there are none; whether it failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{')]
        said = done.stderr.strip().splitlines() or ['it printed nothing']
        reason = '' if lines and not done.returncode else said[-1]
    except subprocess.TimeoutExpired:
        lines, reason = [], f'not done after {SECONDS} s'
    except OSError as error:
        lines, reason = [], str(error)
    for line in lines:
        print(line, flush=True)
    if reason:
        print(json.dumps({'case': name, 'failed': reason}), flush=True)
    return bool(reason)


def measured(case: Case) -> dict[str, Any]:
    import jax

    device = jax.devices()[0]
    versions = dict(device=device.device_kind, jax=jax.__version__)
    if case.program == 'ceilings':
        return versions | ceilings()
    from medjax.aot import programs
    from medjax.training.metrics import peak_flops

    recipe = programs.prepare(case.recipe, case.overrides, case.canvas)
    peak = peak_flops(jax.devices()[:1], recipe.config['dtype'])
    result = encoding(recipe) if case.program == 'encoder' else steps(recipe, peak)
    return versions | dict(recipe=case.recipe, overrides=case.overrides, peak=peak.description) | result


def ceilings() -> dict[str, Any]:
    """TFLOP/s of a bf16 product of 8,192³, and GB/s of a copy of 2 GiB, read and written."""
    import jax
    import jax.numpy as jnp

    n = 8192 if jax.devices()[0].platform == 'gpu' else 1024
    x = jnp.ones((n, n), jnp.bfloat16)
    product = timed(jax.jit(jnp.matmul), x, x)
    y = jnp.ones(2**29 if n == 8192 else 2**24, jnp.float32)
    copy = timed(jax.jit(lambda y: y + 1), y)
    return dict(product_tflops=2 * n**3 / product / 1e12, copy_gb_per_s=2 * y.nbytes / copy / 1e9)


def timed(f: Callable, *args: Any) -> float:
    """The median seconds of a call."""
    import jax

    jax.block_until_ready(f(*args))
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def steps(recipe: Any, peak: Any) -> dict[str, Any]:
    """The bare step on random views, and the whole step from a random batch, in turn."""
    import jax

    from medjax.aot import programs
    from medjax.parallel import sharding
    from medjax.training.flops import step_flops
    from medjax.training.state import create

    devices, sizes = jax.devices()[:1], dict(data=1, fsdp=1, tensor=1)
    start = time.perf_counter()
    whole = programs.lower(recipe, 'step', devices, sizes).compile()
    compile_s = time.perf_counter() - start
    mesh = sharding.make_mesh(**sizes, devices=devices)
    step, images = recipe.step, recipe.config['batch_size']
    state = jax.jit(lambda key: create(recipe.objective, recipe.optimizer, key))(jax.random.key(0))
    state = jax.device_put(state, jax.tree.map(lambda _: sharding.replicated(mesh), recipe.abstract))
    batch = jax.device_put(random_batch(recipe), sharding.rows_sharding(mesh))
    views, masks = jax.jit(step.make_views)(batch, jax.random.key(1), state.step)
    flops = step_flops(recipe.objective, step.make_views, state, batch)
    bare = jax.jit(step.step_on_views, donate_argnums=0).lower(state, views, masks).compile()
    seconds: dict[str, list[float]] = dict(step=[], loop=[])
    for i in range(WARMUP + STEPS):
        first = time.perf_counter()
        state, metrics = jax.block_until_ready(bare(state, views, masks))
        second = time.perf_counter()
        state, metrics = jax.block_until_ready(whole(state, batch))
        third = time.perf_counter()
        if i >= WARMUP:
            seconds['step'].append(second - first)
            seconds['loop'].append(third - second)
    parts, state = profiled(whole, state, batch)
    median = statistics.median(seconds['step'])
    stats = devices[0].memory_stats() or {}
    return dict(
        images=images,
        loss=float(metrics['loss']),
        gflop_per_image=flops / images / 1e9,
        compile_s=compile_s,
        seconds=median,
        seconds_min=min(seconds['step']),
        seconds_max=max(seconds['step']),
        loop_seconds=statistics.median(seconds['loop']),
        images_per_s=images / median,
        mfu=flops / median / peak.flops if peak.flops else None,
        temporary_gib=whole.memory_analysis().temp_size_in_bytes / 2**30,
        peak_gib=stats.get('peak_bytes_in_use', 0) / 2**30,
        ms_by_part=parts,
    )


def encoding(recipe: Any) -> dict[str, Any]:
    """Images a second of the encoder as probes run it."""
    import jax

    from medjax.aot import programs
    from medjax.parallel import sharding

    devices, sizes = jax.devices()[:1], dict(data=1, fsdp=1, tensor=1)
    start = time.perf_counter()
    lowered = programs.lower(recipe, 'encoder', devices, sizes)
    encode = lowered.compile()
    compile_s = time.perf_counter() - start
    mesh = sharding.make_mesh(**sizes, devices=devices)
    given = jax.tree.map(lambda x: random_array(x.shape, x.dtype), lowered.in_avals[0])
    given = jax.device_put(given, jax.tree.map(lambda _: sharding.replicated(mesh), given))
    seconds = timed(encode, *given)
    return dict(images=programs.ENCODED, compile_s=compile_s, seconds=seconds, images_per_s=programs.ENCODED / seconds)


def random_batch(recipe: Any) -> dict[str, dict[str, Any]]:
    """A batch of random images, and of texts of random words."""
    import jax
    import numpy as np

    from medjax.aot.programs import STORED_CHANNELS
    from medjax.training.rehearsal import batch_shapes

    rows = {name: part['rows'] for name, part in recipe.config['data'].items()}
    shapes = batch_shapes(recipe.objective, recipe.config, rows, recipe.canvas, STORED_CHANNELS)
    batch = jax.tree.map(lambda x: random_array(x.shape, x.dtype), shapes)
    for fields in batch.values():
        fields['row'] = np.arange(len(fields['row']), dtype=np.uint32)
        fields['image/extent'][:] = recipe.canvas
        for name in [name for name in fields if name.endswith('/length')]:
            fields[name][:] = fields[name.removesuffix('/length')].shape[-1]
    return batch


def random_array(shape: tuple[int, ...], dtype: Any) -> Any:
    import numpy as np

    rng = np.random.default_rng(0)
    if np.dtype(dtype) == np.bool_:
        return np.ones(shape, bool)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(0, 0.02, shape).astype(dtype)
    return rng.integers(1, 100, shape).astype(dtype)


def profiled(program: Any, state: Any, batch: Any) -> tuple[dict[str, float], Any]:
    """Milliseconds of a step by part, from the profiler, the largest first; and the state after the steps."""
    import jax

    from medjax.aot.hlo import Program

    count = 3
    sources = {
        one.label: (re.search(r'op_name="([^"]*)"', one.rest) or ['', ''])[1]
        for instructions in Program(program.as_text()).computations.values()
        for one in instructions
    }
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(count):
                state, _ = jax.block_until_ready(program(state, batch))
        files = list(Path(folder).rglob('*.xplane.pb'))
        seconds: collections.Counter[str] = collections.Counter()
        for plane in jax.profiler.ProfileData.from_file(str(files[0])).planes:
            for line in plane.lines:
                for event in line.events:
                    operation = dict(event.stats).get('hlo_op')
                    if operation is not None:
                        seconds[part_of(sources.get(str(operation), ''))] += event.duration_ns
    return {name: round(ns / count / 1e6, 3) for name, ns in seconds.most_common()}, state


def part_of(source: str) -> str:
    """The part of a step that an operation belongs to, by the name that jax gave it."""
    return next((part for part, words in PARTS if any(word in source for word in words)), 'other')


if __name__ == '__main__':
    sys.exit(main())
