"""Measures images per second of decoding, reading, building and augmenting, against loops of PIL and OpenCV.

    python benchmarks/data.py [--images 200] [--repeats 5] [--json FILE] [--quick]

The images are phantoms of 512 pixels, rendered first. The implementations of a task run in turn, so a busy machine
slows all of them. The loops do the same to the pixels as medjax and nothing else: a build of medjax also hashes, audits
and splits. Augmentation is DINO's multi-crop, 2 x 224 and 8 x 96 pixels of each image. It is measured three times: on
the host, as other frameworks do it; the host's share in medjax (it only decodes); and the device's share in medjax, on
the devices that jax finds (a CPU too).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import csv
import importlib
import io
import itertools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

os.environ.setdefault('MEDJAX_ID_KEY', 'a key for benchmarks')  # never the key of the person who runs them

import jax
import numpy as np
import pydicom
from PIL import Image, ImageEnhance, ImageFilter
from pydicom.uid import ExplicitVRLittleEndian

from medjax.commands import build
from medjax.data import phantom, records
from medjax.data.images import decode
from medjax.data.stream import Stream
from medjax.views import make

SIZE, SMALL = 512, 256  # pixels of the images; pixels after a build with `--size`
ROWS = 16  # rows of a batch
VIEWS = {
    'global': dict(view='crop', part='main', count=2, size=224, area=(0.32, 1.0), blur=(0.0, 0.5), sigma=(0.1, 2.0)),
    'local': dict(view='crop', part='main', count=8, size=96, area=(0.05, 0.32), blur=0.25, sigma=(0.1, 2.0)),
}
CROPS = [(224, (0.32, 1.0), 0.0), (224, (0.32, 1.0), 0.5), *[(96, (0.05, 0.32), 0.25)] * 8]  # size, area, blur
ALL = os.cpu_count() or 1


class Case(NamedTuple):
    """One implementation of one task."""

    task: str
    implementation: str
    threads: int
    run: Callable[[], int] | None  # does the work and returns the number of images; None: not installed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=200)
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--json', type=pathlib.Path, metavar='FILE', help='write the figures there too')
    parser.add_argument('--quick', action='store_true', help='16 images, 2 repeats: does it run?')
    options = parser.parse_args()
    if options.quick:
        options.images, options.repeats = 16, 2
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(cases(options.images, pathlib.Path(folder)), options.repeats)
    versions = {name: getattr(module, '__version__', '') for name in LIBRARIES if (module := import_or_none(name))}
    result = dict(cores=ALL, device=jax.devices()[0].device_kind, images=options.images, versions=versions, rows=rows)
    print(f'{ALL} cores, jax on {result["device"]}, {options.images} phantoms of {SIZE} px, {versions}\n{table(rows)}')
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + '\n')


LIBRARIES = ('PIL', 'cv2', 'torchvision', 'simplejpeg', 'pydicom', 'jax')


def import_or_none(name: str) -> Any:
    """The module, or None if it is missing or does not load (torchvision for another torch)."""
    try:
        return importlib.import_module(name)
    except Exception:
        return None


def cases(count: int, folder: pathlib.Path) -> Iterator[Case]:
    cv2 = import_or_none('cv2')
    if cv2:
        cv2.setNumThreads(1)  # the loop that calls it starts the threads, as for all implementations
    with concurrent.futures.ProcessPoolExecutor() as pool:
        pictures = list(pool.map(render, range(count), chunksize=4))
    yield from decoding(pictures[:32], cv2)
    (folder / 'table').mkdir()
    files = [folder / 'table' / f'{i}.png' for i in range(count)]
    for file, picture in zip(files, pictures, strict=True):
        Image.fromarray(picture).save(file)
    with (folder / 'table' / 'metadata.csv').open('w', newline='') as file:
        rows = [[file.name, f'p{i}', 'train' if i % 10 else 'test'] for i, file in enumerate(files)]
        csv.writer(file).writerows([['image', 'patient_id', 'split'], *rows])
    yield from building(files, folder, cv2)
    build_table(folder / 'table', folder / 'data')
    data = records.open(folder / 'data')
    yield from reading(data, [file for i, file in enumerate(files) if i % 10], cv2)
    yield from augmenting(data, pictures[: 2 * ROWS])


def render(i: int) -> np.ndarray:
    return phantom.record(i, phantom.Settings(size=SIZE)).image


def decoding(pictures: Sequence[np.ndarray], cv2: Any) -> Iterator[Case]:
    """From bytes to an array, on one thread."""
    # a detector's noise in 8 further bits
    noise = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE)).astype(np.uint16)
    deep = [picture.astype(np.uint16) * 256 + noise for picture in pictures]
    kinds = {
        'JPEG grey': [as_jpeg(picture) for picture in pictures],
        'PNG 8 bit': [as_png(picture) for picture in pictures],
        'PNG 16 bit': [as_png(picture) for picture in deep],
        'DICOM 12 bit': [as_dicom(picture >> 4) for picture in deep],
    }
    for kind, files in kinds.items():
        task = f'decoding {kind}'
        yield Case(task, 'medjax', 1, lambda files=files: run_on_all(decode.read, files))
        if kind.startswith('DICOM'):
            yield Case(task, 'pydicom, stored values only', 1, lambda files=files: run_on_all(stored_values, files))
            continue
        yield Case(task, 'PIL', 1, lambda files=files: run_on_all(pil_decoded, files))
        run = (lambda files=files: run_on_all(lambda data: cv2_decoded(cv2, data), files)) if cv2 else None
        yield Case(task, 'OpenCV', 1, run)


def reading(data: records.DataSet, files: Sequence[pathlib.Path], cv2: Any) -> Iterator[Case]:
    """Random records and batches of a data set, against the files from which it was built."""
    train = data.split('train')
    order = np.random.default_rng(0).permutation(len(train)).tolist()

    def read_file(decoded: Callable[[bytes], np.ndarray]) -> Callable[[int], np.ndarray]:
        return lambda i: decoded(files[i].read_bytes())

    loops: dict[str, Callable[[int], np.ndarray] | None] = {
        'medjax': lambda i: train.image(i),
        'PIL': read_file(pil_decoded),
        'OpenCV': read_file(lambda data: cv2_decoded(cv2, data)) if cv2 else None,
    }
    for threads in sorted({1, ALL}):
        for implementation, read in loops.items():
            run = (lambda read=read, threads=threads: run_on_all(read, order, threads)) if read else None
            yield Case(f'reading random records, {threads} threads', implementation, threads, run)

    parts = {'main': dict(rows=ROWS, sources=dict(main=1.0))}
    number = 4 * max(len(order) // ROWS, 1)

    def stream() -> int:
        batches = Stream(parts, {'main': data}, 0, ALL).batches()  # a new stream: nothing is decoded yet
        for _ in range(number):
            next(batches)
        batches.close()
        return number * ROWS

    def loop(read: Callable[[int], np.ndarray]) -> int:
        endless = itertools.cycle(order)
        for _ in range(number):
            batch = np.zeros((ROWS, 1, SIZE, SIZE, 1), np.uint8)
            chosen = list(itertools.islice(endless, ROWS))

            def fill(at: int, batch=batch, chosen=chosen) -> None:
                batch[at, 0, ..., 0] = read(chosen[at])

            run_on_all(fill, range(ROWS), ALL)
        return number * ROWS

    yield Case('reading batches', 'medjax (data.stream)', ALL, stream)
    for name in ('PIL', 'OpenCV'):
        yield Case('reading batches', name, ALL, (lambda read=loops[name]: loop(read)) if loops[name] else None)


def building(files: Sequence[pathlib.Path], folder: pathlib.Path, cv2: Any) -> Iterator[Case]:
    """From files of 512 px to a data set of 256 px, or to a folder of PNG files of 256 px."""

    def pil(file: pathlib.Path) -> None:
        with Image.open(file) as image:
            image.convert('L').resize((SMALL, SMALL), Image.Resampling.BICUBIC).save(folder / 'small' / file.name)

    def opencv(file: pathlib.Path) -> None:
        image = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        small = cv2.resize(image, (SMALL, SMALL), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / 'small' / file.name), small)

    (folder / 'small').mkdir()
    task = f'building, {SIZE} to {SMALL} px'
    out = folder / 'small_data'
    yield Case(task, 'medjax build table', ALL, lambda: build_table(folder / 'table', out, '--size', str(SMALL)))
    yield Case(task, 'PIL', ALL, lambda: run_on_all(pil, files, ALL))
    yield Case(task, 'OpenCV', ALL, (lambda: run_on_all(opencv, files, ALL)) if cv2 else None)


def augmenting(data: records.DataSet, pictures: Sequence[np.ndarray]) -> Iterator[Case]:
    """From JPEG files to ten crops of each in float32: on one host thread, or on the device from a decoded batch."""
    task, files = 'multi-crop', [as_jpeg(picture) for picture in pictures]
    transforms = import_or_none('torchvision') and multi_crop()
    run = (lambda: run_on_all(lambda d: transforms(Image.open(io.BytesIO(d))), files)) if transforms else None
    yield Case(task, 'host: torchvision on PIL', 1, run)
    draw = np.random.default_rng(0)
    yield Case(
        task, 'host: PIL loop', 1, lambda: run_on_all(lambda d: pil_crops(Image.open(io.BytesIO(d)), draw), files)
    )
    yield Case(task, 'host in medjax: decodes', 1, lambda: run_on_all(decode.read, files))
    views = jax.jit(make.build(make.kinds(VIEWS), {}, dict(channels=1, mean=0.5, std=0.25), {}, 1))
    batches = Stream({'main': dict(rows=ROWS, sources=dict(main=1.0))}, {'main': data}, 0, ALL).batches()
    batch = jax.device_put(next(batches))
    batches.close()

    def device() -> int:
        jax.block_until_ready(views(batch, jax.random.key(0), 0))
        return ROWS

    yield Case(task, f'device in medjax: {jax.devices()[0].device_kind}', ALL, device)


def multi_crop() -> Callable[[Image.Image], list[Any]]:
    """DINOv2's augmentation on the host, torchvision's transforms on PIL images, with this benchmark's grey values."""
    import torch
    from torchvision import transforms

    torch.set_num_threads(1)

    def crop(size: int, area: tuple[float, float], blur: float) -> Any:
        steps = [
            transforms.RandomResizedCrop(size, scale=area, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomApply([transforms.ColorJitter(brightness=0.1, contrast=0.25)], p=0.8),
            transforms.RandomApply([transforms.GaussianBlur(9, sigma=(0.1, 2.0))], p=blur),
            transforms.ToTensor(),
            transforms.Normalize([0.5], [0.25]),
        ]
        return transforms.Compose(steps)

    crops = [crop(*settings) for settings in CROPS]
    return lambda image: [transform(image) for transform in crops]


def pil_crops(image: Image.Image, draw: np.random.Generator) -> list[np.ndarray]:
    """The same crops with PIL alone."""
    crops = []
    for size, area, blur in CROPS:
        share, aspect = draw.uniform(*area), np.exp(draw.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = (min(SIZE, SIZE * (share * a) ** 0.5) for a in (aspect, 1 / aspect))
        x, y = draw.uniform(0, SIZE - w), draw.uniform(0, SIZE - h)
        crop = image.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + w, y + h))
        if draw.uniform() < 0.8:
            crop = ImageEnhance.Brightness(crop).enhance(draw.uniform(0.9, 1.1))
            crop = ImageEnhance.Contrast(crop).enhance(draw.uniform(0.75, 1.25))
        if draw.uniform() < blur:
            crop = crop.filter(ImageFilter.GaussianBlur(draw.uniform(0.1, 2.0)))
        crops.append((np.asarray(crop, np.float32) / 255 - 0.5) / 0.25)
    return crops


