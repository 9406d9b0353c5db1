"""What the cases of gpu.py measure: times of steps and encoders, and comparisons that only a card can make.

Each measure is a function of a `Job`. It returns the numbers of one JSON line; 'passed' is False if a comparison fails.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medjax import cli

STEPS, WARMUP = 10, 3
PROFILED = 3  # steps
SHOWN = 12  # the largest costs of a profile
RECORDS = 512
WITHIN = 2e-2  # of the largest number: how far flash attention may be from float32


class Job(NamedTuple):
    """A case, with the overrides that the user gave for it."""

    recipe: str
    overrides: tuple[str, ...]
    canvas: int
    tiny: bool


def measured(case: Any, given: Sequence[str] = (), tiny: bool = False) -> dict[str, Any]:
    """The result of a case of gpu.py. UserError for an override that does not fit."""
    device = jax.devices()[0]
    job = Job(case.recipe, tuple(case.overrides), case.canvas, tiny)
    if tiny:
        job = job._replace(overrides=(*job.overrides, *small(job.recipe)) if job.recipe else (), canvas=32)
    job = job._replace(overrides=(*job.overrides, *given))
    result = dict(device=device.device_kind, jax=jax.__version__)
    if job.recipe:
        result |= dict(recipe=job.recipe, overrides=list(job.overrides))
    return result | MEASURES[case.measure](job)


def no_gpu() -> str:
    """A sentence if jax finds no GPU here, else ''."""
    try:
        kind = jax.devices()[0].platform
    except Exception as error:
        if name := cli.missing_backend(error):
            return cli.no_backend(name)
        raise
    if kind == 'gpu':
        return ''
    return (
        f"jax finds no GPU here, only {kind}; pip install 'medjax[gpu]' brings what it needs, and --tiny runs every "
        'case small, on any machine'
    )


def small(recipe: str) -> tuple[str, ...]:
    """Overrides that make any recipe small: towers of width 64, crops of 32 px, two groups of rows in each part."""
    from medjax import config as configs
    from medjax.aot.programs import few_rows

    towers = {
        'vit': dict(variant='Ti/8', width=64, depth=2, heads=2, native_size=32, unroll=1),
        'text': dict(width=64, depth=2, heads=2),
        'decoder': dict(width=64, depth=1, heads=2),
        'predictor': dict(width=64, depth=1, heads=2),
        'resnet': dict(variant='18', stem=8, depths=[1, 1]),
        'patch_decoder': dict(width=8, depth=1, factor=2),
        'unet_decoder': dict(width=16),
    }
    config = configs.read(recipe)
    found = ['dtype="float32"'] if config.dtype == 'bfloat16' else []  # it compiles faster on a CPU
    found += [
        f'towers.{name}.{key}={value}'
        for name, cfg in config.towers.items()
        for key, value in towers[cfg.tower].items()
    ]
    found += [f'masks.{name}.min_keep=0' for name, mask in config.masks.items() if mask.mask == 'multiblock']
    for name, head in config.heads.items():
        sizes = [key for key in ('out', 'hidden', 'prototypes', 'bottleneck') if key in head]
        found += [f'heads.{name}.{key}=64' for key in sizes]
    for name, view in config.views.items():
        found += [f'views.{name}.length=16'] if 'length' in view else []
        found += [f'views.{name}.size={16 if name == "local" else 32}'] if 'size' in view else []
        found += [f'views.{name}.count=2'] if name == 'local' else []
    if isinstance(config.optim.get('schedule'), configs.ConfigDict):
        found += ['optim.schedule.warmup=1']
    return (*found, *few_rows(recipe, 2 * config.rows_per_group))


# Times.


def ceilings(job: Job) -> dict[str, Any]:
    """TFLOP/s of a bf16 product of 8,192³, and GB/s of a copy of 2 GiB, read and written."""
    n, numbers = (256, 2**16) if job.tiny else (8192, 2**29)
    x = jnp.ones((n, n), jnp.bfloat16)
    product = timed(jax.jit(jnp.matmul), x, x)
    y = jnp.ones(numbers, jnp.float32)
    copy = timed(jax.jit(lambda y: y + 1), y)
    return dict(product_tflops=2 * n**3 / product / 1e12, copy_gb_per_s=2 * y.nbytes / copy / 1e9)


def step(job: Job) -> dict[str, Any]:
    """The bare step on random views, and where its time goes."""
    from medjax.aot import profile, programs
    from medjax.parallel import sharding
    from medjax.training.flops import step_flops
    from medjax.training.metrics import peak_flops

    recipe = programs.prepare(job.recipe, job.overrides, job.canvas)
    peak = peak_flops(jax.devices()[:1], recipe.config['dtype'])
    with one_device() as mesh:
        state, batch = started(recipe, mesh)
        views, masks = jax.jit(random_views(recipe.step.make_views))(batch, jax.random.key(1), state.step)
        flops = step_flops(recipe.objective, recipe.step.make_views, state, batch)
        start = time.perf_counter()
        lowered = jax.jit(
            recipe.step.step_on_views, donate_argnums=0, compiler_options=sharding.compiler_options()
        ).lower(state, views, masks)
        middle = time.perf_counter()
        run = lowered.compile()
        compile_s = time.perf_counter() - middle
        seconds = []
        for _ in range(WARMUP + STEPS):
            began = time.perf_counter()
            state, metrics = jax.block_until_ready(run(state, views, masks))
            seconds.append(time.perf_counter() - began)
        first = time.perf_counter()
        for _ in range(STEPS):  # as the loop of training does: it gives the device steps ahead
            state, metrics = run(state, views, masks)
        jax.block_until_ready(state)
        ahead = (time.perf_counter() - first) / STEPS
        now = [state]

        def again() -> None:
            now[0], _ = jax.block_until_ready(run(now[0], views, masks))

        costs, problem = [], {}
        try:
            costs = profile.profile(again, run.as_text(), PROFILED)
        except Exception as error:  # the profiler of a card may need rights: the times are worth a line without it
            problem = dict(profile_failed=f'{type(error).__name__}: {error}'[:300])
    images = recipe.config['batch_size']
    median = statistics.median(seconds[WARMUP:])
    return dict(
        peak=peak.description,
        images=images,
        loss=finite(metrics['loss']),
        gflop_per_image=flops / images / 1e9,
        lowering_s=middle - start,
        compile_s=compile_s,
        seconds=median,
        seconds_min=min(seconds[WARMUP:]),
        seconds_max=max(seconds[WARMUP:]),
        seconds_ahead=ahead,
        images_per_s=images / median,
        mfu=flops / median / peak.flops if peak.flops else None,
        **memory(run),
        device_ms=sum(one.ms for one in costs),
        ms_by_part=profile.by_part(costs),
        largest=[
            f'{one.ms:.3f} ms, {one.launches:.0f} x {one.kernel[:60]} ({one.part}) {one.source[-100:]}'
            for one in costs[:SHOWN]
        ],
        **problem,
    )


def loop(job: Job) -> dict[str, Any]:
    """The loop of training on records beside the bare step, in turn. The records are phantoms, built for this."""
    from medjax.parallel import sharding

    with records(job) as (training, mesh), contextlib.closing(training.batches(0)) as batches:
        state, batch = created(training.objective, training.step.optimizer, mesh), next(batches)
        views, masks = jax.jit(random_views(training.step.make_views))(batch, jax.random.key(1), state.step)
        options = sharding.compiler_options()
        bare = jax.jit(training.step.step_on_views, donate_argnums=0, compiler_options=options)
        bare = bare.lower(state, views, masks).compile()
        start = time.perf_counter()
        out = (training.shardings, sharding.replicated(mesh))
        whole = jax.jit(training.step.train_step, donate_argnums=0, out_shardings=out, compiler_options=options)
        whole = whole.lower(state, batch).compile()
        compile_s = time.perf_counter() - start
        seconds: dict[str, list[float]] = dict(step=[], loop=[])
        for _ in range(WARMUP + STEPS):
            first = time.perf_counter()
            state, _ = jax.block_until_ready(bare(state, views, masks))
            second = time.perf_counter()
            state, metrics = whole(state, batch)
            batch = next(batches)  # while the device computes
            jax.block_until_ready(state)
            third = time.perf_counter()
            seconds['step'].append(second - first)
            seconds['loop'].append(third - second)
    of_step, of_loop = (statistics.median(seconds[kind][WARMUP:]) for kind in ('step', 'loop'))
    images = training.config['batch_size']
    return dict(
        images=images,
        loss=finite(metrics['loss']),
        compile_s=compile_s,
        step_seconds=of_step,
        loop_seconds=of_loop,
        images_per_s=images / of_loop,
        slower=of_loop / of_step - 1,
        **memory(whole),
    )


def images(job: Job) -> dict[str, Any]:
    """The encoding of images as probes run it."""
    from medjax.aot import probes, programs

    recipe = programs.prepare(job.recipe, job.overrides, job.canvas)
    start = time.perf_counter()
    lowered = probes.lower('images', jax.devices()[:1], recipe)
    encode = lowered.compile()
    compile_s = time.perf_counter() - start
    given = jax.tree.map(lambda x: random_array(x.shape, x.dtype), lowered.in_avals[0])
    given = jax.device_put(given, encode.input_shardings[0])
    seconds, count = timed(encode, *given), len(given[1])
    return dict(images=count, compile_s=compile_s, seconds=seconds, images_per_s=count / seconds, **memory(encode))


# Comparisons.


def attention(job: Job) -> dict[str, Any]:
    """Flash attention beside the plain form in bf16, both against float32: outputs and gradients by q, k and v.

    An error is relative to the largest number in float32. Padding, lengths and a context of other tokens take part.
    The results for tokens that only fill up an array must be 0.
    Where there is no GPU, the flash kernel's form (padded, with lengths) runs in the plain kernel.
    """
    from medjax.models import attention as of_models

    kernel = 'cudnn' if jax.devices()[0].platform == 'gpu' else 'xla'
    s, h, e = (2, 2, 8) if job.tiny else (16, 12, 64)
    tokens = (9, 17, 5) if job.tiny else (257, 1370, 77)
    cases = {  # numbers of queries and keys, lengths, causal, the size of a head
        'crops': (tokens[0], tokens[0], False, False, e),
        'large crops': (tokens[1], tokens[1], False, False, e),
        'heads of 72': (tokens[0], tokens[0], False, False, 72),
        'texts': (tokens[2], tokens[2], True, False, e),
        'causal texts': (tokens[2], tokens[2], True, True, e),
        'another context': (tokens[0], tokens[2], True, False, e),
    }

    def all_of(f: Callable, *x: Any) -> list[Any]:
        y, pull = jax.vjp(f, *x[:3])
        return [y, *pull(x[3].astype(y.dtype))]

    found, passed = {}, True
    for name, (queries, keys, short, causal, e) in cases.items():
        given = [random_array((s, n, h, e), np.float32, 1.0, i) for i, n in enumerate((queries, keys, keys, queries))]
        bf16 = [jnp.asarray(x, jnp.bfloat16) for x in given]
        lengths = jnp.asarray(1 + np.arange(s) * (keys - 1) // max(s - 1, 1), jnp.int32) if short else None

        def plain(q: Any, k: Any, v: Any, lengths: Any = lengths, causal: bool = causal) -> Any:
            return of_models.attend(q, k, v, lengths=lengths, causal=causal, implementation='xla')

        def flash(*x: Any, counts: tuple = (queries, keys, lengths, causal)) -> Any:
            return of_models.flash(*x, *counts, kernel)

        with jax.default_matmul_precision('highest'):
            exact = jax.jit(lambda *x: all_of(plain, *x))(*(x.astype(jnp.float32) for x in bf16))
        other = jax.jit(lambda *x: all_of(plain, *x))(*bf16)
        # in a tower the tokens that only fill up hold the bias of the product, and their cotangent is 0
        filled = [of_models.to_multiple(x) for x in bf16]
        filled[:3] = [x.at[:, n:].set(1) for x, n in zip(filled, (queries, keys, keys), strict=False)]
        one = jax.jit(lambda *x: all_of(flash, *x))(*filled)
        for what, a, b, c in zip(('out', 'dq', 'dk', 'dv'), one, other, exact, strict=True):
            # `models/layers.py` relies on zeros for the tokens that do not count
            passed &= not np.any(np.asarray(a[:, b.shape[1] :], np.float32))
            error, of_plain = errors(a[:, : b.shape[1]], c), errors(b, c)
            found[f'{name}: {what}'] = dict(flash=error, plain=of_plain)
            passed &= error['largest'] <= WITHIN and error['mean'] <= 1.01 * of_plain['mean']
    return dict(kernel=kernel, errors=found, passed=bool(passed))


def errors(a: Any, b: Any) -> dict[str, float]:
    """The largest and the mean square error of `a`, relative to the largest number of `b` and to its mean square."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return dict(largest=float(abs(a - b).max() / abs(b).max()), mean=math.sqrt(((a - b) ** 2).mean() / (b**2).mean()))


