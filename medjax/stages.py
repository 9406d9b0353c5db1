"""Stages: a recipe that changes at some steps, as low and then high resolution.

    stages=[dict(at=9_000, change={'views.global.size': 518, 'optim.lr': 1e-5})]

From step `at` on, the keys in `change` have these values, until the end of the run or until a later stage changes them
again. The first stage is the recipe itself. All stages have one state: towers, heads, teachers and the parameters of
terms are the same, so a run goes on over a border as over any other step.

A key takes the values that it takes in a recipe: where the recipe has a number, a stage may have a list or a rule. A
named rule in `change`, as a schedule of the learning rate, begins at the stage and ends with it. Rules outside of
`change` go on: they run over the whole run. A list of values by step counts from the first step of the run, in a stage
too. Data, seed, what is written and when, and the length of the run are one for all stages.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from medjax import config as configs
from medjax.errors import UserError, suggest
from medjax.objectives.schedules import with_ends
from medjax.overrides import put
from medjax.types import is_whole

# Sections that may differ between stages.
CHANGEABLE = (
    'batch_size',
    'data',
    'heads',
    'masks',
    'micro_batches',
    'optim',
    'rows_per_group',
    'teachers',
    'terms',
    'towers',
    'views',
)


class Stage(NamedTuple):
    """Some steps of a run with one config."""

    begin: int  # the first step
    end: int  # the step after the last
    config: configs.Config  # without `stages`


def stages(config: configs.Config) -> tuple[Stage, ...]:
    """The stages of a resolved config, in their order. UserError by key, as 'stages.0.change.optim.lr'."""
    total, entries = config['total_steps'], config.get('stages') or ()
    begins = [0, *(_begin(entry, f'stages.{i}', total) for i, entry in enumerate(entries))]
    for i, (one, other) in enumerate(itertools.pairwise(begins)):
        if other <= one:
            raise UserError(f'stages.{i}.at={other}: stages stand in the order of their steps, each after {one}')
    now = configs.thawed({name: value for name, value in config.items() if name != 'stages'})
    found = []
    for i, (begin, end) in enumerate(zip(begins, [*begins[1:], total])):
        for key, value in entries[i - 1]['change'].items() if i else ():
            _change(now, f'stages.{i - 1}', key, with_ends(value, end - begin, begin))
        changed = entries[i - 1]['change'] if i else ()
        if len(now.data) == 1 and 'batch_size' in changed and not any(key.startswith('data.') for key in changed):
            next(iter(now.data.values())).rows = now.batch_size
        try:
            found.append(Stage(begin, end, configs.check(configs.frozen(now))))
        except UserError as error:
            raise UserError(f'stages.{i - 1}: {error}') from None
    return tuple(found)


def _begin(entry: Any, where: str, total: int) -> int:
    """The first step of a stage, after a look at the whole entry."""
    if not isinstance(entry, Mapping) or set(entry) != {'at', 'change'}:
        raise UserError(f"{where}={entry!r}: must be a dict, as dict(at=1_000, change={{'optim.lr': 1e-5}})")
    at, change = entry['at'], entry['change']
    if not is_whole(at) or not 0 < at < total:
        raise UserError(f'{where}.at={at!r}: must be a step between 0 and total_steps={total}')
    if not isinstance(change, Mapping) or not change:
        raise UserError(f"{where}.change={change!r}: must be a dict of keys and values, as {{'optim.lr': 1e-5}}")
    return at


def _change(config: Any, where: str, key: str, value: Any) -> None:
    if (section := key.partition('.')[0]) not in CHANGEABLE:
        raise UserError(
            f'{where}.change: {key!r} is one for all stages; what may differ lies in {", ".join(CHANGEABLE)}'
            if section in config
            else f'{where}.change: there is no key {key!r}{suggest(section, CHANGEABLE)}'
        )
    if key == 'data':
        raise UserError(f"{where}.change: 'data' is changed by key, as data.{next(iter(config.data))}.rows")
    try:
        put(config, key, value, repr(value))
    except UserError as error:
        raise UserError(str(error).replace('--config.', f'{where}.change.')) from None


def at_step(found: tuple[Stage, ...], step: int) -> Stage:
    """The stage of a step; the last one for the step at which the run ends."""
    return next((stage for stage in found if step < stage.end), found[-1])
