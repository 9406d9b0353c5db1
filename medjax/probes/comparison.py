"""Compares encoders on the same patients, from the scores that their results keep.

Two intervals that overlap say little about the difference of two encoders: both are judged on the same patients, and a
hard patient is hard for both. So each draw of the bootstrap gives both encoders the same patients, and the interval and
the p-value are those of the difference. The interval is the percentile interval, and the p-value fits it.

Many comparisons find differences by chance. So p-values are also adjusted by Holm's method (Holm 1979): those of labels
over the labels of one comparison, and that of the mean over all encoders that one encoder is compared with.

DeLong's test checks the p-value of each AUROC without draws (DeLong et al. 1988), with the patients as clusters
(Obuchowski 1997).
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr
from scipy.stats import rankdata

from medjax import files
from medjax.errors import UserError
from medjax.probes import policy, provenance, results, statistics
from medjax.probes.encode import BASELINES, title
from medjax.probes.statistics import Bootstrap, Sample, two_sided_p

NOTE = (
    'difference = encoder - other on the same patients, percentile interval; p: two-sided, by the bootstrap; p_holm: '
    'adjusted over the labels, and for the mean over the compared encoders; p_delong: a check, patients are clusters'
)
KEYS = ('scores', 'labels', 'names', 'patient')


class Scored(NamedTuple):
    """A stored result of a label probe: its JSON and the arrays of its scores."""

    content: Mapping[str, Any]
    scores: np.ndarray  # [n,L]
    labels: np.ndarray  # int8 [n,L]
    names: tuple[str, ...]
    patient: np.ndarray  # int [n]

    @property
    def encoder(self) -> int | str:
        return self.content['encoder']['step']


def read(file: pathlib.Path) -> Scored | None:
    """The result in a JSON file of RUN/probes; None if it is missing or damaged, or has no scores of labels."""
    content = results.read(file)
    try:
        with np.load(file.with_suffix('.npz'), allow_pickle=False) as arrays:
            scores, labels, names, patient = (arrays[key] for key in KEYS)
    except files.NPZ_ERRORS:
        return None
    return (
        None
        if content is None or 'bootstrap' not in content
        else Scored(content, scores, labels, tuple(map(str, names)), patient)
    )


def paired(encoder: Scored, other: Scored) -> dict[str, Any]:
    """The differences of two results: {encoder, other, results: {metric: {row: {value, low, high, p, …}}}}.

    Rows are 'mean' and the labels that both results have. UserError if the records or the labels are not the same.
    """
    names = [name for name in encoder.names if name in other.names]
    a, b = _aligned(encoder, names), _aligned(other, names)
    if not names or a.labels.shape != b.labels.shape or not np.array_equal(a.labels, b.labels):
        raise UserError(
            f'{title(a.encoder)} and {title(b.encoder)} cannot be compared: their results are of different test '
            'records, labels, --policy or --unit; probe both with the same options'
        )
    if not np.array_equal(a.patient, b.patient):
        raise UserError(f'{title(a.encoder)} and {title(b.encoder)} cannot be compared: their patients differ')
    facts = a.content['bootstrap']
    bootstrap = Bootstrap(a.patient, facts.get('seed', 0), facts.get('draws', statistics.DRAWS), statistics.PERCENTILE)
    first, second = _samples(a, bootstrap), _samples(b, bootstrap)
    found = {
        metric: _rows(first[metric].minus(second[metric]), names, len(a.labels))
        for metric in first
        if metric in second and len(first[metric].value) == len(second[metric].value)
    }
    for j, name in enumerate(names):
        known = policy.known(a.labels[:, j])
        one = delong(a.scores[known, j], b.scores[known, j], a.labels[known, j], a.patient[known])
        found['auroc'][name]['p_delong'] = one
    seen = [provenance.is_contaminated(one.content) for one in (a, b)]
    return dict(encoder=a.encoder, other=b.encoder, labels=len(names), contaminated=seen, results=found)


def _aligned(result: Scored, names: Sequence[str]) -> Scored:
    """The result with these labels only, in this order."""
    columns = [result.names.index(name) for name in names]
    return result._replace(scores=result.scores[:, columns], labels=result.labels[:, columns], names=tuple(names))


def _samples(result: Scored, bootstrap: Bootstrap) -> dict[str, Sample]:
    """{metric: Sample [L]} of a result."""
    thresholds = {
        metric: np.array([chosen[name] for name in result.names])
        for metric, chosen in result.content.get('thresholds', {}).items()
    }
    return statistics.samples(result.scores, result.labels, thresholds, bootstrap)


def _rows(difference: Sample, names: Sequence[str], records: int) -> dict[str, dict[str, Any]]:
    """{'mean' or label: {value, low, high, p, p_holm}} of a sample of differences [L]."""
    defined = ~np.isnan(difference.value)
    mean = difference.filled().map(lambda x: x[:, defined].mean(1)) if defined.any() else None
    rows = {} if mean is None else {'mean': _row(mean)}
    rows |= {name: _row(difference.at(j)) for j, name in enumerate(names) if defined[j]}
    labels = [name for name in rows if name != 'mean']
    for name, p in zip(labels, holm([rows[name]['p'] for name in labels])):
        rows[name]['p_holm'] = p
    return rows


def _row(sample: Sample) -> dict[str, Any]:
    drawn = sample.drawn[~np.isnan(sample.drawn)]
    low, high, _ = statistics.interval(float(sample.value), drawn)
    return dict(value=float(sample.value), low=low, high=high, p=two_sided_p(drawn))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted by Holm's method: the chance of any false finding stays below the level."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind='stable')
    stepped = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted.tolist()


def delong(a: np.ndarray, b: np.ndarray, labels: np.ndarray, patients: np.ndarray) -> float | None:
    """The two-sided p-value of equal AUROCs of scores a and b [n] for labels 0|1 [n], with patients as clusters.

    None where the variance of the difference cannot be estimated: a single patient of a class, or equal rankings.
    """
    positive = labels == 1
    if not 0 < positive.sum() < len(labels):
        return None
    parts = [_placements(scores, positive) for scores in (a, b)]
    difference = parts[0] - parts[1]
    number = np.unique(patients, return_inverse=True)[1]
    mean = difference[positive].mean()  # of positives, and of negatives too: the difference of the AUROCs
    sums, counts, clusters = [], [], []
    for members in (positive, ~positive):
        deviation = np.where(members, difference - mean, 0)
        sums.append(np.bincount(number, deviation))
        counts.append(members.sum())
        clusters.append(len(np.unique(number[members])))
    if min(clusters) < 2:
        return None
    own = sum(n / (n - 1) * (s**2).sum() / count**2 for s, n, count in zip(sums, clusters, counts))
    both, total = (sums[0] * sums[1]).sum(), int(number.max()) + 1
    variance = own + 2 * total / (total - 1) * both / (counts[0] * counts[1])
    if not variance > 1e-20:
        return None
    return float(2 * ndtr(-abs(mean) / np.sqrt(variance)))


def _placements(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """[n]: for a positive the share of negatives below, for a negative the share of positives above; ties are half."""
    everyone = rankdata(scores)
    placed = np.empty(len(scores))
    placed[positive] = (everyone[positive] - rankdata(scores[positive])) / (~positive).sum()
    placed[~positive] = 1 - (everyone[~positive] - rankdata(scores[~positive])) / positive.sum()
    return placed


def of_run(run: pathlib.Path, data: Any, probe: str) -> dict[str, Any] | None:
    """The newest export of a run against each other encoder with a result of this probe; None without two of them.

    The result is kept in RUN/comparisons/<data>.<probe>.json and computed again if a result changed. Without an export,
    the first encoder that is no baseline is compared.
    """
    contents = {one['encoder']['step']: one for one in results.on_data(run, data, [probe])}
    chosen = main_encoder(contents.values())
    named = [name for name in contents if isinstance(name, str) and name not in BASELINES]
    others = [name for name in (*named, *(b for b in BASELINES if b in contents)) if name != chosen]
    if chosen is None or not others:
        return None
    keys = {str(name): contents[name].get('key') for name in (chosen, *others)}
    file = run / 'comparisons' / f'{contents[chosen]["data"]}.{probe}.json'
    before = results.read(file)
    if isinstance(before, dict) and before.get('keys') == keys:
        return before
    main = read(results.path(run, chosen, contents[chosen]['data'], probe))
    if main is None:
        return None
    pairs, left_out = [], {}
    for name in others:
        other = read(results.path(run, name, contents[name]['data'], probe))
        try:
            pairs += [paired(main, other)] if other else []
        except UserError as error:
            left_out[str(name)] = str(error)
    adjust_means(pairs)
    content = dict(data=contents[chosen]['data'], probe=probe, keys=keys, note=NOTE, pairs=pairs, left_out=left_out)
    with files.writing(f'the comparison {file}'):
        files.write_json(file, content)
    return content


def main_encoder(contents: Iterable[Mapping[str, Any]]) -> int | str | None:
    """The encoder that others are compared with: the newest export, else the first that is no baseline, else None."""
    names = [content['encoder']['step'] for content in contents]
    steps = [name for name in names if isinstance(name, int)]
    return max(steps) if steps else next((name for name in names if name not in BASELINES), None)


def adjust_means(pairs: Sequence[Mapping[str, Any]]) -> None:
    """Adjusts the p-values of the means over the pairs, for each metric."""
    for metric in {metric for pair in pairs for metric in pair['results']}:
        means = [pair['results'][metric]['mean'] for pair in pairs if 'mean' in pair['results'].get(metric, {})]
        for mean, p in zip(means, holm([mean['p'] for mean in means])):
            mean['p_holm'] = p


def sentences(content: Mapping[str, Any] | None) -> list[str]:
    """A sentence for the best baseline and for each other encoder: the difference of the first metric."""
    if content is None:
        return []
    pairs = [pair for pair in content['pairs'] if pair['results']]
    baselines = [pair for pair in pairs if pair['other'] in BASELINES]
    best = [min(baselines, key=lambda pair: _first(pair)['mean']['value'])] if baselines else []
    lines = [_sentence(content['probe'], pair) for pair in (*(p for p in pairs if p not in baselines), *best)]
    return lines + list(content['left_out'].values())


def _first(pair: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(iter(pair['results'].values()))


def _sentence(probe: str, pair: Mapping[str, Any]) -> str:
    """'linear: step 20 - raw pixels, mean AUROC +.031 [+.010, +.052], p .004 (Holm .008); …'"""
    return f'{probe}: {" - ".join(encoders(pair))}, {in_words(pair)}'


def encoders(pair: Mapping[str, Any]) -> list[str]:
    """['step 20†', 'raw pixels']: the two encoders of a comparison, with the mark of contaminated results."""
    seen = pair.get('contaminated', (False, False))
    return [title(pair[key]) + provenance.MARK * bool(had) for key, had in zip(('encoder', 'other'), seen, strict=True)]


def in_words(pair: Mapping[str, Any]) -> str:
    """'mean AUROC +.031 [+.010, +.052], p .004 (Holm .008); of 3 label(s) 1 better, 0 worse (Holm)'."""
    metric, rows = next(iter(pair['results'].items()))
    mean, labels = rows['mean'], [row for name, row in rows.items() if name != 'mean']
    better, worse = (
        sum(row['p_holm'] < 1 - statistics.LEVEL and sign * row['value'] > 0 for row in labels) for sign in (1, -1)
    )
    interval = f'[{_signed(mean["low"])}, {_signed(mean["high"])}]'
    return (
        f'mean {results.METRIC_TITLES.get(metric, metric)} '
        f'{_signed(mean["value"])} {interval}, p {_short_p(mean["p"])} (Holm {_short_p(mean["p_holm"])}); of '
        f'{len(labels)} label(s) {better} better, {worse} worse (Holm)'
    )


def _signed(value: float) -> str:
    return f'{"+" if value >= 0 else ""}{results.short(value)}'


def _short_p(p: float) -> str:
    return results.short(p) if p < 1 else '1'
