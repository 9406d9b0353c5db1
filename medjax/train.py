"""The one train loop of every recipe: a config and records -> checkpoints, exports, metrics.

    run(config, datasets, folder)    opens the files of the run and calls loop() for each of its stages
    setup(config, datasets, mesh)    makes the objects of a stage
    initial_state(training, …)       the last checkpoint, or a new state, with given weights or the state of a parent

The same command continues a stopped run: the position in the data, the random keys and every schedule are functions of
the step alone. Ctrl-C and SIGTERM stop the run after saving its step; a second Ctrl-C ends it at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import signal
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from medjax import branch as branches, config as configs, files, folder as folders, life
from medjax.data import records
from medjax.data.stream import Stream
from medjax.data.text import tokenizer as tokenizers
from medjax.errors import UserError
from medjax.objectives.compose import Objective, compose
from medjax.parallel import runtime, sharding
from medjax.parallel.groups import check_rows
from medjax.plugins import call
from medjax.stages import Stage, at_step, stages
from medjax.training import checkpoint, forgetting, health, metrics, watchdog
from medjax.training.checkpoint import Checkpoints
from medjax.training.export import Exporter
from medjax.training.flops import step_flops
from medjax.training.profile import Profile
from medjax.training.rehearsal import rehearse
from medjax.training.state import abstract_state, copies_of_sources, create, make_optimizer, start_from, state_shardings
from medjax.training.step import Step, make_step
from medjax.types import Batch, TrainState
from medjax.views import make

MAX_SKIPPED = 20  # a run stops after this number of steps in a row with NaN or infinite numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Training:
    """The objects of a stage, made from its config and the data: stream, objective, step, shardings."""

    config: Mapping[str, Any]
    mesh: Mesh
    tokenizer: tokenizers.Tokenizer | None
    stream: Stream
    objective: Objective
    step: Step
    abstract: TrainState  # shapes and dtypes of the state
    shardings: TrainState

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """The global batches from step `start` on. Each process reads and decodes its own rows."""
        rows = sharding.rows_sharding(self.mesh)
        local = {part: sharding.local_rows(rows, n) for part, n in self.stream.rows.items()}
        with contextlib.closing(self.stream.batches(start, local)) as batches:
            for batch in batches:
                yield sharding.global_batch(batch, rows, self.stream.rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Session:
    """What one call of `run` writes with, the same in all stages."""

    folder: Path
    watch: watchdog.Watch
    checkpoints: Checkpoints
    writer: metrics.Writer
    gauge: forgetting.Gauge | None
    profile: Profile | None

    def report(self, line: Mapping[str, Any]) -> None:
        """Writes what follows from a new line of metrics.jsonl: health and goodput."""
        folders.check_there(self.folder)
        health.write(self.folder, health.verdict(self.writer.history, self.writer.total_steps))
        self.watch.times.write(self.folder, line['step'])
        self.watch.line = dict(line)


def setup(config: Mapping[str, Any], datasets: Mapping[str, records.DataSet], mesh: Mesh) -> Training:
    """Views, towers, terms and optimizer of a config, on a mesh that is in use."""
    objective = compose(config)
    tokenizer = open_tokenizer(config)
    stream = Stream(
        config['data'], datasets, config['seed'], views=config['views'], tokenizer=tokenizer, columns=config['columns'],
        structures=objective.structures,
    )  # fmt: skip
    check_rows(stream.rows, config['rows_per_group'], config['micro_batches'], sharding.row_shards())
    make_views = make.build(
        objective.views, config['masks'], config['image'], objective.grids(), config['rows_per_group'],
        config['tokenizer'].get('tokens'),
    )  # fmt: skip
    optimizer = make_optimizer(objective, config['optim'], config['total_steps'])
    step = make_step(objective, optimizer, make_views, config['micro_batches'])
    abstract = abstract_state(objective, optimizer)
    shardings = state_shardings(objective, abstract, mesh)
    return Training(config, mesh, tokenizer, stream, objective, step, abstract, shardings)


def open_tokenizer(config: Mapping[str, Any]) -> tokenizers.Tokenizer | None:
    """The tokenizer of the text views; None for a config without texts."""
    cfg = config['tokenizer']
    return tokenizers.load(cfg['path'], cfg['pad']) if cfg['path'] else None


def initial_state(
    training: Training, checkpoints: Checkpoints, branch: branches.Branch | None
) -> tuple[TrainState, dict[str, Any] | None]:
    """The state of the last checkpoint, or a new one, and what config.json says of the parent of a branch."""
    state, notes = checkpoints.resume(checkpoint.abstract(training.abstract, training.shardings))
    for note in notes:
        say(note)
    if state is not None:
        say(f'resuming from step {int(state.step):,} in {checkpoints.folder}')
        return state, None
    if branch is None:
        return new_state(training), None
    parent, keep = branch
    branches.check_keep(keep, training.objective)
    theirs = branches.abstract_parent(parent, training.mesh)
    plan = branches.plan(parent, training.abstract, theirs, keep)
    parent, old, notes = branches.read(parent, theirs)
    for sentence in (
        *notes,
        f'branching from {parent.run} at step {parent.step:,}',
        *plan.sentences(training.objective),
    ):
        say(sentence)
    state = branches.inherit(
        old, plan, training.objective, training.shardings, training.config['seed'], lambda: new_state(training, plan)
    )
    return state, parent.described(plan.kept, keep)


def new_state(training: Training, plan: branches.Plan | None = None) -> TrainState:
    """A new state with the weights that the config names. Those that the plan of a branch replaces are not read."""
    new = jax.jit(
        lambda key: create(training.objective, training.step.optimizer, key), out_shardings=training.shardings
    )
    state = new(jax.random.key(training.config['seed']))
    starts = (training.config['init_from'] or ()) if plan is None else ()
    one = isinstance(starts, Mapping)
    given: list[tuple[str, Any, str | None]] = [
        ('init_from' if one else f'init_from[{i}]', cfg, None) for i, cfg in enumerate([starts] if one else starts)
    ]
    for name, teacher in training.objective.teachers.items():
        kept = plan is not None and any(module.startswith(f'teachers/{name}/') for module in plan.kept)
        if teacher.init_from is not None and not kept:
            given.append((f'teachers.{name}.init_from', teacher.init_from, name))
    for where, cfg, network in given:
        state, notes = call(start_from, cfg, where, state=state, towers=training.objective.towers, network=network)
        for note in notes:
            say(f'{where}: {note}')
    return copies_of_sources(training.objective, state)


def begins_with_weights(training: Training) -> bool:
    """Whether the student or a teacher starts from given weights. The export of step 0 then shows how good they are."""
    teachers = training.objective.teachers.values()
    return bool(training.config['init_from']) or any(teacher.init_from is not None for teacher in teachers)


def run(
    config: configs.Config,
    datasets: dict[str, records.DataSet],
    folder: Path,
    branch: branches.Branch | None = None,
    profile: Profile | None = None,
) -> int:
    """Trains to config['total_steps'], or until the run is stopped; returns the exit code.

    `branch`: the run begins with the state of another one. It is not read once the run has a checkpoint of its own.
    """
    with folders.held(folder):
        return _run(config, datasets, folder, branch, profile)


def _run(
    config: configs.Config,
    datasets: dict[str, records.DataSet],
    folder: Path,
    branch: branches.Branch | None,
    profile: Profile | None,
) -> int:
    """`run`, in a folder that no other run writes."""
    total, main = config['total_steps'], runtime.is_main()
    before = check_folder(folder, config, datasets, branch)
    if (folder / 'DONE').exists() and (folder / 'DONE').read_text(errors='replace').strip() == str(total):
        say(f'{folder} is finished: {total:,} steps are done')
        return 0
    if profile is not None:
        profile.check(0, total)
    peak = metrics.peak_flops(jax.devices(), config['dtype'])  # measured on a CPU, so before a mesh is in use
    mesh = sharding.make_mesh(**config['mesh'])
    jax.set_mesh(mesh)
    plan = stages(config)

    with contextlib.ExitStack() as at_the_end:
        watch = at_the_end.enter_context(watchdog.watching(folder, lambda: not main or folders.is_ours(folder)))
        trainings = all_set_up(plan, datasets, mesh)
        checkpoints = Checkpoints(folder / 'checkpoints', **config['checkpoint'])
        at_the_end.callback(checkpoints.close)  # waits until the last save is whole
        state, parent = initial_state(trainings[0], checkpoints, branch)
        resumed = checkpoints.latest() is not None
        done = start = int(state.step)
        for note in () if before is None else life.check_end(folder, before, config, start):
            say(note)
        if resumed and not (folder / 'metrics.jsonl').exists():
            say(f'{folder}/metrics.jsonl is lost: the curves begin at step {start:,}')
        if start > total or (parent is not None and start == total):
            raise UserError(f'total_steps={total:,}: the run begins at step {start:,}; give a larger number')
        if profile is not None:
            profile.check(start, total)
            at_the_end.callback(profile.close)  # where the run stops before the last step of the profile
        identity, session, gauge = configs.fingerprint(config), None, None
        for stage, training in zip(plan, trainings, strict=True):
            if done >= stage.end and stage is not plan[-1]:
                continue
            with contextlib.closing(training.batches(done)) as batches:
                first = next(batches)
                flops = step_flops(training.objective, training.step.make_views, state, first)
                if session is None:  # nothing has refused the config, so the folder becomes this run's
                    claim_folder(folder, before, config, datasets, start, parent)
                    watch.begun = True
                    if main:
                        watchdog.remove_others(folder, jax.process_count())
                        watch.times.go_on(folder, start)
                    writer = metrics.Writer(
                        folder, total, config['log']['every'], start, peak=peak, times=watch.times, enabled=main
                    )
                    at_the_end.callback(writer.close)
                    at_the_end.enter_context(stop_on_interrupt())
                    if resumed:
                        gauge = resumed_gauge(plan, trainings, folder)
                    elif parent is not None or begins_with_weights(training):
                        gauge = forgetting.begin(training.objective, stage.config, mesh, folder, state, first, main)
                    session = Session(folder, watch, checkpoints, writer, gauge, profile)
                session.writer.begin_stage(flops)
                if done == stage.begin > 0:
                    session.writer.say(f'step {done:,}: the next stage begins')
                exporter = Exporter(
                    folder, training.objective, stage.config, identity, training.tokenizer, main,
                    check=functools.partial(folders.check_there, folder),
                )  # fmt: skip
                if done == start == 0 and (parent is not None or begins_with_weights(training)):
                    exporter.write(0, state)
                batches = itertools.chain([first], batches)
                state, done, stopped = loop(training, state, batches, session, exporter, stage.end)
            if stopped:
                break

    finish(folder, done, total, session.writer)
    return 0


def resumed_gauge(plan: Sequence[Stage], trainings: Sequence[Training], folder: Path) -> forgetting.Gauge | None:
    """The gauge of a run that goes on: it encodes the images of the run's first step again."""
    step = forgetting.first_step(folder)
    if step is None:
        return None
    training = trainings[plan.index(at_step(tuple(plan), step))]
    with contextlib.closing(training.batches(step)) as batches:
        return forgetting.resume(training.objective, training.config, training.mesh, folder, next(batches))


