"""Bytes on the wire against formulas by hand, and the links of the groups."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec as P

from medjax.aot.hlo import Program
from medjax.parallel import sharding
from medjax.plan.exchanges import Exchange, Place, exchanges, sent
from medjax.plan.topology import parse, ring_speed

if jax.device_count() != 8:
    pytest.skip('needs 8 (virtual) devices', allow_module_level=True)

NODES = [Place(i // 4, ()) for i in range(8)]  # two nodes of four GPUs
FOURS, PAIRS = ('data',), ('fsdp',)


@functools.cache
def toy() -> tuple[Exchange, ...]:
    """One exchange of each kind, of shares of [64,32] float32, on a mesh of 4 x 2."""
    mesh = sharding.make_mesh(4, 2)
    jax.set_mesh(mesh)
    ring = [(i, (i + 1) % 4) for i in range(4)]

    def each(x):  # x: [16,16]
        return (
            jax.lax.psum(x, FOURS),
            jax.lax.all_gather(x, PAIRS, tiled=True),
            jax.lax.psum_scatter(x, FOURS, tiled=True),
            jax.lax.all_to_all(x, FOURS[0], 0, 0, tiled=True),
            jax.lax.ppermute(x, FOURS[0], ring),
        )

    both = P(FOURS, PAIRS)
    run = jax.jit(
        jax.shard_map(
            each, mesh=mesh, in_specs=both, out_specs=(P(None, PAIRS), P(FOURS), both, both, both), check_vma=False
        )
    )
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, both))
    return tuple(exchanges(Program(run.lower(x).compile().as_text()), NODES))


def test_bytes_on_the_wire_are_those_of_rings():
    share = 16 * 16 * 4  # bytes that a device begins with
    assert {one.kind: (one.size, one.hosts, one.runs, one.wire) for one in toy()} == {
        'all-reduce': (4, 2, 1, 2 * 3 / 4 * share),
        'all-gather': (2, 1, 1, share),  # the share of the other one
        'reduce-scatter': (4, 2, 1, 3 / 4 * share),
        'all-to-all': (4, 2, 1, 3 / 4 * share),
        'collective-permute': (2, 2, 1, share),
    }


def test_a_loop_multiplies_its_exchanges():
    mesh = sharding.make_mesh(8)
    jax.set_mesh(mesh)

    def body(x):
        return jax.lax.scan(lambda c, _: (jax.lax.psum(jnp.sin(c), FOURS) / 8, None), x, None, length=5)[0]

    run = jax.jit(jax.shard_map(body, mesh=mesh, in_specs=P(FOURS), out_specs=P(FOURS), check_vma=False))
    x = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=NamedSharding(mesh, P(FOURS)))
    (one,) = exchanges(Program(run.lower(x).compile().as_text()), NODES)
    assert (one.kind, one.runs, one.wire) == ('all-reduce', 5, 2 * 7 / 8 * 8 * 32 * 4)


@pytest.mark.parametrize('size', [2, 3, 8])
def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather(size):
    assert sent('all-reduce', size, 240) == sent('reduce-scatter', size, 240 // size) + sent('all-gather', size, 240)


LINE = 'HloModule x\n\nENTRY %main (p: f32[8]) -> f32[8] {{\n  %p = f32[8]{{0}} parameter(0)\n  {}\n}}\n'


@pytest.mark.parametrize(
    ('groups', 'size', 'hosts'),
    [
        ('{{0,1,2,3},{4,5,6,7}}', 4, 1),
        ('[2,4]<=[8]', 4, 1),
        ('[4,2]<=[2,4]T(1,0)', 2, 2),  # 0 and 4, 1 and 5, …
        ('[4,2]<=[2,2,2]T(0,2,1)', 2, 1),  # 0 and 2, 1 and 3, …
        ('{}', 8, 2),
    ],
)
def test_every_way_to_write_groups(groups, size, hosts):
    line = f'ROOT %r = f32[8]{{0}} all-reduce(%p), replica_groups={groups}, to_apply=%add, metadata={{op_name="a/b"}}'
    (one,) = exchanges(Program(LINE.format(line)), NODES)
    assert (one.size, one.hosts, one.bytes, one.source) == (size, hosts, 32, 'a/b')


def test_a_fusion_that_keeps_a_slice_of_a_sum_is_a_reduce_scatter():
    text = (
        'HloModule x\n\n'
        '%all-reduce-scatter.1 (q: f32[64]) -> f32[8] {\n  %q = f32[64]{0} parameter(0)\n'
        '  %s = f32[64]{0} all-reduce(%q), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add\n'
        '  ROOT %d = f32[8]{0} dynamic-slice(%s, %i), dynamic_slice_sizes={8}\n}\n\n'
        'ENTRY %main (p: f32[64]) -> f32[8] {\n  %p = f32[64]{0} parameter(0)\n'
        '  ROOT %f = f32[8]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1\n}\n'
    )
    (one,) = exchanges(Program(text), NODES)
    assert (one.kind, one.bytes, one.wire) == ('reduce-scatter', 32, 7 * 32)


GB = 1e9


@pytest.mark.parametrize(
    ('topology', 'size', 'hosts', 'extents', 'speed'),
    [
        ('h100:1x8', 8, 1, (), 450 * GB),
        ('h100:8x8', 64, 8, (), 400 * GB),  # eight network cards a node
        ('h100:8x8', 8, 8, (), 50 * GB),  # one GPU of each node
        ('v5p:2x2x1', 4, 1, (2, 2, 1), 200 * GB),  # two axes that do not close
        ('v5p:4x4x4', 64, 16, (4, 4, 4), 600 * GB),  # three rings, both ways
        ('v5p:4x4x4', 4, 2, (1, 4, 1), 200 * GB),
        ('v5e:4x4', 16, 4, (4, 4, 1), 100 * GB),  # closes at 16 alone
        ('v5e:16x16', 256, 64, (16, 16, 1), 200 * GB),
    ],
)
def test_the_speed_of_a_ring(topology, size, hosts, extents, speed):
    assert ring_speed(parse(topology), size, hosts, extents) == speed


def test_the_time_of_an_exchange():
    """1 GB summed over a node of eight H100 at .8 of 450 GB/s, and the steps of two rings."""
    one = Exchange('all-reduce', 3, 10**9, 8, 1, (), '')
    assert one.seconds(parse('h100:1x8')) == pytest.approx(3 * (2 * 7 / 8 / (0.8 * 450) + 2 * 7 * 3e-6))
