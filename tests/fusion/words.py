"""Cross-entropy of masked words (BERT, arXiv 1810.04805): the mean over the masked tokens of all present texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from medjax.objectives.features import Feature
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput


def build(context: TermContext, of: str) -> Term:
    """The term `fusion.words` of a config; `of` are logits [B,V,T,W], as student/text/report~words/tokens>words."""
    return Words(context, context.feature(of, 'of', per_row=True))


@dataclasses.dataclass(frozen=True, eq=False)
class Words(Term):
    """The term `fusion.words`."""

    of: Feature

    def per_row(self, x: TermInputs) -> dict[str, Array]:
        """Sums over the masked tokens of each row: error, and how often each word is the target."""
        source = next(one for one in self.of.inputs if one.mask)
        masked = x.masks[source.masked_view].bits & x.present(self.of)[..., None]
        target = x.views[source.view].x
        logits = x.features[self.of.name]
        error = jax.nn.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        words = jax.nn.one_hot(target, logits.shape[-1]) * masked[..., None]
        return dict(error=jnp.where(masked, error, 0.0).sum((1, 2)), words=words.sum((1, 2)))

    def loss(self, x: TermInputs) -> TermOutput:
        words = x.per_row['words'].sum(0)
        count = jnp.maximum(words.sum(), 1)
        start = -jax.scipy.special.xlogy(words, words / count).sum() / count  # the entropy of the masked words
        return TermOutput(x.per_row['error'].sum() / count, dict(rows=x.present(self.of).any(1).sum()), start)

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return self.context.width(self.of.name) + 64  # how often each word is the target, and sums
