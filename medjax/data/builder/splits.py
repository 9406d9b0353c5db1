"""Splits by patient: a given split is checked, a missing one is drawn from the patient's id, stratified where asked."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from medjax.data.types import SPLIT_NAMES, Source, patient_of
from medjax.errors import UserError, suggest

FRACTIONS = (0.7, 0.1, 0.2)
SEED = 0


def assign(source: Source, stratify: Sequence[str] = ()) -> list[str]:
    """The split of each entry: as given, if no patient is in two of them; else drawn per patient.

    With `stratify`, names of labels, a drawn split has the same shares of their positive images in each part.
    """
    entries, space = source.entries, source.namespace
    for name in stratify:
        if name not in source.labels:
            raise UserError(f'--stratify: there is no label {name!r}{suggest(name, source.labels)}')
    if all(entry.split is None for entry in entries):
        if not stratify:
            return [draw(space, patient_of(entry)) for entry in entries]
        columns = [source.labels.index(name) for name in stratify]
        positive = np.array([[source.label(i)[k] == 1 for k in columns] for i in range(len(entries))])
        return draw_stratified(space, [patient_of(entry) for entry in entries], positive)
    if stratify:
        raise UserError('--stratify: this source has splits of its own; add --split drawn to draw others')
    given = [str(entry.split) for entry in entries]
    if unknown := sorted(set(given) - set(SPLIT_NAMES)):
        raise UserError(f'unknown split {", ".join(map(repr, unknown))}; use train, val or test for every image')
    named = [(entry, split) for entry, split in zip(entries, given, strict=True) if entry.patient or entry.origin]
    check([patient_of(entry) for entry, _ in named], [split for _, split in named])  # the audit tells of torn studies
    return given


def draw(namespace: str, patient: str, seed: int = SEED) -> str:
    """A split by u = sha256('seed:namespace:patient') / 2^256: train below .7, val below .8, else test.

    It depends on nothing else, so a patient keeps the split when the data set grows, and on every machine.
    """
    u = _uniform(namespace, patient, seed)
    train, val, _ = FRACTIONS
    return 'train' if u < train else 'val' if u < train + val else 'test'


def draw_stratified(namespace: str, patients: Sequence[str], positive: np.ndarray, seed: int = SEED) -> list[str]:
    """A split of each image, whole patients at a time, with FRACTIONS of the images and of each label's positives.

    Iterative stratification (Sechidis et al., ECML 2011) over patients: of the label with the fewest positives left,
    each patient goes where most of it is still wanted, then where most images are; patients come in the order of the
    hash that `draw` uses, so that it is the same on every machine. Unlike `draw` it depends on all of the data set.
    positive: bool [n,L].
    """
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    images = np.bincount(member, minlength=len(names)).astype(float)
    has = np.stack([np.bincount(member, column, len(names)) for column in positive.T], 1)  # [patients,L]
    order = np.argsort([_uniform(namespace, str(name), seed) for name in names], kind='stable')
    wanted = np.outer(FRACTIONS, [*has.sum(0), images.sum()])  # [splits,L+1], the last column all images
    of_patient = np.full(len(names), -1)
    while (free := order[of_patient[order] < 0]).size:
        left = has[free].sum(0)
        label = int(np.argmin(np.where(left > 0, left, np.inf))) if (left > 0).any() else -1
        for p in free if label < 0 else free[has[free, label] > 0]:
            want = wanted[:, label]
            best = np.flatnonzero(want == want.max())
            part = best[np.argmax(wanted[best, -1])]
            of_patient[p] = part
            wanted[part] -= [*has[p], images[p]]
    return [SPLIT_NAMES[part] for part in of_patient[member]]


def _uniform(namespace: str, patient: str, seed: int) -> float:
    digest = hashlib.sha256(f'{seed}:{namespace}:{patient}'.encode()).digest()
    return int.from_bytes(digest[:8], 'big') / 2**64


def check(patients: Sequence, split: Sequence[str]) -> None:
    """Raises UserError where a patient is in more than one split."""
    seen = defaultdict(set)
    for patient, name in zip(patients, split, strict=True):
        seen[patient].add(name)
    mixed = [frozenset(names) for names in seen.values() if len(names) > 1]
    if mixed:
        pairs = ', '.join(
            f'{mixed.count(names)} in {" and ".join(n for n in SPLIT_NAMES if n in names)}'
            for names in sorted(set(mixed), key=sorted)
        )
        raise UserError(
            f'{len(mixed)} of {len(seen)} patients are in more than one split ({pairs}); give all images of a patient '
            'one split, or leave the split column out (or blank) and medjax draws one per patient'
        )
