"""Runs side by side as one HTML page, and as a short table for a paper.

Every run has one name and one colour on the whole page. Of each run one export is compared: the best one by
`medjax probe --best`, else the newest one with results. The best values are marked, but nothing is chosen here: all
values are of the test split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from medjax.errors import UserError
from medjax.probes import comparison, provenance, tables
from medjax.probes.encode import title as encoder_title
from medjax.probes.results import DIGITS, direction
from medjax.probes.tables import Table
from medjax.reports import base, compare_plots, result_sections, run_page
from medjax.reports.result_sections import Estimate, metric_title
from medjax.reports.run_files import ResultFile, Run
from medjax.reports.run_page import Log, column

SECTIONS = (
    ('runs', 'Runs'),
    ('results', 'Results'),
    ('losses', 'Losses'),
    ('health', 'Health'),
    ('rates', 'Rates and speed'),
    ('settings', 'Settings'),
)
STAR = '★'

Row = tuple[str, ...]  # a dotted key, and its value in each config


class Differences(NamedTuple):
    """The settings in which runs differ."""

    computed: Sequence[Row]  # change what a step computes
    others: Sequence[Row]  # do not: paths, intervals, placing
    note: str  # '' or why the two cannot be told apart; then all rows are in `computed`


class Group(NamedTuple):
    """The results of one probe on one data set."""

    data: str
    probe: str
    by_run: Sequence[Mapping[int | str, ResultFile]]  # for each run {encoder: result}

    @property
    def metric(self) -> str:
        return next(result_sections.main_metric(results) for results in self.by_run if results)

    @property
    def title(self) -> str:
        return f'{self.probe} {metric_title(self.metric)} on {self.data}'


def render(runs: Mapping[str, Run], differences: Differences) -> str:
    """The page of runs by their names."""
    listed, groups = list(runs.values()), groups_of(list(runs.values()))
    return base.render(
        'compare_page.html',
        command='compare',
        images=False,
        name=f'{len(runs)} runs',
        sections=SECTIONS,
        runs=[
            dict(name=name, line=compare_plots.line(i), health=run.health, notes=notes(run))
            for i, (name, run) in enumerate(runs.items())
        ],
        facts=facts(listed),
        contaminated=contaminated(runs),
        level=' and '.join(dict.fromkeys(map(result_sections.level, listed))),
        forests=forests(groups, runs),
        curves_over_steps=[curves_over_steps(group, listed) for group in groups],
        groups=[
            dict(
                title=group.title,
                notes=warnings(group),
                paired=paired(group, runs),
                steps=steps_table(group, listed),
                exports=table(group, runs),
            )
            for group in groups
        ],
        losses=losses([run.log for run in listed]),
        gauges=gauges([run.log for run in listed]),
        rates=rates([run.log for run in listed]),
        differences=differences,
        markdown=tables.markdown(summary(runs)),
        latex=tables.latex(summary(runs)),
    )


def contaminated(runs: Mapping[str, Run]) -> str:
    """What the mark of contaminated results means, for each run that has them; '' without any."""
    found = {name: result_sections.contaminated(run).removeprefix(provenance.START) for name, run in runs.items()}
    listed = '; '.join(f'{name}: {text}' for name, text in found.items() if text)
    return f'{provenance.START}{listed}' if listed else ''


# The runs


def notes(run: Run) -> list[str]:
    """Sentences on what a run does not have yet."""
    found = [] if run.done else ['It is not finished: it is being trained, or it was stopped.']
    if not run.log:
        found.append('It has no line in metrics.jsonl, so no curves.')
    if not run.results:
        found.append('It has no results of probes; `medjax probe --run RUN --data DATA` writes them.')
    if run.best and run.best['step'] not in run.exports:
        found.append(f'Its best export, of step {run.best["step"]:,}, is no longer there.')
    return [*found, *run.damaged]


def facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """(name, the value of each run) of the main settings, the history and the progress."""
    found = [dict(run_page.facts(run)) for run in runs]
    names = dict.fromkeys(name for one in found for name in one)
    return [(name, [one.get(name, '–') for one in found]) for name in names]


def compared_step(run: Run) -> int | None:
    """The step of the export that is compared: the best one if it has results, else the newest one with results."""
    steps = {result.encoder for result in run.results if isinstance(result.encoder, int)}
    return run.best['step'] if run.best and run.best['step'] in steps else max(steps, default=None)


def step_title(run: Run) -> str:
    """'step 1,000 ★' of the compared export; '' without results."""
    step = compared_step(run)
    star = f' {STAR}' if run.best and run.best['step'] == step else ''
    return '' if step is None else f'step {step:,}{star}'


# Results


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The results of all runs by data set and probe. Two data sets of one name are told apart by their fingerprints."""
    found: dict[tuple[str, str, str], list[dict[int | str, ResultFile]]] = {}
    for i, run in enumerate(runs):
        for result in run.results:
            fingerprint = str(result.content.get('data_fingerprint', ''))
            data = result.data.removesuffix(f'-{fingerprint[:DIGITS]}')
            by_run = found.setdefault((data, result.probe, fingerprint), [{} for _ in runs])
            by_run[i][result.encoder] = result
    prints: dict[str, set[str]] = {}
    for data, _, fingerprint in found:
        prints.setdefault(data, set()).add(fingerprint)
    return [
        Group(data if len(prints[data]) == 1 else f'{data} ({fingerprint[:DIGITS]})', probe, by_run)
        for (data, probe, fingerprint), by_run in sorted(found.items(), key=lambda item: item[0])
    ]


