"""What a run was trained on, as hashes that a later evaluation can compare with."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from medjax import files
from medjax.data.audit import near_duplicates
from medjax.data.records import DataSet, Split


def write_seen(datasets: Mapping[str, DataSet], path: str | os.PathLike) -> None:
    """Writes what a run on the train splits of `datasets` sees, as sorted hashes without order or content.

    Arrays: patient, image, pixels uint64, each sorted and unique (image has the origins too); patient/key and
    image/key: which of `keys` (the fingerprints of the id keys) hashed it; hash uint8 [n,32], perceptual; split. Equal
    data give an equal file.
    """
    trained = {name: data.split('train') for name, data in datasets.items()}
    keys = sorted({data.key_fingerprint for data in datasets.values()})
    arrays = {'keys': np.array(keys), 'split': np.array(['train'])}
    for kind in ('patient', 'image'):
        own = {key: [s for s in trained.values() if s.data.key_fingerprint == key] for key in keys}
        hashes = [_unique(h[h != 0] for s in own[key] for h in ids(s, kind)) for key in keys]
        owner = np.repeat(np.arange(len(keys), dtype=np.uint8), [len(part) for part in hashes])
        order = np.argsort(np.concatenate(hashes), kind='stable')
        arrays[kind], arrays[f'{kind}/key'] = np.concatenate(hashes)[order], owner[order]
    arrays['pixels'] = _unique(split.keys('pixels') for split in trained.values())
    arrays['hash'] = np.unique(np.concatenate([split.column('hash') for split in trained.values()]), axis=0)
    files.write_npz(path, **arrays)


def overlap(seen: str | os.PathLike, split: Split) -> dict[str, float | bool | None]:
    """The share of the split's records whose patient, image or pixels the run of `seen` was trained on, and of those
    that are `near` to an image of it: their perceptual hashes differ by at most `similar.SURE` bits.

    `comparable`: the ids of both sides were hashed with one key. If not, patient and image are None (no id is
    compared across keys) or, where only some of the run's sources had this key, lower bounds.
    """
    with np.load(seen, allow_pickle=False) as file:
        keys = file['keys'].tolist()
        mine = split.data.key_fingerprint
        shares: dict[str, float | bool | None] = {}
        for kind in ('patient', 'image'):
            known = file[kind][file[f'{kind}/key'] == keys.index(mine)] if mine in keys else None
            hit = None if known is None else np.any([np.isin(hashed, known) for hashed in ids(split, kind)], axis=0)
            shares[kind] = None if hit is None else float(hit.mean())
        shares['pixels'] = float(np.isin(split.keys('pixels'), file['pixels']).mean())
        shares['near'] = None  # as of runs whose file has no such hashes
        if 'hash' in file:
            near, *_ = near_duplicates.near(np.asarray(split.column('hash')), file['hash'], near_duplicates.SURE)
            shares['near'] = len(np.unique(near)) / len(split)
    return shares | {'comparable': keys == [mine]}


def ids(split: Split, kind: str) -> list[np.ndarray]:
    """The hashed ids of a kind; an image is also known by the one that it was made from (0 where by none)."""
    return [split.keys(name) for name in (('image', 'origin', 'via') if kind == 'image' else (kind,))]


def _unique(arrays) -> np.ndarray:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *arrays]))
