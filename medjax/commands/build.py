"""`medjax build <kind>`: a source's files become a data set.

    medjax build table DIR --out DATA [--labels a,b,category] [--size 256]
    medjax build npz FILE --out DATA
    medjax build phantom --records 2000 --out DATA
    medjax build table DIR --out DATA --beam='--runner=FlinkRunner --flink_master=HOST:8081'

A kind is a module of medjax.data.sources, or the user's own: `medjax build mypkg.mysource …`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import textwrap
import warnings
from collections.abc import Mapping
from typing import Any

from medjax.data import records, sources
from medjax.data.builder import beam, npz_export, workers, write
from medjax.data.releases import published_splits, tables
from medjax.data.types import Source
from medjax.errors import UserError
from medjax.plugins import find, names

LISTED = 20  # drops that are printed; all of them are in drops.csv


def main(argv: list[str]) -> int:
    """Reads the source, writes the data set, says what is in it and what was set aside."""
    if not argv or argv[0].startswith('-'):
        print(f'{__doc__.strip()}\n\n{_kinds()}\n\nmedjax build <kind> --help tells what a kind takes.')
        return 0 if argv and argv[0] in ('-h', '--help') else 2
    kind, *rest = argv
    module = find(kind, sources.__name__, 'build', 'kind of source', 'source')
    options = vars(_parser(kind, module).parse_args(rest))
    out, as_npz, overwrite, stratify, on_beam = (
        options.pop(name) for name in ('out', 'npz', 'overwrite', 'stratify', 'beam')
    )
    if not out:
        raise UserError(f'build {kind}: say where to: --out DATA')
    if (size := options.get('size')) is not None and size < 1:
        raise UserError(f'--size {size}: the longer side must have at least one pixel')

    if as_npz:
        npz_export.writable(as_npz)

    again = functools.partial(make, kind, options)
    source = again()
    labels = [name for name in stratify.split(',') if name]
    run = workers.run if on_beam is None else functools.partial(beam.run, on_beam)
    summary = write.write(source, out, overwrite, labels, again, run)
    print('\n'.join(_told(out, summary, source.namespace)))
    if as_npz:
        npz_export.write(records.open(out), as_npz)
        print(f'{out} -> {as_npz}')
    return 0


def make(kind: str, options: Mapping[str, Any]) -> Source:
    """The source of a kind; a process of the build makes it once more."""
    warnings.filterwarnings('ignore', module='pydicom')  # its warnings quote the files' own fields
    module = find(kind, sources.__name__, 'build', 'kind of source', 'source')
    lists = {'split': options['split']} if hasattr(module, 'SPLITS') else {}
    with tables.recorded_reads() as reads:
        source = module.source(**{name: value for name, value in options.items() if name != 'split'}, **lists)
    source = source._replace(stamp=json.dumps([kind, dict(options), reads, source.stamp], default=str))
    if options['split'] == 'drawn':
        source = source._replace(entries=[entry._replace(split=None) for entry in source.entries], splits='')
    return source


def _kinds() -> str:
    """Every kind with the first line of what it is, its licence and what its folder holds."""
    told = []
    for name in names(sources.__name__):
        module = find(name, sources.__name__, 'build', 'kind of source', 'source')
        license, layout = getattr(module, 'LICENSE', ''), getattr(module, 'LAYOUT', '')
        lines = [(module.__doc__ or '').strip().split('\n')[0], license and f'licence: {license}', layout]
        wrapped = [part for line in lines if line for part in textwrap.wrap(line, 100)]
        told.append(f'{name:14} ' + f'\n{"":15}'.join(wrapped))
    return '\n'.join(told)


def _parser(kind: str, module: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f'medjax build {kind}', description=(module.__doc__ or '').strip(), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    module.arguments(parser)
    lists = [*getattr(module, 'SPLITS', ['given']), 'drawn']
    parser.add_argument('--split', choices=lists, default=lists[0], help='which list of splits; drawn: per patient')
    parser.add_argument('--stratify', default='', metavar='LABELS', help='labels whose shares drawn splits keep')
    parser.add_argument('--out', metavar='DATA', help='the folder to make')
    parser.add_argument('--overwrite', action='store_true', help='replace the data set that is there')
    parser.add_argument(
        '--beam', metavar='OPTIONS', help="make the records on Apache Beam, with its options: --beam='--runner=…'"
    )
    parser.add_argument('--npz', metavar='FILE', help='the data set as one file in the layout of MedMNIST, too')
    return parser


def _told(out: str, summary: dict[str, Any], namespace: str) -> list[str]:
    """What the person at the keyboard reads: contents, notes, and everything that was set aside."""
    labels = summary['labels']
    shown = ', '.join(labels[:12]) + (f', … ({len(labels)} in all)' if len(labels) > 12 else '')
    lines = [
        f'{summary["name"]} -> {out}',
        f'  {sum(summary["splits"].values())} records: {_counts(summary["splits"])}',
        f'  {_people(summary)}: {_counts(summary["patients"])}',
        f'  labels: {shown or "none"}',
        f'  {summary["channels"]} channel{"s" * (summary["channels"] > 1)} of {summary["bits"]} bits, longest side '
        f'{summary["size"]} px, mean {summary["mean"]:.3f}, deviation {summary["std"]:.3f}',
        f'  fingerprint {summary["fingerprint"]}, id key {summary["key_fingerprint"]}',
        f'  namespace of the ids {namespace!r}: equal ids are one patient in all data sets of this namespace',
    ]
    if published := published_splits.LISTS.get(summary['split_list'].removesuffix(', altered')):
        lines.append(f'  splits: {summary["split_list"]}, {published.description}')
    lines += [f'  note: {note}' for note in summary['notes']]
    lines += [f'  audit: {sentence}' for sentence in summary['audit']['verdict']]
    for scope, what in (('record', 'set aside'), ('detail', 'kept without a detail')):
        if chosen := [drop for drop in summary['drops'] if drop.scope == scope]:
            lines.append(f'  {what}: {len(chosen)} image{"s" * (len(chosen) > 1)} (all in drops.csv)')
            lines += [f'    {drop.where or "an image"}: {drop.reason}' for drop in chosen[:LISTED]]
            if len(chosen) > LISTED:
                lines.append(f'    … and {len(chosen) - LISTED} more')
    return lines


def _people(summary: Mapping[str, Any]) -> str:
    torn = sum(summary['patients'].values()) - summary['people']
    apart = 'none in two splits' if not torn else f'{torn} of them in more than one split'
    unknown = summary['unknown_patients']
    told = f' ({unknown} images name none: there a study counts as one)' if unknown else ''
    return f'{summary["people"]} patients{told}, {apart}'


def _counts(by_split: Mapping[str, int]) -> str:
    return ', '.join(f'{name} {n}' for name, n in by_split.items())


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
