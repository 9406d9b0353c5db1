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
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from medjax import plugins
from medjax.errors import UserError, suggest
from medjax.objectives.label_policy import label_policy
from medjax.objectives.pair_options import learned_scale
from medjax.objectives.positives import soft_positives
from medjax.objectives.schedules import RULES
from medjax.training.optimizer import Rule, optimizer
from medjax.training.state import start_from
from medjax.types import is_number
from medjax.weights import load
from medjax.weights.base import ExportWeights


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


def override(config: ConfigDict, key: str, text: str, before: Mapping[str, Any] | None = None) -> None:
    """Sets `config.<key>` to the value that `text` writes. 'terms.0.weight' enters lists.

    `before`: the config.json of the run that goes on, see `place_tower`.
    """
    put(config, key, _literal(text), text, before)


def put(config: ConfigDict, key: str, value: Any, text: str, before: Mapping[str, Any] | None = None) -> None:
    """Sets `config.<key>` to a value, which a message shows as `text`."""
    *path, last = names = re.split(r'[.\[\]]+', key.rstrip(']'))
    where, place = 'config', config
    for i, name in enumerate(path):
        more = keywords(config, tuple(path[:i]))
        entry = _entry(place, names, i, where, more)
        if isinstance(place, (ConfigDict, dict)) and entry not in place:
            raise UserError(_at_default(names, i, more))
        place, where = place[entry], f'{where}.{name}'
    more = keywords(config, tuple(path))
    entry = _entry(place, names, len(path), where, more)
    now = place[entry] if not isinstance(place, (ConfigDict, dict)) or entry in place else more[last].default
    if isinstance(value, str) and _matches(tuple(names), ('towers', '*')):
        place_tower(config, last, value, f'--config.{key}', before)
        return
    parameter = more.get(last) or next(
        (p for pattern, p in ALTERNATIVES.items() if _matches(tuple(names), pattern)), None
    )
    free = _may_be_none(tuple(names), now, parameter) if value is None else _other_form(now, value, parameter)
    if not free:
        value = _typed(_as_float(now, parameter), value, text, key)
    if isinstance(place, tuple):
        raise UserError(f'--config.{key}: write the whole of {where}, for example --{where}={place!r}')
    if isinstance(place, ConfigDict):
        with place.ignore_type(), place.unlocked():  # `_typed` checks the type; a schedule may become a number
            place[entry] = ConfigDict(value) if isinstance(value, dict) else value
    else:
        place[entry] = value


def place_tower(config: ConfigDict, name: str, path: str, where: str, before: Mapping[str, Any] | None = None) -> None:
    """Puts the tower that published weights describe into the recipe, and its weights into `init_from`.

    `path` is a folder or a file: config.towers.image = 'dinov2-base/'. A run that goes on does not need it any more: if
    it is gone, `before`, the config.json of the run, knows the tower.
    """
    if before is not None and not Path(path).exists():
        for start in _starts(before.get('init_from')):
            if start['path'] == path and any(item.startswith(f'towers/{name}=') for item in start.get('take') or ()):
                _place(config, name, before['towers'][name], start)
                return
    try:
        weights = load.open(path)
        module = _tower_in(weights, name, config.towers.get(name))
        section = weights.section(module)
    except UserError as error:
        raise UserError(
            f'{where}={path!r}: a tower is a dict, such as dict(tower=…), or a path of weights; {error}'
        ) from None
    _place(config, name, section, dict(path=path, take=[f'towers/{name}={module}']))


def _place(config: ConfigDict, name: str, section: Mapping[str, Any], start: Mapping[str, Any]) -> None:
    """Puts the section of a tower and the weights that it begins with into a config.

    What the recipe says of training, and weights do not, stays as the recipe has it (OF_TRAINING). An entry of
    `init_from` that loads nothing but this tower is replaced.
    """
    now = config.towers.get(name)
    if isinstance(now, ConfigDict) and now.get('tower') == section.get('tower'):
        section = dict(section) | {key: now[key] for key in OF_TRAINING if key in now}
    with config.towers.ignore_type(), config.towers.unlocked():
        config.towers[name] = ConfigDict(dict(section))
    with config.ignore_type(), config.unlocked():
        config.init_from = [*(one for one in _starts(config.get('init_from')) if not _only(one, name)), dict(start)]


OF_TRAINING = ('drop_path', 'lora', 'prompts')  # keys of a tower


def _starts(given: Any) -> list[Any]:
    """The entries of `init_from`: None, one dict, or a list of dicts."""
    return [] if given is None else list(given) if isinstance(given, (list, tuple)) else [given]


def _only(start: Mapping[str, Any], name: str) -> bool:
    """Whether an entry of `init_from` loads the whole of this tower and nothing else."""
    take = start.get('take')
    return bool(take) and {item.partition('=')[0] for item in take} == {f'towers/{name}'}


