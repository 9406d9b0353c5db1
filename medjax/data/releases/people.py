"""Tells ids of people from ids that stand for nobody. All sources that read ids of unknown origin share it.

An id is judged by its use. Many ids with a few studies each are people, also if they look like ANON001, ANON002. One id
on nearly all studies is nobody, whatever it looks like. The form decides only where the use is open: words such as
ANONYMOUS are nobody's, and an id such as ANON or 000000 is nobody's if far more studies have it than any person has.
"""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from medjax.data.releases import words

NEARLY_ALL = 0.9  # share of the studies
MOST_STUDIES = 10  # of one person, in a small export; with fewer, one id on all studies may be one person
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

    @property
    def notes(self) -> list[str]:
        """A sentence about ids that stand for nobody; [] if there is none."""
        if not self.shared:
            return []
        return [
            f'{self.shared} images have an id that stands for nobody: {self.shared_studies} of {self.studies} studies '
            'have it. Their patients count as unknown'
        ]


def people(patients: Sequence[str], studies: Sequence[str] | None) -> People:
    """The people of images, from the id and the study of each image.

    studies: None if the source names none. Then the slices of a volume cannot be told from many people with one id. So
    an id that says nothing of nobody stays a person's: one person more in one split is no leak.
    """
    of_id: dict[str, set[str | int]] = defaultdict(set)
    for number, id in enumerate(patients):
        if not words.is_nobody(id):
            of_id[id].add(number if studies is None else studies[number])
    counts = {id: len(seen) for id, seen in of_id.items()}
    total, usual = sum(counts.values()), statistics.median(counts.values()) if counts else 0
    shared = {id for id, count in counts.items() if _is_shared(id, count, total, usual, studies is not None)}
    most = max((counts[id] for id in shared), default=0)
    images = max((patients.count(id) for id in counts.keys() - shared), default=0) if len(counts) < 20 else 0
    return People(
        [None if words.is_nobody(id) or id in shared else id for id in patients],
        blank=sum(words.is_nobody(id) for id in patients),
        shared=sum(id in shared for id in patients),
        shared_studies=most,
        one=images if images >= max(MOST_STUDIES, NEARLY_ALL * len(patients)) else 0,
        studies=len(set(studies)) if studies is not None else len(patients),
    )


def _is_shared(id: str, count: int, total: int, usual: float, with_studies: bool) -> bool:
    """Whether an id that may be a person's is nobody's.

    count: studies of the id, or images if the source names no studies. total, usual: sum and median of all counts.
    """
    if count < (2 if total == count else 3):
        return False
    doubtful = bool(_DOUBTFUL.fullmatch(id))
    if count >= NEARLY_ALL * total and (doubtful or count >= MOST_STUDIES):
        return doubtful or with_studies
    return doubtful and with_studies and count >= MOST_STUDIES * usual


def spellings(ids: Iterable[str]) -> dict[str, str]:
    """Id -> the one spelling of its number, for ids that a program rewrote as numbers: '17.0', '0017' beside '17'.

    '1.234567E+06' has all its digits and becomes '1234567'. Leading zeros go only if the number is also written without
    them. Ids that differ only so count as one person: if they are two, nothing leaks; if they are one and count as two,
    the person is in two splits. Ids that stay as they are are not in the result.
    """
    digits = {id: number for id in set(ids) if (number := _digits(id))}
    written: dict[str, set[str]] = defaultdict(set)
    for number in digits.values():
        written[number.lstrip('0')].add(number)
    result = {}
    for id, number in digits.items():
        spelling = number if len(written[number.lstrip('0')]) == 1 else number.lstrip('0') or '0'
        if spelling != id:
            result[id] = spelling
    return result


def _digits(id: str) -> str:
    """The digits of a number: '17.0' -> '17', '1.5E+01' -> '15'. '' for other ids and for numbers with lost digits."""
    if match := _EXPONENT.fullmatch(id):
        fraction, zeros = match[2] or '', int(match[3])
        return '' if len(fraction) < zeros or fraction[zeros:].strip('0') else match[1] + fraction[:zeros]
    match = re.fullmatch(r'(\d+)(?:[.,]0+)?', id)
    return match[1] if match else ''


def number(id: str) -> str:
    """The number that an id is, without zeros at the start: '0017' and '17.0' -> '17'. '' for other ids."""
    digits = _digits(id)
    return (digits.lstrip('0') or '0') if digits else ''


def is_shortened(id: str) -> bool:
    """Whether a spreadsheet has cut the digits of an id: '1.23457E+12'. Several people may have it."""
    return bool(_EXPONENT.fullmatch(id)) and not _digits(id)


def is_date(id: str) -> bool:
    """Whether an id looks like a date, which a spreadsheet makes of ids such as '3-12' and 'MAR5'."""
    return bool(_DATE.fullmatch(id))
