"""The head of DINO and iBOT: a perceptron with a bottleneck, and prototypes.

DINO: arXiv 2104.14294. iBOT: arXiv 2111.07832. DINOv2: arXiv 2304.07193.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.models.layers import gelu, uniform_fan_in, weight_init
from medjax.types import Head, Tree, is_whole


def build(
    width: int,
    prototypes: int,
    hidden: int = 2048,
    bottleneck: int = 256,
    layers: int = 3,
    bias: bool = True,
    dtype: str = 'float32',
) -> Head:
    """A head for features of `width` numbers.

    prototypes  K, the number of logits
    hidden      width of the layers between the features and the bottleneck
    bottleneck  d, the width of the L2-normalised vector that the prototypes are compared with
    layers      number of linear layers up to the bottleneck, with exact GELU between them
    bias        whether these layers have a bias
    dtype       type of the factors of products; sums, norms and results are float32
    """
    for name, size in dict(prototypes=prototypes, hidden=hidden, bottleneck=bottleneck, layers=layers).items():
        if not is_whole(size) or size < 1:
            raise UserError(f'dino_head: {name}={size!r}: must be a whole number of at least 1')
    if prototypes < 2:
        raise UserError('dino_head: prototypes=1: with one prototype there is nothing to choose; take at least 2')
    # Layers alternate between column and row parallel. Two of them then need one exchange between the tensor shards.
    names = [*(('embed', 'hidden')[i % 2] for i in range(layers)), 'bottleneck']
    axes: Tree = {f'mlp_{i}': dict(kernel=pair) for i, pair in enumerate(pairwise(names))}
    if bias:
        for i in range(layers):
            axes[f'mlp_{i}']['bias'] = (names[i + 1],)
    axes['prototypes'] = dict(direction=('bottleneck', 'prototypes'), gain=('prototypes',))
    widths = (width, *[hidden] * (layers - 1), bottleneck)
    return DinoHead(axes=axes, prototype_count=prototypes, widths=widths, bias=bias, dtype=dtype)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DinoHead(Head):
    """`apply` gives the bottleneck z = mlp(x) / max(|mlp(x)|, 1e-12), float32 [...,d].

    `prototypes` gives logits_k = gain_k <z, direction_k / |direction_k|>, float32 [...,K]. DINO v1 kept the gain at 1.
    """

    widths: tuple[int, ...]  # of the features, the hidden layers and the bottleneck
    bias: bool
    dtype: str

    def init(self, key: Array) -> Tree:
        keys = jax.random.split(key, len(self.widths))
        params: Tree = {}
        for i, shape in enumerate(pairwise(self.widths)):
            params[f'mlp_{i}'] = dict(kernel=weight_init(keys[i], shape))
            if self.bias:
                params[f'mlp_{i}']['bias'] = jnp.zeros(shape[1])
        bottleneck = self.widths[-1]
        direction = uniform_fan_in(bottleneck)(keys[-1], (bottleneck, self.prototype_count))
        return params | dict(prototypes=dict(direction=direction, gain=jnp.ones(self.prototype_count)))

    def apply(self, params: Tree, x: Array, *, present: Array | None = None, train: bool = False) -> Array:
        last = len(self.widths) - 2
        for i in range(last + 1):
            layer = params[f'mlp_{i}']
            x = x.astype(self.dtype) @ layer['kernel'].astype(self.dtype)
            if self.bias:
                x += layer['bias'].astype(self.dtype)
            if i < last:
                x = gelu(x)
        x = x.astype(jnp.float32)
        # The bound applies to the squared norm, because the gradient of the norm itself at 0 is not a number.
        return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))

    def prototypes(self, params: Tree) -> Callable[[Array], Array]:
        direction = params['prototypes']['direction']
        scale = params['prototypes']['gain'] * jax.lax.rsqrt(jnp.square(direction).sum(0))

        def logits(z: Array) -> Array:
            # the cast stands here, so that the gradients of several calls add up in float32
            w = direction.astype(self.dtype)
            return jnp.matmul(z.astype(self.dtype), w, preferred_element_type=jnp.float32) * scale

        return logits
