"""`medjax export`: writes an export of a run again, from a checkpoint.

    medjax export RUN              # of the newest checkpoint -> RUN/exports/STEP
    medjax export RUN@2000         # of the checkpoint of this step

The export is equal to the one that the run wrote at this step, to the bit. It needs no data. The checkpoint may have
been saved on other devices.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import jax

from medjax import branch, config as configs, life
from medjax.errors import UserError
from medjax.objectives.compose import compose
from medjax.parallel import sharding
from medjax.stages import Stage, stages
from medjax.train import open_tokenizer
from medjax.training import checkpoint
from medjax.training.checkpoint import Checkpoints
from medjax.training.export import Exporter
from medjax.training.state import abstract_state, make_optimizer, state_shardings


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='medjax export', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('run', metavar='RUN[@STEP]', help='the folder of a run (--workdir of medjax train)')
    args = parser.parse_args(argv)
    run, step = _named(args.run)
    out = run / 'exports' / str(step)
    if out.exists():
        raise UserError(f'{out} is there already; if it is damaged, delete it first')
    print(f'wrote {write(run, step)}')
    return 0


def _named(spec: str) -> tuple[Path, int]:
    """The folder of a run and the step of a checkpoint in it."""
    folder, text = checkpoint.named(spec)
    if not os.path.isdir(folder):
        raise UserError(f'{spec}: there is no folder {folder}; give the --workdir of a `medjax train`')
    there = checkpoint.steps(folder / 'checkpoints')
    if not there:
        raise UserError(f'{spec}: {folder} has no checkpoint, so no export can be made of it')
    if text and not text.isdecimal():
        raise UserError(f'{spec}: {text!r} is no step; write {folder}@STEP, or {folder} for its newest checkpoint')
    step = int(text) if text else there[-1]
    if step not in there:
        raise UserError(f'{spec}: there is no checkpoint of step {step}; there are {", ".join(map(str, there))}')
    return folder, step


def write(run: Path, step: int) -> Path:
    """Writes RUN/exports/STEP from RUN/checkpoints/STEP."""
    config = ending(branch.config_of(run), step)
    stage = _stage(config, step)
    mesh = sharding.make_mesh(data=1, fsdp=-1)  # one that fits every machine; the parameters are split over all devices
    jax.set_mesh(mesh)
    objective = compose(stage.config)
    abstract = abstract_state(objective, make_optimizer(objective, stage.config['optim'], config['total_steps']))
    like = checkpoint.abstract(abstract, state_shardings(objective, abstract, mesh))
    state = Checkpoints(run / 'checkpoints', every=1, keep=2, read_only=True).restore(step, like)
    tokenizer = open_tokenizer(stage.config)
    if tokenizer is not None and tokenizer.fingerprint != config['tokenizer']['fingerprint']:
        raise UserError(
            f'{tokenizer.path} is another tokenizer than the one that {run} began with, which the export must hold; '
            'put the old file in its place (other exports of the run hold it too)'
        )
    Exporter(run, objective, stage.config, configs.fingerprint(config), tokenizer, is_main=True).write(step, state)
    return run / 'exports' / str(step)


def ending(config: configs.Config, step: int) -> configs.Config:
    """The config of a run with the `total_steps` that it had when it reached a step. No other export is deleted."""
    ends = life.of(config)['ends']
    total = next((end for begin, end in reversed(ends) if begin < step), ends[0][1])
    return configs.frozen({**config, 'total_steps': total, 'export': {**config['export'], 'keep': None}})


def _stage(config: configs.Config, step: int) -> Stage:
    """The stage whose steps ended at, or go beyond, a step."""
    plan = stages(config)
    return next((stage for stage in plan if step <= stage.end), plan[-1])
