"""Writes a data set as one .npz file with the array names of MedMNIST: train_images, train_labels, val_images, …"""

from __future__ import annotations

import io
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medjax import files
from medjax.data.builder import chunks
from medjax.data.images import dicom
from medjax.data.records import DataSet
from medjax.data.types import Source, Unreadable
from medjax.errors import UserError


def write(data: DataSet, file: str) -> None:
    """Writes all splits of `data` into `file`. UserError where the images differ in size."""
    path = check_file(file)
    from tqdm import tqdm

    arrays = {}
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        tqdm(total=sum(data.splits.values()), desc=path.name, unit=' images', disable=None) as bar,
    ):
        for name in data.splits:
            split, images = data.split(name), []
            for pixels in pool.map(split.image, range(len(split))):
                images.append(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
                bar.update()
            if len({image.shape for image in images}) > 1:
                raise UserError(
                    f'--npz {file}: the images differ in size, and an .npz file of MedMNIST holds images of one size'
                )
            labels = np.asarray(split.labels_array)
            arrays[f'{name}_images'] = np.stack(images)
            # MedMNIST has uint8; codes below 0 (uncertain, blank, conflicting) need a signed type
            arrays[f'{name}_labels'] = labels.astype(np.uint8) if (labels >= 0).all() else labels
    with files.writing(f'--npz {file}'):
        files.write_npz(path, compressed=True, **arrays)


def check_sizes(source: Source, file: str) -> None:
    """UserError where two images of a source will be stored in different sizes. Called before the data set is built.

    The headers of the files are read, and of each size one image is made as the build makes it.
    """
    stored: dict[tuple[int, int], tuple[int, ...]] = {}  # size of a file -> size in the data set
    for i in range(len(source.entries)):
        size = _header_size(source, i)
        if size is None or size in stored or (shape := chunks.stored_shape(source, i)) is None:
            continue
        stored[size] = shape[:2]
        if len(set(stored.values())) > 1:
            (a, b), (c, d) = list(dict.fromkeys(stored.values()))[:2]
            raise UserError(
                f'--npz {file}: the images differ in size ({b} x {a} and {d} x {c} pixels), and an .npz file of '
                'MedMNIST holds images of one size; nothing was built'
            )


def _header_size(source: Source, i: int) -> tuple[int, int] | None:
    """Height and width of the file of entry i, without regard to its orientation. None: it cannot be read."""
    from PIL import Image

    try:
        image = source.load(i).image
        if isinstance(image, np.ndarray):
            return image.shape[:2]
        if dicom.looks_like(image):
            return dicom.shape(image)
        with Image.open(io.BytesIO(image)) as opened:
            width, height = opened.size
            turned = opened.getexif().get(0x0112, 1) > 4
            return (width, height) if turned else (height, width)
    except (Unreadable, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def check_file(file: str) -> pathlib.Path:
    """The path of the file that `write` makes; UserError where it cannot be made or already exists."""
    path = pathlib.Path(file).expanduser()
    if path.suffix != '.npz':
        raise UserError(f'--npz {file}: the name must end in .npz')
    if path.exists():
        raise UserError(f'{path} exists; choose another name, or delete it')
    if not path.absolute().parent.is_dir():
        raise UserError(f'--npz {file}: the folder {path.absolute().parent} does not exist')
    return path
