"""Batches of images for encoders: threads read and decode, devices encode, and features come back batch by batch.

of_files       any images; each becomes the square that the encoder sees on the host
of_canvases    records of a data set, which lie on canvases of one size; the device makes their squares
"""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import os
import pathlib
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from medjax.data.images import decode, dicom, headers
from medjax.data.types import Unreadable
from medjax.errors import UserError
from medjax.parallel.sharding import make_mesh, platform, replicated, rows_sharding
from medjax.views import host_view

if TYPE_CHECKING:
    from medjax.probes.encode import Encoder

ROWS_PER_DEVICE = 32
CPU_PIXELS = 4 * 224 * 224  # of a batch on a CPU: of larger batches the activations leave its caches
SUFFIXES = ('.jpg', '.jpeg', '.png', '.dcm', '.dicom')  # of files that a folder shows; others are known by content

OTHER_PICTURES = ('.tif', '.tiff', '.bmp', '.webp', '.gif', '.nii', '.gz', '.mha', '.nrrd', '.jp2')  # are not read
KINDS = ('JPEG', 'PNG')

Image = np.ndarray | str | os.PathLike
Images = str | os.PathLike | np.ndarray | Sequence[Image]
LeftOut = Callable[[int, str], None]  # (number of the image, reason)


class Batch(NamedTuple):
    """The features of some images."""

    numbers: np.ndarray  # int [n], of the images, ascending
    features: dict[str, np.ndarray]  # [n,…] by output


class Read(NamedTuple):
    """A decoded image."""

    pixels: np.ndarray  # uint8|uint16 [H,W,1|3]
    frames: int = 1  # of its file; the pixels are those of the first


class FrameWarning(UserWarning):
    """Files with several frames, of which the first is encoded."""


class OtherKinds(UserWarning):
    """Pictures of other kinds in a folder."""


class CropWarning(UserWarning):
    """Images of which the encoder sees less than two thirds."""


def listed(images: Images) -> list[Image]:
    """The images as a list: those of a folder, or a single one, or the given ones."""
    if isinstance(images, (str, os.PathLike)):
        path = pathlib.Path(images)
        found: list[Image] = [*in_folder(path)] if path.is_dir() else [path]
        if not found:
            raise UserError(f'encode: {path} holds no JPEG, PNG or DICOM file')
        return found
    if isinstance(images, np.ndarray) and (images.ndim == 2 or (images.ndim == 3 and images.shape[2] in (1, 3))):
        return [images]
    found = list(images) if isinstance(images, (Sequence, np.ndarray)) and not isinstance(images, bytes) else [images]
    if not found:
        raise UserError('encode: no images given')
    for image in found:
        if not isinstance(image, (np.ndarray, str, os.PathLike)):
            raise UserError(
                f'encode: an image is a path or an array, not an object of the kind {type(image).__name__}; '
                'numpy.asarray(picture) makes an array of a picture of PIL'
            )
    return found


def in_folder(folder: str | os.PathLike) -> list[pathlib.Path]:
    """The images below a folder, sorted by path: known by their suffix, or by their first bytes.

    Hidden files and folders are passed over, and so is a DICOMDIR.
    """
    found, others = [], []
    for parent, folders, names in os.walk(os.fspath(folder)):
        folders[:] = [name for name in folders if not name.startswith('.')]
        paths = [pathlib.Path(parent, name) for name in names if not name.startswith('.') and name != 'DICOMDIR']
        files = [path for path in paths if path.is_file()]
        found += [path for path in files if _is_image(path)]
        others += [path for path in files if path.suffix.lower() in OTHER_PICTURES]
    if others:
        kinds = ', '.join(sorted({path.suffix.lower() for path in others}))
        warnings.warn(
            f'{len(others)} picture(s) of a kind that is not read ({kinds}) are left out', OtherKinds, stacklevel=2
        )
    return sorted(found)


def _is_image(path: pathlib.Path) -> bool:
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open('rb') as file:
            start = file.read(132)
        return dicom.looks_like(start) or headers.kind(start) in KINDS
    except (OSError, Unreadable):
        return False


def read(image: Image) -> Read:
    """Decodes one image. Raises Unreadable."""
    frames = 1
    if not isinstance(image, np.ndarray):
        try:
            data = pathlib.Path(image).read_bytes()
        except FileNotFoundError:
            raise Unreadable('there is no such file') from None
        except OSError as error:
            raise Unreadable(f'it cannot be opened: {error.strerror}') from None
        found = decode.picture(data)
        frames = dicom.frames(io.BytesIO(data)) if dicom.looks_like(data) else 1
        image = decode.bounded(found.pixels, None, found.aspect)  # with square pixels, as in a data set
    image = image[..., None] if image.ndim == 2 else image
    if image.ndim != 3 or image.shape[2] not in (1, 3) or image.dtype not in (np.uint8, np.uint16) or not image.size:
        raise Unreadable(
            f'an image must be uint8|uint16 [H,W], [H,W,1] or [H,W,3], not {image.dtype} {list(image.shape)}'
        )
    return Read(image, frames)


