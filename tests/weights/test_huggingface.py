"""Text towers, ViT and ResNet against the classes of transformers, with random weights that are read from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import run

from medjax.errors import UserError
from medjax.models import build
from medjax.models.heads import linear, mlp
from medjax.types import Input, View
from medjax.weights import load

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
torch.backends.mkldnn.enabled = False  # the AVX-512 backward of a convolution writes out of bounds: torch 2.13.0 aborts

WIDTH, VOCABULARY, LENGTH = 16, 30, 9
SIZES = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
TEXT = dict(SIZES, vocab_size=VOCABULARY, max_position_embeddings=LENGTH, bos_token_id=1, eos_token_id=29)
IMAGE = dict(SIZES, image_size=12, patch_size=4)
OURS = dict(width=WIDTH, depth=2, heads=2, mlp_ratio=2.0)
OUR_TEXT = dict(OURS, tower='text', vocabulary=VOCABULARY, context=LENGTH)
OUR_IMAGE = dict(OURS, tower='vit', variant='S/4', native_size=12)
LENGTHS = np.array([[3], [LENGTH], [5], [1]])


def shaken(model: Any) -> Any:
    """The model with random weights far from zero, because errors in weights near zero would stay hidden."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.25 * torch.randn_like(parameter) + (0.5 if parameter.ndim == 1 else 0)
    for name, buffer in model.named_buffers():
        if 'running' in name:
            buffer.data = torch.rand_like(buffer) + 0.5
    return model.eval()


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder / 'model.safetensors'


def wanted(tower: Any) -> Any:
    return jax.eval_shape(tower.init, jax.random.key(0))


def texts(lengths: np.ndarray | None = LENGTHS) -> tuple[np.ndarray, View]:
    """Token ids [4,1,T] whose last valid one is the end-of-text token, and the view."""
    ids = np.random.default_rng(0).integers(2, 29, (4, 1, LENGTH)).astype(np.int32)
    row, present = np.arange(4, dtype=np.uint32), np.ones((4, 1), bool)
    if lengths is None:
        return ids, View(ids, row, present, None, {})
    number = np.arange(LENGTH)
    valid = number < lengths[..., None]
    ids = np.where(number == lengths[..., None] - 1, 29, np.where(valid, ids, 0)).astype(np.int32)
    return ids, View(ids, row, present, valid, {})


def pictures(height: int = 12, width: int = 12) -> tuple[Any, View]:
    x = np.random.default_rng(0).normal(size=(3, height, width, 3)).astype(np.float32)
    view = View(x[:, None, None], np.arange(3, dtype=np.uint32), np.ones((3, 1), bool), None, {})
    return torch.from_numpy(x).permute(0, 3, 1, 2), view


def close(got: Any, expected: Any, share: float = 1e-5) -> None:
    expected = expected.detach().numpy() if hasattr(expected, 'detach') else np.asarray(expected)
    np.testing.assert_allclose(got, expected, atol=share * np.abs(expected).max())


def same_gradients(model: Any, loss: Any, tower: Any, module: str, params: Any, ours: Any, folder: Path) -> None:
    """Compares gradients. Theirs are written as the weights of a model and read like weights.

    A parameter that the loss does not depend on has gradient zero.
    """
    model.zero_grad()
    loss.backward()
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    expected = load.open(saved(model, folder / 'gradients')).read(module, wanted(tower))
    got = jax.jit(jax.grad(ours))(params)
    drop = lambda tree: {k: v for k, v in tree.items() if k != 'stats'}  # noqa: E731
    largest = max(np.abs(x).max() for x in jax.tree.leaves(drop(expected)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), drop(got), drop(expected))


def of_text(kind: str) -> Any:
    if kind == 'bert':
        return transformers.BertModel(transformers.BertConfig(**TEXT))
    if kind == 'clip':
        return transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT))
    return transformers.SiglipTextModel(transformers.SiglipTextConfig(**TEXT))


