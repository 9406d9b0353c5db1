"""Masked tokens predict the teacher's tokens of the unmasked view (iBOT, arXiv 2111.07832; as in DINOv2, 2304.07193).

    loss = 1/C  sum_c  1/|M_c|  sum_{i in M_c}  CE( q_ci, p_ci )

over the C present crops of the view, masked or not (as the original divides), and the masked tokens M_c of a crop. p
and q are made as in distill_cls.py; Sinkhorn balances the masked tokens alone. For uniform outputs the loss starts at
ln K times the share of masked crops.

The plain formula is `medjax.objectives.formulas.ibot_loss`; this term equals it where all crops are present. It adds
absent crops, padding and row chunks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from medjax.errors import UserError
from medjax.objectives import numerics
from medjax.objectives.schedules import POSITIVE, number
from medjax.objectives.targets import Distillation, gauges, prototypes_of, targets
from medjax.objectives.terms import Term, TermContext, TermInputs, TermOutput
from medjax.objectives.trees import weight_at_mask


def build(
    context: TermContext,
    student: str,
    teacher: str,
    teacher_temperature: Any = 0.07,
    student_temperature: float = 0.1,
    centring: str = 'sinkhorn',
    momentum: float = 0.9,
    iterations: int = 3,
) -> Term:
    """The term `distill_patch` of a config.

    student, teacher     features at the positions of one mask, [G,K,M,d]: bottlenecks of heads with equal K
    teacher_temperature  a schedule
    centring             'sinkhorn', with `iterations`, or 'centre', a running mean with `momentum`
    """
    s, t = context.feature(student, 'student'), context.feature(teacher, 'teacher')
    if s.at is None or t.at is None or s.at_mask != t.at_mask:
        raise UserError(
            f"{context.where}: student and teacher must be tokens of one view at one mask, as in '…/patches@block>head'"
        )
    options = targets(context, t, centring, teacher_temperature, momentum, iterations)
    if prototypes_of(context, s) != options.prototypes:
        raise UserError(f'{context.where}: the heads of student and teacher must have equal numbers of prototypes')
    number(student_temperature, f'{context.where}.student_temperature', POSITIVE)
    return DistillPatch(context, (s,), t, options, student_temperature)


@dataclasses.dataclass(frozen=True, eq=False)
class DistillPatch(Distillation):
    """The term `distill_patch`: the loss of iBOT."""

    def loss(self, x: TermInputs) -> TermOutput:
        (s,), t, options = self.students, self.teacher, self.targets
        present = x.present(s) & x.present(t)
        weight = weight_at_mask(present, x.masks[s.at_mask]).reshape(-1)  # [R], R = G K M
        counts = (weight > 0).astype(jnp.float32)
        tokens, crops = counts.sum(), jnp.maximum(present.sum(), 1)

        zs, zt = (x.features[f.name].reshape(weight.shape[0], 1, -1) for f in (s, t))
        student, teacher = self.student_logits(x), self.teacher_logits(x)
        potential = options.potential(x.state, teacher, zt[:, 0], counts, x.step)
        sums = numerics.distill(
            numerics.Softmax(student, zs, self.student_temperature),
            numerics.Softmax(teacher, zt, options.temperature(x.step)),
            (weight / crops)[:, None, None], counts[:, None], potential, options.prototypes,
        )  # fmt: skip
        metrics = {
            'rows': tokens,
            **gauges(sums, counts, options.prototypes, tokens),
            f'loss/{s.masked_views}': sums.loss.sum(),
        }
        logits, target = (total / jnp.maximum(tokens, 1) for total in (sums.teacher_logits, sums.targets))
        share = weight.sum() / crops  # of the crops that are masked
        metrics['untrained'] = jnp.log(float(options.prototypes)) * share
        start = options.start(x.state, target) * share
        return TermOutput(sums.loss.sum(), metrics, start, carry=(logits, target, tokens))

    def moves(self, rows: int, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return self.elements_of_targets()
