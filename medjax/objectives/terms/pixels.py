"""A decoder predicts the pixels of masked patches (MAE, arXiv 2111.06377).

    loss = 1/M  sum_i  1/P  sum_j ( prediction_ij - target_ij )^2

over the M masked patches i of all present crops, and the P = p p C numbers j of a patch. The target is the patch of the
view itself. With `normalise`, it is (patch - mean) / sqrt(variance + 1e-6), with the patch's own mean and its variance
over P - 1; this is what the published models were trained with.

The metric `patch_mean` is the loss of predicting each patch's own mean. `start` is the loss of the best constant patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from einops import rearrange
from jax import Array

from medjax.errors import UserError
from medjax.objectives.features import Feature
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput


def build(context: TermContext, of: str, normalise: bool = True) -> Term:
    """The term `pixels` of a config.

    of         the predictions of a decoder [B,V,N,P] for a masked view, as student/decoder/crop~random/pixels
    normalise  whether the target is normalised patch by patch
    """
    feature = context.feature(of, 'of', per_row=True)
    if len(feature.inputs) != 1 or feature.inputs[0].mask is None:
        raise UserError(f'{context.where}.of: {of!r} must have one input with a mask, as crop~random')
    return Pixels(context, feature, normalise)


@dataclasses.dataclass(frozen=True, eq=False)
class Pixels(Term):
    """The term `pixels`; see the top of this file."""

    of: Feature
    normalise: bool

    def per_row(self, x: TermInputs) -> dict[str, Array]:
        """Sums over the masked patches of each crop: error, targets, squares of the targets, number of patches."""
        predicted = x.feature(self.of, 'BVNP').astype(jnp.float32)
        bits = x.masks[self.of.inputs[0].masked_view].bits
        if bits.shape[2] != predicted.shape[2]:
            raise UserError(
                f'{self.context.where}.of: {self.of.name!r} has {predicted.shape[2]} of the {bits.shape[2]} patches; '
                'name the output `pixels` of a decoder, which has all of them'
            )
        target = self.target(x, predicted.shape)
        masked = bits & x.present(self.of)[..., None]
        weight = masked.astype(jnp.float32)  # [B,V,N]
        mean = target.mean(-1, keepdims=True)
        return dict(
            error=(weight * jnp.square(predicted - target).mean(-1)).sum(-1),
            patch_mean=(weight * jnp.square(target - mean).mean(-1)).sum(-1),
            targets=jnp.einsum('bvn,bvnp->bvp', weight, target),
            squares=(weight * jnp.square(target).mean(-1)).sum(-1),
            count=weight.sum(-1),
        )

    def target(self, x: TermInputs, shape: tuple[int, ...]) -> Array:
        """The patches of the view, [B,V,N,P]; `shape` is that of the predictions."""
        images = x.views[self.of.view].image
        _, _, n, numbers = shape
        side = round((numbers / images.shape[-1]) ** 0.5)
        height, width = images.shape[2] // side, images.shape[3] // side
        if height * width != n or side * side * images.shape[-1] != numbers:
            raise UserError(
                f'{self.context.where}.of: {self.of.name!r} has {n} patches of {numbers} numbers, which is no image of '
                f'{images.shape[2]} x {images.shape[3]} px; name the output `pixels` of a decoder'
            )
        patches = rearrange(images, 'b v (h p) (w q) c -> b v (h w) (p q c)', p=side, q=side)
        if not self.normalise:
            return patches
        mean = patches.mean(-1, keepdims=True)
        variance = jnp.square(patches - mean).sum(-1, keepdims=True) / (numbers - 1)
        return (patches - mean) / jnp.sqrt(variance + 1e-6)

    def loss(self, x: TermInputs) -> TermOutput:
        sums = {name: value.sum((0, 1)) for name, value in x.per_row.items()}
        count = jnp.maximum(sums['count'], 1)
        start = sums['squares'] / count - jnp.square(sums['targets'] / count).mean()
        metrics = {
            'rows': x.present(self.of).any(1).sum(),
            'patch_mean': sums['patch_mean'] / count,
            f'loss/{self.of.masked_views}': sums['error'] / count,
        }
        return TermOutput(sums['error'] / count, metrics, start)

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return 2 * self.context.width(self.of.name) + 64  # the mean patch, and sums
