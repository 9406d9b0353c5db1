"""The sections of a run's page that show results: headlines, curves over steps, tables, ROC and PR curves, overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from medjax.probes import provenance
from medjax.probes.encode import title
from medjax.probes.results import METRIC_TITLES, probe_of
from medjax.probes.tables import NOT_IN_TABLES
from medjax.reports import plots
from medjax.reports.run_files import ResultFile, Run

PROBES = dict(
    knn='The most similar train images vote on each label of a test image',
    linear='Logistic regressions predict the labels from the features of the image encoder, which does not change',
    classifier='The classifier of the run predicts the labels that it was trained on; nothing is fitted here',
    zero_shot='A test image is scored by its similarity to sentences about a finding; the probe learns from no label',
    linear_sgd='Linear classifiers learn by SGD from the features, with 13 rates, as in DINOv2; validation chooses one',
    few_shot='Logistic regressions learn from few patients of each class, as many as @ says; means of five draws',
    search='P@10: the share of the 10 nearest train images that have the finding of a test image',
    metadata='Logistic regressions predict columns of words, such as sex or view, from the features',
    regression='Ridge regressions predict columns of numbers, such as age, from the features',
    ordinal='Logistic regressions predict a grade from the features: whether it is above each level',
    robustness='The linear probe sees test images with eleven faults; figures are means over five severities',
    out_of_distribution='Distances from train images tell images of a label that was held out, or of another data set',
    segmentation='A linear layer tells from the features of each patch which structures of the masks it shows',
    segmentation_decoder='A small convolutional network draws the structures of the masks from the features of patches',
    fine_tune_segmentation='The encoder and a decoder have learned the structures of the masks together',
    localisation='The similarity of patches to a structure makes a map; pointing game: its highest point is inside',
    graph_cut='A graph of the patches of an image is cut in two without learning, and compared with the masks',
    concepts='Labels are predicted from the probabilities of named concepts alone',
    shortcut='The linear probe where a column supports the right answer (aligned), and where it misleads (conflicting)',
    retrieval='R@5: the share of queries with a hit among the first 5 candidates. P@5: the share of hits among them',
)
SETTINGS = dict(by='chosen by', validation_auroc='validation AUROC')  # the others are printed as they are
LABELS = 12  # panels of ROC and PR curves; the labels with the most positives come first

ResultsByEncoder = Mapping[int | str, ResultFile]  # of one probe on one data set
Estimate = Mapping[str, Any]  # value, low, high; low and high may be None


def main_metric(results: ResultsByEncoder) -> str:
    """The metric of headlines and curves: the first one of a result, which is AUROC for label probes."""
    return next((metric for result in results.values() for metric in result.content['results']), 'auroc')


def metric_title(metric: str) -> str:
    return METRIC_TITLES.get(metric) or readable(metric)


def mean(result: ResultFile, metric: str) -> Estimate | None:
    """The mean over labels, or over both directions of retrieval; None if the result has no such value."""
    return marked(result.content, metric, 'mean')


def marked(content: Mapping[str, Any], metric: str, row: str) -> Estimate | None:
    """A value of a result, with a `mark` if the result is contaminated; None if the result has no such value."""
    estimate = content['results'].get(metric, {}).get(row)
    if not estimate or estimate.get('value') is None:
        return None
    return dict(estimate) | (dict(mark=provenance.MARK) if provenance.is_contaminated(content) else {})


def identified(result: ResultFile) -> dict[str, Any]:
    """The content of a result with its encoder, as the folder of the file names it."""
    return dict(result.content) | dict(encoder=dict(step=result.encoder))


def contaminated(run: Run) -> str:
    """What the mark of contaminated results means; '' if the run has none."""
    return provenance.explanation(map(identified, run.results))


def exports(results: ResultsByEncoder) -> dict[int, ResultFile]:
    return {encoder: result for encoder, result in results.items() if isinstance(encoder, int)}


def newest_export(results: ResultsByEncoder) -> int | None:
    return max(exports(results), default=None)


def shown(results: ResultsByEncoder) -> int | str:
    """The encoder whose values are shown one by one: the newest export, else the first encoder."""
    step = newest_export(results)
    return next(iter(results)) if step is None else step


def baseline_means(results: ResultsByEncoder, metric: str) -> dict[str, Estimate]:
    """{title: mean} of the encoders that a run is compared with: those beside it, then the baselines."""
    return {
        title(name): estimate for name in compared(results) if (estimate := mean(results[name], metric)) is not None
    }


def compared(results: ResultsByEncoder) -> list[str]:
    """The encoders that are no exports of the run, in the order of the results."""
    return [name for name in results if isinstance(name, str)]


def headlines(run: Run) -> list[dict[str, Any]]:
    """A tile for each probe and data set: the mean of the newest export, compared with the baselines."""
    tiles = []
    for (data, probe), results in run.results_by_probe().items():
        step, metric = newest_export(results), main_metric(results)
        estimate = mean(results[step], metric) if step is not None else None
        if estimate:
            comparisons = [compare(estimate, other, name) for name, other in baseline_means(results, metric).items()]
            title = f'{probe} on {data}, mean {metric_title(metric)}, step {step:,}'
            seen = f'test records {provenance.COLUMN}: {provenance.seen(identified(results[step]))}'
            note = f'{"; ".join(comparisons) or "no baseline yet"}; {seen}'
            tiles.append(dict(title=title, estimate=estimate, note=note))
    return tiles


def compare(estimate: Estimate, other: Estimate, name: str) -> str:
    """'above raw pixels (0.812), intervals do not overlap'; without an interval only the first half."""
    difference = estimate['value'] - other['value']
    value = f'{other["value"]:.3f}{other.get("mark", "")}'
    side = 'above' if difference > 0 else 'below' if difference < 0 else 'equal to'
    if any(e.get('low') is None for e in (estimate, other)):
        return f'{side} {name} ({value})'
    apart = estimate['low'] > other['high'] or estimate['high'] < other['low']
    return f'{side} {name} ({value}), intervals {"do not overlap" if apart else "overlap"}'


def level(run: Run) -> str:
    """The level of the intervals: '95 %'."""
    levels = {result.content.get('bootstrap', {}).get('level') for result in run.results} - {None}
    return ' and '.join(f'{100 * value:g} %' for value in sorted(levels)) or '95 %'


def curves_over_steps(run: Run) -> list[Markup]:
    """A panel for each data set and probe: the mean of each export, and the baselines."""
    panels = []
    for (data, probe), results in run.results_by_probe().items():
        metric = main_metric(results)
        means = {step: mean(result, metric) for step, result in sorted(exports(results).items())}
        points = [(step, estimate) for step, estimate in means.items() if estimate]
        baselines = baseline_means(results, metric)
        if points or baselines:
            title = f'{data}, {probe}: mean {metric_title(metric)}'
            panels.append(plots.metric_over_steps(title, points, baselines, run.best.get('step')))
    return panels


def tables(run: Run) -> list[dict[str, Any]]:
    return [table(data, probe, results) for (data, probe), results in run.results_by_probe().items()]


def table(data: str, probe: str, results: ResultsByEncoder) -> dict[str, Any]:
    """All metrics of the newest export for each label, and the main metric of the baselines."""
    encoder = shown(results)
    content = results[encoder].content
    metrics = [metric for metric in [*METRIC_TITLES, *content['results']] if metric in content['results']]
    metrics = [metric for metric in dict.fromkeys(metrics) if metric not in NOT_IN_TABLES]
    others = [name for name in compared(results) if name != encoder]
    main = main_metric(results)
    columns = [metric_title(metric) for metric in metrics]
    columns += [f'{metric_title(main)} of {title(name)}' for name in others]
    rows = []
    for label in dict.fromkeys(['mean', *(label for metric in metrics for label in content['results'][metric])]):
        cells = [marked(content, metric, label) for metric in metrics]
        cells += [marked(results[name].content, main, label) for name in others]
        counted = (content['results'][metric].get(label, {}) for metric in metrics)
        counts = next(((c['positives'], c['negatives']) for c in counted if 'positives' in c), ())
        rows.append({'label': label, 'counts': counts, 'cells': cells})
    return {
        'title': f'{data}, {probe}, {f"export of step {encoder:,}" if isinstance(encoder, int) else title(encoder)}',
        'columns': columns,
        'rows': rows,
        'note': table_note(content),
        'seen': f'Of the encoder: {provenance.overlap_note(content)}.',
        'text': tab_separated(columns, rows),
    }


def table_note(content: Mapping[str, Any]) -> str:
    """A description of the probe, numbers of records and patients, the settings, and the labels that were left out."""
    sentences = ['Records: ' + ', '.join(f'{n:,} {split}' for split, n in content.get('records', {}).items())]
    if patients := content.get('bootstrap', {}).get('patients'):
        sentences[0] += f' ({patients:,} patients)'
    if chosen := content.get('chosen'):
        settings = (f'{SETTINGS.get(key) or readable(key)}: {readable(value)}' for key, value in chosen.items())
        sentences.append('Settings: ' + '; '.join(settings))
    if skipped := content.get('skipped_labels'):
        sentences.append('Labels left out: ' + ', '.join(f'{label} ({reason})' for label, reason in skipped.items()))
    if (probe := probe_of(content['probe'])) in PROBES:
        sentences.insert(0, PROBES[probe])
    return '. '.join(sentences) + '.'


def readable(value: Any) -> str:
    """'records_without_text' -> 'records without text', 0.0316227766 -> '0.0316'."""
    return f'{value:.3g}' if isinstance(value, float) else str(value).replace('_', ' ')


def tab_separated(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a spreadsheet, with value, low and high in columns of their own."""
    numbers = [f'{column}{suffix}' for column in columns for suffix in ('', ' low', ' high')]
    lines = [['label', 'positive', 'negative', *numbers]]
    for row in rows:
        values = [cell.get(key) if cell else None for cell in row['cells'] for key in ('value', 'low', 'high')]
        counts = map(str, row['counts'] or ('', ''))
        lines.append([row['label'], *counts, *('' if value is None else f'{value:.4f}' for value in values)])
    return '\n'.join('\t'.join(line) for line in lines)


