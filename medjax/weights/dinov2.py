"""DINOv2's public weights <-> ours, in Meta's names and in Hugging Face's.

Arrays are only renamed, transposed and reshaped, so gradients are converted by the same functions. Our names come from
`medjax.models.towers.vit` and `medjax.models.heads.dino_head`. torch's Linear weights are (out, in), its convolutions
(out, in, height, width). The first row of Meta's pos_embed belongs to CLS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
from einops import rearrange

from medjax.errors import UserError
from medjax.weights import export
from medjax.weights.fit import Params, State, from_torch, set_path, to_torch

# Hugging Face's names -> Meta's: patterns and replacements, applied in this order. Some patterns match two names: files
# have the older names, and transformers 5 gives newer names to the modules in memory.
HUGGING_FACE = [
    (r'^(dinov2|dinov2_with_registers)\.', ''),
    (r'^embeddings\.position_embeddings$', 'pos_embed'),
    (r'^embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
    (r'^embeddings\.', ''),
    (r'^layernorm\.', 'norm.'),
    (r'^encoder\.layer\.', 'blocks.'),
    (r'\.attention\.(?:attention\.)?(query|key|value)\.', r'.attn.\1.'),
    (r'\.attention\.([qkvo])_proj\.', lambda m: '.attn.' + dict(q='query', k='key', v='value', o='proj')[m[1]] + '.'),
    (r'\.attention\.output\.dense\.', '.attn.proj.'),
    (r'\.layer_scale([12])\.lambda1$', r'.ls\1.gamma'),
    (r'\.mlp\.weights_in\.', '.mlp.w12.'),
    (r'\.mlp\.(?:weights_out|down_proj)\.', '.mlp.w3.'),
]
# Arrays that Meta stores joined along their first axis; the last name is Meta's.
JOINED = [
    ('.attn.query.', '.attn.key.', '.attn.value.', '.attn.qkv.'),
    ('.mlp.gate_proj.', '.mlp.up_proj.', '.mlp.w12.'),
]

# Meta's names inside a block -> our path, and the einops pattern from torch's order of axes to ours.
BLOCK = {
    'norm1.weight': ('norm1/scale', 'd -> d'),
    'norm1.bias': ('norm1/bias', 'd -> d'),
    'attn.qkv.weight': ('attn/qkv/kernel', '(c h k) d -> d c h k'),
    'attn.qkv.bias': ('attn/qkv/bias', '(c h k) -> c h k'),
    'attn.proj.weight': ('attn/out/kernel', 'd (h k) -> h k d'),
    'attn.proj.bias': ('attn/out/bias', 'd -> d'),
    'ls1.gamma': ('gamma1', 'd -> d'),
    'norm2.weight': ('norm2/scale', 'd -> d'),
    'norm2.bias': ('norm2/bias', 'd -> d'),
    'ls2.gamma': ('gamma2', 'd -> d'),
    **{f'mlp.{name}.weight': (f'mlp/{name}/kernel', 'o i -> i o') for name in ('fc1', 'fc2', 'w12', 'w3')},
    **{f'mlp.{name}.bias': (f'mlp/{name}/bias', 'o -> o') for name in ('fc1', 'fc2', 'w12', 'w3')},
}
OUTSIDE = {
    'patch_embed.proj.weight': ('patch_embed/kernel', 'd c p q -> p q c d'),
    'patch_embed.proj.bias': ('patch_embed/bias', 'd -> d'),
    'cls_token': ('cls', '1 1 d -> d'),
    'mask_token': ('mask_token', '1 d -> d'),
    'register_tokens': ('registers', '1 r d -> r d'),
    'norm.weight': ('norm/scale', 'd -> d'),
    'norm.bias': ('norm/bias', 'd -> d'),
}


def backbone(state: State, heads: int | None = None) -> Params:
    """A DINOv2 backbone in Meta's or Hugging Face's names -> parameters of our ViT.

    `heads` is the number of attention heads, which cannot be seen in the arrays. None: width / 64, as in every public
    model.
    """
    state = to_meta_names(state)
    params: Params = {}
    blocks: dict[str, dict[int, np.ndarray]] = {}
    unknown = []
    for name, array in state.items():
        # a model trained with FSDP has its blocks in chunks: blocks.<chunk>.<block>.…
        block = re.fullmatch(r'blocks\.(?:\d+\.)?(\d+)\.(.+)', name)
        if block and block[2] in BLOCK:
            blocks.setdefault(block[2], {})[int(block[1])] = array
        elif name in OUTSIDE:
            set_path(params, OUTSIDE[name][0], from_torch(name, array, OUTSIDE[name][1]))
        elif name != 'pos_embed':
            unknown.append(name)
    if unknown:
        raise UserError(f'{len(unknown)} names are not of a DINOv2 backbone, the first {unknown[0]!r}')
    missing = [name for name in ('pos_embed', *OUTSIDE) if name not in state and name != 'register_tokens']
    if missing or not blocks:
        raise UserError(f'a DINOv2 backbone lacks {missing or ["blocks"]}; there are {len(state)} arrays')

    width, depth = params['cls'].shape[0], 1 + max(i for layers in blocks.values() for i in layers)
    heads = heads or width // 64
    if not heads or width % heads:
        raise UserError(f'a backbone of width {width}: say how many heads its attention has (heads=…)')
    set_blocks(params, blocks, depth, heads)

    positions = state['pos_embed'][0]
    side = int(np.sqrt(len(positions) - 1))
    if side * side != len(positions) - 1:
        raise UserError(f'pos_embed has {len(positions) - 1} positions beside CLS: no square grid')
    params['pos_cls'] = positions[0]
    params['pos_grid'] = positions[1:].reshape(side, side, width)
    return params


def set_blocks(
    params: Params, blocks: Mapping[str, Mapping[int, np.ndarray]], depth: int, heads: int, prefix: str = 'blocks'
) -> None:
    """Stacks the arrays of `depth` blocks, by name and number, and puts them under 'blocks' in `params`."""
    for name, layers in blocks.items():
        if sorted(layers) != list(range(depth)):
            raise UserError(f'{name} is there for {prefix} {sorted(layers)} of {depth}')
        path, pattern = BLOCK[name]
        sizes = dict(c=3, h=heads) if 'qkv' in name else dict(h=heads) if '(h k)' in pattern else {}
        stack = [from_torch(f'{prefix}.{i}.{name}', layers[i], pattern, **sizes) for i in range(depth)]
        set_path(params, f'blocks/{path}', np.stack(stack))


def head(state: State) -> Params:
    """A DINOHead in Meta's names (mlp.0.weight, …, last_layer.weight_g and weight_v) -> parameters of `dino_head`."""
    # newer versions of torch have other names for the two parameters of weight norm
    newer = {f'last_layer.parametrizations.weight.original{i}': f'last_layer.weight_{x}' for i, x in enumerate('gv')}
    state = {newer.get(name, name): np.asarray(array, np.float32) for name, array in state.items()}
    layers = sorted({int(m[1]) for name in state if (m := re.fullmatch(r'mlp\.(\d+)\.(?:weight|bias)', name))})
    single = 'mlp.weight' in state  # a head of one layer has no Sequential around it
    params: Params = {}
    for i, prefix in enumerate(['mlp'] if single else [f'mlp.{n}' for n in layers]):
        if f'{prefix}.weight' not in state:
            raise UserError(f'a DINO head lacks {prefix}.weight')
        params[f'mlp_{i}'] = dict(kernel=from_torch(prefix, state[f'{prefix}.weight'], 'o i -> i o'))
        if f'{prefix}.bias' in state:
            params[f'mlp_{i}']['bias'] = state[f'{prefix}.bias']
    if not params or not {'last_layer.weight_g', 'last_layer.weight_v'} <= set(state):
        raise UserError(f'no DINO head: it has mlp.*, last_layer.weight_g and weight_v, here are {sorted(state)[:5]}')
    unknown = [name for name in state if not re.fullmatch(r'mlp\.(\d+\.)?(weight|bias)|last_layer\.weight_[gv]', name)]
    if unknown:
        raise UserError(f'{len(unknown)} names are not of a DINO head, the first {unknown[0]!r}')
    gain = from_torch('last_layer.weight_g', state['last_layer.weight_g'], 'k 1 -> k')
    direction = from_torch('last_layer.weight_v', state['last_layer.weight_v'], 'k b -> b k')
    return params | dict(prototypes=dict(direction=direction, gain=gain))


