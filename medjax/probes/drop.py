"""Whether a continued run became worse than its start, by the same probe of the same data at step 0 and later."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from medjax.probes import provenance, results

Estimate = Mapping[str, Any]  # value, low, high


def sentences(contents: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence for each probe and data set whose newest export is worse than step 0, with intervals apart.

    `contents` are those of result files. Only a run that began with given weights has an export of step 0. Intervals
    that overlap are no sign of a drop.
    """
    by_step: dict[tuple[str, ...], dict[int, Mapping[str, Any]]] = {}
    for content in contents:
        step = content.get('encoder', {}).get('step')
        if isinstance(step, int):
            same = content['data'], str(content.get('data_fingerprint')), content['probe'], str(content.get('policy'))
            by_step.setdefault(same, {})[step] = content
    told = []
    for (data, _, probe, _), steps in sorted(by_step.items()):
        newest = max(steps)
        if newest == 0 or 0 not in steps:
            continue
        metric, before, now = _first_metric(steps[0], steps[newest])
        marks = [provenance.mark(steps[step]) for step in (0, newest)]
        if before and now and now['high'] < before['low']:
            told.append(
                f'Worse than its start: {probe} on {data}, mean {results.METRIC_TITLES.get(metric, metric)} '
                f'{results.cell(now, marks[1])} at step {newest:,}, {results.cell(before, marks[0])} at step 0. The '
                'run forgets what its weights knew. A lower optim.lr, layer-wise decay of it (layerwise in '
                'optim.groups) or a longer warm-up of new heads would keep more.'
            )
    return told


def _first_metric(start: Mapping[str, Any], later: Mapping[str, Any]) -> tuple[str, Estimate | None, Estimate | None]:
    """The first metric of a probe, and its mean in both results; None where it has no interval or other labels."""
    metric = next(iter(start['results']), '')
    rows, other = start['results'].get(metric, {}), later['results'].get(metric, {})
    if not rows or rows.keys() != other.keys():  # a mean over other labels
        return metric, None, None
    found = [each.get('mean') for each in (rows, other)]
    before, now = (one if one and None not in (one.get('low'), one.get('high')) else None for one in found)
    return metric, before, now
