"""Checkpoints: the full state of a run, saved asynchronously, for resuming. The only file that imports orbax.

A save returns at once and is committed by one rename, so a kill at any moment leaves the previous checkpoint. A state
can be restored on another number of processes and devices than it was saved on.

A checkpoint holds a list of its files with their sizes and CRC-32, see `file_list.py`. A checkpoint that does not match
its list is damaged, and the one before it is taken.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from orbax.checkpoint import checkpoint_managers as policies

from medjax import files
from medjax.errors import UserError
from medjax.parallel import runtime
from medjax.training import file_list
from medjax.types import TrainState

TEMPORARY = '*.orbax-checkpoint-tmp*'  # a checkpoint that is being saved
OF_DEVICES = (MemoryError, jax.errors.JaxRuntimeError)  # errors that say nothing about the files


class _Manager(ocp.CheckpointManager):
    """A manager that lists the files of each checkpoint, keeps the error of a save, and never asks about preemption.

    The thread that finishes a save calls the two methods after the first.

    All processes stop at one step: the last step that any process asked jax about. Orbax also asks, from the thread
    that finishes a save, and about an earlier step. If SIGTERM comes at that moment, jax chooses a step that is already
    over, and the run never stops. So this manager answers orbax itself.
    """

    failure: BaseException | None = None

    def reached_preemption(self, step: int) -> bool:
        return False

    def _finalize_checkpoint(self, step: int) -> None:
        super()._finalize_checkpoint(step)
        if runtime.is_main() and (folder := Path(self.directory, str(step))).is_dir():
            file_list.write(folder)

    def _finalize(self, step: int, steps_to_remove: list[int]) -> None:
        try:
            super()._finalize(step, steps_to_remove)
        except BaseException as error:
            self.failure = error
            raise


class Checkpoints:
    """RUN/checkpoints/<step>. The state is saved every `every` steps; the last `keep` checkpoints stay.

    `read_only`: of another run, which may be training; nothing is written or removed.
    """

    def __init__(self, folder: Path, every: int, keep: int, read_only: bool = False) -> None:
        quiet()
        self.folder, self.read_only, self._saving = folder, read_only, 0
        self._first: int | None = None  # the first step that `stopping` was asked about
        self._sweep()
        self.manager = _Manager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=policies.FixedIntervalPolicy(every),
                preservation_policy=policies.LatestN(keep),
                enable_async_checkpointing=not read_only,
                read_only=read_only,
            ),
        )

    def latest(self) -> int | None:
        """The step of the newest checkpoint."""
        return self.manager.latest_step()

    def due(self, step: int) -> bool:
        return step > 0 and self.manager.should_save(step)

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving `state` as step `step`. A step that is saved already is left alone."""
        if self.manager.latest_step() != step:
            with self._writing():  # it waits for the save before, and gives its error
                self.manager.save(step, args=ocp.args.StandardSave(state._asdict()), force=True)
            self._saving = step

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with files.writing(f'the checkpoint of step {self._saving:,} in {self.folder}'):
            yield

    def resume(self, like: TrainState) -> tuple[TrainState | None, tuple[str, ...]]:
        """The newest state that is whole and has the shapes of `like`, and sentences about newer ones; None: no state.

        Damaged checkpoints are set aside as '<step>.damaged', those of another run stay. UserError where there are
        checkpoints and none is usable. All processes take the same one.
        """
        left, bad = steps(self.folder) if runtime.is_main() else [], dict[int, str]()
        while (step := runtime.from_main(left.pop() if left else -1)) >= 0:
            state, why = self._try(step, like)
            if state is not None:
                return state, self._set_aside(bad, step)
            bad[step] = why
        if bad:
            raise UserError(self._none_left(bad))
        return None, ()

    def _try(self, step: int, like: TrainState) -> tuple[TrainState | None, str]:
        """The state of a step, or why it cannot be used."""
        folder, why = self.folder / str(step), ''
        if runtime.is_main():
            why = file_list.damage(folder) or ''
        if runtime.from_main(int(bool(why))):
            return None, why or 'it is damaged'
        listed, state = runtime.from_main(int(file_list.exists(folder))), None

        def tried(function: Callable[[int, TrainState], Any]) -> tuple[Any, str]:
            try:
                return function(step, like), ''
            except OF_DEVICES:
                raise
            except Exception as error:
                if listed and folder.exists():  # its bytes are right, so the error is of another kind
                    raise
                return None, f'it cannot be read: {" ".join(str(error).split())[:100]}'

        misfit, why = tried(self._misfit)
        if runtime.all_agree(not (misfit or why)):  # before reading, in which all processes wait for each other
            state, why = tried(self._read)
            if state is not None and int(state.step) != step:
                return None, f'it holds step {int(state.step):,}'
            if runtime.all_agree(state is not None):
                return state, ''
        return None, misfit or why or 'a process cannot read it'

    def _set_aside(self, bad: dict[int, str], taken: int) -> tuple[str, ...]:
        """Renames checkpoints that cannot be used, and gives a sentence for each."""
        told = []
        for step, why in bad.items():
            folder = self.folder / str(step)
            if self.read_only:
                told.append(f'{folder}: the checkpoint cannot be used ({why}), so the one of step {taken:,} is taken')
                continue
            new = folder.with_name(f'{step}.damaged')
            if runtime.is_main():
                with files.writing(str(self.folder)):
                    if new.exists():
                        shutil.rmtree(new)
                    folder.rename(new)
            told.append(
                f'the checkpoint of step {step:,} cannot be used ({why}), so the one of step {taken:,} is taken; '
                f'{folder} is now {new.name}'
            )
        if bad and not self.read_only:
            runtime.from_main(0)  # until all are renamed
            self.manager.reload()
        return tuple(told)

    def _none_left(self, bad: dict[int, str]) -> str:
        run = self.folder.parent
        exports = steps(run / 'exports')
        way = f"""or from an export: --config.init_from='dict(path="{run}/exports/{exports[-1]}")'""" if exports else ''
        reasons = '; '.join(f'step {step}: {why}' for step, why in bad.items())
        return (
            f'{self.folder}: none of the checkpoints can be used ({reasons}). Nothing is changed there. Begin a new '
            f'run in another --workdir, from another run: --from OTHER{", " + way if way else ""}'
        )

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of `step` with the shapes, dtypes and shardings of `like` (abstract arrays).

        UserError where it is damaged, or where they do not fit; orbax would cast dtypes silently.
        """
        folder = self.folder / str(step)
        if why := file_list.damage(folder):
            others = ', '.join(str(other) for other in steps(self.folder) if other != step)
            more = f'; there are also checkpoints of step {others}' if others else ''
            raise UserError(f'{folder}: the checkpoint cannot be used: {why}{more}')
        try:
            if why := self._misfit(step, like):
                raise UserError(
                    f'{folder}: {why}; the config is not that of the run; use another --workdir, or start from its '
                    'export by init_from'
                )
            return self._read(step, like)
        except (UserError, *OF_DEVICES):
            raise
        except Exception as error:
            raise UserError(f'{folder}: cannot be read: {str(error).splitlines()[0]}') from error

    def _read(self, step: int, like: TrainState) -> TrainState:
        return TrainState(**self.manager.restore(step, args=ocp.args.StandardRestore(like._asdict())))

    def _misfit(self, step: int, like: TrainState) -> str | None:
        """In what a checkpoint differs from the state `like`; None where it fits. ValueError where it is unreadable."""
        stored, wanted = leaves(_described(self.folder / str(step))), leaves(like._asdict())
        for name in sorted(stored.keys() ^ wanted.keys()):
            state = 'lacks' if name in wanted else 'holds, unlike the config,'
            return f'the checkpoint {state} {name}'
        for name, leaf in wanted.items():
            have = stored[name]
            if have.shape is None or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue
            if tuple(have.shape) != leaf.shape or have.dtype != leaf.dtype:
                return (
                    f'{name} is {have.dtype}{list(have.shape)} in the checkpoint and {leaf.dtype}{list(leaf.shape)} by '
                    'the config'
                )
        return None

    def stopping(self, step: int) -> bool:
        """True, on every process at the same step, after a SIGTERM to any of them. Call it every step.

        jax stops at the number after the greatest one that it was asked about, and at no later one. Before the first
        step this is 1, so it is asked about the steps of this session: a run that goes on at step 1,000, and gets a
        SIGTERM while it compiles, would never reach 1. UserError where the last save has failed, as on a full disk.
        """
        if self.manager.failure is not None:
            with self._writing():
                raise self.manager.failure
        self._first = step if self._first is None else self._first
        return multihost_utils.reached_preemption_sync_point(step - self._first + 1)

    def close(self) -> None:
        """Waits until the last save is whole. UserError where it has failed; nothing half saved stays then."""
        try:
            with self._writing():
                self.manager.close()
        finally:
            end = time.monotonic() + 5
            while self._sweep() and time.monotonic() < end:
                time.sleep(0.25)  # after an error, threads of tensorstore may still write, and make their folders again

    def _sweep(self) -> bool:
        """Removes what killed processes, and saves that failed, have left. Whether there was anything."""
        found = [] if self.read_only or not runtime.is_main() else [*self.folder.glob(TEMPORARY)]
        for left in found:
            shutil.rmtree(left, ignore_errors=True)
        return bool(found)


def _described(folder: Path) -> dict[str, Any]:
    """The shapes and dtypes of the arrays in a checkpoint. An error where they cannot be read."""
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(folder.absolute() / 'default').item_metadata
    if saved is None:
        raise ValueError('its description of the arrays is missing or damaged')
    return dict(saved)


def newest_whole(folder: Path) -> int:
    """The step of the newest checkpoint in RUN/checkpoints that shows no damage; 0 if there is none.

    It is read once. Only `Checkpoints.resume` is sure of the one that a run goes on from.
    """
    for step in reversed(steps(folder)):
        place = folder / str(step)
        if file_list.exists(place):
            if file_list.damage(place) is None:
                return step
        elif _is_described(place):
            return step
    return 0


def _is_described(folder: Path) -> bool:
    quiet()
    try:
        return bool(_described(folder))
    except Exception:  # orbax raises many kinds for damaged files
        return False


@functools.cache
def quiet() -> None:
    """Keeps orbax from narrating every save, and from printing a traceback for each array after an error.

    After the first error of a read or write, which is raised, the others end without anybody who waits for them.
    """
    for name in ('absl', 'asyncio'):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings('ignore', message='coroutine .* was never awaited')
    show = sys.unraisablehook

    def shown(about: Any) -> None:
        if not any(words in str(about.exc_value) for words in ('Event loop is closed', 'reading array index')):
            show(about)

    sys.unraisablehook = shown


def abstract(state: TrainState, shardings: Any) -> TrainState:
    """Shapes and dtypes of a state with their shardings, as `restore` needs them."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, state, shardings)


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in RUN/checkpoints, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def named(spec: str) -> tuple[Path, str]:
    """The folder and the step that a user names: 'RUN@2000' -> (RUN, '2000'); without a step (RUN, '')."""
    run, at, text = spec.rpartition('@')
    if not at or os.path.isdir(_home(spec)):
        run, text = spec, ''
    elif not text:
        raise UserError(f'{spec}: there is no step after the @; write RUN@STEP, or RUN for its newest checkpoint')
    return _home(run), text


def _home(path: str) -> Path:
    """A path whose ~ is the home of a user, if there is one."""
    return Path(os.path.expanduser(path))


def leaves(state: Any) -> dict[str, Any]:
    """The arrays of a state by their paths: 'params/towers/image/cls'."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def name_of(path: tuple[Any, ...]) -> str:
    """A path of jax as text."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
