"""A chunk of a data set: some entries of one split, as records in one ArrayRecord file with their columns beside it.

A chunk is whole or absent, and it stores a digest of the entries that it was made of. Therefore a build that was killed
continues with the missing chunks, several processes can make chunks at once, and a finished chunk moves into the data
set unchanged.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np

from medjax import files
from medjax.data.audit import near_duplicates
from medjax.data.builder import ids
from medjax.data.format import Dropped, schema
from medjax.data.images import decode
from medjax.data.text import language
from medjax.data.types import SPLIT_NAMES, Drop, Entry, Example, Picture, Source, Unreadable, patient_of

SIZE = 1024  # entries of a chunk, at least; a killed build loses at most one unfinished chunk per process
RAW = 'FOR PROCESSING'  # the presentation intent of raw detector values
MOST_CROPPED = 1 / 3  # of an image's area; a crop that loses more is remarked
THUMB_FROM = 4 * near_duplicates.THUMB_SIDE  # pixels of the shorter side
MAX_CHUNKS = 256  # of one split, because a reader opens each file; larger splits get larger chunks


class Chunk(NamedTuple):
    """A chunk of a build: the entries of one split that go into one file of records."""

    split: str
    number: int
    entries: tuple[int, ...]

    @property
    def name(self) -> str:
        return f'{self.split}-{self.number:05d}'


class StoredRecord(NamedTuple):
    """One record: its content in the ArrayRecord file, and its values in the columns."""

    content: dict[str, Any]  # without its number in the source
    columns: dict[str, Any]  # name -> value; every record has these names
    attributes: dict[str, str | float]


def plan(splits: Iterable[str]) -> list[Chunk]:
    """Cuts all entries into chunks, split by split; `splits` holds the split of each entry."""
    splits = np.asarray(list(splits))
    return [chunk for split in SPLIT_NAMES for chunk in cut(split, np.flatnonzero(splits == split))]


def cut(split: str, numbers: np.ndarray) -> list[Chunk]:
    """Cuts the entries of one split into chunks; `numbers` are entries of a source or records of another data set."""
    size = max(SIZE, -(-len(numbers) // MAX_CHUNKS))
    pieces = [tuple(numbers[at : at + size].tolist()) for at in range(0, len(numbers), size)]
    return [Chunk(split, k, piece) for k, piece in enumerate(pieces)]


def write(
    source: Source,
    key: bytes,
    chunk: Chunk,
    folder: pathlib.Path,
    advance: Callable[[int], None] = lambda n: None,
    pool: Executor | None = None,
) -> None:
    """Makes folder/NAME.array_record and folder/NAME.npz, unless they exist and were made of the same entries.

    `key` hashes the ids. `advance` gets the number of entries that were just finished. `pool` opens several images at
    once.
    """
    labels = [np.asarray(source.label(i), np.int8) for i in chunk.entries]
    digest = _digest([source.entries[i] for i in chunk.entries], labels)
    if _is_finished(folder, chunk, digest):
        advance(len(chunk.entries))
        return
    from array_record.python.array_record_module import ArrayRecordWriter

    serialize, stored, drop_rows = _serializer(len(source.labels)), [], []
    process = functools.partial(_process_entry, source, key)
    numbered_labels = list(zip(chunk.entries, labels, strict=True))
    with files.whole_path(folder / f'{chunk.name}.array_record') as hidden:
        writer = ArrayRecordWriter(str(hidden), 'group_size:1')
        for i, (record, drops) in zip(chunk.entries, _map_in_order(pool, process, numbered_labels), strict=True):
            drop_rows += [drop_row(drop, key, source.namespace) for drop in drops]
            if record is not None:
                writer.write(serialize(record.content | {'index': i}))
                stored.append(record._replace(content={}))
            advance(1)
        writer.close()
    columns = _columns(stored) | {'digest': np.array(digest), 'drops': np.array(json.dumps(drop_rows))}
    files.write_npz(folder / f'{chunk.name}.npz', **columns)  # last: this file marks the chunk as finished


def read(folder: pathlib.Path, chunk: Chunk) -> dict[str, np.ndarray]:
    """The columns of a chunk that `write` made, each with n rows, and also `digest` and `drops` (rows as JSON)."""
    with np.load(folder / f'{chunk.name}.npz', allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@functools.cache
def _serializer(labels: int) -> Callable[[dict[str, Any]], bytes]:
    """Turns a record into the bytes that tfds reads, equal in every process.

    The serializer of tfds itself leaves the order of the fields open.
    """
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = schema(labels)
    serializer = ExampleSerializer(features.get_serialized_info())
    return lambda record: serializer.get_tf_example(features.encode_example(record)).SerializeToString(
        deterministic=True
    )


def _process_entry(source: Source, key: bytes, i: int, label: np.ndarray) -> tuple[StoredRecord | None, list[Drop]]:
    """Entry `i` as a record, and drops: of the whole record (then there is none), of its mask, or remarks."""
    entry, fit = source.entries[i], source.shown.fit
    try:
        example, (pixels, remarks, aspect) = opened(source, i)
        part = decode.fitted(pixels, fit, aspect)
        small = decode.bounded(part, source.size, aspect, is_square=fit is not None)
        image = (decode.keepable(example.image) if small is pixels else None) or decode.png(small)
    except Unreadable as error:
        return None, [Drop(entry.image, entry.where, str(error))]
    mask, note = _stored_mask(example, pixels.shape[:2], fit, source.size, aspect)
    sections = {section: text for section, text in example.text.items() if text}
    attributes = {name: value for name, value in example.attributes.items() if value != ''}
    if small is not part and 'spacing' in attributes:  # the height of a pixel, which grows when the image shrinks
        attributes['spacing'] = _spacing(float(attributes['spacing']), aspect, part.shape, small.shape)
    text = ' '.join(sections.values())
    if text and 'language' not in attributes and (detected := language.language(text)):
        attributes['language'] = detected
    keys = np.array([*_hashed_ids(key, source.namespace, entry), _text_key(key, text), pixel_hash(pixels)], np.uint64)
    # from the smaller picture where it has pixels enough: the thumbnails are the same but for rounding
    is_enough = fit is None and min(small.shape[:2]) >= THUMB_FROM
    thumb = near_duplicates.thumbnail(small if is_enough else pixels)
    content = [int(keys[-1]), label.tolist(), example.role, sections, attributes, _mask_content(mask)]
    record = dict(
        image=image, mask=b'' if mask is None else decode.png(mask), label=label, keys=keys.view(np.int64),
        role=example.role, text=json.dumps(sections), info=json.dumps(attributes),
    )  # fmt: skip
    columns = dict(
        label=label,
        keys=keys,
        thumb=thumb,
        shape=np.array(small.shape, np.int32),
        bits=np.uint8(small.dtype.itemsize * 8),
        words=np.int32(len(text.split())),
        sentences=np.int32(sum(len(language.sentences(section)) for section in sections.values())),
        role=example.role,
        moments=moments(small),
        content=np.frombuffer(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest(), np.uint8),
    )
    drops = [Drop(entry.image, entry.where, note, 'detail')] if note else []
    remarks = (*remarks, *_remarks(attributes, pixels.shape, aspect, fit))
    drops += [Drop(entry.image, entry.where, remark, 'remark') for remark in remarks]
    return StoredRecord(record, columns, attributes), drops


def stored_shape(source: Source, i: int) -> tuple[int, ...] | None:
    """The shape [H,W,C] in which entry `i` will be stored; None if it will be set aside."""
    record, _ = _process_entry(source, b'', i, np.asarray(source.label(i), np.int8))
    return None if record is None else tuple(record.columns['shape'].tolist())


def opened(source: Source, i: int) -> tuple[Example, Picture]:
    """Entry `i`, opened, and its picture in the size that the source has. Raises Unreadable.

    An entry that does not meet a condition of the user is not decoded.
    """
    example, shown = source.load(i), source.shown
    for condition in shown.conditions:
        if not condition(example.attributes):
            raise Unreadable(f'left out by --where {condition}{condition.why(example.attributes)}')
    if isinstance(example.image, bytes):
        return example, decode.picture(example.image, example.frame, shown.windows)
    if shown.windows:
        raise Unreadable('--window is for CT in DICOM files, and this is a rendered picture; leave --window out')
    return example, decode.remarked(Picture(decode.grey_if_equal(example.image)))


def _remarks(
    attributes: Mapping[str, str | float], shape: tuple[int, ...], aspect: float, fit: str | None
) -> list[str]:
    """Remarks on a record that the user of the data set should know."""
    remarks = []
    if str(attributes.get('presentation_intent', '')).upper() == RAW:
        remarks.append(
            f"raw pixels, which may look like a negative; --where 'presentation_intent!={RAW}' leaves them out"
        )
    if aspect != 1.0:
        remarks.append('its pixels are not square; it is stored with square ones')
    if fit == 'crop' and decode.cropped_share(shape, aspect) > MOST_CROPPED:
        remarks.append('the crop loses more than a third of its area; --fit pad would keep it')
    return remarks


def _spacing(spacing: float, aspect: float, before: tuple[int, ...], after: tuple[int, ...]) -> float:
    """The side of a stored pixel, mm. `spacing` and `aspect` are the height and the aspect of a pixel before."""
    if before[0] * aspect >= before[1]:  # the longer side is measured: its length was rounded less
        return spacing * before[0] / after[0]
    return spacing / aspect * before[1] / after[1]


def pixel_hash(pixels: np.ndarray) -> np.uint64:
    """The first 8 bytes of sha256 over shape, depth and pixels of an image or mask."""
    digest = hashlib.sha256(f'{pixels.shape}{pixels.dtype}'.encode())
    digest.update(np.ascontiguousarray(pixels))
    return np.uint64(int.from_bytes(digest.digest()[:8], 'big'))


def moments(pixels: np.ndarray) -> np.ndarray:
    """float64 [3]: count, sum and sum of squares of the values of [H,W,C] scaled to [0,1], averaged over channels."""
    full = np.iinfo(pixels.dtype).max
    values = np.bincount(pixels.reshape(-1), minlength=full + 1).astype(np.float64)  # exact, and faster than floats
    level = np.arange(full + 1) / full
    return np.array([values.sum(), values @ level, values @ level**2]) / pixels.shape[2]


def _hashed_ids(key: bytes, namespace: str, entry: Entry) -> list[np.uint64]:
    """Hashed ids of patient, study, image, origin and via (the data set between the origin and this one).

    The last two are 0 where an image has no origin.
    """
    patient, study, image = (
        ids.hashed(key, namespace, plain) for plain in (patient_of(entry), entry.study, entry.image)
    )
    absent = np.uint64(0)
    if (origin := entry.origin) is None:
        return [patient, study, image, absent, absent]
    return [
        ids.hashed(key, origin.namespace, origin.patient),
        study,
        image,
        ids.hashed(key, origin.namespace, origin.image),
        ids.hashed(key, *origin.via) if origin.via else absent,
    ]


def _text_key(key: bytes, text: str) -> np.uint64:
    """A hash of the text without regard to case and blanks; 0 where there is no text."""
    normalized = ' '.join(text.casefold().split())
    return ids.hashed(key, 'text', normalized) if normalized else np.uint64(0)


def _stored_mask(
    example: Example, shape: tuple[int, int], fit: str | None, size: int | None, aspect: float
) -> tuple[np.ndarray | None, str]:
    """The mask in the stored size and the example's note, or None and the reason why the mask is left out."""
    if example.mask is None:
        return None, example.note
    try:
        mask = example.mask if isinstance(example.mask, np.ndarray) else decode.mask(example.mask)
        if mask.shape != shape:
            raise Unreadable(f'it has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}')
    except Unreadable as error:
        return None, f'the mask is left out: {error}'
    small = decode.bounded_mask(decode.fitted(mask, fit, aspect), size, aspect, is_square=fit is not None)
    return small, example.note


