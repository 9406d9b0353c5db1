"""Figures of trust in a label probe: reliability, coverage of conformal sets, certainty, groups of patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medjax.probes import provenance
from medjax.probes.results import cell
from medjax.probes.summary import MAPS
from medjax.reports import probe_plots, result_shapes
from medjax.reports.figure_parts import LABELS, ROWS, Drawn, with_mark
from medjax.reports.probe_plots import Level, Rows
from medjax.reports.result_sections import marked, metric_title
from medjax.reports.run_files import ResultFile

HOLD = 'share of sets that hold the label'


def reliability(result: ResultFile) -> list[Drawn]:
    """A diagram for each label: before and after Platt's map."""
    found = result_shapes.reliability(result)
    if found is None:
        return []
    bins, maps, labels = found
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
