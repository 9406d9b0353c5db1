"""Masks: exact counts, statistics of the originals, order among masks, draws by the numbers of rows and groups."""

import functools
import json
import os
from pathlib import Path

import fusion_recipe
import jax
import numpy as np
import pytest
from mask_statistics import compare, generate

from medjax.errors import UserError
from medjax.parallel import sharding
from medjax.views import make, masks
from medjax.views.masks import blocks, random


def reference_mask(rng, height, width, count, least=4, largest=None):
    """One mask by the rules of the generator of BEiT and DINOv2, in plain numpy.

    microsoft/unilm, beit/masking_generator.py; data2vec uses it with least=16 and largest=196.
    """
    bits = np.zeros((height, width), bool)
    while bits.sum() < count:
        most = min(count - bits.sum(), largest or height // 2 * width)
        for _ in range(10):
            area, ratio = least + (most - least) * rng.random(), np.exp(rng.uniform(np.log(0.3), -np.log(0.3)))
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


@pytest.mark.parametrize(
    ('grid', 'count', 'n', 'least', 'largest'),
    [((6, 9), 6, 3000, 4, None), ((6, 9), 20, 3000, 4, None), ((14, 14), 120, 1000, 16, 196)],
    ids=['few', 'many', 'data2vec'],
)
def test_statistics_equal_a_plain_loop(grid, count, n, least, largest):
    rng = np.random.default_rng(0)
    reference = np.stack([reference_mask(rng, *grid, count, least, largest) for _ in range(n)])
    drawn, filled = generate(grid, count, n, min_patches=least, max_patches=largest)
    assert (filled.sum((1, 2)) == count).all()
    assert not (drawn & ~filled).any()
    exact, reference_exact = (drawn.sum((1, 2)) == count).mean(), (reference.sum((1, 2)) == count).mean()
    assert abs(exact - reference_exact) < 0.03
    assert compare(drawn.mean(0), reference.mean(0), n, n) < 4.5


@pytest.mark.parametrize('grid', [7, 14, 16, pytest.param(37, marks=pytest.mark.slow)])
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


def test_data2vec_masks_equally_many_patches_of_every_crop_in_other_places():
    generator = blocks.build(context((14, 14), 2, 3), 1.0, (120 / 196,) * 2, min_patches=16, max_patches=196)
    bits = np.array(jax.jit(drawn(generator))(jax.random.key(0)))
    assert (bits.sum(1) == 120).all() and generator.most == 6 * 120
    assert len({crop.tobytes() for crop in bits}) == 6, 'one mask for several crops'
    u = np.float32([[0.9, 0.5, 0.5, 0.5]])  # one square of 16 + .9 (most - 16) patches
    squares = [int(blocks.rectangles(u, 120, (14, 14), 16, 0.3, most).sum()) for most in (196, 98)]
    assert squares == [10 * 10, 9 * 9]


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


# Masks by name: drawn for a row or a group, in order, with contexts, targets and words.

IMAGE = dict(channels=1, mean=0.5, std=0.25)
CROP = dict(view='crop', part='cxr', count=2, size=32)


def made(masks_of, rows, rows_per_group=2, first=0, step=0):
    """The views and masks of a batch that begins with row number `first`."""
    batch = fusion_recipe.batch(16)
    part = {name: x[first : first + rows] for name, x in batch['cxr'].items()}
    make_views = compiled(json.dumps(masks_of), rows_per_group)
    return make_views(dict(cxr=part), jax.random.key(0), jax.numpy.asarray(step))


@functools.cache
def compiled(masks_of, rows_per_group):
    """The function of a config, compiled once for all tests of this file."""
    return jax.jit(
        make.build(make.kinds(dict(crop=CROP)), json.loads(masks_of), IMAGE, dict(crop=(4, 4)), rows_per_group)
    )


@pytest.mark.parametrize(('share', 'grid', 'stay'), [(0.9, (10, 10), 9), (0.75, (4, 4), 4), (0.75, (3, 5), 3)])
def test_random_keeps_an_exact_number(share, grid, stay):
    """int(N (1 - share)) patches stay: of 100 patches 9, as 1 - .9 is a little less than .1."""
    patches = grid[0] * grid[1]
    generator = random.build(context(grid, 2), share=share)
    one = jax.vmap(lambda key: generator.draw(key, None, ()))(jax.random.split(jax.random.key(0), 500))
    bits, kept = np.array(one.bits), np.array(one.kept)
    assert generator.mode == 'drop' and kept.shape == (500, 2, 1, stay) and one.length is None
    assert (bits.sum(-1) == patches - stay).all() and generator.most == 2 * (patches - stay)
    assert not np.take_along_axis(bits, kept[:, :, 0], axis=-1).any()
    assert (np.diff(kept, axis=-1) > 0).all(), 'ascending, each patch once'
    np.testing.assert_allclose((~bits).mean((0, 1)), stay / patches, atol=5 * (0.25 / 1000) ** 0.5)
    replaced = random.build(context(grid, 2), share=share, mode='replace').draw(jax.random.key(0), None, ())
    assert replaced.kept is None
    np.testing.assert_array_equal(
        replaced.bits, generator.draw(jax.random.key(0), None, ()).bits, 'the mode changes no draw'
    )


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(share=0.99), 'masks.a.share=0.99: 0 of 16 patches would stay; at least one must'),
        (dict(share=1), 'masks.a.share=1: must be a share between 0 and 1'),
        (dict(mode='hide'), "masks.a.mode='hide': must be 'drop', 'replace' or 'zero'"),
        (dict(share=0.97, mode='zero'), 'masks.a.share=0.97: 0 of 16 patches would stay; at least one must'),
        (dict(share=0.03, mode='zero'), 'masks.a.share=0.03: all 16 patches would stay; at least one must be masked'),
    ],
)
def test_mistakes_of_random_are_sentences(options, words):
    with pytest.raises(UserError, match=words):
        random.build(context((4, 4), 2), **options)


