"""Reads the files of a run for its report.

A missing file gives an empty value. A line of metrics.jsonl that a kill cut short is left out. Other damaged files, and
damaged entries of config.json, are left out too, each with a sentence in `Run.damaged`. config.json alone must be JSON.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medjax import run_config
from medjax.errors import UserError
from medjax.probes import best, policy
from medjax.probes.encode import BASELINES
from medjax.types import is_number

OPTIONAL = (  # objects of a result
    'encoder', 'records', 'chosen', 'skipped_labels', 'bootstrap', 'overlap', 'policy', 'unit', 'details', 'clean',
    'subgroups', 'calibration', 'conformal', 'retained', 'thresholds',
)  # fmt: skip


NUMBERS = ('value', 'low', 'high', 'p')  # of the mean of a comparison


class ResultFile(NamedTuple):
    """A result that `medjax probe` wrote: one probe of one encoder on one data set."""

    encoder: int | str  # the step of the export, 'random' | 'pixels', or the name of an encoder beside the run
    data: str
    probe: str
    content: Mapping[str, Any]  # see `medjax.probes.evaluate.Result`
    scores: Path | None  # the .npz file; None if it is missing or damaged

    def labelled_scores(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """{label: (scores, labels 0|1)} of the test records where the label is known; {} if the file has no scores."""
        if self.scores is None:
            return {}
        with np.load(self.scores, allow_pickle=False) as file:
            if not {'scores', 'labels', 'names'} <= set(file.files):  # the probe is not a label probe
                return {}
            scores, labels, names = file['scores'], file['labels'], file['names']
        known = policy.known(labels)
        return {str(name): (scores[known[:, i], i], labels[known[:, i], i]) for i, name in enumerate(names)}


class Run(NamedTuple):
    """The files in the folder of a run."""

    path: Path
    config: Mapping[str, Any]
    log: Sequence[Mapping[str, Any]]  # the lines of metrics.jsonl
    health: Mapping[str, Any]
    results: Sequence[ResultFile]
    comparisons: Sequence[Mapping[str, Any]]  # of RUN/comparisons, see `medjax.probes.comparison.of_run`
    damaged: Sequence[str]  # a sentence for each damaged file
    exports: Sequence[int]  # steps
    done: bool
    best: Mapping[str, Any]  # best.json, see `medjax.probes.best`

    @property
    def name(self) -> str:
        return self.path.name or 'run'

    def newest_step(self) -> int | None:
        """The step of the newest export that has results."""
        return max((result.encoder for result in self.results if isinstance(result.encoder, int)), default=None)

    def results_by_probe(self) -> dict[tuple[str, str], dict[int | str, ResultFile]]:
        """{(data, probe): {encoder: result}}; encoders are sorted: steps, names, random, pixels."""
        table: dict[tuple[str, str], dict[int | str, ResultFile]] = {}
        for result in self.results:
            table.setdefault((result.data, result.probe), {})[result.encoder] = result
        return dict(sorted(table.items()))


def read_run(run: str | os.PathLike, option: str = '--run ') -> Run:
    """Reads the folder of a run; UserError if it has no config.json. `option` stands before the folder in messages."""
    path = Path(run).resolve()
    if not path.is_dir():
        raise UserError(f'{option}{os.fspath(run)}: there is no such folder')
    if not (path / 'config.json').exists():
        raise UserError(f'{option}{os.fspath(run)}: no config.json in it; is it the --workdir of a `medjax train`?')
    results, damaged = read_results(path / 'probes')
    comparisons, unreadable = read_comparisons(path / 'comparisons')
    damaged += unreadable
    config = read_json(path / 'config.json')
    bad = run_config.damaged(config)
    damaged += [f'A damaged entry of config.json is left out: {sentence}.' for sentence in bad.values()]

    def read(reader: Callable[[Path], dict[str, Any]], place: Path) -> dict[str, Any]:
        try:
            return reader(place)
        except (UserError, OSError) as error:
            damaged.append(f'A damaged file is left out: {error}.')
            return {}

    return Run(
        path=path,
        config={name: value for name, value in config.items() if name not in bad},
        log=read_log(path / 'metrics.jsonl'),
        health=read(read_json, path / 'health.json'),
        results=results,
        comparisons=comparisons,
        damaged=damaged,
        exports=sorted(int(p.name) for p in children(path / 'exports') if p.name.isdecimal()),
        done=(path / 'DONE').exists(),
        best=read(best.read, path),
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} if there is no file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:  # includes files that are not text
        raise UserError(f'{path.parent.name}/{path.name} is not JSON: {error}') from None
    if not isinstance(content, dict):
        raise UserError(f'{path.parent.name}/{path.name} is no JSON object')
    return content


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl. While the run goes on, the last line may be half written."""
    log = []
    for text in path.read_text(errors='replace').splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(line, dict) and is_number(line.get('step')):
            log.append(line)
    return log


