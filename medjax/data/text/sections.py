"""Radiology reports cut into sections.

    parse('INDICATION: Cough.  FINDINGS: Clear lungs. IMPRESSION: Normal.')
    -> {'indication': 'Cough.', 'findings': 'Clear lungs.', 'impression': 'Normal.'}

A heading is a name from `HEADINGS` at a place where headings are written (see `_colon_headings` and `_bare_heading`).
Any other text before a colon is prose: 'Heart size: normal' stays in its section. HTML, markdown and the line breaks of
other programs are read first (`markup`). `pieces` cuts the text and loses nothing. `parse` joins the pieces, without
those of `DROPPED`, which hold names, numbers and phone calls. This is no de-identification: a name inside a sentence
stays there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from medjax.data.text.language import clean, fold, sentence_ends
from medjax.data.text.markup import plain

# The sections of `parse`. 'report' is text under no other heading. 'preliminary' (a wet read) is a section of its own
# because the final report repeats or corrects it, 'addendum' because it corrects the report.
SECTIONS = ('findings', 'impression', 'indication', 'comparison', 'technique', 'recommendation', 'addendum')
SECTIONS += ('preliminary', 'report')
DROPPED = ('identity', 'notice')  # names of patient and doctors; phone calls and signatures
CONTEXT = ('indication', 'comparison', 'technique')  # written before the findings, in one paragraph each

# The names of the sections in English, Spanish, Portuguese, German and French. Case, accents and a number at the end do
# not matter. 'Findings and impression' counts as findings: it is too long for a summary.
HEADINGS = {
    'findings': """findings, finding, findings and impression, findings & impression, findings/impression,
        impression and findings, impression/findings, imaging findings, imaging notes, observations, results, result;
        hallazgos, hallazgos e impresión, descripción, resultado, resultados; achados, descrição, análise;
        Befund, Befunde, Befund und Beurteilung, Befund/Beurteilung; résultats, résultat, constatations, description""",
    'impression': """impression, impressions, final impression, conclusion, conclusions, summary, interpretation,
        opinion, diagnosis, final diagnosis, assessment, final assessment, overall assessment, assessment and plan,
        assessment/plan, impresson, imprssion, imression, impession;
        impresión, impresión diagnóstica, conclusión, conclusiones, juicio diagnóstico, diagnóstico, valoración;
        impressão, impressão diagnóstica, conclusão, conclusões, opinião, hipótese diagnóstica;
        Beurteilung, Gesamtbeurteilung, abschließende Beurteilung, Zusammenfassung, Bewertung, Gesamtbewertung;
        synthèse, interprétation, au total""",
    'indication': """indication, indications, clinical indication, history, clinical history, history/indication,
        clinical history/indication, reason, reason for exam, reason for examination, reason for this examination,
        reason for study, clinical information, clinical data, clinical details, clinical question,
        clinical impression, presentation, patient history, symptoms, history of present illness, medical condition,
        past medical history, underlying medical condition, admitting diagnosis, indicaton, idication, ndication;
        indicación, motivo, motivo de consulta, motivo de la exploración, datos clínicos, información clínica;
        indicação, indicação clínica, dados clínicos, informações clínicas, motivo do exame;
        klinische Angaben, klinische Angaben und Fragestellung, klinische Angaben/Fragestellung, klinische Information,
        klinische Fragestellung, Klinik, Fragestellung, Indikation, rechtfertigende Indikation, Anamnese;
        renseignements cliniques, contexte clinique, contexte, motif, motif de l'examen, histoire clinique""",
    'comparison': """comparison, comparisons, comparison study, comparison studies, comparison exam, prior studies,
        prior study, previous studies, comparision, comparsion, comparisson;
        comparación, estudio previo, estudios previos; comparação, exame anterior, exames anteriores;
        Vergleich, zum Vergleich, Voraufnahme, Voraufnahmen, Vorbefund, Vorbefunde, Voruntersuchung, Voruntersuchungen;
        comparaison, examen antérieur, examens antérieurs""",
    'technique': """technique, techniques, examination, exam, exams, study, studies, exam type, type of exam, views,
        view, study type, type of examination, procedure, procedure comments, protocol, contrast, dose, modality;
        técnica, exploración, estudio, prueba, procedimiento, tipo de estudio; exame, tipo de exame, método;
        Technik, Untersuchung, Untersuchungstechnik, Methode; examen, protocole""",
    'recommendation': """recommendation, recommendations, recommendation(s), suggestion, suggestions, management,
        management recommendation, management recommendations;
        recomendación, recomendaciones; recomendação, recomendações; Empfehlung, Empfehlungen, Procedere;
        recommandation, recommandations, conduite à tenir""",
    'addendum': 'addendum, addenda, final addendum; adenda; adendo; Nachtrag; complément',
    'preliminary': """wet read, wet read version, preliminary report, preliminary read, preliminary findings,
        preliminary impression, provisional findings impression, provisional findings impression (pfi), pfi;
        informe preliminar; laudo preliminar; vorläufiger Befund""",
    'report': """final report, report, radiology report, official report, narrative, discussion, end of impression;
        informe, informe radiológico; laudo, relatório; Bericht, Befundbericht; compte rendu, compte-rendu, rapport""",
    'identity': """patient, patient name, name, patient id, id, mrn, medical record number, unit no, dob, date of birth,
        birth date, age, sex, gender, address, phone, ssn, accession, accession number, accession no, exam number,
        order number, date, exam date, date of exam, date of service, study date, report date, date of report, dictated,
        dictated by, transcribed by, transcriptionist, signed, signed by, electronically signed,
        electronically signed by, approved by, verified by, reviewed by, read by, interpreted by, reported by,
        radiologist, resident, attending, attending physician, attending radiologist, physician, ordering physician,
        ordering provider, referring physician, referring provider, requesting physician, requested by;
        paciente, nombre, nombre del paciente, nhc, historia clínica, nº historia clínica, fecha de nacimiento, fecha,
        edad, sexo, médico, médico solicitante, firmado por, dictado por, validado por;
        nome, nome do paciente, prontuário, data de nascimento, data do exame, idade, laudado por, assinado por;
        Patientin, Geburtsdatum, geb., Fallnummer, Patientennummer, Datum, Arzt, Ärztin, befundet von, Überweiser;
        nom, prénom, patiente, date de naissance, ipp, âge, sexe, médecin, prescripteur, signé par, validé par""",
    'notice': """notification, notifications, notification(s), communication, communications, attestation,
        communication of critical results, critical results, critical result, teaching physician statement""",
}

