"""Weights of DINOv2: features and gradients equal those of transformers; names, files, resizing, mistakes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import run
from published_names import backbone, head_to_meta, to_meta
from safetensors.numpy import save_file

from medjax.errors import UserError
from medjax.models.heads import dino_head
from medjax.models.towers import vit
from medjax.types import Input, Mask, View
from medjax.weights import export, load
from medjax.weights.fit import adapt_channels, check_like, fit

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

KINDS = {'plain': (0, False), 'registers': (4, False), 'swiglu': (0, True)}
WIDTH, DEPTH, HEADS = 24, 2, 2


def theirs(kind: str):
    """A small model of transformers with random weights, all far from zero."""
    registers, swiglu = KINDS[kind]
    sizes = dict(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, image_size=28, patch_size=7,
        use_swiglu_ffn=swiglu,
    )  # fmt: skip
    torch.manual_seed(0)
    if registers:
        config = transformers.Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers)
        model = transformers.Dinov2WithRegistersModel(config)
    else:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter) + (0.5 if parameter.ndim == 1 else 0)
    return model.eval()


def ours(kind: str, **options):
    """The tower of the same sizes. transformers resizes position embeddings without an offset."""
    registers, swiglu = KINDS[kind]
    sizes = dict(width=WIDTH, depth=DEPTH, heads=HEADS, native_size=28, registers=registers, offset=0.0)
    return vit.build(3, 'S/7', ffn='swiglu' if swiglu else 'mlp', **sizes | options)


def arrays(named) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in named}


def as_view(images: np.ndarray) -> View:
    rows = len(images)
    return View(images[:, None, None], np.arange(rows, dtype=np.uint32), np.ones((rows, 1), bool), None, {})


def all_tokens(tower, params, images, bits=None):
    mask = None if bits is None else Mask(bits[:, None], *[np.zeros((1, 1, 0))] * 2)
    out = run(tower.apply, params, Input(as_view(images), mask))
    tokens = [out['cls'][:, :, None], *([out['registers']] if 'registers' in out else []), out['patches']]
    return jnp.concatenate(tokens, axis=2)[:, 0]


@pytest.mark.parametrize('kind', KINDS)
def test_features_and_gradients_equal_transformers(kind):
    model, tower = theirs(kind), ours(kind)
    params = backbone(arrays(model.named_parameters()), heads=HEADS)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 28, 28, 3)).astype(np.float32)
    bits = rng.random((2, 16)) < 0.4
    expected = model(torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(bits)).last_hidden_state
    cotangent = rng.normal(size=expected.shape).astype(np.float32)
    (expected * torch.from_numpy(cotangent)).sum().backward()

    got = all_tokens(tower, params, images, bits)
    np.testing.assert_allclose(got, expected.detach(), atol=2e-5 * expected.abs().max().item())
    grads = jax.jit(jax.grad(lambda p: jnp.sum(all_tokens(tower, p, images, bits) * cotangent)))(params)
    wanted = backbone(arrays((n, p.grad) for n, p in model.named_parameters()), heads=HEADS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max()), grads, wanted)


@pytest.mark.parametrize('kind', KINDS)
def test_files_of_transformers_load(kind, tmp_path):
    """save_pretrained writes older names than modules have. Images of another size resize the position embeddings."""
    model = theirs(kind)
    model.save_pretrained(tmp_path)
    wanted = jax.eval_shape(ours(kind).init, jax.random.key(0))
    params = load.open(tmp_path / 'model.safetensors').read('towers/image', wanted)
    jax.tree.map(np.testing.assert_array_equal, params, backbone(arrays(model.named_parameters()), heads=HEADS))
    images = np.random.default_rng(0).normal(size=(2, 21, 42, 3)).astype(np.float32)
    expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).last_hidden_state.detach()
    got = all_tokens(ours(kind), params, images)
    np.testing.assert_allclose(got, expected, atol=2e-5 * expected.abs().max().item())


@pytest.fixture
def state():
    """A backbone in Meta's names, from random parameters."""
    params = ours('registers').init(jax.random.key(0))
    return to_meta(jax.tree.map(np.asarray, params))


def test_there_and_back(state):
    params = backbone(state, heads=HEADS)
    again = to_meta(params)
    assert set(again) == set(state)
    assert state['blocks.1.attn.qkv.weight'].shape == (3 * WIDTH, WIDTH)
    assert state['pos_embed'].shape == (1, 17, WIDTH)
    for name in state:
        np.testing.assert_array_equal(again[name], state[name])
    check_like(params, jax.eval_shape(ours('registers').init, jax.random.key(0)), 'init_from')


