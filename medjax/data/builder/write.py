"""From a source to a data set on disk: made beside it in a hidden work folder, published whole or not at all. It makes

    DATA/medjax.json     name, version, labels, channels, bits, size, mean, std, splits, fingerprints
    DATA/columns/        what is cheap to know of every record: labels, hashed keys, thumbnails, age, sex, …
    DATA/drops.csv       what was set aside, where it stood and why; hashed ids only
    DATA/audit.json      leaks and duplicates, as `medjax audit` finds them
    DATA/records/        ArrayRecord files that tensorflow_datasets reads (without TensorFlow)

A build that was stopped leaves its finished chunks in the work folder, and the same command goes on from them.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from medjax import __version__
from medjax.data import records
from medjax.data.audit import leaks
from medjax.data.builder import chunks, columns, ids, splits, unknown_patients, workers
from medjax.data.builder.chunks import Chunk
from medjax.data.builder.columns import Gathered
from medjax.data.format import FORMAT, Dropped, schema, write_drops
from medjax.data.types import SPLIT_NAMES, Source
from medjax.errors import UserError

LARGE = 1024  # px; decoding time and memory grow with the area, and few encoders see more


def write(
    source: Source,
    out: str | os.PathLike,
    overwrite: bool = False,
    stratify: Sequence[str] = (),
    again: Callable[[], Source] | None = None,
    run: Callable[..., None] = workers.run,
) -> dict[str, Any]:
    """Writes the data set `out` and returns the content of its medjax.json plus drops (rows of drops.csv), notes and
    the audit.

    Splits, hashed ids, reduced images, hashes, mean and deviation are made here, alike for every source; `stratify`
    names labels whose shares drawn splits keep. `again` makes the source once more in other processes, which `run`
    starts. Raises UserError where `out` exists (without `overwrite`, or if it is no data set), where a patient is in
    two splits, and where no record is left.
    """
    out = pathlib.Path(out).expanduser().absolute()
    may_write(out, overwrite)
    key = source.key or ids.private_key()
    unknown = sum(entry.patient is None and entry.origin is None for entry in source.entries)
    source, again, notes = unknown_patients.of_near_duplicates(source, again)
    named = splits.assign(source, stratify)
    plan = chunks.plan(named)
    said = [
        source.name,
        source.version,
        source.namespace,
        source.labels,
        source.size,
        source.stamp,
        ids.fingerprint(key),
    ]
    with work_folder(out, overwrite, said) as work:
        made = work / 'chunks'
        made.mkdir(exist_ok=True)
        run(source, again, key, plan, made)
        summary = _finish(source, key, unknown, plan, made, work)
        data, summary['audit'] = audited(work)
        summary['notes'] = [*source.notes, *notes, *_notes(data)]
        shutil.rmtree(made)
        publish(work, out, overwrite)
    return summary


def _finish(
    source: Source, key: bytes, unknown: int, plan: list[Chunk], made: pathlib.Path, work: pathlib.Path
) -> dict[str, Any]:
    """Moves the chunks' files into `work` as a data set and returns what medjax.json says."""
    known = columns.gather(made, plan, work / 'columns')
    drops = [*(chunks.told(drop, key, source.namespace) for drop in source.dropped), *known.drops]
    if not known.shards:
        shutil.rmtree(made)  # so that the work folder goes
        raise UserError(_nothing(source, drops))
    about = dict(
        name=source.name,
        version=source.version,
        license=source.license,
        labels=list(source.labels),
        split_list='drawn' if source.entries[0].split is None else source.splits or 'given',
        dropped=sum(drop.scope == 'record' for drop in drops),
        invented=source.key is not None,
        unknown_patients=unknown,
        namespace=source.namespace,
        key_fingerprint=ids.fingerprint(key),
    )
    summary = assembled(about, source.size, known, plan, made, work)
    write_drops(work / 'drops.csv', drops)
    return summary | {'drops': drops, 'people': known.people}


def assembled(
    about: dict[str, Any],
    size: int | None,
    known: Gathered,
    plan: Sequence[Chunk],
    made: pathlib.Path,
    work: pathlib.Path,
) -> dict[str, Any]:
    """Moves the chunks' records into `work` and writes medjax.json: `about`, and what the columns add up to. `size` is
    the bound that images were stored with; it enters the fingerprint alone."""
    _as_tfds(len(about['labels']), plan, known.shards, made, work / 'records')
    count, total, squares = known.moments
    mean = total / count
    summary = dict(
        format=FORMAT,
        **about,
        channels=known.channels,
        bits=known.bits,
        size=known.size,
        mean=float(mean),
        std=float(np.sqrt(max(squares / count - mean**2, 0.0))),
        splits={split: sum(lengths) for split, lengths in known.shards.items()},
        patients=known.patients,
        fingerprint=_fingerprint(about, size, known.content),
    )
    (work / 'medjax.json').write_text(json.dumps(summary, indent=1) + '\n')
    return summary


def audited(work: pathlib.Path) -> tuple[records.DataSet, dict[str, Any]]:
    """The finished data set in `work`, opened, and its audit, which is kept in audit.json."""
    data = records.open(work)
    found = leaks.audit([data])
    (work / 'audit.json').write_text(json.dumps(found, indent=1) + '\n')
    return data, found