# Headings that open a section and stay in its text, because they say something. Breast composition belongs to the
# findings. 'BI-RADS 2: Benign.' is the impression.
KEPT_HEADINGS = {
    'findings': """breast composition, breast density, breast tissue, breast tissue composition, breast tissue density,
        tissue density, composition, parenchymal pattern, breast parenchyma;
        composición mamaria, densidad mamaria, composición de la mama; composição mamária, densidade mamária;
        Brustdichte, Mammadichte, Drüsenparenchym, Parenchymdichte; densité mammaire, composition mammaire""",
    'impression': """bi-rads, birads, bi-rads assessment, bi-rads category, bi-rads assessment category,
        bi-rads final assessment, final bi-rads assessment, bi-rads classification, birads assessment, birads category,
        lung-rads, lung-rads category, li-rads, li-rads category, pi-rads score, assessment category""",
}
_ASSESSMENT = re.compile(
    r"""(?:(?:(?:right|left)\ breast|(?:rechte|linke)\ (?:brust|mamma)|sein\ (?:droit|gauche)
        |(?:mama|seio)\ (?:derecha|izquierda|direit[ao]|esquerd[ao])|bilateral|rechts|links)[\ :=-]+)?
    (?:(?:acr|final|overall|gesamt|classification|clasificaci[oó]n|classificação|categor[ií]a|cat[ée]gorie|kategorie
        |klassifikation|evaluaci[oó]n|avaliação)(?:\ final|\ de)?[ /-]){0,2}
    (?:(?:bi|lung|li|pi|ti|o|vi|cad|nodule)-?\ ?rads(?:®|™|\(r\))?(?:\ v?\d\.\d|\ 20\d\d)?
        | (?:assessment\ )?categor(?:y|ie|ía|ia)(?=[\ :]+(?:bi-?rads\ ?)?[0-6]))
    (?:[ :=-]+(?:final|overall|assessment|assessment\ category|category|cat\.?|score|classification|code|grade
        |kategorie|klassifikation|klasse|categor[ií]a|cat[ée]gorie|classificação|clasificación|bi-?rads|acr)\b){0,3}
    [\ :=-]*(?:(?:right|left|rechts|links|droite?|gauche)(?:\ breast)?[\ :=-]+)?
    (?:lr-?[1-5m]|[0-6][abcx]?|[ivx]{1,4}|s)
    (?=[ \t]*(?:$|[:.,;(/\n–—-]|and\b|und\b|right\b|left\b|bilateral|incomplete|negativ|benign|probably
        |suspicious|highly|known|wahrscheinlich|gutartig|suspe|prob|bénin|maligne))""",
    re.IGNORECASE | re.VERBOSE,
)

