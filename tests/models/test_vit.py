"""The ViT tower: position embeddings, drop path over subsets, dtypes, remat, and the work of each device of a mesh."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import run

from medjax.errors import UserError
from medjax.models import build, drop_path
from medjax.models.towers import vit
from medjax.parallel import sharding
from medjax.training.flops import model_flops
from medjax.types import Input, Mask, View

SMALL = dict(variant='S/4', width=32, depth=3, heads=2, native_size=16, layerscale=0.1)


def view(
    rows: int = 4, crops: int = 2, size: tuple[int, int] = (16, 16), channels: int = 1, first_row: int = 0
) -> View:
    x = np.random.default_rng(first_row).normal(size=(rows, crops, 1, *size, channels)).astype(np.float32)
    row = np.arange(first_row, first_row + rows, dtype=np.uint32)
    return View(jnp.asarray(x), jnp.asarray(row), jnp.ones((rows, crops), bool), None, {})


def start(tower, seed: int = 0):
    """Parameters that are all far from zero, because errors in parameters near zero would stay hidden."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda x: np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(np.float32), tower.init(jax.random.key(seed))
    )


def test_axes_name_every_dimension_of_every_parameter():
    tower = vit.build(1, **SMALL, registers=2)
    shapes = jax.eval_shape(tower.init, jax.random.key(0))
    names = jax.tree.map(lambda leaf, axes: len(axes) == leaf.ndim, shapes, tower.axes)
    assert all(jax.tree.leaves(names))
    assert tower.axes['blocks']['attn']['qkv']['kernel'] == (None, 'embed', None, 'heads', None)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_parameters_start_as_in_the_original():
    params = vit.build(3, **SMALL | dict(width=384, heads=6), registers=2).init(jax.random.key(0))
    spread = jax.tree.map(lambda x: float(np.std(x)), params)
    assert spread['blocks']['mlp']['fc1']['kernel'] == pytest.approx(0.02, rel=0.01)
    assert spread['pos_grid'] == pytest.approx(0.02, rel=0.1)
    assert spread['patch_embed']['kernel'] == pytest.approx((3 * 4 * 4 * 3) ** -0.5, rel=0.05)  # U(+-1/sqrt(fan in))
    assert spread['registers'] == pytest.approx(1e-6, rel=0.2)
    assert not np.any(params['mask_token'])
    assert np.allclose(params['blocks']['gamma1'], 0.1)
    a, b = params['blocks']['mlp']['fc1']['kernel'][:2]
    assert not np.allclose(a, b), 'every block has its own start'


@pytest.mark.parametrize('antialias', [False, True])
@pytest.mark.parametrize('shape', [(3, 3), (5, 9), (16, 11), (37, 37)])
def test_position_embeddings_equal_torch_interpolation(antialias, shape):
    torch = pytest.importorskip('torch')
    grid = np.random.default_rng(0).normal(size=(7, 11, 5)).astype(np.float32)
    x = torch.from_numpy(grid).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(x, shape, mode='bicubic', antialias=antialias)[0].permute(1, 2, 0)
    np.testing.assert_allclose(vit.resize_grid(jnp.asarray(grid), shape, antialias, 0.0), expected, atol=1e-5)


def test_a_tower_takes_any_image_the_patch_divides():
    tower = vit.build(1, **SMALL)
    outputs = jax.jit(lambda p, v: tower.apply(p, Input(v)))(start(tower), view(size=(8, 24)))
    assert outputs['cls'].shape == (4, 2, 32)
    assert outputs['patches'].shape == (4, 2, 12, 32)
    assert tower.grid((8, 24)) == (2, 6)
    with pytest.raises(UserError, match='18 px is no multiple of the patch side 4'):
        tower.grid((16, 18))


def test_layers_are_those_of_a_shallower_tower():
    tower, shallow = vit.build(1, **SMALL), vit.build(1, **SMALL | dict(depth=2))
    params = start(tower)
    outputs = run(tower.apply, params, Input(view()), want=('last2/cls', 'last2/patches'))
    np.testing.assert_allclose(outputs['last2/patches'][:, :, -1], outputs['patches'], atol=1e-6)
    cut = params | dict(blocks=jax.tree.map(lambda x: x[:2], params['blocks']))
    expected = run(shallow.apply, cut, Input(view()))
    np.testing.assert_allclose(outputs['last2/cls'][:, :, 0], expected['cls'], atol=2e-5)
    np.testing.assert_allclose(outputs['last2/patches'][:, :, 0], expected['patches'], atol=2e-5)


def gradients(tower, params, inputs, **options):
    def objective(params):
        outputs = tower.apply(params, Input(inputs), **options)
        return sum(jnp.sum(jnp.sin(x)) for x in (outputs['cls'], outputs['patches']))

    return jax.jit(jax.grad(objective))(params)


@pytest.mark.parametrize('remat', ['blocks', 'none'])
def test_remat_changes_no_gradient(remat):
    params = start(vit.build(1, **SMALL))
    options = dict(train=True, key=jax.random.key(3), rows_per_group=2)
    expected = gradients(vit.build(1, **SMALL, drop_path=0.5), params, view(), **options)
    got = gradients(vit.build(1, **SMALL, drop_path=0.5, remat=remat), params, view(), **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), got, expected)


