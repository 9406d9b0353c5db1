"""ViTs: DINOv2 and DINOv3, masked autoencoders, the ViT of timm and of Hugging Face.

timm's names are those of DINO, DINOv2, MAE and Medical MAE (arXiv 2210.12843) too: `blocks.0.attn.qkv.weight`. Hugging
Face has names of its own: `encoder.layer.0.attention.attention.query.weight`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from medjax.errors import UserError
from medjax.models.layers import SIZES
from medjax.models.relative import BANDS
from medjax.models.towers.vit import FAMILIES, sincos_positions, swiglu_hidden
from medjax.weights import names
from medjax.weights.arrays import Arrays
from medjax.weights.layout import Layout, Sizes, axes, layers, positions
from medjax.weights.names import Flat, Line, Positions, Table, attention, linear, norm, patch_embedding

CHANGES = ('brightness', 'contrast', 'gamma', 'blur', 'noise')  # that CheXWorld tells its predictor, in this order

# What we see in the arrays.


def sizes(table: Table, arrays: Arrays) -> Sizes:
    """The sizes of a ViT: those of its sections in a recipe, and `hidden`, `grid` and `channels`."""
    kernel = axes(table, arrays, 'patch_embed/kernel')
    if kernel is None:
        raise UserError('there is no patch embedding')
    found: Sizes = dict(width=kernel['d'], patch=kernel['p'], channels=kernel['c'])
    found['depth'] = layers(table, arrays, 'blocks/')
    for path, parts in (('blocks/mlp/fc1/kernel', 1), ('blocks/mlp/w12/kernel', 2)):
        first = axes(table, arrays, path)
        if first:
            joined = next(len(line.names) for line in table if isinstance(line, Line) and line.path == path)
            found |= dict(hidden=first['o'] * joined // parts, ffn='mlp' if parts == 1 else 'swiglu')
    if 'hidden' not in found:
        raise UserError('its blocks have no FFN in the names of such a ViT')
    registers = [line for line in table if isinstance(line, Line) and line.path == 'registers' and line.there(arrays)]
    shape = arrays.shape(registers[0].names[0]) if registers else ()
    found['registers'] = shape[1] if len(shape) == 3 else 0
    found['layerscale'] = layers(table, arrays, 'blocks/gamma1') > 0
    found['qkv_bias'] = layers(table, arrays, 'blocks/attn/qkv/bias') > 0
    for name in arrays:  # DINOv3's own code stores the rates of rotation, a quarter of the size of a head
        if name.endswith('rope_embed.periods'):
            found['heads'] = found['width'] // (4 * arrays.shape(name)[-1])
    if at := positions(table, arrays):
        line, count = at
        first = line.first_rows(count)
        found['positions'] = count - first
        side = round(found['positions'] ** 0.5)
        if side * side == found['positions'] and arrays.is_float(line.name):
            rows = arrays[line.name].reshape(count, -1)
            found['fixed_positions'] = is_sincos(rows[first:].reshape(side, side, -1), rows[0] if first else None)
    return found


def is_sincos(grid: np.ndarray, cls: np.ndarray | None) -> bool:
    """Whether position embeddings [h,w,D] and [D] are the fixed ones of masked autoencoders (up to 1e-4)."""
    height, width, d = grid.shape
    if d % 4 or (cls is not None and np.abs(cls).max() > 1e-4):
        return False
    return bool(np.abs(grid.reshape(-1, d) - sincos_positions((height, width), d)).max() < 1e-4)


def fixed_positions(arrays: Arrays, name: str = 'pos_embed') -> bool:
    """Whether a table [1,h w,D] holds the fixed position embeddings of a square grid, without a row for CLS."""
    shape = arrays.shape(name)
    side = round(shape[-2] ** 0.5) if len(shape) == 3 else 0
    return side**2 == shape[-2] and arrays.is_float(name) and is_sincos(arrays[name].reshape(side, side, -1), None)


# The section of a recipe.


def section(family: str, **fixed: Any) -> Any:
    """The function that describes a ViT of a family, with some settings that are the same for all files of a layout."""

    def describe(found: Sizes, config: Mapping[str, Any]) -> dict[str, Any]:
        heads, patch = found['heads'], found['patch']
        shape = {name: found[name] for name in ('width', 'depth', 'ffn')} | dict(heads=heads)
        same = [name for name, size in SIZES.items() if all(size[key] == value for key, value in shape.items())]
        chosen = same[0] if same else 'S'
        cfg: dict[str, Any] = dict(tower='vit', variant=f'{chosen}/{patch}', family=family)
        cfg |= {} if same else shape
        ratio = _ratio(found)
        cfg |= {} if same and ratio == SIZES[chosen]['mlp_ratio'] else dict(mlp_ratio=ratio)
        if found['registers']:
            cfg['registers'] = found['registers']
        if not found['layerscale'] and FAMILIES[family].layerscale is not None:
            cfg['layerscale'] = None
        if not found['qkv_bias']:
            cfg['qkv_bias'] = False
        if found.get('fixed_positions') or (family == 'mae' and 'positions' not in found):
            cfg['positions'] = 'sincos'
        if FAMILIES[family].positions != 'rope' or config.get('size'):
            cfg['native_size'] = _native_size(found, config)
        default = dict(rope_base=100.0, rope_rescale=None, rope_shift=None, rope_jitter=None)
        cfg |= {name: config[name] for name, value in default.items() if config.get(name, value) != value}
        for name in ('eps', 'activation'):
            if config.get(name) is not None and config[name] != getattr(FAMILIES[family], name):
                cfg[name] = config[name]
        return cfg | fixed

    return describe


def _ratio(found: Sizes) -> float:
    """The mlp_ratio that gives the hidden width of the file."""
    width, hidden = found['width'], found['hidden']
    if found['ffn'] == 'mlp':
        return hidden / width
    for ratio in (4.0, hidden * 1.5 / width, (hidden * 1.5 - 1) / width, (hidden * 1.5 + 1) / width):
        if swiglu_hidden(round(width * ratio)) == hidden:
            return ratio
    raise UserError(f'no tower of ours has a SwiGLU of hidden width {hidden} at the width {width}')


def _native_size(found: Sizes, config: Mapping[str, Any]) -> int | tuple[int, int]:
    """The image size whose grid the position embeddings have; of the config where it has the same grid."""
    patch, said = found['patch'], config.get('size')
    if 'positions' not in found:
        return said or 14 * patch
    if said is not None:
        height, width = (said, said) if isinstance(said, int) else said
        if (height // patch) * (width // patch) == found['positions']:
            height, width = height // patch * patch, width // patch * patch
            return height if height == width else (height, width)
    side, _ = names.square('the table of positions', found['positions'])
    return side * patch


# timm's names, and Meta's.


@dataclasses.dataclass(frozen=True)
class QueryValueBias:
    """The bias [3 D] of queries, keys and values in Meta's DINOv3. Keys have none: the middle third counts as 0."""

    name: str  # 'blocks.{}.attn.qkv'

    def _line(self) -> Line:
        return Line('blocks/attn/qkv/bias', (f'{self.name}.bias',), '(c h k) -> c h k')

    def there(self, arrays: Arrays) -> bool:
        return self._line().there(arrays)

    def all_names(self, arrays: Arrays) -> list[str]:
        return self._line().all_names(arrays)

    def layers(self, arrays: Arrays) -> int:
        return self._line().layers(arrays)

    def ours(self) -> tuple[str, ...]:
        return ('blocks/attn/qkv/bias',)

    def read(self, arrays: Arrays, heads: int | None) -> Flat:
        (bias,) = self._line().read(arrays, heads).values()
        return {'blocks/attn/qkv/bias': np.ascontiguousarray(bias[:, [0, 2]])}

    def write(self, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        if 'blocks/attn/qkv/bias' not in params:
            return
        for i, bias in enumerate(np.asarray(params['blocks/attn/qkv/bias'])):
            flat = bias.reshape(2, -1)
            name = self.name.format(i)
            mask = np.ones((3, flat.shape[1]), np.float32)
            mask[1] = 0
            yield f'{name}.bias', np.stack([flat[0], np.zeros_like(flat[0]), flat[1]]).reshape(-1)
            yield f'{name}.bias_mask', mask.reshape(-1)


@dataclasses.dataclass(frozen=True)
class FoldedCls:
    """The CLS token of timm's ViTs with registers: its position is already added to it."""

    name: str

    def there(self, arrays: Arrays) -> bool:
        return self.name in arrays

    def all_names(self, arrays: Arrays) -> list[str]:
        return [self.name]

    def ours(self) -> tuple[str, ...]:
        return ('cls', 'pos_cls')

    def read(self, arrays: Arrays, heads: int | None) -> Flat:
        cls = arrays[self.name].reshape(-1)
        return {'cls': cls, 'pos_cls': np.zeros_like(cls)}

    def write(self, params: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
        if 'cls' in params:
            yield self.name, (np.asarray(params['cls']) + np.asarray(params['pos_cls']))[None, None]


def timm_blocks(blocks: str = 'blocks') -> Table:
    at = f'{blocks}.{{}}'
    return (
        *norm('blocks/norm1', f'{at}.norm1'),
        *attention('blocks/attn', (f'{at}.attn.qkv',), f'{at}.attn.proj'),
        *norm('blocks/norm2', f'{at}.norm2'),
    )


MLP = (*linear('blocks/mlp/fc1', 'blocks.{}.mlp.fc1'), *linear('blocks/mlp/fc2', 'blocks.{}.mlp.fc2'))
W12 = (*linear('blocks/mlp/w12', 'blocks.{}.mlp.w12'), *linear('blocks/mlp/w3', 'blocks.{}.mlp.w3'))
# timm packs gate and value into fc1
TIMM_W12 = (*linear('blocks/mlp/w12', 'blocks.{}.mlp.fc1'), *linear('blocks/mlp/w3', 'blocks.{}.mlp.fc2'))
LAYERSCALE = tuple(Line(f'blocks/gamma{i}', (f'blocks.{{}}.ls{i}.gamma',), 'd -> d') for i in (1, 2))
OUTSIDE = (
    Line('cls', ('cls_token',), '1 1 d -> d'),
    *patch_embedding('patch_embed.proj'),
    *norm('norm', 'norm'),
)
META_DINOV2 = (
    *OUTSIDE, Positions('pos_embed'), *timm_blocks(), *MLP, *W12, *LAYERSCALE,
    Line('mask_token', ('mask_token',), '1 d -> d'),
    Line('registers', ('register_tokens',), '1 r d -> r d'),
)  # fmt: skip
TIMM = (*OUTSIDE, Positions('pos_embed'), *timm_blocks(), *MLP, *LAYERSCALE)
TIMM_SWIGLU = (*OUTSIDE, Positions('pos_embed'), *timm_blocks(), *TIMM_W12, *LAYERSCALE)
REGISTERS = (Line('registers', ('reg_token',), '1 r d -> r d'),)
TIMM_REGISTERS_OUTSIDE = (FoldedCls('cls_token'), *OUTSIDE[1:], Positions('pos_embed', cls=False))
TIMM_REGISTERS = (*TIMM_REGISTERS_OUTSIDE, *timm_blocks(), *MLP, *LAYERSCALE, *REGISTERS)
TIMM_REGISTERS_SWIGLU = (*TIMM_REGISTERS_OUTSIDE, *timm_blocks(), *TIMM_W12, *LAYERSCALE, *REGISTERS)
TIMM_CLIP = (
    Line('cls', ('cls_token',), '1 1 d -> d'),
    *patch_embedding('patch_embed.proj', bias=False),
    *norm('embed_norm', 'norm_pre'),
    *norm('norm', 'norm'),
    Positions('pos_embed'), *timm_blocks(), *MLP,
)  # fmt: skip
TIMM_SIGLIP = (
    *patch_embedding('patch_embed.proj'),
    *norm('norm', 'norm'),
    Positions('pos_embed', cls=False), *timm_blocks(), *MLP,
    Line('pool/probe', ('attn_pool.latent',), '1 1 d -> d'),
    Line('pool/q/kernel', ('attn_pool.q.weight',), '(h k) d -> d h k'),
    Line('pool/q/bias', ('attn_pool.q.bias',), '(h k) -> h k'),
    Line('pool/kv/kernel', ('attn_pool.kv.weight',), '(c h k) d -> d c h k', c=2),
    Line('pool/kv/bias', ('attn_pool.kv.bias',), '(c h k) -> c h k', c=2),
    Line('pool/out/kernel', ('attn_pool.proj.weight',), 'd (h k) -> h k d'),
    Line('pool/out/bias', ('attn_pool.proj.bias',), 'd -> d'),
    *norm('pool/norm', 'attn_pool.norm'),
    *linear('pool/mlp/fc1', 'attn_pool.mlp.fc1'),
    *linear('pool/mlp/fc2', 'attn_pool.mlp.fc2'),
)  # fmt: skip
TIMM_IJEPA = (
    *patch_embedding('patch_embed.proj'),
    *norm('norm', 'norm'),
    Positions('pos_embed', cls=False), *timm_blocks(), *MLP,
)  # fmt: skip
W1_W2_W3 = (
    Line('blocks/mlp/w12/kernel', ('blocks.{}.mlp.w1.weight', 'blocks.{}.mlp.w2.weight'), 'o i -> i o'),
    Line('blocks/mlp/w12/bias', ('blocks.{}.mlp.w1.bias', 'blocks.{}.mlp.w2.bias'), 'o -> o'),
    *linear('blocks/mlp/w3', 'blocks.{}.mlp.w3'),
)
META_DINOV3 = (
    *OUTSIDE, *(line for line in timm_blocks() if line.path != 'blocks/attn/qkv/bias'), *MLP, *W1_W2_W3, *LAYERSCALE,
    QueryValueBias('blocks.{}.attn.qkv'),
    Line('mask_token', ('mask_token',), '1 d -> d'),
    Line('registers', ('storage_tokens',), '1 r d -> r d'),
)  # fmt: skip
TIMM_GATED = (
    Line('blocks/mlp/w12/kernel', ('blocks.{}.mlp.fc1_g.weight', 'blocks.{}.mlp.fc1_x.weight'), 'o i -> i o'),
    Line('blocks/mlp/w12/bias', ('blocks.{}.mlp.fc1_g.bias', 'blocks.{}.mlp.fc1_x.bias'), 'o -> o'),
    *linear('blocks/mlp/w3', 'blocks.{}.mlp.fc2'),
)
TIMM_DINOV3 = (
    *OUTSIDE, *REGISTERS, *(line for line in timm_blocks() if line.path != 'blocks/attn/qkv/bias'),
    Line('blocks/attn/qkv/bias', ('blocks.{}.attn.q_bias', 'blocks.{}.attn.v_bias'), '(c h k) -> c h k', c=2),
    *(Line(f'blocks/gamma{i}', (f'blocks.{{}}.gamma_{i}',), 'd -> d') for i in (1, 2)),
)  # fmt: skip
MAE_DECODER = (
    Line('mask_token', ('mask_token',), '1 1 d -> d'),
    *linear('embed', 'decoder_embed'),
    *norm('norm', 'decoder_norm'),
    *linear('pixels', 'decoder_pred'),
    *timm_blocks('decoder_blocks'),
    *linear('blocks/mlp/fc1', 'decoder_blocks.{}.mlp.fc1'),
    *linear('blocks/mlp/fc2', 'decoder_blocks.{}.mlp.fc2'),
)
IJEPA_PREDICTOR = (
    Line('mask_token', ('mask_token',), '1 1 d -> d'),
    *linear('embed', 'predictor_embed'),
    *norm('norm', 'predictor_norm'),
    *linear('project', 'predictor_proj'),
    *timm_blocks('predictor_blocks'),
    *linear('blocks/mlp/fc1', 'predictor_blocks.{}.mlp.fc1'),
    *linear('blocks/mlp/fc2', 'predictor_blocks.{}.mlp.fc2'),
)
CHEXWORLD_PREDICTOR = (
    *IJEPA_PREDICTOR,
    *linear('place', 'predictor_pos_mlp'),
    *(line for i in range(3) for line in linear(f'changes{i + 1}', f'policy_net.{2 * i}')),
)

# Hugging Face's names.


def hf_attention(layer: str) -> Table:
    own = f'{layer}.attention.attention'
    return attention(
        'blocks/attn', [f'{own}.{one}' for one in ('query', 'key', 'value')], f'{layer}.attention.output.dense'
    )


HF_OUTSIDE = (
    Line('cls', ('embeddings.cls_token',), '1 1 d -> d'),
    Positions('embeddings.position_embeddings'),
    *patch_embedding('embeddings.patch_embeddings.projection'),
    *norm('norm', 'layernorm'),
)
HF_MLP = 'encoder.layer.{}.mlp'
HF_DINOV2 = (
    *HF_OUTSIDE,
    Line('mask_token', ('embeddings.mask_token',), '1 d -> d'),
    Line('registers', ('embeddings.register_tokens',), '1 r d -> r d'),
    *norm('blocks/norm1', 'encoder.layer.{}.norm1'),
    *hf_attention('encoder.layer.{}'),
    *norm('blocks/norm2', 'encoder.layer.{}.norm2'),
    *linear('blocks/mlp/fc1', 'encoder.layer.{}.mlp.fc1'),
    *linear('blocks/mlp/fc2', 'encoder.layer.{}.mlp.fc2'),
    *linear('blocks/mlp/w12', 'encoder.layer.{}.mlp.weights_in'),
    # modules of transformers 5 in memory have gate and value apart
    Line(
        'blocks/mlp/w12/kernel', tuple(f'encoder.layer.{{}}.mlp.{x}_proj.weight' for x in ('gate', 'up')), 'o i -> i o'
    ),
    Line('blocks/mlp/w12/bias', tuple(f'encoder.layer.{{}}.mlp.{x}_proj.bias' for x in ('gate', 'up')), 'o -> o'),
    *linear('blocks/mlp/w3', 'encoder.layer.{}.mlp.weights_out'),
    *(Line(f'blocks/gamma{i}', (f'encoder.layer.{{}}.layer_scale{i}.lambda1',), 'd -> d') for i in (1, 2)),
)


def hf_blocks(layer: str) -> Table:
    return (
        *norm('blocks/norm1', f'{layer}.layernorm_before'),
        *hf_attention(layer),
        *norm('blocks/norm2', f'{layer}.layernorm_after'),
        *linear('blocks/mlp/fc1', f'{layer}.intermediate.dense'),
        *linear('blocks/mlp/fc2', f'{layer}.output.dense'),
    )


HF_VIT = (*HF_OUTSIDE, Line('mask_token', ('embeddings.mask_token',), '1 1 d -> d'), *hf_blocks('encoder.layer.{}'))
HF_MAE_DECODER = (
    Line('mask_token', ('decoder.mask_token',), '1 1 d -> d'),
    *linear('embed', 'decoder.decoder_embed'),
    *norm('norm', 'decoder.decoder_norm'),
    *linear('pixels', 'decoder.decoder_pred'),
    *hf_blocks('decoder.decoder_encoder.layer.{}'),
)
HF_DINOV3 = (
    Line('cls', ('embeddings.cls_token',), '1 1 d -> d'),
    Line('mask_token', ('embeddings.mask_token',), '1 1 d -> d'),
    Line('registers', ('embeddings.register_tokens',), '1 r d -> r d'),
    *patch_embedding('embeddings.patch_embeddings'),
    *norm('norm', 'norm'),
    *norm('blocks/norm1', 'layer.{}.norm1'),
    Line('blocks/attn/qkv/kernel', tuple(f'layer.{{}}.attention.{x}_proj.weight' for x in 'qkv'),
         '(c h k) d -> d c h k'),
    Line('blocks/attn/qkv/bias', tuple(f'layer.{{}}.attention.{x}_proj.bias' for x in 'qv'), '(c h k) -> c h k', c=2),
    Line('blocks/attn/out/kernel', ('layer.{}.attention.o_proj.weight',), 'd (h k) -> h k d'),
    Line('blocks/attn/out/bias', ('layer.{}.attention.o_proj.bias',), 'd -> d'),
    *norm('blocks/norm2', 'layer.{}.norm2'),
    *linear('blocks/mlp/fc1', 'layer.{}.mlp.up_proj'),
    *linear('blocks/mlp/fc2', 'layer.{}.mlp.down_proj'),
    *(Line(f'blocks/gamma{i}', (f'layer.{{}}.layer_scale{i}.lambda1',), 'd -> d') for i in (1, 2)),
)  # fmt: skip
HF_DINOV3_GATED = (
    *(line for line in HF_DINOV3 if not line.path.startswith('blocks/mlp')),
    Line('blocks/mlp/w12/kernel', ('layer.{}.mlp.gate_proj.weight', 'layer.{}.mlp.up_proj.weight'), 'o i -> i o'),
    Line('blocks/mlp/w12/bias', ('layer.{}.mlp.gate_proj.bias', 'layer.{}.mlp.up_proj.bias'), 'o -> o'),
    *linear('blocks/mlp/w3', 'layer.{}.mlp.down_proj'),
)


def packed(arrays: Arrays) -> bool:
    """Whether fc1 of timm's blocks holds gate and value of a SwiGLU: it is twice as wide as fc2 reads."""
    return arrays.shape('blocks.0.mlp.fc1.weight')[0] == 2 * arrays.shape('blocks.0.mlp.fc2.weight')[-1]


def not_packed(arrays: Arrays) -> bool:
    return not packed(arrays)


def decoder_sizes(table: Table, arrays: Arrays) -> Sizes:
    embed, first = axes(table, arrays, 'embed/kernel'), axes(table, arrays, 'blocks/mlp/fc1/kernel')
    if not embed or not first:
        raise UserError('a decoder or a predictor has an embedding and blocks')
    return dict(width=embed['o'], depth=layers(table, arrays, 'blocks/'), hidden=first['o'])


def world_sizes(table: Table, arrays: Arrays) -> Sizes:
    """The sizes of a predictor of CheXWorld, and what it is told of the context's crop."""
    found = decoder_sizes(table, arrays)
    first, scale = arrays.shape('policy_net.0.weight'), 'predictor_pos_mlp.weight' in arrays
    token = 'policy_net.4.weight' not in arrays
    told = first[1] // (2 * BANDS + 1) if token else first[1] - found['width']
    if told != len(CHANGES):
        raise UserError(f'policy_net.0.weight has shape {first}: not that of the {len(CHANGES)} changes of CheXWorld')
    positions = 'relative_scale' if scale else 'relative'
    # 'add' has the same arrays as 'replace', with which the published predictor was trained
    return found | dict(positions=positions, condition='token' if token else 'replace', told=list(CHANGES))


def over_encoder(tower: str, *settings: str) -> Callable[[Sizes, Mapping[str, Any]], dict[str, Any]]:
    """The function that describes a decoder or a predictor; `settings` are options that `sizes` has found."""

    def describe(found: Sizes, config: Mapping[str, Any]) -> dict[str, Any]:
        sizes = {name: found[name] for name in ('width', 'depth', 'heads', *settings)}
        return dict(tower=tower, reads=['image'], mlp_ratio=found['hidden'] / found['width']) | sizes

    return describe


def _vit(
    title: str,
    table: Table,
    family: str,
    signs: str,
    absent: str = '',
    left_out: str = '',
    when: Callable[[Arrays], bool] = lambda arrays: True,
    types: str = '',
    **fixed: Any,
) -> Layout:
    return Layout(
        title=title,
        when=when,
        types=tuple(types.split()),
        module='towers/image',
        signs=tuple(signs.split()),
        absent=tuple(absent.split()),
        table=table,
        left_out=left_out or r'(?!)',
        config='image',
        sizes=sizes,
        describe=section(family, **fixed),
    )


# Norms of timm's ViT, DINO and MAE have the eps 1e-6, those of Google's and Hugging Face's ViT 1e-12.
PLAIN = 'cls_token patch_embed.proj.weight blocks.0.norm1.weight'
TIMM_DINOV2 = f'{PLAIN} pos_embed blocks.0.ls1.gamma blocks.0.mlp.fc1.weight blocks.0.mlp.fc2.weight'
CLASSIFIER = r'(head|head_dist|fc_norm|pre_logits|classifier)\.'
LAYOUTS = (
    _vit("a DINOv2 backbone in Meta's names", META_DINOV2, 'dinov2', f'{PLAIN} pos_embed mask_token blocks.0.ls1.gamma',
         'decoder_embed.weight', CLASSIFIER),
    *(
        _vit(f"a DINOv2 backbone{gated} in timm's names", table, 'dinov2', f'{TIMM_DINOV2}', 'mask_token reg_token',
             CLASSIFIER, when, antialias=True)
        for gated, table, when in (('', TIMM, not_packed), (' with SwiGLU', TIMM_SWIGLU, packed))
    ),
    *(
        _vit(f"a DINOv2 backbone with registers{gated} in timm's names", table, 'dinov2', f'{TIMM_DINOV2} reg_token',
             'mask_token', CLASSIFIER, when)
        for gated, table, when in (
            ('', TIMM_REGISTERS, not_packed), (' and SwiGLU', TIMM_REGISTERS_SWIGLU, packed))
    ),
    _vit("a DINO or iBOT backbone in Meta's names", META_DINOV2, 'dinov2', f'{PLAIN} pos_embed mask_token',
         'blocks.0.ls1.gamma decoder_embed.weight', CLASSIFIER),
    _vit("a ViT in timm's names", TIMM, 'vit', f'{PLAIN} pos_embed',
         'mask_token reg_token blocks.0.ls1.gamma norm_pre.weight', CLASSIFIER, eps=1e-6, antialias=True),
    _vit('a masked autoencoder', TIMM, 'mae', f'{PLAIN} decoder_embed.weight', '',
         r'(decoder_|mask_token$)' + f'|{CLASSIFIER}'),
    _vit("CLIP's ViT in timm's names", TIMM_CLIP, 'clip', f'{PLAIN} pos_embed norm_pre.weight', '', CLASSIFIER,
         antialias=True),
    _vit("SigLIP's ViT in timm's names", TIMM_SIGLIP, 'siglip', 'attn_pool.latent patch_embed.proj.weight',
         'cls_token', antialias=True),
    _vit("an encoder of I-JEPA", TIMM_IJEPA, 'ijepa',
         'pos_embed patch_embed.proj.weight blocks.0.norm1.weight blocks.0.mlp.fc1.weight',
         'cls_token attn_pool.latent blocks.0.ls1.gamma', CLASSIFIER, fixed_positions),
    _vit("a DINOv3 backbone in Meta's names", META_DINOV3, 'dinov3', f'{PLAIN} storage_tokens', 'pos_embed',
         r'rope_embed\.|blocks\.\d+\.attn\.qkv\.bias_mask|local_cls_norm\.'),
    _vit("a DINOv3 backbone without registers in Meta's names", META_DINOV3, 'dinov3', f'{PLAIN} rope_embed.periods',
         'pos_embed storage_tokens', r'rope_embed\.|blocks\.\d+\.attn\.qkv\.bias_mask|local_cls_norm\.'),
    _vit("a DINOv3 backbone in timm's names", (*TIMM_DINOV3, *MLP), 'dinov3',
         f'{PLAIN} blocks.0.gamma_1 blocks.0.mlp.fc1.weight', 'pos_embed', CLASSIFIER),
    _vit("a DINOv3 backbone with a gated FFN in timm's names", (*TIMM_DINOV3, *TIMM_GATED), 'dinov3',
         f'{PLAIN} blocks.0.gamma_1 blocks.0.mlp.fc1_g.weight', 'pos_embed', CLASSIFIER),
    _vit("a DINOv2 backbone in Hugging Face's names", HF_DINOV2, 'dinov2',
         'embeddings.cls_token encoder.layer.0.norm1.weight encoder.layer.0.layer_scale1.lambda1',
         'embeddings.register_tokens', r'classifier\.', types='dinov2', offset=0.0),
    _vit("a DINOv2 backbone with registers in Hugging Face's names", HF_DINOV2, 'dinov2',
         'embeddings.cls_token encoder.layer.0.layer_scale1.lambda1 embeddings.register_tokens', '', r'classifier\.',
         types='dinov2_with_registers'),
    _vit("a ViT in Hugging Face's names", HF_VIT, 'vit', 'embeddings.cls_token encoder.layer.0.layernorm_before.weight',
         '', r'(pooler|classifier|cls_classifier|distillation_classifier|decoder)\.', types='vit vit_mae vit_msn deit'),
    _vit("a DINOv3 backbone in Hugging Face's names", HF_DINOV3, 'dinov3',
         'embeddings.cls_token embeddings.patch_embeddings.weight layer.0.norm1.weight',
         'layer.0.mlp.gate_proj.weight', r'rope_embeddings\.|classifier\.', types='dinov3_vit'),
    _vit("a DINOv3 backbone with a gated FFN in Hugging Face's names", HF_DINOV3_GATED, 'dinov3',
         'embeddings.cls_token embeddings.patch_embeddings.weight layer.0.mlp.gate_proj.weight', '',
         r'rope_embeddings\.|classifier\.', types='dinov3_vit'),
    Layout(title='the decoder of a masked autoencoder', module='towers/decoder', table=MAE_DECODER,
           signs=('decoder_embed.weight', 'decoder_pred.weight'), prefix=r'(?!.*decoder\.$).*',
           left_out='decoder_pos_embed$', config='decoder',
           sizes=decoder_sizes, describe=over_encoder('decoder')),
    Layout(title="the decoder of a masked autoencoder in Hugging Face's names", module='towers/decoder',
           table=HF_MAE_DECODER, signs=('decoder.decoder_embed.weight', 'decoder.decoder_pred.weight'),
           left_out=r'decoder\.decoder_pos_embed$', config='decoder', sizes=decoder_sizes,
           describe=over_encoder('decoder')),
    Layout(title='the predictor of I-JEPA', module='towers/predictor', table=IJEPA_PREDICTOR,
           signs=('predictor_embed.weight', 'predictor_proj.weight'), absent=('policy_net.0.weight',),
           left_out='predictor_pos_embed$', config='predictor', sizes=decoder_sizes,
           describe=over_encoder('predictor')),
    Layout(title='the predictor of CheXWorld', module='towers/predictor', table=CHEXWORLD_PREDICTOR,
           signs=('predictor_embed.weight', 'predictor_proj.weight', 'policy_net.0.weight'),
           left_out='predictor_pos_embed$', config='predictor', sizes=world_sizes,
           describe=over_encoder('predictor', 'positions', 'condition', 'told')),
)  # fmt: skip
