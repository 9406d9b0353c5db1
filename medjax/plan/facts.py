"""The facts of a step that was compiled for a topology: what the model of time and the pages start from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from medjax.plan import memory
from medjax.plan.exchanges import Exchange
from medjax.plan.kernels import Kernel


@dataclasses.dataclass(frozen=True)
class Facts:
    """One compiled step. Bytes and kernels are those of one chip."""

    device: str  # the name of jax
    hosts: int
    mesh: dict[str, int]
    dtype: str  # of activations
    rows: dict[str, int]  # of each part of the batch, on all chips
    canvas: int  # side of the stored images in pixels
    flops: float  # of the model in a step on all chips
    state: dict[str, int]  # bytes by part
    whole_state: dict[str, int]  # the same for the state on all chips, each array once: the size of a checkpoint
    batch: int
    peak: int  # bytes at the worst moment, with the state and the batch
    versions: dict[str, str]
    lowering_s: float
    compile_s: float
    arguments: int = 0
    kernels: tuple[Kernel, ...] = ()  # none where the compiler refused the program, because it does not fit
    exchanges: tuple[Exchange, ...] = ()

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Facts:
        kernels = tuple(Kernel(*one) for one in value.get('kernels', ()))
        exchanges = tuple(
            Exchange(*one)._replace(extents=tuple(one[Exchange._fields.index('extents')]))
            for one in value.get('exchanges', ())
        )
        return cls(**{**value, 'kernels': kernels, 'exchanges': exchanges})

    @property
    def images(self) -> int:
        """Rows of a step on all chips."""
        return sum(self.rows.values())

    @property
    def compiled(self) -> bool:
        return bool(self.kernels)

    @property
    def moved(self) -> int:
        """Bytes that all kernels of a step move between a chip and its HBM."""
        return sum(one.runs * one.bytes for one in self.kernels)

    def memory(self) -> dict[str, int]:
        """Bytes of a chip by what it holds at the worst moment of the step."""
        return memory.by_part(self.state, self.batch, self.peak, self.arguments)