def half(job: Job) -> dict[str, Any]:
    """A bf16 step beside the float32 step, without KoLeo: the losses, and the cosine of each gradient.

    KoLeo is ill-conditioned while CLS tokens nearly coincide. The bias of the keys has no gradient at all, so the bias
    of qkv is compared less closely.
    """
    from medjax.aot import programs
    from medjax.training.step import gradients

    found = {}
    for dtype in ('float32', 'bfloat16'):
        recipe = programs.prepare(job.recipe, (*job.overrides, f'dtype="{dtype}"'), job.canvas, without='koleo')

        def run(state: Any, batch: Any, recipe: Any = recipe) -> Any:
            views = lambda rows: recipe.step.make_views(rows, state.key, state.step)  # noqa: E731
            loss, _, _, grads = gradients(recipe.objective, state, batch, views, state.key, 1)
            return loss, grads

        with one_device() as mesh, jax.default_matmul_precision('highest' if dtype == 'float32' else 'default'):
            found[dtype] = jax.device_get(jax.jit(run)(*started(recipe, mesh)))
    (loss, grads), (half_loss, half_grads) = found['float32'], found['bfloat16']
    cosines = {}
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(half_grads), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        size = math.sqrt((a * a).sum() * (b * b).sum())
        cosines[jax.tree_util.keystr(path)] = float((a * b).sum() / size) if size else 1.0
    bias = {name for name in cosines if "'qkv']['bias']" in name}
    worst, worst_bias = min(cosines.keys() - bias, key=cosines.get), min(bias, key=cosines.get)
    difference = abs(float(half_loss) - float(loss)) / abs(float(loss))
    return dict(
        loss=finite(loss),
        loss_difference=difference,
        worst_cosine=cosines[worst],
        worst_gradient=worst,
        worst_cosine_of_qkv_bias=cosines[worst_bias],
        passed=difference <= 1e-3 and cosines[worst] > 0.999 and cosines[worst_bias] > 0.99,
    )


