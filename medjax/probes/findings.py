"""Findings of a chest radiograph in its report, by rules: for the F1 of generated reports.

    findings.label('No effusion. Possible pneumonia.')   # {'Pleural Effusion': 0, 'Pneumonia': -1}

The findings are the 14 of CheXpert (arXiv 1901.07031), and the rules are of its kind and of NegEx's (Chapman 2001):
phrases name a finding, words before or after it in the same clause deny it or make it uncertain. The phrases are ours,
for reports in English. It is no replacement of CheXbert (arXiv 2004.09167) or RadGraph: their models cannot be shipped,
so figures of this labeller are comparable with each other and not with published ones.
"""

from __future__ import annotations

import re

from medjax.data.releases.coding import CHEXPERT_LABELS
from medjax.data.text import language

POSITIVE, NEGATIVE, UNCERTAIN = 1, 0, -1  # as in the tables of CheXpert; a finding that is not mentioned has none
NO_FINDING, DEVICES = 'No Finding', 'Support Devices'
FINDINGS = tuple(name for name in CHEXPERT_LABELS if name != NO_FINDING)


def _any(phrases: str, before: str = r'\b', after: str = r'\b') -> re.Pattern[str]:
    """One of the phrases, which are divided by |; a space in one of them stands for any white space."""
    return re.compile(f'{before}(?:{" ".join(phrases.split())}){after}'.replace(' ', r'\s+'), re.I)


PHRASES = {
    'Enlarged Cardiomediastinum': _any(
        r'widen(?:ed|ing)(?: of)?(?: the)?(?: upper| superior)? mediastin\w+|mediastinal (?:widening|enlargement)|'
        r'mediastin\w+(?: silhouette| contour)?(?: is| are| appears?)?(?: mildly| moderately| markedly)?'
        r' (?:widened|enlarged|prominent)|enlarged cardiomediastin\w+'
    ),
    'Cardiomegaly': _any(
        r'cardiomegaly|(?:enlarged|enlargement of the|large) (?:heart|cardiac(?: silhouette)?)|'
        r'(?:heart|cardiac silhouette|cardiac)(?: size)?(?: is| are| remains?| appears?)?(?: again| still)?'
        r'(?: mildly| moderately| severely| markedly| slightly| borderline)? (?:enlarged|increased)'
    ),
    'Lung Opacity': _any(r'opacit(?:y|ies)|opacifications?|infiltrat(?:es?|ion)|airspace disease|air space disease'),
    'Lung Lesion': _any(
        r'nodul(?:es?|ar)|mass(?:es)?|cavitary lesions?|(?:lung|pulmonary|hilar|lobe) (?:lesions?|tumou?rs?)'
    ),
    'Edema': _any(
        r'o?edema|vascular congestion|pulmonary congestion|fluid overload|heart failure|kerley b?(?: lines)?'
    ),
    'Consolidation': _any(r'consolidat\w+'),
    'Pneumonia': _any(r'(?:broncho)?pneumonias?|infectious process'),
    'Atelectasis': _any(
        r'atelecta\w+|(?:lobar|lung|lobe) collapse|collapse of the (?:left|right|lung|lower|upper|middle)'
    ),
    'Pneumothorax': _any(r'(?:hydro)?pneumothora(?:x|ces)'),
    'Pleural Effusion': _any(r'effusions?|pleural fluid|h(?:ydro|a?emo)thorax|hydropneumothorax'),
    'Pleural Other': _any(r'pleural (?:thickening|scarring|plaques?|calcifications?)|fibrothorax|pleural[- ]based'),
    'Fracture': _any(r'fractur\w+'),
    'Support Devices': _any(
        r'tubes?|catheters?|pacemakers?|icd|picc|central (?:venous )?line|port-a-cath|port|sternal wires|leads|stents?|'
        r'drains?|defibrillators?'
    ),
}
# Phrases that hold the word of a finding or a denial and are none.
_OTHER = _any(
    r'pericardial effusions?|joint effusions?|soft tissue edema|nipple shadows?|'
    r'port(?:able)?[- ]*(?:ap|chest|radiograph|film|view)|chest port(?:able)?|'
    r'(?:no|without)(?: significant| interval| appreciable| relevant)? (?:change|increase|decrease)'
)
_CLAUSE = _any(
    'but|however|although|though|except|aside from|apart from|which|whereas|while', before=r'[;:]|,?\s*\b'
)  # where a new clause begins
_DENIED_BEFORE = _any(
    'no|not|without|denies|absence of|absent|negative for|free of|clear of|lack of|never|neither|nor|resolved|'
    'resolution of|rather than|ruled out|rules out|removal of|removed'
)
_DENIED_AFTER = _any(
    r'(?:is|are|was|were|has|have) (?:not|no longer|been ruled out|been excluded|resolved|been removed)|'
    r'(?:has|have)(?: now| completely| since)? (?:resolved|cleared|been removed)|'
    r'not (?:seen|identified|present|evident|visuali[sz]ed)|absent|removed|excluded|ruled out',
    before=r'^[\w\s,/-]{0,40}\b',
)
_NOT_EXCLUDED = _any(r'(?:cannot|not|difficult to)\b[\w\s]{0,20}\b(?:excluded?|rule out)')
_UNCERTAIN_BEFORE = _any(
    r'possibl[ye]|may|might|could|probabl[ye]|suspect(?:ed)?|suspicious for|suspicion (?:of|for)|suggest\w*|'
    r'question(?:able)?|concern(?:ing)? for|worrisome for|likely|versus|vs|or|differential|equivocal|borderline|if|'
    r'perhaps|presumed|potential(?:ly)?'
)
_UNCERTAIN_AFTER = _any(
    r'cannot be(?: entirely| completely)? (?:excluded|ruled out)|'
    r'(?:is|are) (?:possible|suspected|questionable|likely|probable|equivocal|difficult to exclude)|'
    r'(?:may|might|could) be (?:present|seen|considered)|(?:is |are )?not(?: entirely| completely)? excluded',
    before=r'^[\w\s,/-]{0,40}\b',
)
_EITHER = _any('versus|vs|or', before=r'^\W{0,3}')
_NORMAL_HEART = _any(r'(?:heart|cardiac)[\w\s]{0,30}\b(?:normal|within normal limits|not enlarged|unremarkable)')


