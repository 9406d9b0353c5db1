"""Concept bottleneck: can labels be told from named concepts alone, and which concepts count?

The bottleneck is that of KnoBo (arXiv 2405.14839). Each concept of `--concepts` gets a logistic regression on the
frozen features. Then a linear classifier sees the probabilities of the concepts and nothing else, and predicts the
labels. So its weights can be read. Two things differ from the paper. Its concepts come from texts and a language model;
here they are columns or labels of the records. It draws the weights to what a language model expects; here they have
the penalty of a logistic regression.

    a label             one concept; it is no label to predict then
    a column of words   a concept for each word of train; of two words, the second one
    a column of numbers one concept: above the median of train

The regressions of concepts are chosen as those of the probe `linear`, for all concepts together. The classifier learns
from train probabilities that come from five folds of patients: each record is scored by regressions that did not see
its patient. Its strength C is chosen on validation by the log-loss: with few concepts, all strengths give nearly the
same order of records, so the AUROC cannot tell them apart. `details` has the weights, for a change of one standard
deviation of a probability, and the AUROC of each concept on test.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit

from medjax.data.types import BLANK, NEGATIVE, POSITIVE
from medjax.errors import UserError, suggest
from medjax.probes import label_splits, logistic, policy
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import (
    ProbeInputs,
    Result,
    Scores,
    evaluate,
    label_requirements,
    learning_splits,
    mean_auroc,
)
from medjax.probes.label_splits import missing_class
from medjax.probes.methods import linear
from medjax.probes.methods.metadata import MOST_CLASSES, one_hot

name = 'concepts'
FOLDS = 5


class Targets(NamedTuple):
    """C concepts and their values by split."""

    names: tuple[str, ...]
    labels: dict[str, np.ndarray]  # split -> int8 [n,C]: 1, 0, or a negative code that does not count
    skipped: dict[str, str]  # concepts that cannot be learned, each with the reason

    def of(self, kept: list[int], skipped: dict[str, str]) -> Targets:
        """Some of the concepts, given by number; `skipped` are the others, with reasons."""
        labels = {split: values[:, kept] for split, values in self.labels.items()}
        return Targets(tuple(self.names[c] for c in kept), labels, self.skipped | skipped)


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    label_requirements(inputs)
    data, asked = inputs.data, inputs.concepts
    have = sorted({name for split in data.splits for name in data.split(split).attribute_names} | set(data.labels))
    if not asked:
        raise UserError(f'concepts needs their names: --concepts with some of {", ".join(have)}')
    for each in asked:
        if each not in have:
            raise UserError(f'--concepts {each}: the records have no such label or column{suggest(each, have)}')
    if not set(data.labels) - set(asked):
        raise UserError('--concepts: all labels are concepts, so none is left to predict')
    return dict(concepts=list(asked))


def run(inputs: ProbeInputs) -> Result:
    splits, asked = learning_splits(inputs), inputs.concepts
    kept = [j for j, label in enumerate(splits.names) if label not in asked]
    if not kept:
        raise UserError(f'{inputs.data.name}: no label to predict ({label_splits.reasons(splits.skipped)})')
    splits = splits.with_labels(kept, {label: 'it is a concept' for label in splits.names if label in asked})
    targets = learnable(targets_of(inputs))
    seen = {split: inputs.features(split)._replace(labels=values) for split, values in targets.labels.items()}
    train, val, _ = label_splits.with_validation(seen['train'], seen.get('val'), inputs.seed)  # the rows of `splits`
    assert splits.train is not None and splits.val is not None
    labels = splits.train.labels, splits.val.labels

    def score() -> Scores:
        return learn(train, val, seen['test'], labels, targets, splits.names, inputs.seed)

    return evaluate(score, splits, inputs.options)


def targets_of(inputs: ProbeInputs) -> Targets:
    """The values of all concepts that are asked for."""
    data, names = inputs.data, []
    parts: dict[str, list[np.ndarray]] = {split: [] for split in data.splits}
    skipped = {}
    for each in inputs.concepts:
        if each in data.labels:
            column = data.labels.index(each)
            names.append(each)
            for split, found in parts.items():
                found.append(inputs.features(split).labels[:, [column]])
            continue
        if missing := [split for split in data.splits if each not in data.split(split).attribute_names]:
            skipped[each] = f'the records of {missing[0]} have no such column'
            continue
        values = {split: np.asarray(data.split(split).column(each)) for split in data.splits}
        if len({of_split.dtype.kind for of_split in values.values()}) > 1:
            skipped[each] = 'it holds numbers in one split and words in another'
            continue
        if values['train'].dtype.kind == 'f':
            middle = float(np.nanmedian(values['train'])) if np.isfinite(values['train']).any() else np.nan
            names.append(f'{each} above {middle:g}')
            for split, found in parts.items():
                found.append(above(values[split], middle))
            continue
        words = tuple(word for word in np.unique(values['train']).tolist() if word)
        words = words[1:] if len(words) == 2 else words
        if not 1 <= len(words) <= MOST_CLASSES:
            skipped[each] = f'it has {len(words)} different words, and 1 to {MOST_CLASSES} can be concepts'
            continue
        names += [f'{each}={word}' for word in words]
        for split, found in parts.items():
            found.append(of_words(values[split], words))
    if not names:
        raise UserError(f'{data.name}: no concept can be learned ({label_splits.reasons(skipped)})')
    return Targets(tuple(names), {split: np.concatenate(found, 1) for split, found in parts.items()}, skipped)


def above(values: np.ndarray, limit: float) -> np.ndarray:
    """int8 [n,1]: whether numbers are above a limit; BLANK where they are unknown."""
    with np.errstate(invalid='ignore'):
        codes = np.where(values > limit, POSITIVE, NEGATIVE)
    return np.where(np.isfinite(values), codes, BLANK).astype(np.int8)[:, None]


def of_words(values: np.ndarray, words: tuple[str, ...]) -> np.ndarray:
    """int8 [n,C]: whether a column has each word; BLANK where it has none."""
    return np.where(values[:, None] == '', BLANK, np.maximum(one_hot(values, words), NEGATIVE)).astype(np.int8)


def learnable(targets: Targets) -> Targets:
    """The concepts with both classes in train; UserError if there is none."""
    skipped = {
        name: reason
        for name, column in zip(targets.names, targets.labels['train'].T, strict=True)
        if (reason := missing_class(column, 'train'))
    }
    kept = [c for c, name in enumerate(targets.names) if name not in skipped]
    if not kept:
        raise UserError(f'no concept can be learned ({label_splits.reasons(targets.skipped | skipped)})')
    return targets.of(kept, skipped)


def learn(
    train: SplitFeatures,
    val: SplitFeatures,
    test: SplitFeatures,
    labels: tuple[np.ndarray, np.ndarray],
    targets: Targets,
    names: tuple[str, ...],
    seed: int,
) -> Scores:
    """Scores of the labels. The splits have concepts in place of labels; `labels` int8 [n,L] are of train and val."""
    folds = folds_of(train.patients, seed)
    lacking = {
        name: 'a fold of patients has all records of one kind'
        for name, column in zip(targets.names, train.labels.T, strict=True)
        if any(missing_class(column[folds != fold], 'train') for fold in range(FOLDS))
    }
    kept = [c for c, name in enumerate(targets.names) if name not in lacking]
    if not kept:
        raise UserError(f'no concept can be learned ({label_splits.reasons(targets.skipped | lacking)})')
    targets = targets.of(kept, lacking)
    train, val, test = (one._replace(labels=one.labels[:, kept]) for one in (train, val, test))
    one = linear.choose(train, val)
    on_train = expit(out_of_fold(train, folds, one))
    log_odds = one.log_odds(test)
    on_val, on_test = expit(one.log_odds(val)), expit(log_odds)
    regressions = logistic.fit(on_train, labels[0], linear.STRENGTHS)
    val_scores = logistic.log_odds(regressions, on_val)
    losses = np.array([log_loss(scores, labels[1]) for scores in val_scores.swapaxes(0, 1)])
    r = int(losses.argmin())
    best = regressions.of_strength(r)
    chosen = dict(
        concepts=len(kept),
        features=one.features,
        C=float(linear.STRENGTHS[r]),
        validation_auroc=mean_auroc(val_scores[:, r], labels[1]),
        validation_log_loss=float(losses[r]),
        by='log-loss of all labels on validation',
        scores='log-odds',
    )
    weights = best.kernel[:, 0]  # [C,L]
    details = dict(
        weights={
            label: {concept: float(w) for concept, w in zip(targets.names, weights[:, j], strict=True)}
            for j, label in enumerate(names)
        },
        concepts={
            concept: dict(
                positives=int((train.labels[:, c] == POSITIVE).sum()),
                auroc=mean_auroc(log_odds[:, [c]], test.labels[:, [c]]),
            )
            for c, concept in enumerate(targets.names)
        },
        of_concepts=one.chosen,
        skipped_concepts=targets.skipped,
    )
    scores = logistic.log_odds(best, on_test)[:, 0], val_scores[:, r]
    return Scores(*scores, linear.THRESHOLD, chosen, {}, details, scale='log-odds')


def log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    """The mean of -ln(probability of the true label) over all known labels int8 [n,L]; scores are log-odds [n,L]."""
    known = policy.known(labels)
    return float(np.logaddexp(0, np.where(labels == POSITIVE, -scores, scores))[known].sum() / max(known.sum(), 1))


def folds_of(patients: np.ndarray, seed: int) -> np.ndarray:
    """The fold [n] of each record, 0…FOLDS-1: all records of a patient are in one."""
    count = int(patients.max()) + 1
    return (np.random.default_rng(seed).permutation(count) % FOLDS)[patients]


def out_of_fold(train: SplitFeatures, folds: np.ndarray, one: linear.Classifier) -> np.ndarray:
    """The log-odds float32 [n,C] of concepts, of each record by regressions that did not see its fold."""
    strength, found = np.array([one.chosen['C']]), np.empty(train.labels.shape, np.float32)
    for fold in np.unique(folds).tolist():
        rest, held_out = label_splits.take(train, folds != fold), label_splits.take(train, folds == fold)
        regressions = logistic.fit(linear.feature_sets(rest)[one.features], rest.labels, strength)
        found[folds == fold] = logistic.log_odds(regressions, linear.feature_sets(held_out)[one.features])[:, 0]
    return found