def read_results(folder: Path) -> tuple[list[ResultFile], list[str]]:
    """The results in RUN/probes, and a sentence for each damaged one.

    They are sorted by data set, probe and encoder: steps, encoders beside the run, random init, raw pixels.
    """
    results, damaged = [], []
    for encoder_folder in children(folder):
        name = encoder_folder.name
        if name.startswith('.'):
            continue
        for path in children(encoder_folder):
            if path.suffix == '.json' and not path.name.startswith('.'):
                try:
                    content = read_result(path)
                except (UserError, OSError) as error:
                    damaged.append(f'A damaged result is left out: {error}.')
                    continue
                scores = path.with_name(f'{path.stem}.npz')
                if scores.exists() and not zipfile.is_zipfile(scores):
                    damaged.append(f'Damaged scores are left out: {name}/{scores.name} is no npz.')
                usable = scores if zipfile.is_zipfile(scores) else None
                encoder = int(name) if name.isdecimal() else name
                results.append(ResultFile(encoder, content['data'], content['probe'], content, usable))
    results.sort(key=lambda result: (result.data, result.probe, *_position(result.encoder)))
    return results, damaged


def _position(encoder: int | str) -> tuple[int, int, str]:
    """Sorts steps by number, then encoders beside the run by name, then the baselines."""
    if isinstance(encoder, int):
        return 0, encoder, ''
    return (1, 0, encoder) if encoder not in BASELINES else (2, list(BASELINES).index(encoder), '')


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result; UserError if it does not name its data and probe, or its values are no dicts."""
    content, where = read_json(path), f'{path.parent.name}/{path.name}'
    for key, kind in (('data', str), ('probe', str), ('results', dict)):
        if not isinstance(content.get(key), kind):
            raise UserError(f'{where} has no {key!r}')
    for key in OPTIONAL:
        if not isinstance(content.get(key, {}), dict):
            raise UserError(f'{where}: {key!r} is no JSON object')
    for metric, rows in content['results'].items():
        if not isinstance(rows, dict) or not all(isinstance(estimate, dict) for estimate in rows.values()):
            raise UserError(f'{where} has no values of {metric!r}')
    return content


def read_comparisons(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The comparisons in RUN/comparisons, and a sentence for each damaged one."""
    found, damaged = [], []
    for path in children(folder):
        if path.suffix != '.json' or path.name.startswith('.'):
            continue
        try:
            content = read_json(path)
        except (UserError, OSError) as error:
            damaged.append(f'A damaged comparison is left out: {error}.')
            continue
        if is_comparison(content):
            found.append(content)
        else:
            damaged.append(
                f'A damaged comparison is left out: {path.parent.name}/{path.name} has no pairs of encoders.'
            )
    return found, damaged


def is_comparison(content: Mapping[str, Any]) -> bool:
    """Whether an object has what a comparison needs."""
    pairs = content.get('pairs')
    if not isinstance(content.get('data'), str) or not isinstance(content.get('probe'), str):
        return False
    if not isinstance(content.get('keys', {}), dict) or not isinstance(pairs, list):
        return False
    for pair in pairs:
        if not isinstance(pair, dict) or not {'encoder', 'other', 'results'} <= set(pair):
            return False
        if not isinstance(pair['results'], dict) or not all(
            isinstance(rows, dict) for rows in pair['results'].values()
        ):
            return False
        means = [rows['mean'] for rows in pair['results'].values() if 'mean' in rows]
        if not all(isinstance(mean, dict) and all(is_number(mean.get(key)) for key in NUMBERS) for mean in means):
            return False
    return True


def children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
