"""Whether the scores of a label probe can be trusted: calibration, conformal sets, certainty curves and subgroups.

Everything is fitted on the calibrating half of validation (`medjax.probes.halves`) and computed once on test. Without
scores or enough patients there, the result says why calibration is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medjax.probes import aggregate, calibration, calibration_errors, conformal, policy, retained, subgroups
from medjax.probes.aggregate import Units
from medjax.probes.halves import FEWEST
from medjax.probes.label_splits import LabelSplits
from medjax.probes.statistics import Bootstrap

if TYPE_CHECKING:
    from medjax.probes.evaluate import Options, Scores

Arrays = dict[str, np.ndarray]


def judge(
    scores: Scores,
    splits: LabelSplits,
    test: Units,
    thresholds: Mapping[str, np.ndarray],
    bootstrap: Bootstrap,
    options: Options,
) -> tuple[dict[str, Any], Arrays]:
    """(further keys of a result, further arrays) from scores and the units of test."""
    columns = [subgroups.column(name, test.columns, test.patients) for name in options.groups]
    found: dict[str, Any] = {}
    chosen = thresholds.get('balanced_accuracy')
    found['subgroups'] = subgroups.judge(test, columns, splits.names, chosen, bootstrap)
    calibrating, why = _calibrating(scores, splits, options)
    arrays: Arrays = {}
    if calibrating is None:
        found['calibration'] = dict(left_out=why)
        stated = calibration.probability(test.scores, scores.scale)
        if stated is not None:
            found['retained'] = dict(certainty='probe') | retained.curves(stated, test.labels, splits.names)
        return found, arrays
    labels = [j for j in range(len(splits.names)) if policy.known(calibrating.labels[:, j]).any()]
    names = tuple(splits.names[j] for j in labels)
    test, calibrating = _with_labels(test, labels), _with_labels(calibrating, labels)
    probabilities, width = _probabilities(calibrating, test, scores.scale)
    groups = {(one.name, group): members for one in columns for group, members in one.groups.items()}
    found['calibration'] = splits.whole_val.halves.facts(splits.whole_val.cases.patient) | dict(
        labels=list(names),
        bins=calibration_errors.BINS,
        results={
            name: calibration_errors.errors(p, test.labels, names, bootstrap) for name, p in probabilities.items()
        },
        venn_abers_width={name: float(width[:, j].mean()) for j, name in enumerate(names)},
    )
    found['conformal'] = conformal.judge(test, calibrating, names, scores.scale, bootstrap, groups)
    found['retained'] = dict(certainty='platt') | retained.curves(probabilities['platt'], test.labels, names)
    arrays['reliability'] = np.stack([calibration_errors.reliability(p, test.labels) for p in probabilities.values()])
    arrays['reliability_maps'], arrays['reliability_labels'] = np.array(list(probabilities)), np.array(names)
    return found, arrays


def _calibrating(scores: Scores, splits: LabelSplits, options: Options) -> tuple[Units | None, str]:
    """(the units of the calibrating half, '') or (None, why there are none)."""
    whole = splits.whole_val
    if scores.val is None or whole is None:
        return None, 'the probe has no scores of a validation split'
    units = aggregate.pool(scores.val, whole.halves.calibrating(whole.labels), whole.cases, options.pool)
    if policy.known(units.labels).any():
        return units, ''
    first = next((f'{name}: {whole.halves.reasons[name]}' for name in splits.names if name in whole.halves.reasons), '')
    return None, f'no label has {FEWEST} patients of each class in each half of validation ({first})'


def _with_labels(units: Units, labels: list[int]) -> Units:
    return units._replace(scores=units.scores[:, labels], labels=units.labels[:, labels])


def _probabilities(calibrating: Units, test: Units, scale: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """({map: float64 [n,L]}, the width [n,L] of Venn-Abers): test probabilities before and after each map."""
    found: dict[str, list[np.ndarray]] = {}
    widths = []
    for j, known in enumerate(policy.known(calibrating.labels).T):
        scores, labels, new = calibrating.scores[known, j], calibrating.labels[known, j], test.scores[:, j]
        pairs = calibration.venn_abers(scores, labels)
        maps = dict(platt=calibration.platt(scores, labels), isotonic=calibration.isotonic(scores, labels))
        if scale != 'any':
            found.setdefault('none', []).append(calibration.probability(new, scale))
            maps = dict(temperature=calibration.temperature(scores, labels, scale)) | maps
        for name, function in (maps | dict(venn_abers=pairs.probability)).items():
            found.setdefault(name, []).append(function(new))
        widths.append(pairs.width(new))
    return {name: np.stack(columns, 1) for name, columns in found.items()}, np.stack(widths, 1)
