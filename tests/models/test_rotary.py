"""Rotary positions: the formula, DINOv3 of transformers, masks, random changes in training, drop path, keys' bias."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from programs import run

from medjax import config
from medjax.errors import UserError
from medjax.models import attention, build, rotary
from medjax.models.layers import Attention, Block
from medjax.models.rotary import Rotary
from medjax.models.towers import vit
from medjax.types import Input, Mask, View

WIDTH, HEADS, DEPTH, PATCH, REGISTERS = 24, 3, 2, 4, 2
HEAD = WIDTH // HEADS
OURS = dict(variant='S/4', family='dinov3', width=WIDTH, depth=DEPTH, heads=HEADS, mlp_ratio=2.0)
CHANGES = dict(rope_shift=0.3, rope_jitter=1.5, rope_rescale=2.0)
IMAGES = 3
GRIDS = [(3, 3), (2, 5)]


def view(grid: tuple[int, int], rows: int = IMAGES, first_row: int = 0) -> View:
    x = np.random.default_rng(first_row).normal(size=(rows, 1, 1, grid[0] * PATCH, grid[1] * PATCH, 3))
    row = np.arange(first_row, first_row + rows, dtype=np.uint32)
    return View(jnp.float32(x), jnp.asarray(row), jnp.ones((rows, 1), bool), None, {})


def far_from_zero(shapes: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float32(0.4 * rng.normal(size=x.shape)), shapes)


def shapes_of(module: Any, *inputs: Any) -> Any:
    return nn.meta.unbox(jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs))['params'])


def params_of(tower: Any) -> Any:
    return far_from_zero(jax.eval_shape(tower.init, jax.random.key(0)))


def close(got: Any, expected: Any, share: float = 2e-5) -> None:
    expected = expected.detach().numpy() if hasattr(expected, 'detach') else np.asarray(expected)
    np.testing.assert_allclose(got, expected, atol=share * np.abs(expected).max())


# The formula.


def angles_by_the_formula(
    grid: tuple[int, int], size: int, base: float = 100.0, factor: Any = (1.0, 1.0), shift: Any = (0.0, 0.0)
) -> np.ndarray:
    """float64 [N,size/2], one patch and one angle after the other: first the vertical angles, then the horizontal."""
    angles = np.zeros((grid[0] * grid[1], size // 2))
    for y in range(grid[0]):
        for x in range(grid[1]):
            for axis, (i, n) in enumerate(zip((y, x), grid, strict=True)):
                place = float(factor[axis]) * ((2 * i + 1) / n - 1 + float(shift[axis]))
                for j in range(size // 4):
                    angles[y * grid[1] + x, axis * (size // 4) + j] = 2 * np.pi * place / base ** (4 * j / size)
    return angles


@pytest.mark.parametrize('grid', [*GRIDS, (1, 1), (32, 24)])
@pytest.mark.parametrize(('size', 'base'), [(8, 100.0), (64, 100.0), (4, 7.0)])
def test_angles_equal_the_formula(grid, size, base):
    n = grid[0] * grid[1]
    got = np.asarray(run(rotary.turns, np.arange(n)[None], grid=grid, prefix=2, size=size, rotary=Rotary(base)))
    expected = np.concatenate([np.zeros((2, size // 2)), angles_by_the_formula(grid, size, base)])
    np.testing.assert_allclose(got[0, :, 0], np.cos(expected), atol=2e-6)
    np.testing.assert_allclose(got[0, :, 1], np.sin(expected), atol=2e-6)
    assert got.shape == (1, n + 2, 2, size // 2) and got.dtype == np.float32


def test_pairs_of_numbers_are_turned():
    """As complex numbers: x exp(i angle). Each row of angles holds for the same number of sequences."""
    x = np.random.default_rng(0).normal(size=(6, 5, HEADS, HEAD)).astype(np.float32)
    angles = np.random.default_rng(1).normal(size=(6, 5, HEAD // 2))
    for rows in (1, 2, 6):
        turns = np.float32(np.stack([np.cos(angles[:rows]), np.sin(angles[:rows])], axis=2))
        got = np.asarray(run(rotary.rotate, x, turns))
        numbers = x[..., : HEAD // 2] + 1j * x[..., HEAD // 2 :]
        numbers = numbers * np.exp(1j * np.repeat(angles[:rows], 6 // rows, axis=0))[:, :, None]
        np.testing.assert_allclose(got, np.concatenate([numbers.real, numbers.imag], axis=-1), atol=2e-6)
    assert run(rotary.rotate, jnp.bfloat16(x), turns).dtype == jnp.bfloat16


# DINOv3 of transformers, computed block by block, so that tests can choose tokens and angles.


def theirs(registers: int = REGISTERS, **options: Any) -> Any:
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    torch.backends.mkldnn.enabled = False  # as in tests/weights/test_huggingface.py
    sizes: dict[str, Any] = dict(hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS)
    sizes |= dict(intermediate_size=2 * WIDTH, patch_size=PATCH, image_size=16, num_register_tokens=registers)
    model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes | options, attn_implementation='eager'))
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.25 * torch.randn_like(parameter) + (0.5 if parameter.ndim == 1 else 0)
    return model.eval()


def ours(state: dict[str, Any]) -> Any:
    """Parameters or gradients of their model in our names."""
    state = {name: np.asarray(x.detach()) for name, x in state.items()}
    if any('k_proj.bias' in name for name in state):
        raise AssertionError('keys have a bias')

    def stack(name: str) -> np.ndarray:
        return np.stack([state[f'model.layer.{i}.{name}'] for i in range(DEPTH)])

    def kernel(name: str) -> np.ndarray:
        return stack(f'{name}.weight').transpose(0, 2, 1)

    def norm(name: str) -> dict[str, np.ndarray]:
        return dict(scale=stack(f'{name}.weight'), bias=stack(f'{name}.bias'))

    qkv = [kernel(f'attention.{one}_proj').reshape(DEPTH, WIDTH, HEADS, HEAD) for one in 'qkv']
    bias = [stack(f'attention.{one}_proj.bias').reshape(DEPTH, HEADS, HEAD) for one in 'qv']
    out = dict(
        kernel=kernel('attention.o_proj').reshape(DEPTH, HEADS, HEAD, WIDTH), bias=stack('attention.o_proj.bias')
    )
    up = dict(kernel=kernel('mlp.up_proj'), bias=stack('mlp.up_proj.bias'))
    down = dict(kernel=kernel('mlp.down_proj'), bias=stack('mlp.down_proj.bias'))
    if 'model.layer.0.mlp.gate_proj.weight' in state:
        gate = dict(kernel=kernel('mlp.gate_proj'), bias=stack('mlp.gate_proj.bias'))
        mlp = dict(w12={name: np.concatenate([gate[name], up[name]], axis=-1) for name in up}, w3=down)
    else:
        mlp = dict(fc1=up, fc2=down)
    params = dict(
        patch_embed=dict(
            kernel=state['embeddings.patch_embeddings.weight'].transpose(2, 3, 1, 0),
            bias=state['embeddings.patch_embeddings.bias'],
        ),
        cls=state['embeddings.cls_token'][0, 0],
        mask_token=state['embeddings.mask_token'][0, 0],
        blocks=dict(
            norm1=norm('norm1'),
            norm2=norm('norm2'),
            attn=dict(qkv=dict(kernel=np.stack(qkv, axis=2), bias=np.stack(bias, axis=1)), out=out),
            gamma1=stack('layer_scale1.lambda1'),
            gamma2=stack('layer_scale2.lambda1'),
            mlp=mlp,
        ),
        norm=dict(scale=state['norm.weight'], bias=state['norm.bias']),
    )
    if state['embeddings.register_tokens'].shape[1]:
        params['registers'] = state['embeddings.register_tokens'][0]
    return params


def their_tokens(
    model: Any, images: View, angles: np.ndarray, patches: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and the last attention map of their blocks for angles [S or 1,N,E/2] and patches [S,M], None: all."""
    import torch

    with torch.no_grad():
        x = model.embeddings(torch.from_numpy(np.array(images.image[:, 0])).permute(0, 3, 1, 2))
        prefix = x.shape[1] - angles.shape[1]
        angles = np.tile(np.broadcast_to(angles, (len(x), *angles.shape[1:])), 2)
        if patches is not None:
            rows = np.arange(len(x))[:, None]
            angles = angles[rows, patches]
            x = torch.cat([x[:, :prefix], x[rows, prefix + patches]], dim=1)
        turn = [torch.from_numpy(np.float32(f(angles)))[:, None] for f in (np.cos, np.sin)]  # for all heads
        for layer in model.model.layer:
            weights = layer.attention(layer.norm1(x), position_embeddings=turn)[1]
            x = layer(x, position_embeddings=turn)
        return model.norm(x).numpy(), weights.mean(1).numpy()


