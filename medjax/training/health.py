"""Is this run learning? A verdict in words from the lines of metrics.jsonl.

What it may not do is cry wolf. The total loss of self-distillation is not monotone, and the patch loss may rise while
the teacher's temperature changes; so a run is called learning as soon as any term lies clearly below the value that
uniform outputs give (`start`, from ln K), a low rank is called a collapse only where the loss or the rank's own past
agrees, and every finding must hold over several log lines in a row. The probes remain the judge.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax import files

EARLY = 0.1  # share of the run within which only instability is called: warm-up takes 10 to 16 % in DINOv2's recipes
SMOOTH = 5  # lines of the running median, and the fewest lines for any finding: a spike is not a state
MARGIN = 0.02  # a loss 2 % below its start has left it: at the start it scatters by under 1 % of ln K
LITTLE = 0.05  # less than 5 % below: words only, as the mean position of things gives a patch loss that much
ABOVE = 1.25  # a loss 25 % above ln K is worse than knowing nothing: 1 to 2 % above is usual in the first steps
RANK = 1.5  # participation ratio; 1 is a line, on which no two findings can be told apart
FALLEN = 0.5  # ... a rank counts as fallen below half of its own best; a young encoder may start low and rise
SINKING = 1 / 3  # worth a word, not a verdict: some loss of rank is usual as the features specialise
ONE = 2.0  # prototypes that the student uses, at most: it says the same of all images ...
ROWS = 16  # ... which only a batch with more rows than that can show
UNIFORM = 0.99  # share of ln K above which the teacher says the same of every prototype
FLAT = 0.8  # share of ln K: targets of more entropy hold little ...
MATCHED = 0.02  # ... and a student whose divergence from them is less than this share of ln K has learned all of it
SKIPPED = 0.01  # share of recent steps skipped as not finite: single ones happen in sound runs


def verdict(history: Sequence[Mapping[str, Any]], total_steps: int) -> dict[str, Any]:
    """What health.json holds: {step, status, since, verdict, terms, gauges}.

    `history` are lines of metrics.jsonl in order (null where not finite). `status` is 'learning', 'not learning',
    'collapsed', 'unstable', 'too early', or 'unknown' where no term states a start value; `since` is the step of the
    first line of the state that still lasts, None for a state that asks for no action.
    """
    if not history:
        return dict(
            step=0, status='too early', since=None, verdict='Too early to tell: no step yet.', terms={}, gauges={}
        )
    steps = [line['step'] for line in history]
    terms, gauges = judged(history), gauges_of(history)
    early = steps[-1] < EARLY * total_steps or len(history) < SMOOTH
    found = unstable(history, terms)
    if not found and not early:
        found = collapsed(history, terms) or not_learning(history, terms)
    if found:
        status, first, words = found
        since = steps[first]
        words = f'{status.capitalize()} since step {since:,}: {words}.'
    else:
        since = None
        status, words = learning(terms, early, steps[-1], total_steps)
        words += notes(history, terms, gauges)
    public = {name: {key: term[key] for key in ('loss', 'start', 'ratio')} for name, term in terms.items()}
    return dict(step=steps[-1], status=status, since=since, verdict=words, terms=public, gauges=gauges)


def write(run: str | os.PathLike, health: Mapping[str, Any]) -> None:
    """RUN/health.json, whole or not at all."""
    files.write_json(Path(run) / 'health.json', health)


# The findings: None, or (status, the line where it began, words)

Finding = tuple[str, int, str]


def unstable(history: Sequence[Mapping[str, Any]], terms: Mapping[str, Any]) -> Finding | None:
    """Numbers that are not finite, now or often of late, or a loss that is well above its start and stays there."""
    if 'loss' in history[-1] and history[-1]['loss'] is None:
        first = trailing(np.array([line.get('loss') is None for line in history]))
        return 'unstable', first, 'the loss is not finite; a lower optim.lr or a longer warm-up is the usual cure'
    recent = history[-2 * SMOOTH - 1 :]
    skipped = series(recent, 'skipped')
    span = recent[-1]['step'] - recent[0]['step']
    count = skipped[-1] - skipped[0]
    if span and count > max(1, SKIPPED * span):  # one skipped step is no state, however short the log interval
        first = len(history) - len(recent) + int(np.argmax(skipped > skipped[0]))
        return 'unstable', first, f'{count:.0f} of the last {span:,} steps were skipped because of numbers not finite'
    for name, term in terms.items():
        first = trailing(term['ratios'] > ABOVE)
        if first is not None and len(history) - first >= SMOOTH:
            return 'unstable', first, f'{loss_words(name, term)}, so worse than uniform outputs; lower optim.lr'
    return None


def collapsed(history: Sequence[Mapping[str, Any]], terms: Mapping[str, Any]) -> Finding | None:
    """Features without rank, or one prototype for all images."""
    stuck = bool(terms) and all(term['ratio'] > 1 - MARGIN for term in terms.values())
    for key in sorted({key for line in history for key in line if key.startswith('rank/')}):
        rank = smooth(series(history, key))
        best = np.fmax.accumulate(rank)
        first = trailing(rank < RANK if stuck else (rank < RANK) & (rank < FALLEN * best))
        if first is not None and len(history) - first >= SMOOTH:
            feature = key.removeprefix('rank/')
            most = series(history, maximum_key(key))[-1]
            return 'collapsed', first, f'effective rank {rank[-1]:.1f} of {most:.0f} ({feature})'
    for name in terms:
        used = smooth(series(history, f'term/{name}/prototypes'))
        first = trailing((used <= ONE) & (series(history, f'term/{name}/rows') >= ROWS))
        if first is not None and len(history) - first >= SMOOTH:
            count = 'one prototype' if round(used[-1]) <= 1 else f'{used[-1]:.0f} prototypes'
            return 'collapsed', first, f'the student of {name} puts everything on {count}'
    return None


def not_learning(history: Sequence[Mapping[str, Any]], terms: Mapping[str, Any]) -> Finding | None:
    """Every term that states a start value is at it."""
    if not terms:
        return None
    first = trailing(np.all([term['ratios'] > 1 - MARGIN for term in terms.values()], axis=0))
    if first is None or len(history) - first < SMOOTH:
        return None
    words = ' and '.join(
        f'{name} loss at its start value ({term["loss"]:.2f} of {term["start"]:.2f})' for name, term in terms.items()
    )
    if any(uniform(history, name) for name in terms):
        words += "; the teacher's outputs are uniform"
    return 'not learning', first, words


def learning(terms: Mapping[str, Any], early: bool, step: int, total_steps: int) -> tuple[str, str]:
    """Status and words where nothing is wrong."""
    below = [loss_words(name, term) for name, term in terms.items() if term['ratio'] <= 1 - MARGIN]
    if early:
        far = f' So far: {", ".join(loss_words(name, term) for name, term in terms.items())}.' if terms else ''
        return 'too early', f'Too early to tell: {step:,} of {total_steps:,} steps.{far}'
    if not terms:
        return 'unknown', 'No term states its value at the start: judge by the probes.'
    if not below:  # back at the start for fewer lines than a finding needs
        return 'too early', 'The losses have only just come back to their start values: too early to tell.'
    little = all(term['ratio'] > 1 - LITTLE for term in terms.values())
    return 'learning', f'Learning{" a little so far" if little else ""}: {", ".join(below)}.'


def notes(history: Sequence[Mapping[str, Any]], terms: Mapping[str, Any], gauges: Mapping[str, Any]) -> str:
    """What is worth a look without being a finding."""
    words = ''
    above = [name for name, term in terms.items() if term['ratio'] > 1 - MARGIN]
    if 0 < len(above) < len(terms):
        words += f' Still at its start: {" and ".join(above)} loss, which can be so while others fall.'
    for name, term in terms.items():
        entropy, most = entropies(history, name)
        divergence = term['ratio'] * most - entropy  # cross-entropy less entropy, in nats a target
        if entropy > FLAT * most and divergence < MATCHED * most:
            words += (
                f' The {name} targets are nearly uniform (entropy {entropy:.2f} of {most:.2f}) and the student equals '
                'them: a lower teacher_temperature would give it more to learn.'
            )
    for name, gauge in gauges.items():
        if name.startswith('rank/') and gauge['value'] and gauge['value'] < SINKING * gauge['peak']:
            words += f' Effective rank fell from {gauge["peak"]:.1f} to {gauge["value"]:.1f} ({name[5:]}).'
    return words


# The numbers


def judged(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Terms with a positive start value: smoothed loss, start, ratio now, and the ratios of all lines.

    Terms without one (KoLeo: a mean log distance) have no value that means 'nothing learned'.
    """
    names = {
        key.split('/')[1] for line in history for key in line if key.startswith('term/') and key.endswith('/start')
    }
    terms = {}
    for name in sorted(names):
        loss, start = (series(history, f'term/{name}/{what}') for what in ('loss', 'start'))
        start = np.where(start > 0, start, np.nan)
        if np.isfinite(start[-1]):
            ratios = smooth(loss / start)
            value = float(ratios[-1] * start[-1])
            if np.isfinite(value):
                terms[name] = dict(loss=value, start=float(start[-1]), ratio=float(ratios[-1]), ratios=ratios)
    return terms


