"""Images without a patient: near-duplicates, and what is of one study, count as one patient where splits are drawn."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medjax.data.audit import near_duplicates
from medjax.data.builder import chunks
from medjax.data.types import Source, Unreadable, patient_of


def of_near_duplicates(
    source: Source, again: Callable[[], Source] | None
) -> tuple[Source, Callable[[], Source] | None, list[str]]:
    """The source, and what makes it again, with one invented patient for each group of near-duplicates among images
    without a patient; and what to say of it. Only where splits are to be drawn: it opens every image once more."""
    unknown = [i for i, entry in enumerate(source.entries) if entry.patient is None and entry.origin is None]
    if len(unknown) < 2 or any(entry.split for entry in source.entries):
        return source, again, []
    named = _groups(source, unknown)
    note = (
        f'{len(unknown)} images name no patient: {len(named)} of them are near-duplicates or of one study, in '
        f'{len(set(named.values()))} groups that are each in one split; people may still be in two'
    )
    return _renamed(source, named), again and functools.partial(_again, again, named), [note]


def _groups(source: Source, unknown: list[int]) -> dict[int, str]:
    """Entry without a patient -> the patient of an image that it repeats, or 'group/<the group's first image>', where
    the group has more than the entry."""
    from tqdm import tqdm

    everyone = range(len(source.entries))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(
            pool.map(lambda i: _thumbnail(source, i), everyone), 'looking for near-duplicates', len(everyone),
            unit=' images', disable=None,
        )  # fmt: skip
        thumbs = list(bar)
    readable = np.array([i for i, thumb in zip(everyone, thumbs, strict=True) if thumb is not None])
    if len(readable) < 2:
        return {}
    pairs = near_duplicates.candidates(np.stack([thumb for thumb in thumbs if thumb is not None]))
    nobody = np.isin(readable, unknown)
    asked = nobody[pairs.first] | nobody[pairs.second]  # of two known patients it is the audit that tells
    first, second = pairs.first[asked], pairs.second[asked]
    agreed = near_duplicates.agreed(first, second, lambda n: chunks.opened(source.load(int(readable[n]))))
    kept = agreed >= near_duplicates.ALIKE
    # an image is also with its patient's others, or with those of its study where nobody is known
    _, head, member = np.unique(
        [patient_of(source.entries[i]) for i in readable], return_index=True, return_inverse=True
    )
    group = near_duplicates.groups(
        np.concatenate([first[kept], head[member]]),
        np.concatenate([second[kept], np.arange(len(readable))]),
        len(readable),
    )
    size = np.bincount(group, minlength=len(readable))
    patient = {group[n]: source.entries[readable[n]].patient for n in np.flatnonzero(~nobody)[::-1]}
    return {
        int(readable[n]): patient.get(group[n]) or f'group/{source.entries[readable[group[n]]].image}'
        for n in np.flatnonzero(nobody & (size[group] > 1))
    }


def _thumbnail(source: Source, i: int) -> np.ndarray | None:
    try:
        return near_duplicates.thumbnail(chunks.opened(source.load(i)))
    except Unreadable:  # set aside when it is written
        return None


def _renamed(source: Source, named: Mapping[int, str]) -> Source:
    entries = [entry._replace(patient=named[i]) if i in named else entry for i, entry in enumerate(source.entries)]
    return source._replace(entries=entries)


def _again(again: Callable[[], Source], named: Mapping[int, str]) -> Source:
    return _renamed(again(), named)
