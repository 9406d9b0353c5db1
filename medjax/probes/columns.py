"""Columns of a data set as targets of probes: which ones, their values, and the result of predicting them.

Some probes predict an attribute of the records, such as age or sex, instead of a label. `medjax probe --columns` names
the columns. Without it, these probes take those of `subgroups.DEFAULT` that the data set has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from medjax.errors import UserError, suggest
from medjax.probes import label_splits, statistics
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import ProbeInputs, Result
from medjax.probes.statistics import Bootstrap, Sample
from medjax.probes.subgroups import DEFAULT

FEWEST = 10  # records with a known value, in train and in test


class Column(NamedTuple):
    """One column with its values by split: float32, nan if unknown, or words, '' if unknown."""

    name: str
    values: Mapping[str, np.ndarray]  # split -> [n]
    order: tuple[str, ...]  # its words from low to high, if `--columns grade=none<mild<severe` gives them

    @property
    def is_number(self) -> bool:
        return self.values['train'].dtype.kind == 'f'

    def known(self, split: str) -> np.ndarray:
        """bool [n]: the records with a value."""
        x = self.values[split]
        return np.isfinite(x) if self.is_number else x != ''


class Columns(NamedTuple):
    """The columns that a probe predicts, and those that it leaves out."""

    columns: list[Column]
    skipped: dict[str, str]  # name -> reason

    def facts(self) -> dict[str, Any]:
        """What a result depends on."""
        return dict(columns=[[column.name, list(column.order)] for column in self.columns])


class Prediction(NamedTuple):
    """What a probe finds for one column."""

    samples: dict[str, Sample]  # metric -> sample of a number; metrics of all columns have the same names
    chosen: str  # the settings, for people
    facts: dict[str, Any]  # more to keep, as JSON
    arrays: dict[str, np.ndarray]  # by name, each [n] or [n,…] for the n test records


def parse(text: str) -> dict[str, tuple[str, ...]]:
    """'age,grade=none<mild' -> {'age': (), 'grade': ('none', 'mild')}; UserError for other texts."""
    found: dict[str, tuple[str, ...]] = {}
    for each in filter(None, text.split(',')):
        name, equals, order = each.partition('=')
        words = tuple(order.split('<')) if equals else ()
        if not name or (equals and (len(words) < 2 or '' in words or len(set(words)) < len(words))):
            raise UserError(
                f'--columns {each!r}: write a name, as age, or also its words from low to high, as '
                'grade=none<mild<severe'
            )
        found[name] = words
    return found


def chosen(inputs: ProbeInputs, fits: Callable[[Column], bool], kind: str) -> Columns:
    """The columns that a probe predicts.

    `fits` tells whether the probe can predict a column. `kind` says for people what it predicts: 'column of numbers'.
    UserError if no column is left, or if `--columns` names one that the records do not have.
    """
    data, asked = inputs.data, inputs.columns
    splits = {name: data.split(name) for name in data.splits}
    if 'train' not in splits:
        raise UserError('the data set has no record in train')
    have = {name for split in splits.values() for name in split.attribute_names}
    for name in asked:
        if name not in have:
            raise UserError(f'--columns {name}: the records have no such column{suggest(name, sorted(have))}')
    found, skipped = [], {}
    for name in asked or [name for name in DEFAULT if name in have]:
        if missing := [split for split in splits if name not in splits[split].attribute_names]:
            skipped[name] = f'the records of {missing[0]} have no such column'
            continue
        values = {split: np.asarray(records.column(name)) for split, records in splits.items()}
        column = Column(name, values, asked.get(name, ()))
        if not fits(column):
            continue
        few = [int(column.known(split).sum()) for split in ('train', 'test')]
        if min(few) < FEWEST:
            skipped[name] = f'known for {few[0]} records of train and {few[1]} of test; {FEWEST} are needed in each'
        else:
            found.append(column)
    if not found:
        why = label_splits.reasons(skipped) or 'name one with --columns'
        raise UserError(f'{data.name} has no {kind} to predict ({why})')
    return Columns(found, skipped)


def predict(
    inputs: ProbeInputs, found: Columns, one: Callable[[ProbeInputs, Column, Bootstrap], Prediction | str]
) -> Result:
    """The result of `one`, which predicts a column or returns the reason why it cannot, over all columns.

    UserError if no column can be predicted.
    """
    test = inputs.features('test')
    bootstrap = inputs.options.bootstrap(test.patients)
    predictions: dict[str, Prediction] = {}
    skipped = dict(found.skipped)
    for column in found.columns:
        prediction = one(inputs, column, bootstrap)
        if isinstance(prediction, str):
            skipped[column.name] = prediction
        else:
            predictions[column.name] = prediction
    if not predictions:
        raise UserError(f'{inputs.data.name}: no column can be predicted ({label_splits.reasons(skipped)})')
    metrics = next(iter(predictions.values())).samples
    content = dict(
        records=dict(inputs.data.splits),
        seed=inputs.seed,
        chosen={name: prediction.chosen for name, prediction in predictions.items()},
        results={
            metric: statistics.rows({name: p.samples[metric] for name, p in predictions.items()}, bootstrap)
            for metric in metrics
        },
        details={name: prediction.facts for name, prediction in predictions.items()},
        rows='column',
        skipped_labels=skipped,
        bootstrap=bootstrap.facts(),
    )
    arrays = {f'{name}/{key}': x for name, p in predictions.items() for key, x in p.arrays.items()}
    return Result(content, arrays | dict(patient=test.patients.astype(np.int64)))


def splits_with(
    inputs: ProbeInputs, column: Column, targets: Callable[[np.ndarray], np.ndarray]
) -> tuple[SplitFeatures, SplitFeatures, SplitFeatures]:
    """(train, val, test) with `targets` of the column's values, [n] -> [n,K], in the place of labels.

    Without a val split, a tenth of the patients of train is held out.
    """
    of = {split: inputs.features(split)._replace(labels=targets(x)) for split, x in column.values.items()}
    train, val, _ = label_splits.with_validation(of['train'], of.get('val'), inputs.seed)
    return train, val, of['test']
