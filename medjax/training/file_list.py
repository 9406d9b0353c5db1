"""The list of the files of a checkpoint, by which damage is seen before anything is read.

    RUN/checkpoints/<step>/medjax_files.json      {"default/d/59a1…": [8671, 2212294583], …}: bytes and CRC-32

Damage does not always show on reading: bytes that changed inside of an array are read as other numbers. So each file is
compared with its size and CRC-32. A checkpoint without a list is older, or its run was killed just after the save.
"""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from medjax import files

NAME = 'medjax_files.json'
CHUNK = 1 << 24  # bytes
THREADS = 4  # zlib lets other threads run


def write(folder: Path) -> None:
    """Lists the files of a checkpoint that is whole."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob('*') if path.is_file() and path.name != NAME)
    with ThreadPoolExecutor(THREADS) as pool:
        listed = dict(zip(names, pool.map(lambda name: _about(folder / name), names), strict=True))
    files.write_json(folder / NAME, listed)


def exists(folder: Path) -> bool:
    return (folder / NAME).exists()


def damage(folder: Path) -> str | None:
    """In what a checkpoint differs from its list; None if it does not, or has no list."""
    if not exists(folder):
        return None
    try:
        listed = {
            str(name): (int(size), int(crc)) for name, (size, crc) in json.loads((folder / NAME).read_bytes()).items()
        }
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return f'its list of files, {NAME}, is damaged'
    if not listed:
        return f'its list of files, {NAME}, is empty'
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for name, (size, _) in listed.items():
                path = folder / name
                if not path.is_file():
                    return f'{name} is missing'
                if path.stat().st_size != size:
                    return f'{name} has {path.stat().st_size:,} bytes of {size:,}'
            for name, found in zip(listed, pool.map(lambda name: _about(folder / name), listed), strict=True):
                if found != listed[name]:
                    return f'{name} has other bytes than were saved'
        except OSError as error:  # a bad disk, or the checkpoint of another run, which deletes it at this moment
            return f'{error.filename or folder} cannot be read: {error.strerror}'
    return None


def _about(path: Path) -> tuple[int, int]:
    """The bytes of a file and their CRC-32."""
    size = crc = 0
    with path.open('rb') as file:
        while chunk := file.read(CHUNK):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
    return size, crc
