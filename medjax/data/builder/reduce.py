"""Reduction: a data set without those training slices of a volume that repeat others of it.

Neighbouring slices of one volume are nearly equal, and a pretraining that tells images apart learns less from them
(Wolf et al., "Less is More: Selective reduction of CT data for self-supervised pre-training …", 2024, arXiv
2410.14524, code: Wolfda95/Less_is_More). As in their code a slice is kept if it is far from every slice of its volume
that is kept already, in the order of the slices: not only from the last, as volumes come back to what they showed
(above and below an organ; repeated series). A volume is a study of several records, in their order in the split.

Only training records are left out: validation and test stay record for record what they were, so that results on them
can be compared. What is kept is copied byte for byte.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from medjax.data.builder import chunks, columns, write
from medjax.data.builder.chunks import Chunk
from medjax.data.format import Dropped, map_columns, read_drops, write_drops
from medjax.data.records import DataSet, Split
from medjax.errors import UserError

SPLIT = 'train'
LEVELS = 16  # of grey; more of them need more pixels than a thumbnail has, and noise then hides what slices share
AHEAD = 1024  # records that are described together
FEW = 64  # records whose bytes are in memory together


class Measure(NamedTuple):
    """How near two slices are."""

    name: str
    describe: Callable[[Split, np.ndarray], np.ndarray] | None  # numbers of n records -> [n,…], what is compared
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray]  # of one with [m,…] -> float64 [m]
    rising: bool  # whether larger is nearer
    default: float
    top: int  # thresholds lie between 0 and it
    whole: bool  # whether they are whole numbers
    found: str  # a value, in words: '3 bits from'
    limit: str  # a threshold, in words: 'at most 6 bits from'

    def near(self, value: float, threshold: float) -> bool:
        return value >= threshold if self.rising else value <= threshold


class Found(NamedTuple):
    """What repeats what among n records."""

    of: np.ndarray  # int64 [n]: the kept record of the same study that is nearest; -1 where the record is kept
    value: np.ndarray  # float64 [n]: how near; nan where the record is kept
    kept: np.ndarray  # int64 [v]: records that are kept of each volume
    sizes: np.ndarray  # int64 [v]: records of each volume


def dhash(thumbs: np.ndarray) -> np.ndarray:
    """uint8 [n,32,32] -> uint8 [n,8], 64 bits: whether a pixel is brighter than its left neighbour, row by row, after
    a reduction to 9 x 8 pixels (Lanczos, rounded): `imagehash.dhash` of thumbnails; the paper's code takes slices."""
    from PIL import Image

    small = [np.asarray(Image.fromarray(thumb).resize((9, 8), Image.Resampling.LANCZOS)) for thumb in thumbs]
    rows = np.stack(small)
    return np.packbits((rows[:, :, 1:] > rows[:, :, :-1]).reshape(len(rows), 64), axis=1)


def bits(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Hamming distances of a packed hash [8] to others [m,8]: the number of bits that differ, 0 to 64."""
    return np.bitwise_count(one ^ many).sum(1).astype(np.float64)


def cosine(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """a·b / (|a| |b|) of features [D] with others [m,D], to the six digits that float32 features are worth."""
    one, many = one.astype(np.float64), many.astype(np.float64)
    return (many @ one / np.maximum(np.linalg.norm(one) * np.linalg.norm(many, axis=1), 1e-12)).round(6)


def information(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Normalised mutual information 2 I(a;b) / (H(a) + H(b)) of grey levels [p] with others [m,p], levels < LEVELS.

    I(a;b) = H(a) + H(b) - H(a,b), entropies of the joint histogram and its margins; 1 where each level of one slice
    means one of the other, so a change of window alone changes little. Two flat slices have 1, a flat and another 0.
    """
    cell = one.astype(np.int64) * LEVELS + many
    cell += np.arange(len(many))[:, None] * LEVELS**2
    joint = np.bincount(cell.ravel(), minlength=len(many) * LEVELS**2).reshape(-1, LEVELS, LEVELS) / len(one)
    both = _entropy(joint.reshape(len(many), -1))
    total = _entropy(joint.sum(1)) + _entropy(joint.sum(2))
    return np.where(total > 0, 2 * (total - both) / np.maximum(total, 1e-12), 1.0).round(6)


def levels(thumbs: np.ndarray) -> np.ndarray:
    """uint8 [n,32,32] -> uint8 [n,1024]: the grey values in LEVELS equal steps."""
    return thumbs.reshape(len(thumbs), -1) // np.uint8(256 // LEVELS)


def _entropy(shares: np.ndarray) -> np.ndarray:
    """[m,k] -> [m]: -sum p log p, in nats."""
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)


