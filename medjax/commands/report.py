"""`medjax report`: the files of a run become RUN/report.html, one page without network."""

from __future__ import annotations

import argparse
import os

from medjax.reports import base, data_facts, pictures, run_files, run_page


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog='medjax report', description='Write RUN/report.html: curves, health, results, features, data.'
    )
    parser.add_argument('--run', required=True, metavar='RUN', help='the folder of a run (--workdir of medjax train)')
    parser.add_argument('--data', metavar='DATA', help='the data set to show; default: all that the run used')
    args = parser.parse_args(argv)

    run = run_files.read(args.run)
    out = base.target('--run', str(run.path / 'report.html'))
    data = data_facts.find(run, args.data)
    html = run_page.render(run, pictures.gather(run, data), [data_facts.summary(one) for one in data.sets], data.words)

    base.write(out, html)
    print(f'{os.path.join(args.run, "report.html")}: {len(html) / 1e6:.1f} MB')
    return 0
