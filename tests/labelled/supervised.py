"""A user's term: a label of the data from a feature, the binary cross-entropy of the rows whose label is known."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from medjax.objectives.features import Feature
from medjax.objectives.terms import TargetColumn, Term, TermContext, TermInputs, TermOutput


def build(context: TermContext, of: str, label: str) -> Term:
    """`of`: a feature [B,V,1], the logit; `label`: the name of a label of the data."""
    return Labelled(context, context.feature(of, 'of'), context.target(label, 'label'))


@dataclasses.dataclass(frozen=True, eq=False)
class Labelled(Term):
    of: Feature
    label: TargetColumn

    def loss(self, x: TermInputs) -> TermOutput:
        logit, target = x.features[self.of.name][..., 0], x.target(self.of, self.label)
        weight = (x.present(self.of) & target.known[:, None]).astype(jnp.float32)
        count = jnp.maximum(weight.sum(), 1)
        value = target.value[:, None]
        losses = value * jax.nn.softplus(-logit) + (1 - value) * jax.nn.softplus(logit)
        share = (weight * value).sum() / count
        start = -(jax.scipy.special.xlogy(share, share) + jax.scipy.special.xlogy(1 - share, 1 - share))
        return TermOutput((weight * losses).sum() / count, {'rows': weight.any(1).sum()}, start)
