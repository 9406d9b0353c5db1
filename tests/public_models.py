"""Small random models of the original classes (transformers, timm, torchvision), saved as they are published."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

WIDTH = 16
SIZES = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
IMAGE = dict(SIZES, image_size=12, patch_size=4)
TEXT = dict(SIZES, vocab_size=30, max_position_embeddings=9, bos_token_id=1, eos_token_id=29)
TIMM = dict(embed_dim=WIDTH, depth=2, num_heads=2, patch_size=4, img_size=12)


@dataclasses.dataclass(frozen=True)
class Public:
    """A family of public models.

    make      makes the model
    save      (model, folder): writes the folder as it is published
    features  (model, images [B,C,H,W]) -> cls [B,D], patches [B,N,D], as torch tensors
    """

    make: Callable[[], Any]
    save: Callable[[Any, Path], None]
    features: Callable[[Any, Any], tuple[Any, Any]]
    stride: int = 4
    sizes: tuple[tuple[int, int], ...] = ((12, 12), (16, 8))


def shaken(model: Any) -> Any:
    """The model with random weights far from zero, because errors in weights near zero would stay hidden."""
    import torch

    torch.backends.mkldnn.enabled = False  # some of its convolutions write out of bounds: torch 2.13.0 aborts
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.25 * noise + (0.5 if parameter.ndim == 1 else 0)
    for name, buffer in model.named_buffers():
        if 'running' in name:
            buffer.data = torch.rand(buffer.shape, generator=generator) + 0.5
    return model.eval()


def numpy_state(model: Any) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(x.detach().numpy()) for name, x in model.state_dict().items()}


def transformers_model(config: str, model: str, **sizes: Any) -> Callable[[], Any]:
    def make() -> Any:
        transformers = pytest.importorskip('transformers')
        return getattr(transformers, model)(getattr(transformers, config)(**sizes))

    return make


def timm_model(name: str, **sizes: Any) -> Callable[[], Any]:
    def make() -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # torchvision says that it found no libjpeg
            timm = pytest.importorskip('timm')
        return timm.create_model(name, **sizes)

    return make


def save_pretrained(model: Any, folder: Path) -> None:
    model.save_pretrained(folder)


def save_alone(model: Any, folder: Path) -> None:
    folder.mkdir(parents=True)
    save_file(numpy_state(model), folder / 'weights.safetensors')


def save_timm(**args: Any) -> Callable[[Any, Path], None]:
    """Saves a model of timm with the config.json of its hub."""

    def save(model: Any, folder: Path) -> None:
        folder.mkdir(parents=True)
        save_file(numpy_state(model), folder / 'model.safetensors')
        cfg = {name: model.pretrained_cfg[name] for name in ('mean', 'std', 'crop_pct', 'interpolation')}
        cfg['input_size'] = [3, 12, 12]
        config = dict(architecture=model.pretrained_cfg['architecture'], model_args=args, pretrained_cfg=cfg)
        (folder / 'config.json').write_text(json.dumps(config))

    return save


def last_hidden(registers: int = 0) -> Callable[[Any, Any], tuple[Any, Any]]:
    def features(model: Any, x: Any) -> tuple[Any, Any]:
        tokens = model(x).last_hidden_state
        return tokens[:, 0], tokens[:, 1 + registers :]

    return features


def interpolated(model: Any, x: Any) -> tuple[Any, Any]:
    tokens = model(x, interpolate_pos_encoding=True).last_hidden_state
    return tokens[:, 0], tokens[:, 1:]


def unmasked(model: Any, x: Any) -> tuple[Any, Any]:
    """A masked autoencoder of transformers that masks nothing and keeps the order of patches."""
    import torch

    patches = x.shape[2] // 4 * (x.shape[3] // 4)
    order = torch.arange(patches).float().expand(len(x), -1)
    tokens = model(x, noise=order, interpolate_pos_encoding=True).last_hidden_state
    return tokens[:, 0], tokens[:, 1:]


def pooled(model: Any, x: Any) -> tuple[Any, Any]:
    """CLIP and SigLIP: the pooled output, and the last hidden state after the last norm."""
    out = model(x, interpolate_pos_encoding=True)
    hidden = out.last_hidden_state
    if hasattr(model, 'vision_model'):
        model = model.vision_model
    if hasattr(model, 'pre_layrnorm'):
        return out.pooler_output, model.post_layernorm(hidden)[:, 1:]
    return out.pooler_output, hidden


def of_timm(model: Any, x: Any) -> tuple[Any, Any]:
    tokens = model.forward_features(x)
    if getattr(model, 'attn_pool', None) is not None or model.num_prefix_tokens == 0:
        return model.forward_head(tokens, pre_logits=True), tokens
    return tokens[:, 0], tokens[:, model.num_prefix_tokens :]


def of_resnet(model: Any, x: Any) -> tuple[Any, Any]:
    import torch

    if hasattr(model, 'embedder'):
        maps = model(x).last_hidden_state
    else:
        stem = model.maxpool(model.relu(model.bn1(model.conv1(x))) if hasattr(model, 'relu') else model.act1(
            model.bn1(model.conv1(x))))  # fmt: skip
        maps = model.layer4(model.layer3(model.layer2(model.layer1(stem))))
    patches = torch.flatten(maps, 2).transpose(1, 2)
    return patches.mean(1), patches


def of_convnext(model: Any, x: Any) -> tuple[Any, Any]:
    """The norm of the mean, and the norm of every place of the last map."""
    maps, norm = (
        (model.forward_features(x), model.head.norm)
        if hasattr(model, 'stem')
        else (model.features(x), model.classifier[0])
    )
    patches = norm(maps).flatten(2).transpose(1, 2)
    return norm(maps.mean((2, 3), keepdim=True)).flatten(1), patches


def _timm(name: str, **args: Any) -> Public:
    sizes = TIMM | args
    return Public(timm_model(name, **sizes, dynamic_img_size=True), save_timm(**sizes), of_timm)


CONVNEXT = dict(depths=(2, 1, 1, 1), dims=(8, 16, 24, 32))


FAMILIES: dict[str, Public] = {
    'dinov2': Public(
        transformers_model('Dinov2Config', 'Dinov2Model', **IMAGE), save_pretrained, last_hidden()),
    'dinov2 registers': Public(
        transformers_model('Dinov2WithRegistersConfig', 'Dinov2WithRegistersModel', **IMAGE, num_register_tokens=3),
        save_pretrained, last_hidden(3)),
    'dinov2 swiglu': Public(
        transformers_model('Dinov2Config', 'Dinov2Model', **IMAGE, use_swiglu_ffn=True), save_pretrained,
        last_hidden()),
    'dinov3': Public(
        transformers_model('DINOv3ViTConfig', 'DINOv3ViTModel', **IMAGE, num_register_tokens=2), save_pretrained,
        last_hidden(2)),
    'dinov3 gated': Public(
        transformers_model('DINOv3ViTConfig', 'DINOv3ViTModel', **IMAGE, num_register_tokens=2, use_gated_mlp=True,
                           hidden_act='silu'), save_pretrained, last_hidden(2)),
    'vit': Public(transformers_model('ViTConfig', 'ViTModel', **IMAGE), save_pretrained, interpolated),
    'mae': Public(
        transformers_model('ViTMAEConfig', 'ViTMAEModel', **IMAGE, mask_ratio=0.0), save_pretrained, unmasked),
    'clip': Public(transformers_model('CLIPVisionConfig', 'CLIPVisionModel', **IMAGE), save_pretrained, pooled),
    'siglip': Public(
        transformers_model('SiglipVisionConfig', 'SiglipVisionModel', **IMAGE), save_pretrained, pooled),
    'resnet': Public(
        transformers_model('ResNetConfig', 'ResNetModel', embedding_size=8, hidden_sizes=[32, 64, 128, 256],
                           depths=[2, 1, 1, 1]), save_pretrained, of_resnet, 32, ((64, 64), (96, 32))),
    'resnet basic': Public(
        transformers_model('ResNetConfig', 'ResNetModel', embedding_size=8, hidden_sizes=[8, 16, 32, 64],
                           depths=[2, 2, 2, 2], layer_type='basic'), save_pretrained, of_resnet, 32, ((64, 64),)),
    'timm vit': _timm('vit_base_patch16_224'),
    'timm dinov2': _timm('vit_base_patch14_dinov2'),
    'timm dinov2 registers': _timm('vit_base_patch14_reg4_dinov2'),
    'timm siglip': _timm('vit_base_patch16_siglip_224'),
    'timm siglip tanh': _timm('vit_so400m_patch16_siglip_256', mlp_ratio=2.0),
    'timm clip': _timm('vit_base_patch16_clip_quickgelu_224'),
    'timm dinov3': _timm('vit_base_patch16_dinov3'),
    'timm dinov3 bias': _timm('vit_base_patch16_dinov3_qkvb'),
    'timm dinov3 gated': _timm('vit_huge_plus_patch16_dinov3'),
    'timm resnet': Public(timm_model('resnet18'), save_timm(), of_resnet, 32, ((64, 64),)),
    'timm convnext': Public(
        timm_model('convnext_tiny', **CONVNEXT), save_timm(**CONVNEXT), of_convnext, 32, ((64, 64), (70, 96))),
    'torchvision convnext': Public(
        lambda: pytest.importorskip('torchvision').models.convnext_tiny(), save_alone, of_convnext, 32, ((64, 64),)),
    'torchvision resnet': Public(
        lambda: pytest.importorskip('torchvision').models.resnet50(),
        save_alone, of_resnet, 32, ((64, 64),)),
}  # fmt: skip
