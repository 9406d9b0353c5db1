"""`medjax probe`: evaluates the exports of a run, or public encoders, on a data set.

    medjax probe --run RUN --data DATA                  # the newest export
    medjax probe --run RUN --data DATA --steps all      # or 1000,2000
    medjax probe --run RUN --data DATA --follow         # beside a training, until it is done or long silent
    medjax probe --run RUN --data DATA --best linear.auroc   # all exports; RUN/best.json names the best
    medjax probe --run RUN --data DATA --probes zero_shot,retrieval --prompts configs/prompts/phantom.json
    medjax probe --run RUN --data DATA --probes fine_tune --epochs 20 --config.optim.lr=1e-4
    medjax probe --run RUN --data DATA --encoder dinov2-base/        # a public encoder beside the run
    medjax probe --data DATA --encoder dinov2-base/ --encoder rad=other/model.safetensors

The command is a job of its own, beside or after the training. It needs only RUN/exports and the records. It encodes
each split once for all probes and keeps the features in RUN/cache. A result that exists with the same settings is not
computed again. Two baselines go through the same probes, once for each run: the towers before training ('random') and
raw pixels ('pixels'). Without --probes, it runs all probes that the export and the data allow.

--encoder takes all that `medjax encode` takes: a public folder, a file of weights, an export, another run. With --run,
its results lie in RUN/probes/NAME, and the report of the run shows them as a baseline. Without --run, the results of
each encoder lie in a folder of its own, runs/NAME. NAME is the name of its folder or file; NAME=PATH gives another.

--best PROBE.FIGURE compares the exports by a figure on validation, never on the test split, and writes RUN/best.json.
Of equal exports the earliest is chosen. With --follow, the choice is made anew after each export.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from medjax import files, overrides as overriding
from medjax.data import records
from medjax.data.text import prompts
from medjax.errors import UserError, suggest
from medjax.plugins import find, names as names_of_plugins
from medjax.probes import (
    aggregate,
    best as choice,
    columns,
    comparison,
    drop,
    encode,
    locks,
    methods,
    policy,
    provenance,
    results,
    statistics,
    subgroups,
    summary,
    tables,
    watch,
)
from medjax.probes.encode import BASELINES, Encoder
from medjax.probes.evaluate import ProbeInputs
from medjax.probes.tuning import FOLDER, Tuning
from medjax.weights import export

DEFAULT_PROBES = 'knn,linear,classifier,zero_shot,retrieval'
RUNS = pathlib.Path('runs')  # results of encoders without a run


def main(argv: list[str]) -> int:
    """Probes exports and baselines and prints a table of results; returns 1 if a probe or an export failed."""
    argv, overrides = overriding.split_overrides(argv)
    args = _parser().parse_args(argv)
    run = None if args.run is None else pathlib.Path(args.run)
    data = records.open(args.data)
    probes = {probe.name: probe for probe in map(_probe, (args.probes or DEFAULT_PROBES).split(','))}
    baselines, label_policy = _baselines(args.baselines), policy.parse(args.policy)
    zero_shot = None if args.prompts is None else prompts.zero_shot(args.prompts, '--prompts')
    if zero_shot:
        prompts.check_classes(zero_shot._asdict(), data.labels, f'--prompts {args.prompts}')
    _check(run, data, args)
    asked, outside = columns.parse(args.columns), tuple(map(records.open, args.outside or []))
    concepts = tuple(dict.fromkeys(filter(None, args.concepts.split(','))))
    groups = subgroups.parse(args.groups, data.split('test').attribute_names)
    figure = None if args.best is None else choice.parse(args.best, list(probes))
    encoders = _named_encoders(args.encoder or [])
    trains = [name for name, probe in probes.items() if isinstance(getattr(probe, 'job', None), Tuning)]
    _check_training(trains, overrides, args.epochs)

    def inputs_of(folder: pathlib.Path, encoder: Encoder) -> ProbeInputs:
        cache, chosen_by = folder / 'cache', figure.probe if figure else ''
        return ProbeInputs(
            encoder=encoder,
            data=data,
            cache=cache,
            policy=label_policy,
            prompts=zero_shot,
            seed=args.seed,
            draws=args.draws,
            chosen_by=chosen_by,
            interval=args.interval,
            unit=args.unit,
            pool=args.pool,
            groups=groups,
            columns=asked,
            concepts=concepts,
            outside=outside,
            overrides=tuple(overrides),
            epochs=args.epochs,
        )

    def probe_one(folder: pathlib.Path, encoder: Encoder, baselines: list[str], is_compared: bool = False) -> int:
        """Probes an encoder and its baselines, with results in a folder; returns the number of failures.

        What an encoder that stands beside a run cannot do is no failure, as with baselines: it has no classifier, say.
        """
        if is_compared:
            return _probe_encoder(folder, inputs_of(folder, encoder), probes)
        failures, title = 0, encode.title(encoder.name)
        possible, reasons = _possible_probes(inputs_of(folder, encoder), probes)
        if args.probes:
            failures += sum(_failed(f'{name} on {title}', error) for name, error in reasons.items())
        elif figure and figure.probe in reasons:
            failures += _failed(f'{figure.probe} on {title}', reasons[figure.probe])
        elif not possible:
            by_reason = {str(error): name for name, error in reasons.items()}
            why = '; '.join(f'{name}: {reason}' for reason, name in by_reason.items())
            failures += _failed(title, UserError(f'no probe can run on {args.data} ({why})'))
        for baseline in baselines:
            failures += _probe_encoder(folder, inputs_of(folder, BASELINES[baseline].make(encoder)), possible)
        return failures + _probe_encoder(folder, inputs_of(folder, encoder), possible, figure)

    failures = 0
    folders = dict.fromkeys([run] if run else (RUNS / name for name in encoders))
    for folder in folders:  # before hours of encoding
        for inside in ('probes', 'cache', 'comparisons', *([FOLDER] if trains else [])):
            files.check_writable(folder / inside, f'the results of the probes in {folder}')
    if figure:
        files.check_writable(run, f'the choice {run / export.BEST}')
    for name, path in encoders.items():
        encoder = _load_named(name, path, args.fit)
        folder = run or RUNS / name
        _check_place(folder, encoder, is_run=run is not None)
        if run is None:
            print(f'{name}: results lie in {folder}', flush=True)
        failures += probe_one(folder, encoder, baselines, is_compared=run is not None)
    if run:
        load = functools.partial(encode.load, fit=args.fit)
        steps = 'all' if figure and args.steps is None else args.steps
        exports = watch.follow(run, load) if args.follow else watch.load_each(run, watch.select_steps(run, steps), load)
        found: dict[int, dict[str, Any]] = {}  # the results by which the best export is chosen
        read = 0
        for read, (step, encoder) in enumerate(exports, 1):  # noqa: B007
            if isinstance(encoder, Exception):
                failures += _failed(f'export {step}', encoder)
                continue
            failures += probe_one(run, encoder, baselines)
            baselines = []  # all exports of a run have the same towers and preprocessing
            if figure and (result := choice.result_of(run, inputs_of(run, encoder), figure)):
                found[step] = result
                if args.follow:  # at once, so that a training with `export.keep` does not delete the best export
                    failures += _choose(run, found, figure)
        if not read and not args.follow:
            why = 'each export was deleted before it could be read (export.keep); --follow reads each when it appears'
            failures += _failed(str(run), UserError(why))
        if figure and not (args.follow and found):
            failures += _choose(run, found, figure)

    for folder in folders:
        if (folder / 'probes').is_dir():  # missing if a run with --follow ended before its first export
            names = [results.name(name, zero_shot) for name in probes]
            contents = results.on_data(folder, data, names)
            print('\n\n'.join(map(tables.markdown, tables.of_results(contents, names))), flush=True)
            for sentence in [
                *results.left_out(contents),
                *_in_words(folder, data, contents),
                *drop.sentences(contents),
            ]:
                print(sentence, flush=True)
    if failures:
        print(f'medjax: {failures} failure(s), see above', file=sys.stderr)
    return 1 if failures else 0


def _in_words(folder: pathlib.Path, data: records.DataSet, contents: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Sentences under a table: paired differences, and what can be trusted in the results of the newest encoder."""
    shown = comparison.main_encoder(contents)
    names = dict.fromkeys(content['probe'] for content in contents)
    compared = [line for name in names for line in comparison.sentences(comparison.of_run(folder, data, name))]
    if compared:
        yield f'On the same patients, differences with {100 * statistics.LEVEL:.0f} % intervals:'
        yield from compared
    yield from summary.sentences([content for content in contents if content['encoder']['step'] == shown])


