"""Localisation: is the similarity of patches to a structure highest where the mask shows it?

Each structure has a vector, and each patch of a test image a similarity to it: a map, interpolated to the pixels.

    prompts     with --prompts and a text tower: the vector of the sentences that state the structure, for structures
                with the name of a class of the prompts; similarity = the cosine with the projected patch (BioViL,
                arXiv 2204.09817)
    prototypes  otherwise: the mean of the unit features of train patches inside the structure, and that of those
                outside, each patch with the share that is inside or outside; similarity = the cosine with the first
                minus the cosine with the second (prototypes of few-shot segmentation, PANet, 1908.06391)

For the pixels that the encoder sees, of each test record whose mask shows the structure:

    pointing    1 if the highest pixel of the map is in the structure, else 0 (the pointing game, 1608.00507, without
                its margin of 15 px); `chance` is the mean share of pixels in the structure
    CNR         abs(m - m') / sqrt(v + v'), mean and variance of the map inside and outside (BioViL)
    signed CNR  the same without abs: below 0 where the map is lower inside
    Dice, IoU   of the pixels above the threshold that is best on validation, see `medjax.probes.overlaps`

All are means over patients.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.probes import image_text, overlaps, statistics, structures
from medjax.probes.evaluate import ProbeInputs, Result
from medjax.probes.methods import zero_shot
from medjax.probes.structures import Masked, MaskedSplits, covered, inside, on_pixels
from medjax.probes.vectors import unit

name = 'localisation'
READ = 32  # records whose features are read at once


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    found, names = structures.requirements(inputs), inputs.data.masks
    if inputs.prompts is None or not has_text(inputs):
        return found
    if names and not set(names) & set(inputs.prompts.present):
        raise UserError(
            f'no structure of the masks ({", ".join(names)}) is a class of the prompts '
            f'({", ".join(inputs.prompts.present)}); without --prompts the vectors come from train'
        )
    return found | image_text.settings(inputs.encoder) | dict(prompts=inputs.prompts._asdict())


def run(inputs: ProbeInputs) -> Result:
    begun = time.perf_counter()
    splits = structures.masked_splits(inputs)
    by_text = inputs.prompts is not None and has_text(inputs)
    splits, maps = of_prompts(inputs, splits) if by_text else of_prototypes(splits)
    test, names = splits.test, splits.test.names
    scale = _scale(maps['val'])  # maps differ in their range, and thresholds are tried in deviations of validation
    on_val, on_test = (scale(maps[split]) for split in ('val', 'test'))
    thresholds, _ = overlaps.best_thresholds(splits.val, on_val)
    found = overlaps.overlap(test, on_test, thresholds)
    pointing, signed, share = np.moveaxis(judge(test, on_test), 2, 0)
    bootstrap = inputs.options.bootstrap(test.patients)
    values = dict(pointing=pointing, cnr=np.abs(signed), signed_cnr=signed, dice=found.dice(), iou=found.iou())
    results: statistics.Results = {m: overlaps.rows(x, names, bootstrap) for m, x in values.items()}
    chance = overlaps.mean_over_patients(share, bootstrap).value
    for k, structure in enumerate(names):
        results['pointing'][structure]['chance'] = float(chance[k])
    results['pointing']['mean']['chance'] = float(np.nanmean(chance))
    content = splits.facts(inputs.seed, bootstrap) | dict(
        chosen=dict(
            similarity='to sentences' if by_text else 'to prototypes of train',
            chance=float(np.nanmean(chance)),
            by='thresholds of Dice: validation',
        ),
        results=results,
        thresholds=dict(zip(names, thresholds.tolist(), strict=True)),
        threshold_notes=splits.unjudged('its threshold is the mean of the maps'),
        seconds=round(time.perf_counter() - begun, 2),
    )
    return Result(content, overlaps.arrays(values, found, test))


def has_text(inputs: ProbeInputs) -> bool:
    """Whether the encoder has a text tower that shares its space."""
    return inputs.encoder.export is not None and bool(inputs.encoder.meta.get('pairs'))


Maps = dict[str, np.ndarray]  # split -> float32 [n,K,h,w]


def of_prototypes(splits: MaskedSplits) -> tuple[MaskedSplits, Maps]:
    """Similarities to the prototypes of train."""
    within, beside = prototypes(splits.train)
    direction = (within - beside).astype(np.float32)  # a difference of cosines is a product with the difference

    def similarity(patches: np.ndarray) -> np.ndarray:
        return unit(patches) @ direction.T

    return splits, {split: _maps(one, similarity) for split, one in splits.learning().items() if split != 'train'}


def prototypes(train: Masked) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float64 [K,D] of the patches inside and outside of each structure."""
    _, h, w, width = train.grid.shape
    sums = np.zeros((2, len(train.names), width))
    for i, planes in enumerate(train.planes()):
        rows, columns = train.axes(planes.shape[1:])
        shares, on_image = covered(planes, rows, columns, h)
        weights = np.stack([shares * on_image, (1 - shares) * on_image]).reshape(2, len(planes), h * w)
        sums += weights @ unit(np.asarray(train.grid[i], np.float64).reshape(h * w, width))
    return unit(sums[0]), unit(sums[1])


