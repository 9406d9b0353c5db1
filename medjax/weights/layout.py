"""A layout: the names that one kind of published files has, and the tower or head of ours that it describes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from medjax.errors import UserError
from medjax.weights.arrays import Arrays
from medjax.weights.names import Line, Positions, Table

Sizes = dict[str, Any]  # width, depth, heads, hidden, patch, … as they are seen in arrays or said by a config.json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The names of one tower or head in one kind of published files.

    title     for messages: "a DINOv2 backbone in Meta's names"
    module    'towers/image', 'towers/text', 'heads/text', …
    signs     names that a file must have to be of this kind
    absent    names that a file of this kind does not have
    when      whether arrays with these names are of this kind, where shapes decide it
    table     the lines of all our parameters; those of options that a model lacks are left out
    left_out  pattern of names that may be there and are not read: classifiers, poolers
    prefix    pattern of what may stand before all names, such as 'module.' or 'teacher.backbone.'
    types     the words of transformers' config.json for such models, its `model_type`
    config    which of the settings that lie beside the file speak of this module: 'image' or 'text'; '' if none does
    describe  (sizes seen in the arrays, settings of the config) -> the section of a recipe, dict(tower='vit', …)
    sizes     (table, arrays) -> the sizes that are seen in the arrays
    """

    title: str
    module: str
    signs: tuple[str, ...]
    table: Table
    describe: Callable[[Sizes, Mapping[str, Any]], dict[str, Any]]
    sizes: Callable[[Table, Arrays], Sizes]
    absent: tuple[str, ...] = ()
    when: Callable[[Arrays], bool] = lambda arrays: True
    left_out: str = r'(?!)'
    prefix: str = '.*'
    types: tuple[str, ...] = ()
    config: str = ''

    def matches(self, arrays: Arrays) -> bool:
        signs, absent = [[name in arrays for name in names] for names in (self.signs, self.absent)]
        return all(signs) and not any(absent) and self.when(arrays)

    def owned(self, arrays: Arrays) -> set[str]:
        """The names of the file that the table reads or that may be left out."""
        read = {name for line in self.table for name in line.all_names(arrays)}
        return {name for name in arrays if name in read or re.match(rf'(?:{self.left_out})', name)}


# Sizes that are seen in arrays, without reading them.


def axes(table: Table, arrays: Arrays, path: str) -> dict[str, int] | None:
    """The length of each axis in the pattern of a line, for one layer; None if the file has no such array.

    Axes in brackets are left out, as their lengths are not known by themselves.
    """
    for line in table:
        if isinstance(line, Line) and line.path == path and line.there(arrays):
            name = next(name for name in line.all_names(arrays) if name in arrays)
            left = re.sub(r'\([^)]*\)', '_', line.pattern.split('->')[0]).split()
            shape = arrays.shape(name)
            if len(left) != len(shape):
                raise UserError(f'{name} has shape {shape}, and {len(left)} axes are expected')
            return {axis: n for axis, n in zip(left, shape, strict=True) if axis.isalpha()}
    return None


def layers(table: Table, arrays: Arrays, path: str) -> int:
    """The number of layers that a parameter has in the file; `path` may be the beginning of several: 'blocks/'."""
    stacks = [line for line in table if isinstance(line, Line) and line.path.startswith(path) and '{}' in line.names[0]]
    return max((line.layers(arrays) for line in stacks), default=0)


def positions(table: Table, arrays: Arrays) -> tuple[Positions, int] | None:
    """The line of position embeddings and their number, CLS included; None if the file has none."""
    for line in table:
        if isinstance(line, Positions) and line.there(arrays):
            if len(shape := arrays.shape(line.name)) not in (2, 3):
                raise UserError(f'{line.name} has shape {shape}, and a table of positions has 2 or 3 axes')
            return line, shape[-2]
    return None
