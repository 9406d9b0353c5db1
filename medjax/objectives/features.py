"""Names of features: `network/tower/view[~mask]/output[@mask][>head]`, always in full.

student/image/global~block/cls               CLS of the masked global view, by the trained parameters
teacher/image/global/patches@block>dino      the teacher's tokens of the unmasked view at the positions of
                                             `global~block`, through the head `dino`
"""

from __future__ import annotations

import re
from typing import NamedTuple

from medjax.errors import UserError

FORM = re.compile(
    r'(?P<network>\w+)/(?P<tower>\w+)/(?P<view>\w+)(~(?P<mask>\w+))?/(?P<output>[\w/]+)(@(?P<at>\w+))?(>(?P<head>\w+))?'
)


class Feature(NamedTuple):
    name: str
    network: str
    tower: str
    view: str
    mask: str | None
    output: str
    at: str | None
    head: str | None

    @property
    def inputs(self) -> str:
        """The view with its mask: 'global~block', or 'global'."""
        return f'{self.view}~{self.mask}' if self.mask else self.view

    @property
    def tower_pass(self) -> tuple[str, str, str]:
        """What is run once, however many features come of it."""
        return self.network, self.tower, self.inputs


def parse(name: str, where: str) -> Feature:
    match = FORM.fullmatch(name) if isinstance(name, str) else None
    if not match:
        raise UserError(
            f'{where}: {name!r} is not the name of a feature; the form is '
            'network/tower/view[~mask]/output[@mask][>head], '
            f"for example 'student/image/global~block/patches@block>dino'"
        )
    return Feature(name, **match.groupdict())
