"""Writes the report of a phantom study: its findings with place, size and change, and the absent findings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medjax.data.phantom.findings import FINDINGS, Finding, Status

ABSENT = dict(
    nodule=('No nodule.', 'There is no pulmonary nodule.', 'No suspicious nodule is seen.'),
    consolidation=('No consolidation.', 'No focal consolidation is seen.', 'There is no consolidation.'),
    effusion=('No pleural effusion.', 'There is no pleural effusion.', 'No effusion on either side.'),
    pneumothorax=('No pneumothorax.', 'There is no pneumothorax.', 'No pneumothorax is seen.'),
    cardiomegaly=('The heart is of normal size.', 'Heart size is normal.', 'No cardiomegaly.'),
)
REASONS = dict(  # for the study, if the patient has the finding
    nodule=('weight loss', 'haemoptysis'),
    consolidation=('fever and cough', 'suspected pneumonia'),
    effusion=('shortness of breath', 'dullness at the base'),
    pneumothorax=('sudden chest pain', 'chest pain after a fall'),
    cardiomegaly=('swollen legs', 'shortness of breath on exertion'),
)
GENERAL_REASONS = ('cough', 'preoperative assessment', 'chest pain', 'shortness of breath', 'routine check')
CHANGES = dict(new='which is new', larger='larger than before', smaller='smaller than before', unchanged='unchanged')


def write(
    rng: np.random.Generator, status: Status, age: int, sex: str, days: int, view: str, tube: bool
) -> dict[str, str]:
    """Writes the sections indication, comparison, findings and impression.

    days: since the last study; 0 means that there is none.
    view: the projection of this image, 'PA', 'AP' or 'lateral'.
    rng: that of the study, so all its images get the same text, except for the sentence on the technique.
    """
    reasons = [reason for name in status.present for reason in REASONS[name]] if rng.random() < 0.6 else []
    reason = _pick(rng, reasons or GENERAL_REASONS)
    sentences = [_sentence(rng, name, status) for name in FINDINGS]
    sentences = [sentences[i] for i in rng.permutation(len(sentences))]
    technique = 'Lateral view.' if view == 'lateral' else f'Frontal view, {view}.'
    return dict(
        indication=f'{age}-year-old {dict(F="woman", M="man")[sex]}: {reason}.',
        comparison=f'Radiograph of {days} days before.' if days else 'None.',
        findings=' '.join([technique, *sentences, *(['A chest tube is in place.'] if tube else [])]),
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
    return f'{grade(name, finding.size)} {finding.side} {_noun(name)}'


def grade(name: str, size: float) -> str:
    """The size of a finding as an adjective: 'small', 'moderate', 'large'."""
    adjectives, (low, high) = dict(
        effusion=(('small', 'moderate', 'large'), (3.8, 5.6)),
        pneumothorax=(('small', 'moderate', 'large'), (0.17, 0.24)),
        cardiomegaly=(('mild', 'moderate', 'marked'), (0.59, 0.63)),
    )[name]
    return adjectives[(size >= low) + (size >= high)]


def _sentence(rng: np.random.Generator, name: str, status: Status) -> str:
    """One sentence about one finding, with its change where there is an earlier study."""
    change = status.change.get(name)
    if name not in status.present:
        resolved = f'The {_noun(name)} seen before has resolved. ' if change == 'resolved' else ''
        return resolved + _pick(rng, ABSENT[name])
    description = describe(name, status.present[name])
    article = '' if name == 'cardiomegaly' else 'An ' if description[0] in 'aeiou8' else 'A '
    start = f'{article}{description}' if article else description.capitalize()
    if change is not None:
        return f'{start}, {CHANGES[change]}.'
    return f'{start}.' if rng.random() < 0.5 or not article else f'There is {start[0].lower()}{start[1:]}.'


def _impression(status: Status) -> str:
    sentences = []
    for name in FINDINGS:
        change = status.change.get(name)
        if name in status.present:
            description = describe(name, status.present[name])
            sentences.append(description[0].upper() + description[1:] + (f', {change}' if change else '') + '.')
        elif change == 'resolved':
            sentences.append(f'Resolved {_noun(name)}.')
    return ' '.join(sentences if status.present else [*sentences, 'No acute findings.'])


def _noun(name: str) -> str:
    return 'pleural effusion' if name == 'effusion' else name


def _pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]
