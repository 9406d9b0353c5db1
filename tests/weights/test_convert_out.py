"""Exports in the layouts of transformers, timm and Meta: the original classes open them, and medjax reads them back."""

from __future__ import annotations

import json
import warnings
from typing import Any

import jax
import numpy as np
import pytest
from programs import run
from public_models import of_resnet, of_timm, pooled, shaken

from medjax.errors import UserError
from medjax.models import build
from medjax.probes import encode
from medjax.types import Input, View
from medjax.weights import arrays, export, load, to_huggingface, to_meta, to_timm

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')
torch.backends.mkldnn.enabled = False

SIZES = dict(tower='vit', variant='S/4', width=16, depth=2, heads=2, mlp_ratio=2.0, native_size=12)
TEXT = dict(tower='text', width=16, depth=2, heads=2, mlp_ratio=2.0, vocabulary=30, context=9)
TOWERS: dict[str, dict[str, Any]] = {
    'dinov2': dict(SIZES, offset=0.0),
    'demo': dict(SIZES, layerscale=1.0),
    'registers': dict(SIZES, registers=3),
    'swiglu': dict(SIZES, ffn='swiglu', mlp_ratio=4.0, offset=0.0),
    'vit': dict(SIZES, family='vit'),
    'mae': dict(SIZES, family='mae', positions='sincos'),
    'clip': dict(SIZES, family='clip'),
    'siglip': dict(SIZES, family='siglip'),
    'ijepa': dict(SIZES, family='ijepa', positions='sincos'),
    'dinov3': dict(SIZES, family='dinov3', registers=2),
    'dinov3 gated': dict(SIZES, family='dinov3', ffn='swiglu', mlp_ratio=3.0, rope_base=50.0),
    'resnet': dict(tower='resnet', variant='50', stem=8, depths=[2, 1, 1, 1]),
    'resnet basic': dict(tower='resnet', variant='18', stem=64),
    # Classes with registers or a gated FFN always have a LayerScale. It is written as 1, and gone after the way back.
    'registers, no layerscale': dict(SIZES, family='vit', registers=2),
    'swiglu, no layerscale': dict(SIZES, family='vit', ffn='swiglu', mlp_ratio=4.0),
    'siglip, fixed positions': dict(SIZES, family='siglip', positions='sincos'),
    'wide': dict(SIZES, native_size=[12, 8], offset=0.0),
}


def few(kinds: list[str], *quick: str) -> list[Any]:
    """All kinds, of which some run with the quick tests."""
    return [pytest.param(kind, marks=() if kind in quick else pytest.mark.slow) for kind in kinds]


def noisy(params: Any, seed: int = 5) -> Any:
    """Parameters far from zero; variances stay positive."""
    rng = np.random.default_rng(seed)

    def shake(path: Any, x: Any) -> np.ndarray:
        scale = rng.uniform(0.5, 1.5, x.shape) if path[-1].key == 'variance' else rng.normal(0.0, 0.25, x.shape)
        return (scale + (0.5 if path[-1].key == 'scale' else 0.0)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(shake, jax.device_get(params))


def exported(folder, towers: dict[str, Any], heads: dict[str, Any] | None = None, channels: int = 3, **meta: Any):
    tree: dict[str, Any] = {'towers': {}, 'heads': {}}
    for name, section in towers.items():
        tree['towers'][name] = noisy(build.tower(section, channels, name).init(jax.random.key(0)))
    for name, (section, width) in (heads or {}).items():
        tree['heads'][name] = noisy(build.head(section, width, name).init(jax.random.key(1)), 6)
    about = dict(step=300, network='teacher', encoder=None, towers=towers, pairs=[], size=12,
                 heads={name: section for name, (section, _) in (heads or {}).items()},
                 image=dict(channels=channels, mean=0.4, std=0.2, fit='crop'),
                 config_fingerprint='x', seen=None)  # fmt: skip
    return export.save(folder / 'export', tree, about | meta), tree


def ours(section: dict[str, Any], params: Any, x: np.ndarray) -> tuple[Any, Any]:
    tower = build.tower(section, x.shape[-1], 'x')
    view = View(x[:, None, None], np.arange(len(x), dtype=np.uint32), np.ones((len(x), 1), bool), None, {})
    out = run(tower.apply, params, Input(view))
    return out['cls'][:, 0], out['patches'][:, 0]


def pictures(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, height, width, channels)).astype(np.float32)


def torch_images(x: np.ndarray) -> Any:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def compare(got: Any, expected: Any) -> None:
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b.numpy(), atol=2e-5 * float(b.abs().max()))


