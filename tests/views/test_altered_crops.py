"""Two crops of one size, the same crops with other changes, and where one crop lies relative to the other."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from programs import run

from medjax.models import relative
from medjax.views import make

ROWS, SIDE, SIZE = 8, 96, 24


def shown(pictures, one_size=True, clean=None, altered=None, flip=0.5, seed=0):
    """The views `clean` and `altered` of pictures uint16 [rows,96,96]."""
    views = dict(
        clean=dict(
            view='crop', part='cxr', size=SIZE, count=2, area=(0.2, 0.8), flip=flip, one_size=one_size,
            **dict(photometric=None) | (clean or {}),
        ),
        altered=dict(
            view='crop', part='cxr', size=SIZE, count=2, boxes='clean', on_top=True,
            **dict(photometric=None) | (altered or {}),
        ),
    )  # fmt: skip
    maker = make.build(make.kinds(views), {}, dict(channels=1, mean=0.0, std=1.0), {}, 1)
    rows = len(pictures)
    batch = dict(
        cxr={
            'row': np.arange(rows, dtype=np.uint32), 'image': pictures[:, None, :, :, None],
            'image/present': np.ones((rows, 1), bool), 'image/extent': np.full((rows, 1, 2), SIDE, np.int32),
        }
    )  # fmt: skip
    found, _ = run(maker, batch, jax.random.key(seed), np.int32(0))
    return {name: (np.asarray(view.image)[..., 0], view.meta) for name, view in found.items()}


def ramp(axis):
    """Pictures whose grey is the coordinate of the row or the column, times 500."""
    at = (np.arange(SIDE) + 0.5) * 500
    grid = np.broadcast_to(at[:, None] if axis == 0 else at, (SIDE, SIDE))
    return np.broadcast_to(grid, (ROWS, SIDE, SIDE)).astype(np.uint16)


@pytest.mark.parametrize('one_size', [True, False])
def test_relative_positions_are_where_the_pixels_come_from(one_size):
    """Each cell of a crop shows a coordinate. A line through those of the other crop says where it lies."""
    cells, found = 6, {}
    for axis in (0, 1):
        x, meta = shown(ramp(axis), one_size)['clean']
        x = x * 65535 / 500
        found[axis] = x.reshape(ROWS, 2, cells, SIZE // cells, cells, SIZE // cells).mean((3, 5)).mean(3 - axis)
    boxes, flips = np.asarray(meta['boxes']), np.asarray(meta['flip'])
    assert (flips[:, 0] != flips[:, 1]).any() and flips.all(1).any() and (flips[:, 0] == flips[:, 1]).any()
    for context, target in ((0, 1), (1, 0)):
        affine = relative.between(boxes[:, context], flips[:, context], boxes[:, target], flips[:, target])
        for axis, (scale, offset) in enumerate((affine[:2], affine[2:])):
            for row in range(ROWS):
                # the borders of a crop are blurred by resizing, so the line goes through inner cells
                slope, start = np.polyfit(np.arange(1, cells - 1), found[axis][row, context, 1:-1], 1)
                expected = (found[axis][row, target, 1:-1] - start) / slope
                ours = (np.arange(1, cells - 1) + 0.5) * scale[row] + offset[row] * cells - 0.5
                np.testing.assert_allclose(ours, expected, atol=0.02 * max(abs(float(scale[row])), 1))


def test_one_size_moves_all_crops_but_the_first():
    pictures = ramp(0)
    (free,), (same,) = ([shown(pictures, one_size)['clean'][1]] for one_size in (False, True))
    free, same = np.asarray(free['boxes']), np.asarray(same['boxes'])
    np.testing.assert_array_equal(same[:, 0], free[:, 0])
    np.testing.assert_array_equal(same[:, 1, 2:], same[:, 0, 2:])
    assert (same[..., :2] >= 0).all() and (same[..., :2] + same[..., 2:] <= SIDE).all()
    assert len(np.unique(same[:, 1, :2])) == 2 * ROWS and np.abs(same[:, 0, :2] - same[:, 1, :2]).min() > 0


def test_changes_on_top_follow_those_that_both_views_share():
    pictures = np.random.default_rng(0).integers(20_000, 45_000, (ROWS, SIDE, SIDE)).astype(np.uint16)
    shared = dict(photometric=dict(set='exposure', gamma=1.0, per='row', share=1.0))
    found = shown(pictures, clean=shared, altered=dict(noise=(0.0, 1.0), noise_sigma=(0.02, 0.03)))
    (clean, meta), (altered, told) = found['clean'], found['altered']
    for name in ('brightness', 'contrast'):
        values = np.asarray(meta[name])
        np.testing.assert_array_equal(values[:, 0], values[:, 1])
        assert len(np.unique(values)) == ROWS
    plain, _ = shown(pictures)['clean']
    assert np.abs(clean - plain).max() > 0.05
    np.testing.assert_array_equal(altered[:, 0], clean[:, 0])
    sigma, noise = np.asarray(told['noise']), (altered - clean)[:, 1]
    assert (sigma[:, 0] == 0).all() and (sigma[:, 1] >= 0.02).all() and (sigma[:, 1] <= 0.03).all()
    np.testing.assert_allclose(noise.std((1, 2)), sigma[:, 1], rtol=0.15)
    assert np.abs(np.corrcoef(noise.reshape(ROWS, -1)) - np.eye(ROWS)).max() < 0.2, 'each crop has its own noise'
    assert not {'noise/key', 'under'} & told.keys(), 'draws that are no facts'
