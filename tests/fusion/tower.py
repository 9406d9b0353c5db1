"""A tower over an image and a text: the tokens of the text attend to those of the image (ALBEF, arXiv 2107.07651)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from medjax.errors import UserError
from medjax.models.flax_tower import FlaxTower, logical_axes
from medjax.models.layers import scan_blocks
from medjax.types import ApplyOptions, Input, Tower, Tree


def build(reads: tuple[Tower | None, ...], depth: int = 1, heads: int = 2, dtype: str = 'float32') -> Tower:
    """The tower `fusion.tower` of a config, as wide as the text tower; `reads` is an image tower and a text tower."""
    if [None if tower is None else tower.sees for tower in reads] != ['image', 'text']:
        raise UserError("fusion: it reads an image tower and a text tower, as reads=['image', 'text']")
    image, text = reads
    module = Fusion(depth, heads, 2 * text.width, jnp.dtype(dtype))
    example = (
        np.zeros((1, 1, text.width), np.float32),
        np.ones(1, np.int32),
        np.zeros((1, 1, image.width), np.float32),
    )
    return FusionTower(width=text.width, axes=logical_axes(module, example), module=module, example=example)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FusionTower(FlaxTower):
    """The tower `fusion.tower`; its outputs are cls [B,V,D] and tokens [B,V,T,D]."""

    module: Fusion

    def encode(self, params: Tree, inputs: tuple[Input | None, ...], options: ApplyOptions) -> dict[str, Any]:
        image, text = inputs
        b, v, t, _ = text.outputs['tokens'].shape
        context = jnp.concatenate([image.outputs['cls'][:, :, None], image.outputs['patches']], axis=2)
        lengths = jnp.maximum(text.view.valid.sum(-1, dtype=jnp.int32), 1)
        tokens = self.module.apply(
            {'params': params},
            text.outputs['tokens'].reshape(b * v, t, -1),
            lengths.reshape(b * v),
            context.reshape(b * v, *context.shape[2:]),
        )
        tokens = tokens.reshape(b, v, t, -1).astype(jnp.float32)
        return dict(cls=tokens[:, :, 0], tokens=tokens)


class Fusion(nn.Module):
    """Tokens of texts [S,T,D] and of images [S,T',D'] -> tokens of texts [S,T,D]."""

    depth: int
    heads: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, tokens: Array, lengths: Array, context: Array) -> Array:
        return scan_blocks(
            tokens.astype(self.dtype),
            self.depth,
            'products',
            1,
            inputs=dict(lengths=lengths, context=context.astype(self.dtype)),
            heads=self.heads,
            hidden=self.hidden,
            layerscale=None,
            post_norm=True,
            eps=1e-12,
            dtype=self.dtype,
        )[0]
