"""`medjax plan`: a config and accelerators that need not be there -> memory, time and exchanges of its step.

    medjax plan --config rad_dino_vitb14 --topology v5p:4x4x4 --config.mesh.fsdp=8 --config.mesh.data=8
    medjax plan --config rad_dino_vitb14 --topology h100:8x8 --topology v5e:8x8 --json plan.json
    medjax plan --config rad_dino_vitb14 --topology v5p:4x4x4 --search

The step is compiled for the accelerators, by a Python that has their compiler: make aot-environments installs both, and
--compiler names another one. The result is kept in the user's cache, so the same plan is there at once the next time.
--search looks for the fastest mesh and number of micro-batches that fit, and prints the overrides of the best. It
compiles only what a bound cannot exclude. A search that was stopped goes on from what it had compiled.

Nothing runs: the time is that of a stated model. Images count as large as data.PART.canvas says, or half as large again
as the largest crop.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medjax import config as configs, files
from medjax.aot import programs
from medjax.errors import UserError
from medjax.parallel import sharding
from medjax.parallel.groups import check_rows
from medjax.plan import compiling, memory, meshes, text
from medjax.plan.compiling import Request
from medjax.plan.facts import Facts
from medjax.plan.roofline import estimate
from medjax.plan.topology import Topology, parse
from medjax.reports import base
from medjax.training.state import state_shardings


def main(argv: list[str]) -> int:
    argv, overrides = configs.split_overrides(argv)
    args = _parser().parse_args(argv)
    topologies = [parse(name) for name in dict.fromkeys(args.topology)]
    file = base.target('--json', args.json)
    config = configs.check(configs.resolve(configs.read(args.config, overrides), {}))
    if args.search and (given := [item for item in overrides if item.startswith(('mesh.', 'micro_batches'))]):
        raise UserError(f'--config.{given[0]}: --search chooses the mesh and micro-batches; leave one of them out')
    for topology in topologies if not args.search else ():
        check(config, topology)
    pythons = [compiling.interpreter(topology, args.compiler) for topology in topologies]
    results = []
    for i, (topology, python) in enumerate(zip(topologies, pythons, strict=True)):
        if i:
            print('\n')
        say, chosen = _teller(time.perf_counter()), tuple(overrides)
        if args.search:
            found = search(args.config, chosen, config, topology, python, say)
            chosen = (*chosen, *found[0].candidate.overrides)
            print('\n'.join(text.tried(found)))
            print(f'the best: {" ".join(f"--config.{item}" for item in found[0].candidate.overrides)}\n')
            facts, how = found[0].facts, ''
            assert facts is not None  # the best one was compiled
        else:
            facts, before = compiling.compiled(_request(args.config, chosen, topology), python, say)
            seconds = facts.lowering_s + facts.compile_s
            how = 'compiled by an earlier plan, ' if before else f'compiled in {seconds:,.0f} s, '
        results.append(as_json(args.config, chosen, topology, facts))
        print('\n'.join(text.lines(args.config, topology, facts)))
        print(f'{how}with jax {facts.versions["jax"]}', file=sys.stderr)
        if config['stages']:
            print('this recipe has stages; the plan is that of its first steps', file=sys.stderr)
    if file is not None:
        with files.writing(f'the plan {file}'):
            files.write_json(file, dict(plans=results))
    return 0


def check(config: Mapping[str, Any], topology: Topology) -> None:
    """UserError if the chips do not make the mesh of the config, or the mesh does not divide the rows."""
    try:
        sizes = sharding.mesh_sizes(topology.chips, **config['mesh'])
        rows = {name: part['rows'] for name, part in config['data'].items()}
        check_rows(rows, config['rows_per_group'], config['micro_batches'], sizes['data'] * sizes['fsdp'])
    except UserError as error:
        raise UserError(f'{topology.name}: {error}') from None


def search(
    config: str,
    overrides: tuple[str, ...],
    resolved: Mapping[str, Any],
    topology: Topology,
    python: Path,
    say: Callable[[str], None],
) -> list[meshes.Tried]:
    """Every mesh of a topology, the best first."""
    recipe = programs.prepare(config, overrides)

    def state(one: meshes.Candidate) -> int:
        split = state_shardings(recipe.objective, recipe.abstract, sharding.abstract_mesh(one.mesh))
        return sum(memory.state_bytes(recipe.abstract, split).values())

    def compiled(one: meshes.Candidate) -> Facts:
        request = _request(config, (*overrides, *one.overrides), topology)
        return compiling.compiled(request, python, say)[0]

    parameters = memory.state_bytes(recipe.abstract)['parameters']
    return meshes.Search(topology, resolved, functools.cache(state), parameters, compiled, say).run()


def _request(config: str, overrides: tuple[str, ...], topology: Topology) -> Request:
    resolved = configs.check(configs.resolve(configs.read(config, overrides), {}))
    return Request(config, overrides, resolved, topology)


def as_json(config: str, overrides: Sequence[str], topology: Topology, facts: Facts) -> dict[str, Any]:
    """A plan for programs: bytes and seconds."""
    found = dict(
        config=config,
        overrides=list(overrides),
        topology=topology.name,
        chip=topology.chip.name,
        chips=topology.chips,
        chip_bytes=topology.chip.memory,
        fits=facts.peak <= topology.usable,
        **{key: value for key, value in dataclasses.asdict(facts).items() if key not in ('kernels', 'exchanges')},
    )
    if not facts.compiled:
        return found
    guess = estimate(topology, facts)
    return found | dict(
        memory=facts.memory(),
        hbm_bytes=facts.moved,
        exchanges=[
            dict(
                kind=one.kind, chips=one.size, hosts=one.hosts, links=one.links(topology), runs=one.runs,
                wire_bytes=one.runs * one.wire, seconds=one.seconds(topology), source=one.source,
            )
            for one in facts.exchanges
        ],
        seconds=dict(
            step=guess.step, at_best=guess.at_best, kernels=guess.kernels, products=guess.products,
            exchanges=guess.exchanges, parts=guess.parts,
        ),
        mfu=guess.mfu,
    )  # fmt: skip


def _teller(start: float) -> Callable[[str], None]:
    def say(stage: str) -> None:
        print(f'{time.perf_counter() - start:4.0f} s  {stage}', file=sys.stderr, flush=True)

    return say


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='medjax plan',
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument('--config', required=True, metavar='FILE|NAME', help='the recipe')
    parser.add_argument(
        '--topology', required=True, action='append', metavar='NAME',
        help='h100:NODESxGPUS, h200:NODESxGPUS, or a TPU slice: v5p:4x4x4, v5e:4x4, v6e:4x4; may be given again',
    )  # fmt: skip
    parser.add_argument('--search', action='store_true', help='look for the fastest mesh that fits')
    parser.add_argument('--json', metavar='FILE', help='write the plans here, in bytes and seconds')
    parser.add_argument('--compiler', metavar='PYTHON', help='a Python with the compiler; default: that of make aot')
    parser.add_argument('--config.KEY=VALUE', dest='_', help='overrides, for example --config.mesh.fsdp=8')
    return parser
