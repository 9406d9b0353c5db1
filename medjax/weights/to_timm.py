"""Exports as folders that timm opens: timm.create_model('local-dir:FOLDER'), or the same on Hugging Face's hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medjax.models.towers.resnet import ResnetTower
from medjax.models.towers.vit import VitTower
from medjax.weights import layouts_out as out
from medjax.weights.base import ExportWeights
from medjax.weights.families import resnet, vit
from medjax.weights.layouts_out import Module
from medjax.weights.names import Table

NAME = 'timm'


def write(weights: ExportWeights, folder: Path) -> list[str]:
    """config.json and model.safetensors; returns notes for the user."""
    towers = out.modules(weights, 'towers')
    known = {name: m for name, m in towers.items() if isinstance(m.tower, VitTower | ResnetTower)}
    notes = [f'the tower {name!r} is left out: timm has image models' for name in towers if name not in known]
    if len(known) != 1:
        why = (
            'timm has image models' if not known else f'a folder of timm is one model, and the export has {len(known)}'
        )
        raise out.refuse(out.first((known or towers).values()), NAME, why)
    (module,) = known.values()
    architecture, args, table, params = _vit(module) if isinstance(module.tower, VitTower) else _resnet(module)
    image, size = weights.meta['image'], int(weights.meta['size'])
    channels = image['channels']
    cfg = dict(
        num_classes=0,
        input_size=[channels, size, size],
        mean=out.per_channel(image['mean'], channels),
        std=out.per_channel(image['std'], channels),
        interpolation='bicubic',
        crop_pct=1 / image.get('zoom', 1),
        crop_mode=dict(crop='center', stretch='squash', pad='border')[image.get('fit', 'crop')],
        fixed_input_size=False,
        first_conv='conv1' if isinstance(module.tower, ResnetTower) else 'patch_embed.proj',
        classifier='fc' if isinstance(module.tower, ResnetTower) else 'head',
    )
    args |= dict(num_classes=0, in_chans=channels)
    config = dict(architecture=architecture, num_classes=0, model_args=args, pretrained_cfg=cfg)
    out.write(folder, config | dict(medjax=out.about(weights)), out.arrays(table, params))
    if heads := out.modules(weights, 'heads'):
        notes.append(f'timm has no place for the heads {", ".join(heads)}')
    return notes


def _vit(module: Module) -> tuple[str, dict[str, Any], Table, Mapping[str, np.ndarray]]:
    tower = module.tower
    assert isinstance(tower, VitTower)
    net, family = tower.module, tower.module.family
    args: dict[str, Any] = dict(
        patch_size=net.patch,
        embed_dim=net.width,
        depth=net.depth,
        num_heads=net.heads,
        img_size=out.image_size(tower),
        dynamic_img_size=True,
    )
    params = out.without_mask_token(out.with_fixed_positions(module.params, tower))
    gated = net.ffn == 'swiglu'
    args['mlp_ratio'] = (
        net.hidden / net.width if not gated or family.positions == 'rope' else 2 * net.hidden / net.width
    )
    act = {'gelu': 'gelu', 'quick_gelu': 'quick_gelu', 'gelu_tanh': 'gelu_tanh'}[family.activation]
    if family.positions == 'rope':
        return _dinov3(module, args, params)
    if net.qkv_bias and not family.key_bias:
        raise out.refuse(module, NAME, 'only its rotary ViT has keys without bias')
    base = 1e-5 if family.embed_norm else 1e-6
    if abs(family.eps - base) > 1.01e-6:
        raise out.refuse(module, NAME, f'its norms have eps={base:g}, and those of this tower {family.eps:g}')
    if not net.qkv_bias:
        args['qkv_bias'] = False
    if not family.cls and family.pool == 'mean':
        if net.registers or gated or family.layerscale is not None:
            raise out.refuse(module, NAME, 'its I-JEPA has no registers, no SwiGLU and no LayerScale')
        args |= dict(act_layer=act) if act != 'gelu' else {}
        return 'vit_base_patch16_gap_224', args, vit.TIMM_IJEPA, params
    if not family.cls:
        if net.registers or gated or family.layerscale is not None:
            raise out.refuse(module, NAME, 'its SigLIP has no registers, no SwiGLU and no LayerScale')
        args |= dict(act_layer=act) if act != 'gelu' else {}
        return 'vit_base_patch16_siglip_224', args, vit.TIMM_SIGLIP, params
    if family.embed_norm:
        if net.registers or gated or family.layerscale is not None:
            raise out.refuse(module, NAME, 'its CLIP has no registers, no SwiGLU and no LayerScale')
        name = 'vit_base_patch16_clip_quickgelu_224' if act == 'quick_gelu' else 'vit_base_patch16_clip_224'
        args |= dict(act_layer=act) if act == 'gelu_tanh' else {}
        return name, args, vit.TIMM_CLIP, params
    args |= dict(act_layer=act) if act != 'gelu' and not gated else {}
    args['init_values'] = family.layerscale
    if family.layerscale is None and (net.registers or gated):
        params, args['init_values'] = out.with_unit_layerscale(params, tower), 1.0
    if net.registers:
        args |= dict(reg_tokens=net.registers, no_embed_class=True)
        if gated:
            return 'vit_giant_patch14_reg4_dinov2', args, vit.TIMM_REGISTERS_SWIGLU, params
        return 'vit_base_patch14_reg4_dinov2', args, vit.TIMM_REGISTERS, params
    if gated:
        return 'vit_giant_patch14_dinov2', args, vit.TIMM_SWIGLU, params
    if family.layerscale is None:
        args.pop('init_values')
        return 'vit_base_patch16_224', args, vit.TIMM, params
    return 'vit_base_patch14_dinov2', args, vit.TIMM, params


def _dinov3(
    module: Module, args: dict[str, Any], params: Mapping[str, np.ndarray]
) -> tuple[str, dict[str, Any], Table, Mapping[str, np.ndarray]]:
    net: Any = module.tower.module
    if net.family.layerscale is None or net.family.key_bias or not net.family.cls or abs(net.family.eps - 1e-5) > 1e-6:
        raise out.refuse(
            module, NAME, 'its DINOv3 has LayerScale, a CLS token, keys without bias and norms with eps=1e-5'
        )
    if net.rotary.base != 100:
        args['rope_temperature'] = net.rotary.base
    args['num_reg_tokens'] = net.registers
    if net.ffn == 'swiglu':
        args['qkv_bias'] = net.qkv_bias
        return 'vit_huge_plus_patch16_dinov3', args, (*vit.TIMM_DINOV3, *vit.TIMM_GATED), params
    name = 'vit_base_patch16_dinov3_qkvb' if net.qkv_bias else 'vit_base_patch16_dinov3'
    return name, args, (*vit.TIMM_DINOV3, *vit.MLP), params


def _resnet(module: Module) -> tuple[str, dict[str, Any], Table, Mapping[str, np.ndarray]]:
    net: Any = module.tower.module
    if net.stem != 64 or len(net.depths) != resnet.STAGES:
        raise out.refuse(module, NAME, f'its stem has 64 channels and it has {resnet.STAGES} stages')
    if net.widths != (64, 128, 256, 512):
        raise out.refuse(
            module, NAME, f'its stages have the widths 64, 128, 256 and 512, and here they have {net.widths}'
        )
    names = {(2, 2, 2, 2): 'resnet18', (3, 4, 6, 3): 'resnet34'} if net.expansion == 1 else {}
    names |= {(3, 4, 6, 3): 'resnet50', (3, 4, 23, 3): 'resnet101'} if net.expansion > 1 else {}
    name = names.get(tuple(net.depths), 'resnet50' if net.expansion > 1 else 'resnet18')
    args = {} if tuple(net.depths) in names else dict(layers=list(net.depths))
    return name, args, resnet.torchvision(), module.params
