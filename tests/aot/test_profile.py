"""Profiles: which part of a step a kernel belongs to, in traces of a CPU, and in the forms that GPUs and TPUs write."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from medjax.aot import profile
from medjax.aot.hlo import Program

TEXT = """\
HloModule m

%inside (p: bf16[8]) -> (bf16[8]) {
  %p = bf16[8]{0} parameter(0)
  %norm = bf16[8]{0} multiply(%p, %p), metadata={op_name="jit(step)/jvp(Vit)/blocks/norm1/mul"}
  ROOT %all = (bf16[8]{0}) tuple(%norm)
}

%graph (x: bf16[8]) -> bf16[8] {
  %x = bf16[8]{0} parameter(0)
  %loop_multiply_fusion.9 = bf16[8]{0} fusion(%x), kind=kLoop, calls=%inside, metadata={op_name="f/mlp/erf"}
  %custom-call.4 = bf16[8]{0} custom-call(%x), custom_call_target="__cublas$lt$matmul", metadata={op_name="a/attn/qkv"}
  ROOT %copy.3 = bf16[8]{0} copy(%x), metadata={op_name="jit(step)/blocks/mlp/transpose"}
}

ENTRY %main (x: bf16[8]) -> bf16[8] {
  %x = bf16[8]{0} parameter(0)
  %input_reduce_fusion.2 = (bf16[8]{0}) fusion(%x), kind=kInput, calls=%inside
  ROOT %command_buffer_7 = bf16[8]{0} call(%x), to_apply=%graph
}
"""


def event(name, ms, **stats):
    return SimpleNamespace(name=name, duration_ns=ms * 1e6, stats=list(stats.items()))


def plane(name, **lines):
    named = [SimpleNamespace(name=key.replace('_', ' '), events=events) for key, events in lines.items()]
    return SimpleNamespace(name=name, lines=named)


@pytest.mark.parametrize(
    ('kernel', 'part'),
    [
        (event('loop_multiply_fusion_9', 1, hlo_op='loop_multiply_fusion.9'), 'MLP'),
        (event('loop_multiply_fusion_9', 1, hlo_op='command_buffer_7'), 'MLP'),  # inside a CUDA graph
        (event('loop_multiply_fusion_9', 1), 'MLP'),  # no instruction is named
        (event('loop_add_fusion', 1, hlo_op='loop_multiply_fusion.9'), 'MLP'),  # equal fusions share a kernel
        (event('input_reduce_fusion_2', 1, hlo_op='input_reduce_fusion.2'), 'norms'),  # by what it computes
        (event('nvjet_sm90_tst_128x160_NNT', 1, hlo_op='custom-call.4'), 'attention'),
        (event('nvjet_sm90_tst_128x160_NNT', 1, hlo_op='command_buffer_7'), 'products without a source'),
        (event('void cutlass::Kernel2<cutlass_80_tensorop>', 1), 'products without a source'),
        (event('cudnn_generated_fort_native_sdpa_sm90_flash_fprop', 1, hlo_op='command_buffer_7'), 'attention'),
        (event('MemcpyD2D', 1, hlo_op='loop_multiply_fusion.9'), 'copies'),
        (event('memcpy128', 1, hlo_op='command_buffer_7'), 'copies'),
        (event('copy_3', 1), 'copies'),
        (event('somebody_elses_kernel', 1), 'other'),
    ],
)
def test_the_part_of_a_kernel_on_a_gpu(kernel, part):
    (cost,) = profile.costs([plane('/device:GPU:0', **{'Stream #13(Compute)': [kernel]})], Program(TEXT), 1)
    assert cost.part == part


def test_kernels_of_a_gpu_count_once():
    """Lines that repeat the kernels under other names do not count, nor does the host."""
    kernels = [event('loop_multiply_fusion_9', 2, hlo_op='loop_multiply_fusion.9')] * 6 + [event('MemcpyD2D', 3)] * 3
    gpu = plane(
        '/device:GPU:0',
        **{'Stream #13(Compute)': kernels, 'Stream #14(MemcpyD2D)': [event('MemcpyD2D', 9)], 'XLA Ops': kernels},
    )
    host = plane('/host:CPU', python=[event('loop_multiply_fusion.9', 50, hlo_op='loop_multiply_fusion.9')])
    costs = profile.costs([host, gpu], Program(TEXT), 3)
    assert [(one.part, one.ms, one.launches) for one in costs] == [('copies', 6.0, 4 / 3), ('MLP', 4.0, 2.0)]
    assert profile.by_part(costs) == {'copies': 6.0, 'MLP': 4.0}


def test_operations_of_a_tpu_are_named_by_their_text():
    ops = [event('%loop_multiply_fusion.9 = bf16[8]{0:T(256)} fusion(bf16[8]{0:T(256)} %x)', 4)]
    tpu = plane('/device:TPU:0', **{'XLA Ops': ops, 'XLA Modules': [event('jit_step(1)', 4)], 'Steps': [event('0', 5)]})
    assert profile.by_part(profile.costs([tpu], Program(TEXT), 2)) == {'MLP': 2.0}


def test_a_program_of_this_machine():
    """A scan over layers: its loop does not count beside its kernels, and every part is found."""

    def f(x, layers):
        def block(x, w):
            with jax.named_scope('blocks/mlp'):
                x = jnp.tanh(x @ w)
            with jax.named_scope('blocks/norm1'):
                return x / jnp.sqrt((x * x).mean(-1, keepdims=True)), None

        y, _ = jax.lax.scan(block, x, layers)
        with jax.named_scope('optimizer'):
            return jnp.sin(jnp.cumsum(y, 0))

    x, layers = jnp.ones((256, 256)), jnp.ones((6, 256, 256)) / 256
    run = jax.jit(f).lower(x, layers).compile()
    costs = profile.profile(lambda: jax.block_until_ready(run(x, layers)), run.as_text(), 2)
    parts = profile.by_part(costs)
    assert {'MLP', 'norms', 'optimizer'} <= set(parts) and all(ms >= 0 for ms in parts.values())
    assert not any(one.kernel.startswith('while') for one in costs)
    assert max(one.launches for one in costs) >= 6
    assert [one.ms for one in costs] == sorted((one.ms for one in costs), reverse=True)


@pytest.mark.parametrize(
    ('source', 'part'),
    [
        ('jit(step)/jvp(views)/vmap()/gather', 'views'),
        ('jit(step)/transpose(jvp(Vit))/while/body/blocks.step/checkpoint/blocks/attn/qkv/dot_general', 'attention'),
        ('jit(step)/jvp(Vit)/while/body/blocks.step/blocks/cross/out/dot_general', 'attention'),
        ('jit(step)/jvp(Vit)/while/body/blocks.step/blocks/vmap(jit(_take))/gather', 'drop path'),
        ('jit(step)/jvp(Vit)/while/body/blocks.step/blocks/mul', 'residuals'),
        ('jit(step)/jvp(Vit)/norm/mul', 'norms'),
        ('jit(step)/transpose(jvp(heads/dino))/dot_general', 'heads'),
        ('jit(step)/transpose(jvp(terms/koleo))/jit(take_along_axis)/scatter-add', 'terms'),
        ('jit(step)/jit(_where)/select_n', 'optimizer'),
        ('jit(step)/jvp(Vit)/concatenate', 'towers, other'),
        ('', 'other'),
    ],
)
def test_the_part_of_an_operation(source, part):
    assert profile.part_of(source) == part
