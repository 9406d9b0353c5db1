"""Devices that are not there: GPUs and TPU slices, to compile programs for.

    devices('h100:1x8')      one node of eight H100 (or h200)
    devices('v5p:2x2x1')     four chips of a TPU v5p

The compilers live in environments of their own, which `make aot` makes. Nothing can run on these devices.
"""

from __future__ import annotations

import os
import re
from typing import Any

from medjax.errors import UserError, suggest

# A card as XLA describes it. A program dumped on a real card (--xla_dump_to) has a file *.gpu_target_config.pbtxt.
H100 = dict(
    threads_per_block_limit=1024,
    threads_per_warp=32,
    threads_per_core_limit=2048,
    core_count=132,
    fpus_per_core=128,
    shared_memory_per_block=49152,
    shared_memory_per_core=233472,
    shared_memory_per_block_optin=232448,
    registers_per_core_limit=65536,
    registers_per_block_limit=65536,
    block_dim_limit_x=2147483647,
    block_dim_limit_y=65535,
    block_dim_limit_z=65535,
    memory_bandwidth=3352320000000,
    l2_cache_size=52428800,
    clock_rate_ghz=1.98,
    device_memory_size=84942979072,
)
CARDS = {
    'h100': ('NVIDIA H100 80GB HBM3', H100),
    'h200': ('NVIDIA H200', H100 | dict(memory_bandwidth=4_800_000_000_000, device_memory_size=150_754_820_096)),
}
TPUS = {'v4': 3, 'v5e': 2, 'v5p': 3, 'v6e': 2}  # axes of the torus
FORM = re.compile(r'(?P<kind>\w+):(?P<sizes>[1-9]\d*(?:x[1-9]\d*)+)')
# Without a card nothing is autotuned, and every product would become a Triton kernel that is compiled here, which takes
# minutes. As calls of cuBLAS, products are what most of them are on a card.
GPU_FLAGS = '--xla_gpu_enable_triton_gemm=false'


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """'h100:1x8' -> ('h100', (1, 8)): nodes, and GPUs of each; for a TPU the sizes of its torus.

    UserError if nobody knows it.
    """
    match = FORM.fullmatch(name)
    kind, sizes = (match['kind'], tuple(map(int, match['sizes'].split('x')))) if match else ('', ())
    axes = 2 if kind in CARDS else TPUS.get(kind)
    if axes is None:
        tpus = ', '.join(f'{tpu}:{"2x2x1" if n == 3 else "2x2"}' for tpu, n in TPUS.items())
        near = suggest(name.partition(':')[0], (*CARDS, *TPUS)) if ':' in name else ''
        cards = ' and '.join(f'{card}:NODESxGPUS' for card in CARDS)
        raise UserError(f'topology {name!r} is unknown{near}; known are {cards}, as h100:1x8, and {tpus}')
    if len(sizes) != axes:
        form = f'{kind}:NODESxGPUS, as {kind}:1x8' if kind in CARDS else f'as {kind}:{"2x2x1" if axes == 3 else "2x2"}'
        raise UserError(f'topology {name!r}: {kind} takes {axes} sizes, {form}')
    return kind, sizes


def devices(name: str) -> list[Any]:
    """The devices of a topology, 'h100:NODESxGPUS' or 'v5p:XxYxZ'; UserError if it is unknown or has no compiler here.

    To be called before anything of jax runs: the compilers read variables of the environment when they start.
    """
    kind, sizes = parse(name)
    os.environ['JAX_PLATFORMS'] = 'cpu'  # the plugin of the compiler is loaded all the same, for the topology
    if kind in TPUS:
        return _topology(name, 'tpu', 'tpu', {})
    flags = os.environ.get('XLA_FLAGS', '')
    if 'xla_gpu_enable_triton_gemm' not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {GPU_FLAGS}'.strip()
    return _topology(name, 'cuda', 'gpu', dict(target_config=_card(kind), topology=f'1x{sizes[0]}x{sizes[1]}'))


def _topology(name: str, platform: str, kind: str, options: dict[str, str]) -> list[Any]:
    if platform == 'tpu':  # without these, libtpu asks a server that is not there and prints errors
        os.environ |= dict(TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', TPU_ACCELERATOR_TYPE='v5p-8')
        os.environ['ALLOW_MULTIPLE_LIBTPU_LOAD'] = '1'  # no chip is taken, so two plans may compile at once
    from jax.experimental import topologies

    try:
        if platform == 'tpu':
            return list(topologies.get_topology_desc(name, 'tpu').devices)
        return list(topologies.get_topology_desc(platform=platform, **options).devices)
    except Exception as error:  # each plugin has errors of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f'topology {name}: this Python has no compiler for {kind.upper()}s, or it does not know the topology '
            f'({reason}); make aot makes environments with the compilers, .venv-aot-gpu and .venv-aot-tpu'
        ) from None


def _card(kind: str) -> str:
    """The description of a card that XLA reads. H100 and H200 differ in their memory alone."""
    name, numbers = CARDS[kind]
    fields = ' '.join(f'{key}: {value}' for key, value in numbers.items())
    card = f'{fields} cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}'
    versions = 'dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 }'
    return f'gpu_device_info {{ {card} }} platform_name: "CUDA" {versions} device_description_str: "{name}"'
