"""RUN/probes/<encoder>/<data>.<probe>.json (+ .npz with the scores): written whole, found again, shown as a table.

A data set is known by its name. Where the run has results of another data set of that name, <data> is the name and the
first digits of the fingerprint: 'shapes-1f0c9a'.
"""

from __future__ import annotations

import glob
import hashlib
import inspect
import json
import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

import medjax
from medjax import files
from medjax.data.audit.seen import overlap
from medjax.probes.encode import Encoder, title
from medjax.probes.evaluate import Task

DIGITS = 6  # of a data set's fingerprint, where its name alone is not enough
COLUMNS = {'auroc': 'AUROC', 'auprc': 'AUPRC', 'accuracy': 'accuracy', 'balanced_accuracy': 'balanced accuracy'}


def path(run: pathlib.Path, encoder: int | str, data: str, probe: str) -> pathlib.Path:
    return run / 'probes' / str(encoder) / f'{data}.{probe}.json'


def settings_key(task: Task, probe: ModuleType, about: dict[str, Any]) -> str:
    """A digest of all that a result depends on, the probe's own source included; `about`: what else."""
    module = [probe.__name__, inspect.getsource(probe)]
    parts = [task.encoder.digest, task.data.fingerprint, *module, about, task.seed, task.draws, medjax.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def is_there(file: pathlib.Path, key: str) -> bool:
    """Whether `file`, or the one beside it with a fingerprint in its name, is a whole result with these settings."""
    data, _, probe = file.stem.rpartition('.')
    beside = sorted(file.parent.glob(f'{glob.escape(data)}-{"?" * DIGITS}.{glob.escape(probe)}.json'))
    results = [found for found in map(read, (file, *beside)) if found]
    return any(found.get('key') == key and (file.parent / found['scores']).is_file() for found in results)


def read(file: pathlib.Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def write(file: pathlib.Path, result: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The scores first, then the result that points to them, each whole or not at all."""
    data, fingerprint = result.get('data', ''), result.get('data_fingerprint', '')
    if _is_taken(file.parents[1], data, fingerprint):
        longer = _with_digits(data, fingerprint)
        file = file.with_name(longer + file.name.removeprefix(data))
        result = result | {'data': longer}
    scores = file.with_suffix('.npz')
    files.write_npz(scores, **arrays)
    files.write_json(file, result | {'scores': scores.name})


def _is_taken(probes: pathlib.Path, data: str, fingerprint: str) -> bool:
    """Whether some encoder was probed on another data set of this name."""
    found = filter(None, map(read, probes.glob(f'*/{glob.escape(data)}.*.json')))
    return any(r.get('data') == data and r.get('data_fingerprint') != fingerprint for r in found)


def _with_digits(data: str, fingerprint: str) -> str:
    return f'{data}-{fingerprint[:DIGITS]}'


def provenance(run: pathlib.Path, encoder: Encoder, data: Any) -> dict[str, Any]:
    """What share of the test split the encoder was trained on: {'overlap': shares or {}, 'provenance': a sentence}."""
    if isinstance(encoder.name, str):
        return dict(overlap={}, provenance='trained on nothing')
    seen = run / 'data' / 'seen.npz'
    if not seen.is_file():
        return dict(overlap={}, provenance='overlap with pretraining unknown: the run has no data/seen.npz')
    said = encoder.meta.get('seen')
    if said and said != hashlib.sha256(seen.read_bytes()).hexdigest():
        why = f'data/seen.npz is not the one that export {encoder.name} was trained on'
        return dict(overlap={}, provenance=f'overlap with pretraining unknown: {why}')
    shares = overlap(seen, data.split('test'))
    if not any(shares[kind] for kind in ('patient', 'image', 'pixels', 'near')):
        told = 'none of the test records was seen in pretraining, as far as hashes tell'
    else:
        parts = dict(patient='of a patient', image='with an id', pixels='with pixels', near='with nearly the pixels')
        told = ', '.join(f'{100 * shares[k]:.1f} % {words}' for k, words in parts.items() if shares[k] is not None)
        told = f'of the test records {told} seen in pretraining'
    if not shares['comparable']:
        told += '; the ids were hashed with different keys, so patients and images are not all compared'
    return dict(overlap=shares, provenance=told)


def table(run: pathlib.Path, data: Any, probes: Sequence[str]) -> str:
    """All results on a data set as a Markdown table: baselines, then steps; means over labels with their intervals."""
    found = []
    for folder in (run / 'probes').iterdir():
        for probe in probes:
            names = (_with_digits(data.name, data.fingerprint), data.name)
            results = filter(None, (read(path(run, folder.name, name, probe)) for name in names))
            found += [result for result in results if result['data_fingerprint'] == data.fingerprint][:1]
    found.sort(key=lambda r: (list(probes).index(r['probe']), _order(r['encoder']['step'])))
    if not found:
        return ''
    # one table for all probes with one first figure, a mean over the same labels
    tables: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for result in found:
        figure, rows = next(iter(result['results'].items()))
        tables.setdefault((figure, *rows), []).append(result)
    return '\n\n'.join(map(_one_table, tables.values()))


def _one_table(found: list[dict[str, Any]]) -> str:
    bootstrap, first = found[0]['bootstrap'], next(iter(found[0]['results'].values()))
    ways = ' and '.join(way for way in first if way != 'mean')
    over = f'{first["mean"]["labels"]} label(s)' if 'labels' in first['mean'] else ways
    figures = dict.fromkeys(figure for result in found for figure in result['results'])
    lines = [
        f'{found[0]["data"]}, test split: {found[0]["records"]["test"]:,} records of '
        f'{bootstrap["patients"]:,} patients; means over {over} with '
        f'{100 * bootstrap["level"]:.0f} % intervals over patients',
        '',
        '| encoder | probe | ' + ' | '.join(COLUMNS.get(figure, figure) for figure in figures) + ' |',
        '|---|---|' + '---|' * len(figures),
    ]
    for result in found:
        name = title(result['encoder']['step'])
        cells = [_cell(result['results'].get(figure, {}).get('mean')) for figure in figures]
        lines.append(f'| {name} | {result["probe"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _order(step: int | str) -> tuple[bool, str, int]:
    """Baselines first, steps by number."""
    return (False, step, 0) if isinstance(step, str) else (True, '', step)


def _cell(at: dict[str, Any] | None) -> str:
    if at is None:
        return ''
    interval = '' if at['low'] is None else f' [{_short(at["low"])}, {_short(at["high"])}]'
    return _short(at['value']) + interval


def _short(value: float) -> str:
    """.842, as papers print it."""
    return f'{value:.3f}'.removeprefix('0')