@pytest.mark.slow
@pytest.mark.parametrize('grid', GRIDS)
@pytest.mark.parametrize(
    ('registers', 'options', 'their_options'),
    [
        (4, dict(), dict()),
        (0, dict(rope_base=20.0, eps=0.3), dict(rope_theta=20.0, layer_norm_eps=0.3)),
        (1, dict(ffn='swiglu', mlp_ratio=3.0), dict(use_gated_mlp=True, hidden_act='silu')),
    ],
    ids=['registers', 'base and eps', 'gated'],
)
def test_dinov3_equals_transformers(grid, registers, options, their_options):
    """Features, the attention map and gradients, with a mask of mode 'replace'."""
    import torch

    model = theirs(registers, **their_options)
    tower = vit.build(3, **OURS | options, registers=registers)
    params = ours(model.state_dict())
    wanted = jax.eval_shape(tower.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, wanted)
    given = view(grid)
    bits = np.random.default_rng(5).random((IMAGES, 1, grid[0] * grid[1])) < 0.3
    mask = Mask(jnp.asarray(bits), *[jnp.zeros((1, 1, 0))] * 2)
    pixels = torch.from_numpy(np.array(given.image[:, 0])).permute(0, 3, 1, 2)
    expected = model(pixels, bool_masked_pos=torch.from_numpy(bits[:, 0]), output_attentions=True)
    tokens = expected.last_hidden_state

    def all_tokens(params: Any) -> Any:
        out = tower.apply(params, Input(given, mask), want=('attention',))
        parts = [out['cls'][:, 0, None], *[out[name][:, 0] for name in ('registers', 'patches') if name in out]]
        return jnp.concatenate(parts, axis=1), out['attention'][:, 0]

    got, attention = run(all_tokens, params)
    close(got, tokens)
    close(attention, expected.attentions[-1].mean(1)[:, 0, 1 + registers :])

    cotangent = np.random.default_rng(1).normal(size=tokens.shape).astype(np.float32)
    (tokens * torch.from_numpy(cotangent)).sum().backward()
    gradients = ours({name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()})
    got = run(jax.grad(lambda params: (all_tokens(params)[0] * cotangent).sum()), params)
    largest = max(np.abs(x).max() for x in jax.tree.leaves(gradients))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5 * largest), got, gradients)


