"""`medjax train`: a config and records -> checkpoints, exports, metrics."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from medjax import branch as branches, config as configs, folder as folders
from medjax.data import records
from medjax.errors import UserError
from medjax.parallel import runtime
from medjax.parallel.agreement import agreed
from medjax.train import run
from medjax.training import profile as profiles


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
    parser.add_argument('--profile', metavar='FIRST:LAST', help='record these steps into RUN/profile, as 100:105')
    parser.add_argument('--config.KEY=VALUE', dest='_', help='overrides, for example --config.optim.lr=1e-3')
    args = parser.parse_args(argv)
    if args.config is None and args.parent is None:
        parser.error('--config FILE|NAME says what to train; --from RUN trains on from another run')
    if args.keep is not None and args.parent is None:
        parser.error('--keep says what --from takes over; it needs --from RUN')
    profile = None if args.profile is None else profiles.parse(args.profile)

    runtime.start()
    try:
        branch, config, datasets = agreed('config and data', lambda: _inputs(args, overrides), _facts)
        return run(config, datasets, args.workdir, branch, profile)
    finally:
        runtime.shutdown()


def _inputs(
    args: argparse.Namespace, overrides: list[str]
) -> tuple[branches.Branch | None, configs.Config, dict[str, records.DataSet]]:
    """The beginning of a branch, the config, and the data sets."""
    if args.parent is not None:
        return _branch(args, overrides)
    before = folders.read_config(args.workdir)
    return None, *configs.load(args.config, args.data, overrides, before)


def _facts(inputs: tuple[branches.Branch | None, configs.Config, dict[str, records.DataSet]]) -> dict[str, Any]:
    """In what all processes of a run are equal. Paths may differ: each host may have a copy of the data."""
    branch, config, datasets = inputs
    tokenizer = {key: value for key, value in config['tokenizer'].items() if key != 'path'}
    facts = configs.leaves({**config, 'tokenizer': tokenizer, 'data_paths': None})
    for source, identity in folders.identities(datasets).items():
        facts |= {f'the data {source}': identity['fingerprint'], f'the id key of the data {source}': identity['key']}
    return facts if branch is None else facts | {'the step of --from': branch.parent.step, '--keep': branch.keep}


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
