"""Test images on which a probe is most confidently wrong: positives with a low score, negatives with a high one.

Often such an image has a wrong label, burned-in text, or a finding that the label does not name. It shows what to look
at first. Images are read from the data set, and no key or name of a patient is shown.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from medjax.data.records import DataSet
from medjax.probes import policy, provenance
from medjax.probes.encode import title
from medjax.probes.results import probe_of
from medjax.reports import images
from medjax.reports.data_facts import OpenedData
from medjax.reports.pictures import Gallery, cell
from medjax.reports.run_files import ResultFile, Run
from medjax.weights import export

LABELS, EACH = 4, 3  # labels with the most positives; images of each kind
FIRST = ('linear', 'linear_sgd', 'classifier', 'knn', 'zero_shot')  # the probe that is shown is the first of these


class Case(NamedTuple):
    """A record whose score disagrees with its label."""

    record: int  # in the test split
    share: float  # of the records of the other class that have a less wrong score


def gather(run: Run, data: OpenedData) -> Gallery:
    """A row for each label: missed positives, then false alarms. Without rows, a sentence says why."""
    newest = run.newest_step()
    scored = [r for r in run.results if r.encoder == newest and r.scores is not None and probe_of(r.probe) in FIRST]
    if not scored:
        return Gallery(note='No export has scores of labels yet. `medjax probe` writes them with its results.')
    opened = {one.fingerprint: one for one in data.sets}
    here = [r for r in scored if r.content.get('data_fingerprint') in opened]
    if not here:
        return Gallery(
            note=f'The images of {scored[0].data} are not here. Give '
            f'the data set with --data DATA. {data.missing}'.strip()
        )
    result = min(here, key=lambda r: FIRST.index(probe_of(r.probe)))
    return of_result(run, result, opened[result.content['data_fingerprint']])


def of_result(run: Run, result: ResultFile, data: DataSet) -> Gallery:
    split, seen = data.split('test'), sees(run, result)
    with np.load(result.scores, allow_pickle=False) as file:
        if not {'scores', 'labels', 'names', 'patient'} <= set(file.files):
            return Gallery(note=f'{result.probe} on {result.data} keeps no scores of labels.')
        scores, labels, names, patients = (file[key] for key in ('scores', 'labels', 'names', 'patient'))
        unit = file['unit'] if 'unit' in file.files else np.arange(len(scores))
    if len(unit) != len(split) or int(unit.max(initial=0)) + 1 != len(scores):
        return Gallery(
            note=f'The scores of {result.probe} on {result.data} are of other records than those of the data set.'
        )
    record = np.unique(unit, return_index=True)[1]  # the first image of each unit
    rows = []
    for j in np.argsort(-(labels == 1).sum(0), kind='stable')[:LABELS]:
        name = str(names[j])
        missed, alarms = (worst(scores[:, j], labels[:, j], patients, positive) for positive in (True, False))
        row = [
            picture(split, record[case.record], case, f'{name}: missed', 'negatives have a higher score', seen)
            for case in missed
        ]
        row += [
            picture(split, record[case.record], case, f'{name}: false alarm', 'positives have a lower score', seen)
            for case in alarms
        ]
        if row:
            rows.append(row)
    counted = (
        ''
        if len(scores) == len(split)
        else f' Of each {result.content.get("unit", {}).get("unit", "unit")} the first image is shown.'
    )
    note = (
        f'{result.probe} of {title(result.encoder)}{provenance.mark(result.content)} '
        f'on test images of {result.data}. Left: images with '
        'the label and the lowest scores. Right: images without it and the highest scores. At most one image of a '
        'patient in each half. The number is the share of records of '
        'the other class that have a less wrong score: at 100 % the '
        f'image is wrong against all of them. Look at them first: the label may be wrong, or the probe.{counted}'
    )
    return Gallery(rows, note)


def worst(scores: np.ndarray, labels: np.ndarray, patients: np.ndarray, positive: bool) -> list[Case]:
    """The most wrong records of one class, each of another patient, for scores [n], labels int8 [n], patients [n].

    A record is wrong if at least half of the other class has a less wrong score.
    """
    known = policy.known(labels) & np.isfinite(scores)
    own, other = (
        np.flatnonzero(known & ((labels == 1) == positive)),
        np.sort(scores[known & ((labels == 1) != positive)]),
    )
    if not len(own) or not len(other):
        return []
    wrong = -scores[own] if positive else scores[own]
    order = own[np.argsort(-wrong, kind='stable')]
    first = np.sort(np.unique(patients[order], return_index=True)[1])[:EACH]
    cases = []
    for i in order[first]:
        above = (
            len(other) - np.searchsorted(other, scores[i], 'right')
            if positive
            else np.searchsorted(other, scores[i], 'left')
        )
        cases.append(Case(int(i), float(above / len(other))))
    return [case for case in cases if case.share >= 0.5]


def picture(split: Any, record: int, case: Case, what: str, of: str, seen: dict[str, Any]) -> dict[str, Any]:
    shown = images.centre(split[int(record)].image, **seen)
    return cell(shown, what, number=f'{100 * case.share:.0f} % of the {of}')


def sees(run: Run, result: ResultFile) -> dict[str, Any]:
    """What the encoder sees of an image: fit and zoom, as its export says; {} if it is gone."""
    folder = run.path / 'exports' / str(result.encoder)
    if not (folder / 'meta.json').is_file():
        return {}
    image = export.read_meta(folder)['image']
    return {key: image[key] for key in ('fit', 'zoom') if key in image}
