"""Checkpoints: the full state of a run, saved asynchronously, for resuming. The only file that imports orbax.

A save returns at once and is committed by one rename, so a kill at any moment leaves the previous checkpoint. A state
can be restored on another number of processes and devices than it was saved on.
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

    All processes stop at one step: the last step that any process asked jax about. Orbax also asks, from the thread
    that finishes a save, and about an earlier step. If SIGTERM comes at that moment, jax chooses a step that is already
    over, and the run never stops. So this manager answers orbax itself.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """RUN/checkpoints/<step>. The state is saved every `every` steps; the last `keep` checkpoints stay.

    `read_only`: of another run, which may be training; nothing is written or removed.
    """

    def __init__(self, folder: Path, every: int, keep: int, read_only: bool = False) -> None:
        logging.getLogger('absl').setLevel(logging.ERROR)  # orbax narrates every save
        self.folder = folder
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
        return self.manager.latest_step()

    def due(self, step: int) -> bool:
        return step > 0 and self.manager.should_save(step)

    def save(self, step: int, state: TrainState) -> None:
        """Starts saving `state` as step `step`. A step that is saved already is left alone."""
        if self.manager.latest_step() != step:
            self.manager.save(step, args=ocp.args.StandardSave(state._asdict()), force=True)

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of `step` with the shapes, dtypes and shardings of `like` (abstract arrays).

        UserError where they do not fit; orbax would cast dtypes silently.
        """
        self._compare(step, like)
        try:
            return TrainState(**self.manager.restore(step, args=ocp.args.StandardRestore(like._asdict())))
        except (ValueError, KeyError) as error:
            raise UserError(f'{self.folder / str(step)}: cannot be read: {str(error).splitlines()[0]}') from error

    def _compare(self, step: int, like: TrainState) -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            saved = checkpointer.metadata(self.folder.absolute() / str(step) / 'default').item_metadata
        stored, wanted = leaves(dict(saved)), leaves(like._asdict())
        advice = 'the config is not that of the run; use another --workdir, or start from its export by init_from'
        for name in sorted(stored.keys() ^ wanted.keys()):
            state = 'lacks' if name in wanted else 'holds, unlike the config,'
            raise UserError(f'{self.folder / str(step)}: the checkpoint {state} {name}; {advice}')
        for name, leaf in wanted.items():
            have = stored[name]
            if have.shape is None or jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                continue
            if tuple(have.shape) != leaf.shape or have.dtype != leaf.dtype:
                raise UserError(
                    f'{self.folder / str(step)}: {name} is {have.dtype}{list(have.shape)} in the checkpoint and '
                    f'{leaf.dtype}{list(leaf.shape)} by the config; {advice}'
                )

    def stopping(self, step: int) -> bool:
        """True, on every process at the same step, after a SIGTERM to any of them. Call it every step."""
        return multihost_utils.reached_preemption_sync_point(step)

    def close(self) -> None:
        self.manager.close()


def abstract(state: TrainState, shardings: Any) -> TrainState:
    """Shapes and dtypes of a state with their shardings, as `restore` needs them."""

    def one(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(one, state, shardings)


def steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in RUN/checkpoints, ascending."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []


def leaves(state: Any) -> dict[str, Any]:
    """The arrays of a state by their paths: 'params/towers/image/cls'."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]}


def name_of(path: tuple[Any, ...]) -> str:
    """A path of jax as text."""
    return '/'.join(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)