def _mask_content(mask: np.ndarray | None) -> int | None:
    """The mask in the fingerprint of a record: a hash of its values."""
    return None if mask is None else int(pixel_hash(mask))


def drop_row(drop: Drop, key: bytes, namespace: str) -> Dropped:
    """A drop with its image's id hashed."""
    hashed = f'{ids.hashed(key, namespace, drop.image):016x}' if drop.image else ''
    return Dropped(drop.scope, drop.where, drop.reason, hashed)


def _columns(stored: list[StoredRecord]) -> dict[str, np.ndarray]:
    """The columns of n records, and info/NAME for each attribute that at least one record has."""
    names = stored[0].columns if stored else ()
    columns = {name: np.stack([np.asarray(record.columns[name]) for record in stored]) for name in names}
    if stored:
        columns['hash'] = near_duplicates.hashes(columns['thumb'])  # at once, which is faster
    for name in sorted({name for record in stored for name in record.attributes}):
        columns[f'info/{name}'] = _attribute_column([record.attributes.get(name) for record in stored])
    return columns


def _attribute_column(values: list[str | float | None]) -> np.ndarray:
    """Strings with '' for None, or float32 with nan for None."""
    if any(isinstance(value, str) for value in values):
        return np.array(['' if value is None else str(value) for value in values])
    return np.array([np.nan if value is None else value for value in values], np.float32)


