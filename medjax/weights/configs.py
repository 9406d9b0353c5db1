"""What the config files of transformers, timm and open_clip say of a model: sizes by tower, and options.

Options with which a tower would compute something else than ours are refused, also where no array shows them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from medjax.errors import UserError
from medjax.types import is_whole

# The words of transformers and timm for activations.
ACTIVATIONS = dict(
    gelu='gelu', quick_gelu='quick_gelu', gelu_pytorch_tanh='gelu_tanh', gelu_new='gelu_tanh', gelu_fast='gelu_tanh',
    gelu_tanh='gelu_tanh',
)  # fmt: skip


# Arguments of timm's models that are seen in the arrays, are read, or change nothing in a forward pass.
TIMM_ARGUMENTS = (
    'embed_dim', 'depth', 'num_heads', 'patch_size', 'in_chans', 'img_size', 'act_layer', 'mlp_ratio', 'qkv_bias',
    'init_values', 'class_token', 'reg_tokens', 'num_reg_tokens', 'no_embed_class', 'num_classes', 'global_pool',
    'layers', 'depths', 'dims', 'rope_temperature', 'dynamic_img_size', 'strict_img_size', 'dynamic_img_pad', 'fc_norm',
    'drop_rate',
    'drop_path_rate', 'proj_drop_rate', 'attn_drop_rate', 'patch_drop_rate', 'pos_drop_rate', 'drop_block_rate',
    'weight_init', 'fix_init', 'zero_init_last', 'pretrained_cfg', 'stem_width',
)  # fmt: skip


HUGGING_FACE = dict(
    hidden_size='width', num_hidden_layers='depth', num_attention_heads='heads', intermediate_size='hidden',
    patch_size='patch', num_channels='channels', num_register_tokens='registers', image_size='size',
    layer_norm_eps='eps', vocab_size='vocabulary', max_position_embeddings='context',
)  # fmt: skip

# The end token of CLIP's config.json that stands for the token of the highest number in a text, as in OpenAI's code.
HIGHEST = 2
# The numbers of attention heads that the classes of transformers have where config.json says none.
HEADS = dict.fromkeys(
    ('bert', 'vit', 'vit_mae', 'vit_msn', 'dinov2', 'dinov2_with_registers', 'clip_vision_model', 'siglip_vision_model',
     'siglip_text_model'), 12
) | {'clip_text_model': 8, 'dinov3_vit': 6, 'decoder of vit_mae': 16}  # fmt: skip


def of_transformers(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The sizes that a config.json of transformers says, by tower."""
    kind = config.get('model_type', '')
    if kind in ('roberta', 'xlm-roberta', 'camembert', 'data2vec-text', 'xmod', 'ibert', 'yoso', 'nystromformer'):
        raise UserError(f'config.json says model_type={kind!r}, which counts positions from 2; the tower `text` from 0')
    if 'vision_config' in config or 'text_config' in config:
        both = dict(image=('vision', config.get('vision_config') or {}), text=('text', config.get('text_config') or {}))
        return {name: _transformers_tower(one, f'{kind}_{sees}_model') for name, (sees, one) in both.items()}
    said = _transformers_tower(config, kind)
    if kind == 'vit_mae':
        prefix = 'decoder_'
        inner = {key[len(prefix) :]: value for key, value in config.items() if key.startswith(prefix)}
        return dict(image=said, decoder=_transformers_tower(inner, 'decoder of vit_mae'))
    text = 'vocab_size' in config or kind.endswith('text_model')
    return {'text' if text else 'image': said}


