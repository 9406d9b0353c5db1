"""Figures of results: dots with intervals, curves, reliability diagrams, and one panel for each kind of fault."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from medjax.reports import plots
from medjax.reports.plots import DASHED, DOTTED, INK, SERIES, SOFT, STYLE

Estimate = Mapping[str, Any]  # value, low, high; low and high may be None or missing


class Rows(NamedTuple):
    """Rows of a figure with dots, under a heading."""

    heading: str  # '' for none
    rows: Sequence[tuple[str, Sequence[Estimate | None]]]  # (name, an estimate for each series)


class Level(NamedTuple):
    """A vertical line."""

    value: float
    name: str


def dots(title: str, blocks: Sequence[Rows], series: Sequence[str], x: str, level: Level | None = None) -> Markup:
    """A row for each name, with a dot and an interval for each series: a forest plot."""
    count = sum(len(block.rows) + bool(block.heading) for block in blocks)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.7, 0.75 + 0.17 * count + 0.13 * (len(series) > 1 or level is not None)))
        figure.set_layout_engine('constrained')
        axes, y, ticks, names = figure.subplots(), 0.0, [], []
        shift = np.linspace(-0.22, 0.22, len(series)) if len(series) > 1 else [0.0]
        for block in blocks:
            if block.heading:
                plots.heading(axes, y, block.heading)
                y += 1
            for name, estimates in block.rows:
                ticks.append(y)
                names.append(plots.shortened(name))
                for k, estimate in enumerate(estimates):
                    if estimate is not None and estimate.get('value') is not None:
                        low, high = plots.interval(estimate)
                        at, color = y + shift[k], SERIES[k % len(SERIES)]
                        axes.plot([low, high], [at, at], color=color, linewidth=1.1)
                        axes.plot(estimate['value'], at, 'o', color=color, markersize=3.6)
                        plots.marks(axes, [(estimate['value'], {'mark': estimate.get('mark'), 'value': at})], color)
                y += 1
        for k, name in enumerate(series if len(series) > 1 else ()):
            axes.plot([], [], '-o', color=SERIES[k % len(SERIES)], markersize=3.6, label=name)
        if level is not None:
            axes.axvline(level.value, color=SOFT, linewidth=1, linestyle=DASHED, label=level.name)
        plots.finish(axes, title, x)
        axes.set(ylim=(count - 0.4, -0.6), yticks=ticks)
        axes.set_yticklabels(names)
        axes.grid(False, axis='y')
        if len(series) > 1 or level is not None:
            axes.set_title(title, pad=14)
            axes.legend(
                loc='lower right', bbox_to_anchor=(1, 1), borderaxespad=0, ncols=4, columnspacing=0.9, labelcolor=SOFT
            )
        return plots.svg(figure, title)


def lines(
    title: str,
    series: Mapping[str, Sequence[tuple[float, Estimate]]],
    x: str,
    faint: Sequence[Sequence[tuple[float, float]]] = (),
    ticks: Sequence[float] = (),
    falling: bool = False,
) -> Markup:
    """Curves of points (x, estimate) with bands for their intervals; `faint` are thin curves without a name.

    `ticks` makes the axis logarithmic, with these numbers on it. `falling`: large x are left.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.7, 2.4), layout='constrained')
        axes = figure.subplots()
        for points in faint:
            axes.plot(*np.array(points, float).T, color=SOFT, linewidth=0.6, alpha=0.6)
        for color, (name, given) in zip(plots.cycle(len(series)), series.items(), strict=True):
            at, value = np.array([(place, estimate['value']) for place, estimate in given], float).T
            low, high = np.array([plots.interval(estimate) for _, estimate in given], float).T
            axes.fill_between(at, low, high, color=color, alpha=0.14, linewidth=0)
            axes.plot(at, value, '-o', color=color, markersize=3, label=name)
        plots.finish(axes, title, x)
        if ticks:
            axes.set_xscale('log')
            axes.set_xticks(list(ticks), [f'{tick:g}' for tick in ticks])
            axes.minorticks_off()
        if falling:
            axes.invert_xaxis()
        axes.margins(y=0.12)
        if len(series) > 1:
            axes.legend(loc='best', labelcolor=SOFT)
        return plots.svg(figure, title)


def reliability(title: str, maps: Mapping[str, np.ndarray]) -> Markup:
    """The share of positives over the mean probability. `maps` is {name: [bins,3]}: records, probability, share."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.7, 2.7), layout='constrained')
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8, linestyle=DOTTED)
        for color, (name, bins) in zip(plots.cycle(len(maps)), maps.items(), strict=True):
            count, probability, share = bins[bins[:, 0] > 0].T
            axes.plot(probability, share, color=color, linewidth=1, label=name)
            axes.scatter(probability, share, s=4 + 60 * count / count.sum(), color=color, linewidth=0, alpha=0.7)
        plots.finish(axes, title, 'mean probability', 'share of positives')
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), aspect='equal')
        axes.legend(loc='upper left', labelcolor=SOFT)
        return plots.svg(figure, f'{title}: reliability diagram')


def faults(title: str, kinds: Mapping[str, Mapping[str, Sequence[Estimate]]]) -> Markup:
    """A panel for each kind of fault: {kind: {series: estimates at severities 0 (clean), 1, …}}, on one scale."""
    columns = 4
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.5 + 1.35 * math.ceil(len(kinds) / columns)), layout='constrained')
        grid = figure.subplots(math.ceil(len(kinds) / columns), columns, sharex=True, sharey=True, squeeze=False)
        for axes, (kind, series) in zip(grid.flat, kinds.items(), strict=False):
            for color, (name, given) in zip(plots.cycle(len(series)), series.items(), strict=True):
                at, value = np.arange(len(given)), np.array([estimate['value'] for estimate in given], float)
                low, high = np.array([plots.interval(estimate) for estimate in given], float).T
                axes.fill_between(at, low, high, color=color, alpha=0.14, linewidth=0)
                axes.plot(at, value, '-o', color=color, markersize=2.2, label=name)
                axes.axhline(value[0], color=color, linewidth=0.8, linestyle=DASHED)
            axes.set_title(kind)
            axes.tick_params(length=0)
            axes.set_xticks(range(6))
        for axes in grid.flat[len(kinds) :]:
            axes.set_axis_off()
        if len(next(iter(kinds.values()))) > 1:
            grid.flat[0].legend(loc='lower left', labelcolor=SOFT)
        figure.suptitle(title, x=0.01, ha='left', fontsize=8.5, weight='bold', color=INK)
        figure.supxlabel('severity (0: without the fault)', fontsize=8, color=SOFT)
        return plots.svg(figure, title)
