"""FLOPs and bytes of kernels as TPUs write them."""

from __future__ import annotations

import numpy as np
import pytest

from medjax.aot.hlo import Program
from medjax.plan.kernels import Kernels, convolution_flops


def flops(line, **types):
    program = Program(f'HloModule x\n\nENTRY %main () -> f32[] {{\n  {line}\n}}\n')
    return convolution_flops(program.computations['main'][0], types)


def test_a_product_is_a_convolution_without_a_window():
    line = '%c = bf16[64,96]{1,0} convolution(%a, %b), dim_labels=fb_io->bf'
    assert flops(line, a='bf16[32,64]{1,0}', b='bf16[32,96]{1,0}') == 2 * 64 * 32 * 96


def test_products_of_a_batch_are_a_window_over_holes():
    """12 products of [64,32] and [32,96]: each place of the window meets one of the 12."""
    line = (
        '%c = bf16[12,64,96]{2,1,0} convolution(%a, %b), '
        'window={size=12 stride=11 pad=0_0 lhs_dilate=12}, dim_labels=0bf_0io->0bf'
    )
    assert flops(line, a='bf16[12,64,32]{2,1,0}', b='bf16[12,32,96]{2,1,0}') == 2 * 12 * 64 * 32 * 96


@pytest.mark.parametrize(('stride', 'pad', 'dilate', 'holes'), [(1, 1, 1, 1), (2, 0, 1, 1), (1, 2, 2, 1), (1, 1, 1, 2)])
def test_a_convolution_counts_what_meets(stride, pad, dilate, holes):
    n_in, window = 9, 3
    spread = np.zeros(holes * (n_in - 1) + 1)
    spread[::holes] = 1
    padded = np.pad(spread, pad)
    places = range(0, len(padded) - dilate * (window - 1), stride)
    meet = sum(padded[o + k * dilate] for o in places for k in range(window))
    line = (
        f'%c = f32[5,{len(places)},7]{{2,1,0}} convolution(%a, %b), window={{size={window} stride={stride} '
        f'pad={pad}_{pad} lhs_dilate={holes} rhs_dilate={dilate}}}, dim_labels=b0f_0io->b0f'
    )
    assert flops(line, a=f'f32[5,{n_in},4]{{2,1,0}}', b=f'f32[{window},4,7]{{2,1,0}}') == 2 * 5 * 7 * 4 * meet


TEXT = """HloModule x

%inner (r: f32[64,32]) -> bf16[64,32] {
  %r = f32[64,32]{1,0:T(8,128)} parameter(0)
  ROOT %v = bf16[64,32]{1,0:T(8,128)(2,1)} convert(%r)
}

%fused (s: f32[64,32], t: bf16[32,96]) -> bf16[64,96] {
  %s = f32[64,32]{1,0:T(8,128)} parameter(0)
  %t = bf16[32,96]{1,0:T(8,128)(2,1)S(1)} parameter(1)
  %f = bf16[64,32]{1,0:T(8,128)(2,1)} fusion(%s), kind=kLoop, calls=%inner
  ROOT %c = bf16[64,96]{1,0:T(8,128)(2,1)} convolution(%f, %t), dim_labels=bf_io->bf
}

ENTRY %main (p: f32[64,32], q: bf16[32,96]) -> bf16[64,96] {
  %p = f32[64,32]{1,0:T(8,128)} parameter(0)
  %q = bf16[32,96]{1,0:T(8,128)(2,1)} parameter(1)
  %g = (bf16[32,96]{1,0:T(8,128)(2,1)S(1)}, bf16[32,96]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%q)
  %h = bf16[32,96]{1,0:T(8,128)(2,1)S(1)} copy-done(%g)
  ROOT %o = bf16[64,96]{1,0:T(8,128)(2,1)} fusion(%p, %h), kind=kOutput, calls=%fused, metadata={op_name="a/mlp/b"}
}
"""


def test_fusions_inside_fusions_and_arrays_inside_the_core():
    kernels = {one.part: one for one in Kernels(TEXT).kernels()}
    product = kernels['MLP']
    assert (product.runs, product.flops) == (1, 2 * 64 * 32 * 96)
    assert product.bytes == 64 * 32 * 4 + 64 * 96 * 2  # the weights are in the core already
    assert kernels['other'].bytes == 32 * 96 * 2  # a copy brought them there
