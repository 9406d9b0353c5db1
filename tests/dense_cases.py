"""Records with masks and encoders with patch features, for tests of probes of patches."""

from __future__ import annotations

import numpy as np

from medjax.data import records
from medjax.data.builder import write
from medjax.data.types import Entry, Example, Source
from medjax.probes import comparison, results
from medjax.probes.encode import Encoder
from medjax.probes.evaluate import ProbeInputs

NAMES = ('disc', 'bar', 'never')
SIDE, PATCH = 32, 4


def picture(i: int, side: int = SIDE, wide: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """An image uint8 [side,side+wide] and its mask: a bright disc, and in every second image a grey bar."""
    rng = np.random.default_rng(i)
    y, x = np.mgrid[:side, : side + wide]
    centre, radius = rng.uniform(10, 22, 2), rng.uniform(4, 8)
    disc = (y - centre[0]) ** 2 + (x - wide / 2 - centre[1]) ** 2 < radius**2
    bar = (np.abs(y - rng.integers(4, side - 4)) < 3) & bool(i % 2)
    image = rng.integers(0, 30, disc.shape) + 200 * disc + 100 * (bar & ~disc)
    return image.astype(np.uint8), (disc + 2 * bar).astype(np.uint8)


def data(folder, counts=(24, 8, 12), names=NAMES, wide=0, masked=lambda i: i % 5 != 4, per_patient=2, patients=None):
    """A data set with (train, val, test) records. Every fifth record has no mask."""
    splits = [name for name, count in zip(('train', 'val', 'test'), counts, strict=True) for _ in range(count)]
    whose = patients or [f'{split}{i // per_patient}' for i, split in enumerate(splits)]
    entries = [Entry(f'i{i}', whose[i], f's{i}', split) for i, split in enumerate(splits)]

    def load(i: int) -> Example:
        image, mask = picture(i, wide=wide)
        return Example(image, mask=mask if masked(i) else None)

    source = Source(
        'discs', '1', 'discs', ('odd',), 'CC0', entries, lambda i: [i % 2], load, key=b'a key for tests', masks=names
    )
    write.write(source, folder / 'discs')
    return records.open(folder / 'discs')


def pixels_of_patches(patch: int = PATCH, size: int = SIDE, fit: str = 'crop', scale: float = 1.0) -> Encoder:
    """An encoder whose patch features are the pixels of the patch, and noise that says nothing."""

    def forward(params, images, outputs):
        b, h, w, c = images.shape
        grid = images.reshape(b, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 2, 4, 5)
        grid = scale * grid.reshape(b, h // patch, w // patch, -1)
        return dict(cls=grid.mean((1, 2)), layers=grid.mean((1, 2))[:, None], patches=grid)

    image = dict(channels=1, mean=0.5, std=0.25, fit=fit)
    digest = f'patches {patch} {size} {fit} {scale}'
    return Encoder('pixels of patches', digest, {}, forward, size, image, dict(size=size))


def inputs(encoder: Encoder, data_set: records.DataSet, cache=None, **more) -> ProbeInputs:
    options = dict(policy={}, prompts=None, seed=0, draws=100, interval='percentile') | more
    return ProbeInputs(encoder=encoder, data=data_set, cache=cache, **options)


def stored(folder, encoder, result):
    """A result as `medjax compare` reads it from the disk."""
    file = folder / 'probes' / str(encoder) / 'discs.dense.json'
    about = dict(encoder=dict(step=encoder), data='discs', data_fingerprint='', probe='dense')
    results.write(file, about | result.content, result.arrays)
    return comparison.read(file)