def _thumbs(split: Split, numbers: np.ndarray) -> np.ndarray:
    return np.asarray(split.column('thumb')[numbers])


# Thresholds: 6 bits is the "Hash-6" of the paper's code, its best; the others keep about as many slices of the volumes
# of benchmarks/reduce.py as 6 bits do. How near features are is a matter of the encoder, so 0.9 carries least: look at
# what it keeps. Between patients none means much: 1.3 % of all pairs of NIH's radiographs lie within 6 bits.
MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            'hash', lambda split, numbers: dhash(_thumbs(split, numbers)), bits, rising=False, default=6, top=63,
            whole=True, found='{:g} bits from', limit='at most {:g} bits from',
        ),
        Measure(
            'embedding', None, cosine, rising=True, default=0.9, top=1,
            whole=False, found='cosine {:.4f} with', limit='cosine of at least {:g} with',
        ),
        Measure(
            'information', lambda split, numbers: levels(_thumbs(split, numbers)), information, rising=True,
            default=0.6, top=1, whole=False, found='normalised mutual information {:.4f} with',
            limit='normalised mutual information of at least {:g} with',
        ),
    )
}  # fmt: skip


def volumes(studies: np.ndarray) -> list[np.ndarray]:
    """The numbers of the records of each study that has several, in their order; studies by their first record."""
    order = np.argsort(studies, kind='stable')
    starts = np.flatnonzero(np.append(True, studies[order][1:] != studies[order][:-1]))
    sizes = np.diff(starts, append=len(order))
    several = np.flatnonzero(sizes > 1)
    several = several[np.argsort(order[starts[several]])]
    return [order[starts[k] : starts[k] + sizes[k]] for k in several]


