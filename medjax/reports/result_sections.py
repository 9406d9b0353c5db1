"""The probes' results as the page shows them: headlines, progress over steps, tables, ROC and PR curves, overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from medjax.probes.encode import BASELINES
from medjax.probes.results import COLUMNS
from medjax.reports import plots
from medjax.reports.run_files import Result, Run

LABELS = 12  # panels of ROC and PR curves; the labels with the most positives come first
OVERLAP = {'patient': 'are of patients', 'image': 'are images', 'pixels': 'have pixels'}

Group = Mapping[int | str, Result]  # encoder -> result of one probe on one data set
Figure = Mapping[str, Any]  # value, low, high; the bounds may be None


def figure_of(group: Group) -> str:
    """The figure that headlines and curves show: the first of a result, the AUROC where there are labels."""
    return next((figure for result in group.values() for figure in result.body['results']), 'auroc')


def named(figure: str) -> str:
    return COLUMNS.get(figure) or plain(figure)


def mean(result: Result, figure: str) -> Figure | None:
    """The mean over labels (or over both ways of a retrieval), None where there is none."""
    found = result.body['results'].get(figure, {}).get('mean')
    return found if found and found.get('value') is not None else None


def steps_of(group: Group) -> dict[int, Result]:
    return {encoder: result for encoder, result in group.items() if isinstance(encoder, int)}


def newest_of(group: Group) -> int | None:
    return max(steps_of(group), default=None)


def baselines(group: Group, figure: str) -> dict[str, Figure]:
    """The mean of random init and raw pixels, by name."""
    return {BASELINES[e].title: found for e in BASELINES if e in group and (found := mean(group[e], figure))}


def headlines(run: Run) -> list[dict[str, Any]]:
    """The mean of the newest export, a tile for each probe and data set, and how it stands to the baselines."""
    tiles = []
    for (data, probe), group in run.grouped().items():
        step, figure = newest_of(group), figure_of(group)
        at = mean(group[step], figure) if step is not None else None
        if at:
            words = [compare(at, other, name) for name, other in baselines(group, figure).items()]
            title = f'{probe} on {data}, mean {named(figure)}, step {step:,}'
            tiles.append({'title': title, 'at': at, 'words': '; '.join(words) or 'no baseline yet'})
    return tiles


def compare(at: Figure, other: Figure, name: str) -> str:
    """'above raw pixels (0.812), intervals disjoint': no more than the intervals say."""
    side = 'above' if at['value'] > other['value'] else 'below'
    if any(one.get('low') is None for one in (at, other)):
        return f'{side} {name} ({other["value"]:.3f})'
    apart = at['low'] > other['high'] or at['high'] < other['low']
    return f'{side} {name} ({other["value"]:.3f}), intervals {"disjoint" if apart else "overlap"}'


def level(run: Run) -> str:
    levels = {result.body.get('bootstrap', {}).get('level') for result in run.results} - {None}
    return ' and '.join(f'{100 * value:g} %' for value in sorted(levels)) or '95 %'


def progress(run: Run) -> list[Markup]:
    """The mean over the steps of the exports, one panel for each data set and probe."""
    panels = []
    for (data, probe), group in run.grouped().items():
        figure = figure_of(group)
        points = [(e, at) for e, one in sorted(steps_of(group).items()) if (at := mean(one, figure))]
        if points or baselines(group, figure):
            panels.append(plots.progress(f'{data}, {probe}: mean {named(figure)}', points, baselines(group, figure)))
    return panels


def tables(run: Run) -> list[dict[str, Any]]:
    return [table(data, probe, group) for (data, probe), group in run.grouped().items()]


def table(data: str, probe: str, group: Group) -> dict[str, Any]:
    """All figures of the newest export for each label, with the baselines' first figure beside them."""
    step = newest_of(group)
    shown = next(iter(group)) if step is None else step
    body = group[shown].body
    figures = sorted(body['results'], key=lambda figure: ([*list(COLUMNS), figure]).index(figure))
    others = [e for e in BASELINES if e in group and e != shown]
    first = figure_of(group)
    columns = [named(figure) for figure in figures] + [f'{named(first)} of {BASELINES[e].title}' for e in others]
    rows = []
    for label in dict.fromkeys(['mean', *(label for figure in figures for label in body['results'][figure])]):
        cells = [body['results'][figure].get(label) for figure in figures]
        cells += [group[e].body['results'].get(first, {}).get(label) for e in others]
        counts = next(((c['positives'], c['negatives']) for c in cells if c and 'positives' in c), ())
        usable = [c if c and c.get('value') is not None else None for c in cells]
        rows.append({'label': label, 'counts': counts, 'cells': usable})
    return {
        'title': f'{data}, {probe}, {BASELINES[shown].title if shown in BASELINES else f"export of step {shown:,}"}',
        'columns': columns,
        'rows': rows,
        'words': table_words(body),
        'text': tabs(columns, rows),
    }


