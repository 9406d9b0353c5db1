"""The folder of a run: who may write it, whose run it holds, and what of it is lost.

    with held(folder):                one run at a time; a run that is refused leaves nothing that it made
        check_there(folder)           before each write: UserError where somebody has deleted the folder
        before = read_config(folder)  its config.json; UserError where it is lost while the run is there
        check_data(folder, datasets)  UserError where the run had other data, or where nothing tells which

What can be made again is made again: data/sources.json from data/seen.npz, and data/seen.npz from the data. Only what
the run cannot know is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medjax import config as configs, files
from medjax.data import records
from medjax.data.audit import seen
from medjax.errors import UserError
from medjax.parallel import runtime
from medjax.parallel.agreement import agreed
from medjax.training import checkpoint
from medjax.weights import export

LOCK = '.lock'
SEEN = 60  # seconds until all hosts see a new file on a network disk


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other runs out of RUN, and sweeps what killed ones left in it.

    UserError where another process trains there, where nothing can be written, or where somebody deletes the folder
    meanwhile. Folders that are new and empty at the end are removed, and so is all that a run made which was refused
    before it had a config.json.
    """
    what = f'the folder {folder}'
    if not runtime.is_main():
        agreed(what, lambda: None)
        agreed(what, lambda: _check_shared(folder))
        yield
        return
    with contextlib.ExitStack() as at_the_end:

        def take() -> None:
            at_the_end.enter_context(_cleared(folder))
            at_the_end.enter_context(_locked(folder))
            files.sweep_below(folder)

        agreed(what, take)
        agreed(what, lambda: None)  # the others see it
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # of a library that misses its files
            if not is_ours(folder):
                raise _deleted(folder) from error
            raise
        finally:
            if not is_ours(folder):
                _remove_rest(folder)


def check_there(folder: Path, begun: bool = True) -> None:
    """UserError where RUN was deleted while this run trained in it, or where another run has begun there since.

    A write would make the folder again, with half of the run in it. The main process writes, so it alone looks. A run
    that has `begun` has its config.json.
    """
    if not runtime.is_main():
        return
    if not is_ours(folder):
        raise _deleted(folder)
    if begun and not (folder / 'config.json').exists():
        raise UserError(
            f'{folder}/config.json was deleted while this run trained, so the run stops. What it has saved is still '
            f'there. {_write_again(folder)}'
        )


def _deleted(folder: Path) -> UserError:
    return UserError(
        f'{folder} was deleted while this run trained in it, or another run has begun there: its {LOCK} is gone or '
        'names another process. This run stops and writes nothing there any more; if the folder is still there, the '
        'same command goes on from its last checkpoint'
    )


def _write_again(folder: Path) -> str:
    """What to do where config.json is lost or damaged."""
    if not checkpoint.steps(folder / 'checkpoints'):
        return 'It has no checkpoint to go on from: use another --workdir, or move the folder away'
    return (
        'Write it again with the recipe, the data and the overrides of the run, then train on: medjax config RECIPE '
        f'--data DATA --config.KEY=VALUE > {folder / "config.json"}'
    )


def is_ours(folder: Path) -> bool:
    """Whether RUN/.lock is there and names this process. A disk that does not answer says nothing."""
    try:
        return (folder / LOCK).read_text(errors='replace') == _name()
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


@functools.cache
def _host() -> str:
    return socket.gethostname()  # it may change while a run trains


def _name() -> str:
    """Host and process, as the text of RUN/.lock."""
    return f'{_host()} {os.getpid()}\n'


def _remove_rest(folder: Path) -> None:
    """Removes what a checkpoint that was being saved has made again of a deleted folder.

    A folder that holds anything else was not deleted as a whole, so nothing of it is removed.
    """
    with contextlib.suppress(OSError):
        left = {path.name for path in folder.iterdir() if not (path.is_dir() and not any(path.iterdir()))}
        if left <= {'checkpoints', 'hosts'}:
            for name in left:
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in ('data', 'exports', ''):
                with contextlib.suppress(OSError):  # it is not there, or not empty
                    (folder / name).rmdir()


def _check_shared(folder: Path) -> None:
    """UserError where a process does not see the folder that the main one holds. A network disk may show it late."""
    end = time.monotonic() + SEEN
    while not (folder / LOCK).exists():
        if time.monotonic() > end:
            raise UserError(
                f'--workdir {folder} is not the folder of process 0 (its {LOCK} is not there after {SEEN} seconds); '
                'all hosts need the same folder, on a disk that they share'
            )
        time.sleep(0.1)