def all_set_up(plan: Sequence[Stage], datasets: Mapping[str, records.DataSet], mesh: Mesh) -> list[Training]:
    """The objects of each stage. UserError for a mistake in any of them, so that no run meets it after days."""
    trainings = [setup(plan[0].config, datasets, mesh)]
    first = checkpoint.leaves(trainings[0].abstract)
    for i, stage in enumerate(plan[1:]):
        try:
            training = setup(stage.config, datasets, mesh)
        except UserError as error:
            raise UserError(f'stages.{i}: {error}') from None
        ours = checkpoint.leaves(training.abstract)
        for name in sorted(ours.keys() | first.keys()):
            if getattr(ours.get(name), 'shape', None) != getattr(first.get(name), 'shape', None):
                raise UserError(
                    f'stages.{i}.change: all stages have one state, and this one changes {name}; what changes the '
                    'state is a branch: medjax train --from RUN'
                )
        rehearse(training.objective, training.step.make_views, stage.config)
        trainings.append(training)
    return trainings


def loop(
    training: Training,
    state: TrainState,
    batches: Iterator[Batch],
    session: Session,
    exporter: Exporter,
    end: int,
) -> tuple[TrainState, int, bool]:
    """Runs the steps of a stage up to `end`, or until the run is stopped.

    Returns the state, the number of steps that are done, and whether the run was stopped.
    """
    config, folder, times = training.config, session.folder, session.watch.times
    checkpoints, writer, profile = session.checkpoints, session.writer, session.profile
    total, images = config['total_steps'], config['batch_size']
    train_step = jax.jit(
        training.step.train_step,
        donate_argnums=0,
        compiler_options=sharding.compiler_options(),
        out_shardings=(training.shardings, sharding.replicated(training.mesh)),
    )
    start = done = int(state.step)
    batch, stopped = next(batches), False
    if done == total:  # the end was moved to this step, or the run was killed before its last export
        exporter.write(done, state)
    with times.training():
        while done < end and not stopped:
            if profile is not None:
                profile.before(done + 1, state, folder)
            with times.of('compile' if done == start else 'step'):
                state, numbers = train_step(state, batch)
            done += 1
            times.dispatched(done, numbers['skipped'])
            if profile is not None and (place := profile.after(done, state)):
                writer.say(f'the profile of steps {profile.first} to {profile.last} is in {place}')
            if session.gauge is not None and session.gauge.due(done):
                with times.of('gauge'):
                    numbers = numbers | session.gauge(state)
            if done < end:
                with times.of('input'):
                    batch = next(batches)
            if line := writer.step(done, numbers, images):
                session.report(line)
            if done % MAX_SKIPPED == 0 or done == total:
                check_finite(int(state.skipped['in_a_row']), done, start, checkpoints.latest(), folder)
            if done % config['export']['every'] == 0 or done == total:
                with times.of('export'):
                    exporter.write(done, state)
            stopped = checkpoints.stopping(done)
            if checkpoints.due(done) or stopped or done == total:
                folders.check_there(folder)
                with times.of('checkpoint'):
                    checkpoints.save(done, state)
    if line := writer.flush(images):  # a log interval that the stop cut short
        session.report(line)
    return state, done, stopped


