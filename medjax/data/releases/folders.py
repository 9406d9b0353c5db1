"""Checks and lists the folder of a release and finds its files. All sources that read a folder share it.

Nothing outside the folder is opened, whatever a table or a link names.
"""

from __future__ import annotations

import argparse
import os
import pathlib
from collections.abc import Collection, Sequence

from medjax.data.images import dicom, headers
from medjax.data.types import Drop, Unreadable
from medjax.errors import UserError

SPLIT_SPELLINGS = (  # a split as tables, folders and shards spell it -> its name in a data set
    dict.fromkeys(('train', 'training'), 'train')
    | dict.fromkeys(('val', 'valid', 'validate', 'validation'), 'val')
    | dict.fromkeys(('test', 'testing'), 'test')
)
PICTURE_SUFFIXES = ('.png', '.jpg', '.jpeg')  # files with these hold one picture each


def add_arguments(parser: argparse.ArgumentParser, folder_help: str) -> None:
    """Adds the two arguments of every source that reads a folder: DIR and --size."""
    parser.add_argument('folder', metavar='DIR', help=folder_help)
    parser.add_argument(
        '--size',
        type=int,
        help='limit for the longer side in pixels: larger images are reduced, smaller ones stay as they are',
    )


def release_folder(path: str, *needed: str, layout: str) -> pathlib.Path:
    """The folder of a release as a resolved path.

    `needed` are the files and folders that must be in it; 'a.csv|b.csv' means one of the two. `layout` describes the
    folder, for the message of the UserError if the folder or something needed is missing.
    """
    root = pathlib.Path(path).expanduser().resolve()
    if not root.is_dir():
        raise UserError(f'{root} is not a folder; give {layout}')
    for alternatives in needed:
        names = alternatives.split('|')
        if not any((root / name).exists() for name in names):
            raise UserError(f'{root}: {" or ".join(names)} is missing; give {layout}')
    return root


def files(root: pathlib.Path, *suffixes: str) -> dict[str, str]:
    """Lists the files below `root` that have one of the suffixes (without suffixes: all files): path -> stamp.

    Paths are relative to `root` and sorted. Hidden files, files that a link names outside the folder, and linked
    folders are left out. The folder is listed once, because asking for 200,000 files one by one takes minutes on a
    network disk.
    """
    stamps: dict[str, str] = {}
    waiting = ['']
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(root / folder) as entries:
                visible = [entry for entry in entries if not entry.name.startswith('.')]
        except OSError as error:
            raise UserError(f'{root / folder} cannot be listed: {error.strerror}') from None
        for entry in visible:
            path = folder + entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path + '/')
            elif (not suffixes or entry.name.lower().endswith(suffixes)) and (
                not entry.is_symlink() or _is_inside(root, path)
            ):
                stamps[path] = stamp(pathlib.Path(entry.path))
    return dict(sorted(stamps.items()))


def paths(root: pathlib.Path, *suffixes: str) -> dict[str, pathlib.Path]:
    """The files that `files` lists: relative path -> full path."""
    return {name: root / name for name in files(root, *suffixes)}


def _is_inside(root: pathlib.Path, name: str) -> bool:
    try:
        inside(root, name)
    except Unreadable:
        return False
    return True


def usage_notes(root: pathlib.Path, table: str, layout: str, named: int, used: int, present: int) -> list[str]:
    """Notes on images of a table that are not used, and on image files that are not used.

    named: number of images in the table. used: number of images that become records. present: number of image files
    in the folder. UserError if no image is used. Releases are downloaded in pieces, so a piece alone is no error.
    """
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
    if present > used:
        notes.append(f'{present - used:,} image files are not used: {table} does not name them, or they were set aside')
    return notes


def unlisted_notes(present: Collection[str], listed: Collection[str], where: str) -> list[str]:
    """A note on the number of files that `where` (a table) does not list; [] if it lists all of them."""
    extra = len(set(present) - set(listed))
    what = f'{extra} image file{"s" * (extra > 1)} in the folder'
    return [f'{what} {"are" if extra > 1 else "is"} not in {where} and left out'] if extra else []