def unchanged(folder, tree, meta_of) -> None:
    """medjax reads the written folder as the same towers and heads, to the bit."""
    params, meta = load.as_export(folder)
    a, b = export.flatten(params), export.flatten({kind: group for kind, group in tree.items() if group})
    assert set(a) == set(b)
    masked = {name for name in a if name.endswith('/mask_token') and not a[name].any()}
    for name in set(a) - masked:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    original = export.read_meta(meta_of)
    assert {key: meta[key] for key in ('towers', 'heads', 'image', 'size', 'step', 'pairs')} == {
        key: original[key] for key in ('towers', 'heads', 'image', 'size', 'step', 'pairs')
    }


def hf_features(kind: str, model: Any, x: np.ndarray) -> tuple[Any, Any]:
    with torch.no_grad():
        images = torch_images(x)
        if 'resnet' in kind:
            return of_resnet(model, images)
        if kind.split(',')[0] in ('clip', 'siglip'):
            return pooled(model, images)
        more = dict(interpolate_pos_encoding=True) if kind in ('vit', 'mae') else {}
        tokens = model(images, **more).last_hidden_state
        registers = getattr(model.config, 'num_register_tokens', 0)
        return tokens[:, 0], tokens[:, 1 + registers :]


@pytest.mark.parametrize('kind', few([k for k in TOWERS if k not in ('wide', 'ijepa')], 'demo', 'dinov3', 'resnet'))
def test_transformers_opens_what_is_written(kind, tmp_path):
    section = TOWERS[kind]
    source, tree = exported(tmp_path, dict(image=section))
    to_huggingface.write(load.open(source), tmp_path / 'hf')
    model, info = transformers.AutoModel.from_pretrained(tmp_path / 'hf', output_loading_info=True)
    assert not {name for name in info['missing_keys'] if 'pooler' not in name}, info
    assert {name.rpartition('.')[2] for name in info['unexpected_keys']} <= {'mask_token'}
    sizes = [(64, 64)] if 'resnet' in kind else [(12, 12), (16, 8)]
    by_other_rules = kind in ('demo', 'mae') or ',' in kind  # of resizing positions
    for height, width in sizes[: 1 if by_other_rules else 2]:
        x = pictures(height, width)
        compare(ours(section, tree['towers']['image'], x), hf_features(kind, model.eval(), x))
    unchanged(tmp_path / 'hf', tree, source)


