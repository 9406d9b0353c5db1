"""The Vision Transformer of DINOv2, DINOv3, ViT, CLIP and SigLIP: patches, positions, scanned blocks, norm.

ViT: arXiv 2010.11929. DINOv2: arXiv 2304.07193. DINOv3: arXiv 2508.10104. Registers: arXiv 2309.16588. LayerScale:
arXiv 2103.17239.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax import Array

from medjax.errors import UserError, multiples
from medjax.models import lora as loras, prompts as visual_prompts, rotary
from medjax.models.bicubic import resize_grid
from medjax.models.drop_path import draw_kept, kept_count
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import (
    ACTIVATIONS,
    STARTS,
    LayerNorm,
    Pool,
    check_choice,
    check_compute,
    check_eps,
    cls_attention,
    parameter,
    scan_blocks,
    sizes,
    standardised,
    uniform_fan_in,
    weight_init,
    xavier,
    zeros,
)
from medjax.models.lora import Lora
from medjax.models.prompts import Prompts
from medjax.models.rotary import Change, Rotary
from medjax.parallel.sharding import constrain_rows
from medjax.plugins import call
from medjax.types import ApplyOptions, Input, Mask, Tower, Tree, is_number, is_whole


class Family(NamedTuple):
    """The settings in which families of public ViTs differ."""

    eps: float = 1e-6  # of the norms
    activation: str = 'gelu'
    layerscale: float | None = None  # the first value of LayerScale
    cls: bool = True  # whether there is a CLS token; if not, the output `cls` is pooled from the patches
    pool: str = 'attention'  # without a CLS token: 'attention' (with the parameters 'pool') or 'mean'
    patch_bias: bool = True
    embed_norm: bool = False  # whether there is a norm between the embeddings and the blocks
    offset: float = 0.0  # for resizing position embeddings, see `bicubic.cubic_weights`
    positions: str = 'learned'
    key_bias: bool = True
    token_start: float = 1e-6  # the deviation with which the CLS token and registers start
    patch_start: str = 'uniform'  # start of the patch embedding with start='normal': torch's, or 'normal' as all others


FAMILIES = {
    'dinov2': Family(layerscale=1e-5, offset=0.1),  # DINO and iBOT are the same with layerscale=None
    'dinov3': Family(eps=1e-5, layerscale=1e-5, positions='rope', key_bias=False, token_start=0.02),  # 4 registers
    'vit': Family(eps=1e-12),  # the ViT of Google and of Hugging Face, arXiv 2010.11929
    'mae': Family(),  # masked autoencoders, arXiv 2111.06377, with positions='sincos' and start='xavier'
    'clip': Family(eps=1e-5, activation='quick_gelu', patch_bias=False, embed_norm=True),  # arXiv 2103.00020
    'siglip': Family(activation='gelu_tanh', cls=False),  # arXiv 2303.15343
    'ijepa': Family(cls=False, pool='mean', positions='sincos', patch_start='normal'),  # arXiv 2301.08243
}


def build(
    channels: int,
    variant: str = 'S/14',
    family: str = 'dinov2',
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_ratio: float | None = None,
    ffn: str | None = None,
    activation: str | None = None,
    native_size: int | tuple[int, int] = 224,
    registers: int = 0,
    layerscale: float | str | None = 'family',
    qkv_bias: bool = True,
    key_bias: bool | None = None,
    eps: float | None = None,
    drop_path: float = 0.0,
    positions: str | None = None,
    rope_base: float = 100.0,
    rope_shift: float | None = None,
    rope_jitter: float | None = None,
    rope_rescale: float | None = None,
    start: str = 'normal',
    antialias: bool | None = None,
    offset: float | None = None,
    attention: str = 'auto',
    unroll: int = 1,
    remat: str = 'products',
    lora: Mapping[str, Any] | None = None,
    prompts: Mapping[str, Any] | None = None,
    dtype: str = 'float32',
) -> Tower:
    """A ViT tower for images of `channels` channels and of every size that the patch side divides.

    variant      'S/14': a size (see layers.SIZES) and the patch side in pixels
    family       the public models that the tower is like: 'dinov2', 'dinov3', 'vit', 'mae', 'clip', 'siglip' or
                 'ijepa', see FAMILIES
    width, depth, heads, mlp_ratio, ffn
                 replace the values of the size; ffn is 'mlp' or 'swiglu'. The hidden layer of 'swiglu' is two thirds as
                 wide as that of 'mlp'. Three sizes of DINOv3 have ffn='swiglu': S+ is 'S' with mlp_ratio=6; H+ has
                 width=1280, depth=32, heads=20, mlp_ratio=6; 7B has width=4096, depth=40, heads=32, mlp_ratio=3
    activation   replaces the activation of the family; most models of open_clip have 'gelu'
    native_size  image side, or (height, width): the position embeddings are stored for its grid of patches
    registers    number of register tokens
    layerscale   first value of LayerScale, the factors on both residual branches. None: no LayerScale. 'family': the
                 value of the family
    qkv_bias     whether queries, keys and values have a bias
    key_bias     whether keys have a bias where queries and values have one. Without it the parameter attn/qkv/bias is
                 [2,h,k], of queries and values, not [3,h,k], so a bias of keys cannot appear in training. None: as the
                 family; keys of DINOv3 have none
    eps          of the norms; replaces the value of the family. ViTs of timm have 1e-6, those of Hugging Face 1e-12
    drop_path    share of a group's crops that each residual branch leaves out in training; the same in all blocks
    positions    'learned' position embeddings; 'sincos': fixed sines and cosines of the place, as in MAE; or 'rope':
                 attention turns queries and keys of patches by angles, as in DINOv3. With 'rope' there are no
                 parameters pos_grid and pos_cls, and CLS and registers are not turned. None: as the family
    rope_base    the base of the rates of 'rope', see rotary.turns
    rope_shift, rope_jitter, rope_rescale
                 random changes of the places of patches in training, with positions='rope'. Places lie from -1 to 1 on
                 both axes. Each axis is shifted by a number from -rope_shift to rope_shift. Then each axis is
                 multiplied by a number from 1/rope_jitter to rope_jitter, and both by one from 1/rope_rescale to
                 rope_rescale, log-uniform. A group of rows has one draw a step for all its crops of a view, the same in
                 all blocks. DINOv3 was trained with rope_rescale=2. None: no change
    start        how the weights start: 'normal' with deviation .02, as in DINOv2, or 'xavier', as in MAE
    antialias, offset
                 how position embeddings are resized, see `bicubic.cubic_weights`. None: as the public models of the
                 family, see `position_resizing`
    attention    'xla', 'cudnn' (the flash kernel of NVIDIA GPUs, which needs dtype='bfloat16'), or 'auto': the flash
                 kernel wherever it runs
    unroll       blocks in one turn of the loop over blocks. With all of them there is no loop: nothing is copied into
                 stacked arrays, and the program compiles for longer
    remat        what is stored for the backward pass, see layers.REMAT
    lora         dict(rank=, alpha=, targets=): small matrices beside the weights of blocks, see `medjax.models.lora`
    prompts      dict(count=, bottleneck=): tokens of their own in each block, see `medjax.models.prompts`
    dtype        type of the activations; parameters, statistics and outputs are float32

    The output `cls` is the CLS token. The families 'siglip' and 'ijepa' have no CLS token; there, `cls` is pooled from
    the patches by attention, or is their mean.
    """
    size, _, patch = variant.partition('/')
    if not patch.isdecimal() or int(patch) < 1:
        size = ''
    replace = dict(width=width, depth=depth, heads=heads, ffn=ffn, mlp_ratio=mlp_ratio)
    shape = sizes('vit', size, f'variant {variant!r} is not a size and a patch like "S/14"', replace)
    side = int(patch)
    check_choice('vit', 'family', family, FAMILIES)
    if layerscale is not None and layerscale != 'family' and not is_number(layerscale):
        renamed = "; 'layout' was renamed to 'family'" if layerscale == 'layout' else ''
        raise UserError(f"vit: layerscale={layerscale!r}: must be a number, None or 'family'{renamed}")
    chosen = FAMILIES[family]
    activation = activation or chosen.activation
    check_choice('vit', 'ffn', shape['ffn'], ('mlp', 'swiglu'))
    check_choice('vit', 'activation', activation, ACTIVATIONS)
    positions = positions or chosen.positions
    check_choice('vit', 'positions', positions, ('learned', 'sincos', 'rope'))
    check_choice('vit', 'start', start, STARTS)
    if key_bias and not qkv_bias:
        raise UserError('vit: key_bias=True needs qkv_bias=True')
    if positions == 'sincos' and shape['width'] % 4:
        raise UserError(f"vit: positions='sincos' needs a width that 4 divides, not {shape['width']}")
    turning = Rotary(rope_base, rope_shift, rope_jitter, rope_rescale)
    rotary.check('vit', turning, positions == 'rope', shape['width'] // shape['heads'])
    check_compute('vit', attention, remat, dtype)
    if not is_whole(unroll) or unroll < 1:
        raise UserError(f'vit: unroll={unroll!r}: must be a whole number of blocks, at least 1')
    if not 0 <= drop_path < 1:
        raise UserError(f'vit: drop_path is a share from 0 to below 1, got {drop_path}')
    antialias, default_offset = position_resizing(family, registers > 0, antialias)
    hidden = round(shape['width'] * shape.pop('mlp_ratio'))
    module = Vit(
        **shape,
        hidden=swiglu_hidden(hidden) if shape['ffn'] == 'swiglu' else hidden,
        patch=side,
        channels=channels,
        native=patch_grid((native_size, native_size) if isinstance(native_size, int) else tuple(native_size), side),
        registers=registers,
        family=chosen._replace(
            eps=chosen.eps if eps is None else check_eps('vit', eps),
            activation=activation,
            layerscale=chosen.layerscale if layerscale == 'family' else layerscale,
            offset=default_offset if offset is None else offset,
            positions=positions,
            key_bias=chosen.key_bias if key_bias is None else key_bias,
        ),
        qkv_bias=qkv_bias,
        antialias=antialias,
        rotary=turning if positions == 'rope' else None,
        start=start,
        attention=attention,
        unroll=unroll,
        remat=remat,
        lora=None if lora is None else call(loras.build, lora, 'vit: lora'),
        prompts=None if prompts is None else call(visual_prompts.build, prompts, 'vit: prompts'),
        dtype=jnp.dtype(dtype),
    )
    example = (np.zeros((1, side, side, channels), np.float32), Seen(), None, 1)
    return VitTower(
        width=module.width,
        axes=logical_axes(module, example),
        blocks=module.depth,
        module=module,
        example=example,
        drop_path=drop_path,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VitTower(FlaxTower):
    """A tower of images around the flax module `Vit`."""

    module: Vit
    drop_path: float

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        ((view, mask, _),) = inputs
        module, attention = self.module, 'attention' in options.want
        # the attention of the last block needs the tokens before it
        layers = max(options.layers, 2 if attention else 1)
        b, v = view.present.shape
        height, width = self.grid(view.image.shape[2:4])
        if mask is not None and mask.bits.shape[-1] != height * width:
            raise UserError(
                f'vit: the mask has {mask.bits.shape[-1]} patches a crop, and this tower has {height * width}'
            )
        images = view.image.reshape(b * v, *view.image.shape[2:])
        seen = self.seen(mask, b * v)._replace(change=self.change(view.row, options))
        sequences = seen.contexts * v  # of each row
        outputs: Any = module.apply({'params': params}, images, seen, self.kept(view.row, sequences, options), layers)
        # [layers,S,…] -> [B,V,layers,…]
        before, tokens, pooled = [jnp.moveaxis(x, 0, 1).reshape(b, sequences, layers, *x.shape[2:]) for x in outputs]
        first = module.prefix  # of the patches
        last = dict(cls=pooled[:, :, -1], patches=tokens[:, :, -1, first:])
        if module.registers:
            last['registers'] = tokens[:, :, -1, first - module.registers : first]
        last |= options.last(cls=pooled, patches=tokens[:, :, :, first:])
        for n in options.numbers('mean'):
            blocks = before[:, :, layers - n :, first:]
            last[f'mean{n}/patches'] = (blocks[:, :, :-1].sum(2, dtype=jnp.float32) + last['patches']) / n
            last[f'mean{n}/standardised_patches'] = standardised(blocks).mean(2)
        if attention:
            turns = module.turns((height, width), seen)
            last['attention'] = self.attention(params, before[:, :, -2], seen.lengths, turns)[..., first:]
        return last

    def seen(self, mask: Mask | None, images: int) -> Seen:
        """The patches that the module reads of a number of images."""
        if mask is None:
            return Seen()
        if mask.mode == 'replace':
            return Seen(bits=mask.bits.reshape(images, -1))
        if mask.mode != 'drop' or mask.kept is None:
            raise UserError(f"vit: this tower masks by the modes 'replace' and 'drop', got {mask.mode!r}")
        lengths = None if mask.length is None else mask.length.reshape(-1) + self.module.prefix
        return Seen(kept=mask.kept.reshape(images, *mask.kept.shape[2:]), lengths=lengths)

    def kept(self, row: Array, sequences: int, options: ApplyOptions) -> Array | None:
        """The sequences of each group that drop path keeps, see drop_path.draw_kept; None if it keeps all."""
        if not options.train or self.drop_path == 0:
            return None
        groups = group_numbers(row, options)
        return draw_kept(options.key, groups, options.rows_per_group * sequences, self.module.depth, self.drop_path)

    def change(self, row: Array, options: ApplyOptions) -> Change | None:
        """The random changes of places in each group, see `rotary.draw_change`; None if there are none."""
        turning = self.module.rotary
        if not options.train or turning is None or not turning.changes:
            return None
        return rotary.draw_change(options.key, group_numbers(row, options), turning)

    def attention(self, params: Tree, tokens: Array, lengths: Array | None, turns: Array | None) -> Array:
        """The attention of the first token in the last block, from the tokens [B,V,T,D] before it: [B,V,T]."""
        module = self.module
        if not module.family.cls:
            raise UserError("vit: this tower has no CLS token, so it has no output 'attention'")
        block = jax.tree.map(lambda x: x[-1], loras.merged(params['blocks'], module.lora))
        return cls_attention(block, tokens, lengths, module.family.eps, module.dtype, turns)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return patch_grid(size, self.module.patch)

    def is_added(self, path: str) -> bool:
        return any(name.startswith((loras.PARAMETER, visual_prompts.PARAMETER)) for name in path.split('/'))

    def exported(self, params: Tree, section: Mapping[str, Any]) -> tuple[Tree, Mapping[str, Any]]:
        """The matrices of LoRA are merged into the weights. Prompts stay, because no weights could do the same."""
        blocks = loras.merged(params['blocks'], self.module.lora)
        return params | dict(blocks=blocks), {name: value for name, value in section.items() if name != 'lora'}

    def check(self, crops: Mapping[str, int], rows_per_group: int) -> None:
        check_drop_path(self.drop_path, crops, rows_per_group)


class Seen(NamedTuple):
    """The patches of S images that a ViT reads."""

    bits: Array | None = None  # bool [S,N]: the mask token replaces these
    kept: Array | None = None  # int32 [S,K,M']: only these are read, as K sequences for each image
    lengths: Array | None = None  # int32 [S K]: the first tokens of a sequence count, CLS and registers included
    change: Change | None = None  # of the places of patches, for rotary positions

    @property
    def contexts(self) -> int:
        return 1 if self.kept is None else self.kept.shape[1]


def group_numbers(row: Array, options: ApplyOptions) -> Array:
    """The global numbers of the groups of rows, [G]."""
    rows = options.rows_per_group
    return row.reshape(-1, rows)[:, 0] // rows


def position_resizing(family: str, registers: bool, antialias: bool | None = None) -> tuple[bool, float]:
    """The way that public models resize position embeddings: (antialias, offset), see `bicubic.cubic_weights`.

    Towers with registers have True and 0. Without registers, DINOv2 has False and .1, and every other family has False
    and 0. A given `antialias` is kept. With antialiasing there is no offset.
    """
    if antialias is None:
        antialias = registers
    return antialias, FAMILIES[family].offset if family in FAMILIES and not antialias else 0.0


def swiglu_hidden(hidden: int) -> int:
    """Two thirds of an MLP's hidden width, rounded up to a multiple of 8: about the same number of parameters."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def patch_grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches of an image of height and width `size`."""
    for side in size:
        if side < patch or side % patch:
            raise UserError(
                f'vit: an image side of {side} px is no multiple of the patch side {patch} px; '
                f'{multiples(side, patch)} would work'
            )
    return size[0] // patch, size[1] // patch


