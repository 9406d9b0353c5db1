"""What sources share: a folder as it was released is checked, its tables and lists are read, its files are found.

Nothing outside the folder is opened, whatever a table or a link says.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Collection, Sequence

from medjax.data.images import dicom, headers
from medjax.data.types import Drop, Unreadable
from medjax.errors import UserError

SPLITS = (  # how tables, folders and shards call a split -> its name in `data.splits`
    dict.fromkeys(('train', 'training'), 'train')
    | dict.fromkeys(('val', 'valid', 'validate', 'validation'), 'val')
    | dict.fromkeys(('test', 'testing'), 'test')
)
SUFFIXES = ('.png', '.jpg', '.jpeg')  # of files that hold one picture and need no look inside to know it


def arguments(parser: argparse.ArgumentParser, holds: str) -> None:
    """What every source that is a folder takes: the folder and a bound of the size."""
    parser.add_argument('folder', metavar='DIR', help=holds)
    parser.add_argument('--size', type=int, help='bound of the longer side in pixels; never enlarges')


def release_folder(path: str, *needed: str, layout: str) -> pathlib.Path:
    """The folder of a release, resolved. UserError where it or something `needed` in it is missing; `layout` says in
    words how it looks. A needed name with '|' means one of several."""
    root = pathlib.Path(path).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f'{root} is not a folder; give {layout}')
    for names in needed:
        if not any((root / name).exists() for name in names.split('|')):
            raise UserError(f'{root}: {" or ".join(names.split("|"))} is missing; give {layout}')
    return root


def files(root: pathlib.Path, *suffixes: str) -> dict[str, str]:
    """The files under `root` that end so (all without suffixes): path relative to it -> stamp.
    Hidden files are no part of a release.

    One walk, because asking for 200,000 files one by one takes minutes on a network disk. Links that leave the folder
    are left out, and linked folders are not entered.
    """
    found: dict[str, str] = {}
    waiting = ['']
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(root / below) as entries:
                here = [entry for entry in entries if not entry.name.startswith('.')]
        except OSError as error:
            raise UserError(f'{root / below} cannot be listed: {error.strerror}') from None
        for entry in here:
            name = below + entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(name + '/')
            elif (not suffixes or entry.name.lower().endswith(suffixes)) and (
                not entry.is_symlink() or _is_inside(root, name)
            ):
                found[name] = stamp(pathlib.Path(entry.path))
    return dict(sorted(found.items()))


def paths(root: pathlib.Path, *suffixes: str) -> dict[str, pathlib.Path]:
    """`files` as paths."""
    return {name: root / name for name in files(root, *suffixes)}


def _is_inside(root: pathlib.Path, name: str) -> bool:
    try:
        inside(root, name)
    except Unreadable:
        return False
    return True


def account(root: pathlib.Path, table: str, layout: str, named: int, used: int, found: int) -> list[str]:
    """Notes on images of a table that are not in the folder and on files that no table names; UserError if no image of
    the table is there. Releases come in parts, so a part of one is no mistake."""
    if not used:
        raise UserError(
            f'{root}: none of the {named:,} images that {table} names is there (linked folders are not entered); '
            f'give {layout}'
        )
    notes = []
    if named > used:
        notes.append(
            f'{named - used:,} of the {named:,} images that {table} names are not used: see what was set aside'
        )
    if found > used:
        notes.append(f'{found - used:,} image files are not used: {table} does not name them, or they were set aside')
    return notes


def not_named(found: Collection[str], named: Collection[str], where: str) -> list[str]:
    """A note on the files that no table names; none where there are none."""
    extra = len(set(found) - set(named))
    what = f'{extra} image file{"s" * (extra > 1)} in the folder'
    return [f'{what} {"are" if extra > 1 else "is"} not in {where} and left out'] if extra else []


def inside(root: pathlib.Path, name: str) -> pathlib.Path:
    """The file that a cell names, or Unreadable where it is blank, missing or not inside the folder `root`."""
    name = relative(name)
    try:
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            raise Unreadable('the path leaves the folder (a symbolic link)')
        if not file.is_file():
            raise Unreadable('there is no such file')
    except (OSError, RuntimeError):  # too long, no permission, links in a circle
        raise Unreadable('the path cannot be followed') from None
    return file


def tree(root: pathlib.Path) -> tuple[list[tuple[int, str]], list[Drop], list[str]]:
    """The files below a folder: (number, path relative to it with '/'), sorted; the others with a reason; notes.

    The number is what drops may tell of a file whose path may name a patient: its line in
    `find . ! -type d | LC_ALL=C sort`, hidden files too. Links that leave the folder are not followed, nor
    links to folders.
    """
    found, dropped, hidden = [], [], 0
    paths = []
    for folder, folders, names in os.walk(root):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        inner = os.path.relpath(folder, root).replace(os.sep, '/')
        paths += [name if inner == '.' else f'{inner}/{name}' for name in [*names, *linked]]
    for number, path in enumerate(sorted(paths, key=os.fsencode), 1):
        if any(part.startswith(('.', '__MACOSX')) for part in path.split('/')):
            hidden += 1
            continue
        try:
            path.encode()
            if os.path.islink(root / path):
                if os.path.isdir(root / path):
                    raise Unreadable('a link to a folder, which is not followed')
                inside(root, path)
            elif not os.path.isfile(root / path):
                raise Unreadable('a pipe, socket or device')
        except UnicodeEncodeError:
            dropped.append(Drop(plain(path), f'file {number}', 'its name is not UTF-8'))
        except Unreadable as error:
            dropped.append(Drop(path, f'file {number}', str(error)))
        else:
            found.append((number, path))
    notes = ['drops count files in the order of: find . ! -type d | LC_ALL=C sort']
    if hidden:
        notes.append(f'{hidden} hidden files are passed over')
    return found, dropped, notes


def frames(file: pathlib.Path) -> int:
    """How many pictures a file holds: 1, or the frames of a DICOM file, of which the header alone is read."""
    if file.suffix.lower() in SUFFIXES:
        return 1
    try:
        with file.open('rb') as opened:
            return dicom.frames(opened)
    except OSError:  # told when it is loaded
        return 1


def relative(name: str) -> str:
    """The path with '/' that a cell names, or Unreadable where it is blank, absolute, or leaves the folder."""
    name = name.replace('\\', '/')
    if not name:
        raise Unreadable('no file is named')
    if '\0' in name:
        raise Unreadable('the path has a zero byte')
    if pathlib.PurePosixPath(name).is_absolute() or pathlib.PureWindowsPath(name).drive:
        raise Unreadable('the path is absolute; paths are relative to the folder')
    if '..' in name.split('/'):
        raise Unreadable("the path leaves the folder ('..')")
    return name


def all_or_none(root: pathlib.Path, splits: Sequence[str | None], what: str) -> None:
    """UserError where the folder's names say the split of some of its `what`, and not of others."""
    others = sum(split is None for split in splits)
    if others and (known := ', '.join(sorted({split for split in splits if split}))):
        raise UserError(
            f'{root}: there are folders or files for {known}, but {others} {what} lie outside of them; '
            'move them there, or give the folder of one split alone'
        )


def plain(name: str) -> str:
    """A name that can be hashed: what is no Unicode (names of files, \\ud800 in JSON) is written with backslashes."""
    return name.encode(errors='backslashreplace').decode()


def content(file: pathlib.Path) -> bytes:
    """The bytes of an image file. Raises Unreadable."""
    try:
        if (size := file.stat().st_size) > headers.MOST_BYTES:
            raise Unreadable(f'a file of {size / 2**30:.1f} GB; at most {headers.MOST_BYTES >> 30} GB can be read')
        return file.read_bytes()
    except OSError as error:
        raise Unreadable(f'cannot be opened: {error.strerror}') from None


def stamp(*files: pathlib.Path) -> str:
    """Size and time of change of each of the files that make a record, for `Entry.stamp`; '' where they cannot be
    told."""
    return ', '.join(map(_stamp, files))


def _stamp(file: pathlib.Path) -> str:
    try:
        facts = os.stat(file)
    except OSError:
        return ''
    return f'{facts.st_size} {facts.st_mtime_ns}'
