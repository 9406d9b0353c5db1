"""Text towers and pairs: BERT types, CLIP and SigLIP in the names of Hugging Face, of OpenAI and of open_clip."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medjax.errors import UserError
from medjax.models.layers import SIZES
from medjax.models.towers.text import FAMILIES
from medjax.weights.arrays import Arrays
from medjax.weights.families import vit
from medjax.weights.layout import Layout, Sizes, axes, layers
from medjax.weights.names import Line, Pooling, Positions, Table, attention, linear, norm, packed_attention

# BERT. ClinicalBERT, PubMedBERT, CXR-BERT and BiomedBERT differ from it in vocabulary and weights only.
BERT = (
    Line('words', ('embeddings.word_embeddings.weight',), 'w d -> w d'),
    Line('positions', ('embeddings.position_embeddings.weight',), 't d -> t d'),
    Line('segments', ('embeddings.token_type_embeddings.weight',), 's d -> s d'),
    *norm('embed_norm', 'embeddings.LayerNorm'),
    *attention(
        'blocks/attn',
        [f'encoder.layer.{{}}.attention.self.{one}' for one in ('query', 'key', 'value')],
        'encoder.layer.{}.attention.output.dense',
    ),
    *norm('blocks/norm1', 'encoder.layer.{}.attention.output.LayerNorm'),
    *linear('blocks/mlp/fc1', 'encoder.layer.{}.intermediate.dense'),
    *linear('blocks/mlp/fc2', 'encoder.layer.{}.output.dense'),
    *norm('blocks/norm2', 'encoder.layer.{}.output.LayerNorm'),
)


def clip_blocks(layer: str) -> Table:
    """The blocks of CLIP and SigLIP in Hugging Face's names."""
    return (
        *norm('blocks/norm1', f'{layer}.layer_norm1'),
        *attention('blocks/attn', [f'{layer}.self_attn.{x}_proj' for x in 'qkv'], f'{layer}.self_attn.out_proj'),
        *norm('blocks/norm2', f'{layer}.layer_norm2'),
        *linear('blocks/mlp/fc1', f'{layer}.mlp.fc1'),
        *linear('blocks/mlp/fc2', f'{layer}.mlp.fc2'),
    )


def openai_blocks(layer: str) -> Table:
    """The blocks of CLIP in the names of OpenAI and open_clip."""
    return (
        *norm('blocks/norm1', f'{layer}.ln_1'),
        *packed_attention('blocks/attn', f'{layer}.attn', f'{layer}.attn.out_proj'),
        *norm('blocks/norm2', f'{layer}.ln_2'),
        *linear('blocks/mlp/fc1', f'{layer}.mlp.c_fc'),
        *linear('blocks/mlp/fc2', f'{layer}.mlp.c_proj'),
    )


