"""Names of features: `network/tower/inputs/output[@mask][>head…]`, always in full.

student/image/global~block/cls               the CLS token that the student's tower `image` gives for the view `global`
                                             under the mask `block`
teacher/image/global/patches@block>dino      the teacher's patch tokens of the view `global` without a mask, at the
                                             positions of the mask `block`, through the head `dino`
teacher/image/clean/patches@block            the same for a view without a mask `block`, if another view with its boxes
                                             has one
student/image/crop/cls>projector>predictor   a chain of heads
student/decoder/crop~random/pixels           `decoder` is a tower over towers, and reads what `image` makes of the view
student/fusion/crop+report~words/tokens      a tower with two inputs
student/pooler/now=frontal+prior=earlier/cls two inputs of one kind, each with the name of its entry in `reads`;
                                             'study.now=frontal' is the entry `now` of the tower behind `study`
"""

from __future__ import annotations

import re
from typing import NamedTuple

from medjax.errors import UserError
from medjax.models.passes import InputName

INPUT = r'(?:[\w.]+=)?\w+(?:~\w+)?'
FORM = re.compile(
    rf'(?P<network>\w+)/(?P<tower>\w+)/(?P<inputs>{INPUT}(?:\+{INPUT})*)/(?P<output>[\w/]+)'
    r'(?:@(?P<at>\w+))?(?P<heads>(?:>\w+)*)'
)


class Feature(NamedTuple):
    """One feature name, taken apart."""

    name: str
    network: str  # 'student', or the name of a teacher
    tower: str
    inputs: tuple[InputName, ...]
    output: str  # 'cls', 'patches', 'tokens', …
    at: str | None  # the mask at whose positions tokens are taken
    heads: tuple[str, ...]  # applied one after the other
    at_view: str | None = None  # the view of `at`, where the tower does not see the mask

    @property
    def view(self) -> str:
        """The view of the first input. Rows, keys and labels are those of all inputs, which show one part."""
        return self.inputs[0].view

    @property
    def masked_views(self) -> str:
        """The inputs, as the name has them: 'global~block', or 'crop+report'."""
        return '+'.join(x.masked_view for x in self.inputs)

    @property
    def head(self) -> str | None:
        """The last head, or None."""
        return self.heads[-1] if self.heads else None

    @property
    def at_mask(self) -> str:
        """The mask at whose positions tokens are taken, as 'view~mask': that of the input that has this mask."""
        view = next((x.view for x in self.inputs if x.mask == self.at), self.at_view or self.view)
        return f'{view}~{self.at}'

    def of(self, network: str) -> str:
        """The name of the same feature of another network."""
        return '/'.join([network, *self.name.split('/')[1:]])


def parse(name: str, where: str) -> Feature:
    """Takes a feature name apart; a UserError that begins with `where` if it does not have the form."""
    match = FORM.fullmatch(name) if isinstance(name, str) else None
    if not match:
        raise UserError(
            f'{where}: {name!r} is not the name of a feature; the form is '
            'network/tower/view[~mask]/output[@mask][>head], '
            "for example 'student/image/global~block/patches@block>dino'"
        )
    inputs = []
    for text in match['inputs'].split('+'):
        entry, _, masked_view = text.rpartition('=')
        view, _, mask = masked_view.partition('~')
        inputs.append(InputName(view, mask or None, entry or None))
    heads = tuple(match['heads'].split('>')[1:])
    return Feature(name, match['network'], match['tower'], tuple(inputs), match['output'], match['at'], heads)
