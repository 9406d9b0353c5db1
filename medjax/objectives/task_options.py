"""The options of the term `supervised`: what a config may give it, checked.

    labels, policy, weights, focal, smoothing       -> Labels
    classes, weights, focal, smoothing              -> Classes
    numbers, error, mean, std                       -> Numbers
    ordered, levels, weights, focal, smoothing      -> Levels
    structures                                      -> Structures

weights='balanced', and a mean, a std or levels that are not given, come from the train splits (task_data.py). Where no
data are at hand, stand-ins are in their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medjax.errors import UserError, suggest
from medjax.objectives.label_policy import label_policy
from medjax.objectives.tasks import ERRORS, Classes, Labels, Levels, Numbers, Structures, Task
from medjax.objectives.terms import TargetColumn, TermContext
from medjax.plugins import call, text_list
from medjax.types import is_number

BALANCED, ALL = 'balanced', 'all'


def task(context: TermContext, options: Mapping[str, Any], stand_ins: bool) -> Task:
    """The task that the options of a term describe. An option that is None is not given.

    `stand_ins`: options that the data decide may be open. Otherwise an open one is a UserError.
    """
    given = {name: value for name, value in options.items() if value is not None}
    kinds = [name for name in KINDS if name in given] or ['labels']
    if len(kinds) > 1:
        raise UserError(f'{context.where}: it predicts {" or ".join(kinds)}, not both; give one of them, or two terms')
    return call(KINDS[kinds[0]], given, context.where, context=context, stand_ins=stand_ins)


def labels(
    labels: Sequence[str] | None = None,
    policy: Mapping[str, Any] | None = None,
    weights: Any = None,
    focal: float = 0.0,
    smoothing: float = 0.0,
    *,
    context: TermContext,
    stand_ins: bool,
) -> Labels:
    """Labels of the data, each for itself; None: all of them."""
    columns = _label_columns(context, labels, 'labels')
    names = tuple(column.name for column in columns)
    if policy is not None and not isinstance(policy, Mapping):
        raise UserError(f"{context.where}.policy={policy!r}: must be a dict, such as dict(uncertain='negative')")
    return Labels(
        names,
        _weights(context, weights, names, stand_ins, pairs=True),
        *_focal_and_smoothing(context, focal, smoothing),
        tuple(column.number for column in columns),
        call(label_policy, policy or {}, f'{context.where}.policy', labels=names, where=f'{context.where}.policy'),
    )


def classes(
    classes: str | Sequence[str],
    weights: Any = None,
    focal: float = 0.0,
    smoothing: float = 0.0,
    *,
    context: TermContext,
    stand_ins: bool,
) -> Classes:
    """The words of a column, or labels that exclude each other."""
    where, column, columns = f'{context.where}.classes', None, []
    if isinstance(classes, str):
        column = context.target(classes, 'classes')
        if column.field == 'label':
            raise UserError(f"{where}: {classes!r} is one label; name several, or write labels=['{classes}']")
        if not column.words:
            raise UserError(f"{where}: {classes!r} is a column of numbers; write numbers='{classes}' or ordered=…")
    else:
        columns = _label_columns(context, classes, 'classes')
    names = column.words if column else tuple(label.name for label in columns)
    if len(names) < 2:
        raise UserError(f'{where}={classes!r}: must name at least two classes')
    return Classes(
        names,
        _weights(context, weights, names, stand_ins, pairs=False),
        *_focal_and_smoothing(context, focal, smoothing),
        column,
        tuple(label.number for label in columns),
    )


def numbers(
    numbers: str | Sequence[str],
    error: str = 'mse',
    mean: Any = None,
    std: Any = None,
    *,
    context: TermContext,
    stand_ins: bool,
) -> Numbers:
    """A column of numbers, or several."""
    where = f'{context.where}.numbers'
    names = text_list([numbers] if isinstance(numbers, str) else numbers, where, 'age')
    columns = tuple(context.target(name, 'numbers') for name in names)
    for column in columns:
        if column.words:
            instead = 'labels' if column.field == 'label' else 'classes'
            raise UserError(f'{where}: {column.name!r} holds words and no numbers; {instead}=… predicts them')
    if len(set(names)) < len(names) or not names:
        raise UserError(f'{where}={numbers!r}: must name at least one column, each once')
    if error not in ERRORS:
        raise UserError(f'{context.where}.error={error!r}: must be one of {", ".join(ERRORS)}')
    means = _by_output(context, 'mean', mean, names, 0.0, stand_ins)
    deviations = _by_output(context, 'std', std, names, 1.0, stand_ins)
    if not (deviations > 0).all():
        raise UserError(f'{context.where}.std={std!r}: must be above 0')
    return Numbers(names, columns, means, deviations, ERRORS[error])


def ordered(
    ordered: str,
    levels: Sequence[Any] | None = None,
    weights: Any = None,
    focal: float = 0.0,
    smoothing: float = 0.0,
    *,
    context: TermContext,
    stand_ins: bool,
) -> Levels:
    """A column whose words or numbers have an order, the lowest level first."""
    where = f'{context.where}.ordered'
    if not isinstance(ordered, str):
        raise UserError(f'{where}={ordered!r}: must be the name of a column')
    column = context.target(ordered, 'ordered')
    if column.field == 'label':
        raise UserError(f"{where}: {ordered!r} is a label, present or absent; write labels=['{ordered}']")
    if levels is None:
        _check_open('levels', context, stand_ins)
    names, values = level_values(context, column, levels or column.words or (0, 1))
    outputs = tuple(f'above {level}' for level in names[:-1])
    return Levels(
        outputs,
        _weights(context, weights, outputs, stand_ins, pairs=True),
        *_focal_and_smoothing(context, focal, smoothing),
        column,
        values,
        names,
    )


def structures(structures: str | Sequence[str], *, context: TermContext, stand_ins: bool) -> Structures:
    """Structures of the masks of the data; 'all' of them."""
    where = f'{context.where}.structures'
    if structures == ALL:
        _check_open('structures', context, stand_ins)
        structures = ['any structure']
    names = text_list(structures, where, 'lung')
    if len(set(names)) < len(names) or not names:
        raise UserError(f'{where}={list(names)!r}: must name at least one structure, each once')
    return Structures(names, np.ones((len(names), 2), np.float32), 0.0, 0.0)


KINDS: dict[str, Callable[..., Task]] = dict(
    labels=labels, classes=classes, numbers=numbers, ordered=ordered, structures=structures
)


def level_values(context: TermContext, column: TargetColumn, levels: Any) -> tuple[tuple[Any, ...], np.ndarray]:
    """The levels, and the value that a batch has for each: the level itself, or the number of the word."""
    where = f'{context.where}.levels'
    plain = isinstance(levels, (list, tuple)) and all(isinstance(level, str) or is_number(level) for level in levels)
    if not plain or len(levels) < 2 or len(set(levels)) < len(levels):
        raise UserError(f'{where}={levels!r}: must be a list of at least two different levels, the lowest first')
    for level in levels:
        if column.words and level not in column.words:
            raise UserError(f'{where}: {column.name!r} has no word {level!r}{suggest(str(level), column.words)}')
        if not column.words and not is_number(level):
            raise UserError(f'{where}: {column.name!r} is a column of numbers, and {level!r} is none')
    if not column.words and list(levels) != sorted(levels):
        raise UserError(f'{where}={list(levels)!r}: numbers stand in rising order')
    values = [column.words.index(level) if column.words else level for level in levels]
    return tuple(levels), np.array(values, np.float32)


def _label_columns(context: TermContext, names: Sequence[str] | None, argument: str) -> list[TargetColumn]:
    """The labels of these names; None: all of the data."""
    where = f'{context.where}.{argument}'
    if names is None and context.labels == ():
        raise UserError(
            f'{context.where}: the data have no labels to predict; build them with labels (medjax build … --labels), '
            "or name a column: classes='sex', numbers='age' or ordered='grade'"
        )
    if names is None:
        names = ('any label',) if context.labels is None else context.labels
    names = text_list(names, where, 'effusion')
    columns = [context.target(name, argument) for name in names]
    for column in columns:
        if column.field != 'label':
            kind = 'classes' if column.words else 'numbers'
            raise UserError(f"{where}: {column.name!r} is a column and no label; write {kind}='{column.name}'")
    if len(set(names)) < len(names) or not names:
        raise UserError(f'{where}={list(names)!r}: must name at least one label, each once')
    return columns


def _weights(context: TermContext, given: Any, names: Sequence[str], stand_ins: bool, pairs: bool) -> np.ndarray:
    """float32 [O,2] of absent and present with `pairs`, else [O]. A number in place of a pair is that of present."""
    where, ones = f'{context.where}.weights', (1.0, 1.0) if pairs else 1.0
    if given == BALANCED:
        _check_open('weights', context, stand_ins)
        given = None
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise UserError(f'{where}: the term has no output {name!r}{suggest(str(name), names)}')
    of = given or {}
    values = [of.get(name, ones) for name in names] if isinstance(of, Mapping) else of
    if pairs and isinstance(values, (list, tuple)):
        values = [(1.0, one) if is_number(one) else one for one in values]
    try:
        weights = np.array(values, np.float32)
    except (ValueError, TypeError):
        weights = np.zeros(())
    if weights.shape != np.shape([ones] * len(names)) or not (np.isfinite(weights) & (weights >= 0)).all():
        one = '[weight of absent, weight of present] or the weight of present' if pairs else 'the weight of each class'
        raise UserError(
            f"{where}={given!r}: must be 'balanced', a dict by name or a list of {len(names)}: {one}, at least 0"
        )
    return weights


def _by_output(
    context: TermContext, argument: str, given: Any, names: Sequence[str], stand_in: float, stand_ins: bool
) -> np.ndarray:
    """A number for each output; one number may stand for all."""
    if given is None:
        _check_open(argument, context, stand_ins)
        given = stand_in
    values = [given] * len(names) if is_number(given) else given
    numbers = isinstance(values, (list, tuple)) and all(is_number(x) and math.isfinite(x) for x in values)
    if not numbers or len(values) != len(names):
        raise UserError(
            f'{context.where}.{argument}={given!r}: must be a number, or a list of {len(names)}, one for each column'
        )
    return np.array(values, np.float32)


def _focal_and_smoothing(context: TermContext, focal: Any, smoothing: Any) -> tuple[float, float]:
    if not is_number(focal) or not 0 <= focal <= 5:
        raise UserError(f'{context.where}.focal={focal!r}: must be a number from 0 (no focal loss) to 5; 2 is usual')
    if not is_number(smoothing) or not 0 <= smoothing < 1:
        raise UserError(f'{context.where}.smoothing={smoothing!r}: must be a number from 0 to below 1; .1 is usual')
    return float(focal), float(smoothing)


def _check_open(argument: str, context: TermContext, stand_ins: bool) -> None:
    if not stand_ins:
        raise UserError(
            f'{context.where}.{argument}: comes from the data when a run begins, but not in a stage; write it out there'
        )
