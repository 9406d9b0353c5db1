"""The plan of a recipe on one topology: what follows from the compiled step for people, pages and programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from medjax.plan.facts import Facts
from medjax.plan.meshes import Tried
from medjax.plan.roofline import Estimate, estimate
from medjax.plan.topology import FRACTION, GB, GIB, MOST, TAKEN, Topology

# `python benchmarks/data.py` on phantoms of 512 px: images/s that one thread reads from random records and decodes.
DECODED, DECODED_SIDE = 705, 512
WRITTEN = GB  # bytes/s that a host writes to where checkpoints lie: an assumption, which the plan states


class Saving(NamedTuple):
    """A checkpoint."""

    bytes: int
    hosts: int  # that write: those of one copy of the state
    seconds: float
    every: int  # steps


class Input(NamedTuple):
    """What each host needs while steps follow each other."""

    images: float  # images/s that it reads and decodes
    bytes: float  # bytes/s of decoded images that it hands to its chips
    threads: float  # by DECODED; the time of an image grows with its pixels


class WholeRun(NamedTuple):
    """All steps of the recipe, without compilation, checkpoints and probes."""

    steps: int
    seconds: float
    seconds_at_best: float  # if exchanges hide behind kernels
    chip_hours: float
    dollars: float | None  # None without a price


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan. Without kernels in the facts, because the compiler refused the program, it has no times."""

    config: str
    overrides: tuple[str, ...]
    topology: Topology
    facts: Facts
    steps: int | None  # of the whole run; None: the recipe has stages, and this is the step of the first
    every: int  # steps between checkpoints
    price: float | None = None  # dollars of a chip and hour
    tried: tuple[Tried, ...] = ()  # of a search, the best first

    @property
    def time(self) -> Estimate | None:
        return estimate(self.topology, self.facts) if self.facts.compiled else None

    @property
    def fits(self) -> bool:
        return self.facts.peak <= self.topology.usable

    @property
    def verdict(self) -> str:
        """Whether the step fits, in a sentence."""
        peak, memory = self.facts.peak, self.topology.chip.memory
        have = f'{peak / GIB:.2f} of {memory / GIB:.2f} GiB ({peak / memory:.0%})'
        if not self.fits:
            return f'does not fit: {have}'
        if self.topology.chip.is_gpu and peak > TAKEN * memory:
            return f'fits with {FRACTION}={MOST} in the environment: {have}, and jax takes {TAKEN:.0%} without it'
        return f'fits: {have}'

    @property
    def memory(self) -> dict[str, int]:
        """Bytes of a chip by what it holds."""
        facts = self.facts
        if facts.compiled:
            return {name: n for name, n in facts.memory().items() if n or name in facts.state}
        rest = facts.peak - facts.batch - sum(facts.state.values())
        return {**facts.state, 'batch': facts.batch, 'the rest': rest}

    @property
    def saving(self) -> Saving:
        facts = self.facts
        size, chips = sum(facts.whole_state.values()), self.topology.chips // facts.hosts
        copy = facts.mesh['fsdp'] * facts.mesh['tensor']
        hosts = min(-(-copy // chips), facts.hosts)
        return Saving(size, hosts, size / hosts / WRITTEN, self.every)

    @property
    def input(self) -> Input | None:
        if self.time is None:
            return None
        facts, step = self.facts, self.time.step
        images = facts.images / facts.hosts / step
        moved = facts.batch * self.topology.chips / facts.hosts / step
        return Input(images, moved, images / (DECODED * (DECODED_SIDE / facts.canvas) ** 2))

    @property
    def run(self) -> WholeRun | None:
        if self.time is None or self.steps is None:
            return None
        seconds = self.steps * self.time.step
        hours = self.topology.chips * seconds / 3_600
        dollars = None if self.price is None else hours * self.price
        return WholeRun(self.steps, seconds, self.steps * self.time.at_best, hours, dollars)


def content(plan: Plan) -> dict[str, Any]:
    """A plan for programs and for the page: bytes, seconds and dollars."""
    facts, topology, time = plan.facts, plan.topology, plan.time
    kept = {key: value for key, value in dataclasses.asdict(facts).items() if key not in ('kernels', 'exchanges')}
    found: dict[str, Any] = dict(
        config=plan.config,
        overrides=list(plan.overrides),
        topology=topology.name,
        chip=topology.chip.name,
        chips=topology.chips,
        chip_bytes=topology.chip.memory,
        usable_bytes=topology.usable,
        fits=plan.fits,
        verdict=plan.verdict,
        **kept,
        images=facts.images,
        memory=plan.memory,
        checkpoint=plan.saving._asdict() | dict(host_bytes_per_s=WRITTEN),
        search=[_tried(one) for one in plan.tried],
    )
    if time is None or plan.input is None:
        return found
    return found | dict(
        hbm_bytes=facts.moved,
        exchanges=[
            dict(
                kind=one.kind, chips=one.size, hosts=one.hosts, links=one.links(topology), runs=one.runs,
                wire_bytes=one.runs * one.wire, seconds=one.seconds(topology), source=one.source,
            )
            for one in facts.exchanges
        ],
        seconds=dict(
            step=time.step, at_best=time.at_best, kernels=time.kernels, products=time.products,
            exchanges=time.exchanges, parts=time.parts,
        ),
        mfu=time.mfu,
        input=plan.input._asdict(),
        run=None if plan.run is None else plan.run._asdict() | dict(dollars_of_a_chip_hour=plan.price),
        model=model(topology),
    )  # fmt: skip


def _tried(one: Tried) -> dict[str, Any]:
    """A candidate of a search; `least` are bounds, the others are of what was compiled."""
    candidate = one.candidate
    return dict(
        overrides=list(candidate.overrides),
        mesh=candidate.mesh,
        micro_batches=candidate.micro_batches,
        remat=candidate.setting.remat,
        unrolled=candidate.setting.unrolled,
        why=one.why,
        bytes=None if one.facts is None else one.facts.peak,
        seconds=None if one.time is None else one.time.step,
        least_bytes=one.least_bytes,
        least_seconds=one.least_seconds,
    )


def model(topology: Topology) -> str:
    """The model of time, in a sentence."""
    chip = topology.chip
    flops, bandwidth, links = chip.reached
    return (
        f'each kernel takes the time of its products at {flops:.0%} of {chip.flops / 1e12:,.0f} TFLOP/s or '
        f'of its bytes at {bandwidth:.0%} of {chip.bandwidth / 1e9:,.0f} GB/s, whichever is longer; exchanges go '
        f'around rings at {links:.0%} of the links. These shares: {chip.reached_by}.'
    )


def compared(plans: Mapping[str, Plan | str]) -> list[tuple[str, ...]]:
    """A table of the topologies, each with its plan, or the sentence why it has none, which the table leaves out."""
    names = ('topology', 'chips', 'mesh', 'GiB of a chip', 'ms a step', 'images/s', 'MFU', 'hours', 'dollars', '')
    rows = [names]
    for name, plan in plans.items():
        if isinstance(plan, str):
            rows.append((name, *(len(names) - 2) * ('',), 'no plan'))
            continue
        mesh = ' x '.join(f'{size}' for size in plan.facts.mesh.values())
        size = f'{plan.facts.peak / GIB:.1f} of {plan.topology.chip.memory / GIB:.1f}'
        row = [name, f'{plan.topology.chips}', mesh, size, '', '', '', '', '', '' if plan.fits else 'does not fit']
        if plan.time is not None:
            step = plan.time.step
            row[4:7] = f'{1e3 * step:,.1f}', f'{plan.facts.images / step:,.0f}', f'{plan.time.mfu:.1%}'
        if plan.run is not None:
            row[7] = f'{plan.run.seconds / 3_600:,.1f}'
            row[8] = '' if plan.run.dollars is None else f'{plan.run.dollars:,.0f}'
        rows.append(tuple(row))
    used = [any(row[i] for row in rows[1:]) for i in range(len(names))]
    return [tuple(cell for cell, keep in zip(row, used, strict=True) if keep) for row in rows]
