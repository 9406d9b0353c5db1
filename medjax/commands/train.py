"""`medjax train`: a config and records -> checkpoints, exports, metrics."""

from __future__ import annotations

import argparse
from pathlib import Path

from medjax import branch as branches, config as configs, folder as folders
from medjax.errors import UserError
from medjax.parallel import runtime
from medjax.train import run


def main(argv: list[str]) -> int:
    argv, overrides = configs.split_overrides(argv)
    parser = argparse.ArgumentParser(prog='medjax train', description=__doc__)
    parser.add_argument(
        '--config', metavar='FILE|NAME', help='the recipe: a file, or the name of a shipped one, as demo'
    )
    parser.add_argument(
        '--from', dest='parent', metavar='RUN[@STEP]',
        help='begin with the state of another run; without --config and --data, with its config and data too',
    )  # fmt: skip
    parts = ', '.join(branches.PARTS)
    parser.add_argument(
        '--keep', metavar='PART,…', help=f'what --from takes over: some of {parts}, or modules as towers/image'
    )
    parser.add_argument('--data', action='append', default=[], metavar='[SOURCE=]DATA', help='a folder of medjax build')
    parser.add_argument('--workdir', required=True, type=Path, metavar='RUN', help='where the run lies or shall lie')
    parser.add_argument('--config.KEY=VALUE', dest='_', help='overrides, for example --config.optim.lr=1e-3')
    args = parser.parse_args(argv)
    if args.config is None and args.parent is None:
        parser.error('--config FILE|NAME says what to train; --from RUN trains on from another run')
    if args.keep is not None and args.parent is None:
        parser.error('--keep says what --from takes over; it needs --from RUN')

    runtime.start()
    try:
        if args.parent is None:
            before = folders.read_config(args.workdir)
            return run(*configs.load(args.config, args.data, overrides, before), args.workdir)
        branch, config, datasets = _branch(args, overrides)
        return run(config, datasets, args.workdir, branch)
    finally:
        runtime.shutdown()


def _branch(args: argparse.Namespace, overrides: list[str]) -> tuple[branches.Branch | None, configs.Config, dict]:
    """The beginning of a branch, its config and its data. A branch that has begun does not need its parent."""
    given = [item for item in overrides if item.startswith('init_from')]
    if given:
        raise UserError(
            f'--config.{given[0]}: with --from, the weights are those of {args.parent}; leave one of them out'
        )
    keep = None if args.keep is None else tuple(name.strip() for name in args.keep.split(',') if name.strip())
    own = folders.read_config(args.workdir)
    parent = branches.parent(args.parent) if own is None else branches.again(args.workdir, args.parent, keep)
    if args.config is not None:
        config, datasets = configs.load(args.config, args.data, overrides)
    else:  # without a checkpoint of its own it begins as this command says; the run in the folder must be the same
        config, datasets = configs.load_run(own if parent is None else parent.config, args.data, overrides)
    return None if parent is None else branches.Branch(parent, keep), config, datasets
