"""Segmentation from frozen patches: trains a decoder, chooses on validation, judges at the resolution of the masks."""

from __future__ import annotations

import time

import numpy as np

from medjax.errors import UserError
from medjax.probes import decoders, overlaps, structures
from medjax.probes.decoders import Decoder
from medjax.probes.evaluate import ProbeInputs, Result


def run(inputs: ProbeInputs, decoder: Decoder, steps: int) -> Result:
    """The result of a probe with this decoder.

    Validation chooses the rate by the mean Dice over structures, each at its best threshold, and these thresholds. Of
    equally good rates the first is taken. A structure that validation does not show has the threshold 0.
    """
    begun = time.perf_counter()
    splits = structures.masked_splits(inputs)
    trained = decoders.fit(decoder, splits.train, inputs.seed, steps)
    tried = []
    for r, rate in enumerate(decoders.RATES):
        on_val = np.stack([*trained.log_odds(splits.val.grid, r)])
        finite = bool(np.isfinite(on_val).all())  # a rate may be too great
        thresholds, dice = overlaps.best_thresholds(splits.val, on_val) if finite else (None, np.array([np.nan]))
        mean = float(np.nanmean(dice)) if np.isfinite(dice).any() else None
        tried.append((rate, thresholds, mean))
    best = max(range(len(tried)), key=lambda r: (tried[r][1] is not None, tried[r][2] or 0.0, -r))
    rate, thresholds, dice = tried[best]
    if thresholds is None:
        raise UserError('the decoder diverged with every rate; the features are probably of very unequal size')
    test = splits.test
    found = overlaps.overlap(test, trained.log_odds(test.grid, best), thresholds)
    bootstrap = inputs.options.bootstrap(test.patients)
    content = splits.facts(inputs.seed, bootstrap) | dict(
        chosen=dict(rate=rate, validation_dice=dice, steps=steps, by='mean Dice over structures on validation'),
        results=overlaps.results(found, test.names, bootstrap),
        thresholds=dict(zip(test.names, thresholds.tolist(), strict=True)),
        threshold_notes=splits.unjudged('its threshold is log-odds of 0'),
        details=dict(grid=[dict(rate=rate, validation_dice=dice) for rate, _, dice in tried]),
        seconds=round(time.perf_counter() - begun, 2),
    )
    return Result(content, overlaps.arrays(overlaps.measures(found), found, test))
