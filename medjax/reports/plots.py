"""Figures as inline SVG that take their colours from the page, so that one figure serves light, dark and paper."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from medjax.probes import metrics

# Placeholders that become CSS variables of the page (base.html says what they look like).
INK, SOFT, RULE = '#010101', '#020202', '#030303'
SERIES = ('#0a0001', '#0a0002', '#0a0003', '#0a0004', '#0a0005', '#0a0006')
SPLITS = dict(zip(('train', 'val', 'test'), SERIES, strict=False))
VARIABLES = {INK: 'ink', SOFT: 'soft', RULE: 'rule'} | {color: f'c{i}' for i, color in enumerate(SERIES, start=1)}

DASHED, DOTTED = (0, (4, 3)), (0, (2, 3))
POINTS = 500  # a curve has at most so many; longer ones are drawn as means over equal stretches

STYLE = {
    'svg.fonttype': 'none',  # text stays text: searchable, in the page's font
    'svg.hashsalt': 'medjax',  # the same run gives the same bytes
    'text.parse_math': False,  # a label is a label, whatever signs it holds
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
    'axes.formatter.useoffset': False,  # a tick says its value, also where a curve is flat
    'axes.grid': True,
    'grid.color': RULE,
    'grid.linewidth': 0.5,
    'legend.frameon': False,
    'legend.fontsize': 7,
    'legend.handlelength': 1.4,
    'lines.linewidth': 1.4,
    'lines.solid_capstyle': 'round',
}


def svg(figure: Figure, words: str) -> Markup:
    """The figure as an <svg> element for the page; `words` is what a screen reader says."""
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
    text = f'<svg viewBox="{box}" role="img" aria-label="{Markup.escape(words)}">' + text[text.index('>') + 1 :]
    return Markup(text)


def curves(
    title: str,
    series: Mapping[str, tuple[np.ndarray, np.ndarray]],
    levels: Mapping[str, float] | None = None,
    log: bool = False,
    legend: bool = False,
) -> Markup:
    """Values over steps, one line a series (x, y); `levels` are named horizontal lines, as the value at the start.

    The legend is left out where one line says what the title says, unless `legend` asks for it.
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


def progress(
    title: str,
    points: Sequence[tuple[int, Mapping[str, float]]],
    bands: Mapping[str, Mapping[str, float]],
) -> Markup:
    """A result with its interval over steps; `bands` are baselines, each a line and its interval across the panel."""
    with matplotlib.rc_context(STYLE):
        figure, axes = panel()
        for color, (name, at) in zip(SERIES[1:], bands.items(), strict=False):
            low, high = interval(at)
            axes.axhspan(low, high, color=color, alpha=0.14, linewidth=0)
            axes.axhline(at['value'], color=color, linewidth=1.1, linestyle=DASHED, label=f'{name} {at["value"]:.3f}')
        if points:
            steps, y = np.array([(step, at['value']) for step, at in points], float).T
            low, high = np.array([interval(at) for _, at in points], float).T
            label = f'this run {y[-1]:.3f}'
            bars = (y - low, high - y)
            axes.errorbar(steps, y, bars, color=SERIES[0], label=label, fmt='-o', ms=3.5, capsize=2, lw=1.2)
            if len(points) == 1:
                axes.set_xlim(steps[0] * 0.5, steps[0] * 1.5 + 1)
        finish(axes, title, 'step of the export')
        axes.set_title(title, pad=14)  # the legend lies between title and axes, where no interval can
        axes.margins(y=0.1)
        place = {'loc': 'lower right', 'bbox_to_anchor': (1, 1), 'borderaxespad': 0}
        axes.legend(**place, ncols=3, columnspacing=0.9, labelcolor=SOFT)
        return svg(figure, f'{title} over the steps of the exports, with intervals and baselines')


def interval(at: Mapping[str, float]) -> tuple[float, float]:
    """Low and high, both the value itself where no interval was computed."""
    return (at['value'], at['value']) if at.get('low') is None else (at['low'], at['high'])


def discrimination(label: str, scores: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Markup:
    """ROC and precision-recall curves of one label; scores: name -> (scores, labels 0|1), the first drawn boldest."""
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
            sensitivity, fall_out = true / true[-1], false / false[-1]
            x, y = thinned(np.append(0, fall_out), np.append(0, sensitivity))
            roc.plot(x, y, color=color, linewidth=width, label=name)
            pr.plot(*thinned(sensitivity, true / (true + false)), color=color, linewidth=width)
        finish(roc, f'{label}: ROC', '1 - specificity', 'sensitivity')
        finish(pr, 'precision-recall', 'recall (sensitivity)', 'precision')
        for axes in (roc, pr):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect='equal')
        roc.legend(loc='lower right', labelcolor=SOFT)
        return svg(figure, f'ROC and precision-recall curves of {label}')


def histogram(title: str, unit: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Markup:
    """Shares over bins, an outline a split: series: split -> counts [n] and the edges of their bins [n+1]."""
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
        return svg(figure, f'histogram of {title}, a line for each split')


def matrix(words: str, names: Sequence[str], shares: np.ndarray) -> Markup:
    """Shares in [0,1] of rows and columns [n,n] as squares, stronger where larger, with per cent in them.

    `words` is what a screen reader says.
    """
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
        return svg(figure, words)


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


def thousands(value: float, _: int) -> str:
    """20000 -> '20k'."""
    return f'{value / 1000:g}k' if abs(value) >= 10_000 else f'{value:g}'


def cycle(n: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(n)]


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS points: means over stretches of equal numbers of points, the ends kept."""
    if len(x) <= POINTS:
        return x, y
    parts = [np.array([np.mean(part) for part in np.array_split(np.asarray(v, float), POINTS)]) for v in (x, y)]
    for part, v in zip(parts, (x, y), strict=True):
        part[0], part[-1] = v[0], v[-1]
    return parts[0], parts[1]