EVERY_MASK = {
    'crop~random': dict(mask='random', share=0.5),
    'crop~blocks': dict(mask='blocks'),
    'crop~sets': dict(mask='fusion.targets'),
    'crop~groups': dict(mask='fusion.targets', per='group'),
    'crop~beside': dict(mask='fusion.beside', after=['crop~blocks']),
}


@pytest.mark.slow
def test_the_draws_of_a_row_do_not_depend_on_the_rows_beside_it():
    """The masks of rows 4 to 7 are the same in a batch of 16, in a batch of 4 and beside other masks."""
    _, whole = made(EVERY_MASK, 16)
    _, some = made(EVERY_MASK, 4, first=4)
    fewer = {name: EVERY_MASK[name] for name in ('crop~random', 'crop~groups')}
    _, alone = made(fewer, 4, first=4)
    for masks_of in (some, alone):
        for name, mask in masks_of.items():
            for field in ('bits', 'kept', 'length'):
                if (value := getattr(mask, field)) is not None:
                    np.testing.assert_array_equal(value, getattr(whole[name], field)[4:8], f'{name}: {field}')
            np.testing.assert_array_equal(mask.index, whole[name].index[2:4])
            np.testing.assert_array_equal(mask.weight, whole[name].weight[2:4])
    _, later = made(EVERY_MASK, 16, step=1)
    for name, mask in later.items():
        assert (mask.bits != whole[name].bits).any(), f'{name} differs from step to step'


def test_draws_of_rows_do_not_depend_on_the_size_of_groups():
    rows = {name: EVERY_MASK[name] for name in ('crop~random', 'crop~sets')}
    _, two = made(rows, 16)
    _, four = made(rows, 16, rows_per_group=4)
    for name in rows:
        np.testing.assert_array_equal(two[name].bits, four[name].bits)


@pytest.mark.slow
@pytest.mark.skipif(jax.device_count() != 8, reason='needs 8 (virtual) devices')
def test_draws_do_not_depend_on_the_mesh_or_on_micro_batches():
    make_views = make.build(make.kinds(dict(crop=CROP)), EVERY_MASK, IMAGE, dict(crop=(4, 4)), 2)
    batch = fusion_recipe.batch(16)
    draw = lambda batch: make_views(batch, jax.random.key(0), jax.numpy.asarray(3))[1]  # noqa: E731
    alone = jax.jit(draw)(batch)

    mesh = sharding.make_mesh(4, 2, 1)
    jax.set_mesh(mesh)
    placed = jax.device_put(batch, sharding.rows_sharding(mesh))
    spread = jax.jit(draw)(placed)
    jax.set_mesh(sharding.make_mesh(1, 1, 8))
    _, parts = jax.lax.scan(lambda _, part: (None, draw(part)), None, sharding.split_rows(batch, 4))
    joined = sharding.merge_rows(parts, 4)
    for masks_of in (spread, joined):
        jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)), masks_of, alone)