# Before and after the loop.


def check_folder(
    folder: Path,
    config: Mapping[str, Any],
    datasets: Mapping[str, records.DataSet],
    branch: branches.Branch | None = None,
) -> configs.Config | None:
    """The config.json of the run in the folder; None for a new run.

    UserError if the folder holds a run with another config or of other data, or has lost what tells it.
    """
    before = folders.read_config(folder)
    if before is None:
        return None
    if configs.is_version_1(before):
        raise UserError(
            f'{folder} holds a run of medjax 0.1, whose checkpoints this version cannot read. Start a new run from its '
            f"""export in another --workdir: --config.init_from='dict(path="{folder}/exports/STEP")'"""
        )
    saved = checkpoint.steps(folder / 'checkpoints')
    if keys := configs.difference_on_resuming(before, config):
        way = f'branch from the run: medjax train --from {folder} --workdir OTHER, with these overrides'
        raise UserError(
            f'{folder} holds a run with another config (they differ in {", ".join(keys)}). Give that config, or '
            f'{way if saved else "use another --workdir; the run has no checkpoint yet, so its folder may be deleted"}'
        )
    parent = life.of(before)['parent']
    if not saved and parent is not None and branch is None:
        raise UserError(
            f'{folder} is a branch without a checkpoint of its own; it begins again by medjax train --from '
            f'{parent["run"]}@{parent["step"]} --workdir {folder}, with its other options'
        )
    if not saved and (folder / 'DONE').exists() and config['total_steps'] != before['total_steps']:
        raise UserError(
            f'{folder} is finished, but its checkpoints are lost, so it cannot be lengthened; start a new run from its '
            f"""export in another --workdir: --config.init_from='dict(path="{folder}/exports/STEP")'"""
        )
    if config['total_steps'] != before['total_steps']:  # refused before minutes of compiling; once more on resuming
        life.check_end(folder, before, config, checkpoint.newest_whole(folder / 'checkpoints'))
    for note in folders.check_data(folder, before, datasets):
        say(note)
    if not saved and (folder / 'metrics.jsonl').exists():
        say(f'{folder} has no checkpoint: it begins again')
    return before