def _tower_in(weights: load.Weights, name: str, now: Any) -> str:
    """The tower of a file that takes the place of the tower `name`, whose section is now `now`."""
    towers = [module for module in weights.modules if module.startswith('towers/')]
    section = {} if now is None or isinstance(now, str) else dict(now)
    kind = {'text': 'text', 'decoder': 'decoder'}.get(section.get('tower'), 'image')
    encoder = (
        [f'towers/{weights.meta.get("encoder")}'] if kind == 'image' and isinstance(weights, ExportWeights) else []
    )
    for module in (f'towers/{name}', f'towers/{kind}', *encoder):
        if module in towers:
            return module
    raise UserError(f'{weights.path} holds {", ".join(weights.modules)}, and no tower for {name!r}')


# Section of a config ('*' stands for one name or number) -> the key that names a plug-in, the folder of plug-ins, and
# the parameters of `build` that come from the program, so that a config cannot set them.
PLUGINS = {
    ('towers', '*'): ('tower', 'medjax.models.towers', ('channels',)),
    ('heads', '*'): ('head', 'medjax.models.heads', ('width',)),
    ('views', '*'): ('view', 'medjax.views.kinds', ('where', 'name')),
    ('views', '*', 'photometric'): ('set', 'medjax.views.photometric', ()),
    ('masks', '*'): ('mask', 'medjax.views.masks', ('context',)),
    ('teachers', '*'): ('rule', 'medjax.objectives.teachers', ('context',)),
    ('terms', '*'): ('term', 'medjax.objectives.terms', ('context',)),
}
# Sections that a function takes whole, with the parameters that come from the program.
FUNCTIONS: dict[tuple[str, ...], tuple[Callable, tuple[str, ...]]] = {
    ('optim',): (optimizer, ('params', 'total_steps')),
    ('optim', 'groups', '*'): (Rule, ()),
    ('init_from',): (start_from, ('state', 'towers', 'network')),
    ('init_from', '*'): (start_from, ('state', 'towers', 'network')),
    ('teachers', '*', 'init_from'): (start_from, ('state', 'towers', 'network')),
    ('terms', '*', 'positives'): (soft_positives, ('total_steps', 'where')),
    ('terms', '*', 'positives', '*'): (soft_positives, ('total_steps', 'where')),
    ('terms', '*', 'temperature'): (learned_scale, ('where',)),
    ('terms', '*', 'policy'): (label_policy, ('labels', 'where')),
}
EVERY = dict(
    term=dict(name=None, weight=1.0), head=dict(tie=None)
)  # keys of every term and head, whatever its module takes
# Keys of no builder that may be None, since the data decide them or since nothing is there.
OPTIONAL = (('image', '*'), ('tokenizer', '*'), ('data', '*', 'rows'), ('data', '*', 'canvas'), ('init_from',))
# Keys of no builder that have values of more than one form, as annotations write them.
ALTERNATIVES = {
    pattern: inspect.Parameter(
        pattern[-1] if pattern[-1] != '*' else 'name', inspect.Parameter.KEYWORD_ONLY, annotation=note
    )
    for pattern, note in {
        ('image', 'mean'): 'float | Sequence',
        ('image', 'std'): 'float | Sequence',
        ('init_from',): 'Mapping | Sequence',
        ('columns', '*'): 'str | Sequence',
    }.items()
}


def keywords(config: ConfigDict, path: tuple[str, ...]) -> dict[str, inspect.Parameter]:
    """The keywords that the builder of a section takes, with their defaults; {} for a section without a builder."""
    section: Any = config
    for name in path:
        section = section[int(name) if isinstance(section, (list, tuple)) else name]
    if not isinstance(section, (Mapping, ConfigDict)):
        return {}
    for pattern, (key, package, given) in PLUGINS.items():
        if _matches(path, pattern):
            module, _ = plugins.chosen(dict(section), key, package, '.'.join(path))
            options = getattr(module, 'options', None)  # a function that takes what `build` does not name
            options = plugins.options_of(options if callable(options) else module.build, given)
            return options | _parameters(EVERY.get(key, {}))
    if section.get('rule') in RULES:  # a schedule, wherever it stands
        return plugins.options_of(RULES[section['rule']])
    for pattern, (function, given) in FUNCTIONS.items():
        if _matches(path, pattern):
            return plugins.options_of(function, given)
    return {}


def _matches(path: tuple[str, ...], pattern: tuple[str, ...]) -> bool:
    return len(path) == len(pattern) and all(b in ('*', a) for a, b in zip(path, pattern, strict=True))


def _parameters(defaults: Mapping[str, Any]) -> dict[str, inspect.Parameter]:
    return {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation='Any')
        for name, value in defaults.items()
    }


