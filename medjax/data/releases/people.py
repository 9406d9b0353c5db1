"""Tells ids of people from ids that stand for nobody. All sources that read ids of unknown origin share it.

An id is judged by its use. Many ids with a few studies each are people, also if they look like ANON001, ANON002. One id
on nearly all studies is nobody, whatever it looks like. So is one id on nearly all lines of two given splits. The form
decides only where the use is open: words such as ANONYMOUS are nobody's, and an id such as ANON or 000000 is nobody's
if it has far more studies than others. Other ids with far more studies than others are told.
"""

from __future__ import annotations

import re
import statistics
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from medjax.data.releases import words

NEARLY_ALL = 0.9  # share of the studies
LEAST_SHARED = 3  # studies of an id that is nobody's beside other ids
LISTED = 5  # numbers of studies that a note names
MOST_STUDIES = 10  # of one person, in a small export; with fewer, one id on all studies may be one person
FORM_RATIO = 3  # times the median of studies: an id of a doubtful form that has more is nobody's
TOLD_RATIO, TOLD_STUDIES = 5, 5  # an id with so many times the median and so many studies is told
# Forms that are a person's or nobody's: ANON7, DE-ID 0001, PATIENT1; 000, 9999, XXX
_DOUBTFUL = re.compile(
    r'(?:anon\w*?|de-?id\w*?|patient|pat|subject|test|dummy|unknown|none|no ?id)[ _^-]*\d*|-?0+|-?9+|-1|[x*?#]+',
    re.IGNORECASE,
)
_EXPONENT = re.compile(r'([1-9])(?:[.,](\d+))?[eE]\+?(\d+)')
_MONTHS = 'jan|feb|m[aä]r|mrz|apr|avr|ma[iy]|jun|jul|aug|ago|sep|o[ckt]t|nov|de[cz]|dic|ene|fev|set|out'
_DATE = re.compile(
    r'\d{1,4}[-./]\d{1,2}[-./](?:\d\d|\d{4})(?:[ T]\d\d:\d\d(?::\d\d)?)?'
    rf'|\d{{1,4}}[-. ]{{1,2}}(?:{_MONTHS})[a-z]*|(?:{_MONTHS})[a-z]*[-. ]\d{{1,4}}',
    re.IGNORECASE,
)


class People(NamedTuple):
    """The people of the images of a source."""

    patients: list[str | None]  # of each image; None: unknown
    blank: int  # images whose id is blank, or says so in words
    shared: int  # other images whose id stands for nobody: too many studies have it
    shared_studies: int  # studies with the id that most of these images have
    one: int  # images of a person who has nearly all of them
    studies: int  # all studies
    many: list[int]  # studies of each person who has far more than others, the most first
    what: str  # 'studies', or 'images' if the source names no studies

    @property
    def notes(self) -> list[str]:
        """Sentences about ids that stand for nobody, and about ids with very many studies; [] if there are none."""
        notes = []
        if self.shared:
            notes.append(
                f'{self.shared} images have an id that stands for nobody: {self.shared_studies} of {self.studies} '
                f'{self.what} have it. Their patients count as unknown'
            )
        if self.many:
            counts = ', '.join(map(str, self.many[:LISTED])) + (', …' if len(self.many) > LISTED else '')
            one = len(self.many) == 1
            notes.append(
                f'{"one id has" if one else f"{len(self.many)} ids have"} far more {self.what} than others ({counts}). '
                f'If {"it stands" if one else "they stand"} for nobody, leave {"it" if one else "them"} blank'
            )
        return notes


def people(
    patients: Sequence[str], studies: Sequence[str] | None, splits: Sequence[str | None] | None = None
) -> People:
    """The people of images, from the id and the study of each image.

    studies: None if the source names none. Then the slices of a volume cannot be told from many people with one id. So
    an id that says nothing of nobody stays a person's: one person more in one split is no leak.
    splits: the given split of each image, if there are any. One id on nearly all images in two splits is nobody's.
    """
    of_id: dict[str, set[str | int]] = defaultdict(set)
    for number, id in enumerate(patients):
        if not words.is_nobody(id):
            of_id[id].add(number if studies is None else studies[number])
    counts = {id: len(seen) for id, seen in of_id.items()}
    total, usual = sum(counts.values()), statistics.median(counts.values()) if counts else 0
    shared = {id for id, count in counts.items() if _is_shared(id, count, total, usual, studies is not None)}
    for id in counts.keys() - shared if splits else ():
        if counts[id] >= max(LEAST_SHARED, NEARLY_ALL * total):
            its = {split for patient, split in zip(patients, splits or (), strict=True) if patient == id and split}
            shared |= {id} if len(its) > 1 else set()
    most = max((counts[id] for id in shared), default=0)
    images = max((patients.count(id) for id in counts.keys() - shared), default=0) if len(counts) < 20 else 0
    return People(
        [None if words.is_nobody(id) or id in shared else id for id in patients],
        blank=sum(words.is_nobody(id) for id in patients),
        shared=sum(id in shared for id in patients),
        shared_studies=most,
        one=images if images >= max(MOST_STUDIES, NEARLY_ALL * len(patients)) else 0,
        studies=len(set(studies)) if studies is not None else len(patients),
        many=sorted(
            (n for id, n in counts.items() if id not in shared and n >= max(TOLD_STUDIES, TOLD_RATIO * usual)),
            reverse=True,
        ),
        what='images' if studies is None else 'studies',
    )


