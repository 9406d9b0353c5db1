"""How a config finds code: the module that a name means, and the call that a section means."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from medjax.errors import UserError, suggest


def call(function: Callable, cfg: Mapping[str, Any], where: str, **extra: Any) -> Any:
    """`function(**cfg, **extra)` where every key of `cfg` must be a parameter of the function.

    `where` is the config path that the message names: 'views.global: unknown key 'siez'; did you mean 'size'?'
    """
    parameters = inspect.signature(function).parameters
    free = {name for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD} - set(extra)
    for name in cfg:
        if name not in free:
            raise UserError(f'{where}: unknown key {name!r}{suggest(name, free)}')
    for name in free:
        if parameters[name].default is inspect.Parameter.empty and name not in cfg:
            raise UserError(f'{where}: the key {name!r} is missing')
    return function(**cfg, **extra)


def find(name: str, package: str, where: str) -> Any:
    """The module that a config names: 'koleo' is `medjax.objectives.terms.koleo`, 'mypkg.myterm' is the user's own."""
    target = name if '.' in name else f'{package}.{name}'
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is None or not (target + '.').startswith(error.name + '.'):
            raise  # the module is there; something that it imports is not
        import pkgutil

        known = [m.name for m in pkgutil.iter_modules(importlib.import_module(package).__path__)]
        raise UserError(
            f'{where}: there is no {name!r} (looked for the module {target}){suggest(name, known)}'
        ) from None