def test_chunked_blocks_have_the_names_of_both(state):
    """A model that was trained with FSDP has its blocks in chunks: blocks.<chunk>.<block>.…"""
    chunked = {n.replace('blocks.0.', 'blocks.0.0.').replace('blocks.1.', 'blocks.1.1.'): a for n, a in state.items()}
    assert 'blocks.1.1.norm1.bias' in chunked
    jax.tree.map(np.testing.assert_array_equal, backbone(chunked, heads=HEADS), backbone(state, heads=HEADS))


def test_one_channel_is_three_equal_ones(state):
    tower = vit.build(1, 'S/7', width=WIDTH, depth=DEPTH, heads=HEADS, native_size=28, registers=4)
    wanted = jax.eval_shape(tower.init, jax.random.key(0))
    grey = fit(export.flatten(backbone(state, heads=HEADS)), wanted, tower)
    images = np.random.default_rng(0).normal(size=(1, 28, 28, 1)).astype(np.float32)
    one = all_tokens(tower, grey, images)
    three = all_tokens(ours('registers'), backbone(state, heads=HEADS), np.repeat(images, 3, axis=3))
    np.testing.assert_allclose(one, three, atol=1e-5)
    again = adapt_channels(grey['patch_embed']['kernel'], 3)
    np.testing.assert_allclose(again.sum(2, keepdims=True), grey['patch_embed']['kernel'], rtol=1e-6)
    two = adapt_channels(np.arange(6, dtype=np.float32).reshape(1, 1, 3, 2), 2)  # a grey image gives the same as before
    np.testing.assert_allclose(two, [[[[3.0, 4.5]] * 2]])


def test_another_grid_stores_the_resized_positions(state):
    tower = ours('registers', native_size=(21, 35))
    wanted = jax.eval_shape(tower.init, jax.random.key(0))
    resized = fit(export.flatten(backbone(state, heads=HEADS)), wanted, tower)
    images = np.random.default_rng(0).normal(size=(1, 21, 35, 3)).astype(np.float32)
    expected = all_tokens(ours('registers'), backbone(state, heads=HEADS), images)
    got = all_tokens(tower, resized, images)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_training_checkpoint_holds_backbone_and_heads(state, tmp_path):
    head = dino_head.build(WIDTH, 20, hidden=16, bottleneck=8)
    head = run(head.init, jax.random.key(1))
    named = {f'dino_head.{name}': array for name, array in head_to_meta(head).items()}
    path = tmp_path / 'teacher.safetensors'
    save_file(
        {name: np.ascontiguousarray(a) for name, a in ({f'backbone.{n}': a for n, a in state.items()} | named).items()},
        path,
    )
    weights, wanted = load.open(path), jax.eval_shape(ours('registers').init, jax.random.key(0))
    assert set(weights.modules) == {'towers/image', 'heads/dino'}
    head = jax.tree.map(np.asarray, head)
    jax.tree.map(np.testing.assert_array_equal, weights.read('heads/dino', head), head)
    tower = weights.read('towers/image', wanted)
    assert tower['registers'].shape == (4, WIDTH)
    export.save(tmp_path / '7', dict(towers=dict(image=tower), heads=dict(dino=head)), dict(step=7))
    again = load.open(tmp_path / '7')
    jax.tree.map(np.testing.assert_array_equal, again.read('towers/image', wanted), tower)
    jax.tree.map(np.testing.assert_array_equal, again.read('heads/dino', head), head)


