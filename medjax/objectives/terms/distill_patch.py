"""T6: masked tokens predict the teacher's tokens of the unmasked view (iBOT, 2111.07832; as in DINOv2, 2304.07193).

    loss = 1/C  sum_c  1/|M_c|  sum_{i in M_c}  CE( q_ci, p_ci )

over the C present crops of the view, masked or not (as the original divides), and the masked tokens M_c of a crop.
Starts at ln K times the share of crops that are masked, for uniform outputs.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from medjax.errors import UserError
from medjax.objectives import numerics
from medjax.objectives.features import parse
from medjax.objectives.targets import count_of, gauges, targets
from medjax.objectives.terms import Context, Term


def build(
    context: Context,
    student: str,
    teacher: str,
    teacher_temperature: Any = 0.07,
    student_temperature: float = 0.1,
    centring: str = 'sinkhorn',
    momentum: float = 0.9,
    iterations: int = 3,
) -> Term:
    """`student`, `teacher`: features at the positions of one mask, [G,K,M,d], bottlenecks of heads with equal K."""
    s, t = parse(student, f'{context.where}.student'), parse(teacher, f'{context.where}.teacher')
    if s.at is None or (s.view, s.at) != (t.view, t.at):
        raise UserError(f'{context.where}: student and teacher are tokens of one view at one mask: …patches@block>head')
    make = targets(context, t, centring, teacher_temperature, momentum, iterations)
    if count_of(context, s) != make.prototypes:
        raise UserError(f'{context.where}: the heads of student and teacher need equal numbers of prototypes')

    def loss(params, aux, features, views, masks, net, key, step):
        mask, present = masks[f'{s.view}~{s.at}'], views[s.view].present
        groups, _, m = mask.index.shape
        # which crop a token is of, to leave out those of absent crops: [G,K,M] -> [G,rows*V]
        crop = mask.index // mask.bits.shape[-1]
        here = jnp.take_along_axis(present.reshape(groups, 1, -1), crop, axis=-1)
        weight = jnp.where(here, mask.weight, 0.0).reshape(-1)  # [R], R = G K M
        crops = present.sum()

        zs, zt = (features[name].reshape(weight.shape[0], 1, -1) for name in (student, teacher))
        counts = (weight > 0).astype(jnp.float32)

        def teacher_logits(z):
            return net.prototypes(t.head, z, t.network)

        def student_logits(z):
            return net.prototypes(s.head, z, s.network)

        potential = make.potential(aux, teacher_logits, zt[:, 0], counts, step)
        sums = numerics.distill(
            student_logits, teacher_logits, zs, zt, (weight / jnp.maximum(crops, 1))[:, None, None], counts[:, None],
            student_temperature, make.temperature(step), potential, make.prototypes,
        )  # fmt: skip
        tokens = counts.sum()
        metrics = {
            'start': jnp.log(float(make.prototypes)) * weight.sum() / jnp.maximum(crops, 1),
            'rows': tokens,
            **gauges(sums, counts, make.prototypes, tokens),
            f'loss/{s.inputs}': sums.loss.sum(),
        }
        return sums.loss.sum(), metrics, (sums.teacher_logits / jnp.maximum(tokens, 1), tokens)

    return Term((student, teacher), loss, lambda rows, shapes: make.moves, make.init, make.axes, make.update)
