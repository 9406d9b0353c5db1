"""Reports as text: control characters, placeholders of de-identification, language, sentences."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator


def clean(text: str) -> str:
    r"""The text with \n as the only line end, spaces for other control characters, and no invisible characters."""
    text = re.sub(r'\r+\n|[\r\v\f\x85\u2028\u2029]', '\n', text)
    text = re.sub('[\u00ad\u200b-\u200f\u2060\ufeff]', '', text)
    return re.sub(r'[\x00-\x08\x0e-\x1f\x7f-\x9f]', ' ', text)


def fold(text: str) -> str:
    """The text in lower case, without accents, with single spaces and none around a slash. For comparing words."""
    if not text.isascii():
        text = ''.join(c for c in unicodedata.normalize('NFKD', text) if not unicodedata.combining(c))
    return re.sub(' ?/ ?', '/', ' '.join(text.casefold().split()))


def _word_set(text: str) -> frozenset[str]:
    return frozenset(text.split())


# One placeholder for all forms. The removed word cannot be known, and with four forms a model would learn the hospital
# of a text from the form. '___' is the form of MIMIC-CXR, the largest set of reports. Unlike 'XXXX' it has no letters,
# so it is never a word.
PLACEHOLDER = '___'
# The words inside a placeholder in brackets, such as '[first name]'.
_PLACEHOLDER_WORDS = _word_set("""
    redacted removed deidentified identified de anonymized anonymised phi name names first last person personal of birth
    personalname patient doctor physician provider staff hcw date dates day month year time id ids alphanumericid number
    mrn ssn phone fax email url contact location address city state zip hospital institution organization vendor age
    unique accession
""")
_PLACEHOLDERS = re.compile(
    r'_{2,}|\bX{2,}(?:[/-]X{2,})+\b|\bX{3,}\b|\bx{4,}\b|\[\*\*[^\[\]]{0,200}\*\*\]|(?<!\S)\*{3,}(?!\S)'
    r'|![A-Z]{3,30}!|<#{1,20}>|\[(?P<square>[^\[\]\n]{2,40})\]|<(?P<angle>[^<>\n]{2,40})>'
)


def unify_placeholders(text: str) -> str:
    """The text with '___' for each placeholder of de-identification ('XXXX', '[**Name**]', '<DATE>').

    Placeholders in a row become one.
    """

    def replace(match: re.Match) -> str:
        inside = match['square'] or match['angle']
        if not inside:
            return PLACEHOLDER
        words = re.split(r'[\W\d_]+', inside.casefold().strip(' _-:#0123456789'))
        return PLACEHOLDER if _PLACEHOLDER_WORDS.issuperset(words) else match.group()

    return re.sub(r'___(?:[ \t]+___)+', PLACEHOLDER, _PLACEHOLDERS.sub(replace, text))


# Function words, and words of radiology. The reports of PadChest are stemmed: Spanish words are here as stems too.
# Italian and Dutch are here only so that they are not taken for Spanish and German.
_FREQUENT = dict(
    en="""the of and is are was were with without there no not for this to in at by from has have seen which on or as
        heart lungs lung chest clear effusion pleural opacity opacities left right unchanged stable normal fever
        male female patient bilaterally consolidation mild cardiomegaly cough pain shortness breath upper lower lobe""",
    es="""el los las del con sin que y en una un por para se su es no al como lo muy hay torax hallazgos hallazg pleur
        derrame derram izquierdo izquierda izquierd derecho derecha derech pulmonares imagen imag paciente pacient sign
        signific signos patolog aument cambi engros radiolog radiograf lesiones cronic calcif aortic cardiomegali
        neumonía observa observan condensaciones""",
    pt="""o os as do da dos das com sem que e em um uma por para se não no na ao nos nas pelo pela tórax sinais exame
        achados derrame esquerdo esquerda direito direita pulmões pulmonares área cardíaca paciente coração seios""",
    de="""der die das und ist mit ohne kein keine im in den dem des von zu zum auf bei nicht eine ein als sich wie nach
        am links rechts beidseits herz lunge thorax erguss pneumothorax nachweis befund normal regelrecht""",
    fr="""le la les des du de et est avec sans pas une un dans au aux sur pour par il ce qui ne en ou gauche droite
        droit poumons coeur cœur thorax épanchement pleural pleurale anomalie patient normale l d""",
    it='il lo la gli dei della delle di e con senza che non un una per nel nella sono si in destra sinistra del al',
    nl='de het een en van met zonder geen is zijn niet in op voor er links rechts bij naar wordt longen hart',
)
_SHARED = _word_set('consolidation lobe normal patient pleural pneumothorax stable thorax')  # in several languages
_WORDS_OF = {name: _word_set(fold(frequent)) - _SHARED for name, frequent in _FREQUENT.items()}
_UNIQUE_WORDS_OF = {
    name: words.difference(*(_WORDS_OF[other] for other in _WORDS_OF if other != name))
    for name, words in _WORDS_OF.items()
}


def language(text: str) -> str:
    """'en', 'es', 'pt', 'de' or 'fr', from counts of frequent words. '': too few of them, or two languages are close.

    The language must have at least two different frequent words in the text. One of them must belong to no other
    language.
    """
    words = re.findall(r'[^\W\d_]+', fold(text[:20_000]))
    counts = {name: sum(word in frequent for word in words) for name, frequent in _WORDS_OF.items()}
    (best, most), (_, second) = sorted(counts.items(), key=lambda item: -item[1])[:2]
    sure = most >= 0.12 * len(words) and most >= 1.15 * second and most > second
    sure = sure and len(_WORDS_OF[best].intersection(words)) >= 2 and not _UNIQUE_WORDS_OF[best].isdisjoint(words)
    return best if sure and best in ('en', 'es', 'pt', 'de', 'fr') else ''


# Abbreviations that never end a sentence.
_ABBREVIATIONS = _word_set("""
    dr drs mr mrs ms prof vs e.g i.e eg ie approx fig figs cf bzw z.b d.h u.a v.a ggf li re bds inkl evtl vgl st sog
    aprox sr sra dra p.ej núm pág mme env gez geb
