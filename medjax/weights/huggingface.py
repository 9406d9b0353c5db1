"""Hugging Face's names -> ours: BERT (and CXR-BERT), CLIP, SigLIP, ViT and ResNet. One table a model.

A table says for each of our paths which arrays it is made of (several are joined along their first axis; {} is the
number of the layer, over which ours are stacked) and how torch's array becomes ours, as an einops pattern: torch's
Linear weights are (out, in), its convolutions (out, in, height, width). So gradients map by the same tables.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from medjax.errors import UserError
from medjax.weights import export
from medjax.weights.fit import Params, State, turn


class Row(NamedTuple):
    names: tuple[str, ...]
    pattern: str
    first: int = 0  # the layer that the stack begins with


Table = dict[str, Row]


class Part(NamedTuple):
    """What a file may hold: a tower or a head."""

    name: str
    sign: str  # the array that tells that it is there
    owns: str  # a pattern of the names that belong to it, all of which must be in the table
    table: Table


def linear(ours: str, theirs: str) -> Table:
    return {
        f'{ours}/kernel': Row((f'{theirs}.weight',), 'o i -> i o'),
        f'{ours}/bias': Row((f'{theirs}.bias',), 'o -> o'),
    }


def norm(ours: str, theirs: str) -> Table:
    return {f'{ours}/scale': Row((f'{theirs}.weight',), 'd -> d'), f'{ours}/bias': Row((f'{theirs}.bias',), 'd -> d')}


def attention(ours: str, theirs: str, query_key_value: tuple[str, str, str], out: str) -> Table:
    names = [f'{theirs}.{name}' for name in query_key_value]
    return {
        f'{ours}/qkv/kernel': Row(tuple(f'{name}.weight' for name in names), '(c h k) d -> d c h k'),
        f'{ours}/qkv/bias': Row(tuple(f'{name}.bias' for name in names), '(c h k) -> c h k'),
        f'{ours}/out/kernel': Row((f'{out}.weight',), 'd (h k) -> h k d'),
        f'{ours}/out/bias': Row((f'{out}.bias',), 'd -> d'),
    }


def patches(theirs: str) -> Table:
    return {
        'patch_embed/kernel': Row((f'{theirs}.weight',), 'd c p q -> p q c d'),
        'patch_embed/bias': Row((f'{theirs}.bias',), 'd -> d'),
    }


def same(ours: str, theirs: str, pattern: str) -> Table:
    return {ours: Row((theirs,), pattern)}


# BERT, and with other vocabularies and weights ClinicalBERT, PubMedBERT, CXR-BERT, BiomedBERT.
BERT = (
    same('words', 'embeddings.word_embeddings.weight', 'w d -> w d')
    | same('positions', 'embeddings.position_embeddings.weight', 't d -> t d')
    | same('segments', 'embeddings.token_type_embeddings.weight', 's d -> s d')
    | norm('embed_norm', 'embeddings.LayerNorm')
    | attention(
        'blocks/attn',
        'encoder.layer.{}.attention.self',
        ('query', 'key', 'value'),
        'encoder.layer.{}.attention.output.dense',
    )
    | norm('blocks/norm1', 'encoder.layer.{}.attention.output.LayerNorm')
    | linear('blocks/mlp/fc1', 'encoder.layer.{}.intermediate.dense')
    | linear('blocks/mlp/fc2', 'encoder.layer.{}.output.dense')
    | norm('blocks/norm2', 'encoder.layer.{}.output.LayerNorm')
)
# CXR-BERT's projection, our head `mlp(activation='gelu', norm=True)`.
CXR_BERT_HEAD = (
    linear('fc1', 'cls_projection_head.dense_to_hidden')
    | norm('norm1', 'cls_projection_head.LayerNorm')
    | linear('fc2', 'cls_projection_head.dense_to_output')
)


def clip_blocks(tower: str) -> Table:
    """The blocks of CLIP and SigLIP, which have the same names."""
    layer = f'{tower}.encoder.layers.{{}}'
    return (
        norm('blocks/norm1', f'{layer}.layer_norm1')
        | attention('blocks/attn', f'{layer}.self_attn', ('q_proj', 'k_proj', 'v_proj'), f'{layer}.self_attn.out_proj')
        | norm('blocks/norm2', f'{layer}.layer_norm2')
        | linear('blocks/mlp/fc1', f'{layer}.mlp.fc1')
        | linear('blocks/mlp/fc2', f'{layer}.mlp.fc2')
    )


CLIP_TEXT = (  # and SigLIP's
    same('words', 'text_model.embeddings.token_embedding.weight', 'w d -> w d')
    | same('positions', 'text_model.embeddings.position_embedding.weight', 't d -> t d')
    | clip_blocks('text_model')
    | norm('norm', 'text_model.final_layer_norm')
)
CLIP_VISION = (
    same('cls', 'vision_model.embeddings.class_embedding', 'd -> d')
    | same('pos_cls', 'vision_model.embeddings.position_cls', 'd -> d')
    | same('pos_grid', 'vision_model.embeddings.position_grid', 'h w d -> h w d')
    | patches('vision_model.embeddings.patch_embedding')
    | norm('embed_norm', 'vision_model.pre_layrnorm')
    | clip_blocks('vision_model')
    | norm('norm', 'vision_model.post_layernorm')
)
SIGLIP_VISION = CLIP_VISION | (
    same('pool/probe', 'vision_model.head.probe', '1 1 d -> d')
    | same('pool/q/kernel', 'vision_model.head.attention.q.weight', '(h k) d -> d h k')
    | same('pool/q/bias', 'vision_model.head.attention.q.bias', '(h k) -> h k')
    | same('pool/kv/kernel', 'vision_model.head.attention.kv.weight', '(c h k) d -> d c h k')
    | same('pool/kv/bias', 'vision_model.head.attention.kv.bias', '(c h k) -> c h k')
    | same('pool/out/kernel', 'vision_model.head.attention.out_proj.weight', 'd (h k) -> h k d')
    | same('pool/out/bias', 'vision_model.head.attention.out_proj.bias', 'd -> d')
    | norm('pool/norm', 'vision_model.head.layernorm')
    | linear('pool/mlp/fc1', 'vision_model.head.mlp.fc1')
    | linear('pool/mlp/fc2', 'vision_model.head.mlp.fc2')
)
VIT = (
    same('cls', 'embeddings.cls_token', '1 1 d -> d')
    | same('mask_token', 'embeddings.mask_token', '1 1 d -> d')
    | same('pos_cls', 'embeddings.position_cls', 'd -> d')
    | same('pos_grid', 'embeddings.position_grid', 'h w d -> h w d')
    | patches('embeddings.patch_embeddings.projection')
    | norm('blocks/norm1', 'encoder.layer.{}.layernorm_before')
    | attention(
        'blocks/attn',
        'encoder.layer.{}.attention.attention',
        ('query', 'key', 'value'),
        'encoder.layer.{}.attention.output.dense',
    )
    | norm('blocks/norm2', 'encoder.layer.{}.layernorm_after')
    | linear('blocks/mlp/fc1', 'encoder.layer.{}.intermediate.dense')
    | linear('blocks/mlp/fc2', 'encoder.layer.{}.output.dense')
    | norm('norm', 'layernorm')
)


def conv_norm(ours: str, theirs: str, first: int = 0) -> Table:
    """A convolution without bias, its batch norm, and the running statistics of that."""
    return {
        f'{ours}/kernel': Row((f'{theirs}.convolution.weight',), 'o i p q -> p q i o', first),
        f'{ours}/norm/scale': Row((f'{theirs}.normalization.weight',), 'c -> c', first),
        f'{ours}/norm/bias': Row((f'{theirs}.normalization.bias',), 'c -> c', first),
        f'stats/{ours}/norm/mean': Row((f'{theirs}.normalization.running_mean',), 'c -> c', first),
        f'stats/{ours}/norm/variance': Row((f'{theirs}.normalization.running_var',), 'c -> c', first),
    }


RESNET = conv_norm('stem', 'embedder.embedder')
for stage in range(4):
    layers = f'encoder.stages.{stage}.layers'
    RESNET |= conv_norm(f'stage{stage + 1}/first/shortcut', f'{layers}.0.shortcut')
    for conv in range(3):
        RESNET |= conv_norm(f'stage{stage + 1}/first/conv{conv + 1}', f'{layers}.0.layer.{conv}')
        RESNET |= conv_norm(f'stage{stage + 1}/rest/conv{conv + 1}', f'{layers}.{{}}.layer.{conv}', first=1)

PARTS = (
    Part('towers/text', 'embeddings.word_embeddings.weight', r'(embeddings|encoder)\.', BERT),
    Part('heads/text', 'cls_projection_head.dense_to_hidden.weight', r'cls_projection_head\.', CXR_BERT_HEAD),
    Part('towers/text', 'text_model.embeddings.token_embedding.weight', r'text_model\.(?!head\.)', CLIP_TEXT),
    Part('heads/text', 'text_projection.weight', r'text_projection\.', linear('fc1', 'text_projection')),
    Part('heads/text', 'text_model.head.weight', r'text_model\.head\.', linear('fc1', 'text_model.head')),
    Part('towers/image', 'vision_model.embeddings.class_embedding', r'vision_model\.', CLIP_VISION),
    Part('towers/image', 'vision_model.head.probe', r'vision_model\.', SIGLIP_VISION),
    Part('heads/image', 'visual_projection.weight', r'visual_projection\.', linear('fc1', 'visual_projection')),
    Part('towers/image', 'encoder.layer.0.layernorm_before.weight', r'(embeddings|encoder|layernorm)\.', VIT),
    Part('towers/image', 'embedder.embedder.convolution.weight', r'(embedder|encoder)\.', RESNET),
)
# In no part: poolers and classifiers, the head of masked words, CLIP's and SigLIP's scale and bias, which are a term's.
BUFFERS = r'(position_ids|num_batches_tracked)$'
NEW = ('mask_token',)  # starts at zero where the public model has none


def parts(state: State) -> dict[str, Part]:
    """What a file in Hugging Face's names (`plain` ones) holds; nothing where it is another format."""
    return {part.name: part for part in PARTS if part.sign in state}


