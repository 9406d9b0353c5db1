"""Divides validation into two halves by patient: one chooses settings and thresholds, the other calibrates.

A calibration that is fitted on the records that chose the settings looks better than it is. So half of the patients
choose, the other half calibrates probabilities and conformal sets, and test is looked at once.

The half of a patient is a bit of sha256(seed:key), with the hashed key of the patient. So it does not depend on other
patients, on the order of records, on the encoder or on the probe.

A rare label would lose half of the few records that choose its threshold. So a label is divided only if each half has
at least FEWEST patients with it and FEWEST without it. Any other label keeps all of validation for its choices and is
not calibrated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.types import BLANK
from medjax.probes import policy

FEWEST = 10  # patients of each class in each half


class Halves(NamedTuple):
    """The division of n validation records with L labels."""

    chooses: np.ndarray  # bool [n,L]: the label of this record may be used for choices
    calibrates: np.ndarray  # bool [n,L]: it may be used for calibration; no label has both
    reasons: dict[str, str]  # the labels that are not calibrated, each with the reason

    def choosing(self, labels: np.ndarray) -> np.ndarray:
        """The labels int8 [n,L] as the choosing half sees them: those of the other half are unknown."""
        return np.where(self.chooses, labels, BLANK).astype(np.int8)

    def calibrating(self, labels: np.ndarray) -> np.ndarray:
        """The labels int8 [n,L] as the calibrating half sees them."""
        return np.where(self.calibrates, labels, BLANK).astype(np.int8)

    def with_labels(self, kept: list[int]) -> Halves:
        """The division of the labels of these numbers."""
        return self._replace(chooses=self.chooses[:, kept], calibrates=self.calibrates[:, kept])

    def facts(self, patients: np.ndarray) -> dict[str, Any]:
        """The division, for the result's JSON."""
        used = self.calibrates.any(1)
        return dict(
            calibrating_patients=len(np.unique(patients[used])),
            calibrating_records=int(used.sum()),
            by='sha256 of seed and hashed patient: half of the patients of validation choose, the others calibrate',
            not_calibrated=self.reasons,
        )


def divide(labels: np.ndarray, patients: np.ndarray, names: Sequence[str], seed: int) -> Halves:
    """Divides records with labels int8 [n,L] and hashed patient keys uint64 [n]."""
    first = in_first_half(patients, seed)
    calibrates, reasons = np.zeros(labels.shape, bool), {}
    for j, name in enumerate(names):
        if reason := _too_few(labels[:, j], patients, first):
            reasons[name] = reason
        else:
            calibrates[:, j] = ~first & policy.known(labels[:, j])
    divided = np.array([name not in reasons for name in names], bool)
    return Halves(np.where(divided, first[:, None], True), calibrates, reasons)


def in_first_half(patients: np.ndarray, seed: int) -> np.ndarray:
    """bool [n]: True for the records of patients that choose."""
    keys, number = np.unique(patients, return_inverse=True)
    bits = [hashlib.sha256(f'{seed}:{int(key):016x}'.encode()).digest()[0] < 128 for key in keys]
    return np.array(bits, bool)[number]


def _too_few(labels: np.ndarray, patients: np.ndarray, first: np.ndarray) -> str:
    """Why one label [n] is not divided; '' if it is."""
    for half, name in ((first, 'choosing'), (~first, 'calibrating')):
        for value, kind in ((1, 'positive'), (0, 'negative')):
            count = len(np.unique(patients[half & (labels == value)]))
            if count < FEWEST:
                return f'{count} patient(s) with a {kind} record in the {name} half of validation, of {FEWEST} needed'
    return ''
