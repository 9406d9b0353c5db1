"""From the sections `towers` and `heads` of a recipe to towers and heads.

There is no registry: a name in a recipe is the name of a module with a function `build`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from medjax import plugins
from medjax.types import Head, Tower


def tower(cfg: Mapping[str, Any], image_channels: int, where: str, dtype: str = 'float32') -> Tower:
    """The tower that a section describes: dict(tower='vit', **options) calls `medjax.models.towers.vit.build`.

    A tower named 'mypkg.mytower' is the user's own module. `where` is the section in the recipe, for messages. `dtype`
    is the recipe's type of activations; a section may have its own. A `build` with a parameter `channels` gets the
    number of image channels.
    """
    module, options = plugins.chosen(cfg, 'tower', 'medjax.models.towers', where)
    channels = dict(channels=image_channels) if 'channels' in inspect.signature(module.build).parameters else {}
    return plugins.call(module.build, dict(dtype=dtype) | options, where, **channels)


def head(cfg: Mapping[str, Any], width: int, where: str, dtype: str = 'float32') -> Head:
    """The head that a section describes, for features of `width` numbers: a module of `medjax.models.heads`."""
    return plugins.make(dict(dtype=dtype) | dict(cfg), 'head', 'medjax.models.heads', where, width=width)