def test_mistakes_get_a_sentence(state, tmp_path):
    def without(*names):
        return {n: a for n, a in state.items() if n not in names}

    for changed, message in (
        (
            state | {'neck.weight': np.zeros(1)},
            "no place for neck.weight in a DINOv2 backbone in Meta's names",
        ),
        (without('cls_token'), r'no known family.*nearest is a DINOv2 backbone in .* names; this file lacks cls_token'),
        (without('blocks.0.norm1.bias', 'norm.bias'), r'missing: blocks\.0\.norm1\.bias, norm\.bias'),
        (without('norm.bias', 'blocks.1.norm2.weight'), r'missing: blocks\.1\.norm2\.weight, norm.bias'),
        (
            without('norm.bias', 'patch_embed.proj.bias'),
            r'missing: norm\.bias, patch_embed\.proj\.bias|missing: patch_embed\.proj\.bias, norm\.bias',
        ),
        (state | {'mask_token': np.zeros(3)}, r"mask_token has shape \(3,\), which does not fit '1 d -> d'"),
        (state | {'norm.bias': np.zeros(WIDTH, np.int8)}, r'of another type: norm\.bias \(int8\)'),
        (state | {'norm.bias': np.full(WIDTH, np.nan)}, 'norm.bias: not all numbers are finite'),
        (
            without('blocks.0.norm1.bias')
            | {'neck.weight': np.zeros(1), 'norm.bias': np.zeros(2, np.int8), 'mask_token': np.zeros(3)},
            r'missing: blocks\.0\.norm1\.bias; no place for neck\.weight.*; of another type: norm\.bias.*; mask_token',
        ),
    ):
        with pytest.raises(UserError, match=message):
            backbone(changed, heads=HEADS)
    with pytest.raises(UserError, match='nothing says how many heads of attention the width 24 has'):
        backbone(state)
    with pytest.raises(UserError, match='there is no such file'):
        load.open(tmp_path / 'none.safetensors')
    params, wanted = backbone(state, heads=HEADS), jax.eval_shape(ours('plain').init, jax.random.key(0))
    with pytest.raises(UserError, match='init_from does not fit: not in this configuration: registers'):
        check_like(params, wanted, 'init_from')
    with pytest.raises(UserError, match=r'missing from the weights: registers'):
        check_like({n: a for n, a in params.items() if n != 'registers'}, params, 'init_from')


def test_an_export_is_adapted_like_a_public_file(tmp_path):
    """From 3 channels and a 4 x 4 grid to one channel and a 6 x 6 grid, as with a file in Meta's names."""
    tower = vit.build(3, 'S/8', width=16, depth=1, heads=2, native_size=32)
    params = jax.tree.map(np.asarray, tower.init(jax.random.key(0)))
    export.save(tmp_path / 'export', {'towers': {'image': params}}, {'step': 1})
    grey = vit.build(1, 'S/8', width=16, depth=1, heads=2, native_size=48)
    wanted = jax.eval_shape(grey.init, jax.random.key(0))
    ours = load.open(tmp_path / 'export').read('towers/image', wanted, grey)
    theirs = fit(export.flatten(backbone(to_meta(params), heads=2)), wanted, grey)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)
    assert ours['pos_grid'].shape == (6, 6, 16) and ours['patch_embed']['kernel'].shape == (8, 8, 1, 16)


@pytest.mark.parametrize(
    ('options', 'antialias', 'offset'),
    [
        (dict(), False, 0.1),
        (dict(antialias=True), True, 0.0),
        (dict(offset=0.0), False, 0.0),
        (dict(antialias=True, offset=0.25), True, 0.25),
        (dict(registers=4), True, 0.0),
        (dict(registers=4, antialias=False), False, 0.1),
        (dict(family='clip'), False, 0.0),
    ],
    ids=str,
)
def test_an_export_is_resized_as_its_tower_resizes(options, antialias, offset, tmp_path):
    """By the options in its meta.json, so that its features at another size stay what the tower made of them."""
    sizes = dict(width=16, depth=1, heads=2)
    tower = vit.build(1, 'S/8', native_size=32, **sizes, **options)
    params = jax.tree.map(lambda x: np.asarray(x) + 0.1, tower.init(jax.random.key(0)))
    about = dict(tower='vit', variant='S/8', native_size=32, **sizes, **options)
    export.save(tmp_path / 'export', {'towers': {'image': params}}, dict(step=1, towers=dict(image=about)))
    larger = vit.build(1, 'S/8', native_size=48, **sizes, **options)
    wanted = jax.eval_shape(larger.init, jax.random.key(0))
    ours = load.open(tmp_path / 'export').read('towers/image', wanted, larger)
    expected = vit.resize_grid(params['pos_grid'], (6, 6), antialias, offset)
    np.testing.assert_allclose(ours['pos_grid'], expected, rtol=1e-6)
    others = [vit.resize_grid(params['pos_grid'], (6, 6), a, o) for a in (False, True) for o in (0.0, 0.1, 0.25)]
    assert sum(np.allclose(ours['pos_grid'], other, rtol=1e-6) for other in others) < len(others)
    image = np.random.default_rng(0).random((1, 1, 1, 48, 48, 1)).astype(np.float32)
    view = View(image, np.zeros(1, np.uint32), np.ones((1, 1), bool), None, {})
    features = [run(t.apply, p, Input(view))['cls'] for t, p in ((tower, params), (larger, ours))]
    np.testing.assert_allclose(*features, rtol=1e-4, atol=1e-5)
