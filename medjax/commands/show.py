"""`medjax show`: writes an HTML page about a data set, with images, labels, histograms and whole records."""

from __future__ import annotations

import argparse

from medjax.data import records
from medjax.reports import base, dataset_page as page


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='medjax show',
        description='Write an HTML page about a data set: some images of each label and split, counts of labels, '
        'histograms, whole records. The page shows images of patients, and the reports of whole records.',
        allow_abbrev=False,
    )
    parser.add_argument('data', metavar='DATA', help='the folder of a data set (--out of medjax build)')
    parser.add_argument('--out', required=True, metavar='PAGE', help='the HTML file to write')
    parser.add_argument(
        '--record',
        action='append',
        default=[],
        metavar='SPLIT/NUMBER',
        help='show this whole record, for example train/17; may be repeated',
    )
    args = parser.parse_args(argv)

    data = records.open(args.data)
    out = base.target('--out', args.out)
    shown = [page.parse_record(data, text) for text in args.record]
    html = page.render(data, shown)
    base.write(out, html)
    print(f'wrote {args.out} ({len(html) / 1e6:.1f} MB)')
    return 0