def warnings(group: Group) -> list[str]:
    """Sentences on results that must not be compared: of other labels, policies, prompts or versions of an encoder."""
    contents = [result.content for results in group.by_run for result in results.values()]
    aspects: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        'other labels': lambda content: sorted(content['results'].get(group.metric, {})),
        'another policy of uncertain and blank labels': lambda content: content.get('policy') or {},
        'another unit or pooling of images': lambda content: {
            key: (content.get('unit') or {}).get(key) for key in ('unit', 'pool')
        },
        'other prompts': lambda content: (content.get('chosen') or {}).get('prompts'),
    }
    different = [what for what, of in aspects.items() if len({repr(of(content)) for content in contents}) > 1]
    return [
        f'These results are not all alike: some are of {what}, so their means differ by that too.' for what in different
    ]


def paired(group: Group, runs: Mapping[str, Run]) -> list[str]:
    """A sentence for each run but the first one with results: the difference of their exports on the same patients."""
    shown = {}
    for (name, run), results in zip(runs.items(), group.by_run, strict=True):
        result = results.get(compared_step(run))
        scored = result and result.scores and comparison.read(result.scores.with_suffix('.json'))
        if scored:
            shown[f'{name}, {step_title(run)}{provenance.mark(scored.content)}'] = scored
    (first, base_scores), *others = shown.items() if len(shown) > 1 else [(None, None)]
    pairs, sentences = {}, []
    for name, scored in others:
        try:
            pairs[name] = comparison.paired(scored, base_scores)
        except UserError as error:
            sentences.append(f'{name} and {first} are not compared: {str(error).partition(": ")[2]}.')
    comparison.adjust_means(list(pairs.values()))
    return [f'{name} - {first}: {comparison.in_words(pair)}.' for name, pair in pairs.items()] + sentences


def forests(groups: Sequence[Group], runs: Mapping[str, Run]) -> list[Markup]:
    """A forest plot for each metric that leads a probe: the mean of the compared export of each run."""
    blocks: dict[str, list[tuple[str, list[Estimate | None]]]] = {}
    for group in groups:
        steps = map(compared_step, runs.values())
        means = [mean(results.get(step), group.metric) for results, step in zip(group.by_run, steps, strict=True)]
        if any(means):
            blocks.setdefault(metric_title(group.metric), []).append((f'{group.probe} on {group.data}', means))
    return [compare_plots.forest(f'mean {metric}', of_metric, list(runs)) for metric, of_metric in blocks.items()]


def curves_over_steps(group: Group, runs: Sequence[Run]) -> Markup:
    """The mean of each export of each run."""
    points = []
    for results in group.by_run:
        means = {step: mean(result, group.metric) for step, result in sorted(result_sections.exports(results).items())}
        points.append([(step, estimate) for step, estimate in means.items() if estimate])
    return compare_plots.metric(group.title, points, [run.best.get('step') for run in runs])


def mean(result: ResultFile | None, metric: str) -> Estimate | None:
    return None if result is None else result_sections.mean(result, metric)


def steps_table(group: Group, runs: Sequence[Run]) -> list[dict[str, Any]]:
    """A row for each step, then for each encoder that is no export of a run: the mean of each run, and its star."""
    steps = sorted({step for results in group.by_run for step in result_sections.exports(results)})
    others = list(dict.fromkeys(name for results in group.by_run for name in result_sections.compared(results)))
    rows = []
    for encoder in [*steps, *others]:
        cells = [mean(results.get(encoder), group.metric) for results in group.by_run]
        stars = [run.best.get('step') == encoder for run in runs]
        label = f'step {encoder:,}' if isinstance(encoder, int) else encoder_title(encoder)
        rows.append(dict(label=label, cells=list(zip(cells, stars, strict=True))))
    return rows