@pytest.mark.parametrize('kind', ['bert', 'clip', 'siglip'])
def test_text_towers_equal_transformers(kind, tmp_path):
    """BERT and CLIP get texts of different lengths. SigLIP reads padding, so neither model gets a mask."""
    model, tower = shaken(of_text(kind)), build.tower(dict(OUR_TEXT, family=kind), 1, 'towers.text')
    params = load.open(saved(model, tmp_path)).read('towers/text', wanted(tower))
    ids, view = texts()
    valid = np.ones_like(view.valid) if kind == 'siglip' else view.valid
    ids = torch.from_numpy(ids[:, 0]).long()
    mask = None if kind == 'siglip' else torch.from_numpy(view.valid[:, 0]).long()
    theirs = model(ids, attention_mask=mask)
    out = jax.jit(lambda p: tower.apply(p, Input(view)))(params)
    expected = theirs.last_hidden_state
    close(np.asarray(out['tokens'])[:, 0][valid[:, 0]], expected[torch.from_numpy(valid[:, 0])])
    if kind == 'bert':
        close(out['cls'][:, 0], expected[:, 0])
    elif kind == 'clip':
        close(out['cls'][:, 0], theirs.pooler_output)  # at the end-of-text token
    else:
        close(out['cls'][:, 0], expected[:, -1])

    cotangent = np.random.default_rng(1).normal(size=expected.shape).astype(np.float32) * valid[:, 0, :, None]
    loss = (expected * torch.from_numpy(cotangent)).sum()
    ours = lambda p: jnp.sum(tower.apply(p, Input(view))['tokens'][:, 0] * cotangent)  # noqa: E731
    same_gradients(model, loss, tower, 'towers/text', params, ours, tmp_path)


@pytest.mark.slow
def test_padding_changes_nothing():
    """In the families with lengths, padding and its token ids change nothing. An absent text gives finite numbers."""
    _, view = texts()
    for family in ('bert', 'clip'):
        for pool in ('cls', 'last', 'mean', 'max', 'attention'):
            tower = build.tower(dict(OUR_TEXT, family=family, pool=pool, depth=1), 1, 'towers.text')
            params = tower.init(jax.random.key(0))
            apply = jax.jit(lambda p, v, tower=tower: tower.apply(p, Input(v))['cls'])
            other = view._replace(x=np.where(view.valid, view.x, 7).astype(np.int32))
            np.testing.assert_array_equal(apply(params, view), apply(params, other))
            short = View(view.x[:1, :, :3], view.row[:1], view.present[:1], None, {})  # the first text has three tokens
            close(apply(params, view)[:1], apply(params, short), 2e-6)
        nothing = apply(params, view._replace(valid=np.zeros_like(view.valid)))
        assert np.isfinite(nothing).all()


def test_eps_replaces_that_of_the_family(tmp_path):
    config = transformers.BertConfig(**TEXT, layer_norm_eps=0.3)
    model, tower = shaken(transformers.BertModel(config)), build.tower(dict(OUR_TEXT, eps=0.3), 1, 'towers.text')
    params = load.open(saved(model, tmp_path)).read('towers/text', wanted(tower))
    ids, view = texts(None)
    expected = model(torch.from_numpy(ids[:, 0]).long()).last_hidden_state
    close(run(tower.apply, params, Input(view))['tokens'][:, 0], expected)
    with pytest.raises(UserError, match='text: eps=-1: must be a number above 0'):
        build.tower(dict(OUR_TEXT, eps=-1), 1, 'towers.text')


def test_poolings_equal_numpy():
    _, view = texts()
    params = build.tower(OUR_TEXT, 1, 'towers.text').init(jax.random.key(0))
    pools = ('cls', 'last', 'mean', 'max')
    outputs = {p: run(build.tower(dict(OUR_TEXT, pool=p), 1, 'x').apply, params, Input(view)) for p in pools}
    tokens = np.asarray(outputs['cls']['tokens'])[:, 0]
    for i, n in enumerate(LENGTHS[:, 0]):
        text = tokens[i, :n]
        by = dict(cls=text[0], last=text[-1], mean=text.mean(0), max=text.max(0))
        for pool, value in by.items():
            np.testing.assert_allclose(outputs[pool]['cls'][i, 0], value, atol=1e-6)


def test_a_longer_context_is_cut_and_another_vocabulary_refused(tmp_path):
    model = shaken(of_text('bert'))
    path = saved(model, tmp_path)
    tower = build.tower(dict(OUR_TEXT, context=4), 1, 'towers.text')
    params = load.open(path).read('towers/text', wanted(tower))
    ids, view = texts(None)
    close(
        run(tower.apply, params, Input(view._replace(x=ids[:, :, :4])))['tokens'][:, 0],
        model(torch.from_numpy(ids[:, 0, :4]).long()).last_hidden_state,
    )
    for change, message in (
        (dict(vocabulary=31), r'words \(30, 16\) in the weights, \(31, 16\)'),
        (dict(context=12), r'positions \(9, 16\) in the weights'),
        (dict(depth=1), r'2 layers in the weights, 1 in this'),
        (dict(depth=3), r'2 layers in the weights, 3 in this'),
        (dict(family='clip'), r'missing from the weights: norm/bias, norm/scale; not in this configuration: segments'),
    ):
        with pytest.raises(UserError, match=message):
            load.open(path).read('towers/text', wanted(build.tower(dict(OUR_TEXT, **change), 1, 'towers.text')))


