"""The first question of a reader: is this encoder better than the one I have, and may I say so?

The answer comes from the paired comparisons that `medjax probe` writes, RUN/comparisons/<data>.<probe>.json. An encoder
that was probed beside the run with --encoder is "the one I have". All means of the page are adjusted together (Holm),
so many comparisons do not find a difference by chance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from medjax.probes import comparison, provenance, summary
from medjax.probes.encode import BASELINES, title
from medjax.probes.results import METRIC_TITLES, short, short_p
from medjax.probes.statistics import LEAST_PATIENTS, LEVEL
from medjax.reports import result_sections
from medjax.reports.run_files import ResultFile, Run

COMMAND = '`medjax probe --run RUN --data DATA --encoder PATH`'
FEW_PATIENTS = 100  # of a test set, below which it is called small


class Answer(NamedTuple):
    """The answer, as sentences."""

    status: str  # 'good': better and nothing forbids to say so; 'bad': worse; 'too early': everything else
    better: str  # is it better?
    say: str  # may I say so?
    reasons: Sequence[str]  # why one may not
    differences: Sequence[str]  # a sentence for each comparison
    notes: Sequence[str]  # what to know besides


class Pair(NamedTuple):
    """A comparison of two encoders on one data set by one probe."""

    data: str
    probe: str
    content: Mapping[str, Any]  # see `medjax.probes.comparison.paired`

    @property
    def metric(self) -> str:
        return next(iter(self.content['results']))

    @property
    def mean(self) -> Mapping[str, Any]:
        return self.content['results'][self.metric]['mean']


def of_run(run: Run) -> Answer:
    """The answer for a run."""
    compared, stale = pairs(run)
    found = [pair for pair in compared if pair.mean['p'] is not None]
    named = [pair for pair in found if pair.content['other'] not in BASELINES]
    used = named or hardest_baselines(found)
    adjusted = comparison.holm([pair.mean['p'] for pair in used])
    outcomes = [outcome(pair, p) for pair, p in zip(used, adjusted, strict=True)]
    differences = [difference(pair, p) for pair, p in zip(used, adjusted, strict=True)]
    notes = [f'The comparison {name} is older than its results; `medjax probe` makes it again.' for name in stale]
    rare = dict.fromkeys(f'{pair.probe} on {pair.data}' for pair in compared if pair not in found)
    if rare:
        notes.append(
            f'Not compared: {", ".join(rare)}. Each row there has fewer than {LEAST_PATIENTS} test patients, or fewer '
            f'than {LEAST_PATIENTS} of a class.'
        )
    if not used:
        missing = 'no probe has been run' if not run.results else 'no result of another encoder lies beside it'
        return Answer('too early', f'Not known: {missing}. {COMMAND} compares it with the encoder that you have.',
                      'So you may not say so.', [], [], notes)  # fmt: skip
    why = reasons(run, used)
    if not named:
        against = 'is better than untrained baselines'
        if -1 in outcomes:
            against = f'is worse than an untrained baseline in {outcomes.count(-1)} of {len(outcomes)} comparisons'
        elif 0 in outcomes:
            against = 'is not shown to be better than untrained baselines everywhere'
        better = f'Not known: the encoder that you have was not probed beside it; {COMMAND} does that. It {against}.'
        return Answer('too early', better, 'So you may not say so.', why, differences, notes)
    notes.append('These are two encoders, not two methods: another seed of a training gives other values.')
    who, others = (
        title(used[0].content['encoder']),
        ' and '.join(dict.fromkeys(title(p.content['other']) for p in used)),
    )
    count = len(used)
    if set(outcomes) == {1}:
        better = f'Yes: {who} is better than {others}' + (f' in all {count} comparisons.' if count > 1 else '.')
        say = 'You may not say so yet:' if why else 'You may say so, for patients like those of this test set.'
        return Answer('too early' if why else 'good', better, say, why, differences, notes)
    if set(outcomes) == {-1}:
        better = f'No: {who} is worse than {others}' + (f' in all {count} comparisons.' if count > 1 else '.')
        return Answer('bad', better, 'You may not say that it is better.', why, differences, notes)
    if set(outcomes) == {0}:
        better = f'Not shown: no difference of {who} and {others} is larger than chance.'
    else:
        parts = [
            f'better in {outcomes.count(1)}',
            f'worse in {outcomes.count(-1)}',
            f'not shown to differ in {outcomes.count(0)}',
        ]
        better = f'In parts: of {count} comparisons with {others}, {who} is {", ".join(parts)}.'
    say = (
        'You may name each comparison, and not say that it is better.'
        if any(outcomes)
        else 'You may not say that it is better, nor that both are equal.'
    )
    return Answer('too early', better, say, why, differences, notes)


def pairs(run: Run) -> tuple[list[Pair], list[str]]:
    """The comparisons of the newest results, and the names of those that are older than their results."""
    found, stale, results = [], [], run.results_by_probe()
    for content in run.comparisons:
        data, probe = content['data'], content['probe']
        here = {str(encoder): result.content.get('key') for encoder, result in results.get((data, probe), {}).items()}
        steps = [encoder for encoder in results.get((data, probe), {}) if isinstance(encoder, int)]
        for pair in content['pairs']:
            keys = content.get('keys', {})
            names = [str(pair['encoder']), str(pair['other'])]
            fresh = all(name in here and keys.get(name) == here[name] for name in names)
            if not fresh or (steps and pair['encoder'] != max(steps)):
                stale.append(f'{data}.{probe}')
            elif 'mean' in next(iter(pair['results'].values()), {}):
                found.append(Pair(data, probe, pair))
    return found, list(dict.fromkeys(stale))


def hardest_baselines(found: Sequence[Pair]) -> list[Pair]:
    """For each data set and probe the baseline that is nearest, or above."""
    hardest: dict[tuple[str, str], Pair] = {}
    for pair in found:
        key = pair.data, pair.probe
        if key not in hardest or pair.mean['value'] < hardest[key].mean['value']:
            hardest[key] = pair
    return list(hardest.values())


def outcome(pair: Pair, p: float) -> int:
    """1: better, -1: worse, 0: no difference is shown."""
    if p >= 1 - LEVEL:
        return 0
    return 1 if pair.mean['value'] > 0 else -1


def difference(pair: Pair, p: float) -> str:
    """'linear on nih, step 20 - dinov2: mean AUROC +.031 [+.010, +.052], p .008 (adjusted for all of these)'."""
    mean, encoders = pair.mean, ' - '.join(comparison.encoders(pair.content))
    value, low, high = (f'{"+" if mean[key] >= 0 else ""}{short(mean[key])}' for key in ('value', 'low', 'high'))
    metric = METRIC_TITLES.get(pair.metric, pair.metric)
    return f'{pair.probe} on {pair.data}, {encoders}: mean {metric} {value} [{low}, {high}], adjusted p {short_p(p)}'


# Why one may not say so


def reasons(run: Run, used: Sequence[Pair]) -> list[str]:
    """Sentences: test records that training saw, labels with one class, small test sets."""
    found: dict[str, None] = {}
    results = run.results_by_probe()
    for pair in used:
        of_probe = results[pair.data, pair.probe]
        main, other = of_probe[pair.content['encoder']], of_probe[pair.content['other']]
        for sentence in [*overlap(main, other), *labels(main), *size(main)]:
            found.setdefault(sentence)
    return list(found)


def overlap(main: ResultFile, other: ResultFile) -> list[str]:
    found = []
    for result, harm in (
        (main, 'its value may be too high'),
        (other, 'its value may be too high, and the difference too small'),
    ):
        content, who = result_sections.identified(result), title(result.encoder)
        if provenance.is_contaminated(content):
            seen = provenance.seen(content).removesuffix(provenance.MARK)
            found.append(f'{who} was trained on test records of {result.data} ({seen}), so {harm}.')
        elif provenance.is_unknown(content):
            found.append(
                f'It is not known whether {who} saw test records of {result.data} in its training. If it did, {harm}.'
            )
    return found


def labels(main: ResultFile) -> list[str]:
    """Labels with one class, or with few records of a class."""
    content, found = main.content, []
    one = [
        label
        for label, why in content.get('skipped_labels', {}).items()
        if 'no positive' in str(why) or 'no negative' in str(why)
    ]
    if one:
        found.append(f'{main.data} has one class only of {summary.listed(one)}, so nothing is known about them.')
    if 'unjudged' in content:
        found.append(f'{main.data}: no label has both classes on validation, so nothing could be chosen there.')
    if rare := summary.rare(content):
        found.append(f'The test set of {main.data} has {rare}.')
    return found


def size(main: ResultFile) -> list[str]:
    patients = main.content.get('bootstrap', {}).get('patients')
    if patients is None or patients >= FEW_PATIENTS:
        return []
    return [f'The test set of {main.data} is small: {patients} patients. Another set as small may give another answer.']