@contextlib.contextmanager
def _cleared(folder: Path) -> Iterator[None]:
    """Makes RUN, and removes at the end what is new and of no use."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        before = set(folder.iterdir())
    except OSError as error:
        why = files.reason(error) or f'{error.strerror}; choose another folder'
        raise UserError(f'--workdir {folder}: is no folder, and none can be made there: {why}') from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for path in set(folder.iterdir()) - before:
                begun = any((folder / name).exists() for name in ('config.json', 'metrics.jsonl'))
                refused = not begun and not checkpoint.steps(folder / 'checkpoints')
                if path.name in ('checkpoints', 'data') and refused:
                    shutil.rmtree(path)
                elif path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
            for path in new:  # the deepest first
                path.rmdir()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds RUN/.lock, which the system frees when the process ends, however it ends.

    Where a file system has no locks, the name in the file says who trains there. A process of this host that still
    runs is left alone. Of another host nothing is known: its run stops when it sees another name.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as at_the_end:
        with files.writing(str(folder)):
            lock = at_the_end.enter_context(path.open('ab', buffering=0))
        earlier = ''
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(lock.fileno()), path.stat())  # not if the last run removed it just now
        except (BlockingIOError, FileNotFoundError):
            ours = False
        except OSError:  # this file system has no locks
            earlier = path.read_text(errors='replace')
            ours = not _runs_here(earlier)
        if not ours:
            doubt = f'. If no process of medjax does, delete {path}' if earlier else ''
            raise UserError(
                f'another process trains in {folder}; wait for it, stop it, or choose another --workdir{doubt}'
            )
        try:
            with files.writing(str(path)):
                lock.truncate(0)
                lock.write(_name().encode())
            yield
        finally:
            with contextlib.suppress(OSError):
                if is_ours(folder) or not path.stat().st_size:  # empty: the disk was full
                    path.unlink()


def _runs_here(name: str) -> bool:
    """Whether the text of a .lock names another process of this host that runs."""
    host, _, number = name.strip().rpartition(' ')
    known = host == _host() and number.isdecimal() and int(number) not in (0, os.getpid())
    return known and files.is_alive(int(number))


def read_config(folder: Path) -> configs.Config | None:
    """The config.json of a run; None for a folder without a run. UserError where it is lost or damaged.

    A run without it would train on with whatever config it is given.
    """
    path = folder / 'config.json'
    _check_kinds(folder)
    left = [
        f'{kind}/{steps[-1]}' for kind in ('checkpoints', 'exports') if (steps := checkpoint.steps(folder / kind))
    ] + [name for name in ('metrics.jsonl',) if (folder / name).exists()]
    if path.exists():
        try:
            return configs.load_json(path)
        except UserError as error:
            damage = str(error)
    elif left:
        damage = f'{folder} holds a run ({", ".join(left)}) without its config.json'
    else:
        return None
    raise UserError(f'{damage}. {_write_again(folder)}')


def _check_kinds(folder: Path) -> None:
    """UserError where a file of a run is a folder, or a folder is a file."""
    for name in ('checkpoints', 'exports', 'data', 'tensorboard', 'hosts'):
        if (path := folder / name).exists() and not path.is_dir():
            raise UserError(f'{path} is a file, and a run has a folder there; move it away')
    for name in ('config.json', 'metrics.jsonl', 'health.json', 'DONE'):
        if (path := folder / name).is_dir():
            raise UserError(f'{path} is a folder, and a run has a file there; move it away')


def check_data(folder: Path, before: Mapping[str, Any], datasets: Mapping[str, records.DataSet]) -> tuple[str, ...]:
    """Sentences about a config that was written again, and about lost files of RUN/data, which `write_data` makes.

    UserError where the run began with other data, or where nothing tells with which.
    """
    recorded, file = _sources(folder), folder / 'data' / 'seen.npz'
    now = identities(datasets)
    notes = _other_exports(folder, before)
    for source, identity in now.items() if recorded is not None else ():
        if recorded.get(source) != identity:  # type: ignore[union-attr]
            raise UserError(
                f'{folder} holds a run of other data: {source} was {recorded.get(source)} and is {identity}; use '  # type: ignore[union-attr]
                'another --workdir, or give it the data that it began with'
            )
    whole = _is_whole(file)
    if recorded is not None:
        lost = f'{file} is lost or damaged; it is made again from the data, which are the same'
        return notes if whole else (*notes, lost)
    known = _digest(file) if whole else _newest_meta(folder).get('seen')
    if known is None and not checkpoint.steps(folder / 'checkpoints'):
        return notes  # nothing is trained yet
    if known is None:
        raise UserError(
            f'{folder / "data"} is lost or damaged, and the run has no export, so nothing tells whether these are the '
            f'data that it began with. If they are, branch from it: medjax train --from {folder} --workdir OTHER'
        )
    parent = (before.get('life') or {}).get('parent')
    if parent is not None and _earlier(parent) is None:
        raise UserError(
            f'{folder / "data"} is lost or damaged, and so is {Path(parent["run"], "data", "seen.npz")}, the list of '
            'what its parent was trained on. Put one of them back, then train on'
        )
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch, 'seen.npz')
        digests = set()
        for starts in (given_weights(before), ()):  # runs may be older than lists with the data of given weights
            seen.write_seen(datasets, again, *_before(parent, starts))
            digests.add(_digest(again))
        if known not in digests:
            raise UserError(
                f'{folder} holds a run of other data: the hashes of the training images differ from '
                f'{file if whole else "those in its exports"}, and data/sources.json is lost; use another --workdir, '
                'or give it the data that it began with'
            )
    return (
        *notes,
        f'{folder / "data"}: files are lost or damaged; they are made again, because the hashes of the training images '
        'show that the data are the same',
    )


def write_data(
    folder: Path,
    parent: Mapping[str, Any] | None,
    datasets: Mapping[str, records.DataSet],
    starts: Sequence[Mapping[str, Any]] = (),
) -> str | None:
    """Writes the files of RUN/data that are not there or are damaged; a sentence if it needs the parent's in vain.

    `starts` are the `given_weights` of the run: what they were trained on, it has seen too.
    """
    earlier = _earlier(parent)
    had = _is_whole(folder / 'data' / 'seen.npz')
    with files.writing(f'the record of the data, {folder / "data"}'):
        if not had:
            seen.write_seen(datasets, folder / 'data' / 'seen.npz', *_before(parent, starts))
        if _sources(folder) is None:
            files.write_json(folder / 'data' / 'sources.json', identities(datasets))
    if parent is not None and earlier is None and not had:
        file = Path(parent['run'], 'data', 'seen.npz')
        return f'{file} is missing or damaged, so this run cannot tell which test images its parent was trained on'
    return None


def identities(datasets: Mapping[str, records.DataSet]) -> dict[str, dict[str, str]]:
    """Name, content and id key of each data set. A resumed run must have equal ones."""
    return {
        source: dict(name=data.name, fingerprint=data.fingerprint, key=data.key_fingerprint)
        for source, data in datasets.items()
    }


def _earlier(parent: Mapping[str, Any] | None) -> Path | None:
    """The hashes of the data of a run's parent; None without a parent, or where they are lost or damaged."""
    file = None if parent is None else Path(parent['run'], 'data', 'seen.npz')
    return file if file is not None and _is_whole(file) else None


