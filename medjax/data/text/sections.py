"""Radiology reports cut into sections.

    parse('INDICATION: Cough.  FINDINGS: Clear lungs. IMPRESSION: Normal.')
    -> {'indication': 'Cough.', 'findings': 'Clear lungs.', 'impression': 'Normal.'}

A heading is a name from `HEADINGS` that stands where headings stand (`_colon_headings` and `_bare_heading` say where).
Other colons are prose: 'Heart size: normal' stays within its section. Nothing is lost: `pieces` cuts the text without
remainder, and `parse` joins the pieces but for those of `DROPPED`, which hold names, numbers and phone calls. That is
no de-identification: a name within a sentence stays there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

from medjax.data.text.language import clean, ends, fold

# What `parse` gives. 'report' is running text that no heading names more closely. 'preliminary' (a wet read) is apart
# because the report proper repeats or corrects it, 'addendum' because it corrects the report.
SECTIONS = ('findings', 'impression', 'indication', 'comparison', 'technique', 'recommendation', 'addendum')
SECTIONS += ('preliminary', 'report')
DROPPED = ('identity', 'notice')  # who the patient and the doctors are; who told whom, and who signed
CONTEXT = ('indication', 'comparison', 'technique')  # written before the reading; a paragraph each

# Case, accents and a number at the end do not matter. In each section: English, Spanish, Portuguese, German, French.
# 'Findings and impression' is findings: it describes, and whoever wants a short summary would not want all of it.
HEADINGS = {
    'findings': """findings, finding, findings and impression, findings & impression, findings/impression,
        impression and findings, impression/findings, imaging findings, imaging notes, observations, results, result;
        hallazgos, hallazgos e impresión, descripción, resultado, resultados; achados, descrição, análise;
        Befund, Befunde, Befund und Beurteilung, Befund/Beurteilung; résultats, résultat, constatations, description""",
    'impression': """impression, impressions, final impression, conclusion, conclusions, summary, interpretation,
        opinion, diagnosis, final diagnosis, impresson, imprssion, imression, impession;
        impresión, impresión diagnóstica, conclusión, conclusiones, juicio diagnóstico, diagnóstico, valoración;
        impressão, impressão diagnóstica, conclusão, conclusões, opinião, hipótese diagnóstica;
        Beurteilung, Zusammenfassung, Bewertung; synthèse, interprétation, au total""",
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
    'recommendation': """recommendation, recommendations, recommendation(s), suggestion, suggestions;
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

# A sentence that begins so is a notice. Only at its start: 'Large pneumothorax, discussed with …' is a finding too.
_TOLD = 'discussed|communicated|conveyed|relayed|telephoned|phoned|paged|called|e-?mailed|entered|posted|reported'
_NOTICE = re.compile(
    rf"""\W{{0,9}}(?:
    (?:electronically\ |digitally\ )?(?:dictated|transcribed|signed|approved|verified|interpreted|read)
        (?:\ and\ (?:electronically\ )?signed)?\ by\b
    | by\ electronically\ signing\b
    | (?:i|we)\b.{{0,80}}\b(?:reviewed|viewed|interpreted)\b.{{0,40}}\b(?:images?|study|studies|films?|examination)\b
    | (?:(?:the|this|these|above|critical|urgent|preliminary|pertinent|important|and)\ ){{0,4}}
        (?:findings?|results?|report|case|impression|information|wet\ read|recommendations?)\b.{{0,120}}
        \b(?:(?:{_TOLD})\ (?:with|to(?!\ be\b)|in\ person|into|via|over|on\ the)|(?:was|were|been)\ (?:{_TOLD})\ by)\b
    | (?:{_TOLD})\ (?:with|to|by|via|at|dr)\b
    | (?:drs?\.|doctor|(?:the\ )?(?:referring|ordering|covering|primary)?\ ?(?:physician|clinician|team|nurse))
        .{{0,80}}\b(?:notified|informed|paged|telephoned|made\ aware|called\ (?:at|by|on))\b
    | (?:firmado|dictado|validado|laudado|assinado)\ por\b | befundet\ von\b | gez\.\ | (?:signé|validé)\ par\b
    | (?:this|the)\ report\ (?:has\ been|was)\ (?:anonymi[sz]ed|de-?identified|electronically\ signed|dictated)\b
    )""",
    re.IGNORECASE | re.VERBOSE,
)


class Piece(NamedTuple):
    """A stretch of the text: heading + text of all pieces, put together, are `clean(text)`."""

    section: str  # one of SECTIONS or DROPPED
    heading: str  # as it is written, with its colon; '' where the section goes on, or has none
    text: str


