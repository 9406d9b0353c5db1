"""The trained classifier of an export, judged as it is: nothing is fitted, and the train split is not read.

A recipe with the term `supervised` exports its head, and `classifiers` in meta.json says what the outputs mean. The
probe evaluates those that are labels of the data. With the outputs s of the head on the CLS feature of an image, the
scores are log-odds:

    of labels      s_l
    of classes     s_k - ln sum over the other classes of exp(s)
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.models import build as models
from medjax.probes import label_splits
from medjax.probes.encode import Encoder, SplitFeatures, image_tower
from medjax.probes.evaluate import ProbeInputs, Result, Scores, evaluate, fixed_splits
from medjax.probes.label_splits import missing_class

name = 'classifier'
OF_LABELS = ('labels', 'classes')  # what a classifier may predict here


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    """The classifier; UserError where the export has none that predicts a label of the data."""
    if inputs.encoder.export is None or not inputs.encoder.export.get('heads'):
        raise UserError('it has no trained classifier')
    tower, heads = image_tower(inputs.encoder.meta), inputs.encoder.export['heads']
    listed = inputs.encoder.meta.get('classifiers') or ()
    there = [one for one in listed if one['tower'] == tower and one['head'] in heads]
    if not there:
        raise UserError(
            'the export has no classifier; a recipe with the term supervised exports one if its `export` names the '
            "head: heads=['classifier']"
        )
    fitting = [one for one in there if one['predicts'] in OF_LABELS and set(one['names']) & set(inputs.data.labels)]
    if not fitting:
        known = ', '.join(str(predicted) for predicted in there[0]['names'][:5])
        raise UserError(
            f'the classifier of the export predicts {there[0]["predicts"]} ({known}), and none is a label of the data'
        )
    return dict(classifier=fitting[0], head_section=inputs.encoder.meta['heads'][fitting[0]['head']])


def run(inputs: ProbeInputs) -> Result:
    classifier, test = requirements(inputs)['classifier'], inputs.features('test')
    labels = list(inputs.data.labels)
    skipped = {label: 'the classifier does not predict it' for label in labels if label not in classifier['names']}
    for label in set(labels) - set(skipped):
        if reason := missing_class(test.labels[:, labels.index(label)], 'test'):
            skipped[label] = reason
    names = tuple(label for label in labels if label not in skipped)
    if not names:
        why = label_splits.reasons(skipped)
        raise UserError(f'{inputs.data.name}: no label of the classifier can be evaluated ({why})')
    splits = fixed_splits(inputs, names, skipped)

    def score_split(split: SplitFeatures) -> np.ndarray:
        scores = log_odds(inputs.encoder, classifier, split.cls[:, -1])
        return scores[:, [classifier['names'].index(label) for label in names]]

    def score_both() -> Scores:
        on_val = None if splits.whole_val is None else score_split(inputs.features('val'))
        chosen = dict(head=classifier['head'], term=classifier['term'], by='training', scores='log-odds')
        return Scores(score_split(splits.test), on_val, 0.0, chosen, {}, dict(classifier=classifier), 'log-odds')

    return evaluate(score_both, splits, inputs.options)


def log_odds(encoder: Encoder, classifier: dict[str, Any], cls: np.ndarray) -> np.ndarray:
    """Features [n,D] -> float32 [n,O]: the log-odds of the outputs of a classifier."""
    name = classifier['head']
    head = models.head(encoder.meta['heads'][name], cls.shape[-1], f'heads.{name}')
    s = np.asarray(head.apply(encoder.export['heads'][name], cls), np.float64)
    if s.shape[1] != len(classifier['names']):
        raise UserError(
            f'{encoder.folder}: the head {name!r} has {s.shape[1]} outputs, and `classifiers` in meta.json names '
            f'{len(classifier["names"])}; copy the export again'
        )
    if classifier['predicts'] == 'classes':
        # ln p - ln (1-p) of a softmax; the sum over the other classes is taken without the class itself
        others = np.stack([np.logaddexp.reduce(np.delete(s, k, 1), axis=1) for k in range(s.shape[1])], 1)
        s = s - others
    return s.astype(np.float32)
