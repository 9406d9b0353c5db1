"""Trees of parameters and running statistics: pick some of them, take statistics out, put them back, split by type.
Also features at the positions of a mask, and elements that show one crop.

Batch-norm statistics are stored under 'stats' in the tree of their tower or head. During training the objective keeps
them in `aux`, out of reach of gradients and of the optimizer; exports put them back.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from medjax.errors import UserError
from medjax.types import Mask, Tree


def pick(tree: Tree, paths: tuple[str, ...]) -> Tree:
    """The subtrees 'kind/name' of {kind: {name: …}}, in the same shape; those that the tree lacks are left out."""
    out: dict[str, dict[str, Tree]] = {}
    for path in paths:
        kind, name = path.split('/')
        if name in tree.get(kind, {}):
            out.setdefault(kind, {})[name] = tree[kind][name]
    return out


def without_stats(modules: Tree) -> tuple[Tree, Tree]:
    """Splits {kind: {name: tree}} into parameters and running statistics, both in this shape."""
    params = {
        kind: {name: {k: v for k, v in tree.items() if k != 'stats'} for name, tree in trees.items()}
        for kind, trees in modules.items()
    }
    stats = {
        kind: {name: tree['stats'] for name, tree in trees.items() if 'stats' in tree}
        for kind, trees in modules.items()
    }
    return params, {kind: trees for kind, trees in stats.items() if trees}


def with_stats(params: Tree, stats: Tree) -> Tree:
    """The inverse of `without_stats`: puts the statistics back into their modules."""
    return {
        kind: {
            name: {**tree, 'stats': stats[kind][name]} if name in stats.get(kind, {}) else tree
            for name, tree in trees.items()
        }
        for kind, trees in params.items()
    }


def leaf_at(tree: Tree, path: str) -> Any:
    """The array or subtree at 'towers/text/words'; KeyError where there is none."""
    for key in path.split('/'):
        tree = tree[key]
    return tree


def floats_and_others(tree: Tree) -> tuple[Tree, Tree]:
    """A tree twice: once with its floating-point arrays and once with all others, and None in the other places."""
    is_float = jax.tree.map(lambda x: jnp.issubdtype(x.dtype, jnp.floating), tree)
    floats = jax.tree.map(lambda x, f: x if f else None, tree, is_float)
    return floats, jax.tree.map(lambda x, f: None if f else x, tree, is_float)


def joined(floats: Tree, others: Tree) -> Tree:
    """The inverse of `floats_and_others`."""
    return jax.tree.map(lambda a, b: b if a is None else a, floats, others, is_leaf=lambda x: x is None)


def at_mask(x: Array, mask: Mask) -> Array:
    """The tokens of x [B,V,N,D] at the positions of the mask, [G,K,M,D]. Each group gathers its own rows only.

    A predictor gives only what stands at these positions, [B,V C,K,crop_room,D] for C contexts of each crop. The result
    is then [G,K,C M,D], with the contexts of one crop one after the other.

    UserError where the mask was made for other numbers of crops or tokens.
    """
    if x.ndim == 5 and mask.crop_room and x.shape[2:4] == (mask.index.shape[1], mask.crop_room):
        groups, k, _ = mask.index.shape
        return x.reshape(groups, -1, *x.shape[2:]).swapaxes(1, 2).reshape(groups, k, -1, x.shape[-1])
    if x.ndim != 4 or x.shape[:3] != mask.bits.shape:
        raise UserError(
            f'its output has the shape {list(x.shape[1:])} a row, and the mask is made for {mask.bits.shape[1]} crops '
            f'of {mask.bits.shape[2]} tokens'
        )
    groups, k, m = mask.index.shape
    tokens = x.reshape(groups, -1, x.shape[-1])
    chosen = jnp.take_along_axis(tokens, mask.index.reshape(groups, k * m, 1), axis=1)
    return chosen.reshape(groups, k, m, x.shape[-1])


def weight_at_mask(present: Array, mask: Mask) -> Array:
    """The weights of the mask [G,K,M], with 0 for tokens of crops that are not `present` [B,V]."""
    crop = mask.index // mask.bits.shape[-1]  # the number of each token's crop in its group
    here = jnp.take_along_axis(present.reshape(len(mask.index), 1, -1), crop, axis=-1)
    return jnp.where(here, mask.weight, 0.0)


def same_crop(s: int, t: int, crops: int) -> np.ndarray:
    """1 where element i of s and element j of t show one crop of a view with `crops` crops, [s,t]."""
    first, second = (np.arange(n) // max(n // crops, 1) for n in (s, t))
    return (first[:, None] == second).astype(np.float32)