@pytest.mark.parametrize('change', [False, True], ids=['as they are', 'changed'])
@pytest.mark.parametrize('grid', GRIDS)
def test_kept_patches_have_the_angles_of_their_places(grid, change):
    """Masks of mode 'drop' with two contexts a crop, in any order; in training with the change of the group."""
    model = theirs()
    tower, params = vit.build(3, **OURS | CHANGES, registers=REGISTERS), ours(model.state_dict())
    given, n, rng = view(grid), grid[0] * grid[1], np.random.default_rng(2)
    kept = np.int32([[[rng.permutation(n)[:4] for _ in range(2)]] for _ in range(IMAGES)])
    none = jnp.zeros((1, 1, 0))
    mask = Mask(jnp.zeros((IMAGES, 1, n), bool), none, none, kept=jnp.asarray(kept), mode='drop')
    key = jax.random.key(7)
    out = run(tower.apply, params, Input(given, mask), train=change, key=key, want=('attention',))
    angles = changed_angles(tower, key, range(IMAGES), grid) if change else angles_by_the_formula(grid, HEAD)[None]
    for context in range(2):
        tokens, weights = their_tokens(model, given, angles, kept[:, 0, context])
        close(out['cls'][:, context], tokens[:, 0])
        close(out['patches'][:, context], tokens[:, 1 + REGISTERS :])
        close(out['attention'][:, context], weights[:, 0, 1 + REGISTERS :])