def _transformers_tower(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    kind = config.get('model_type', kind)
    said = {ours: config[theirs] for theirs, ours in HUGGING_FACE.items() if config.get(theirs) is not None}
    default = HEADS.get(kind)  # where config.json leaves it out, as files of pairs may
    if default and 'heads' not in said and is_whole(said.get('width')) and said['width'] % default == 0:
        said['heads'] = default
    act = config.get('hidden_act')
    if kind == 'resnet':
        return _transformers_resnet(config)
    if config.get('is_decoder') or config.get('add_cross_attention'):
        raise UserError(
            'config.json says is_decoder: tokens that see earlier tokens alone are not built for this tower'
        )
    if config.get('use_gated_mlp') and act not in (None, 'silu'):
        raise UserError(f'config.json says hidden_act={act!r} in a gated FFN, which is built with silu')
    if act is not None and not config.get('use_swiglu_ffn') and not config.get('use_gated_mlp'):
        if act not in ACTIVATIONS:
            raise UserError(f'config.json says hidden_act={act!r}; known are {", ".join(ACTIVATIONS)}')
        said['activation'] = ACTIVATIONS[act]
    if kind in ('dinov2', 'dinov2_with_registers'):  # there the FFN has its width by mlp_ratio
        said.pop('hidden', None)
        if 'mlp_ratio' in config and 'width' in said and not config.get('use_swiglu_ffn'):
            said['hidden'] = int(said['width'] * config['mlp_ratio'])
    if kind == 'clip_text_model' and is_whole(config.get('eos_token_id')) and config['eos_token_id'] > 0:
        said['end'] = config['eos_token_id']
    for name in ('use_swiglu_ffn', 'use_gated_mlp'):
        if name in config:
            said['ffn'] = 'swiglu' if config[name] else 'mlp'
    for theirs, ours in dict(rope_theta='rope_base', pos_embed_rescale='rope_rescale', pos_embed_shift='rope_shift',
                             pos_embed_jitter='rope_jitter').items():  # fmt: skip
        if kind == 'dinov3_vit' and config.get(theirs) is not None:
            said[ours] = config[theirs]
    if isinstance(said.get('size'), list):
        said['size'] = tuple(said['size'])
    return said


def _transformers_resnet(config: Mapping[str, Any]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if 'depths' in config:
        said['depths'] = tuple(config['depths'])
    if 'embedding_size' in config:
        said['stem'] = config['embedding_size']
    if 'num_channels' in config:
        said['channels'] = config['num_channels']
    if config.get('hidden_act', 'relu') != 'relu':
        raise UserError(f'config.json says hidden_act={config["hidden_act"]!r}; the tower `resnet` has relu')
    if config.get('downsample_in_first_stage') or config.get('downsample_in_bottleneck'):
        raise UserError('config.json: a ResNet that halves the image in another place than version 1.5 cannot be built')
    return said


def of_timm(config: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The sizes and the preprocessing that a config.json of timm says."""
    args, cfg = config.get('model_args') or {}, config.get('pretrained_cfg') or config
    words = dict(embed_dim='width', depth='depth', num_heads='heads', patch_size='patch', in_chans='channels',
                 img_size='size')  # fmt: skip
    said = {ours: args[theirs] for theirs, ours in words.items() if args.get(theirs) is not None}
    name = str(config['architecture']).split('.')[0]
    strange = [f'{key}={value!r}' for key, value in args.items() if key not in TIMM_ARGUMENTS]
    if strange:
        raise UserError(f'config.json has the model_args {", ".join(strange)}, which the towers of medjax do not have')
    if 'resnet' in name or 'resnext' in name:
        if not re.fullmatch(r'(tv_)?resnet\d+', name):
            raise UserError(f'config.json: the architecture {name!r} is no plain ResNet; the tower `resnet` is')
        if args.get('act_layer', 'relu') != 'relu':
            raise UserError(f'config.json says act_layer={args["act_layer"]!r}; the tower `resnet` has relu')
    elif act := args.get('act_layer') or _timm_activation(name):
        if act not in ACTIVATIONS:
            raise UserError(f'config.json says act_layer={act!r}; known are {", ".join(ACTIVATIONS)}')
        said['activation'] = ACTIVATIONS[act]
    if 'rope_temperature' in args:
        said['rope_base'] = args['rope_temperature']
    image: dict[str, Any] = {}
    size = cfg.get('input_size')
    if size:
        image['size'] = size[-1]
        said.setdefault('channels', size[0])
    image |= dict(mean=cfg['mean'], std=cfg['std']) if 'mean' in cfg and 'std' in cfg else {}
    mode, share = cfg.get('crop_mode', 'center'), cfg.get('crop_pct', 1.0)
    image['fit'] = {'center': 'crop', 'squash': 'stretch', 'border': 'pad'}.get(mode, 'crop')
    if image['fit'] == 'crop' and share != 1:
        image['zoom'] = 1 / share
    return dict(image=said), image


def _timm_activation(name: str) -> str:
    """The activation of models of timm whose name says it."""
    if 'quickgelu' in name:
        return 'quick_gelu'
    tanh = ('so400m_patch16', 'giantopt', 'base_patch32', 'siglip_512', 'siglip_gap_512')
    if 'siglip' in name and 'base_patch16' not in name and any(one in name for one in tanh):
        return 'gelu_tanh'
    return 'gelu' if name.startswith('vit') else ''


# Options of open_clip's towers. The first ones are read, or change nothing; of the others only these values are read.
OPEN_CLIP_FREE = (
    'image_size', 'width', 'layers', 'patch_size', 'head_width', 'mlp_ratio', 'patch_dropout', 'output_tokens',
    'attn_pooler_queries', 'attn_pooler_heads', 'timm_model_name', 'timm_model_pretrained', 'timm_pool', 'timm_proj',
    'timm_proj_bias', 'timm_drop', 'timm_drop_path', 'heads', 'context_length', 'vocab_size', 'hf_tokenizer_name',
    'tokenizer_mode', 'tokenizer_kwargs', 'pad_id', 'eos_id', 'proj_bias', 'proj_type', 'act_kwargs', 'norm_kwargs',
    'hf_model_name', 'hf_model_pretrained', 'hf_tokenizer_pretrained', 'hf_proj_type', 'hf_model_config', 'proj',
    'bos_id', 'ls_init_value',
)  # fmt: skip
CLS_POOLERS = ('cls_pooler', 'cls_last_hidden_state_pooler')
OPEN_CLIP_FIXED: dict[str, tuple[Any, ...]] = dict(
    pos_embed_type=('learnable',), pool_type=('tok', 'argmax', 'eos'), block_type=('default',),
    hf_pooler_type=CLS_POOLERS, pooler_type=CLS_POOLERS,
)  # fmt: skip
OPEN_CLIP_SIGLIP: dict[str, tuple[Any, ...]] = dict(pool_type=('last',), no_causal_mask=(True,))


def _check_open_clip(tower: str, config: Mapping[str, Any], fixed: Mapping[str, Sequence[Any]]) -> None:
    """UserError for options with which a tower of open_clip computes something else than ours."""
    strange = [
        f'{key}={value!r}'
        for key, value in config.items()
        if key not in OPEN_CLIP_FREE and value not in fixed.get(key, ()) and (value or True in fixed.get(key, ()))
    ]
    if strange:
        raise UserError(
            f'open_clip_config.json: {tower} has {", ".join(strange)}, which the towers of medjax do not have'
        )


def _open_clip_text(text: Mapping[str, Any], quick: str) -> dict[str, Any]:
    """The sizes that text_cfg says, with open_clip's own values for what it leaves out."""
    if text.get('hf_model_name'):
        _check_open_clip('text_cfg', text, OPEN_CLIP_FIXED)
        return {}
    siglip = bool(text.get('proj_bias'))
    default = dict(pool_type='argmax', no_causal_mask=False)
    _check_open_clip('text_cfg', default | dict(text), OPEN_CLIP_FIXED | (OPEN_CLIP_SIGLIP if siglip else {}))
    words = dict(width='width', layers='depth', heads='heads', vocab_size='vocabulary', context_length='context')
    said = {ours: text[theirs] for theirs, ours in words.items() if text.get(theirs) is not None}
    act = (text.get('act_kwargs') or {}).get('approximate')
    said['activation'] = 'gelu_tanh' if act == 'tanh' else quick
    if not siglip:
        said['end'] = text.get('eos_id', 2) if text.get('pool_type') == 'eos' else HIGHEST
    return dict(heads=8, eps=(text.get('norm_kwargs') or {}).get('eps', 1e-5)) | said


def of_open_clip(config: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The sizes and the preprocessing that an open_clip_config.json says."""
    model, prep = config.get('model_cfg') or {}, config.get('preprocess_cfg') or {}
    vision, text = model.get('vision_cfg') or {}, model.get('text_cfg') or {}
    image: dict[str, Any] = {'size': vision['image_size']} if 'image_size' in vision else {}
    _check_open_clip('vision_cfg', vision, OPEN_CLIP_FIXED)
    said = dict(image)
    quick = 'quick_gelu' if model.get('quick_gelu') else 'gelu'
    if name := vision.get('timm_model_name'):
        said['activation'] = ACTIVATIONS[_timm_activation(name) or 'gelu']
    else:
        shape = dict(width='width', layers='depth', patch_size='patch')
        said |= {ours: vision[theirs] for theirs, ours in shape.items() if isinstance(vision.get(theirs), int)}
        said['activation'] = 'gelu_tanh' if (vision.get('act_kwargs') or {}).get('approximate') == 'tanh' else quick
        said['eps'] = (vision.get('norm_kwargs') or {}).get('eps', 1e-5)
        if 'width' in said:
            said['heads'] = said['width'] // vision.get('head_width', 64)
    texts = _open_clip_text(text, quick) if text else {}
    image |= {name: prep[name] for name in ('mean', 'std') if name in prep}
    image['fit'] = {'shortest': 'crop', 'squash': 'stretch', 'longest': 'pad'}.get(prep.get('resize_mode'), 'crop')
    return dict(image=said, text=texts), image
