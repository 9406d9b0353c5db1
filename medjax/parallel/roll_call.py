"""The roll call: all processes of a run meet at its coordinator before jax starts, so that a mistake is a sentence.

jax itself aborts with a stack trace where a process never comes or nobody answers, and does not say which one. So the
main process listens on the port that its coordinator takes afterwards. Every other process sends one line of JSON: its
number, its host, its code. When all have come, or the time is over, each gets one line back: go on, or why not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from medjax.errors import UserError

LINE = 1 << 16  # bytes; a longer line is not from medjax
SPEAKS = 5  # seconds for whoever connects to send its line
PAUSE = 0.2  # seconds between two tries to connect


@dataclasses.dataclass(frozen=True)
class Process:
    """The place of this process in a run of several."""

    coordinator: str  # HOST:PORT of the main process
    processes: int
    number: int  # 0 is the main process
    host: str = dataclasses.field(default_factory=socket.gethostname)

    def __post_init__(self) -> None:
        host, _, port = self.coordinator.rpartition(':')
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UserError(f'the coordinator {self.coordinator!r} is no HOST:PORT, such as node01:20000')
        if not 0 <= self.number < self.processes:
            raise UserError(f'process {self.number} of {self.processes}: the numbers of processes are 0 to N - 1')

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(':')
        return host.strip('[]'), int(port)

    @property
    def is_local(self) -> bool:
        """Whether all processes are on this machine."""
        return self.address[0] in ('127.0.0.1', 'localhost')


def answer_roll_call(me: Process, code: Mapping[str, Any], seconds: float) -> None:
    """Returns when all processes of the run have met. UserError on all that came if one never comes, or differs.

    `code`: names and versions of what runs here, equal on all processes.
    """
    mine = dict(number=me.number, processes=me.processes, host=me.host, code=dict(code))
    (_lead if me.number == 0 else _follow)(me, mine, seconds)


def difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """'optim.lr (0.1 and 0.2), seed (0 and 1)': in what two flat dicts differ, at most four; '' for equal ones."""
    nothing = 'nothing'
    keys = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key, nothing) != theirs.get(key, nothing)]
    shown = ', '.join(f'{key} ({mine.get(key, nothing)} and {theirs.get(key, nothing)})' for key in keys[:4])
    return shown + (f' and {len(keys) - 4} more' if len(keys) > 4 else '')


def _lead(me: Process, mine: dict[str, Any], seconds: float) -> None:
    """The main process: waits for the others and answers all of them."""
    end, came, refusal = time.monotonic() + seconds, {0: mine}, ''
    with contextlib.ExitStack() as open_until_answered:
        server = open_until_answered.enter_context(_listening(me))
        connections = []
        while len(came) < me.processes:
            server.settimeout(max(end - time.monotonic(), 0.001))
            try:
                connection, _ = server.accept()
            except TimeoutError:
                refusal = refusal or _missing(me, came, seconds)
                break
            open_until_answered.enter_context(connection)
            connection.settimeout(SPEAKS)
            theirs = _read(connection)
            if theirs is None or not theirs.keys() >= mine.keys():
                continue  # a scan of ports
            connections.append(connection)
            if why := _refusal(mine, theirs, came):
                refusal, end = refusal or why, min(end, time.monotonic() + SPEAKS)  # others may come and hear it
            came.setdefault(theirs['number'], theirs)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.sendall(_line(dict(refusal=refusal)))
    if refusal:
        raise UserError(refusal)


def _follow(me: Process, mine: dict[str, Any], seconds: float) -> None:
    """Every other process: tells the main one that it is there, and waits for the answer."""
    end, why = time.monotonic() + seconds, 'nothing was tried'
    while (left := end - time.monotonic()) > 0:
        try:
            with socket.create_connection(me.address, timeout=min(left, 10)) as connection:
                connection.sendall(_line(mine))
                connection.settimeout(left + 2 * SPEAKS)
                answer = _read(connection)
        except OSError as error:
            why = error.strerror or str(error)
        else:
            if answer is not None and 'refusal' in answer:
                if answer['refusal']:
                    raise UserError(answer['refusal'])
                return
            why = 'something else than the main process of this run answers there'
        time.sleep(PAUSE)
    raise UserError(
        f'process {me.number} of {me.processes} on {me.host} cannot reach the coordinator {me.coordinator} after '
        f'{seconds:.0f} seconds: {why}. Is that the address of process 0, is process 0 running, and does a firewall '
        'let the port through?'
    )


def _listening(me: Process) -> socket.socket:
    port = me.address[1]
    try:
        if me.is_local:
            return socket.create_server(('127.0.0.1', port))
        if socket.has_dualstack_ipv6():
            return socket.create_server(('::', port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(('', port))
    except OSError as error:
        raise UserError(
            f'process 0 on {me.host} cannot listen on port {port} of the coordinator {me.coordinator}: '
            f'{error.strerror}. Another run may hold it; choose another port'
        ) from None


def _refusal(mine: dict[str, Any], theirs: dict[str, Any], came: Mapping[int, dict[str, Any]]) -> str:
    """Why the process that just came cannot take part; '' where it can."""
    number, host = theirs['number'], theirs['host']
    if theirs['processes'] != mine['processes']:
        return (
            f'process {number} on {host} belongs to {theirs["processes"]} processes, and process 0 on {mine["host"]} '
            f'to {mine["processes"]}; all need the same number'
        )
    if number in came:
        return f'there are two processes {number}: one on {came[number]["host"]} and one on {host}'
    if differs := difference(mine['code'], theirs['code']):
        return (
            f'process 0 on {mine["host"]} and process {number} on {host} differ in {differs}. Install the same code on '
            'all hosts'
        )
    return ''


def _missing(me: Process, came: Mapping[int, dict[str, Any]], seconds: float) -> str:
    hosts = _expected_hosts(me.processes)
    names = [
        f'process {i}' + (f' on {hosts[i]}' if hosts else '') for i in range(me.processes) if i not in came
    ]  # fmt: skip
    there = ', '.join(f'{i} on {came[i]["host"]}' for i in sorted(came)[:8])
    shown = ', '.join(names[:8]) + (f' and {len(names) - 8} more' if len(names) > 8 else '')
    return (
        f'{shown} never came: {len(came)} of {me.processes} processes met at {me.coordinator} within {seconds:.0f} '
        f'seconds ({there}{", …" if len(came) > 8 else ""}). Look at the log of those that are missing'
    )


def _expected_hosts(processes: int) -> list[str] | None:
    """The host of each process as the cluster lists them; None where it has no list. SLURM fills host after host."""
    hosts: list[str] = []
    if names := os.environ.get('TPU_WORKER_HOSTNAMES'):
        hosts = names.split(',')
    elif nodes := os.environ.get('SLURM_STEP_NODELIST'):
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            listed = ['scontrol', 'show', 'hostnames', nodes]
            hosts = subprocess.run(listed, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    if not hosts or processes % len(hosts):
        return None
    return [host for host in hosts for _ in range(processes // len(hosts))]


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode() + b'\n'


def _read(connection: socket.socket) -> dict[str, Any] | None:
    """One line of JSON with a dict; None for anything else."""
    try:
        with connection.makefile('rb') as file:
            value = json.loads(file.readline(LINE))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