def repeats(described: np.ndarray, measure: Measure, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Of the n slices of one volume, int64 [n] the kept slice that each is near to (-1: it is kept), float64 [n] how
    near. A slice is kept if it is near to none of those before it that are kept."""
    of, value = np.full(len(described), -1), np.full(len(described), np.nan)
    kept: list[int] = []
    known = np.empty_like(described)
    for i, slice_ in enumerate(described):
        if kept:
            values = measure.compare(slice_, known[: len(kept)])
            nearest = int(values.argmax() if measure.rising else values.argmin())
            if measure.near(values[nearest], threshold):
                of[i], value[i] = kept[nearest], values[nearest]
                continue
        known[len(kept)] = slice_
        kept.append(i)
    return of, value


def find(split: Split, measure: Measure, threshold: float) -> Found:
    """What repeats what in the volumes of a split; UserError where it has none."""
    from tqdm import tqdm

    groups = volumes(split.keys('study'))
    if not groups:
        raise UserError(f'{split.data.path}: every study of {split.name} has one record: nothing to reduce')
    sizes = np.array([len(group) for group in groups])
    of, value = np.full(len(split), -1), np.full(len(split), np.nan)
    with tqdm(total=int(sizes.sum()), desc=f'compare by {measure.name}', unit=' records', disable=None) as bar:
        for some in _together(groups):
            described = measure.describe(split, np.concatenate(some))
            for group, part in zip(some, np.split(described, np.cumsum([len(group) for group in some])[:-1])):
                mine, values = repeats(part, measure, threshold)
                of[group], value[group] = np.where(mine < 0, -1, group[mine]), values
                bar.update(len(group))
    return Found(of, value, np.array([int((of[group] < 0).sum()) for group in groups]), sizes)


def _together(groups: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Whole volumes, AHEAD records or some more at a time."""
    some: list[np.ndarray] = []
    for group in groups:
        some.append(group)
        if sum(map(len, some)) >= AHEAD:
            yield some
            some = []
    if some:
        yield some


def make(
    data: DataSet, out: str | os.PathLike, measure: Measure, threshold: float, by: str = '', overwrite: bool = False
) -> tuple[Found, dict[str, Any]]:
    """Writes `data` without what repeats as the data set `out`; returns what was found, and the content of its
    medjax.json plus its audit.

    `by` says more of the measure, as which encoder; it is told in the version. Labels, keys, texts and masks of kept
    records, their splits and their order stay; drops.csv has the rows of `data` and one for each record left out.
    """
    out = pathlib.Path(out).expanduser().absolute()
    if out.resolve() == data.path.resolve():
        raise UserError(f'--out {out} is the data set itself, which a reduction does not replace; choose another --out')
    write.may_write(out, overwrite)
    if SPLIT not in data.splits:
        raise UserError(f'{data.path}: no record in {SPLIT}, and others are not reduced')
    limit = measure.limit.format(threshold)
    version = f'{data.version}, {SPLIT} reduced by {measure.name}{by and f" of {by}"}: {limit} a kept record'
    with write.work_folder(out, overwrite, [data.fingerprint, data.key_fingerprint, version]) as work:
        made = work / 'chunks'
        shutil.rmtree(made, ignore_errors=True)  # of a reduction that was killed
        made.mkdir()
        try:
            found = find(data.split(SPLIT), measure, threshold)
            plan = _copied(data, found, made)
            about = dict(
                name=data.name,
                version=version,
                license=data.license,
                labels=list(data.labels),
                split_list=data.split_list,
                dropped=data.dropped + int((found.of >= 0).sum()),
                invented=data.invented,
                unknown_patients=data.unknown_patients,
                namespace=data.namespace,
                key_fingerprint=data.key_fingerprint,
            )
            summary = write.assembled(about, None, columns.gather(made, plan, work / 'columns'), plan, made, work)
            _list_drops(data, found, measure, limit, work / 'drops.csv')
            summary['audit'] = write.audited(work)[1]
        finally:
            shutil.rmtree(made)  # so that nothing is left where this failed
        write.publish(work, out, overwrite)
    return found, summary


def _copied(data: DataSet, found: Found, made: pathlib.Path) -> list[Chunk]:
    """Copies the kept records of all splits into chunks in `made`; returns these, their entries numbers in `data`."""
    import tensorflow_datasets  # noqa: F401  patches __import__ while it loads: before the threads, never beside
    from tqdm import tqdm

    numbers = {split: np.arange(n) for split, n in data.splits.items()} | {SPLIT: np.flatnonzero(found.of < 0)}
    plan = [chunk for split in data.splits for chunk in chunks.cut(split, numbers[split])]
    total = sum(map(len, numbers.values()))
    with (
        tqdm(total=total, desc='copy', unit=' records', disable=None) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        splits = {split: data.split(split) for split in data.splits}
        for chunk in plan:
            _copy(splits[chunk.split], chunk, made, pool, bar.update)
    return plan


def _copy(
    split: Split, chunk: Chunk, folder: pathlib.Path, pool: ThreadPoolExecutor, advance: Callable[[int], Any]
) -> None:
    """The records of a chunk as they are on disk, and beside them what `columns.gather` wants to know of them.

    Pixels are decoded for mean and deviation alone, so of train alone. For the content stands which record of which
    data set it is: that data set's fingerprint holds the content.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    numbers = np.array(chunk.entries)
    writer = ArrayRecordWriter(str(folder / f'{chunk.name}.array_record'), 'group_size:1')
    for start in range(0, len(numbers), FEW):
        for stored in split.stored(numbers[start : start + FEW]):
            writer.write(stored)
        advance(len(numbers[start : start + FEW]))
    writer.close()
    values = {name: column[numbers] for name, column in map_columns(split.data.path / 'columns' / split.name).items()}
    moments = np.zeros((len(numbers), 3))
    if split.name == SPLIT:
        moments = np.stack(list(pool.map(lambda i: chunks.moments(split.image(i)), chunk.entries)))
    places = [f'{split.data.fingerprint} {split.name}/{i}'.encode() for i in chunk.entries]
    content = np.stack([np.frombuffer(hashlib.sha256(place).digest(), np.uint8) for place in places])
    np.savez(folder / f'{chunk.name}.npz', moments=moments, content=content, drops=np.array('[]'), **values)


def _list_drops(data: DataSet, found: Found, measure: Measure, limit: str, path: pathlib.Path) -> None:
    """The rows of `data` and one for each record left out. What differs from one to the next stands under `where`, as
    reports count equal reasons."""
    drops = read_drops(data.path / 'drops.csv')
    images = data.split(SPLIT).keys('image')
    for i in np.flatnonzero(found.of >= 0).tolist():
        near = f'{measure.found.format(found.value[i])} {SPLIT}/{found.of[i]}'
        where = f'{SPLIT}/{i} of {data.name} ({data.fingerprint}): {near}'
        drops.append(Dropped('record', where, f'{limit} a kept record of its study', f'{images[i]:016x}'))
    write_drops(path, drops)
