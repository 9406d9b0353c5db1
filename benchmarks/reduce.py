"""Measures the share of slices that `medjax reduce` keeps at each threshold, and how alike slices are by distance.

    python benchmarks/reduce.py [--export RUN/exports/STEP] [--nifti FILE.nii.gz]

The volumes are axial slices of the thorax phantom with noise (30 cm in steps of 2.5 mm and of 5 mm), smooth random
fields with a ball inside (64^3: long range, short range, noisy), and the slices of a NIfTI file. `slice` in the output
is the paper's hash: it is computed from the whole slice and not from its thumbnail.
"""

from __future__ import annotations

import argparse
import gzip
from collections.abc import Iterator

import numpy as np
from PIL import Image

from medjax.data.audit import near_duplicates
from medjax.data.builder import reduce
from medjax.data.phantom import anatomy
from medjax.data.phantom.projection import Ellipsoid, Plate, Solid
from medjax.probes import encode

DISTANCES = (1, 2, 4, 8, 16, 32)  # in slices
THRESHOLDS = dict(
    hash=(0, 2, 4, 6, 8, 12), embedding=(0.8, 0.9, 0.95, 0.98, 0.99, 0.999), information=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--export')
    parser.add_argument('--nifti')
    options = parser.parse_args()
    encoder = encode.load(options.export) if options.export else None
    for name, stacks in volumes(options.nifti):
        print(f'\n{name}: {len(stacks)} of {len(stacks[0])} slices')
        thumbs = [np.stack([near_duplicates.thumbnail(s[..., None]) for s in stack]) for stack in stacks]
        slices = [np.concatenate([whole_dhash(s) for s in stack]) for stack in stacks]
        show('slice', reduce.MEASURES['hash'], slices)
        show('hash', reduce.MEASURES['hash'], [reduce.dhash(t) for t in thumbs])
        show('information', reduce.MEASURES['information'], [reduce.grey_levels(t) for t in thumbs])
        if encoder:
            features = [encoder.encode(list(stack), outputs=('cls',))['cls'] for stack in stacks]
            show('embedding', reduce.MEASURES['embedding'], features)


def show(title: str, measure: reduce.Measure, described: list[np.ndarray]) -> None:
    """Prints the median similarity at each distance, and the share of slices kept at each threshold."""
    near = [
        np.mean([np.median([measure.compare(d[i], d[i + k][None])[0] for i in range(len(d) - k)]) for d in described])
        for k in DISTANCES
    ]
    kept = {
        t: np.mean([(reduce.repeats_in_volume(d, measure, t)[0] < 0).mean() for d in described])
        for t in THRESHOLDS[measure.name]
    }
    print(f'  {title:12} median at', ', '.join(f'{k}: {v:.3g}' for k, v in zip(DISTANCES, near)), 'slices')
    print(f'  {"":12} kept at', ', '.join(f'{t:g}: {share:.2f}' for t, share in kept.items()))


def volumes(nifti: str | None) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Yields names and stacks of slices, uint8 [n,H,W]."""
    yield 'thorax, 2.5 mm', [thorax(n, 120, 0.25) for n in range(3)]
    yield 'thorax, 5 mm', [thorax(n, 60, 0.5) for n in range(3)]
    yield 'field, long range', [field(n, 6, 4) for n in range(4)]
    yield 'field, short range', [field(n, 3, 4) for n in range(4)]
    yield 'field, noisy', [field(n, 6, 25) for n in range(4)]
    if nifti:
        stack = read_nifti(nifti)
        yield nifti, [stack]
        yield f'{nifti}, every third', [stack[::3]]


def thorax(seed: int, slices: int, step: float, size: int = 128) -> np.ndarray:
    """Attenuation in planes that are `step` cm apart, from the apices down, with blur and noise similar to a CT."""
    rng = np.random.default_rng(seed)
    pieces = anatomy.scene(anatomy.draw_body(rng), 0.8, True, {})
    across = ((np.arange(size) + 0.5) / size * 40 - 20).astype(np.float32)
    stack = []
    for y in np.arange(slices) * step - 14:
        points = np.stack(np.broadcast_arrays(across[None], np.float32(y), across[:, None]), -1)
        plane = np.zeros((size, size), np.float32)
        for piece in pieces:
            here = np.all([within(solid, points) for solid in piece.inside], axis=0)
            for solid in piece.outside:
                here &= ~within(solid, points)
            plane[here] += piece.density
        plane = smooth(plane, 0.7) + rng.normal(0, 0.006, plane.shape)
        stack.append((plane / 0.45 * 255).clip(0, 255).astype(np.uint8))
    return np.stack(stack)


def within(solid: Solid, points: np.ndarray) -> np.ndarray:
    """Whether each point is inside the solid."""
    if isinstance(solid, Ellipsoid):
        return (((points - solid.centre) @ np.linalg.inv(solid.axes).T) ** 2).sum(-1) <= 1
    if isinstance(solid, Plate):
        return (points @ solid.normal >= solid.low) & (points @ solid.normal <= solid.high)
    return np.all([within(inner, points) for inner in solid.solids], axis=0)


def field(seed: int, reach: float, noise: float, size: int = 64) -> np.ndarray:
    """A Gaussian random field that is smooth over `reach` voxels, with a bright ball inside."""
    rng = np.random.default_rng(seed)
    values = smooth(rng.normal(size=(size,) * 3), reach)
    values *= 40 / values.std()
    centre = rng.uniform(0.3, 0.7, (3, 1, 1, 1)) * size
    values[((np.mgrid[:size, :size, :size] - centre) ** 2).sum(0) < (0.06 * size) ** 2] += 60
    return (110 + values + rng.normal(0, noise, values.shape)).clip(0, 255).astype(np.uint8)


def smooth(values: np.ndarray, deviation: float) -> np.ndarray:
    """A Gaussian blur along all axes, with periodic edges."""
    for axis, n in enumerate(values.shape):
        gain = np.exp(-2 * (np.pi * deviation * np.fft.rfftfreq(n)) ** 2)
        gain = gain.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
        values = np.fft.irfft(np.fft.rfft(values, axis=axis) * gain, n, axis=axis)
    return values


def read_nifti(path: str) -> np.ndarray:
    """The voxels of a little-endian .nii.gz file, slices first, stretched to 8 bits."""
    with gzip.open(path) as file:
        data = file.read()
    shape = np.frombuffer(data[42:48], '<i2')
    kind = {2: '<u1', 4: '<i2', 8: '<i4', 16: '<f4', 512: '<u2'}[int(np.frombuffer(data[70:72], '<i2')[0])]
    start = int(np.frombuffer(data[108:112], '<f4')[0])
    values = np.frombuffer(data, kind, int(np.prod(shape, dtype=int)), start).reshape(shape[::-1]).astype(np.float32)
    return (255 * (values - values.min()) / np.ptp(values)).astype(np.uint8)


def whole_dhash(pixels: np.ndarray) -> np.ndarray:
    """`reduce.dhash` of an image of any size."""
    small = np.asarray(Image.fromarray(pixels).resize((9, 8), Image.Resampling.LANCZOS))
    return np.packbits(small[:, 1:] > small[:, :-1])[None]


if __name__ == '__main__':
    main()
