"""Schedules: pure functions of the step.

In a config a schedule is a number, a list of values by step (the last one holds on), or a named rule:

    dict(rule='cosine', start=1., end=.01, warmup=500)      # up from warmup_start, then half a cosine from start to end
    dict(rule='linear', start=.04, end=.07, steps=3_000)    # then end

Rules end at `total_steps` unless they give their own `steps`. All steps count optimiser calls of the run, from 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError, suggest
from medjax.plugins import call
from medjax.types import is_number

Schedule = Callable[[Array], Array]


def schedule(spec: Any, total_steps: int, where: str) -> Schedule:
    """The function step -> float32 value that `spec` describes; `where` names the config key in errors."""
    if isinstance(spec, Mapping):
        rest = dict(spec)
        rule = rest.pop('rule', None)
        if rule not in RULES:
            raise UserError(f'{where}: there is no rule {rule!r}{suggest(str(rule), RULES)}')
        for name, value in rest.items():
            if not is_number(value) or (name in STEPS and value < 0):
                least = ' of at least 0' if name in STEPS else ''
                raise UserError(f'{where}.{name}={value!r}: must be a number{least}')
        rest.setdefault('steps', total_steps)
        return call(RULES[rule], rest, where)
    if isinstance(spec, (list, tuple)):
        if not spec:
            raise UserError(f'{where}: a list of values by step needs at least one value')
        table = jnp.asarray(spec, jnp.float32)
        return lambda step: table[jnp.minimum(step, len(spec) - 1)]
    if not is_number(spec):
        raise UserError(f'{where}: a schedule is a number, a list by step or dict(rule=…), got {spec!r}')
    return lambda step: jnp.asarray(spec, jnp.float32)


def cosine(
    start: float, end: float, steps: int, warmup: int = 0, warmup_start: float = 0.0, frozen: int = 0
) -> Schedule:
    """0 for `frozen` steps; linear from warmup_start to start (both reached) in `warmup` steps; then, with i of n
    steps left, end + (start - end) * (1 + cos(pi i / n)) / 2; `end` from `steps` on. DINOv2's own (2304.07193)."""

    def value(step: Array) -> Array:
        t = step.astype(jnp.float32)
        rising = _line(t - frozen, warmup_start, start, warmup)
        n = max(steps - warmup - frozen, 1)
        falling = end + 0.5 * (start - end) * (1 + jnp.cos(jnp.pi * (t - frozen - warmup) / n))
        middle = jnp.where(t < frozen + warmup, rising, falling)
        return jnp.where(t < frozen, 0.0, jnp.where(t >= steps, end, middle)).astype(jnp.float32)

    return value


def linear(start: float, end: float, steps: int) -> Schedule:
    """From start at step 0 to end at step `steps` - 1, then end."""
    return lambda step: _line(step.astype(jnp.float32), start, end, steps).astype(jnp.float32)


def _line(t: Array, start: float, end: float, steps: int) -> Array:
    """numpy.linspace(start, end, steps)[t], held at its last value."""
    return start + (end - start) * jnp.clip(t / max(steps - 1, 1), 0.0, 1.0)


STEPS = ('steps', 'warmup', 'frozen')  # the parameters that count steps
RULES = {'cosine': cosine, 'linear': linear}
