"""Is this run learning? A verdict in words, from the lines of metrics.jsonl.

A false alarm is worse than a late one. The total loss of self-distillation is not monotone, and the patch loss may rise
while the teacher's temperature changes. So three rules hold:

- A run is learning as soon as one term lies clearly below `start`, the loss of the best constant answer to its targets:
  ln K for balanced prototypes, the entropy of label frequencies, the variance of pixels.
- A low rank is a collapse only if the loss, or the earlier rank of the same features, agrees.
- Every finding must hold for several log lines in a row.

The probes have the last word.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax import files

EARLY = 0.1  # in this first share of a run only instability is reported; warm-up takes 10 to 16 % in DINOv2's recipes
SMOOTH = 5  # lines of the running median, and the fewest lines for a finding: one spike is not a state
MARGIN = 0.02  # a loss 2 % below its start has left it; random variation is below 1 % of ln K
# Up to 5 % below the start is 'a little': a patch loss falls that far by learning only where organs usually are.
LITTLE = 0.05
ABOVE = 1.25  # a loss 25 % above that of an untrained network is unstable; 1 to 2 % above is usual in the first steps
RANK = 1.5  # participation ratio; 1 means that all features lie on a line
LEAST_MAXIMUM = 2.0  # one or two rows have a rank of at most 1, whatever the network does
FALLEN = 0.5  # a rank has fallen if it is below half of its own maximum; an untrained encoder may start low and rise
SINKING = 1 / 3  # a rank below this share of its maximum is a note, not a finding: some loss of rank is usual
ONE = 2.0  # a student that uses at most this number of prototypes gives all images the same output
ROWS = 16  # with fewer rows, few prototypes are no sign of collapse
UNIFORM = 0.99  # above this share of ln K the teacher's outputs are uniform
FLAT = 0.8  # above this share of ln K the targets hold little information
MATCHED = 0.02  # below this share of ln K of divergence the student equals its targets
# A continued run keeps less than a quarter (the square) of which images its start found alike. Measured on small ViTs,
# see BUILD_NOTES.md: at their own rate they keep .6 and more, at ten times that rate .45 and less.
FORGOTTEN = 0.5
SIMILARITY = 'similarity/start'  # see `forgetting.py`
MEASURED = 2  # measurements in a row for a sentence: the images are the same each time, so the number has no noise
SKIPPED = 0.01  # largest share of recent steps that may be skipped; single skipped steps happen in sound runs


def verdict(history: Sequence[Mapping[str, Any]], total_steps: int) -> dict[str, Any]:
    """The content of health.json: {step, status, since, verdict, terms, gauges}.

    `history`: the lines of metrics.jsonl in order (null for numbers that are not finite). `status` is 'learning', 'not
    learning', 'collapsed', 'unstable', 'too early', or 'unknown' if no term has a start value. `since` is the step at
    which the present state began; None for a state that needs no action.
    """
    if not history:
        return dict(
            step=0, status='too early', since=None, verdict='Too early to tell: no step yet.', terms={}, gauges={}
        )
    steps = [line['step'] for line in history]
    terms, gauges = terms_with_start(history), gauges_of(history)
    early = steps[-1] < EARLY * total_steps or len(history) < SMOOTH
    finding = unstable(history, terms)
    if not finding and not early:
        finding = collapsed(history, terms) or not_learning(history, terms)
    if finding:
        status, first, sentence = finding
        since = steps[first]
        sentence = f'{status.capitalize()} since step {since:,}: {sentence}.'
    else:
        since = None
        status, sentence = learning(terms, early, steps[-1], total_steps)
        sentence += notes(history, terms, gauges)
    public = {name: {key: term[key] for key in ('loss', 'start', 'ratio')} for name, term in terms.items()}
    return dict(step=steps[-1], status=status, since=since, verdict=sentence, terms=public, gauges=gauges)


def write(run: str | os.PathLike, health: Mapping[str, Any]) -> None:
    """RUN/health.json, whole or not at all."""
    path = Path(run) / 'health.json'
    with files.writing(f'the health of the run, {path}'):
        files.write_json(path, health)


# Findings: None, or (status, the number of the line where it began, a sentence)

Finding = tuple[str, int, str]


def unstable(history: Sequence[Mapping[str, Any]], terms: Mapping[str, Any]) -> Finding | None:
    """NaN or infinite numbers in the last lines, or a loss that stays well above its start."""
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
        first = trailing(term['to_untrained'] > ABOVE)
        if first is not None and len(history) - first >= SMOOTH:
            return 'unstable', first, f'{loss_text(name, term)}, so worse than an untrained network; lower optim.lr'
    return None


def collapsed(history: Sequence[Mapping[str, Any]], terms: Mapping[str, Any]) -> Finding | None:
    """Features of rank 1, or one prototype for all images."""
    stuck = bool(terms) and all(term['ratio'] > 1 - MARGIN for term in terms.values())
    for key in sorted({key for line in history for key in line if key.startswith('rank/')}):
        rank = smooth(series(history, key))
        best = np.fmax.accumulate(rank)
        most = series(history, maximum_key(key))
        low = (rank < RANK) & ~(most < LEAST_MAXIMUM)
        first = trailing(low if stuck else low & (rank < FALLEN * best))
        if first is not None and len(history) - first >= SMOOTH:
            feature = key.removeprefix('rank/')
            return 'collapsed', first, f'effective rank {rank[-1]:.1f} of {most[-1]:.0f} ({feature})'
    for name in terms:
        used = smooth(series(history, f'term/{name}/prototypes'))
        first = trailing((used <= ONE) & (series(history, f'term/{name}/rows') >= ROWS))
        if first is not None and len(history) - first >= SMOOTH:
            count = 'one prototype' if round(used[-1]) <= 1 else f'{used[-1]:.0f} prototypes'
            return 'collapsed', first, f'the student of {name} puts everything on {count}'
    return None


def not_learning(history: Sequence[Mapping[str, Any]], terms: Mapping[str, Any]) -> Finding | None:
    """No term with a start value is better than a constant answer."""
    if not terms:
        return None
    first = trailing(np.all([term['ratios'] > 1 - MARGIN for term in terms.values()], axis=0))
    if first is None or len(history) - first < SMOOTH:
        return None
    sentence = ' and '.join(
        f'{name} loss no better than a constant answer ({term["loss"]:.2f} of {term["start"]:.2f})'
        for name, term in terms.items()
    )
    if any(uniform(history, name) for name in terms):
        sentence += "; the teacher's outputs are uniform"
    return 'not learning', first, sentence


def learning(terms: Mapping[str, Any], early: bool, step: int, total_steps: int) -> tuple[str, str]:
    """Status and sentence if there is no finding."""
    below = [loss_text(name, term) for name, term in terms.items() if term['ratio'] <= 1 - MARGIN]
    if early:
        far = f' So far: {", ".join(loss_text(name, term) for name, term in terms.items())}.' if terms else ''
        return 'too early', f'Too early to tell: {step:,} of {total_steps:,} steps.{far}'
    if not terms:
        return 'unknown', 'No term states the loss of a constant answer: judge by the probes.'
    if not below:  # back there for fewer lines than a finding needs
        return 'too early', 'The losses have only just come back to those of a constant answer: too early to tell.'
    little = all(term['ratio'] > 1 - LITTLE for term in terms.values())
    return 'learning', f'Learning{" a little so far" if little else ""}: {", ".join(below)}.'


def notes(history: Sequence[Mapping[str, Any]], terms: Mapping[str, Any], gauges: Mapping[str, Any]) -> str:
    """Sentences on things that are worth a look but are no findings."""
    sentences = ''
    above = [name for name, term in terms.items() if term['ratio'] > 1 - MARGIN]
    if 0 < len(above) < len(terms):
        still = 'loss is' if len(above) == 1 else 'losses are'
        still += ' still no better than a constant answer'
        sentences += f' The {" and ".join(above)} {still}. This is normal while other losses fall.'
    for name, term in terms.items():
        entropy, most = entropies(history, name)
        divergence = term['to_untrained'][-1] * most - entropy  # cross-entropy less entropy, in nats a target
        if entropy > FLAT * most and divergence < MATCHED * most:
            sentences += (
                f' The {name} targets are nearly uniform (entropy {entropy:.2f} of {most:.2f}) and the student equals '
                'them: a lower teacher_temperature would give it more to learn.'
            )
    for name, gauge in gauges.items():
        if name.startswith('rank/') and gauge['value'] and gauge['value'] < SINKING * gauge['peak']:
            sentences += f' Effective rank fell from {gauge["peak"]:.1f} to {gauge["value"]:.1f} ({name[5:]}).'
    return sentences + forgetting(history)


def forgetting(history: Sequence[Mapping[str, Any]]) -> str:
    """A sentence where a run that began with given weights forgets them: which images they found alike."""
    measured = [(line['step'], line[SIMILARITY]) for line in history if line.get(SIMILARITY) is not None]
    first = trailing(np.array([value < FORGOTTEN for _, value in measured])) if measured else None
    if first is None or len(measured) - first < MEASURED:
        return ''
    return (
        f' It forgets its start: since step {measured[first][0]:,} it finds other images alike than at the start '
        f'({SIMILARITY} {measured[-1][1]:.2f}; 1 at the start, 0 when nothing is left). If that start was good, a '
        'lower optim.lr, layer-wise decay of it (layerwise in optim.groups) or a longer warm-up of new heads would '
        'keep more. Probes of the start and of now decide.'
    )


# The numbers


def terms_with_start(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Terms with a positive start value: the smoothed loss, the start, their ratio now, and the ratios of all lines.

    `to_untrained` are the ratios to the loss of an untrained network, which may be far above that of the best constant
    answer: that of SigLIP with its bias of -10, or that of a decoder of pixels. A term may log it as `untrained`; else
    it is the first loss of the run. Other terms (KoLeo, a mean log distance) have no value that means "nothing
    learned".
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
            untrained = series(history, f'term/{name}/untrained')
            # without the term's own figure, an untrained network is where this run began
            begun = np.fmax(start, loss[np.isfinite(loss)][:1].max(initial=0))
            to_untrained = smooth(loss / np.where(untrained > 0, untrained, begun))
            if np.isfinite(value):
                terms[name] = dict(
                    loss=value,
                    start=float(start[-1]),
                    ratio=float(ratios[-1]),
                    ratios=ratios,
                    to_untrained=to_untrained,
                )
    return terms


def gauges_of(history: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """Teacher entropy, prototypes in use, rank: the smoothed value now, the largest possible value, the peak so far.

    The similarity to the start: its last value.
    """
    gauges = {}
    for key in sorted({key for line in history for key in line}):
        last = key.rsplit('/', 1)[-1]
        if key.startswith('rank/') or (key.startswith('term/') and last in ('entropy', 'prototypes')):
            values = smooth(series(history, key))
            if np.isfinite(values).any():
                most = number(series(history, maximum_key(key))[-1])
                gauges[key] = dict(value=number(values[-1]), max=most, peak=number(np.nanmax(values)))
    measured = series(history, SIMILARITY)
    if np.isfinite(measured).any():
        gauges[SIMILARITY] = dict(value=number(measured[np.isfinite(measured)][-1]), max=1.0, peak=None)
    if any('skipped' in line for line in history):
        gauges['skipped'] = dict(value=number(series(history, 'skipped')[-1]), max=None, peak=None)
    return gauges


def uniform(history: Sequence[Mapping[str, Any]], name: str) -> bool:
    entropy, most = entropies(history, name)
    return entropy > UNIFORM * most


def entropies(history: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    """The mean entropy of a term's targets and its maximum ln K, smoothed, in the last line."""
    now = (smooth(series(history, f'term/{name}/{what}'))[-1] for what in ('entropy', 'entropy_max'))
    entropy, most = map(float, now)
    return entropy, most


