"""Image and text towers of one file: CLIP, SigLIP and BiomedCLIP in the names of open_clip and of Hugging Face."""

from __future__ import annotations

import json
import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from programs import run
from public_models import IMAGE, SIZES, TEXT, TIMM, WIDTH, numpy_state, shaken, timm_model
from safetensors.numpy import save_file

from medjax.models import build
from medjax.types import Input, View
from medjax.weights import export, load

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

LENGTH, VOCABULARY, OUT = 9, 30, 6
TEXT_CFG = dict(context_length=LENGTH, vocab_size=VOCABULARY, width=WIDTH, heads=2, layers=2)


def open_clip() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return pytest.importorskip('open_clip')


class Visual(torch.nn.Module):
    """open_clip's TimmModel: a trunk of timm and a projection."""

    def __init__(self, trunk: Any, out: int | None):
        super().__init__()
        self.trunk = trunk
        layers = OrderedDict(proj=torch.nn.Linear(WIDTH, out, bias=False)) if out else OrderedDict()
        self.head = torch.nn.Sequential(layers)

    def forward(self, x: Any) -> Any:
        return self.head(self.trunk(x))


class Pair(torch.nn.Module):
    """open_clip's CustomTextCLIP."""

    def __init__(self, visual: Any, text: Any):
        super().__init__()
        self.visual, self.text = visual, text
        self.logit_scale = torch.nn.Parameter(torch.tensor(2.0))

    def encode_image(self, x: Any) -> Any:
        return self.visual(x)

    def encode_text(self, ids: Any) -> Any:
        return self.text(ids)


def clip(quick_gelu: bool) -> tuple[Any, dict[str, Any]]:
    models = open_clip().model
    vision = dict(layers=2, width=WIDTH, head_width=8, patch_size=4, image_size=12)
    arguments = OUT, models.CLIPVisionCfg(**vision), models.CLIPTextCfg(**TEXT_CFG)
    model = models.CLIP(*arguments, quick_gelu=quick_gelu)
    return model, dict(embed_dim=OUT, vision_cfg=vision, text_cfg=TEXT_CFG, quick_gelu=quick_gelu)


def siglip() -> tuple[Any, dict[str, Any]]:
    """A ViT of timm with attention pooling, and open_clip's text tower, which reads padding too."""
    options = dict(no_causal_mask=True, proj_bias=True, pool_type='last')
    act, norm = dict(approximate='tanh'), dict(eps=1e-6)
    kinds = open_clip().transformer
    text = kinds.TextTransformer(
        **TEXT_CFG, output_dim=WIDTH, **options,
        act_layer=lambda: torch.nn.GELU(**act), norm_layer=lambda d: kinds.LayerNorm(d, **norm),
    )  # fmt: skip
    trunk = timm_model('vit_base_patch16_siglip_224', **TIMM, num_classes=0)()
    cfg = dict(timm_model_name='vit_base_patch16_siglip_224', timm_pool='map', timm_proj='none', image_size=12)
    text_cfg = TEXT_CFG | options | dict(act_kwargs=act, norm_kwargs=norm)
    return Pair(Visual(trunk, None), text), dict(embed_dim=WIDTH, vision_cfg=cfg, text_cfg=text_cfg)


def biomedclip() -> tuple[Any, dict[str, Any]]:
    """A ViT of timm and a BERT with a projection of two layers, as BiomedCLIP's file."""
    config = transformers.BertConfig(**TEXT)
    text = open_clip().hf_model.HFTextEncoder(
        '', OUT, config=config, pooler_type='cls_last_hidden_state_pooler', proj_type='mlp', pretrained=False
    )
    trunk = timm_model('vit_base_patch16_224', **TIMM, num_classes=0)()
    vision = dict(timm_model_name='vit_base_patch16_224', timm_pool='', timm_proj='linear', image_size=12)
    about = dict(hf_model_name='microsoft/BiomedNLP', proj='mlp', context_length=LENGTH)
    return Pair(Visual(trunk, OUT), text), dict(embed_dim=OUT, vision_cfg=vision, text_cfg=about)


OPEN_CLIP = {
    'clip': lambda: clip(True),
    'clip with gelu': lambda: clip(False),
    'siglip': siglip,
    'biomedclip': biomedclip,
}