class _Heading(NamedTuple):
    start: int
    end: int
    section: str  # '' for a ruled line, after which the section goes on


def parse(text: str) -> dict[str, str]:
    """Section -> its text in one line, in the order of appearance; only the sections that are there.

    Sections that appear twice are joined. Pieces of identity and notice are left out.
    """
    found: dict[str, list[str]] = {}
    for piece in pieces(text):
        if piece.section not in DROPPED and (words := piece.text.split()):
            found.setdefault(piece.section, []).extend(words)
    return {section: ' '.join(words) for section, words in found.items()}


def pieces(text: str) -> list[Piece]:
    """The cleaned text in pieces, in order and without gaps. What `parse` leaves out can be counted here."""
    text = clean(text)
    headings = _in_force(_headings(text))
    # 'COMPARISON: None.', a blank line, then the reading without a heading: many reports are written so. Where the
    # findings have a heading, a second paragraph of the technique is just that.
    one_paragraph = CONTEXT if all(heading.section != 'findings' for heading in headings) else ()
    cuts: list[Piece] = []
    section = 'report'
    for heading, following in pairwise([_Heading(0, 0, 'report'), *headings, _Heading(len(text), len(text), '')]):
        title, body = text[heading.start : heading.end], text[heading.end : following.start]
        if heading.section in DROPPED:
            end = _value(body) if heading.section == 'identity' else (_paragraph(body) or len(body))
            cuts.append(Piece(heading.section, title, body[:end]))
            title, body = '', body[end:]
        elif heading.section:
            section = heading.section
        if section in one_paragraph and (end := _paragraph(body)):
            cuts += _without_notices(section, title, body[:end])
            section, title, body = 'report', '', body[end:]
        cuts += _without_notices(section, title, body)
    return [piece for piece in cuts if piece.heading or piece.text]


_SECTION = {fold(name): section for section, names in HEADINGS.items() for name in re.split('[,;]', names)}
_FIRST, _LAST = frozenset(name.split()[0] for name in _SECTION), frozenset(name.split()[-1] for name in _SECTION)
_fold = lru_cache(20_000)(fold)  # the same headings come again and again
_LONGEST = 64  # characters that a heading may take
_WORD = re.compile(r'\S+')
_RULE = re.compile(r'[ \t]*(?:_{6,}|[-=*~]{3,})[ \t]*')
_OPENS = re.compile(r'[ \t\xa0*#>•-]*(?:\d+[.)])?[ \t]*')  # what may stand before a heading in its line
_COMPOUND = re.compile(r'[ \t]*[A-Z][\w/&-]*[ \t]+(?:[\w/&-]+[ \t]+){0,2}')  # 'CARDIAC' before 'FINDINGS:'
# What follows a heading without a colon: nothing, a dash, a gap, 'No acute …', '1. …'
_AFTER_BARE = re.compile(r'[ \t]*$|[ \t]+[-–][ \t]|[ \t]{2,}|[ \t](?=[A-Z][a-zà-ÿ]|\d+[.)][ \t])')
# 'WET READ: ___ ___ 8:35 AM' and 'WET READ VERSION #1': who read it, and when
_STAMP = re.compile(r'(?: *#\d+)?(?:[^\n]{0,60}?\b\d{1,2}:\d\d(?: *[ap]m)?)?[ \t]*$', re.IGNORECASE | re.MULTILINE)


def _headings(text: str) -> list[_Heading]:
    """Whatever looks like a heading, in order."""
    found: list[_Heading] = []
    before, lower = '', text.islower()
    for line in re.finditer(r'[^\n]+|\n(?=\n)', text):
        start, stop = line.span()
        if _RULE.fullmatch(text, start, stop):
            found.append(_Heading(start, stop, ''))
        elif not line.group().isspace():
            bare = _bare_heading(text, start, stop)
            found += [bare] if bare else []
            # 'findings: …' in lower case opens a section, but not within a sentence from the line before
            found += _colon_headings(text, bare.end if bare else start, stop, lower or before[-1:] in '.!?:;')
        before = text[max(start, stop - 8) : stop].rstrip()
    ends = [0, *accumulate((heading.end for heading in found), max)]
    return [heading for heading, end in zip(found, ends) if heading.start >= end]


