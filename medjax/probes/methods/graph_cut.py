"""Graph cut: do patches fall into the structures of the masks without any learning?

Each image is a graph of its patches, and a normalised cut divides it into two parts, as TokenCut does (arXiv
2202.11539); UnSegGNet cuts graphs of frozen ViT features of medical images in the same way, but trains a network for
each image (2405.06057). With the cosine c of two patches, less the mean patch of the image:

    weight    1 where c >= t, else .00001
    division  the second smallest eigenvector v of (D - W) v = l D v, D the degrees, at its mean
    object    the part that has the entry of v furthest from the mean; the other part is the background

The eigenvector is interpolated to the pixels before it is divided. TokenCut takes t = .2 with keys of DINO. Features of
other encoders have other cosines, so t is chosen on validation, by the mean Dice over structures. For each structure
validation also says which part is it, object or background. Nothing else is learned, and train is not read where
validation has masks.

Dice and IoU are those of `medjax.probes.overlaps`. One cut has two parts, so it can fit at most one structure well, and
others only by chance: compare encoders by one structure, such as lungs.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import scipy.linalg

from medjax.probes import metrics, overlaps, structures
from medjax.probes.evaluate import ProbeInputs, Result
from medjax.probes.overlaps import Overlap
from medjax.probes.structures import Masked
from medjax.probes.vectors import unit

name = 'graph_cut'
THRESHOLDS = (0.0, 0.2, 0.4, 0.6, 0.8)  # of cosines
EDGE = 1e-5  # the weight of patches that are not similar


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    return structures.requirements(inputs)


def run(inputs: ProbeInputs) -> Result:
    begun = time.perf_counter()
    splits = structures.masked_splits(inputs)
    val, test, grid = splits.val, splits.test, []
    best: tuple[float, float, np.ndarray] | None = None
    for threshold in THRESHOLDS:
        dice, parts = best_parts(val, cuts(val, threshold))
        grid.append(dict(threshold=threshold, validation_dice=dice))
        if best is None or (dice or 0.0) > best[0]:
            best = dice or 0.0, threshold, parts
    assert best is not None
    _, threshold, parts = best
    found = overlap(test, cuts(test, threshold), parts)
    bootstrap = inputs.options.bootstrap(test.patients)
    content = splits.facts(inputs.seed, bootstrap) | dict(
        chosen=dict(threshold=threshold, validation_dice=best[0], by='mean Dice over structures on validation'),
        results=overlaps.results(found, test.names, bootstrap),
        threshold_notes=splits.unjudged('it is taken for the object'),
        details=dict(grid=grid, parts={n: 'object' if p > 0 else 'background' for n, p in zip(test.names, parts)}),
        seconds=round(time.perf_counter() - begun, 2),
    )
    return Result(content, overlaps.arrays(overlaps.measures(found), found, test))


def cuts(records: Masked, threshold: float) -> np.ndarray:
    """float32 [n,h,w]: the division of each record, above 0 in the object and below in the background."""
    _, h, w, width = records.grid.shape
    return np.stack(
        [
            cut(np.asarray(records.grid[i], np.float64).reshape(h * w, width), threshold).reshape(h, w)
            for i in range(len(records.grid))
        ]
    ).astype(np.float32)


def cut(patches: np.ndarray, threshold: float) -> np.ndarray:
    """[N]: the eigenvector less its mean for the patches [N,D] of an image, above 0 in the object; 0 for one patch."""
    if len(patches) < 2:
        return np.zeros(len(patches))
    x = unit(patches - patches.mean(0))
    weight = np.where(x @ x.T >= threshold, 1.0, EDGE)
    root = 1 / np.sqrt(weight.sum(1))  # with u = sqrt(D) v, the problem is an ordinary one
    laplacian = np.eye(len(x)) - root[:, None] * weight * root
    vector = root * scipy.linalg.eigh(laplacian, subset_by_index=[1, 1])[1][:, 0]
    vector = vector - vector.mean()
    return vector * (1.0 if vector[np.abs(vector).argmax()] > 0 else -1.0)


def overlap(records: Masked, divided: np.ndarray, parts: np.ndarray) -> Overlap:
    """The overlap of each structure with its part [K], 1 the object and -1 the background."""
    signs = parts.astype(np.float32)
    values = divided[:, None] * signs[:, None, None]
    return overlaps.overlap(records, values, np.where(signs > 0, 0, np.nextafter(np.float32(0), np.float32(1))))


def best_parts(val: Masked, divided: np.ndarray) -> tuple[float | None, np.ndarray]:
    """The mean Dice over structures, each with its better part, and these parts [K]; of equal ones the object."""
    means = []
    for part in (1, -1):
        dice = overlap(val, divided, np.full(len(val.names), part)).dice()
        weight = overlaps.patient_weights(dice, val.patients)
        means.append(metrics.ratio((weight * np.nan_to_num(dice)).sum(0), weight.sum(0)))
    of_object, of_background = means
    better = np.fmax(of_object, of_background)
    mean = float(np.nanmean(better)) if np.isfinite(better).any() else None
    return mean, np.where(np.nan_to_num(of_background) > np.nan_to_num(of_object), -1, 1)