def table_words(body: Mapping[str, Any]) -> str:
    """Records, patients, the settings (some chosen on validation), labels left out."""
    words = [', '.join(f'{count:,} {split}' for split, count in body.get('records', {}).items()) + ' records']
    if patients := body.get('bootstrap', {}).get('patients'):
        words += [f'{patients:,} test patients']
    if chosen := body.get('chosen'):
        words += ['settings: ' + ', '.join(f'{plain(key)} {plain(value)}' for key, value in chosen.items())]
    if skipped := body.get('skipped_labels'):
        words += ['left out: ' + ', '.join(f'{label} ({reason})' for label, reason in skipped.items())]
    return '; '.join(words) + '.'


def plain(value: Any) -> str:
    """'validation_auroc' -> 'validation auroc', 0.0316227766 -> '0.0316'."""
    return f'{value:.3g}' if isinstance(value, float) else str(value).replace('_', ' ')


def tabs(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a spreadsheet: value, low and high in columns of their own."""
    numbers = [f'{column}{part}' for column in columns for part in ('', ' low', ' high')]
    lines = [['label', 'positive', 'negative', *numbers]]
    for row in rows:
        values = [cell.get(key) if cell else None for cell in row['cells'] for key in ('value', 'low', 'high')]
        counts = map(str, row['counts'] or ('', ''))
        lines.append([row['label'], *counts, *('' if value is None else f'{value:.4f}' for value in values)])
    return '\n'.join('\t'.join(line) for line in lines)


def discrimination(run: Run) -> dict[str, Any]:
    """ROC and PR panels of the newest export on its first data set, one a label, with raw pixels for comparison."""
    newest = run.newest()
    scored = [r for r in run.results if r.encoder == newest and r.scores is not None]
    if not scored:
        return {'panels': [], 'words': ''}
    data = scored[0].data
    drawn = {r.probe: curves for r in reversed(scored) if r.data == data and (curves := r.curves())}
    if not drawn:
        return {'panels': [], 'words': ''}
    pixels = {r.probe: r for r in run.results if (r.encoder, r.data) == ('pixels', data)}
    first = next((probe for probe in drawn if probe in pixels), next(iter(drawn)))
    drawn = {first: drawn[first]} | drawn  # the first is drawn boldest
    if first in pixels:
        drawn[f'raw pixels ({first})'] = pixels[first].curves()
    count = {name: int(np.sum(truth)) for name, (_, truth) in drawn[first].items() if 0 < np.sum(truth) < len(truth)}
    names = sorted(count, key=lambda name: -count[name])[:LABELS]
    words = f'Newest export with results (step {newest:,}), test split of {data}. Dotted: chance.'
    if len(count) > LABELS:
        words += f' The {LABELS} labels with the most positives of {len(count)}.'
    panels = [plots.discrimination(name, {probe: c[name] for probe, c in drawn.items() if name in c}) for name in names]
    return {'panels': panels, 'words': words}


def overlap(run: Run) -> list[str]:
    """What share of each test set the newest export was trained on, or why that is unknown: a sentence a data set."""
    said = {}
    for result in run.results:
        found = result.body.get('overlap')
        if result.encoder != run.newest():
            continue
        if found:
            shares = [f'{100 * found[k]:.1f} % {words}' for k, words in OVERLAP.items() if found.get(k) is not None]
            said[result.data] = f'{result.data}: of its test records, {", ".join(shares)} that pretraining saw.'
            if not found.get('comparable', True):
                said[result.data] += ' Ids were hashed with another key, so patients and images are not all compared.'
        elif why := result.body.get('provenance'):
            said[result.data] = f'{result.data}: {why}.'
    return list(said.values())
