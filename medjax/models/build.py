"""From the `towers` and `heads` of a recipe to functions. There is no registry: names are modules and functions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from medjax import errors, plugins
from medjax.models import heads
from medjax.types import Head, Tower


def tower(cfg: Mapping[str, Any], image_channels: int, where: str, dtype: str = 'float32') -> Tower:
    """`dict(tower='vit', **arguments)` -> the tower that `medjax.models.towers.vit.build` makes, or the user's own.

    `where` is the config path that messages name; `dtype`, the recipe's for activations, gives way to the tower's own.
    A tower whose `build` has a parameter `channels` is told how many channels images have.
    """
    name, arguments = split_name(cfg, 'tower', where)
    build = plugins.find(name, 'medjax.models.towers', where).build
    sees_images = 'channels' in inspect.signature(build).parameters
    return plugins.call(
        build, dict(dtype=dtype) | arguments, where, **(dict(channels=image_channels) if sees_images else {})
    )


def head(cfg: Mapping[str, Any], width: int, where: str, dtype: str = 'float32') -> Head:
    """`dict(head='dino_head', **arguments)` -> the head made by that function, for features of `width` numbers.

    A dotted name 'mypkg.mymodule.myhead' is the user's own function.
    """
    name, arguments = split_name(cfg, 'head', where)
    module, _, function = name.rpartition('.')
    home = plugins.find(module, 'medjax.models', where) if module else heads
    if not hasattr(home, function):
        known = [n for n, value in vars(home).items() if getattr(value, '__module__', None) == home.__name__]
        raise errors.UserError(f'{where}: there is no head {name!r}{errors.suggest(name, known)}')
    return plugins.call(getattr(home, function), dict(dtype=dtype) | arguments, where, width=width)


def split_name(cfg: Mapping[str, Any], kind: str, where: str) -> tuple[str, dict[str, Any]]:
    """The name under the key `kind`, and the other keys."""
    if not isinstance(cfg.get(kind), str):
        raise errors.UserError(f'{where}: the key {kind!r} is missing or no name')
    return cfg[kind], {key: value for key, value in cfg.items() if key != kind}
