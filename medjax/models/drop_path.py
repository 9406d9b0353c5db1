"""Drop path over subsets: which sequences keep a residual branch, and how their rows are taken and put back.

Source: DINOv2 (arXiv 2304.07193), whose drop path computes a branch for the kept sequences only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from medjax.models.kernels import plain_only
from medjax.parallel.sharding import constrain_rows, platform

SCOPE = 'drop_path'  # of the products that choose rows; `training/flops.py` does not count them


def kept_count(sequences: int, rate: float) -> int:
    """The number of a group's sequences that drop path keeps in each residual branch."""
    return max(int(sequences * (1 - rate)), 1)


def draw_kept(key: Array, groups: Array, sequences: int, depth: int, rate: float) -> Array:
    """Draws the sequences that drop path keeps: int32 [depth,2,G,kept]; index 0 of axis 1 is attention, 1 is the FFN.

    `groups` uint32 [G] are global group numbers. A draw depends on `key` and the number of its own group only. It does
    not depend on other groups, the mesh or the micro-batch.
    """

    def draw(group: Array) -> Array:
        ranks = jnp.argsort(jax.random.uniform(jax.random.fold_in(key, group), (depth, 2, sequences)))
        return ranks[..., : kept_count(sequences, rate)]

    return jnp.moveaxis(jax.vmap(draw)(groups), 0, 2)


def add_residual(x: Array, residual: Callable[..., Array], kept: Array | None, *others: Array | None) -> Array:
    """x + residual(x, *others) for sequences x [S,T,D]; with `kept`, drop path over subsets.

    `others` are arrays of the sequences [S,…], such as lengths and contexts, or None.

    `kept` int [G,k] holds for each of G groups the k sequences that keep the branch. The residual is computed for these
    sequences only, which saves time. It is multiplied by n/k, for n = S/G sequences in a group, so that its expected
    value does not change. Sequences are chosen inside their group, so nothing moves between devices.
    """
    if kept is None:
        return (x + residual(x, *others)).astype(x.dtype)
    groups, k = kept.shape
    n = len(x) // groups
    chosen = kept[..., None] == jnp.arange(n)
    subset = Subset(kept, chosen, jnp.argmax(chosen, axis=1), chosen.any(1))
    by_products = platform() == 'tpu' or plain_only()
    take, put_back = (_take_by_products, _put_by_products) if by_products else (_take, _put)

    def taken(x: Array) -> Array:
        x = constrain_rows(x.reshape(groups, n, *x.shape[1:]))
        return constrain_rows(take(x, subset).reshape(groups * k, *x.shape[2:]))

    y = residual(taken(x), *(None if other is None else taken(other) for other in others))
    y = (y * (n / k)).astype(x.dtype).reshape(groups, k, *x.shape[1:])
    return (constrain_rows(x.reshape(groups, n, *x.shape[1:])) + put_back(y, subset)).reshape(x.shape)


class Subset(NamedTuple):
    """The chosen rows of each group, in the forms that the functions below need."""

    kept: Array  # int32 [G,k]: the rows of the group, in their order in the subset
    chosen: Array  # bool [G,k,n]: row i is true at the i-th row of the subset
    place: Array  # int32 [G,n]: the place of each row in the subset; any number for rows outside
    inside: Array  # bool [G,n]: whether a row is in the subset


# Gathers in both directions. The backward pass of a gather would be a scatter, which is slow on GPUs, so each of the
# two functions is the other's transpose. XLA merges gathers with what comes before and after.


def _rows(x: Array, index: Array) -> Array:
    """x [G,a,…] at index [G,b]: [G,b,…]."""
    return jax.vmap(lambda group, i: jnp.take(group, i, axis=0, mode='clip'))(x, index)


def _rows_or_zero(y: Array, subset: Subset) -> Array:
    """y [G,k,…] at the places of its rows: [G,n,…], zero for rows outside of the subset."""
    inside = subset.inside.reshape(*subset.inside.shape, *[1] * (y.ndim - 2))
    return jnp.where(inside, _rows(y, subset.place), 0).astype(y.dtype)


@jax.custom_vjp
def _take(x: Array, subset: Subset) -> Array:
    """The rows of a subset, [G,n,…] -> [G,k,…]."""
    return _rows(x, subset.kept)


_take.defvjp(lambda x, subset: (_rows(x, subset.kept), subset), lambda subset, g: (_rows_or_zero(g, subset), None))


@jax.custom_vjp
def _put(y: Array, subset: Subset) -> Array:
    """The transpose of `_take`, [G,k,…] -> [G,n,…]."""
    return _rows_or_zero(y, subset)


_put.defvjp(lambda y, subset: (_rows_or_zero(y, subset), subset), lambda subset, g: (_rows(g, subset.kept), None))


# Products with a matrix of zeros and ones, exact in every type. A gather of rows is a serial loop on TPUs.


def _take_by_products(x: Array, subset: Subset) -> Array:
    return _product('gkn,gn...->gk...', subset.chosen, x)


def _put_by_products(y: Array, subset: Subset) -> Array:
    return _product('gkn,gk...->gn...', subset.chosen, y)


def _product(form: str, chosen: Array, x: Array) -> Array:
    with jax.named_scope(SCOPE):
        kind = x.dtype if jnp.issubdtype(x.dtype, jnp.floating) else jnp.float32
        return jnp.einsum(form, chosen.astype(kind), x.astype(kind), precision='highest').astype(x.dtype)
