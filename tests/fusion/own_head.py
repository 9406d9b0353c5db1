"""A term that runs a head itself, instead of naming it in a feature."""

from __future__ import annotations

import dataclasses

from medjax.objectives.features import Feature
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput


def build(context: TermContext, of: str, head: str) -> Term:
    feature = context.feature(of, 'of')
    context.head(head, context.width(of), 'head')
    return OwnHead(context, feature, head)


@dataclasses.dataclass(frozen=True, eq=False)
class OwnHead(Term):
    of: Feature
    head: str

    def loss(self, x: TermInputs) -> TermOutput:
        return TermOutput(x.head(self.head, x.features[self.of.name]).mean(), {})
