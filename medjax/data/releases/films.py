"""The base of releases that are a folder of images with labels from a table."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Protocol


class LabelledFilm(Protocol):
    """One usable image of a release; sources have more fields."""

    @property
    def labels(self) -> Sequence[int]: ...


@dataclasses.dataclass(frozen=True)
class FilmRelease:
    """The usable images of a release, in the order of the entries. A source adds `load(i)`."""

    root: pathlib.Path
    films: Sequence[LabelledFilm]

    def label(self, i: int) -> Sequence[int]:
        """The code of each label of image i."""
        return self.films[i].labels