def claim_folder(
    folder: Path,
    before: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    datasets: Mapping[str, records.DataSet],
    start: int,
    parent: Mapping[str, Any] | None,
) -> None:
    """Makes the folder this run's: hashes of the training data, the identity of the data sets, and config.json last.

    `before` is the config.json of a resumed run. It takes what may change on resuming, as `total_steps`.
    """
    if not runtime.is_main():
        return
    folders.check_there(folder, begun=before is not None)
    file = folder / 'config.json'
    if before is not None:
        weights = {key: before[key] for key in ('init_from', 'teachers')}  # those that the run really began with
        now = {**config, **weights, 'life': life.lengthened(before, config, start)}
        if now != {**before, 'life': life.of(before)}:
            with files.writing(f'the config {file}'):
                files.write_text(file, configs.to_json(now))
        if note := folders.write_data(folder, life.of(before)['parent'], datasets, folders.given_weights(before)):
            say(note)
        (folder / 'DONE').unlink(missing_ok=True)
        return
    if note := folders.write_data(folder, parent, datasets, folders.given_weights(config)):
        say(note)
    with files.writing(f'the config {file}'):
        files.write_text(file, configs.to_json({**config, 'life': life.begun(config, start, parent)}))


def finish(folder: Path, done: int, total: int, writer: metrics.Writer) -> None:
    """Writes RUN/DONE after the last step, and prints the next command."""
    folders.check_there(folder)
    if done < total:
        say(f'stopped at step {done:,}, which is saved; the same command resumes from it')
    elif runtime.is_main():
        with files.writing(f'the end of the run, {folder / "DONE"}'):
            files.write_text(folder / 'DONE', f'{done}\n')
        say(f'done: {done:,} steps. {health.verdict(writer.history, total)["verdict"]}')
        say(f'next: medjax probe --run {folder} --data DATA, then medjax report --run {folder}')


def check_finite(skipped: int, done: int, start: int, saved: int | None, folder: Path) -> None:
    """A UserError after MAX_SKIPPED skipped steps in a row, or if all steps of this session were skipped."""
    if skipped >= min(MAX_SKIPPED, done - start):
        raise UserError(
            f'{skipped} steps in a row gave numbers that are not finite (NaN or infinite), the last at step {done:,}; '
            f'the run stops. Its last checkpoint is of step {saved}. A lower optim.lr, a longer warm-up or optim.clip '
            f'would help; look at {folder}/metrics.jsonl'
        )


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


def say(text: str) -> None:
    """A sentence for the person at the keyboard, once for all processes."""
    if runtime.is_main():
        print(text, file=sys.stderr, flush=True)
