"""Overrides of a config from the command line: `--config.optim.lr=1e-3`, `--config.terms.2.weight=.05`.

An override may name every key that the config has, and every keyword that the builder of a section takes, also one that
the file leaves at its default: `--config.towers.image.registers=4`. The value must have the type of the value that it
replaces. ml_collections' own flags are not used: they need the config before the data is known, and cannot enter lists.
"""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from medjax import plugins
from medjax.errors import UserError, suggest
from medjax.objectives.pair_options import learned_scale
from medjax.objectives.positives import soft_positives
from medjax.objectives.schedules import RULES
from medjax.training.optimizer import Rule, optimizer
from medjax.training.state import start_from
from medjax.types import is_number


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Splits a command line into other arguments and overrides: '--config.optim.lr 1e-3' -> 'optim.lr=1e-3'."""
    others: list[str] = []
    overrides: list[str] = []
    items = iter(argv)
    for item in items:
        key = re.match(r'--?config\.(.*)', item, re.DOTALL)
        if not key:
            others.append(item)
        elif '=' in item:
            overrides.append(key[1])
        else:
            value = next(items, None)
            overrides.append(key[1] if value is None else f'{key[1]}={value}')
    return others, overrides


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets `config.<key>` to the value that `text` writes. 'terms.0.weight' enters lists."""
    *path, last = re.split(r'[.\[\]]+', key.rstrip(']'))
    where, place = 'config', config
    for name in path:
        place, where = place[_entry(place, name, key, where, {})], f'{where}.{name}'
    more = keywords(config, tuple(path))
    entry = _entry(place, last, key, where, more)
    now = place[entry] if not isinstance(place, (ConfigDict, dict)) or entry in place else more[last].default
    value = _typed(None if now is inspect.Parameter.empty else now, _literal(text), text, key)
    if isinstance(place, tuple):
        raise UserError(f'--config.{key}: write the whole of {where}, for example --{where}={place!r}')
    if isinstance(place, ConfigDict):
        with place.ignore_type(), place.unlocked():  # `_typed` checks the type; a schedule may become a number
            place[entry] = ConfigDict(value) if isinstance(value, dict) else value
    else:
        place[entry] = value


# Section of a config ('*' stands for one name or number) -> the key that names a plug-in, the folder of plug-ins, and
# the parameters of `build` that come from the program, so that a config cannot set them.
PLUGINS = {
    ('towers', '*'): ('tower', 'medjax.models.towers', ('channels',)),
    ('heads', '*'): ('head', 'medjax.models.heads', ('width',)),
    ('views', '*'): ('view', 'medjax.views.kinds', ('where', 'name')),
    ('views', '*', 'photometric'): ('set', 'medjax.views.photometric', ()),
    ('masks', '*'): ('mask', 'medjax.views.masks', ('where', 'grid', 'crops')),
    ('teachers', '*'): ('rule', 'medjax.objectives.teachers', ('context',)),
    ('terms', '*'): ('term', 'medjax.objectives.terms', ('context',)),
}
# Sections that a function takes whole, with the parameters that come from the program.
FUNCTIONS: dict[tuple[str, ...], tuple[Callable, tuple[str, ...]]] = {
    ('optim',): (optimizer, ('params', 'total_steps')),
    ('optim', 'groups', '*'): (Rule, ()),
    ('init_from',): (start_from, ('state', 'network')),
    ('init_from', '*'): (start_from, ('state', 'network')),
    ('teachers', '*', 'init_from'): (start_from, ('state', 'network')),
    ('terms', '*', 'positives'): (soft_positives, ('total_steps', 'where')),
    ('terms', '*', 'positives', '*'): (soft_positives, ('total_steps', 'where')),
    ('terms', '*', 'temperature'): (learned_scale, ('where',)),
}
EVERY_TERM = dict(name=None, weight=1.0)  # keys of every term, whatever its module takes


