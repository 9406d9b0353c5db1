"""`medjax config`: print the resolved config of a recipe or run, or the difference of two.

    medjax config demo --config.optim.lr=1e-3        # as JSON, with every default and override filled in
    medjax config demo --data data/phantom           # and with the values that depend on the data
    medjax config runs/a runs/b                      # key, value in a, value in b; exit code 1 if they differ

Without --data, values that depend on the data are null. Mistakes are those that `medjax train` would find before it
reads any image.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax import config as configs, recipes
from medjax.errors import UserError
from medjax.stages import stages
from medjax.training.rehearsal import rehearse, without_data
from medjax.training.state import make_optimizer
from medjax.training.step import make_step

ABSENT = '-'  # in a table: the config does not have the key. No JSON value is written so
WIDTH = 100  # letters of a line of JSON


def main(argv: list[str]) -> int:
    argv, overrides = configs.split_overrides(argv)
    args = _parser().parse_args(argv)
    names = [args.config] if args.other is None else [args.config, args.other]
    runs = [_run_file(name) for name in names]
    if all(runs) and (args.data or overrides):
        raise UserError(f'--data and --config.KEY=VALUE apply to recipes, but {" and ".join(names)} already ran')
    resolved = [
        configs.load_json(run) if run else _recipe(name, args.data, overrides) for name, run in zip(names, runs)
    ]
    if args.other is None:
        print(pretty(resolved[0]))
        return 0
    rows = difference(*resolved)
    if rows:
        print('\n'.join(_table([('key', *names), *rows])))
        if configs.fingerprint(resolved[0]) == configs.fingerprint(resolved[1]):
            print('None of these keys changes what a step computes.')
    return 1 if rows else 0


def pretty(value: Any, key: str = '', indent: str = '') -> str:
    """`value` as JSON, behind its key if it has one. A list or dict that fits into a line stays in one."""
    start = f'{indent}{json.dumps(key)}: ' if key else indent
    line = start + json.dumps(value, ensure_ascii=False)
    if len(line) < WIDTH or not value or not isinstance(value, (Mapping, list, tuple)):
        return line
    if isinstance(value, Mapping):
        items, brackets = [pretty(item, name, indent + '  ') for name, item in value.items()], '{}'
    else:
        items, brackets = [pretty(item, '', indent + '  ') for item in value], '[]'
    return f'{start}{brackets[0]}\n' + ',\n'.join(items) + f'\n{indent}{brackets[1]}'


def difference(*given: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The dotted keys in which configs differ, with all values as JSON: [('optim.lr', '0.001', '0.002')]."""
    values = [_leaves(config) for config in given]
    keys = sorted({key for one in values for key in one}, key=_by_number)
    rows = [(key, *(one.get(key, ABSENT) for one in values)) for key in keys]
    return [row for row in rows if len(set(row[1:])) > 1]


def _leaves(value: Any, key: str = '') -> dict[str, str]:
    """Dotted key -> value as JSON. Empty dicts and lists are values."""
    if isinstance(value, (Mapping, list, tuple)) and value:
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {k: v for name, item in items for k, v in _leaves(item, f'{key}.{name}' if key else str(name)).items()}
    return {key: json.dumps(value, ensure_ascii=False)}


def _by_number(key: str) -> list[tuple[int, int, str]]:
    """Sorts 'terms.10' behind 'terms.9'."""
    return [(0, int(name), '') if name.isdecimal() else (1, 0, name) for name in key.split('.')]


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of cells as lines with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _run_file(name: str) -> Path | None:
    """The config.json of a run, or None if `name` means a recipe."""
    path = Path(name).expanduser()
    if path.is_file():
        return path if path.suffix == '.json' else None
    file = path / 'config.json'
    return file if file.is_file() else None


def _recipe(name: str, data: Sequence[str], overrides: Sequence[str]) -> configs.Config:
    if data:
        return _built(configs.load(name, data, overrides)[0])
    if Path(name).expanduser().is_dir() and name not in recipes.shipped():
        raise UserError(f'{name}: this folder has no config.json, so it is not a run (--workdir of medjax train)')
    return _built(configs.check(configs.resolve(configs.read(name, overrides), {})))


def _built(config: configs.Config) -> configs.Config:
    """The config itself, after all its builders took it: a UserError here is one that `medjax train` would give."""
    for stage in stages(config):
        given, objective, make_views = without_data(stage.config)
        optimizer = make_optimizer(objective, stage.config['optim'], config['total_steps'])
        make_step(objective, optimizer, make_views, stage.config['micro_batches'])
        rehearse(objective, make_views, given)
    return config


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='medjax config',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    named = 'a recipe (a file, or the name of a shipped one, as demo), or the folder of a run'
    parser.add_argument('config', metavar='RECIPE|RUN', help=named)
    parser.add_argument('other', metavar='RECIPE|RUN', nargs='?', help='print in what this one differs from the first')
    parser.add_argument('--data', action='append', default=[], metavar='[SOURCE=]DATA', help='a folder of medjax build')
    parser.add_argument('--config.KEY=VALUE', dest='_', help='overrides, for example --config.optim.lr=1e-3')
    return parser
