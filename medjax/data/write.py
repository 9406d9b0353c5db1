"""From a source to a data set on disk: one pass over the images, published whole or not at all. It makes

    DATA/medjax.json     name, version, labels, channels, bits, size, mean, std, splits, fingerprints
    DATA/columns.npz     what is cheap to know of every record: labels, hashed keys, age, sex, …
    DATA/drops.csv       what was set aside, where it stood and why; hashed ids only
    DATA/records/        ArrayRecord files, written and read through tensorflow_datasets (without TensorFlow)

and nothing of it is seen at DATA before all of it is there.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from medjax.data import decode, ids, splits
from medjax.data.sources import Drop, Entry, Example, Source, Unreadable
from medjax.errors import UserError

FORMAT = 1
LARGE = 1024  # px; decoding time and memory grow with the area, and few encoders see more
KINDS = ('patient', 'study', 'image', 'pixels')  # the hashed keys of a record, in the order of their columns


class Stored(NamedTuple):
    """One record, ready to be written, and what the data set's summary needs of it."""

    split: str
    image: bytes  # JPEG or PNG
    mask: bytes  # PNG, or empty
    label: np.ndarray  # int8 [L]
    keys: np.ndarray  # uint64 [4], see KINDS
    role: str
    text: dict[str, str]
    info: dict[str, str | float]
    shape: tuple[int, ...]  # [H,W,C] as stored
    bits: int
    moments: np.ndarray  # float64 [3]: pixels, sum and sum of squares of values in [0,1]
    content: str  # digest of all of it but the hashed ids


def write(source: Source, out: str | os.PathLike, overwrite: bool = False) -> dict[str, Any]:
    """Writes the data set `out` and returns the content of its medjax.json plus {'drops': [Drop], 'notes': [str]}.

    Splits, hashed ids, reduced images, pixel hashes, mean and deviation are made here, alike for every source.
    Nothing is seen at `out` before all of it is there. Raises UserError where `out` exists (without `overwrite`, or
    if it is no data set), where a patient is in two splits, and where no record is left.
    """
    out = pathlib.Path(out).expanduser().absolute()
    _may_write(out, overwrite)
    key = source.key or ids.private_key()
    named = splits.assign(source.entries, source.namespace)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        hidden = pathlib.Path(tempfile.mkdtemp(dir=out.parent, prefix=f'.{out.name}.'))
    except OSError as error:
        raise UserError(f'{out.parent} cannot be written to ({error.strerror}); choose another --out') from None
    try:
        drops = list(source.dropped)
        stored = _write_records(source, key, named, drops, hidden)
        summary = _summary(source, key, stored, drops)
        _write_columns(stored, hidden / 'columns.npz')
        _write_drops(drops, key, source.namespace, hidden / 'drops.csv')
        (hidden / 'medjax.json').write_text(json.dumps(summary, indent=1) + '\n')
        _publish(hidden, out)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return summary | {'drops': drops, 'notes': [*source.notes, *_notes(stored)]}


