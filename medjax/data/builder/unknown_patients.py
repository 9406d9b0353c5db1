"""Gives images of unknown patients a surrogate patient id, one per cluster of near-duplicates.

So a cluster never spans two splits, where splits are drawn per patient. Images of one study are in one cluster, too.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medjax.data.audit import near_duplicates
from medjax.data.builder import chunks
from medjax.data.types import Source, Unreadable, patient_of


def assign_surrogate_patients(
    source: Source, make_source: Callable[[], Source] | None
) -> tuple[Source, Callable[[], Source] | None, list[str]]:
    """Returns the source with surrogate patients, its factory for worker processes, and notes for the user.

    Does nothing where the source gives its own splits. Otherwise it opens every image of the source once more.
    """
    unknown = [i for i, entry in enumerate(source.entries) if entry.patient is None and entry.origin is None]
    if len(unknown) < 2 or any(entry.split for entry in source.entries):
        return source, make_source, []
    surrogates = _surrogate_patients(source, unknown)
    note = (
        f'{len(unknown)} images name no patient. {len(surrogates)} of them are near-duplicates or of one study: they '
        f'form {len(set(surrogates.values()))} clusters, and each cluster is in one split. Other images of one person '
        'may still be in two splits'
    )
    changed_factory = make_source and functools.partial(_make_with_surrogates, make_source, surrogates)
    return _with_surrogates(source, surrogates), changed_factory, [note]


def _surrogate_patients(source: Source, unknown: list[int]) -> dict[int, str]:
    """Maps entries of unknown patients to a patient id, where their cluster has more than one image.

    The id is that of a known patient in the cluster. If there is none, it is 'group/<first image of the cluster>'. The
    drawn split depends on this text, so it must not change.
    """
    thumbs = _thumbnails(source)
    readable = np.array([i for i, thumb in enumerate(thumbs) if thumb is not None])
    if len(readable) < 2:
        return {}
    matches = near_duplicates.candidates(np.stack([thumb for thumb in thumbs if thumb is not None]))
    is_unknown = np.isin(readable, unknown)
    useful = is_unknown[matches.first] | is_unknown[matches.second]  # those of two known patients are left to the audit
    first, second = matches.first[useful], matches.second[useful]
    similarity = near_duplicates.pixel_similarities(
        first, second, lambda n: chunks.opened(source, int(readable[n]))[1].pixels
    )
    confirmed = similarity >= near_duplicates.SAME_PICTURE
    # images of one patient (of one study, where the patient is unknown) are in one cluster as well
    _, first_image, member = np.unique(
        [patient_of(source.entries[i]) for i in readable], return_index=True, return_inverse=True
    )
    cluster = near_duplicates.clusters(
        np.concatenate([first[confirmed], first_image[member]]),
        np.concatenate([second[confirmed], np.arange(len(readable))]),
        len(readable),
    )
    size = np.bincount(cluster, minlength=len(readable))
    known_patient = {cluster[n]: source.entries[readable[n]].patient for n in np.flatnonzero(~is_unknown)[::-1]}
    return {
        int(readable[n]): known_patient.get(cluster[n]) or f'group/{source.entries[readable[cluster[n]]].image}'
        for n in np.flatnonzero(is_unknown & (size[cluster] > 1))
    }


def _thumbnails(source: Source) -> list[np.ndarray | None]:
    """The thumbnail of each entry; None where the image is unreadable (the build sets it aside later)."""
    from tqdm import tqdm

    def thumbnail(i: int) -> np.ndarray | None:
        try:
            return near_duplicates.thumbnail(chunks.opened(source, i)[1].pixels)
        except Unreadable:
            return None

    numbers = range(len(source.entries))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        thumbs = pool.map(thumbnail, numbers)
        return list(tqdm(thumbs, 'looking for near-duplicates', len(numbers), unit=' images', disable=None))


def _with_surrogates(source: Source, surrogates: Mapping[int, str]) -> Source:
    entries = [
        entry._replace(patient=surrogates[i]) if i in surrogates else entry for i, entry in enumerate(source.entries)
    ]
    return source._replace(entries=entries)


def _make_with_surrogates(make_source: Callable[[], Source], surrogates: Mapping[int, str]) -> Source:
    return _with_surrogates(make_source(), surrogates)