""")
# Abbreviations that end a sentence if a capital letter follows.
_ABBREVIATIONS_AT_END = _word_set(
    'etc min max sec resp a.m p.m cm mm bilat lat temp mod incl hosp usw ca i.v dcha izq esq dir inf sup'
)
# Where a sentence may end: before the number of a list item or a bullet, after punctuation, at a blank line.
_MARK = re.compile(
    r'(?<!\S)(?P<item>\d{1,2})[.)](?=\s)|[.!?…]+["\')\]»”]*|[。！？]+|\n[ \t]*\n\s*|\n(?=[ \t]*[-•*][ \t])'
)


def sentences(text: str) -> list[str]:
    """The sentences, each in one line. A list item keeps its number. A stretch without a word is no sentence."""
    text, start, result = clean(text), 0, []
    for end in sentence_ends(text):
        sentence = ' '.join(text[start:end].split())
        if any(c.isalnum() or c == '_' for c in sentence):
            result.append(sentence)
        start = end
    return result


def sentence_ends(text: str) -> Iterator[int]:
    """The position where each sentence ends. The last one is the length of the text."""
    item_numbers = {int(n) for n in re.findall(r'(?:[.!?]\s{1,9}|\n[ \t]*)(\d{1,2})[.)]\s', text)}
    start = item = 0
    for mark in _MARK.finditer(text):
        begin, end = mark.span()
        following = text[end : end + 12].lstrip()[:1]
        if mark['item']:
            at_start = begin - start < 40 and not text[start:begin].strip()
            number = int(mark['item'])
            # '1. Clear lungs 2. No effusion' has an item 2. 'In segment 2. No effusion' has none if an item 2 follows.
            if number == item + 1 and (at_start or (item and number not in item_numbers and following.isupper())):
                item = number
                if not at_start:
                    yield (start := begin)
                continue
            if at_start and number == 1:
                item = 1
                continue
            if text[end - 1] == ')':
                continue
        if _continues(text, begin, end, following):
            continue
        if end > start:
            yield (start := end)
    if start < len(text):
        yield len(text)


def _continues(text: str, begin: int, end: int, following: str) -> bool:
    """Whether the sentence continues after the mark text[begin:end]. `following` is the next character."""
    mark = text[begin:end].strip('"\')]»”')
    if not mark or mark[0] in '\n。！？' or not following:
        return False
    spaced = text[end : end + 1].isspace()
    if mark[0].isdigit():
        return following.islower()  # 'am 3. Tag' is cut: it would need German grammar
    if not spaced:  # '2.3' continues, 'normal.No effusion' does not
        return not (mark == '.' and re.fullmatch(r'[a-zà-ÿ]{2}\.[A-ZÀ-Þ][a-zà-ÿ]', text[max(0, begin - 2) : end + 2]))
    if mark[0] == '?':  # '? pneumonia', '39? C'
        return begin == 0 or text[begin - 1].isspace() or text[begin - 1].isdigit()
    if mark == '…' or len(mark) > 1:
        return not following.isupper() and not following.isdigit()
    words = text[max(0, begin - 24) : begin].split(' ')
    raw = words[-1].rpartition('\n')[2].lstrip('([')
    word = raw.casefold()
    if word in _ABBREVIATIONS or (word in ('no', 'nr', 'nº') and following.isdigit()):
        return True
    if len(raw) == 1 and raw.isupper():  # 'Dr. A. Smith' continues, 'type B. No' does not
        return len(words) < 2 or words[-2][-1:] == '.'
    return (word in _ABBREVIATIONS_AT_END or '.' in word) and not following.isupper()