def _choose(run: pathlib.Path, found: dict[int, dict[str, Any]], figure: choice.Figure) -> int:
    """Notes the best export in RUN/best.json and says it; returns the number of failures."""
    try:
        best = choice.choose(run, found, figure)
    except UserError as error:
        return _failed(f'the choice in {run / export.BEST}', error)
    print(f'{choice.sentence(best)}. It lies in {run / "exports" / str(best["step"])}, as best.json says', flush=True)
    return 0


def _named_encoders(given: Sequence[str]) -> dict[str, pathlib.Path]:
    """The paths of --encoder by name; UserError for a name that cannot be the name of a folder of results."""
    found: dict[str, pathlib.Path] = {}
    for text in given:
        name, _, rest = text.rpartition('=') if not pathlib.Path(text).exists() else ('', '', text)
        path = pathlib.Path(rest)
        name = name or _name_of(path)
        if name.isdecimal() or name in BASELINES:
            taken = 'a step of the run' if name.isdecimal() else f'the baseline {BASELINES[name].title}'
            raise UserError(f'--encoder {text}: the name {name!r} means {taken}; give another: --encoder NAME={path}')
        if not name or name.startswith('.') or pathlib.Path(name).name != name:
            raise UserError(f'--encoder {text}: {name!r} can be no name of a folder; give one: --encoder NAME={path}')
        if name in found:
            raise UserError(
                f'--encoder {text}: {found[name]} has the name {name!r} too; give one of them another: '
                f'--encoder NAME={path}'
            )
        found[name] = path
    return found


