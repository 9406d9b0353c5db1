"""Makes a smaller data set: training slices of a volume that repeat other slices of the same volume are left out.

Neighbouring slices of one volume are nearly equal, and a pretraining that tells images apart learns less from them
(Wolf et al., "Less is More: Selective reduction of CT data for self-supervised pre-training …", 2024, arXiv
2410.14524, code: Wolfda95/Less_is_More). As in their code, the slices are visited in their order, and a slice is kept
if it is far from every kept slice of its volume. A comparison with the last kept slice would not be enough: a volume
can show the same again, above and below an organ or in a repeated series. A volume is a study of several records, in
their order in the split.

Only training records are left out. Validation and test stay the same, so that results on them can be compared. Kept
records are copied byte for byte.
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
LEVELS = 16  # grey levels; more levels need more pixels than a thumbnail has, and noise then hides equal structures
COMPARE_BATCH = 1024  # records whose descriptions (hash, features or grey levels) are in memory together, about
COPY_BATCH = 64  # records whose bytes are in memory together


class Measure(NamedTuple):
    """A way to compare two slices."""

    name: str
    describe: Callable[[Split, np.ndarray], np.ndarray] | None  # numbers of n records -> their descriptions [n,…]
    compare: Callable[[np.ndarray, np.ndarray], np.ndarray]  # one description with m others [m,…] -> float64 [m]
    larger_is_nearer: bool
    default: float  # threshold
    max_threshold: int  # the smallest is 0
    whole_threshold: bool  # the threshold must be a whole number
    value_text: str  # format of a result: '3 bits from'
    threshold_text: str  # format of a threshold: 'at most 6 bits from'

    def is_near(self, value: float, threshold: float) -> bool:
        return value >= threshold if self.larger_is_nearer else value <= threshold


class Repeats(NamedTuple):
    """The repeated records among the n records of a split that has v volumes."""

    nearest: np.ndarray  # int64 [n]: the kept record of the same volume that is nearest; -1 where the record is kept
    value: np.ndarray  # float64 [n]: the measure's result for these two; nan where the record is kept
    kept_counts: np.ndarray  # int64 [v]: kept records of each volume
    sizes: np.ndarray  # int64 [v]: records of each volume


def dhash(thumbs: np.ndarray) -> np.ndarray:
    """The difference hash of thumbnails, uint8 [n,32,32] -> uint8 [n,8], 64 bits.

    A thumbnail is reduced to 9 x 8 pixels (Lanczos, rounded). Each bit says, row by row, whether a pixel is brighter
    than its left neighbour. This is `imagehash.dhash` of thumbnails; the paper's code hashes whole slices.
    """
    from PIL import Image

    small = [np.asarray(Image.fromarray(thumb).resize((9, 8), Image.Resampling.LANCZOS)) for thumb in thumbs]
    rows = np.stack(small)
    return np.packbits((rows[:, :, 1:] > rows[:, :, :-1]).reshape(len(rows), 64), axis=1)


def hamming(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """The number of different bits, 0 to 64, between a packed hash [8] and others [m,8]."""
    return np.bitwise_count(one ^ many).sum(1).astype(np.float64)


def cosine(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """a·b / (|a| |b|) of features [D] with others [m,D], rounded to the six digits that float32 features carry."""
    one, many = one.astype(np.float64), many.astype(np.float64)
    return (many @ one / np.maximum(np.linalg.norm(one) * np.linalg.norm(many, axis=1), 1e-12)).round(6)


def mutual_information(one: np.ndarray, many: np.ndarray) -> np.ndarray:
    """Normalised mutual information 2 I(a;b) / (H(a) + H(b)) of grey levels [p] with others [m,p], levels < LEVELS.

    I(a;b) = H(a) + H(b) - H(a,b), with entropies of the joint histogram and its margins. The result is 1 where each
    level of one slice corresponds to one level of the other, so another grey-value window changes it little. It is 1
    for two flat slices, and 0 for a flat slice with any other.
    """
    cell = one.astype(np.int64) * LEVELS + many
    cell += np.arange(len(many))[:, None] * LEVELS**2
    joint = np.bincount(cell.ravel(), minlength=len(many) * LEVELS**2).reshape(-1, LEVELS, LEVELS) / len(one)
    joint_entropy = _entropy(joint.reshape(len(many), -1))
    margins = _entropy(joint.sum(1)) + _entropy(joint.sum(2))
    return np.where(margins > 0, 2 * (margins - joint_entropy) / np.maximum(margins, 1e-12), 1.0).round(6)


def grey_levels(thumbs: np.ndarray) -> np.ndarray:
    """uint8 [n,32,32] -> uint8 [n,1024]: the grey values in LEVELS equal steps."""
    return thumbs.reshape(len(thumbs), -1) // np.uint8(256 // LEVELS)


def _entropy(shares: np.ndarray) -> np.ndarray:
    """[m,k] -> [m]: -sum p log p, in nats."""
    return -(shares * np.log(np.where(shares > 0, shares, 1))).sum(1)


def _thumbs(split: Split, numbers: np.ndarray) -> np.ndarray:
    return np.asarray(split.column('thumb')[numbers])


# The default thresholds. 6 bits is "Hash-6" of the paper's code, which was its best. The other two keep about as many
# slices of the volumes of benchmarks/reduce.py as 6 bits do. The similarity of features depends on the encoder, so 0.9
# is the least certain one: look at what it keeps. None of them works between patients: 1.3 % of all pairs of NIH's
# radiographs lie within 6 bits.
MEASURES = {
    measure.name: measure
    for measure in (
        Measure(
            'hash', lambda split, numbers: dhash(_thumbs(split, numbers)), hamming, larger_is_nearer=False, default=6,
            max_threshold=63, whole_threshold=True, value_text='{:g} bits from',
            threshold_text='at most {:g} bits from',
        ),
        Measure(
            'embedding', None, cosine, larger_is_nearer=True, default=0.9,
            max_threshold=1, whole_threshold=False, value_text='cosine {:.4f} with',
            threshold_text='cosine of at least {:g} with',
        ),
        Measure(
            'information', lambda split, numbers: grey_levels(_thumbs(split, numbers)), mutual_information,
            larger_is_nearer=True, default=0.6, max_threshold=1, whole_threshold=False,
            value_text='normalised mutual information {:.4f} with',
            threshold_text='normalised mutual information of at least {:g} with',
        ),
    )
}  # fmt: skip


def volumes(studies: np.ndarray) -> list[np.ndarray]:
    """The record numbers of each study that has several records, in their order.

    `studies` holds the study key of each record. The studies are ordered by their first record.
    """
    order = np.argsort(studies, kind='stable')
    starts = np.flatnonzero(np.append(True, studies[order][1:] != studies[order][:-1]))
    sizes = np.diff(starts, append=len(order))
    several = np.flatnonzero(sizes > 1)
    several = several[np.argsort(order[starts[several]])]
    return [order[starts[k] : starts[k] + sizes[k]] for k in several]


def repeats_in_volume(described: np.ndarray, measure: Measure, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """The repeated slices of one volume, from the descriptions [n,…] of its slices.

    A slice is kept if no kept slice before it is near. Returns `nearest` int64 [n] and `value` float64 [n], as in
    `Repeats` but with numbers within the volume.
    """
    nearest, value = np.full(len(described), -1), np.full(len(described), np.nan)
    kept: list[int] = []
    kept_descriptions = np.empty_like(described)
    for i, description in enumerate(described):
        if kept:
            values = measure.compare(description, kept_descriptions[: len(kept)])
            k = int(values.argmax() if measure.larger_is_nearer else values.argmin())
            if measure.is_near(values[k], threshold):
                nearest[i], value[i] = kept[k], values[k]
                continue
        kept_descriptions[len(kept)] = description
        kept.append(i)
    return nearest, value


def find_repeats(split: Split, measure: Measure, threshold: float) -> Repeats:
    """The repeated records in all volumes of a split. UserError where it has no volume."""
    from tqdm import tqdm

    members = volumes(split.keys('study'))
    if not members:
        raise UserError(f'{split.data.path}: every study of {split.name} has one record: nothing to reduce')
    sizes = np.array([len(volume) for volume in members])
    nearest, value = np.full(len(split), -1), np.full(len(split), np.nan)
    with tqdm(total=int(sizes.sum()), desc=f'compare by {measure.name}', unit=' records', disable=None) as bar:
        for batch in _batches(members):
            described = measure.describe(split, np.concatenate(batch))
            ends = np.cumsum([len(volume) for volume in batch])[:-1]
            for volume, descriptions in zip(batch, np.split(described, ends)):
                within, values = repeats_in_volume(descriptions, measure, threshold)
                nearest[volume], value[volume] = np.where(within < 0, -1, volume[within]), values
                bar.update(len(volume))
    return Repeats(nearest, value, np.array([int((nearest[volume] < 0).sum()) for volume in members]), sizes)


def _batches(members: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Whole volumes, of at least COMPARE_BATCH records together (the last batch may have fewer)."""
    batch: list[np.ndarray] = []
    for volume in members:
        batch.append(volume)
        if sum(map(len, batch)) >= COMPARE_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def make(
    data: DataSet,
    out: str | os.PathLike,
    measure: Measure,
    threshold: float,
    encoder: str = '',
    overwrite: bool = False,
) -> tuple[Repeats, dict[str, Any]]:
    """Writes `data` without repeated training records as the data set `out`.

    Returns the repeats and the content of the new medjax.json with its audit. `encoder` names the encoder of the
    measure, if it has one; the name enters the version. Labels, keys, texts and masks of kept records stay, and so do
    the splits and the order. drops.csv has the rows of `data` and one row for each record that is left out.
    """
    out = pathlib.Path(out).expanduser().absolute()
    if out.resolve() == data.path.resolve():
        raise UserError(f'--out {out} is the data set itself, which a reduction never replaces; choose another --out')
    write.check_out(out, overwrite)
    if SPLIT not in data.splits:
        raise UserError(f'{data.path}: no record in {SPLIT}, and only {SPLIT} is reduced')
    limit = measure.threshold_text.format(threshold)
    version = f'{data.version}, {SPLIT} reduced by {measure.name}{encoder and f" of {encoder}"}: {limit} a kept record'
    with write.work_folder(out, overwrite, [data.fingerprint, data.key_fingerprint, version]) as work:
        chunk_folder = work / 'chunks'
        shutil.rmtree(chunk_folder, ignore_errors=True)  # left by a reduction that was killed
        chunk_folder.mkdir()
        try:
            repeats = find_repeats(data.split(SPLIT), measure, threshold)
            plan = _copy_kept(data, repeats, chunk_folder)
            description = dict(
                name=data.name,
                version=version,
                license=data.license,
                labels=list(data.labels),
                split_list=data.split_list,
                dropped=data.dropped + int((repeats.nearest >= 0).sum()),
                invented=data.invented,
                unknown_patients=data.unknown_patients,
                namespace=data.namespace,
                key_fingerprint=data.key_fingerprint,
                columns=data.columns,
                fit=data.fit,
                windows=data.windows,
                masks=list(data.masks),
                remarks=data.remarks,
            )
            totals = columns.gather(chunk_folder, plan, work / 'columns')
            summary = write.assemble(description, None, totals, plan, work)
            _list_drops(data, repeats, measure, limit, work / 'drops.csv')
            summary['audit'] = write.audit(work)[1]
        finally:
            shutil.rmtree(chunk_folder)  # then a failure leaves no work folder
        write.publish(work, out, overwrite)
    return repeats, summary