def changed_angles(tower: Any, key: Any, groups: Any, grid: tuple[int, int]) -> np.ndarray:
    """[G,N,E/2] in float64 from the draws of the groups."""
    change = rotary.draw_change(key, jnp.uint32(list(groups)), tower.module.rotary)
    pairs = zip(np.float64(change.factor), np.float64(change.shift), strict=True)
    return np.stack([angles_by_the_formula(grid, HEAD, factor=factor, shift=shift) for factor, shift in pairs])


def test_contexts_of_different_lengths_have_their_own_angles():
    """Padding of a context changes nothing."""
    grid, n = (3, 3), 9
    tower = vit.build(3, **OURS, registers=REGISTERS)
    params, given, none = params_of(tower), view(grid), jnp.zeros((1, 1, 0))
    kept = np.int32([[[[8, 2, 5, 1]]], [[[0, 3, 7, 7]]], [[[4, 6, 0, 0]]]])
    length = np.int32([4, 3, 2]).reshape(IMAGES, 1, 1)

    def cls(kept: Any, length: Any, given: View = given) -> Any:
        bits = jnp.zeros((len(given.row), 1, n), bool)
        mask = Mask(bits, none, none, kept=jnp.asarray(kept), length=length, mode='drop')
        return run(tower.apply, params, Input(given, mask), want=('attention',))

    got = cls(kept, jnp.asarray(length))
    for i, m in enumerate(length.ravel()):
        one = View(given.x[i : i + 1], given.row[i : i + 1], given.present[i : i + 1], None, {})
        expected = cls(kept[i : i + 1, ..., :m], None, one)
        close(got['cls'][i], expected['cls'][0])
        close(got['attention'][i, 0, :m], expected['attention'][0, 0])


# Random changes of places in training.


