"""Metrics of groups of records, such as sexes and age bands, and how far the groups are apart.

A group is a value of a column. Ages are put into bands, other numbers with more than ten values into quarters. An
intersection, sex*age, has a group for each pair of values. Records with an unknown value are in no group of the column.
A group with fewer than FEWEST patients is skipped by name, and so are all but the MOST_GROUPS largest. A label counts
in a group with FEWEST_RECORDS positive and as many negative records or more, and distances are over labels and groups
that count.

For a metric M in [0,1], with M_g of group g and M of all records of the column's groups:

    gap                      max M_g - min M_g
    equity_scaled            M / (1 + sum |M_g - M|), alpha = 1 (FairSeg, arXiv 2311.02189); fewer groups give more
    disparity                standard deviation of M_g / M, and gap / M (Fair-series code)
    dpd                      demographic parity: the gap of the share of records that are called positive
    eod, aod                 equalised odds: the larger, and the mean, of the gaps of sensitivity and 1 - specificity

Decisions use the threshold of balanced accuracy, which validation chose. All groups share the draws of the bootstrap.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.errors import UserError, suggest
from medjax.probes import metrics, statistics
from medjax.probes.aggregate import Units
from medjax.probes.statistics import Bootstrap, Sample, distance_interval, mean_estimate

DEFAULT = ('sex', 'age', 'view', 'site')  # those that the data have
FEWEST, FEWEST_RECORDS = 20, 5
AGES = (18, 25, 50, 65, 80)  # years; a band has its lower limit
MOST_GROUPS, MOST_NAMED = 20, 50  # groups of a column, the largest ones; skipped groups that are named
MOST_VALUES = 10  # of a column of numbers whose values are groups
METRICS = ('auroc', 'auprc', 'sensitivity', 'false_positive_rate', 'positive_rate', 'balanced_accuracy')
SCALED = ('auroc', 'balanced_accuracy')  # metrics for which a gap, equity scaling and disparity are computed


class Column(NamedTuple):
    """The groups of one column, or of an intersection."""

    name: str
    groups: dict[str, np.ndarray]  # bool [n]: the records of each group with enough patients
    skipped: dict[str, int]  # the other groups, each with its number of patients
    unknown: int  # records without a value

    def together(self) -> np.ndarray:
        """bool [n]: the records of all groups."""
        return np.any(list(self.groups.values()), 0)


def parse(text: str | None, available: Sequence[str]) -> tuple[str, ...]:
    """The columns that `--groups` names: 'sex,age,sex*age'; None: those of DEFAULT that the data have; 'none': none."""
    if text is None:
        return tuple(name for name in DEFAULT if name in available)
    names = tuple(dict.fromkeys(name for name in text.split(',') if name and name != 'none'))
    for name in names:
        for one in name.split('*'):
            if one not in available:
                raise UserError(f'--groups {text}: the records have no column {one!r}{suggest(one, available)}')
    return names


def column(name: str, columns: Mapping[str, np.ndarray], patients: np.ndarray) -> Column:
    """The groups of 'sex', or of 'sex*age', from columns [n] and patients int [n]."""
    parts = [values_of(one, columns[one]) for one in name.split('*')]
    unknown = np.any([values == '' for values in parts], 0)
    values = parts[0]
    for more in parts[1:]:
        values = np.char.add(np.char.add(values, ', '), more)
    words, code = np.unique(values[~unknown], return_inverse=True)
    pairs = np.unique(np.stack([code, patients[~unknown]]), axis=1)
    count = dict(zip(words.tolist(), np.bincount(pairs[0], minlength=len(words)).tolist(), strict=True))
    by_size = sorted(count, key=lambda word: (-count[word], word))
    kept = [word for word in by_size if count[word] >= FEWEST][:MOST_GROUPS]
    others = [word for word in by_size if word not in kept]
    skipped = {word: count[word] for word in others[:MOST_NAMED]}
    if more := others[MOST_NAMED:]:
        skipped[f'{len(more)} more'] = sum(count[word] for word in more)
    groups = {word: (values == word) & ~unknown for word in sorted(kept, key=_rank)}
    return Column(name, groups, skipped, int(unknown.sum()))


def _rank(group: str) -> tuple[Any, ...]:
    """Sorts age bands by age and other groups by name."""
    bands = [*_bands(AGES)]
    return tuple((0, bands.index(part), '') if part in bands else (1, 0, part) for part in group.split(', '))


def values_of(name: str, values: np.ndarray) -> np.ndarray:
    """The group [n] of each record as a word, '' if unknown."""
    if values.dtype.kind != 'f':
        return values.astype(str)
    known = ~np.isnan(values)
    limits = np.array(AGES, float)
    words = _bands(AGES)
    if name != 'age':
        distinct = np.unique(values[known])
        if len(distinct) <= MOST_VALUES:
            return np.where(known, [f'{x:g}' for x in values], '')
        limits = np.unique(np.quantile(values[known], (0.25, 0.5, 0.75)))
        words = _bands(limits)
    return np.where(known, np.array(words)[np.searchsorted(limits, np.where(known, values, 0), 'right')], '')


def _bands(limits: Sequence[float]) -> list[str]:
    """'below 18', '18 to 25', …, '80 and above'. A band has its lower limit and not its upper one."""
    between = [f'{a:g} to {b:g}' for a, b in itertools.pairwise(limits)]
    return [f'below {limits[0]:g}', *between, f'{limits[-1]:g} and above']


def judge(
    test: Units, columns: Sequence[Column], names: Sequence[str], thresholds: np.ndarray | None, bootstrap: Bootstrap
) -> dict[str, Any]:
    """{column: {groups, skipped, unknown, results, distances}} for labels with thresholds [L]; None: no decisions."""
    found = {}
    for one in columns:
        about = dict(
            groups={
                name: dict(records=int(members.sum()), patients=len(np.unique(test.patients[members])))
                for name, members in one.groups.items()
            },
            skipped=one.skipped,
            unknown=one.unknown,
        )
        if len(one.groups) < 2:
            enough = f'has at least {FEWEST} patients' if one.groups else f'with at least {FEWEST} patients'
            why = f'only {next(iter(one.groups))!r} {enough}' if one.groups else f'no group {enough}'
            found[one.name] = about | dict(note=f'{why}, so there is nothing to compare')
            continue
        found[one.name] = about | _compare(test, one, names, thresholds, bootstrap)
    return found


def _compare(
    test: Units, column: Column, names: Sequence[str], thresholds: np.ndarray | None, bootstrap: Bootstrap
) -> dict[str, Any]:
    """The metrics of each group, and the distances between groups."""
    everyone = column.together()
    samples = {group: _samples(test, members, thresholds, bootstrap) for group, members in column.groups.items()}
    plain = dataclasses.replace(bootstrap, draws=1, interval=statistics.PERCENTILE)  # only the value is used
    together = _samples(test, everyone, thresholds, plain)
    counts = {  # whether each label has enough records of both classes in each group
        group: np.minimum((test.labels[members] == 1).sum(0), (test.labels[members] == 0).sum(0)) >= FEWEST_RECORDS
        for group, members in column.groups.items()
    }
    for group, enough in counts.items():
        samples[group] = {name: _without(sample, ~enough) for name, sample in samples[group].items()}
    in_all = np.all(list(counts.values()), 0)  # means of groups are over the same labels
    results: dict[str, Any] = {}
    for metric in together:
        rows = {}
        for group, members in column.groups.items():
            sample = samples[group][metric]
            mean = mean_estimate(_without(sample, ~in_all), bootstrap)
            rows[group] = {'mean': mean} | {
                name: bootstrap.estimate(sample.at(j))
                | dict(
                    positives=int((test.labels[members, j] == 1).sum()),
                    negatives=int((test.labels[members, j] == 0).sum()),
                )
                for j, name in enumerate(names)
                if counts[group][j]
            }
        results[metric] = rows
    too_rare = [name for j, name in enumerate(names) if not in_all[j]]
    return dict(results=results, distances=_distances(samples, together, names, in_all), too_rare=too_rare)


def _samples(
    test: Units, members: np.ndarray, thresholds: np.ndarray | None, bootstrap: Bootstrap
) -> dict[str, Sample]:
    """{metric: Sample [L]} of the members of a group, from draws of all patients."""
    labels = np.where(members[:, None], test.labels, -2).astype(np.int8)  # the labels of all others are unknown
    ranked = statistics.ranked_sample(test.scores, labels, bootstrap)
    found = {name: ranked.at(m) for m, name in enumerate(metrics.RANKED) if name in METRICS}
    if thresholds is not None:
        decided = statistics.decision_sample(test.scores, labels, thresholds, bootstrap)
        for name in METRICS[2:]:
            found[name] = statistics.rates(decided, getattr(metrics, name))
    return found


def _without(sample: Sample, dropped: np.ndarray) -> Sample:
    """The sample [L] with nan for some labels, given as bool [L]."""
    return sample.map(lambda x: np.where(dropped, np.nan, x))


def _distances(
    samples: Mapping[str, Mapping[str, Sample]],
    together: Mapping[str, Sample],
    names: Sequence[str],
    in_all: np.ndarray,
) -> dict[str, Any]:
    """{distance: {label or 'mean': …}} between groups, for each label over the groups where it counts.

    'mean' is the distance between the means of the groups over labels that count in all of them.
    """

    def stacked(metric: str) -> Sample:
        """[G,L+1]: the metric of each group for each label, and its mean over labels."""
        return _stack([_with_mean(group[metric], in_all) for group in samples.values()])

    rows = [*names, 'mean']
    found: dict[str, dict[str, Any]] = {}
    for metric in SCALED:
        if metric not in together:
            continue
        groups, overall = stacked(metric), _with_mean(together[metric], in_all).value
        found[f'{metric}_gap'] = _estimates(groups.map(_spread), rows)
        with np.errstate(invalid='ignore'):
            counted = (~np.isnan(groups.value)).sum(0) > 1
            apart = np.nansum(np.abs(groups.value - overall), 0)
            values = {
                f'{metric}_equity_scaled': overall / (1 + apart),
                f'{metric}_std_disparity': _std(groups.value) / overall,
                f'{metric}_gap_disparity': _spread(groups.value[None])[0] / overall,
            }
        for name, x in values.items():
            found[name] = {row: dict(value=float(x[j])) for j, row in enumerate(rows) if counted[j]}
    if 'positive_rate' in together:
        gaps = {name: stacked(name).map(_spread) for name in ('positive_rate', 'sensitivity', 'false_positive_rate')}
        odds = _stack([gaps['sensitivity'], gaps['false_positive_rate']])
        found['dpd'] = _estimates(gaps['positive_rate'], rows)
        found['eod'] = _estimates(odds.map(lambda x: x.max(1)), rows)
        found['aod'] = _estimates(odds.map(lambda x: x.mean(1)), rows)
    return found


def _estimates(sample: Sample, rows: Sequence[str]) -> dict[str, Any]:
    """{row: {value, low, high}} of distances [L+1]; a row with fewer than two groups is left out."""
    found = {}
    for j, row in enumerate(rows):
        if not np.isnan(sample.value[j]):
            low, high = distance_interval(float(sample.value[j]), sample.drawn[:, j])
            found[row] = dict(value=float(sample.value[j]), low=low, high=high)
    return found


def _with_mean(sample: Sample, in_all: np.ndarray) -> Sample:
    """The sample [L+1]: the values of the labels, then their mean over the labels that count in all groups."""
    filled = sample.filled()

    def append(x: np.ndarray) -> np.ndarray:
        mean = x[:, in_all].mean(1) if in_all.any() else np.full(len(x), np.nan)
        return np.concatenate([x, mean[:, None]], 1)

    return filled.map(append)


def _stack(samples: Sequence[Sample]) -> Sample:
    """The sample [G,…] of G samples."""
    jackknives = [one.left_out for one in samples]
    return Sample(
        np.stack([one.value for one in samples]),
        np.stack([one.drawn for one in samples], 1),
        None if jackknives[0] is None else np.stack(jackknives, 1),
    )


def _spread(x: np.ndarray) -> np.ndarray:
    """[R,L]: the largest minus the smallest of groups [R,G,L]; nan with fewer than two groups."""
    known = ~np.isnan(x)
    high, low = np.where(known, x, -np.inf).max(1), np.where(known, x, np.inf).min(1)
    enough = known.sum(1) > 1
    return np.subtract(high, low, out=np.full(high.shape, np.nan), where=enough)


def _std(x: np.ndarray) -> np.ndarray:
    """[L]: the standard deviation over groups [G,L] that have a value."""
    known = ~np.isnan(x)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, x, 0).sum(0) / count
    return np.sqrt((np.where(known, x - mean, 0) ** 2).sum(0) / count)
