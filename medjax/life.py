"""What happened to a run since it began: the entry `life` of its config.json.

    {"parent": {"run": "/runs/a", "step": 2000, …}, "ends": [[0, 5000], [4200, 9000]]}

`parent` is that of a branch (`branch.Parent.described`), else null. `ends` holds [step, total_steps]: from this step
on, the run was to end there. A run that was never lengthened has one end.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from medjax import config as configs
from medjax.errors import UserError
from medjax.objectives.schedules import schedule
from medjax.stages import at_step, stages

Life = dict[str, Any]


def begun(config: Mapping[str, Any], step: int = 0, parent: Mapping[str, Any] | None = None) -> Life:
    """The life of a run that begins at a step."""
    return dict(parent=parent, ends=[[step, config['total_steps']]])


def of(config: Mapping[str, Any]) -> Life:
    """The life in a config.json; runs may be older than this entry."""
    life = config.get('life') or begun(config)
    return dict(parent=life['parent'], ends=[list(end) for end in life['ends']])


def check_end(folder: Path, before: Mapping[str, Any], config: Mapping[str, Any], done: int) -> tuple[str, ...]:
    """Sentences about another `total_steps` for a run with `done` steps; UserError where it cannot end there.

    A schedule that ends with the run changes from this step on, if it has not ended. Once it has ended, its learning
    rate is at its lowest, and a longer run would be another one than a run that was long from the start.
    """
    old, new = before['total_steps'], config['total_steps']
    if new == old:
        last = of(before)['ends'][-1][0]
        return () if last <= done else (f'{folder} goes on from step {done:,}, and ends at step {new:,} from there on',)
    if new < done:
        raise UserError(f'total_steps={new:,}: {folder} has {done:,} steps already; give at least that number')
    shaped = configs.ends_with_run(before)
    if shaped and done >= old:
        raise UserError(
            f'{folder} cannot be lengthened to {new:,} steps: {shaped[0]} ended with the run at step {old:,}. Branch '
            f'from it: medjax train --from {folder} --workdir OTHER --config.total_steps={new}, which begins a new '
            'schedule there'
        )
    verb = 'lengthened' if new > old else 'shortened'
    notes = [f'{folder} is {verb} at step {done:,}: it ends at step {new:,}, not {old:,}']
    if shaped:
        notes.append(
            f'{", ".join(shaped)} now end{"s" if len(shaped) == 1 else ""} there too, so values jump at step {done:,}: '
            f'the learning rate from {rate(before, done):.3g} to {rate(config, done):.3g}'
        )
    return tuple(notes)


def rate(config: Mapping[str, Any], step: int) -> float:
    """The learning rate of a step."""
    found = at_step(stages(configs.frozen(config)), step).config
    optim = found['optim']
    factor = schedule(optim.get('schedule', 1.0), found['total_steps'], 'optim.schedule')
    return optim['lr'] * float(factor(jnp.int32(step)))


def lengthened(before: Mapping[str, Any], config: Mapping[str, Any], done: int) -> Life:
    """The life of a run that goes on from step `done`, perhaps with another `total_steps`.

    Its newest checkpoints may have been damaged, so that it goes on from before an earlier change.
    """
    life = of(before)
    first, *later = life['ends']
    life['ends'] = [first, *(end for end in later if end[0] <= done)]
    if config['total_steps'] != life['ends'][-1][1]:
        life['ends'].append([done, config['total_steps']])
    return life