def roc_and_pr(run: Run) -> dict[str, Any]:
    """ROC and PR curves of the newest export on its first data set: a panel for each label, with raw pixels beside."""
    newest = run.newest_step()
    scored = [result for result in run.results if result.encoder == newest and result.scores is not None]
    data = scored[0].data if scored else ''
    by_probe = {r.probe: scores for r in reversed(scored) if r.data == data and (scores := r.labelled_scores())}
    if not by_probe:
        return {'panels': [], 'note': ''}
    pixels = {result.probe: result for result in run.results if (result.encoder, result.data) == ('pixels', data)}
    first = next((probe for probe in by_probe if probe in pixels), next(iter(by_probe)))
    marks = {result.probe: provenance.mark(result.content) for result in scored if result.data == data}
    ordered = {first: by_probe[first]} | by_probe  # the first is drawn boldest
    lines = {probe + marks[probe]: scores for probe, scores in ordered.items()}
    if first in pixels:
        lines[f'raw pixels ({first})'] = pixels[first].labelled_scores()
    positives = {
        name: int(np.sum(truth)) for name, (_, truth) in by_probe[first].items() if 0 < np.sum(truth) < len(truth)
    }
    names = sorted(positives, key=lambda name: -positives[name])[:LABELS]
    note = f'The newest export with results (step {newest:,}) on the test split of {data}. Dotted lines: chance.'
    if len(positives) > LABELS:
        note += f' Only the {LABELS} labels with the most positives are shown, of {len(positives)}.'
    panels = [
        plots.roc_and_pr(name, {line: scores[name] for line, scores in lines.items() if name in scores})
        for name in names
    ]
    return {'panels': panels, 'note': note}


def overlap(run: Run, step: int | None = None) -> list[str]:
    """A sentence for each data set: the share of its test records that an export, the newest, was trained on."""
    sentences, step = {}, run.newest_step() if step is None else step
    for result in run.results:
        if result.encoder != step:
            continue
        if {'overlap', 'provenance'} & set(result.content):
            sentences[result.data] = f'{result.data}: {provenance.overlap_note(result.content)}.'
    return list(sentences.values())
