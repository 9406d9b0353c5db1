"""Figures of a plan: memory and time by part, and what a search knows of each candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from medjax.reports import plots
from medjax.reports.plots import DASHED, SERIES, SOFT, STYLE

GIB = 2**30
ROOM = 3.0  # a limit that is farther away than so many times the longest bar is not drawn
COLORS = dict(zip(('products', 'none', 'blocks'), SERIES, strict=False))  # remat


def parts(title: str, unit: str, sizes: Mapping[str, float], limit: float | None = None) -> Markup:
    """A bar for each part, each begins where the one before it ends, and one for all of them.

    `limit` is a dashed line; it is left out where the bars would be too short beside it.
    """
    total = sum(sizes.values())
    names, values = [*sizes, 'in all'], np.array([*sizes.values(), total])
    begins = np.append(np.append(0, np.cumsum(values[:-2])), 0)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.9, 0.75 + 0.2 * len(names)), layout='constrained')
        axes = figure.subplots()
        places = np.arange(len(names))
        colors = [*(SERIES[0] for _ in sizes), SERIES[2]]
        axes.barh(places, values, left=begins, height=0.66, color=colors)
        edge = total
        if limit is not None and limit < ROOM * total:
            axes.axvline(limit, color=SERIES[5], linewidth=1.1, linestyle=DASHED)
            unit, edge = f'{unit}; dashed: what a run can have', max(total, limit)
        for place, begin, value in zip(places, begins, values, strict=True):
            left = begin + value > 0.8 * 1.05 * edge and begin > 0.25 * edge
            where = (begin - 0.01 * edge, 'right') if left else (begin + value + 0.01 * edge, 'left')
            axes.text(where[0], place, number(value), ha=where[1], va='center', fontsize=7)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.13 * edge)
        axes.grid(axis='y', visible=False)
        plots.finish(axes, title, unit)
        return plots.svg(figure, f'{title}: {", ".join(f"{name} {number(value)}" for name, value in sizes.items())}')


def candidates(search: Sequence[Mapping[str, Any]], usable: int) -> Markup:
    """Time over memory of each candidate: filled if compiled, hollow at its bounds if not; a star is the best."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.8, 3.6), layout='constrained')
        axes = figure.subplots()
        for remat, color in COLORS.items():
            for compiled in (False, True):
                ones = [one for one in search if one['remat'] == remat and (one['seconds'] is not None) == compiled]
                if ones:
                    label = f'remat={remat}, {"compiled" if compiled else "bounds"}'
                    x, y = np.array([place(one) for one in ones]).T
                    face = color if compiled else 'none'
                    axes.scatter(x, y, s=26 if compiled else 12, c=face, edgecolors=color, linewidths=0.8, label=label)
        best = place(search[0])
        axes.scatter(*best, s=120, marker='*', c=COLORS[search[0]['remat']], label='the best', zorder=3)
        axes.axvline(usable / GIB, color=SERIES[5], linewidth=1.1, linestyle=DASHED, label='what a run can have')
        x, y = np.array([place(one) for one in search]).T
        axes.set_xlim(0, 1.1 * min(max(x.max(), best[0]), 2 * usable / GIB))
        axes.set_ylim(0.9 * y.min(), 1.05 * min(y.max(), 4 * best[1]))
        plots.finish(axes, 'candidates of the search', 'GiB of a chip', 'ms a step')
        figure.legend(loc='outside lower center', ncols=2, labelcolor=SOFT)
        return plots.svg(figure, 'milliseconds of a step over memory of a chip, for each candidate of the search')


def place(one: Mapping[str, Any]) -> tuple[float, float]:
    """GiB and ms of a candidate, measured by compilation or at least."""
    size = one['least_bytes'] if one['bytes'] is None else one['bytes']
    seconds = one['least_seconds'] if one['seconds'] is None else one['seconds']
    return size / GIB, 1e3 * seconds


def number(value: float) -> str:
    """Three digits: '0.012', '1.23', '12.3', '123', '1,234'."""
    if value == 0 or value >= 100:
        return f'{value:,.0f}'
    return f'{value:.{min(2 - math.floor(math.log10(value)), 4)}f}'
