"""Splits by patient: a given split is checked, a missing one is drawn from the patient's id."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from medjax.data.sources import Entry
from medjax.errors import UserError

NAMES = ('train', 'val', 'test')
FRACTIONS = (0.7, 0.1, 0.2)
SEED = 0


def assign(entries: Sequence[Entry], namespace: str) -> list[str]:
    """The split of each entry: as given, if no patient is in two of them; else drawn per patient."""
    if all(entry.split is None for entry in entries):
        return [draw(namespace, patient(entry)) for entry in entries]
    given = [str(entry.split) for entry in entries]
    if unknown := sorted(set(given) - set(NAMES)):
        raise UserError(f'unknown split {", ".join(map(repr, unknown))}; use train, val or test for every image')
    check([patient(entry) for entry in entries], given)
    return given


def patient(entry: Entry) -> str:
    """Its patient's id; an image of which nobody is known is a patient of its own."""
    return f'image/{entry.image}' if entry.patient is None else entry.patient


def draw(namespace: str, patient: str, seed: int = SEED) -> str:
    """A split by u = sha256('seed:namespace:patient') / 2^256: train below .7, val below .8, else test.

    It depends on nothing else, so a patient keeps the split when the data set grows, and on every machine.
    """
    digest = hashlib.sha256(f'{seed}:{namespace}:{patient}'.encode()).digest()
    u = int.from_bytes(digest[:8], 'big') / 2**64
    train, val, _ = FRACTIONS
    return 'train' if u < train else 'val' if u < train + val else 'test'


def check(patients: Sequence, split: Sequence[str]) -> None:
    """Raises UserError where a patient is in more than one split."""
    seen = defaultdict(set)
    for patient, name in zip(patients, split, strict=True):
        seen[patient].add(name)
    mixed = [frozenset(names) for names in seen.values() if len(names) > 1]
    if mixed:
        pairs = ', '.join(
            f'{mixed.count(names)} in {" and ".join(n for n in NAMES if n in names)}'
            for names in sorted(set(mixed), key=sorted)
        )
        raise UserError(
            f'{len(mixed)} of {len(seen)} patients are in more than one split ({pairs}); give all images of a patient '
            'one split, or leave the split column out (or blank) and medjax draws one per patient'
        )
