"""The processes of a run: start, roles, end.

`jax.distributed` is always initialised, also for a single process, because its preemption service turns SIGTERM into a
saved step.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jax._src import clusters  # what jax.distributed.initialize detects; it has no public name
from jax.experimental import multihost_utils
from jax.extend import backend

from medjax import __version__
from medjax.errors import UserError
from medjax.parallel.agreement import agreed
from medjax.parallel.roll_call import Process, answer_roll_call

# The files of launch/ set these variables for each process of a run: HOST:PORT of process 0, how many, which one.
VARIABLES = ('MEDJAX_COORDINATOR', 'MEDJAX_PROCESSES', 'MEDJAX_PROCESS')
WAIT = 300  # seconds for all processes to come
PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'numpy')  # versions that all processes share


def start() -> None:
    """Joins the processes of this run. It must come before the first use of jax's devices. A second call does nothing.

    If the three variables are set, the processes are those that a file of launch/ started. Otherwise they are those of
    a cluster that jax detects (SLURM, Open MPI, Cloud TPU, Kubernetes). Otherwise this is the only process, and its
    coordinator has a free local port. UserError where a process does not come, or has other code or other devices.
    """
    if jax.distributed.is_initialized():
        return
    # On CPUs, XLA itself has no collectives between processes.
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    me, device_ids = _place()
    if me.processes > 1:
        answer_roll_call(me, code(), WAIT)
    try:
        jax.distributed.initialize(
            me.coordinator, me.processes, me.number, device_ids,
            cluster_detection_method='deactivate',  # `_place` has looked; in a SLURM shell jax would take one GPU only
            coordinator_bind_address=me.coordinator if me.is_local else None,
            initialization_timeout=WAIT,
        )  # fmt: skip
    except RuntimeError as error:
        if 'before any JAX' not in str(error) or me.processes > 1:
            raise
        # A notebook or a test has used jax already. A single process can go on without the service.
        warnings.warn('jax was in use before the run: SIGTERM will end it without a saved step', stacklevel=2)
    agreed('devices', jax.local_devices, lambda devices: {'number': len(devices), 'kind': devices[0].device_kind})


def code() -> dict[str, str]:
    """Versions of medjax, of its source files, and of the packages that compute. All processes of a run share them."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob('*.py')):
        digest.update(path.read_bytes())
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {'medjax': f'{__version__} with sources {digest.hexdigest()[:8]}', **versions}


def release_devices() -> None:
    """Frees the memory of GPUs and TPUs, for a process that is about to start. Arrays of jax are lost.

    A process holds three quarters of a GPU's memory from its first use on, and a TPU for itself alone. The next use
    of jax here takes the devices again.
    """
    if jax.default_backend() != 'cpu':
        backend.clear_backends()


def _place() -> tuple[Process, Sequence[int] | None]:
    """The place of this process in its run, and the numbers of its devices if the cluster gives it some of a host."""
    given = {name: os.environ[name] for name in VARIABLES if name in os.environ}
    if given:
        if len(given) < len(VARIABLES):
            raise UserError(
                f'{min(given)} is set but not all of {", ".join(VARIABLES)}; the files of launch/ set the three'
            )
        for name in VARIABLES[1:]:
            if not given[name].isdecimal():
                raise UserError(f'{name}={given[name]!r}: it is a number, as the files of launch/ set it')
        return Process(given[VARIABLES[0]], *(int(given[name]) for name in VARIABLES[1:])), None
    try:
        coordinator, processes, number, device_ids = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, WAIT
        )
    except (RuntimeError, OSError) as error:
        raise UserError(f'this is a cluster that jax knows, but it does not say who takes part: {error}') from error
    if coordinator is None or processes is None or number is None:
        return Process(f'127.0.0.1:{free_port()}', 1, 0), None
    return Process(coordinator, processes, number), device_ids


def free_port() -> int:
    """A free local TCP port."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def is_main() -> bool:
    """Whether this is the process that writes metrics, exports, health and messages."""
    return jax.process_index() == 0


def from_main(value: int) -> int:
    """The value of the main process. All processes call it at the same point, and none goes on before."""
    return int(multihost_utils.broadcast_one_to_all(np.int64(value))) if jax.process_count() > 1 else value


def all_agree(yes: bool) -> bool:
    """Whether every process says yes. All processes call it at the same point."""
    return bool(np.all(multihost_utils.process_allgather(np.bool_(yes)))) if jax.process_count() > 1 else yes


def several() -> bool:
    """Whether the run has more than one process; False where jax has no backend."""
    try:
        return jax.distributed.is_initialized() and jax.process_count() > 1
    except (RuntimeError, AssertionError):
        return False


def shutdown() -> None:
    """Waits until all processes reach the end of the run, then leaves it.

    After a failure a process does not wait: the others may wait for it elsewhere, and all would wait forever. (The
    failure is seen in a `finally` block.)
    """
    failed = sys.exc_info()[0] is not None
    if jax.distributed.is_initialized() and not (failed and several()):
        jax.distributed.shutdown()
