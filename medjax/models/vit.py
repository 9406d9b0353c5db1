"""The Vision Transformer of DINOv2: patches, tokens, position embeddings, scanned blocks, final norm.

ViT: arXiv 2010.11929. DINOv2: arXiv 2304.07193. Registers: arXiv 2309.16588. LayerScale: arXiv 2103.17239.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import linen as nn
from jax import Array

from medjax.errors import UserError, suggest
from medjax.models.layers import (
    Block,
    LayerNorm,
    draw_kept,
    kept_count,
    logical_axes,
    parameter,
    unbox,
    uniform_fan_in,
    weight_init,
    zeros,
)
from medjax.parallel.sharding import constrain_rows
from medjax.types import Mask, Tower, View

SIZES = {  # width, depth, heads, FFN
    'Ti': dict(width=192, depth=12, heads=3, ffn='mlp'),
    'S': dict(width=384, depth=12, heads=6, ffn='mlp'),
    'B': dict(width=768, depth=12, heads=12, ffn='mlp'),
    'L': dict(width=1024, depth=24, heads=16, ffn='mlp'),
    'g': dict(width=1536, depth=40, heads=24, ffn='swiglu'),
}
REMAT = {  # what the backward pass of a block finds stored; it computes the rest again
    'products': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # products with weights, no attention scores
    'blocks': jax.checkpoint_policies.nothing_saveable,  # the block's input alone: least memory, a third more FLOPs
    'none': jax.checkpoint_policies.everything_saveable,
}


def build(
    channels: int,
    variant: str = 'S/14',
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_ratio: float = 4.0,
    ffn: str | None = None,
    native_size: int | tuple[int, int] = 224,
    registers: int = 0,
    layerscale: float | None = 1e-5,
    qkv_bias: bool = True,
    drop_path: float = 0.0,
    antialias: bool | None = None,
    offset: float | None = None,
    attention: str = 'xla',
    remat: str = 'products',
    dtype: str = 'float32',
) -> Tower:
    """A ViT tower for images of `channels` channels and of any size that the patch divides.

    variant      'S/14': a size of SIZES and the patch side; width, depth, heads, ffn ('mlp'|'swiglu') replace its own
    native_size  image side, or (height, width), whose grid of patches the position embeddings are stored for
    layerscale   start of the factors on both residual branches; None leaves them out
    drop_path    share of a row group's sequences that a residual branch leaves out in training, one rate for all blocks
    antialias, offset  how position embeddings are resized, see `cubic_weights`. Default: as the public DINOv2 models,
                 True and 0 with registers, False and .1 without
    attention    'xla', or 'cudnn' (flash attention of NVIDIA GPUs; bfloat16)
    remat        what is stored for the backward pass, see REMAT
    dtype        of activations; parameters and statistics are float32, and the outputs are
    """
    size, _, patch = variant.partition('/')
    if size not in SIZES or not patch.isdecimal() or int(patch) < 1:
        raise UserError(f'vit: variant {variant!r} is not a size and a patch like "S/14"; sizes: {", ".join(SIZES)}')
    patch = int(patch)
    given = dict(width=width, depth=depth, heads=heads, ffn=ffn)
    sizes: dict[str, Any] = SIZES[size] | {name: value for name, value in given.items() if value is not None}
    check_choice('ffn', sizes['ffn'], ('mlp', 'swiglu'))
    check_choice('attention', attention, ('xla', 'cudnn'))
    check_choice('remat', remat, REMAT)
    check_choice('dtype', dtype, ('float32', 'bfloat16'))
    for name in ('width', 'depth', 'heads'):
        if not isinstance(sizes[name], int) or sizes[name] < 1:
            raise UserError(f'vit: {name}={sizes[name]!r}: must be a whole number of at least 1')
    if sizes['width'] % sizes['heads']:
        raise UserError(f'vit: width {sizes["width"]} is not divisible by {sizes["heads"]} heads')
    if not 0 <= drop_path < 1:
        raise UserError(f'vit: drop_path is a share from 0 to below 1, got {drop_path}')
    if attention == 'cudnn' and (jax.default_backend() != 'gpu' or dtype != 'bfloat16'):
        raise UserError("vit: attention='cudnn' needs a GPU and dtype='bfloat16'; attention='xla' runs anywhere")
    if antialias is None:
        antialias = registers > 0
    hidden = int(sizes['width'] * mlp_ratio)
    module = Vit(
        **sizes,
        hidden=swiglu_hidden(hidden) if sizes['ffn'] == 'swiglu' else hidden,
        patch=patch,
        channels=channels,
        native=patch_grid((native_size, native_size) if isinstance(native_size, int) else tuple(native_size), patch),
        registers=registers,
        layerscale=layerscale,
        qkv_bias=qkv_bias,
        antialias=antialias,
        offset=(0.0 if antialias else 0.1) if offset is None else offset,
        attention=attention,
        remat=remat,
        dtype=jnp.dtype(dtype),
    )

    def start(key: Array) -> Any:
        return module.init(key, jnp.zeros((1, patch, patch, channels)), None, None, 1)

    def apply(
        params: Any,
        view: View,
        mask: Mask | None = None,
        *,
        train: bool = False,
        key: Array | None = None,
        rows_per_group: int = 1,
        layers: int = 1,
    ) -> dict[str, Array]:
        b, v = view.x.shape[:2]
        if mask is not None and mask.mode != 'replace':
            raise UserError(f"vit: this tower masks by mode 'replace', got {mask.mode!r}")
        bits = None if mask is None else mask.bits.reshape(b * v, -1)
        kept = None
        if train and drop_path > 0:
            groups = view.row.reshape(-1, rows_per_group)[:, 0] // rows_per_group
            kept = draw_kept(key, groups, rows_per_group * v, module.depth, drop_path)
        images = view.x.reshape(b * v, *view.x.shape[2:])
        last: Any = module.apply({'params': params}, images, bits, kept, layers)[1]
        last = jnp.moveaxis(last, 0, 1).reshape(b, v, layers, *last.shape[2:])  # [B,V,layers,1+R+N,D]
        first = 1 + registers
        outputs = dict(cls=last[:, :, -1, 0], patches=last[:, :, -1, first:])
        if registers:
            outputs['registers'] = last[:, :, -1, 1:first]
        return outputs | {'layers/cls': last[:, :, :, 0], 'layers/patches': last[:, :, :, first:]}

    return Tower(
        init=jax.jit(lambda key: unbox(start(key))),  # jitted: only the parameters are made, nothing is computed
        axes=logical_axes(start),
        apply=apply,
        width=module.width,
        grid=lambda size: patch_grid(size, patch),
        check=lambda crops, rows_per_group: check_drop_path(drop_path, crops, rows_per_group),
    )


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UserError(f'vit: unknown {name} {value!r}{suggest(value, known)}')


def swiglu_hidden(hidden: int) -> int:
    """Two thirds of an MLP's hidden width, rounded up to a multiple of 8: about the same number of parameters."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def patch_grid(size: tuple[int, int], patch: int) -> tuple[int, int]:
    """Rows and columns of patches of an image of height and width `size`."""
    for side in size:
        if side < patch or side % patch:
            near = max(round(side / patch), 1) * patch
            raise UserError(f'vit: an image side of {side} px is no multiple of the patch side {patch}; {near} is')
    return size[0] // patch, size[1] // patch