def koleo(job: Job) -> dict[str, Any]:
    """The losses of a whole run in float32 and in bf16, with KoLeo: means over the last tenth of the steps."""
    found = {}
    for dtype in ('float32', 'bfloat16'):
        one = job._replace(overrides=(*job.overrides, f'dtype="{dtype}"'))
        with records(one) as (training, mesh), contextlib.closing(training.batches(0)) as batches:
            state = created(training.objective, training.step.optimizer, mesh)
            run = jax.jit(training.step.train_step, donate_argnums=0)
            steps = 3 if job.tiny else training.config['total_steps']
            lines = []
            for _, batch in zip(range(steps), batches, strict=False):
                state, metrics = run(state, batch)
                lines.append({name: x for name, x in metrics.items() if name == 'loss' or name.endswith('/loss')})
            last = jax.device_get(lines[-max(steps // 10, 1) :])
        found[dtype] = {name: finite(np.mean([line[name] for line in last])) for name in last[0]}
    return dict(steps=steps, **found)


# Shared by the measures.


@contextlib.contextmanager
def one_device() -> Any:
    """A mesh of the first device, which is in use inside."""
    from medjax.parallel import sharding

    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        yield mesh


@contextlib.contextmanager
def records(job: Job) -> Any:
    """Builds phantoms in a temporary folder, and gives the training on them, and the mesh of the first device."""
    from step import for_sources, phantoms  # the file beside this one

    from medjax import config as configs, train

    with tempfile.TemporaryDirectory() as folder:
        data = phantoms(folder, 32 if job.tiny else RECORDS, job.canvas)
        config, datasets = configs.load(job.recipe, for_sources(job.recipe, job.overrides, data), job.overrides)
        with one_device() as mesh:
            yield train.setup(config, datasets, mesh), mesh


def started(recipe: Any, mesh: Any) -> tuple[Any, Any]:
    """A new state and a random batch."""
    from medjax.parallel import sharding

    batch = jax.device_put(random_batch(recipe), sharding.rows_sharding(mesh))
    return created(recipe.objective, recipe.optimizer, mesh), batch


def created(objective: Any, optimizer: Any, mesh: Any) -> Any:
    from medjax.parallel import sharding
    from medjax.training.state import create

    new = jax.jit(lambda key: create(objective, optimizer, key), out_shardings=sharding.replicated(mesh))
    return new(jax.random.key(0))


def random_views(make_views: Callable) -> Callable:
    """`make_views` with random numbers in place of pixels. So no crop is computed, and this compiles in seconds."""

    def views_and_masks(batch: Any, key: Any, step: Any) -> Any:
        views, masks = make_views(batch, key, step)
        noise = {
            name: view._replace(x=jax.random.normal(key, view.x.shape, view.x.dtype))
            for name, view in views.items()
            if jnp.issubdtype(view.x.dtype, jnp.floating)
        }
        return {**views, **noise}, masks

    return views_and_masks


def random_batch(recipe: Any) -> dict[str, dict[str, Any]]:
    """A batch of random images, and of texts of random words."""
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


def random_array(shape: tuple[int, ...], dtype: Any, scale: float = 0.02, seed: int = 0) -> np.ndarray:
    """Normal numbers, true, or whole numbers that are words of any vocabulary."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype) == np.bool_:
        return np.ones(shape, bool)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(0, scale, shape).astype(dtype)
    return rng.integers(1, 100, shape).astype(dtype)


def timed(f: Callable, *args: Any) -> float:
    """The median seconds of a call."""
    jax.block_until_ready(f(*args))
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        jax.block_until_ready(f(*args))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def memory(program: Any) -> dict[str, float | None]:
    """GiB of a program's arguments and temporaries, and the peak of the process; None where the device does not say."""
    plan, stats = program.memory_analysis(), jax.devices()[0].memory_stats() or {}
    peak = stats.get('peak_bytes_in_use')
    return dict(
        arguments_gib=plan.argument_size_in_bytes / 2**30,
        temporary_gib=plan.temp_size_in_bytes / 2**30,
        peak_gib=None if peak is None else peak / 2**30,
    )


def finite(x: Any) -> float | None:
    """None for NaN and infinite numbers, which JSON does not have."""
    return float(x) if math.isfinite(float(x)) else None


MEASURES: dict[str, Callable[[Job], dict[str, Any]]] = dict(
    ceilings=ceilings, step=step, loop=loop, images=images, attention=attention, half=half, koleo=koleo
)