def plain(state: State) -> dict[str, np.ndarray]:
    """The names of a model without its wrapper, newer names for older ones, and arrays that hold two things split."""
    found = {}
    halves = {'embeddings.token_embedding.weight': 'text_model.', 'embeddings.patch_embedding.weight': 'vision_model.'}
    half = next((prefix for sign, prefix in halves.items() if sign in state), '')  # of a pair, saved alone
    for name, array in state.items():
        name = half + re.sub(r'^(bert|vit|resnet)\.', '', name)
        name = name.replace('LayerNorm.gamma', 'LayerNorm.weight').replace('LayerNorm.beta', 'LayerNorm.bias')
        if not re.search(BUFFERS, name):
            found[name] = np.asarray(array, np.float32)
    for prefix, positions in (
        ('embeddings.', 'embeddings.position_embeddings'),
        ('vision_model.embeddings.', 'vision_model.embeddings.position_embedding.weight'),
    ):
        if positions in found:
            rows = found.pop(positions)
            rows = rows.reshape(-1, rows.shape[-1])
            cls = f'{prefix}cls_token' in found or f'{prefix}class_embedding' in found
            if cls:
                found[f'{prefix}position_cls'] = rows[0]
            side = int(np.sqrt(len(rows) - cls))
            if side * side != len(rows) - cls:
                raise UserError(f'{positions} has {len(rows) - cls} positions of patches: no square grid')
            found[f'{prefix}position_grid'] = rows[int(cls) :].reshape(side, side, -1)
    for kind in ('weight', 'bias'):
        packed = found.pop(f'vision_model.head.attention.in_proj_{kind}', None)
        if packed is not None:  # query, key, value, one after the other
            third = len(packed) // 3
            found[f'vision_model.head.attention.q.{kind}'] = packed[:third]
            found[f'vision_model.head.attention.kv.{kind}'] = packed[third:]
    return found


