"""`medjax reduce`: a data set without the training slices of a volume that repeat others of it.

medjax reduce DATA --out LESS --by hash                              # 6 bits of 64, as in "Less is More"
medjax reduce DATA --out LESS --by information --threshold .5
medjax reduce DATA --out LESS --by embedding --export RUN/exports/1000
"""

from __future__ import annotations

import argparse
import functools

import numpy as np

from medjax.data import records
from medjax.data.builder import reduce
from medjax.errors import UserError, suggest


def main(argv: list[str]) -> int:
    """Compares, copies what is kept, says what that is."""
    args = _parser().parse_args(argv)
    measure, threshold = _measure(args.by), args.threshold
    threshold = measure.default if threshold is None else _checked(measure, threshold)
    if measure.name == 'embedding' and not args.export:
        raise UserError('--by embedding: say of which encoder: --export RUN/exports/STEP')
    if measure.name != 'embedding' and args.export:
        raise UserError(f'--export is for --by embedding; --by {measure.name} needs no encoder')
    data = records.open(args.data)
    by = ''
    if args.export:
        from medjax.probes import encode  # brings jax, which the others do without

        encoder = encode.load(args.export)
        measure = measure._replace(describe=functools.partial(encode.last_cls, encoder))
        by = f'step {encoder.name} ({encoder.digest[:16]})'
    found, summary = reduce.make(data, args.out, measure, threshold, by, args.overwrite)
    print('\n'.join(_told(data, args.out, found, summary)))
    return 0


def _measure(name: str) -> reduce.Measure:
    if name not in reduce.MEASURES:
        raise UserError(f'--by: there is no {name!r}{suggest(name, reduce.MEASURES)}')
    return reduce.MEASURES[name]


def _checked(measure: reduce.Measure, threshold: float) -> float:
    if not 0 <= threshold <= measure.max_threshold or (measure.whole_threshold and threshold != int(threshold)):
        kind = 'a whole number of bits' if measure.whole_threshold else 'a number'
        raise UserError(
            f'--threshold {threshold:g}: --by {measure.name} takes {kind} from 0 to {measure.max_threshold}'
        )
    return threshold


def _told(data: records.DataSet, out: str, found: reduce.Repeats, summary: dict) -> list[str]:
    """What the person at the keyboard reads."""
    before, after = data.splits['train'], summary['splits']['train']
    alone = before - int(found.sizes.sum())
    kept, slices = int(found.kept_counts.sum()), int(found.sizes.sum())
    others = ', '.join(f'{name} {n}' for name, n in data.splits.items() if name != 'train')
    least, middle, most = (int(np.quantile(found.kept_counts, q, method='nearest')) for q in (0, 0.5, 1))
    return [
        f'{data.name} -> {out}',
        f'  version {summary["version"]}',
        f'  train: {after} of {before} records are kept ({100 * after / before:.1f} %)',
        f'  {len(found.sizes)} volumes (studies of several records): {kept} of {slices} records '
        f'({100 * kept / slices:.1f} %), of a volume {least} to {most}, median {middle}',
        *([f'  studies of one record: {alone}, all kept'] if alone else []),
        *([f'  {others}: as they were; only train is reduced'] if others else []),
        f'  mean {summary["mean"]:.3f}, deviation {summary["std"]:.3f}, fingerprint {summary["fingerprint"]}',
        *(f'  audit: {sentence}' for sentence in summary['audit']['verdict']),
        '  what was left out, and what it repeats: drops.csv',
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='medjax reduce',
        description='Make a data set without the training slices of a volume (a study of several records) that repeat '
        'others of it. Validation and test stay as they are, DATA too.',
        allow_abbrev=False,
    )
    parser.add_argument('data', metavar='DATA', help='the folder of a data set (--out of medjax build)')
    parser.add_argument('--out', required=True, metavar='LESS', help='the folder to make')
    parser.add_argument('--by', required=True, metavar='|'.join(reduce.MEASURES), help='how slices are compared')
    parser.add_argument('--export', metavar='RUN/exports/STEP', help='the encoder of --by embedding')
    defaults = ', '.join(f'{name} {measure.default:g}' for name, measure in reduce.MEASURES.items())
    parser.add_argument(
        '--threshold',
        type=float,
        metavar='T',
        help='slices as near as this to a kept one are left out: at most so many bits of hash, at least so large a '
        f'cosine or normalised mutual information (default: {defaults})',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace the data set that is at --out')
    return parser