@pytest.mark.parametrize('unroll', [2, 9])
def test_unrolled_blocks_give_the_same(unroll):
    """Outputs and gradients; as many blocks as the tower has, and more, leave no loop."""
    sizes = SMALL | dict(depth=4)
    params = start(vit.build(1, **sizes))
    options = dict(train=True, key=jax.random.key(3), rows_per_group=2)
    expected = gradients(vit.build(1, **sizes, drop_path=0.5), params, view(), **options)
    tower = vit.build(1, **sizes, drop_path=0.5, unroll=unroll)
    got = gradients(tower, params, view(), **options)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * np.abs(b).max()), got, expected)
    text = jax.jit(lambda params: tower.apply(params, Input(view()))['cls']).lower(params).as_text()
    assert ('stablehlo.while' in text) == (unroll < 4)


def test_bfloat16_activations_give_nearly_the_same_in_float32():
    tower, half = vit.build(1, **SMALL), vit.build(1, **SMALL, dtype='bfloat16')
    params = start(tower)
    expected, got = (run(one.apply, params, Input(view())) for one in (tower, half))
    assert got['cls'].dtype == jnp.float32
    error = np.abs(got['patches'] - expected['patches']).max() / np.abs(expected['patches']).max()
    assert 0 < error < 0.05
    stored = jax.eval_shape(lambda p: gradients(half, p, view()), params)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(stored))


def test_drop_path_adds_scaled_residuals_of_the_kept_only():
    x = np.random.default_rng(0).normal(size=(6, 2, 3)).astype(np.float32)
    kept = np.array([[2, 0], [1, 2]])  # of two groups of three sequences
    got = run(lambda x: drop_path.add_residual(x, jnp.sin, jnp.asarray(kept)), x)
    expected = x.copy()
    for i in (2, 0, 3 + 1, 3 + 2):
        expected[i] += np.sin(x[i]) * 3 / 2
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    slope = run(jax.grad(lambda x: drop_path.add_residual(x, jnp.sin, jnp.asarray(kept)).sum()), x)
    expected = np.ones_like(x)
    for i in (2, 0, 4, 5):
        expected[i] += np.cos(x[i]) * 3 / 2
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


@pytest.mark.parametrize('device', ['gpu', 'tpu'])
def test_drop_path_takes_rows_exactly(monkeypatch, device):
    """By gathers, and on TPUs by products; neither has a scatter in its backward pass."""
    monkeypatch.setattr(drop_path, 'platform', lambda: device)
    x = np.random.default_rng(0).normal(size=(12, 5, 7)).astype(np.float32)
    kept = np.array([[2, 0], [1, 2], [3, 0]])
    rows = np.array([2, 0, 5, 6, 11, 8])
    for dtype in (jnp.float32, jnp.bfloat16):
        given = x.astype(dtype)
        got = run(lambda x: drop_path.add_residual(x, lambda s: -s / 2, jnp.asarray(kept)), given)  # n / k is 2
        expected = np.float32(given)
        expected[rows] = 0
        np.testing.assert_array_equal(np.float32(got), expected)

    def loss(x):
        lengths = jnp.arange(12)
        return drop_path.add_residual(x, lambda s, n: jnp.sin(s) * n[:, None, None], jnp.asarray(kept), lengths).sum()

    weight = np.zeros(12, np.float32)
    weight[rows] = 2 * np.arange(12)[rows]
    np.testing.assert_allclose(run(jax.grad(loss), x), 1 + weight[:, None, None] * np.cos(x), rtol=1e-6, atol=1e-6)
    program = str(jax.make_jaxpr(jax.grad(loss))(jnp.asarray(x)))
    assert 'scatter' not in program and ('gather' in program) == (device == 'gpu')
    assert model_flops(loss, jnp.asarray(x)) == 0, 'choosing rows is no work of the model'


def test_drop_path_draws_differ_by_layer_branch_group_and_key_and_are_fair():
    groups = jnp.arange(64, dtype=jnp.uint32)
    kept = drop_path.draw_kept(jax.random.key(0), groups, 8, depth=6, rate=0.3)
    assert kept.shape == (6, 2, 64, 5)
    assert all(len(set(draw)) == 5 for draw in np.asarray(kept).reshape(-1, 5))
    flat = np.asarray(jax.nn.one_hot(kept, 8).sum(-2)).reshape(12, 64, 8)
    assert len({draw.tobytes() for draw in flat}) == 12, 'layers and branches draw separately'
    assert np.abs(flat.mean((0, 1)) - 5 / 8).max() < 0.08, 'every sequence is kept equally often'
    other = drop_path.draw_kept(jax.random.key(1), groups, 8, depth=6, rate=0.3)
    assert not np.array_equal(kept, other)


