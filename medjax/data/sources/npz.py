"""Files in MedMNIST's layout: {train,val,test}_images [n,H,W] or [n,H,W,3], {train,val,test}_labels [n] or [n,L].

The official splits are kept. The files name no patients, so each image counts as a patient of its own.
"""

from __future__ import annotations

import argparse
import math
import os
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Sequence

import numpy as np

from medjax.data.images import headers
from medjax.data.releases import folders
from medjax.data.types import BLANK, SPLIT_NAMES, Entry, Example, Source, Unreadable
from medjax.errors import UserError

MOST_CLASSES = 1000
IN_MEMORY = 2**30  # bytes of an array; larger ones are mapped from a temporary file
MOST_OF_MEMORY = 0.8  # that the others may take together


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('file', metavar='FILE', help='an .npz file in the layout of MedMNIST')


def source(file: str) -> Source:
    """The file as a source. Labels: one for a binary [n,1] of 0/1, one per class for more, [n,L] as they are."""
    path = pathlib.Path(file).expanduser()
    held = arrays(path)
    images = {split: held[f'{split}_images'] for split in SPLIT_NAMES if f'{split}_images' in held}
    labels = _labels({split: held[f'{split}_labels'] for split in images if f'{split}_labels' in held})
    for split, stack in images.items():
        check(path, split, stack, labels.get(split))
    place = [(split, i) for split, stack in images.items() for i in range(len(stack))]
    count, stamp = next((array.shape[1] for array in labels.values()), 0), folders.stamp(path)

    def label(k: int) -> Sequence[int]:
        split, i = place[k]
        return labels[split][i] if split in labels else [BLANK] * count

    def load(k: int) -> Example:
        split, i = place[k]
        return Example(image=np.ascontiguousarray(images[split][i]))

    return Source(
        name=path.stem,
        version='1',
        namespace=path.stem,
        labels=tuple(f'label_{k}' for k in range(count)),
        license='',
        entries=[Entry(f'{s}/{i}', None, f'{s}/{i}', s, f'{s}_images[{i}]', stamp=stamp) for s, i in place],
        label=label,
        load=load,
        notes=['the file names no patients: each image counts as a patient of its own'],
    )


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of the layout by name; large ones are unpacked to a temporary file (TMPDIR) and read from there.

    UserError where it is no such file.
    """
    if not path.is_file():
        raise UserError(f'{path} does not exist; give an .npz file in the layout of MedMNIST')
    try:
        with zipfile.ZipFile(path) as file:
            names = {info.filename.removesuffix('.npy'): info for info in file.infolist()}
            wanted = [f'{split}_{part}' for split in SPLIT_NAMES for part in ('images', 'labels')]
            if not any(name in names for name in wanted[::2]):
                raise UserError(
                    f'{path} holds {", ".join(sorted(names)[:8]) or "nothing"}; MedMNIST has train_images, '
                    'train_labels, val_images, …'
                )
            members = {name: names[name] for name in wanted if name in names}
            _check_room(path, [member.file_size for member in members.values()])
            return {name: _array(file, member) for name, member in members.items()}
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged archives and headers raise nearly anything
        why = f' ({error})' if isinstance(error, Unreadable) else ''
        raise UserError(
            f'{path}: no .npz archive, a damaged one, or one of Python objects, which are not read{why}'
        ) from None


def _array(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array, its header checked before there is any: pickles are never read, nothing more than is there is made.

    It is mapped where it is large: those of 224 px have up to 13 GB.
    """
    with file.open(member) as data:
        version = np.lib.format.read_magic(data)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read[version](data)
        if dtype.hasobject:
            raise Unreadable(f'{member.filename} holds Python objects')
        size, there = math.prod(shape) * dtype.itemsize, member.file_size - data.tell()
        if min(shape, default=0) < 0 or size != there:
            raise Unreadable(f'{member.filename} has the shape {shape}, {size} bytes, but {there} are there')
    if member.file_size <= IN_MEMORY:
        with file.open(member) as data:
            return np.lib.format.read_array(data, allow_pickle=False)
    with tempfile.TemporaryDirectory(prefix='medjax-') as folder:  # the mapping outlives the file's name
        return np.load(file.extract(member, folder), mmap_mode='r', allow_pickle=False)


def _check_room(path: pathlib.Path, sizes: list[int]) -> None:
    """UserError where arrays of these sizes have no room: an archive may be a thousandth of what it holds."""
    kept, mapped = (sum(size for size in sizes if (size > IN_MEMORY) == large) for large in (False, True))
    memory = MOST_OF_MEMORY * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    free = shutil.disk_usage(tempfile.gettempdir()).free
    for size, room, where in ((kept, memory, 'in memory'), (mapped, free, 'in the folder of temporary files (TMPDIR)')):
        if size > room:
            raise UserError(f'{path} unpacks to {size / 2**30:.1f} GB; there is room for {room / 2**30:.1f} GB {where}')


def _labels(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """int8 [n,L] for each split: multi-label as it is, one class column spread over its classes."""
    if bare := [split for split, array in given.items() if not array.ndim]:
        raise UserError(f'{bare[0]}_labels is one number; labels are [n] or [n,L]')
    given = {split: array.reshape(len(array), math.prod(array.shape[1:])) for split, array in given.items()}
    for split, array in given.items():
        if array.dtype.kind not in 'iub':
            raise UserError(f'{split}_labels: dtype {array.dtype}; labels are whole numbers')
    if len({array.shape[1] for array in given.values()}) > 1:
        widths = ', '.join(f'{split} {array.shape[1]}' for split, array in given.items())
        raise UserError(f'the splits have different numbers of labels ({widths})')
    filled = [array for array in given.values() if array.size]
    if not filled:
        return {}
    low, high = min(int(a.min()) for a in filled), max(int(a.max()) for a in filled)
    if filled[0].shape[1] > 1 or high <= 1:
        if low < -2 or high > 1:
            raise UserError(f'labels from {low} to {high} in several columns; each column holds 0 and 1')
        return {split: array.astype(np.int8) for split, array in given.items()}
    if low < 0 or high >= MOST_CLASSES:
        raise UserError(f'classes from {low} to {high}; MedMNIST counts them from 0, at most {MOST_CLASSES}')
    return {split: (array == np.arange(high + 1)).astype(np.int8) for split, array in given.items()}


def check(path: pathlib.Path, split: str, stack: np.ndarray, labels: np.ndarray | None) -> None:
    """UserError where images [n,H,W], [n,H,W,1] or [n,H,W,3] or their labels are not what can be stored."""
    if stack.dtype not in (np.uint8, np.uint16):
        raise UserError(f'{path}: {split}_images has dtype {stack.dtype}; images are uint8 or uint16')
    grey = stack.ndim == 3 or (stack.ndim == 4 and stack.shape[3] == 1)
    if not grey and not (stack.ndim == 4 and stack.shape[3] == 3 and stack.dtype == np.uint8):
        raise UserError(f'{path}: {split}_images has shape {stack.shape}; grey is [n,H,W], colour [n,H,W,3] of 8 bits')
    try:
        headers.check_size(*stack.shape[1:3])
    except Unreadable as error:
        raise UserError(f'{path}: {split}_images has {error}') from None
    if labels is not None and len(labels) != len(stack):
        raise UserError(f'{path}: {len(stack)} {split}_images but {len(labels)} {split}_labels')
