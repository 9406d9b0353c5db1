"""`medjax probe`: evaluates the exports of a run on a data set.

    medjax probe --run RUN --data DATA                  # the newest export
    medjax probe --run RUN --data DATA --steps all      # or 1000,2000
    medjax probe --run RUN --data DATA --follow         # beside a training, until it is done or long silent
    medjax probe --run RUN --data DATA --probes zero_shot,retrieval --prompts configs/prompts/phantom.json

The command is a job of its own, beside or after the training. It needs only RUN/exports and the records. It encodes
each split once for all probes and keeps the features in RUN/cache. A result that exists with the same settings is not
computed again. Two baselines go through the same probes, once for each run: the towers before training ('random') and
raw pixels ('pixels'). Without --probes, it runs all probes that the export and the data allow.
"""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
from types import ModuleType
from typing import Any

from medjax.data import records
from medjax.data.text import prompts
from medjax.errors import UserError, suggest
from medjax.plugins import find
from medjax.probes import encode, methods, policy, results, statistics, watch
from medjax.probes.encode import BASELINES, Encoder
from medjax.probes.evaluate import ProbeInputs

DEFAULT_PROBES = 'knn,linear,zero_shot,retrieval'


def main(argv: list[str]) -> int:
    """Probes exports and baselines and prints a table of results; returns 1 if a probe or an export failed."""
    args = _parser().parse_args(argv)
    run, data = pathlib.Path(args.run), records.open(args.data)
    probes = {probe.name: probe for probe in map(_probe, (args.probes or DEFAULT_PROBES).split(','))}
    baselines, label_policy = _baselines(args.baselines), policy.parse(args.policy)
    zero_shot = None if args.prompts is None else prompts.zero_shot(args.prompts, '--prompts')
    if zero_shot:
        prompts.check_classes(zero_shot._asdict(), data.labels, f'--prompts {args.prompts}')
    _check(run, data, args)

    def inputs_of(encoder: Encoder) -> ProbeInputs:
        return ProbeInputs(encoder, data, run / 'cache', label_policy, zero_shot, args.seed, args.draws)

    load = functools.partial(encode.load, fit=args.fit)
    exports = (
        watch.follow(run, load) if args.follow else watch.load_each(run, watch.select_steps(run, args.steps), load)
    )
    failures = 0
    for step, encoder in exports:
        if isinstance(encoder, Exception):
            failures += _failed(f'export {step}', encoder)
            continue
        possible, reasons = _possible_probes(inputs_of(encoder), probes)
        if args.probes:
            failures += sum(_failed(f'{name} on step {step}', error) for name, error in reasons.items())
        elif not possible:
            by_reason = {str(error): name for name, error in reasons.items()}
            why = '; '.join(f'{name}: {reason}' for reason, name in by_reason.items())
            failures += _failed(f'step {step}', UserError(f'no probe can run on {args.data} ({why})'))
        for baseline in baselines:
            failures += _probe_encoder(run, inputs_of(BASELINES[baseline].make(encoder)), possible)
        failures += _probe_encoder(run, inputs_of(encoder), possible)
        baselines = []  # all exports of a run have the same towers and preprocessing

    if (run / 'probes').is_dir():  # missing if a run with --follow ended before its first export
        print(results.table(run, data, list(probes)), flush=True)
    if failures:
        print(f'medjax: {failures} failure(s), see above', file=sys.stderr)
    return 1 if failures else 0


def _possible_probes(
    inputs: ProbeInputs, probes: dict[str, ModuleType]
) -> tuple[dict[str, ModuleType], dict[str, UserError]]:
    """The probes that can run on these inputs, and the reasons why the others cannot."""
    possible, reasons = {}, {}
    for name, probe in probes.items():
        try:
            _requirements(probe, inputs)
            possible[name] = probe
        except UserError as error:
            reasons[name] = error
    return possible, reasons


def _requirements(probe: ModuleType, inputs: ProbeInputs) -> dict[str, Any]:
    return probe.requirements(inputs) if hasattr(probe, 'requirements') else {}


