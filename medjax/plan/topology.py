"""What a plan knows of accelerators: memory, speed and links of a chip, each number with its source.

"Reached" is the share of a maker's number that programs of medjax reach. It is measured where a card was at hand, and
a guess elsewhere; the plan says which.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from medjax.aot import devices
from medjax.errors import UserError
from medjax.training.metrics import PEAKS

GB = 10**9
GIB = 2**30


class Links(NamedTuple):
    """How chips of a group exchange bytes. Speeds are of one chip, in one direction, in bytes/s."""

    near: float  # a GPU: NVLink to the other cards of its node; a TPU: one link of the torus
    far: float  # a GPU: its network card; a TPU has none inside a slice
    wraps: int  # a TPU: an axis of this size or a multiple closes to a ring; 0 for GPUs
    latency: float  # seconds that an exchange takes for each step around its ring, besides its bytes
    names: tuple[str, str]


class Chip(NamedTuple):
    """One device of jax: a GPU, or a chip of a TPU."""

    name: str
    memory: int  # bytes that a program may use of the HBM
    flops: float  # FLOP/s of dense bf16 products
    bandwidth: float  # bytes/s of the HBM
    links: Links
    reached: tuple[float, float, float]  # of flops, bandwidth and links
    reached_by: str  # where these shares come from
    source: str

    @property
    def is_gpu(self) -> bool:
        return self.links.wraps == 0


# 900 GB/s of NVLink are both directions together. A network card of 400 Gbit/s for each GPU, as a DGX has.
NVLINK = Links(near=450 * GB, far=50 * GB, wraps=0, latency=3e-6, names=('NVLink', 'the network between nodes'))
# A bf16 product of 8,192^3 ran at 796 TFLOP/s and those of a ViT-B step at 720; a copy moved 3.1 of 4.8 TB/s.
MEASURED = 'measured on one H200 (BUILD_NOTES.md, On a GPU); of links: a guess'
GUESSED = 'a guess: medjax never ran on this chip'
TPU_REACHED = (0.7, 0.8, 0.8)


def _torus(gbits: float, ports: int, wraps: int) -> Links:
    """Links of a TPU, from the makers' Gbit/s of all ports of a chip in one direction."""
    return Links(gbits * GB / 8 / ports, 0.0, wraps, 1e-6, ('links of the torus', ''))


# HBM that a program may use is what libtpu and CUDA report; data sheets name a little more.
CHIPS = {
    'h100': Chip(
        'H100 SXM', devices.H100['device_memory_size'], PEAKS['H100'], 3_352 * GB, NVLINK, (0.75, 0.85, 0.8),
        'products measured on an H100 and an H200 (BUILD_NOTES.md, On a GPU); of memory and links: a guess',
        'data sheet of NVIDIA; memory as CUDA reports it',
    ),
    'h200': Chip(
        'H200 SXM', devices.CARDS['h200'][1]['device_memory_size'], PEAKS['H200'], 4_800 * GB, NVLINK,
        (0.75, 0.65, 0.8), MEASURED, 'data sheet of NVIDIA; memory as CUDA reports it',
    ),
    'v5e': Chip(
        'TPU v5e', int(15.75 * GIB), PEAKS['TPU v5e'], 819 * GB, _torus(1_600, 4, 16), TPU_REACHED, GUESSED,
        'cloud.google.com/tpu/docs/v5e',
    ),
    'v5p': Chip(
        'TPU v5p', int(95.74 * GIB), PEAKS['TPU v5'], 2_765 * GB, _torus(4_800, 6, 4), TPU_REACHED, GUESSED,
        'cloud.google.com/tpu/docs/v5p',
    ),
    'v6e': Chip(
        'TPU v6e', int(31.25 * GIB), PEAKS['TPU v6'], 1_640 * GB, _torus(3_200, 4, 16), TPU_REACHED, GUESSED,
        'cloud.google.com/tpu/docs/v6e',
    ),
}  # fmt: skip
# jax takes three quarters of a GPU's memory, unless this variable says more; a TPU gives all of it.
TAKEN = 0.75
FRACTION = 'XLA_PYTHON_CLIENT_MEM_FRACTION'
MOST = 0.95  # the rest is CUDA's own


class Topology(NamedTuple):
    """Chips and how they are arranged."""

    name: str
    chip: Chip
    sizes: tuple[int, ...]  # nodes and GPUs of each, or the axes of the torus
    chips: int

    @property
    def kind(self) -> str:
        """The chip as the name has it: 'v5p'."""
        return self.name.partition(':')[0]

    @property
    def usable(self) -> int:
        """Bytes of a chip that a run can have, with the variable FRACTION on a GPU."""
        return int(self.chip.memory * (MOST if self.chip.is_gpu else 1.0))


def parse(name: str) -> Topology:
    """The topology of a name such as 'h100:8x8' or 'v5p:4x4x4'. UserError if nobody knows it."""
    kind, sizes = devices.parse(name)
    if kind not in CHIPS:
        raise UserError(f'topology {name!r}: a plan knows {", ".join(CHIPS)}')
    return Topology(name, CHIPS[kind], sizes, math.prod(sizes))


def ring_speed(topology: Topology, size: int, hosts: int, extents: Sequence[int]) -> float:
    """Bytes/s that a chip gives to its group, and gets from it, in a ring over the group; by the makers' numbers.

    size, hosts   chips of the group, and the hosts that they belong to
    extents       a TPU: how many places of each axis of the torus the group takes; a GPU: ()

    GPUs of one node are limited by NVLink. A group over several nodes has a network card for each of its GPUs in a
    node. On a torus every axis that the group takes carries its share, in both directions if it closes to a ring.
    """
    links = topology.chip.links
    if topology.chip.is_gpu:
        return links.near if hosts == 1 else min(links.near, size / hosts * links.far)
    closed = [_closes(topology, axis) for axis in range(len(topology.sizes))]
    ways = sum((2 if closed[axis] and n == topology.sizes[axis] else 1) for axis, n in enumerate(extents) if n > 1)
    return links.near * max(ways, 1)


def _closes(topology: Topology, axis: int) -> bool:
    """Whether an axis of the torus closes to a ring: on v4 and v5p in slices of whole cubes of 4 x 4 x 4."""
    wraps = topology.chip.links.wraps
    sizes = topology.sizes if len(topology.sizes) == 3 else (topology.sizes[axis],)
    return all(n % wraps == 0 for n in sizes)
