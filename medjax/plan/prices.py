"""The price table that a user gives: dollars of a chip and hour, in a TOML file with a line for each chip.

v5p = 4.20
h100 = 2.99
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from medjax.errors import UserError, suggest
from medjax.plan.topology import CHIPS, Topology
from medjax.types import is_number


def read(path: str, topologies: Sequence[Topology]) -> Mapping[str, float]:
    """The prices by chip. UserError if a line is wrong, or if a topology has no price."""
    where = f'--prices {path}'
    try:
        found = tomllib.loads(Path(path).expanduser().read_text(encoding='utf-8'))
    except OSError as error:
        raise UserError(f'{where}: cannot be read ({error.strerror})') from None
    except UnicodeDecodeError:
        raise UserError(f'{where}: is no text; write lines such as v5p = 4.20') from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f'{where}: is no TOML ({error}); write lines such as v5p = 4.20') from None
    for chip, price in found.items():
        if chip not in CHIPS:
            raise UserError(f'{where}: nobody knows the chip {chip!r}{suggest(chip, CHIPS)}')
        if not is_number(price) or not 0 < price < math.inf:
            raise UserError(f'{where}: {chip} = {price!r} is no price in dollars of an hour; write {chip} = 4.20')
    for topology in topologies:
        if topology.kind not in found:
            raise UserError(f'{where}: has no price for {topology.name}; add a line {topology.kind} = DOLLARS')
    return {chip: float(price) for chip, price in found.items()}