def _copy_kept(data: DataSet, repeats: Repeats, folder: pathlib.Path) -> list[Chunk]:
    """Copies the kept records of all splits into chunks in `folder`. A chunk's entries are record numbers of `data`."""
    # tensorflow_datasets patches __import__ while it loads, so it loads before the threads start
    import tensorflow_datasets  # noqa: F401
    from tqdm import tqdm

    numbers = {split: np.arange(n) for split, n in data.splits.items()}
    numbers[SPLIT] = np.flatnonzero(repeats.nearest < 0)
    plan = [chunk for split in data.splits for chunk in chunks.cut(split, numbers[split])]
    total = sum(map(len, numbers.values()))
    with (
        tqdm(total=total, desc='copy', unit=' records', disable=None) as bar,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        splits = {split: data.split(split) for split in data.splits}
        for chunk in plan:
            _copy_chunk(splits[chunk.split], chunk, folder, pool, bar.update)
    return plan


def _copy_chunk(
    split: Split, chunk: Chunk, folder: pathlib.Path, pool: ThreadPoolExecutor, advance: Callable[[int], Any]
) -> None:
    """Copies the records of a chunk as they are on disk, and writes the columns that `columns.gather` needs.

    Only mean and deviation need decoded pixels, so only train is decoded. The `content` of a record is a hash of the
    data set's fingerprint and the record's number: the fingerprint already stands for the record's content.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    numbers = np.array(chunk.entries)
    writer = ArrayRecordWriter(str(folder / f'{chunk.name}.array_record'), 'group_size:1')
    for start in range(0, len(numbers), COPY_BATCH):
        for stored in split.stored(numbers[start : start + COPY_BATCH]):
            writer.write(stored)
        advance(len(numbers[start : start + COPY_BATCH]))
    writer.close()
    values = {name: column[numbers] for name, column in map_columns(split.data.path / 'columns' / split.name).items()}
    moments = np.zeros((len(numbers), 3))
    if split.name == SPLIT:
        moments = np.stack(list(pool.map(lambda i: chunks.moments(split.image(i)), chunk.entries)))
    places = [f'{split.data.fingerprint} {split.name}/{i}'.encode() for i in chunk.entries]
    content = np.stack([np.frombuffer(hashlib.sha256(place).digest(), np.uint8) for place in places])
    np.savez(folder / f'{chunk.name}.npz', moments=moments, content=content, drops=np.array('[]'), **values)


def _list_drops(data: DataSet, repeats: Repeats, measure: Measure, limit: str, path: pathlib.Path) -> None:
    """Writes the rows of the old drops.csv and one row for each record that is left out.

    Reports count equal reasons. So the reason is the same for all these records, and what differs is written to
    `where`.
    """
    drops = read_drops(data.path / 'drops.csv')
    images = data.split(SPLIT).keys('image')
    for i in np.flatnonzero(repeats.nearest >= 0).tolist():
        near = f'{measure.value_text.format(repeats.value[i])} {SPLIT}/{repeats.nearest[i]}'
        where = f'{SPLIT}/{i} of {data.name} ({data.fingerprint}): {near}'
        drops.append(Dropped('record', where, f'{limit} a kept record of its study', f'{images[i]:016x}'))
    write_drops(path, drops)
