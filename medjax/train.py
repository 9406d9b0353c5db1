"""`medjax train`: a config and records -> checkpoints, exports, metrics. The one train loop of every recipe.

    medjax train --config configs/demo.py --data DATA --workdir RUN --config.optim.lr=1e-3

The same command goes on with a run that was stopped: the position in the data, the random keys and every schedule
are functions of the step alone. Ctrl-C and SIGTERM end in a saved step; a second Ctrl-C ends at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import medjax
from medjax import config as configs, files
from medjax.data import records
from medjax.data.audit import seen
from medjax.data.stream import Stream
from medjax.data.text import tokenizer
from medjax.data.text.views import FALLBACKS
from medjax.errors import UserError, suggest
from medjax.objectives.compose import Objective, compose, with_stats, without_stats
from medjax.objectives.features import Feature
from medjax.parallel import runtime, sharding
from medjax.parallel.groups import check_rows
from medjax.plugins import call
from medjax.training import checkpoint, health, metrics
from medjax.training.flops import model_flops
from medjax.training.optimizer import optimizer
from medjax.training.step import create, make_step
from medjax.types import TrainState
from medjax.views import make
from medjax.weights import export
from medjax.weights.load import load

MAX_SKIPPED = 20  # steps in a row with numbers that are not finite, after which the run stops


def run(config: Mapping[str, Any], datasets: dict[str, records.DataSet], folder: Path) -> int:
    """Trains to config['total_steps'], or until it is told to stop; gives the exit code."""
    # The folder of the run: new, or of a run with this config and these data.
    main_process = runtime.is_main()
    data = {
        source: dict(name=d.name, fingerprint=d.fingerprint, key=d.key_fingerprint) for source, d in datasets.items()
    }
    belongs(folder, config, data)
    if (folder / 'DONE').exists():
        say(f'{folder} is finished: {config["total_steps"]:,} steps are done', main_process)
        return 0

    # What is computed: views, towers, terms, optimiser, all from the config.
    peak = metrics.peak_flops(jax.devices(), config['dtype'])  # measured on a CPU, so before a mesh is in use
    mesh = sharding.make_mesh(**config['mesh'])
    jax.set_mesh(mesh)
    objective = compose(config)
    words = reader(config)
    stream = Stream(config['data'], datasets, config['seed'], views=config['views'], tokenizer=words)
    check_rows(stream.rows, config['rows_per_group'], config['micro_batches'], sharding.row_shards())
    make_views = make.build(
        config['views'], config['masks'], config['image'], grids(objective, config), config['rows_per_group']
    )
    abstract, optim = abstract_state(objective, config)
    step = make_step(objective, optim, make_views, config['micro_batches'])

    with contextlib.ExitStack() as at_the_end:
        # The state: of the last checkpoint, or new, born on its shards.
        shardings = state_shardings(objective, abstract, mesh)
        checkpoints = checkpoint.Checkpoints(folder / 'checkpoints', **config['checkpoint'])
        at_the_end.callback(checkpoints.close)  # waits until what was saved is whole
        if (last := checkpoints.latest()) is not None:
            state = checkpoints.restore(last, checkpoint.abstract(abstract, shardings))
            say(f'going on from step {last:,} of {folder}', main_process)
        else:
            new = jax.jit(lambda key: create(objective, lambda _: optim, key), out_shardings=shardings)
            state = new(jax.random.key(config['seed']))
            starts = config['init_from'] or ()
            for i, cfg in enumerate([starts] if isinstance(starts, Mapping) else starts):
                where = 'init_from' if isinstance(starts, Mapping) else f'init_from[{i}]'
                state = call(start_from, cfg, where, state=state)
        start = int(state.step)

        # Batches, and the step with its cost.
        rows = sharding.rows_sharding(mesh)
        mine = {part: sharding.local_rows(rows, b) for part, b in stream.rows.items()}
        batches = stream.batches(start, mine)
        at_the_end.callback(batches.close)
        batch = sharding.global_batch(next(batches), rows, stream.rows)
        train_step = jax.jit(step.train_step, donate_argnums=0, out_shardings=(shardings, sharding.replicated(mesh)))
        flops = step_flops(objective, make_views, state, batch)
        total, every = config['total_steps'], config['log']['every']
        if main_process:  # nothing refused the config, so the folder is this run's
            claim(folder, config, data, datasets)
        writer = metrics.Writer(folder, total, every, start, flops=flops, peak=peak, enabled=main_process)
        at_the_end.callback(writer.close)
        at_the_end.enter_context(stop_on_interrupt())

        done, stopped = start, False
        while done < total and not stopped:
            state, numbers = train_step(state, batch)
            done += 1
            if done < total:
                batch = sharding.global_batch(next(batches), rows, stream.rows)
            if writer.step(done, numbers, config['batch_size']):
                health.write(folder, health.verdict(writer.history, total))
            if done % MAX_SKIPPED == 0 or done == total:
                check_finite(int(state.skipped['in_a_row']), done, start, checkpoints.latest(), folder)
            if done % config['export']['every'] == 0 or done == total:
                write_export(folder, done, state, objective, config, words, main_process)
            stopped = checkpoints.stopping(done)
            if checkpoints.due(done) or stopped or done == total:
                checkpoints.save(done, state)
        if writer.flush(config['batch_size']):  # an interval that the stop cut short
            health.write(folder, health.verdict(writer.history, total))

    if done < total:
        say(f'stopped at step {done:,}, which is saved; the same command goes on from there', main_process)
    elif main_process:
        (folder / 'DONE').write_text(f'{done}\n')
        say(f'done: {done:,} steps. {health.verdict(writer.history, total)["verdict"]}', main_process)
        say(f'next: medjax probe --run {folder} --data DATA, then medjax report --run {folder}', main_process)
    return 0


# The parts of the story, in order of use.


def belongs(folder: Path, config: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """A UserError if the folder cannot be written, or holds a run with another config or of other data."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f'--workdir {folder}: is no folder that can be made: {error.strerror}') from None
    if not (folder / 'config.json').exists():
        return
    before = configs.load_json(folder / 'config.json')
    if configs.fingerprint(before) != configs.fingerprint(config):
        keys = ', '.join(configs.difference(before, config))
        raise UserError(
            f'{folder} holds a run with another config (they differ in {keys}); use another --workdir, or that config'
        )
    there = folder / 'data' / 'sources.json'
    of = json.loads(there.read_text()) if there.exists() else {}
    for source, d in data.items():
        if of.get(source) != d:
            raise UserError(
                f'{folder} holds a run of other data: {source} was {of.get(source)} and is {d}; use another --workdir, '
                'or give it the data that it began with'
            )


