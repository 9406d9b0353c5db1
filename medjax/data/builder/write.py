"""Writes a data set DATA from a source: in a hidden work folder beside DATA, which becomes DATA at the very end.

    DATA/medjax.json     name, version, labels, channels, bits, size, mean, std, splits, fingerprints
    DATA/columns/        values of every record that are cheap to keep: labels, hashed keys, thumbnails, age, sex, …
    DATA/drops.csv       every drop with its place and reason; ids are hashed
    DATA/audit.json      leaks and duplicates, as `medjax audit` finds them
    DATA/records/        ArrayRecord files that tensorflow_datasets reads (without TensorFlow)

A build that was stopped leaves its finished chunks in the work folder. The same command continues with them.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from medjax import __version__, files
from medjax.data import records
from medjax.data.audit import leaks
from medjax.data.builder import chunks, columns, ids, splits, unknown_patients, workers
from medjax.data.builder.chunks import Chunk
from medjax.data.builder.columns import Totals
from medjax.data.format import FORMAT, Dropped, schema, write_drops
from medjax.data.types import SPLIT_NAMES, Source
from medjax.errors import UserError, suggest

LARGE = 1024  # px; decoding time and memory grow with the area, and few encoders read larger images


def write(
    source: Source,
    out: str | os.PathLike,
    overwrite: bool = False,
    stratify: Sequence[str] = (),
    make_source: Callable[[], Source] | None = None,
    make_chunks: Callable[..., None] = workers.run,
) -> dict[str, Any]:
    """Writes the data set `out` from a source.

    Returns the content of medjax.json and also drops (rows of drops.csv), notes for the user, and the audit. Every
    source is treated alike: splits, hashed ids, image size, hashes, mean and deviation are made here.

    stratify: labels whose shares are kept equal in drawn splits.
    make_source: the factory of the source for worker processes. It must be picklable. None: no worker processes.
    make_chunks: makes the chunks, `workers.run` or a function with the same parameters.

    Raises UserError where `out` exists (without `overwrite`, or if it is no data set), where a patient is in two given
    splits, and where no record is left.
    """
    out = pathlib.Path(out).expanduser().absolute()
    check_out(out, overwrite)
    key = source.key or ids.private_key()
    unknown = [entry.image for entry in source.entries if entry.patient is None and entry.origin is None]
    source, make_source, notes = unknown_patients.assign_surrogate_patients(source, make_source)
    plan = chunks.plan(splits.assign(source, stratify))
    identity = [
        source.name,
        source.version,
        source.namespace,
        source.labels,
        source.size,
        source.stamp,
        ids.fingerprint(key),
    ]
    with work_folder(out, overwrite, identity) as work:
        chunk_folder = work / 'chunks'
        chunk_folder.mkdir(exist_ok=True)
        make_chunks(source, make_source, key, plan, chunk_folder)
        summary = _finish(source, key, unknown, plan, work)
        data, summary['audit'] = audit(work)
        summary['notes'] = [*source.notes, *notes, *_where_notes(data, source), *_notes(data)]
        shutil.rmtree(chunk_folder)
        publish(work, out, overwrite)
    return summary


def _finish(
    source: Source, key: bytes, unknown: Sequence[str], plan: list[Chunk], work: pathlib.Path
) -> dict[str, Any]:
    """Turns the finished chunks in `work` into a data set and returns the content of medjax.json, with the drops.

    unknown: ids of the images whose patient is unknown.
    """
    totals = columns.gather(work / 'chunks', plan, work / 'columns')
    drops = [*(chunks.drop_row(drop, key, source.namespace) for drop in source.dropped), *totals.drops]
    if not totals.chunk_lengths:
        shutil.rmtree(work / 'chunks')  # then `work_folder` removes the whole work folder
        raise UserError(_no_record_message(source, drops))
    description = dict(
        name=source.name,
        version=source.version,
        license=source.license,
        labels=list(source.labels),
        split_list='drawn' if source.entries[0].split is None else source.splits or 'given',
        dropped=sum(drop.scope == 'record' for drop in drops),
        invented=source.key is not None,
        unknown_patients=_count_kept(source, key, unknown, totals.drops),
        namespace=source.namespace,
        key_fingerprint=ids.fingerprint(key),
        columns=[use._asdict() for use in source.columns],
        fit=source.shown.fit,
        windows=[[window.centre, window.width] for window in source.shown.windows],
        masks=list(source.masks),
        remarks=dict(collections.Counter(drop.reason for drop in drops if drop.scope == 'remark').most_common()),
    )
    summary = assemble(description, source.size, totals, plan, work)
    write_drops(work / 'drops.csv', drops)
    return summary | {'drops': drops, 'patient_count': totals.patient_count}


def _count_kept(source: Source, key: bytes, images: Sequence[str], drops: Sequence[Dropped]) -> int:
    """The number of `images` that became records. drops: of the images that were opened; their ids are hashed."""
    set_aside = {drop.image_key for drop in drops if drop.scope == 'record'}
    if not set_aside:
        return len(images)
    return sum(f'{ids.hashed(key, source.namespace, image):016x}' not in set_aside for image in images)


def assemble(
    description: dict[str, Any], size: int | None, totals: Totals, plan: Sequence[Chunk], work: pathlib.Path
) -> dict[str, Any]:
    """Moves the chunks' records to work/records and writes medjax.json: the description and the totals.

    `size` is the bound on the side of stored images; only the fingerprint needs it. Returns the content of medjax.json.
    """
    _move_records(len(description['labels']), plan, totals.chunk_lengths, work / 'chunks', work / 'records')
    count, total, squares = totals.moments
    mean = total / count
    summary = dict(
        format=FORMAT,
        **description,
        channels=totals.channels,
        bits=totals.bits,
        size=totals.size,
        mean=float(mean),
        std=float(np.sqrt(max(squares / count - mean**2, 0.0))),
        splits={split: sum(lengths) for split, lengths in totals.chunk_lengths.items()},
        patients=totals.patients,
        fingerprint=_fingerprint(description, size, totals.content),
    )
    (work / 'medjax.json').write_text(json.dumps(summary, indent=1) + '\n')
    return summary


def audit(work: pathlib.Path) -> tuple[records.DataSet, dict[str, Any]]:
    """Opens the finished data set in `work` and audits it. The result also goes into audit.json."""
    data = records.open(work)
    result = leaks.audit([data])
    (work / 'audit.json').write_text(json.dumps(result, indent=1) + '\n')
    return data, result


def _move_records(
    labels: int, plan: Sequence[Chunk], chunk_lengths: dict[str, list[int]], folder: pathlib.Path, out: pathlib.Path
) -> None:
    """Moves the chunks' record files from `folder` to `out`, with names and metadata for tensorflow_datasets.

    labels: number of labels. chunk_lengths: split -> records of each of its chunks.
    """
    import tensorflow_datasets as tfds

    out.mkdir()
    infos = []
    for split, lengths in chunk_lengths.items():
        split_chunks = [chunk for chunk in plan if chunk.split == split]
        filled = [(chunk, n) for chunk, n in zip(split_chunks, lengths, strict=True) if n]
        size = 0
        for k, (chunk, _) in enumerate(filled):
            file = out / f'records-{split}.array_record-{k:05d}-of-{len(filled):05d}'
            os.rename(folder / f'{chunk.name}.array_record', file)
            size += file.stat().st_size
        template = tfds.core.ShardedFileTemplate(
            data_dir=out, dataset_name='records', split=split, filetype_suffix='array_record'
        )
        infos.append(tfds.core.SplitInfo(split, [n for _, n in filled], size, template))
    tfds.folder_dataset.write_metadata(
        data_dir=out, features=schema(labels), split_infos=infos, version=f'{FORMAT}.0.0', check_data=False,
        disable_shuffling=True,
    )  # fmt: skip


def _fingerprint(description: dict[str, Any], size: int | None, content: str) -> str:
    """16 hex digits over content and order of the records, without hashed ids: equal for every id key and machine."""
    identity = [FORMAT, description['name'], description['version'], description['labels'], size, content]
    if description.get('fit'):
        identity.append(description['fit'])
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _notes(data: records.DataSet) -> list[str]:
    """Facts about the finished data set that its user should see."""
    present = {name: data.split(name) for name in data.splits}
    shapes = np.concatenate([split.column('shape') for split in present.values()])
    depths = np.concatenate([split.column('bits') for split in present.values()])
    notes = []
    if not data.fit and (long := int((3 * shapes[:, :2].min(1) < 2 * shapes[:, :2].max(1)).sum())):
        are, their = ('is', 'its') if long == 1 else ('are', 'their')
        notes.append(
            f'{long} of {len(shapes)} images {are} so long that {their} centre square loses more than a third '
            f'of {their} area, and encoders see only this square; '
            "--fit pad, or fit='pad' of an encoder, shows the whole image"
        )
    if 0 < (colour := int((shapes[:, 2] == 3).sum())) < len(shapes):
        notes.append(
            f'{colour} of {len(shapes)} images {"is" if colour == 1 else "are"} in colour. So the data set has 3 '
            'channels, and a grey image is read with its channel repeated'
        )
    if 0 < (deep := int((depths == 16).sum())) < len(depths):
        notes.append(
            f'{deep} of {len(depths)} images {"has" if deep == 1 else "have"} 16 bits. So the data set has 16 '
            'bits, and 8-bit values are scaled to 16 bits when they are read'
        )
    if (longest := int(shapes[:, :2].max())) > LARGE:
        notes.append(f'the longest side of an image is {longest} px. Training reads smaller images faster: use --size')
    if missing := [name for name in SPLIT_NAMES if name not in present]:
        notes.append(f'no record in {" and ".join(missing)}')
    return notes


def _where_notes(data: records.DataSet, source: Source) -> list[str]:
    """A note on each attribute of --where that no image has: perhaps its name has a typing error."""
    names = {name for split in data.splits for name in data.split(split).attribute_names}
    return [
        f'--where {condition}: no image of the data set has an attribute {condition.name}'
        + suggest(condition.name, names)
        for condition in source.shown.conditions
        if condition.name not in names
    ]


def _no_record_message(source: Source, drops: list[Dropped]) -> str:
    reasons = collections.Counter(drop.reason for drop in drops if drop.scope == 'record').most_common(3)
    counts = '; '.join(f'{n} x {reason}' for reason, n in reasons)
    return f'{source.name}: no usable image, so nothing was written ({counts or "the source is empty"})'


def check_out(out: pathlib.Path, overwrite: bool) -> None:
    """UserError where `out` exists and `overwrite` is not set, or where `out` is not a data set."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / 'medjax.json').is_file():
        raise UserError(
            f'{out} exists and is no data set of medjax; choose another --out, or move the old folder away yourself'
        )
    if not overwrite:
        raise UserError(f'{out} exists; choose another --out, or add --overwrite to replace it')


