"""The results of probes on disk.

RUN/probes/<encoder>/<data>.<probe>.json holds a result, the .npz beside it the scores. <encoder> is the step of an
export, 'random' or 'pixels', or the name of an encoder that was probed beside the run. <data> is the name of the data
set. If the run already has results of another data set with this name, <data> is the name and the first digits of the
data set's fingerprint: 'shapes-1f0c9a'.
"""

from __future__ import annotations

import glob
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

import medjax
from medjax import files
from medjax.data.text.prompts import ZERO_SHOT, ZeroShot
from medjax.probes import source_code
from medjax.probes.evaluate import ProbeInputs

DIGITS = 6  # in a file name, of the fingerprint of a data set and of the digest of a prompt file
METRIC_TITLES = {
    'auroc': 'AUROC',
    'auprc': 'AUPRC',
    'accuracy': 'accuracy',
    'balanced_accuracy': 'balanced accuracy',
    'adjusted_auprc': 'adjusted AUPRC',
    'mcc': 'MCC',
    'dice': 'Dice',
    'iou': 'IoU',
    'false_area': 'false area',
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
LESS_IS_BETTER = ('mae', 'error', 'false_area')  # and every FPR95
# An encoder that knows nothing loses nothing on films with faults. A mean error and a gap may have both signs.
NEITHER_IS_BETTER = ('mean_error', 'gap', 'drop', 'rise', 'column_auroc')


def direction(metric: str) -> int:
    """1 where a greater value of a metric is better, -1 where a smaller one is, 0 where neither is."""
    if metric in NEITHER_IS_BETTER:
        return 0
    return -1 if metric in LESS_IS_BETTER or metric.endswith('FPR95') else 1


def name(probe: str, prompts: ZeroShot | None) -> str:
    """The name of a probe in its results. Zero-shot has the prompt file in it: 'zero_shot-cxr-1f0c9a'.

    So the results of two prompt files stand beside each other. Before this, the name was 'zero_shot' alone.
    """
    if probe != ZERO_SHOT or prompts is None:
        return probe
    file = re.sub(r'[^\w-]+', '_', prompts.name) or 'prompts'
    return f'{probe}-{file}-{prompts.digest[:DIGITS]}'


def probe_of(name: str) -> str:
    """The probe of a result by its name: 'zero_shot' for 'zero_shot-cxr-1f0c9a'."""
    return ZERO_SHOT if name.startswith(f'{ZERO_SHOT}-') else name


def path(run: pathlib.Path, encoder: int | str, data: str, probe: str) -> pathlib.Path:
    """RUN/probes/<encoder>/<data>.<probe>.json."""
    return run / 'probes' / str(encoder) / f'{data}.{probe}.json'


def key(inputs: ProbeInputs, probe: ModuleType, dependencies: Mapping[str, Any]) -> str:
    """A digest of everything that a result depends on: also the version of medjax, and the source of the probe and of
    all modules of `medjax.probes` that it imports, directly or through others.
    """
    values = [inputs.encoder.digest, inputs.data.fingerprint, source_code.digest(probe), dependencies, inputs.options]
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
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


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


def cell(estimate: Mapping[str, Any] | None, mark: str = '') -> str:
    """An estimate with a mark and its interval, as .842† [.820, .864]; an empty text for None."""
    if estimate is None or estimate.get('value') is None:
        return ''
    low, high = estimate.get('low'), estimate.get('high')
    interval = '' if low is None or high is None else f' [{short(low)}, {short(high)}]'
    return short(estimate['value']) + mark + interval


def short_p(p: float) -> str:
    """A p-value with three digits: '.004', '<.001', '1'."""
    return '1' if p >= 1 else short(p) if p >= 0.001 else '<.001'


def short(value: float) -> str:
    """.842 and -.026, as papers print them."""
    text = f'{value:.3f}'
    return text.replace('0.', '.', 1) if abs(value) < 1 else text
