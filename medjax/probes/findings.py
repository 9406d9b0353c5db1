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

PHRASES = {
    'Enlarged Cardiomediastinum': r'(widen(ed|ing)( of)?( the)?( upper| superior)? mediastin\w+|(mediastin\w+|cardiomediastin\w+'
    r'( silhouette| contour)?) (is |are |appears? )?(mildly |moderately |markedly )?(widened|enlarged|prominent)'
    r'|mediastinal (widening|enlargement)|enlarged cardiomediastin\w+)',
    'Cardiomegaly': r'(cardiomegaly|(enlarged|enlargement of the|large) (heart|cardiac( silhouette)?)'
    r'|(heart|cardiac silhouette|heart size|cardiac size) (size )?(is |are |remains? |appears? )?(again |still )?'
    r'(mildly |moderately |severely |markedly |slightly |borderline )?(enlarged|increased))',
    'Lung Opacity': r'(opacit(y|ies)|opacification\w*|infiltrat(es?|ion)|airspace disease|air space disease)',
    'Lung Lesion': r'(nodul(es?|ar)|(lung|pulmonary|hilar|lobe) (mass(es)?|lesions?|tumou?rs?)|\bmass(es)?\b|cavitary lesions?)',
    'Edema': r'(o?edema|vascular congestion|pulmonary congestion|fluid overload|heart failure|kerley b? ?lines)',
    'Consolidation': r'(consolidat\w+)',
    'Pneumonia': r'(pneumonias?|infectious process|bronchopneumonia)',
    'Atelectasis': r'(atelecta\w+|(lobar|lung|lobe) collapse|collapse of the (left|right|lung|lower|upper|middle)\w*)',
    'Pneumothorax': r'(pneumothora(x|ces)|hydropneumothorax)',
    'Pleural Effusion': r'(effusions?|pleural fluid|hydrothorax|h(a?)emothorax|hydropneumothorax)',
    'Pleural Other': r'(pleural (thickening|scarring|plaques?|calcifications?)|fibrothorax|pleural[- ]based)',
    'Fracture': r'(fractur\w+)',
    'Support Devices': r'(tubes?|catheters?|pacemakers?|icd|picc|central (venous )?line|port-a-cath|port|sternal wires'
    r'|(endotracheal|nasogastric|enteric|chest|feeding) tube|leads|stents?|drains?|defibrillator)',
}  # fmt: skip
_PHRASES = {name: re.compile(rf'\b{phrase}', re.I) for name, phrase in PHRASES.items()}
# Phrases that hold the word of a finding and do not name it.
_OTHER = re.compile(
    r'pericardial effusions?|joint effusions?|(free|post|status post) fracture fixation|soft tissue edema|chest port(able)?\b'
    r'|port(able)?[- ]+(ap|chest|radiograph|film|view)|nodular? shadows of the nipples?|nipple shadows?'
    r'|(to )?(exclude|evaluate for|assess for|r/o) [\w\s]{0,30}\?',
    re.I,
)
_CLAUSE = re.compile(r'[;:]|,? \b(?:but|however|although|though|except|aside from|apart from|which|whereas|while)\b|,(?= (?:there|the|heart|lungs?) )', re.I)  # fmt: skip
_DENIED_BEFORE = re.compile(
    r'\b(no|not|without|denies|absence of|absent|negative for|free of|clear of|lack of|never|neither|nor|resolved'
    r'|resolution of|rather than|ruled out|rules out|removal of|removed|interval extubation)\b',
    re.I,
)
_DENIED_AFTER = re.compile(
    r'^[\w\s,/-]{0,40}\b((is|are|was|were|has|have) (not|no longer|been ruled out|been excluded|resolved|been removed)'
    r'|(has|have) (now |completely |since )?(resolved|cleared|been removed)|not (seen|identified|present|evident|visuali[sz]ed)'
    r'|absent|removed|excluded|ruled out)',
    re.I,
)
_UNCERTAIN_BEFORE = re.compile(
    r'\b(possibl[ye]|may|might|could|probabl[ye]|suspect(ed)?|suspicious for|suspicion (of|for)|suggest\w*|question(able)?'
    r'( of)?|concern(ing)? for|worrisome for|likely|versus|vs|or|differential|cannot (be )?(exclude|rule out|ruled out)'
    r'|(not|cannot) (be )?(entirely |completely )?exclude|equivocal|borderline|if|perhaps|presumed|potential(ly)?'
    r'|difficult to exclude)\b',
    re.I,
)
_UNCERTAIN_AFTER = re.compile(
    r'^[\w\s,/-]{0,40}\b(cannot be (entirely |completely )?(excluded|ruled out)|(is|are) (not|difficult to be) (entirely '
    r'|completely )?excluded|(is|are) (possible|suspected|questionable|likely|probable|equivocal|not excluded|difficult to exclude)'
    r'|(may|might|could) be|not (entirely |completely )?excluded|versus|vs\b|or\b)',
    re.I,
)
_LIST = re.compile(r'^(,| and| or|/| nor|\s|\w){0,60}$')
_NORMAL_HEART = re.compile(
    r'\b(heart|cardiac)[\w\s]{0,30}\b(normal|within normal limits|not enlarged|unremarkable)\b', re.I
)


def label(report: str) -> dict[str, int]:
    """{finding: POSITIVE, UNCERTAIN or NEGATIVE} for what a report mentions; 'No Finding' is POSITIVE or not there.

    A finding that is mentioned several times is positive if one mention is, else uncertain if one is. A report has 'No
    Finding' if no finding but support devices is positive or uncertain.
    """
    found: dict[str, set[int]] = {}
    for sentence in language.sentences(report):
        for clause in _clauses(_OTHER.sub(' ', sentence)):
            for name, phrase in _PHRASES.items():
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
    return [part for part in _CLAUSE.split(sentence) if part]


def _mention(before: str, after: str) -> int:
    """What a clause says of the finding between these two parts of it."""
    if _UNCERTAIN_AFTER.search(after) and not _DENIED_BEFORE.search(before):
        return UNCERTAIN
    if re.search(r'\b(cannot|not|difficult to)\b[\w\s]{0,20}\b(exclude|rule out)', before, re.I):
        return UNCERTAIN
    if _DENIED_BEFORE.search(before) or _DENIED_AFTER.search(after):
        return NEGATIVE
    return UNCERTAIN if _UNCERTAIN_BEFORE.search(before) else POSITIVE
