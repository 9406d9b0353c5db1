"""The results of probes on disk, and as a table.

RUN/probes/<encoder>/<data>.<probe>.json holds a result, the .npz beside it the scores. <encoder> is the step of an
export, 'random' or 'pixels', or the name of an encoder that was probed beside the run. <data> is the name of the data
set. If the run already has results of another data set with this name, <data> is the name and the first digits of the
data set's fingerprint: 'shapes-1f0c9a'.
"""

from __future__ import annotations

import glob
import hashlib
import inspect
import json
import pathlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

import medjax
from medjax import files
from medjax.data.audit.seen import overlap
from medjax.probes.encode import BASELINES, Encoder, title
from medjax.probes.evaluate import ProbeInputs

KINDS = dict(percentile='bootstrap percentiles', bca='bootstrap, BCa')
DIGITS = 6  # of a data set's fingerprint in a file name
METRIC_TITLES = {
    'auroc': 'AUROC',
    'auprc': 'AUPRC',
    'accuracy': 'accuracy',
    'balanced_accuracy': 'balanced accuracy',
    'adjusted_auprc': 'adjusted AUPRC',
    'mcc': 'MCC',
    'dice': 'Dice',
    'iou': 'IoU',
    'false_alarms': 'false alarms',
    'pointing': 'pointing game',
    'cnr': 'CNR',
    'signed_cnr': 'signed CNR',
    'r2': 'R2',
    'mae': 'MAE',
    'quadratic_kappa': 'quadratic kappa',
    'mean_error': 'mean error',
    'conflicting_auroc': 'conflicting AUROC',
    'aligned_auroc': 'aligned AUROC',
    'column_auroc': 'AUROC of the column',
}
NOT_IN_TABLES = ('adjusted_auprc', 'mcc')  # the JSON has them; tables stay narrow
SEEN = dict(patient='the patient', image='the image (by its id)', pixels='the pixels', near='a near-duplicate')


def path(run: pathlib.Path, encoder: int | str, data: str, probe: str) -> pathlib.Path:
    """RUN/probes/<encoder>/<data>.<probe>.json."""
    return run / 'probes' / str(encoder) / f'{data}.{probe}.json'


def key(inputs: ProbeInputs, probe: ModuleType, dependencies: Mapping[str, Any]) -> str:
    """A digest of everything that a result depends on, the source of the probe's module included."""
    module = [probe.__name__, inspect.getsource(probe)]
    values = [inputs.encoder.digest, inputs.data.fingerprint, *module, dependencies, inputs.options]
    return hashlib.sha256(json.dumps([*values, medjax.__version__], sort_keys=True).encode()).hexdigest()[:32]


def exists(file: pathlib.Path, key: str, needs: Sequence[str] = ()) -> bool:
    """True if a whole result with this key exists: in `file`, or in one with a fingerprint in its name.

    `needs` are entries that it must have and that are not empty; a result may lack some.
    """
    data, _, probe = file.stem.rpartition('.')
    longer = sorted(file.parent.glob(f'{glob.escape(data)}-{"?" * DIGITS}.{glob.escape(probe)}.json'))
    results = filter(None, map(read, (file, *longer)))
    return any(
        result.get('key') == key
        and (file.parent / result['scores']).is_file()
        and all(result.get(name) for name in needs)
        for result in results
    )


def read(file: pathlib.Path) -> dict[str, Any] | None:
    """The content of a result file; None if it is missing or damaged."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        return None


def write(file: pathlib.Path, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Writes the arrays, then the result that names their file. Each file is written whole or not at all."""
    data, fingerprint = content.get('data', ''), content.get('data_fingerprint', '')
    if _is_taken(file.parents[1], data, fingerprint):
        longer = _with_digits(data, fingerprint)
        file = file.with_name(longer + file.name.removeprefix(data))
        content = content | {'data': longer}
    scores = file.with_suffix('.npz')
    with files.writing(f'the result {file}'):
        files.write_npz(scores, **arrays)
        files.write_json(file, content | {'scores': scores.name})


def _is_taken(probes: pathlib.Path, data: str, fingerprint: str) -> bool:
    """True if the run has a result of another data set with this name."""
    results = filter(None, map(read, probes.glob(f'*/{glob.escape(data)}.*.json')))
    return any(r.get('data') == data and r.get('data_fingerprint') != fingerprint for r in results)


def _with_digits(data: str, fingerprint: str) -> str:
    return f'{data}-{fingerprint[:DIGITS]}'


def provenance(run: pathlib.Path, encoder: Encoder, data: Any) -> dict[str, Any]:
    """The overlap of the test split with the encoder's training data: {'overlap': shares, 'provenance': a sentence}.

    `run` is the run of the encoder. `overlap` is empty for a baseline, and if the overlap is unknown.
    """
    if encoder.name in BASELINES:
        return dict(overlap={}, provenance='not trained, so no overlap with pretraining')
    if origin := encoder.meta.get('origin'):
        sentence = f'overlap with pretraining unknown: these are public weights ({origin})'
        return dict(overlap={}, provenance=sentence)
    seen = run / 'data' / 'seen.npz'
    if not seen.is_file():
        return dict(overlap={}, provenance='overlap with pretraining unknown: the run has no data/seen.npz')
    digest = encoder.meta.get('seen')
    if digest and digest != hashlib.sha256(seen.read_bytes()).hexdigest():
        why = f'data/seen.npz is not the one that export {encoder.name} was trained on'
        return dict(overlap={}, provenance=f'overlap with pretraining unknown: {why}')
    shares = overlap(seen, data.split('test'))
    return dict(overlap=shares, provenance=overlap_sentence(shares))


