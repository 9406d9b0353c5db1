"""Sentences about results, for the lines under the table of `medjax probe`. The JSON of a result has all of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medjax.probes import provenance, results
from medjax.probes.encode import title
from medjax.probes.statistics import FEW_RECORDS

NAMED = 6  # labels in a sentence
MAPS = dict(none='before', temperature='temperature', platt='Platt', isotonic='isotonic', venn_abers='Venn-Abers')


def sentences(contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """What can be trusted in the results of one encoder on one data set: at most two lines a probe, and warnings."""
    lines = []
    for content in contents:
        who = f'{content["probe"]}, {title(content["encoder"]["step"])}{provenance.mark(content)}'
        parts = [part for part in (calibration(content), coverage(content)) if part]
        lines += [f'{who}: {"; ".join(parts)}'] if parts else []
        lines += [f'{who}: {gap}' for gap in [largest_gap(content)] if gap]
        lines += [f'{who}: {content["unjudged"]}'] if 'unjudged' in content else []
    left_out = {
        content['calibration']['left_out'] for content in contents if 'left_out' in content.get('calibration', {})
    }
    lines += [f'no calibration: {why}' for why in sorted(left_out)]
    lines += [f'test has {why}' for why in dict.fromkeys(map(rare, contents)) if why]
    warnings = {content['bootstrap']['warning'] for content in contents if 'warning' in content.get('bootstrap', {})}
    return lines + sorted(warnings)


def rare(content: Mapping[str, Any]) -> str:
    """'fewer than 10 positive or negative records of 2 labels (…), so …'; '' where each label has enough."""
    rows = next(iter(content['results'].values()))
    few = [
        name
        for name, row in rows.items()
        if min(row.get(x, FEW_RECORDS) for x in ('positives', 'negatives')) < FEW_RECORDS
    ]
    if not few:
        return ''
    return (
        f'fewer than {FEW_RECORDS} positive or negative records of {listed(few)}, so their intervals are too narrow '
        'and their AUPRC is too high'
    )


def listed(names: Sequence[str]) -> str:
    """'3 labels (a, b, c)'."""
    more = f', and {len(names) - NAMED} more' if len(names) > NAMED else ''
    return f'{len(names)} label{"s" * (len(names) > 1)} ({", ".join(names[:NAMED])}{more})'


def calibration(content: Mapping[str, Any]) -> str:
    """'calibration error (ECE) .081 before, .043 after Platt, mean over 3 label(s)'; '' without calibration."""
    found = content.get('calibration', {})
    if 'results' not in found:
        return ''
    means = {name: rows['ece']['mean']['value'] for name, rows in found['results'].items()}
    parts = [f'{results.short(means["none"])} before'] if 'none' in means else []
    parts.append(f'{results.short(means["platt"])} after {MAPS["platt"]}')
    return f'calibration error (ECE) {", ".join(parts)}, mean over {len(found["labels"])} label(s)'


def coverage(content: Mapping[str, Any]) -> str:
    """'conformal sets for each class (90 %) hold the label of .91 of the positives and .90 of the negatives, …'."""
    measures = content.get('conformal', {}).get('class_conditional')
    if not measures:
        return ''

    def mean(measure: str) -> str:
        values = [one['value'] for one in measures[measure].values() if one['value'] is not None]
        return results.short(sum(values) / len(values)) if values else '-'

    return (
        f'conformal sets ({100 * (1 - content["conformal"]["alpha"]):.0f} % of each class) hold '
        f'{mean("coverage_of_positives")} of the positives and {mean("coverage_of_negatives")} of the negatives; '
        f'{mean("singletons")} of the sets are one label'
    )


def largest_gap(content: Mapping[str, Any]) -> str:
    """'largest gap in mean AUROC: age, .081 [.012, .131], 25 to 50 .842, 80 and above .761'; '' without groups."""
    gaps = {
        name: one['distances']['auroc_gap']['mean']
        for name, one in content.get('subgroups', {}).items()
        if 'mean' in one.get('distances', {}).get('auroc_gap', {})
    }
    if not gaps:
        return ''
    name = max(gaps, key=lambda column: gaps[column]['value'])
    means = {group: rows['mean']['value'] for group, rows in content['subgroups'][name]['results']['auroc'].items()}
    best, worst = max(means, key=means.__getitem__), min(means, key=means.__getitem__)
    others = f', of {len(gaps)} columns' if len(gaps) > 1 else ''
    return (
        f'largest gap in mean AUROC{others}: {name}, {results.cell(gaps[name])}, '
        f'{best} {results.short(means[best])}, {worst} {results.short(means[worst])}'
    )
