"""`medjax audit`: searches data sets for leaks and duplicates. Prints sentences; also writes JSON and an HTML page."""

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
        description='Search data sets for leaks, each by itself and all together: equal patients, equal images, equal '
        'pixels, near-duplicates. It also looks for contradicting labels, repeated texts and more.',
        epilog='Exit code: 1 if there is a leak, that is, a test record is known from training or validation, or a '
        'validation record is known from training; 0 if there is none; 2 after a mistake in the command.',
        allow_abbrev=False,
    )
    parser.add_argument('data', nargs='+', metavar='DATA', help='the folder of a data set (--out of medjax build)')
    parser.add_argument(
        '--out', metavar='PAGE', help='write an HTML page that shows the matches side by side (images of patients)'
    )
    parser.add_argument('--json', metavar='FILE', help='write the result as JSON: numbers of records, no ids')
    args = parser.parse_args(argv)

    datasets = [records.open(path) for path in args.data]
    for path, data in zip(args.data, datasets):
        if sum(data.path.resolve() == other.path.resolve() for other in datasets) > 1:
            raise UserError(f'{path} is named twice, so it would be compared with itself; name each data set once')
    html_file, json_file = base.target('--out', args.out), base.target('--json', args.json)
    if html_file and json_file and html_file.resolve() == json_file.resolve():
        raise UserError(f'--out and --json both name {args.out}; give each a file of its own')

    result = leaks.audit(datasets)
    print('\n'.join(result['verdict']))
    if json_file:
        base.write(json_file, json.dumps(result, indent=1) + '\n')
        print(f'wrote {args.json}')
    if html_file:
        html = page.render(result, datasets)
        base.write(html_file, html)
        print(f'wrote {args.out} ({len(html) / 1e6:.1f} MB)')
    return 1 if result['leaks'] else 0
