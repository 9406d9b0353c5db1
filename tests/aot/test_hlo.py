"""Programs taken apart: kernels of loops are counted by their turns, slices that scans write, and exchanges."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from medjax.aot.hlo import Collective, Program, size
from medjax.parallel import sharding

TEXT = """\
HloModule m

%fused (p: f32[5,8], u: f32[1,8], i: s32[]) -> f32[5,8] {
  %p = f32[5,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %write = f32[5,8]{1,0} dynamic-update-slice(%p, %u, %i, %i)
}

%body (state: (s32[], f32[5,8])) -> (s32[], f32[5,8]) {
  %state = (s32[], f32[5,8]{1,0}) parameter(0)
  %n = s32[] get-tuple-element(%state), index=0
  %x = f32[5,8]{1,0} get-tuple-element(%state), index=1
  %row = f32[1,8]{1,0} custom-call(%x), custom_call_target="__cublas$lt$matmul"
  %sums = ((f32[1,8]{1,0}), (f32[1,8]{1,0})) all-reduce-start(%row), metadata={op_name="jit(f)/dot_general"}
  %sum = f32[1,8]{1,0} all-reduce-done(%sums)
  %y = f32[5,8]{1,0} fusion(%x, %sum, %n), kind=kLoop, calls=%fused
  ROOT %next = (s32[], f32[5,8]{1,0}) tuple(%n, %y)
}

%condition (state: (s32[], f32[5,8])) -> pred[] {
  %state = (s32[], f32[5,8]{1,0}) parameter(0)
  %turns = s32[] constant(12)
  %n = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%n, %turns), direction=LT
}

ENTRY %main (x: (s32[], f32[5,8])) -> (s32[], f32[5,8]) {
  %x = (s32[], f32[5,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[5,8]{1,0}) while(%x), condition=%condition, body=%body
}
"""


def test_a_loop_counts_its_turns():
    program = Program(TEXT)
    summary = program.summary()
    assert program.runs()['body'] == 12
    assert summary.by_kind == {'__cublas$lt$matmul': 12, 'fusion kLoop': 12} and summary.kernels == 24
    assert (summary.scan_copies, summary.scan_copy_bytes) == (12, 12 * 8 * 4)
    assert summary.collectives == [Collective('all-reduce', 12, 12 * 8 * 4, 'jit(f)/dot_general')]
    assert summary.exchanged() == {'all-reduce': 384}
    assert program.arrays()['f32', (1, 8)] == 4 and ('pred', ()) not in program.arrays()


def test_the_bytes_that_kernels_read_and_write():
    """A row of 32 bytes is made of 160, and written into its place in them; the place is a number of 4 bytes."""
    program = Program(TEXT)
    product, writing = 160 + 32, 32 + 2 * 32 + 4
    assert program.moved() == 12 * (product + writing)
    assert program.roofline(bandwidth=2.0, peak=1e30)[0] == program.moved() / 2


def test_the_number_of_turns_that_the_compiler_writes_wins():
    text = TEXT.replace('body=%body', 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert Program(text).runs()['body'] == 3


@pytest.mark.parametrize(
    ('text', 'expected'),
    [('f32[2,3]{1,0}', 24), ('(bf16[8]{0}, pred[3])', 19), ('s32[]', 4), ('token[]', 0)],
)
def test_the_size_of_a_type(text, expected):
    assert size(text) == expected


def test_the_padding_of_a_tpu():
    """257 rows of 192 numbers lie in tiles of 8 x 128: 264 x 256; an array without tiles does not count."""
    text = TEXT.replace('f32[1,8]{1,0} custom-call', 'bf16[4,257,192]{2,1,0:T(8,128)(2,1)} custom-call')
    assert Program(text).padding() == pytest.approx(264 * 256 / (257 * 192))
    assert Program(TEXT).padding() == 0


def test_a_program_of_this_machine():
    """A scan over eight layers on eight devices: eight products and one exchange of a sum."""
    if jax.device_count() != 8:
        pytest.skip('needs 8 (virtual) devices')
    mesh = sharding.make_mesh(8, 1, 1)
    jax.set_mesh(mesh)

    def f(x, layers):
        y, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, layers)
        return jax.lax.with_sharding_constraint(y.sum(0), P())

    x = jax.device_put(jnp.ones((64, 32)), sharding.rows_sharding(mesh))
    summary = Program(jax.jit(f).lower(x, jnp.ones((8, 32, 32))).compile().as_text()).summary()
    assert summary.exchanged() == {'all-reduce': 32 * 4}
    assert max(summary.by_kind.values()) >= 8
