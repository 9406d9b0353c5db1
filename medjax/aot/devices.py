"""Devices that are not there: GPUs and TPU slices, to compile programs for.

    devices('h100:1x8')      one node of eight H100
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
TPUS = ('v4', 'v5e', 'v5p', 'v6e')
FORM = re.compile(r'h100:(?P<nodes>[1-9]\d*)x(?P<gpus>[1-9]\d*)|(?P<tpu>v\d\w*):[1-9]\d*x[1-9]\d*(?:x[1-9]\d*)?')
# Without a card nothing is autotuned, and every product would become a Triton kernel that is compiled here, which takes
# minutes. As calls of cuBLAS, products are what most of them are on a card.
GPU_FLAGS = '--xla_gpu_enable_triton_gemm=false'


def devices(name: str) -> list[Any]:
    """The devices of a topology, 'h100:NODESxGPUS' or 'v5p:XxYxZ'; UserError if it is unknown or has no compiler here.

    To be called before anything of jax runs: the compilers read variables of the environment when they start.
    """
    match = FORM.fullmatch(name)
    if not match or (match['tpu'] and match['tpu'] not in TPUS):
        tpus = ', '.join(f'{tpu}:2x2x1' if tpu in ('v4', 'v5p') else f'{tpu}:2x2' for tpu in TPUS)
        near = suggest(name.partition(':')[0], ('h100', *TPUS)) if ':' in name else ''
        raise UserError(f'topology {name!r} is unknown{near}; known are h100:NODESxGPUS, as h100:1x8, and {tpus}')
    os.environ['JAX_PLATFORMS'] = 'cpu'  # the plugin of the compiler is loaded all the same, for the topology
    if match['tpu']:
        return _topology(name, 'tpu', 'tpu', {})
    flags = os.environ.get('XLA_FLAGS', '')
    if 'xla_gpu_enable_triton_gemm' not in flags:
        os.environ['XLA_FLAGS'] = f'{flags} {GPU_FLAGS}'.strip()
    return _topology(name, 'cuda', 'gpu', dict(target_config=_h100(), topology=f'1x{match["nodes"]}x{match["gpus"]}'))


def _topology(name: str, platform: str, kind: str, options: dict[str, str]) -> list[Any]:
    if platform == 'tpu':  # without these, libtpu asks a server that is not there and prints errors
        os.environ |= dict(TPU_SKIP_MDS_QUERY='1', TPU_WORKER_HOSTNAMES='localhost', TPU_ACCELERATOR_TYPE='v5p-8')
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


def _h100() -> str:
    fields = ' '.join(f'{key}: {value}' for key, value in H100.items())
    card = f'{fields} cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}'
    versions = 'dnn_version_info { major: 9 minor: 12 } runtime_version { major: 13 }'
    return (
        f'gpu_device_info {{ {card} }} platform_name: "CUDA" {versions} device_description_str: "NVIDIA H100 80GB HBM3"'
    )
