"""A source of small random images for tests of the builder, and a function that reads a folder."""

from __future__ import annotations

import numpy as np

from medjax.data.types import Entry, Example, Source

COUNT = 60


def source(load=None, stamps='') -> Source:
    """60 images, each of its own patient. `stamps` holds one character per entry."""
    pictures = np.random.default_rng(0).integers(0, 256, (COUNT, 12, 10)).astype(np.uint8)
    entries = [Entry(str(i), f'p{i}', f's{i}', None, f'line {i}', stamp=f'{stamps[i : i + 1]}') for i in range(COUNT)]
    load = load or (
        lambda i: Example(pictures[i], attributes={'age': float(i)} if i % 7 else {'site': f'{i}' * (1 + i % 3)})
    )
    return Source('clinic', '1', 'clinic', ('odd',), '', entries, lambda i: [i % 2], load)


def content(folder) -> dict[str, bytes]:
    """Relative path -> bytes of every file."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob('*')) if file.is_file()}