def gauges_of(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Teacher entropy, prototypes the student uses, rank: value now (smoothed), largest possible, own peak."""
    gauges = {}
    for key in sorted({key for line in history for key in line}):
        last = key.rsplit('/', 1)[-1]
        if key.startswith('rank/') or (key.startswith('term/') and last in ('entropy', 'prototypes')):
            values = smooth(series(history, key))
            if np.isfinite(values).any():
                most = number(series(history, maximum_key(key))[-1])
                gauges[key] = dict(value=number(values[-1]), max=most, peak=number(np.nanmax(values)))
    if any('skipped' in line for line in history):
        gauges['skipped'] = dict(value=number(series(history, 'skipped')[-1]), max=None, peak=None)
    return gauges


def uniform(history: Sequence[Mapping[str, Any]], name: str) -> bool:
    entropy, most = entropies(history, name)
    return entropy > UNIFORM * most


def entropies(history: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """Mean entropy of a term's targets and its maximum ln K, smoothed, now."""
    now = (smooth(series(history, f'term/{name}/{what}'))[-1] for what in ('entropy', 'entropy_max'))
    entropy, most = map(float, now)
    return entropy, most


def series(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """One value a line, NaN where missing or not finite."""
    return np.array([np.nan if line.get(key) is None else float(line[key]) for line in history])


def smooth(values: np.ndarray) -> np.ndarray:
    """The median of the finite values among the last SMOOTH lines, for each line; NaN where there are none."""
    padded = np.concatenate([np.full(SMOOTH - 1, np.nan), values])
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(padded, SMOOTH), axis=1)  # NaN last
    count = np.isfinite(windows).sum(axis=1, keepdims=True)
    middle = np.concatenate([np.maximum(count - 1, 0) // 2, np.minimum(count // 2, SMOOTH - 1)], axis=1)
    return np.take_along_axis(windows, middle, axis=1).mean(axis=1)


def trailing(condition: np.ndarray) -> int | None:
    """Where the last unbroken stretch of true begins, if it reaches the end."""
    if not condition[-1]:
        return None
    false = np.flatnonzero(~condition)
    return int(false[-1]) + 1 if len(false) else 0


def maximum_key(key: str) -> str:
    """The name under which a gauge's largest possible value is written."""
    return key.replace('rank/', 'rank_max/', 1) if key.startswith('rank/') else f'{key}_max'


def loss_words(name: str, term: Mapping[str, Any]) -> str:
    return f'{name} loss {term["loss"]:.2f} of {term["start"]:.2f} at the start'


def number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
