"""Exports in the names of Meta's code: a backbone of DINOv2 or DINOv3, and the heads of DINO and iBOT beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from medjax.models.towers.vit import VitTower
from medjax.weights import layouts_out as out
from medjax.weights.base import ExportWeights
from medjax.weights.families import dino_head, vit

NAME = "Meta's code"


def write(weights: ExportWeights, folder: Path) -> list[str]:
    """model.safetensors, the backbone; dino_head.safetensors and ibot_head.safetensors; returns notes for the user."""
    towers, heads = out.modules(weights, 'towers'), out.modules(weights, 'heads')
    backbones = {name: module for name, module in towers.items() if isinstance(module.tower, VitTower)}
    notes = [
        f"the tower {name!r} is left out: Meta's names are those of a ViT" for name in towers if name not in backbones
    ]
    if len(backbones) != 1:
        if not backbones:
            raise out.refuse(out.first(towers.values()), NAME, 'its names are those of a ViT')
        raise out.refuse(out.first(backbones.values()), NAME, f'the export has {len(backbones)} ViTs')
    ((_, module),) = backbones.items()
    net = module.tower.module
    if not net.family.cls or net.family.embed_norm or net.family.activation != 'gelu':
        raise out.refuse(module, NAME, "it is no ViT of DINOv2's or DINOv3's kind (CLS token, exact GELU)")
    rope = net.family.positions == 'rope'
    if net.qkv_bias and rope == net.family.key_bias:
        kind = (
            'its rotary ViT has keys without bias' if rope else 'its ViT with a table of positions has keys with bias'
        )
        raise out.refuse(module, NAME, kind)
    params = out.with_fixed_positions(module.params, module.tower)
    state = out.arrays(vit.META_DINOV3 if rope else vit.META_DINOV2, params)
    if rope:
        quarter = net.width // net.heads // 4
        rates = net.rotary.base ** (2 * np.arange(quarter, dtype=np.float32) / (2 * quarter))
        state['rope_embed.periods'] = rates.astype(np.float32)
    out.write(folder, dict(medjax=out.about(weights)), state)
    for name, head in heads.items():
        if head.section.get('head') == 'dino_head' and name in ('dino', 'ibot'):
            save_file(out.arrays(dino_head.table(f'{name}_head.'), head.params), folder / f'{name}_head.safetensors')
        else:
            notes.append(f"the head {name!r} is left out: Meta's code has heads of DINO and iBOT")
    return notes
