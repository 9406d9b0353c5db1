"""LoRA: products of two small matrices that are added to the weights of a ViT's products (arXiv 2106.09685).

    y = x (W + alpha / rank A B) + b,    A [in,rank], B [rank,out]

A begins as torch's linear layers do and B is 0, so a tower begins as it was. Only A and B learn, because the recipe
freezes all other parameters: groups=[dict(match='towers/image/*', frozen_until='end'), dict(match='*/lora*',
frozen_until=0)]. Exports hold W + alpha / rank A B and no A and B, so everything that reads a ViT reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from medjax.errors import UserError
from medjax.types import Tree, is_number, is_whole

TARGETS = ('q', 'k', 'v', 'out', 'mlp')  # queries, keys, values, the product after attention, both of the FFN
PARAMETER = 'lora'  # the first letters of the names of its modules


class Lora(NamedTuple):
    """Rank and factor of the added matrices, and the products that have them."""

    rank: int
    scale: float  # alpha / rank
    targets: tuple[str, ...]

    def at(self, target: str) -> Lora | None:
        """Itself for a product that has such matrices."""
        return self if target in self.targets else None


def build(rank: int, alpha: float | None = None, targets: Sequence[str] = ('q', 'v')) -> Lora | None:
    """The option `lora` of a ViT; None for rank 0.

    rank     the width of the small matrices; 4 to 64 are usual
    alpha    the factor of their product is alpha / rank; None: the rank
    targets  some of TARGETS
    """
    if not is_whole(rank) or rank < 0:
        raise UserError(f'vit: lora.rank={rank!r}: must be a whole number of at least 0')
    if alpha is not None and not (is_number(alpha) and 0 < alpha < math.inf):
        raise UserError(f'vit: lora.alpha={alpha!r}: must be a number above 0, or None for the rank')
    known = isinstance(targets, (list, tuple)) and targets and all(name in TARGETS for name in targets)
    if not known or len(set(targets)) < len(targets):
        raise UserError(f'vit: lora.targets={targets!r}: must be a list of some of {", ".join(TARGETS)}, each once')
    return Lora(rank, 1.0 if alpha is None else alpha / rank, tuple(targets)) if rank else None


class LowRank(nn.Module):
    """alpha / rank x A B: x [...,*in] -> [...,prod(out)], with A [*in,rank] and B [rank,*out]."""

    lora: Lora
    shape: tuple[int, ...]  # of the weights, [*in,*out]
    axes: tuple[str | None, ...]  # their logical names
    inputs: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        rank, into, out = self.lora.rank, self.shape[: self.inputs], self.shape[self.inputs :]
        bound = math.prod(into) ** -0.5

        def small(name: str, init: Any, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> Any:
            matrix: Any = self.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32)
            return matrix.astype(self.dtype)

        down = small('down', _uniform(bound), (*self.axes[: self.inputs], None), (*into, rank))
        up = small('up', nn.initializers.zeros, (None, *self.axes[self.inputs :]), (rank, *out))
        y = jnp.tensordot(x.astype(self.dtype), down, axes=self.inputs)
        return self.lora.scale * jnp.tensordot(y, up.reshape(rank, -1), axes=1)


def _uniform(bound: float) -> Any:
    start = nn.initializers.uniform(2 * bound)
    return lambda key, shape, dtype=jnp.float32: start(key, shape, dtype) - bound


def merged(params: Tree, lora: Lora | None) -> Tree:
    """The parameters of stacked blocks with W + alpha / rank A B in the place of W, A and B; numpy or jax arrays."""
    if lora is None:
        return params
    added = {name: node for name, node in params.items() if name.startswith(PARAMETER)}
    rest = {
        name: merged(node, lora) if isinstance(node, Mapping) else node
        for name, node in params.items()
        if name not in added
    }
    if PARAMETER in added:
        change = _product(added[PARAMETER]).reshape(rest['kernel'].shape)
    elif added:  # of queries, keys and values, [L,D,3,…]
        xp = np if isinstance(rest['kernel'], np.ndarray) else jnp
        none = xp.zeros_like(rest['kernel'][:, :, 0])
        found = [added.get(f'{PARAMETER}_{name}') for name in 'qkv']
        change = xp.stack([none if node is None else _product(node).reshape(none.shape) for node in found], 2)
    else:
        return rest
    return rest | dict(kernel=(rest['kernel'] + lora.scale * change).astype(rest['kernel'].dtype))


def _product(node: Mapping[str, Any]) -> Any:
    """A B of each block [L,in,out], with several axes of in or out as one; in float64 on the host."""
    down, up = node['down'], node['up']
    down, up = down.reshape(len(down), -1, down.shape[-1]), up.reshape(len(up), up.shape[1], -1)
    if isinstance(down, np.ndarray):
        return down.astype(np.float64) @ up.astype(np.float64)
    return jnp.matmul(down, up, precision='highest')
