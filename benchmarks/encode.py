"""Encodes a folder of images with medjax and with transformers, on one machine in one run, decoding included.

    python benchmarks/encode.py                                   # 128 drawn JPEGs of 1024 px, ViT-S/14 and ViT-B/14
    python benchmarks/encode.py --models S --kinds jpeg,dicom --rounds 7
    python benchmarks/encode.py --folder IMAGES                   # JPEG and PNG files of your own

Both get the same folder of weights, a random DINOv2 in the names of Hugging Face with 224 px, and the same files. They
give the CLS token and the patch tokens of every image. medjax runs `medjax.load(folder).encode(files)`. transformers
runs as its users write it: a pool of threads opens the files with Pillow (DICOM with pydicom) and applies the image
processor of the folder. A loop runs batches through Dinov2Model without gradients, with all cores, while the pool
decodes the next ones. Processes take turns, so a busy moment of the machine meets both. Each first runs once
unmeasured.

It prints images per second: the median of the rounds with the lowest and the highest, and the ratio in each round. CPU
seconds an image (of all threads) are printed too. Other work on the machine changes them less.

Measured (median [lowest, highest] of 3 rounds):

    two idle cores, torch 2.13, jax 0.10, --batch 8: both get batches of their own best size
    ViT-S/14, JPEG     1.11 x [1.03, 1.30]   CPU 136, 151 ms an image
    ViT-B/14, JPEG     0.92 x [0.78, 1.12]   CPU 488, 435 ms an image

    one NVIDIA H100 and 16 cores, torch 2.11, jax 0.11.2, 512 images: images per second of medjax and transformers
    ViT-S/14, JPEG     3.12 x [3.04, 3.33]   451, 142
    ViT-B/14, JPEG     2.50 x [2.48, 2.85]   382, 151
    ViT-B/14, DICOM    1.11 x [1.10, 1.20]   165, 149
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 1024  # of the drawn images
WIDTHS = dict(S=(384, 6), B=(768, 12))  # width and heads
KINDS = ('jpeg', 'png', 'dicom')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--models', default='S,B', help='sizes of the ViT (default: %(default)s)')
    parser.add_argument('--kinds', default='jpeg', help=f'of {", ".join(KINDS)} (default: %(default)s)')
    parser.add_argument('--folder', type=Path, help='images in place of drawn ones')
    parser.add_argument('--images', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--batch', type=int, default=32, help='of transformers')
    parser.add_argument('--serve', help=argparse.SUPPRESS)  # the name of a side: this process is one of the two
    parser.add_argument('--weights', type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(SIDES[options.serve](options.weights, options.batch))
        return
    with tempfile.TemporaryDirectory() as place:
        for model in options.models.split(','):
            weights = publish(model, Path(place, f'dinov2-{model}'))
            for kind in ('given',) if options.folder else options.kinds.split(','):
                folder = options.folder or draw(kind, options.images, Path(place, kind))
                compare(f'ViT-{model}/14, {kind}', weights, folder, options)


def compare(title: str, weights: Path, folder: Path, options: argparse.Namespace) -> None:
    """Runs both sides in turns, and prints their speeds."""
    files = sorted(str(path) for path in folder.rglob('*') if path.is_file())[: options.images]
    commands = {
        side: [sys.executable, __file__, '--serve', side, '--weights', str(weights), '--batch', str(options.batch)]
        for side in SIDES
    }
    processes = {
        side: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for side, command in commands.items()
    }
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    features = {}
    for turn in range(options.rounds + 1):  # the first is the warm-up
        for side in SIDES if turn % 2 else reversed(SIDES):
            answer = ask(processes[side], files)
            features[side] = answer['cls']
            if turn:
                speeds[side].append(len(files) / answer['seconds'])
                cpu[side].append(1e3 * answer['cpu'] / len(files))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    ours, theirs = (np.array(features[side]) for side in SIDES)
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
    print(
        f'{title}, {len(files)} images, {options.rounds} rounds (cosine of the CLS tokens at least {cosine.min():.4f})'
    )
    for side, values in {**speeds, 'ratio': ratios}.items():
        more = ''
        if side in cpu:
            more = f', CPU {statistics.median(cpu[side]):.0f} ms an image [{min(cpu[side]):.0f}, {max(cpu[side]):.0f}]'
        print(f'  {side:12} {statistics.median(values):6.2f}  [{min(values):.2f}, {max(values):.2f}]{more}', flush=True)


def ask(process: subprocess.Popen, files: list[str]) -> dict[str, Any]:
    """Seconds for all files, CPU seconds of all threads, and the CLS tokens of a few files."""
    process.stdin.write(json.dumps(files) + '\n')
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def serve(encode: Callable[[list[str]], np.ndarray]) -> None:
    """Answers lists of files on stdin with the seconds that encoding them took."""
    for line in sys.stdin:
        files, begun, cpu = json.loads(line), time.perf_counter(), time.process_time()
        cls = encode(files)
        assert cls.shape[0] == len(files) and np.isfinite(cls).all()
        taken = dict(seconds=time.perf_counter() - begun, cpu=time.process_time() - cpu)
        print(json.dumps(taken | dict(cls=cls[:8].tolist())), flush=True)


def medjax_side(weights: Path, batch: int) -> Callable[[list[str]], np.ndarray]:
    import medjax

    encoder = medjax.load(weights)
    return lambda files: encoder.encode(files, outputs=('cls', 'patches'))['cls']


def transformers_side(weights: Path, batch: int) -> Callable[[list[str]], np.ndarray]:
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.set_float32_matmul_precision('high')  # on a GPU jax multiplies float32 in TF32 too
    model = transformers.Dinov2Model.from_pretrained(weights).eval().to(device)
    processor = transformers.BitImageProcessorPil.from_pretrained(weights)

    def batches(files: list[str]) -> Iterator[torch.Tensor]:
        def prepared(file: str) -> torch.Tensor:
            return processor(images=opened(file), return_tensors='pt')['pixel_values'][0]

        with ThreadPoolExecutor() as pool:
            ahead = [pool.submit(prepared, file) for file in files[: 2 * batch]]
            for start in range(0, len(files), batch):
                now, ahead = ahead[:batch], ahead[batch:]
                ahead += [pool.submit(prepared, file) for file in files[start + 2 * batch : start + 3 * batch]]
                yield torch.stack([one.result() for one in now])

    def encode(files: list[str]) -> np.ndarray:
        cls, patches = [], []
        with torch.inference_mode():
            for images in batches(files):
                tokens = model(images.to(device)).last_hidden_state.cpu()
                cls.append(tokens[:, 0].numpy())
                patches.append(tokens[:, 1:].numpy())
        np.concatenate(patches)
        return np.concatenate(cls)

    return encode


def opened(file: str) -> object:
    """The image as RGB of Pillow; of a DICOM file the stored values, which are those that medjax shows here."""
    from PIL import Image

    if file.endswith('.dcm'):
        import pydicom

        return Image.fromarray(pydicom.dcmread(file).pixel_array).convert('RGB')
    return Image.open(file).convert('RGB')


SIDES = dict(medjax=medjax_side, transformers=transformers_side)


# Weights and images.


def publish(size: str, folder: Path) -> Path:
    """A folder with a random DINOv2 and its image processor, as Hugging Face publishes them."""
    import torch
    import transformers

    torch.manual_seed(0)
    width, heads = WIDTHS[size]
    config = transformers.Dinov2Config(image_size=224, patch_size=14, hidden_size=width, num_attention_heads=heads)
    transformers.Dinov2Model(config).save_pretrained(folder)
    processor = transformers.BitImageProcessorPil(
        size=dict(shortest_edge=256),
        crop_size=dict(height=224, width=224),
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    processor.save_pretrained(folder)
    return folder


def draw(kind: str, count: int, folder: Path) -> Path:
    """Grey pictures with shapes and noise, about as large as files of radiographs in their kind."""
    from PIL import Image

    folder.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for i in range(count):
        picture = 40.0 + 60 * x
        for _ in range(12):
            (a, b), (r, s) = rng.random(2), rng.uniform(0.03, 0.3, 2)
            picture += rng.uniform(-60, 80) * (((x - a) / r) ** 2 + ((y - b) / s) ** 2 < 1)
        pixels = (picture + rng.normal(0, 4, picture.shape)).clip(0, 255).astype(np.uint8)
        path = folder / f'{i:04}'
        if kind == 'dicom':
            path.with_suffix('.dcm').write_bytes(dicom(pixels))
        else:
            Image.fromarray(pixels).save(path.with_suffix(f'.{kind}'), quality=90)
    return folder


def dicom(pixels: np.ndarray) -> bytes:
    """An uncompressed DICOM file of 8 bits, with a window over all values."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    d = Dataset()
    d.file_meta = FileMetaDataset()
    d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID = SecondaryCaptureImageStorage
    d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID = generate_uid()
    d.Rows, d.Columns = pixels.shape
    d.SamplesPerPixel, d.PhotometricInterpretation, d.PixelRepresentation = 1, 'MONOCHROME2', 0
    d.BitsAllocated, d.BitsStored, d.HighBit = 8, 8, 7
    d.WindowCenter, d.WindowWidth = 128, 256
    d.PixelData = pixels.tobytes()
    file = io.BytesIO()
    d.save_as(file, enforce_file_format=True)
    return file.getvalue()


if __name__ == '__main__':
    main()
