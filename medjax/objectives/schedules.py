"""Schedules: pure functions of the step.

In a config a schedule is a number, a list of values by step (the last value stays), or a named rule:

    dict(rule='cosine', start=1., end=.01, warmup=500)      # rises in 500 steps, then half a cosine from 1 to .01
    dict(rule='linear', start=.04, end=.07, steps=3_000)    # a line from .04 to .07 in 3,000 steps, then .07

A rule ends at the run's `total_steps`, or at its own `steps` if it has them. Steps count from 0, or from the rule's
`begin`; before it, the rule has its first value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError, suggest
from medjax.plugins import call
from medjax.types import is_number

Schedule = Callable[[Array], Array]


class Range(NamedTuple):
    """The numbers that an option may have, in words and as a test."""

    words: str
    holds: Callable[[float], bool]


FINITE = Range('that is finite', math.isfinite)
POSITIVE = Range('above 0', lambda x: 0 < x < math.inf)
NOT_NEGATIVE = Range('of at least 0', lambda x: 0 <= x < math.inf)
SHARE = Range('from 0 to 1', lambda x: 0 <= x <= 1)


def number(value: Any, where: str, within: Range) -> float:
    """An option of a config that is one number; UserError for another one."""
    if not is_number(value) or not within.holds(value):
        raise UserError(f'{where}={value!r}: must be a number {within.words}')
    return value


def schedule(spec: Any, total_steps: int, where: str, within: Range = FINITE) -> Schedule:
    """The schedule that a config's `spec` describes, step -> float32 value.

    `where` is the config path in messages. UserError if one of its values is not `within` the range.
    """
    if isinstance(spec, Mapping):
        options = dict(spec)
        rule = options.pop('rule', None)
        if rule not in RULES:
            raise UserError(f'{where}: there is no rule {rule!r}{suggest(str(rule), RULES)}')
        for name, value in options.items():
            if not is_number(value) or (name in STEPS and value < 0):
                least = ' of at least 0' if name in STEPS else ''
                raise UserError(f'{where}.{name}={value!r}: must be a number{least}')
        for name, value in _values(options).items():
            number(value, f'{where}.{name}', within)
        if options.get('frozen') and not within.holds(0.0):
            raise UserError(f'{where}.frozen: its value is 0 in these steps, and must be a number {within.words}')
        options.setdefault('steps', total_steps)
        return call(RULES[rule], options, where)
    if isinstance(spec, (list, tuple)):
        if not spec:
            raise UserError(f'{where}: a list of values by step needs at least one value')
        if not all(map(is_number, spec)):
            raise UserError(f'{where}={list(spec)!r}: a list of values by step holds numbers alone')
        for i, value in enumerate(spec):
            number(value, f'{where}[{i}]', within)
        table = jnp.asarray(spec, jnp.float32)
        return lambda step: table[jnp.minimum(step, len(spec) - 1)]
    if not is_number(spec):
        raise UserError(f'{where}: a schedule is a number, a list by step or dict(rule=…), got {spec!r}')
    number(spec, where, within)
    return lambda step: jnp.asarray(spec, jnp.float32)


def _values(options: Mapping[str, Any]) -> dict[str, Any]:
    """The values that the options of a rule give it, by their names; a warm-up begins at 0 by default."""
    rising = {'warmup_start': 0.0} if options.get('warmup') else {}
    return rising | {name: value for name, value in options.items() if name not in STEPS}


def cosine(
    start: float, end: float, steps: int, warmup: int = 0, warmup_start: float = 0.0, frozen: int = 0, begin: int = 0
) -> Schedule:
    """DINOv2's schedule (arXiv 2304.07193): frozen, a linear warm-up, then half a cosine.

    1. 0 for `frozen` steps.
    2. A line from `warmup_start` to `start` over `warmup` steps; the first and the last of them have these values.
    3. end + (start - end) * (1 + cos(pi i / n)) / 2, i of the n steps after the warm-up.
    4. `end` from step `steps` on.

    Steps count from `begin`.
    """

    def value(step: Array) -> Array:
        t = _since(step, begin)
        rising = _line(t - frozen, warmup_start, start, warmup)
        n = max(steps - warmup - frozen, 1)
        falling = end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * (t - frozen - warmup) / n))
        middle = jnp.where(t < frozen + warmup, rising, falling)
        return jnp.where(t < frozen, 0.0, jnp.where(t >= steps, end, middle)).astype(jnp.float32)

    return value


def linear(start: float, end: float, steps: int, begin: int = 0) -> Schedule:
    """A line from `start` at step 0 to `end` at step `steps` - 1, then `end`. Steps count from `begin`."""
    return lambda step: _line(_since(step, begin), start, end, steps).astype(jnp.float32)


def _since(step: Array, begin: int) -> Array:
    """The number of steps since `begin`, 0 before it; float32."""
    t = step.astype(jnp.float32)
    return jnp.maximum(t - begin, 0.0) if begin else t


def _line(t: Array, start: float, end: float, steps: int) -> Array:
    """numpy.linspace(start, end, steps)[t]; its last value from then on."""
    return start + (end - start) * jnp.clip(t / max(steps - 1, 1), 0.0, 1.0)


STEPS = ('steps', 'warmup', 'frozen', 'begin')  # the parameters that count steps
RULES = {'cosine': cosine, 'linear': linear}


def is_rule(value: Any) -> bool:
    """Whether a value of a config is a named rule."""
    return isinstance(value, Mapping) and value.get('rule') in RULES


def with_ends(value: Any, steps: int, begin: int = 0) -> Any:
    """A value of a config in which every rule, at any depth, states where it begins and ends.

    A rule without `steps` gets `steps`. With `begin`, a rule without its own begins there.
    """
    if isinstance(value, Mapping):
        known = {name: with_ends(item, steps, begin) for name, item in value.items()}
        return {'steps': steps} | ({'begin': begin} if begin else {}) | known if is_rule(value) else known
    return tuple(with_ends(item, steps, begin) for item in value) if isinstance(value, (list, tuple)) else value
