"""Whether an image and a text belong together, with hard negatives (image-text matching of ALBEF, arXiv 2107.07651).

Each row with an image and a text gives three pairs: its own, its image with the text of another row, and its text with
the image of another row. The other row is drawn from the present rows of the same group, with probability
softmax(similarity / temperature) of the projected features. The loss is the mean binary cross-entropy over all pairs.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from medjax.objectives.features import Feature
from medjax.objectives.numerics import unit
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.parallel.sharding import constrain_rows
from medjax.types import Input


def build(
    context: TermContext,
    of: str,
    image: str,
    text: str,
    head: str,
    similar: tuple[str, str],
    temperature: float = 0.1,
) -> Term:
    """The term `fusion.match` of a config.

    of           `cls` of the fusion tower, as student/fusion/crop+report/cls
    image, text  the names of the towers that the fusion tower reads
    head         gives one logit from `cls` of the fusion tower
    similar      the projected features of image and text
    temperature  of the draw
    """
    fused = context.feature(of, 'of', per_row=True)
    views = [x.view for x in fused.inputs]
    inputs = {}
    for tower, view, outputs in ((image, views[0], ('cls', 'patches')), (text, views[1], ('cls', 'tokens'))):
        inputs[view] = {
            output: context.feature(f'student/{tower}/{view}/{output}', tower, per_row=True) for output in outputs
        }
    pair = [context.feature(name, 'similar', per_row=True) for name in similar]
    context.tower(fused.tower, 'of')
    context.head(head, context.width(of), 'head')
    return Match(context, fused, head, inputs, pair, temperature)


@dataclasses.dataclass(frozen=True, eq=False)
class Match(Term):
    """The term `fusion.match`; see the top of this file."""

    of: Feature
    head: str
    inputs: dict[str, dict[str, Feature]]  # view -> output -> feature
    similar: list[Feature]
    temperature: float

    def per_row(self, x: TermInputs) -> dict[str, Array]:
        """The sum of the losses of each row's pairs, and how many they are."""
        image, text = (self.input(x, view) for view in self.inputs)
        here = x.present(self.of)[:, 0]  # [B]
        size = self.context.rows_per_group
        groups = x.views[self.of.view].row[::size] // size
        a, b = (jax.lax.stop_gradient(unit(x.features[f.name][:, 0])) for f in self.similar)
        draws = jax.vmap(self.draw, (None, 0, 0, 0, 0))
        in_groups = [constrain_rows(y.reshape(-1, size, *y.shape[1:])) for y in (a, b, here)]
        other_text, other_image, any_other = draws(x.key, groups, *in_groups)  # [G,size]
        pairs = [
            (x.features[self.of.name], here, 1.0),
            (self.fused(x, image, taken(text, other_text)), here & any_other.reshape(-1), 0.0),
            (self.fused(x, taken(image, other_image), text), here & any_other.reshape(-1), 0.0),
        ]
        error, positives, count = 0.0, 0.0, 0.0
        for cls, counts, target in pairs:
            logit = x.head(self.head, cls[:, 0])[:, 0]
            error += jnp.where(counts, jax.nn.softplus(logit) - target * logit, 0.0)
            positives += target * counts
            count += counts.astype(jnp.float32)
        return dict(error=error, positives=positives, count=count)

    def input(self, x: TermInputs, view: str) -> Input:
        """The view with the outputs of its tower."""
        features = self.inputs[view]
        outputs = {name: x.features[f.name] for name, f in features.items()}
        return Input(x.views[view], None, outputs | dict(present=x.present(features['cls'])))

    def fused(self, x: TermInputs, image: Input, text: Input) -> Array:
        return x.tower(self.of.tower, image, text)['cls']

    def draw(self, key: Array, group: Array, a: Array, b: Array, here: Array) -> tuple[Array, Array, Array]:
        """Of one group: for each row another row's text, another row's image, and whether there is another row."""
        possible = here & ~jnp.eye(len(here), dtype=bool)
        logits = jnp.where(possible, a @ b.T / self.temperature, -1e30)
        one, two = jax.random.split(jax.random.fold_in(key, group))
        transposed = jnp.where(possible, b @ a.T / self.temperature, -1e30)
        return jax.random.categorical(one, logits), jax.random.categorical(two, transposed), possible.any(1)

    def loss(self, x: TermInputs) -> TermOutput:
        sums = {name: value.sum() for name, value in x.per_row.items()}
        count = jnp.maximum(sums['count'], 1)
        share = sums['positives'] / count
        start = -(jax.scipy.special.xlogy(share, share) + jax.scipy.special.xlogy(1 - share, 1 - share))
        metrics = dict(rows=x.present(self.of).any(1).sum(), pairs=sums['count'])
        return TermOutput(sums['error'] / count, metrics, start)


def taken(one: Input, rows: Array) -> Input:
    """An input whose rows are exchanged inside their groups; `rows` [G,size] are numbers inside a group."""
    size = rows.shape[1]

    def take(y: Any) -> Any:
        grouped = constrain_rows(y.reshape(-1, size, *y.shape[1:]))
        return jax.vmap(lambda g, i: jnp.take(g, i, axis=0, mode='clip'))(grouped, rows).reshape(y.shape)

    view = one.view._replace(
        present=take(one.view.present), valid=None if one.view.valid is None else take(one.view.valid)
    )
    return Input(view, None, {name: take(y) for name, y in one.outputs.items()})
