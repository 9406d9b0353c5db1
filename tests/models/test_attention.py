"""Attention with a context and with masks, blocks with cross-attention, and outputs on demand."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from programs import run

from medjax.errors import UserError
from medjax.models import attention, build, kernels, splash
from medjax.models.layers import Attention, Block, scan_blocks
from medjax.parallel import sharding
from medjax.types import Input, Mask, View
from medjax.weights import load

S, T, KEYS, D, CONTEXT, HEADS = 3, 4, 6, 8, 10, 2


def random_params(tree, seed=0, scale=0.5):
    """The tree with random numbers far from zero, as plain arrays."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (scale * rng.normal(size=a.shape)).astype(np.float32), nn.meta.unbox(tree))


def shapes_of(module, *args, **options):
    """The shapes of the module's parameters."""
    return jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **options))['params']


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def close(got, expected, share=2e-5):
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, atol=share * np.abs(expected).max())


def attention_by_definition(params, x, context, allowed):
    """softmax(q k^T / sqrt(e)) v in float64; `allowed` is bool [S,T,keys]."""
    params = jax.tree.map(np.float64, params)
    kv = np.einsum('std,dche->cshte', context, params['kv']['kernel'])
    k, v = kv + params['kv']['bias'][:, None, :, None]
    q = np.einsum('std,dhe->shte', x, params['q']['kernel']) + params['q']['bias'][:, None]
    scores = np.einsum('shte,shke->shtk', q, k) / np.sqrt(q.shape[-1])
    scores = np.where(allowed[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    y = np.einsum('shtk,shke->sthe', weights, v)
    return np.einsum('sthe,hed->std', y, params['out']['kernel']) + params['out']['bias']


def allowed_keys(kind):
    """The options of a call, and the keys that they allow [S,T,keys]."""
    rng = np.random.default_rng(2)
    lengths = np.array([2, KEYS, 3], np.int32)
    first = np.broadcast_to((np.arange(KEYS) < lengths[:, None])[:, None], (S, T, KEYS))
    keys, pairs = rng.random((S, KEYS)) < 0.5, rng.random((S, T, KEYS)) < 0.5
    keys[:, 1] = pairs[..., 1] = True  # each token may see one key at least, also within the lengths
    of_keys = np.broadcast_to(keys[:, None], (S, T, KEYS))
    return {
        'all': ({}, np.ones((S, T, KEYS), bool)),
        'lengths': (dict(lengths=lengths), first),
        'keys': (dict(mask=keys), of_keys),
        'pairs': (dict(mask=pairs), pairs),
        'both': (dict(lengths=lengths, mask=pairs), pairs & first),
    }[kind]


@pytest.mark.parametrize('kind', ['all', 'lengths', 'keys', 'pairs', 'both'])
def test_attention_to_a_context_is_its_definition(kind):
    x, context = numbers(S, T, D), numbers(S, KEYS, CONTEXT, seed=3)
    module = Attention(HEADS)
    params = random_params(shapes_of(module, x, context))
    assert set(params) == {'q', 'kv', 'out'}
    options, allowed = allowed_keys(kind)
    close(
        run(module.apply, {'params': params}, x, context, **options),
        attention_by_definition(params, x, context, allowed),
    )


@pytest.mark.parametrize('kind', ['all', 'lengths', 'keys', 'pairs'])
def test_attention_equals_torch(kind):
    """torch.nn.MultiheadAttention, where True in a mask means that a key is left out."""
    torch = pytest.importorskip('torch')
    x, context = numbers(S, T, D), numbers(S, KEYS, CONTEXT, seed=3)
    module = Attention(HEADS)
    params = random_params(shapes_of(module, x, context))
    options, allowed = allowed_keys(kind)
    theirs = torch.nn.MultiheadAttention(D, HEADS, kdim=CONTEXT, vdim=CONTEXT, batch_first=True)

    def set_to(parameter, array):
        parameter.data = torch.tensor(np.ascontiguousarray(array))

    kernel, bias = params['kv']['kernel'], params['kv']['bias']
    set_to(theirs.q_proj_weight, params['q']['kernel'].reshape(D, D).T)
    set_to(theirs.k_proj_weight, kernel[:, 0].reshape(CONTEXT, D).T)
    set_to(theirs.v_proj_weight, kernel[:, 1].reshape(CONTEXT, D).T)
    set_to(theirs.in_proj_bias, np.concatenate([params['q']['bias'].ravel(), bias.ravel()]))
    set_to(theirs.out_proj.weight, params['out']['kernel'].reshape(D, D).T)
    set_to(theirs.out_proj.bias, params['out']['bias'])
    keys = torch.tensor(context)
    left_out = torch.tensor(~np.repeat(allowed, HEADS, axis=0))  # [S heads,T,keys]
    expected, _ = theirs(torch.tensor(x), keys, keys, attn_mask=left_out)
    close(run(module.apply, {'params': params}, x, context, **options), expected.detach().numpy())


def test_a_mask_of_keys_equals_the_same_lengths():
    x = numbers(S, KEYS, D)
    module = Attention(HEADS)
    params = random_params(shapes_of(module, x))
    lengths = np.array([2, KEYS, 3], np.int32)
    mask = np.arange(KEYS) < lengths[:, None]
    variables = {'params': params}
    close(run(module.apply, variables, x, mask=mask), run(module.apply, variables, x, lengths=lengths))


def test_heads_that_the_flash_kernel_does_not_take_are_a_sentence():
    x = numbers(S, KEYS, 40)
    with pytest.raises(UserError, match=r"attention='cudnn': heads have 8, 16, … 128 numbers, not 20; attention="):
        Attention(2, implementation='cudnn').init(jax.random.key(0), x)


def test_the_flash_kernel_takes_no_masks():
    x = numbers(S, KEYS, D)
    with pytest.raises(UserError, match="attention='cudnn' takes no mask of single keys; attention='auto' does"):
        Attention(HEADS, implementation='cudnn').init(jax.random.key(0), x, mask=np.ones((S, KEYS), bool))


@pytest.mark.parametrize('lengths', [None, np.array([3, 11, 1], np.int32)], ids=['all keys', 'lengths'])
@pytest.mark.parametrize(('tokens', 'keys', 'causal'), [(5, 11, False), (16, 8, False), (1, 9, False), (7, 7, True)])
def test_padding_to_a_multiple_of_eight_changes_nothing(tokens, keys, causal, lengths):
    """The form that the flash kernel gets, computed by the plain kernel: outputs and gradients."""
    q, k, v = (numbers(S, n, HEADS, D, seed=i) for i, n in enumerate((tokens, keys, keys)))
    weights = numbers(S, tokens, HEADS, D, seed=9)
    lengths = None if lengths is None else np.minimum(lengths, keys)

    def total(f, q, k, v):
        return (f(q, k, v) * weights).sum()

    def plain(q, k, v):
        return attention.attend(q, k, v, lengths=lengths, causal=causal)

    def padded(q, k, v):
        filled = map(attention.to_multiple, (q, k, v))
        return attention.flash(*filled, tokens, keys, lengths, causal, 'xla')[:, :tokens]

    def both(f):
        return run(lambda *x: (f(*x), jax.grad(lambda *x: total(f, *x), (0, 1, 2))(*x)), q, k, v)

    jax.tree.map(close, both(padded), both(plain))


@pytest.mark.parametrize('with_context', [False, True], ids=['self', 'cross'])
@pytest.mark.parametrize('lengths', [None, np.array([2, 4, 3], np.int32)], ids=['all keys', 'lengths'])
def test_attention_by_the_flash_kernel_equals_the_plain_one(monkeypatch, with_context, lengths):
    """Tokens are filled up before the products with weights: outputs and all gradients, with the plain kernel below."""
    x, context = numbers(S, T, D), numbers(S, KEYS, CONTEXT, seed=3) if with_context else None
    module, weights = Attention(HEADS), numbers(S, T, D, seed=9)
    params = random_params(module.init(jax.random.key(0), x, context)['params'])

    def total(params, x, context):
        return (module.apply({'params': params}, x, context, lengths) * weights).sum()

    def results():
        wanted = (0, 1, 2) if with_context else (0, 1)
        return jax.tree.leaves(run(jax.value_and_grad(total, wanted), params, x, context))

    expected, plain, shapes = results(), attention.flash, []

    def flash(q, k, v, *rest):
        shapes.extend([q.shape[1], k.shape[1], v.shape[1]])
        return plain(q, k, v, *rest, 'xla')

    monkeypatch.setattr(attention, 'choose', lambda *given: 'cudnn')
    monkeypatch.setattr(attention, 'flash', flash)
    for got, want in zip(results(), expected, strict=True):
        close(got, want)
    assert set(shapes) == {8}


@pytest.mark.parametrize(
    ('change', 'kernel'),
    [
        (dict(), 'cudnn'),
        (dict(dtype=np.float32), 'xla'),
        (dict(size=20), 'xla'),
        (dict(size=256), 'xla'),
        (dict(tokens=1), 'xla'),
        (dict(mask=np.ones((2, 1, 1, 9), bool)), 'xla'),
        (dict(card=7.5), 'xla'),
        (dict(platform='cpu'), 'xla'),
        (dict(platform='tpu'), 'xla'),  # few tokens: mostly padding
        (dict(platform='tpu', tokens=1370), 'splash'),
        (dict(platform='tpu', tokens=1370, dtype=np.float32), 'splash'),
        (dict(platform='tpu', tokens=1370, mask=np.ones((2, 1, 1, 1370), bool)), 'xla'),
    ],
)
def test_auto_takes_a_flash_kernel_where_it_runs(monkeypatch, change, kernel):
    options = dict(dtype=jnp.bfloat16, size=64, tokens=9, mask=None, platform='gpu', card=8.0) | change
    monkeypatch.setattr(attention, 'platform', lambda: options['platform'])
    monkeypatch.setattr(attention, '_card', lambda: options['card'])
    given = ('auto', (2, options['tokens'], 1, options['size']), options['dtype'], options['mask'])
    assert attention.choose(*given) == kernel
    with kernels.plain():
        assert attention.choose(*given) == 'xla'


def test_a_flash_kernel_that_cannot_run_is_a_sentence(monkeypatch):
    with pytest.raises(UserError, match="vit: attention='cudnn' needs an NVIDIA GPU and dtype='bfloat16'"):
        attention.check('vit', 'cudnn', 'bfloat16')
    monkeypatch.setattr(attention, 'platform', lambda: 'gpu')
    monkeypatch.setattr(attention, '_card', lambda: 7.0)
    monkeypatch.setattr(jax, 'local_devices', lambda: [SimpleNamespace(compute_capability='7.0')])
    with pytest.raises(
        UserError, match=r'needs a card of compute capability 8\.0 \(A100\) or newer, and this one has 7'
    ):
        attention.check('vit', 'cudnn', 'bfloat16')


@pytest.mark.parametrize(
    ('lengths', 'causal', 'mesh'),
    [
        (None, False, True),
        (np.array([3, 140], np.int32), True, True),
        (np.array([3, 140], np.int32), False, False),
    ],
)
def test_splash_attention_equals_the_plain_one(monkeypatch, lengths, causal, mesh):
    """The kernel of TPUs, interpreted on four devices with rows and heads split, or without a mesh: also gradients."""
    sequences, tokens = 2, 140  # filled up to two blocks
    q, k, v, weights = (numbers(sequences, tokens, 2, 16, seed=i) for i in range(4))

    def plain(q, k, v):
        return attention.attend(q, k, v, lengths=lengths, causal=causal)

    def kernel(q, k, v):
        return splash.attend(q, k, v, lengths, causal, interpret=True)

    def results(f):
        return jax.jit(lambda *x: (f(*x), jax.grad(lambda *x: (f(*x) * weights).sum(), (0, 1, 2))(*x)))(q, k, v)

    if mesh:
        jax.set_mesh(sharding.make_mesh(data=2, tensor=2, devices=jax.devices()[:4]))
    else:
        monkeypatch.setattr(jax.sharding, 'get_abstract_mesh', lambda: jax.sharding.AbstractMesh((), ()))
    for got, want in zip(jax.tree.leaves(results(kernel)), jax.tree.leaves(results(plain)), strict=True):
        close(got, want)


@pytest.mark.parametrize(
    ('capability', 'runs'), [('7.0', False), ('7.5', False), ('gfx90a', False), ('8.0', True), ('12.1', True)]
)
def test_a_card_that_is_too_old_for_the_flash_kernel(monkeypatch, capability, runs):
    """The plain form runs there by itself; who asks for the flash kernel reads a sentence. An AMD card is none."""
    card = SimpleNamespace(platform='gpu', compute_capability=capability)
    monkeypatch.setattr(jax, 'local_devices', lambda: [card])
    monkeypatch.setattr(attention, 'platform', lambda: 'gpu')
    assert attention.choose('auto', (2, 9, 1, 64), jnp.bfloat16, None) == ('cudnn' if runs else 'xla')
    if runs:
        attention.check('vit', 'cudnn', 'bfloat16')
    else:
        with pytest.raises(UserError, match=f'or newer, and this one has {capability}; attention=.auto. runs anywhere'):
            attention.check('vit', 'cudnn', 'bfloat16')


# Blocks.


def test_a_block_with_cross_attention_equals_transformers():
    """BertLayer with add_cross_attention: norms after the branches, lengths of texts and of contexts."""
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    from transformers.models.bert.modeling_bert import BertLayer

    config = transformers.BertConfig(
        hidden_size=D, num_attention_heads=HEADS, intermediate_size=12, is_decoder=True, add_cross_attention=True,
        attn_implementation='eager', hidden_act='gelu', layer_norm_eps=1e-12,
    )  # fmt: skip
    theirs = BertLayer(config).eval()
    x, context = numbers(S, T, D), numbers(S, KEYS, D, seed=3)
    lengths, context_lengths = np.array([4, 1, 3], np.int32), np.array([2, KEYS, 3], np.int32)
    block = Block(HEADS, 12, layerscale=None, post_norm=True, eps=1e-12, cross=True)
    params = random_params(shapes_of(block, x, context=context))

    def linear(module, kernel, bias):
        module.weight.data = torch.tensor(np.ascontiguousarray(kernel.reshape(-1, bias.size).T))
        module.bias.data = torch.tensor(np.ascontiguousarray(bias.ravel()))

    def norm(module, ours):
        module.weight.data, module.bias.data = torch.tensor(ours['scale']), torch.tensor(ours['bias'])

    qkv, kv = params['attn']['qkv'], params['cross']['kv']
    for i, name in enumerate(('query', 'key', 'value')):
        linear(getattr(theirs.attention.self, name), qkv['kernel'][:, i], qkv['bias'][i])
    cross = theirs.crossattention.self
    linear(cross.query, params['cross']['q']['kernel'], params['cross']['q']['bias'])
    linear(cross.key, kv['kernel'][:, 0], kv['bias'][0])
    linear(cross.value, kv['kernel'][:, 1], kv['bias'][1])
    for module, ours, after in (
        (theirs.attention, 'attn', 'norm1'),
        (theirs.crossattention, 'cross', 'norm_cross'),
    ):
        linear(module.output.dense, params[ours]['out']['kernel'], params[ours]['out']['bias'])
        norm(module.output.LayerNorm, params[after])
    linear(theirs.intermediate.dense, params['mlp']['fc1']['kernel'], params['mlp']['fc1']['bias'])
    linear(theirs.output.dense, params['mlp']['fc2']['kernel'], params['mlp']['fc2']['bias'])
    norm(theirs.output.LayerNorm, params['norm2'])

    def additive(lengths, keys):
        left_out = np.where(np.arange(keys) < lengths[:, None], 0.0, np.finfo(np.float32).min)
        return torch.tensor(left_out[:, None, None].astype(np.float32))

    expected = theirs(
        torch.tensor(x),
        attention_mask=additive(lengths, T),
        encoder_hidden_states=torch.tensor(context),
        encoder_attention_mask=additive(context_lengths, KEYS),
    )
    expected = expected[0] if isinstance(expected, tuple) else expected
    got = run(block.apply, {'params': params}, x, lengths=lengths, context=context, context_lengths=context_lengths)
    close(got, expected.detach().numpy())


class Stack(nn.Module):
    """Scanned blocks by themselves."""

    depth: int
    options: dict

    @nn.compact
    def __call__(self, x, kept=None, inputs=None, layers=1):
        return scan_blocks(x, self.depth, 'products', layers, kept, inputs, heads=HEADS, hidden=12, **self.options)


def test_scanned_blocks_pass_the_context_to_every_block():
    x, context = numbers(S, T, D), numbers(S, KEYS, CONTEXT, seed=3)
    lengths, context_lengths = np.array([4, 1, 3], np.int32), np.array([2, KEYS, 3], np.int32)
    inputs = dict(lengths=lengths, context=context, context_lengths=context_lengths)
    module = Stack(2, {})
    params = random_params(shapes_of(module, x, None, inputs))
    got = run(lambda *given: module.apply(*given, layers=2), {'params': params}, x, None, inputs)
    block, y = jax.jit(Block(HEADS, 12, cross=True).apply), x
    for i in range(2):
        y = block({'params': jax.tree.map(lambda a, i=i: a[i], params['blocks'])}, y, **inputs)
        close(got[i], y)
    other = run(module.apply, {'params': params}, x, None, inputs | dict(context=context + 1))[0]
    assert np.abs(other - got[1]).max() > 1e-3


def test_drop_path_takes_lengths_and_contexts_of_the_kept_sequences():
    """A kept sequence gets its own lengths, mask and context; a sequence that is left out stays as it is."""
    x, context = numbers(4, T, D), numbers(4, KEYS, CONTEXT, seed=3)
    inputs = dict(
        lengths=np.array([4, 1, 3, 2], np.int32),
        mask=np.random.default_rng(0).random((4, T, T)) < 0.7,
        context=context,
        context_lengths=np.array([2, KEYS, 3, 1], np.int32),
        context_mask=np.random.default_rng(1).random((4, KEYS)) < 0.7,
    )
    inputs['mask'][..., 0] = inputs['context_mask'][:, 0] = True
    module = Stack(1, dict(layerscale=None))
    params = random_params(shapes_of(module, x, None, inputs))
    kept = np.array([[[[3, 1]], [[3, 1]]]], np.int32)  # one block, both branches, one group
    got = run(module.apply, {'params': params}, x, kept, inputs)[0]
    close(got[::2], x[::2])
    # each residual counts twice, as two of four sequences keep it
    block = {'params': jax.tree.map(lambda a: a[0], params['blocks'])}
    one = jax.jit(Block(HEADS, 12, layerscale=None, cross=True).apply)
    for s in (1, 3):
        own = jax.tree.map(lambda a, s=s: np.concatenate([a[s : s + 1]] * 2), inputs)
        alone = one(block, np.concatenate([x[s : s + 1]] * 2), np.zeros((2, 1, 1), np.int32), **own)
        close(got[s], alone[0])


# Outputs on demand.


def image_view(rows, size, channels=3, views=1):
    x = numbers(rows, views, 1, size, size, channels, seed=5)
    return View(x, np.arange(rows, dtype=np.uint32), np.ones((rows, views), bool), None, {})


def vit(**options):
    section = dict(tower='vit', variant='S/4', width=8, depth=3, heads=2, mlp_ratio=2.0, native_size=12) | options
    tower = build.tower(section, 3, 'towers.image')
    return tower, random_params(jax.eval_shape(tower.init, jax.random.key(0)))


def test_the_attention_of_the_cls_token_equals_transformers(tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16, image_size=12, patch_size=4,
        attn_implementation='eager',
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    tower, _ = vit(family='vit')
    wanted = jax.eval_shape(tower.init, jax.random.key(0))
    params = load.open(tmp_path / 'model.safetensors').read('towers/image', wanted)
    view = image_view(2, 12)
    pixels = torch.tensor(np.moveaxis(np.asarray(view.image[:, 0]), -1, 1))
    with torch.no_grad():
        expected = model(pixels, output_attentions=True).attentions[-1]  # [S,heads,T,T]
    got = run(tower.apply, params, Input(view), want=['attention'])['attention']
    assert got.shape == (2, 1, 9)
    close(got[:, 0], expected.mean(1)[:, 0, 1:].numpy())
    assert 'attention' not in jax.eval_shape(tower.apply, params, Input(view))


def test_levels_of_a_resnet_equal_the_hidden_states_of_transformers(tmp_path):
    torch, transformers = pytest.importorskip('torch'), pytest.importorskip('transformers')
    torch.backends.mkldnn.enabled = False
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 32], depths=[1, 2, 1], layer_type='basic', hidden_act='relu'
    )
    torch.manual_seed(0)
    model = transformers.ResNetModel(config).eval()
    for parameter in model.parameters():
        parameter.data = 0.25 * torch.randn_like(parameter) + (0.5 if parameter.ndim == 1 else 0)
    model.save_pretrained(tmp_path)
    tower = build.tower(dict(tower='resnet', variant='18', stem=8, depths=[1, 2, 1]), 3, 'towers.image')
    wanted = jax.eval_shape(tower.init, jax.random.key(0))
    params = load.open(tmp_path / 'model.safetensors').read('towers/image', wanted)
    view = image_view(2, 32)
    with torch.no_grad():
        states = model(
            torch.tensor(np.moveaxis(np.asarray(view.image[:, 0]), -1, 1)), output_hidden_states=True
        ).hidden_states
    want = ['levels/1', 'levels/2', 'levels/3', 'last2/cls']
    got = run(tower.apply, params, Input(view), want=want)
    for i in (1, 2, 3):
        close(got[f'levels/{i}'][:, 0], np.moveaxis(states[i].numpy(), 1, -1))
        assert got[f'levels/{i}'].shape[-1] == tower.widths[f'levels/{i}']
    one = jax.eval_shape(lambda: tower.apply(params, Input(view), want=['levels/2']))
    assert set(one) == {'cls', 'patches', 'present', 'levels/2'}


def test_features_of_different_numbers_of_blocks_come_from_one_call():
    tower, params = vit(depth=4, registers=1)
    view = image_view(2, 12)
    both = run(tower.apply, params, Input(view), want=['last2/cls', 'last4/patches'])
    assert set(both) == {'cls', 'patches', 'registers', 'present'} | {
        f'last{n}/{name}' for n in (2, 4) for name in ('cls', 'patches')
    }
    for name, shape in (('last2/cls', (2, 1, 2, 8)), ('last4/patches', (2, 1, 4, 9, 8))):
        alone = run(tower.apply, params, Input(view), want=[name])[name]
        assert both[name].shape == shape
        close(both[name], alone)
    close(both['last4/cls'][:, :, 2:], both['last2/cls'])
    close(both['last2/cls'][:, :, -1], both['cls'])


# Contexts of a mask.


@pytest.mark.parametrize('lengths', [False, True])
@pytest.mark.parametrize('registers', [0, 2])
def test_contexts_of_a_crop_are_read_like_each_alone(lengths, registers):
    """Two contexts for each of two crops: `cls` and tokens are those of the tower on the tokens of one context."""
    tower, params = vit(registers=registers)
    rows, views, contexts, most, patches = 2, 2, 2, 5, 9
    view = image_view(rows, 12, views=views)
    rng = np.random.default_rng(0)
    kept = np.stack([rng.permutation(patches)[:most] for _ in range(rows * views * contexts)])
    kept = kept.reshape(rows, views, contexts, most).astype(np.int32)
    length = rng.integers(1, most, (rows, views, contexts)).astype(np.int32) if lengths else None
    bits = np.zeros((rows, views, patches), bool)
    none = np.zeros((1, 1, 0))
    mask = Mask(bits, none, none, kept, length, mode='drop')
    want = ['attention', 'last2/cls']
    apply = jax.jit(lambda params, given: tower.apply(params, given, want=want))
    got = apply(params, Input(view, mask))
    assert got['cls'].shape == (rows, views * contexts, 8)
    assert got['present'].shape == (rows, views * contexts) and got['present'].all()
    assert Input(view, mask).present.shape == (rows, views * contexts)
    for v in range(views):
        for k in range(contexts):
            for b in range(rows):
                m = most if length is None else int(length[b, v, k])
                one = View(view.x[b : b + 1, v : v + 1], view.row[:1], view.present[:1, :1], None, {})
                own = Mask(bits[:1, :1], none, none, kept[b : b + 1, v : v + 1, k : k + 1, :m], None, mode='drop')
                alone = apply(params, Input(one, own))
                n = v * contexts + k
                close(got['cls'][b, n], alone['cls'][0, 0])
                close(got['patches'][b, n, :m], alone['patches'][0, 0])
                close(got['last2/cls'][b, n], alone['last2/cls'][0, 0])
                close(got['attention'][b, n, :m], alone['attention'][0, 0])
