"""The report of a phantom study, in sections: what is there, where, how large, what has changed, what is not there."""

from __future__ import annotations

import numpy as np

from medjax.data.phantom.findings import FINDINGS, Finding, Status

ABSENT = dict(
    nodule=('No nodule.', 'There is no pulmonary nodule.', 'No suspicious nodule is seen.'),
    consolidation=('No consolidation.', 'No focal consolidation is seen.', 'There is no consolidation.'),
    effusion=('No pleural effusion.', 'There is no pleural effusion.', 'No effusion on either side.'),
    pneumothorax=('No pneumothorax.', 'There is no pneumothorax.', 'No pneumothorax is seen.'),
    cardiomegaly=('The heart is of normal size.', 'Heart size is normal.', 'No cardiomegaly.'),
)
REASONS = dict(
    nodule=('weight loss', 'haemoptysis'),
    consolidation=('fever and cough', 'suspected pneumonia'),
    effusion=('shortness of breath', 'dullness at the base'),
    pneumothorax=('sudden chest pain', 'chest pain after a fall'),
    cardiomegaly=('swollen legs', 'shortness of breath on exertion'),
)
ANYTHING = ('cough', 'preoperative assessment', 'chest pain', 'shortness of breath', 'routine check')


def write(
    rng: np.random.Generator, status: Status, age: int, sex: str, days: int, view: str, tube: bool
) -> dict[str, str]:
    """Sections of one study. `days` since the study before, 0 if there is none; `view` is this picture's projection.

    Every picture of a study gets the same words but for the technique, because `rng` is the study's.
    """
    reasons = [word for name in status.present for word in REASONS[name]] if rng.random() < 0.6 else []
    reason = _pick(rng, reasons or ANYTHING)
    seen = [_sentence(rng, name, status) for name in FINDINGS]
    order = rng.permutation(len(seen))
    technique = 'Lateral view.' if view == 'lateral' else f'Frontal view, {view}.'
    return dict(
        indication=f'{age}-year-old {dict(F="woman", M="man")[sex]}: {reason}.',
        comparison=f'Radiograph of {days} days before.' if days else 'None.',
        findings=' '.join([technique, *(seen[i] for i in order), *(['A chest tube is in place.'] if tube else [])]),
        impression=_impression(status),
    )


def describe(name: str, finding: Finding) -> str:
    """'2.1 cm nodule in the right upper zone', 'small left pleural effusion'."""
    if name == 'nodule':
        return f'{finding.size:.1f} cm nodule in the {finding.side} {finding.zone} zone'
    if name == 'consolidation':
        return f'{finding.size:.0f} cm consolidation in the {finding.side} {finding.zone} zone'
    if name == 'cardiomegaly':
        return f'{grade(name, finding.size)} cardiomegaly'
    return f'{grade(name, finding.size)} {finding.side} {dict(effusion="pleural effusion").get(name, name)}'


def grade(name: str, size: float) -> str:
    words, (low, high) = dict(
        effusion=(('small', 'moderate', 'large'), (3.8, 5.6)),
        pneumothorax=(('small', 'moderate', 'large'), (0.17, 0.24)),
        cardiomegaly=(('mild', 'moderate', 'marked'), (0.59, 0.63)),
    )[name]
    return words[(size >= low) + (size >= high)]


def _sentence(rng: np.random.Generator, name: str, status: Status) -> str:
    """One sentence on one finding, with its change where there is a study before."""
    if name not in status.present:
        gone = f'The {_noun(name)} seen before has resolved. ' if status.change.get(name) == 'resolved' else ''
        return gone + _pick(rng, ABSENT[name])
    what = describe(name, status.present[name])
    article = 'An' if what[0] in 'aeiou8' else 'A'
    if name == 'cardiomegaly':
        article, start = '', what.capitalize()
    else:
        start = f'{article} {what}'
    change = status.change.get(name)
    if change is None:
        return f'{start}.' if rng.random() < 0.5 or not article else f'There is {start[0].lower()}{start[1:]}.'
    return (
        f'{start}, '
        + dict(new='which is new', larger='larger than before', smaller='smaller than before', unchanged='unchanged')[
            change
        ]
        + '.'
    )


def _impression(status: Status) -> str:
    lines = []
    for name in FINDINGS:
        change = status.change.get(name)
        if name in status.present:
            what = describe(name, status.present[name])
            lines.append(what[0].upper() + what[1:] + (f', {change}' if change else '') + '.')
        elif change == 'resolved':
            lines.append(f'Resolved {_noun(name)}.')
    return ' '.join(lines) if status.present else ' '.join([*lines, 'No acute findings.'])


def _noun(name: str) -> str:
    return 'pleural effusion' if name == 'effusion' else name


def _pick(rng: np.random.Generator, words) -> str:
    return words[int(rng.integers(len(words)))]
