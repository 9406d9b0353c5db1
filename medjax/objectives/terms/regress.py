"""A student predicts the features of a teacher (feature distillation, arXiv 1412.6550; data2vec, 2202.03555).

    'mse'        loss = mean_i  1/D |student_i - target_i|^2
    'smooth_l1'  loss = mean_i  1/D sum_j h(student_ij - target_ij)
                 h(d) = d^2 / (2 beta) for |d| < beta, else |d| - beta / 2
    'cosine'     loss = mean_i  1 - cos(student_i, target_i)

over all features i of present crops. With normalise='layer' the target is (t - mean(t)) / sqrt(var(t) + 1e-5) over its
D numbers: a layer norm without parameters, so that no number of a public encoder outweighs the others.

I-JEPA (arXiv 2301.08243) is 'smooth_l1': a predictor predicts the features of a teacher at the targets of a mask. If
the targets of a crop are predicted from several contexts, of this crop or of others, each of the predictions counts.
data2vec (arXiv 2202.03555) is 'smooth_l1' with beta 2: a head predicts, at masked patches, the mean of a teacher's last
blocks, as teacher/image/crop/mean6/standardised_patches@block.

`start` is the loss of the best constant answer: the variance of the targets, or 1 - |mean unit target|. 'smooth_l1'
has none, because no formula gives it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.models.layers import standardised
from medjax.objectives.features import Feature
from medjax.objectives.numerics import unit
from medjax.objectives.schedules import POSITIVE, number
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.objectives.trees import weight_at_mask

LOSSES = ('mse', 'smooth_l1', 'cosine')


def build(
    context: TermContext,
    student: str,
    teacher: str,
    loss: str = 'mse',
    normalise: str | None = 'layer',
    beta: float = 1.0,
) -> Term:
    """The term `regress` of a config.

    student    features [B,V,…,D], through a head if the widths differ, as student/image/crop/cls>to_teacher
    teacher    features of the same shape, as teacher/large/crop/cls
    loss       'mse', 'smooth_l1' or 'cosine'
    normalise  'layer', or None for the teacher's features as they are
    beta       of 'smooth_l1': the distance at which the square becomes a line
    """
    s = context.feature(student, 'student', per_row=True)
    t = context.feature(teacher, 'teacher', per_row=True)
    context.same_part(s, t)
    if loss not in LOSSES:
        raise UserError(f"{context.where}.loss={loss!r}: must be 'mse', 'smooth_l1' or 'cosine'")
    if normalise not in ('layer', None):
        raise UserError(f"{context.where}.normalise={normalise!r}: must be 'layer' or None")
    number(beta, f'{context.where}.beta', POSITIVE)
    if beta != 1 and loss != 'smooth_l1':
        raise UserError(f"{context.where}.beta={beta!r}: belongs to loss='smooth_l1' alone; leave it out")
    if (s.at and s.at_mask) != (t.at and t.at_mask):
        raise UserError(f'{context.where}: student and teacher must be tokens at one mask, as …/patches@block')
    widths = [context.width(name) for name in (student, teacher)]
    if widths[0] != widths[1]:
        raise UserError(
            f'{context.where}: {student!r} has {widths[0]} numbers and {teacher!r} has {widths[1]}; send the student '
            f"through a head, dict(head='linear', out={widths[1]})"
        )
    return Regress(context, s, t, loss, normalise, beta)


@dataclasses.dataclass(frozen=True, eq=False)
class Regress(Term):
    """The term `regress`; see the top of this file."""

    student: Feature
    teacher: Feature
    kind: str
    normalise: str | None
    beta: float

    def per_row(self, x: TermInputs) -> dict[str, Array]:
        """Sums over the features of each row or group: the error, the targets and their squares, the number."""
        student, target = x.features[self.student.name], jax.lax.stop_gradient(x.features[self.teacher.name])
        target = self.for_contexts(x, target)
        if student.shape != target.shape:
            raise UserError(
                f'{self.context.where}: {self.student.name!r} has the shape {list(student.shape[1:])} a row and '
                f'{self.teacher.name!r} {list(target.shape[1:])}; they must be equal, so views and grids of patches too'
            )
        target = self.target(target.astype(jnp.float32))
        weight = self.weight(x, target.shape[:-1])
        if self.kind == 'mse':
            error = jnp.square(student - target).mean(-1)
        elif self.kind == 'smooth_l1':
            distance = jnp.abs(student - target)
            square, line = 0.5 / self.beta * jnp.square(distance), distance - 0.5 * self.beta
            error = jnp.where(distance < self.beta, square, line).mean(-1)
        else:
            error = 1 - jnp.sum(unit(student) * target, axis=-1)

        def total(x: Array) -> Array:
            return x.reshape(len(x), -1).sum(-1)

        rows = target.reshape(len(target), -1, target.shape[-1])
        return dict(
            error=total(weight * error),
            targets=jnp.einsum('bn,bnd->bd', weight.reshape(len(weight), -1), rows),
            squares=total(weight * jnp.square(target).mean(-1)),
            count=total(weight),
        )

    def target(self, t: Array) -> Array:
        """The teacher's features [...,D], normalised."""
        t = standardised(t) if self.normalise == 'layer' else t
        return unit(t) if self.kind == 'cosine' else t

    def contexts(self, x: TermInputs) -> int:
        """The number of contexts from which the student predicts each target, at the mask of both features."""
        if not self.student.at:
            return 1
        return x.features[self.student.name].shape[2] // x.masks[self.student.at_mask].index.shape[2]

    def for_contexts(self, x: TermInputs, at_targets: Array) -> Array:
        """An array [G,K,M,…] at the targets of crops as one for all contexts of each crop, [G,K,C M,…]."""
        if (contexts := self.contexts(x)) == 1:
            return at_targets
        g, k, m, *rest = at_targets.shape
        of_crops = at_targets.reshape(g, k, -1, x.masks[self.student.at_mask].crop_room, *rest)
        return jnp.repeat(of_crops, contexts, axis=2).reshape(g, k, m * contexts, *rest)

    def weight(self, x: TermInputs, shape: tuple[int, ...]) -> Array:
        """1 for each feature that counts, else 0."""
        here, present = x.present(self.teacher), x.present(self.student)
        if self.student.at:  # a crop may have several contexts
            present = present.reshape(*here.shape, -1).all(-1)
        here &= present
        view, mask = x.views[self.student.view], self.student.inputs[0]
        if not self.student.at and len(shape) > 2 and mask.mask and x.masks[mask.masked_view].length is not None:
            raise UserError(
                f'{self.context.where}: the contexts of {self.student.name!r} have different lengths, so padding would '
                'count; name the features of whole contexts, such as cls'
            )
        if self.student.output == 'tokens' and not self.student.at and view.valid is not None:
            return (here[..., None] & view.valid).astype(jnp.float32)
        if self.student.at:
            return self.for_contexts(x, weight_at_mask(here, x.masks[self.student.at_mask]) > 0).astype(jnp.float32)
        return jnp.broadcast_to(here.reshape(*here.shape, *[1] * (len(shape) - 2)), shape).astype(jnp.float32)

    def loss(self, x: TermInputs) -> TermOutput:
        sums = {name: value.sum(0) for name, value in x.per_row.items()}
        count = jnp.maximum(sums['count'], 1)
        mean = sums['targets'] / count
        if self.kind == 'mse':
            start = sums['squares'] / count - jnp.square(mean).mean()
        elif self.kind == 'smooth_l1':
            start = None
        else:
            start = (1 - jnp.linalg.norm(mean)) * (sums['count'] > 0)
        error = sums['error'] / count
        metrics = {'rows': sums['count'], f'loss/{self.student.masked_views}': error}
        return TermOutput(error, metrics, start)

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return 2 * self.context.width(self.teacher.name) + 64  # the mean target, and sums