HF_TEXT = (  # of CLIP and SigLIP
    Line('words', ('embeddings.token_embedding.weight',), 'w d -> w d'),
    Line('positions', ('embeddings.position_embedding.weight',), 't d -> t d'),
    *clip_blocks('encoder.layers.{}'),
    *norm('norm', 'final_layer_norm'),
)
HF_CLIP = (
    Line('cls', ('embeddings.class_embedding',), 'd -> d'),
    Positions('embeddings.position_embedding.weight', batch=False),
    Line('patch_embed/kernel', ('embeddings.patch_embedding.weight',), 'd c p q -> p q c d'),
    *norm('embed_norm', 'pre_layrnorm'),
    *clip_blocks('encoder.layers.{}'),
    *norm('norm', 'post_layernorm'),
)
HF_SIGLIP = (
    Positions('embeddings.position_embedding.weight', cls=False, batch=False),
    Line('patch_embed/kernel', ('embeddings.patch_embedding.weight',), 'd c p q -> p q c d'),
    Line('patch_embed/bias', ('embeddings.patch_embedding.bias',), 'd -> d'),
    *clip_blocks('encoder.layers.{}'),
    *norm('norm', 'post_layernorm'),
    Line('pool/probe', ('head.probe',), '1 1 d -> d'),
    Pooling('head.attention'),
    Line('pool/out/kernel', ('head.attention.out_proj.weight',), 'd (h k) -> h k d'),
    Line('pool/out/bias', ('head.attention.out_proj.bias',), 'd -> d'),
    *norm('pool/norm', 'head.layernorm'),
    *linear('pool/mlp/fc1', 'head.mlp.fc1'),
    *linear('pool/mlp/fc2', 'head.mlp.fc2'),
)
OPENAI_TEXT = (
    Line('words', ('token_embedding.weight',), 'w d -> w d'),
    Line('positions', ('positional_embedding',), 't d -> t d'),
    *openai_blocks('transformer.resblocks.{}'),
    *norm('norm', 'ln_final'),
)
OPENAI_VISION = (
    Line('cls', ('class_embedding',), 'd -> d'),
    Positions('positional_embedding', batch=False),
    Line('patch_embed/kernel', ('conv1.weight',), 'd c p q -> p q c d'),
    *norm('embed_norm', 'ln_pre'),
    *openai_blocks('transformer.resblocks.{}'),
    *norm('norm', 'ln_post'),
)
# CXR-BERT's projection: our head dict(head='mlp', activation='gelu', norm=True).
CXR_BERT_HEAD = (
    *linear('fc1', 'cls_projection_head.dense_to_hidden'),
    *norm('norm1', 'cls_projection_head.LayerNorm'),
    *linear('fc2', 'cls_projection_head.dense_to_output'),
)


def sizes(table: Table, arrays: Arrays) -> Sizes:
    words, places = axes(table, arrays, 'words'), axes(table, arrays, 'positions')
    first = axes(table, arrays, 'blocks/mlp/fc1/kernel')
    if not words or not places or not first:
        raise UserError('a text tower has embeddings of words and of positions, and blocks')
    return dict(
        width=words['d'],
        vocabulary=words['w'],
        context=places['t'],
        depth=layers(table, arrays, 'blocks/'),
        hidden=first['o'],
    )


def section(family: str) -> Any:
    """The function that describes a text tower of a family."""

    def describe(found: Sizes, config: Mapping[str, Any]) -> dict[str, Any]:
        shape = {name: found[name] for name in ('width', 'depth', 'heads')}
        same = [name for name, size in SIZES.items() if all(size[key] == value for key, value in shape.items())]
        chosen = same[0] if same else 'S'
        cfg: dict[str, Any] = dict(tower='text', family=family, variant=chosen) | ({} if same else shape)
        ratio = found['hidden'] / found['width']
        cfg |= {} if ratio == SIZES[chosen]['mlp_ratio'] else dict(mlp_ratio=ratio)
        cfg |= {
            name: found[name] for name in ('vocabulary', 'context') if found[name] != getattr(FAMILIES[family], name)
        }
        for name in ('eps', 'activation'):
            if config.get(name) is not None and config[name] != getattr(FAMILIES[family], name):
                cfg[name] = config[name]
        return cfg

    return describe


def head_sizes(table: Table, arrays: Arrays) -> Sizes:
    first, second = axes(table, arrays, 'fc1/kernel'), axes(table, arrays, 'fc2/kernel')
    found = dict(bias=axes(table, arrays, 'fc1/bias') is not None)
    if second:
        return found | dict(hidden=first.get('o'), out=second['o'])
    return found | dict(out=first['o'])


def linear_section(found: Sizes, config: Mapping[str, Any]) -> dict[str, Any]:
    return dict(head='linear', out=found['out']) | (dict(bias=True) if found['bias'] else {})


def mlp_section(found: Sizes, config: Mapping[str, Any]) -> dict[str, Any]:
    hidden = {} if found['hidden'] == found['out'] else dict(hidden=found['hidden'])
    bias = {} if found['bias'] else dict(bias=False)
    return dict(head='mlp', out=found['out'], activation='gelu') | hidden | bias


def cxr_bert_section(found: Sizes, config: Mapping[str, Any]) -> dict[str, Any]:
    return mlp_section(found, config) | dict(norm=True)


