"""The Vision Transformer of DINOv2, ViT, CLIP and SigLIP: patches, position embeddings, scanned blocks, norm.

ViT: arXiv 2010.11929. DINOv2: arXiv 2304.07193. Registers: arXiv 2309.16588. LayerScale: arXiv 2103.17239.
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

from medjax.errors import UserError
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import (
    ACTIVATIONS,
    LayerNorm,
    Pool,
    check_choice,
    check_compute,
    draw_kept,
    kept_count,
    parameter,
    scan_blocks,
    sizes,
    uniform_fan_in,
    weight_init,
    zeros,
)
from medjax.parallel.sharding import constrain_rows
from medjax.types import ApplyOptions, Mask, Tower, Tree, View, is_number


class Family(NamedTuple):
    """The settings in which families of public ViTs differ."""

    eps: float = 1e-6  # of the norms
    activation: str = 'gelu'
    layerscale: float | None = None  # the first value of LayerScale
    cls: bool = True  # whether there is a CLS token; if not, attention pools the patches (the parameters 'pool')
    patch_bias: bool = True
    embed_norm: bool = False  # whether there is a norm between the embeddings and the blocks
    offset: float = 0.0  # for resizing position embeddings, see `cubic_weights`


FAMILIES = {
    'dinov2': Family(layerscale=1e-5, offset=0.1),  # DINO and iBOT are the same with layerscale=None
    'vit': Family(eps=1e-12),  # the ViT of Google and of Hugging Face, arXiv 2010.11929
    'clip': Family(eps=1e-5, activation='quick_gelu', patch_bias=False, embed_norm=True),  # arXiv 2103.00020
    'siglip': Family(activation='gelu_tanh', cls=False),  # arXiv 2303.15343
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
    drop_path: float = 0.0,
    antialias: bool | None = None,
    offset: float | None = None,
    attention: str = 'xla',
    remat: str = 'products',
    dtype: str = 'float32',
) -> Tower:
    """A ViT tower for images of `channels` channels and of every size that the patch side divides.

    variant      'S/14': a size (see layers.SIZES) and the patch side in pixels
    family       the public models that the tower is like: 'dinov2', 'vit', 'clip' or 'siglip', see FAMILIES
    width, depth, heads, mlp_ratio, ffn
                 replace the values of the size; ffn is 'mlp' or 'swiglu'
    activation   replaces the activation of the family; most models of open_clip have 'gelu'
    native_size  image side, or (height, width): the position embeddings are stored for its grid of patches
    registers    number of register tokens
    layerscale   first value of LayerScale, the factors on both residual branches. None: no LayerScale. 'family': the
                 value of the family
    qkv_bias     whether queries, keys and values have a bias
    drop_path    share of a group's crops that each residual branch leaves out in training; the same in all blocks
    antialias, offset
                 how position embeddings are resized, see `cubic_weights`. None: as the public models of the family, see
                 `position_resizing`
    attention    'xla', or 'cudnn' (the flash kernel of NVIDIA GPUs, which needs dtype='bfloat16')
    remat        what is stored for the backward pass, see layers.REMAT
    dtype        type of the activations; parameters, statistics and outputs are float32

    The output `cls` is the CLS token. The family 'siglip' has no CLS token; there, `cls` is pooled from the patches by
    attention.
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
    check_compute('vit', attention, remat, dtype)
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
            activation=activation,
            layerscale=chosen.layerscale if layerscale == 'family' else layerscale,
            offset=default_offset if offset is None else offset,
        ),
        qkv_bias=qkv_bias,
        antialias=antialias,
        attention=attention,
        remat=remat,
        dtype=jnp.dtype(dtype),
    )
    example = (np.zeros((1, side, side, channels), np.float32), None, None, 1)
    return VitTower(
        width=module.width, axes=logical_axes(module, example), module=module, example=example, drop_path=drop_path
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VitTower(FlaxTower):
    """A tower of images around the flax module `Vit`."""

    module: Vit
    drop_path: float

    def encode(self, params: Tree, view: View, mask: Mask | None, options: ApplyOptions) -> dict[str, Array]:
        module, layers = self.module, options.layers
        b, v = view.x.shape[:2]
        if mask is not None and mask.mode != 'replace':
            raise UserError(f"vit: this tower masks by mode 'replace', got {mask.mode!r}")
        images = view.x.reshape(b * v, *view.x.shape[2:])
        bits = None if mask is None else mask.bits.reshape(b * v, -1)
        outputs: Any = module.apply({'params': params}, images, bits, self.kept(view, options), layers)
        # [layers,B*V,…] -> [B,V,layers,…]
        tokens, pooled = [jnp.moveaxis(x, 0, 1).reshape(b, v, layers, *x.shape[2:]) for x in outputs[1:]]
        cls = int(module.family.cls)
        first = cls + module.registers  # of the patches
        last = dict(cls=pooled[:, :, -1], patches=tokens[:, :, -1, first:])
        if module.registers:
            last['registers'] = tokens[:, :, -1, cls:first]
        return last | {'layers/cls': pooled, 'layers/patches': tokens[:, :, :, first:]}

    def kept(self, view: View, options: ApplyOptions) -> Array | None:
        """The crops of each group that drop path keeps, see layers.draw_kept; None if it keeps all."""
        if not options.train or self.drop_path == 0:
            return None
        rows = options.rows_per_group
        groups = view.row.reshape(-1, rows)[:, 0] // rows
        return draw_kept(options.key, groups, rows * view.x.shape[1], self.module.depth, self.drop_path)

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return patch_grid(size, self.module.patch)

    def check(self, crops: Mapping[str, int], rows_per_group: int) -> None:
        check_drop_path(self.drop_path, crops, rows_per_group)


def position_resizing(family: str, registers: bool, antialias: bool | None = None) -> tuple[bool, float]:
    """The way that public models resize position embeddings: (antialias, offset), see `cubic_weights`.

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
            below = side // patch * patch
            sizes = f'{below} or {below + patch}' if below else f'{patch}'
            raise UserError(
                f'vit: an image side of {side} px is no multiple of the patch side {patch} px; {sizes} would work'
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


def cubic_weights(size: int, out: int, antialias: bool, offset: float) -> np.ndarray:
    """The matrix [out,size] that interpolates `size` samples to `out` samples as torch's bicubic mode does; float32.

    Output i lies at position (i + .5) * size / (out + offset) - .5 of the source. Each row sums to 1. Without
    antialiasing a row has four taps of the cubic kernel with a = -.75, and taps outside of the source use its border.
    With antialiasing a = -.5, the kernel is widened by `scale` if `out` is smaller than `size`, and taps outside of the
    source are left out before the row is normalised. The first DINO code had the offset .1, and models that were
    trained with that code need the same offset.
    """
    scale = size / (out + offset)
    source = (np.arange(out) + 0.5) * scale - 0.5
    if not antialias:
        taps = np.floor(source)[:, None] + np.arange(-1, 3)
        weights = cubic_kernel(source[:, None] - taps, a=-0.75)
        matrix = np.zeros((out, size))
        np.add.at(matrix, (np.arange(out)[:, None], np.clip(taps, 0, size - 1).astype(int)), weights)
    else:
        matrix = cubic_kernel((source[:, None] - np.arange(size)) / max(scale, 1.0), a=-0.5)
        matrix /= matrix.sum(1, keepdims=True)
    return matrix.astype(np.float32)


# views/geometry.py has the same kernel for crops. Neither can replace the other: crops differ from row to row, so their
# kernel is computed by jax in float32 with a = -.5. This one is computed by numpy in float64 while jax traces.
def cubic_kernel(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel with the parameter a; zero from distance 2 on."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))


def resize_grid(grid: Array, shape: tuple[int, int], antialias: bool, offset: float) -> Array:
    """Position embeddings [h0,w0,D] resized to the grid `shape`: [h,w,D], float32. The same shape changes nothing."""
    if grid.shape[:2] == shape:
        return grid
    rows, columns = (cubic_weights(n, m, antialias, offset) for n, m in zip(grid.shape[:2], shape, strict=True))
    return jnp.einsum('yh,xw,hwd->yxd', rows, columns, grid, precision='highest')


def embed(params: Mapping[str, Any], images: Array, bits: Array | None, antialias: bool, offset: float) -> Array:
    """Images [S,H,W,C] -> tokens [S,1+R+N,D] in float32: CLS, registers, then patches row by row.

    The mask token replaces a masked patch (bits bool [S,N]) BEFORE position embeddings are added, so that the tower
    sees where the patch is. Registers join AFTER this and have no position. CLS and registers may be absent.
    """
    kernel = params['patch_embed']['kernel']
    p = kernel.shape[0]
    grid = images.shape[1] // p, images.shape[2] // p
    patches = rearrange(images, 's (h p) (w q) c -> s (h w) (p q c)', p=p, q=p)
    x = patches @ kernel.reshape(-1, kernel.shape[-1])
    if 'bias' in params['patch_embed']:
        x += params['patch_embed']['bias']
    if bits is not None:
        x = jnp.where(bits[..., None], params['mask_token'], x)
    x += resize_grid(params['pos_grid'], grid, antialias, offset).reshape(-1, x.shape[-1])
    prefix = jnp.zeros((0, x.shape[-1]))
    if 'cls' in params:
        prefix = (params['cls'] + params['pos_cls'])[None]
    if 'registers' in params:
        prefix = jnp.concatenate([prefix, params['registers']])
    return jnp.concatenate([jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape)), x], axis=1)


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
    attention: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(
        self, images: Array, bits: Array | None, kept: Array | None, layers: int
    ) -> tuple[Array, Array, Array]:
        family = self.family
        options = dict(activation=family.activation, eps=family.eps, attention=self.attention, dtype=self.dtype)
        tokens = embed(self.embeddings(), constrain_rows(images), bits, self.antialias, family.offset)
        if family.embed_norm:
            tokens = LayerNorm(family.eps, name='embed_norm')(tokens)
        last = scan_blocks(
            tokens.astype(self.dtype),
            self.depth,
            self.remat,
            layers,
            kept,
            heads=self.heads,
            hidden=self.hidden,
            ffn=self.ffn,
            qkv_bias=self.qkv_bias,
            layerscale=family.layerscale,
            **options,
        )
        normed = LayerNorm(family.eps, name='norm')(last)
        if family.cls:
            return last, normed, normed[:, :, 0]
        pool = Pool('attention', self.heads, self.hidden, **options, name='pool')
        patches = normed[:, :, self.registers :]
        pooled = pool(patches.reshape(-1, *patches.shape[2:]))
        return last, normed, pooled.reshape(layers, -1, self.width)

    def embeddings(self) -> dict[str, Any]:
        """The parameters that `embed` reads, initialized as in the original DINOv2."""
        p, d = self.patch, self.width
        params = dict(
            pos_grid=parameter(self, 'pos_grid', weight_init, (*self.native, d), (None, None, 'embed')),
            mask_token=parameter(self, 'mask_token', zeros, (d,), ('embed',)),
            patch_embed=PatchEmbed((p, p, self.channels, d), self.family.patch_bias, name='patch_embed')(),
        )
        tiny = jax.nn.initializers.normal(1e-6)
        if self.family.cls:
            params['cls'] = parameter(self, 'cls', tiny, (d,), ('embed',))
            params['pos_cls'] = parameter(self, 'pos_cls', weight_init, (d,), ('embed',))
        if self.registers:
            params['registers'] = parameter(self, 'registers', tiny, (self.registers, d), (None, 'embed'))
        return params


class PatchEmbed(nn.Module):
    """The kernel [p,p,C,D] and bias [D] of the patch convolution; `embed` applies them as one matrix product."""

    shape: tuple[int, int, int, int]
    bias: bool = True

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        init = uniform_fan_in(int(np.prod(self.shape[:3])))
        params = dict(kernel=parameter(self, 'kernel', init, self.shape, (None, None, None, 'embed')))
        if self.bias:
            params['bias'] = parameter(self, 'bias', init, self.shape[3:], ('embed',))
        return params