def table(group: Group, runs: Mapping[str, Run]) -> dict[str, Any]:
    """The compared export of each run: the mean of each metric, then the main metric for each label."""
    shown = [results.get(compared_step(run)) for run, results in zip(runs.values(), group.by_run, strict=True)]
    there = [result.content['results'] for result in shown if result is not None]
    wanted = [(metric, 'mean') for metric in dict.fromkeys(metric for content in there for metric in content)]
    wanted += [
        (group.metric, label)
        for label in dict.fromkeys(label for content in there for label in content.get(group.metric, {}))
        if label != 'mean'
    ]
    rows = []
    for metric, label in wanted:
        cells = [None if r is None else result_sections.marked(r.content, metric, label) for r in shown]
        title = f'mean {metric_title(metric)}' if label == 'mean' else label
        rows.append(dict(label=title, cells=list(zip(cells, best(cells, metric), strict=True))))
    columns = [f'{name}, {step_title(run)}' if step_title(run) else name for name, run in runs.items()]
    return dict(columns=columns, rows=rows)


def best(cells: Sequence[Estimate | None], metric: str) -> list[bool]:
    """For each value whether it is the best of several, as far as it is printed: .8421 and .8424 are equal."""
    sign = direction(metric)
    values = [None if cell is None else sign * round(cell['value'], 3) for cell in cells]
    known = [value for value in values if value is not None]
    return [sign != 0 and len(known) > 1 and value is not None and value == max(known) for value in values]


def summary(runs: Mapping[str, Run]) -> Table:
    """A row for each run: its export, the mean of each probe on each data set, its health."""
    groups = groups_of(list(runs.values()))
    steps = [compared_step(run) for run in runs.values()]
    columns = []
    for group in groups:
        cells = [mean(results.get(step), group.metric) for results, step in zip(group.by_run, steps, strict=True)]
        if any(cells):
            columns.append(
                (group.title, [printed(*cell) for cell in zip(cells, best(cells, group.metric), strict=True)])
            )
    columns = [
        ('run', list(runs)),
        ('steps', [progress(run) for run in runs.values()]),
        ('export', [step_title(run) for run in runs.values()]),
        *columns,
        ('health', [str(run.health.get('status', 'no health.json')) for run in runs.values()]),
    ]
    rows = list(zip(*(cells for _, cells in columns), strict=True))
    explained = contaminated(runs)
    return Table('', [title for title, _ in columns], rows, [explained] if explained else [], names=3)


def progress(run: Run) -> str:
    """'600 of 1,000'; '1,000' where all steps are done."""
    step, total = run.log[-1]['step'] if run.log else 0, run.config.get('total_steps')
    return f'{step:,}' if not total or step >= total else f'{step:,} of {total:,}'


def printed(estimate: Estimate | None, bold: bool) -> str:
    """'**.842** [.820, .861]', as papers print it."""
    if estimate is None:
        return '–'

    def short(value: float) -> str:
        return f'{value:.3f}'.removeprefix('0')

    low, high = estimate.get('low'), estimate.get('high')
    value = (f'**{short(estimate["value"])}**' if bold else short(estimate['value'])) + estimate.get('mark', '')
    return value if low is None or high is None else f'{value} [{short(low)}, {short(high)}]'


# Curves over steps


def losses(logs: Sequence[Log]) -> list[Markup]:
    """A panel for the total loss, and one for each term."""
    return panels(logs, {'loss': 'total loss'} | by_term(logs, '/loss', '{} loss'))


def gauges(logs: Sequence[Log]) -> list[Markup]:
    """Panels that show a collapse: teacher entropy, prototypes in use, effective rank, gradient norm."""
    entropies = by_term(logs, '/entropy', '{}: teacher entropy (nats)')
    prototypes = by_term(logs, '/prototypes', '{}: prototypes the student uses')
    ranks = {
        key: f'effective rank, {key.removeprefix("rank/").removeprefix("student/").removesuffix("/cls")}'
        for key in keys(logs, 'rank/')
    }
    norms = {key: f'gradient norm, {key.removeprefix("grad_norm/")}' for key in keys(logs, 'grad_norm/')}
    return panels(logs, entropies | prototypes | ranks | norms)


def rates(logs: Sequence[Log]) -> list[Markup]:
    """Panels of the schedules and of the speed."""
    titles: dict[str, str] = {}
    for log in logs:
        titles |= run_page.rate_titles(log)
    return panels(logs, titles)


def keys(logs: Sequence[Log], start: str, end: str = '') -> list[str]:
    return list(dict.fromkeys(key for log in logs for key in run_page.keys(log, start, end)))


def by_term(logs: Sequence[Log], end: str, title: str) -> dict[str, str]:
    """{'term/cls/loss': 'cls loss', …}."""
    return {key: title.format(key.split('/')[1]) for key in keys(logs, 'term/', end)}


def panels(logs: Sequence[Log], titles: Mapping[str, str]) -> list[Markup]:
    """A panel for each key that some run has."""
    found = []
    for key, title in titles.items():
        series = [column(log, key) for log in logs]
        if any(len(x) for x, _ in series):
            values = np.concatenate([y for _, y in series])
            is_wide = key.startswith('grad_norm/') and 0 < 10 * values.min() < values.max()
            found.append(compare_plots.curves(title, series, log=is_wide))
    return found
