"""From the sections `towers` and `heads` of a recipe to towers and heads.

There is no registry: a name in a recipe is the name of a module with a function `build`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from medjax import plugins
from medjax.errors import UserError
from medjax.types import Head, Tower


def tower(cfg: Mapping[str, Any], image_channels: int, where: str, dtype: str = 'float32') -> Tower:
    """The tower that a section describes: dict(tower='vit', **options) calls `medjax.models.towers.vit.build`.

    A tower named 'mypkg.mytower' is the user's own module. `where` is the section in the recipe, for messages. `dtype`
    is the recipe's type of activations; a section may have its own. A `build` with a parameter `channels` gets the
    number of image channels.
    """
    build, options = chosen(cfg, 'tower', where)
    channels = dict(channels=image_channels) if 'channels' in inspect.signature(build).parameters else {}
    return plugins.call(build, dict(dtype=dtype) | options, where, **channels)


def head(cfg: Mapping[str, Any], width: int, where: str, dtype: str = 'float32') -> Head:
    """The head that a section describes, for features of `width` numbers; as `tower`, in `medjax.models.heads`."""
    build, options = chosen(cfg, 'head', where)
    return plugins.call(build, dict(dtype=dtype) | options, where, width=width)


def chosen(cfg: Mapping[str, Any], kind: str, where: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The `build` of the module that `cfg` names under the key `kind`, and the other keys of `cfg`."""
    name = cfg.get(kind)
    if not isinstance(name, str):
        raise UserError(f'{where}: the key {kind!r} is missing or no name')
    module = plugins.find(name, f'medjax.models.{kind}s', where)
    if not callable(getattr(module, 'build', None)):
        first = 'width, ' if kind == 'head' else ''
        raise UserError(
            f'{where}: the module {module.__name__} has no function `build`; a {kind} is a module with a function '
            f'build({first}**options) that returns a medjax.types.{kind.capitalize()}'
        )
    return module.build, {key: value for key, value in cfg.items() if key != kind}
