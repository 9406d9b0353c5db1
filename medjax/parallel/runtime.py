"""The processes of a run: start, roles, end.

`jax.distributed` is always initialised, also for a single process, because its preemption service turns SIGTERM into a
saved step.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.extend import backend

from medjax.errors import UserError

# launch/local.sh sets these variables for each process of a run on one machine.
LOCAL = ('MEDJAX_PORT', 'MEDJAX_PROCESSES', 'MEDJAX_PROCESS')


def start() -> None:
    """Joins the processes of this run. It must come before the first use of jax's devices. A second call does nothing.

    If the three variables of launch/local.sh are set, the processes are those that it started. Otherwise they are those
    of a cluster that jax detects (SLURM, Open MPI, Cloud TPU, Kubernetes). Otherwise this is the only process, and its
    coordinator has a free local port.
    """
    if jax.distributed.is_initialized():
        return
    # On CPUs, XLA itself has no collectives between processes.
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    present = [name for name in LOCAL if name in os.environ]
    if present and len(present) < len(LOCAL):
        raise UserError(f'{present[0]} is set but not all of {", ".join(LOCAL)}; launch/local.sh sets the three')
    if present:
        port, processes, process = (int(os.environ[name]) for name in LOCAL)
        _start_local(port, processes, process)
    elif not _start_in_cluster():
        try:
            _start_local(free_port(), 1, 0)
        except RuntimeError as error:
            if 'before any JAX' not in str(error):
                raise
            # A notebook or a test has used jax already. A single process can go on without the service.
            warnings.warn('jax was in use before the run: SIGTERM will end it without a saved step', stacklevel=2)
    jax.process_count()  # waits for all processes, so that none can fail before the others have joined


def release_devices() -> None:
    """Frees the memory of GPUs and TPUs, for a process that is about to start. Arrays of jax are lost.

    A process holds three quarters of a GPU's memory from its first use on, and a TPU for itself alone. The next use
    of jax here takes the devices again.
    """
    if jax.default_backend() != 'cpu':
        backend.clear_backends()


def _start_local(port: int, processes: int, process: int) -> None:
    jax.distributed.initialize(
        f'127.0.0.1:{port}',
        processes,
        process,
        cluster_detection_method='deactivate',  # in a SLURM shell, detection would leave jax one GPU only
        coordinator_bind_address=f'127.0.0.1:{port}',
        initialization_timeout=120,
    )


def _start_in_cluster() -> bool:
    """Joins the cluster that jax detects; False if there is none."""
    try:
        jax.distributed.initialize()
    except ValueError as error:
        if 'coordinator_address should be defined' in str(error):
            return False
        raise
    except RuntimeError as error:
        if 'before any JAX' in str(error):
            return False
        raise
    return True


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
