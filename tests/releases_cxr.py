"""Helpers for tests of chest radiograph sources: tiny images, tables, a data set that is built and opened."""

from __future__ import annotations

import gzip
import pathlib
from collections.abc import Iterable

import numpy as np
from PIL import Image

from medjax.data import records
from medjax.data.builder import write
from medjax.data.types import Source


def image(path: pathlib.Path, value: int, mode: str = 'L', side: int = 16) -> None:
    """Writes a picture with a gradient; each value gives another one. `mode`: L, RGBA (with alpha), I;16 (16 bits)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = (np.arange(side * side).reshape(side, side) % 64 + value % 190).astype(np.uint8)
    if mode == 'RGBA':
        Image.fromarray(np.dstack([grey, grey, grey, np.full_like(grey, 255)])).save(path)
    elif mode == 'I;16':
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(grey).save(path, **({'quality': 95} if path.suffix == '.jpg' else {}))


def table(path: pathlib.Path, text: str | Iterable[str], bom: bool = False) -> None:
    lines = text if isinstance(text, str) else '\n'.join(text) + '\n'
    data = lines.encode('utf-8-sig' if bom else 'utf-8')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == '.gz' else data)


def built(source: Source, out: pathlib.Path) -> tuple[dict, records.DataSet]:
    return write.write(source, out), records.open(out)


def labels(source: Source) -> dict[str, dict[str, int]]:
    """Image -> label -> code."""
    return {
        entry.image: dict(zip(source.labels, source.label(i), strict=True)) for i, entry in enumerate(source.entries)
    }


def examples(source: Source) -> dict:
    return {entry.image: source.load(i) for i, entry in enumerate(source.entries)}


def on_disk(out: pathlib.Path) -> bytes:
    """Everything that a data set holds, with the records decompressed. No plain id may be in it."""
    data = records.open(out)
    texts = [repr(vars(data)), *(repr(split[i]) for split in map(data.split, data.splits) for i in range(len(split)))]
    return b''.join(path.read_bytes() for path in out.rglob('*') if path.is_file()) + ''.join(texts).encode()
