"""Plug-ins: the modules that a config names. All of them are found in one way.

`term='koleo'` is the module `medjax.objectives.terms.koleo`, `tower='vit'` is `medjax.models.towers.vit`. A name with a
dot is the user's own module, 'mypkg.myterm', anywhere on the Python path. There is no registry. A plug-in is a module
with a function `build`; the keys of its config section are the keyword parameters of `build`.
"""

from __future__ import annotations

import graphlib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from medjax.errors import UserError, suggest

# Old names of keys, for the sentence that a config of version 1 gets.
RENAMED = {
    'copies': 'teachers',
    'copy': 'network',
    'layout': 'family',
    'rate': 'lr_scale',
    'decay': 'wd_scale',
    'clip': 'clip_group',
    'parts': 'take',
}


def names(package: str) -> list[str]:
    """The plug-ins in a folder of plug-ins, such as 'medjax.objectives.terms'."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(package).__path__))


def find(name: str, package: str, where: str, kind: str = 'module', needs: str = 'build') -> ModuleType:
    """The module that a config names. `kind` is the word that messages use, `needs` the function of such a module.

    UserError where there is no such module, or where it is no plug-in of this kind.
    """
    target = name if '.' in name else f'{package}.{name}'
    if not all(piece.isidentifier() for piece in target.split('.')):
        raise UserError(f'{where}: {name!r} is no name of a module{suggest(name, names(package))}')
    try:
        module = importlib.import_module(target)
    except ModuleNotFoundError as error:
        if error.name is None or not (target + '.').startswith(error.name + '.'):
            raise  # the module is there; a module that it imports is not
        hint = '' if '.' in name else suggest(name, names(package))
        raise UserError(f'{where}: there is no {kind} {name!r} (looked for the module {target}){hint}') from None
    if not callable(getattr(module, needs, None)):
        raise UserError(
            f'{where}: the module {target} is no {kind}: it has no function {needs}(){suggest(name, names(package))}'
        )
    return module


def make(cfg: Mapping[str, Any], key: str, package: str, where: str, /, **extra: Any) -> Any:
    """Builds what a section describes: `dict(tower='vit', …)` with key='tower' calls the `build` of that module.

    `extra` are the arguments that come from the program and not from the config.
    """
    module, options = chosen(cfg, key, package, where)
    return call(module.build, options, where, **extra)


def chosen(cfg: Mapping[str, Any], key: str, package: str, where: str) -> tuple[ModuleType, dict[str, Any]]:
    """The module that `cfg[key]` names, and the other keys of the section."""
    if not isinstance(cfg, Mapping):
        form = f'dict({key}={cfg!r})' if isinstance(cfg, str) else f'dict({key}=…)'
        raise UserError(f'{where}={cfg!r}: must be a dict, {form}')
    name = cfg.get(key)
    if not isinstance(name, str):
        raise UserError(f'{where}: the key {key!r} is missing: it names one of {", ".join(names(package))}')
    return find(name, package, f'{where}.{key}', key), {k: value for k, value in cfg.items() if k != key}


def call(function: Callable, cfg: Mapping[str, Any], where: str, /, **extra: Any) -> Any:
    """`function(**cfg, **extra)`, where every key of `cfg` must be a parameter of the function.

    A function with `**options` takes any key. It has to check them itself, or another function does.
    `where` is the config path that messages name: 'views.global: unknown key 'siez'; did you mean 'size'?'
    """
    free = options_of(function, extra)
    takes_more = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
    for name in cfg:
        if name not in free and not takes_more:
            raise UserError(f'{where}: unknown key {name!r}{renamed(name, free) or suggest(name, free)}')
    for name, parameter in free.items():
        if parameter.default is inspect.Parameter.empty and name not in cfg:
            raise UserError(f'{where}: the key {name!r} is missing')
    return function(**cfg, **extra)


def text_list(value: Any, where: str, example: str) -> tuple[str, ...]:
    """A list of texts as a tuple. UserError for anything else, also for one text, whose letters are no items."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise UserError(f'{where}={value!r}: must be a list of texts, such as {[example]}')
    return tuple(value)


def options_of(function: Callable, taken: Any = ()) -> dict[str, inspect.Parameter]:
    """The parameters that a config may set: all but those in `taken`."""
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind is not p.VAR_KEYWORD and name not in taken}


def renamed(name: str, keys: Any) -> str:
    """'; it was renamed to X' for a key of version 1, else ''."""
    return f'; it was renamed to {RENAMED[name]!r}' if RENAMED.get(name) in keys else ''


def in_order(before: Mapping[str, Sequence[str]], where: str, circle: str) -> list[str]:
    """The names of sections that name each other, in an order in which each comes after those in `before`.

    UserError where there is no such order: `where` with the name of a section in place of {}, and `circle`, a clause.
    """
    try:
        return list(graphlib.TopologicalSorter(before).static_order())
    except graphlib.CycleError as error:
        names = error.args[1][:0:-1]  # the last name is the first again
        start = min(range(len(names)), key=lambda i: list(before).index(names[i]))
        names = [*names[start:], *names[: start + 1]]
        raise UserError(f'{where.format(names[0])}: {circle}: {" -> ".join(names)}') from None
