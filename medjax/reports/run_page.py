"""The report of a run as one HTML page.

Sections are in the order of a reader's questions. Does the model learn, and is it good? How good is it for each label?
What do the curves, the features and the data show?
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from markupsafe import Markup

from medjax.probes import best, drop
from medjax.reports import answer, base, plots, probe_figures, result_sections
from medjax.reports.figure_parts import Drawn
from medjax.reports.pictures import Gallery, Pictures
from medjax.reports.result_shapes import DamagedResult
from medjax.reports.run_files import Run

SECTIONS = (
    ('results', 'Results'),
    ('curves', 'ROC and PR'),
    ('worst', 'Worst cases'),
    ('losses', 'Losses'),
    ('health', 'Health'),
    ('rates', 'Rates and speed'),
    ('patches', 'Patch features'),
    ('neighbours', 'Nearest neighbours'),
    ('findings', 'Maps of findings'),
    ('data', 'Data'),
    ('config', 'Configuration'),
)

RATES = {
    'lr': 'learning rate',
    'weight_decay': 'weight decay',
    'momentum': 'teacher momentum',
    'images_per_s': 'images per second',
}

Log = Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl


def render(
    run: Run, pictures: Pictures, worst: Gallery, datasets: Sequence[Mapping[str, Any]], missing_data: str
) -> str:
    """The page. `datasets` and `pictures` come from the records, everything else from the files of the run."""
    return base.render(
        'run_page.html',
        command='report',
        images=any(gallery.rows for gallery in (*pictures, worst)),
        name=run.name,
        sections=SECTIONS,
        status=run.health.get('status', 'too early'),
        verdict=' '.join(
            [
                run.health.get('verdict', 'No verdict yet: the run has not written health.json.'),
                *drop.sentences([result.content for result in run.results]),
            ]
        ),
        answer=answer.of_run(run),
        facts=facts(run),
        headlines=result_sections.headlines(run),
        level=result_sections.level(run),
        contaminated=result_sections.contaminated(run),
        curves_over_steps=result_sections.curves_over_steps(run),
        tables=result_sections.tables(run),
        figures=figures(run),
        roc_and_pr=result_sections.roc_and_pr(run),
        losses=losses(run.log),
        gauges=gauges(run.log),
        skipped=skipped(run.log),
        rates=rates(run.log),
        pictures=pictures,
        worst=worst,
        datasets=datasets,
        missing_data=missing_data,
        overlap=result_sections.overlap(run),
        damaged=run.damaged,
        config=json.dumps(run.config, indent=2, sort_keys=True, ensure_ascii=False),
    )


def figures(run: Run) -> list[list[Drawn] | str]:
    """The figures of each table, in the order of the tables; a sentence for a result that has other keys."""
    found: list[list[Drawn] | str] = []
    for (data, probe), results in run.results_by_probe().items():
        try:
            found.append(probe_figures.of_probe(probe, results))
        except DamagedResult as error:
            found.append(f'The figures are left out: a result of {probe} on {data} is damaged ({error}).')
    return found


# The header


def facts(run: Run) -> list[tuple[str, str]]:
    """(name, value) of the main settings of the run and of its progress."""
    config = run.config
    rows = [('progress', progress(run))]
    for name, values in (
        ('towers', [f'{n}: {t.get("tower", "")} {t.get("variant", "")}' for n, t in section(config, 'towers')]),
        ('views', [f'{v.get("count", 1)} x {n} {v["size"]} px' for n, v in section(config, 'views') if 'size' in v]),
        (
            'heads',
            [
                f'{n}, {h["prototypes"]:,} prototypes'
                for n, h in section(config, 'heads')
                if isinstance(h.get('prototypes'), int)
            ],
        ),
        ('terms', [term_title(term) for term in config.get('terms', [])]),
        ('sources', [name for _, part in section(config, 'data') for name in part.get('sources', {})]),
        *history(config),
    ):
        if values:
            rows.append((name, ', '.join(values)))
    speeds = [line['images_per_s'] for line in run.log if line.get('images_per_s')]
    if speeds:
        rows.append(('speed', f'{np.median(speeds):,.4g} images/s{mfu(run.log)} (median)'))
    if run.exports:
        rows.append(('exports', f'{len(run.exports)}; the newest is of step {run.exports[-1]:,}'))
    if run.best:
        gone = '' if run.best['step'] in run.exports else '; it is no longer there'
        rows.append(('best export', f'{best.sentence(run.best)}{gone}'))
    return rows


def progress(run: Run) -> str:
    """'2,000 of 2,000 steps, 64,000 images (batches of 32), done'."""
    total, batch = run.config.get('total_steps'), run.config.get('batch_size')
    step = run.log[-1]['step'] if run.log else 0
    text = f'{step:,} of {total:,} steps' if total else f'{step:,} steps'
    if batch:
        sizes = [batch, *(stage['change']['batch_size'] for stage in resized(run.config))]
        text += f', {images_seen(run.config, step):,} images (batches of {", then ".join(f"{n:,}" for n in sizes)})'
    return text + (', done' if run.done else '')


def history(config: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """What happened to the run: its parent, other ends, its stages."""
    life = config.get('life') or {'parent': None, 'ends': []}
    parent, ends = life['parent'], life['ends']
    return [
        ('branch of', [] if parent is None else [f'{PurePath(parent["run"]).name}, step {parent["step"]:,}']),
        ('length', [f'{ends[0][1]:,} steps', *map(lengthened, ends, ends[1:])] if len(ends) > 1 else []),
        ('stages', [f'from step {stage["at"]:,} on: {changes(stage)}' for stage in config.get('stages', ())]),
    ]


def lengthened(before: Sequence[int], now: Sequence[int]) -> str:
    """'lengthened at step 40 to 200', from two ends [step, total_steps]."""
    return f'{"lengthened" if now[1] > before[1] else "shortened"} at step {now[0]:,} to {now[1]:,}'


def changes(stage: Mapping[str, Any]) -> str:
    """'views.global.size 518 and optim': values of a stage that are numbers or names, and the keys of others."""
    return ' and '.join(
        f'{key} {value}' if isinstance(value, (int, float, str)) else key for key, value in stage['change'].items()
    )


def resized(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The stages that change the batch size."""
    return [stage for stage in config.get('stages', ()) if 'batch_size' in stage['change']]