@contextlib.contextmanager
def work_folder(out: pathlib.Path, overwrite: bool, identity: Sequence[Any]) -> Iterator[pathlib.Path]:
    """The hidden folder beside `out` in which the data set is made. A lock keeps other builds out of it.

    If the build is stopped, the folder stays as long as it holds a finished chunk. The next build uses these chunks if
    its `identity` (name, version, options, …; any JSON) is equal, and removes them otherwise.
    """
    work = out.with_name(f'.{out.name}.work')
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = (work / 'lock').open('a+')
    except OSError as error:
        raise UserError(f'{out.parent} cannot be written to ({error.strerror}); choose another --out') from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(lock.fileno()), os.stat(work / 'lock')):
                raise FileNotFoundError  # the other build published the folder after we opened the lock
        except OSError:
            raise UserError(f'another build is writing {out}; wait for it, or choose another --out') from None
        digest = hashlib.sha256(json.dumps([__version__, FORMAT, *identity]).encode()).hexdigest()
        lock.seek(0)
        usable = ('lock', 'chunks') if lock.read() == digest else ('lock',)
        for path in [path for path in work.iterdir() if path.name not in usable]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()  # another source, or a half-published data set
        for path in work.glob('chunks/.*'):  # unfinished files of a killed process
            path.unlink()
        files.sweep(out)  # a build that was killed while it published may have set the old data set aside
        try:
            lock.truncate(0)
            os.write(lock.fileno(), digest.encode())  # without a buffer, which closing the file would write again
            check_out(out, overwrite)  # another build may have published `out` since the first check
            yield work
        except (OSError, RuntimeError) as error:
            why = None if isinstance(error, PermissionError) else files.reason(error)  # a source may be unreadable
            if why is None:
                raise
            raise UserError(
                f'the records of {out} cannot be written: {why}. It continues with the finished chunks'
            ) from None
        finally:
            if work.exists() and not any((work / 'chunks').glob('*.npz')):
                shutil.rmtree(work, ignore_errors=True)


def publish(work: pathlib.Path, out: pathlib.Path, overwrite: bool) -> None:
    """Renames the work folder to `out`. An old data set is deleted when the new one is in its place."""
    check_out(out, overwrite)  # something may have been put there meanwhile
    (work / 'lock').unlink()
    os.chmod(work, 0o777 & ~_umask())
    files.replace_folder(work, out)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