def _probe_encoder(run: pathlib.Path, inputs: ProbeInputs, probes: dict[str, ModuleType]) -> int:
    """Runs all probes without a result; a failing probe does not stop the others. Returns the number of failures."""
    encoder, data = inputs.encoder, inputs.data
    title = encode.title(encoder.name)
    origin = results.provenance(run, encoder, data) | {'policy': inputs.policy}
    possible, reasons = _possible_probes(inputs, probes)
    for name, reason in reasons.items():  # only for a baseline: the export itself meets all requirements
        print(f'{title}, {name}: left out, {reason}', flush=True)
    failures = runs = 0
    for name, probe in possible.items():
        try:
            key = results.key(inputs, probe, origin | _requirements(probe, inputs))
            file = results.path(run, encoder.name, data.name, name)
            if results.exists(file, key):
                continue
            runs += 1
            content, arrays = probe.run(inputs)
            about = dict(
                probe=name,
                data=data.name,
                data_fingerprint=data.fingerprint,
                encoder=dict(step=encoder.name, export_digest=encoder.digest, size=encoder.size),
                split='test',
            )
            results.write(file, about | content | origin | dict(key=key), arrays)
            metric, rows = next(iter(content['results'].items()))
            mean, metric = rows['mean'], results.METRIC_TITLES.get(metric, metric)
            interval = f'[{mean["low"]:.3f}, {mean["high"]:.3f}]'
            print(f'{title}, {name}: mean {metric} {mean["value"]:.3f} {interval}', flush=True)
        except Exception as error:  # also a bug of this probe: the other probes still run, and the exit code is 1
            failures += _failed(f'{name} on {title} and {data.name}', error)
    if runs:
        print(f'{title}: {origin["provenance"]}', flush=True)
    return failures


def _failed(job: str, error: Exception) -> int:
    """Prints a failure in one line and returns 1, to be counted."""
    reason = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
    print(f'medjax: {job} failed: {reason}', file=sys.stderr, flush=True)
    return 1


def _check(run: pathlib.Path, data: records.DataSet, args: argparse.Namespace) -> None:
    """UserError if nothing can be probed with these options."""
    if not run.is_dir() and (run.exists() or not args.follow):
        raise UserError(f'--run {args.run}: there is no such folder; give the --workdir of a `medjax train`')
    if not data.splits.get('test'):
        raise UserError(f'--data {args.data}: no record in test, so there is nothing to probe')
    if not data.labels and not (data.split('test').column('words') > 0).any():
        raise UserError(f'--data {args.data}: the data set has no labels and no texts, so there is nothing to probe')
    if args.draws < 1:
        raise UserError(f'--draws: at least 1 bootstrap draw, not {args.draws}')
    if args.seed < 0:
        raise UserError(f'--seed: 0 or more, not {args.seed}')


def _probe(name: str) -> ModuleType:
    """The module of a probe: 'knn' is medjax.probes.methods.knn, 'mypkg.myprobe' is the user's own module."""
    probe = find(name, methods.__name__, '--probes', 'probe', 'run')
    if not hasattr(probe, 'name'):
        raise UserError(f'--probes: {name} is not a probe: it needs a `name` and a function `run`')
    return probe


def _baselines(text: str) -> list[str]:
    names = [name for name in text.split(',') if name and name != 'none']
    for name in names:
        if name not in BASELINES:
            raise UserError(f'--baselines: there is no {name!r}{suggest(name, [*BASELINES, "none"])}')
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='medjax probe', description='Evaluate the exports of a run on a data set.')
    parser.add_argument('--run', required=True, metavar='RUN', help='the folder of a run (--workdir of medjax train)')
    parser.add_argument(
        '--data', required=True, metavar='DATA', help='the folder of a data set (--out of medjax build)'
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument('--steps', metavar='all|1000,2000', help='the exports to probe; default: the newest one')
    which.add_argument(
        '--follow',
        action='store_true',
        help='wait for exports and probe each one; ends when the run is done, or silent for an hour',
    )
    parser.add_argument(
        '--probes',
        metavar='NAMES',
        help=f'some of {DEFAULT_PROBES}, or your own mypkg.myprobe; default: all that the export and the data allow',
    )
    parser.add_argument(
        '--prompts',
        metavar='FILE|NAME',
        help='sentences for each class and the score to compute from them, which zero_shot needs: a JSON file, or the '
        'name of a shipped one, for example cxr',
    )
    parser.add_argument(
        '--baselines',
        default='random,pixels',
        metavar='NAMES',
        help='untrained encoders to compare with: random, pixels, or none (default: %(default)s)',
    )
    parser.add_argument(
        '--policy',
        default='',
        metavar='uncertain=negative,…',
        help='count uncertain, blank or conflicting labels as positive or negative; default: they are left out',
    )
    parser.add_argument(
        '--fit',
        choices=encode.FITS,
        help='what the encoder sees of an image: crop, its centre square; pad, all of it, with black beside; stretch, all '
        'of it, resized to a square (default: as the export says)',
    )
    parser.add_argument('--draws', type=int, default=statistics.DRAWS, help='bootstrap draws (default: %(default)s)')
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of the bootstrap and of held-out patients (default: %(default)s)'
    )
    return parser
