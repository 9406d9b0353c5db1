"""The student's views predict the teacher's over prototypes (DINO, arXiv 2104.14294; as in DINOv2, 2304.07193).

    loss = 1/P  sum_pairs (s,t)  mean_b  CE( q_bt, p_bs ),
    q = softmax(teacher logits / teacher_temperature + potential),   p = softmax(student logits / student_temperature)

over the P pairs of a student view s and a teacher view t. The potential [K] centres the targets, see targets.py. A crop
is not paired with itself. With 2 global and 8 local crops P = 2 * 8 + 2 = 18, DINOv2's divisor. The metric
`loss/<student view>` is the share of that view. An untrained student has about ln K.

The plain formula is `medjax.objectives.formulas.dino_loss`; this term equals it where all rows are present. It adds
absent rows, student crops of several views, and row chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from medjax.errors import UserError
from medjax.objectives import numerics
from medjax.objectives.schedules import POSITIVE, number
from medjax.objectives.targets import Distillation, gauges, prototypes_of, targets
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.objectives.trees import same_crop


def build(
    context: TermContext,
    student: str | Sequence[str],
    teacher: str,
    teacher_temperature: Any = 0.07,
    student_temperature: float = 0.1,
    centring: str = 'sinkhorn',
    momentum: float = 0.9,
    iterations: int = 3,
) -> Term:
    """The term `distill_cls` of a config.

    student              one or more features [B,V,d], the bottlenecks of one head with K prototypes
    teacher              a feature [B,T,d], the bottleneck of a head with K prototypes
    teacher_temperature  a schedule
    centring             'sinkhorn', with `iterations`, or 'centre', a running mean with `momentum`
    """
    names = [student] if isinstance(student, str) else list(student)
    students = tuple(context.feature(name, 'student') for name in names)
    target = context.feature(teacher, 'teacher')
    context.same_part(*students, target)
    options = targets(context, target, centring, teacher_temperature, momentum, iterations)
    if len({f.head for f in students}) != 1 or prototypes_of(context, students[0]) != options.prototypes:
        raise UserError(
            f'{context.where}: all student features must go through one head, with as many prototypes as the head of '
            'the teacher'
        )
    if not any(context.crops.get(f.view, 2) > (f.view == target.view) for f in students):
        raise UserError(
            f'{context.where}.student: the only crop of {target.view!r} is the one of the teacher, and a crop is not '
            'paired with itself; give the view count=2, or name a second view'
        )
    number(student_temperature, f'{context.where}.student_temperature', POSITIVE)
    return DistillCls(context, students, target, options, student_temperature)


@dataclasses.dataclass(frozen=True, eq=False)
class DistillCls(Distillation):
    """The term `distill_cls`: the loss of DINO."""

    def loss(self, x: TermInputs) -> TermOutput:
        zt = x.feature(self.teacher, 'BTd')
        zs = jnp.concatenate([x.feature(f, 'BSd') for f in self.students], axis=1)
        here_t = x.present(self.teacher).astype(jnp.float32)
        here_s = jnp.concatenate([x.present(f) for f in self.students], axis=1).astype(jnp.float32)
        sizes = [x.features[f.name].shape[1] for f in self.students]
        crops = [x.views[f.view].present.shape[1] for f in self.students]
        counts = here_s[:, :, None] * here_t[:, None, :] * self.allowed(sizes, zt.shape[1], crops)  # [B,S,T]
        rows = counts.sum(0)
        weight = counts / jnp.maximum(rows, 1) / jnp.maximum((rows > 0).sum(), 1)

        student, teacher, options = self.student_logits(x), self.teacher_logits(x), self.targets
        potential = options.potential(x.state, teacher, zt.reshape(-1, zt.shape[-1]), here_t.reshape(-1), x.step)
        sums = numerics.distill(
            numerics.Softmax(student, zs, self.student_temperature),
            numerics.Softmax(teacher, zt, options.temperature(x.step)),
            weight, here_t, potential, options.prototypes,
        )  # fmt: skip
        by_view = jnp.split(sums.loss, np.cumsum(sizes)[:-1])
        metrics = {
            'rows': jnp.any(counts > 0, axis=(1, 2)).sum(),
            **gauges(sums, here_t, options.prototypes, here_s.sum()),
            **{f'loss/{f.masked_views}': share.sum() for f, share in zip(self.students, by_view)},
        }
        present = here_t.sum()
        logits, target = (total / jnp.maximum(present, 1) for total in (sums.teacher_logits, sums.targets))
        any_rows = rows.sum() > 0
        metrics['untrained'] = jnp.log(float(options.prototypes)) * any_rows
        start = options.start(x.state, target) * any_rows
        return TermOutput(sums.loss.sum(), metrics, start, carry=(logits, target, present))

    def allowed(self, sizes: Sequence[int], t: int, crops: Sequence[int]) -> np.ndarray:
        """1 for each student view and teacher view that are paired, [S,T]; 0 for a crop and itself.

        `sizes` are the numbers of elements of the student features, `t` is that of the teacher's: a crop has several
        elements if its mask has several contexts. `crops` are the numbers of crops of the same features.
        """
        views = [
            1.0 - same_crop(s, t, c) if f.view == self.teacher.view else np.ones((s, t))
            for f, s, c in zip(self.students, sizes, crops, strict=True)
        ]
        return np.concatenate(views)

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        s, t = sum(shapes[f.name][1] for f in self.students), shapes[self.teacher.name][1]
        return self.elements_of_targets() + 4 * s * t  # the counts of the pairs
