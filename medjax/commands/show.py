"""`medjax show`: a data set becomes one HTML page to look at: pictures, labels, histograms, whole records."""

from __future__ import annotations

import argparse

from medjax.data import records
from medjax.reports import base, dataset_page as page


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='medjax show',
        description='Write one HTML page about a data set: a contact sheet by label and split, labels, histograms, '
        'whole records. It shows images of patients and, in whole records, their reports.',
        allow_abbrev=False,
    )
    parser.add_argument('data', metavar='DATA', help='the folder of a data set (--out of medjax build)')
    parser.add_argument('--out', required=True, metavar='PAGE', help='the HTML file to write')
    parser.add_argument(
        '--record', action='append', default=[], metavar='SPLIT/NUMBER', help='show this record whole; may be repeated'
    )
    args = parser.parse_args(argv)

    data = records.open(args.data)
    out = base.target('--out', args.out)
    shown = [page.parse_record(data, text) for text in args.record]
    html = page.render(data, shown)
    base.write(out, html)
    print(f'{args.out}: {len(html) / 1e6:.1f} MB')
    return 0
