"""A plan as lines for people."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from medjax.plan.facts import Facts
from medjax.plan.meshes import Tried
from medjax.plan.plans import DECODED, DECODED_SIDE, WRITTEN, Plan, model
from medjax.plan.roofline import Estimate
from medjax.plan.topology import GIB, Topology

SHOWN = 8  # exchanges
TRIED = 12  # candidates of a search, besides those that were compiled


def lines(plan: Plan) -> Iterator[str]:
    """The plan of one topology; without a time where the compiler refused the program."""
    topology, facts, time = plan.topology, plan.facts, plan.time
    images = facts.images
    mesh = ', '.join(f'{axis}={size}' for axis, size in facts.mesh.items())
    chips = f'{topology.chips} x {topology.chip.name}'
    yield f'{plan.config} on {topology.name}: {chips}, {facts.hosts} host(s), mesh {mesh}'
    yield f'{images:,} images a step, stored with {facts.canvas} px; activations in {facts.dtype}'
    yield ''
    yield from _sizes('memory of a chip', [*plan.memory.items(), ('in all', facts.peak)])
    yield plan.verdict
    yield ''
    yield from _sizes('a checkpoint', [*facts.whole_state.items(), ('in all', plan.saving.bytes)])
    if time is None:
        yield f'checkpoints: {saving(plan)}'
        return
    yield ''
    yield from table([('a step', 'ms', 'share'), *_time(time)])
    low, high = images / time.step, images / time.at_best
    yield f'{low:,.0f} images/s if exchanges wait for kernels, {high:,.0f} if all of them hide behind kernels'
    yield f'model FLOPs {facts.flops / 1e12:,.4g} T ({facts.flops / images / 1e9:,.0f} G an image), MFU {time.mfu:.1%}'
    yield f'a chip moves {facts.moved / GIB:,.1f} GiB between its kernels and its memory'
    if facts.dtype == 'float32':
        yield 'the products of this model of time are those of bfloat16; a step in float32 takes longer'
    yield ''
    if facts.exchanges:
        yield from table(list(_exchanges(topology, facts)))
    else:
        yield 'chips exchange nothing'
    for what, sentence in sentences(plan):
        yield ''
        yield f'{what}: {sentence}'


def sentences(plan: Plan) -> list[tuple[str, str]]:
    """What follows from the time of a step: (what, sentence)."""
    if plan.time is None:
        return [('checkpoints', saving(plan))]
    return [
        ('the whole run', whole_run(plan)),
        ('input', input_needed(plan)),
        ('checkpoints', saving(plan)),
        ('model of time', model(plan.topology)),
    ]


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells with aligned columns: words to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [any(row[i][:1].isdigit() for row in rows[1:]) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(n) if number else cell.ljust(n) for cell, n, number in zip(row, widths, right)]
        yield '  '.join(cells).rstrip()


def tried(found: Sequence[Tried]) -> Iterator[str]:
    """What a search knows of each candidate, the best first; numbers with >= are bounds of what was not compiled."""
    rows = [(*found[0].candidate.mesh, 'micro_batches', 'remat', 'unrolled', 'GiB', 'ms', '')]
    waiting = [one for one in found if one.facts is None]
    for one in [*(one for one in found if one.facts is not None), *waiting[:TRIED]]:
        size = f'>= {one.least_bytes / GIB:.1f}' if one.facts is None else f'{one.facts.peak / GIB:.1f}'
        time = f'>= {1e3 * one.least_seconds:,.1f}' if one.time is None else f'{1e3 * one.time.step:,.1f}'
        candidate = one.candidate
        unrolled = 'yes' if candidate.setting.unrolled else 'no'
        sizes = (*candidate.mesh.values(), candidate.micro_batches)
        rows.append((*map(str, sizes), candidate.setting.remat, unrolled, size, time, one.why))
    yield from table(rows)
    for why, n in collections.Counter(one.why for one in waiting[TRIED:]).most_common():
        yield f'and {n:,} more: {why}'


def _sizes(title: str, sizes: Sequence[tuple[str, int]]) -> Iterator[str]:
    """A table of bytes, in GiB or MiB."""
    unit, name = (GIB, 'GiB') if max(n for _, n in sizes) > GIB else (2**20, 'MiB')
    yield from table([(title, name), *((what, f'{n / unit:,.2f}') for what, n in sizes)])


def saving(plan: Plan) -> str:
    """The time of a checkpoint, in a sentence."""
    one = plan.saving
    hosts = 'one host writes' if one.hosts == 1 else f'{one.hosts} hosts write'
    text = f'{hosts} one in {one.seconds:,.1f} s at {WRITTEN / 1e9:g} GB/s of a host (assumed), beside the training'
    if plan.time is None:
        return text
    return f'{text}; the next one comes after {rounded(one.every * plan.time.step)}'


def rounded(seconds: float) -> str:
    """A time in the unit that fits: '35.0 s', '12.0 min', '3.4 hours' or '5.2 days'."""
    for unit, name in ((86_400, 'days'), (3_600, 'hours'), (60, 'min')):
        if seconds >= 2 * unit:
            return f'{seconds / unit:,.1f} {name}'
    return f'{seconds:,.1f} s'


def _time(time: Estimate) -> Iterator[tuple[str, str, str]]:
    for name, seconds in [*time.parts.items(), ('exchanges', time.exchanges), ('in all', time.step)]:
        if seconds >= 0.005 * time.step:
            yield name, f'{1e3 * seconds:,.2f}', f'{seconds / time.step:.0%}'


def _exchanges(topology: Topology, facts: Facts) -> Iterator[tuple[str, ...]]:
    """Exchanges with equal groups and links together, the longest first."""
    runs: collections.Counter[tuple[str, int, str]] = collections.Counter()
    sent: collections.Counter[tuple[str, int, str]] = collections.Counter()
    seconds: dict[tuple[str, int, str], float] = collections.defaultdict(float)
    for one in facts.exchanges:
        key = one.kind, one.size, one.links(topology)
        runs[key] += one.runs
        sent[key] += round(one.runs * one.wire)
        seconds[key] += one.seconds(topology)
    yield 'exchanges of a chip', 'chips', 'over', 'runs', 'MiB on the wire', 'ms'
    for key, took in sorted(seconds.items(), key=lambda item: -item[1])[:SHOWN]:
        kind, size, links = key
        yield kind, f'{size}', links, f'{runs[key]:,}', f'{sent[key] / 2**20:,.1f}', f'{1e3 * took:,.1f}'


def input_needed(plan: Plan) -> str:
    """What a host reads and decodes, in sentences."""
    assert plan.input is not None
    images, moved, threads = plan.input
    return (
        f'a host reads and decodes {images:,.0f} images/s and hands {moved / 1e6:,.0f} MB/s to its chips. That '
        f'takes {threads:,.1f} threads, if one reads {DECODED} images/s of {DECODED_SIDE} px (benchmarks/data.py, on a '
        'virtual machine) and the time grows with the pixels'
    )


def whole_run(plan: Plan) -> str:
    """Time and cost of all steps, in a sentence."""
    if plan.run is None:
        return 'the recipe has stages; this is the plan of its first steps, so there is no time of the whole run'
    run, chip = plan.run, plan.topology.chip
    text = (
        f'{run.steps:,} steps take {rounded(run.seconds)} ({rounded(run.seconds_at_best)} if all exchanges hide), '
        f'which are {run.chip_hours:,.0f} hours of one chip ({chip.name})'
    )
    if run.dollars is not None:
        text += f' or ${run.dollars:,.0f} at ${plan.price:,.2f} of a chip and hour'
    return f'{text}; without compilation, probes and pauses'
