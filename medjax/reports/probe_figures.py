"""The figures of one probe on one data set, for a run's page: what the tables cannot show.

A figure is there if the result has its keys, so older results have fewer figures. All figures are of the newest export;
few-shot, search and faults also show the encoders that it is compared with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from medjax.probes import provenance
from medjax.probes.encode import title
from medjax.probes.results import cell, probe_of
from medjax.probes.summary import MAPS
from medjax.reports import plots, probe_plots, result_sections
from medjax.reports.probe_plots import Level, Rows
from medjax.reports.result_sections import ResultsByEncoder, marked, metric_title
from medjax.reports.run_files import ResultFile

LABELS = 6  # reliability diagrams, those of the labels with the most records
ROWS = 40  # of a figure with dots
HOLD = 'share of sets that hold the label'


class Drawn(NamedTuple):
    """A figure with the sentence below it."""

    svg: Markup
    caption: str


def of_probe(data: str, probe: str, results: ResultsByEncoder) -> list[Drawn]:
    """All figures of the newest export, or of the first encoder where there is no export."""
    shown = results[result_sections.shown(results)]
    others = [results[name] for name in result_sections.compared(results) if results[name] is not shown]
    makers: list[Callable[[], list[Drawn]]] = [
        lambda: reliability(shown),
        lambda: coverage(shown),
        lambda: certainty(shown),
        lambda: subgroups(shown),
    ]
    if maker := BY_PROBE.get(probe_of(probe)):
        makers.append(lambda: maker(shown, others))
    return [figure for make in makers for figure in make()]


def name(result: ResultFile) -> str:
    """'step 20†': an encoder in the legend of a figure."""
    return title(result.encoder) + provenance.mark(result.content)


def arrays(result: ResultFile, names: Sequence[str]) -> list[np.ndarray] | None:
    """Arrays of a result; None if one of them is missing."""
    if result.scores is None:
        return None
    with np.load(result.scores, allow_pickle=False) as file:
        return [file[name] for name in names] if set(names) <= set(file.files) else None


# Trust


def reliability(result: ResultFile) -> list[Drawn]:
    """A diagram for each label: before and after Platt's map."""
    found = arrays(result, ('reliability', 'reliability_maps', 'reliability_labels'))
    if found is None:
        return []
    bins, maps, labels = found[0], found[1].tolist(), found[2].tolist()
    kept = [one for one in ('none', 'platt') if one in maps]
    errors = result.content.get('calibration', {}).get('results', {})
    figures = []
    order = np.argsort(-np.nan_to_num(bins[0, :, :, 0] * bins[0, :, :, 2]).sum(1), kind='stable')
    for j in order[:LABELS]:
        if not (bins[0, j, :, 0] > 0).any():
            continue
        stated = [
            f'{MAPS[one]} {cell(errors[one]["ece"].get(labels[j]))}'
            for one in kept
            if errors.get(one, {}).get('ece', {}).get(labels[j])
        ]
        caption = (
            f'Calibration error (ECE) {", ".join(stated)}. On the '
            'dotted line, a probability of p is right in a share p.'
        )
        drawn = {f'{MAPS[one]}{" calibration" if one == "none" else ""}': bins[maps.index(one), j] for one in kept}
        figures.append(Drawn(probe_plots.reliability(f'{labels[j]}{provenance.mark(result.content)}', drawn), caption))
    return figures