def _as_tfds(
    labels: int, plan: Sequence[Chunk], shards: dict[str, list[int]], made: pathlib.Path, out: pathlib.Path
) -> None:
    """The chunks' files under the names, and with the metadata, by which tensorflow_datasets reads them."""
    import tensorflow_datasets as tfds

    out.mkdir()
    infos = []
    for split, lengths in shards.items():
        mine = [chunk for chunk in plan if chunk.split == split]
        filled = [(chunk, n) for chunk, n in zip(mine, lengths, strict=True) if n]
        size = 0
        for k, (chunk, _) in enumerate(filled):
            file = out / f'records-{split}.array_record-{k:05d}-of-{len(filled):05d}'
            os.rename(made / f'{chunk.name}.array_record', file)
            size += file.stat().st_size
        template = tfds.core.ShardedFileTemplate(
            data_dir=out, dataset_name='records', split=split, filetype_suffix='array_record'
        )
        infos.append(tfds.core.SplitInfo(split, [n for _, n in filled], size, template))
    tfds.folder_dataset.write_metadata(
        data_dir=out, features=schema(labels), split_infos=infos, version=f'{FORMAT}.0.0', check_data=False,
        disable_shuffling=True,
    )  # fmt: skip


def _fingerprint(about: dict[str, Any], size: int | None, content: str) -> str:
    """16 hex digits over content and order; hashed ids are left out, so every key and machine gets the same."""
    said = json.dumps([FORMAT, about['name'], about['version'], about['labels'], size, content])
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _notes(data: records.DataSet) -> list[str]:
    """What the data set should not hide."""
    parts = {split: data.split(split) for split in data.splits}
    shapes = np.concatenate([split.column('shape') for split in parts.values()])
    depths = np.concatenate([split.column('bits') for split in parts.values()])
    notes = []
    if 0 < (colour := int((shapes[:, 2] == 3).sum())) < len(shapes):
        notes.append(f'{colour} of {len(shapes)} images are in colour: the data set has 3 channels, grey is repeated')
    if 0 < (deep := int((depths == 16).sum())) < len(depths):
        notes.append(f'{deep} of {len(depths)} images have 16 bits: the data set has 16, 8-bit values are spread')
    if (longest := int(shapes[:, :2].max())) > LARGE:
        notes.append(f'the longest side has {longest} px; training reads smaller images faster (--size bounds them)')
    if missing := [split for split in SPLIT_NAMES if split not in parts]:
        notes.append(f'no record in {" and ".join(missing)}')
    return notes


def _nothing(source: Source, drops: list[Dropped]) -> str:
    reasons = collections.Counter(drop.reason for drop in drops if drop.scope == 'record').most_common(3)
    why = '; '.join(f'{n} x {reason}' for reason, n in reasons)
    return f'{source.name}: no usable image, so nothing was written ({why or "the source is empty"})'


def may_write(out: pathlib.Path, overwrite: bool) -> None:
    """UserError where `out` exists, without `overwrite` or as something that is no data set."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / 'medjax.json').is_file():
        raise UserError(f'{out} exists and is no data set of medjax; choose another --out, or move it away yourself')
    if not overwrite:
        raise UserError(f'{out} exists; choose another --out, or add --overwrite to replace it')


@contextlib.contextmanager
def work_folder(out: pathlib.Path, overwrite: bool, said: Sequence[Any]) -> Iterator[pathlib.Path]:
    """The hidden folder beside `out` where it is made, this build's alone while it lives.

    It is kept where the build is stopped and some of its chunks are whole, else it goes; what it holds is used again
    where the same is `said` of what is built.
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
                raise FileNotFoundError  # it was published while we opened it
        except OSError:
            raise UserError(f'another build is writing {out}; wait for it, or choose another --out') from None
        digest = hashlib.sha256(json.dumps([__version__, FORMAT, *said]).encode()).hexdigest()
        lock.seek(0)
        mine = ('lock', 'chunks') if lock.read() == digest else ('lock',)
        for left in (path for path in work.iterdir() if path.name not in mine):
            shutil.rmtree(left) if left.is_dir() else left.unlink()  # of another source, or half of what was published
        for left in work.glob('chunks/.*'):  # of a process that was killed
            left.unlink()
        lock.truncate(0)
        lock.write(digest)
        lock.flush()
        try:
            may_write(out, overwrite)  # again: another build may have come first
            yield work
        except (OSError, RuntimeError) as error:
            if not _is_full(error):
                raise
            raise UserError(f'no space is left in {out.parent}; make some, and the same command goes on') from None
        finally:
            if work.exists() and not any((work / 'chunks').glob('*.npz')):
                shutil.rmtree(work, ignore_errors=True)


def _is_full(error: Exception) -> bool:
    """ArrayRecord's writer says it in words only."""
    return getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error)


def publish(work: pathlib.Path, out: pathlib.Path, overwrite: bool) -> None:
    """One rename; an old data set is moved aside first and deleted after."""
    may_write(out, overwrite)  # once more: something may have come there meanwhile
    (work / 'lock').unlink()
    os.chmod(work, 0o777 & ~_umask())
    old = work.with_name(work.name + '.old')
    shutil.rmtree(old, ignore_errors=True)  # of a build that was killed here
    if out.exists():
        os.rename(out, old)
    os.rename(work, out)
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
