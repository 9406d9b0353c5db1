"""The report of a run as one HTML page: what the files say, in the order in which one would ask.

Is it learning, and is it any good? How good for each label? What do the curves, the features, the data say?
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from medjax.reports import base, plots, result_sections
from medjax.reports.pictures import Pictures
from medjax.reports.run_files import Run

SECTIONS = (
    ('results', 'Results'),
    ('curves', 'ROC and PR'),
    ('losses', 'Losses'),
    ('health', 'Health'),
    ('rates', 'Rates and speed'),
    ('patches', 'Patch features'),
    ('neighbours', 'Neighbours'),
    ('findings', 'Words over patches'),
    ('data', 'Data'),
    ('config', 'Configuration'),
)


def render(run: Run, pictures: Pictures, datasets: Sequence[Mapping[str, Any]], data_words: str) -> str:
    """The page. `datasets` and `pictures` come from the records (pictures.py), all else from the run's files."""
    return base.render(
        'run_page.html',
        command='report',
        images=bool(pictures.patches or pictures.neighbours),
        name=run.name,
        sections=SECTIONS,
        status=run.health.get('status', 'too early'),
        verdict=run.health.get('verdict', 'No verdict yet: the run has not written health.json.'),
        facts=facts(run),
        headlines=result_sections.headlines(run),
        level=result_sections.level(run),
        progress=result_sections.progress(run),
        tables=result_sections.tables(run),
        discrimination=result_sections.discrimination(run),
        losses=losses(run.lines),
        gauges=gauges(run.lines),
        skipped=skipped(run.lines),
        rates=rates(run.lines),
        pictures=pictures,
        datasets=datasets,
        data_words=data_words,
        overlap=result_sections.overlap(run),
        damaged=run.damaged,
        config=json.dumps(run.config, indent=2, sort_keys=True, ensure_ascii=False),
    )


# The header


def facts(run: Run) -> list[tuple[str, str]]:
    """What was run, in a few lines."""
    config = run.config
    total, batch = config.get('total_steps'), config.get('batch_size')
    step = run.lines[-1]['step'] if run.lines else 0
    progress = f'{step:,} of {total:,} steps' if total else f'{step:,} steps'
    if batch:
        progress += f', {step * batch:,} images (batches of {batch:,})'
    found = [('progress', f'{progress}{", done" if run.done else ""}')]
    for name, words in (
        ('towers', [f'{name}: {t.get("tower", "")} {t.get("variant", "")}' for name, t in of(config, 'towers')]),
        ('views', [f'{v.get("count", 1)} x {name} {v["size"]} px' for name, v in of(config, 'views') if 'size' in v]),
        ('heads', [f'{name}, {h["prototypes"]:,} prototypes' for name, h in of(config, 'heads') if 'prototypes' in h]),
        ('terms', [term_words(term) for term in config.get('terms', [])]),
        ('sources', [name for _, part in of(config, 'data') for name in part.get('sources', {})]),
    ):
        if words:
            found.append((name, ', '.join(words)))
    speed = [line['images_per_s'] for line in run.lines if line.get('images_per_s')]
    if speed:
        mfu = [line['mfu'] for line in run.lines if line.get('mfu')]
        words = f', MFU {100 * np.median(mfu):.1f} %' if mfu else ''
        words = ', MFU unknown' if is_mfu_unknown(run.lines) else words
        found.append(('speed', f'{np.median(speed):,.4g} images/s{words} (median)'))
    if run.exports:
        found.append(('exports', f'{len(run.exports)}, the newest of step {run.exports[-1]:,}'))
    return found


def is_mfu_unknown(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a line has mfu null: it was faster than the peak. Then the MFU of all other lines is too high as well."""
    return any(line.get('mfu', 0) is None for line in lines)


def of(config: Mapping[str, Any], section: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, cfg) for name, cfg in config.get(section, {}).items() if isinstance(cfg, Mapping)]


def term_words(term: Mapping[str, Any]) -> str:
    name, weight = term.get('name', term.get('term', '')), term.get('weight', 1)
    return f'{name} x {weight:g}' if isinstance(weight, (int, float)) and weight != 1 else name


# Curves over steps


Lines = Sequence[Mapping[str, Any]]


def column(lines: Lines, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines in which the value is there and finite."""
    pairs = [(line['step'], line[key]) for line in lines if line.get(key) is not None]
    x, y = np.array(pairs, float).reshape(-1, 2).T
    return x, y


def keys(lines: Lines, start: str, end: str = '') -> list[str]:
    found = dict.fromkeys(key for line in lines for key in line)
    return [key for key in found if key.startswith(start) and key.endswith(end) and len(column(lines, key)[0])]


def losses(lines: Lines) -> list[Markup]:
    """The total, and one panel a term with its start value."""
    panels = [plots.curves('total loss', {'loss': column(lines, 'loss')})] if keys(lines, 'loss') else []
    for key in keys(lines, 'term/', '/loss'):
        name = key.split('/')[1]
        start = column(lines, f'term/{name}/start')[1]
        levels = {f'start {start[-1]:.3g}': float(start[-1])} if len(start) and start[-1] > 0 else {}
        views = {view.removeprefix(f'{key}/'): column(lines, view) for view in keys(lines, f'{key}/')}
        series = {'loss': column(lines, key)} | (views if len(views) > 1 else {})
        panels.append(plots.curves(f'{name} loss', series, levels))
    return panels


def gauges(lines: Lines) -> list[Markup]:
    panels = []
    for key in keys(lines, 'term/', '/entropy'):
        name, most = key.split('/')[1], column(lines, f'{key}_max')[1]
        levels = {f'ln K = {most[-1]:.2f}': float(most[-1])} if len(most) else {}
        panels.append(plots.curves(f'{name}: teacher entropy (nats)', {'entropy': column(lines, key)}, levels))
    for key in keys(lines, 'term/', '/prototypes'):
        name, most = key.split('/')[1], column(lines, f'{key}_max')[1]
        levels = {f'one a row: {most[-1]:,.0f}': float(most[-1])} if len(most) else {}  # flat rows use more than one
        panels.append(plots.curves(f'{name}: prototypes the student uses', {'prototypes': column(lines, key)}, levels))
    ranks = {}
    for key in keys(lines, 'rank/'):
        most = column(lines, key.replace('rank/', 'rank_max/', 1))[1]
        name = key.removeprefix('rank/').removeprefix('student/').removesuffix('/cls')
        ranks[f'{name} (at most {most[-1]:.0f})' if len(most) else name] = column(lines, key)
    if ranks:
        panels.append(plots.curves('effective rank of CLS features', ranks, legend=True))
    norms = {key.removeprefix('grad_norm/'): column(lines, key) for key in keys(lines, 'grad_norm/')}
    if norms:
        wide = all(0 < 10 * y.min() < y.max() for _, y in norms.values())
        panels.append(plots.curves('gradient norm', norms, log=wide, legend=True))
    return panels


def skipped(lines: Lines) -> str:
    """A sentence on the steps that were skipped."""
    total = column(lines, 'skipped')[1]
    if not len(total):
        return ''
    return f'Steps skipped because of numbers that were not finite: {total[-1]:.0f}.'


def rates(lines: Lines) -> list[Markup]:
    names = {
        'lr': 'learning rate',
        'weight_decay': 'weight decay',
        'momentum': 'teacher momentum',
        'images_per_s': 'images per second',
    }
    if not is_mfu_unknown(lines):
        names['mfu'] = 'MFU (share of peak)'
    return [plots.curves(title, {title: column(lines, key)}) for key, title in names.items() if keys(lines, key)]
