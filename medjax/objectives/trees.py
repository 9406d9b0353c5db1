"""Trees of parameters and running statistics: pick some of them, take statistics out, put them back.

Batch-norm statistics are stored under 'stats' in the tree of their tower. During training the objective keeps them in
`aux`, out of reach of gradients and of the optimizer; exports put them back.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from medjax.types import Mask, Tree


def pick(tree: Tree, paths: tuple[str, ...]) -> Tree:
    """The subtrees 'kind/name' of {kind: {name: …}}, in the same shape."""
    out: dict[str, dict[str, Tree]] = {}
    for path in paths:
        kind, name = path.split('/')
        out.setdefault(kind, {})[name] = tree[kind][name]
    return out


def without_stats(towers: Tree) -> tuple[Tree, Tree]:
    """Splits trees of towers into parameters and running statistics {tower: statistics}."""
    stats = {name: tree['stats'] for name, tree in towers.items() if 'stats' in tree}
    return {name: {k: v for k, v in tree.items() if k != 'stats'} for name, tree in towers.items()}, stats


def with_stats(params: Tree, stats: Tree) -> Tree:
    """The inverse of `without_stats`, for {'towers': …}: puts the statistics back into their towers."""
    towers = params.get('towers', {})
    return {**params, 'towers': {n: {**t, 'stats': stats[n]} if n in stats else t for n, t in towers.items()}}


def at_mask(x: Array, mask: Mask) -> Array:
    """The tokens of x [B,V,N,D] at the positions of the mask, [G,K,M,D]. Each group gathers its own rows only."""
    groups, k, m = mask.index.shape
    tokens = x.reshape(groups, -1, x.shape[-1])
    chosen = jnp.take_along_axis(tokens, mask.index.reshape(groups, k * m, 1), axis=1)
    return chosen.reshape(groups, k, m, x.shape[-1])
