"""Random changes of grey values and colours. One module a set, named in the config of a view.

`photometric='radiograph'` is the module `medjax.views.photometric.radiograph`; dict(set='radiograph', gamma=.1) gives
it parameters; a name with a dot is the user's own module. Its `build(**config)` returns a `Photometric`.

Parameters are drawn apart from being used, so that a view can keep them in its meta. Blur is not here: it is part of
the crop's matrix (geometry.py). So blur comes before these changes, and in the original after them. The two orders give
the same result but for clipping to [0,1] and gamma.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jax import Array

from medjax import plugins


@dataclasses.dataclass(frozen=True, eq=False)
class Photometric:
    """A set of random changes; this one changes nothing."""

    @property
    def numbers(self) -> int:
        """The number of uniform numbers that a crop needs."""
        return 0

    def draw(self, u: Array) -> dict[str, Array]:
        """Uniform numbers [V,numbers] -> parameters of V crops, each [V]."""
        return {}

    def apply(self, x: Array, p: dict[str, Array]) -> Array:
        """One crop float32 [H,W,C] in [0,1], changed by its parameters."""
        return x


def find_set(cfg: str | Mapping[str, Any] | None, where: str) -> Photometric:
    """The set that a view names; None for no change."""
    if cfg is None:
        return Photometric()
    return plugins.make({'set': cfg} if isinstance(cfg, str) else cfg, 'set', __name__, where)