def of_prompts(inputs: ProbeInputs, splits: MaskedSplits) -> tuple[MaskedSplits, Maps]:
    """Cosines with sentences; structures without sentences are left out."""
    encoder, prompts = image_text.load(inputs.encoder), inputs.prompts
    assert prompts is not None
    kept = [k for k, structure in enumerate(splits.test.names) if structure in prompts.present]
    skipped = {structure: 'no prompt' for structure in splits.test.names if structure not in prompts.present}
    if not kept:
        raise UserError(f'masks of train and test show no structure that has sentences ({", ".join(prompts.present)})')
    train, val, test = (one.of(kept) for one in (splits.train, splits.val, splits.test))
    splits = splits._replace(train=train, val=val, test=test, skipped=splits.skipped | skipped)
    pools = {structure: prompts.present[structure] for structure in splits.test.names}
    vectors = np.stack([*zero_shot.class_vectors(pools, prompts.ensemble, encoder).values()])

    def similarity(patches: np.ndarray) -> np.ndarray:
        return unit(encoder.image_vectors(patches)) @ vectors.T

    return splits, {split: _maps(one, similarity) for split, one in splits.learning().items() if split != 'train'}


def _maps(records: Masked, similarity: Any) -> np.ndarray:
    """float32 [n,K,h,w]: similarity(features [n,h,w,D]) -> [n,h,w,K] of all records."""
    parts = []
    for start in range(0, len(records.grid), READ):
        x = np.asarray(records.grid[start : start + READ], np.float32)
        parts.append(np.moveaxis(similarity(x), -1, 1))
    return np.concatenate(parts).astype(np.float32)


def _scale(maps: np.ndarray) -> Any:
    """A function that takes mean and deviation of each structure's maps [n,K,h,w] out of others."""
    mean, std = maps.mean((0, 2, 3), keepdims=True), maps.std((0, 2, 3), keepdims=True)
    return lambda x: (x - mean) / np.where(std > 0, std, 1)


def judge(records: Masked, maps: np.ndarray) -> np.ndarray:
    """float64 [n,K,3]: pointing, signed CNR, and the share of pixels inside; nan where the mask shows nothing."""
    found = np.full((len(records.numbers), len(records.names), 3), np.nan)
    for i, planes in enumerate(records.planes()):
        rows, columns = records.axes(planes.shape[1:])
        shown = planes[:, inside(rows), inside(columns)]
        for k, (plane, values) in enumerate(zip(shown, on_pixels(maps[i], rows, columns), strict=True)):
            if plane.any():
                found[i, k] = plane.flat[values.argmax()], cnr(values, plane), plane.mean()
    return found


def cnr(values: np.ndarray, plane: np.ndarray) -> float:
    """The signed contrast-to-noise ratio of a map [H,W] with a structure bool [H,W]; nan without both kinds of pixels.

    A map with one value everywhere has no contrast: 0.
    """
    if plane.all() or not plane.any():
        return np.nan
    within, beside = values[plane].astype(np.float64), values[~plane].astype(np.float64)
    noise = np.sqrt(within.var() + beside.var())
    difference = within.mean() - beside.mean()
    return float(difference / max(noise, 1e-12))
