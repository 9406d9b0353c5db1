"""The search over meshes and micro-batches: it compiles only what a bound cannot exclude.

All meshes of a topology share the rows of a batch and the products of the towers equally among the chips. So what was
compiled for one mesh says something of others (`Search.least_seconds`, `Search.least_bytes`). These rules are a model,
as the roofline is:

- Kernels outside of the optimizer take no less time with a larger fsdp or with more micro-batches. The optimizer reads
  and writes its state once.
- The gradient travels once, at least in bfloat16, over all links that a chip has.
- More micro-batches add a forward pass, and keep the state and a share of the activations.
- A mesh with fsdp saves at most twice the bytes of the state that it splits: those of the state and of its gradients.
- Splitting towers (tensor) is for what does not fit otherwise: it exchanges activations in every block.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from medjax.errors import UserError
from medjax.parallel.groups import check_rows
from medjax.plan.facts import Facts
from medjax.plan.roofline import Estimate, estimate
from medjax.plan.topology import GIB, Topology

GAIN = 0.02  # of the time: a smaller gain is none by this model, so nothing is compiled for it
OF_THE_STATE = ('optimizer', 'teachers')  # parts of a step that touch each number of the state once


class Candidate(NamedTuple):
    """One way to place a recipe on all chips."""

    data: int
    fsdp: int
    tensor: int
    micro_batches: int

    @property
    def mesh(self) -> dict[str, int]:
        return dict(data=self.data, fsdp=self.fsdp, tensor=self.tensor)

    @property
    def overrides(self) -> tuple[str, ...]:
        sizes = (f'mesh.{axis}={size}' for axis, size in self.mesh.items())
        return (*sizes, f'micro_batches={self.micro_batches}')


class Tried(NamedTuple):
    """What the search knows of a candidate at its end."""

    candidate: Candidate
    why: str  # 'best', or why it is not
    facts: Facts | None  # None: it was not compiled
    time: Estimate | None  # None: not compiled, or refused by the compiler
    least_bytes: int
    least_seconds: float


def meshes(topology: Topology, config: Mapping[str, Any]) -> Iterator[Candidate]:
    """Every mesh of all chips that the rows and the torus allow, with the fewest micro-batches."""
    chips = topology.chips
    for fsdp, tensor in itertools.product(_divisors(chips), repeat=2):
        if chips % (fsdp * tensor) == 0:
            one = Candidate(chips // (fsdp * tensor), fsdp, tensor, 1)
            if on_torus(topology, tuple(one.mesh.values())) and fits_rows(one, config):
                yield one


def fits_rows(candidate: Candidate, config: Mapping[str, Any]) -> bool:
    """Whether every chip has whole groups of rows in every micro-batch."""
    rows = {name: part['rows'] for name, part in config['data'].items()}
    try:
        check_rows(rows, config['rows_per_group'], candidate.micro_batches, candidate.data * candidate.fsdp)
    except UserError:
        return False
    return True


def on_torus(topology: Topology, sizes: Sequence[int]) -> bool:
    """Whether each axis of a mesh takes whole axes of a three-dimensional torus, as jax lays it; else always."""
    if len(topology.sizes) != 3:
        return True
    for owners in itertools.product(range(len(sizes)), repeat=3):
        taken = [
            math.prod(n for n, owner in zip(topology.sizes, owners) if owner == axis) for axis in range(len(sizes))
        ]
        if taken == list(sizes):
            return True
    return False


@dataclasses.dataclass
class Search:
    """One search.

    state       gives the bytes of a chip's state under a mesh
    parameters  bytes of the parameters of the student, on all chips
    compiled    compiles a candidate
    tell        is told what is compiled now
    """

    topology: Topology
    config: Mapping[str, Any]
    state: Callable[[Candidate], int]
    parameters: int  # bytes, of the whole student
    compiled: Callable[[Candidate], Facts]
    tell: Callable[[str], None]

    def __post_init__(self) -> None:
        self.known: dict[Candidate, Facts] = {}
        self.excluded: dict[Candidate, str] = {}

    def run(self) -> list[Tried]:
        """All candidates, the best first. UserError if none fits."""
        found = list(meshes(self.topology, self.config))
        if not found:
            rows = {name: part['rows'] for name, part in self.config['data'].items()}
            raise UserError(
                f'{self.topology.name}: no mesh of {self.topology.chips} chips divides the rows {rows} in groups of '
                f'{self.config["rows_per_group"]}; a larger batch_size or fewer chips would work'
            )
        whole = [one for one in found if one.tensor == 1]
        split = [one for one in found if one.tensor > 1]
        self._explore(whole)
        if self._best() is None:
            self._explore(split)
        else:
            self.excluded |= dict.fromkeys(split, 'tensor=1 fits, and tensor exchanges activations in every block')
        if self._best() is None:
            raise UserError(self._nothing_fits())
        return self._ranked()

    def _explore(self, waiting: list[Candidate]) -> None:
        """Compiles the candidate with the lowest bound, until none can be better than the best by GAIN."""
        while waiting:  # first the mesh that splits least
            waiting.sort(key=lambda one: (bool(self.known) * self.least_seconds(one), one.fsdp * one.tensor))
            one = waiting.pop(0)
            best = self._best()
            least = self.least_bytes(one)
            if least > self.topology.usable:
                self._exclude(one, f'needs at least {least / GIB:.1f} GiB', waiting)
            elif best is not None and self.least_seconds(one) > (1 - GAIN) * self._seconds(best):
                self.excluded[one] = f'cannot be faster by {GAIN:.0%}'
            else:
                self.tell(' '.join(one.overrides))
                self.known[one] = facts = self.compiled(one)
                if facts.peak > self.topology.usable:
                    self._exclude(one, f'needs {facts.peak / GIB:.1f} GiB', waiting)

    def _exclude(self, one: Candidate, why: str, waiting: list[Candidate]) -> None:
        """A mesh that does not fit is tried with twice the micro-batches."""
        self.excluded[one] = why
        more = one._replace(micro_batches=2 * one.micro_batches)
        if self.state(one) <= self.topology.usable and fits_rows(more, self.config):
            waiting.append(more)

    def least_bytes(self, one: Candidate) -> int:
        """Bytes of a chip that a candidate needs at least, by its state and by what was compiled."""
        least = state = self.state(one)
        for other, facts in self.known.items():
            if other.tensor == one.tensor:
                step = facts.peak - self.state(other)  # all but the state
                saved = max(self.state(other) - state, 0)
                share = min(other.micro_batches / one.micro_batches, 1.0)
                least = max(least, state + int(share * max(step - saved, 0)))
        return least

    def least_seconds(self, one: Candidate) -> float:
        """Seconds of a step that a candidate takes at least, by its state and by what was compiled."""
        chip, chips = self.topology.chip, self.topology.chips
        of_flops, of_bandwidth, of_links = chip.reached
        shards = one.data * one.fsdp
        ways = 1 if chip.is_gpu else 2 * len(self.topology.sizes)
        wire = 2 * (shards - 1) / shards * self.parameters / one.tensor / 2  # float32 -> bfloat16
        least = 2 * self.state(one) / (of_bandwidth * chip.bandwidth) + wire / (of_links * chip.links.near * ways)
        kernels = 0.0
        for other, facts in self.known.items():
            forward = facts.flops / 3 / (of_flops * chip.flops * chips)
            again = forward if one.micro_batches > 1 else 0.0
            kernels = max(kernels, 3 * forward + again)
            if facts.compiled and other.micro_batches <= one.micro_batches and other.fsdp <= one.fsdp:
                parts = estimate(self.topology, facts).parts
                rest = sum(seconds for part, seconds in parts.items() if part not in OF_THE_STATE)
                kernels = max(kernels, rest + (again if other.micro_batches == 1 else 0.0))
        return least + kernels

    def _seconds(self, one: Candidate) -> float:
        return estimate(self.topology, self.known[one]).step

    def _best(self) -> Candidate | None:
        fitting = [one for one in self.known if one not in self.excluded]
        return min(fitting, key=self._seconds, default=None)

    def _ranked(self) -> list[Tried]:
        best = self._best()
        assert best is not None
        found = []
        for one in {**self.known, **self.excluded}:
            facts = self.known.get(one)
            time = estimate(self.topology, facts) if facts is not None and facts.compiled else None
            why = self.excluded.get(one, 'best')
            if one != best and one not in self.excluded and time is not None:
                why = f'{time.step / self._seconds(best) - 1:.1%} slower'
            found.append(Tried(one, why, facts, time, self.least_bytes(one), self.least_seconds(one)))
        return sorted(found, key=lambda tried: (tried.why != 'best', tried.candidate in self.excluded, *_order(tried)))

    def _nothing_fits(self) -> str:
        smallest = min(self.excluded, key=self.least_bytes)
        need, have = self.least_bytes(smallest), self.topology.usable
        text = (
            f'{self.topology.name}: the recipe fits no mesh; the smallest is {" ".join(smallest.overrides)} with '
            f'{need / GIB:.1f} of {have / GIB:.1f} GiB'
        )
        state = self.state(smallest)
        if state > have:
            return f'{text}, of which the state is {state / GIB:.1f} GiB; more chips or a smaller tower would shrink it'
        return (
            f'{text}, of which the step itself takes {(need - state) / GIB:.1f} GiB; a smaller batch_size, '
            'towers.NAME.remat=blocks or more chips would shrink it'
        )


def _order(tried: Tried) -> tuple[float, int]:
    seconds = tried.least_seconds if tried.time is None else tried.time.step
    return seconds, tried.candidate.micro_batches


def _divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]
