"""`medjax score`: metrics of generated reports beside the true ones.

    medjax score reports.csv
    medjax score reports.jsonl --json scores.json

The file is a table with the columns `reference` and `generated`, and perhaps `patient`: CSV, or JSON lines. Intervals
are over patients; without `patient`, each report is one. No text and no patient is written anywhere.

The F1 of findings comes from rules for chest radiographs in English, not from CheXbert or RadGraph, whose models
medjax cannot bring along.
"""

from __future__ import annotations

import argparse
import csv
import json
import pathlib

import numpy as np

from medjax.errors import UserError
from medjax.probes import report_metrics, results, statistics, tables
from medjax.reports import base

TITLES = dict(
    bleu_1='BLEU-1', bleu_4='BLEU-4', rouge_l='ROUGE-L', meteor='METEOR', macro_f1_14='F1-14, macro',
    micro_f1_14='F1-14, micro', macro_f1_5='F1-5, macro', micro_f1_5='F1-5, micro',
)  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='medjax score', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'reports', metavar='FILE', help='a table with the columns reference, generated, perhaps patient'
    )
    parser.add_argument('--json', metavar='FILE', help='write the result as JSON')
    parser.add_argument('--draws', type=int, default=statistics.DRAWS, help='bootstrap draws (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='seed of the bootstrap (default: %(default)s)')
    args = parser.parse_args(argv)
    if args.draws < 1 or args.seed < 0:
        raise UserError('--draws must be at least 1, and --seed at least 0')
    json_file = base.target('--json', args.json)
    report_metrics.check_installed()
    rows = read(pathlib.Path(args.reports))

    missing = report_metrics.missing_meteor()
    names = {name: i for i, name in enumerate(dict.fromkeys(row[2] for row in rows))}
    patients = np.array([names[row[2]] for row in rows])
    bootstrap = statistics.Bootstrap(patients, args.seed, args.draws, statistics.BCA)
    found = report_metrics.scores([row[0] for row in rows], [row[1] for row in rows], bootstrap, missing is None)
    result = dict(reports=len(rows), patients=len(names), bootstrap=bootstrap.facts(), **found)
    print(table(result))
    for sentence in notes(result, missing, sum(not row[1].strip() for row in rows)):
        print(sentence)
    if json_file:
        base.write(json_file, json.dumps(result, indent=1) + '\n')
        print(f'wrote {args.json}')
    return 0


def read(file: pathlib.Path) -> list[tuple[str, str, str]]:
    """(reference, generated, patient) of each row. UserError for a file that is no such table."""
    try:
        text = file.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else 'it is not UTF-8'
        raise UserError(f'{file} cannot be read: {why}') from None
    try:
        if text.lstrip().startswith('{'):
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        else:
            rows = list(csv.DictReader(text.splitlines(keepends=True), strict=True))
    except (ValueError, csv.Error) as error:
        raise UserError(f'{file} is no CSV and no JSON lines: {error}') from None
    if not rows:
        raise UserError(f'{file} has no row')
    with_patients = sum('patient' in row for row in rows if isinstance(row, dict)) == len(rows)
    found = []
    for number, row in enumerate(rows, 1):
        for name in ('reference', 'generated'):
            if not isinstance(row, dict) or not isinstance(row.get(name), str):
                raise UserError(f'{file}, row {number}: there is no text in the column {name!r}')
        if not row['reference'].strip():
            raise UserError(f'{file}, row {number}: the true report is empty, so nothing can be compared; leave it out')
        patient = row.get('patient') if with_patients else number
        if patient is None or not str(patient).strip():
            raise UserError(f'{file}, row {number}: the column patient is empty; fill it in, or leave the column out')
        found.append((row['reference'], row['generated'], str(patient)))
    return found


def table(result: dict) -> str:
    """The metrics as Markdown."""
    rows = [(title, result[name]) for name, title in TITLES.items() if name in result]
    rows += [
        (f'F1 of {name} ({each["reports"]:,} true)', each)
        for name, each in result['findings'].items()
        if each['value'] is not None
    ]
    columns = ('metric', f'{result["reports"]:,} reports of {result["patients"]:,} patients')
    return tables.markdown(tables.Table('', columns, [(title, results.cell(each)) for title, each in rows]))


def notes(result: dict, missing: str | None, empty: int) -> list[str]:
    """Sentences below the table."""
    facts = result['bootstrap']
    found = [f'Intervals: {100 * facts["level"]:.0f} %, BCa, over patients.', missing, facts.get('warning')]
    if names := result['not_mentioned']:
        found.append(f'Left out of the macro F1, because no report mentions them: {", ".join(names)}.')
    if empty:
        found.append(f'{empty:,} generated reports are empty; they count, with 0.')
    found.append('F1 is of findings that rules name (medjax.probes.findings), not of CheXbert: compare it with itself.')
    return [sentence for sentence in found if sentence]