def _name_of(path: pathlib.Path) -> str:
    """The name of an encoder: that of its folder or file. An export has the name of its run and its step."""
    path = path.resolve()
    if path.parent.name == 'exports':
        return f'{path.parents[1].name}-{path.name}'
    return path.stem if path.is_file() else path.name


def _load_named(name: str, path: pathlib.Path, fit: str | None) -> Encoder:
    encoder = encode.load(path, fit)
    for note in encoder.notes:
        print(f'medjax: {note}', file=sys.stderr, flush=True)
    return dataclasses.replace(encoder, name=name)


def _check_place(folder: pathlib.Path, encoder: Encoder, is_run: bool) -> None:
    """UserError if the results of an encoder would replace those of another one."""
    if not is_run and (folder / 'config.json').exists():
        raise UserError(
            f'{folder} is the folder of a run, and no place for the results of {encoder.name!r}; write --run {folder} '
            'to compare the encoder with this run, or --encoder NAME=PATH to give it another name'
        )
    for file in sorted((folder / 'probes' / str(encoder.name)).glob('*.json')):
        before = (results.read(file) or {}).get('encoder', {}).get('weights')
        if before not in (None, encoder.weights):
            raise UserError(
                f'{file.parent} has results of other weights; give this encoder another name, --encoder NAME=PATH, or '
                'delete that folder'
            )


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


