"""Exports as folders that `transformers` opens: config.json, preprocessor_config.json, model.safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from medjax.errors import UserError
from medjax.models.towers.vit import VitTower
from medjax.weights import layouts_out as out
from medjax.weights.base import ExportWeights
from medjax.weights.configs import ACTIVATIONS
from medjax.weights.families import resnet, text, vit
from medjax.weights.layouts_out import Module
from medjax.weights.names import Table, linear

NAME = 'transformers'
THEIRS = dict(gelu='gelu', quick_gelu='quick_gelu', gelu_tanh='gelu_pytorch_tanh')
assert set(THEIRS) == set(ACTIVATIONS.values())


def write(weights: ExportWeights, folder: Path) -> list[str]:
    """Writes the folder; returns notes for the user.

    One image tower, or one text tower, is one model. CLIP's and SigLIP's pairs are one model of both. Other pairs, such
    as a ViT with a BERT, become the folders image/ and text/, and heads.safetensors holds their projections.
    """
    towers, heads = out.modules(weights, 'towers'), out.modules(weights, 'heads')
    known = {name: module for name, module in towers.items() if out.kinds(module.tower)}
    notes = [
        f'the tower {name!r} is left out: transformers has no class for it' for name in towers if name not in known
    ]
    if not known:
        raise out.refuse(out.first(towers.values()), NAME, 'it has no class for such a tower')
    pair = _pair(weights, known, heads)
    if pair is not None:
        config, state, told = pair
        out.write(folder, config | dict(medjax=out.about(weights)), state)
        return notes + told + _beside(weights, folder, known)
    alone = len(known) == 1
    for name, module in known.items():
        place = folder if alone else folder / name
        config, state, told = _tower(module)
        config, guessed = _with_end(weights, config)
        told = told + guessed
        out.write(place, config | dict(medjax=_about_one(weights, name)), state)
        notes += told + _beside(weights, place, {name: module})
    if heads:
        kept = {f'heads/{name}/{path}': array for name, head in heads.items() for path, array in head.params.items()}
        save_file({name: np.ascontiguousarray(array) for name, array in kept.items()}, folder / 'heads.safetensors')
        notes.append('heads.safetensors holds the heads in the names of medjax')
    return notes


def _about_one(weights: ExportWeights, name: str) -> dict[str, Any]:
    """The entry `medjax` of a folder with one tower."""
    about = out.about(weights)
    if len(about['towers']) == 1:
        return about
    # nothing else says which tower it is: pairs, classifiers and their heads are left out
    return about | dict(pairs=[], classifiers=[], towers={name: about['towers'][name]}, heads={}, encoder=name)


def _beside(weights: ExportWeights, folder: Path, towers: Mapping[str, Module]) -> list[str]:
    """preprocessor_config.json and the tokenizer, for the towers that need them."""
    sees = {out.kinds(module.tower) for module in towers.values()}
    notes: list[str] = []
    if sees & {'vit', 'resnet'}:
        config, notes = out.preprocessor(weights)
        (folder / 'preprocessor_config.json').write_text(json.dumps(config, indent=1))
    if 'text' in sees:
        out.copy_tokenizer(weights, folder)
    return notes


def _tower(module: Module) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]]:
    """config.json, arrays and notes of a model of one tower."""
    kind = out.kinds(module.tower)
    config, table, params, notes = dict(vit=_vit, text=_text, resnet=_resnet)[kind](module)
    state = out.arrays(table, params)
    return config, state | _counters(state), notes


def _counters(state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The counters of batch norms, which torch expects in a file beside their running statistics."""
    means = [name for name in state if name.endswith('running_mean')]
    return {name.replace('running_mean', 'num_batches_tracked'): np.zeros((), np.int64) for name in means}


