"""The structures that the masks of a table show, as its user names them.

--masks lungs             one structure: all values but 0
--masks left=1,right=2    the value of each structure; 0 is background, and no other value may occur
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from medjax.data.images import decode
from medjax.data.types import Unreadable
from medjax.errors import UserError

MOST = 8  # structures: a mask has a bit for each


class Structures(NamedTuple):
    """Names of structures, and the value of each in the files; no values: there is at most one structure."""

    names: tuple[str, ...] = ()
    values: Mapping[str, int] = {}

    def read(self, data: bytes) -> bytes | np.ndarray:
        """The mask of a file, with a bit for each structure; the file itself without values. Raises Unreadable."""
        if not self.values:
            return data
        mask = decode.mask(data)
        bits = np.zeros_like(mask)
        for bit, name in enumerate(self.names):
            bits |= np.equal(mask, self.values[name]).astype(np.uint8) << bit
        if (other := mask[(mask > 0) & (bits == 0)]).size:
            raise Unreadable(f'it has the value {other[0]}, which --masks does not name')
        return bits


def parse(text: str | None) -> Structures:
    """The structures that --masks names. UserError if it cannot be read."""
    if text is None:
        return Structures()
    pairs = [tuple(part.strip() for part in item.partition('=')) for item in text.split(',')]
    names = tuple(name for name, _, _ in pairs)
    values: dict[str, int] = {}
    if not all(names):
        raise UserError(f'--masks {text}: a name is missing; write --masks lungs, or --masks left=1,right=2')
    if len(set(names)) < len(names) or 'mean' in names:
        twice = next((name for name in names if names.count(name) > 1), 'mean')
        why = 'is the name of a mean in results' if twice == 'mean' else 'stands there twice'
        raise UserError(f'--masks {text}: {twice!r} {why}; give each structure a name of its own')
    if len(names) > MOST:
        raise UserError(f'--masks {text}: {len(names)} structures, and a mask holds at most {MOST}')
    if len(names) == 1 and not pairs[0][1]:
        return Structures(names)
    for name, _, value in pairs:
        if not value.isdecimal() or not 1 <= int(value) <= 255:
            raise UserError(f'--masks {text}: {name} needs its value in the masks, 1 to 255, such as {name}=1')
        if int(value) in values.values():
            raise UserError(f'--masks {text}: the value {value} stands there twice; a pixel shows one structure')
        values[name] = int(value)
    return Structures(names, values)
