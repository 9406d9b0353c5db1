"""What a search may set in towers without changing what they compute: `remat` and `unroll`."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from medjax import plugins

REMAT = ('blocks', 'products', 'none')  # what a block stores for the backward pass, from little to everything


class Setting(NamedTuple):
    """One way to set all towers."""

    remat: str  # of REMAT; a tower that does not know the value stays as the recipe has it
    unrolled: bool  # no tower loops over its blocks
    overrides: tuple[str, ...]  # what differs from the recipe


AS_WRITTEN = Setting('products', False, ())


def settings(config: Mapping[str, Any], parameters: Mapping[str, Any], given: Iterable[str]) -> list[Setting]:
    """Every setting of a resolved config; settings that change the same keys stand there once.

    parameters  of the towers by name, or their shapes: how many blocks a tower has
    given       overrides of the user, which stay
    """
    fixed = {item.partition('=')[0] for item in given}
    keys = list(_keys(config, parameters, fixed))
    found: dict[tuple[str, ...], Setting] = {}
    for remat, unrolled in itertools.product(('products', 'none', 'blocks'), (False, True)):
        wanted = {key: choices[remat if key.endswith('.remat') else unrolled] for key, choices, _ in keys}
        changed = tuple(f'{key}={wanted[key]}' for key, _, now in keys if wanted[key] != now)
        found.setdefault(changed, Setting(remat, unrolled, changed))
    return list(found.values())


def _keys(
    config: Mapping[str, Any], parameters: Mapping[str, Any], fixed: set[str]
) -> Iterator[tuple[str, dict[Any, Any], Any]]:
    """Each key that a setting may change, its value in each setting, and its value in the recipe."""
    for name, section in config['towers'].items():
        if '.' in section['tower']:  # a user's own tower: nobody knows what its keywords do
            continue
        build = plugins.find(section['tower'], 'medjax.models.towers', f'towers.{name}').build
        takes = inspect.signature(build).parameters
        now = {key: section.get(key, takes[key].default) for key in ('remat', 'unroll') if key in takes}
        if 'remat' in now and (key := f'towers.{name}.remat') not in fixed:
            known = ('blocks', 'none') if takes['remat'].default == 'none' else REMAT
            yield key, {value: value if value in known else now['remat'] for value in REMAT}, now['remat']
        if 'unroll' in now and (key := f'towers.{name}.unroll') not in fixed and name in parameters:
            depth = _depth(parameters[name])
            yield key, {False: 1, True: depth}, min(now['unroll'], depth)


def _depth(parameters: Any) -> int:
    """Blocks of a tower: the leading axis of its stacked parameters."""
    for path, x in jax.tree_util.tree_leaves_with_path(parameters):
        if any(getattr(step, 'key', None) == 'blocks' for step in path):
            return x.shape[0]
    return 1