def overlap_sentence(shares: Mapping[str, Any]) -> str:
    """A sentence about the shares that `medjax.data.audit.seen.overlap` returns."""
    if any(shares.get(kind) for kind in SEEN):
        phrases = [
            f'{name} of {100 * shares[kind]:.1f} %' for kind, name in SEEN.items() if shares.get(kind) is not None
        ]
        sentence = f'pretraining saw {", ".join(phrases)} of the test records'
    else:
        sentence = 'pretraining saw none of the test records, by all hashes that can be compared'
    if unknown := shares.get('unknown'):
        sentence += f'; it began with weights whose training data are unknown ({", ".join(unknown)})'
    if not shares.get('comparable', True):
        sentence += '; ids were hashed with different keys, so not all patients and images can be compared'
    return sentence


def on_data(run: pathlib.Path, data: Any, probes: Sequence[str]) -> list[dict[str, Any]]:
    """The contents of all results on a data set."""
    encoders = sorted(folder.name for folder in (run / 'probes').iterdir())
    found = [of_encoder(run, encoder, data, probe) for encoder in encoders for probe in probes]
    return [result for result in found if result is not None]


def of_encoder(run: pathlib.Path, encoder: int | str, data: Any, probe: str) -> dict[str, Any] | None:
    """The content of the result of one encoder on a data set; None if there is none."""
    names = (_with_digits(data.name, data.fingerprint), data.name)
    candidates = filter(None, (read(path(run, encoder, name, probe)) for name in names))
    return next((result for result in candidates if result['data_fingerprint'] == data.fingerprint), None)


def left_out(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each reason why probes leave out labels: 'knn, linear leave out rare: no positive record in test'.

    Labels with one reason share a sentence. The reasons depend on the data, so all encoders of a probe have the same.
    """
    labels_by_reason: dict[str, dict[str, list[str]]] = {}  # probe -> reason -> labels
    for result in results:
        by_reason: dict[str, list[str]] = {}
        for label, reason in result.get('skipped_labels', {}).items():
            by_reason.setdefault(reason, []).append(label)
        labels_by_reason[result['probe']] = by_reason
    probes: dict[tuple[str, str], list[str]] = {}  # (reason, labels) -> probes
    for probe, by_reason in labels_by_reason.items():
        for reason, labels in by_reason.items():
            probes.setdefault((reason, ', '.join(labels)), []).append(probe)
    return [
        f'{", ".join(names)} leave{"s" if len(names) == 1 else ""} out {labels}: {reason}'
        for (reason, labels), names in probes.items()
    ]


def tables(results: Sequence[Mapping[str, Any]], probes: Sequence[str]) -> str:
    """The contents of results on one data set as Markdown, means over labels with their intervals.

    Probes come in the order of `probes`, and encoders as baselines, named encoders, steps. Probes whose first metric is
    one, as a mean over the same labels and units, share a table.
    """
    ordered = sorted(results, key=lambda r: (list(probes).index(r['probe']), _position(r['encoder']['step'])))
    tables: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in ordered:
        metric, rows = next(iter(result['results'].items()))
        caption = _pooled(result), result['bootstrap'].get('interval')
        tables.setdefault((metric, *caption, *rows), []).append(result)
    return '\n\n'.join(map(_one_table, tables.values()))


def _one_table(results: Sequence[Mapping[str, Any]]) -> str:
    bootstrap, rows = results[0]['bootstrap'], next(iter(results[0]['results'].values()))
    directions = ' and '.join(row for row in rows if row != 'mean')
    averaged = (
        f'{rows["mean"]["labels"]} {results[0].get("rows", "label")}(s)' if 'labels' in rows['mean'] else directions
    )
    if skipped := len(results[0].get('skipped_labels', ())):
        averaged += f' ({skipped} left out, see below)'
    metrics = dict.fromkeys(m for result in results for m in result['results'] if m not in NOT_IN_TABLES)
    lines = [
        f'{results[0]["data"]}, test split: {results[0]["records"]["test"]:,} records of '
        f'{bootstrap["patients"]:,} patients{_pooled(results[0])}; means over {averaged} with '
        f'{100 * bootstrap["level"]:.0f} % intervals over patients ({KINDS[bootstrap.get("interval", "percentile")]})',
        '',
        '| encoder | probe | ' + ' | '.join(METRIC_TITLES.get(metric, metric) for metric in metrics) + ' |',
        '|---|---|' + '---|' * len(metrics),
    ]
    for result in results:
        cells = [cell(result['results'].get(metric, {}).get('mean')) for metric in metrics]
        lines.append(f'| {title(result["encoder"]["step"])} | {result["probe"]} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _pooled(result: Mapping[str, Any]) -> str:
    """', scored by patient (450 of them, max over records)'; '' where records are scored."""
    about = result.get('unit', {})
    if about.get('unit', 'image') == 'image':
        return ''
    return f', scored by {about["unit"]} ({about["units"]:,} of them, {about["pool"]} over records)'


def _position(step: int | str) -> tuple[int, str, int]:
    """Sorts baselines first, then named encoders, then steps by number."""
    return (int(step not in BASELINES), step, 0) if isinstance(step, str) else (2, '', step)


def cell(estimate: dict[str, Any] | None) -> str:
    """An estimate with its interval, as .842 [.820, .864]; an empty text for None."""
    if estimate is None or estimate['value'] is None:
        return ''
    interval = '' if estimate['low'] is None else f' [{short(estimate["low"])}, {short(estimate["high"])}]'
    return short(estimate['value']) + interval


def short(value: float) -> str:
    """.842 and -.026, as papers print them."""
    text = f'{value:.3f}'
    return text.replace('0.', '.', 1) if abs(value) < 1 else text