def _entry(place: Any, names: Sequence[str], i: int, where: str, more: Mapping[str, Any]) -> Any:
    """Name number `i` of an override as a key of the dict, or as an index of the list, `place`."""
    name, key = names[i], '.'.join(names)
    if isinstance(place, (ConfigDict, dict)):
        if name not in place and name not in more:
            keys = list(dict.fromkeys([*place, *more]))
            hint = plugins.renamed(name, keys) or suggest(name, keys)
            raise UserError(f'--config.{key}: {where} has no key {name!r}{hint}')
        return name
    if not isinstance(place, (list, tuple)) or not place:
        empty = 'is an empty list' if isinstance(place, (list, tuple)) else f'is {place!r} and has no keys'
        raise UserError(f'--config.{key}: {where} {empty}; write the whole of it: {_whole(names, i, place)}')
    if not name.isdecimal() or int(name) >= len(place):
        raise UserError(f'--config.{key}: {where} is a list of {len(place)}; its entries are 0 to {len(place) - 1}')
    return int(name)


def _at_default(names: Sequence[str], i: int, more: Mapping[str, inspect.Parameter]) -> str:
    """The sentence where an override enters name number `i`, which the file leaves at its default."""
    where, default = '.'.join(names[: i + 1]), more[names[i]].default
    state = 'is not given' if default is inspect.Parameter.empty else f'is at its default {default!r}'
    whole = _whole(names, i + 1, default)
    return f'--config.{".".join(names)}: {where} {state}; write the whole of it: {whole}'


def _whole(names: Sequence[str], i: int, now: Any) -> str:
    """The override that writes the first `i` names as a whole: --config.optim.groups="[dict(match=…, lr_scale=…)]"."""

    def written(path: tuple[str, ...], rest: Sequence[str]) -> str:
        if not rest:
            return '…'
        inner = written((*path, rest[0]), rest[1:])
        if rest[0].isdecimal():
            return f'[{inner}]'
        keys = {**_needed(path, rest[0], now), rest[0]: inner}
        return f'dict({", ".join(f"{name}={value}" for name, value in keys.items())})'

    return f'--config.{".".join(names[:i])}="{written(tuple(names[:i]), names[i:])}"'


def _needed(path: tuple[str, ...], name: str, now: Any) -> dict[str, str]:
    """The keys that a new section needs besides `name`: its plug-in, the rule of a schedule, required keywords."""
    for pattern, (key, _, _) in PLUGINS.items():
        if _matches(path, pattern):
            return {key: repr(now) if isinstance(now, str) else '…'}
    for pattern, (function, given) in FUNCTIONS.items():
        options = plugins.options_of(function, given)
        if _matches(path, pattern) and name in options:
            return {other: '…' for other, p in options.items() if p.default is p.empty}
    rules = [rule for rule, function in RULES.items() if name in plugins.options_of(function)]
    return {'rule': repr(rules[0]), 'start': '…', 'end': '…'} if rules else {}


def _may_be_none(names: tuple[str, ...], now: Any, parameter: inspect.Parameter | None) -> bool:
    """Whether None fits: it is the value or the default, or the builder's annotation names it."""
    if now is None or any(_matches(names, pattern) for pattern in OPTIONAL):
        return True
    return parameter is not None and (
        parameter.default is None or bool(_alternatives(parameter) & {'None', 'Optional'})
    )


# Forms of a value, with the names that annotations give them.
FORMS: tuple[tuple[tuple[type, ...], set[str]], ...] = (
    ((str,), {'str'}),
    ((dict, ConfigDict), {'dict', 'Mapping'}),
    ((list, tuple), {'list', 'tuple', 'Sequence'}),
    ((int, float), {'int', 'float'}),
)


def _other_form(now: Any, new: Any, parameter: inspect.Parameter | None) -> bool:
    """Whether `new` is a text, dict, list or number in the place of another of these, as the annotation allows.

    So a schedule may be a number, a list by step or a rule, whichever of them the recipe has. The builder checks it.
    """
    is_rule = isinstance(now, (dict, ConfigDict)) and 'rule' in now
    if parameter is None or isinstance(now, bool) or isinstance(new, bool) or (is_rule and isinstance(new, str)):
        return False
    forms = [next((form for form in FORMS if isinstance(value, form[0])), None) for value in (now, new)]
    return None not in forms and forms[0] != forms[1] and bool(_alternatives(parameter) & {*forms[1][1], 'Any'})


def _as_float(now: Any, parameter: inspect.Parameter | None) -> Any:
    """A whole number as a float where the builder takes any number, as weight=1 in a recipe."""
    if not isinstance(now, int) or isinstance(now, bool) or parameter is None:
        return now
    return float(now) if isinstance(parameter.default, float) or _alternatives(parameter) & {'float', 'Any'} else now


def _alternatives(parameter: inspect.Parameter) -> set[str]:
    """The names in an annotation: {'str', 'Mapping', 'None'} of 'str | Mapping[str, Any] | None'."""
    note = parameter.annotation
    note = note if isinstance(note, str) else getattr(note, '__name__', repr(note))
    while note != (inner := re.sub(r'\[[^][]*\]', '', note)):
        note = inner
    return {piece.strip().rpartition('.')[2] for piece in note.split('|')}


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

    if old is None or (old is inspect.Parameter.empty and new is not None):
        return new
    if old is inspect.Parameter.empty:
        raise UserError(f'--config.{key}: {text!r} does not fit, this key needs a value')
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