def _text(
    title: str, table: Table, family: str, signs: str, absent: str = '', left_out: str = r'(?!)', types: str = ''
) -> Layout:
    return Layout(
        title=title,
        module='towers/text',
        signs=tuple(signs.split()),
        absent=tuple(absent.split()),
        table=table,
        left_out=left_out,
        config='text',
        types=tuple(types.split()),
        sizes=sizes,
        describe=section(family),
    )


def _image(title: str, table: Table, family: str, signs: str, types: str) -> Layout:
    return Layout(title=title, module='towers/image', signs=tuple(signs.split()), table=table, config='image',
                  sizes=vit.sizes, describe=vit.section(family), types=tuple(types.split()))  # fmt: skip


def _head(title: str, module: str, table: Table, signs: str, describe: Any = linear_section) -> Layout:
    return Layout(
        title=title,
        module=module,
        signs=tuple(signs.split()),
        table=table,
        sizes=head_sizes,
        describe=describe,
    )


LAYOUTS = (
    _text('BERT', BERT, 'bert', 'embeddings.word_embeddings.weight encoder.layer.0.attention.self.query.weight', '',
          r'pooler\.|cls\.|classifier\.', 'bert cxr-bert'),
    # SigLIP's text tower has its projection inside, CLIP's has it outside
    _text("CLIP's text tower in Hugging Face's names", HF_TEXT, 'clip',
          'embeddings.token_embedding.weight encoder.layers.0.layer_norm1.weight', 'head.weight',
          types='clip clip_text_model'),
    _text("SigLIP's text tower in Hugging Face's names", HF_TEXT, 'siglip',
          'embeddings.token_embedding.weight encoder.layers.0.layer_norm1.weight head.weight', '', r'head\.',
          'siglip siglip_text_model'),
    _text("CLIP's text tower in OpenAI's names", OPENAI_TEXT, 'clip', 'token_embedding.weight ln_final.weight',
          'text_projection.bias', r'text_projection$|attn_mask$'),
    _text("SigLIP's text tower in open_clip's names", OPENAI_TEXT, 'siglip',
          'token_embedding.weight ln_final.weight text_projection.bias', '', r'text_projection\.|attn_mask$'),
    _image("CLIP's ViT in Hugging Face's names", HF_CLIP, 'clip',
           'embeddings.class_embedding pre_layrnorm.weight', 'clip clip_vision_model'),
    _image("SigLIP's ViT in Hugging Face's names", HF_SIGLIP, 'siglip',
           'embeddings.patch_embedding.weight head.probe', 'siglip siglip_vision_model'),
    Layout(title="CLIP's ViT in OpenAI's names", module='towers/image', table=OPENAI_VISION, config='image',
           signs=('class_embedding', 'ln_pre.weight'), left_out=r'proj$', sizes=vit.sizes,
           describe=vit.section('clip')),
    _head("CXR-BERT's projection", 'heads/text', CXR_BERT_HEAD, 'cls_projection_head.dense_to_hidden.weight',
          cxr_bert_section),
    _head("CLIP's projection of texts", 'heads/text', linear('fc1', 'text_projection'), 'text_projection.weight'),
    _head("SigLIP's projection of texts", 'heads/text', linear('fc1', 'head'), 'head.weight final_layer_norm.weight'),
    _head("CLIP's projection of images", 'heads/image', linear('fc1', 'visual_projection'),
          'visual_projection.weight'),
    _head("CLIP's projection of texts in OpenAI's names", 'heads/text',
          (Line('fc1/kernel', ('text_projection',), 'i o -> i o'),), 'text_projection'),
    _head("CLIP's projection of images in OpenAI's names", 'heads/image',
          (Line('fc1/kernel', ('visual.proj',), 'i o -> i o'),), 'visual.proj'),
    _head("open_clip's projection of images", 'heads/image', linear('fc1', 'visual.head.proj'),
          'visual.head.proj.weight'),
    _head("open_clip's projection of texts", 'heads/text',
          (*linear('fc1', 'text.proj.0'), *linear('fc2', 'text.proj.2')), 'text.proj.0.weight', mlp_section),
    _head("open_clip's linear projection of texts", 'heads/text', linear('fc1', 'text.proj'), 'text.proj.weight'),
)  # fmt: skip