@pytest.mark.parametrize('rows', [1, 3])
@pytest.mark.parametrize('names', [('rope_shift',), ('rope_jitter',), ('rope_rescale',), tuple(CHANGES)])
def test_places_change_in_training_only(names, rows):
    """Each group has the angles of its own draw: features and the attention map."""
    grid, model, key = (2, 5), theirs(), jax.random.key(3)
    tower = vit.build(3, **OURS | {name: CHANGES[name] for name in names}, registers=REGISTERS)
    params, given = ours(model.state_dict()), view(grid, first_row=6)
    for train in (True, False):
        out = run(tower.apply, params, Input(given), train=train, key=key, rows_per_group=rows, want=('attention',))
        groups = range(6 // rows, (6 + IMAGES) // rows)
        angles = changed_angles(tower, key, groups, grid) if train else angles_by_the_formula(grid, HEAD)[None]
        tokens, weights = their_tokens(model, given, np.repeat(angles, IMAGES // len(angles), axis=0))
        close(out['patches'][:, 0], tokens[:, 1 + REGISTERS :])
        close(out['attention'][:, 0], weights[:, 0, 1 + REGISTERS :])


def test_draws_have_the_stated_distributions():
    groups = jnp.arange(4000, dtype=jnp.uint32)

    def draws(key: int = 0, **options: float) -> tuple[np.ndarray, np.ndarray]:
        factor, shift = rotary.draw_change(jax.random.key(key), groups, Rotary(**options))
        return np.log(np.asarray(factor)), np.asarray(shift)

    def uniform(x: np.ndarray, bound: float) -> None:
        assert np.abs(x).max() <= bound * (1 + 1e-6)
        np.testing.assert_allclose(
            np.quantile(x, [0.1, 0.25, 0.5, 0.75, 0.9]) / bound, [-0.8, -0.5, 0, 0.5, 0.8], atol=0.05
        )

    logs, shift = draws(shift=0.3)
    assert not logs.any()
    uniform(shift[:, 0], 0.3)
    uniform(shift[:, 1], 0.3)
    logs, shift = draws(jitter=1.5)
    assert not shift.any()
    uniform(logs[:, 0], np.log(1.5))
    uniform(logs[:, 1], np.log(1.5))
    assert abs(np.corrcoef(logs.T)[0, 1]) < 0.06, 'each axis has a draw of its own'
    logs, shift = draws(rescale=2.0)
    assert not shift.any()
    uniform(logs[:, 0], np.log(2))
    np.testing.assert_array_equal(logs[:, 0], logs[:, 1])
    logs, shift = draws(shift=0.3, jitter=1.5, rescale=2.0)
    assert np.abs(logs).max() > np.log(2) and np.abs(logs).max() <= np.log(3) * (1 + 1e-6)
    assert np.abs(np.corrcoef(np.concatenate([logs, shift], axis=1).T)[2:, :2]).max() < 0.06
    other = draws(key=1, shift=0.3, jitter=1.5, rescale=2.0)
    assert np.abs(other[1] - shift).min(1).max() > 0.1


@pytest.mark.slow
def test_changes_of_a_group_do_not_depend_on_the_other_rows_or_on_devices():
    """With drop path and a mask of mode 'drop': one group alone, all groups, and all groups on eight devices."""
    if jax.device_count() != 8:
        pytest.skip('needs 8 (virtual) devices')
    from medjax.parallel import sharding

    grid, rows, n = (3, 3), 16, 9
    tower = vit.build(3, **OURS | CHANGES, registers=REGISTERS, drop_path=0.5)
    params, whole = params_of(tower), view(grid, rows)
    kept = np.int32([[np.random.default_rng(i).permutation(n)[:6].reshape(2, 3)] for i in range(rows)])
    none = jnp.zeros((1, 1, 0))

    def features(params: Any, x: Any, row: Any, kept: Any) -> Any:
        given = View(x, row, jnp.ones((len(row), 1), bool), None, {})
        masks = Mask(jnp.zeros((len(row), 1, n), bool), none, none, kept=kept, mode='drop')
        options = dict(train=True, key=jax.random.key(5), rows_per_group=2)
        return [tower.apply(params, Input(given, mask), **options)['patches'] for mask in (None, masks)]

    expected = jax.jit(features)(params, whole.x, whole.row, kept)
    group = jax.jit(features)(params, whole.x[4:6], whole.row[4:6], kept[4:6])
    for got, want in zip(group, expected, strict=True):
        close(got, want[4:6])
    renumbered = jax.jit(features)(params, whole.x[4:6], whole.row[4:6] + 2, kept[4:6])
    for got, want in zip(renumbered, expected, strict=True):
        assert np.abs(got - want[4:6]).max() > 0.01
    mesh = sharding.make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        given = jax.device_put((whole.x, whole.row, kept), sharding.rows_sharding(mesh))
        many = jax.jit(features)(jax.device_put(params, sharding.replicated(mesh)), *given)
    for got, want in zip(many, expected, strict=True):
        close(got, want)


@pytest.mark.parametrize('rows', [1, 2, 6], ids=['all sequences', 'groups', 'sequences'])
def test_drop_path_keeps_the_angles_of_each_sequence(rows):
    x = np.random.default_rng(0).normal(size=(6, 5, WIDTH)).astype(np.float32)
    angles = np.random.default_rng(1).normal(size=(rows, 5, HEAD // 2))
    turns = np.float32(np.stack([np.cos(angles), np.sin(angles)], axis=2))
    block = Block(HEADS, 2 * WIDTH, key_bias=False)
    params = far_from_zero(shapes_of(block, x))
    params['gamma2'] *= 0  # the branch of attention alone
    kept = np.int32([[[2, 0], [1, 2]]] * 2)  # of two groups of three sequences

    def apply(kept: Any) -> np.ndarray:
        return np.asarray(run(lambda p, t: block.apply({'params': p}, x, kept, turns=t), params, turns))

    whole, expected = apply(None) - x, x.copy()
    for i in (2, 0, 4, 5):
        expected[i] += whole[i] * 3 / 2
    close(apply(jnp.asarray(kept)), expected)
    one_angle = [block.apply({'params': params}, x, turns=jnp.asarray(turns[i : i + 1])) - x for i in range(rows)]
    for i in range(6):
        close(whole[i], one_angle[i * rows // 6][i])


# Kernels, types, keys' bias, mistakes.


def test_the_flash_kernel_gets_turned_queries_and_keys(monkeypatch):
    """Tokens are filled up to eight before the products: outputs and gradients, with the plain kernel below."""
    x = np.random.default_rng(0).normal(size=(4, 5, WIDTH)).astype(np.float32)
    weights = np.random.default_rng(2).normal(size=x.shape).astype(np.float32)
    angles = np.random.default_rng(1).normal(size=(2, 5, HEAD // 2))
    turns = np.float32(np.stack([np.cos(angles), np.sin(angles)], axis=2))
    module = Attention(HEADS, key_bias=False)
    params = far_from_zero(shapes_of(module, x))

    def results() -> list[Any]:
        total = lambda params, x: (module.apply({'params': params}, x, turns=turns) * weights).sum()  # noqa: E731
        return jax.tree.leaves(run(jax.value_and_grad(total, (0, 1)), params, x))

    expected, plain, shapes = results(), attention.flash, []

    def flash(q: Any, k: Any, v: Any, *rest: Any) -> Any:
        shapes.extend([q.shape[1], k.shape[1], v.shape[1]])
        return plain(q, k, v, *rest, 'xla')

    monkeypatch.setattr(attention, 'choose', lambda *given: 'cudnn')
    monkeypatch.setattr(attention, 'flash', flash)
    for got, want in zip(results(), expected, strict=True):
        close(got, want)
    assert set(shapes) == {8}


@pytest.mark.slow
def test_bfloat16_gives_nearly_the_same():
    tower, half = vit.build(3, **OURS), vit.build(3, **OURS, dtype='bfloat16')
    params, given = params_of(tower), view((3, 3))
    expected, got = (run(one.apply, params, Input(given))['patches'] for one in (tower, half))
    assert 0 < np.abs(got - expected).max() / np.abs(expected).max() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize('positions', ['rope', 'learned'])
def test_keys_without_a_bias(positions):
    """They equal keys with the bias zero: features, the attention map, and gradients of all other parameters."""
    without, with_bias = (
        vit.build(3, **OURS, positions=positions, native_size=12, key_bias=key_bias) for key_bias in (None, True)
    )
    params, given = params_of(without), view((3, 3))
    bias = params['blocks']['attn']['qkv']['bias']
    assert bias.shape == (DEPTH, 2, HEADS, HEAD)
    assert without.axes['blocks']['attn']['qkv']['bias'] == (None, None, 'heads', None)

    def widened(params: Any) -> Any:
        q, v = jnp.moveaxis(params['blocks']['attn']['qkv']['bias'], 1, 0)
        qkv = params['blocks']['attn']['qkv'] | dict(bias=jnp.stack([q, jnp.zeros_like(q), v], axis=1))
        return params | dict(blocks=params['blocks'] | dict(attn=params['blocks']['attn'] | dict(qkv=qkv)))

    def loss(params: Any, tower: Any, change: Any = lambda params: params) -> Any:
        out = tower.apply(change(params), Input(given), want=('attention',))
        return sum(jnp.sin(3 * out[name]).sum() for name in ('patches', 'attention'))

    got = run(jax.value_and_grad(loss), params, tower=without)
    expected = run(jax.value_and_grad(loss), params, tower=with_bias, change=widened)
    jax.tree.map(lambda a, b: close(a, b, 1e-4), got, expected)


def test_a_dinov3_tower_has_no_position_embeddings_and_starts_as_the_original():
    tower = vit.build(3, **OURS | dict(width=384, heads=6), registers=4)
    params = jax.jit(tower.init)(jax.random.key(0))
    assert sorted(params) == ['blocks', 'cls', 'mask_token', 'norm', 'patch_embed', 'registers']
    assert np.std(params['cls']) == pytest.approx(0.02, rel=0.15)
    assert np.std(params['registers']) == pytest.approx(0.02, rel=0.1)
    assert np.allclose(params['blocks']['gamma1'], 1e-5) and not params['mask_token'].any()


@pytest.mark.parametrize(
    ('options', 'hidden'),
    [
        (dict(variant='S/16', mlp_ratio=6), 1536),
        (dict(width=1280, depth=32, heads=20, mlp_ratio=6), 5120),
        (dict(width=4096, depth=40, heads=32, mlp_ratio=3), 8192),
    ],
    ids=['S+', 'H+', '7B'],
)
def test_public_sizes_with_a_gated_ffn(options, hidden):
    assert vit.build(3, **dict(variant='L/16', family='dinov3', ffn='swiglu') | options).module.hidden == hidden


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (dict(width=30, heads=3), r"positions='rope' needs heads of 4, 8, 12, … numbers \(width / heads\), not 10"),
        (dict(positions='rotary'), "unknown positions 'rotary'.*'?rope'?"),
        (dict(rope_shift=-0.1), 'rope_shift=-0.1: must be None or a number of at least 0'),
        (dict(rope_jitter=0.5), 'rope_jitter=0.5: must be None or a number of at least 1'),
        (dict(rope_rescale=0), 'rope_rescale=0: must be None or a number of at least 1'),
        (dict(rope_rescale='2'), "rope_rescale='2': must be None or a number of at least 1"),
        (dict(rope_shift=float('nan')), 'rope_shift=nan: must be'),
        (dict(rope_base=0), 'rope_base=0: must be a number above 0'),
        (dict(positions='learned', rope_rescale=2.0), "rope_rescale=2.0: this is an option of positions='rope'"),
        (dict(positions='sincos', rope_base=10), "rope_base=10: this is an option of positions='rope'"),
        (dict(key_bias=True, qkv_bias=False), 'key_bias=True needs qkv_bias=True'),
        (dict(eps=0), 'eps=0: must be a number above 0'),
        (dict(eps='1e-6'), "eps='1e-6': must be a number above 0"),
        (dict(ropebase=2), "unknown key 'ropebase'; did you mean 'rope_base'"),
    ],
)
def test_mistakes_get_a_sentence(cfg, message):
    with pytest.raises(UserError, match=message):
        build.tower(dict(OURS, tower='vit') | cfg, 3, 'towers.image')


def test_options_are_overrides_of_a_recipe():
    given = ['towers.image.positions=rope', 'towers.image.rope_rescale=2.0', 'towers.image.key_bias=False']
    cfg = config.read('configs/tiny.py', [*given, 'towers.image.eps=1e-5'])
    tower = build.tower(cfg.towers.image.to_dict(), 1, 'towers.image')
    shapes = jax.eval_shape(tower.init, jax.random.key(0))
    assert 'pos_grid' not in shapes and shapes['blocks']['attn']['qkv']['bias'].shape[1] == 2
    assert tower.module.rotary == Rotary(rescale=2.0) and tower.module.family.eps == 1e-5
