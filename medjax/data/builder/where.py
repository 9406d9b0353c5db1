"""Conditions on the attributes of images: `--where modality=CT`, `--where 'image_type!=LOCALIZER'`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from medjax.errors import UserError


class Condition(NamedTuple):
    """An attribute has a value, or has it not.

    Words are compared without regard to case: `image_type=LOCALIZER` holds if LOCALIZER is one of the words of
    image_type. Numbers are compared as numbers. An image without the attribute meets only `!=`.
    """

    name: str
    equal: bool
    value: str

    def __str__(self) -> str:
        return f'{self.name}{"=" if self.equal else "!="}{self.value}'

    def __call__(self, attributes: Mapping[str, str | float]) -> bool:
        return _has(attributes.get(self.name, ''), self.value) == self.equal

    def why(self, attributes: Mapping[str, str | float]) -> str:
        """A remark for the reason why an image was left out: it may lack the attribute, perhaps for a typing error."""
        return '' if self.name in attributes else f' (it has no {self.name})'


def parse(text: str) -> Condition:
    """The condition that a text states. Raises UserError."""
    match = re.fullmatch(r'\s*([A-Za-z_]\w*)\s*(!?=)=?\s*(.*?\w.*?)\s*', text)
    if not match:
        raise UserError(
            f"--where {text}: a condition is name=value or name!=value, for example 'image_type!=LOCALIZER'"
        )
    return Condition(match[1], match[2] == '=', match[3])


def _has(found: str | float, wanted: str) -> bool:
    if isinstance(found, str):
        words, of_wanted = (re.findall(r'[^\W_]+', text.casefold()) for text in (found, wanted))
        starts = range(len(words) - len(of_wanted) + 1)
        return any(words[k : k + len(of_wanted)] == of_wanted for k in starts)
    try:
        return float(found) == float(wanted)
    except ValueError:
        return False