def _probe_encoder(
    run: pathlib.Path, inputs: ProbeInputs, probes: dict[str, ModuleType], figure: choice.Figure | None = None
) -> int:
    """Runs all probes without a result; a failing probe does not stop the others. Returns the number of failures.

    A result without metrics on validation is none if `figure` needs them.
    """
    encoder, data = inputs.encoder, inputs.data
    title = encode.title(encoder.name)
    origin = provenance.of(run, encoder, data) | {'policy': inputs.policy}
    possible, reasons = _possible_probes(inputs, probes)
    for name, reason in reasons.items():  # only for a baseline or an encoder beside a run
        print(f'{title}, {name}: left out, {reason}', flush=True)
    failures = runs = 0
    keys: dict[str, str] = {}
    for name, probe in possible.items():
        try:
            keys[name] = results.key(inputs, probe, origin | _requirements(probe, inputs))
        except Exception as error:  # as below
            failures += _failed(f'{name} on {title} and {data.name}', error)
    for name in _one_by_one(run, title, possible, keys):
        try:
            result = results.name(name, inputs.prompts)
            file = results.path(run, encoder.name, data.name, result)
            needs = ('validation_results',) if figure and figure.probe == name else ()
            if results.exists(file, keys[name], needs):
                continue
            runs += 1
            content, arrays = possible[name].run(inputs)
            about = dict(
                probe=result,
                data=data.name,
                data_fingerprint=data.fingerprint,
                encoder=dict(
                    step=encoder.name,
                    export_digest=encoder.digest,
                    size=encoder.size,
                    weights=encoder.weights,
                    origin=encoder.meta.get('origin'),
                ),
                split='test',
            )
            results.write(file, about | content | origin | dict(key=keys[name]), arrays)
            metric, rows = next(iter(content['results'].items()))
            mean, metric = rows['mean'], results.METRIC_TITLES.get(metric, metric)
            print(f'{title}, {result}: mean {metric} {results.cell(mean, provenance.mark(origin))}', flush=True)
        except Exception as error:  # also a bug of this probe: the other probes still run, and the exit code is 1
            in_run = provenance.run_of(encoder) is not None
            if isinstance(error, (UserError, OSError)) and in_run and watch.is_deleted(encoder.folder):
                watch.say_deleted(encoder.folder)
                break
            failures += _failed(f'{name} on {title} and {data.name}', error)
    if runs:
        print(f'{title}: {origin["provenance"]}', flush=True)
    return failures


def _one_by_one(
    run: pathlib.Path, title: str, probes: Mapping[str, ModuleType], keys: Mapping[str, str]
) -> Iterator[str]:
    """The names of the probes with a key. Each comes when no other job computes the same result.

    A probe with `shares_work` divides its work between jobs that run it at once, so it needs no lock.
    """
    alone = {name: int(keys[name][:15], 16) for name in keys if not getattr(probes[name], 'shares_work', False)}
    yield from locks.shared(run / 'cache' / '.lock', alone, f'{", ".join(alone)} on {title}')
    yield from (name for name in keys if name not in alone)


def _failed(job: str, error: Exception) -> int:
    """Prints a failure in one line and returns 1, to be counted."""
    reason = str(error) if isinstance(error, UserError) else f'{type(error).__name__}: {error}'
    print(f'medjax: {job} failed: {reason}', file=sys.stderr, flush=True)
    return 1


def _check(run: pathlib.Path | None, data: records.DataSet, args: argparse.Namespace) -> None:
    """UserError if nothing can be probed with these options."""
    if run is None and not args.encoder:
        raise UserError('nothing to probe: give --run RUN, --encoder PATH, or both')
    if run is None and (args.steps or args.follow or args.best):
        option = '--follow' if args.follow else '--steps' if args.steps else '--best'
        raise UserError(f'{option} is for the exports of a run: give --run RUN')
    if run and not run.is_dir() and (run.exists() or not args.follow):
        raise UserError(f'--run {args.run}: there is no such folder; give the --workdir of a `medjax train`')
    if not data.splits.get('test'):
        raise UserError(f'--data {args.data}: no record in test, so there is nothing to probe')
    if not data.labels and not data.masks and not (data.split('test').column('words') > 0).any():
        raise UserError(
            f'--data {args.data}: the data set has no labels, no texts and no masks, so there is nothing to probe'
        )
    if args.draws < 1:
        raise UserError(f'--draws: at least 1 bootstrap draw, not {args.draws}')
    if args.seed < 0:
        raise UserError(f'--seed: 0 or more, not {args.seed}')


