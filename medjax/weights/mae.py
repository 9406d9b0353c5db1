"""Weights of masked autoencoders in the names of MAE's code (arXiv 2111.06377) and Medical MAE's (2210.12843).

The encoder has the names of DINOv2's backbone, without a mask token. The decoder has `decoder_` in front of them.
Arrays are only renamed, transposed and reshaped, so gradients are converted by the same functions.
"""

from __future__ import annotations

import re

import numpy as np

from medjax.errors import UserError
from medjax.models.towers.vit import sincos_positions
from medjax.weights.dinov2 import BLOCK, set_blocks
from medjax.weights.fit import Params, State, from_torch, set_path

ENCODER = {
    'cls_token': ('cls', '1 1 d -> d'),
    'patch_embed.proj.weight': ('patch_embed/kernel', 'd c p q -> p q c d'),
    'patch_embed.proj.bias': ('patch_embed/bias', 'd -> d'),
    'norm.weight': ('norm/scale', 'd -> d'),
    'norm.bias': ('norm/bias', 'd -> d'),
}
DECODER = {
    'mask_token': ('mask_token', '1 1 d -> d'),
    'decoder_embed.weight': ('embed/kernel', 'o i -> i o'),
    'decoder_embed.bias': ('embed/bias', 'o -> o'),
    'decoder_norm.weight': ('norm/scale', 'd -> d'),
    'decoder_norm.bias': ('norm/bias', 'd -> d'),
    'decoder_pred.weight': ('pixels/kernel', 'o i -> i o'),
    'decoder_pred.bias': ('pixels/bias', 'o -> o'),
}


def is_mae(state: State) -> bool:
    return 'decoder_pred.weight' in state and 'decoder_embed.weight' in state


def encoder(state: State, heads: int) -> Params:
    """The parameters of our ViT. Its mask token, which MAE does not have, is 0.

    A learned table of positions becomes `pos_grid` and `pos_cls`; the fixed table of sines and cosines is left out.
    """
    params = _tower(state, ENCODER, 'blocks', heads)
    width = len(params['cls'])
    params['mask_token'] = np.zeros(width, np.float32)
    if 'pos_embed' in state:
        table = np.asarray(state['pos_embed'], np.float32)[0]
        side = round((len(table) - 1) ** 0.5)
        if side * side != len(table) - 1:
            raise UserError(f'pos_embed has {len(table) - 1} positions beside CLS: no square grid')
        fixed = sincos_positions((side, side), width)
        if table[1:].shape != fixed.shape or np.abs(table[1:] - fixed).max() > 1e-4 or np.abs(table[0]).max() > 1e-4:
            params |= dict(pos_cls=table[0], pos_grid=table[1:].reshape(side, side, width))
    return params


def decoder(state: State, heads: int) -> Params:
    """The parameters of our tower `decoder`."""
    return _tower(state, DECODER, 'decoder_blocks', heads)


def _tower(state: State, outside: dict[str, tuple[str, str]], blocks: str, heads: int) -> Params:
    params: Params = {}
    for name, (path, pattern) in outside.items():
        if name not in state:
            raise UserError(f'a masked autoencoder has an array {name}, and these weights have none')
        set_path(params, path, from_torch(name, state[name], pattern))
    layers: dict[str, dict[int, np.ndarray]] = {}
    for name, array in state.items():
        match = re.fullmatch(rf'{blocks}\.(\d+)\.(.+)', name)
        if match and match[2] in BLOCK:
            layers.setdefault(match[2], {})[int(match[1])] = array
    depth = 1 + max((i for numbers in layers.values() for i in numbers), default=-1)
    set_blocks(params, layers, depth, heads, blocks)
    return params