def _vit(module: Module) -> tuple[dict[str, Any], Table, Mapping[str, np.ndarray], list[str]]:
    tower = module.tower
    assert isinstance(tower, VitTower)
    net, family = tower.module, tower.module.family
    height, width = (side * net.patch for side in net.native)
    config: dict[str, Any] = dict(
        hidden_size=net.width,
        num_hidden_layers=net.depth,
        num_attention_heads=net.heads,
        intermediate_size=net.hidden,
        image_size=out.image_size(tower),
        patch_size=net.patch,
        num_channels=net.channels,
        hidden_act=THEIRS.get(family.activation),
        layer_norm_eps=family.eps,
        dtype='float32',
    )
    if config['hidden_act'] is None:
        raise out.refuse(module, NAME, f'it knows no activation {family.activation!r}')
    if not net.qkv_bias and family.positions == 'rope':
        config |= dict(query_bias=False, value_bias=False)
    if family.positions != 'rope' and height != width:
        raise out.refuse(module, NAME, f'its positions have a square grid, and these are for {height} x {width} pixels')
    params = out.with_fixed_positions(module.params, tower)
    notes: list[str] = []
    if family.positions == 'rope':
        if not tower.module.family.cls or family.key_bias:
            raise out.refuse(module, NAME, 'its rotary ViT has a CLS token and keys without bias')
        rope = net.rotary
        config |= dict(model_type='dinov3_vit', architectures=['DINOv3ViTModel'], num_register_tokens=net.registers)
        config |= dict(rope_theta=rope.base, pos_embed_shift=rope.shift, pos_embed_jitter=rope.jitter,
                       pos_embed_rescale=rope.rescale, layerscale_value=family.layerscale or 1.0)  # fmt: skip
        gated = net.ffn == 'swiglu'
        config |= dict(use_gated_mlp=True, hidden_act='silu') if gated else {}
        params = out.with_unit_layerscale(params, tower)
        if not net.registers:
            params = out.Changed(params, dict(registers=np.zeros((0, net.width), np.float32)))
        return config, vit.HF_DINOV3_GATED if gated else vit.HF_DINOV3, params, notes
    if net.qkv_bias and not family.key_bias:
        raise out.refuse(module, NAME, 'only its rotary ViT has keys without bias')
    if not family.cls and family.pool == 'mean':
        raise out.refuse(module, NAME, 'its ViTs without a CLS token pool by attention; timm has those of I-JEPA')
    if not family.cls:
        if net.registers or net.ffn != 'mlp' or family.layerscale is not None or not net.qkv_bias:
            raise out.refuse(module, NAME, 'its SigLIP has no registers, no SwiGLU, no LayerScale, and biases')
        config |= dict(model_type='siglip_vision_model', architectures=['SiglipVisionModel'])
        return config, text.HF_SIGLIP, out.without_mask_token(params), notes
    if family.embed_norm:
        if net.registers or net.ffn != 'mlp' or family.layerscale is not None or not net.qkv_bias:
            raise out.refuse(module, NAME, 'its CLIP has no registers, no SwiGLU, no LayerScale, and biases')
        config |= dict(model_type='clip_vision_model', architectures=['CLIPVisionModel'])
        return config, text.HF_CLIP, out.without_mask_token(params), notes
    if not net.qkv_bias and family.layerscale is None:
        config['qkv_bias'] = False
    plain = family.layerscale is None and net.ffn == 'mlp' and not net.registers
    if plain:
        config |= dict(model_type='vit', architectures=['ViTModel'], qkv_bias=net.qkv_bias)
        return config, vit.HF_VIT, params, notes
    ratio = _ratio(module, net)
    name = 'Dinov2WithRegisters' if net.registers else 'Dinov2'
    config |= dict(model_type='dinov2_with_registers' if net.registers else 'dinov2', architectures=[f'{name}Model'])
    config |= dict(mlp_ratio=ratio, use_swiglu_ffn=net.ffn == 'swiglu', qkv_bias=net.qkv_bias)
    config |= dict(num_register_tokens=net.registers) if net.registers else {}
    params = out.with_unit_layerscale(params, tower)
    if family.layerscale is None:
        notes.append('transformers has LayerScale in this class; it is 1 here')
    if not net.registers and (net.antialias or family.offset):
        notes.append(
            'transformers resizes position embeddings for other image sizes without the offset of DINOv2: at other '
            f'sizes than {height} x {width} its features differ a little'
        )
    return config, vit.HF_DINOV2, params, notes


