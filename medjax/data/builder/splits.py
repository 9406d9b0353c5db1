"""Splits by patient: checks given splits, or draws missing ones from the patients' ids, stratified on request."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from medjax.data.types import SPLIT_NAMES, Source, patient_of
from medjax.errors import UserError, suggest

FRACTIONS = (0.7, 0.1, 0.2)  # of train, val and test
SEED = 0


def assign(source: Source, stratify: Sequence[str] = ()) -> list[str]:
    """The split of each entry: the given one, if no patient is in two splits; otherwise drawn per patient.

    stratify: names of labels. Each drawn split then has the same share of images where such a label is positive.
    """
    entries = source.entries
    namespace = source.namespace if source.draw_namespace is None else source.draw_namespace
    for name in stratify:
        if name not in source.labels:
            raise UserError(f'--stratify: there is no label {name!r}{suggest(name, source.labels)}')
    if all(entry.split is None for entry in entries):
        if not stratify:
            return [draw(namespace, patient_of(entry)) for entry in entries]
        columns = [source.labels.index(name) for name in stratify]
        positive = np.array([[source.label(i)[k] == 1 for k in columns] for i in range(len(entries))])
        return draw_stratified(namespace, [patient_of(entry) for entry in entries], positive)
    if stratify:
        raise UserError('--stratify: this source gives its own splits; add --split drawn to draw new ones')
    given = [str(entry.split) for entry in entries]
    if unknown := sorted(set(given) - set(SPLIT_NAMES)):
        raise UserError(f'unknown split {", ".join(map(repr, unknown))}; use train, val or test for every image')
    # a study of an unknown patient may be in two splits: the audit reports it
    named = [(entry, split) for entry, split in zip(entries, given, strict=True) if entry.patient or entry.origin]
    check([patient_of(entry) for entry, _ in named], [split for _, split in named])
    return given


def draw(namespace: str, patient: str, seed: int = SEED) -> str:
    """Draws a split from u = sha256('seed:namespace:patient') / 2^256: train below .7, val below .8, else test.

    `namespace` is `Source.draw_namespace`. The split depends on nothing else. So a patient keeps it when the data set
    grows, on every machine, and whatever the folder is called.
    """
    u = _uniform(namespace, patient, seed)
    train, val, _ = FRACTIONS
    return 'train' if u < train else 'val' if u < train + val else 'test'


def draw_stratified(namespace: str, patients: Sequence[str], positive: np.ndarray, seed: int = SEED) -> list[str]:
    """Draws a split of each image, whole patients at a time: FRACTIONS of the images and of each label's positives.

    positive: bool [n,L], images by labels.

    Iterative stratification (Sechidis et al., ECML 2011) over patients. It takes the label with the fewest positives
    left, and puts each patient with this label into the split that still needs most of its positives; among equal
    splits, into the one that needs most images. The patients come in the order of the hash of `draw`, so the result is
    the same on every machine. Unlike `draw`, it depends on the whole data set.
    """
    names, member = np.unique(np.asarray(patients), return_inverse=True)
    images = np.bincount(member, minlength=len(names)).astype(float)
    positives = np.stack([np.bincount(member, column, len(names)) for column in positive.T], 1)  # [patients,L]
    order = np.argsort([_uniform(namespace, str(name), seed) for name in names], kind='stable')
    needed = np.outer(FRACTIONS, [*positives.sum(0), images.sum()])  # [splits,L+1]; the last column counts all images
    split_of_patient = np.full(len(names), -1)
    while (free := order[split_of_patient[order] < 0]).size:
        left = positives[free].sum(0)
        label = int(np.argmin(np.where(left > 0, left, np.inf))) if (left > 0).any() else -1
        for p in free if label < 0 else free[positives[free, label] > 0]:
            best = np.flatnonzero(needed[:, label] == needed[:, label].max())
            split = best[np.argmax(needed[best, -1])]
            split_of_patient[p] = split
            needed[split] -= [*positives[p], images[p]]
    return [SPLIT_NAMES[split] for split in split_of_patient[member]]


def _uniform(namespace: str, patient: str, seed: int) -> float:
    digest = hashlib.sha256(f'{seed}:{namespace}:{patient}'.encode()).digest()
    return int.from_bytes(digest[:8], 'big') / 2**64


def check(patients: Sequence, splits: Sequence[str]) -> None:
    """Raises UserError where a patient is in more than one split."""
    splits_of = defaultdict(set)
    for patient, split in zip(patients, splits, strict=True):
        splits_of[patient].add(split)
    mixed = [frozenset(names) for names in splits_of.values() if len(names) > 1]
    if mixed:
        counts = ', '.join(
            f'{mixed.count(names)} in {" and ".join(n for n in SPLIT_NAMES if n in names)}'
            for names in sorted(set(mixed), key=sorted)
        )
        raise UserError(
            f'{len(mixed)} of {len(splits_of)} patients are in more than one split ({counts}); give all images of a '
            'patient one split, or add --split drawn: then medjax draws a split for each patient'
        )
