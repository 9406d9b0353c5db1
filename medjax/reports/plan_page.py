"""The page of `medjax plan`: topologies side by side; of each one memory and time by part, and its search.

The page is drawn from what --json writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from medjax.reports import base, plan_plots
from medjax.reports.plan_plots import GIB, number

SMALLEST = 0.005  # of the whole: shorter bars are one bar, 'all else'
ROWS = 40  # of a table of candidates or exchanges

Table = Sequence[Sequence[str]]


def render(plans: Sequence[Mapping[str, Any]], compared: Table, sentences: Mapping[str, Table]) -> str:
    """The page of plans.

    compared   rows of the table of all topologies, with its heads
    sentences  for each topology (what, sentence)
    """
    sections = [(f'plan-{i}', plan['topology']) for i, plan in enumerate(plans)]
    return base.render(
        'plan_page.html',
        command='plan',
        images=False,
        name=next((plan['config'] for plan in plans if 'config' in plan), 'no plan'),
        sections=[('compared', 'All topologies'), *sections],
        compared=compared,
        plans=[
            dict(
                id=id,
                plan=plan,
                tiles=tiles(plan),
                figures=figures(plan),
                search=drawn_search(plan),
                candidates=candidates(plan.get('search', ())),
                exchanges=exchanges(plan.get('exchanges', ())),
                sentences=sentences.get(plan['topology'], ()),
            )
            for (id, _), plan in zip(sections, plans, strict=True)
        ],
    )


def tiles(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The numbers of a plan that one asks for first: (value, what it is)."""
    if 'error' in plan:
        return []
    memory, have = number(plan['peak'] / GIB), number(plan['chip_bytes'] / GIB)
    found = [(f'{memory} GiB', f'of {have} GiB of a chip')]
    if 'seconds' in plan:
        step = plan['seconds']['step']
        found += [
            (f'{number(1e3 * step)} ms', f'a step of {plan["images"]:,} images'),
            (f'{number(plan["images"] / step)} images/s', f'on {plan["chips"]:,} x {plan["chip"]}'),
            (f'{plan["mfu"]:.1%}', 'MFU'),
        ]
        if run := plan['run']:
            found.append((f'{number(run["seconds"] / 3_600)} hours', f'all {run["steps"]:,} steps'))
            if run['dollars'] is not None:
                per_hour = f'${run["dollars_of_a_chip_hour"]:,.2f}'
                found.append((f'${run["dollars"]:,.0f}', f'the whole run, at {per_hour} of a chip and hour'))
    return found


def figures(plan: Mapping[str, Any]) -> list[Markup]:
    """Memory and time by part."""
    if 'error' in plan:
        return []
    memory = {name: size / GIB for name, size in plan['memory'].items()}
    usable = plan['usable_bytes'] / GIB
    found = [plan_plots.parts('memory of a chip by part', 'GiB', without_small(memory), usable)]
    if 'seconds' in plan:
        seconds = plan['seconds']['parts'] | dict(exchanges=plan['seconds']['exchanges'])
        time = {name: 1e3 * value for name, value in seconds.items()}
        found.append(plan_plots.parts('time of a step by part', 'ms', without_small(time)))
    return found


def without_small(sizes: Mapping[str, float]) -> dict[str, float]:
    """The parts that a bar can show, and the others as one."""
    total = sum(sizes.values())
    shown = {name: value for name, value in sizes.items() if value >= SMALLEST * total}
    rest = total - sum(shown.values())
    return shown | ({'all else': rest} if rest > 0 and len(shown) < len(sizes) else {})


def drawn_search(plan: Mapping[str, Any]) -> list[Markup]:
    """The candidates that split towers as the best one does; of others little is known."""
    search = plan.get('search', ())
    like_best = [one for one in search if one['mesh']['tensor'] == search[0]['mesh']['tensor']]
    return [plan_plots.candidates(like_best, plan['usable_bytes'])] if search else []


def candidates(search: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of the candidates: first those that were compiled, then those that split towers as the best one does."""
    rows = []
    tensor = search[0]['mesh']['tensor'] if search else 1
    for one in sorted(search, key=lambda one: (one['bytes'] is None, one['mesh']['tensor'] != tensor))[:ROWS]:
        gib, ms = plan_plots.place(one)
        mesh = ' x '.join(str(size) for size in one['mesh'].values())
        unrolled = 'yes' if one['unrolled'] else 'no'
        cells = [mesh, str(one['micro_batches']), one['remat'], unrolled]
        sizes = ['≥ ' * (one['bytes'] is None) + f'{gib:.1f}', '≥ ' * (one['seconds'] is None) + f'{ms:,.1f}']
        rows.append((*cells, *sizes, one['why']))
    return rows


def exchanges(found: Sequence[Mapping[str, Any]]) -> Table:
    """Rows of the exchanges, the longest first."""
    return [
        (
            one['kind'], f'{one["chips"]:,}', one['links'], f'{one["runs"]:,}',
            f'{one["wire_bytes"] / 2**20:,.1f}', f'{1e3 * one["seconds"]:,.2f}', one['source'],
        )
        for one in sorted(found, key=lambda one: -one['seconds'])[:ROWS]
    ]  # fmt: skip