def run_on_all(function: Callable[[Any], Any], items: Sequence[Any], threads: int = 1) -> int:
    """Calls the function with every item, on `threads` threads; returns the number of items."""
    if threads == 1:
        for item in items:
            function(item)
    else:
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            for _ in pool.map(function, items):
                pass
    return len(items)


def build_table(table: pathlib.Path, out: pathlib.Path, *options: str) -> int:
    """Runs `medjax build table`; returns the number of records."""
    with contextlib.redirect_stdout(io.StringIO()):
        build.main(['table', str(table), '--out', str(out), '--overwrite', *options])
    return sum(records.open(out).splits.values())


def pil_decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def cv2_decoded(cv2: Any, data: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def stored_values(data: bytes) -> np.ndarray:
    return pydicom.dcmread(io.BytesIO(data)).pixel_array


def as_jpeg(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=95)
    return file.getvalue()


def as_png(picture: np.ndarray) -> bytes:
    """PNG as Pillow writes it, like most files."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'PNG')
    return file.getvalue()


def as_dicom(values: np.ndarray) -> bytes:
    """An uncompressed DICOM file of 12 bits with a window."""
    file = pydicom.Dataset()
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.SOPClassUID = file.file_meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.1.1'
    file.SOPInstanceUID = file.file_meta.MediaStorageSOPInstanceUID = '1.2.3'
    file.Rows, file.Columns, file.SamplesPerPixel, file.PhotometricInterpretation = *values.shape, 1, 'MONOCHROME2'
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.WindowCenter, file.WindowWidth, file.PixelData = 2048, 4096, values.astype('<u2').tobytes()
    out = io.BytesIO()
    pydicom.dcmwrite(out, file, enforce_file_format=True)
    return out.getvalue()


def measure(cases: Iterator[Case], repeats: int) -> list[dict]:
    """Images per second, one row for each case. The cases of a task run in turn; the first round is not timed."""
    rows = []
    for task, group in itertools.groupby(cases, key=lambda case: case.task):
        rivals = list(group)
        speeds: dict[str, list[float]] = {case.implementation: [] for case in rivals}
        for k in range(repeats + 1):
            for case in (case for case in rivals if case.run):
                start = time.perf_counter()
                number = case.run()
                if k:
                    speeds[case.implementation].append(number / (time.perf_counter() - start))
        for case in rivals:
            figures = speeds[case.implementation]
            row = dict(task=task, implementation=case.implementation, threads=case.threads)
            if figures:
                row |= dict(images_per_s=statistics.median(figures), least=min(figures), most=max(figures))
            rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    lines = ['| task | implementation | threads | images/s (median, min, max) |', '| --- | --- | --- | --- |']
    for row in rows:
        speed = f'{row["images_per_s"]:.1f} ({row["least"]:.1f}, {row["most"]:.1f})' if 'least' in row else ''
        lines.append(f'| {row["task"]} | {row["implementation"]} | {row["threads"]} | {speed or "not installed"} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
