"""`medjax train`: a config and records -> checkpoints, exports, metrics."""

from __future__ import annotations

import argparse
from pathlib import Path

from medjax import config as configs
from medjax.parallel import runtime
from medjax.train import run


def main(argv: list[str]) -> int:
    argv, overrides = configs.split_overrides(argv)
    parser = argparse.ArgumentParser(prog='medjax train', description=__doc__)
    parser.add_argument(
        '--config', required=True, metavar='FILE|NAME', help='the recipe: a file, or the name of a shipped one, as demo'
    )
    parser.add_argument('--data', action='append', default=[], metavar='[SOURCE=]DATA', help='a folder of medjax build')
    parser.add_argument('--workdir', required=True, type=Path, metavar='RUN', help='where the run lies or shall lie')
    parser.add_argument('--config.KEY=VALUE', dest='_', help='overrides, for example --config.optim.lr=1e-3')
    args = parser.parse_args(argv)

    runtime.start()
    try:
        config, datasets = configs.load(args.config, args.data, overrides)
        return run(config, datasets, args.workdir)
    finally:
        runtime.shutdown()
