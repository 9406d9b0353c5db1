"""`medjax probe`: what the exports of a run are worth on a data set.

    medjax probe --run RUN --data DATA                  # the newest export
    medjax probe --run RUN --data DATA --steps all      # or 1000,2000
    medjax probe --run RUN --data DATA --follow         # beside a training, until it is done or long silent

A job of its own, which needs only RUN/exports and the records. Each split is encoded once for all probes and kept in
RUN/cache; results that are there with the same settings are not computed again. The same tower before training and
raw pixels are probed as well, once.
"""

from __future__ import annotations

import argparse
import pathlib
import pkgutil
import sys
from types import ModuleType

from medjax import probes as package
from medjax.data import records
from medjax.errors import UserError, find, suggest
from medjax.probes import encode, policy, results, statistics, watch
from medjax.probes.encode import Encoder
from medjax.probes.judge import judge, prepare

BASELINES = {'random': encode.random_init, 'pixels': encode.raw_pixels}


def main(argv: list[str]) -> int:
    """Probes exports and baselines, prints one table; 1 where a probe or an export failed."""
    args = _parser().parse_args(argv)
    run, data = pathlib.Path(args.run), records.open(args.data)
    probes = {probe.name: probe for probe in map(_probe, args.probes.split(','))}
    baselines, labels = _baselines(args.baselines), policy.parse(args.policy)
    _can_be_probed(run, data, args)

    exports = (
        watch.follow(run, encode.load) if args.follow else watch.each(run, watch.chosen(run, args.steps), encode.load)
    )
    failures = 0
    for step, encoder in exports:
        if isinstance(encoder, Exception):
            failures += _failed(f'export {step}', encoder)
            continue
        for one in (*(BASELINES[name](encoder.meta) for name in baselines), encoder):
            failures += _probe_encoder(run, one, data, probes, labels, args.seed, args.draws)
        baselines = []  # once a run is enough: its exports share tower and preprocessing

    if (run / 'probes').is_dir():  # not where a run that was followed never came to an export
        print(results.table(run, data, list(probes)), flush=True)
    if failures:
        print(f'medjax: {failures} failure(s), see above', file=sys.stderr)
    return 1 if failures else 0


def _probe_encoder(
    run: pathlib.Path,
    encoder: Encoder,
    data: records.DataSet,
    probes: dict[str, ModuleType],
    labels: dict[str, str],
    seed: int,
    draws: int,
) -> int:
    """All probes that have no result yet; one that fails does not stop the others. Returns the number of failures."""
    origin = results.provenance(run, encoder, data) | {'policy': labels}
    todo = {}
    for name, probe in probes.items():
        key = results.settings_key(encoder, probe, data, origin, seed, draws)
        file = results.path(run, encoder.name, data.name, name)
        if not results.is_there(file, key):
            todo[name] = probe, file, key
    if not todo:
        return 0
    try:
        features = {split: encode.features(encoder, data, split, run / 'cache') for split in data.splits}
        features = {split: f._replace(labels=policy.decided(f.labels, labels)) for split, f in features.items()}
        splits = prepare(features['train'], features.get('val'), features['test'], data.labels, seed, data.name)
    except Exception as error:  # one encoder may not stop the others, so any error is told and counted
        return _failed(f'{_name(encoder)} on {data.name}', error)
    failures = 0
    for name, (probe, file, key) in todo.items():
        try:
            result, arrays = judge(probe, splits, seed, draws)
            about = dict(
                probe=name,
                data=data.name,
                data_fingerprint=data.fingerprint,
                encoder=dict(step=encoder.name, export_digest=encoder.digest, size=encoder.size),
                split='test',
            )
            results.write(file, about | result | origin | dict(key=key), arrays)
            at = result['results']['auroc']['mean']
            print(f'{_name(encoder)}, {name}: AUROC {at["value"]:.3f} [{at["low"]:.3f}, {at["high"]:.3f}]', flush=True)
        except Exception as error:
            failures += _failed(f'{name} on {_name(encoder)} and {data.name}', error)
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
    if not data.labels:
        raise UserError(f'--data {args.data}: the data set has no labels, so there is nothing to probe')
    if missing := [split for split in ('train', 'test') if not data.splits.get(split)]:
        raise UserError(f'--data {args.data}: no record in {" and ".join(missing)}; a probe needs train and test')
    if args.draws < 1:
        raise UserError(f'--draws: at least 1 bootstrap draw, not {args.draws}')
    if args.seed < 0:
        raise UserError(f'--seed: 0 or more, not {args.seed}')


def _probe(name: str) -> ModuleType:
    """'knn' is medjax.probes.knn, 'mypkg.myprobe' the user's own: a module with `name` and `run`."""
    known = [
        m.name for m in pkgutil.iter_modules(package.__path__) if hasattr(find(m.name, package.__name__, ''), 'run')
    ]
    if '.' not in name and name not in known:
        raise UserError(f'--probes: there is no probe {name!r}{suggest(name, known)}')
    probe = find(name, package.__name__, '--probes')
    if not hasattr(probe, 'run') or not hasattr(probe, 'name'):
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
        '--probes', default='knn,linear', metavar='NAMES', help='default: %(default)s; or mypkg.myprobe'
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