def keywords(config: ConfigDict, path: tuple[str, ...]) -> dict[str, inspect.Parameter]:
    """The keywords that the builder of a section takes, with their defaults; {} for a section without a builder."""
    section: Any = config
    for name in path:
        section = section[int(name) if isinstance(section, (list, tuple)) else name]
    if not isinstance(section, (Mapping, ConfigDict)):
        return {}
    for pattern, (key, package, given) in PLUGINS.items():
        if _matches(path, pattern):
            module, _ = plugins.chosen(section, key, package, '.'.join(path))
            options = plugins.options_of(getattr(module, 'options', module.build), given)
            return options | (_parameters(EVERY_TERM) if key == 'term' else {})
    if section.get('rule') in RULES:  # a schedule, wherever it stands
        return plugins.options_of(RULES[section['rule']])
    for pattern, (function, given) in FUNCTIONS.items():
        if _matches(path, pattern):
            return plugins.options_of(function, given)
    return {}


def _matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    return len(path) == len(pattern) and all(b in ('*', a) for a, b in zip(path, pattern, strict=True))


def _parameters(defaults: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    return {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=v) for name, v in defaults.items()}


def _entry(place: Any, name: str, key: str, where: str, more: Mapping[str, Any]) -> Any:
    """`name` as a key of the dict, or as an index of the list, `place`."""
    if isinstance(place, (ConfigDict, dict)):
        if name not in place and name not in more:
            keys = list(dict.fromkeys([*place, *more]))
            hint = plugins.renamed(name, keys) or suggest(name, keys)
            raise UserError(f'--config.{key}: {where} has no key {name!r}{hint}')
        return name
    if not isinstance(place, (list, tuple)):
        whole = where.removeprefix('config.')
        raise UserError(
            f'--config.{key}: {where} is {place!r} and has no keys; write the whole of it, for example '
            f'--config.{whole}="dict({name}=…)"'
        )
    if not name.isdecimal() or int(name) >= len(place):
        raise UserError(f'--config.{key}: {where} is a list of {len(place)}; its entries are 0 to {len(place) - 1}')
    return int(name)


def _literal(text: str) -> Any:
    """The Python value that `text` writes, also 'dict(start=1., end=0.)'; the text itself if it writes none."""
    constants = {'true': True, 'false': False, 'none': None, 'null': None}
    if text.lower() in constants:
        return constants[text.lower()]
    try:
        return ast.literal_eval(_DictCalls().visit(ast.parse(text.strip(), mode='eval')))
    except (ValueError, SyntaxError, TypeError):
        return text


class _DictCalls(ast.NodeTransformer):
    """Turns dict(a=1) into {'a': 1} in a syntax tree, at any depth. Other calls stay and are no literals."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        names = [keyword.arg for keyword in node.keywords]
        if not isinstance(node.func, ast.Name) or node.func.id != 'dict' or node.args or None in names:
            return node
        return ast.Dict([ast.Constant(name) for name in names], [keyword.value for keyword in node.keywords])


def _typed(old: Any, new: Any, text: str, key: str) -> Any:
    """`new` as the type of `old`. A schedule may change between its three forms: a number, a rule, values by step."""

    def is_rule(x: Any) -> bool:
        return isinstance(x, (ConfigDict, dict)) and 'rule' in x

    if old is None or new is None:
        return new
    if isinstance(old, bool):
        fits, form = isinstance(new, bool), 'true or false'
    elif isinstance(old, int):
        whole = is_number(new) and math.isfinite(new) and new == int(new)
        fits, form, new = whole, 'a whole number', int(new) if whole else new
    elif isinstance(old, float):
        fits, form = is_number(new) or is_rule(new), 'a number'
        new = float(new) if is_number(new) else new
    elif isinstance(old, str):
        fits, form, new = True, 'text', new if isinstance(new, str) else text
    elif isinstance(old, (list, tuple)):
        fits, form = isinstance(new, (list, tuple)), 'a list'
        if fits and old and all(is_number(x) for x in old):
            fits, form = all(is_number(x) for x in new), 'a list of numbers'
        new = type(old)(new) if fits else new
    elif is_rule(old):
        fits = is_number(new) or is_rule(new) or (isinstance(new, (list, tuple)) and all(map(is_number, new)))
        form = "a number, a rule such as dict(rule='cosine', …) or a list of numbers"
    else:
        fits, form = isinstance(new, dict), 'a dict'
    if not fits:
        now = old.to_dict() if isinstance(old, ConfigDict) else old
        raise UserError(f'--config.{key}: {text!r} does not fit, it takes {form} (now {now!r})')
    return new