def _ratio(module: Module, net: Any) -> int:
    """The mlp_ratio for which transformers' rule gives the hidden width; there it is a whole number."""
    for ratio in range(1, 17):
        hidden = net.width * ratio if net.ffn == 'mlp' else (net.width * ratio * 2 // 3 + 7) // 8 * 8
        if hidden == net.hidden:
            return ratio
    raise out.refuse(module, NAME, f'its FFN is a whole number of times as wide as the tower, not {net.hidden} wide')


def _text(module: Module) -> tuple[dict[str, Any], Table, Mapping[str, np.ndarray], list[str]]:
    net: Any = module.tower.module
    family = net.family
    config: dict[str, Any] = dict(
        hidden_size=net.width,
        num_hidden_layers=net.depth,
        num_attention_heads=net.heads,
        intermediate_size=net.hidden,
        vocab_size=family.vocabulary,
        max_position_embeddings=family.context,
        hidden_act=THEIRS[family.activation],
        layer_norm_eps=family.eps,
        dtype='float32',
    )
    if family.pool == 'attention':
        raise out.refuse(module, NAME, 'its text towers have no pooling by attention')
    theirs = 'cls' if family.post_norm else 'last'
    notes = [] if family.pool == theirs else [f'transformers gives tokens; pool them by {family.pool!r} yourself']
    if family.post_norm:
        config |= dict(model_type='bert', architectures=['BertModel'], type_vocab_size=2)
        return config, text.BERT, module.params, notes
    if family.causal:
        config |= dict(
            model_type='clip_text_model', architectures=['CLIPTextModel'], eos_token_id=family.vocabulary - 1
        )
        return config, text.HF_TEXT, module.params, notes
    config |= dict(model_type='siglip_text_model', architectures=['SiglipTextModel'], projection_size=net.width)
    return config, text.HF_TEXT, module.params, notes


def _with_end(weights: ExportWeights, config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """config.json with the end token, at which transformers pools a text of CLIP; notes.

    It is that of the tokenizer, or that of the public files that the export comes from. Where nothing says it, it is
    the last of the vocabulary, as in OpenAI's, and a note tells it.
    """
    if config.get('model_type') != 'clip_text_model':
        return config, []
    last = ((weights.meta.get('tokenizer') or {}).get('tokens') or {}).get('last')
    if last is None and (public := weights.meta.get('end_token')) is not None:
        return config | dict(eos_token_id=public), []
    if last is None:
        return config, [
            f'nothing says the end token of texts: config.json has eos_token_id={config["eos_token_id"]}, the last of '
            "the vocabulary, as in OpenAI's CLIP; transformers takes the feature of a text at this token, so correct "
            'the number if your tokenizer has another'
        ]
    if last == 2:
        raise UserError(
            'the text tower pools at the end token, which is number 2 here; transformers takes the 2 for an error of '
            'old files and pools at the token of the highest number, so it cannot hold this tower'
        )
    return config | dict(eos_token_id=last), []


def _resnet(module: Module) -> tuple[dict[str, Any], Table, Mapping[str, np.ndarray], list[str]]:
    net: Any = module.tower.module
    bottleneck = net.expansion > 1
    config = dict(
        model_type='resnet',
        architectures=['ResNetModel'],
        embedding_size=net.stem,
        hidden_sizes=[width * net.expansion for width in net.widths],
        depths=list(net.depths),
        layer_type='bottleneck' if bottleneck else 'basic',
        num_channels=net.channels,
        hidden_act='relu',
        downsample_in_first_stage=False,
        dtype='float32',
    )
    if len(net.depths) != resnet.STAGES:
        raise out.refuse(module, NAME, f'it has {resnet.STAGES} stages, and this tower {len(net.depths)}')
    return config, resnet.hugging_face(), module.params, []


# Pairs.


def _pair(
    weights: ExportWeights, towers: Mapping[str, Module], heads: Mapping[str, Module]
) -> tuple[dict[str, Any], dict[str, np.ndarray], list[str]] | None:
    """One model of an image and a text tower of CLIP or SigLIP; None where transformers has no class for the pair."""
    pair = out.first(weights.meta.get('pairs') or ())
    if pair is None or len(towers) != 2 or {pair['image']['tower'], pair['text']['tower']} != set(towers):
        return None
    image, words = towers[pair['image']['tower']], towers[pair['text']['tower']]
    if out.kinds(image.tower) != 'vit' or out.kinds(words.tower) != 'text':
        return None
    projections = [None if side['head'] is None else heads[side['head']] for side in (pair['image'], pair['text'])]
    if any(head is not None and head.section.get('head') != 'linear' for head in projections):
        return None
    net, family = image.tower.module, words.tower.module.family
    clip = net.family.embed_norm and family.causal and family.pool == 'last'
    siglip = not net.family.cls and family.padding and family.pool == 'last'
    scale = np.array(-math.log(pair['temperature']), np.float32)
    sides = {'vision_config': _vit(image), 'text_config': _text(words)}
    ended = {name: _with_end(weights, side[0]) for name, side in sides.items()}
    notes = [note for _, told in ended.values() for note in told]
    configs = {name: {k: v for k, v in one.items() if k != 'architectures'} for name, (one, _) in ended.items()}
    state: dict[str, np.ndarray] = {}
    for (_, table, params, _), prefix in zip(sides.values(), ('vision_model.', 'text_model.'), strict=True):
        state |= out.arrays(table, params, prefix)
    a, b = projections
    if clip and a is not None and b is not None and not a.section.get('bias') and not b.section.get('bias'):
        state |= out.arrays(linear('fc1', 'visual_projection', bias=False), a.params)
        state |= out.arrays(linear('fc1', 'text_projection', bias=False), b.params)
        config = dict(model_type='clip', architectures=['CLIPModel'], projection_dim=a.section['out'], dtype='float32')
        return config | configs, state | dict(logit_scale=scale), notes
    if siglip and a is None and b is not None and b.section.get('bias') and b.section['out'] == net.width:
        configs['text_config']['projection_size'] = b.section['out']
        state |= out.arrays(linear('fc1', 'text_model.head'), b.params)
        state |= dict(logit_scale=scale[None], logit_bias=np.zeros(1, np.float32))
        config = dict(model_type='siglip', architectures=['SiglipModel'], dtype='float32')
        return config | configs, state, ['logit_bias is 0: an export has no bias of its pairs']
    return None
