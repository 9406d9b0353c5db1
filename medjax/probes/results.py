"""RUN/probes/<encoder>/<data>.<probe>.json (+ .npz with the scores): written whole, found again, shown as a table."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import pathlib
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

import medjax
from medjax.data import records
from medjax.probes.encode import Encoder, write_npz

COLUMNS = {'auroc': 'AUROC', 'auprc': 'AUPRC', 'accuracy': 'accuracy', 'balanced_accuracy': 'balanced accuracy'}


def path(run: pathlib.Path, encoder: int | str, data: str, probe: str) -> pathlib.Path:
    return run / 'probes' / str(encoder) / f'{data}.{probe}.json'


def settings_key(
    encoder: Encoder, probe: ModuleType, data: Any, provenance: dict[str, Any], seed: int, draws: int
) -> str:
    """A digest of all that a result depends on, the probe's own source included."""
    source = inspect.getsource(probe)
    parts = [encoder.digest, data.fingerprint, probe.__name__, source, provenance, seed, draws, medjax.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def is_there(file: pathlib.Path, key: str) -> bool:
    """Whether `file` is a whole result with these settings."""
    found = read(file)
    return found is not None and found.get('key') == key and (file.parent / found['scores']).is_file()


def read(file: pathlib.Path) -> dict[str, Any] | None:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def write(file: pathlib.Path, result: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """The scores first, then the result that points to them, each whole or not at all."""
    scores = file.with_suffix('.npz')
    write_npz(scores, **arrays)
    hidden = file.with_name(f'.{file.name}.{os.getpid()}')
    hidden.write_text(json.dumps(result | {'scores': scores.name}, indent=1, allow_nan=False))
    os.replace(hidden, file)


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
    shares = records.overlap(seen, data.split('test'))
    if not any(shares[kind] for kind in ('patient', 'image', 'pixels')):
        told = 'none of the test records was seen in pretraining'
    else:
        parts = {'patient': 'of a patient', 'image': 'with an id', 'pixels': 'with pixels'}
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
            result = read(path(run, folder.name, data.name, probe))
            if result and result['data_fingerprint'] == data.fingerprint:
                found.append(result)
    found.sort(key=lambda r: (list(probes).index(r['probe']), _order(r['encoder']['step'])))
    if not found:
        return ''
    bootstrap, labels = found[0]['bootstrap'], found[0]['results']['auroc']['mean']['labels']
    lines = [
        f'{data.name}, test split: {found[0]["records"]["test"]:,} records of {bootstrap["patients"]:,} patients; '
        f'means over {labels} label(s) with {100 * bootstrap["level"]:.0f} % intervals over patients',
        '',
        '| encoder | probe | ' + ' | '.join(COLUMNS.values()) + ' |',
        '|---|---|' + '---|' * len(COLUMNS),
    ]
    for result in found:
        step = result['encoder']['step']
        name = {'random': 'random init', 'pixels': 'raw pixels'}.get(step, f'step {step}')
        cells = [_cell(result['results'][metric]['mean']) for metric in COLUMNS]
        lines.append(f'| {name} | {result["probe"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _order(step: int | str) -> tuple[bool, str, int]:
    """Baselines first, steps by number."""
    return (False, step, 0) if isinstance(step, str) else (True, '', step)


def _cell(at: dict[str, Any]) -> str:
    interval = '' if at['low'] is None else f' [{_short(at["low"])}, {_short(at["high"])}]'
    return _short(at['value']) + interval


def _short(value: float) -> str:
    """.842, as papers print it."""
    return f'{value:.3f}'.removeprefix('0')