def test_older_names_wrappers_and_the_projection_of_cxr_bert(tmp_path):
    """A file with LayerNorm.gamma, the prefix `bert.`, a head for masked words and CXR-BERT's projection of CLS."""
    from safetensors.numpy import load_file, save_file

    model = shaken(transformers.BertForMaskedLM(transformers.BertConfig(**TEXT)))
    state = load_file(saved(model, tmp_path))
    state = {n.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): a
             for n, a in state.items()}  # fmt: skip
    hidden, output = torch.nn.Linear(WIDTH, 6), torch.nn.Linear(6, 6)
    layer = shaken(torch.nn.LayerNorm(6, eps=1e-12))
    for name, module in dict(dense_to_hidden=hidden, LayerNorm=layer, dense_to_output=output).items():
        state |= {f'cls_projection_head.{name}.{k}': v.detach().numpy() for k, v in module.named_parameters()}
    save_file(state, tmp_path / 'cxr.safetensors')
    weights = load.open(tmp_path / 'cxr.safetensors')
    assert set(weights.modules) == {'towers/text', 'heads/text'}
    tower, head = build.tower(OUR_TEXT, 1, 'x'), mlp.build(WIDTH, 6, activation='gelu', norm=True)
    params, projection = weights.read('towers/text', wanted(tower)), weights.read('heads/text', wanted(head))
    ids, view = texts(None)
    cls = model.bert(torch.from_numpy(ids[:, 0]).long()).last_hidden_state[:, 0]
    expected = output(layer(torch.nn.functional.gelu(hidden(cls))))
    close(run(head.apply, projection, run(tower.apply, params, Input(view))['cls'])[:, 0], expected)


@pytest.mark.parametrize('kind', ['clip', 'siglip'])
def test_both_towers_of_a_pair(kind, tmp_path):
    """Images and texts through the towers and projections of CLIPModel and SiglipModel, and gradients of images."""
    classes = dict(clip=('CLIPModel', 'CLIPConfig'), siglip=('SiglipModel', 'SiglipConfig'))[kind]
    make, config = (getattr(transformers, name) for name in classes)
    extra = dict(projection_dim=6) if kind == 'clip' else {}
    model = shaken(make(config(text_config=dict(TEXT), vision_config=dict(IMAGE), **extra)))
    weights = load.open(saved(model, tmp_path))
    text, image = (build.tower(dict(cfg, family=kind), 3, 'x') for cfg in (OUR_TEXT, OUR_IMAGE))
    ids, view = texts(None)
    pixels, seen = pictures()
    out = run(text.apply, weights.read('towers/text', wanted(text)), Input(view))['cls']
    params = weights.read('towers/image', wanted(image))
    features = jax.jit(lambda p: image.apply(p, Input(seen)))(params)
    theirs = model.vision_model(pixels)
    patches = theirs.last_hidden_state
    if kind == 'clip':
        assert set(weights.modules) == {'towers/image', 'towers/text', 'heads/image', 'heads/text'}
        head = linear.build(WIDTH, 6)
        projected = run(head.apply, weights.read('heads/image', wanted(head)), features['cls'])
        close(projected[:, 0], model.visual_projection(theirs.pooler_output))
        patches = model.vision_model.post_layernorm(patches)[:, 1:]  # CLIPModel applies this norm to CLS only
    else:
        head = linear.build(WIDTH, WIDTH, bias=True)
        close(features['cls'][:, 0], theirs.pooler_output)
    words = model.text_model(torch.from_numpy(ids[:, 0]).long()).pooler_output
    if kind == 'clip':
        words = model.text_projection(model.text_model(torch.from_numpy(ids[:, 0]).long()).last_hidden_state[:, -1])
    close(run(head.apply, weights.read('heads/text', wanted(head)), out)[:, 0], words)
    close(features['patches'][:, 0], patches)

    half = getattr(transformers, classes[0].replace('Model', 'VisionModel'))(model.config.vision_config)
    half.load_state_dict(model.vision_model.state_dict())  # saved alone, its names have no prefix
    alone = load.open(saved(half, tmp_path / 'half')).read('towers/image', wanted(image))
    jax.tree.map(np.testing.assert_array_equal, alone, params)

    cotangent = np.random.default_rng(1).normal(size=(3, WIDTH)).astype(np.float32)
    loss = (theirs.pooler_output * torch.from_numpy(cotangent)).sum()
    ours = lambda p: jnp.sum(image.apply(p, Input(seen))['cls'][:, 0] * cotangent)  # noqa: E731
    same_gradients(model, loss, image, 'towers/image', params, ours, tmp_path)