def claim(folder: Path, config: Mapping[str, Any], data: Mapping[str, Any], datasets: Any) -> None:
    """Writes what makes the folder this run's: what it is trained on, and config.json last."""
    if (folder / 'config.json').exists():
        return
    (folder / 'data').mkdir(exist_ok=True)
    seen.write_seen(datasets, folder / 'data' / 'seen.npz')
    files.write_json(folder / 'data' / 'sources.json', data)
    files.write_text(folder / 'config.json', configs.to_json(config))


def check_finite(skipped: int, done: int, start: int, saved: int | None, folder: Path) -> None:
    """A UserError after MAX_SKIPPED steps in a row that were skipped, or where this session did no other."""
    if skipped >= min(MAX_SKIPPED, done - start):
        raise UserError(
            f'{skipped} steps in a row gave numbers that are not finite, the last at step {done:,}; the run stops. Its '
            f'last checkpoint is of step {saved}. A lower optim.lr, a longer warm-up or optim.clip would help; look at '
            f'{folder}/metrics.jsonl'
        )


def reader(config: Mapping[str, Any]) -> tokenizer.Tokenizer | None:
    """The tokenizer of the config's text views."""
    cfg = config['tokenizer']
    return tokenizer.load(cfg['path'], cfg['pad']) if cfg['path'] else None


