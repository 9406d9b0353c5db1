"""Masks as runs of pixels, as SIIM-ACR and CANDID-PTX write them."""

from __future__ import annotations

import re

import numpy as np

from medjax.data.types import BLANK, NEGATIVE, POSITIVE, Unreadable


def label(cell: str) -> int | None:
    """1 where a cell holds runs, 0 for '-1' (nothing there), BLANK for an empty one, None for anything else."""
    if re.fullmatch(r'-1(\.0*)?', cell):
        return NEGATIVE
    if not cell:
        return BLANK
    return POSITIVE if re.fullmatch(r'\d+(\s+\d+)+', cell) else None


def mask(cells: list[str], shape: tuple[int, int]) -> np.ndarray:
    """uint8 [H,W], 255 where any of the cells has a run: the masks of one image, joined.

    A cell is 'skip length skip length …': each skip counts from the end of the run before it, and pixels are counted
    down the columns, from the left. '-1' and '' add nothing. Raises Unreadable where runs leave the image.
    """
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    for cell in cells:
        if label(cell) != POSITIVE:
            continue
        if len(numbers := cell.split()) % 2:
            raise Unreadable('its runs are an odd number of numbers')
        skips, lengths = np.array(numbers, np.float64).reshape(-1, 2).T  # floats: sums of huge numbers do not wrap
        ends = np.cumsum(skips + lengths)
        if ends[-1] > flat.size:
            raise Unreadable(f'its runs leave the image of {shape[1]}x{shape[0]} pixels')
        for start, end in zip((ends - lengths).astype(int), ends.astype(int), strict=True):
            flat[start:end] = 255
    return np.ascontiguousarray(flat.reshape(shape[1], shape[0]).T)