def to_meta(params: Params) -> dict[str, np.ndarray]:
    """Parameters of our ViT -> arrays in Meta's names. The inverse of `backbone`."""
    flat = export.flatten(params)
    positions = np.concatenate([flat['pos_cls'][None], rearrange(flat['pos_grid'], 'h w d -> (h w) d')])
    state = {'pos_embed': positions[None]}
    for name, (path, pattern) in OUTSIDE.items():
        if path in flat:
            state[name] = to_torch(flat[path], pattern)
    for name, (path, pattern) in BLOCK.items():
        if f'blocks/{path}' in flat:
            state |= {f'blocks.{i}.{name}': to_torch(array, pattern) for i, array in enumerate(flat[f'blocks/{path}'])}
    return state


def head_to_meta(params: Params) -> dict[str, np.ndarray]:
    """Parameters of a `dino_head` -> arrays in Meta's names. The inverse of `head`."""
    state = {}
    layers = [params[f'mlp_{i}'] for i in range(len(params) - 1)]
    for i, layer in enumerate(layers):
        prefix = f'mlp.{2 * i}' if len(layers) > 1 else 'mlp'  # an activation lies between two layers
        state[f'{prefix}.weight'] = np.asarray(layer['kernel']).T
        if 'bias' in layer:
            state[f'{prefix}.bias'] = np.asarray(layer['bias'])
    state['last_layer.weight_g'] = np.asarray(params['prototypes']['gain'])[:, None]
    state['last_layer.weight_v'] = np.asarray(params['prototypes']['direction']).T
    return state


def to_meta_names(state: State) -> dict[str, np.ndarray]:
    """The arrays in Meta's names; names of Meta stay as they are."""
    renamed = {}
    for name, array in state.items():
        for pattern, new in HUGGING_FACE:
            name = re.sub(pattern, new, name)
        renamed[name] = np.asarray(array, np.float32)
    for *pieces, joined in JOINED:
        for name in [name for name in renamed if pieces[0] in name]:
            names = [name.replace(pieces[0], piece) for piece in pieces]
            missing = [n for n in names if n not in renamed]
            if missing:
                raise UserError(f'{name} is there without {missing[0]}')
            renamed[name.replace(pieces[0], joined)] = np.concatenate([renamed.pop(n) for n in names])
    return renamed
