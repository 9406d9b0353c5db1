"""`medjax plan`: a config and accelerators that need not be there -> memory, time, exchanges and cost of a run.

    medjax plan --config rad_dino_vitb14 --topology v5p:4x4x4 --config.mesh.fsdp=8 --config.mesh.data=8
    medjax plan --config rad_dino_vitb14 --topology h100:8x8 --topology v5e:8x8 --json plan.json --out plan.html
    medjax plan --config rad_dino_vitb14 --topology v5p:4x4x4 --search --prices prices.toml

The step is compiled for the accelerators, by a Python that has their compiler: make aot-environments installs both, and
--compiler names another one. The result is kept in the user's cache, so the same plan is there at once the next time.
--search looks for the fastest mesh, number of micro-batches, remat and unroll that fit, and prints the overrides of the
best. Towers stay as they are where an override names their remat or unroll. It compiles only what a bound cannot
exclude. A search that was stopped goes on from what it had compiled.

--prices names a file with dollars of a chip and hour, a line for each chip: v5p = 4.20. --out writes a page with
pictures, --json all numbers. Both are written again after each topology, so a plan that was stopped leaves what it had.

Nothing runs: the time is that of a stated model. Images count as large as data.PART.canvas says, or half as large again
as the largest crop.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medjax import config as configs, files
from medjax.aot import programs
from medjax.errors import UserError
from medjax.parallel import sharding
from medjax.parallel.groups import check_rows
from medjax.plan import compiling, memory, meshes, prices, text
from medjax.plan.compiling import Request
from medjax.plan.facts import Facts
from medjax.plan.plans import Plan, compared, content
from medjax.plan.settings import settings
from medjax.plan.topology import Topology, parse
from medjax.reports import base, plan_page
from medjax.training.state import state_shardings


def main(argv: list[str]) -> int:
    argv, overrides = configs.split_overrides(argv)
    args = _parser().parse_args(argv)
    topologies = [parse(name) for name in dict.fromkeys(args.topology)]
    json_file, page = base.target('--json', args.json), base.target('--out', args.out)
    priced = prices.read(args.prices, topologies) if args.prices else {}
    config = configs.check(configs.resolve(configs.read(args.config, overrides), {}))
    if args.search and (given := [item for item in overrides if item.startswith(('mesh.', 'micro_batches'))]):
        raise UserError(f'--config.{given[0]}: --search chooses the mesh and micro-batches; leave one of them out')
    for topology in topologies if not args.search else ():
        check(config, topology)
    pythons = [compiling.interpreter(topology, args.compiler) for topology in topologies]
    found: dict[str, Plan | str] = {}
    for topology, python in zip(topologies, pythons, strict=True):
        try:
            plan = _plan(args, tuple(overrides), config, topology, python, priced.get(topology.kind))
        except UserError as error:
            if len(topologies) == 1:
                raise
            sentence = str(error) if topology.name in str(error) else f'{topology.name}: {error}'
            print(f'medjax: {sentence}\n', file=sys.stderr, flush=True)
            found[topology.name] = sentence
        else:
            found[topology.name] = plan
            print('\n'.join(text.lines(plan)), end='\n\n', flush=True)
        _write(found, json_file, page)
    if len(topologies) > 1:
        print('\n'.join(text.table(compared(found))))
    return 2 if any(isinstance(plan, str) for plan in found.values()) else 0


def _plan(
    args: argparse.Namespace,
    overrides: tuple[str, ...],
    config: Mapping[str, Any],
    topology: Topology,
    python: Path,
    price: float | None,
) -> Plan:
    """The plan of one topology; tells the user what happens meanwhile."""
    say = _teller(time.perf_counter())
    tried: tuple[meshes.Tried, ...] = ()
    if args.search:
        tried = tuple(search(args.config, overrides, config, topology, python, say))
        chosen = tried[0].candidate.overrides
        print('\n'.join(text.tried(tried)))
        print(f'the best: {" ".join(f"--config.{item}" for item in chosen)}\n', flush=True)
        overrides, facts = (*overrides, *chosen), tried[0].facts
        assert facts is not None  # the best one was compiled
    else:
        facts, before = compiling.compiled(_request(args.config, overrides, topology), python, say)
        seconds = facts.lowering_s + facts.compile_s
        how = 'compiled by an earlier plan' if before else f'compiled in {seconds:,.0f} s'
        print(f'{how}, with jax {facts.versions["jax"]}', file=sys.stderr)
    steps = None if config['stages'] else config['total_steps']
    return Plan(args.config, overrides, topology, facts, steps, config['checkpoint']['every'], price, tried)


def _write(found: Mapping[str, Plan | str], json_file: Path | None, page: Path | None) -> None:
    """Writes what was found so far."""
    plans = [dict(topology=name, error=one) if isinstance(one, str) else content(one) for name, one in found.items()]
    if json_file is not None:
        with files.writing(f'the plan {json_file}'):
            files.write_json(json_file, dict(plans=plans))
    if page is not None:
        sentences = {name: text.sentences(one) for name, one in found.items() if isinstance(one, Plan)}
        base.write(page, plan_page.render(plans, compared(found), sentences))


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
    """Every candidate of a topology, the best first."""
    recipe = programs.prepare(config, overrides)

    @functools.cache
    def of_mesh(**sizes: int) -> int:
        split = state_shardings(recipe.objective, recipe.abstract, sharding.abstract_mesh(sizes))
        return sum(memory.state_bytes(recipe.abstract, split).values())

    def compiled(one: meshes.Candidate) -> Facts:
        request = _request(config, (*overrides, *one.overrides), topology)
        return compiling.compiled(request, python, say)[0]

    with tqdm(desc=topology.name, unit='candidate', disable=None, leave=False) as bar:

        def count(settled: int, all_of_them: int) -> None:
            bar.total = all_of_them
            bar.update(settled - bar.n)

        return meshes.Search(
            topology,
            resolved,
            lambda one: of_mesh(**one.mesh),
            memory.state_bytes(recipe.abstract)['parameters'],
            compiled,
            settings(resolved, recipe.abstract.params['towers'], overrides),
            not recipe.objective.batch_statistics,  # a micro-batch does not have them
            say,
            count,
        ).run()


def _request(config: str, overrides: tuple[str, ...], topology: Topology) -> Request:
    resolved = configs.check(configs.resolve(configs.read(config, overrides), {}))
    return Request(config, overrides, resolved, topology)


def _teller(start: float) -> Callable[[str], None]:
    def say(stage: str) -> None:
        tqdm.write(f'{time.perf_counter() - start:4.0f} s  {stage}', file=sys.stderr)

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
    parser.add_argument('--search', action='store_true', help='look for the fastest mesh and settings that fit')
    parser.add_argument('--prices', metavar='FILE', help='a TOML file of dollars of a chip and hour, as v5p = 4.20')
    parser.add_argument('--out', metavar='PAGE', help='write a page with pictures here')
    parser.add_argument('--json', metavar='FILE', help='write the plans here, in bytes and seconds')
    parser.add_argument('--compiler', metavar='PYTHON', help='a Python with the compiler; default: that of make aot')
    parser.add_argument('--config.KEY=VALUE', dest='_', help='overrides, for example --config.mesh.fsdp=8')
    return parser