def check_drop_path(rate: float, crops: Mapping[str, int], rows_per_group: int) -> None:
    """A UserError where groups of `rows_per_group` rows cannot leave out within .02 of the share `rate`."""

    def misses(rows: int) -> dict[str, float]:
        shares = {view: 1 - kept_count(rows * v, rate) / (rows * v) for view, v in crops.items()}
        return {view: share for view, share in shares.items() if abs(share - rate) > 0.02 + 1e-9}

    if rate and (missed := misses(rows_per_group)):
        fit = [str(rows) for rows in range(1, 65) if not misses(rows)]
        got = ', '.join(f'{share:.3f} for the view {view!r}' for view, share in missed.items())
        raise UserError(
            f'drop_path {rate} cannot be met in groups of rows_per_group={rows_per_group}: it would be {got}; '
            f'rows_per_group that fit: {", ".join(fit) or "none up to 64"}'
        )


def cubic_weights(size: int, out: int, antialias: bool, offset: float) -> np.ndarray:
    """Bicubic interpolation of `size` samples to `out`, as torch does it: float32 [out,size], rows sum to 1.

    Output i lies at (i + .5) * size / (out + offset) - .5 of the source. Without antialiasing: four taps of the cubic
    kernel with a = -.75, indices clamped at the border. With it: a = -.5, widened by the scale where that shrinks,
    taps outside the source left out and the rest normalised. The offset .1 is a kludge of the first DINO code that
    the models trained with it need.
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


def cubic_kernel(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel with parameter a; zero from distance 2 on."""
    d = np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d < 1, near, np.where(d < 2, far, 0.0))