def _check_training(trains: Sequence[str], overrides: Sequence[str], epochs: int | None) -> None:
    """UserError for options of trainings without a probe that trains."""
    if epochs is not None and epochs < 1:
        raise UserError(f'--epochs: at least 1 pass over the train split, not {epochs}')
    if (overrides or epochs) and not trains:
        option = '--epochs' if epochs else f'--config.{overrides[0]}'
        raise UserError(f'{option} is for probes that train, such as --probes fine_tune')


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
    parser = argparse.ArgumentParser(
        prog='medjax probe', description='Evaluate the exports of a run, or public encoders, on a data set.'
    )
    parser.add_argument('--run', metavar='RUN', help='the folder of a run (--workdir of medjax train)')
    parser.add_argument(
        '--encoder',
        action='append',
        metavar='[NAME=]PATH',
        help='an encoder to compare with, or to probe alone: a public folder, a file of weights, an export, a run; may '
        'be given several times',
    )
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
        '--best',
        metavar='PROBE.FIGURE',
        help='note the best export in RUN/best.json, by a figure on validation such as linear.auroc or knn.auprc; '
        'without --steps, all exports are compared',
    )
    parser.add_argument(
        '--probes',
        metavar='NAMES',
        help=f'some of {", ".join(names_of_plugins(methods.__name__))}, or your own mypkg.myprobe; default: those of '
        f'{DEFAULT_PROBES} that the export and the data allow',
    )
    parser.add_argument(
        '--columns',
        default='',
        metavar='age,grade=none<mild',
        help='the columns that metadata, regression, ordinal and shortcut take, the words of ordinal from low to high; '
        f'default of metadata and regression: those of {", ".join(subgroups.DEFAULT)} that the data have',
    )
    parser.add_argument(
        '--concepts',
        default='',
        metavar='effusion,view,age',
        help='the labels and columns from which the probe concepts predicts the other labels',
    )
    parser.add_argument(
        '--outside',
        action='append',
        metavar='DATA',
        help='a data set of other images, which out_of_distribution must tell from this one; may be given several '
        'times',
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
        help='what the encoder sees of an image: crop, its centre square; pad, all of it, with black beside; stretch, '
        'all of it, resized to a square (default: as the export says)',
    )
    parser.add_argument(
        '--unit',
        choices=aggregate.UNITS,
        default='image',
        help='what knn, linear, linear_sgd, classifier and zero_shot count: images, studies or patients; the scores of '
        'the images of a study or patient are pooled, and it is positive if any of its images is (default: '
        '%(default)s)',
    )
    parser.add_argument(
        '--pool',
        choices=aggregate.POOLS,
        default='mean',
        help='the score of a study or patient: the mean or the maximum over its images (default: %(default)s)',
    )
    parser.add_argument(
        '--groups',
        metavar='sex,age,sex*age',
        help='columns whose groups are compared, and intersections of them; none: no groups; default: those of '
        f'{", ".join(subgroups.DEFAULT)} that the data have',
    )
    parser.add_argument(
        '--interval',
        choices=statistics.INTERVALS,
        default=statistics.BCA,
        help='the kind of bootstrap interval: percentile, or bca, bias-corrected and accelerated (default: '
        '%(default)s)',
    )
    parser.add_argument(
        '--epochs', type=int, metavar='N', help='passes of probes that train, such as fine_tune, over the train split'
    )
    parser.add_argument(
        '--config.KEY=VALUE', dest='_', help='overrides of the recipe of probes that train, as --config.optim.lr=1e-4'
    )
    parser.add_argument('--draws', type=int, default=statistics.DRAWS, help='bootstrap draws (default: %(default)s)')
    parser.add_argument(
        '--seed', type=int, default=0, help='seed of the bootstrap and of held-out patients (default: %(default)s)'
    )
    return parser