def coverage(result: ResultFile) -> list[Drawn]:
    """The coverage of conformal sets: of positives and negatives of each label, and in each group."""
    found = result.content.get('conformal', {})
    measures = found.get('class_conditional')
    if not measures:
        return []
    asked = 1 - found['alpha']
    level = Level(asked, f'asked for: {100 * asked:.0f} %')
    sides = ('coverage_of_positives', 'coverage_of_negatives')
    by_label = [
        (label, [with_mark(measures[side].get(label), result) for side in sides]) for label in measures['coverage']
    ]
    blocks = [Rows('', by_label[:ROWS])]
    mark = provenance.mark(result.content)
    figures = [Drawn(
        probe_plots.dots(f'coverage of conformal sets{mark}', blocks, ('positives', 'negatives'), HOLD, level),
        'A set holds the labels that a record may have. Sets of one label: '
        f'{", ".join(f"{label} {cell(one)}" for label, one in list(measures["singletons"].items())[:LABELS])}.',
    )]  # fmt: skip
    groups = found.get('groups', {})
    of_kind = groups.get('marginal') or groups.get('class_conditional') or {}
    rows = [
        Rows(column, [(group, [mean_over(labels, result)]) for group, labels in by_group.items()])
        for column, by_group in of_kind.items()
    ]
    if rows:
        figures.append(Drawn(
            probe_plots.dots(f'coverage of each group, mean over labels{mark}', rows, ('coverage',), HOLD, level),
            'Sets are right as often as asked for over all patients. '
            'In a group they may be right less often. Bars: from '
            'the lowest to the highest label; with one label its interval.',
        ))  # fmt: skip
    return figures


def mean_over(labels: Mapping[str, Mapping[str, Any]], result: ResultFile) -> dict[str, Any] | None:
    """The mean over labels, with the lowest and highest value in place of an interval; one label keeps its interval."""
    known = [one for one in labels.values() if one.get('value') is not None]
    if len(known) < 2:
        return with_mark(known[0], result) if known else None
    values = [one['value'] for one in known]
    return dict(value=sum(values) / len(values), low=min(values), high=max(values))


def with_mark(estimate: Mapping[str, Any] | None, result: ResultFile) -> dict[str, Any] | None:
    """An estimate with the mark of its result."""
    return None if estimate is None else dict(estimate) | dict(mark=provenance.mark(result.content))


def certainty(result: ResultFile) -> list[Drawn]:
    """AUROC and accuracy over the share of records that is retained."""
    found = result.content.get('retained', {})
    figures = []
    for metric in ('auroc', 'accuracy'):
        by_label = found.get(metric, {})
        curves = {
            label: [(f, v) for f, v in zip(found['retained'][label], values, strict=True) if v is not None]
            for label, values in by_label.items()
        }
        curves = {label: points for label, points in curves.items() if points}
        if not curves:
            continue
        whole = [values for values in by_label.values() if None not in values]
        mean = [(f, dict(value=sum(v) / len(v))) for f, v in zip(found['fractions'], zip(*whole, strict=True))]
        label = f'mean{provenance.mark(result.content)}'
        svg = probe_plots.lines(
            f'{metric_title(metric)} of the most certain records{provenance.mark(result.content)}',
            {label: mean} if mean else {},
            'share of records that is kept',
            faint=list(curves.values()),
            falling=True,
        )
        less = len(curves) - len(whole)
        left = f' without {less} label(s) that lose a class' if less else ''
        figures.append(
            Drawn(
                svg,
                'To the right, the least certain records are withheld. A useful certainty makes '
                f'the curve rise. Thick: mean over {len(whole)} label(s){left}; thin: each label.',
            )
        )
    return figures


def subgroups(result: ResultFile) -> list[Drawn]:
    """A forest plot: the mean AUROC in each group of each column."""
    blocks, notes = [], []
    for column, found in result.content.get('subgroups', {}).items():
        if 'results' not in found:
            notes.append(f'{column}: {found.get("note", "nothing to compare")}')
            continue
        gap = found['distances'].get('auroc_gap', {}).get('mean')
        rows = [
            (f'{group} ({found["groups"][group]["patients"]:,})', [with_mark(rows.get('mean'), result)])
            for group, rows in found['results']['auroc'].items()
        ]
        if gap is None:
            notes.append(f'{column}: no label has enough positive and negative records in each group')
            continue
        blocks.append(Rows(f'{column}: gap {cell(gap)}', rows))
        if skipped := found.get('skipped'):
            few = ', '.join(f'{group} ({n})' for group, n in list(skipped.items())[:5])
            notes.append(f'{column}, with too few patients: {few}')
    if not blocks:
        return []
    overall = marked(result.content, 'auroc', 'mean')
    level = Level(overall['value'], 'all records') if overall else None
    svg = probe_plots.dots(
        f'groups of patients: mean AUROC{provenance.mark(result.content)}', blocks, ('AUROC',), 'AUROC', level
    )
    caption = (
        'In brackets: patients. The gap is the largest mean minus the smallest. Noise makes it larger: if its interval '
        'contains 0, the groups may be equal. A column counts only '
        'labels that are frequent enough in all of its groups.'
    )
    return [Drawn(svg, ' '.join([caption, *(f'{note}.' for note in notes)]))]


