"""Where a result comes from: which of its test records the encoder saw in its training.

A value on records that the encoder was trained on may be too high. Such a result is contaminated. Every table and every
figure shows MARK beside its values, and `explanation` says once what the mark means.
"""

from __future__ import annotations

import hashlib
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import medjax
from medjax.data.audit.seen import overlap
from medjax.probes.encode import BASELINES, Encoder, title

MARK = '†'
START = f'{MARK} contaminated, so the value may be too high: '  # of an explanation
KINDS = dict(patient='the patient', image='the image (by its id)', pixels='the pixels', near='a near-duplicate')
COLUMN = 'seen in training'  # the title of the column of `seen`


def of(run: pathlib.Path, encoder: Encoder, data: Any) -> dict[str, Any]:
    """What a result says about its encoder and its data.

    overlap       the shares of the test records that training saw; {} for a baseline, and if they are unknown
    contaminated  whether any of them is above 0
    provenance    a sentence about the overlap
    started_from  names of weights that training began with and whose own training data are not known
    data_version, splits, medjax   the version of the data, whether their splits are given or drawn, and ours

    `run` is the run of the results. An export that lies in another run is that run's.
    """
    own = run_of(encoder) or (run if isinstance(encoder.name, int) else None)
    shares, sentence = _overlap(own or run, encoder, data, is_own=own is not None)
    begun = shares['unknown'] if 'unknown' in shares else starts(_config(own)) if own and not shares else []
    if begun:
        sentence += f'; training began with other weights ({", ".join(begun)}), and what these have seen is unknown'
    about = dict(data_version=data.version, splits=data.split_list, medjax=medjax.__version__)
    contaminated = is_contaminated(dict(overlap=shares))
    return dict(overlap=shares, contaminated=contaminated, provenance=sentence, started_from=begun) | about


def run_of(encoder: Encoder) -> pathlib.Path | None:
    """The run of an export that lies in its run, RUN/exports/STEP; None for other encoders."""
    folder = encoder.folder
    inside = folder is not None and folder.resolve().parent.name == 'exports'
    return folder.resolve().parents[1] if inside else None


def _overlap(run: pathlib.Path, encoder: Encoder, data: Any, is_own: bool) -> tuple[dict[str, Any], str]:
    if encoder.name in BASELINES:
        return {}, 'not trained, so no overlap with pretraining'
    if origin := encoder.meta.get('origin'):
        return {}, f'overlap with pretraining unknown: these are public weights ({origin})'
    seen = run / 'data' / 'seen.npz'
    if not seen.is_file():
        return {}, 'overlap with pretraining unknown: the run has no data/seen.npz'
    digest = encoder.meta.get('seen')
    if not digest and not is_own:
        return {}, 'overlap with pretraining unknown: the export does not lie in its run'
    if digest and digest != hashlib.sha256(seen.read_bytes()).hexdigest():
        why = f'data/seen.npz is not the one that export {encoder.name} was trained on'
        return {}, f'overlap with pretraining unknown: {why}'
    shares = overlap(seen, data.split('test'))
    return shares, overlap_sentence(shares)


def _config(run: pathlib.Path) -> Mapping[str, Any]:
    """RUN/config.json; {} if it is missing or damaged."""
    try:
        config = json.loads((run / 'config.json').read_text())
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def starts(config: Mapping[str, Any]) -> list[str]:
    """The names of the weights that a run began with, without the folders in front of them."""
    given = config.get('init_from') or []
    given = [given] if isinstance(given, Mapping) else list(given)
    teachers = config.get('teachers') or {}
    given += [one.get('init_from') for one in teachers.values()] if isinstance(teachers, Mapping) else []
    return [_name_of(str(one['path'])) for one in given if isinstance(one, Mapping) and one.get('path')]


def _name_of(path: str) -> str:
    """'demo, step 1000' for runs/demo/exports/1000, else the last name of a path."""
    names = re.split(r'[/\\]', path.rstrip('/\\'))
    return f'{names[-3]}, step {names[-1]}' if names[-2:-1] == ['exports'] and len(names) > 2 else names[-1]


def overlap_sentence(shares: Mapping[str, Any]) -> str:
    """A sentence about the shares that `medjax.data.audit.seen.overlap` returns."""
    if phrases := _phrases(shares):
        sentence = f'pretraining saw {", ".join(phrases)} of the test records'
    else:
        sentence = 'pretraining saw none of the test records, by all hashes that can be compared'
    if not shares.get('comparable', True):
        sentence += '; ids were hashed with different keys, so not all patients and images can be compared'
    return sentence


def overlap_note(content: Mapping[str, Any]) -> str:
    """What a result says of its overlap; older results have the shares alone, or nothing."""
    shares = content.get('overlap')
    return content.get('provenance') or (overlap_sentence(shares) if shares else 'overlap with pretraining unknown')


def _phrases(shares: Mapping[str, Any]) -> list[str]:
    """['the patient of 0.0 %', 'the pixels of 12.5 %']; [] if training saw no record."""
    known = {kind: share for kind in KINDS if (share := shares.get(kind)) is not None}
    return [f'{KINDS[kind]} of {_percent(share)}' for kind, share in known.items()] if any(known.values()) else []


def _percent(share: float) -> str:
    return '<0.1 %' if 0 < share < 0.0005 else f'{100 * share:.1f} %'


def is_contaminated(content: Mapping[str, Any]) -> bool:
    """Whether the encoder of a result saw any of the test records in its training."""
    untrained = content.get('encoder', {}).get('step') in BASELINES
    return not untrained and bool(_phrases(content.get('overlap') or {}))


def mark(content: Mapping[str, Any]) -> str:
    """What stands beside each value of a result: MARK, or nothing."""
    return MARK if is_contaminated(content) else ''


def is_unknown(content: Mapping[str, Any]) -> bool:
    """Whether nobody knows if the encoder of a result saw test records."""
    if content['encoder']['step'] in BASELINES or is_contaminated(content):
        return False
    return not content.get('overlap') or bool(content.get('started_from'))


def seen(content: Mapping[str, Any]) -> str:
    """The cell of a table: '0 %', '12.5 %†', 'unknown', or 'untrained' for a baseline."""
    if content['encoder']['step'] in BASELINES:
        return 'untrained'
    if is_contaminated(content):
        return _percent(max(content['overlap'].get(kind) or 0 for kind in KINDS)) + MARK
    return 'unknown' if is_unknown(content) else '0 %'


def explanation(contents: Iterable[Mapping[str, Any]]) -> str:
    """What the mark means, for the encoders of these results that have it; '' if none has it."""
    saw: dict[str, list[str]] = {}  # what was seen -> the encoders
    for content in contents:
        if is_contaminated(content):
            what = f'saw {", ".join(_phrases(content["overlap"]))} of the test records of {content["data"]} in training'
            saw.setdefault(what, []).append(title(content['encoder']['step']))
    listed = '; '.join(f'{", ".join(dict.fromkeys(names))} {what}' for what, names in saw.items())
    return f'{START}{listed}' if saw else ''
