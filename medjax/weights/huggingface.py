"""Hugging Face's names -> ours: BERT (and CXR-BERT), CLIP, SigLIP, ViT and ResNet, one table for each model.

A table has one line for each of our parameters: the torch arrays that it is made of, and the einops pattern that brings
them into our order of axes. torch's Linear weights are (out, in), its convolutions (out, in, height, width). Gradients
are converted by the same tables.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from medjax.errors import UserError
from medjax.weights import export
from medjax.weights.fit import Params, State, from_torch


class Conversion(NamedTuple):
    """The torch arrays of one parameter of ours."""

    names: tuple[str, ...]  # joined along their first axis; {} is the number of a layer, and ours stacks the layers
    pattern: str
    first: int = 0  # the number of the first layer in the stack


Table = dict[str, Conversion]  # by the path of our parameter


class Module(NamedTuple):
    """A tower or a head that a file may hold."""

    name: str  # 'towers/text', 'heads/text', …
    sign: str  # a file with an array of this name holds the module
    owns: str  # pattern of the names that belong to the module; all of these arrays must be used
    table: Table


# Tables of single layers. `path` is the place of the layer in our tree, `name` its name in the file.


def linear(path: str, name: str) -> Table:
    return {
        f'{path}/kernel': Conversion((f'{name}.weight',), 'o i -> i o'),
        f'{path}/bias': Conversion((f'{name}.bias',), 'o -> o'),
    }


def norm(path: str, name: str) -> Table:
    return {
        f'{path}/scale': Conversion((f'{name}.weight',), 'd -> d'),
        f'{path}/bias': Conversion((f'{name}.bias',), 'd -> d'),
    }


def attention(path: str, name: str, query_key_value: tuple[str, str, str], out: str) -> Table:
    names = [f'{name}.{projection}' for projection in query_key_value]
    return {
        f'{path}/qkv/kernel': Conversion(tuple(f'{n}.weight' for n in names), '(c h k) d -> d c h k'),
        f'{path}/qkv/bias': Conversion(tuple(f'{n}.bias' for n in names), '(c h k) -> c h k'),
        f'{path}/out/kernel': Conversion((f'{out}.weight',), 'd (h k) -> h k d'),
        f'{path}/out/bias': Conversion((f'{out}.bias',), 'd -> d'),
    }


def patch_embedding(name: str) -> Table:
    return {
        'patch_embed/kernel': Conversion((f'{name}.weight',), 'd c p q -> p q c d'),
        'patch_embed/bias': Conversion((f'{name}.bias',), 'd -> d'),
    }


def array(path: str, name: str, pattern: str) -> Table:
    return {path: Conversion((name,), pattern)}


# BERT. ClinicalBERT, PubMedBERT, CXR-BERT and BiomedBERT differ from it in vocabulary and weights only.
BERT = (
    array('words', 'embeddings.word_embeddings.weight', 'w d -> w d')
    | array('positions', 'embeddings.position_embeddings.weight', 't d -> t d')
    | array('segments', 'embeddings.token_type_embeddings.weight', 's d -> s d')
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
# CXR-BERT's projection: our head dict(head='mlp', activation='gelu', norm=True).
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
    array('words', 'text_model.embeddings.token_embedding.weight', 'w d -> w d')
    | array('positions', 'text_model.embeddings.position_embedding.weight', 't d -> t d')
    | clip_blocks('text_model')
    | norm('norm', 'text_model.final_layer_norm')
)
CLIP_VISION = (
    array('cls', 'vision_model.embeddings.class_embedding', 'd -> d')
    | array('pos_cls', 'vision_model.embeddings.position_cls', 'd -> d')
    | array('pos_grid', 'vision_model.embeddings.position_grid', 'h w d -> h w d')
    | patch_embedding('vision_model.embeddings.patch_embedding')
    | norm('embed_norm', 'vision_model.pre_layrnorm')
    | clip_blocks('vision_model')
    | norm('norm', 'vision_model.post_layernorm')
)
SIGLIP_VISION = CLIP_VISION | (
    array('pool/probe', 'vision_model.head.probe', '1 1 d -> d')
    | array('pool/q/kernel', 'vision_model.head.attention.q.weight', '(h k) d -> d h k')
    | array('pool/q/bias', 'vision_model.head.attention.q.bias', '(h k) -> h k')
    | array('pool/kv/kernel', 'vision_model.head.attention.kv.weight', '(c h k) d -> d c h k')
    | array('pool/kv/bias', 'vision_model.head.attention.kv.bias', '(c h k) -> c h k')
    | array('pool/out/kernel', 'vision_model.head.attention.out_proj.weight', 'd (h k) -> h k d')
    | array('pool/out/bias', 'vision_model.head.attention.out_proj.bias', 'd -> d')
    | norm('pool/norm', 'vision_model.head.layernorm')
    | linear('pool/mlp/fc1', 'vision_model.head.mlp.fc1')
    | linear('pool/mlp/fc2', 'vision_model.head.mlp.fc2')
)
VIT = (
    array('cls', 'embeddings.cls_token', '1 1 d -> d')
    | array('mask_token', 'embeddings.mask_token', '1 1 d -> d')
    | array('pos_cls', 'embeddings.position_cls', 'd -> d')
    | array('pos_grid', 'embeddings.position_grid', 'h w d -> h w d')
    | patch_embedding('embeddings.patch_embeddings.projection')
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


def conv_norm(path: str, name: str, first: int = 0) -> Table:
    """A convolution without bias, its batch norm, and the running statistics of the batch norm."""
    return {
        f'{path}/kernel': Conversion((f'{name}.convolution.weight',), 'o i p q -> p q i o', first),
        f'{path}/norm/scale': Conversion((f'{name}.normalization.weight',), 'c -> c', first),
        f'{path}/norm/bias': Conversion((f'{name}.normalization.bias',), 'c -> c', first),
        f'stats/{path}/norm/mean': Conversion((f'{name}.normalization.running_mean',), 'c -> c', first),
        f'stats/{path}/norm/variance': Conversion((f'{name}.normalization.running_var',), 'c -> c', first),
    }


def resnet() -> Table:
    """The stem and the four stages. Blocks of ResNet-18 and 34 have no third convolution and leave its lines unused."""
    table = conv_norm('stem', 'embedder.embedder')
    for stage in range(4):
        path, layers = f'stage{stage + 1}', f'encoder.stages.{stage}.layers'
        table |= conv_norm(f'{path}/first/shortcut', f'{layers}.0.shortcut')
        for i in range(3):
            table |= conv_norm(f'{path}/first/conv{i + 1}', f'{layers}.0.layer.{i}')
            table |= conv_norm(f'{path}/rest/conv{i + 1}', f'{layers}.{{}}.layer.{i}', first=1)
    return table


MODULES = (
    Module('towers/text', 'embeddings.word_embeddings.weight', r'(embeddings|encoder)\.', BERT),
    Module('heads/text', 'cls_projection_head.dense_to_hidden.weight', r'cls_projection_head\.', CXR_BERT_HEAD),
    Module('towers/text', 'text_model.embeddings.token_embedding.weight', r'text_model\.(?!head\.)', CLIP_TEXT),
    Module('heads/text', 'text_projection.weight', r'text_projection\.', linear('fc1', 'text_projection')),
    Module('heads/text', 'text_model.head.weight', r'text_model\.head\.', linear('fc1', 'text_model.head')),
    Module('towers/image', 'vision_model.embeddings.class_embedding', r'vision_model\.', CLIP_VISION),
    Module('towers/image', 'vision_model.head.probe', r'vision_model\.', SIGLIP_VISION),
    Module('heads/image', 'visual_projection.weight', r'visual_projection\.', linear('fc1', 'visual_projection')),
    Module('towers/image', 'encoder.layer.0.layernorm_before.weight', r'(embeddings|encoder|layernorm)\.', VIT),
    Module('towers/image', 'embedder.embedder.convolution.weight', r'(embedder|encoder)\.', resnet()),
)
# No module owns poolers, classifiers, BERT's head for masked words, or the scale and bias of CLIP and SigLIP: scale and
# bias are parameters of a term.
BUFFERS = r'(position_ids|num_batches_tracked)$'  # arrays in a file that are no parameters
NEW = ('mask_token',)  # starts at zero if the public model has none


def modules(state: State) -> dict[str, Module]:
    """The modules in the arrays of a file, as `canonical` gives them; empty if the file has another format."""
    return {module.name: module for module in MODULES if module.sign in state}


def canonical(state: State) -> dict[str, np.ndarray]:
    """The arrays of a file by the names that the tables use.

    Prefixes of wrappers are removed, old names are replaced by newer ones, and arrays that hold two things are split.
    """
    arrays = {}
    halves = {'embeddings.token_embedding.weight': 'text_model.', 'embeddings.patch_embedding.weight': 'vision_model.'}
    half = next((prefix for sign, prefix in halves.items() if sign in state), '')  # one half of CLIP or SigLIP alone
    for name, values in state.items():
        name = half + re.sub(r'^(bert|vit|resnet)\.', '', name)
        name = name.replace('LayerNorm.gamma', 'LayerNorm.weight').replace('LayerNorm.beta', 'LayerNorm.bias')
        if not re.search(BUFFERS, name):
            arrays[name] = np.asarray(values, np.float32)
    split_positions(arrays, 'embeddings.', 'embeddings.position_embeddings')
    split_positions(arrays, 'vision_model.embeddings.', 'vision_model.embeddings.position_embedding.weight')
    for kind in ('weight', 'bias'):
        packed = arrays.pop(f'vision_model.head.attention.in_proj_{kind}', None)
        if packed is not None:  # query, key and value, one after the other
            third = len(packed) // 3
            arrays[f'vision_model.head.attention.q.{kind}'] = packed[:third]
            arrays[f'vision_model.head.attention.kv.{kind}'] = packed[third:]
    return arrays


def split_positions(arrays: dict[str, np.ndarray], prefix: str, name: str) -> None:
    """Splits the position embeddings called `name`, if there are any: CLS (if the model has it) and a square grid."""
    if name not in arrays:
        return
    positions = arrays.pop(name)
    positions = positions.reshape(-1, positions.shape[-1])
    cls = f'{prefix}cls_token' in arrays or f'{prefix}class_embedding' in arrays
    if cls:
        arrays[f'{prefix}position_cls'] = positions[0]
    side = int(np.sqrt(len(positions) - cls))
    if side * side != len(positions) - cls:
        raise UserError(f'{name} has {len(positions) - cls} positions of patches: no square grid')
    arrays[f'{prefix}position_grid'] = positions[int(cls) :].reshape(side, side, -1)


def convert(state: State, module: Module, wanted: Params) -> Params:
    """The parameters of a module, with heads and depth as in the shapes of `wanted`, and sizes as in the file.

    `state` comes from `canonical`. UserError: an array that `wanted` has and the file lacks, or the other way round.
    """
    unused = {name for name in state if re.match(module.owns, name)}
    flat = {}
    for path, shape in export.flatten(wanted, shapes=True).items():
        line = module.table.get(path)
        if line is None or line.names[0].format(line.first) not in state:
            if path in NEW:
                flat[path] = np.zeros(shape, np.float32)
                continue
            raise UserError(f'{path} is missing from the weights')
        stacked = '{}' in line.names[0]
        sizes = {}
        if '(' in line.pattern:  # einops needs the sizes of the axes that torch joins
            axes = line.pattern.split(' -> ')[1].split()
            sizes = {axis: n for axis, n in zip(axes, shape[stacked:], strict=True) if axis in ('c', 'h')}
        layers = []
        for i in range(line.first, line.first + shape[0]) if stacked else [0]:
            names = [name.format(i) for name in line.names]
            missing = [name for name in names if name not in state]
            if missing:
                raise UserError(f'{missing[0]} is missing from the weights: are there fewer layers?')
            unused -= set(names)
            values = np.concatenate([state[name] for name in names]) if len(names) > 1 else state[names[0]]
            layers.append(from_torch(names[0], values, line.pattern, **sizes))
        flat[path] = np.stack(layers) if stacked else layers[0]
    if unused:
        raise UserError(f'the weights have {min(unused)}, this configuration does not (of {len(unused)} such arrays)')
    return export.unflatten(flat)
