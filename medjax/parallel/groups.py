"""Groups of rows: every draw and every data-dependent gather stays inside one."""

from __future__ import annotations

from medjax.errors import UserError, multiples


def check_rows(rows: dict[str, int], rows_per_group: int, micro_batches: int, shards: int) -> None:
    """A UserError unless every device holds whole groups in every micro-batch."""
    for part, b in rows.items():
        unit = rows_per_group * micro_batches * shards
        if b % unit:
            raise UserError(
                f'data.{part}.rows = {b} (batch_size is the sum of the rows) must be a multiple of {unit} = '
                f'rows_per_group {rows_per_group} x micro_batches {micro_batches} x {shards} device(s) that split the '
                f'rows; {multiples(b, unit)} would work'
            )
