"""The mask `multiblock`: blocks and contexts of each crop, against plain loops and against draws of original code."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from mask_statistics import compare
from programs import run

from medjax.errors import UserError
from medjax.types import View
from medjax.views import make
from medjax.views.masks import MaskContext, multiblock

GRID = (9, 7)


def made(rows=6, rows_per_group=2, count=2, step=0, **options):
    """The masks of a view with crops of 9 x 7 patches, and the generator."""
    context = MaskContext('masks.crop~block', 'image', count, rows_per_group, GRID)
    generator = multiblock.build(context, **dict(min_keep=3) | options)
    maker = make.MakeViews({}, (), {'crop~block': generator}, {}, rows_per_group)
    view = View(None, np.arange(rows, dtype=np.uint32), np.ones((rows, count), bool), None, {})

    def draw(key):
        drawn = maker.drawn('crop~block', view, key, {})
        return drawn, maker.mask('crop~block', drawn)

    return *run(draw, jax.random.fold_in(jax.random.key(0), step)), generator


def test_every_crop_has_its_own_blocks_and_positions():
    drawn, mask, generator = made(contexts=2)
    targets = np.moveaxis(np.asarray(drawn.targets), 1, 0).reshape(4, 12, -1)  # [targets,crops,N]
    room, n = generator.crop_room, GRID[0] * GRID[1]
    for k in range(4):
        index = np.asarray(mask.index)[:, k].reshape(12, room)
        weight = np.asarray(mask.weight)[:, k].reshape(12, room)
        for crop in range(12):
            (places,) = targets[k, crop].nonzero()
            np.testing.assert_array_equal(index[crop, : len(places)] - crop % 4 * n, places)
            np.testing.assert_allclose(weight[crop], np.where(np.arange(room) < len(places), 1 / len(places), 0))
            assert (index[crop] // n == crop % 4).all(), 'padding stays in its crop'
            block = targets[k, crop].reshape(GRID)
            assert block[block.any(1)][:, block.any(0)].all() and not block[-1].any() and not block[:, -1].any()
    sizes = targets.reshape(4, 3, 4, n).sum(-1)
    assert (sizes == sizes[:1, :, :1]).all(), 'one size in a group'
    assert len({targets[:, crop].tobytes() for crop in range(12)}) == 12, 'one mask for several crops'
    kept, length = np.asarray(mask.kept).reshape(12, 2, -1), np.asarray(mask.length).reshape(12, 2)
    for crop in range(12):
        for c in range(2):
            seen = kept[crop, c, : length[crop, c]]
            assert len(seen) > 3 and (np.diff(seen) > 0).all() and not targets[:, crop, seen].any()
    assert np.asarray(mask.bits).reshape(12, n).tolist() == targets.any(0).tolist()


def test_long_contexts_lose_their_last_patches():
    whole, _, _ = made(rows=24)
    cut, _, _ = made(rows=24, longest=12)
    lengths = np.asarray(whole.length).reshape(-1)
    assert (lengths > 12).any() and (lengths <= 12).any()
    np.testing.assert_array_equal(np.asarray(cut.length).reshape(-1), np.minimum(lengths, 12))
    for a, b, length in zip(*(np.asarray(x.kept).reshape(48, -1) for x in (whole, cut)), lengths, strict=True):
        assert len(b) == 12 and a[: min(length, 12)].tolist() == b[: min(length, 12)].tolist()


def test_a_context_without_room_overlaps_the_last_targets():
    """Targets of about half of the crop often cover it; then the context keeps the patches of the last ones."""
    drawn, _, generator = made(rows=24, target_area=(0.5, 0.5), context_area=(0.8, 0.8), min_keep=8)
    targets = np.asarray(drawn.targets).reshape(24, 4, 2, *GRID)
    cleared = []  # the number of targets whose patches a context lacks
    for row in range(24):
        for crop in range(2):
            seen = np.zeros(GRID[0] * GRID[1], bool)
            seen[np.asarray(drawn.kept)[row, crop, 0, : np.asarray(drawn.length)[row, crop, 0]]] = True
            assert seen.sum() > 8
            (height, width), found = generator.context_sizes[0], []
            for top, left in np.ndindex(*(np.array(GRID) - (height, width))):
                block = np.zeros(GRID, bool)
                block[top : top + height, left : left + width] = True
                for n in range(5):
                    if (seen == (block & ~targets[row, :n, crop].any(0)).reshape(-1)).all():
                        found.append(n)
            assert found, 'a context is a block without the first targets'
            cleared.append(max(found))
    assert 4 in cleared and len(set(cleared)) > 1
    drawn, _, _ = made(rows=24, target_area=(0.5, 0.5), context_area=(0.8, 0.8), overlap=True)
    np.testing.assert_array_equal(np.asarray(drawn.length), generator.context_sizes.prod(1).max())


def test_contexts_of_chexworld_have_targets_of_their_own():
    """Each context lacks its own blocks and keeps those of the other; a merged set is cut after its first patches."""
    options = dict(family='chexworld', contexts=2, targets=3, target_area=(0.1, 0.2), context_area=(0.8, 1.0))
    drawn, mask, generator = made(rows=24, **options)
    crops = 24 * 2
    sets = np.moveaxis(np.asarray(drawn.targets), 1, 2).reshape(crops, 6, -1)  # [crops,sets,N]
    kept, length = np.asarray(drawn.kept).reshape(crops, 2, -1), np.asarray(drawn.length).reshape(crops, 2)
    assert mask.own_sets and generator.crop_room == generator.target_sizes.prod(1).max()
    shared = 0
    for crop, context in np.ndindex(crops, 2):
        seen = kept[crop, context, : length[crop, context]]
        own, others = (sets[crop, 3 * i : 3 * i + 3] for i in (context, 1 - context))
        assert len(seen) > 3 and not own[:, seen].any()
        shared += others[:, seen].any()
    assert shared > crops, 'a context may see the targets of the other one'
    grids = sets.reshape(-1, *GRID)
    assert grids[:, -1].any() and grids[:, :, -1].any(), 'blocks reach the last row and the last column'
    merged, mask, generator = made(rows=24, merge=True, longest_set=15, **options)
    union = sets.reshape(crops, 2, 3, -1).any(2)
    assert generator.crop_room == 15 and mask.index.shape[1] == 2
    assert (union.sum(-1) > 15).any() and (union.sum(-1) <= 15).any()
    first = union & (union.cumsum(-1) <= 15)
    np.testing.assert_array_equal(np.moveaxis(np.asarray(merged.targets), 1, 2).reshape(crops, 2, -1), first)


def test_blocks_of_chexworld_are_distributed_as_in_the_original():
    """Against 300 batches of the original collator, before it cuts them (tests/files/chexworld_masks.py)."""
    d, batches, batch, side = np.load(Path(__file__).parents[1] / 'files' / 'chexworld_masks.npz'), 600, 8, 14
    context = MaskContext('masks.crop~block', 'image', 1, batch, (side, side))
    generator = multiblock.build(context, family='chexworld', context_area=(0.75, 1.0), merge=True)
    targets, contexts = run(jax.vmap(generator.blocks), jax.random.split(jax.random.key(0), batches))
    targets = np.asarray(targets)[:, :, 0].reshape(batches, batch, 4, side, side)
    contexts = np.asarray(contexts)[:, :, 0].reshape(batches, batch, side, side)
    for ours, theirs in ((targets, d['target_cells']), (contexts, d['context_cells'])):
        draws = ours[..., 0, 0].size
        assert compare(ours.reshape(-1, side, side).mean(0), theirs, draws, draws * len(d['target_hw']) / batches) < 5
    for ours, theirs in ((targets.any(2), d['union']), (contexts, d['context_length'])):
        ours = ours.sum((2, 3)).mean(1)  # of a batch, whose blocks have one size
        theirs = theirs.reshape(-1, batch).mean(1)
        error = np.sqrt(ours.var() / len(ours) + theirs.var() / len(theirs))
        assert abs(ours.mean() - theirs.mean()) < 5 * error
        assert abs(ours.std() / theirs.std() - 1) < 0.25
    sizes = np.stack([targets[:, 0, 0].any(2).sum(1), targets[:, 0, 0].any(1).sum(1)], axis=1)
    known = np.unique(np.concatenate([sizes, d['target_hw']]), axis=0)
    ours, theirs = ((x[:, None] == known).all(2).mean(0) for x in (sizes, d['target_hw'].astype(int)))
    assert compare(ours, theirs, batches, len(d['target_hw'])) < 5
    assert {tuple(x) for x in d['context_hw'].tolist()} <= {tuple(x) for x in generator.context_sizes.tolist()}


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(target_area=(0.5, 1.2)), 'a block of 1.2 times the crop is larger than its grid of 9 x 7'),
        (
            dict(target_area=(0.5, 0.8), target_aspect=(0.75, 0.75)),
            'target_area: a block would have 6 x 8 patches, and the grid has 9 x 7',
        ),
        (dict(target_area=(0.0, 0.2)), r'target_area=\(0.0, 0.2\): must be two numbers, 0 < low <= high'),
        (dict(target_area=0.2), 'target_area=0.2: must be two numbers'),
        (dict(target_aspect=(1.5, 0.75)), 'target_aspect=.*must be two numbers, 0 < low <= high'),
        (dict(target_area=(0.01, 0.02)), 'target_area: its smallest block has [01] x [01] of 9 x 7 patches'),
        (dict(context_area=(0.02, 0.03)), 'context_area: its smallest block has 1 x 1 of 9 x 7 patches'),
        (dict(min_keep=10), 'has 3 x 3 of 9 x 7 patches, and a block must have more than min_keep=10; raise'),
        (dict(target_area=(0.76, 0.78), target_aspect=(1.3, 1.4)), 'leaves 0 of 9 x 7 patches for a context'),
        (dict(targets=0), 'targets=0: must be a whole number of blocks'),
        (dict(contexts=1.5), 'contexts=1.5: must be a whole number of blocks'),
        (dict(min_keep=-1), 'min_keep=-1: must be a whole number of patches'),
        (dict(longest=3), 'longest=3: must be a whole number of patches above min_keep=3'),
        (dict(merge=1), 'merge=1: must be True or False'),
        (dict(family='jepa'), "family='jepa': must be one of ijepa, chexworld"),
        (dict(merge=True, longest_set=2.5), 'longest_set=2.5: must be a whole number of patches above min_keep=3'),
        (dict(longest_set=9), 'longest_set=9: only sets of several blocks have it; set merge=True'),
        (
            dict(family='chexworld', target_area=(0.99, 1.0), target_aspect=(9 / 7, 9 / 7)),
            'its largest block leaves 0 of 9 x 7 patches for a context',
        ),
    ],
)  # fmt: skip
def test_mistakes_are_sentences(options, words):
    context = MaskContext('masks.crop~block', 'image', 1, 1, GRID)
    with pytest.raises(UserError, match=words):
        multiblock.build(context, **dict(min_keep=3) | options)