def test_a_mask_comes_after_those_that_it_must_see():
    """Contexts avoid the targets of another mask, whichever of the two a config names first."""
    for names in (('crop~blocks', 'crop~beside'), ('crop~beside', 'crop~blocks')):
        _, both = made({name: EVERY_MASK[name] for name in names}, 16)
        targets, contexts = both['crop~blocks'], both['crop~beside']
        b, v, k, room = contexts.kept.shape
        assert (b, v, k, room) == (16, 2, 2, 6) and contexts.mode == 'drop'
        counted = np.arange(room) < np.array(contexts.length)[..., None]
        hit = np.take_along_axis(np.array(targets.bits)[:, :, None], np.array(contexts.kept), axis=-1)
        assert not (hit & counted).any() and targets.bits.any()
        free = (~np.array(targets.bits)).sum(-1)
        np.testing.assert_array_equal(contexts.length, np.minimum(free, room)[..., None] * np.ones((1, 1, 2)))


@pytest.mark.parametrize(
    ('masks_of', 'words'),
    [
        ({'crop~a': dict(mask='fusion.beside', after=['crop~b'])}, "masks.crop~a.after: there is no mask 'crop~b'"),
        (
            {
                'crop~a': dict(mask='fusion.beside', after=['crop~b']),
                'crop~b': dict(mask='fusion.beside', after=['crop~a']),
            },
            'masks.crop~a.after: masks wait for each other in a circle: crop~a -> crop~b -> crop~a',
        ),
        (
            {'crop~a': dict(mask='fusion.beside', after=['other~b']), 'other~b': dict(mask='random')},
            "masks.crop~a.after: 2 crops of cxr cannot follow 'other~b' on 1 of cxr",
        ),
        ({'corp~a': dict(mask='random')}, "a mask is called view~mask; there is no view 'corp'; did you mean 'crop'"),
        ({'random': dict(mask='random')}, 'masks.random: a mask is called view~mask'),
        ({'crop~a': dict(mask='words')}, 'masks.crop~a: this mask is for texts, and the view shows images'),
    ],
)
def test_mistakes_in_names_and_order_are_sentences(masks_of, words):
    views = dict(crop=CROP, other=CROP | dict(count=1))
    with pytest.raises(UserError) as error:
        make.build(make.kinds(views), masks_of, IMAGE, dict(crop=(4, 4), other=(4, 4)), 2)
    assert words in str(error.value)


@pytest.mark.parametrize('per', ['row', 'group'])
def test_sets_of_targets_become_positions_of_a_group(per):
    """index and weight [G,K,M]: those of set k are the targets of set k, each crop with 1 / (its targets)."""
    sets = {'crop~sets': dict(mask='fusion.targets', per=per)}
    _, whole = made(sets, 16, rows_per_group=4)
    mask = whole['crop~sets']
    groups, crops, patches = 4, 8, 16
    most = crops * 8
    assert mask.index.shape == mask.weight.shape == (groups, 3, most)
    union = np.zeros((groups, crops, patches), bool)
    for g in range(groups):
        for k in range(3):
            real = np.array(mask.weight[g, k]) > 0
            index = np.array(mask.index[g, k])[real]
            bits = np.zeros(crops * patches, bool)
            bits[index] = True
            bits = bits.reshape(crops, patches)
            assert set(bits.sum(-1)) <= {0, 8}, 'two columns of four patches, or nothing'
            assert len(index) == bits.sum(), 'each target once'
            np.testing.assert_allclose(np.array(mask.weight[g, k])[real], 1 / 8)
            number = np.arange(crops) if per == 'group' else np.arange(crops) % 2  # in the unit of a draw
            np.testing.assert_array_equal(bits.any(-1), (number + k) % 3 != 0)
            union[g] |= bits
    np.testing.assert_array_equal(union.reshape(mask.bits.shape), mask.bits)


# Words.

TEXT = dict(view='text', part='cxr', length=fusion_recipe.LENGTH)


