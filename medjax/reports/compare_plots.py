"""Figures that show several runs at once. A run has one colour and one kind of line on the whole page.

The page explains them once, with `line`, so figures have no legends. Six runs have six colours; further runs have the
same colours and other lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from medjax.reports import plots
from medjax.reports.plots import DASHED, DOTTED, SERIES, STYLE

LINES = ('-', DASHED, DOTTED, (0, (6, 2, 1, 2)))


def style(run: int) -> dict[str, Any]:
    """Colour and line of a run, given by its place among the runs of the page."""
    return dict(color=SERIES[run % len(SERIES)], linestyle=LINES[run // len(SERIES) % len(LINES)])


def line(run: int) -> Markup:
    """The line of a run, for the legend of the page."""
    given = style(run)
    dashes = '' if given['linestyle'] == '-' else ' '.join(map(str, given['linestyle'][1]))
    return Markup(
        '<svg class="line" viewBox="0 0 28 8" aria-hidden="true"><line x1="0" y1="4" x2="28" y2="4" stroke="var(--{})" '
        'stroke-width="2.4" stroke-dasharray="{}"/></svg>'
    ).format(plots.VARIABLES[given['color']], dashes)


def curves(title: str, series: Sequence[tuple[np.ndarray, np.ndarray]], log: bool = False) -> Markup:
    """Values over steps, one curve (x, y) for each run; an empty one for a run without this value."""
    with matplotlib.rc_context(STYLE):
        figure, axes = plots.panel()
        for run, (x, y) in enumerate(series):
            if len(x):
                x, y = plots.thinned(x, y)
                axes.plot(x, y, marker='o' if len(x) < 3 else None, markersize=3, **style(run))
        if log:
            axes.set_yscale('log')
            axes.yaxis.set_major_formatter(lambda value, _: f'{value:g}')
            axes.yaxis.set_minor_formatter(lambda value, _: '')
        plots.finish(axes, title, 'step')
        axes.margins(y=0.12)
        return plots.svg(figure, f'{title} over steps, a curve for each run')


def metric(
    title: str, points: Sequence[Sequence[tuple[int, Mapping[str, float]]]], best: Sequence[int | None]
) -> Markup:
    """A metric with its intervals over the steps of exports, one curve for each run; a star marks its best step."""
    with matplotlib.rc_context(STYLE):
        figure, axes = plots.panel()
        for run, (values, chosen) in enumerate(zip(points, best, strict=True)):
            if not values:
                continue
            steps, y = np.array([(step, estimate['value']) for step, estimate in values], float).T
            low, high = np.array([plots.interval(estimate) for _, estimate in values], float).T
            axes.errorbar(steps, y, (y - low, high - y), marker='o', ms=3.5, capsize=2, lw=1.2, **style(run))
            plots.marks(axes, values, style(run)['color'])
            if chosen in steps:
                axes.plot(chosen, y[steps == chosen], '*', color=style(run)['color'], ms=10)
        plots.finish(axes, title, 'step of the export')
        axes.margins(x=0.08, y=0.1)
        return plots.svg(figure, f'{title} for each export, with intervals, a curve for each run')


def forest(
    metric: str, blocks: Sequence[tuple[str, Sequence[Mapping[str, Any] | None]]], names: Sequence[str]
) -> Markup:
    """A forest plot of one metric: for each block (heading, an estimate of each run) a row for each run with one."""
    count = sum(1 + sum(estimate is not None for estimate in estimates) for _, estimates in blocks)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.7, 0.6 + 0.17 * count), layout='constrained')
        axes, y, ticks = figure.subplots(), 0, {}
        for heading, estimates in blocks:
            plots.heading(axes, y, heading)
            for run, estimate in enumerate(estimates):
                if estimate is None:
                    continue
                y += 1
                ticks[y] = plots.shortened(names[run])
                color = style(run)['color']
                axes.plot(plots.interval(estimate), [y, y], **style(run) | dict(linewidth=1.2))
                axes.plot(estimate['value'], y, 'o', color=color, markersize=4)
                plots.marks(axes, [(estimate['value'], dict(estimate) | dict(value=y))], color)
            y += 1
        plots.finish(axes, '', metric)
        axes.set(ylim=(count - 0.4, -0.6), yticks=list(ticks))
        axes.set_yticklabels(list(ticks.values()))
        axes.grid(False, axis='y')
        return plots.svg(figure, f'{metric} of each probe, with intervals, a row for each run')
