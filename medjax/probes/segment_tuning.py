"""Probes that train a decoder of structures with the encoder, and judge the export as probes of frozen patches.

The export says in `decoders` of meta.json which of its arrays draw structures: the log-odds of cells. Exports are
compared by the mean Dice over structures on validation, each at its best threshold. The best one is judged on test with
these thresholds, at the resolution of the masks (`overlaps.py`). If no record of validation has a mask, the last export
is judged, with thresholds of 0: it has learned from all records of train, so none of these can choose.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import time
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from einops import rearrange

from medjax.errors import UserError
from medjax.models import build as models, passes
from medjax.probes import decoders, encode, overlaps, structures
from medjax.probes.encode import Encoder
from medjax.probes.evaluate import ProbeInputs, Result
from medjax.probes.label_splits import reasons
from medjax.probes.structures import Masked
from medjax.probes.tuning import Tuning
from medjax.types import Tree


class SegmentTuning(Tuning):
    """A probe that trains a recipe of structures from the encoder that it evaluates."""

    figure: ClassVar[str] = 'mean Dice over structures'

    def check_data(self, inputs: ProbeInputs) -> dict[str, Any]:
        return structures.requirements(inputs)

    def of_data(self, inputs: ProbeInputs) -> dict[str, Any]:
        """As many cells as the probe `segmentation_decoder` has, but none smaller than a pixel."""
        rows, size = encode.grid_shape(inputs.encoder, inputs.data)[0], inputs.encoder.size
        return {'towers.decoder.factor': min(decoders.factor_of(rows), size // rows)}

    def on_validation(self, inputs: ProbeInputs) -> float | None:
        names, drawing = _drawing(inputs)
        val = _drawn(drawing, 'val', names)
        if val is None:
            return None
        dice = overlaps.best_thresholds(val.records, val.log_odds)[1]
        return float(np.nanmean(dice)) if np.isfinite(dice).any() else None

    def judge(self, inputs: ProbeInputs) -> Result:
        return judge(inputs)


class Drawn(NamedTuple):
    """The records of a split that have a mask, and what a decoder draws of them."""

    records: Masked  # with the structures that the decoder draws
    log_odds: np.ndarray  # float32 [n,K,h,w]

    def of(self, kept: list[int]) -> Drawn:
        """The same, with some of the structures."""
        return Drawn(self.records.of(kept), self.log_odds[:, kept])


def judge(inputs: ProbeInputs) -> Result:
    """The overlap of the masks of test with what the decoder of an export draws; thresholds are those of validation."""
    begun, data = time.perf_counter(), inputs.data
    names, drawing = _drawing(inputs)
    val, test = _drawn(drawing, 'val', names), _drawn(drawing, 'test', names)
    if test is None:
        raise UserError(f'{data.name}: no record of test has a mask')
    skipped = {name: 'the decoder does not draw it' for name in data.structures if name not in names}
    shown = test.records.present.any(0)
    skipped |= {name: 'no record of test shows it' for name, there in zip(test.records.names, shown) if not there}
    if not shown.any():
        raise UserError(f'{data.name}: no structure of the decoder can be judged ({reasons(skipped)})')
    kept = np.flatnonzero(shown).tolist()
    test, val = test.of(kept), None if val is None else val.of(kept)
    structure_names = test.records.names
    thresholds, dice, notes = np.zeros(len(kept)), np.full(len(kept), np.nan), {}
    if val is not None:
        thresholds, dice = overlaps.best_thresholds(val.records, val.log_odds)
    for name, unknown in zip(structure_names, np.isnan(dice), strict=True):
        if unknown:
            notes[name] = 'no record of validation shows it; its threshold is log-odds of 0'
    found = overlaps.overlap(test.records, test.log_odds, thresholds)
    bootstrap = inputs.options.bootstrap(test.records.patients)
    sizes = {split: len(one.records.numbers) for split, one in (('val', val), ('test', test)) if one is not None}
    content = dict(
        records=sizes,
        without_mask={split: data.splits[split] - size for split, size in sizes.items()},
        validation='nothing is chosen: no record of val has a mask' if val is None else 'the val split',
        seed=inputs.seed,
        rows='structure',
        skipped_labels=skipped,
        bootstrap=bootstrap.facts(),
        chosen=dict(validation_dice=float(np.nanmean(dice)) if np.isfinite(dice).any() else None),
        results=overlaps.results(found, structure_names, bootstrap),
        thresholds=dict(zip(structure_names, thresholds.tolist(), strict=True)),
        threshold_notes=notes,
        details={},
        seconds=round(time.perf_counter() - begun, 2),
    )
    return Result(content, overlaps.arrays(overlaps.measures(found), found, test.records))


def _drawn(drawing: ProbeInputs, split: str, names: list[str]) -> Drawn | None:
    """What an encoder of `_drawing` draws of a split; None if no record of it has a mask."""
    if not drawing.data.splits.get(split):
        return None
    records = structures.masked(drawing, split)
    if not len(records.numbers):
        return None
    kept = [k for k, name in enumerate(records.names) if name in names]
    outputs = [names.index(records.names[k]) for k in kept]
    grid = np.asarray(records.grid[: len(records.numbers)], np.float32)
    return Drawn(records.of(kept), rearrange(grid[..., outputs], 'n h w k -> n k h w'))


def _drawing(inputs: ProbeInputs) -> tuple[list[str], ProbeInputs]:
    """The structures that the decoder of an export draws, and the inputs with an encoder whose patches they are.

    The grid of this encoder has the cells of the decoder, and the features of a cell are log-odds.
    """
    encoder = inputs.encoder
    there = encoder.export or dict(towers={}, heads={})
    listed = encoder.meta.get('decoders') or ()
    held = [one for one in listed if one['tower'] in there['towers'] and one['head'] in (None, *there['heads'])]
    told = held[0] if held else None
    if told is None:
        raise UserError(
            f'{encoder.folder}: the export has no decoder of structures; a recipe exports one if its `export` names '
            "tower and head: towers=['image', 'decoder'], heads=['classifier']"
        )
    settings = json.dumps([told, {key: encoder.meta[key] for key in ('towers', 'heads', 'image')}], sort_keys=True)
    digest = hashlib.sha256(f'{encoder.digest} {encoder.weights} {settings}'.encode()).hexdigest()[:32]
    forward = _forward(settings)
    drawing: Encoder = dataclasses.replace(encoder, digest=digest, params=encoder.export, forward=forward)
    return list(told['names']), dataclasses.replace(inputs, encoder=drawing)


@functools.cache  # the exports of a training share one function, so it is compiled once
def _forward(settings: str) -> encode.Forward:
    """(params, images, outputs) -> the log-odds of cells [B,h,w,K] as `patches`."""
    told, meta = json.loads(settings)
    towers = models.towers(meta['towers'], meta['image']['channels'])
    last = passes.image_pass(told['tower'], towers)

    def forward(params: Tree, images: jax.Array, outputs: Collection[str]) -> dict[str, jax.Array]:
        out: Mapping[str, Any] = passes.encode_images(told['tower'], towers, params['towers'], images, [told['output']])
        x = out[told['output']][:, 0]
        if x.ndim == 3:  # patches
            rows, _ = passes.patch_towers(last, towers)['image'].grid(images.shape[1:3])
            x = rearrange(x, 'b (h w) d -> b h w d', h=rows)
        if name := told['head']:
            x = models.head(meta['heads'][name], x.shape[-1], f'heads.{name}').apply(params['heads'][name], x)
        found = dict(cls=out['cls'][:, 0], layers=out['cls'], patches=x)
        return {name: y for name, y in found.items() if name in outputs}

    return forward