def inside(root: pathlib.Path, name: str) -> pathlib.Path:
    """The file that a cell names. Raises Unreadable if the name is blank or the file is missing or outside `root`."""
    name = relative_path(name)
    try:
        file = (root / name).resolve()
        if not file.is_relative_to(root):
            raise Unreadable('the path leaves the folder (a symbolic link)')
        if not file.is_file():
            raise Unreadable('there is no such file')
    except (OSError, RuntimeError):  # a name that is too long, a missing permission, links in a circle
        raise Unreadable('the path cannot be followed') from None
    return file


def relative_path(name: str) -> str:
    """A cell's path with '/'. Raises Unreadable if it is blank or absolute, or leaves the folder."""
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


def numbered_files(root: pathlib.Path) -> tuple[list[tuple[int, str]], list[Drop], list[str]]:
    """The files below a folder as (number, relative path), sorted; drops for files that cannot be used; notes.

    Drops show the number alone, because a path may hold a patient's name. The number is the file's line in the output
    of `find . ! -type d | LC_ALL=C sort`, which counts hidden files too. Links to folders and links that leave the
    folder are not followed.
    """
    numbered, dropped, hidden = [], [], 0
    paths = []
    for folder, folders, names in os.walk(root):
        linked = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        inner = os.path.relpath(folder, root).replace(os.sep, '/')
        paths += [name if inner == '.' else f'{inner}/{name}' for name in [*names, *linked]]
    for number, path in enumerate(sorted(paths, key=os.fsencode), 1):
        if any(name.startswith(('.', '__MACOSX')) for name in path.split('/')):
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
            dropped.append(Drop(encodable(path), f'file {number}', 'its name is not UTF-8'))
        except Unreadable as error:
            dropped.append(Drop(path, f'file {number}', str(error)))
        else:
            numbered.append((number, path))
    notes = ['the numbers of files in drops are the lines of: find . ! -type d | LC_ALL=C sort']
    if hidden:
        notes.append(f'{hidden} hidden files are skipped')
    return numbered, dropped, notes


def frame_count(file: pathlib.Path) -> int:
    """The number of pictures in a file: 1, or the frames of a DICOM file. Only a DICOM header is read."""
    if file.suffix.lower() in PICTURE_SUFFIXES:
        return 1
    try:
        with file.open('rb') as opened:
            return dicom.frames(opened)
    except OSError:  # reported when the image is loaded
        return 1


def check_splits(root: pathlib.Path, splits: Sequence[str | None], what: str) -> None:
    """Raises UserError if folder names give the split of some of the images or shards (`what`), but not of all."""
    without = sum(split is None for split in splits)
    if without and (names := ', '.join(sorted({split for split in splits if split}))):
        raise UserError(
            f'{root}: there are folders or files for {names}, but {without} {what} lie outside of them; '
            'move them there, or give the folder of one split alone'
        )


def encodable(name: str) -> str:
    """A name that UTF-8 can encode, and so can be hashed: other characters (\\ud800 in JSON) become backslash codes."""
    return name.encode(errors='backslashreplace').decode()


def read_bytes(file: pathlib.Path) -> bytes:
    """The content of a file. Raises Unreadable if it is too large or cannot be opened."""
    try:
        if (size := file.stat().st_size) > headers.MOST_BYTES:
            raise Unreadable(f'a file of {size / 2**30:.1f} GB; at most {headers.MOST_BYTES >> 30} GB can be read')
        return file.read_bytes()
    except OSError as error:
        raise Unreadable(f'cannot be opened: {error.strerror}') from None


def stamp(*files: pathlib.Path) -> str:
    """Size and modification time of the files of one record, for `Entry.stamp`; '' for a file without them."""
    return ', '.join(map(_stamp, files))


def _stamp(file: pathlib.Path) -> str:
    try:
        status = os.stat(file)
    except OSError:
        return ''
    return f'{status.st_size} {status.st_mtime_ns}'
