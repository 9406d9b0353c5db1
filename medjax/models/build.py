"""From the sections `towers` and `heads` of a recipe to towers and heads.

There is no registry: a name in a recipe is the name of a module with a function `build`.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from medjax import plugins
from medjax.errors import UserError, suggest
from medjax.models.passes import parse_reads
from medjax.types import Head, Tower


def towers(section: Mapping[str, Any], image_channels: int, dtype: str = 'float32') -> dict[str, Tower]:
    """The towers of a recipe by name. A tower over towers is built after those that it reads."""
    before: dict[str, list[str]] = {}
    for name, cfg in section.items():
        reads = parse_reads(cfg['reads'], f'towers.{name}.reads') if 'reads' in cfg else ()
        before[name] = [read.tower for read in reads if read.tower is not None]
        for other in before[name]:
            if other not in section:
                raise UserError(f'towers.{name}.reads: there is no tower {other!r}{suggest(other, section)}')
    built: dict[str, Tower] = {}
    for name in plugins.in_order(before, 'towers.{}.reads', 'towers read each other in a circle'):
        built[name] = tower(section[name], image_channels, f'towers.{name}', dtype, built)
    return {name: built[name] for name in section}


def tower(
    cfg: Mapping[str, Any],
    image_channels: int,
    where: str,
    dtype: str = 'float32',
    others: Mapping[str, Tower] | None = None,
) -> Tower:
    """The tower that a section describes: dict(tower='vit', **options) calls `medjax.models.towers.vit.build`.

    A tower named 'mypkg.mytower' is the user's own module. `where` is the section in the recipe, for messages. `dtype`
    is the recipe's type of activations; a section may have its own. A `build` with a parameter `channels` gets the
    number of image channels. A `build` with a parameter `reads` makes a tower over towers: it gets the towers that the
    section's `reads` names, from `others`, with None for a view itself.
    """
    module, options = plugins.chosen(cfg, 'tower', 'medjax.models.towers', where)
    takes = inspect.signature(module.build).parameters
    given: dict[str, Any] = dict(channels=image_channels) if 'channels' in takes else {}
    if 'reads' not in takes:
        if 'reads' in options:
            raise UserError(f'{where}.reads: {cfg["tower"]!r} is a tower of views and reads no other tower')
        return _built(module.build, dict(dtype=dtype) | options, where, **given)
    if 'reads' not in options:
        raise UserError(f"{where}: the key 'reads' is missing: the towers that {cfg['tower']!r} reads, as ['image']")
    reads = parse_reads(options.pop('reads'), f'{where}.reads')
    given['reads'] = tuple(None if read.tower is None else (others or {})[read.tower] for read in reads)
    built = dataclasses.replace(_built(module.build, dict(dtype=dtype) | options, where, **given), reads=reads)
    plugins.text_list(built.wants, f'{where}: the wants of {cfg["tower"]!r}', 'last4/cls')
    return built


def head(cfg: Mapping[str, Any], width: int, where: str, dtype: str = 'float32', outputs: int | None = None) -> Head:
    """The head that a section describes, for features of `width` numbers: a module of `medjax.models.heads`.

    The key `tie` names a parameter of another module that the head uses: dict(head='words', tie='towers/text/words').
    `together=True` makes one batch of all features of a network that name a head with a BatchNorm (SwAV).
    `outputs` is the value of the key `out`, where the section leaves it open.
    """
    module, options = plugins.chosen(cfg, 'head', 'medjax.models.heads', where)
    options = dict(dtype=dtype) | options
    if outputs is not None and options.get('out') is None and 'out' in plugins.options_of(module.build):
        options['out'] = outputs
    tie = options.pop('tie', None)
    if tie is not None and (not isinstance(tie, str) or tie.count('/') < 2):
        raise UserError(f"{where}.tie: {tie!r} is no parameter; write its path, as 'towers/text/words'")
    together = options.pop('together', False)
    built = dataclasses.replace(_built(module.build, options, where, width=width), tie=tie, together=together)
    if not isinstance(together, bool) or (together and not built.batch_statistics):
        raise UserError(
            f'{where}.together={together!r}: must be True or False, and True only for a head that normalises by the '
            'statistics of the batch'
        )
    return built


def _built(build: Callable[..., Any], options: Mapping[str, Any], where: str, **given: Any) -> Any:
    """What a `build` makes of the options of a section. Its own mistakes do not name the section, so this does."""
    try:
        return plugins.call(build, options, where, **given)
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(where) else f'{where}: {error}') from None
