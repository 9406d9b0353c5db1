"""The decoder of masked autoencoders: a small transformer that fills in the patches which the encoder did not see.

MAE, arXiv 2111.06377. It reads the tokens that the encoder gives for the patches that a mask of mode 'drop' keeps. It
puts a learned token in the places of the others, and predicts the pixels of all patches.

    towers=dict(image=dict(tower='vit', …), decoder=dict(tower='decoder', reads=['image']))
    masks={'crop~random': dict(mask='random', share=.75)}
    feature: student/decoder/crop~random/pixels
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from medjax.errors import UserError
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import (
    STARTS,
    LayerNorm,
    Linear,
    check_choice,
    check_compute,
    check_ratio,
    parameter,
    scan_blocks,
    weight_init,
)
from medjax.models.towers.vit import VitTower, sincos_positions
from medjax.types import ApplyOptions, Input, Tower, Tree, is_whole


def build(
    channels: int,
    reads: tuple[Tower | None, ...],
    width: int = 512,
    depth: int = 8,
    heads: int = 16,
    mlp_ratio: float = 4.0,
    start: str = 'xavier',
    attention: str = 'auto',
    remat: str = 'products',
    dtype: str = 'float32',
) -> Tower:
    """The tower `decoder` of a config. Its outputs are pixels [B,V,N,p p C], patches [B,V,N,D] and cls [B,V,D].

    reads         one ViT, the encoder
    width, depth, heads, mlp_ratio
                  of the decoder; the published ones are 512, 8, 16 and 4
    start         how the weights start, see the tower `vit`
    attention, remat, dtype
                  as in the tower `vit`

    The numbers of a patch in `pixels` are ordered as (row in the patch, column in the patch, channel).
    """
    encoder = reads[0] if len(reads) == 1 else None
    if not isinstance(encoder, VitTower):
        raise UserError("decoder: it reads one tower, a ViT: reads=['image']")
    check_sizes('decoder', width, depth, heads, mlp_ratio, start, attention, remat, dtype)
    patch = encoder.module.patch
    module = Decoder(
        width=width,
        depth=depth,
        heads=heads,
        hidden=round(width * mlp_ratio),
        out=patch * patch * channels,
        eps=encoder.module.family.eps,
        start=start,
        attention=attention,
        remat=remat,
        dtype=jnp.dtype(dtype),
    )
    example = (np.zeros((1, 2, encoder.width), np.float32), np.zeros((1, 1), np.int32), (1, 1))
    return DecoderTower(
        width=width,
        axes=logical_axes(module, example),
        widths=dict(pixels=module.out),
        module=module,
        example=example,
        patch=patch,
    )


def check_sizes(
    tower: str,
    width: int,
    depth: int,
    heads: int,
    mlp_ratio: float,
    start: str,
    attention: str,
    remat: str,
    dtype: str,
) -> None:
    """A UserError for settings with which no small transformer over an encoder can be built; `tower` is its kind."""
    for name, value in dict(width=width, depth=depth, heads=heads).items():
        if not is_whole(value) or value < 1:
            raise UserError(f'{tower}: {name}={value!r}: must be a whole number of at least 1')
    if width % heads or width % 4:
        raise UserError(f'{tower}: width {width} must be divisible by 4 and by its {heads} heads')
    check_ratio(tower, mlp_ratio)
    check_choice(tower, 'start', start, STARTS)
    check_compute(tower, attention, remat, dtype)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DecoderTower(FlaxTower):
    """A tower over a ViT around the flax module `Decoder`."""

    module: Decoder
    patch: int  # patch side in pixels

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        ((view, mask, encoded),) = inputs
        if mask is None or mask.kept is None or encoded is None:
            raise UserError(
                'decoder: the encoder reads the whole view, so nothing is left to fill in; give the view a mask of '
                "mode 'drop', such as crop~random with dict(mask='random')"
            )
        if mask.kept.shape[2] != 1 or mask.length is not None:
            raise UserError('decoder: it takes masks with one context a crop, all of one length')
        b, v, _, m = mask.kept.shape
        height, width = view.image.shape[2:4]
        tokens = jnp.concatenate([encoded['cls'][:, :, None], encoded['patches']], axis=2)
        outputs: Any = self.module.apply(
            {'params': params},
            tokens.reshape(b * v, m + 1, -1),
            mask.kept.reshape(b * v, m),
            (height // self.patch, width // self.patch),
        )
        normed, pixels = [x.reshape(b, v, *x.shape[1:]) for x in outputs]
        return dict(cls=normed[:, :, 0], patches=normed[:, :, 1:], pixels=pixels)


class Decoder(nn.Module):
    """Tokens of the encoder [S,1+M,D'], CLS first, and the numbers of their patches [S,M] -> tokens and pixels of all.

    They are the tokens after the final norm [S,1+N,D] and the pixels [S,N,out], in float32.
    """

    width: int
    depth: int
    heads: int
    hidden: int
    out: int  # numbers of a patch
    eps: float
    start: str
    attention: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, kept: Array, grid: tuple[int, int]) -> tuple[Array, Array]:
        d, init = self.width, STARTS[self.start]
        x = Linear((tokens.shape[-1], d), ('embed', None), dtype=self.dtype, init=init, name='embed')(tokens)
        x = x.astype(jnp.float32)
        mask_token = parameter(self, 'mask_token', weight_init, (d,), ('embed',))
        s, n = len(x), grid[0] * grid[1]
        # one row a patch: its place among the kept patches, or the mask token
        place = jnp.argmax(kept[:, :, None] == jnp.arange(n), axis=1)
        seen = (kept[:, :, None] == jnp.arange(n)).any(1)
        patches = jnp.take_along_axis(x[:, 1:], place[..., None], axis=1)
        patches = jnp.where(seen[..., None], patches, mask_token) + sincos_positions(grid, d)
        x = jnp.concatenate([x[:, :1], patches], axis=1)
        x = scan_blocks(
            x.astype(self.dtype),
            self.depth,
            self.remat,
            1,
            heads=self.heads,
            hidden=self.hidden,
            layerscale=None,
            eps=self.eps,
            start=self.start,
            attention=self.attention,
            dtype=self.dtype,
        )[0]
        x = LayerNorm(self.eps, name='norm')(x)
        pixels = Linear((d, self.out), ('embed', None), dtype=self.dtype, init=init, name='pixels')(x[:, 1:])
        return x, pixels.reshape(s, n, self.out).astype(jnp.float32)