def of_files(
    encoder: Encoder, run: jax.stages.Wrapped, images: Sequence[Image], batch: int | None, left_out: LeftOut | None
) -> Iterator[Batch]:
    """The features run(params, squares) of images, see `Encoder.encode_batches`."""
    size, channels, mesh = encoder.size, int(encoder.image['channels']), make_mesh()
    rows = _rows(batch, mesh, size)
    shapes: list[tuple[int, ...]] = []  # height, width, frames

    def square(i: int) -> tuple[np.ndarray, tuple[int, ...]] | Unreadable:
        try:
            pixels, frames = read(images[i])
        except Unreadable as error:
            return error
        return host_view.square(pixels, size, encoder.image), (*pixels.shape[:2], frames)

    def squares() -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
        with contextlib.closing(in_threads(square, range(len(images)), ahead(rows))) as results:
            for start in range(0, len(images), rows):
                x = np.zeros((rows, size, size, channels), np.float32)
                numbers: list[int] = []
                for i in range(start, min(start + rows, len(images))):
                    result = next(results)
                    if isinstance(result, Unreadable):
                        _leave_out(images[i], i, str(result), left_out)
                        continue
                    x[len(numbers)], shape = result
                    numbers.append(i)
                    shapes.append(shape)
                yield np.array(numbers, int), (x,)

    yield from _encoded(encoder, run, squares(), mesh, bar('images', len(images)))
    if shapes:
        warn_of_crops(encoder, np.array(shapes), '')
    if several := sum(frames > 1 for *_, frames in shapes):
        text = f'{several} of {len(shapes)} images are DICOM files of several frames; only the first frame is encoded'
        warnings.warn(text, FrameWarning, stacklevel=3)


def _leave_out(image: Image, number: int, reason: str, left_out: LeftOut | None) -> None:
    if left_out is not None:
        left_out(number, reason)
        return
    which = f'image {number}' if isinstance(image, np.ndarray) else os.fspath(image)
    raise UserError(f'encode: cannot read {which}: {reason}')


def of_canvases(
    encoder: Encoder,
    run: jax.stages.Wrapped,
    image: Callable[[int], np.ndarray],
    numbers: Iterable[int],
    canvas: int,
    progress: tqdm,
) -> Iterator[Batch]:
    """The features run(params, images, extent) of image(i) for i of `numbers`, each top-left on its canvas.

    The numbers are taken as they are needed, and their order is kept.
    """
    mesh = make_mesh()
    rows = _rows(None, mesh, encoder.size)

    def canvases() -> Iterator[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
        with contextlib.closing(in_threads(lambda i: (i, image(i)), numbers, ahead(rows))) as results:
            while found := list(itertools.islice(results, rows)):
                images = np.zeros((rows, canvas, canvas, found[0][1].shape[2]), found[0][1].dtype)
                extent = np.ones((rows, 2), np.int32)
                for row, (_, x) in enumerate(found):
                    images[row, : x.shape[0], : x.shape[1]] = x
                    extent[row] = x.shape[:2]
                yield np.array([i for i, _ in found]), (images, extent)

    yield from _encoded(encoder, run, canvases(), mesh, progress)


def bar(title: str, n: int, done: int = 0) -> tqdm:
    """A progress bar of n images, of which some are done."""
    return tqdm(total=n, initial=done, desc=title, unit='image', disable=None, leave=False)


def _rows(batch: int | None, mesh: jax.sharding.Mesh, size: int) -> int:
    """The rows of a batch of squares of `size` pixels: a multiple of the number of devices."""
    if batch is not None:
        return -(-batch // mesh.size) * mesh.size
    return (min(ROWS_PER_DEVICE, max(1, CPU_PIXELS // size**2)) if platform() == 'cpu' else ROWS_PER_DEVICE) * mesh.size


def ahead(rows: int) -> int:
    """The number of images that are decoded before they are needed: of two batches, and of 16 at least."""
    return max(2 * rows, 16)


def in_threads(function: Callable[[int], Any], numbers: Iterable[int], ahead: int) -> Generator[Any, None, None]:
    """function(i) for each of the numbers, in order; threads compute at most `ahead` of them before they are taken."""
    pool, waiting, left = ThreadPoolExecutor(), collections.deque[Future](), iter(numbers)
    try:
        while True:
            waiting.extend(pool.submit(function, i) for i in itertools.islice(left, ahead - len(waiting)))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encoded(
    encoder: Encoder,
    run: jax.stages.Wrapped,
    inputs: Iterable[tuple[np.ndarray, tuple[np.ndarray, ...]]],
    mesh: jax.sharding.Mesh,
    progress: tqdm,
) -> Iterator[Batch]:
    """Runs batches of one shape on all devices, two of them at once.

    One copies its arrays while the other computes. On a CPU both compute: one alone leaves cores idle between its
    products.
    """
    params = jax.device_put(encoder.params, replicated(mesh))
    order = threading.Lock()  # programs of several devices must start in one order on all of them

    def encode(numbers: np.ndarray, arrays: tuple[np.ndarray, ...]) -> Batch:
        with jax.set_mesh(mesh), order:
            out = run(params, *jax.device_put(arrays, rows_sharding(mesh)))
        return Batch(numbers, {name: np.asarray(x)[: len(numbers)] for name, x in out.items()})

    waiting = collections.deque[Future]()
    with progress, ThreadPoolExecutor(2) as pool:
        for batch in itertools.chain(inputs, [None]):
            while waiting and (batch is None or len(waiting) == 2):
                done = waiting.popleft().result()
                yield done
                progress.update(len(done.numbers))
            if batch is not None:
                waiting.append(pool.submit(encode, *batch))


def warn_of_crops(encoder: Encoder, shapes: np.ndarray, where: str) -> None:
    """Warns, with their number, of images [n,2…] whose centre square loses more than a third of their area."""
    if encoder.image.get('fit', 'crop') != 'crop':
        return
    short, long = shapes[:, :2].min(1), shapes[:, :2].max(1)
    if count := int((3 * short.astype(np.int64) < 2 * long).sum()):
        text = (
            f'{where}the encoder sees the centre square of an image. For {count} of {len(shapes)} images this is less '
            "than two thirds of their area; fit='pad' shows it whole images"
        )
        warnings.warn(text, CropWarning, stacklevel=3)