# The start of a sentence that is a notice. Only the start counts: 'Large pneumothorax, discussed with …' is a finding.
_VERBS = 'discussed|communicated|conveyed|relayed|telephoned|phoned|paged|called|e-?mailed|entered|posted|reported'
_NOTICE = re.compile(
    rf"""\W{{0,9}}(?:
    (?:electronically\ |digitally\ )?(?:dictated|transcribed|signed|approved|verified|interpreted|read)
        (?:\ and\ (?:electronically\ )?signed)?\ by\b
    | by\ electronically\ signing\b
    | (?:i|we)\b.{{0,80}}\b(?:reviewed|viewed|interpreted)\b.{{0,40}}\b(?:images?|study|studies|films?|examination)\b
    | (?:(?:the|this|these|above|critical|urgent|preliminary|pertinent|important|and)\ ){{0,4}}
        (?:findings?|results?|report|case|impression|information|wet\ read|recommendations?)\b.{{0,120}}
        \b(?:(?:{_VERBS})\ (?:with|to(?!\ be\b)|in\ person|into|via|over|on\ the)|(?:was|were|been)\ (?:{_VERBS})\ by)\b
    | (?:{_VERBS})\ (?:with|to|by|via|at|dr)\b
    | (?:drs?\.|doctor|(?:the\ )?(?:referring|ordering|covering|primary)?\ ?(?:physician|clinician|team|nurse))
        .{{0,80}}\b(?:notified|informed|paged|telephoned|made\ aware|called\ (?:at|by|on))\b
    | (?:firmado|dictado|validado|laudado|assinado)\ por\b | befundet\ von\b | gez\.\ | (?:signé|validé)\ par\b
    | (?:this|the)\ report\ (?:has\ been|was)\ (?:anonymi[sz]ed|de-?identified|electronically\ signed|dictated)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)


class Piece(NamedTuple):
    """A stretch of a report. The headings and texts of all pieces, joined, are `clean(report)`."""

    section: str  # one of SECTIONS or DROPPED
    heading: str  # as written, with its colon; '' if the piece continues a section or has no heading
    text: str


class _Heading(NamedTuple):
    start: int
    end: int
    section: str  # '' for a ruled line: the section continues after it
    opens: bool = False  # a heading without width also opens its section after the start of the findings


def parse(text: str) -> dict[str, str]:
    """Section -> its text in one line, in the order of the report. Absent sections have no key.

    A section that appears twice is joined. Pieces of identity and notice are left out.
    """
    words_of: dict[str, list[str]] = {}
    for piece in pieces(text):
        if piece.section not in DROPPED and (words := piece.text.split()):
            words_of.setdefault(piece.section, []).extend(words)
    return {section: ' '.join(words) for section, words in words_of.items()}


def pieces(text: str) -> list[Piece]:
    """The text in pieces, in order and without gaps, as plain text. Contains the pieces that `parse` leaves out."""
    text = clean(_marked_headings(plain(text)))
    headings = _without_subheadings(_headings(text))
    # Many reports have 'COMPARISON: None.', a blank line, then the findings without a heading. If the findings have a
    # heading, a second paragraph belongs to the section before it.
    one_paragraph = CONTEXT if all(heading.section != 'findings' for heading in headings) else ()
    cuts: list[Piece] = []
    section = 'report'
    for heading, following in pairwise([_Heading(0, 0, 'report'), *headings, _Heading(len(text), len(text), '')]):
        title, body = text[heading.start : heading.end], text[heading.end : following.start]
        if heading.section in DROPPED:
            end = _value_end(body) if heading.section == 'identity' else (_paragraph_end(body) or len(body))
            cuts.append(Piece(heading.section, title, body[:end]))
            title, body = '', body[end:]
        elif heading.section:
            section = heading.section
        if section in one_paragraph and (end := _paragraph_end(body)):
            cuts += _without_notices(section, title, body[:end])
            section, title, body = 'report', '', body[end:]
        cuts += _without_notices(section, title, body)
    return [piece for piece in cuts if piece.heading or piece.text]


_SECTION = {fold(name): section for section, names in HEADINGS.items() for name in re.split('[,;]', names)}
_KEPT = {fold(name): section for section, names in KEPT_HEADINGS.items() for name in re.split('[,;]', names)}
_FIRST, _LAST = (
    frozenset(name.split()[0] for name in _SECTION),
    frozenset(name.split()[-1] for name in (*_SECTION, *_KEPT)),
)
_fold = lru_cache(20_000)(fold)  # reports repeat the same headings
_LONGEST = 64  # characters of a heading, at most
_BOLD = re.compile(r'((?<![\[*])\*\*)[ \t]*([^*_\n:]{3,60}?)[ \t]*:?[ \t]*\1(?!\*)(?:[ \t]*:)?')
_BOLD_TEXT = re.compile(r'(?<![\[*])\*\*(?=\S)([^*\n]{1,300}?)(?<=\S)\*\*(?![\]*])')
_MARKED_LINE = re.compile(r'^[ \t]*#{1,6}[ \t]+([^\n#]{3,60}?)[ \t]*:?[ \t]*#*[ \t]*$', re.MULTILINE)
# 'BI-RADS' and '4A' in two cells of a table; 'HALLAZGOS.-'
_RADS_CELL = re.compile(
    r'^([ \t]*(?:acr[ /-])?bi-?rads®?(?:[ -](?:category|kategorie|assessment))?)[ \t]*:?[ \t]*\n\s*'
    r'(?=[0-6][abcx]?[ \t]*$)',
    re.IGNORECASE | re.MULTILINE,
)
_DASHED = re.compile(r'(^[ \t]*|[.!?][ \t]+)([^\W\d_][^\n.:]{2,60}?)[ \t]*\.[ \t]?[-–—]{1,2}', re.MULTILINE)
# '[FINDINGS] …', '*** FINDINGS ***', '=== FINDINGS ==='
_FRAMED = re.compile(
    r'(^[ \t]*|[.!?][ \t]+)(?:\[(?=[^\n\]]{3,40}\])|[*=~-]{3,}[ \t]*)([A-ZÀ-Þ][^\n:*=~\[\]]{2,39}?)[ \t]*:?[ \t]*'
    r'(?:\]|[*=~-]{3,})[ \t]*:?',
    re.MULTILINE,
)
_ELEMENT = re.compile(r'<(?P<end>/?)(?P<name>[a-z]\w{3,30})(?:\s[^<>]{0,200})?>', re.IGNORECASE)
_LABEL = re.compile(r'\blabel\s*=\s*["\']([^"\'<>]{3,60})["\']', re.IGNORECASE)
_WORD = re.compile(r'\S+')
_RULE = re.compile(r'[ \t]*(?:_{6,}|[-=*~]{3,})[ \t]*')
_OPENS = re.compile(r'[ \t\xa0*#>•-]*(?:\d+[.)])?[ \t]*')  # may stand before a heading in its line
_COMPOUND = re.compile(r'[ \t]*[A-Z][\w/&-]*[ \t]+(?:[\w/&-]+[ \t]+){0,2}')  # 'CARDIAC' before 'FINDINGS:'
# The text after a heading without a colon: nothing, a dash, a gap, 'No acute …', '1. …'
_AFTER_BARE = re.compile(r'[ \t]*$|[ \t]+[-–][ \t]|[ \t]{2,}|[ \t](?=[A-Z][a-zà-ÿ]|\d+[.)][ \t])')
# After 'WET READ:' or 'WET READ VERSION': the reader and the time ('___ ___ 8:35 AM'), or a number ('#1')
_STAMP = re.compile(r'(?: *#\d+)?(?:[^\n]{0,60}?\b\d{1,2}:\d\d(?: *[ap]m)?)?[ \t]*$', re.IGNORECASE | re.MULTILINE)


def _marked_headings(text: str) -> str:
    """The text with "Findings: …" for other headings: "**Findings**", "## Findings", "<findings>…</findings>"."""
    closed = {name.lower() for name in re.findall(r'</(\w{4,31})\s*>', text)}  # '<DATE>' is a placeholder

    def element(match: re.Match) -> str:
        label = _LABEL.search(match[0])
        name = label[1] if label else match['name'].replace('_', ' ')
        if match['name'].lower() not in closed or (_SECTION.get(fold(name)) not in SECTIONS and not match['end']):
            return match[0]
        return '\n' if match['end'] else f'\n{name.upper()}: '

    def named(match: re.Match) -> str:
        name = match[match.lastindex]
        return f'{name}:' if fold(name) in _SECTION or fold(name) in _KEPT else match[0]

    def framed(match: re.Match) -> str:
        return f'{match[1]}{match[2]}: ' if _SECTION.get(fold(match[2])) in SECTIONS else match[0]

    def dashed(match: re.Match) -> str:
        return f'{match[1]}{match[2]}:' if fold(match[2]) in _SECTION else match[0]

    text = _FRAMED.sub(framed, text)
    text = _RADS_CELL.sub(r'\1: ', _DASHED.sub(dashed, text))
    if closed:
        text = _ELEMENT.sub(element, text)
    if '#' in text:
        text = _MARKED_LINE.sub(named, text)
    if '**' in text:
        text = _BOLD_TEXT.sub(r'\1', _BOLD.sub(named, text))
    return text


def _headings(text: str) -> list[_Heading]:
    """Everything that looks like a heading, in order."""
    headings: list[_Heading] = []
    before, lower = '', text.islower()
    for line in re.finditer(r'[^\n]+|\n(?=\n)', text):
        start, stop = line.span()
        if _RULE.fullmatch(text, start, stop):
            headings.append(_Heading(start, stop, ''))
        elif not line.group().isspace():
            bare = _bare_heading(text, start, stop)
            headings += [bare] if bare else []
            assessment = _ASSESSMENT.match(text, _OPENS.match(text, start, stop).end(), stop)
            headings += [_kept(assessment.start(), 'impression')] if assessment else []
            begin = assessment.end() if assessment else bare.end if bare else start
            # 'findings: …' in lower case opens a section, but not inside a sentence that began in the line before
            headings += _colon_headings(text, begin, stop, lower or before[-1:] in '.!?:;')
        before = text[max(start, stop - 8) : stop].rstrip()
    if '\n' not in text.strip() and all(heading.section != 'impression' for heading in headings):
        headings = sorted([*headings, *_assessment_in_line(text)])
    ends = [0, *accumulate((heading.end for heading in headings), max)]
    return [heading for heading, end in zip(headings, ends) if heading.start >= end]


def _without_subheadings(headings: list[_Heading]) -> list[_Heading]:
    """The headings that open a section, without those inside the text of another section."""
    last_report = max((i for i, heading in enumerate(headings) if heading.section == 'report'), default=-1)
    kept: list[_Heading] = []
    section, after_findings, separate = 'report', False, False
    for i, heading in enumerate(headings):
        # Headings inside a preliminary report, or inside an addendum to the report above it, are part of its text.
        if separate and heading.section in SECTIONS and heading.section not in ('report', 'addendum', 'preliminary'):
            continue
        # 'CARDIAC FINDINGS:' opens the findings, but after the start of the findings it is a subheading.
        if heading.start == heading.end and not heading.opens and section not in ('report', *CONTEXT):
            continue
        kept.append(heading)
        if heading.section in SECTIONS:
            section = heading.section
            after_findings |= section in ('findings', 'impression')
            separate = section == 'addendum' and after_findings
            separate |= section in ('addendum', 'preliminary') and i < last_report
    return kept


def _kept(at: int, section: str) -> _Heading:
    """A heading without width: its words belong to the text and stay in it."""
    return _Heading(at, at, section, opens=section == 'impression')


def _assessment_in_line(text: str) -> list[_Heading]:
    """The last sentence that begins as 'BI-RADS 2: Benign.', for a report that is one line and has no impression."""
    found = [match.end() for match in re.finditer(r'[.!?;][ \t]+', text) if _ASSESSMENT.match(text, match.end())]
    return [_kept(found[-1], 'impression')] if found else []


def _bare_heading(text: str, start: int, stop: int) -> _Heading | None:
    """A heading without a colon at the start of a line: alone in the line, or in capitals before other text."""
    words = list(_WORD.finditer(text[start : min(stop, start + _LONGEST)]))[:6]
    if not words or not (first := words[0].group().strip('*#'))[:1].isupper() or _fold(first) not in _FIRST:
        return None
    for count in range(len(words), 0, -1):
        end = start + words[count - 1].end()
        name = text[start:end].strip('*# \t\xa0')
        if name[-1:] == ':':
            if fold(name[:-1].rstrip('* ')) in _SECTION:
                return None  # a heading with a colon
        elif section := _SECTION.get(_fold(name)):
            following = text[end : min(stop, end + 8)]
            numbered = section in DROPPED and re.match(r'[ \t]+[\d#\[]', following)  # 'MRN 12345'
            if not following.strip(' \t*'):
                return _Heading(start, _heading_end(text, min(stop, end + 8), section), section)
            gap = _AFTER_BARE.match(following)
            if (name.isupper() and (section == 'preliminary' or numbered or gap)) or re.match(' [-–] ', following):
                return _Heading(start, _heading_end(text, end + (gap.end() if gap else 0), section), section)
            return None
    return None


def _colon_headings(text: str, start: int, stop: int, new_sentence: bool) -> Iterator[_Heading]:
    """Headings with a colon: at the start of a line; in capitals anywhere; capitalised after a sentence or a gap.

    `new_sentence`: the line begins a sentence, so a heading at its start may be in lower case. The headings
    'CARDIAC FINDINGS:' and 'Lung findings:' have no width: their words belong to the text and stay in it.
    """
    colon, identified = start - 1, False
    while (colon := text.find(':', colon + 1, stop)) >= 0:
        if text[colon - 1 : colon].isdigit() and text[colon + 1 : colon + 2].isdigit():  # 10:30
            continue
        left = max(start, colon - _LONGEST)
        before = text[left:colon].rstrip(' \t\xa0*#0123456789')  # 'ADDENDUM #2:'
        if not before or _fold(before.rsplit(None, 1)[-1].strip('*#')) not in _LAST:
            continue
        words = list(_WORD.finditer(before))[-7:]
        for word in words:
            name = text[left + word.start() : left + words[-1].end()].strip('*# ')
            if section := _SECTION.get(_fold(name)) or _KEPT.get(_fold(name)):
                break
        else:
            continue
        at = left + word.start()
        lead = text[max(start, at - 33) : at]
        near = at - start < 33
        opens = near and _OPENS.fullmatch(lead)
        capital = name[0].isupper()
        after_gap = identified or lead[-2:].isspace() or lead.rstrip()[-1:] in tuple('.!?;)]')
        if section in ('findings', 'impression') and near and _COMPOUND.fullmatch(lead):
            yield _Heading(start, start, section)
        elif (opens and (capital or new_sentence or section in DROPPED)) or name.isupper() or (capital and after_gap):
            identified |= section == 'identity'
            if _fold(name) in _KEPT:
                if opens or section == 'findings':
                    yield _kept(at, section)
                continue
            yield _Heading(start if opens else at, _heading_end(text, colon + 1, section), section)


def _heading_end(text: str, end: int, section: str) -> int:
    while text[end : end + 1] == '*':
        end += 1
    stamp = _STAMP.match(text, end) if section == 'preliminary' else None
    return stamp.end() if stamp else end


def _paragraph_end(body: str) -> int | None:
    """The end of the first paragraph with words, after its blank line. None: no blank line follows it."""
    blank = re.compile(r'\n[ \t]*\n').search(body, len(body) - len(body.lstrip()))
    return blank.end() if blank else None


def _value_end(body: str) -> int:
    """The end of the value after a heading such as 'MRN:'.

    The value ends with its line, or with the next line if its line is empty. A very long line holds more than the
    value: then the value ends with the first sentence.
    """
    begin = len(body) - len(body.lstrip())
    if body.count('\n', 0, begin) > 1:
        return 0
    line = body[begin:].split('\n', 1)[0]
    return begin + (len(line) if len(line) < 100 else next(sentence_ends(line)))


def _without_notices(section: str, heading: str, body: str) -> Iterator[Piece]:
    """The body, cut before and after every sentence about a phone call or a signature."""
    kept = at = 0
    for end in sentence_ends(body) if body.strip() else ():
        if _NOTICE.match(' '.join(body[at : min(end, at + 400)].split())):
            yield Piece(section, heading, body[kept:at])
            yield Piece('notice', '', body[at:end])
            heading, kept = '', end
        at = end
    yield Piece(section, heading, body[kept:])
