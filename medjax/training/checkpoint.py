"""Checkpoints: the full state, asynchronously, for resuming. The only file that knows orbax.

A save returns at once and is committed by one rename, so a kill at any moment leaves the previous checkpoint. A state
saved by any number of processes and devices is restored on any other.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from orbax.checkpoint import checkpoint_managers as policies

from medjax.errors import UserError
from medjax.types import TrainState


class _Manager(ocp.CheckpointManager):
    """A manager that never asks jax about preemption.

    jax agrees on a step to stop at by the last step that it was asked about. Orbax asks again for the step before from
    the thread that finishes a save; a SIGTERM that came then would agree on a step that is over, and never stop.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """RUN/checkpoints/<step>: every `every` steps the state is saved, the last `keep` stay."""

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        logging.getLogger('absl').setLevel(logging.ERROR)  # orbax narrates every save
        self.folder = folder
        self.manager = _Manager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                save_decision_policy=policies.FixedIntervalPolicy(every),
                preservation_policy=policies.LatestN(keep),
                enable_async_checkpointing=True,
            ),
        )

    def latest(self) -> int | None:
        return self.manager.latest_step()

    def due(self, step: int) -> bool:
        return step > 0 and self.manager.should_save(step)

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving `state` as step `step`; a step that is there already is left alone."""
        if self.manager.latest_step() != step:
            self.manager.save(step, args=ocp.args.StandardSave(state._asdict()), force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of `step` with the shapes, dtypes and shardings of `like` (abstract arrays).

        What does not fit is an error: orbax by itself casts dtypes without a word.
        """
        self._compare(step, like)
        try:
            return TrainState(**self.manager.restore(step, args=ocp.args.StandardRestore(like._asdict())))
        except (ValueError, KeyError) as error:
            raise UserError(f'{self.folder / str(step)}: cannot be read: {str(error).splitlines()[0]}') from error

    def _compare(self, step: int, like: TrainState) -> None:
        with ocp.StandardCheckpointer() as reader:
            saved = reader.metadata(self.folder.absolute() / str(step) / 'default').item_metadata
        found = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(dict(saved))[0]}
        wanted = {_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(like._asdict())[0]}
        advice = 'the config is not that of the run; use another --workdir, or start from its export by init_from'
        for name in sorted(found.keys() ^ wanted.keys()):
            state = 'does not hold' if name in wanted else 'holds, beyond the config,'
            raise UserError(f'{self.folder / str(step)}: the checkpoint {state} {name}; {advice}')
        for name, leaf in wanted.items():
            have = found[name]
            if have.shape is None or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue
            if tuple(have.shape) != leaf.shape or have.dtype != leaf.dtype:
                raise UserError(
                    f'{self.folder / str(step)}: {name} is {have.dtype}{list(have.shape)} in the checkpoint and '
                    f'{leaf.dtype}{list(leaf.shape)} by the config; {advice}'
                )

    def stopping(self, step: int) -> bool:
        """True on every process at the same step after a SIGTERM to any of them; to be called every step."""
        return multihost_utils.reached_preemption_sync_point(step)

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def close(self) -> None:
        self.manager.close()


def abstract(state: TrainState, shardings: Any) -> TrainState:
    """Shapes of a state with their shardings: what `restore` needs."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, state, shardings)


def _name(path: tuple[Any, ...]) -> str:
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
