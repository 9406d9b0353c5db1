"""Draws figures as inline SVG. They take their colours from the page, so they fit light, dark and printed pages."""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medjax.probes import metrics

# Placeholders for the CSS variables of the page; base.html defines the real colours.
INK, SOFT, RULE = '#010101', '#020202', '#030303'
SERIES = ('#0a0001', '#0a0002', '#0a0003', '#0a0004', '#0a0005', '#0a0006')
SPLITS = dict(zip(('train', 'val', 'test'), SERIES, strict=False))
VARIABLES = {INK: 'ink', SOFT: 'soft', RULE: 'rule'} | {color: f'c{i}' for i, color in enumerate(SERIES, start=1)}

DASHED, DOTTED = (0, (4, 3)), (0, (2, 3))
NAME = 34  # characters of a name beside a figure, at most
POINTS = 500  # of a curve, at most; a longer curve is drawn as means over equal numbers of points

STYLE = {
    'svg.fonttype': 'none',  # text stays text: searchable, in the page's font
    'svg.hashsalt': 'medjax',  # the same run gives the same bytes
    'text.parse_math': False,  # a label with $ signs is not read as a formula
    'font.family': 'sans-serif',
    'font.size': 8,
    'axes.titlesize': 8.5,
    'axes.titleweight': 'bold',
    'axes.titlelocation': 'left',
    'axes.edgecolor': RULE,
    'axes.labelcolor': SOFT,
    'axes.titlecolor': INK,
    'text.color': INK,
    'xtick.color': SOFT,
    'ytick.color': SOFT,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.formatter.useoffset': False,  # ticks show whole values, also if a curve is flat
    'axes.grid': True,
    'grid.color': RULE,
    'grid.linewidth': 0.5,
    'legend.frameon': False,
    'legend.fontsize': 7,
    'legend.handlelength': 1.4,
    'lines.linewidth': 1.4,
    'lines.solid_capstyle': 'round',
}


def svg(figure: Figure, description: str) -> Markup:
    """The figure as an <svg> element; a screen reader reads the description."""
    file = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format='svg', transparent=True, metadata={'Date': None, 'Creator': None})
    text = file.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.S)
    text = re.sub(r'<g id="[^"]*"', '<g', text)
    text = re.sub(r'font-family: [^;"]*; ?', '', text)  # the page's font
    for color, name in VARIABLES.items():
        text = text.replace(color, f'var(--{name})')
    box = re.search(r'viewBox="([^"]*)"', text)[1]
    text = f'<svg viewBox="{box}" role="img" aria-label="{Markup.escape(description)}">' + text[text.index('>') + 1 :]
    return Markup(text)


def curves(
    title: str,
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    levels: Mapping[str, float] | None = None,
    log: bool = False,
    legend: bool = False,
) -> Markup:
    """Values over steps: a curve for each series (x, y), a horizontal line for each level {name: value}.

    One curve without levels gets no legend, because the title names it; `legend` forces one.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        for color, (name, (x, y)) in zip(cycle(len(series)), series.items(), strict=True):
            x, y = thinned(x, y)
            axes.plot(x, y, color=color, label=name, marker='o' if len(x) < 3 else None, markersize=3)
        for name, value in (levels or {}).items():
            axes.axhline(value, color=SOFT, linewidth=1, linestyle=DASHED, label=name)
        if log:
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
            axes.yaxis.set_minor_formatter(lambda value, _: '')
        finish(axes, title, 'step')
        axes.margins(y=0.12)
        if legend or len(series) + len(levels or {}) > 1:
            axes.legend(loc='best', labelcolor=SOFT)
        return svg(figure, f'{title} over steps')


def metric_over_steps(
    title: str,
    points: Sequence[tuple[int, Mapping[str, float]]],
    baselines: Mapping[str, Mapping[str, float]],
    best: int | None = None,
) -> Markup:
    """A metric with its interval over steps; each baseline is a horizontal line with its interval as a band.

    A star marks the step `best`.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        for color, (name, estimate) in zip(itertools.cycle(SERIES[1:]), baselines.items(), strict=False):
            low, high = interval(estimate)
            axes.axhspan(low, high, color=color, alpha=0.14, linewidth=0)
            value = estimate['value']
            label = f'{name} {value:.3f}{estimate.get("mark", "")}'
            axes.axhline(value, color=color, linewidth=1.1, linestyle=DASHED, label=label)
        if points:
            steps, y = np.array([(step, estimate['value']) for step, estimate in points], float).T
            low, high = np.array([interval(estimate) for _, estimate in points], float).T
            label = f'this run {y[-1]:.3f}{points[-1][1].get("mark", "")}'
            bars = (y - low, high - y)
            axes.errorbar(steps, y, bars, color=SERIES[0], label=label, fmt='-o', ms=3.5, capsize=2, lw=1.2)
            marks(axes, points, SERIES[0])
            if best in steps:
                axes.plot(best, y[steps == best], '*', color=SERIES[0], ms=9, label='best on validation')
            if len(points) == 1:
                axes.set_xlim(steps[0] * 0.5, steps[0] * 1.5 + 1)
        finish(axes, title, 'step of the export')
        if not points:
            axes.set(xticks=[], xlabel='no export yet')
        axes.set_title(title, pad=14)  # the legend is between title and axes, so it hides no interval
        axes.margins(y=0.1)
        place = {'loc': 'lower right', 'bbox_to_anchor': (1, 1), 'borderaxespad': 0}
        axes.legend(**place, ncols=3, columnspacing=0.9, labelcolor=SOFT)
        return svg(figure, f'{title} for each export, with intervals and baselines')


