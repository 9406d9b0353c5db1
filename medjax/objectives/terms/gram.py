"""The student keeps the similarities between patches that an earlier teacher has (Gram anchoring, arXiv 2508.10104).

With the unit patches x_i of a crop, from the student, and y_i, from the teacher:

    loss = mean over crops, i and j  ( x_i . x_j  -  y_i . y_j )^2

In long runs of self-distillation the patches of a crop grow alike. An earlier teacher has patches that still differ:
one with rule='refreshed' that follows the average of the student. It may see the same crops at another size. Then its
patches are resized to the student's grid by bicubic interpolation, before they are made unit vectors:

    views=dict(…, anchor=dict(view='crop', part='images', boxes='global', count=2, size=512, photometric=None))
    dict(term='gram', student='student/image/global~block/patches', teacher='gram/image/anchor/patches')

Only similarities are compared, so the student may turn its features as its other terms ask.

There is no `start`: the student begins as its teacher, so a low loss does not say that it learns. The metric `equal` is
the loss of a student whose patches are all equal. Compared with loops that follow facebookresearch/dinov3,
dinov3/loss/gram_loss.py: tests/objectives/test_gram.py.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax import Array

from medjax.errors import UserError
from medjax.models.bicubic import resize_grid
from medjax.objectives.features import Feature
from medjax.objectives.numerics import unit
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput


def build(context: TermContext, student: str, teacher: str) -> Term:
    """The term `gram` of a config.

    student, teacher  all patches [B,V,N,D] of the same crops, as student/image/global~block/patches. Their widths and
                      numbers of patches may differ.
    """
    features = []
    for name, argument in ((student, 'student'), (teacher, 'teacher')):
        feature = context.feature(name, argument, per_row=True)
        tower = context.towers[feature.tower]
        if feature.output != 'patches' or feature.at or feature.heads or tower.reads or tower.sees != 'image':
            raise UserError(
                f'{context.where}.{argument}: {name!r} must be all patches that a tower of images gives, as '
                'student/image/crop/patches'
            )
        features.append(feature)
    s, t = features
    context.same_part(s, t)
    if context.boxes.get(s.view, s.view) != context.boxes.get(t.view, t.view):
        raise UserError(
            f'{context.where}: {s.view!r} and {t.view!r} show other crops of an image; give the view {t.view!r} '
            f'boxes={s.view!r}, or name one view'
        )
    counts = [context.crops.get(feature.view, 1) for feature in features]
    if counts[0] != counts[1]:
        raise UserError(
            f'{context.where}: {s.view!r} has {counts[0]} crops and {t.view!r} {counts[1]}; give both one count'
        )
    return Gram(context, s, t)


@dataclasses.dataclass(frozen=True, eq=False)
class Gram(Term):
    """The term `gram`; see the top of this file."""

    student: Feature
    teacher: Feature

    def per_row(self, x: TermInputs) -> dict[str, Array]:
        """Sums over the crops of each row [B]: the loss, that of equal patches, and the number of crops."""
        student, grid = self.patches(x, self.student)
        target, others = self.patches(x, self.teacher)
        target = jax.lax.stop_gradient(target).astype(jnp.float32)
        target = resize_grid(target.reshape(*target.shape[:2], *others, -1), grid, antialias=False, offset=0.0)
        ours, theirs = similarities(student), similarities(target.reshape(*student.shape[:3], -1))
        here = (x.present(self.student) & x.present(self.teacher)).astype(jnp.float32)
        return dict(
            error=(here * jnp.square(ours - theirs).mean((2, 3))).sum(1),
            equal=(here * jnp.square(1 - theirs).mean((2, 3))).sum(1),
            count=here.sum(1),
        )

    def patches(self, x: TermInputs, feature: Feature) -> tuple[Array, tuple[int, int]]:
        """All patches [B,V,N,D] of the crops of a feature, and their grid; UserError where some are missing."""
        found = x.feature(feature, 'BVND')
        height, width = grid = self.context.towers[feature.tower].grid(x.views[feature.view].image.shape[2:4])
        if found.shape[2] != math.prod(grid):
            raise UserError(
                f'{self.context.where}: {feature.name!r} has {found.shape[2]} patches, and a crop has {height} x '
                f"{width}; the term needs all of them, so leave out the mask, or give it mode='replace'"
            )
        return found, grid

    def loss(self, x: TermInputs) -> TermOutput:
        sums = {name: value.sum() for name, value in x.per_row.items()}
        crops = jnp.maximum(sums['count'], 1)
        return TermOutput(sums['error'] / crops, {'rows': sums['count'], 'equal': sums['equal'] / crops})


def similarities(patches: Array) -> Array:
    """The Gram matrices [B,V,N,N] of unit patches, from patches [B,V,N,D]."""
    z = unit(patches)
    return jnp.einsum('bvid,bvjd->bvij', z, z, precision='highest')
