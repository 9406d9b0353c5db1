"""A data set as an .npz file in the layout of MedMNIST."""

from __future__ import annotations

import os
import pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from medjax import files
from medjax.data.records import DataSet
from medjax.errors import UserError


def write(data: DataSet, file: str) -> None:
    """A data set of equal-sized images as an .npz file in this layout, split for split."""
    path = writable(file)
    from tqdm import tqdm

    found = {}
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
                raise UserError(f'--npz {file}: the images differ in size, which this layout cannot hold')
            labels = np.asarray(split.labels_array)  # MedMNIST has uint8; what is neither yes nor no needs a sign
            found[f'{name}_images'] = np.stack(images)
            found[f'{name}_labels'] = labels.astype(np.uint8) if (labels >= 0).all() else labels
    files.write_npz(path, compressed=True, **found)


def writable(file: str) -> pathlib.Path:
    """Where `write` may write; UserError where it may not."""
    path = pathlib.Path(file).expanduser()
    if path.suffix != '.npz':
        raise UserError(f'--npz {file}: the name must end in .npz')
    if path.exists():
        raise UserError(f'{path} exists; choose another name, or delete it')
    if not path.absolute().parent.is_dir():
        raise UserError(f'--npz {file}: the folder {path.absolute().parent} does not exist')
    return path
