"""Reads masks that are written as run lengths, as in SIIM-ACR and CANDID-PTX."""

from __future__ import annotations

import re

import numpy as np

from medjax.data.types import BLANK, NEGATIVE, POSITIVE, Unreadable


def label_code(cell: str) -> int | None:
    """POSITIVE for a cell with runs, NEGATIVE for '-1' (no finding), BLANK for an empty cell, None for any other."""
    if re.fullmatch(r'-1(\.0*)?', cell):
        return NEGATIVE
    if not cell:
        return BLANK
    return POSITIVE if re.fullmatch(r'\d+(\s+\d+)+', cell) else None


def mask(cells: list[str], shape: tuple[int, int]) -> np.ndarray:
    """The joined mask of all cells of an image: uint8 [H,W], 255 where any cell has a run.

    A cell is 'skip length skip length …'. Each skip counts from the end of the run before it. Pixels are counted down
    the columns, from the left. For example '3 2' is rows 3 and 4 of column 0. '-1' and '' add nothing.
    Raises Unreadable if runs leave the image.
    """
    flat = np.zeros(shape[0] * shape[1], np.uint8)
    for cell in cells:
        if label_code(cell) != POSITIVE:
            continue
        if len(numbers := cell.split()) % 2:
            raise Unreadable('its runs are an odd number of numbers')
        skips, lengths = np.array(numbers, np.float64).reshape(-1, 2).T  # floats: sums of huge numbers do not overflow
        ends = np.cumsum(skips + lengths)
        if ends[-1] > flat.size:
            raise Unreadable(f'its runs leave the image of {shape[1]}x{shape[0]} pixels')
        for start, end in zip((ends - lengths).astype(int), ends.astype(int), strict=True):
            flat[start:end] = 255
    return np.ascontiguousarray(flat.reshape(shape[1], shape[0]).T)