def label(report: str) -> dict[str, int]:
    """{finding: POSITIVE, UNCERTAIN or NEGATIVE} for what a report mentions; 'No Finding' is POSITIVE or not there.

    A finding that is mentioned several times is positive if one mention is, else uncertain if one is. A report has 'No
    Finding' if no finding but support devices is positive or uncertain.
    """
    found: dict[str, set[int]] = {}
    for sentence in language.sentences(report):
        for clause in _clauses(_OTHER.sub(' ', sentence)):
            for name, phrase in PHRASES.items():
                for match in phrase.finditer(clause):
                    found.setdefault(name, set()).add(_mention(clause[: match.start()], clause[match.end() :]))
            if _NORMAL_HEART.search(clause):
                found.setdefault('Cardiomegaly', set()).add(NEGATIVE)
    labels = {name: next(x for x in (POSITIVE, UNCERTAIN, NEGATIVE) if x in found[name]) for name in found}
    if not any(value in (POSITIVE, UNCERTAIN) for name, value in labels.items() if name != DEVICES):
        labels[NO_FINDING] = POSITIVE
    return labels


def _clauses(sentence: str) -> list[str]:
    """The parts of a sentence in which a word denies a finding."""
    return [part for part in _CLAUSE.split(sentence) if part.strip()]


def _mention(before: str, after: str) -> int:
    """What a clause says of the finding between these two parts of it."""
    denied = _DENIED_BEFORE.search(before)
    if _NOT_EXCLUDED.search(before) or (_UNCERTAIN_AFTER.search(after) and not denied):
        return UNCERTAIN
    if denied or _DENIED_AFTER.search(after):
        return NEGATIVE
    return UNCERTAIN if _UNCERTAIN_BEFORE.search(before) or _EITHER.search(after) else POSITIVE
