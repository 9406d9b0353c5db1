"""The search over meshes, micro-batches and settings of towers: it compiles only what a bound cannot exclude.

All meshes of a topology share the rows of a batch and the products of the towers equally among the chips. So what was
compiled for one candidate says something of others (`Search.least_seconds`, `Search.least_bytes`). These rules are a
model, as the roofline is:

- Kernels outside of the optimizer take no less time with a larger fsdp or with more micro-batches. The optimizer reads
  and writes its state once.
- The gradient travels once, at least in bfloat16, over all links that a chip has. A mesh exchanges no less with another
  setting or with more micro-batches.
- More micro-batches add a forward pass, and keep the state and a share of the activations.
- remat=blocks takes the time of remat=products and a forward pass. remat=none holds no less than remat=products.
- A forward pass that runs again is at least AGAIN of the FLOPs of a step: a third without teachers, a fourth with a
  teacher of all views, less what heads and terms take.
- Blocks without a loop save the copies that the loop stacks, and at most as much time again to read them. They hold at
  least UNROLLED of what a step with the loop holds beside its state.
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
from medjax.plan.settings import AS_WRITTEN, REMAT, Setting
from medjax.plan.topology import GIB, Topology

GAIN = 0.02  # of the time: a smaller gain is none by this model, so nothing is compiled for it
AGAIN = 0.2
UNROLLED = 0.8
OF_THE_STATE = ('optimizer', 'teachers')  # parts of a step that touch each number of the state once
STACKED = 'copies'  # the part of a step in which a loop stacks what the backward pass reads


class Candidate(NamedTuple):
    """One way to place a recipe on all chips."""

    data: int
    fsdp: int
    tensor: int
    micro_batches: int
    setting: Setting = AS_WRITTEN

    @property
    def mesh(self) -> dict[str, int]:
        return dict(data=self.data, fsdp=self.fsdp, tensor=self.tensor)

    @property
    def overrides(self) -> tuple[str, ...]:
        sizes = (f'mesh.{axis}={size}' for axis, size in self.mesh.items())
        return (*sizes, f'micro_batches={self.micro_batches}', *self.setting.overrides)


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
    settings    settings of the towers to try
    more        whether the recipe takes more micro-batches
    tell        is told of each candidate that is compiled, before and after
    count       is told how many candidates are settled, and of how many
    """

    topology: Topology
    config: Mapping[str, Any]
    state: Callable[[Candidate], int]
    parameters: int  # bytes, of the whole student
    compiled: Callable[[Candidate], Facts]
    settings: Sequence[Setting] = (AS_WRITTEN,)
    more: bool = True
    tell: Callable[[str], None] = lambda text: None
    count: Callable[[int, int], None] = lambda settled, all_of_them: None

    def __post_init__(self) -> None:
        self.known: dict[Candidate, Facts] = {}
        self.times: dict[Candidate, Estimate] = {}  # of those that the compiler took
        self.excluded: dict[Candidate, str] = {}

    def run(self) -> list[Tried]:
        """All candidates, the best first. UserError if none fits."""
        found = [one._replace(setting=way) for one in meshes(self.topology, self.config) for way in self.settings]
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
        while waiting:
            one = self._next(waiting)
            waiting.remove(one)
            best = self._best()
            least = self.least_bytes(one)
            if least > self.topology.usable:
                self._exclude(one, f'needs at least {least / GIB:.1f} GiB', waiting)
            elif best is not None and self.least_seconds(one) > (1 - GAIN) * self._seconds(best):
                self.excluded[one] = f'cannot be faster by {GAIN:.0%}'
            else:
                self._compile(one, waiting)
            settled = len({**self.known, **self.excluded})
            self.count(settled, settled + len(waiting))

    def _next(self, waiting: Sequence[Candidate]) -> Candidate:
        """The candidate with the lowest bound; of those that are as good within GAIN the one that splits least.

        What is known of it bounds those that split more. The first program of all is one that compiles fast.
        """
        seconds = {one: self.least_seconds(one) if self.known else 0.0 for one in waiting}
        lowest = min(seconds.values())
        near = [one for one in waiting if seconds[one] <= lowest / (1 - GAIN)]
        return min(
            near,
            key=lambda one: (
                one.fsdp * one.tensor,
                one.micro_batches,
                one.setting.unrolled if not self.known else seconds[one],
                one.setting.remat != AS_WRITTEN.remat,
            ),
        )

    def _compile(self, one: Candidate, waiting: list[Candidate]) -> None:
        self.tell(' '.join(one.overrides))
        self.known[one] = facts = self.compiled(one)
        result = f'{facts.peak / GIB:.1f} GiB'
        if facts.compiled:
            self.times[one] = time = estimate(self.topology, facts)
            result += f', {1e3 * time.step:,.1f} ms a step'
        if facts.peak > self.topology.usable:
            self._exclude(one, f'needs {facts.peak / GIB:.1f} GiB', waiting)
            result += ': does not fit'
        self.tell(f'  -> {result}')

    def _exclude(self, one: Candidate, why: str, waiting: list[Candidate]) -> None:
        """A candidate that does not fit is tried with twice the micro-batches."""
        self.excluded[one] = why
        more = one._replace(micro_batches=2 * one.micro_batches)
        if self.more and self.state(one) <= self.topology.usable and fits_rows(more, self.config):
            waiting.append(more)

    def least_bytes(self, one: Candidate) -> int:
        """Bytes of a chip that a candidate needs at least, by its state and by what was compiled."""
        least = state = self.state(one)
        for other, facts in self.known.items():
            if other.tensor == one.tensor and _stores(one) >= _stores(other):
                step = facts.peak - self.state(other)  # all but the state
                saved = max(self.state(other) - state, 0)
                share = min(other.micro_batches / one.micro_batches, 1.0)
                share *= UNROLLED if other.setting.unrolled != one.setting.unrolled else 1.0
                least = max(least, state + int(share * max(step - saved, 0)))
        return least

    def least_seconds(self, one: Candidate) -> float:
        """Seconds of a step that a candidate takes at least, by its state and by what was compiled."""
        chip, chips = self.topology.chip, self.topology.chips
        of_flops, of_bandwidth, of_links = chip.reached
        shards = one.data * one.fsdp
        ways = 1 if chip.is_gpu else 2 * len(self.topology.sizes)
        wire = 2 * (shards - 1) / shards * self.parameters / one.tensor / 2  # float32 -> bfloat16
        least = 2 * self.state(one) / (of_bandwidth * chip.bandwidth)
        exchanges = wire / (of_links * chip.links.near * ways)
        kernels = 0.0
        for other, facts in self.known.items():
            products = facts.flops / (of_flops * chip.flops * chips)
            passes = _passes(one)
            kernels = max(kernels, products * (1 + AGAIN * passes))
            if other not in self.times or other.micro_batches > one.micro_batches or other.fsdp > one.fsdp:
                continue
            if other.mesh == one.mesh:
                exchanges = max(exchanges, self.times[other].exchanges)
            if other.setting.remat == one.setting.remat or (other.setting.remat, one.setting.remat) == REMAT[1::-1]:
                parts = self.times[other].parts
                rest = sum(seconds for part, seconds in parts.items() if part not in OF_THE_STATE)
                if one.setting.unrolled and not other.setting.unrolled:
                    rest -= 2 * parts.get(STACKED, 0.0)
                kernels = max(kernels, rest + products * AGAIN * (passes - _passes(other)))
        return least + exchanges + kernels

    def _seconds(self, one: Candidate) -> float:
        return self.times[one].step

    def _best(self) -> Candidate | None:
        fitting = [one for one in self.times if one not in self.excluded]
        return min(fitting, key=self._seconds, default=None)

    def _ranked(self) -> list[Tried]:
        best = self._best()
        assert best is not None
        found = []
        for one in {**self.known, **self.excluded}:
            time = self.times.get(one)
            why = self.excluded.get(one, 'best')
            if one != best and one not in self.excluded:
                why = f'{self._seconds(one) / self._seconds(best) - 1:.1%} slower'
            found.append(Tried(one, why, self.known.get(one), time, self.least_bytes(one), self.least_seconds(one)))
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
            f'{text}, of which the step itself takes {(need - state) / GIB:.1f} GiB; a smaller batch_size or more '
            'chips would shrink it'
        )


def _stores(one: Candidate) -> int:
    """How much blocks store for the backward pass: a rank."""
    return REMAT.index(one.setting.remat)


def _passes(one: Candidate) -> int:
    """Forward passes that a step computes once more than it must."""
    return (one.micro_batches > 1) + (one.setting.remat == 'blocks')


def _order(tried: Tried) -> tuple[float, int]:
    seconds = tried.least_seconds if tried.time is None else tried.time.step
    return seconds, tried.candidate.micro_batches


def _divisors(n: int) -> list[int]:
    return [i for i in range(1, n + 1) if n % i == 0]
