"""A plan as lines for people."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

from medjax.plan.facts import Facts
from medjax.plan.meshes import Candidate, Tried
from medjax.plan.roofline import Estimate, estimate
from medjax.plan.topology import FRACTION, GIB, MOST, TAKEN, Topology

# `python benchmarks/data.py` on phantoms of 512 px: images/s that one thread reads from random records and decodes.
DECODED, DECODED_SIDE = 705, 512
SHOWN = 8  # exchanges


def lines(config: str, topology: Topology, facts: Facts) -> Iterator[str]:
    """The plan of one topology; without a time where the compiler refused the program."""
    images = facts.images
    mesh = ', '.join(f'{axis}={size}' for axis, size in facts.mesh.items())
    yield f'{config} on {topology.name}: {topology.chips} x {topology.chip.name}, {facts.hosts} host(s), mesh {mesh}'
    yield f'{images:,} images a step, stored with {facts.canvas} px; activations in {facts.dtype}'
    yield ''
    yield from _sizes('memory of a chip', list(_memory(facts)))
    yield verdict(topology, facts)
    yield ''
    yield from _sizes('a checkpoint', list(_whole(facts)))
    if not facts.compiled:
        return
    time = estimate(topology, facts)
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
    yield ''
    yield from _input(topology, facts, time)
    yield ''
    yield from _model(topology)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows of cells with aligned columns: words to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [any(row[i][:1].isdigit() for row in rows[1:]) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.rjust(n) if number else cell.ljust(n) for cell, n, number in zip(row, widths, right)]
        yield '  '.join(cells).rstrip()


def tried(found: Sequence[Tried]) -> Iterator[str]:
    """What a search knows of each mesh, the best first; numbers with >= are bounds of what was not compiled."""
    rows = [(*Candidate._fields, 'GiB', 'ms', '')]
    for one in found:
        size = f'>= {one.least_bytes / GIB:.1f}' if one.facts is None else f'{one.facts.peak / GIB:.1f}'
        time = f'>= {1e3 * one.least_seconds:,.1f}' if one.time is None else f'{1e3 * one.time.step:,.1f}'
        rows.append((*map(str, one.candidate), size, time, one.why))
    yield from table(rows)


def _sizes(title: str, sizes: Sequence[tuple[str, int]]) -> Iterator[str]:
    """A table of bytes, in GiB or MiB."""
    unit, name = (GIB, 'GiB') if max(n for _, n in sizes) > GIB else (2**20, 'MiB')
    yield from table([(title, name), *((what, f'{n / unit:,.2f}') for what, n in sizes)])


def verdict(topology: Topology, facts: Facts) -> str:
    """Whether the step fits, in a sentence."""
    memory, share = topology.chip.memory, facts.peak / topology.chip.memory
    have = f'{facts.peak / GIB:.2f} of {memory / GIB:.2f} GiB ({share:.0%})'
    if facts.peak > topology.usable:
        return f'does not fit: {have}'
    if topology.chip.is_gpu and share > TAKEN:
        return f'fits with {FRACTION}={MOST} in the environment: {have}, and jax takes {TAKEN:.0%} without it'
    return f'fits: {have}'


def _memory(facts: Facts) -> Iterator[tuple[str, int]]:
    if facts.compiled:
        yield from ((name, n) for name, n in facts.memory().items() if n or name in facts.state)
    else:
        yield from facts.state.items()
        yield 'batch', facts.batch
        yield 'the rest', facts.peak - facts.batch - sum(facts.state.values())
    yield 'in all', facts.peak


def _whole(facts: Facts) -> Iterator[tuple[str, int]]:
    yield from facts.whole_state.items()
    yield 'in all', sum(facts.whole_state.values())


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


def _input(topology: Topology, facts: Facts, time: Estimate) -> Iterator[str]:
    images = facts.images / facts.hosts / time.step
    moved = facts.batch * topology.chips / facts.hosts / time.step
    threads = images / (DECODED * (DECODED_SIDE / facts.canvas) ** 2)
    yield (
        f'input: a host reads and decodes {images:,.0f} images/s and hands {moved / 1e6:,.0f} MB/s to its chips. That '
        f'takes {threads:,.1f} threads, if one reads {DECODED} images/s of {DECODED_SIDE} px (benchmarks/data.py, on a '
        'virtual machine) and the time grows with the pixels'
    )


def _model(topology: Topology) -> Iterator[str]:
    chip = topology.chip
    flops, bandwidth, links = chip.reached
    yield (
        f'model of time: each kernel takes the time of its products at {flops:.0%} of {chip.flops / 1e12:,.0f} TFLOP/s '
        f'or of its bytes at {bandwidth:.0%} of {chip.bandwidth / 1e9:,.0f} GB/s, whichever is longer; exchanges go '
        f'around rings at {links:.0%} of the links. These shares: {chip.reached_by}.'
    )
