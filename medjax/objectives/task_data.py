"""What the term `supervised` takes from the train splits before a run begins.

These are the weights of weights='balanced', the mean and deviation of a column of numbers, and the levels of an ordered
column of numbers. The resolved config holds them, so a run, its branches and its exports know them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.records import MOST_WORDS
from medjax.data.train_records import TrainRecords
from medjax.data.types import POSITIVE
from medjax.errors import UserError, suggest
from medjax.objectives import task_options
from medjax.objectives.task_options import ALL, BALANCED
from medjax.objectives.tasks import Classes, Labels, Levels, Numbers, Structures, Task, only_label
from medjax.objectives.terms import TermContext

LOOKED_AT = 32  # masks of a data set whose structures have no names


class Train(NamedTuple):
    """The train records that a term may read, n of them."""

    context: TermContext
    records: TrainRecords
    shares: np.ndarray  # float64 [n]: how often a row shows the record; 0 for records that the term may not read

    def numbers(self, column: str) -> tuple[np.ndarray, np.ndarray]:
        """The known numbers of a column, and the share of each; the shares sum to 1."""
        values = self.records.column(column).astype(np.float64)
        known = np.isfinite(values) & (self.shares > 0)
        self.check_known(known, f'a number in {column!r}')
        return values[known], self.shares[known] / self.shares[known].sum()

    def check_known(self, known: Any, what: str) -> None:
        """UserError if no record has a known target."""
        if not np.sum(known):
            raise UserError(
                f'{self.context.where}: no train record that it may use has {what}, so there is nothing to learn; '
                'look at the data with `medjax show`, and at the policy and the share of this term'
            )


def from_data(
    context: TermContext, options: Mapping[str, Any], records: TrainRecords, used: np.ndarray
) -> dict[str, Any]:
    """The options that are open and that the train records decide.

    `used` bool [n]: the records whose targets the term may read. UserError where none has a known target.
    """
    task = task_options.task(context, options, stand_ins=True)
    return READERS[type(task)](task, options, Train(context, records, records.shares() * used))


def _of_labels(task: Labels, options: Mapping[str, Any], train: Train) -> dict[str, Any]:
    codes = np.stack([train.records.codes(name) for name in task.names], 1)
    value, known = map(np.asarray, task.policy.targets(codes, 0.5))
    train.check_known(train.shares @ known, f'a known value of {_few(task.names)}')
    return _balanced(options, np.stack([train.shares @ (known - value * known), train.shares @ (value * known)], 1))


def _of_classes(task: Classes, options: Mapping[str, Any], train: Train) -> dict[str, Any]:
    if task.column is None:
        codes = np.stack([train.records.codes(name) for name in task.names], 1)
        member = (codes == POSITIVE) & only_label(codes)[:, None]
        what = f'exactly one of {_few(task.names)} and none of them in doubt'
    else:
        member = train.records.column(task.column.name)[:, None] == np.array(task.names)
        what = f'a known word in {task.column.name!r}'
    totals = train.shares @ member
    train.check_known(totals, what)
    return _balanced(options, totals)


def _of_numbers(task: Numbers, options: Mapping[str, Any], train: Train) -> dict[str, Any]:
    found: dict[str, list[float]] = dict(mean=[], std=[])
    for name in task.names:
        values, shares = train.numbers(name)
        mean = float(shares @ values)
        deviation = math.sqrt(shares @ (values - mean) ** 2)
        if deviation == 0:
            raise UserError(
                f'{train.context.where}.numbers: all train records that it may use have {mean:g} in {name!r}, so there '
                'is nothing to learn'
            )
        found['mean'].append(mean)
        found['std'].append(deviation)
    return {name: value for name, value in found.items() if options.get(name) is None}


def _of_levels(task: Levels, options: Mapping[str, Any], train: Train) -> dict[str, Any]:
    context, name = train.context, task.column.name
    if options.get('levels') is None and task.column.words:
        raise UserError(
            f'{context.where}: {name!r} is a column of words, and you know their order; write levels='
            f'{list(task.column.words)!r} from the lowest to the highest'
        )
    found: dict[str, Any] = {}
    if options.get('levels') is None:
        levels = [int(x) if x.is_integer() else x for x in np.unique(train.numbers(name)[0]).tolist()]
        found['levels'] = levels
        if not 2 <= len(levels) <= MOST_WORDS:
            raise UserError(
                f'{context.where}.ordered: the train records have {len(levels)} different numbers in {name!r}, and a '
                f"term learns 2 to {MOST_WORDS} levels; write levels=[…], or numbers='{name}'"
            )
    values = train.records.column(name)
    at = np.stack([train.shares @ (values == level) for level in found.get('levels', task.words)])
    train.check_known(at, f'one of these levels in {name!r}')
    above = at[::-1].cumsum()[::-1]  # at this level or above it
    return found | _balanced(options, np.stack([at[:-1], above[1:]], 1))


def _of_structures(task: Structures, options: Mapping[str, Any], train: Train) -> dict[str, Any]:
    where, there = f'{train.context.where}.structures', train.records.structures()
    names = there if options['structures'] == ALL else task.names
    for name in names:
        if name not in there:
            raise UserError(f'{where}: the masks of the data show no {name!r}{suggest(name, there)}')
    values: set[int] = set()
    found = 0
    for split, mask in train.records.masks(train.shares > 0):
        found += any(name in split.data.structures for name in names)
        values |= set() if split.data.masks else set(np.unique(mask).tolist()) - {0}
        if len(values) > 1:
            raise UserError(
                f'{where}: {split.data.name} does not say what the values {", ".join(map(str, sorted(values)[:5]))} of '
                'its masks show; build it again: medjax build table has --masks lung=1,heart=2 for the names'
            )
        if found and (split.data.masks or found == LOOKED_AT):
            break
    train.check_known(found, 'a mask' if names == ('mask',) else f'a mask that may show {_few(names)}')
    return dict(structures=list(names))


READERS: dict[type[Task], Callable[..., dict[str, Any]]] = {
    Labels: _of_labels,
    Classes: _of_classes,
    Numbers: _of_numbers,
    Levels: _of_levels,
    Structures: _of_structures,
}


def _balanced(options: Mapping[str, Any], totals: np.ndarray) -> dict[str, Any]:
    """The weights n / (C n_c) of C classes, along the last axis; 1 for a class without a record.

    These are scikit-learn's: each class weighs the same in the loss, and the mean weight of a record is 1.
    """
    if options.get('weights') != BALANCED:
        return {}
    there = totals > 0
    weights = totals.sum(-1, keepdims=True) / (there.sum(-1, keepdims=True) * np.where(there, totals, 1)).clip(1e-300)
    return dict(weights=np.where(there, weights, 1.0).tolist())


def _few(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + ', …' * (len(names) > 5)
