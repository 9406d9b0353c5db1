"""The roll call of a run and the agreement of its processes, with threads in place of hosts."""

from __future__ import annotations

import socket
import threading
import time
from types import SimpleNamespace

import pytest

from medjax.errors import UserError
from medjax.parallel import agreement, roll_call
from medjax.parallel.roll_call import Process, answer_roll_call, difference

CODE = {'medjax': '1', 'jax': '2'}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def called(*processes: Process, codes: dict[int, dict] | None = None, seconds: float = 20) -> list[str]:
    """What each process is told; '' if it may go on. The place in `processes` chooses its code."""
    told = [''] * len(processes)

    def one(i: int) -> None:
        try:
            answer_roll_call(processes[i], (codes or {}).get(i, CODE), seconds)
        except UserError as error:
            told[i] = str(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(processes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return told


def hosts(count: int, processes: int | None = None) -> list[Process]:
    at = f'127.0.0.1:{free_port()}'
    return [Process(at, processes or count, i, f'node{i}') for i in range(count)]


def test_all_come():
    assert called(*hosts(4)) == [''] * 4


def test_one_that_never_comes_is_named_on_all(monkeypatch):
    monkeypatch.setenv('TPU_WORKER_HOSTNAMES', 'a,b,c,d')
    zero, _, two, three = hosts(4)
    told = called(zero, two, three, seconds=2)
    assert len(set(told)) == 1
    assert 'process 1 on b never came: 3 of 4 processes met' in told[0] and '2 on node2' in told[0]


def test_a_wrong_address_is_named():
    (told,) = called(Process(f'127.0.0.1:{free_port()}', 2, 1, 'node1'), seconds=1)
    assert 'process 1 of 2 on node1 cannot reach the coordinator 127.0.0.1:' in told and 'refused' in told, told
    (told,) = called(Process('no-such-host.invalid:9', 2, 1, 'node1'), seconds=1)
    assert 'cannot reach the coordinator no-such-host.invalid:9' in told


def test_something_else_answers_there():
    with socket.create_server(('127.0.0.1', 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b'SSH-2.0\r\n')

        threading.Thread(target=answer, daemon=True).start()
        (told,) = called(Process(f'127.0.0.1:{server.getsockname()[1]}', 2, 1), seconds=1)
    assert 'something else than the main process' in told


def test_a_scan_of_ports_does_no_harm(monkeypatch):
    monkeypatch.setattr(roll_call, 'SPEAKS', 0.2)
    two = hosts(2)

    def scan() -> None:
        for content in (b'', b'GET / HTTP/1.0\r\n\r\n', b'[1]\n', b'{"number": 1}\n'):
            while True:
                try:
                    with socket.create_connection(two[0].address, timeout=5) as connection:
                        connection.sendall(content)
                        break
                except ConnectionRefusedError:
                    time.sleep(0.01)

    scanner = threading.Thread(target=scan)
    scanner.start()
    told: list[list[str]] = []
    main = threading.Thread(target=lambda: told.append(called(two[0])))
    main.start()
    scanner.join(30)
    assert called(two[1]) == ['']
    main.join(30)
    assert told == [['']]


def test_a_port_that_is_taken():
    with socket.create_server(('127.0.0.1', 0)) as server:
        (told,) = called(Process(f'127.0.0.1:{server.getsockname()[1]}', 2, 0))
    assert 'cannot listen on port' in told and 'choose another port' in told


def test_other_code_another_count_or_the_same_number_twice(monkeypatch):
    monkeypatch.setattr(roll_call, 'SPEAKS', 0.5)
    told = called(*hosts(2), codes={1: {'medjax': '1', 'jax': '3'}})
    assert told[0] == told[1] != '' and 'process 1 on node1 differ in jax (2 and 3)' in told[0]
    zero, one = hosts(2)
    told = called(zero, Process(one.coordinator, 3, 1, 'node1'))
    assert told[0] == told[1] != '' and 'process 1 on node1 belongs to 3 processes' in told[0]
    zero, one, _ = hosts(3)
    told = called(zero, one, Process(one.coordinator, 3, 1, 'twin'))
    assert told[0] == told[1] == told[2] != '' and 'there are two processes 1' in told[0]


@pytest.mark.parametrize(
    ('coordinator', 'number'), [('node', 0), (':1', 0), ('node:x', 0), ('node:70000', 0), ('a:1', 2)]
)
def test_a_place_that_cannot_be(coordinator, number):
    with pytest.raises(UserError, match=r'HOST:PORT|numbers of processes'):
        Process(coordinator, 2, number)


def test_differences_are_few_and_sorted():
    assert difference({'a': '1', 'b': '2'}, {'b': '3'}) == 'a (1 and nothing), b (2 and 3)'
    many = {str(i): '0' for i in range(6)}
    assert difference(many, {}).endswith('3 (0 and nothing) and 2 more')
    assert difference(many, dict(many)) == ''


class Store:
    """jax's store of keys, as threads see it."""

    def __init__(self) -> None:
        self.values, self.changed = {}, threading.Condition()

    def key_value_set(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise agreement.jax.errors.JaxRuntimeError('DEADLINE_EXCEEDED')
            return self.values[key]


@pytest.fixture
def processes(monkeypatch):
    """Runs one function per process, and gives what each returns or raises."""

    def together(*makes, facts=lambda value: {'seed': value}):
        here, results = threading.local(), [None] * len(makes)
        numbers = [iter(range(9)) for _ in makes]
        monkeypatch.setattr(agreement.distributed, 'global_state', SimpleNamespace(client=Store()))
        monkeypatch.setattr(agreement.jax.distributed, 'is_initialized', lambda: True)
        monkeypatch.setattr(agreement.jax, 'process_count', lambda: len(makes))
        monkeypatch.setattr(agreement.jax, 'process_index', lambda: here.i)
        monkeypatch.setattr(agreement, 'next', lambda _: next(numbers[here.i]), raising=False)

        def one(i: int) -> None:
            here.i = i
            try:
                results[i] = agreement.agreed('the config', makes[i], facts)
            except Exception as error:
                results[i] = error

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(makes))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    return together


def test_processes_that_have_made_the_same_go_on(processes):
    assert processes(lambda: 7, lambda: 7, lambda: 7) == [7, 7, 7]


def test_processes_that_differ_stop_with_the_difference(processes):
    for error in processes(lambda: 7, lambda: 7, lambda: 8):
        assert isinstance(error, UserError) and 'differ in the config: seed (7 and 8)' in str(error)


@pytest.mark.parametrize('error', [UserError('no such file'), OSError('no such file')])
def test_the_mistake_of_one_stops_all(processes, error):
    def fail():
        raise error

    first, second = processes(lambda: 7, fail)
    assert second is error and isinstance(first, UserError)
    assert 'process 1 on' in str(first) and 'no such file' in str(first)
    first, second = processes(fail, lambda: 7)
    assert first is error and isinstance(second, UserError) and 'no such file' in str(second)


def test_one_that_does_not_answer(processes, monkeypatch):
    monkeypatch.setattr(agreement, 'WAIT', 0.3)
    first, _ = processes(lambda: 7, lambda: time.sleep(1.5))
    assert 'process 1 has not answered about the config' in str(first)
