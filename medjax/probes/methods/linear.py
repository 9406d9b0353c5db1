"""The linear probe: logistic regressions on frozen features, of which validation chooses one.

The grid is that of DINOv2 (arXiv 2304.07193): the CLS of the last {1, 4} blocks, {without, with} the mean patch token,
and the 45 strengths C of its logistic regression, which follows CLIP (arXiv 2103.00020). DINOv2 trains its linear
classifiers by SGD over images. Here each regression is fitted to its optimum on features that were encoded once, see
`probes.logistic`. One entry of the grid is chosen for all labels together.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from medjax.probes import logistic
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import ProbeInputs, Result, Scores, label_requirements, mean_auroc, run_label_probe

name, requirements = 'linear', label_requirements
STRENGTHS = 10 ** np.linspace(-6, 5, 45)  # values of C = 1 / (penalty n): a small C is a strong penalty
THRESHOLD = 0.0  # in log-odds: probability .5


def run(inputs: ProbeInputs) -> Result:
    return run_label_probe(inputs, learn)


def learn(train: SplitFeatures, val: SplitFeatures, test: SplitFeatures, seed: int) -> Scores:
    """Fits the grid on train, chooses on val, scores test in log-odds."""
    one = choose(train, val)
    return Scores(one.log_odds(test), one.log_odds(val), THRESHOLD, one.chosen, {}, one.details, scale='log-odds')


class Classifier(NamedTuple):
    """The regressions of one entry of the grid."""

    features: str  # name of the feature set
    regressions: logistic.Regressions  # of one strength
    chosen: dict[str, Any]  # the entry, as short texts and numbers
    details: dict[str, Any]  # the grid

    def log_odds(self, split: SplitFeatures) -> np.ndarray:
        """float32 [n,L]."""
        return logistic.log_odds(self.regressions, feature_sets(split)[self.features])[:, 0]


def choose(train: SplitFeatures, val: SplitFeatures) -> Classifier:
    """Fits the grid on train and chooses one entry for all labels by mean AUROC on val.

    Of equally good entries the first is chosen: fewer features, then the stronger penalty.
    """
    grid: list[dict[str, Any]] = []
    best: tuple[float, logistic.Regressions] | None = None
    passes = 0
    for features, x in feature_sets(train).items():
        regressions = logistic.fit(x, train.labels, STRENGTHS)
        passes += regressions.passes
        val_scores = logistic.log_odds(regressions, feature_sets(val)[features])
        for r, strength in enumerate(STRENGTHS.tolist()):
            auroc, left = mean_auroc(val_scores[:, r], val.labels), int((~regressions.converged[r]).sum())
            grid.append(dict(features=features, C=strength, validation_auroc=auroc, not_converged=left))
            if best is None or (auroc or 0.0) > best[0]:
                best, entry = (auroc or 0.0, regressions.of_strength(r)), grid[-1]
    assert best is not None
    chosen = dict(features=entry['features'], C=entry['C'], validation_auroc=entry['validation_auroc'])
    chosen |= dict(by='mean AUROC over labels on validation', scores='log-odds')
    return Classifier(entry['features'], best[1], chosen, dict(grid=grid, passes=passes, gap=float(best[1].gap.max())))


@dataclasses.dataclass(frozen=True)
class FeatureSet:
    """The CLS of the last blocks of a split, and perhaps its mean patch, as rows [D] that are read when asked for."""

    split: SplitFeatures
    blocks: int
    patches: bool

    @property
    def shape(self) -> tuple[int, int]:
        n, _, width = self.split.cls.shape
        return n, (self.blocks + self.patches) * width

    def __getitem__(self, rows: slice) -> np.ndarray:
        cls = self.split.cls[rows, -self.blocks :]
        cls = cls.reshape(len(cls), -1)
        return np.concatenate([cls, self.split.patches[rows]], 1) if self.patches else cls


def feature_sets(split: SplitFeatures) -> dict[str, FeatureSet]:
    """The feature sets of the grid by name."""
    if split.patches is None:
        return {'pixels': FeatureSet(split, 1, False)}
    blocks = split.cls.shape[1]
    names = {'cls of the last block': 1} | ({f'cls of the last {blocks} blocks': blocks} if blocks > 1 else {})
    return {name: FeatureSet(split, count, False) for name, count in names.items()} | {
        f'{name} + mean patch': FeatureSet(split, count, True) for name, count in names.items()
    }