def check_drop_path(rate: float, crops: Mapping[str, int], rows_per_group: int) -> None:
    """A UserError if groups of `rows_per_group` rows cannot leave out a share of crops within .02 of `rate`.

    `crops` is the number of crops by view. A group leaves out a whole number of crops, so small groups may miss the
    rate.
    """

    def missed_shares(rows: int) -> dict[str, float]:
        shares = {view: 1 - kept_count(rows * count, rate) / (rows * count) for view, count in crops.items()}
        return {view: share for view, share in shares.items() if abs(share - rate) > 0.02 + 1e-9}

    if rate and (missed := missed_shares(rows_per_group)):
        fitting = [str(rows) for rows in range(1, 65) if not missed_shares(rows)]
        shares = ', '.join(f'{share:.3f} for the view {view!r}' for view, share in missed.items())
        raise UserError(
            f'drop_path {rate} cannot be met in groups of rows_per_group={rows_per_group}: it would be {shares}; '
            f'rows_per_group that fit: {", ".join(fitting) or "none up to 64"}'
        )


def embed(
    params: Mapping[str, Any], images: Array, seen: Seen, antialias: bool, offset: float, sincos: bool = False
) -> Array:
    """Images [S,H,W,C] -> tokens [S,1+R+N,D] in float32: CLS, registers, then patches row by row.

    The mask token replaces a masked patch BEFORE position embeddings are added, so that the tower sees where the patch
    is. Registers join AFTER this and have no position. CLS and registers may be absent. If `seen.kept` is given, the
    result is [S K,1+R+M',D], with the patches in the order of `kept`. `sincos` adds sincos_positions.
    """
    kernel = params['patch_embed']['kernel']
    p = kernel.shape[0]
    grid = images.shape[1] // p, images.shape[2] // p
    patches = rearrange(images, 's (h p) (w q) c -> s (h w) (p q c)', p=p, q=p)
    x = patches @ kernel.reshape(-1, kernel.shape[-1])
    if 'bias' in params['patch_embed']:
        x += params['patch_embed']['bias']
    if seen.bits is not None:
        x = jnp.where(seen.bits[..., None], params['mask_token'], x)
    if 'pos_grid' in params:
        x += resize_grid(params['pos_grid'], grid, antialias, offset).reshape(-1, x.shape[-1])
    elif sincos:
        x += sincos_positions(grid, x.shape[-1])
    if seen.kept is not None:
        s, k, m = seen.kept.shape
        x = jnp.take_along_axis(x, seen.kept.reshape(s, k * m, 1), axis=1).reshape(s * k, m, x.shape[-1])
    prefix = jnp.zeros((0, x.shape[-1]))
    if 'cls' in params:
        prefix = (params['cls'] + params.get('pos_cls', 0.0))[None]
    if 'registers' in params:
        prefix = jnp.concatenate([prefix, params['registers']])
    return jnp.concatenate([jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape)), x], axis=1)


