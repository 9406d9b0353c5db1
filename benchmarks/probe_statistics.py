"""Measures the bootstrap over patients of label probes.

    python benchmarks/probe_statistics.py [--patients 10000] [--labels 14] [--draws 1000] [--repeats 3]

`auroc` is the time of AUROC and AUPRC of all labels and of their means, with intervals over patients, for both kinds
of intervals. `loop` is the same AUROCs by scikit-learn, one draw at a time; it is measured on a few draws and
multiplied. `whole` is everything that a result of a label probe has, with three columns of groups, calibration and
conformal sets.
"""

from __future__ import annotations

import argparse
import statistics as values
import time
from collections.abc import Callable

import numpy as np
from sklearn.metrics import roc_auc_score

from medjax.probes import evaluate, label_splits, statistics
from medjax.probes.aggregate import Cases
from medjax.probes.encode import SplitFeatures
from medjax.probes.evaluate import Options, Scores
from medjax.probes.statistics import Bootstrap

LOOP = 5  # draws of the loop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--patients', type=int, default=10_000)
    parser.add_argument('--labels', type=int, default=14)
    parser.add_argument('--draws', type=int, default=1000)
    parser.add_argument('--repeats', type=int, default=3)
    options = parser.parse_args()
    bootstrap(options.patients, options.labels, options.draws, options.repeats)


def bootstrap(patients: int = 10_000, labels: int = 14, draws: int = 1000, repeats: int = 3) -> dict[str, float]:
    """Prints and returns the seconds of each case, the median of the repeats; one record a patient."""
    scores, truth = draw(0, patients, labels)
    names = tuple(map(str, range(labels)))

    def intervals(kind: str) -> None:
        statistics.intervals(scores, truth, names, {}, Bootstrap(np.arange(patients), 0, draws, kind))

    def loop() -> None:
        rng = np.random.default_rng(0)
        for _ in range(LOOP):
            rows = rng.integers(patients, size=patients)
            for j in range(labels):
                roc_auc_score(truth[rows, j], scores[rows, j])

    seconds = {f'auroc, {kind}': timed(lambda kind=kind: intervals(kind), repeats) for kind in statistics.INTERVALS}
    seconds['auroc, loop'] = [x * draws / LOOP for x in timed(loop, repeats)]
    seconds['whole result'] = timed(lambda: whole(scores, truth, names, draws), repeats)
    print(f'{patients:,} patients, {labels} labels, {draws:,} draws; seconds, median [least, most] of {repeats}')
    for name, found in seconds.items():
        print(f'{name:20} {values.median(found):8.2f} [{min(found):.2f}, {max(found):.2f}]', flush=True)
    return {name: values.median(found) for name, found in seconds.items()}


def timed(work: Callable[[], None], repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        found.append(time.perf_counter() - begun)
    return found


def draw(seed: int, n: int, labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels [n,L] with prevalences from .02 to .3."""
    rng = np.random.default_rng(seed)
    truth = (rng.random((n, labels)) < np.linspace(0.02, 0.3, labels)).astype(np.int8)
    return (1.5 * truth + rng.standard_normal(truth.shape) - 2).astype(np.float32), truth


def whole(scores: np.ndarray, truth: np.ndarray, names: tuple[str, ...], draws: int) -> None:
    rng, n = np.random.default_rng(1), len(truth)
    val_scores, val = draw(2, 4000, len(names))
    columns = dict(
        sex=rng.choice(['F', 'M'], n), view=rng.choice(['PA', 'AP'], n), age=rng.uniform(18, 95, n).astype(np.float32)
    )
    cases = dict(test=Cases(np.arange(n).astype(np.uint64), np.arange(n), columns))

    def split(labels: np.ndarray) -> SplitFeatures:
        return SplitFeatures(np.zeros((len(labels), 1, 1), np.float32), None, labels, np.arange(len(labels)))

    splits = label_splits.label_splits(split(val), split(val), split(truth), names, 0, 'drawn', cases)
    found = Scores(scores, val_scores, 0.0, {}, {}, {}, 'log-odds')
    evaluate.evaluate(lambda: found, splits, Options(draws=draws, groups=tuple(columns)))


if __name__ == '__main__':
    main()
