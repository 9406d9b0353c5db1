"""The structures that the masks of records show, as probes of patches learn from them and are judged by them.

An encoder sees a square of each image and has features for a grid of patches of this square. Masks have the pixels of
the image. So two maps are needed, both along each axis: `covered` from pixels to cells of the square, for learning, and
`on_pixels` from the grid to pixels, because predictions are judged at the resolution of the mask. Pixels outside of the
square were never seen and do not count; neither do cells beside the image (fit 'pad').

n records with masks, K structures, T rows and columns of cells, h and w rows and columns of the grid.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from medjax.data.records import Split
from medjax.errors import UserError
from medjax.probes import encode
from medjax.probes.batches import in_threads
from medjax.probes.evaluate import ProbeInputs
from medjax.probes.features import Stored
from medjax.probes.label_splits import held_out_rows
from medjax.probes.statistics import Bootstrap
from medjax.views import geometry

LOOKED_AT = 500  # records of a data set without names, to see whether there are masks at all
AHEAD = 16  # masks that are decoded before they are needed


class Axis(NamedTuple):
    """The piece [start, start + length) of an axis of `pixels` pixels, which the encoder sees."""

    pixels: int
    start: float
    length: float


class Masked(NamedTuple):
    """The records of a split that have a mask."""

    records: Split
    names: tuple[str, ...]  # of the K structures
    numbers: np.ndarray  # int [n], of the records in the split
    patients: np.ndarray  # int [n], 0…P-1
    grid: np.ndarray | Stored  # float16 [n,h,w,D], the patch features
    present: np.ndarray  # bool [n,K]: the structures that the encoder can see
    image: Mapping[str, Any]  # the preprocessing of the encoder

    def take(self, rows: np.ndarray) -> Masked:
        """Some of the records, given as bool [n]."""
        grid = self.grid.take(rows) if isinstance(self.grid, Stored) else self.grid[rows]
        patients = np.unique(self.patients[rows], return_inverse=True)[1]
        return self._replace(numbers=self.numbers[rows], patients=patients, grid=grid, present=self.present[rows])

    def of(self, kept: Sequence[int]) -> Masked:
        """All records, with some of the structures."""
        return self._replace(names=tuple(self.names[k] for k in kept), present=self.present[:, list(kept)])

    def planes(self) -> Iterator[np.ndarray]:
        """bool [K,H,W] for each record: the structures that it shows."""
        kept = [self.records.data.structures.index(name) for name in self.names]
        with contextlib.closing(in_threads(self.records.structures, self.numbers.tolist(), AHEAD)) as all_of:
            yield from (planes[kept] for planes in all_of if planes is not None)

    def axes(self, shape: tuple[int, ...]) -> tuple[Axis, Axis]:
        """What the encoder sees of the rows and of the columns of an image [H,W]."""
        return seen_axes(shape, self.image)


class MaskedSplits(NamedTuple):
    """The records with masks by split, with those structures that train and test show."""

    train: Masked
    val: Masked
    test: Masked
    skipped: dict[str, str]  # the other structures, each with the reason
    validation: str  # where the validation records come from, for people
    without: dict[str, int]  # split -> number of records without a mask, which are left out

    def learning(self) -> dict[str, Masked]:
        return dict(train=self.train, val=self.val, test=self.test)

    def facts(self, seed: int, bootstrap: Bootstrap) -> dict[str, Any]:
        """What each result of structures says about its records."""
        return dict(
            records={name: len(one.numbers) for name, one in self.learning().items()},
            without_mask=self.without,
            validation=self.validation,
            seed=seed,
            rows='structure',
            skipped_labels=self.skipped,
            bootstrap=bootstrap.facts(),
        )

    def unjudged(self, then: str) -> dict[str, str]:
        """A note on each structure that validation does not show; `then` says what is done with it."""
        shown = self.val.present.any(0)
        return {
            name: f'no record of validation shows it; {then}'
            for name, there in zip(self.val.names, shown, strict=True)
            if not there
        }


def requirements(inputs: ProbeInputs) -> dict[str, Any]:
    """The structures; UserError where there are no masks, or where the encoder has no patch features."""
    data = inputs.data
    if not data.splits.get('train'):
        raise UserError('the data set has no record in train')
    encode.grid_shape(inputs.encoder, data)
    for name in ('train', 'test') if not data.masks else ():
        split = data.split(name)
        looked_at = np.unique(np.linspace(0, len(split) - 1, LOOKED_AT).astype(int))
        if all(split.mask(i) is None for i in looked_at.tolist()):
            raise UserError(f'the data set has no masks: {len(looked_at)} records of {name} were looked at')
    return dict(structures=data.masks)


def masked_splits(inputs: ProbeInputs) -> MaskedSplits:
    """The records with masks. Without masks in val, a tenth of the patients of train is held out.

    UserError if train or test has none, or if no structure is in both.
    """
    data = inputs.data
    found = {name: masked(inputs, name) for name in ('train', 'val', 'test') if data.splits.get(name)}
    for name in ('train', 'test'):
        if not len(found[name].numbers):
            raise UserError(f'{data.name}: no record of {name} has a mask')
    train, val, test, validation = found['train'], found.get('val'), found['test'], 'the val split'
    if val is None or not len(val.numbers):
        rows = held_out_rows(train.patients, 0.1, inputs.seed)
        validation = 'a tenth of the patients of train, held out, as no record of val has a mask'
        train, val = train.take(~rows), train.take(rows)
    skipped = {}
    for k, name in enumerate(data.structures):
        if missing := [split for split, one in (('train', train), ('test', test)) if not one.present[:, k].any()]:
            skipped[name] = f'no record of {" and ".join(missing)} shows it'
    kept = [k for k, name in enumerate(data.structures) if name not in skipped]
    if not kept:
        raise UserError(f'{data.name}: no structure is shown by records of train and of test')
    without = {name: data.splits[name] - len(one.numbers) for name, one in found.items()}
    return MaskedSplits(train.of(kept), val.of(kept), test.of(kept), skipped, validation, without)


def masked(inputs: ProbeInputs, name: str) -> Masked:
    """The records of a split that have a mask. Decodes all masks."""
    split, names, image = inputs.data.split(name), inputs.data.structures, inputs.encoder.image
    grid, numbers, present = inputs.grids(name), [], []
    values: set[int] = set()

    def look(i: int) -> tuple[np.ndarray | None, set[int]]:
        planes = split.structures(i)
        if planes is None:
            return None, set()
        rows, columns = (inside(axis) for axis in seen_axes(planes.shape[1:], image))
        shown = np.asarray(planes[:, rows, columns].any((1, 2)))
        return shown, set() if inputs.data.masks else set(np.unique(split.mask(i)).tolist()) - {0}

    with contextlib.closing(in_threads(look, range(len(split)), AHEAD)) as looks:
        for i, (shown, of_mask) in enumerate(looks):
            values |= of_mask
            if shown is not None:
                numbers.append(i)
                present.append(shown)
    if len(values) > 1:
        raise UserError(
            f'{inputs.data.name} does not say what the values {", ".join(map(str, sorted(values)[:5]))} of its masks '
            'show; build it again: medjax build table has --masks lung=1,heart=2 for the names, and other sources '
            'name their structures'
        )
    rows = np.array(numbers, int)
    patients = np.unique(split.keys('patient')[rows], return_inverse=True)[1]
    taken = grid.take(rows) if isinstance(grid, Stored) else grid[rows]
    shown = np.array(present, bool).reshape(len(rows), len(names))
    return Masked(split, names, rows, patients, taken, shown, image)


# Pixels, cells and the grid


def seen_axes(shape: tuple[int, ...], image: Mapping[str, Any]) -> tuple[Axis, Axis]:
    """The rows and the columns of an image [H,W] that an encoder with this preprocessing sees."""
    box = geometry.seen_box(np.array(shape[:2]), image.get('fit', 'crop'), float(image.get('zoom', 1.0)), np)
    top, left, height, width = box.tolist()
    return Axis(shape[0], top, height), Axis(shape[1], left, width)


def inside(axis: Axis) -> slice:
    """The pixels whose centres the encoder sees."""
    first = int(np.ceil(axis.start - 0.5))
    last = int(np.ceil(axis.start + axis.length - 0.5))
    return slice(max(0, first), min(axis.pixels, last))


@functools.lru_cache(maxsize=256)  # images of one data set often have one size
def cover(axis: Axis, cells: int) -> np.ndarray:
    """float32 [T,pixels]: the share of each cell that each pixel covers; rows sum to the share that lies on the image.

    The seen piece is cut into T cells of equal length.
    """
    size = axis.length / cells
    low = axis.start + size * np.arange(cells)[:, None]
    pixel = np.arange(axis.pixels)
    overlap = np.minimum(low + size, pixel + 1) - np.maximum(low, pixel)
    return (np.maximum(overlap, 0) / size).astype(np.float32)


@functools.lru_cache(maxsize=256)
def read(axis: Axis, cells: int) -> np.ndarray:
    """float32 [pixels seen,T]: the weights of linear interpolation between the centres of T cells.

    Beyond the centres of the first and the last cell their values stay.
    """
    seen = inside(axis)
    at = (np.arange(seen.start, seen.stop) + 0.5 - axis.start) / axis.length * cells - 0.5
    return np.maximum(0, 1 - np.abs(np.clip(at, 0, cells - 1)[:, None] - np.arange(cells))).astype(np.float32)


def covered(planes: np.ndarray, rows: Axis, columns: Axis, cells: int) -> tuple[np.ndarray, np.ndarray]:
    """The share of each cell that each structure covers, float32 [K,T,T], and that lies on the image, [T,T].

    `planes` are bool [K,H,W]. A cell beside the image has the shares 0.
    """
    down, across = cover(rows, cells), cover(columns, cells)
    on_image = down.sum(1)[:, None] * across.sum(1)
    shown = down @ planes.astype(np.float32) @ across.T
    return shown / np.where(on_image > 0, on_image, 1), on_image


def on_pixels(values: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """Values float32 [K,h,w] of a grid at the pixels that the encoder sees: float32 [K,H',W'], see `inside`."""
    down, across = read(rows, values.shape[1]), read(columns, values.shape[2])
    return down @ values.astype(np.float32) @ across.T
