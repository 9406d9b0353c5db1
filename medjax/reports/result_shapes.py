"""Checks that a result has what its figures read, before a figure is drawn.

Somebody may have changed a file by hand, or half of it was lost. That is a `DamagedResult` with the place in the file,
and the page says so. Whatever fails after these checks is a fault of the code that draws, and must not look like a
damaged file.

A shape is a function (value, its place) that raises DamagedResult if the value has another shape. Keys that are not
named here may be anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax import files
from medjax.probes.results import probe_of
from medjax.reports.run_files import ResultFile
from medjax.types import is_number

Shape = Callable[[Any, str], None]


class DamagedResult(Exception):
    """A result lacks what its figures read."""


def expect(fits: bool, place: str, what: str) -> None:
    if not fits:
        raise DamagedResult(f'{place} is {what}')


# Shapes


def number(x: Any, place: str) -> None:
    expect(is_number(x) and math.isfinite(x), place, 'no number')


def text(x: Any, place: str) -> None:
    expect(isinstance(x, str), place, 'no text')


def text_or_number(x: Any, place: str) -> None:
    (text if isinstance(x, str) else number)(x, place)


def maybe(shape: Shape) -> Shape:
    """The shape, or null."""
    return lambda x, place: None if x is None else shape(x, place)


def each(shape: Shape) -> Shape:
    """An object whose values have the shape."""

    def check(x: Any, place: str) -> None:
        expect(isinstance(x, dict), place, 'no object')
        for key, value in x.items():
            shape(value, f'{place}.{key}')

    return check


def listed(shape: Shape) -> Shape:
    """A list whose entries have the shape."""

    def check(x: Any, place: str) -> None:
        expect(isinstance(x, list), place, 'no list')
        for i, value in enumerate(x):
            shape(value, f'{place}.{i}')

    return check


def fields(needed: Mapping[str, Shape], others: Mapping[str, Shape] | None = None) -> Shape:
    """An object with these keys, and perhaps with others."""

    def check(x: Any, place: str) -> None:
        expect(isinstance(x, dict), place, 'no object')
        for key, shape in needed.items():
            expect(key in x, f'{place}.{key}', 'missing')
            shape(x[key], f'{place}.{key}')
        for key, shape in (others or {}).items():
            if key in x:
                shape(x[key], f'{place}.{key}')

    return check


ANY = ('value', 'low', 'high', 'deviation', 'chance', 'labels', 'patients')  # numbers beside a value


def estimate(x: Any, place: str) -> None:
    """A value that may be null, with both limits or none."""
    fields({}, dict.fromkeys(ANY, maybe(number)))(x, place)
    expect((x.get('low') is None) == (x.get('high') is None), place, 'an interval with one limit')
    expect(x.get('value') is not None or x.get('low') is None, place, 'an interval without a value')


def known(x: Any, place: str) -> None:
    """An estimate with a value."""
    estimate(x, place)
    expect(x.get('value') is not None, f'{place}.value', 'missing')


def conformal(x: Any, place: str) -> None:
    measure = each(maybe(estimate))
    names = ('coverage', 'coverage_of_positives', 'coverage_of_negatives', 'singletons')
    fields({}, dict(class_conditional=each(measure), groups=each(each(each(each(estimate))))))(x, place)
    if x.get('class_conditional'):
        fields(dict(alpha=number, class_conditional=fields(dict.fromkeys(names, measure))))(x, place)


def retained(x: Any, place: str) -> None:
    """Of each label as many values as fractions."""
    curves = each(listed(maybe(number)))
    fields({}, dict(fractions=listed(number), retained=each(listed(number)), auroc=curves, accuracy=curves))(x, place)
    for metric in ('auroc', 'accuracy'):
        for label, values in x.get(metric, {}).items():
            for other in (x.get('fractions'), x.get('retained', {}).get(label)):
                expect(
                    other is not None and len(other) == len(values), f'{place}.{metric}.{label}', 'of another length'
                )


def subgroup(x: Any, place: str) -> None:
    """What `medjax.probes.subgroups` says of one column."""
    rows = dict(auroc=each(each(estimate)))
    fields({}, dict(note=text, skipped=each(number)))(x, place)
    if 'results' in x:
        fields(
            dict(
                results=fields(rows),
                distances=fields({}, dict(auroc_gap=each(maybe(estimate)))),
                groups=each(fields(dict(patients=number))),
            )
        )(x, place)
        for group in x['results']['auroc']:
            expect(group in x['groups'], f'{place}.groups.{group}', 'missing')


def answers_of_levels(x: Any, place: str) -> None:
    """A square of counts [levels,levels]."""
    fields(dict(pairs=listed(listed(number)), levels=listed(text_or_number)))(x, place)
    size = len(x['levels'])
    square = len(x['pairs']) == size and all(len(row) == size for row in x['pairs'])
    expect(size > 0 and square, f'{place}.pairs', 'of another size than its levels')


RESULT = fields(
    dict(results=each(each(estimate))),
    dict(
        calibration=fields({}, dict(results=each(each(each(maybe(estimate)))))),
        conformal=conformal,
        retained=retained,
        subgroups=each(subgroup),
    ),
)
BY_PROBE: Mapping[str, Shape] = dict(
    ordinal=fields({}, dict(details=each(answers_of_levels))),
    regression=fields({}, dict(details=each(fields({}, dict(constant_mae=maybe(number)))))),
    robustness=fields(
        dict(results=fields(dict(drop=each(estimate)))),
        dict(clean=each(known), details=each(listed(fields(dict(AUROC=known))))),
    ),
)


def check(result: ResultFile) -> None:
    """DamagedResult if figures of this result cannot be drawn."""
    RESULT(result.content, result.probe)
    if shape := BY_PROBE.get(probe_of(result.probe)):
        shape(result.content, result.probe)


# Arrays


def arrays(result: ResultFile, names: Sequence[str]) -> list[np.ndarray] | None:
    """Arrays of a result; None if one of them is missing."""
    if result.scores is None:
        return None
    try:
        with np.load(result.scores, allow_pickle=False) as file:
            return [file[name] for name in names] if set(names) <= set(file.files) else None
    except files.NPZ_ERRORS as error:
        raise DamagedResult(f'{result.scores.name} cannot be read: {error}') from error


class Reliability(NamedTuple):
    """The bins of reliability diagrams."""

    bins: np.ndarray  # float [M,L,bins,3]: records, mean probability, share of positives
    maps: list[str]  # M names of calibration maps
    labels: list[str]  # L


def reliability(result: ResultFile) -> Reliability | None:
    """None if the result has none."""
    found = arrays(result, ('reliability', 'reliability_maps', 'reliability_labels'))
    if found is None:
        return None
    bins, maps, labels = found
    fits = bins.ndim == 4 and bins.shape[-1] == 3 and bins.shape[:2] == (maps.size, labels.size) and maps.size > 0
    expect(fits and np.issubdtype(bins.dtype, np.number), 'reliability', 'of another shape')
    return Reliability(bins, [str(one) for one in maps.ravel()], [str(one) for one in labels.ravel()])


def answers(result: ResultFile, column: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(answers, true values) [n] of a regression; None if the result has none. A true value may be nan: not known."""
    found = arrays(result, (f'{column}/answer', f'{column}/truth'))
    if found is None:
        return None
    answer, truth = found
    fits = answer.ndim == 1 and answer.shape == truth.shape
    expect(fits and all(np.issubdtype(x.dtype, np.number) for x in found), f'{column}/answer', 'of another shape')
    return answer, truth
