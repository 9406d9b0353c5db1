"""Figures of the probes of columns: metadata, regression, ordinal, shortcut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medjax.probes import provenance
from medjax.probes.results import cell
from medjax.reports import plots, probe_plots, result_shapes
from medjax.reports.figure_parts import LABELS, ROWS, Drawn, rows_of
from medjax.reports.probe_plots import Level, Rows
from medjax.reports.result_sections import marked
from medjax.reports.run_files import ResultFile


def metadata(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    caption = (
        'What the features tell besides findings. At .5 they tell '
        'nothing. A column that they tell can be used as a shortcut.'
    )
    return rows_of(shown, 'auroc', others, Level(0.5, 'chance'), caption)


def regression(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    """R2 of each column, and the answers of each column over the truth."""
    caption = 'R2 is 0 for a probe that always says the mean, and 1 for one without error.'
    figures = rows_of(shown, 'r2', others, Level(0, 'always the mean'), caption)
    for column in [row for row in shown.content['results'].get('r2', {}) if row != 'mean']:
        found = result_shapes.answers(shown, column)
        if found is None:
            continue
        known = np.isfinite(found[0]) & np.isfinite(found[1])
        answer, truth = found[0][known], found[1][known]
        if len(truth) < 20 or np.ptp(truth) == 0:
            continue
        edges = np.unique(np.quantile(truth, np.linspace(0, 1, 11)))
        part = np.clip(np.searchsorted(edges, truth, 'right') - 1, 0, len(edges) - 2)
        points = [
            (
                float(truth[part == i].mean()),
                dict(
                    value=float(np.median(answer[part == i])),
                    **dict(zip(('low', 'high'), np.quantile(answer[part == i], (0.1, 0.9)).tolist())),
                ),
            )
            for i in range(len(edges) - 1)
            if (part == i).any()
        ]
        ends = [(float(truth.min()), float(truth.min())), (float(truth.max()), float(truth.max()))]
        svg = probe_plots.lines(
            f'{column}: answers{provenance.mark(shown.content)}',
            {'median answer': points},
            f'true {column}',
            faint=[ends],
        )
        error = shown.content['results'].get('mae', {}).get(column)
        constant = shown.content.get('details', {}).get(column, {}).get('constant_mae')
        stated = (
            f' Mean absolute error {error["value"]:.3g}; {constant:.3g} for the same answer to all.'
            if error and error.get('value') is not None and constant
            else ''
        )
        figures.append(
            Drawn(
                svg,
                'Records in ten parts by their true value: median answer, and '
                f'the range of 80 % of the answers. Thin: no error.{stated}',
            )
        )
    return figures


def ordinal(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    """Kappa of each column, and its table of answers."""
    figures = rows_of(
        shown,
        'quadratic_kappa',
        others,
        Level(0, 'chance'),
        'Quadratic kappa is 0 at chance and 1 for answers that are all right.',
    )
    for column, facts in shown.content.get('details', {}).items():
        pairs, levels = (
            np.array(facts['pairs'], float),
            [f'{x:g}' if isinstance(x, float) else str(x) for x in facts['levels']],
        )
        shares = pairs / np.maximum(pairs.sum(1, keepdims=True), 1)
        svg = plots.matrix(f'{column}: answers of each level in percent', levels, shares)
        figures.append(
            Drawn(
                svg,
                f'{column}{provenance.mark(shown.content)}: each line is a true '
                'level, each column an answer; numbers are percent of the line.',
            )
        )
    return figures


def shortcut(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    """AUROC where the column supports the right answer, and where it misleads."""
    found = shown.content['results']
    wanted = [metric for metric in ('aligned_auroc', 'conflicting_auroc', 'column_auroc') if metric in found]
    rows = [row for row in found.get('gap', {}) if row != 'mean'][:ROWS]
    if not rows or not wanted:
        return []
    block = Rows('', [(f'{row}', [marked(shown.content, metric, row) for metric in wanted]) for row in rows])
    names = [
        dict(aligned_auroc='column supports', conflicting_auroc='column misleads', column_auroc='column alone')[m]
        for m in wanted
    ]
    svg = probe_plots.dots(f'AUROC{provenance.mark(shown.content)}', [block], names, 'AUROC', Level(0.5, 'chance'))
    gaps = '; '.join(f'{row} {cell(found["gap"][row])}' for row in rows[:LABELS])
    return [
        Drawn(
            svg,
            'A classifier that does not use the column has both '
            f'values near each other. Gaps: {gaps}. A gap is no proof.',
        )
    ]
