"""Confidence intervals from a bootstrap over patients.

The images of one patient are not independent. So a draw takes patients with replacement, each with all images.
All labels and metrics use the same draws, so their mean over labels gets an interval of its own. The draws depend on
the seed only, so two encoders on one test set are compared on the same patients.

Two kinds of intervals are there. 'percentile' takes the percentiles of the draws. 'bca' (bias-corrected and
accelerated, Efron 1987) shifts these percentiles by the bias and the skewness of the metric. The skewness comes from a
jackknife: the metric with one patient left out, for each patient (with one of 250 groups of patients left out, if
there are more patients). Where nearly all draws lie on one side of the value, as those of the average precision with
few positives, BCa and percentiles leave the value itself out. Then the interval is 'symmetric' (Hall 1988): the value
plus and minus the distance within which 95 % of the draws lie.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from scipy.special import ndtr, ndtri

from medjax.probes import metrics, policy

DRAWS, LEVEL = 1000, 0.95
PERCENTILE, BCA = INTERVALS = 'percentile', 'bca'
SYMMETRIC = 'symmetric'
TAILS = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
CHUNK = 32  # draws at once: their weights stay in the processor's cache
JACKKNIFE = 250  # groups of patients that are left out in turn; with fewer patients each group is one patient
PRODUCT = 1 << 23  # weights in one product of matrices: small products wait for their threads
TAIL_DRAWS = 200  # with fewer draws their deviation is too uncertain for a tail
KEPT = 1 << 24  # draws are kept for the next statistic if they are at most so many numbers
FEW_PATIENTS = 20  # intervals over fewer patients are said to be too narrow
FEW_RECORDS = 10  # the same of a label with fewer positive or negative test records
LEAST_PATIENTS = 10  # that a p-value needs: of each class for a label, in all for a structure

Results = dict[str, dict[str, dict[str, Any]]]  # {metric: {row: {value, low, high, …}}}


class Sample(NamedTuple):
    """A statistic of shape S: its value, in R draws, and with each of J groups of patients left out."""

    value: np.ndarray  # float64 S
    drawn: np.ndarray  # float64 [R,*S]
    left_out: np.ndarray | None  # float64 [J,*S]; None for percentile intervals

    def map(self, function: Callable[[np.ndarray], np.ndarray]) -> Sample:
        """The sample of function(statistic); the function takes arrays [R,*S]."""
        left_out = None if self.left_out is None else function(self.left_out)
        return Sample(function(self.value[None])[0], function(self.drawn), left_out)

    def at(self, i: int) -> Sample:
        """The sample of entry i of the statistic's first dimension."""
        return self.map(lambda x: x[:, i])

    def minus(self, other: Sample) -> Sample:
        """The difference of two statistics from the same draws."""
        left_out = None if self.left_out is None else self.left_out - other.left_out
        return Sample(self.value - other.value, self.drawn - other.drawn, left_out)

    def filled(self) -> Sample:
        """The sample with the plain value where a draw has none, for means over labels."""
        return self.map(lambda x: np.where(np.isnan(x), self.value, x))


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """Random draws of the patients of n records, with replacement."""

    patients: np.ndarray  # int [n]: the patient of each record, as 0…P-1
    seed: int = 0
    draws: int = DRAWS
    interval: str = PERCENTILE  # or 'bca'

    @functools.cached_property
    def patient_count(self) -> int:
        return int(self.patients.max()) + 1

    def counts(self) -> Iterator[np.ndarray]:
        """Yields int32 [r,P] until all draws are done: how often each draw contains each patient."""
        return iter(self._kept) if self.draws * self.patient_count <= KEPT else self._draw()

    @functools.cached_property
    def _kept(self) -> list[np.ndarray]:
        return list(self._draw())

    def _draw(self) -> Iterator[np.ndarray]:
        rng, count = np.random.default_rng(self.seed), self.patient_count
        for start in range(0, self.draws, CHUNK):
            drawn = rng.integers(count, size=(min(CHUNK, self.draws - start), count))
            yield np.stack([np.bincount(draw, minlength=count) for draw in drawn]).astype(np.int32)

    def left_out(self) -> Iterator[np.ndarray]:
        """Yields int32 [r,P] for the jackknife: 0 for the patients of one group, 1 for all others."""
        count = self.patient_count
        group = np.random.default_rng(self.seed).permutation(count) % JACKKNIFE
        for start in range(0, min(count, JACKKNIFE), CHUNK):
            yield (group != np.arange(start, min(start + CHUNK, count, JACKKNIFE))[:, None]).astype(np.int32)

    def sample(self, statistic: Callable[[np.ndarray], np.ndarray]) -> Sample:
        """The sample of statistic(weights of patients int [r,P]) -> float64 [r,*S]."""
        value = statistic(np.ones((1, self.patient_count), np.int32))[0]
        drawn = np.concatenate([statistic(weights) for weights in self.counts()])
        left_out = [statistic(weights) for weights in self.left_out()] if self.interval == BCA else []
        return Sample(value, drawn, np.concatenate(left_out) if left_out else None)

    def sums(self, columns: np.ndarray) -> Sample:
        """The sample of the sums over records of columns [n,K]."""
        n = len(self.patients)
        membership = sparse.csr_array((np.ones(n), (self.patients, np.arange(n))), (self.patient_count, n))
        table = membership @ columns
        rows = max(1, PRODUCT // self.patient_count // CHUNK)  # chunks that are multiplied at once

        def total(chunks: Iterator[np.ndarray]) -> np.ndarray:
            parts = []
            while batch := list(itertools.islice(chunks, rows)):
                parts.append(np.concatenate(batch).astype(np.float64) @ table)
            return np.concatenate(parts)

        return Sample(table.sum(0), total(self.counts()), total(self.left_out()) if self.interval == BCA else None)

    def estimate(self, sample: Sample) -> dict[str, Any]:
        """{value, low, high, undefined} of a sample of a number.

        Draws without a value are left out and counted as `undefined`. `interval` is there too if it is not of the kind
        that was asked for. A statistic that is undefined in the sample itself has no value and no limits (None).
        """
        if np.isnan(sample.value):
            return dict(value=None, low=None, high=None, undefined=len(sample.drawn))
        defined = sample.drawn[~np.isnan(sample.drawn)]
        undefined = len(sample.drawn) - len(defined)
        low, high, kind = interval(float(sample.value), defined, sample.left_out)
        other = {} if kind in (self.interval, None) else dict(interval=kind)
        return dict(value=float(sample.value), low=low, high=high, undefined=undefined) | other

    def facts(self) -> dict[str, Any]:
        """The settings of the bootstrap, for the result's JSON."""
        facts = dict(
            unit='patient',
            patients=self.patient_count,
            draws=self.draws,
            level=LEVEL,
            seed=self.seed,
            interval=self.interval,
        )
        if self.interval == BCA:
            facts['fallback'] = (
                'where BCa is undefined (no spread when patients are left out) the row has percentiles; where these '
                'would leave the value out, it has the value plus and minus the distance of 95 % of the draws; '
                '`interval` says so'
            )
        if self.patient_count < FEW_PATIENTS:
            facts['warning'] = (
                f'there are only {self.patient_count} patients, so the intervals are too narrow to rely on'
            )
        return facts


def interval(
    value: float, drawn: np.ndarray, left_out: np.ndarray | None = None
) -> tuple[float | None, float | None, str | None]:
    """(low, high, kind) of a statistic with this value and these defined draws [R]; Nones without a draw.

    With `left_out` it is the BCa interval. Where BCa is undefined, it is the percentile interval, and where percentiles
    leave the value out, the symmetric one.
    """
    if not len(drawn):
        return None, None, None
    low, high = np.percentile(drawn, 100 * np.asarray(TAILS)).tolist()
    if left_out is None:
        return low, high, PERCENTILE
    if not low <= value <= high:
        distance = float(np.percentile(np.abs(drawn - value), 100 * LEVEL))
        return value - distance, value + distance, SYMMETRIC
    levels = bca_levels(value, drawn, left_out)
    if levels is None:
        return low, high, PERCENTILE
    low, high = np.percentile(drawn, 100 * levels).tolist()
    return low, high, BCA


def bca_levels(value: float, drawn: np.ndarray, left_out: np.ndarray) -> np.ndarray | None:
    """The two percentiles, in [0,1], of the draws [R] that BCa takes; None where it is undefined.

    With z0 = the normal quantile of the share of draws below the value (ties count half) and the acceleration a = the
    skewness of the jackknife / 6, a level q becomes Phi(z0 + (z0 + z_q) / (1 - a (z0 + z_q))).
    """
    share = ((drawn < value).mean() + (drawn <= value).mean()) / 2
    deviation = left_out.mean() - left_out
    squares = (deviation**2).sum()
    if not 0 < share < 1 or not squares > 1e-20 * max(1.0, value**2) * len(left_out):
        return None
    bias, acceleration = ndtri(share), (deviation**3).sum() / (6 * squares**1.5)
    z = bias + ndtri(TAILS)
    return ndtr(bias + z / (1 - acceleration * z))


def distance_interval(value: float, drawn: np.ndarray) -> tuple[float | None, float | None]:
    """(low, high) of a distance, such as a gap between groups or a calibration error, from its draws [R].

    A distance is never negative, and noise makes it larger: draws are larger than the value on average, as the value is
    larger than the truth. Percentiles would never contain 0. Noise adds to squares, so the lower limit is the upper
    percentile reflected on squares: low^2 = 2 value^2 - high^2, at least 0. It is cautious: the interval contains the
    truth at least as often as it states.
    """
    defined = drawn[~np.isnan(drawn)]
    if not len(defined) or np.isnan(value):
        return None, None
    high = max(value, float(np.percentile(defined, 100 * TAILS[1])))
    return float(np.sqrt(max(0.0, 2 * value**2 - high**2))), high


def two_sided_p(drawn: np.ndarray) -> float | None:
    """The p-value of the hypothesis that a difference is 0, from its draws [R]; None without a defined draw.

    It is twice the smaller share of draws on one side of 0, with 0 itself on both sides and one more draw counted, so
    that it is never 0 (Davison and Hinkley 1997). It is below .05 where the 95 % percentile interval leaves 0 out.

    Where no draw lies on the other side, this says no more than "below 2 / (R + 1)", which is too coarse for many
    comparisons: with 1,000 draws and 40 comparisons, no adjusted p-value could be below .05. There, with 200 draws or
    more, it is the tail of a normal distribution with the mean and the deviation of the draws, if that is smaller.
    """
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return None
    fewer = min((defined <= 0).sum(), (defined >= 0).sum())
    p = min(1.0, 2 * (fewer + 1) / (len(defined) + 1))
    if fewer == 0 and len(defined) >= TAIL_DRAWS and (deviation := defined.std(ddof=1)) > 0:
        p = min(p, 2 * ndtr(-abs(defined.mean()) / deviation))
    return float(p)


def ranked_sample(scores: np.ndarray, labels: np.ndarray, bootstrap: Bootstrap) -> Sample:
    """The sample, of shape [M,L], of the M metrics of `metrics.RANKED` for L labels, from scores and labels [n,L].

    Only records with a known label count. A draw without a positive or without a negative record gives nan.
    """
    rankings = []
    for j, known in enumerate(policy.known(labels).T):
        rankings.append(metrics.ranking(scores[known, j], labels[known, j], bootstrap.patients[known]))

    def statistic(weights: np.ndarray) -> np.ndarray:
        values = np.empty((len(weights), len(metrics.RANKED), len(rankings)))
        for j, ranking in enumerate(rankings):
            curve = metrics.curve_of(ranking, weights)
            lost = (curve.positives == 0) | (curve.negatives == 0)
            for m, metric in enumerate(metrics.RANKED.values()):
                values[:, m, j] = np.where(lost, np.nan, metric(curve))
        return values

    return bootstrap.sample(statistic)


def decision_sample(scores: np.ndarray, labels: np.ndarray, thresholds: np.ndarray, bootstrap: Bootstrap) -> Sample:
    """The sample, of shape [4,L], of the weights of the four kinds of decisions (`metrics.Confusion`)."""
    columns = [
        metrics.decisions(scores[:, j], labels[:, j], threshold)  # [n,4]
        for j, threshold in enumerate(thresholds)
    ]
    sums = bootstrap.sums(np.stack(columns, 2).reshape(len(scores), -1))
    return sums.map(lambda x: x.reshape(len(x), 4, -1))


def rates(sample: Sample, metric: Callable[[metrics.Confusion], np.ndarray]) -> Sample:
    """The sample [L] of a metric at a threshold, from a sample of decisions; nan where a draw lacks a class."""

    def values(counts: np.ndarray) -> np.ndarray:  # [R,4,L] -> [R,L]
        c = metrics.Confusion(*np.moveaxis(counts, 1, 0))
        return np.where((c.tp + c.fn > 0) & (c.fp + c.tn > 0), metric(c), np.nan)

    return sample.map(values)


def samples(
    scores: np.ndarray, labels: np.ndarray, thresholds: Mapping[str, np.ndarray], bootstrap: Bootstrap
) -> dict[str, Sample]:
    """{metric: Sample of shape [L]}: the ranked metrics, and those of `thresholds` {metric: [L]}."""
    ranked = ranked_sample(scores, labels, bootstrap)
    found = {name: ranked.at(m) for m, name in enumerate(metrics.RANKED)}
    decided: dict[bytes, Sample] = {}  # metrics often share thresholds
    for name, chosen in thresholds.items():
        key = np.asarray(chosen, np.float64).tobytes()
        if key not in decided:
            decided[key] = decision_sample(scores, labels, chosen, bootstrap)
        found[name] = rates(decided[key], metrics.THRESHOLDED[name])
    return found


def intervals(
    scores: np.ndarray,
    labels: np.ndarray,
    names: tuple[str, ...],
    thresholds: Mapping[str, np.ndarray],
    bootstrap: Bootstrap,
) -> Results:
    """Computes every metric of every label, and its mean over labels, with intervals over patients.

    Args: scores [n,L]; labels int8 [n,L], see `policy.known` for those that count; names of the L labels; thresholds
    {metric: [L]}, for those of `metrics.THRESHOLDED` that are wanted.
    Returns {metric: {'mean': {value, low, high, labels}, label: {value, low, high, positives, negatives, undefined}}}.

    A draw in which a label has no positive or no negative record has no value for this label. The label's interval
    leaves this draw out, and `undefined` counts it. In the mean over labels the label then has its plain value, so the
    mean is over the same labels in every draw.
    """
    results: Results = {}
    for metric, sample in samples(scores, labels, thresholds, bootstrap).items():
        results[metric] = {'mean': mean_estimate(sample, bootstrap)}
        for j, name in enumerate(names):
            counts = dict(positives=int((labels[:, j] == 1).sum()), negatives=int((labels[:, j] == 0).sum()))
            results[metric][name] = bootstrap.estimate(sample.at(j)) | counts
    return results


def stack(samples: Sequence[Sample]) -> Sample:
    """One sample of shape [K] from K samples of numbers, from the same draws."""
    left = [sample.left_out for sample in samples]
    return Sample(
        np.stack([sample.value for sample in samples]),
        np.stack([sample.drawn for sample in samples], 1),
        None if left[0] is None else np.stack(left, 1),
    )


def mean(samples: Sequence[Sample]) -> Sample:
    """The sample of the mean of numbers, from the same draws."""
    return stack(samples).map(lambda x: x.mean(1))


def rows(samples: Mapping[str, Sample], bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """{'mean': …, row: …}: estimates of numbers by row, and of their mean, from samples of the same draws."""
    return {'mean': mean_estimate(stack([*samples.values()]), bootstrap)} | {
        row: bootstrap.estimate(sample) for row, sample in samples.items()
    }


def mean_estimate(sample: Sample, bootstrap: Bootstrap) -> dict[str, Any]:
    """{value, low, high, labels} of the mean over those labels of a sample [L] that have a value, and their number."""
    defined = ~np.isnan(sample.value)
    if not defined.any():
        return dict(value=None, low=None, high=None, labels=0)
    estimate = bootstrap.estimate(sample.filled().map(lambda x: x[:, defined].mean(1)))
    del estimate['undefined']
    return estimate | dict(labels=int(defined.sum()))


def intervals_of_means(values: dict[str, dict[str, np.ndarray]], bootstrap: Bootstrap) -> Results:
    """Computes means over records, and the mean of these means, with intervals over patients.

    Args: values {metric: {row: [n]}}; retrieval has a row for each direction.
    Returns {metric: {'mean': {value, low, high}, row: {value, low, high}}}.
    """
    columns = {(metric, row): x for metric, rows in values.items() for row, x in rows.items()}
    columns |= {(metric, 'mean'): np.mean(list(rows.values()), 0) for metric, rows in values.items()}
    table = np.stack([np.ones(len(bootstrap.patients)), *columns.values()], 1)  # [n,1+M]
    means = bootstrap.sums(table).map(lambda sums: sums[:, 1:] / sums[:, :1])
    estimates = {}
    for k, key in enumerate(columns):
        estimates[key] = bootstrap.estimate(means.at(k))
        del estimates[key]['undefined']
    return {metric: {row: estimates[metric, row] for row in ('mean', *rows)} for metric, rows in values.items()}


def ratios(parts: Mapping[Any, tuple[np.ndarray, np.ndarray]], bootstrap: Bootstrap) -> dict[Any, dict[str, Any]]:
    """{key: {value, low, high, undefined}} of sum(numerator) / sum(denominator), for pairs of columns [n] by key."""
    if not parts:
        return {}
    table = np.stack([np.asarray(x, np.float64) for pair in parts.values() for x in pair], 1)
    sample = bootstrap.sums(table).map(lambda sums: metrics.ratio(sums[:, ::2], sums[:, 1::2]))
    return {key: bootstrap.estimate(sample.at(k)) for k, key in enumerate(parts)}
