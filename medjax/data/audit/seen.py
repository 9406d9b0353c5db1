"""Hashes of the training data of a run (seen.npz), and the overlap of an evaluation with them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from medjax import files
from medjax.data.audit import near_duplicates
from medjax.data.records import DataSet, Split


def write_seen(
    datasets: Mapping[str, DataSet],
    path: str | os.PathLike,
    earlier: Sequence[str | os.PathLike] = (),
    unknown: Sequence[str] = (),
) -> None:
    """Writes hashes of the train splits of `datasets` to `path` (seen.npz). They are sorted, without order or content.

    Arrays of the file:
    patient, image, pixels: uint64, sorted and unique; image also has the images' origins.
    patient/key, image/key: the position in `keys` of the id key that made each hash.
    keys: fingerprints of the id keys.
    hash: uint8 [n,32], perceptual hashes.
    split: 'train'.
    unknown: the weights that the run began with and whose training data nothing tells; missing if there are none.

    `earlier` are the files of the run's parent and of the runs whose weights it began with. Their training data are
    added. Equal data give an equal file.
    """
    splits = [data.split('train') for data in datasets.values()]
    before = [_read(file) for file in earlier]
    keys = sorted(
        {data.key_fingerprint for data in datasets.values()}
        | {key for old in before for key in old.get('keys', np.array([])).tolist()}
    )
    arrays = {'keys': np.array(keys), 'split': np.array(['train'])}
    unknown = sorted({*unknown, *(name for old in before for name in old.get('unknown', np.array([])).tolist())})
    if unknown:
        arrays['unknown'] = np.array(unknown)
    for kind in ('patient', 'image'):
        by_key = [
            _unique(
                [
                    *(
                        hashed[hashed != 0]
                        for split in splits
                        if split.data.key_fingerprint == key
                        for hashed in hashed_ids(split, kind)
                    ),
                    *(_of_key(old, kind, key) for old in before),
                ]
            )
            for key in keys
        ]
        key_number = np.repeat(np.arange(len(keys), dtype=np.uint8), [len(hashed) for hashed in by_key])
        order = np.argsort(np.concatenate(by_key), kind='stable')
        arrays[kind], arrays[f'{kind}/key'] = np.concatenate(by_key)[order], key_number[order]
    old = {name: [one[name] for one in before if name in one] for name in ('pixels', 'hash')}
    arrays['pixels'] = _unique([*(split.keys('pixels') for split in splits), *old['pixels']])
    arrays['hash'] = np.unique(np.concatenate([*(split.column('hash') for split in splits), *old['hash']]), axis=0)
    files.write_npz(path, **arrays)


def _read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _of_key(arrays: Mapping[str, np.ndarray], kind: str, key: str) -> np.ndarray:
    """The hashes of a kind that were made with an id key; none if no hash was."""
    if key not in arrays.get('keys', ()):
        return np.zeros(0, np.uint64)
    return arrays[kind][arrays[f'{kind}/key'] == arrays['keys'].tolist().index(key)]


def overlap(seen: str | os.PathLike, split: Split) -> dict[str, Any]:
    """The shares of a split's records that the run of the file `seen` was trained on.

    patient, image, pixels: the share of records whose patient, image or pixels were in training.
    near: the share whose perceptual hash differs from one of training by at most `near_duplicates.HASH_ONLY_RADIUS`
    bits; None for old files without such hashes.
    comparable: all ids of both sides were hashed with one key. If False, patient and image are None (ids of different
    keys are never compared). Where only some data sets of the run had the split's key, patient and image are lower
    bounds.
    unknown: the weights that the run began with and whose training data nothing tells; missing if there are none.
    """
    with np.load(seen, allow_pickle=False) as file:
        keys = file['keys'].tolist()
        key = split.data.key_fingerprint
        shares: dict[str, Any] = {}
        for kind in ('patient', 'image'):
            if key not in keys:
                shares[kind] = None
                continue
            trained = file[kind][file[f'{kind}/key'] == keys.index(key)]
            shares[kind] = float(
                np.any([np.isin(hashed, trained) for hashed in hashed_ids(split, kind)], axis=0).mean()
            )
        shares['pixels'] = float(np.isin(split.keys('pixels'), file['pixels']).mean())
        if 'unknown' in file:
            shares['unknown'] = file['unknown'].tolist()
        shares['near'] = None
        if 'hash' in file:
            hashes = np.asarray(split.column('hash'))
            first, *_ = near_duplicates.near_hashes(hashes, file['hash'], near_duplicates.HASH_ONLY_RADIUS)
            shares['near'] = len(np.unique(first)) / len(split)
    return shares | {'comparable': keys == [key]}


def hashed_ids(split: Split, kind: str) -> list[np.ndarray]:
    """The hashed ids of a kind, uint64 [n] each: for 'image' also those of its origins (0 where it has none)."""
    return [split.keys(name) for name in (('image', 'origin', 'via') if kind == 'image' else (kind,))]


def _unique(arrays: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.zeros(0, np.uint64), *arrays]))
