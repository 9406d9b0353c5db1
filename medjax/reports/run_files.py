"""The files of a run, read for its report. What is missing is empty; what is torn by a kill is left out.

A damaged result is left out too, with a sentence in `Run.damaged`.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medjax.errors import UserError
from medjax.probes import policy
from medjax.probes.encode import BASELINES


class Result(NamedTuple):
    """One probe of one encoder on one data set, as `medjax probe` wrote it."""

    encoder: int | str  # the export's step, or 'random' | 'pixels'
    data: str
    probe: str
    body: Mapping[str, Any]
    scores: Path | None

    def curves(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Label -> scores and labels (0|1) of the test records that have the label."""
        if self.scores is None:
            return {}
        with np.load(self.scores, allow_pickle=False) as file:
            if 'scores' not in file:  # of a probe whose figures are not of labels
                return {}
            scores, labels, names = file['scores'], file['labels'], file['names']
        known = {str(name): policy.known(labels[:, i]) for i, name in enumerate(names)}
        return {name: (scores[at, i], labels[at, i]) for i, (name, at) in enumerate(known.items())}


class Run(NamedTuple):
    """Everything a run has left in its folder."""

    path: Path
    config: Mapping[str, Any]
    lines: Sequence[Mapping[str, Any]]
    health: Mapping[str, Any]
    results: Sequence[Result]
    damaged: Sequence[str]  # a sentence for each result that is left out
    exports: Sequence[int]
    done: bool

    @property
    def name(self) -> str:
        return self.path.name or 'run'

    def newest(self) -> int | None:
        """The step of the newest export that has results."""
        return max((r.encoder for r in self.results if isinstance(r.encoder, int)), default=None)

    def grouped(self) -> dict[tuple[str, str], dict[int | str, Result]]:
        """(data, probe) -> encoder -> result; encoders in the order steps, random, pixels."""
        groups: dict[tuple[str, str], dict[int | str, Result]] = {}
        for result in self.results:
            groups.setdefault((result.data, result.probe), {})[result.encoder] = result
        return dict(sorted(groups.items()))


def read(run: str | os.PathLike) -> Run:
    path = Path(run).resolve()
    if not path.is_dir():
        raise UserError(f'--run {os.fspath(run)}: there is no such folder')
    if not (path / 'config.json').exists():
        raise UserError(f'--run {os.fspath(run)}: no config.json in it; is it the --workdir of a `medjax train`?')
    found, damaged = results(path / 'probes')
    return Run(
        path=path,
        config=document(path / 'config.json'),
        lines=lines(path / 'metrics.jsonl'),
        health=document(path / 'health.json'),
        results=found,
        damaged=damaged,
        exports=sorted(int(p.name) for p in children(path / 'exports') if p.name.isdecimal()),
        done=(path / 'DONE').exists(),
    )


def document(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is none."""
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:  # also where it is not text
        raise UserError(f'{path.parent.name}/{path.name} is not JSON: {error}') from None


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; the last may be half written while the run goes on."""
    found = []
    for raw in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(raw))
        except json.JSONDecodeError:
            continue
    return found


def results(folder: Path) -> tuple[list[Result], list[str]]:
    """By data set and probe; exports by step, then random init, then raw pixels. And what is damaged, in sentences."""
    found, damaged = [], []
    for of_encoder in children(folder):
        name = of_encoder.name
        if not name.isdecimal() and name not in BASELINES:
            continue
        for path in children(of_encoder):
            if path.suffix == '.json' and not path.name.startswith('.'):
                try:
                    body = result(path)
                except (UserError, OSError) as error:
                    damaged.append(f'A damaged result is left out: {error}.')
                    continue
                scores = path.with_name(f'{path.stem}.npz')
                if scores.exists() and not zipfile.is_zipfile(scores):
                    damaged.append(f'Damaged scores are left out: {name}/{scores.name} is no npz.')
                known = scores if zipfile.is_zipfile(scores) else None
                found.append(Result(int(name) if name.isdecimal() else name, body['data'], body['probe'], body, known))
    order = list(BASELINES)
    found.sort(key=lambda r: (r.data, r.probe, -1 if isinstance(r.encoder, int) else order.index(r.encoder), r.encoder))
    return found, damaged


def result(path: Path) -> dict[str, Any]:
    """The result, if it says what it is of and has figures for labels."""
    body, where = document(path), f'{path.parent.name}/{path.name}'
    if not isinstance(body, dict):
        raise UserError(f'{where} is no JSON object')
    for key, kind in (('data', str), ('probe', str), ('results', dict)):
        if not isinstance(body.get(key), kind):
            raise UserError(f'{where} has no {key!r}')
    for figure, labels in body['results'].items():
        if not isinstance(labels, dict) or not all(isinstance(at, dict) for at in labels.values()):
            raise UserError(f'{where} has no values of {figure!r}')
    return body


def children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