def _in_force(headings: list[_Heading]) -> list[_Heading]:
    """The headings without those that belong to the text of another section."""
    last_report = max((i for i, heading in enumerate(headings) if heading.section == 'report'), default=-1)
    kept: list[_Heading] = []
    section, read, apart = 'report', False, False
    for i, heading in enumerate(headings):
        # The headings of a preliminary report, or of an addendum to what is already written, are its own.
        if apart and heading.section in SECTIONS and heading.section not in ('report', 'addendum', 'preliminary'):
            continue
        # 'CARDIAC FINDINGS:' opens the findings, and is a subheading once a reading has begun.
        if heading.start == heading.end and section not in ('report', *CONTEXT):
            continue
        kept.append(heading)
        if heading.section in SECTIONS:
            section = heading.section
            read |= section in ('findings', 'impression')
            apart = (section == 'addendum' and read) or (section in ('addendum', 'preliminary') and i < last_report)
    return kept


def _bare_heading(text: str, start: int, stop: int) -> _Heading | None:
    """A heading without a colon at the start of a line: alone in it, or in capitals before what is not in capitals."""
    words = list(_WORD.finditer(text[start : min(stop, start + _LONGEST)]))[:6]
    if not words or not (first := words[0].group().strip('*#'))[:1].isupper() or _fold(first) not in _FIRST:
        return None
    for count in range(len(words), 0, -1):
        end = start + words[count - 1].end()
        name = text[start:end].strip('*# \t\xa0')
        if name[-1:] == ':':
            if fold(name[:-1].rstrip('* ')) in _SECTION:
                return None  # that is a heading with a colon
        elif section := _SECTION.get(_fold(name)):
            rest = text[end : min(stop, end + 8)]
            numbered = section in DROPPED and re.match(r'[ \t]+[\d#\[]', rest)  # 'MRN 12345'
            if not rest.strip(' \t*'):
                return _Heading(start, _heading_end(text, min(stop, end + 8), section), section)
            after = _AFTER_BARE.match(rest)
            if (name.isupper() and (section == 'preliminary' or numbered or after)) or re.match(' [-–] ', rest):
                return _Heading(start, _heading_end(text, end + (after.end() if after else 0), section), section)
            return None
    return None


def _colon_headings(text: str, start: int, stop: int, fresh: bool) -> Iterator[_Heading]:
    """Headings with a colon: at the start of a line; in capitals anywhere; capitalised after a sentence or a gap.

    'CARDIAC FINDINGS:' and 'Lung findings:' have no width: the name is more than a heading and stays in the text.
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
            if section := _SECTION.get(_fold(name)):
                break
        else:
            continue
        at = left + word.start()
        lead = text[max(start, at - 33) : at]
        near = at - start < 33
        opens = near and _OPENS.fullmatch(lead)
        capital, loose = name[0].isupper(), identified or lead[-2:].isspace() or lead.rstrip()[-1:] in tuple('.!?;)]')
        if section in ('findings', 'impression') and near and _COMPOUND.fullmatch(lead):
            yield _Heading(start, start, section)
        elif (opens and (capital or fresh or section in DROPPED)) or name.isupper() or (capital and loose):
            identified |= section == 'identity'
            yield _Heading(start if opens else at, _heading_end(text, colon + 1, section), section)


def _heading_end(text: str, end: int, section: str) -> int:
    while text[end : end + 1] == '*':
        end += 1
    stamp = _STAMP.match(text, end) if section == 'preliminary' else None
    return stamp.end() if stamp else end


def _paragraph(body: str) -> int | None:
    """Where the first paragraph that has words ends at a blank line; None where there is no such line."""
    blank = re.compile(r'\n[ \t]*\n').search(body, len(body) - len(body.lstrip()))
    return blank.end() if blank else None


def _value(body: str) -> int:
    """Where the value of 'MRN:' ends: with the line, or with the next where the line is empty.

    A very long line holds more than a value: then with its first sentence.
    """
    begin = len(body) - len(body.lstrip())
    if body.count('\n', 0, begin) > 1:
        return 0
    line = body[begin:].split('\n', 1)[0]
    return begin + (len(line) if len(line) < 100 else next(ends(line)))


def _without_notices(section: str, heading: str, body: str) -> Iterator[Piece]:
    """The body, cut where a sentence tells of a phone call or a signature."""
    kept = at = 0
    for end in ends(body) if body.strip() else ():
        if _NOTICE.match(' '.join(body[at : min(end, at + 400)].split())):
            yield Piece(section, heading, body[kept:at])
            yield Piece('notice', '', body[at:end])
            heading, kept = '', end
        at = end
    yield Piece(section, heading, body[kept:])