def grids(objective: Objective, config: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """view -> rows and columns of patches in the tower that sees it, of views of images."""
    found = {}
    for feature in objective.needs:
        tower = objective.towers[feature.tower]
        if tower.sees != 'image':
            continue
        size = config['views'][feature.view]['size']
        height, width = (size, size) if isinstance(size, int) else size
        found[feature.view] = tower.grid((height, width))
    return found


def abstract_state(objective: Objective, config: Mapping[str, Any]) -> tuple[TrainState, Any]:
    """Shapes of the state, and the optimiser that the config describes for these parameters."""
    params, _ = jax.eval_shape(objective.init, jax.random.key(0))
    cfg = dict(config['optim'])
    optim = call(optimizer, cfg, 'optim', params=params, total_steps=config['total_steps'])
    return jax.eval_shape(lambda key: create(objective, lambda _: optim, key), jax.random.key(0)), optim


def state_shardings(objective: Objective, abstract: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """A sharding for every array of the state: parameters, moments and teachers by their logical axes."""
    params_axes, aux_axes = objective.axes
    params = sharding.param_shardings(params_axes, abstract.params, mesh)
    whole = sharding.replicated(mesh)

    def like_params(part: Any) -> bool:
        return isinstance(part, dict) and part.keys() == abstract.params.keys()

    # moments are trees like the parameters; the count is a number
    opt = jax.tree.map(lambda part: params if like_params(part) else whole, abstract.opt, is_leaf=like_params)
    aux = sharding.param_shardings(aux_axes, abstract.aux, mesh)
    return TrainState(whole, params, opt, aux, whole, dict.fromkeys(abstract.skipped, whole))


def start_from(path: str, state: TrainState, take: Sequence[str] | None = None) -> TrainState:
    """Weights of an export or a public file, into the student and into every teacher that holds the module.

    `take`: what is taken, as 'towers/image', or 'towers/cxr=towers/image' where the recipe has another name for it
    than the file. None takes every tower that both have. What is not taken stays new, as heads on DINOv2's backbone
    must (Meta never released them). Running statistics of batch norms come with their tower.
    """
    weights = load(path)
    ours = [f'{kind}/{name}' for kind in ('towers', 'heads') for name in state.params[kind]]
    both = [part for part in weights.modules if part in ours]
    taken: dict[str, str] = {part: part for part in both if part.startswith('towers/')}
    if take is not None:
        taken = {part.partition('=')[0]: part.partition('=')[2] or part for part in take}
    if not taken:
        raise UserError(f'init_from.path: {path} holds {", ".join(weights.modules)}, and no tower of this recipe')
    params = with_stats(state.params, state.aux['stats']['student'])
    new: dict[str, Any] = {}
    for part, theirs in taken.items():
        if part not in ours or theirs not in weights.modules:
            raise UserError(
                f'init_from.take: {part!r} must be in the recipe and {theirs!r} in {path}{suggest(theirs, both)}'
            )
        kind, name = part.split('/')
        try:
            new[part] = weights.read(theirs, params[kind][name])
        except UserError as error:
            raise UserError(f'init_from: {error}') from None

    def place(tree: Any, stats: Any) -> tuple[Any, Any]:
        def one(part: str, old: Any) -> Any:
            if part not in new:
                return old
            put = lambda old, n: jax.device_put(np.asarray(n, old.dtype), old.sharding)  # noqa: E731
            return jax.tree.map(put, old, new[part])

        whole = with_stats(tree, stats)
        whole = {k: {n: one(f'{k}/{n}', part) for n, part in group.items()} for k, group in whole.items()}
        towers, stats = without_stats(whole.get('towers', {}))
        return whole | ({'towers': towers} if 'towers' in whole else {}), stats

    aux = state.aux
    placed = {name: place(teacher, aux['stats'][name]) for name, teacher in aux['teachers'].items()}
    student, stats = place(state.params, aux['stats']['student'])
    return state._replace(
        params=student,
        aux={
            **aux,
            'teachers': {name: tree for name, (tree, _) in placed.items()},
            'stats': {'student': stats} | {name: stats for name, (_, stats) in placed.items()},
        },
    )


def step_flops(objective: Objective, make_views: Any, state: TrainState, batch: Any) -> float:
    """Model FLOPs of one step over the global batch, views not counted."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
    views, masks = jax.eval_shape(make_views, batch, state.key, state.step)

    def loss(params: Any, aux: Any, views: Any, masks: Any, key: Any, step: Any) -> Any:
        found, _ = objective.features(params, aux, views, masks, key, step)
        return objective.terms(params, aux, found, views, masks, key, step)[0]

    return model_flops(loss, shapes.params, shapes.aux, views, masks, shapes.key, shapes.step)


def write_export(
    folder: Path, step: int, state: TrainState, objective: Objective, config: Mapping[str, Any],
    words: tokenizer.Tokenizer | None, main_process: bool,
) -> None:  # fmt: skip
    """RUN/exports/<step>: the towers and heads of one network, with all that a reader of them needs."""
    cfg = config['export']
    paths = tuple(f'{kind}/{name}' for kind in ('towers', 'heads') for name in cfg[kind])
    tree = objective.export(state.params, state.aux, cfg['network'], paths)
    # the functions stay the same, so jax compiles each at the first export alone
    warmth = {
        name: jax.jit(temperature)(state.params, state.step) for name, (*_, temperature) in objective.pairs.items()
    }
    tree, warmth = jax.device_get(sharding.gather((tree, warmth)))
    if not main_process:
        return
    seen = folder / 'data' / 'seen.npz'
    sizes = [np.max(view['size']) for view in config['views'].values() if 'size' in view]  # texts have none
    meta = dict(
        step=step,
        network=cfg['network'],
        towers={name: config['towers'][name] for name in cfg['towers']},
        heads={name: config['heads'][name] for name in cfg['heads']},
        pairs=[
            dict(term=name, temperature=float(warmth[name])) | pair
            for name, (a, b, _) in objective.pairs.items()
            if (pair := pair_of_texts(a, b, objective, config))
        ],
        image=dict(config['image']),
        size=int(max(sizes, default=0)),
        config_fingerprint=configs.fingerprint(config),
        seen=hashlib.sha256(seen.read_bytes()).hexdigest() if seen.exists() else None,
        medjax=medjax.__version__,
    )
    others = {}
    if words and any(objective.towers[name].vocabulary for name in cfg['towers']):
        length = max(v['length'] for v in config['views'].values() if v['view'] == 'text')
        meta['tokenizer'] = dict(file=words.path.name, pad=config['tokenizer']['pad'], length=length)
        meta['tokenizer'] |= dict(fingerprint=words.fingerprint, tokens=words.tokens._asdict())
        others = {words.path.name: words.raw}
    export.save(folder / 'exports' / str(step), tree, meta, others)


def pair_of_texts(a: Feature, b: Feature, objective: Objective, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a reader of the export brings images and texts into one space: of each side the tower, whose cls, and the
    head after it; of texts also what the view showed. None where a side is another feature or is not exported."""
    if objective.towers[a.tower].vocabulary:
        a, b = b, a
    exported, sides = config['export'], (a, b)
    if objective.towers[a.tower].vocabulary or not objective.towers[b.tower].vocabulary:
        return None
    if not all(f.output == 'cls' and f.tower in exported['towers'] for f in sides):
        return None
    if not all(f.head is None or f.head in exported['heads'] for f in sides):
        return None
    view = config['views'][b.view]
    text = dict(tower=b.tower, head=b.head, length=view['length'], sections=list(view.get('sections', FALLBACKS)))
    return dict(image=dict(tower=a.tower, head=a.head), text=text)


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[None]:
    """Ctrl-C becomes a SIGTERM, which jax's preemption service turns into one step on which all processes stop."""
    before = signal.getsignal(signal.SIGINT)

    def interrupt(*_: Any) -> None:
        signal.signal(signal.SIGINT, before)
        print('\nstopping after this step (again: at once) …', file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def say(text: str, main_process: bool) -> None:
    if main_process:
        print(text, file=sys.stderr, flush=True)