def test_drop_path_of_a_group_does_not_depend_on_the_other_rows():
    tower = vit.build(1, **SMALL, drop_path=0.5)
    params, whole = start(tower), view(rows=6)
    options = dict(train=True, key=jax.random.key(5), rows_per_group=2)
    apply = jax.jit(lambda params, given: tower.apply(params, Input(given), **options)['cls'])
    all_rows = apply(params, whole)
    group = View(whole.x[2:4], whole.row[2:4], whole.present[2:4], None, {})
    np.testing.assert_allclose(apply(params, group), all_rows[2:4], atol=1e-5)
    renumbered = group._replace(row=group.row + 2)
    assert not np.allclose(apply(params, renumbered), all_rows[2:4], atol=1e-3)
    undropped = run(tower.apply, params, Input(whole))['cls']
    assert not np.allclose(all_rows, undropped, atol=1e-3)


def test_check_names_the_groups_that_meet_the_drop_rate():
    tower = vit.build(1, **SMALL, drop_path=0.3)
    tower.check(crops={'global': 2, 'local': 8}, rows_per_group=5)
    with pytest.raises(UserError, match=r"rows_per_group=4: it would be 0\.375 for the view 'global'.*fit: 5, 8, 10"):
        tower.check(crops={'global': 2, 'local': 8}, rows_per_group=4)
    vit.build(1, **SMALL).check(crops={'global': 1}, rows_per_group=1)


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(tower='vit', varient='S/14'), r"towers\.image: unknown key 'varient'; did you mean 'variant'"),
        (dict(tower='vitt'), r"towers\.image\.tower: there is no tower 'vitt'.*did you mean 'vit'"),
        (dict(), r"towers\.image: the key 'tower' is missing"),
        (dict(tower='vit', variant='S14'), r"variant 'S14' is not a size and a patch like \"S/14\""),
        (dict(tower='vit', width=30, heads=4), 'width 30 is not divisible by 4 heads'),
        (dict(tower='vit', width=0), 'width=0: must be a whole number of at least 1'),
        (dict(tower='vit', depth=0), 'depth=0: must be'),
        (dict(tower='vit', heads=-2), 'heads=-2: must be'),
        (dict(tower='vit', native_size=100), r'100 px is no multiple of the patch side 14 px; 98 or 112 would work'),
        (dict(tower='vit', remat='block'), "unknown remat 'block'; did you mean 'blocks'"),
        (dict(tower='vit', drop_path=1.0), 'drop_path is a share'),
        (dict(tower='vit', attention='cudnn'), "attention='auto' runs anywhere"),
    ],
)
def test_mistakes_get_a_sentence(cfg, message):
    with pytest.raises(UserError, match=message):
        build.tower(cfg, 1, 'towers.image')


def test_masks_of_mode_zero_are_refused():
    tower = vit.build(1, **SMALL)
    none = jnp.zeros((1, 1, 0))
    with pytest.raises(UserError, match="masks by the modes 'replace' and 'drop', got 'zero'"):
        tower.apply(start(tower), Input(view(), Mask(jnp.zeros((4, 2, 16), bool), none, none, mode='zero')))


@pytest.mark.slow
@pytest.mark.parametrize(
    'options', [dict(), dict(family='dinov3', rope_shift=0.2, rope_rescale=2.0)], ids=['learned', 'rope']
)
def test_rows_stay_on_their_device(options):
    """On 8 devices only gradients are exchanged, and each device does an eighth of the work."""
    if jax.device_count() != 8:
        pytest.skip('needs 8 (virtual) devices')
    tower = vit.build(1, **SMALL | dict(width=64) | options, drop_path=0.25)
    params = start(tower)

    def step(params, x, row):
        inputs = View(x, row, jnp.ones(x.shape[:2], bool), None, {})
        bits = jnp.arange(16) % 3 == row[:, None, None] % 3
        mask = Mask(jnp.broadcast_to(bits, (len(row), 2, 16)), *[jnp.zeros((1, 1, 0))] * 2)

        def objective(params):
            outputs = tower.apply(params, Input(inputs, mask), train=True, key=jax.random.key(0), rows_per_group=2)
            return sum(jnp.square(x).mean((1, 2)).sum() for x in (outputs['cls'], outputs['patches']))

        return jax.grad(objective)(params)

    whole, eighth = view(rows=32), view(rows=4)
    alone = jax.jit(step).lower(params, eighth.x, eighth.row).compile()
    expected = jax.jit(step)(params, whole.x, whole.row)
    mesh = sharding.make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        rows = jax.device_put((whole.x, whole.row), sharding.rows_sharding(mesh))
        held = jax.device_put(params, sharding.replicated(mesh))
        many = jax.jit(step, out_shardings=sharding.replicated(mesh)).lower(held, *rows).compile()
        got = many(held, *rows)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max()), got, expected)
    assert many.cost_analysis()['flops'] <= 1.1 * alone.cost_analysis()['flops']
    sizes = {math.prod(leaf.shape[n:]) for leaf in jax.tree.leaves(params) for n in (0, 1)}
    moves = re.findall(
        r'= (.*?) (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)\(', many.as_text()
    )
    assert moves
    for shapes, kind in moves:
        assert kind == 'all-reduce', (kind, shapes)
        for shape in re.findall(r'\w+\[([\d,]*)\]', shapes):
            assert math.prod(int(n) for n in shape.split(',') if n) in sizes, (kind, shape)