def test_vit_equals_transformers(tmp_path):
    model = shaken(transformers.ViTModel(transformers.ViTConfig(**IMAGE)))
    tower = build.tower(dict(OUR_IMAGE, family='vit'), 3, 'x')
    params = load.open(saved(model, tmp_path)).read('towers/image', wanted(tower))
    pixels, view = pictures()
    expected = model(pixels).last_hidden_state
    out = run(tower.apply, params, Input(view))
    close(np.concatenate([out['cls'][:, :, None], out['patches']], 2)[:, 0], expected)
    other, seen = pictures(8, 20)  # position embeddings are resized to another grid
    resized = model(other, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    close(run(tower.apply, params, Input(seen))['cls'][:, 0], resized)
    cotangent = np.random.default_rng(1).normal(size=(3, WIDTH)).astype(np.float32)
    loss = (expected[:, 0] * torch.from_numpy(cotangent)).sum()
    ours = lambda p: jnp.sum(tower.apply(p, Input(view))['cls'][:, 0] * cotangent)  # noqa: E731
    same_gradients(model, loss, tower, 'towers/image', params, ours, tmp_path)


@pytest.mark.parametrize('train', [False, True], ids=['running', 'batch'])
@pytest.mark.parametrize('variant', ['50', '18'])
def test_resnet_equals_transformers(variant, train, tmp_path):
    """Pictures are not square. In training, gradients through batch statistics and the running statistics are equal."""
    wide = 4 if variant == '50' else 1
    kind = 'bottleneck' if variant == '50' else 'basic'
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8 * wide, 16 * wide], depths=[1, 3], layer_type=kind
    )
    model = shaken(transformers.ResNetModel(config))
    tower = build.tower(dict(tower='resnet', variant=variant, stem=8, depths=[1, 3]), 3, 'x')
    params = load.open(saved(model, tmp_path)).read('towers/image', wanted(tower))
    pixels, view = pictures(30, 46)
    model.train(train)
    theirs = model(pixels)
    out = jax.jit(lambda p: tower.apply(p, Input(view), train=train))(params)
    assert tower.grid((30, 46)) == tuple(theirs.last_hidden_state.shape[2:]) == (4, 6)
    close(out['patches'][:, 0], theirs.last_hidden_state.permute(0, 2, 3, 1).flatten(1, 2))
    close(out['cls'][:, 0], theirs.pooler_output[:, :, 0, 0])
    if not train:
        assert 'stats' not in out
        return
    moved = load.open(saved(model, tmp_path / 'moved')).read('towers/image', wanted(tower))['stats']
    jax.tree.map(close, out['stats'], moved)
    cotangent = np.random.default_rng(1).normal(size=theirs.pooler_output.shape[:2]).astype(np.float32)
    loss = (theirs.pooler_output[:, :, 0, 0] * torch.from_numpy(cotangent)).sum()
    ours = lambda p: jnp.sum(tower.apply(p, Input(view), train=True)['cls'][:, 0] * cotangent)  # noqa: E731
    same_gradients(model, loss, tower, 'towers/image', params, ours, tmp_path)


def test_grey_images_for_weights_of_three_channels(tmp_path):
    model = shaken(transformers.ResNetModel(transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[16], depths=[1]
    )))  # fmt: skip
    tower = build.tower(dict(tower='resnet', stem=4, depths=[1]), 1, 'x')
    params = load.open(saved(model, tmp_path)).read('towers/image', wanted(tower))
    _, view = pictures()
    grey = view._replace(x=view.x[..., :1])
    expected = model(torch.from_numpy(grey.image[:, 0].repeat(3, -1)).permute(0, 3, 1, 2)).pooler_output[:, :, 0, 0]
    close(run(tower.apply, params, Input(grey))['cls'][:, 0], expected)