def marks(axes: Axes, points: Sequence[tuple[float, Mapping[str, Any]]], color: str) -> None:
    """Writes the mark of a contaminated result beside each of its points (x, estimate)."""
    for x, estimate in points:
        if mark := estimate.get('mark'):
            place = dict(textcoords='offset points', xytext=(4, 2), fontsize=8, color=color)
            axes.annotate(mark, (x, estimate['value']), **place)


def interval(estimate: Mapping[str, float]) -> tuple[float, float]:
    """(low, high); without an interval both are the value."""
    value, low = estimate['value'], estimate.get('low')
    return (value, value) if low is None else (low, estimate['high'])


def roc_and_pr(label: str, scores: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Markup:
    """ROC and precision-recall curves of one label. `scores` is {name: (scores, labels 0|1)}; the first is boldest."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 2.35), layout='constrained')
        roc, pr = figure.subplots(1, 2)
        prevalence = float(np.mean(next(iter(scores.values()))[1]))
        roc.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=DOTTED)
        pr.axhline(prevalence, color=SOFT, linewidth=0.8, linestyle=DOTTED)
        for color, (name, (score, truth)) in zip(cycle(len(scores)), scores.items(), strict=True):
            c = metrics.curve(score, truth)
            true, false = c.true[0], c.false[0]
            width = 1.6 if color == SERIES[0] else 1.1
            sensitivity, false_positive_rate = true / true[-1], false / false[-1]
            x, y = thinned(np.append(0, false_positive_rate), np.append(0, sensitivity))
            roc.plot(x, y, color=color, linewidth=width, label=name)
            pr.plot(*thinned(sensitivity, true / (true + false)), color=color, linewidth=width)
        finish(roc, f'{label}: ROC', '1 - specificity', 'sensitivity')
        finish(pr, 'precision-recall', 'recall (sensitivity)', 'precision')
        for axes in (roc, pr):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal')
        roc.legend(loc='lower right', labelcolor=SOFT)
        return svg(figure, f'ROC and precision-recall curves of {label}')


def histogram(title: str, unit: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Markup:
    """Percentages over bins, an outline for each split. `series` is {split: (counts [n], edges of the bins [n+1])}."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        for split, (counts, edges) in series.items():
            color = SPLITS[split]
            share = 100 * counts / max(counts.sum(), 1)
            axes.stairs(share, edges, color=color, fill=True, alpha=0.12, linewidth=0)
            axes.stairs(share, edges, color=color, linewidth=1.3, label=split)
        finish(axes, title, unit, '%')
        axes.set_ylim(bottom=0)
        if len(series) > 1:
            axes.legend(loc='best', labelcolor=SOFT)
        return svg(figure, f'histogram of {title}, an outline for each split')


def matrix(description: str, names: Sequence[str], shares: np.ndarray) -> Markup:
    """Shares [n,n] in [0,1] as squares with the percentage in them; a larger share has a stronger colour."""
    n = len(names)
    short = [name if len(name) <= 24 else f'{name[:23]}…' for name in names]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(2.2 + 0.3 * n, 1.6 + 0.26 * n), layout='constrained')
        axes = figure.subplots()
        for (row, column), share in np.ndenumerate(shares):
            if share > 0:
                axes.add_patch(Rectangle((column, row), 1, 1, color=SERIES[0], alpha=0.08 + 0.72 * share, linewidth=0))
                percent = f'{100 * share:.0f}' if share >= 0.005 else '<1'
                axes.text(column + 0.5, row + 0.5, percent, ha='center', va='center', fontsize=6.5)
        axes.set(xlim=(0, n), ylim=(n, 0), xticks=np.arange(n) + 0.5, yticks=np.arange(n) + 0.5)
        axes.set_xticklabels(short, rotation=90)
        axes.set_yticklabels(short)
        axes.grid(False)
        axes.tick_params(length=0)
        return svg(figure, description)


def panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(3.5, 2.25), layout='constrained')
    return figure, figure.subplots()


def finish(axes: Axes, title: str, x: str, y: str = '') -> None:
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.tick_params(length=0)
    if axes.get_xscale() == 'linear' and x.startswith('step'):
        axes.xaxis.set_major_formatter(thousands)
        axes.locator_params(axis='x', nbins=5)


def heading(axes: Axes, y: float, text: str) -> None:
    """A heading between the rows of a figure."""
    axes.text(0, y, text, transform=axes.get_yaxis_transform(), va='center', weight='bold', fontsize=7)


def shortened(name: str) -> str:
    """A name for the side of a figure, cut to NAME characters."""
    return name if len(name) <= NAME else f'{name[: NAME - 1]}…'


def thousands(value: float, _: int) -> str:
    """20000 -> '20k'."""
    return f'{value / 1000:g}k' if abs(value) >= 10_000 else f'{value:g}'


def cycle(n: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(n)]


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points, each the mean of about equally many; the first and the last point stay as they are."""

    def means(values: np.ndarray) -> np.ndarray:
        thin = np.array([np.mean(chunk) for chunk in np.array_split(np.asarray(values, float), POINTS)])
        thin[0], thin[-1] = values[0], values[-1]
        return thin

    return (x, y) if len(x) <= POINTS else (means(x), means(y))