def resize_grid(grid: Array, shape: tuple[int, int], antialias: bool, offset: float) -> Array:
    """Position embeddings [h0,w0,D] for another grid of patches: [h,w,D], float32. The native grid stays as it is."""
    if grid.shape[:2] == shape:
        return grid
    rows, columns = (cubic_weights(n, m, antialias, offset) for n, m in zip(grid.shape[:2], shape, strict=True))
    return jnp.einsum('yh,xw,hwd->yxd', rows, columns, grid, precision='highest')


def embed(params: Mapping[str, Any], images: Array, bits: Array | None, antialias: bool, offset: float) -> Array:
    """Images [S,H,W,C] -> tokens [S,1+R+N,D] in float32: CLS, registers, then patches row by row.

    A masked patch (bits bool [S,N]) becomes the mask token BEFORE the position embedding is added, so that the tower
    knows where it is; registers come in AFTER it and have no position.
    """
    kernel = params['patch_embed']['kernel']
    p = kernel.shape[0]
    grid = images.shape[1] // p, images.shape[2] // p
    patches = rearrange(images, 's (h p) (w q) c -> s (h w) (p q c)', p=p, q=p)
    x = patches @ kernel.reshape(-1, kernel.shape[-1]) + params['patch_embed']['bias']
    if bits is not None:
        x = jnp.where(bits[..., None], params['mask_token'], x)
    x += resize_grid(params['pos_grid'], grid, antialias, offset).reshape(-1, x.shape[-1])
    first = [(params['cls'] + params['pos_cls'])[None]]
    if 'registers' in params:
        first.append(params['registers'])
    first = jnp.concatenate(first)
    return jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], *first.shape)), x], axis=1)


class Vit(nn.Module):
    """Images [S,H,W,C] -> tokens of the last `layers` blocks, before and after the norm: each [layers,S,1+R+N,D]."""

    width: int
    depth: int
    heads: int
    hidden: int
    ffn: str
    patch: int
    channels: int
    native: tuple[int, int]  # the grid of patches that pos_grid is stored for
    registers: int
    layerscale: float | None
    qkv_bias: bool
    antialias: bool
    offset: float
    attention: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, images: Array, bits: Array | None, kept: Array | None, layers: int) -> tuple[Array, Array]:
        tokens = embed(self.embeddings(), constrain_rows(images), bits, self.antialias, self.offset)
        tokens = tokens.astype(self.dtype)
        # prevent_cse is for code outside of a scan, where the compiler could merge both passes
        block = nn.remat(Block, prevent_cse=False, policy=REMAT[self.remat])
        blocks = block(
            heads=self.heads,
            hidden=self.hidden,
            ffn=self.ffn,
            qkv_bias=self.qkv_bias,
            layerscale=self.layerscale,
            attention=self.attention,
            dtype=self.dtype,
            name='blocks',
        )

        def one(block: nn.Module, last: Array, kept: Array | None) -> tuple[Array, None]:
            return jnp.concatenate([last[1:], block(last[-1], kept)[None]]), None

        scan = nn.scan(
            one,
            variable_axes={'params': 0},
            split_rngs={'params': True},
            length=self.depth,
            metadata_params={nn.PARTITION_NAME: None},
        )
        last, _ = scan(blocks, jnp.broadcast_to(tokens, (layers, *tokens.shape)), kept)
        return last, LayerNorm(name='norm')(last)

    def embeddings(self) -> dict[str, Any]:
        """The parameters that `embed` reads; starts as in the original."""
        p, d = self.patch, self.width
        params = dict(
            cls=parameter(self, 'cls', jax.nn.initializers.normal(1e-6), (d,), ('embed',)),
            pos_cls=parameter(self, 'pos_cls', weight_init, (d,), ('embed',)),
            pos_grid=parameter(self, 'pos_grid', weight_init, (*self.native, d), (None, None, 'embed')),
            mask_token=parameter(self, 'mask_token', zeros, (d,), ('embed',)),
            patch_embed=PatchEmbed((p, p, self.channels, d), name='patch_embed')(),
        )
        if self.registers:
            normal = jax.nn.initializers.normal(1e-6)
            params['registers'] = parameter(self, 'registers', normal, (self.registers, d), (None, 'embed'))
        return params


class PatchEmbed(nn.Module):
    """The convolution's kernel [p,p,C,D] and bias [D]; `embed` applies them as one matrix product over patches."""

    shape: tuple[int, int, int, int]

    @nn.compact
    def __call__(self) -> dict[str, Array]:
        init = uniform_fan_in(int(np.prod(self.shape[:3])))
        return dict(
            kernel=parameter(self, 'kernel', init, self.shape, (None, None, None, 'embed')),
            bias=parameter(self, 'bias', init, self.shape[3:], ('embed',)),
        )
