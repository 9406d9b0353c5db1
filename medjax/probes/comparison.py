"""Compares encoders on the same patients, from what their results keep of each record.

Two intervals that overlap say little about the difference of two encoders: both are judged on the same patients, and a
hard patient is hard for both. So each draw of the bootstrap gives both encoders the same patients, and the interval and
the p-value are those of the difference. The interval is the percentile interval, and the p-value fits it.

Many comparisons find differences by chance. So p-values are also adjusted by Holm's method (Holm 1979): those of labels
over the labels of one comparison, and that of the mean over all encoders that one encoder is compared with. A label
needs 10 patients with a positive record and 10 with a negative one, and a structure needs 10 patients. With fewer it
has no p-value and no part in the mean: a draw repeats its few patients, so the bootstrap finds differences that are
none.

`probes.delong` checks the p-value of each AUROC without draws. Of probes of patches the values of each record are
compared, such as its Dice.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax import files
from medjax.data.types import NEGATIVE, POSITIVE
from medjax.errors import UserError
from medjax.probes import delong, overlaps, policy, provenance, results, statistics
from medjax.probes.encode import BASELINES, title
from medjax.probes.statistics import LEAST_PATIENTS, Bootstrap, Sample, two_sided_p

NOTE = (
    'difference = encoder - other on the same patients, percentile interval; p: two-sided, by the bootstrap; p_holm: '
    'adjusted over the labels, and for the mean over the compared encoders; p_delong: a check, patients are clusters; '
    f'no p for a label with fewer than {LEAST_PATIENTS} patients of a class, or a structure with fewer patients'
)


class Scored(NamedTuple):
    """A stored result of a label probe: its JSON and the arrays of its scores, for n records and L labels."""

    content: Mapping[str, Any]
    scores: np.ndarray  # [n,L]
    labels: np.ndarray  # int8 [n,L]
    names: tuple[str, ...]
    patient: np.ndarray  # int [n]

    def only(self, names: Sequence[str]) -> Scored:
        """The result with these labels only, in this order."""
        columns = [self.names.index(name) for name in names]
        return self._replace(scores=self.scores[:, columns], labels=self.labels[:, columns], names=tuple(names))

    def differs(self, other: Any) -> str:
        """What the two results do not have in common, so that they cannot be compared; '' if they can be."""
        if not isinstance(other, Scored) or not np.array_equal(self.labels, other.labels):
            return 'their results are of different test records, labels, --policy or --unit'
        return ''

    def judged(self, metric: str) -> np.ndarray:
        """Whether each label has patients enough of each class for a p-value, bool [L]; the same for all metrics."""
        enough = [_patients(self.labels == code, self.patient) >= LEAST_PATIENTS for code in (POSITIVE, NEGATIVE)]
        return enough[0] & enough[1]

    def samples(self, bootstrap: Bootstrap) -> dict[str, Sample]:
        """{metric: Sample [L]}."""
        thresholds = {
            metric: np.array([chosen[name] for name in self.names])
            for metric, chosen in self.content.get('thresholds', {}).items()
        }
        return statistics.samples(self.scores, self.labels, thresholds, bootstrap)


class Measured(NamedTuple):
    """A stored result of a probe of patches: its JSON and what it measured, for n records and K structures."""

    content: Mapping[str, Any]
    values: Mapping[str, np.ndarray]  # {metric: [n,K]}, nan where a record has no value
    names: tuple[str, ...]
    record: np.ndarray  # int [n], the number in the test split
    pixels: np.ndarray  # int [n]: those that the encoder sees
    patient: np.ndarray  # int [n]

    def only(self, names: Sequence[str]) -> Measured:
        """The result with these structures only, in this order."""
        columns = [self.names.index(name) for name in names]
        values = {metric: x[:, columns] for metric, x in self.values.items()}
        return self._replace(values=values, names=tuple(names))

    def differs(self, other: Any) -> str:
        """What the two results do not have in common, so that they cannot be compared; '' if they can be."""
        if not isinstance(other, Measured) or not np.array_equal(self.record, other.record):
            return 'their results are of different test records or structures'
        both = [(x, other.values[metric]) for metric, x in self.values.items() if metric in other.values]
        if not np.array_equal(self.pixels, other.pixels) or any((np.isnan(x) != np.isnan(y)).any() for x, y in both):
            return 'they see different parts of the images (--fit)'
        return ''

    def judged(self, metric: str) -> np.ndarray:
        """Whether each structure has patients enough for a p-value of a metric, bool [K]."""
        return _patients(~np.isnan(self.values[metric]), self.patient) >= LEAST_PATIENTS

    def samples(self, bootstrap: Bootstrap) -> dict[str, Sample]:
        """{metric: Sample [K]}."""
        return {metric: overlaps.mean_over_patients(x, bootstrap) for metric, x in self.values.items()}


def read(file: pathlib.Path) -> Scored | Measured | None:
    """The result in a JSON file of RUN/probes; None if it is missing or damaged, or keeps nothing of each record."""
    content = results.read(file)
    if content is None or not isinstance(content.get('bootstrap'), dict):
        return None
    try:
        with np.load(file.with_suffix('.npz'), allow_pickle=False) as arrays:
            names, patient = tuple(map(str, arrays['names'])), arrays['patient']
            if 'scores' in arrays:
                return Scored(content, arrays['scores'], arrays['labels'], names, patient)
            values = {metric: arrays[metric] for metric in content['results'] if metric in arrays}
            return Measured(content, values, names, arrays['record'], arrays['pixels'], patient)
    except files.NPZ_ERRORS:
        return None


def paired(encoder: Scored | Measured, other: Scored | Measured) -> dict[str, Any]:
    """The differences of two results: {encoder, other, results: {metric: {row: {value, low, high, p, …}}}, …}.

    Rows are 'mean' and the labels, or structures, that both results have. UserError if the records or the labels are
    not the same.
    """
    names = [name for name in encoder.names if name in other.names]
    a, b = encoder.only(names), other.only(names)
    who = ' and '.join(title(one.content['encoder']['step']) for one in (a, b))
    why = a.differs(b) if names else 'their results are of different labels or structures'
    if why:
        raise UserError(f'{who} cannot be compared: {why}; probe both with the same options')
    if not np.array_equal(a.patient, b.patient):
        raise UserError(f'{who} cannot be compared: their patients differ')
    facts = a.content['bootstrap']
    bootstrap = Bootstrap(a.patient, facts.get('seed', 0), facts.get('draws', statistics.DRAWS), statistics.PERCENTILE)
    first, second = a.samples(bootstrap), b.samples(bootstrap)
    found = {
        metric: _rows(first[metric].minus(second[metric]), names, a.judged(metric))
        for metric in first
        if metric in second and len(first[metric].value) == len(second[metric].value)
    }
    if isinstance(a, Scored) and isinstance(b, Scored):
        for j, name in enumerate(names):
            known = policy.known(a.labels[:, j])
            one = delong.p_value(a.scores[known, j], b.scores[known, j], a.labels[known, j], a.patient[known])
            found['auroc'][name]['p_delong'] = one
    return dict(
        encoder=a.content['encoder']['step'],
        other=b.content['encoder']['step'],
        rows=a.content.get('rows', 'label'),
        labels=len(names),
        contaminated=[provenance.is_contaminated(one.content) for one in (a, b)],
        results=found,
    )


def _rows(difference: Sample, names: Sequence[str], judged: np.ndarray) -> dict[str, dict[str, Any]]:
    """{'mean' or label: {value, low, high, p, p_holm}} of a sample of differences [L]; none where it is undefined.

    Labels that are not judged, bool [L], have p=None and p_holm=None, and the mean is over the others. If no label is
    judged, the mean is over all and has no p-value either.
    """
    defined = ~np.isnan(difference.value)
    averaged = defined & judged if (defined & judged).any() else defined
    rows: dict[str, dict[str, Any]] = {}
    if averaged.any():
        rows['mean'] = _row(difference.filled().map(lambda x: x[:, averaged].mean(1)))
        if not judged[averaged].any():
            rows['mean'] |= dict(p=None, p_holm=None)
    rows |= {name: _row(difference.at(j)) for j, name in enumerate(names) if defined[j]}
    for name, enough in zip(names, judged, strict=True):
        if name in rows and not enough:
            rows[name] |= dict(p=None, p_holm=None)
    labels = [name for name, row in rows.items() if name != 'mean' and row['p'] is not None]
    for name, p in zip(labels, holm([rows[name]['p'] for name in labels])):
        rows[name]['p_holm'] = p
    return rows


def _patients(some: np.ndarray, patient: np.ndarray) -> np.ndarray:
    """How many of the patients [n] have a record of `some` [n,L], int [L]."""
    return np.array([len(np.unique(patient[column])) for column in some.T], int)


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
        rows = [pair['results'][metric]['mean'] for pair in pairs if 'mean' in pair['results'].get(metric, {})]
        means = [row for row in rows if row['p'] is not None]
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
    judged = [row for row in labels if row['p'] is not None]
    rows_are = pair.get('rows', 'label')
    kind, few = f'{rows_are}(s)', f'{LEAST_PATIENTS} patients' + ' of each class' * (rows_are == 'label')
    name = f'mean {results.METRIC_TITLES.get(metric, metric)}'
    value = f'{_signed(mean["value"])} [{_signed(mean["low"])}, {_signed(mean["high"])}]'
    if not judged:
        return f'{name} {value}, without a p-value: none of {len(labels)} {kind} has {few}'
    if len(judged) < len(labels):
        name += f' of the {len(judged)} {kind} with {few} (of {len(labels)})'
    better, worse = (
        sum(row['p_holm'] < 1 - statistics.LEVEL and sign * row['value'] > 0 for row in judged) for sign in (1, -1)
    )
    p, p_holm = (results.short_p(mean[key]) for key in ('p', 'p_holm'))
    return f'{name} {value}, p {p} (Holm {p_holm}); of {len(judged)} {kind} {better} better, {worse} worse (Holm)'


def _signed(value: float) -> str:
    return f'{"+" if value >= 0 else ""}{results.short(value)}'
