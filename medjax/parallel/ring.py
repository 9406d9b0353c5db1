"""Sums over all pairs of rows and columns, block by block around a ring of devices: no device holds all columns.

This serves losses over a similarity matrix that does not fit into memory. A device holds one block at a time: its own
rows times the columns of one device. The columns travel once around the ring. The backward pass goes around in the same
way and computes every block again.
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
"""(rows, columns, row_facts, column_facts) -> the results of one block for its rows and for its columns.

All are trees of arrays whose leading axis is rows, or columns. Rows and columns are floating point, and gradients pass
through them. Facts, such as keys and weights, get no gradient.
"""


def ring_sums(block: Block, rows: Tree, columns: Tree, row_facts: Tree, column_facts: Tree) -> tuple[Tree, Tree]:
    """For each row the sum of block(...) over all columns, and for each column the sum over all rows.

    All arguments are global arrays; the number of row shards must divide their leading axes. The sums are
    differentiable by rows and columns. The backward pass stores the arguments and nothing else.
    """

    @jax.custom_vjp
    def sums(rows: Tree, columns: Tree, row_facts: Tree, column_facts: Tree) -> tuple[Tree, Tree]:
        return _around(block, jnp.add, rows, columns, row_facts, column_facts)

    def forward(*arguments: Tree) -> tuple[Any, Any]:
        return sums(*arguments), arguments

    def backward(arguments: Any, cotangents: tuple[Tree, Tree]) -> tuple[Tree, Tree, None, None]:
        rows, columns, row_facts, column_facts = arguments

        # A sum has the same cotangent for every block, so the gradients of rows and columns are sums over blocks, too.
        def gradients(rows: Tree, columns: Tree, row_side: Any, column_side: Any) -> tuple[Tree, Tree]:
            (row_facts, row_cotangents), (column_facts, column_cotangents) = row_side, column_side
            _, vjp = jax.vjp(lambda r, c: block(r, c, row_facts, column_facts), rows, columns)
            return vjp((row_cotangents, column_cotangents))

        row_side, column_side = (row_facts, cotangents[0]), (column_facts, cotangents[1])
        return *_around(gradients, jnp.add, rows, columns, row_side, column_side), None, None

    sums.defvjp(forward, backward)
    return sums(rows, columns, row_facts, column_facts)


def ring_maxima(block: Block, rows: Tree, columns: Tree, row_facts: Tree, column_facts: Tree) -> tuple[Tree, Tree]:
    """As `ring_sums`, with the maximum in place of the sum, and without a gradient."""
    return _around(block, jnp.maximum, *jax.lax.stop_gradient((rows, columns)), row_facts, column_facts)


def _around(block: Block, combine: Callable, *arguments: Tree) -> tuple[Tree, Tree]:
    devices = row_shards()
    if devices == 1:
        return block(*arguments)

    def shift(tree: Tree) -> Tree:
        """Sends the arrays to the next device of the ring."""
        steps = [(d, (d + 1) % devices) for d in range(devices)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, ROWS, steps), tree)

    def on_device(rows: Tree, columns: Tree, row_facts: Tree, column_facts: Tree) -> tuple[Tree, Tree]:
        row_results, column_results = block(rows, columns, row_facts, column_facts)

        def visit(carry: Any, _: None) -> tuple[Any, None]:
            row_results, travelling = carry
            columns, column_facts, column_results = shift(travelling)
            new = block(rows, columns, row_facts, column_facts)
            row_results, column_results = jax.tree.map(combine, (row_results, column_results), new)
            return (row_results, (columns, column_facts, column_results)), None

        carry = row_results, (columns, column_facts, column_results)
        (row_results, (_, _, column_results)), _ = jax.lax.scan(visit, carry, None, length=devices - 1)
        return row_results, shift(column_results)  # the last step brings the results of columns to their own device

    return jax.shard_map(on_device, in_specs=P(ROWS), out_specs=P(ROWS))(*arguments)
