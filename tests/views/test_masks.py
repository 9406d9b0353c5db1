"""Block masks: exact counts, constant totals, and the statistics of the original's generator."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest
from mask_statistics import compare, generate

from medjax.errors import UserError
from medjax.views import masks
from medjax.views.masks import blocks


def reference_mask(rng, height, width, count):
    """One mask by the rules of DINOv2's generator, in plain numpy."""
    bits = np.zeros((height, width), bool)
    while bits.sum() < count:
        most = min(count - bits.sum(), height // 2 * width)
        for _ in range(10):
            area, ratio = 4 + (most - 4) * rng.random(), np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
            h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if h >= height or w >= width:
                continue
            top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
            block = bits[top : top + h, left : left + w]
            if 0 < h * w - block.sum() <= most:
                block[:] = True
                break
        else:
            break
    return bits


@pytest.mark.parametrize('count', [6, 20])
def test_statistics_equal_a_plain_loop_on_a_grid_that_is_not_square(count):
    n, grid = 3000, (6, 9)
    rng = np.random.default_rng(0)
    reference = np.stack([reference_mask(rng, *grid, count) for _ in range(n)])
    drawn, filled = generate(grid, count, n)
    assert (filled.sum((1, 2)) == count).all()
    assert not (drawn & ~filled).any()
    exact, reference_exact = (drawn.sum((1, 2)) == count).mean(), (reference.sum((1, 2)) == count).mean()
    assert abs(exact - reference_exact) < 0.03
    assert compare(drawn.mean(0), reference.mean(0), n, n) < 4.5


@pytest.mark.parametrize('grid', [7, 14, 16, 37])
def test_statistics_equal_the_original(grid):
    folder = os.environ.get('MEDJAX_DINOV2_REFERENCE')
    if not folder or not (path := Path(folder, 'masking_stats.npz')).exists():
        pytest.skip('MEDJAX_DINOV2_REFERENCE names no folder with masking_stats.npz')
    stats = np.load(path)
    assert grid // 2 * grid == stats[f'grid{grid}/max_num_patches']
    prefix = f'grid{grid}/target'
    for target in sorted({int(name[len(prefix) :].split('/')[0]) for name in stats if name.startswith(prefix)}):
        histogram = stats[f'{prefix}{target}/count_hist']
        frequency = stats[f'{prefix}{target}/cell_freq']
        n = 2000 if grid < 37 else 500
        drawn, filled = generate((grid, grid), target, n)
        assert (filled.sum((1, 2)) == target).all()  # the original: 85 to 97 % of its draws
        counts = drawn.sum((1, 2))
        assert abs((counts == target).mean() - histogram[-1] / histogram.sum()) < 0.06
        assert abs(counts.mean() - np.average(np.arange(len(histogram)), weights=histogram)) < 0.15
        assert compare(filled.mean(0), frequency, n, histogram.sum()) < 5
        assert np.corrcoef(filled.mean(0).ravel(), frequency.ravel())[0, 1] > 0.9


def context(grid, per_row, rows=1):
    return masks.MaskContext('masks.a', 'image', per_row, rows, grid)


def drawn(generator):
    """key -> the masked tokens of one unit."""
    return lambda key: generator.draw(key, None, ()).bits


@pytest.mark.parametrize(
    ('crops', 'share', 'grid'), [(8, 0.5, (16, 16)), (6, 0.5, (4, 5)), (16, 0.5, (4, 4)), (4, 1.0, (7, 7))]
)
def test_group_masks_a_constant_total_with_counts_spread_over_their_bins(crops, share, grid):
    low, high, n = 0.1, 0.5, int(share * crops)
    generator = blocks.build(context(grid, crops), share=share)
    bits = np.array(jax.jit(jax.vmap(drawn(generator)))(jax.random.split(jax.random.key(0), 400)))
    counts = bits.sum(-1)
    assert (counts.sum(-1) == generator.most).all()
    assert ((counts > 0).sum(-1) == n).all()

    patches = grid[0] * grid[1]
    ascending = np.sort(counts, axis=-1)[:, crops - n :]
    edges = np.linspace(low, high, n + 1) * patches
    assert (ascending >= np.floor(edges[:-1])).all()
    assert (ascending <= np.floor(edges[1:] + 1e-6)).all()
    width = (edges[1] - edges[0]) / 2
    if width >= 2:  # each count moves over most of its bin
        assert (ascending.max(0) - ascending.min(0) >= 2 * np.floor(width) - 1).all()
    assert abs(counts.sum(-1).mean() / (n * patches) - (low + high) / 2) < 0.5 / np.mean(edges)
    # any crop of the group may be the masked one, with any count
    np.testing.assert_allclose((counts > 0).mean(0), n / crops, atol=0.12)
    np.testing.assert_allclose(counts.mean(0), counts.mean(), rtol=0.3)


def test_index_and_weight_name_the_masked_tokens():
    groups, rows, views, patches = 3, 4, 2, 16
    generator = blocks.build(context((4, 4), views, rows))
    bits = jax.vmap(drawn(generator))(jax.random.split(jax.random.key(1), groups)).reshape(
        groups * rows, views, patches
    )
    mask = masks.from_bits(bits, groups, generator.most)
    assert mask.index.shape == mask.weight.shape == (groups, 1, generator.most)
    assert mask.mode == 'replace'
    of_group = np.array(bits).reshape(groups, -1)
    for g in range(groups):
        np.testing.assert_array_equal(mask.index[g, 0], np.flatnonzero(of_group[g]))
    per_crop = np.array(bits).sum(-1).reshape(groups, -1)
    expected = [1 / per_crop[g][np.array(mask.index[g, 0]) // patches] for g in range(groups)]
    np.testing.assert_allclose(mask.weight[:, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(mask.weight.sum(), np.count_nonzero(per_crop), rtol=1e-5)


def test_given_bits_are_padded_with_weight_zero():
    bits = np.zeros((2, 2, 6), bool)
    bits[0, 0, [1, 4]] = bits[0, 1, 5] = bits[1, 1, 0] = True
    mask = jax.jit(masks.from_bits, static_argnums=(1, 2))(bits, 2, 4)
    np.testing.assert_array_equal(mask.index[:, 0], [[1, 4, 11, 0], [6, 0, 0, 0]])
    np.testing.assert_array_equal(mask.weight[:, 0], [[0.5, 0.5, 1, 0], [1, 0, 0, 0]])
    with pytest.raises(UserError, match='a group has 3 masked tokens, room is for 2; give at least 3'):
        masks.from_bits(bits, 2, 2)


def test_sizes_that_cannot_work_are_named():
    with pytest.raises(UserError, match=r'masks.a.share: int\(0.2 x 4 crops of a group\) masks 0 crops'):
        blocks.build(context((4, 4), 4), share=0.2)
    with pytest.raises(UserError, match=r'masks.a.ratio: two shares'):
        blocks.build(context((4, 4), 4), ratio=(0.5, 0.1))