def sincos_positions(grid: tuple[int, int], width: int) -> np.ndarray:
    """Fixed sine-cosine position embeddings of a grid of patches, float32 [N,width] (MAE, arXiv 2111.06377).

    The first half of the numbers encodes the column and the second half the row, each as [sines, cosines].
    """
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing='ij')

    def encoded(position: np.ndarray) -> np.ndarray:
        rates = 1.0 / 10_000 ** (np.arange(width // 4) / (width / 4))
        angles = position.reshape(-1, 1) * rates
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return np.concatenate([encoded(columns), encoded(rows)], axis=1).astype(np.float32)


class Vit(nn.Module):
    """Images [S,H,W,C] -> the results of the last `layers` blocks.

    They are the tokens before and after the final norm, both [layers,S,1+R+N,D], and the feature `cls` [layers,S,D].
    """

    width: int
    depth: int
    heads: int
    hidden: int  # width of the hidden layer of the FFN
    ffn: str
    patch: int  # patch side in pixels
    channels: int
    native: tuple[int, int]  # the grid of patches for which pos_grid is stored
    registers: int
    family: Family
    qkv_bias: bool
    antialias: bool
    rotary: Rotary | None
    start: str
    attention: str
    unroll: int
    remat: str
    lora: Lora | None
    prompts: Prompts | None
    dtype: Any

    @property
    def prefix(self) -> int:
        """The number of tokens before the patches: CLS, prompts, registers."""
        return int(self.family.cls) + (self.prompts.count if self.prompts else 0) + self.registers

    @nn.compact
    def __call__(self, images: Array, seen: Seen, kept: Array | None, layers: int) -> tuple[Array, Array, Array]:
        family = self.family
        options = dict(activation=family.activation, eps=family.eps, attention=self.attention, dtype=self.dtype)
        sincos = family.positions == 'sincos'
        tokens = embed(self.embeddings(), constrain_rows(images), seen, self.antialias, family.offset, sincos)
        grid = images.shape[1] // self.patch, images.shape[2] // self.patch
        if family.embed_norm:
            tokens = LayerNorm(family.eps, name='embed_norm')(tokens)
        prompts = None
        if self.prompts is not None:
            prompts = PromptParameters(self.prompts, self.width, name=visual_prompts.PARAMETER)()
            tokens = self.with_prompts(tokens, prompts)
        last = scan_blocks(
            tokens.astype(self.dtype),
            self.depth,
            self.remat,
            layers,
            kept,
            dict(lengths=seen.lengths, turns=self.turns(grid, seen))
            | (dict(prompts=prompts) if prompts and 'queries' in prompts else {}),
            self.unroll,
            heads=self.heads,
            hidden=self.hidden,
            ffn=self.ffn,
            qkv_bias=self.qkv_bias,
            key_bias=family.key_bias,
            layerscale=family.layerscale,
            start=self.start,
            lora=self.lora,
            first_prompt=int(family.cls),
            **options,
        )
        normed = LayerNorm(family.eps, name='norm')(last)
        if family.cls:
            return last, normed, normed[:, :, 0]
        pool = Pool(family.pool, self.heads, self.hidden, **options, name='pool')
        patches = normed[:, :, self.prefix :]
        lengths = None if seen.lengths is None else jnp.tile(seen.lengths - self.prefix, layers)
        pooled = pool(patches.reshape(-1, *patches.shape[2:]), lengths)
        return last, normed, pooled.reshape(layers, -1, self.width)

    def turns(self, grid: tuple[int, int], seen: Seen) -> Array | None:
        """The angles of tokens, see `rotary.turns`; None without rotary positions.

        [1,…], the same for all sequences. With random changes [G,…], one for each group. With a mask of mode 'drop'
        [S K,…], because each sequence has patches of its own.
        """
        if self.rotary is None:
            return None
        patches = jnp.arange(grid[0] * grid[1])[None] if seen.kept is None else rearrange(seen.kept, 's k m -> (s k) m')
        size = self.width // self.heads
        return constrain_rows(rotary.turns(patches, grid, self.prefix, size, self.rotary, seen.change))

    def with_prompts(self, tokens: Array, prompts: Mapping[str, Array]) -> Array:
        """Tokens [S,T,D] with prompts after the CLS token: learned ones, or places for those of `prompts.renewed`."""
        assert self.prompts is not None
        new = prompts.get('tokens', jnp.zeros((self.prompts.count, self.width)))
        first = int(self.family.cls)
        new = jnp.broadcast_to(new, (len(tokens), *new.shape)).astype(tokens.dtype)
        return jnp.concatenate([tokens[:, :first], new, tokens[:, first:]], axis=1)

    def embeddings(self) -> dict[str, Any]:
        """The parameters that `embed` reads, initialized as in the original models."""
        family = self.family
        p, d, learned = self.patch, self.width, family.positions == 'learned'
        shape = (p, p, self.channels, d)
        params = dict(
            patch_embed=PatchEmbed(shape, family.patch_bias, self.start, family.patch_start, name='patch_embed')()
        )
        if learned:
            params['pos_grid'] = parameter(self, 'pos_grid', weight_init, (*self.native, d), (None, None, 'embed'))
        params['mask_token'] = parameter(self, 'mask_token', zeros, (d,), ('embed',))
        tokens = jax.nn.initializers.normal(self.family.token_start)
        if self.family.cls:
            start = tokens if self.start == 'normal' else weight_init  # .02 in masked autoencoders
            params['cls'] = parameter(self, 'cls', start, (d,), ('embed',))
            if learned:
                params['pos_cls'] = parameter(self, 'pos_cls', weight_init, (d,), ('embed',))
        if self.registers:
            params['registers'] = parameter(self, 'registers', tokens, (self.registers, d), (None, 'embed'))
        return params


class PatchEmbed(nn.Module):
    """The kernel [p,p,C,D] and bias [D] of the patch convolution; `embed` applies them as one matrix product."""

    shape: tuple[int, int, int, int]
    bias: bool = True
    start: str = 'normal'
    family_start: str = 'uniform'  # see `Family.patch_start`

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        torch_init = uniform_fan_in(int(np.prod(self.shape[:3])))
        normal = self.family_start == 'normal'
        init = xavier(3) if self.start != 'normal' else weight_init if normal else torch_init
        params = dict(kernel=parameter(self, 'kernel', init, self.shape, (None, None, None, 'embed')))
        if self.bias:
            init = zeros if normal else torch_init
            params['bias'] = parameter(self, 'bias', init, self.shape[3:], ('embed',))
        return params


class PromptParameters(nn.Module):
    """The parameters of prompts: `tokens` [P,D], or those of `medjax.models.prompts.renewed`."""

    prompts: Prompts
    width: int

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        count, d = self.prompts.count, self.prompts.bottleneck
        shapes: dict[str, tuple[tuple[int, ...], tuple[str | None, ...]]] = dict(
            queries=((count, d), (None, None)),
            down=((self.width, d), ('embed', None)),
            down_bias=((d,), (None,)),
            up=((d, self.width), (None, 'embed')),
            up_bias=((self.width,), ('embed',)),
        )
        if not d:
            shapes = dict(tokens=((count, self.width), (None, 'embed')))
        return {
            name: parameter(self, name, zeros if name.endswith('bias') else weight_init, shape, axes)
            for name, (shape, axes) in shapes.items()
        }
