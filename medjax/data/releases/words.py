"""The usual words of people's tables, in six languages: for blank, yes, no, uncertain, nobody, splits and sexes.

Tables of public releases have one fixed form, and `coding` reads it strictly. A table that somebody made has words of
many programs and languages. Every function here compares without regard to case, accents, blanks and dots.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable

from medjax.data.text.language import fold


def _set(text: str) -> frozenset[str]:
    return frozenset(_plain(word) for word in text.split(','))


def _plain(text: str) -> str:
    """'N. A.' and '<NA>' -> 'na'; 'keine Angabe' -> 'keine angabe'. Numbers keep their dots."""
    text = fold(text)
    if any(character.isalpha() for character in text):
        text = re.sub(r"[.'\"<>()\[\]#!?]", '', text.replace('. ', ''))
    return ' '.join(text.split())


# What programs write for an empty cell, then what people write. No word here is a finding, a class or a grade.
_BLANK = _set("""
    na, n/a, nan, none, null, nil, nat, -nan, \\n, missing, blank, empty, undefined, value, ref, div/0, name?, num,
    unknown, unk, unkn, not known, not available, not applicable, not reported, not recorded, not done, not given,
    not specified, unspecified, not provided, no data, no value, nd, n/d, n/k, nk, n/r, tbd, todo,
    unbekannt, keine angabe, keine angaben, ka, k/a, fehlt, fehlend, leer, nicht bekannt, nicht erhoben, entfallt,
    inconnu, inconnue, manquant, manquante, non disponible, non renseigne, non precise, non connu, vide, nsp, nc, n/c,
    desconocido, desconocida, sin datos, sin dato, s/d, no disponible, no consta, vacio, falta,
    desconhecido, desconhecida, sem dados, nao disponivel, nao informado, nao consta, vazio,
    not assessed, not evaluated, not evaluable, not tested, not performed, not stated, not documented, pending, nr,
    nicht angegeben, nicht beurteilbar, nicht beurteilt, nicht dokumentiert, nicht untersucht, ohne angabe, ausstehend,
    non specifie, non evalue, non evaluable, non applicable, en attente,
    no aplica, no especificado, no evaluado, no evaluable, no documentado, sin informacion, pendiente,
    nao se aplica, nao aplicavel, nao especificado, nao avaliado, nao avaliavel, sem informacao, pendente,
    non disponibile, non applicabile, non specificato, non valutabile,
    sconosciuto, sconosciuta, non noto, mancante, onbekend, ontbreekt, niet bekend,
    missing value, missing data, no info, no information, no entry, not avail, not appl, not eval, not applic, unspec,
    n/e, n/s, tbc, to be confirmed, to be determined, void, not entered, not collected, data missing
""")
_YES = _set("""
    1, +1, yes, y, true, t, positive, pos, present, +, ja, j, wahr, positiv, vorhanden, oui, o, vrai, positif, presente,
    si, s, verdadero, positivo, sim, verdadeiro, vero, waar, positief, aanwezig,
    positiva, detected, nachgewiesen, detecte, detectado, detectada, rilevato
""")
_NO = _set("""
    0, -0, no, n, false, f, negative, neg, absent, nein, falsch, negativ, nicht vorhanden, non, faux, negatif, falso,
    negativo, ausente, nao, assente, nee, onwaar, negatief, afwezig,
    negativa, not detected, not present, undetected, nicht nachgewiesen, nicht erkannt, non detecte, non present,
    no detectado, no detectada, no presente, nao detectado, nao detectada, nao presente, non rilevato, non presente
""")
_UNCERTAIN = _set("""
    -1, uncertain, equivocal, indeterminate, possible, possibly, maybe, doubtful, unsicher, unklar, fraglich,
    moglich, unclear, unsure, not sure, not certain, inconclusive, questionable, borderline, ambiguous, undetermined,
    undecided, suspected, probable, likely, cannot exclude, cannot be excluded, verdacht, verdachtig, grenzwertig,
    nicht eindeutig, incertain, possible, douteux, equivoque, incierto, dudoso, posible, incerto,
    duvidoso, possivel, twijfel
""")
# Single letters mean yes or no only in a column that has both of one pair: 'F' alone may mean female.
PAIRS = (frozenset('yn'), frozenset('tf'), frozenset('jn'), frozenset('on'), frozenset('sn'))
_SPLITS = {
    'train': _set("""train, training, trn, trainset, train set, training set, train data, entrainement,
        entrenamiento, treino, treinamento, addestramento, trainieren"""),
    'val': _set("""eval, evaluation, eval set, evaluation set, val, valid,
        validate, validation, validation set, valset, val set, valid set, tune, tuning, tuneset,
        tuning set, internal validation, validierung, validacion, validacao, validazione, validatie"""),
    'test': _set("""test, testing, tst, testset, test set, testing set, test data, holdout, hold-out, hold out,
        held-out, held out, heldout, holdout set, prueba, teste, external test, internal test"""),
    'dev': _set('dev, devel, dev set, devset, development, development set'),
}  # fmt: skip
_MALE = _set("""m, male, man, men, boy, masculine, mannlich, mann, junge, masculin, homme, garcon, h, masculino, hombre,
    varon, homem, maschio, mannelijk, masc, mannl""")  # fmt: skip
_FEMALE = _set("""f, female, woman, women, girl, feminine, w, weiblich, frau, madchen, feminin, femme, fille, femenino,
    mujer, feminino, mulher, femmina, vrouwelijk, vrouw, fem, weibl""")  # fmt: skip
_OTHER_SEX = _set('o, x, d, other, divers, diverse, intersex, non-binary, nonbinary, autre, otro, outro, altro, anders')
# An id that says 'nobody' in words. 'ANON007' is not here: it may be the pseudonym of one person (see `people`).
_NOBODY = _set("""
    anonymous, anonymized, anonymised, anonym, anon, anonymisiert, anonyme, anonymise, anonimo, anonimizado,
    anonimizzato, anoniem, geanonimiseerd, deidentified, de-identified, de identified, deid, de-id, identity removed,
    pseudonym, pseudonymized, pseudonymised, removed, redacted, deleted, hidden, masked, nobody, noname, no name, no id,
    noid, patient, patientid, patient id, ohne, ohne namen, kein, keine, aucun, ninguno, nenhum, withheld, confidential,
    dummy, anonymisierter, anonymisierte, anonyma, anonima, anonimizada, anonymisee, blinded, private,
    not provided, unbekannter, unbekannte