def images_seen(config: Mapping[str, Any], step: int) -> int:
    """The number of rows in the batches of the first `step` steps."""
    parts = [(0, config['batch_size']), *((stage['at'], stage['change']['batch_size']) for stage in resized(config))]
    ends = [*(at for at, _ in parts[1:]), step]
    return sum(max(min(end, step) - begin, 0) * rows for (begin, rows), end in zip(parts, ends, strict=True))


def mfu(log: Log) -> str:
    """', MFU 31.0 %': the median share of the peak FLOPs; '' if the log has none."""
    if is_mfu_unknown(log):
        return ', MFU unknown'
    shares = [line['mfu'] for line in log if line.get('mfu')]
    return f', MFU {100 * np.median(shares):.1f} %' if shares else ''


def is_mfu_unknown(log: Log) -> bool:
    """True if a line has mfu null: the run was faster than the measured peak, so the MFU of all lines is too high."""
    return any(line.get('mfu', 0) is None for line in log)


def section(config: Mapping[str, Any], name: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The dicts in a section of the config, by name."""
    return [(key, cfg) for key, cfg in config.get(name, {}).items() if isinstance(cfg, Mapping)]


def term_title(term: Mapping[str, Any]) -> str:
    """'koleo x 0.1': the name of a term, and its weight if that is not 1."""
    name, weight = term.get('name', term.get('term', '')), term.get('weight', 1)
    return f'{name} x {weight:g}' if isinstance(weight, (int, float)) and weight != 1 else name


# Curves over steps


def column(log: Log, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the lines that have a finite value."""
    points = [(line['step'], line[key]) for line in log if line.get(key) is not None]
    x, y = np.array(points, float).reshape(-1, 2).T
    return x, y


def keys(log: Log, start: str, end: str = '') -> list[str]:
    """The keys with this start and end that have a value in some line."""
    names = dict.fromkeys(key for line in log for key in line)
    return [key for key in names if key.startswith(start) and key.endswith(end) and len(column(log, key)[0])]


def losses(log: Log) -> list[Markup]:
    """A panel for the total loss, and one for each term with its value at the start."""
    panels = [plots.curves('total loss', {'loss': column(log, 'loss')})] if keys(log, 'loss') else []
    for key in keys(log, 'term/', '/loss'):
        name = key.split('/')[1]
        start = column(log, f'term/{name}/start')[1]
        levels = {f'start {start[-1]:.3g}': float(start[-1])} if len(start) and start[-1] > 0 else {}
        views = {view.removeprefix(f'{key}/'): column(log, view) for view in keys(log, f'{key}/')}
        series = {'loss': column(log, key)} | (views if len(views) > 1 else {})
        panels.append(plots.curves(f'{name} loss', series, levels))
    return panels


def gauges(log: Log) -> list[Markup]:
    """Panels that show a collapse: teacher entropy, prototypes in use, effective rank, gradient norm."""
    panels = []
    for key in keys(log, 'term/', '/entropy'):
        name, most = key.split('/')[1], column(log, f'{key}_max')[1]
        levels = {f'ln K = {most[-1]:.2f}': float(most[-1])} if len(most) else {}
        panels.append(plots.curves(f'{name}: teacher entropy (nats)', {'entropy': column(log, key)}, levels))
    for key in keys(log, 'term/', '/prototypes'):
        name, most = key.split('/')[1], column(log, f'{key}_max')[1]
        # Not a maximum: a row with a flat distribution uses more than one prototype.
        levels = {f'one per row: {most[-1]:,.0f}': float(most[-1])} if len(most) else {}
        panels.append(plots.curves(f'{name}: prototypes the student uses', {'prototypes': column(log, key)}, levels))
    ranks = {}
    for key in keys(log, 'rank/'):
        most = column(log, key.replace('rank/', 'rank_max/', 1))[1]
        name = key.removeprefix('rank/').removeprefix('student/').removesuffix('/cls')
        ranks[f'{name} (at most {most[-1]:.0f})' if len(most) else name] = column(log, key)
    if ranks:
        panels.append(plots.curves('effective rank of CLS features', ranks, legend=True))
    if keys(log, 'similarity/start'):
        kept = {'similarity': column(log, 'similarity/start')}
        panels.append(plots.curves('similarity to the start of the run', kept, {'1 at the start': 1.0}))
    norms = {key.removeprefix('grad_norm/'): column(log, key) for key in keys(log, 'grad_norm/')}
    if norms:
        wide = all(0 < 10 * y.min() < y.max() for _, y in norms.values())
        panels.append(plots.curves('gradient norm', norms, log=wide, legend=True))
    return panels


def skipped(log: Log) -> str:
    """A sentence on the number of skipped steps."""
    total = column(log, 'skipped')[1]
    if not len(total):
        return ''
    return f'Steps skipped because the loss or a gradient was not finite: {total[-1]:.0f}.'


def rates(log: Log) -> list[Markup]:
    """Panels of the schedules and of the speed. The MFU is left out if it is unknown."""
    return [plots.curves(title, {title: column(log, key)}) for key, title in rate_titles(log).items() if keys(log, key)]


def rate_titles(log: Log) -> dict[str, str]:
    """The titles of the panels of `rates` by the key of their values."""
    return RATES | ({} if is_mfu_unknown(log) else {'mfu': 'MFU (share of the peak FLOPs)'})