def _digest(entries: list[Entry], labels: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for entry, label in zip(entries, labels, strict=True):
        digest.update(json.dumps([*entry, label.tolist()]).encode())
    return digest.hexdigest()


def _is_finished(folder: pathlib.Path, chunk: Chunk, digest: str) -> bool:
    """Whether both files of the chunk exist and were made of the entries with this digest."""
    if not (folder / f'{chunk.name}.array_record').is_file():
        return False
    try:
        with np.load(folder / f'{chunk.name}.npz', allow_pickle=False) as file:  # reads this one array only
            return str(file['digest']) == digest
    except files.NPZ_ERRORS:
        return False


def _map_in_order(pool: Executor | None, function: Callable[..., Any], arguments: list[tuple]) -> Iterator[Any]:
    """function(*a) for each tuple of `arguments`, in their order.

    A pool works only a few results ahead, so that a large data set is never in memory.
    """
    if pool is None:
        yield from itertools.starmap(function, arguments)
        return
    waiting: collections.deque = collections.deque()
    remaining = iter(arguments)
    try:
        for argument in itertools.islice(remaining, 4 * (os.cpu_count() or 1)):
            waiting.append(pool.submit(function, *argument))
        while waiting:
            result = waiting.popleft().result()
            for argument in itertools.islice(remaining, 1):
                waiting.append(pool.submit(function, *argument))
            yield result
    finally:
        for future in waiting:
            future.cancel()
