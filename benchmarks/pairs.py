"""Measures the memory of the contrastive losses on each device, dense and in a ring, from the compiler's analysis.

    python benchmarks/pairs.py [--rows 32768] [--width 512] [--devices 64] [--run]

The script compiles value and gradients of each term for one image and one text a row, on virtual CPU devices. It does
not run them. `temporary` is the memory besides arguments and results: the peak memory of the loss. `--run` also runs
each program (for small --rows only) and prints the difference between dense and ring.
"""

from __future__ import annotations

import argparse
import os


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--rows', type=int, default=32_768)
    parser.add_argument('--width', type=int, default=512)
    parser.add_argument('--devices', type=int, default=64)
    parser.add_argument('--run', action='store_true')
    options = parser.parse_args()
    # set before jax is imported
    os.environ |= {'JAX_PLATFORMS': 'cpu', 'JAX_NUM_CPU_DEVICES': str(options.devices)}
    measure(options.rows, options.width, options.devices, options.run)


def measure(rows: int, width: int, devices: int, run: bool) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from medjax.objectives.terms import TermContext, TermInputs, pair_sigmoid, pair_softmax
    from medjax.parallel import sharding
    from medjax.types import View

    mesh = sharding.make_mesh()
    jax.set_mesh(mesh)
    split = sharding.rows_sharding(mesh)
    names = 'student/image/crop/cls>vi', 'student/text/report/cls>vt'
    view = View(None, jnp.arange(rows, dtype=jnp.uint32), jnp.ones((rows, 1), bool), None, {
        'key/text': jnp.ones((rows, 2), jnp.uint32) * jnp.arange(1, rows + 1, dtype=jnp.uint32)[:, None]
    })  # fmt: skip
    views = {'crop': view, 'report': view}
    shapes = dict.fromkeys(names, (rows, 1, width))
    abstract = {name: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split) for name, shape in shapes.items()}
    views_abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), views)
    matrix = rows * rows * 4 / 2**20
    print(
        f'{rows} pairs of {width} numbers on {devices} devices, float32; the matrix of similarities is {matrix:,.0f} '
        f'MiB, {matrix / devices:,.1f} a device, all columns {rows * width * 4 / 2**20:,.1f} MiB'
    )
    print(f'{"term":14}{"positives":12}{"":7}{"temporary MiB":>14}{"elements sent":>15}')
    for module in (pair_softmax, pair_sigmoid):
        for positives in ('identity', 'text'):
            results = []
            for ring in (False, True):
                term = module.build(
                    TermContext('benchmark', 1, 1),
                    *names,
                    temperature=dict(learned=0.07),
                    positives=positives,
                    ring=ring,
                )
                params, _ = term.init(jax.random.key(0))

                def loss(features, params, views, term=term):
                    step = jnp.zeros((), jnp.int32)
                    presence = dict.fromkeys(features, view.present)
                    return term.loss(TermInputs(params, {}, features, presence, views, {}, None, step, None)).loss

                program = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(abstract, params, views_abstract).compile()
                memory, kind = program.memory_analysis().temp_size_in_bytes / 2**20, 'ring' if ring else 'dense'
                print(
                    f'{module.__name__.split(".")[-1]:14}{positives:12}{kind:7}'
                    f'{memory:14.1f}{term.moves(rows, shapes):15,}',
                    flush=True,
                )
                if run:
                    rng = np.random.default_rng(0)
                    features = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
                    results.append(
                        jax.device_get(program(*jax.device_put((features, params, views), (split, None, split))))
                    )
            if run:
                leaves = zip(*map(jax.tree.leaves, results))
                print(
                    f'  largest relative difference {max(np.abs(a - b).max() / np.abs(a).max() for a, b in leaves):.1e}'
                )


if __name__ == '__main__':
    main()