def _write_records(
    source: Source, key: bytes, named: list[str], drops: list[Drop], hidden: pathlib.Path
) -> list[Stored]:
    """Writes hidden/records, split by split in the order of the entries; returns the records without their bytes."""
    import tensorflow_datasets  # noqa: F401  patches __import__ while it loads: before the threads, never beside them
    from tqdm import tqdm

    done: list[Stored] = []
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=len(named), desc=source.name, unit=' images', disable=None) as bar,
    ):

        def examples(split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            chosen = [i for i, name in enumerate(named) if name == split]
            spread = 2**128 // max(len(chosen), 1)  # tfds sorts big splits through buckets of the 128-bit key range
            made = _in_order(pool, lambda i: _store(source, key, i, split), chosen)
            for n, (i, (record, drop)) in enumerate(zip(chosen, made, strict=True)):
                bar.update()
                if drop:
                    drops.append(drop)
                if record is not None:
                    done.append(record._replace(image=b'', mask=b'', text={}))
                    yield n * spread, _encoded(record, i)

        generators: dict[str, Iterator] = {}
        for split in splits.NAMES:  # a split may turn out to be empty only once its images are opened
            made = examples(split)
            if (first := next(made, None)) is not None:
                generators[split] = itertools.chain([first], made)
        if not generators:
            raise UserError(_nothing(source, drops))
        _tfds_build(generators, len(source.labels), hidden)
    return done


def _store(source: Source, key: bytes, i: int, split: str) -> tuple[Stored | None, Drop | None]:
    """Entry i as a record, or why it (or its mask) is left out."""
    entry = source.entries[i]
    try:
        example = source.load(i)
        given = example.image
        picture = decode.read(given, example.frame) if isinstance(given, bytes) else decode.grey_if_equal(given)
        small = decode.bounded(picture, source.size)
        kept = decode.keepable(given) if small is picture else None
        image = kept or decode.png(small)
    except Unreadable as error:
        return None, Drop(entry.image, entry.where, str(error))
    mask, note = _mask(example, picture.shape[:2], source.size)
    full = np.iinfo(small.dtype).max
    values = np.bincount(small.reshape(-1), minlength=full + 1).astype(np.float64)  # exact, and quicker than floats
    level = np.arange(full + 1) / full
    pixels = pixel_hash(picture)
    label = np.asarray(source.label(i), np.int8)
    text, info = dict(example.text), {k: v if isinstance(v, str) else float(v) for k, v in example.info.items()}
    content = [split, int(pixels), label.tolist(), example.role, text, info, bool(mask)]
    record = Stored(
        split=split,
        image=image,
        mask=mask,
        label=label,
        keys=np.array([*_hashed_ids(key, source.namespace, entry), pixels], np.uint64),
        role=example.role,
        text=text,
        info=info,
        shape=small.shape,
        bits=small.dtype.itemsize * 8,
        moments=np.array([values.sum(), values @ level, values @ level**2]) / small.shape[2],
        content=hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(),
    )
    return record, Drop(entry.image, entry.where, note, 'part') if note else None


def _hashed_ids(key: bytes, namespace: str, entry: Entry) -> list[np.uint64]:
    return [ids.hashed(key, namespace, plain) for plain in (splits.patient(entry), entry.study, entry.image)]


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


def pixel_hash(pixels: np.ndarray) -> np.uint64:
    """The first 8 bytes of sha256 over shape, depth and pixels [H,W,C] as the source has them, before any reduction."""
    digest = hashlib.sha256(f'{pixels.shape}{pixels.dtype}'.encode() + np.ascontiguousarray(pixels).tobytes()).digest()
    return np.uint64(int.from_bytes(digest[:8], 'big'))


def _in_order(pool: ThreadPoolExecutor, function: Callable[[int], Any], items: list[int]) -> Iterator[Any]:
    """Like pool.map, but only a few results ahead, so that a big data set is never in memory."""
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


def _encoded(record: Stored, index: int) -> dict[str, Any]:
    return dict(
        image=record.image, mask=record.mask, label=record.label, keys=record.keys, role=record.role,
        text=json.dumps(record.text), info=json.dumps(record.info), index=index,
    )  # fmt: skip


def _tfds_build(generators: dict[str, Iterator], labels: int, hidden: pathlib.Path) -> None:
    import tensorflow_datasets as tfds

    with tfds.core.registered.skip_registration():  # a builder of one build, not a data set known by name

        class Records(tfds.core.GeneratorBasedBuilder):
            """Records of medjax: encoded images, their labels and hashed keys; text and info as JSON."""

            VERSION = tfds.core.Version(f'{FORMAT}.0.0')

            def _info(self):
                text, names = tfds.features.Text(), ('image', 'mask', 'role', 'text', 'info')  # Text holds any bytes
                features = dict.fromkeys(names, text) | {
                    'index': np.int64,
                    'label': tfds.features.Tensor(shape=(labels,), dtype=np.int8),
                    'keys': tfds.features.Tensor(shape=(len(KINDS),), dtype=np.uint64),
                }
                return tfds.core.DatasetInfo(
                    builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
                )

            def _split_generators(self, dl_manager):
                return generators

            def _generate_examples(self):
                raise AssertionError('the generators are given')

    tfds.disable_progress_bar()  # there is one bar already
    with contextlib.redirect_stdout(io.StringIO()):
        builder = Records(data_dir=hidden / 'tfds', file_format='array_record')
        builder.download_and_prepare()
    os.rename(builder.data_path, hidden / 'records')
    shutil.rmtree(hidden / 'tfds')


def _summary(source: Source, key: bytes, stored: list[Stored], drops: list[Drop]) -> dict[str, Any]:
    """medjax.json. Mean and deviation are those of the train split's pixels, or of all where there is no train."""
    train = [record for record in stored if record.split == 'train'] or stored
    count, total, squares = np.sum([record.moments for record in train], axis=0)
    mean = total / count
    return dict(
        format=FORMAT,
        name=source.name,
        version=source.version,
        license=source.license,
        labels=list(source.labels),
        channels=max(record.shape[2] for record in stored),
        bits=max(record.bits for record in stored),
        size=max(max(record.shape[:2]) for record in stored),
        mean=float(mean),
        std=float(np.sqrt(max(squares / count - mean**2, 0.0))),
        splits={split: len(records) for split, records in _by_split(stored).items()},
        patients={
            split: len({int(r.keys[KINDS.index('patient')]) for r in records})
            for split, records in _by_split(stored).items()
        },
        dropped=sum(drop.part == 'record' for drop in drops),
        key_fingerprint=ids.fingerprint(key),
        fingerprint=_fingerprint(source, stored),
    )


def _fingerprint(source: Source, stored: list[Stored]) -> str:
    """16 hex digits over content and order; hashed ids are left out, so every key and machine gets the same."""
    digest = hashlib.sha256(json.dumps([FORMAT, source.name, source.version, source.labels, source.size]).encode())
    for record in stored:
        digest.update(record.content.encode())
    return digest.hexdigest()[:16]


def _by_split(stored: list[Stored]) -> dict[str, list[Stored]]:
    """The records of each split that has any, in their order."""
    chosen = {split: [record for record in stored if record.split == split] for split in splits.NAMES}
    return {split: records for split, records in chosen.items() if records}


def _write_columns(stored: list[Stored], path: pathlib.Path) -> None:
    """For each split: label, keys and role of every record, and a column for each fact of `info`."""
    facts = sorted({name for record in stored for name in record.info})
    columns = {}
    for split, records in _by_split(stored).items():
        columns[f'{split}/label'] = np.stack([record.label for record in records])
        columns[f'{split}/keys'] = np.stack([record.keys for record in records])
        columns[f'{split}/info/role'] = np.array([record.role for record in records])
        for name in facts:
            values = [record.info.get(name) for record in records]
            if any(isinstance(value, str) for value in values):
                columns[f'{split}/info/{name}'] = np.array(['' if value is None else str(value) for value in values])
            else:
                columns[f'{split}/info/{name}'] = np.array([np.nan if v is None else v for v in values], np.float32)
    np.savez_compressed(path, **columns)  # type: ignore[arg-type]


def _write_drops(drops: list[Drop], key: bytes, namespace: str, path: pathlib.Path) -> None:
    with path.open('w', newline='') as file:
        table = csv.writer(file)
        table.writerow(['part', 'where', 'reason', 'image_key'])
        for drop in drops:
            image_key = f'{ids.hashed(key, namespace, drop.image):016x}' if drop.image else ''
            table.writerow([drop.part, drop.where, drop.reason, image_key])


def _notes(stored: list[Stored]) -> list[str]:
    """What the data set should not hide."""
    notes = []
    colour = sum(record.shape[2] == 3 for record in stored)
    if 0 < colour < len(stored):
        notes.append(f'{colour} of {len(stored)} images are in colour: the data set has 3 channels, grey is repeated')
    deep = sum(record.bits == 16 for record in stored)
    if 0 < deep < len(stored):
        notes.append(f'{deep} of {len(stored)} images have 16 bits: the data set has 16, 8-bit values are spread')
    if (longest := max(max(record.shape[:2]) for record in stored)) > LARGE:
        notes.append(f'the longest side has {longest} px; training reads smaller images faster (--size bounds them)')
    if burned := sum(str(record.info.get('burned_in')).upper() == 'YES' for record in stored):
        notes.append(f'{burned} images have text burned into their pixels, says their DICOM header: look for names')
    if missing := [split for split in splits.NAMES if split not in _by_split(stored)]:
        notes.append(f'no record in {" and ".join(missing)}')
    places = collections.defaultdict(list)
    for record in stored:
        places[record.keys[KINDS.index('pixels')]].append(record.split)
    if across := sum(len(set(where)) > 1 for where in places.values()):
        notes.append(f'{across} images lie in more than one split, pixel for pixel')
    if again := sum(len(where) - 1 for where in places.values()):
        notes.append(f'{again} records repeat the pixels of another one; they are kept')
    return notes


def _nothing(source: Source, drops: list[Drop]) -> str:
    reasons = collections.Counter(drop.reason for drop in drops if drop.part == 'record').most_common(3)
    why = '; '.join(f'{n} x {reason}' for reason, n in reasons)
    return f'{source.name}: no usable image, so nothing was written ({why or "the source is empty"})'


def _may_write(out: pathlib.Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / 'medjax.json').is_file():
        raise UserError(f'{out} exists and is no data set of medjax; choose another --out, or move it away yourself')
    if not overwrite:
        raise UserError(f'{out} exists; choose another --out, or add --overwrite to replace it')


def _publish(hidden: pathlib.Path, out: pathlib.Path) -> None:
    """One rename; an old data set is moved aside first and deleted after."""
    os.chmod(hidden, 0o777 & ~_umask())  # mkdtemp made it private
    old = hidden.with_name(hidden.name + '.old')
    if out.exists():
        os.rename(out, old)
    os.rename(hidden, out)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
