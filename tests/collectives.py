"""What a compiled program exchanges between devices."""

from __future__ import annotations

import re


def collectives(hlo: str) -> list[tuple[str, tuple[int, ...]]]:
    """(kind, shape of the result) of every collective in compiled HLO; tuples give one entry each."""
    kinds_and_shapes = []
    for line in hlo.splitlines():
        match = re.search(
            r'= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\(', line
        )
        if match:
            for dims in re.findall(r'\w+\[([\d,]*)\]', match[1]):
                kinds_and_shapes.append((match[2], tuple(int(n) for n in dims.split(',') if n)))
    return kinds_and_shapes
