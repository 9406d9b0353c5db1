"""Visual prompts: tokens of their own between the CLS token and the patches of a ViT, which stays as it is.

VPT (arXiv 2203.12119), bottleneck=0: the prompts are learned, and enter before the first block.

DVPT (arXiv 2307.09787), bottleneck=d: the prompts of an image depend on it. Before each block its tokens x pass a
bottleneck, learned queries p attend to them, and the results become the prompts of this block:

    z = gelu( norm(x) W + c )              [T,d], of all tokens but the prompts
    prompts = softmax(p z^T / sqrt d) z U + e      [P,D]

All blocks share W, c, p, U and e. Certain, from the abstract: bottleneck, learned queries, cross-attention, projection
to the width of the features, sharing. Ours, because no code was found: the norm has no parameters, and the results join
the features as tokens, as those of VPT do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.types import is_whole

PARAMETER = 'prompts'  # the name of its parameters


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The number of prompts, and the width of the bottleneck; 0: the prompts do not depend on the image."""

    count: int
    bottleneck: int


def build(count: int, bottleneck: int = 0) -> Prompts | None:
    """The option `prompts` of a ViT; None for no prompts."""
    for name, value in (('count', count), ('bottleneck', bottleneck)):
        if not is_whole(value) or value < 0:
            raise UserError(f'vit: prompts.{name}={value!r}: must be a whole number of at least 0')
    return Prompts(count, bottleneck) if count else None


def renewed(x: Array, params: Mapping[str, Any], first: int, lengths: Array | None) -> Array:
    """Tokens [S,T,D] of which those from number `first` on are replaced by the prompts that the others ask for.

    `lengths` int [S]: only the first tokens of a sequence count, the prompts included; None: all.
    """
    count, d = params['queries'].shape
    others = jnp.concatenate([x[:, :first], x[:, first + count :]], axis=1)
    y = others.astype(jnp.float32)
    y = (y - y.mean(-1, keepdims=True)) * jax.lax.rsqrt(y.var(-1, keepdims=True) + 1e-6)
    z = jax.nn.gelu((y.astype(x.dtype) @ params['down'].astype(x.dtype)) + params['down_bias'].astype(x.dtype), False)
    scores = jnp.einsum('pd,std->spt', params['queries'].astype(x.dtype), z).astype(jnp.float32) * d**-0.5
    if lengths is not None:
        inside = jnp.arange(others.shape[1]) < lengths[:, None] - count
        scores = jnp.where(inside[:, None], scores, -jnp.inf)
    found = jnp.einsum('spt,std->spd', jax.nn.softmax(scores, axis=-1).astype(x.dtype), z)
    new = found @ params['up'].astype(x.dtype) + params['up_bias'].astype(x.dtype)
    return jnp.concatenate([x[:, :first], new, x[:, first + count :]], axis=1)