def _is_shared(id: str, count: int, total: int, usual: float, with_studies: bool) -> bool:
    """Whether an id that may be a person's is nobody's.

    count: studies of the id, or images if the source names no studies. total, usual: sum and median of all counts.
    """
    if count < (2 if total == count else LEAST_SHARED):
        return False
    doubtful = bool(_DOUBTFUL.fullmatch(id))
    if count >= NEARLY_ALL * total and (doubtful or count >= MOST_STUDIES):
        return doubtful or with_studies
    return doubtful and with_studies and count >= FORM_RATIO * usual


def spellings(ids: Iterable[str]) -> dict[str, str]:
    """Id -> the one spelling of it, for ids that programs or people write in several ways.

    Numbers: '17.0' and '0017' beside '17'. '1.234567E+06' has all its digits and becomes '1234567'. Leading zeros go
    only if the number is also written without them. Letters: 'p3' beside 'P3', accents in one or two characters, other
    blanks. Ids that differ only so count as one person: if they are two, nothing leaks; if they are one and count as
    two, the person is in two splits. Ids that stay as they are are not in the result.
    """
    ids = set(ids)
    digits = {id: number for id in ids if (number := _digits(id))}
    written: dict[str, set[str]] = defaultdict(set)
    for number in digits.values():
        written[number.lstrip('0')].add(number)
    result = {}
    for id, number in digits.items():
        spelling = number if len(written[number.lstrip('0')]) == 1 else number.lstrip('0') or '0'
        if spelling != id:
            result[id] = spelling
    same: dict[str, list[str]] = defaultdict(list)
    for id in ids - digits.keys():
        same[_letters(id)].append(unicodedata.normalize('NFC', id))
    for id in ids - digits.keys():
        if (spelling := min(same[_letters(id)])) != id:
            result[id] = spelling
    return result


def _letters(id: str) -> str:
    """An id without regard to case, to the writing of accents and to the kind and number of blanks."""
    return ' '.join(unicodedata.normalize('NFC', unicodedata.normalize('NFC', id).casefold()).split())


def key(id: str) -> str:
    """What all writings of an id share: '17' for '0017' and '17.0', 'p3' for 'P3'."""
    return number(id) or _letters(id)


def number(id: str) -> str:
    """The number that an id is, without zeros at the start: '0017' and '17.0' -> '17'. '' for other ids."""
    digits = _digits(id)
    return (digits.lstrip('0') or '0') if digits else ''


def remarks(ids: Counter[str], what: str) -> list[str]:
    """What a reader should know of ids that differ in writing only. ids: id -> number of cells or ids; what: 'cell'."""
    spelled = spellings(ids)
    numbers = sum(n for id, n in ids.items() if id in spelled and _digits(id))
    letters = sum(n for id, n in ids.items() if id in spelled and not _digits(id))
    found = []
    if numbers:
        found.append(
            f'{_count(numbers, what)} {"has" if numbers == 1 else "have"} zeros at the start or .0. '
            f'{"It counts" if numbers == 1 else "They count"} as the same number: 0017 = 17.0 = 17'
        )
    if letters:
        found.append(
            f'{_count(letters, what)} {"differs" if letters == 1 else "differ"} from another only in case, blanks or '
            f'the writing of accents. {"It counts" if letters == 1 else "They count"} as the same id: p3 = P3'
        )
    return found


def _count(n: int, noun: str) -> str:
    return f'{n} {noun}' if n == 1 else f'{n} {noun}s'


def _digits(id: str) -> str:
    """The digits of a number: '17.0' -> '17', '1.5E+01' -> '15'. '' for other ids and for numbers with lost digits."""
    if match := _EXPONENT.fullmatch(id):
        fraction, zeros = match[2] or '', int(match[3])
        return '' if len(fraction) < zeros or fraction[zeros:].strip('0') else match[1] + fraction[:zeros]
    match = re.fullmatch(r'(\d+)(?:[.,]0+)?', id)
    return match[1] if match else ''


def is_shortened(id: str) -> bool:
    """Whether a spreadsheet has cut the digits of an id: '1.23457E+12'. Several people may have it."""
    return bool(_EXPONENT.fullmatch(id)) and not _digits(id)


def is_date(id: str) -> bool:
    """Whether an id looks like a date, which a spreadsheet makes of ids such as '3-12' and 'MAR5'."""
    return bool(_DATE.fullmatch(id))
