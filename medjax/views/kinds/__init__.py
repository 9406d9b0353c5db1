"""Kinds of views: what a tower sees of a row. One module a kind, named in the config.

`view='crop'` in `views` of a config is the module `medjax.views.kinds.crop`; a name with a dot is the user's own. Its
`build(where, name, …)` returns a `Kind`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from jax import Array

from medjax.types import View

Rows = Mapping[str, Array]  # the fields of one part of a batch
Draws = dict[str, Any]  # arrays by name; a view may hold the draws of another one under a name


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """One view of a config."""

    sees: ClassVar[Literal['image', 'text']] = 'image'  # the kind of view: towers that see this kind read it

    part: str  # of the batch
    count: int  # V, crops or texts of each row

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of its images in pixels; None for texts."""
        return None

    @property
    def length(self) -> int:
        """T, the tokens of its texts; 0 for images."""
        return 0

    def draw(self, keys: Array, rows: Rows) -> Draws:
        """Everything random, from one key for each row. {} for views without chance."""
        return {}

    def show(self, rows: Rows, draws: Draws, image: Mapping[str, object]) -> View:
        """The view of these rows; `image` has channels, mean and std."""
        raise NotImplementedError


def facts(rows: Rows) -> dict[str, Array]:
    """Labels, columns, keys and masks of the rows, which terms may read from any view."""
    names = ('label', 'column', 'mask', 'mask/known', *(('image/extent',) if 'mask' in rows else ()))
    return {field: rows[field] for field in rows if field in names or field.startswith('key/')}
