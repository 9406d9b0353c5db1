"""Names of features: `network/tower/view[~mask]/output[@mask][>head]`, always in full.

student/image/global~block/cls               the CLS token that the student's tower `image` gives for the view `global`
                                             under the mask `block`
teacher/image/global/patches@block>dino      the teacher's patch tokens of the view `global` without a mask, at the
                                             positions of the mask `block`, through the head `dino`
"""

from __future__ import annotations

import re
from typing import NamedTuple

from medjax.errors import UserError

FORM = re.compile(
    r'(?P<network>\w+)/(?P<tower>\w+)/(?P<view>\w+)(~(?P<mask>\w+))?/(?P<output>[\w/]+)(@(?P<at>\w+))?(>(?P<head>\w+))?'
)


class Feature(NamedTuple):
    """One feature name, taken apart."""

    name: str
    network: str  # 'student', or the name of a teacher
    tower: str
    view: str
    mask: str | None  # the mask that the tower sees
    output: str  # 'cls', 'patches', 'tokens', …
    at: str | None  # the mask at whose positions tokens are taken
    head: str | None

    @property
    def inputs(self) -> str:
        """The view with its mask: 'global~block', or 'global'."""
        return f'{self.view}~{self.mask}' if self.mask else self.view

    @property
    def tower_pass(self) -> tuple[str, str, str]:
        """The forward pass that gives this feature. Features with equal passes share one run of the tower."""
        return self.network, self.tower, self.inputs


def parse(name: str, where: str) -> Feature:
    """Takes a feature name apart; a UserError that begins with `where` if it does not have the form."""
    match = FORM.fullmatch(name) if isinstance(name, str) else None
    if not match:
        raise UserError(
            f'{where}: {name!r} is not the name of a feature; the form is '
            'network/tower/view[~mask]/output[@mask][>head], '
            "for example 'student/image/global~block/patches@block>dino'"
        )
    return Feature(name, **match.groupdict())
