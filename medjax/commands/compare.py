"""`medjax compare`: runs side by side on one HTML page, and as a table in Markdown.

    medjax compare runs/a runs/b runs/c                   # writes compare.html
    medjax compare runs/a runs/b --out comparison.html

The page shows the health, progress and history of each run, their results with intervals, their curves, and the
settings in which they differ. It needs no network. A run may lack files, or may be in training; the page says so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medjax import config as configs
from medjax.commands.config import difference
from medjax.errors import UserError
from medjax.probes import tables
from medjax.reports import base, compare_page, run_files
from medjax.reports.compare_page import Differences


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='medjax compare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'runs', nargs='+', metavar='RUN', help='two or more folders of runs (--workdir of medjax train)'
    )
    parser.add_argument('--out', default='compare.html', metavar='FILE', help='the page (default: %(default)s)')
    args = parser.parse_args(argv)

    out = base.target('--out', args.out)
    places = different(args.runs)
    if len(places) < 2:
        raise UserError(
            f'there is one run, {args.runs[0]}, and nothing to compare it with; name a second one, or see it alone: '
            f'medjax report --run {args.runs[0]}'
        )
    read = [run_files.read_run(place, '') for place in tqdm(places, 'reading', unit='run', disable=None, leave=False)]
    runs = dict(zip(names([run.path for run in read]), read, strict=True))
    differences = compare_configs([run.config for run in read])
    print(f'drawing the curves of {len(runs)} runs …', file=sys.stderr, flush=True)
    html = compare_page.render(runs, differences)

    base.write(out, html)
    for name, run in runs.items():
        for note in compare_page.notes(run):
            print(f'{name}: {note}', file=sys.stderr)
    print(tables.markdown(compare_page.summary(runs)))
    print(f'\n{args.out}: {len(html) / 1e6:.1f} MB')
    return 0


def different(given: Sequence[str]) -> list[str]:
    """The folders without those that were named before, by whatever path; says what is left out."""
    found: dict[Path, str] = {}
    for run in given:
        place = Path(os.path.expanduser(run)).resolve()
        if place in found:
            print(f'medjax: {run} is the same folder as {found[place]}, and is shown once', file=sys.stderr)
        found.setdefault(place, os.path.expanduser(run))
    return list(found.values())


def names(paths: Sequence[Path]) -> list[str]:
    """The name of each folder, with as many folders above it as tell it from the others: 'lr/a' and 'wd/a'."""
    found = []
    for path in paths:
        others = [other for other in paths if other != path]
        parts = next(n for n in range(1, len(path.parts) + 1) if all(o.parts[-n:] != path.parts[-n:] for o in others))
        found.append('/'.join(path.parts[-parts:]))
    return found


def compare_configs(given: Sequence[Mapping[str, Any]]) -> Differences:
    """The values in which configs differ, by whether they change what a step computes."""
    rows = difference(*({key: value for key, value in config.items() if key != 'life'} for config in given))
    if not all('total_steps' in config for config in given):
        return Differences(rows, (), 'A config.json is not whole, so what changes no number is not told apart.')
    frozen = [configs.frozen(config) for config in given]
    count = {key for config in frozen[1:] for key in configs.difference(frozen[0], config)}
    if any(configs.ends_with_run(config) for config in frozen):
        count.add('total_steps')
    return Differences([row for row in rows if row[0] in count], [row for row in rows if row[0] not in count], note='')
