"""All pairs of rows and columns, block by block around a ring of devices, so that no device holds all columns.

For losses over a similarity matrix that does not fit: a device holds one block [rows of a device, columns of a device],
whatever the batch. Forward and backward are the same walk; the backward one makes every block again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from medjax.parallel.sharding import ROWS, row_shards
from medjax.types import Tree

Block = Callable[[Tree, Tree, Tree, Tree], tuple[Tree, Tree]]
"""(rows, columns, about_rows, about_columns) -> what this block gives to its rows, and to its columns.

Trees of arrays whose leading axis is rows (or columns). Gradients pass through rows and columns, which are
floating point, and not through what is said about them.
"""


def ring_sums(block: Block, rows: Tree, columns: Tree, about_rows: Tree, about_columns: Tree) -> tuple[Tree, Tree]:
    """The sum of block(...) over all devices' columns for the rows, and over all devices' rows for the columns.

    All arguments are global, their leading axes divisible by the number of devices that split the rows. Differentiable
    by rows and columns; residuals are the arguments.
    """

    @jax.custom_vjp
    def run(rows: Tree, columns: Tree, about_rows: Tree, about_columns: Tree) -> tuple[Tree, Tree]:
        return _around(block, jnp.add, rows, columns, about_rows, about_columns)

    def forward(*arguments: Tree) -> tuple[Any, Any]:
        return run(*arguments), arguments

    def backward(arguments: Any, bars: tuple[Tree, Tree]) -> tuple[Tree, Tree, None, None]:
        rows, columns, about_rows, about_columns = arguments

        # A sum's cotangent is the same for every block: what the rows get back is again a sum over blocks.
        def pull(rows: Tree, columns: Tree, of_rows: Any, of_columns: Any) -> tuple[Tree, Tree]:
            (about_rows, row_bars), (about_columns, column_bars) = of_rows, of_columns
            _, vjp = jax.vjp(lambda r, c: block(r, c, about_rows, about_columns), rows, columns)
            return vjp((row_bars, column_bars))

        return *_around(pull, jnp.add, rows, columns, (about_rows, bars[0]), (about_columns, bars[1])), None, None

    run.defvjp(forward, backward)
    return run(rows, columns, about_rows, about_columns)


def ring_maxima(block: Block, rows: Tree, columns: Tree, about_rows: Tree, about_columns: Tree) -> tuple[Tree, Tree]:
    """Likewise the largest value over all blocks; no gradient."""
    return _around(block, jnp.maximum, *jax.lax.stop_gradient((rows, columns)), about_rows, about_columns)


def _around(block: Block, combine: Callable, *arguments: Tree) -> tuple[Tree, Tree]:
    devices = row_shards()
    if devices == 1:
        return block(*arguments)

    def shift(tree: Tree) -> Tree:
        steps = [(d, (d + 1) % devices) for d in range(devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, ROWS, steps), tree)

    def local(rows: Tree, columns: Tree, about_rows: Tree, about_columns: Tree) -> tuple[Tree, Tree]:
        own, others = block(rows, columns, about_rows, about_columns)

        def visit(carry: Any, _: None) -> tuple[Any, None]:
            own, travelling = carry
            columns, about, others = shift(travelling)
            mine, theirs = block(rows, columns, about_rows, about)
            own, others = jax.tree.map(combine, (own, others), (mine, theirs))
            return (own, (columns, about, others)), None

        (own, (_, _, others)), _ = jax.lax.scan(
            visit, (own, (columns, about_columns, others)), None, length=devices - 1
        )
        return own, shift(others)  # the last step brings the columns' results home

    return jax.shard_map(local, in_specs=P(ROWS), out_specs=P(ROWS))(*arguments)
