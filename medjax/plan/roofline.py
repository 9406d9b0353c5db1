"""The time of a step by a stated model.

Each kernel takes the time of its bytes at the speed of the HBM, or of its products at the speed of the matrix units,
whichever is longer. The speeds are the makers' numbers times the shares that programs reach (`topology.Chip.reached`).
Exchanges wait for the kernels and the kernels for them: nothing overlaps. A compiler hides some of them, so the truth
lies between this sum and the longer of the two.
"""

from __future__ import annotations

import collections
from typing import NamedTuple

from medjax.plan.facts import Facts
from medjax.plan.topology import Topology


class Estimate(NamedTuple):
    """Seconds of a step, and what follows from them."""

    kernels: float  # seconds in kernels
    products: float  # of these, the ones that products limit; the others wait for the HBM
    parts: dict[str, float]  # seconds in kernels by part of the step, the longest first
    exchanges: float
    mfu: float  # model FLOPs / (seconds x peak)

    @property
    def step(self) -> float:
        return self.kernels + self.exchanges

    @property
    def at_best(self) -> float:
        """Seconds if every exchange that can hides behind kernels."""
        return max(self.kernels, self.exchanges)


def estimate(topology: Topology, facts: Facts) -> Estimate:
    """The time of a compiled step."""
    of_flops, of_bandwidth, _ = topology.chip.reached
    peak, bandwidth = of_flops * topology.chip.flops, of_bandwidth * topology.chip.bandwidth
    parts: dict[str, float] = collections.defaultdict(float)
    products = 0.0
    for one in facts.kernels:
        computing, moving = one.flops / peak, one.bytes / bandwidth
        parts[one.part] += one.runs * max(computing, moving)
        products += one.runs * computing if computing > moving else 0.0
    kernels = sum(parts.values())
    exchanges = sum(one.seconds(topology) for one in facts.exchanges)
    mfu = facts.flops / ((kernels + exchanges) * topology.chips * topology.chip.flops)
    return Estimate(kernels, products, dict(sorted(parts.items(), key=lambda item: -item[1])), exchanges, mfu)