def series(history: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    """The values of a key, one for each line; NaN if missing or not finite."""
    return np.array([np.nan if line.get(key) is None else float(line[key]) for line in history])


def smooth(values: np.ndarray) -> np.ndarray:
    """The running median over SMOOTH lines, of finite values only; NaN if there are none."""
    padded = np.concatenate([np.full(SMOOTH - 1, np.nan), values])
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(padded, SMOOTH), axis=1)  # NaN last
    count = np.isfinite(windows).sum(axis=1, keepdims=True)
    middle = np.concatenate([np.maximum(count - 1, 0) // 2, np.minimum(count // 2, SMOOTH - 1)], axis=1)
    return np.take_along_axis(windows, middle, axis=1).mean(axis=1)


def trailing(condition: np.ndarray) -> int | None:
    """The start of the last run of true values, if it reaches the end; else None."""
    if not condition[-1]:
        return None
    false = np.flatnonzero(~condition)
    return int(false[-1]) + 1 if len(false) else 0


def maximum_key(key: str) -> str:
    """The key of the largest possible value of a gauge."""
    return key.replace('rank/', 'rank_max/', 1) if key.startswith('rank/') else f'{key}_max'


def loss_text(name: str, term: Mapping[str, Any]) -> str:
    return f'{name} loss {term["loss"]:.2f} of {term["start"]:.2f} for a constant answer'


def number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
