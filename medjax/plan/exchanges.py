"""What chips exchange in a step: by kind, with the bytes on the wire and the links that they take.

The groups of an exchange are numbers of devices in the order of the mesh. Where each device sits says which links the
group takes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from medjax.aot.hlo import COLLECTIVES, FUSIONS, Instruction, Program, given
from medjax.plan.topology import Topology, ring_speed

PERMUTE = 'collective-permute'


class Place(NamedTuple):
    """Where a device sits."""

    host: int
    coordinates: tuple[int, ...]  # on the torus of a TPU; () for a GPU


class Exchange(NamedTuple):
    """One exchange of the program, with all its runs in a step."""

    kind: str
    runs: int  # in a step
    bytes: int  # that a device has from it after one run
    size: int  # devices of a group
    hosts: int  # over which a group spreads
    extents: tuple[int, ...]  # places of each axis of the torus that a group takes; () for GPUs
    source: str  # the operation of jax that it comes from

    @property
    def wire(self) -> float:
        """Bytes that a device sends in one run, around a ring of its group."""
        return sent(self.kind, self.size, self.bytes)

    def links(self, topology: Topology) -> str:
        return topology.chip.links.names[self.hosts > 1 and topology.chip.is_gpu]

    def seconds(self, topology: Topology) -> float:
        """All runs of a step, at the share of the links' speed that programs reach."""
        if self.size == 1:
            return 0.0
        speed = ring_speed(topology, self.size, self.hosts, self.extents) * topology.chip.reached[2]
        steps = sum(n - 1 for n in self.extents) if self.extents else self.size // self.hosts + self.hosts - 2
        waits = steps * topology.chip.links.latency * (2 if self.kind == 'all-reduce' else 1)
        return self.runs * (self.wire / speed + waits)


def sent(kind: str, size: int, given: int) -> float:
    """Bytes that each device of a group of `size` sends around a ring, so that each has `given` bytes after it."""
    share = (size - 1) / size
    return {
        'all-reduce': 2 * share * given,  # a sum of shares, then the sums to everybody
        'all-gather': share * given,
        'reduce-scatter': (size - 1) * given,  # a device begins with `size` times what it keeps
        'all-to-all': share * given,
        PERMUTE: float(given),
    }[kind]


def exchanges(program: Program, places: Sequence[Place]) -> list[Exchange]:
    """Every exchange of a program that runs on devices at these places, in the order of the mesh; largest first."""
    found = []
    for name, runs in program.runs().items():
        for outer in program.computations.get(name, ()):
            for one, kind, count in _collectives(program, outer):
                groups = _groups(one.rest, len(places))
                size, hosts, extents = _spread(groups, places, kind)
                source = re.search(r'op_name="([^"]*)"', one.rest)
                name_of = source[1] if source else one.label
                found.append(Exchange(kind, runs, count, size, hosts, extents, name_of))
    return sorted((one for one in found if one.size > 1), key=lambda one: -one.runs * one.wire)


def _collectives(program: Program, outer: Instruction) -> Iterator[tuple[Instruction, str, int]]:
    """The collectives of an instruction, each with its kind and the bytes that it gives.

    A TPU puts some into fusions. An all-reduce of which a fusion keeps the device's slice is a reduce-scatter.
    """
    base = outer.op.removesuffix('-start')
    if base in COLLECTIVES:
        yield outer, base, given(outer)
    elif outer.op in FUSIONS:
        for one in program.computations.get(outer.named('calls') or '', ()):
            base = one.op.removesuffix('-start')
            if base in COLLECTIVES:
                scatters = base == 'all-reduce' and 'reduce-scatter' in (outer.named('calls') or '')
                yield one, 'reduce-scatter' if scatters else base, given(outer) if scatters else given(one)


def _groups(rest: str, devices: int) -> np.ndarray:
    """The groups of a collective, [G,N]; pairs of a permutation, [P,2]."""
    if match := re.search(r'(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}', rest):
        rows = [[int(n) for n in re.findall(r'\d+', row)] for row in re.findall(r'\{([^{}]*)\}', match[1])]
        return np.array(rows)
    if match := re.search(r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', rest):
        shape, dims, order = (tuple(map(int, text.split(','))) if text else None for text in match.groups())
        ids = np.arange(np.prod(dims)).reshape(dims)
        return ids.transpose(order).reshape(shape)
    return np.arange(devices)[None]  # replica_groups={}: all together


def _spread(groups: np.ndarray, places: Sequence[Place], kind: str) -> tuple[int, int, tuple[int, ...]]:
    """The size of a group, its hosts, and how many places of each axis it takes; of the group with most hosts."""
    hosts = np.array([place.host for place in places])
    most = max(groups, key=lambda group: len(set(hosts[group])))
    coordinates = np.array([places[i].coordinates for i in most])
    extents = tuple(len(set(axis)) for axis in coordinates.T.tolist())
    if kind == PERMUTE:  # a pair; all pairs go at once
        extents = tuple(1 + (n > 1) for n in extents)
    return groups.shape[1], len(set(hosts[most].tolist())), extents
