"""The predictor of latent prediction: a small transformer that predicts features at the targets of a mask.

I-JEPA, arXiv 2301.08243. It reads the tokens that the encoder gives for the context, the patches that a mask of mode
'drop' keeps. For each set of targets it adds one learned token a target, with the position of the target, and gives the
predicted features of the encoder there. Each set of each context is a sequence of its own.

    towers=dict(image=dict(tower='vit', family='ijepa', …), predictor=dict(tower='predictor', reads=['image']))
    masks={'crop~block': dict(mask='multiblock')}
    feature: student/predictor/crop~block/patches@block
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from medjax.errors import UserError
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import STARTS, LayerNorm, Linear, parameter, scan_blocks, weight_init
from medjax.models.towers.decoder import check_sizes
from medjax.models.towers.vit import VitTower, sincos_positions
from medjax.types import ApplyOptions, Input, Mask, Tower, Tree


def build(
    reads: tuple[Tower | None, ...],
    width: int = 384,
    depth: int = 12,
    heads: int = 12,
    mlp_ratio: float = 4.0,
    start: str = 'normal',
    attention: str = 'auto',
    remat: str = 'products',
    dtype: str = 'float32',
) -> Tower:
    """The tower `predictor` of a config.

    reads         one ViT, the encoder
    width, depth, heads, mlp_ratio
                  of the predictor. The published predictors are 384 wide, with 12 blocks and the heads of the encoder
    start         how the weights start, see the tower `vit`
    attention, remat, dtype
                  as in the tower `vit`

    Its outputs are `patches` [B,V C,K,M,D], the predictions at M targets of each of K sets from each of C contexts of a
    crop, and `cls` [B,V C,D], their mean. D is the width of the encoder. `patches@block` are the predictions at the
    mask `block` as terms take them.
    """
    encoder = reads[0] if len(reads) == 1 else None
    if not isinstance(encoder, VitTower):
        raise UserError("predictor: it reads one tower, a ViT: reads=['image']")
    check_sizes('predictor', width, depth, heads, mlp_ratio, start, attention, remat, dtype)
    module = Predictor(
        width=width,
        depth=depth,
        heads=heads,
        hidden=round(width * mlp_ratio),
        out=encoder.width,
        eps=encoder.module.family.eps,
        start=start,
        attention=attention,
        remat=remat,
        dtype=jnp.dtype(dtype),
    )
    one = np.zeros((1, 1), np.int32)
    example = (np.zeros((1, 1, encoder.width), np.float32), Places(one, one[0], one[None], one), (1, 1))
    return PredictorTower(
        width=encoder.width,
        axes=logical_axes(module, example),
        module=module,
        example=example,
        patch=encoder.module.patch,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PredictorTower(FlaxTower):
    """A tower over a ViT around the flax module `Predictor`."""

    module: Predictor
    patch: int  # patch side in pixels

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        ((view, mask, encoded),) = inputs
        if mask is None or mask.kept is None or not mask.crop_room or encoded is None:
            raise UserError(
                'predictor: the encoder must read a context, and other patches must be targets, crop by crop; give the '
                "view a mask such as crop~block with dict(mask='multiblock')"
            )
        height, width = view.image.shape[2:4]
        places, counts = places_of(mask), target_counts(mask)
        b, v, contexts, _ = mask.kept.shape
        patches = encoded['patches']
        predicted: Any = self.module.apply(
            {'params': params},
            patches.reshape(-1, *patches.shape[2:]),
            places,
            (height // self.patch, width // self.patch),
        )
        predicted = predicted.reshape(b, v * contexts, *predicted.shape[1:])
        there = jnp.repeat(jnp.arange(mask.crop_room) < counts[..., None], contexts, axis=1)  # bool [B,V C,K,M]
        total = jnp.where(there[..., None], predicted, 0).sum((2, 3))
        return dict(cls=total / jnp.maximum(there.sum((2, 3)), 1)[..., None], patches=predicted)


class Places(NamedTuple):
    """The patches of S contexts and of K sets of targets of each: their numbers, and how many of them count."""

    kept: Array  # int32 [S,M']
    lengths: Array  # int32 [S]
    targets: Array  # int32 [S,K,M]
    counts: Array  # int32 [S,K]


def places_of(mask: Mask) -> Places:
    """The contexts of all crops, and for each of them the targets of its crop."""
    assert mask.kept is not None
    b, v, contexts, m = mask.kept.shape
    lengths = jnp.full((b, v, contexts), m, jnp.int32) if mask.length is None else mask.length
    targets = by_crop(mask, mask.index % mask.bits.shape[-1])
    targets, counts = (
        jnp.repeat(x, contexts, axis=1).reshape(b * v * contexts, *x.shape[2:]) for x in (targets, target_counts(mask))
    )
    return Places(mask.kept.reshape(-1, m), lengths.reshape(-1), targets, counts)


def target_counts(mask: Mask) -> Array:
    """The number of targets of each crop in each set, int32 [B,V,K]."""
    return (by_crop(mask, mask.weight) > 0).sum(-1, dtype=jnp.int32)


def by_crop(mask: Mask, x: Array) -> Array:
    """An array like `Mask.index`, [G,K,M of a group], as [B,V,K,crop_room]."""
    b, v, _ = mask.bits.shape
    return x.reshape(*x.shape[:2], -1, mask.crop_room).swapaxes(1, 2).reshape(b, v, x.shape[1], mask.crop_room)


class Predictor(nn.Module):
    """Tokens of the encoder [S,M',D] and the places of contexts and targets -> predictions [S,K,M,out], float32."""

    width: int
    depth: int
    heads: int
    hidden: int
    out: int  # width of the encoder
    eps: float
    start: str
    attention: str
    remat: str
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, places: Places, grid: tuple[int, int]) -> Array:
        d, init = self.width, STARTS[self.start]
        x = Linear((tokens.shape[-1], d), ('embed', None), dtype=self.dtype, init=init, name='embed')(tokens)
        mask_token = parameter(self, 'mask_token', weight_init, (d,), ('embed',))
        x, lengths = sequences(x.astype(jnp.float32), mask_token, places, jnp.asarray(sincos_positions(grid, d)))
        x = scan_blocks(
            x.astype(self.dtype),
            self.depth,
            self.remat,
            1,
            inputs=dict(lengths=lengths),
            heads=self.heads,
            hidden=self.hidden,
            layerscale=None,
            eps=self.eps,
            start=self.start,
            attention=self.attention,
            dtype=self.dtype,
        )[0]
        s, k, m = places.targets.shape
        number = jnp.repeat(places.lengths, k)[:, None] + jnp.arange(m)  # of each target in its sequence
        x = LayerNorm(self.eps, name='norm')(jnp.take_along_axis(x, number[..., None], axis=1))
        x = Linear((d, self.out), ('embed', None), dtype=self.dtype, init=init, name='project')(x)
        return x.reshape(s, k, m, self.out).astype(jnp.float32)


def sequences(context: Array, mask_token: Array, places: Places, positions: Array) -> tuple[Array, Array]:
    """One sequence for each context and set of targets, [S K,M'+M,d], and how many of its tokens count, [S K].

    `context` are tokens [S,M',d], `positions` those of all patches [N,d]. Each sequence has the patches of its context,
    then its targets, then padding.
    """
    s, k, m = places.targets.shape
    most = context.shape[1]
    context += positions[places.kept]
    targets = mask_token + positions[places.targets]
    x = jnp.concatenate([jnp.repeat(context, k, axis=0), targets.reshape(s * k, m, -1)], axis=1)
    length, number = jnp.repeat(places.lengths, k)[:, None], jnp.arange(most + m)
    place = jnp.where(number < length, number, jnp.minimum(number + most - length, most + m - 1))
    return jnp.take_along_axis(x, place[..., None], axis=1), length[:, 0] + places.counts.reshape(-1)
