"""The processes of a run: who is there, and starting them together.

`jax.distributed` is initialised always, also for one process: it is what turns SIGTERM into a saved step.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings

import jax

from medjax.errors import UserError

# Set by launch/local.sh for each process of a run on one machine.
LOCAL = ('MEDJAX_PORT', 'MEDJAX_PROCESSES', 'MEDJAX_PROCESS')


def start() -> None:
    """Joins the processes of this run. Call it before anything asks jax for its devices; a second call does nothing.

    Processes are found in this order: the three variables of launch/local.sh; a cluster that jax knows itself (SLURM,
    Open MPI, Cloud TPU, Kubernetes); else this is the only process, its own coordinator on a free local port.
    """
    if jax.distributed.is_initialized():
        return
    # XLA on the CPU has no collectives of its own between processes.
    jax.config.update('jax_cpu_collectives_implementation', 'gloo')
    given = [name for name in LOCAL if name in os.environ]
    if given and len(given) < len(LOCAL):
        raise UserError(f'{given[0]} is set but not all of {", ".join(LOCAL)}; launch/local.sh sets the three')
    if given:
        port, processes, process = (int(os.environ[name]) for name in LOCAL)
        _start_here(port, processes, process)
    elif not _start_in_cluster():
        try:
            _start_here(free_port(), 1, 0)
        except RuntimeError as error:
            if 'before any JAX' not in str(error):
                raise
            # A notebook or a test that has computed already. One process needs nobody else.
            warnings.warn('jax was in use before the run: SIGTERM will end it without a saved step', stacklevel=2)
    jax.process_count()  # the processes meet here, before any of them can fail by itself


def _start_here(port: int, processes: int, process: int) -> None:
    jax.distributed.initialize(
        f'127.0.0.1:{port}',
        processes,
        process,
        cluster_detection_method='deactivate',  # inside a SLURM shell jax would take one GPU only
        coordinator_bind_address=f'127.0.0.1:{port}',
        initialization_timeout=120,
    )


def _start_in_cluster() -> bool:
    """Whether jax found a cluster and has joined it."""
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
    """A local TCP port that nobody listens on."""
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def is_main() -> bool:
    """Whether this process writes what one process writes: metrics, exports, health, messages."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether this is one of several processes of a run."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def shutdown() -> None:
    """Waits until all processes have come to the end of the run, and leaves it.

    In a `finally` after a failure it does nothing where there are several: they may be waiting for this one elsewhere.
    """
    failed = sys.exc_info()[0] is not None
    if jax.distributed.is_initialized() and not (failed and several()):
        jax.distributed.shutdown()
