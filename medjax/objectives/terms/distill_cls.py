"""T5: the student's views predict the teacher's, over prototypes (DINO, 2104.14294; as in DINOv2, 2304.07193).

    loss = 1/P  sum_pairs (s,t)  mean_b  CE( q_bt, p_bs ),
    q = softmax(teacher / T + potential),   p = softmax(student / .1)

over the P pairs of a student view s and a teacher view t, the pairs of one and the same crop left out. With 2 global
and 8 local crops P = 2 * 8 + 2 = 18, DINOv2's divisor. The metrics `loss/<student view>` are that view's share.
Starts at ln K for uniform outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from medjax.errors import UserError
from medjax.objectives import numerics
from medjax.objectives.features import parse
from medjax.objectives.targets import count_of, gauges, targets
from medjax.objectives.terms import Context, Term


def build(
    context: Context,
    student: str | Sequence[str],
    teacher: str,
    teacher_temperature: Any = 0.07,
    student_temperature: float = 0.1,
    centring: str = 'sinkhorn',
    momentum: float = 0.9,
    iterations: int = 3,
) -> Term:
    """`student`: one or more features [B,V,d], `teacher`: one [B,T,d], all bottlenecks of heads with equal K.

    `momentum` is the centre's, `iterations` Sinkhorn's.
    """
    students = [student] if isinstance(student, str) else list(student)
    parsed = [parse(name, f'{context.where}.student') for name in students]
    target = parse(teacher, f'{context.where}.teacher')
    make = targets(context, target, centring, teacher_temperature, momentum, iterations)
    if len({f.head for f in parsed}) != 1 or count_of(context, parsed[0]) != make.prototypes:
        raise UserError(f'{context.where}: all students go through one head, with as many prototypes as the teacher')

    def loss(params, aux, features, views, masks, net, key, step):
        zt = features[teacher]  # [B,T,d]
        zs = jnp.concatenate([features[name] for name in students], axis=1)  # [B,S,d]
        here_t = views[target.view].present.astype(jnp.float32)
        here_s = jnp.concatenate([views[f.view].present for f in parsed], axis=1).astype(jnp.float32)
        sizes = [features[name].shape[1] for name in students]
        allowed = np.concatenate(
            [_pairs(f.view == target.view, v, zt.shape[1]) for f, v in zip(parsed, sizes)]
        )  # [S,T]

        pairs = here_s[:, :, None] * here_t[:, None, :] * allowed  # [B,S,T]
        rows = pairs.sum(0)
        weight = pairs / jnp.maximum(rows, 1) / jnp.maximum((rows > 0).sum(), 1)

        def teacher_logits(z):
            return net.prototypes(target.head, z, target.network)

        def student_logits(z):
            return net.prototypes(parsed[0].head, z, parsed[0].network)

        potential = make.potential(aux, teacher_logits, zt.reshape(-1, zt.shape[-1]), here_t.reshape(-1), step)
        sums = numerics.distill(
            student_logits, teacher_logits, zs, zt, weight, here_t,
            student_temperature, make.temperature(step), potential, make.prototypes,
        )  # fmt: skip
        by_view = jnp.split(sums.loss, np.cumsum(sizes)[:-1])
        metrics = {
            'start': jnp.log(float(make.prototypes)) * (rows.sum() > 0),
            'rows': jnp.any(pairs > 0, axis=(1, 2)).sum(),
            **gauges(sums, here_t, make.prototypes, here_s.sum()),
            **{f'loss/{f.inputs}': part.sum() for f, part in zip(parsed, by_view)},
        }
        present = here_t.sum()
        return sums.loss.sum(), metrics, (sums.teacher_logits / jnp.maximum(present, 1), present)

    def moves(rows: int, shapes: dict[str, tuple[int, ...]]) -> int:
        s, t = sum(shapes[name][1] for name in students), shapes[teacher][1]
        return make.moves + 4 * s * t  # the counts of the pairs

    return Term((*students, teacher), loss, moves, make.init, make.axes, make.update)


def _pairs(same: bool, s: int, t: int) -> np.ndarray:
    """Which pairs count, [s,t]: all, but not a crop with itself when both see the same view."""
    return 1.0 - np.eye(s, t) if same else np.ones((s, t))
