"""The view `text`: texts of each row as tokens. The host has chosen and tokenized them (medjax/data/text/views.py)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from medjax.data.text.views import text as options  # the keyword parameters that a config may set
from medjax.types import View
from medjax.views.kinds import Draws, Kind, Rows, facts

__all__ = ['build', 'options']


def build(where: str, name: str, part: str, length: int, count: int = 1, **host_options: Any) -> Kind:
    """The host checks all options, and uses those that are not named here."""
    return Text(part, count, name, length)


@dataclasses.dataclass(frozen=True, eq=False)
class Text(Kind):
    sees = 'text'

    name: str  # of the view
    tokens: int  # of a text, the padding included

    @property
    def length(self) -> int:
        return self.tokens

    def show(self, rows: Rows, draws: Draws, image: Mapping[str, object]) -> View:
        """A text of length 0 is absent."""
        x, length = rows[f'text/{self.name}'], rows[f'text/{self.name}/length']
        valid = jnp.arange(x.shape[2]) < length[..., None]
        return View(x, rows['row'], length > 0, valid, {'length': length, **facts(rows)})