@pytest.mark.parametrize('kind', few([k for k in TOWERS if k != 'resnet'], 'registers', 'wide'))
def test_timm_opens_what_is_written(kind, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        timm = pytest.importorskip('timm')
    section = TOWERS[kind]
    source, tree = exported(tmp_path, dict(image=section))
    if 'gated' in kind:
        section = section | dict(rope_base=100.0)
        source, tree = exported(tmp_path, dict(image=section))
    to_timm.write(load.open(source), tmp_path / 'timm')
    model = timm.create_model(f'local-dir:{tmp_path / "timm"}', pretrained=True).eval()
    x = pictures(*((64, 64) if 'resnet' in kind else (12, 8) if kind == 'wide' else (12, 12)))
    features = of_resnet if 'resnet' in kind else of_timm
    with torch.no_grad():
        compare(ours(section, tree['towers']['image'], x), features(model, torch_images(x)))
    params, meta = load.as_export(tmp_path / 'timm')
    assert meta['towers'] == dict(image=section)
    again = ours(section, params['towers']['image'], x)
    for a, b in zip(again, ours(section, tree['towers']['image'], x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


# Texts and pairs.


def texts(length: int = 9) -> np.ndarray:
    ids = np.random.default_rng(1).integers(2, 29, (2, length)).astype(np.int32)
    ids[:, -1] = 29  # the end of a text
    return ids


def our_text(section: dict[str, Any], params: Any, ids: np.ndarray) -> Any:
    view = View(ids[:, None], np.arange(len(ids), dtype=np.uint32), np.ones((len(ids), 1), bool), None, {})
    out = run(build.tower(section, 1, 'x').apply, params, Input(view))
    return out['cls'][:, 0], out['tokens'][:, 0]


@pytest.mark.parametrize('family', ['bert', 'clip', 'siglip'])
def test_transformers_opens_text_towers(family, tmp_path):
    section = dict(TEXT, family=family)
    source, tree = exported(tmp_path, dict(text=section), size=0)
    to_huggingface.write(load.open(source), tmp_path / 'hf')
    kind = getattr(transformers, dict(bert='BertModel', clip='CLIPTextModel', siglip='SiglipTextModel')[family])
    model, info = kind.from_pretrained(tmp_path / 'hf', output_loading_info=True)
    assert not {name for name in info['missing_keys'] if not name.startswith(('pooler', 'head'))}, info
    ids = texts()
    with torch.no_grad():
        hidden = model.eval()(torch.from_numpy(ids).long()).last_hidden_state
    cls, tokens = our_text(section, tree['towers']['text'], ids)
    compare((cls, tokens), (hidden[:, 0 if family == 'bert' else -1], hidden))
    unchanged(tmp_path / 'hf', tree, source)


@pytest.mark.parametrize('kind', ['one tower', 'pair'])
def test_an_end_token_that_nothing_says_is_told(kind, tmp_path):
    pair = pair_of('clip')
    towers, heads = (dict(text=dict(TEXT, family='clip')), None) if kind == 'one tower' else pair[:2]
    more = {} if kind == 'one tower' else dict(pairs=pair[2], encoder='cxr')
    source, _ = exported(tmp_path, towers, heads, size=12, **more)
    notes = ' '.join(to_huggingface.write(load.open(source), tmp_path / 'hf'))
    assert 'nothing says the end token of texts' in notes and f'eos_token_id={TEXT["vocabulary"] - 1}' in notes


@pytest.mark.parametrize('end', [2, 7])
def test_the_end_token_of_a_public_clip_comes_back(end, tmp_path):
    """transformers pools at it, and for the 2 of old files at the token of the highest number."""
    config = transformers.CLIPTextConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30,
        max_position_embeddings=9, bos_token_id=1, eos_token_id=end,
    )  # fmt: skip
    model = shaken(transformers.CLIPTextModel(config))
    model.save_pretrained(tmp_path / 'public')
    notes = to_huggingface.write(load.open(tmp_path / 'public').exported(), tmp_path / 'hf')
    assert not [note for note in notes if 'end token' in note]
    again = transformers.CLIPTextModel.from_pretrained(tmp_path / 'hf').eval()
    ids = torch.tensor([[1, 20, 12, 7, 7, 7, 3, 3, 3], [1, 29, 7, 5, 5, 5, 5, 5, 5]])
    with torch.no_grad():
        a, b = model(ids).pooler_output, again(ids).pooler_output
    np.testing.assert_allclose(b, a, atol=1e-5)


def pair_of(family: str) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    towers = dict(cxr=dict(SIZES, family=family), report=dict(TEXT, family=family))
    heads = dict(a=(dict(head='linear', out=6), 16), b=(dict(head='linear', out=6), 16))
    if family == 'siglip':
        heads = dict(b=(dict(head='linear', out=16, bias=True), 16))
    text = dict(tower='report', head='b', length=9, sections=['findings'])
    sides = dict(image=dict(tower='cxr', head='a' if family == 'clip' else None), text=text)
    return towers, heads, [dict(term='pair', temperature=0.05, **sides)]


@pytest.mark.parametrize('family', ['clip', 'siglip'])
def test_transformers_opens_a_pair(family, tmp_path):
    """One model of both towers with their projections; the names of the export come back."""
    towers, heads, pairs = pair_of(family)
    source, tree = exported(tmp_path, towers, heads, pairs=pairs, encoder='cxr')
    to_huggingface.write(load.open(source), tmp_path / 'hf')
    model, info = transformers.AutoModel.from_pretrained(tmp_path / 'hf', output_loading_info=True)
    assert not info['missing_keys'] and type(model).__name__ == dict(clip='CLIPModel', siglip='SiglipModel')[family]
    assert float(model.logit_scale.exp().reshape(-1)[0]) == pytest.approx(20.0, rel=1e-5)
    x, ids = pictures(12, 12), texts()
    with torch.no_grad():
        image = model.eval().get_image_features(torch_images(x))
        text = model.get_text_features(torch.from_numpy(ids).long())
    for name, side, got, expected in (
        ('a', 'cxr', ours(towers['cxr'], tree['towers']['cxr'], x)[0], image),
        ('b', 'report', our_text(towers['report'], tree['towers']['report'], ids)[0], text),
    ):
        if name in heads:
            got = build.head(heads[name][0], 16, side).apply(tree['heads'][name], got)
        compare((got,), (expected if isinstance(expected, torch.Tensor) else expected.pooler_output,))
    unchanged(tmp_path / 'hf', tree, source)


def test_a_pair_without_a_class_becomes_two_folders(tmp_path):
    towers = dict(image=TOWERS['vit'], text=dict(TEXT, family='bert'))
    heads = dict(vi=(dict(head='linear', out=6), 16), vt=(dict(head='mlp', out=6, hidden=8, activation='gelu'), 16))
    text = dict(tower='text', head='vt', length=9, sections=['findings'])
    pairs = [dict(term='pair', temperature=0.1, image=dict(tower='image', head='vi'), text=text)]
    source, tree = exported(tmp_path, towers, heads, pairs=pairs)
    notes = to_huggingface.write(load.open(source), tmp_path / 'hf')
    assert any('heads.safetensors holds the heads' in note for note in notes)
    for name in towers:
        model = transformers.AutoModel.from_pretrained(tmp_path / 'hf' / name)
        assert type(model).__name__ == dict(image='ViTModel', text='BertModel')[name]
        params, meta = load.as_export(tmp_path / 'hf' / name)
        jax.tree.map(np.testing.assert_array_equal, params['towers'][name], tree['towers'][name])
        assert meta['towers'] == {name: towers[name]}
    assert not (tmp_path / 'hf' / 'config.json').exists()


# Meta's names.


@pytest.mark.parametrize('kind', ['dinov2', 'registers', 'swiglu', 'mae', 'dinov3', 'dinov3 gated', 'wide'])
def test_names_of_meta_come_back(kind, tmp_path):
    section = TOWERS[kind]
    heads = {name: (dict(head='dino_head', prototypes=8, hidden=16, bottleneck=4), 16) for name in ('dino', 'ibot')}
    source, tree = exported(tmp_path, dict(image=section), heads)
    assert to_meta.write(load.open(source), tmp_path / 'meta') == []
    state = arrays.of_safetensors([tmp_path / 'meta' / 'model.safetensors'])
    prefix = {'cls_token', 'mask_token', 'patch_embed.proj.weight', 'blocks.0.attn.qkv.weight', 'norm.weight'}
    more = {'blocks.0.attn.qkv.bias_mask', 'rope_embed.periods'} if 'dinov3' in kind else {'pos_embed'}
    assert prefix | more <= set(state)
    params, _ = load.as_export(tmp_path / 'meta')
    jax.tree.map(np.testing.assert_array_equal, params['towers'], tree['towers'])
    jax.tree.map(np.testing.assert_array_equal, params['heads'], tree['heads'])
    config = json.loads((tmp_path / 'meta' / 'config.json').read_text())
    assert set(config) == {'medjax'}


# What cannot be written.


@pytest.mark.parametrize(
    ('writer', 'section', 'words'),
    [
        (to_huggingface, TOWERS['wide'], 'its positions have a square grid, and these are for 12 x 8 pixels'),
        (to_huggingface, dict(SIZES, mlp_ratio=2.5), 'a whole number of times as wide as the tower, not 40 wide'),
        (to_huggingface, dict(SIZES, family='siglip', registers=2), 'its SigLIP has no registers'),
        (to_huggingface, TOWERS['ijepa'], 'its ViTs without a CLS token pool by attention'),
        (to_timm, TOWERS['resnet'], 'its stem has 64 channels'),
        (to_timm, dict(SIZES, eps=1e-3), 'its norms have eps=1e-06, and those of this tower 0.001'),
        (to_huggingface, dict(SIZES, key_bias=False), 'only its rotary ViT has keys without bias'),
        (to_timm, dict(SIZES, family='dinov3', positions='learned', eps=1e-6), 'only its rotary ViT has keys'),
        (to_meta, dict(SIZES, key_bias=False), 'its ViT with a table of positions has keys with bias'),
        (to_meta, dict(SIZES, positions='rope'), 'its rotary ViT has keys without bias'),
        (to_huggingface, dict(TEXT, pool='attention'), 'its text towers have no pooling by attention'),
        (to_timm, dict(TEXT), 'timm has image models'),
        (to_meta, dict(TEXT), 'its names are those of a ViT'),
        (to_meta, dict(SIZES, family='clip'), "it is no ViT of DINOv2's or DINOv3's kind"),
    ],
    ids=str,
)
def test_towers_that_a_layout_cannot_hold(writer, section, words, tmp_path):
    name = 'text' if section['tower'] == 'text' else 'image'
    source, _ = exported(tmp_path, {name: section})
    with pytest.raises(UserError, match=words):
        writer.write(load.open(source), tmp_path / 'out')


def test_an_encoder_goes_out_and_comes_back(tmp_path):
    """A grey encoder of the kind of configs/demo.py: the folder of transformers gives medjax the same features."""
    section = TOWERS['demo']
    source, _ = exported(tmp_path, dict(image=section), channels=1)
    to_huggingface.write(load.open(source), tmp_path / 'demo-hf')
    image = np.random.default_rng(0).integers(0, 255, (20, 14), np.uint8)
    first, second = (encode.load(folder) for folder in (source, tmp_path / 'demo-hf'))
    assert (first.name, second.name) == (300, 'demo-hf')
    for name, expected in first.encode([image]).items():
        np.testing.assert_array_equal(second.encode([image])[name], expected)
