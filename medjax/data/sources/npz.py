"""A file in the format of MedMNIST: {train,val,test}_images [n,H,W] or [n,H,W,3], {train,val,test}_labels [n] or [n,L].

    FILE    an .npz file with any name

Splits: those of the file.
Labels: label_0, label_1, … One column of 0 and 1 is one label. One column of classes is a label for each class.
Several columns [n,L] are L labels, with 0 and 1 in each.
Patients: the file names none, so each image counts as a patient of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
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
IN_MEMORY = 2**30  # bytes; a larger array is mapped from a temporary file
MOST_OF_MEMORY = 0.8  # share of the memory that the smaller arrays may take together


@dataclasses.dataclass(frozen=True)
class Release:
    """The images of a file, in the order of the entries."""

    images: dict[str, np.ndarray]  # split -> [n,H,W] or [n,H,W,3]
    labels: dict[str, np.ndarray]  # split -> int8 [n,L]; without the splits that have no labels
    places: list[tuple[str, int]]  # split and position of each image
    label_count: int

    def label(self, i: int) -> Sequence[int]:
        """The code of each label of image i."""
        split, k = self.places[i]
        return self.labels[split][k] if split in self.labels else [BLANK] * self.label_count

    def load(self, i: int) -> Example:
        """Image i."""
        split, k = self.places[i]
        return Example(image=np.ascontiguousarray(self.images[split][k]))


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds FILE."""
    parser.add_argument('file', metavar='FILE', help='an .npz file in the format of MedMNIST')


def source(file: str) -> Source:
    """The source of a file. UserError if it is not in the format."""
    path = pathlib.Path(file).expanduser()
    members = arrays(path)
    images = {split: members[f'{split}_images'] for split in SPLIT_NAMES if f'{split}_images' in members}
    labels = _labels({split: members[f'{split}_labels'] for split in images if f'{split}_labels' in members})
    for split, stack in images.items():
        check(path, split, stack, labels.get(split))
    places = [(split, i) for split, stack in images.items() for i in range(len(stack))]
    count, stamp = next((array.shape[1] for array in labels.values()), 0), folders.stamp(path)

    release = Release(images, labels, places, count)
    return Source(
        name=path.stem,
        version='1',
        namespace=path.stem,
        draw_namespace='',
        labels=tuple(f'label_{k}' for k in range(count)),
        license='',
        entries=[Entry(f'{s}/{i}', None, f'{s}/{i}', s, f'{s}_images[{i}]', stamp=stamp) for s, i in places],
        label=release.label,
        load=release.load,
        notes=['the file names no patients: each image counts as a patient of its own'],
    )


def arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
    """The arrays of the file by name. Large ones are unpacked to a temporary file (TMPDIR) and mapped from there.

    UserError if the file is not in the format.
    """
    if not path.is_file():
        raise UserError(f'{path} does not exist; give an .npz file in the format of MedMNIST')
    try:
        with zipfile.ZipFile(path) as file:
            members = {info.filename.removesuffix('.npy'): info for info in file.infolist()}
            wanted = [f'{split}_{kind}' for split in SPLIT_NAMES for kind in ('images', 'labels')]
            if not any(f'{split}_images' in members for split in SPLIT_NAMES):
                raise UserError(
                    f'{path} holds {", ".join(sorted(members)[:8]) or "nothing"}; MedMNIST has train_images, '
                    'train_labels, val_images, …'
                )
            members = {name: members[name] for name in wanted if name in members}
            _check_room(path, [member.file_size for member in members.values()])
            return {name: _array(file, member) for name, member in members.items()}
    except (UserError, MemoryError):
        raise
    except Exception as error:  # damaged archives and headers raise nearly anything
        reason = f' ({error})' if isinstance(error, Unreadable) else ''
        raise UserError(
            f'{path}: not an .npz archive, a damaged one, or one of Python objects, which are not read{reason}'
        ) from None


def _array(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """One array. Pickles are never read, and no memory is taken before the header is known to fit the file's size.

    A large array is mapped from a temporary file, because arrays of 224 px have up to 13 GB.
    """
    with file.open(member) as data:
        version = np.lib.format.read_magic(data)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, _, dtype = read_header[version](data)
        if dtype.hasobject:
            raise Unreadable(f'{member.filename} holds Python objects')
        size, available = math.prod(shape) * dtype.itemsize, member.file_size - data.tell()
        if min(shape, default=0) < 0 or size != available:
            raise Unreadable(f'{member.filename} has the shape {shape}, {size} bytes, but {available} are there')
    if member.file_size <= IN_MEMORY:
        with file.open(member) as data:
            return np.lib.format.read_array(data, allow_pickle=False)
    with tempfile.TemporaryDirectory(prefix='medjax-') as folder:  # the mapping stays valid after the file is removed
        return np.load(file.extract(member, folder), mmap_mode='r', allow_pickle=False)


def _check_room(path: pathlib.Path, sizes: list[int]) -> None:
    """Raises UserError if there is no room for arrays of these sizes in bytes.

    A packed file may have a thousandth of the size of its arrays.
    """
    in_memory, mapped = (sum(size for size in sizes if (size > IN_MEMORY) == large) for large in (False, True))
    memory = MOST_OF_MEMORY * os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    for size, room, where in (
        (in_memory, memory, 'in memory'),
        (mapped, disk, 'in the folder of temporary files (TMPDIR)'),
    ):
        if size > room:
            raise UserError(f'{path} unpacks to {size / 2**30:.1f} GB; there is room for {room / 2**30:.1f} GB {where}')


def _labels(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The label codes of each split, int8 [n,L]: several columns as they are, one column of classes as L columns."""
    if scalars := [split for split, array in labels.items() if not array.ndim]:
        raise UserError(f'{scalars[0]}_labels is one number; labels are [n] or [n,L]')
    labels = {split: array.reshape(len(array), math.prod(array.shape[1:])) for split, array in labels.items()}
    for split, array in labels.items():
        if array.dtype.kind not in 'iub':
            raise UserError(f'{split}_labels: dtype {array.dtype}; labels are whole numbers')
    if len({array.shape[1] for array in labels.values()}) > 1:
        widths = ', '.join(f'{split} {array.shape[1]}' for split, array in labels.items())
        raise UserError(f'the splits have different numbers of labels ({widths})')
    filled = [array for array in labels.values() if array.size]
    if not filled:
        return {}
    low, high = min(int(a.min()) for a in filled), max(int(a.max()) for a in filled)
    if filled[0].shape[1] > 1 or high <= 1:
        if low < -2 or high > 1:
            raise UserError(f'labels from {low} to {high} in several columns; each column holds 0 and 1')
        return {split: array.astype(np.int8) for split, array in labels.items()}
    if low < 0 or high >= MOST_CLASSES:
        raise UserError(f'classes from {low} to {high}; MedMNIST counts them from 0, at most {MOST_CLASSES}')
    return {split: (array == np.arange(high + 1)).astype(np.int8) for split, array in labels.items()}


def check(path: pathlib.Path, split: str, stack: np.ndarray, labels: np.ndarray | None) -> None:
    """Raises UserError if images [n,H,W], [n,H,W,1] or [n,H,W,3] or their labels cannot be stored."""
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
