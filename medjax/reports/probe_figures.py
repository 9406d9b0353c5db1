"""The figures of one probe on one data set, for a run's page: what the tables cannot show.

A figure is there if the result has its keys, so older results have fewer figures. All figures are of the newest export;
those of a probe with a shape of its own also show the encoders that it is compared with.

`result_shapes` checks a result first. So whatever fails after that is a fault of this code, and is not caught.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from medjax.probes import provenance
from medjax.probes.results import cell, probe_of
from medjax.reports import column_figures, probe_plots, result_sections, result_shapes, trust_figures
from medjax.reports.figure_parts import ROWS, Drawn, name
from medjax.reports.probe_plots import Level, Rows
from medjax.reports.result_sections import ResultsByEncoder, marked
from medjax.reports.run_files import ResultFile


def of_probe(probe: str, results: ResultsByEncoder) -> list[Drawn]:
    """All figures of the newest export, or of the first encoder where there is no export.

    DamagedResult if one of the results lacks what they read.
    """
    shown = results[result_sections.shown(results)]
    others = [results[name] for name in result_sections.compared(results) if results[name] is not shown]
    for result in (shown, *others):
        result_shapes.check(result)
    figures = [figure for draw in TRUST for figure in draw(shown)]
    return figures + (BY_PROBE[probe_of(probe)](shown, others) if probe_of(probe) in BY_PROBE else [])


# Probes with a shape of their own: (the newest export, the encoders beside it) -> figures


def few_shot(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    """AUROC over the number of patients of each class."""
    series: dict[str, Sequence[tuple[float, Any]]] = {}
    for result in (shown, *others):
        points = [
            (k, value) for k, metric in shots(result).items() if (value := marked(result.content, metric, 'mean'))
        ]
        series |= {name(result): points} if points else {}
    if not series:
        return []
    ticks = sorted({k for points in series.values() for k, _ in points})
    svg = probe_plots.lines('mean AUROC by number of patients', series, 'patients of each class', ticks=ticks)
    means = [shown.content['results'][metric].get('mean', {}) for metric in shots(shown).values()]
    spread = [mean['deviation'] for mean in means if mean.get('deviation') is not None]
    caption = 'What a linear classifier learns from few patients; bands: intervals over test patients.'
    if spread:
        caption += f' Over five draws of patients the mean changes by {max(spread):.3f} (largest standard deviation).'
    if len({mean.get('labels') for mean in means}) > 1:
        caption += ' The points are means over different labels, because some labels have too few patients.'
    return [Drawn(svg, caption)]


def shots(result: ResultFile) -> dict[int, str]:
    """{patients of each class: the name of its AUROC}, in rising order."""
    found = {re.fullmatch(r'AUROC@(\d+)', metric, re.IGNORECASE): metric for metric in result.content['results']}
    return dict(sorted((int(match[1]), metric) for match, metric in found.items() if match and int(match[1])))


def search(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    """The share of neighbours with the finding, and that by chance."""
    metric = next(iter(shown.content['results']), '')
    if not metric:
        return []
    found = shown.content['results'][metric]
    chance = [(row, [dict(value=found[row].get('chance'))]) for row in found if row != 'mean'][:ROWS]
    series = [shown, *(result for result in others if metric in result.content['results'])]
    rows = [
        (row, [*(marked(result.content, metric, row) for result in series), *by_chance]) for row, by_chance in chance
    ]
    svg = probe_plots.dots(
        f'image search: {metric}',
        [Rows('', rows)],
        [*map(name, series), 'by chance'],
        f'share of the nearest {metric[2:]} with the finding',
    )
    return [
        Drawn(
            svg,
            'By chance: the share of train images with the finding. '
            'A search that is no better than this finds nothing.',
        )
    ]


def out_of_distribution(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    """The AUROC of each detector for each held-out label or set."""
    metrics = [metric for metric in shown.content['results'] if metric.endswith('AUROC')]
    rows = dict.fromkeys(row for metric in metrics for row in shown.content['results'][metric] if row != 'mean')
    if not rows:
        return []
    block = Rows('', [(row, [marked(shown.content, metric, row) for metric in metrics]) for row in list(rows)[:ROWS]])
    names = [metric.removesuffix(' AUROC') for metric in metrics]
    svg = probe_plots.dots(
        f'AUROC: images of another kind{provenance.mark(shown.content)}', [block], names, 'AUROC', Level(0.5, 'chance')
    )
    return [
        Drawn(
            svg,
            'How well images of a label that was held out, or of another data set, '
            'are told from known ones. Below .5 they seem more usual than known ones.',
        )
    ]


def robustness(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    """AUROC over the severity of each fault."""
    series = [result for result in (shown, *others) if result.content.get('clean', {}).get('AUROC')]
    kinds: dict[str, dict[str, list[Any]]] = {}
    for kind in shown.content.get('details', {}):
        for result in series:
            if severities := result.content.get('details', {}).get(kind):
                clean = result.content['clean']['AUROC']
                kinds.setdefault(kind, {})[name(result)] = [clean, *(one['AUROC'] for one in severities)]
    drops = {row: drop for row, drop in shown.content['results']['drop'].items() if row != 'mean'}
    if not kinds or not drops:
        return []
    worst = max(drops, key=lambda row: drops[row].get('value') or -math.inf)
    caption = (
        'The linear probe learned from clean images and sees test '
        'images with a fault. Dashed: without the fault. Bands: '
        'intervals over patients. The largest mean drop is that of '
        f'{worst}, {cell(drops[worst])}.'
    )
    return [Drawn(probe_plots.faults('mean AUROC of the linear probe on images with faults', kinds), caption)]


TRUST = (trust_figures.reliability, trust_figures.coverage, trust_figures.certainty, trust_figures.subgroups)
BY_PROBE: Mapping[str, Callable[[ResultFile, Sequence[ResultFile]], list[Drawn]]] = dict(
    few_shot=few_shot,
    search=search,
    metadata=column_figures.metadata,
    regression=column_figures.regression,
    ordinal=column_figures.ordinal,
    out_of_distribution=out_of_distribution,
    shortcut=column_figures.shortcut,
    robustness=robustness,
)