def given_weights(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The entries `init_from` of a run and of its teachers."""
    given = config.get('init_from') or ()
    found = [given] if isinstance(given, Mapping) else list(given)
    return found + [teacher['init_from'] for teacher in config['teachers'].values() if teacher.get('init_from')]


def _before(parent: Mapping[str, Any] | None, starts: Sequence[Mapping[str, Any]]) -> tuple[list[Path], list[str]]:
    """The lists of what the parent and the given weights were trained on, and the weights without such a list.

    Weights in a run, RUN/exports/STEP, have the list of their run, if their meta.json names it.
    """
    earlier = _earlier(parent)
    files_of, unknown = [] if earlier is None else [earlier], []
    for start in starts if parent is None else ():  # a branch reads no other weights
        path = Path(start['path'])
        if path.name == 'weights.safetensors':
            path = path.parent
        if (path / 'exports').is_dir() and (steps := export.steps(path)):
            path = path / 'exports' / str(steps[-1])
        file, digest = path.absolute().parents[1] / 'data' / 'seen.npz', None
        with contextlib.suppress(UserError):
            digest = export.read_meta(path).get('seen')
        if digest is not None and _is_whole(file) and _digest(file) == digest:
            files_of.append(file)
        else:
            run = f'{path.absolute().parents[1].name}-' if path.absolute().parent.name == 'exports' else ''
            unknown.append(run + path.name)
    return list(dict.fromkeys(files_of)), unknown


def _sources(folder: Path) -> dict[str, Any] | None:
    """data/sources.json; None if it is lost or damaged."""
    try:
        found = json.loads((folder / 'data' / 'sources.json').read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_whole(file: Path) -> bool:
    """Whether every array of an .npz file can be read; each has a CRC-32 in it."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return all(arrays[name] is not None for name in arrays.files) and 'split' in arrays.files
    except Exception:  # numpy and zipfile raise many kinds for damaged files
        return False


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _other_exports(folder: Path, before: Mapping[str, Any]) -> tuple[str, ...]:
    """A sentence if the config.json of a run was written by hand, and is not the one that its exports name."""
    meta, file = _newest_meta(folder), folder / 'config.json'
    if file.read_text() == configs.to_json(before):  # as a run writes it
        return ()
    if 'life' in before or meta.get('config_fingerprint') in (None, configs.fingerprint(before)):
        return ()
    return (
        f'{file} is not the config that the export of step {meta["step"]:,} was made with: if you '
        'wrote it again, compare recipe, data and overrides with those of the run',
    )


def _newest_meta(folder: Path) -> dict[str, Any]:
    """meta.json of the newest readable export of a run; {} if there is none."""
    for step in reversed(export.steps(folder)):
        with contextlib.suppress(UserError):
            return export.read_meta(folder / 'exports' / str(step))
    return {}