""")
# Errors of spreadsheets in any language (#NV, #WERT!, #¿NOMBRE?), and 'o.A.': without dots, OA is a finding
_PROGRAM_BLANK = re.compile(r'#¿?[^\W\d_]+(?:/[^\W\d_]+|/0)?[!?]|#(?:nv|nd|nc|n/[avd])|o\. ?a\.', re.IGNORECASE)
# Words of which an id such as 'Anonymous^Patient' is made. Short words for blank may be names: 'Na', 'Nan'.
_NOBODY_WORDS = _NOBODY | {word for word in _BLANK if len(word) > 3} | _set('patient, patientin, paciente, subject')
_LONGEST = 40  # characters of a word; longer cells are texts, and reading them would take time


@functools.lru_cache(4096)  # tables have millions of cells and few different values
def is_blank(cell: str) -> bool:
    """Whether a cell says that nothing is known: '', 'NaN', 'N.A.', '-', 'unbekannt'."""
    if len(cell) > _LONGEST:
        return False
    return _plain(cell) in _BLANK or bool(_PROGRAM_BLANK.fullmatch(cell)) or not re.search(r'[^\W_]|\+', cell)


@functools.lru_cache(4096)
def code(cell: str) -> int | None:
    """1, 0 or -1 from '1', '1.0', 'True', 'ja', 'négatif', 'uncertain'; None for any other cell."""
    if len(cell) > _LONGEST:
        return None
    text = _plain(re.sub(r'^([+-]?)0?(\d)(?:[.,]0*)?(?:[eE][+-]?0+)?$', r'\1\2', cell.strip()))
    return 1 if text in _YES else 0 if text in _NO else -1 if text in _UNCERTAIN else None


def sex(cell: str) -> str | None:
    """'M' or 'F' from 'Male', 'weiblich', 'homme'; None for any other cell."""
    text = _plain(cell)
    return 'M' if text in _MALE else 'F' if text in _FEMALE else None


def is_other_sex(cell: str) -> bool:
    """Whether a cell says that a sex is neither male nor female. Other words may be names of people."""
    return _plain(cell) in _OTHER_SEX


@functools.lru_cache(4096)
def split(cell: str) -> str | None:
    """'train', 'val' or 'test' from 'Training', 'tune', 'hold-out'; 'dev' from 'development'; None for other cells.

    What 'dev' means depends on the other splits: see `split_meanings`.
    """
    text = _plain(cell.replace('_', ' '))
    return next((name for name, words in _SPLITS.items() if text in words), None)


def split_meanings(cells: set[str]) -> dict[str, str | None]:
    """Cell -> 'train', 'val', 'test', or None if it cannot be read.

    'dev' is val beside train. Without train it may be all that is not test, so it is None.
    """
    meanings = {cell: split(cell) for cell in cells}
    dev = 'val' if 'train' in meanings.values() and 'val' not in meanings.values() else None
    return {cell: dev if meaning == 'dev' else meaning for cell, meaning in meanings.items()}


def are_splits(cells: Iterable[str]) -> bool:
    """Whether a column is that of the splits: over half of its filled cells are splits. Others are typing errors."""
    filled = [cell for cell in cells if not is_blank(cell)]
    return 2 * sum(split(cell) is not None for cell in filled) > len(filled)


def near_split(cell: str) -> str:
    """The word for a split that a cell nearly is: 'trian' -> 'train'. '' if it is like none."""
    known, text = [word for words in _SPLITS.values() for word in words], _plain(cell.replace('_', ' '))
    near = [word for word in known if sorted(word) == sorted(text)]  # 'tset'
    near = near or difflib.get_close_matches(text, known, n=1, cutoff=0.8) if len(cell) <= _LONGEST else []
    return str(split(near[0])) if near else ''


@functools.lru_cache(65536)
def is_nobody(cell: str) -> bool:
    """Whether an id says in words that it is nobody's: blank, 'ANONYMOUS', 'removed', 'N/A'."""
    text = _plain(cell.replace('_', ' ').replace('^', ' '))
    return is_blank(cell) or text in _NOBODY or (bool(text) and all(word in _NOBODY_WORDS for word in text.split()))
