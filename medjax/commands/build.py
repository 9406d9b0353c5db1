"""`medjax build KIND`: makes a data set from the files of a source.

    medjax build table DIR --out DATA [--labels a,b,category] [--size 256]
    medjax build npz FILE --out DATA
    medjax build phantom --records 2000 --out DATA
    medjax build table DIR --out DATA --beam='--runner=FlinkRunner --flink_master=HOST:8081'

KIND is a module of medjax.data.sources (see below), or a module of your own: `medjax build mypkg.mysource …`.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from medjax.data import records, sources
from medjax.data.builder import beam, npz_export, where, workers, write
from medjax.data.format import Dropped
from medjax.data.images import windows
from medjax.data.releases import published_splits, tables
from medjax.data.types import Shown, Source
from medjax.errors import UserError
from medjax.plugins import find, names

SHOWN = ('where', 'window', 'fit')  # options of `types.Shown`
NAMED = 3  # images that are named for each remark
LISTED = 20  # drops that are printed; drops.csv has all of them
MOST_WORDS = 6  # of a column that are printed; medjax.json has all of them


def main(argv: list[str]) -> int:
    """Reads the source, writes the data set, and prints a summary with all drops."""
    if not argv or argv[0] in ('-h', '--help'):
        print(f'{__doc__.strip()}\n\n{_kinds()}\n\n`medjax build KIND --help` describes the options of a kind.')
        return 0 if argv else 2
    kind, *arguments = argv
    if kind.startswith('-'):
        raise UserError(
            f'build {kind}: the kind of the source comes first, for example medjax build phantom --out DATA; '
            'medjax build --help lists the kinds'
        )
    module = find(kind, sources.__name__, 'build', 'kind of source', 'source')
    options = vars(_parser(kind, module).parse_args(arguments))
    out, npz_file, overwrite, stratify, beam_options = (
        options.pop(name) for name in ('out', 'npz', 'overwrite', 'stratify', 'beam')
    )
    if not out:
        raise UserError(f'build {kind}: the folder of the data set is missing: --out DATA')
    _shown(options)  # a mistake is told before the source is read
    if (size := options.get('size')) is not None and size < 1:
        raise UserError(f'--size {size}: the longer side must have at least one pixel')
    if npz_file:
        npz_export.check_file(npz_file)

    make_source = functools.partial(make, kind, options)
    source = make_source()
    if npz_file:
        npz_export.check_sizes(source, npz_file)
    labels = [name for name in stratify.split(',') if name]
    make_chunks = workers.run if beam_options is None else functools.partial(beam.run, beam_options)
    summary = write.write(source, out, overwrite, labels, make_source, make_chunks)
    print('\n'.join(_summary_lines(out, summary, source.namespace)))
    if npz_file:
        npz_export.write(records.open(out), npz_file)
        print(f'wrote {npz_file}')
    return 0


def make(kind: str, options: Mapping[str, Any]) -> Source:
    """Makes the source of a kind. Each process of the build calls it."""
    warnings.filterwarnings('ignore', module='pydicom')  # its warnings quote fields of the files
    module = find(kind, sources.__name__, 'build', 'kind of source', 'source')
    split_option = {'split': options['split']} if hasattr(module, 'SPLITS') else {}
    own = {name: value for name, value in options.items() if name not in ('split', *SHOWN)}
    with tables.recorded_reads() as reads:
        source = module.source(**own, **split_option)
    stamp = json.dumps([kind, dict(options), reads, source.stamp], default=str)
    source = source._replace(stamp=stamp, shown=_shown(options))
    if options['split'] == 'drawn':
        source = source._replace(entries=[entry._replace(split=None) for entry in source.entries], splits='')
    return source


def _shown(options: Mapping[str, Any]) -> Shown:
    """The choices of the user that hold for every kind of source. Raises UserError."""
    chosen = () if options.get('window') is None else windows.parse(options['window'])
    return Shown(chosen, options.get('fit'), tuple(map(where.parse, options.get('where') or ())))


def _kinds() -> str:
    """All kinds, each with its first line, its licence and the input that it needs."""
    paragraphs = []
    for name in names(sources.__name__):
        module = find(name, sources.__name__, 'build', 'kind of source', 'source')
        license, layout = getattr(module, 'LICENSE', ''), getattr(module, 'LAYOUT', '')
        texts = [
            (module.__doc__ or '').strip().split('\n')[0],
            license and f'licence: {license}',
            layout and f'input: {layout}',
        ]
        lines = [line for text in texts if text for line in textwrap.wrap(text, 100)]
        paragraphs.append(f'{name:14} ' + f'\n{"":15}'.join(lines))
    return '\n'.join(paragraphs)


def _parser(kind: str, module: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f'medjax build {kind}', description=(module.__doc__ or '').strip(), allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    module.arguments(parser)
    choices = [*getattr(module, 'SPLITS', ['given']), 'drawn']
    given = 'given: those of the source, if it has any; ' if 'given' in choices else ''
    parser.add_argument(
        '--split',
        choices=choices,
        default=choices[0],
        help=f'the splits to use; {given}drawn: at random per patient (default: %(default)s)',
    )
    parser.add_argument(
        '--stratify',
        default='',
        metavar='LABELS',
        help='all drawn splits get the same share of images with these labels, for example a,b',
    )
    parser.add_argument(
        '--where',
        action='append',
        metavar='CONDITION',
        help="keep only images with this attribute: 'modality=CT', 'image_type!=LOCALIZER'; several may be given",
    )
    parser.add_argument(
        '--window',
        metavar='WINDOWS',
        help=f'for CT, in place of the windows of the files: {", ".join(windows.NAMED)}, or centre/width in Hounsfield '
        'units (--window=-600/1500); three with commas between give three channels of 8 bits',
    )
    parser.add_argument(
        '--fit',
        choices=['crop', 'pad'],
        help='store squares: crop keeps the centre of each image, pad adds black (default: the aspect stays)',
    )
    parser.add_argument('--out', metavar='DATA', help='the folder of the new data set')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing data set at --out')
    parser.add_argument(
        '--beam', metavar='OPTIONS', help="make the records with Apache Beam and its options: --beam='--runner=…'"
    )
    parser.add_argument('--npz', metavar='FILE', help='also write all images and labels as one .npz file, as MedMNIST')
    return parser


def _summary_lines(out: str, summary: dict[str, Any], namespace: str) -> list[str]:
    """The lines that the command prints: contents, notes, audit, and all drops."""
    labels, channels = summary['labels'], summary['channels']
    shown = ', '.join(labels[:12]) + (f', … ({len(labels)} in all)' if len(labels) > 12 else '')
    lines = [
        f'{summary["name"]} -> {out}',
        f'  {sum(summary["splits"].values())} records: {_counts(summary["splits"])}',
        *_patient_lines(summary),
        f'  labels: {shown or "none"}',
        f'  images: {channels} channel{"s" * (channels > 1)}, {summary["bits"]} bits, longest side '
        f'{summary["size"]} px, mean {summary["mean"]:.3f}, standard deviation {summary["std"]:.3f}',
        f'  fingerprints: data {summary["fingerprint"]}, id key {summary["key_fingerprint"]}',
        f'  namespace of the ids {namespace!r}: equal ids are one patient in all data sets of this namespace',
    ]
    if summary['masks']:
        lines.append(f'  masks: {", ".join(summary["masks"])}')
    if published := published_splits.LISTS.get(summary['split_list'].removesuffix(', altered')):
        lines.append(f'  splits: {summary["split_list"]}, {published.description}')
    lines += _column_lines(summary['columns'])
    lines += [f'  note: {note}' for note in summary['notes']]
    lines += [f'  audit: {sentence}' for sentence in summary['audit']['verdict']]
    for scope, title in (('record', 'set aside'), ('detail', 'kept without a detail')):
        if drops := [drop for drop in summary['drops'] if drop.scope == scope]:
            lines.append(f'  {title}: {len(drops)} image{"s" * (len(drops) > 1)} (drops.csv lists all)')
            lines += [f'    {drop.where or "an image"}: {drop.reason}' for drop in drops[:LISTED]]
            if len(drops) > LISTED:
                lines.append(f'    … and {len(drops) - LISTED} more')
    return [*lines, *_remark_lines(summary['drops'])]


def _remark_lines(drops: Sequence[Dropped]) -> list[str]:
    """Each remark on kept images with the number of images and the first ones."""
    places: dict[str, list[str]] = {}
    for drop in drops:
        if drop.scope == 'remark':
            places.setdefault(drop.reason, []).append(drop.where or 'an image')
    lines = ['  kept, with a remark (drops.csv lists all):'] if places else []
    for remark, images in sorted(places.items(), key=lambda item: -len(item[1])):
        more = ', …' if len(images) > NAMED else ''
        lines.append(f'    {len(images)} x {remark} ({", ".join(images[:NAMED])}{more})')
    return lines


def _patient_lines(summary: Mapping[str, Any]) -> list[str]:
    in_several = sum(summary['patients'].values()) - summary['patient_count']
    shared = f'{in_several} of them in more than one split' if in_several else 'none in two splits'
    lines = [f'  {summary["patient_count"]} patients, {shared}: {_counts(summary["patients"])}']
    if unknown := summary['unknown_patients']:
        lines.append(
            f'  {unknown} image{"s" * (unknown > 1)} without a known patient: for these, a study counts as a patient'
        )
    return lines


def _column_lines(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    """What became of the columns of a table: a line for each column with a remark, one line for all others."""
    told: dict[str, list[str]] = {}  # sentence -> columns
    for use in columns:
        told.setdefault(_column_sentence(use), []).append(use['column'])
    return [f'  column{"s" * (len(names) > 1)} {", ".join(names)}: {sentence}' for sentence, names in told.items()]


def _column_sentence(use: Mapping[str, Any]) -> str:
    """'patient_id, 24 cells, 2 blank; …', 'read, …' for a column that has the name of its use, or 'not used: …'."""
    if not use['use']:
        return f'not used: {use["why"]}'
    cells = f'{use["cells"]} cell{"s" * (use["cells"] != 1)}' + (f', {use["blank"]} blank' if use['blank'] else '')
    read = [f'{word!r} as {meaning} {n} times' for word, (meaning, n) in list(use['words'].items())[:MOST_WORDS]]
    name = 'read' if use['use'] == use['column'] else use['use']
    return '; '.join([f'{name}, {cells}', *([', '.join(read)] if read else []), *filter(None, [use['why']])])


def _counts(by_split: Mapping[str, int]) -> str:
    return ', '.join(f'{name} {n}' for name, n in by_split.items())


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