@pytest.mark.parametrize('kind', OPEN_CLIP)
def test_files_of_open_clip(kind, tmp_path):
    model, cfg = OPEN_CLIP[kind]()
    model = shaken(model)
    save_file(numpy_state(model), tmp_path / 'open_clip_model.safetensors')
    preprocess = dict(
        mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], resize_mode='squash' if kind == 'siglip' else 'shortest'
    )
    config = dict(model_cfg=cfg, preprocess_cfg=preprocess)
    if kind in ('siglip', 'biomedclip'):  # the widths of timm's small trunk are in no open_clip_config.json
        cfg['vision_cfg'] = {name: value for name, value in cfg['vision_cfg'].items() if name != 'width'}
    (tmp_path / 'open_clip_config.json').write_text(json.dumps(config))
    heads = 2 if kind in ('siglip', 'biomedclip') else None
    weights = load.open(tmp_path)
    image, text = (weights.section(f'towers/{name}', heads) for name in ('image', 'text'))
    params = {module: export.unflatten(weights.flat(module, heads)) for module in weights.modules}
    same_embeddings(model, image, text, params, weights, heads)
    if heads is None:
        _, meta = weights.as_export()
        assert meta['image'] == dict(channels=3, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], fit='crop')
        assert meta['size'] == 12 and meta['pairs'][0]['temperature'] == pytest.approx(
            np.exp(-float(model.logit_scale))
        )


@pytest.mark.parametrize('kind', ['CLIP', 'Siglip'])
def test_folders_of_transformers(kind, tmp_path):
    sides = dict(text_config=TEXT, vision_config=IMAGE)
    others = dict(projection_dim=OUT) if kind == 'CLIP' else {}
    config = getattr(transformers, f'{kind}Config')(**sides, **others)
    model = shaken(getattr(transformers, f'{kind}Model')(config))
    model.save_pretrained(tmp_path)
    processor = dict(do_normalize=True, image_mean=[0.5] * 3, image_std=[0.25] * 3, size=dict(height=12, width=12))
    (tmp_path / 'preprocessor_config.json').write_text(json.dumps(processor))
    model.encode_image = lambda x: as_tensor(model.get_image_features(x))
    model.encode_text = lambda ids: as_tensor(model.get_text_features(ids))
    weights = load.open(tmp_path)
    tree, meta = weights.as_export()
    params = {f'{kind}/{name}': one for kind, group in tree.items() for name, one in group.items()}
    same_embeddings(model, meta['towers']['image'], meta['towers']['text'], params, weights, None)
    assert meta['image'] == dict(channels=3, mean=0.5, std=0.25, fit='stretch') and meta['size'] == 12
    assert SIZES['hidden_size'] == meta['towers']['text']['width']


def as_tensor(out: Any) -> Any:
    return out if isinstance(out, torch.Tensor) else out.pooler_output


def same_embeddings(model: Any, image: Any, text: Any, params: Any, weights: Any, heads: int | None) -> None:
    """Compares the embeddings of images and of texts that fill the context."""
    x = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    ids = np.random.default_rng(1).integers(2, 29, (2, LENGTH)).astype(np.int32)
    ids[:, -1] = VOCABULARY - 1  # the end of a text has the largest number
    rows, present = np.arange(2, dtype=np.uint32), np.ones((2, 1), bool)
    with torch.no_grad():
        expected = dict(
            image=model.encode_image(torch.from_numpy(x).permute(0, 3, 1, 2)),
            text=model.encode_text(torch.from_numpy(ids).long()),
        )
    inputs = dict(
        image=View(x[:, None, None], rows, present, None, {}), text=View(ids[:, None], rows, present, None, {})
    )
    for name, section in dict(image=image, text=text).items():
        tower = build.tower(section, 3, name)
        got = run(tower.apply, params[f'towers/{name}'], Input(inputs[name]))['cls']
        if f'heads/{name}' in params:
            head = build.head(weights.section(f'heads/{name}', heads), tower.width, name)
            got = head.apply(params[f'heads/{name}'], got)
        np.testing.assert_allclose(got[:, 0], expected[name], atol=2e-5 * float(expected[name].abs().max()))