def masked_texts(tokens=fusion_recipe.TOKENS, **options):
    """The function from batches to texts with the mask `words`."""
    masks_of = {'report~words': dict(mask='words', **options)}
    return make.build(make.kinds(dict(report=TEXT)), masks_of, IMAGE, {}, 4, tokens)


def words_of(steps=200, **options):
    """The texts of 16 rows, and the bits and fill of their masks at many steps."""
    make_views = masked_texts(**options)
    batch = fusion_recipe.batch(16)
    draw = jax.jit(jax.vmap(lambda step: make_views(batch, jax.random.key(0), step)))
    views, drawn = draw(np.arange(steps))
    mask = drawn['report~words']
    assert mask.mode == 'replace' and mask.kept is None
    return np.array(views['report'].x), np.array(views['report'].valid), np.array(mask.bits), np.array(mask.fill)


def near(share, expected, n):
    """Whether a share is within 4.5 standard deviations of what it should be."""
    return abs(share - expected) < 4.5 * (expected * (1 - expected) / n) ** 0.5


def test_words_are_masked_as_bert_masks_them():
    """Never the first, the last or a padding token; 80 % become the mask token, 10 % a random one, 10 % stay."""
    x, valid, bits, fill = words_of(share=0.3)
    tokens = fusion_recipe.TOKENS
    special = ~valid | np.isin(x, [tokens['first'], tokens['last'], tokens['pad']])
    assert special.any() and not bits[special].any()
    n, masked = (~special).sum(), bits.sum()
    assert near(bits[~special].mean(), 0.3, n)
    replaced, same = (fill[bits] == tokens['mask']).mean(), (fill[bits] == x[bits]).mean()
    chance = 0.1 / tokens['vocabulary']  # a random token may be the mask token or the word itself
    assert near(replaced, 0.8 + chance, masked)
    assert near(same, 0.1 + chance, masked)
    other = fill[bits & (fill != tokens['mask']) & (fill != x)]
    counts = np.bincount(other, minlength=tokens['vocabulary'])
    expected = masked * chance
    assert (np.abs(counts[counts > 0] - expected) < 5 * expected**0.5).all()
    assert (fill >= 0).all() and (fill < tokens['vocabulary']).all()


def test_shares_of_words_can_be_chosen():
    x, _, bits, fill = words_of(steps=20, share=0.5, masked=1.0, random=0.0)
    assert (fill[bits] == fusion_recipe.TOKENS['mask']).all()
    x, _, bits, fill = words_of(steps=20, share=0.5, masked=0.0, random=0.0)
    np.testing.assert_array_equal(fill[bits], x[bits])


def test_positions_of_words_are_those_of_the_bits():
    make_views = masked_texts(share=0.5)
    _, drawn = make_views(fusion_recipe.batch(16), jax.random.key(0), jax.numpy.asarray(0))
    mask = drawn['report~words']
    bits = np.array(mask.bits).reshape(4, -1)
    assert mask.index.shape == (4, 1, 4 * fusion_recipe.LENGTH)
    for g in range(4):
        real = np.array(mask.weight[g, 0]) > 0
        np.testing.assert_array_equal(np.array(mask.index[g, 0])[real], np.flatnonzero(bits[g]))
    np.testing.assert_allclose(np.array(mask.weight).sum(), np.array(mask.bits).any(-1).sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ('options', 'tokens', 'words'),
    [
        (dict(masked=0.8, random=0.3), fusion_recipe.TOKENS, 'are shares with a sum of at most 1'),
        (dict(share=0), fusion_recipe.TOKENS, 'must be a share between 0 and 1'),
        (dict(), fusion_recipe.TOKENS | dict(mask=None), 'masks.report~words: the tokenizer has no mask token'),
    ],
)
def test_mistakes_of_words_are_sentences(options, tokens, words):
    with pytest.raises(UserError, match=words):
        make.build(make.kinds(dict(report=TEXT)), {'report~words': dict(mask='words', **options)}, IMAGE, {}, 4, tokens)


def test_masks_of_patches_refuse_texts():
    with pytest.raises(UserError, match='masks.report~a: this mask is for images, and the view shows texts'):
        make.build(make.kinds(dict(report=TEXT)), {'report~a': dict(mask='random')}, IMAGE, {}, 4, fusion_recipe.TOKENS)
