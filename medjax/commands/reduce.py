"""`medjax reduce`: makes a data set without those training slices of a volume that repeat others of the same volume.

medjax reduce DATA --out LESS --by hash                              # at most 6 of 64 bits, as in "Less is More"
medjax reduce DATA --out LESS --by information --threshold .5
medjax reduce DATA --out LESS --by embedding --export RUN/exports/1000
"""

from __future__ import annotations

import argparse
import functools
from typing import Any

import numpy as np

from medjax.data import records
from medjax.data.builder import reduce
from medjax.errors import UserError, suggest


def main(argv: list[str]) -> int:
    """Finds repeated slices, writes the reduced data set, and prints a summary."""
    args = _parser().parse_args(argv)
    measure = _measure(args.by)
    threshold = measure.default if args.threshold is None else _check_threshold(measure, args.threshold)
    if measure.name == 'embedding' and not args.export:
        raise UserError('--by embedding needs an encoder: --export RUN/exports/STEP')
    if measure.name != 'embedding' and args.export:
        raise UserError(f'--export is for --by embedding only; --by {measure.name} needs no encoder')
    data = records.open(args.data)
    encoder_name = ''
    if args.export:
        from medjax.probes import encode  # imports jax, which the other measures do not need

        encoder = encode.load(args.export)
        measure = measure._replace(describe=functools.partial(encode.last_cls, encoder))
        encoder_name = f'step {encoder.name} ({encoder.digest[:16]})'
    repeats, summary = reduce.make(data, args.out, measure, threshold, encoder_name, args.overwrite)
    print('\n'.join(_summary(data, args.out, repeats, summary)))
    return 0


def _measure(name: str) -> reduce.Measure:
    if name not in reduce.MEASURES:
        raise UserError(f'--by: there is no {name!r}{suggest(name, reduce.MEASURES)}')
    return reduce.MEASURES[name]


def _check_threshold(measure: reduce.Measure, threshold: float) -> float:
    """The threshold; UserError where the measure does not allow it."""
    top = measure.max_threshold
    if not 0 <= threshold <= top or (measure.whole_threshold and threshold != int(threshold)):
        kind = 'a whole number of bits' if measure.whole_threshold else 'a number'
        raise UserError(f'--threshold {threshold:g}: --by {measure.name} takes {kind} from 0 to {top}')
    return threshold


def _summary(data: records.DataSet, out: str, repeats: reduce.Repeats, summary: dict[str, Any]) -> list[str]:
    """The lines that the command prints."""
    before, after = data.splits['train'], summary['splits']['train']
    kept, slices = int(repeats.kept_counts.sum()), int(repeats.sizes.sum())
    alone = before - slices
    others = ', '.join(f'{name} {n}' for name, n in data.splits.items() if name != 'train')
    least, median, most = (int(np.quantile(repeats.kept_counts, q, method='nearest')) for q in (0, 0.5, 1))
    return [
        f'{data.name} -> {out}',
        f'  version: {summary["version"]}',
        f'  train: {after} of {before} records are kept ({100 * after / before:.1f} %)',
        f'  volumes (studies of several records): {len(repeats.sizes)}, with {kept} of {slices} records kept '
        f'({100 * kept / slices:.1f} %): {least} to {most} of each volume, median {median}',
        *([f'  studies of one record: {alone}, all kept'] if alone else []),
        *([f'  {others}: unchanged, because only train is reduced'] if others else []),
        f'  pixels of train: mean {summary["mean"]:.3f}, standard deviation {summary["std"]:.3f}',
        f'  fingerprint: {summary["fingerprint"]}',
        *(f'  audit: {sentence}' for sentence in summary['audit']['verdict']),
        '  drops.csv lists each record that was left out, and the kept record that it repeats',
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='medjax reduce',
        description='Make a smaller data set. Training slices of a volume (a study of several records) that repeat '
        'other slices of the volume are left out. Validation and test stay the same. DATA itself is not changed.',
        allow_abbrev=False,
    )
    parser.add_argument('data', metavar='DATA', help='the folder of a data set (--out of medjax build)')
    parser.add_argument('--out', required=True, metavar='LESS', help='the folder of the new data set')
    parser.add_argument(
        '--by',
        required=True,
        metavar='|'.join(reduce.MEASURES),
        help='how slices are compared: difference hash, features of an encoder, or normalised mutual information',
    )
    parser.add_argument('--export', metavar='RUN/exports/STEP', help='the encoder, for --by embedding')
    defaults = ', '.join(f'{name} {measure.default:g}' for name, measure in reduce.MEASURES.items())
    parser.add_argument(
        '--threshold',
        type=float,
        metavar='T',
        help='leave a slice out if it is this near to a kept slice: at most T different bits (hash), or a cosine '
        f'(embedding) or mutual information (information) of at least T (default: {defaults})',
    )
    parser.add_argument('--overwrite', action='store_true', help='replace an existing data set at --out')
    return parser
