"""All processes of a run do the same: what each has made by itself is compared before anything depends on it.

Processes that disagree would train on something that nobody asked for, or wait for each other forever. They exchange
their facts through the store of jax's coordinator and not through devices, so it works whatever differs.
"""

from __future__ import annotations

import itertools
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
from jax._src import distributed  # the store has no public name

from medjax.errors import UserError
from medjax.parallel.roll_call import difference

T = TypeVar('T')
WAIT = 600  # seconds for the slowest process, for example to open the data
_numbers = itertools.count()


def agreed(what: str, make: Callable[[], T], facts: Callable[[T], Mapping[str, Any]] = lambda _: {}) -> T:
    """What each process makes by itself. UserError on all processes if one of them cannot, or makes something else.

    All processes call it at the same point. `what` names it in messages: 'the config'. `facts` are names and plain
    values in which all have to be equal. A UserError in `make` stops all processes with its sentence.
    """
    if not (jax.distributed.is_initialized() and jax.process_count() > 1):
        return make()
    value, failure, mine = None, None, {}
    try:
        value = make()
        mine = {key: str(fact) for key, fact in facts(value).items()}
    except Exception as error:
        failure = error
    verdict = _compare(what, mine, '' if failure is None else str(failure) or type(failure).__name__)
    if failure is not None:
        raise failure
    if verdict:
        raise UserError(verdict)
    return value  # type: ignore[return-value]


def _compare(what: str, mine: Mapping[str, str], refusal: str) -> str:
    """The verdict of the main process, which compares the facts of all; '' where they are equal."""
    store, me, place = distributed.global_state.client, jax.process_index(), f'medjax/{next(_numbers)}'
    post = dict(host=socket.gethostname(), facts=mine, refusal=refusal)
    store.key_value_set(f'{place}/{me}', json.dumps(post))
    if me == 0:
        verdict = _verdict(what, store, place, post)
        store.key_value_set(f'{place}/verdict', verdict)
    else:
        verdict = store.blocking_key_value_get(f'{place}/verdict', 2000 * WAIT)
    if me == 0 and verdict:
        time.sleep(1)  # the store ends with this process; the others need the time to read it
    return verdict


def _verdict(what: str, store: Any, place: str, mine: dict[str, Any]) -> str:
    end = time.monotonic() + WAIT
    refusal = mine['refusal']
    for i in range(1, jax.process_count()):
        if refusal:
            return refusal
        try:
            left = max(int(1000 * (end - time.monotonic())), 1)
            theirs = json.loads(store.blocking_key_value_get(f'{place}/{i}', left))
        except jax.errors.JaxRuntimeError:
            return f'process {i} has not answered about {what} for {WAIT} seconds; look at its log'
        if theirs['refusal']:
            return f'process {i} on {theirs["host"]}: {theirs["refusal"]}'
        if differs := difference(mine['facts'], theirs['facts']):
            return (
                f'process 0 on {mine["host"]} and process {i} on {theirs["host"]} differ in {what}: {differs}. Start '
                'all processes with the same'
            )
    return refusal