def read(state: State, part: Part, wanted: Params) -> Params:
    """The arrays of a part in our names, laid out as the shapes of `wanted` say (heads, depth), sizes as in the file.

    UserError: an array that `wanted` has and the file lacks, or the other way round.
    """
    left = {name for name in state if re.match(part.owns, name)}
    flat = {}
    for path, shape in export.flatten(wanted, shapes=True).items():
        row = part.table.get(path)
        if row is None or row.names[0].format(row.first) not in state:
            if path in NEW:
                flat[path] = np.zeros(shape, np.float32)
                continue
            raise UserError(f'{path} is missing from the weights')
        stacked = '{}' in row.names[0]
        sizes = {}
        if '(' in row.pattern:
            axes = row.pattern.split(' -> ')[1].split()
            sizes = {axis: n for axis, n in zip(axes, shape[stacked:], strict=True) if axis in ('c', 'h')}
        layers = []
        for i in range(row.first, row.first + shape[0]) if stacked else [0]:
            names = [name.format(i) for name in row.names]
            absent = [name for name in names if name not in state]
            if absent:
                raise UserError(f'{absent[0]} is missing from the weights: are there fewer layers?')
            left -= set(names)
            array = np.concatenate([state[name] for name in names]) if len(names) > 1 else state[names[0]]
            layers.append(turn(names[0], array, row.pattern, **sizes))
        flat[path] = np.stack(layers) if stacked else layers[0]
    if left:
        raise UserError(f'the weights have {min(left)}, this configuration does not (of {len(left)} such arrays)')
    return export.unflatten(flat)