# Probes with a shape of their own: (the newest export, the encoders beside it) -> figures


def few_shot(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    """AUROC over the number of patients of each class."""
    series: dict[str, Sequence[tuple[float, Any]]] = {}
    for result in (shown, *others):
        shots = {
            int(metric.partition('@')[2]): metric
            for metric in result.content['results']
            if metric.upper().startswith('AUROC@')
        }
        points = [(k, estimate) for k in sorted(shots) if (estimate := marked(result.content, shots[k], 'mean'))]
        series |= {name(result): points} if points else {}
    if not series:
        return []
    ticks = sorted({k for points in series.values() for k, _ in points})
    svg = probe_plots.lines('mean AUROC by number of patients', series, 'patients of each class', ticks=ticks)
    counts = {
        rows['mean'].get('labels')
        for metric, rows in shown.content['results'].items()
        if metric.upper().startswith('AUROC@')
    }
    other = (
        ' The points are means over different labels, because some labels have too few patients.'
        if len(counts) > 1
        else ''
    )
    spread = [
        rows['mean']['deviation']
        for metric, rows in shown.content['results'].items()
        if 'deviation' in rows.get('mean', {})
    ]
    draws = (
        f' Over five draws of patients the mean changes by {max(spread):.3f} (largest standard deviation).'
        if spread
        else ''
    )
    return [
        Drawn(
            svg,
            f'What a linear classifier learns from few patients; bands: intervals over test patients.{draws}{other}',
        )
    ]


def rows_of(
    shown: ResultFile, metric: str, others: Sequence[ResultFile], level: Level | None, caption: str
) -> list[Drawn]:
    """Dots for each row of a metric, an own series for each encoder."""
    results = [result for result in (shown, *others) if metric in result.content['results']]
    rows = [row for row in shown.content['results'].get(metric, {}) if row != 'mean'][:ROWS]
    if not rows:
        return []
    block = Rows('', [(row, [marked(result.content, metric, row) for result in results]) for row in rows])
    return [
        Drawn(
            probe_plots.dots(metric_title(metric), [block], [name(r) for r in results], metric_title(metric), level),
            caption,
        )
    ]


def search(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    metric = next(iter(shown.content['results']))
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
        found = arrays(shown, (f'{column}/answer', f'{column}/truth'))
        if found is None:
            continue
        known = np.isfinite(found[1])
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
            if error and constant
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


def robustness(shown: ResultFile, others: Sequence[ResultFile]) -> list[Drawn]:
    """AUROC over the severity of each fault."""
    series = [result for result in (shown, *others) if result.content.get('clean', {}).get('AUROC')]
    kinds = {
        kind: {
            name(result): [result.content['clean']['AUROC'], *(one['AUROC'] for one in result.content['details'][kind])]
            for result in series
            if kind in result.content['details']
        }
        for kind in shown.content.get('details', {})
    }
    if not series or not kinds:
        return []
    worst = max(
        (row for row in shown.content['results']['drop'] if row != 'mean'),
        key=lambda row: shown.content['results']['drop'][row]['value'] or -math.inf,
    )
    caption = (
        'The linear probe learned from clean images and sees test '
        'images with a fault. Dashed: without the fault. Bands: '
        'intervals over patients. The largest mean drop is that of '
        f'{worst}, {cell(shown.content["results"]["drop"][worst])}.'
    )
    return [Drawn(probe_plots.faults('mean AUROC of the linear probe on images with faults', kinds), caption)]


BY_PROBE: Mapping[str, Callable[[ResultFile, Sequence[ResultFile]], list[Drawn]]] = dict(
    few_shot=few_shot,
    search=search,
    metadata=metadata,
    regression=regression,
    ordinal=ordinal,
    out_of_distribution=out_of_distribution,
    shortcut=shortcut,
    robustness=robustness,
)
