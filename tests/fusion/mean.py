"""The mean of a feature: a term for tests that ask only what is computed."""

from __future__ import annotations

import dataclasses

from medjax.objectives.features import Feature
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput


def build(context: TermContext, of: str) -> Term:
    return Mean(context, context.feature(of, 'of'))


@dataclasses.dataclass(frozen=True, eq=False)
class Mean(Term):
    """The term `fusion.mean`."""

    of: Feature

    def loss(self, x: TermInputs) -> TermOutput:
        return TermOutput(x.features[self.of.name].mean(), {})
