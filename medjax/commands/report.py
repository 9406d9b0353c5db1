"""`medjax report`: writes RUN/report.html, one page that needs no network, and its tables as .md, .tex and .json."""

from __future__ import annotations

import argparse
import os

from medjax.reports import base, data_facts, paper, pictures, run_files, run_page, worst_cases


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='medjax report',
        description='Write RUN/report.html: a verdict on the training, results of probes, curves, pictures of the '
        'features, facts about the data.',
    )
    parser.add_argument('--run', required=True, metavar='RUN', help='the folder of a run (--workdir of medjax train)')
    parser.add_argument(
        '--data', metavar='DATA', help='the data set to show; default: all data sets that the config of the run names'
    )
    args = parser.parse_args(argv)

    run = run_files.read_run(args.run)
    out = base.target('--run', str(run.path / 'report.html'))
    data = data_facts.open_data(run, args.data)
    summaries = [data_facts.summary(dataset) for dataset in data.sets]
    html = run_page.render(run, pictures.gather(run, data), worst_cases.gather(run, data), summaries, data.missing)

    base.write(out, html)
    written = paper.write(run)
    tables = ', '.join(file.name for file in written)
    print(f'{os.path.join(args.run, "report.html")}: {len(html) / 1e6:.1f} MB; the tables: {tables}')
    return 0
