"""`medjax probe`: what the exports of a run are worth on a data set.

    medjax probe --run RUN --data DATA                  # the newest export
    medjax probe --run RUN --data DATA --steps all      # or 1000,2000
    medjax probe --run RUN --data DATA --follow         # beside a training, until it is done or long silent
    medjax probe --run RUN --data DATA --probes zero_shot,retrieval --prompts configs/prompts/phantom.json

A job of its own, which needs only RUN/exports and the records. Each split is encoded once for all probes and kept in
RUN/cache; results that are there with the same settings are not computed again. The same towers before training and
raw pixels are probed as well, once. Without --probes, all probes that the export and the data allow.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from medjax.data import records
from medjax.data.text import prompts
from medjax.errors import UserError, suggest
from medjax.plugins import find
from medjax.probes import encode, methods as package, policy, results, statistics, watch
from medjax.probes.encode import Encoder
from medjax.probes.evaluate import Task

BASELINES = {'random': encode.random_init, 'pixels': encode.raw_pixels}
ALL = 'knn,linear,zero_shot,retrieval'


def main(argv: list[str]) -> int:
    """Probes exports and baselines, prints one table; 1 where a probe or an export failed."""
    args = _parser().parse_args(argv)
    run, data = pathlib.Path(args.run), records.open(args.data)
    probes = {probe.name: probe for probe in map(_probe, (args.probes or ALL).split(','))}
    baselines, labels = _baselines(args.baselines), policy.parse(args.policy)
    sentences = None if args.prompts is None else prompts.zero_shot(args.prompts, '--prompts')
    if sentences:
        prompts.check_classes(sentences._asdict(), data.labels, f'--prompts {args.prompts}')
    _can_be_probed(run, data, args)

    def task(encoder: Encoder) -> Task:
        return Task(encoder, data, _features(encoder, data, run, labels), sentences, args.seed, args.draws)

    exports = (
        watch.follow(run, encode.load) if args.follow else watch.each(run, watch.chosen(run, args.steps), encode.load)
    )
    failures = 0
    for step, encoder in exports:
        if isinstance(encoder, Exception):
            failures += _failed(f'export {step}', encoder)
            continue
        possible, lacking = _possible(task(encoder), probes)
        if args.probes or not possible:
            failures += sum(_failed(f'{name} on {_name(encoder)}', error) for name, error in lacking.items())
        for one in (*(BASELINES[name](encoder) for name in baselines), encoder):
            failures += _probe_encoder(run, task(one), possible, labels)
        baselines = []  # once a run is enough: its exports share towers and preprocessing

    if (run / 'probes').is_dir():  # not where a run that was followed never came to an export
        print(results.table(run, data, list(probes)), flush=True)
    if failures:
        print(f'medjax: {failures} failure(s), see above', file=sys.stderr)
    return 1 if failures else 0


def _features(
    encoder: Encoder, data: records.DataSet, run: pathlib.Path, labels: dict[str, str]
) -> Callable[[str], encode.Features]:
    @functools.cache
    def features(split: str) -> encode.Features:
        found = encode.features(encoder, data, split, run / 'cache')
        return found._replace(labels=policy.decided(found.labels, labels))

    return features


def _possible(task: Task, probes: dict[str, ModuleType]) -> tuple[dict[str, ModuleType], dict[str, UserError]]:
    """The probes that can be run on this encoder and data, and why the others cannot."""
    lacking = {}
    for name, probe in probes.items():
        try:
            _needs(probe, task)
        except UserError as error:
            lacking[name] = error
    return {name: probe for name, probe in probes.items() if name not in lacking}, lacking


def _needs(probe: ModuleType, task: Task) -> dict[str, Any]:
    return probe.needs(task) if hasattr(probe, 'needs') else {}


def _probe_encoder(run: pathlib.Path, task: Task, probes: dict[str, ModuleType], labels: dict[str, str]) -> int:
    """All probes that have no result yet; one that fails does not stop the others. Returns the number of failures."""
    encoder, data = task.encoder, task.data
    origin = results.provenance(run, encoder, data) | {'policy': labels}
    possible, lacking = _possible(task, probes)
    for name, reason in lacking.items():  # a baseline's: the export itself has what its probes need
        print(f'{_name(encoder)}, {name}: left out, {reason}', flush=True)
    failures = done = 0
    for name, probe in possible.items():
        try:
            key = results.settings_key(task, probe, origin | _needs(probe, task))
            file = results.path(run, encoder.name, data.name, name)
            if results.is_there(file, key):
                continue
            done += 1
            result, arrays = probe.run(task)
            about = dict(
                probe=name,
                data=data.name,
                data_fingerprint=data.fingerprint,
                encoder=dict(step=encoder.name, export_digest=encoder.digest, size=encoder.size),
                split='test',
            )
            results.write(file, about | result | origin | dict(key=key), arrays)
            figure, rows = next(iter(result['results'].items()))
            at, title = rows['mean'], results.COLUMNS.get(figure, figure)
            told = f'{_name(encoder)}, {name}: {title} {at["value"]:.3f} [{at["low"]:.3f}, {at["high"]:.3f}]'
            print(told, flush=True)
        except Exception as error:  # one may not stop the others, so any error is told and counted
            failures += _failed(f'{name} on {_name(encoder)} and {data.name}', error)
    if done:
        print(f'{_name(encoder)}: {origin["provenance"]}', flush=True)
    return failures


def _failed(what: str, error: Exception) -> int:
    """Says what went wrong in one line and counts it."""
    words = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
    print(f'medjax: {what} failed: {words}', file=sys.stderr, flush=True)
    return 1


def _name(encoder: Encoder) -> str:
    return encoder.name if isinstance(encoder.name, str) else f'step {encoder.name}'


def _can_be_probed(run: pathlib.Path, data: records.DataSet, args: argparse.Namespace) -> None:
    if not run.is_dir() and (run.exists() or not args.follow):
        raise UserError(f'--run {args.run}: there is no such folder; it is the --workdir of a `medjax train`')
    if not data.splits.get('test'):
        raise UserError(f'--data {args.data}: no record in test, so there is nothing to probe')
    if not data.labels and not (data.split('test').column('words') > 0).any():
        raise UserError(f'--data {args.data}: the data set has no labels and no texts, so there is nothing to probe')
    if args.draws < 1:
        raise UserError(f'--draws: at least 1 bootstrap draw, not {args.draws}')
    if args.seed < 0:
        raise UserError(f'--seed: 0 or more, not {args.seed}')


def _probe(name: str) -> ModuleType:
    """'knn' is medjax.probes.methods.knn, 'mypkg.myprobe' the user's own: a module with `name` and `run`."""
    probe = find(name, package.__name__, '--probes', 'probe', 'run')
    if not hasattr(probe, 'name'):
        raise UserError(f'--probes: {name} is no probe: it needs a `name` and a function `run`')
    return probe


