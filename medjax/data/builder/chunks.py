"""A chunk of a data set: some entries of one split as records in one ArrayRecord file, and their columns beside it.

A chunk is whole or not there, and says in its digest what it was made of. So a build that was killed goes on where
it was, chunks are made by as many processes as there are, and a finished chunk is moved into the data set as it is.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import json
import os
import pathlib
import secrets
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Any, NamedTuple

import numpy as np

from medjax import files
from medjax.data.audit import near_duplicates
from medjax.data.builder import ids
from medjax.data.format import Dropped, schema
from medjax.data.images import decode
from medjax.data.text import language
from medjax.data.types import SPLIT_NAMES, Drop, Entry, Example, Source, Unreadable, patient_of

SIZE = 1024  # entries of a chunk, at least: a killed build loses as many at most for each process
MOST = 256  # chunks of a split, about: files that a reader opens


class Chunk(NamedTuple):
    split: str
    number: int
    entries: tuple[int, ...]

    @property
    def name(self) -> str:
        return f'{self.split}-{self.number:05d}'


class Stored(NamedTuple):
    """One record: what goes into the file, and what is cheap to know of it."""

    record: dict[str, Any]
    columns: dict[str, Any]  # name -> value, alike for all records
    attributes: dict[str, str | float]


def plan(named: Iterable[str]) -> list[Chunk]:
    """The entries of each split in their order, cut into chunks; `named` is the split of each entry."""
    named = np.asarray(list(named))
    chunks = []
    for split in SPLIT_NAMES:
        chunks += cut(split, np.flatnonzero(named == split))
    return chunks


def cut(split: str, numbers: np.ndarray) -> list[Chunk]:
    """One split's entries, or records of another data set, as chunks."""
    size = max(SIZE, -(-len(numbers) // MOST))
    parts = [tuple(numbers[at : at + size].tolist()) for at in range(0, len(numbers), size)]
    return [Chunk(split, k, part) for k, part in enumerate(parts)]


def write(
    source: Source,
    key: bytes,
    chunk: Chunk,
    folder: pathlib.Path,
    advance: Callable[[int], None] = lambda n: None,
    pool: Executor | None = None,
) -> None:
    """Makes folder/NAME.array_record and folder/NAME.npz, unless they are there and made of the same entries.

    `advance` hears of every entry that is done; `pool` opens several images at once.
    """
    labels = [np.asarray(source.label(i), np.int8) for i in chunk.entries]
    digest = _digest([source.entries[i] for i in chunk.entries], labels)
    if _made(folder, chunk, digest):
        advance(len(chunk.entries))
        return
    from array_record.python.array_record_module import ArrayRecordWriter

    serialized, stored, dropped = _serializer(len(source.labels)), [], []
    job = functools.partial(_store, source, key)
    pairs = list(zip(chunk.entries, labels, strict=True))
    hidden = folder / f'.{chunk.name}.{secrets.token_hex(4)}'  # by chance: other machines have processes of this number
    writer = ArrayRecordWriter(str(hidden), 'group_size:1')
    try:
        for entry, (made, drop) in zip(chunk.entries, _in_order(pool, job, pairs), strict=True):
            if drop:
                dropped.append(told(drop, key, source.namespace))
            if made is not None:
                writer.write(serialized(made.record | {'index': entry}))
                stored.append(made._replace(record={}))
            advance(1)
        writer.close()
        os.replace(hidden, folder / f'{chunk.name}.array_record')
        columns = _columns(stored) | {'digest': np.array(digest), 'drops': np.array(json.dumps(dropped))}
        files.write_npz(folder / f'{chunk.name}.npz', **columns)  # last: with it the chunk is there
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise


def read(folder: pathlib.Path, chunk: Chunk) -> dict[str, np.ndarray]:
    """The columns of a chunk that `write` made: n records and `digest`, `drops` (JSON rows)."""
    with np.load(folder / f'{chunk.name}.npz', allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@functools.cache
def _serializer(labels: int) -> Callable[[dict[str, Any]], bytes]:
    """A record's bytes as tfds reads them, the same in every process: its own serializer leaves the order open."""
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = schema(labels)
    serializer = ExampleSerializer(features.get_serialized_info())
    return lambda record: serializer.get_tf_example(features.encode_example(record)).SerializeToString(
        deterministic=True
    )


def _store(source: Source, key: bytes, pair: tuple[int, np.ndarray]) -> tuple[Stored | None, Drop | None]:
    """An entry and its label as a record, or why it (or a part of it) is left out."""
    i, label = pair
    entry = source.entries[i]
    try:
        example = source.load(i)
        picture = opened(example)
        small = decode.bounded(picture, source.size)
        image = (decode.keepable(example.image) if small is picture else None) or decode.png(small)
    except Unreadable as error:
        return None, Drop(entry.image, entry.where, str(error))
    mask, note = _mask(example, picture.shape[:2], source.size)
    text = {section: words for section, words in example.text.items() if words}
    info = {name: value for name, value in example.attributes.items() if value != ''}
    if small is not picture and 'spacing' in info:  # of a pixel, and these are larger now
        info['spacing'] = float(info['spacing']) * max(picture.shape[:2]) / max(small.shape[:2])
    if (words := ' '.join(text.values())) and 'language' not in info and (spoken := language.language(words)):
        info['language'] = spoken
    keys = np.array([*_hashed_ids(key, source.namespace, entry), _text_key(key, words), pixel_hash(picture)], np.uint64)
    thumb = near_duplicates.thumbnail(picture)
    content = [int(keys[-1]), label.tolist(), example.role, text, info, bool(mask)]
    record = dict(
        image=image, mask=mask, label=label, keys=keys.view(np.int64), role=example.role,
        text=json.dumps(text), info=json.dumps(info),
    )  # fmt: skip
    columns = dict(
        label=label,
        keys=keys,
        thumb=thumb,
        hash=near_duplicates.hashes(thumb[None])[0],
        shape=np.array(small.shape, np.int32),
        bits=np.uint8(small.dtype.itemsize * 8),
        words=np.int32(len(words.split())),
        sentences=np.int32(sum(len(language.sentences(part)) for part in text.values())),
        role=example.role,
        moments=moments(small),
        content=np.frombuffer(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest(), np.uint8),
    )
    return Stored(record, columns, info), Drop(entry.image, entry.where, note, 'detail') if note else None


def opened(example: Example) -> np.ndarray:
    """The pixels of an example, as its source has them."""
    given = example.image
    return decode.read(given, example.frame) if isinstance(given, bytes) else decode.grey_if_equal(given)


def pixel_hash(pixels: np.ndarray) -> np.uint64:
    """The first 8 bytes of sha256 over shape, depth and pixels [H,W,C] as the source has them, before any reduction."""
    digest = hashlib.sha256(f'{pixels.shape}{pixels.dtype}'.encode() + np.ascontiguousarray(pixels).tobytes()).digest()
    return np.uint64(int.from_bytes(digest[:8], 'big'))


def moments(pixels: np.ndarray) -> np.ndarray:
    """float64 [3]: number, sum and sum of squares of the values of [H,W,C] in units of [0,1], a mean over channels."""
    full = np.iinfo(pixels.dtype).max
    values = np.bincount(pixels.reshape(-1), minlength=full + 1).astype(np.float64)  # exact, and quicker than floats
    level = np.arange(full + 1) / full
    return np.array([values.sum(), values @ level, values @ level**2]) / pixels.shape[2]


def _hashed_ids(key: bytes, namespace: str, entry: Entry) -> list[np.uint64]:
    """Keys of patient, study, image, origin and what it came through; 0 where an image has no origin."""
    own = [ids.hashed(key, namespace, plain) for plain in (patient_of(entry), entry.study, entry.image)]
    none = np.uint64(0)
    if (origin := entry.origin) is None:
        return [*own, none, none]
    via = ids.hashed(key, *origin.via) if origin.via else none
    return [
        ids.hashed(key, origin.namespace, origin.patient),
        *own[1:],
        ids.hashed(key, origin.namespace, origin.image),
        via,
    ]


def _text_key(key: bytes, words: str) -> np.uint64:
    """Equal texts, but for case and blanks, have equal keys; 0 where there is no text."""
    same = ' '.join(words.casefold().split())
    return ids.hashed(key, 'text', same) if same else np.uint64(0)


def _mask(example: Example, shape: tuple[int, int], size: int | None) -> tuple[bytes, str]:
    """The mask as PNG in the stored size and the example's note, or b'' and why it is left out."""
    if example.mask is None:
        return b'', example.note
    try:
        mask = example.mask if isinstance(example.mask, np.ndarray) else decode.mask(example.mask)
        if mask.shape != shape:
            raise Unreadable(f'it has {mask.shape[1]}x{mask.shape[0]} pixels, its image {shape[1]}x{shape[0]}')
    except Unreadable as error:
        return b'', f'the mask is left out: {error}'
    return decode.png(decode.bounded_mask(mask, size)), example.note


def told(drop: Drop, key: bytes, namespace: str) -> Dropped:
    hashed = f'{ids.hashed(key, namespace, drop.image):016x}' if drop.image else ''
    return Dropped(drop.scope, drop.where, drop.reason, hashed)


def _columns(stored: list[Stored]) -> dict[str, np.ndarray]:
    """The columns of n records, and info/NAME for each fact that any of them has."""
    names = stored[0].columns if stored else ()
    columns = {name: np.stack([np.asarray(record.columns[name]) for record in stored]) for name in names}
    for name in sorted({name for record in stored for name in record.attributes}):
        columns[f'info/{name}'] = _fact([record.attributes.get(name) for record in stored])
    return columns


def _fact(values: list[str | float | None]) -> np.ndarray:
    """Words with '' where unknown, or float32 with nan."""
    if any(isinstance(value, str) for value in values):
        return np.array(['' if value is None else str(value) for value in values])
    return np.array([np.nan if value is None else value for value in values], np.float32)


def _digest(entries: list[Entry], labels: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for entry, label in zip(entries, labels, strict=True):
        digest.update(json.dumps([*entry, label.tolist()]).encode())
    return digest.hexdigest()


def _made(folder: pathlib.Path, chunk: Chunk, digest: str) -> bool:
    if not (folder / f'{chunk.name}.array_record').is_file():
        return False
    try:
        with np.load(folder / f'{chunk.name}.npz', allow_pickle=False) as file:  # which reads what is asked for alone
            return str(file['digest']) == digest
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
        return False


def _in_order(pool: Executor | None, function: Callable[[Any], Any], items: list[Any]) -> Iterator[Any]:
    """Like map, in a pool only a few results ahead, so that a big data set is never in memory."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: collections.deque = collections.deque()
    left = iter(items)
    try:
        for item in itertools.islice(left, 4 * (os.cpu_count() or 1)):
            waiting.append(pool.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in itertools.islice(left, 1):
                waiting.append(pool.submit(function, item))
            yield result
    finally:
        for future in waiting:
            future.cancel()
