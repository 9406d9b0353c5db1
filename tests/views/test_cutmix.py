"""CutMix: boxes as in the paper's code, partners inside of groups, the same draws on any mesh and in micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives

from medjax.errors import UserError
from medjax.parallel.sharding import make_mesh, rows_sharding
from medjax.views import cutmix, make

ROWS, GROUP, SIZE = 16, 4, 12
GREY = dict(channels=1, mean=0.5, std=0.25)
CROP = dict(view='crop', part='cxr', count=2, size=SIZE, photometric=None)


def batch(absent=()):
    rng = np.random.default_rng(0)
    present = np.ones((ROWS, 1), bool)
    present[list(absent)] = False
    return {
        'cxr': {
            'row': np.arange(ROWS, dtype=np.uint32),
            'image': rng.integers(1, 256, (ROWS, 1, 24, 24, 1), np.uint8),
            'image/present': present,
            'image/extent': np.full((ROWS, 1, 2), 24, np.int32),
            'label': rng.integers(-2, 2, (ROWS, 3)).astype(np.int8),
            'column': rng.normal(size=(ROWS, 2)).astype(np.float32),
            'key/patient': rng.integers(0, 2**32, (ROWS, 2), np.uint32),
        }
    }


def show(rows, share, step=0):
    views = make.kinds(dict(crop=CROP | dict(cutmix=share)))
    return make.build(views, {}, GREY, {}, GROUP)(rows, jax.random.key(0), jnp.int32(step))[0]['crop']


def test_the_boxes_are_those_of_the_paper():
    u = np.random.default_rng(0).random((40, 3, 5)).astype(np.float32)
    inside = np.asarray(cutmix.boxes(jnp.asarray(u), (30, 20)))
    for i, j in np.ndindex(40, 3):
        ratio = np.sqrt(np.float32(1) - u[i, j, 0])
        cut = int(30 * ratio), int(20 * ratio)
        centre = int(30 * u[i, j, 1]), int(20 * u[i, j, 2])
        (top, bottom), (left, right) = (
            np.clip([c - n // 2, c + n // 2], 0, side) for c, n, side in zip(centre, cut, (30, 20), strict=True)
        )
        expected = np.zeros((30, 20), bool)
        expected[top:bottom, left:right] = True
        assert (inside[i, j] == expected).all()


def test_a_box_shows_another_row_of_the_group_and_the_view_says_which():
    rows = batch()
    mixed, plain = show(rows, 1.0), show(rows, 0.0)
    assert cutmix.SHARE not in plain.meta, 'without cutmix nothing changes'
    partner = np.asarray(mixed.meta['mix/row'])
    assert (partner != np.arange(ROWS)).all() and (partner // GROUP == np.arange(ROWS) // GROUP).all()
    for name in ('label', 'column', 'key/patient'):
        np.testing.assert_array_equal(mixed.meta[f'mix/{name}'], rows['cxr'][name][partner])
        np.testing.assert_array_equal(mixed.meta[name], rows['cxr'][name])
    x, own, shares = np.asarray(mixed.x), np.asarray(plain.x), np.asarray(mixed.meta[cutmix.SHARE])
    for b, v in np.ndindex(ROWS, 2):
        foreign = (x[b, v] != own[b, v])[0, ..., 0]
        assert (x[b, v][:, foreign] == own[partner[b], v][:, foreign]).all()
        height, width = foreign.any(1).sum(), foreign.any(0).sum()
        assert foreign.sum() == pytest.approx(height * width, abs=3), 'a box, but for pixels that are equal in both'
        assert shares[b, v] == pytest.approx(1 - foreign.sum() / SIZE**2, abs=3 / SIZE**2)
    assert 0.4 < shares.mean() < 0.95 and len(np.unique(shares)) > 10


def test_a_share_of_the_crops_is_mixed_and_absent_rows_have_no_part():
    shares = np.concatenate([np.asarray(show(batch(), 0.5, step).meta[cutmix.SHARE]) for step in range(8)])
    assert 0.3 < (shares < 1).mean() < 0.6, 'some boxes are empty'
    mixed = show(batch(absent=(0, 1, 2, 5)), 1.0)
    lonely = [0, 1, 2, 3, 5]  # row 3 has no partner that is there
    assert (np.asarray(mixed.meta[cutmix.SHARE])[lonely] == 1).all()
    assert (np.asarray(mixed.meta[cutmix.SHARE])[8:] < 1).any()


@pytest.mark.slow
def test_groups_by_themselves_and_eight_devices_give_the_same():
    rows = batch()
    whole = jax.jit(lambda rows: show(rows, 1.0))(rows)
    part = show(jax.tree.map(lambda x: x[8:12], rows), 1.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[8:12], b, atol=1e-5), whole, part)
    if jax.device_count() != 8:
        pytest.skip('needs 8 (virtual) devices')
    mesh = make_mesh(2, 2, 2)
    jax.set_mesh(mesh)
    placed = jax.device_put(rows, rows_sharding(mesh))
    compiled = jax.jit(lambda rows: show(rows, 1.0)).lower(placed).compile()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), compiled(placed), whole)
    assert not collectives(compiled.as_text()), 'no image crosses devices'


@pytest.mark.parametrize(
    ('change', 'group', 'words'),
    [
        (dict(cutmix=1.5), 4, r'views\.crop\.cutmix=1\.5: must be a share of the crops'),
        (dict(cutmix=0.5), 1, r'views\.crop\.cutmix: rows are mixed inside of groups; set rows_per_group to 2 or more'),
    ],
)
def test_mistakes_are_sentences(change, group, words):
    with pytest.raises(UserError, match=words):
        make.build(make.kinds(dict(crop=CROP | change)), {}, GREY, {}, group)