def _baselines(given: str) -> list[str]:
    names = [name for name in given.split(',') if name and name != 'none']
    for name in names:
        if name not in BASELINES:
            raise UserError(f'--baselines: there is no {name!r}{suggest(name, [*BASELINES, "none"])}')
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='medjax probe', description='What the exports of a run are worth on a data set.'
    )
    parser.add_argument('--run', required=True, metavar='RUN', help='the folder of a run (--workdir of medjax train)')
    parser.add_argument('--data', required=True, metavar='DATA', help='a data set that medjax build made')
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--steps', metavar='all|1000,2000', help='which exports; default: the newest')
    which.add_argument(
        '--follow', action='store_true', help='probe exports as they come, until the run is done or silent for an hour'
    )
    parser.add_argument(
        '--probes', metavar='NAMES', help=f'of {ALL}, or mypkg.myprobe; default: all that export and data allow'
    )
    parser.add_argument(
        '--prompts',
        metavar='FILE|NAME',
        help='sentences for the classes, and how they become scores, for zero_shot: a file, or a shipped one, as cxr',
    )
    parser.add_argument('--baselines', default='random,pixels', metavar='NAMES', help='default: %(default)s; or none')
    parser.add_argument(
        '--policy',
        default='',
        metavar='uncertain=negative,…',
        help='uncertain, blank, conflicting labels as positive or negative; default: left out',
    )
    parser.add_argument('--draws', type=int, default=statistics.DRAWS, help='bootstrap draws (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of the bootstrap and of held-out patients')
    return parser
