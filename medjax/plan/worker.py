"""The process that compiles: python -m medjax.plan.worker, with the Python of an environment that has a compiler.

It reads a request as JSON from its input, and writes a JSON line for each stage and one at the end: the facts of the
compiled step, or a sentence for the user. With --versions it writes the versions of its packages alone.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import re
import sys
import time
from typing import Any

from medjax.errors import UserError

# What libtpu says where a program does not fit: "Used 37.62G of 15.75G hbm."
TOO_LARGE = re.compile(r'Used ([\d.]+)([KMG]) of [\d.]+[KMG] hbm')
ANSWERS = os.fdopen(os.dup(1), 'w')  # compilers may print; what they print goes with the errors
UNITS = dict(K=2**10, M=2**20, G=2**30)


def main() -> int:
    os.dup2(2, 1)
    if sys.argv[1:] == ['--versions']:
        say(versions=versions())
        return 0
    request = json.load(sys.stdin)
    try:
        say(facts=facts(request))
    except UserError as error:
        say(error=str(error))
    return 0


def say(**message: Any) -> None:
    print(json.dumps(message), file=ANSWERS, flush=True)


def facts(request: dict[str, Any]) -> dict[str, Any]:
    """The step of a recipe, compiled for a topology: the fields of `medjax.plan.facts.Facts`."""
    from medjax.aot import devices as topologies

    devices = topologies.devices(request['topology'])  # before jax starts

    import jax

    from medjax.aot import programs
    from medjax.plan import memory
    from medjax.plan.exchanges import Place, exchanges
    from medjax.plan.kernels import Kernels
    from medjax.training.state import state_shardings

    say(stage='traces the step')
    recipe = programs.prepare(request['config'], request['overrides'])
    recipe = dataclasses.replace(recipe, canvas=stored_side(recipe))
    flops = programs.model_flops(recipe)
    start = time.perf_counter()
    lowered = programs.lower(recipe, 'step', devices)
    mesh = jax.sharding.get_mesh()
    shardings = state_shardings(recipe.objective, recipe.abstract, mesh)
    batch = lowered.in_avals[0][1]
    rows = {name: part['rows'] for name, part in recipe.config['data'].items()}
    found = dict(
        device=devices[0].device_kind,
        hosts=len({device.process_index for device in devices}),
        mesh=dict(mesh.shape),
        dtype=recipe.config['dtype'],
        rows=rows,
        canvas=recipe.canvas,
        flops=flops,
        state=memory.state_bytes(recipe.abstract, shardings),
        whole_state=memory.state_bytes(recipe.abstract),
        batch=memory.batch_bytes(batch, programs.sharding.rows_sharding(mesh)),
        lowering_s=round(time.perf_counter() - start, 1),
        versions=versions(),
    )
    say(stage='compiles')
    start = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        match = TOO_LARGE.search(str(error))
        if match is None:
            raise
        needed = int(float(match[1]) * UNITS[match[2]])
        return found | dict(peak=needed, compile_s=round(time.perf_counter() - start, 1))
    say(stage='reads the program')
    seconds = round(time.perf_counter() - start, 1)
    on_tpu = devices[0].platform == 'tpu'
    program = Kernels(compiled.as_text())
    places = [Place(one.process_index, tuple(one.coords) if on_tpu else ()) for one in mesh.devices.flat]
    analysis = compiled.memory_analysis()
    return found | dict(
        peak=analysis.peak_memory_in_bytes,
        arguments=analysis.argument_size_in_bytes,
        compile_s=seconds,
        kernels=program.kernels(),
        exchanges=exchanges(program, places),
    )


def stored_side(recipe: Any) -> int:
    """Side of the stored images in pixels: the largest that the config gives, or half as large again as its crops."""
    given = [part['canvas'] for part in recipe.config['data'].values() if part['canvas']]
    crops = [max(kind.size) for kind in recipe.objective.views.values() if kind.size]
    return max(given, default=3 * max(crops, default=224) // 2)


def versions() -> dict[str, str]:
    """The versions that decide what a program looks like."""
    names = ('jax', 'jaxlib', 'libtpu', 'jax-cuda13-plugin', 'flax', 'optax')
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == '__main__':
    sys.exit(main())
