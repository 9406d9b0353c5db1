"""Images without a patient: near-duplicates, and what is of one study, count as one patient where splits are drawn."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medjax.data import chunks, similar
from medjax.data.sources import Source, Unreadable


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
    """Entry -> 'group/<its first image>' for the entries that have a near-duplicate."""
    from tqdm import tqdm

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(
            pool.map(lambda i: _thumbnail(source, i), unknown), 'looking for near-duplicates', len(unknown),
            unit=' images', disable=None,
        )  # fmt: skip
        thumbs = list(bar)
    readable = np.array([i for i, thumb in zip(unknown, thumbs, strict=True) if thumb is not None])
    if len(readable) < 2:
        return {}
    pairs = similar.candidates(np.stack([thumb for thumb in thumbs if thumb is not None]))
    load = functools.lru_cache(64)(lambda i: chunks.opened(source.load(int(readable[i]))))
    alike = [similar.agree(load(a), load(b)) >= similar.ALIKE for a, b in zip(pairs.first, pairs.second, strict=True)]
    kept = np.asarray(alike, bool)
    _, head, study = np.unique(
        [source.entries[i].study for i in readable], return_index=True, return_inverse=True
    )  # its first image stands for a study
    everyone = np.arange(len(readable))
    first = similar.groups(
        np.concatenate([pairs.first[kept], head[study]]), np.concatenate([pairs.second[kept], everyone]), len(readable)
    )
    several = np.bincount(first, minlength=len(readable)) > 1
    return {int(readable[i]): f'group/{source.entries[readable[g]].image}' for i, g in enumerate(first) if several[g]}


def _thumbnail(source: Source, i: int) -> np.ndarray | None:
    try:
        return similar.thumbnail(chunks.opened(source.load(i)))
    except Unreadable:  # set aside when it is written
        return None


def _renamed(source: Source, named: Mapping[int, str]) -> Source:
    entries = [entry._replace(patient=named[i]) if i in named else entry for i, entry in enumerate(source.entries)]
    return source._replace(entries=entries)


def _again(again: Callable[[], Source], named: Mapping[int, str]) -> Source:
    return _renamed(again(), named)
