"""`medjax audit`: leaks and duplicates in and between data sets, as sentences, as JSON, as one page with the pairs."""

from __future__ import annotations

import argparse
import json

from medjax.data import records
from medjax.data.audit import leaks
from medjax.errors import UserError
from medjax.reports import audit_page as page, base


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='medjax audit',
        description='Search data sets for leaks: by patient, image, equal pixels and near-duplicates, within each and '
        'between all; and for contradicting labels, repeated texts and more.',
        epilog='medjax audit exits 1 if a validation or test record is in training, or a validation record in test; '
        '0 if not, 2 after a mistake.',
        allow_abbrev=False,
    )
    parser.add_argument('data', nargs='+', metavar='DATA', help='the folder of a data set (--out of medjax build)')
    parser.add_argument(
        '--out', metavar='PAGE', help='write an HTML page with the pairs side by side (patients’ images)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the result; records by number, no ids')
    args = parser.parse_args(argv)

    datasets = [records.open(path) for path in args.data]
    for path, data in zip(args.data, datasets):
        if sum(data.path.resolve() == other.path.resolve() for other in datasets) > 1:
            raise UserError(f'{path} is named twice: a data set would be compared with itself; name each once')
    html, result = base.target('--out', args.out), base.target('--json', args.json)
    if html and result and html.resolve() == result.resolve():
        raise UserError(f'--out and --json both name {args.out}; give each a file of its own')

    told = leaks.audit(datasets)
    print('\n'.join(told['verdict']))
    if result:
        base.write(result, json.dumps(told, indent=1) + '\n')
        print(f'{args.json}: the result')
    if html:
        text = page.render(told, datasets)
        base.write(html, text)
        print(f'{args.out}: {len(text) / 1e6:.1f} MB')
    return 1 if told['leaks'] else 0
