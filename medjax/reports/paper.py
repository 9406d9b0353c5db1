"""The results of a run as files for a paper: report.md, report.tex and report.json beside report.html."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medjax import files
from medjax.probes import provenance, tables
from medjax.probes.encode import title
from medjax.probes.results import cell
from medjax.probes.tables import Table
from medjax.reports import answer, result_sections
from medjax.reports.run_files import Run

PREAMBLE = '% The preamble needs \\usepackage{booktabs,graphicx} and \\usepackage[T1]{fontenc}.'


def write(run: Run) -> list[Path]:
    """Writes the files; returns their paths."""
    found = tables_of(run)
    texts = {
        '.md': '\n\n'.join(map(tables.markdown, found)),
        '.tex': '\n\n'.join([PREAMBLE, *map(tables.latex, found)]),
    }
    places = [run.path / f'report{ending}' for ending in (*texts, '.json')]
    with files.writing(f'the tables {run.path / "report.*"}'):
        for ending, text in texts.items():
            files.write_text(run.path / f'report{ending}', text + '\n')
        files.write_json(places[-1], as_json(run))
    return places


def tables_of(run: Run) -> list[Table]:
    """A table for each data set and probe: means over labels, one line for each encoder."""
    found = []
    for (data, probe), results in run.results_by_probe().items():
        contents = [result_sections.identified(result) for result in results.values()]
        metrics = dict.fromkeys(m for one in contents for m in one['results'] if m not in tables.NOT_IN_TABLES)
        rows = [
            [
                title(one['encoder']['step']),
                *(cell(result_sections.marked(one, metric, 'mean'), provenance.mark(one)) for metric in metrics),
                provenance.seen(one),
            ]
            for one in contents
        ]
        explained = provenance.explanation(contents)
        columns = ['encoder', *map(result_sections.metric_title, metrics), provenance.COLUMN]
        caption = f'{data}, {probe}: means on the test split, with {result_sections.level(run)} intervals over patients'
        found.append(Table(caption, columns, rows, [explained] if explained else []))
    return found


def as_json(run: Run) -> dict[str, Any]:
    """The values of all results, the paired comparisons, and the answer of the first screen."""
    found = [
        dict(
            data=result.data,
            probe=result.probe,
            encoder=result.encoder,
            results=result.content['results'],
            contaminated=provenance.is_contaminated(result.content),
            overlap=provenance.overlap_note(result.content),
        )
        for result in run.results
    ]
    return dict(answer=answer.of_run(run)._asdict(), results=found, comparisons=list(run.comparisons))
